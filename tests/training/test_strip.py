# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bmex_bids.exceptions import UsageError
from bmex_bids.network.compact import HalfUNet
from bmex_bids.training.strip import loss_of, soft_dice, start


@pytest.fixture
def trained(tmp_path):
    """A network whose weights are all different, and their file."""
    torch.manual_seed(3)
    network = HalfUNet(1, 1, 4, blocks=1, norm=True)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.1)
    path = tmp_path / "strip.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def test_a_deeper_network_begins_as_the_one_it_came_from(trained):
    network, path = trained
    deeper = HalfUNet(1, 1, 4, blocks=2, norm=True)
    missing = start(deeper, path)
    assert missing
    assert all(name.split(".")[1] == "1" for name in missing)  # the second block of a level
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(deeper(x), network(x))


def test_weights_of_another_network_are_refused(trained, tmp_path):
    _, path = trained
    with pytest.raises(UsageError, match="start-from"):
        start(HalfUNet(1, 1, 8, norm=True), path)
    deep = tmp_path / "deep.safetensors"
    save_file(HalfUNet(1, 1, 4, blocks=2, norm=True).state_dict(), deep)
    with pytest.raises(UsageError, match="--blocks"):
        start(HalfUNet(1, 1, 4, blocks=1, norm=True), deep)
    with pytest.raises(UsageError, match="expected weights"):
        start(HalfUNet(1, 1, 4, norm=True), tmp_path / "nowhere")


def test_dice_by_hand():
    brain = torch.zeros(1, 1, 2, 2, 2)
    brain[..., 0] = 1
    found = torch.full_like(brain, -5.0)
    found[..., 0, 0] = 5.0  # two of the four voxels
    assert soft_dice(found, brain) == pytest.approx(2 * 2 / (2 + 4))


def test_a_small_head_counts_as_much_as_a_large_one():
    large, small = torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8)
    large[..., :4], small[..., 0, 0, :2] = 1, 1
    right, wrong = 20 * (2 * large - 1), torch.full_like(large, -20.0)
    both = loss_of(torch.cat([right, wrong]), torch.cat([large, small]))
    # the overlap of the small head is lost: half of the Dice part
    assert float(both) > 0.5
