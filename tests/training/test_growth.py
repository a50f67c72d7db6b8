# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.compact import CompactBMEX, HalfUNet, Members
from bmex_bids.training.growth import start


def trained(network, path, seed=3):
    """The network with all weights different, and their file."""
    torch.manual_seed(seed)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.1)
    save_file(network.state_dict(), path)
    return network


@pytest.fixture
def stripper(tmp_path):
    path = tmp_path / "strip.safetensors"
    return trained(HalfUNet(1, 1, 4, blocks=1, norm=True), path), path


@pytest.fixture
def enhancer(tmp_path):
    path = tmp_path / "enhance.safetensors"
    return trained(CompactBMEX(4, 3), path), path


def volume():
    return 800 * torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_deeper_stripper_begins_as_the_one_it_came_from(stripper):
    network, path = stripper
    deeper = HalfUNet(1, 1, 4, blocks=2, norm=True)
    missing = start(deeper, path)
    assert missing
    assert all(name.split(".")[1] == "1" for name in missing)  # the second block of a level
    with torch.no_grad():
        torch.testing.assert_close(deeper(volume()), network(volume()))


@pytest.mark.parametrize(("width", "tissue_width", "blocks"), [(4, 3, 1), (6, 5, 1), (7, 3, 2)])
def test_a_larger_enhancer_begins_as_the_one_it_came_from(enhancer, width, tissue_width, blocks):
    network, path = enhancer
    larger = CompactBMEX(width, tissue_width, blocks)
    start(larger, path)
    with torch.no_grad():
        for found, expected in zip(larger(volume()), network(volume()), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
            assert expected.std() > 0


def test_channels_that_are_new_learn_from_the_first_steps_on(enhancer):
    _, path = enhancer
    larger = CompactBMEX(6, 3)
    start(larger, path)
    _, image = larger(volume())
    image.square().mean().backward()
    new = larger.get_parameter("enhance.head.weight").grad[:, 4:]
    assert new.abs().max() > 0  # nothing listens to them yet, and that is what changes first


def test_the_ablation_begins_with_the_enhancement_alone(enhancer):
    network, path = enhancer
    alone = CompactBMEX(4, 0)
    assert start(alone, path) == []
    stem = network.get_parameter("enhance.stem.weight")
    found = alone.get_parameter("enhance.stem.weight")
    assert found.shape[1] == 16  # two channels of eight voxels; those of four tissues are gone
    assert torch.equal(found, stem[:, :16])
    bias = "enhance.dec1.0.conv1.bias"
    assert torch.equal(alone.get_parameter(bias), network.get_parameter(bias))


def test_weights_of_another_network_are_refused(stripper, enhancer, tmp_path):
    _, path = stripper
    with pytest.raises(UsageError, match="no larger than this"):
        start(HalfUNet(1, 1, 2, norm=True), path)
    deep = tmp_path / "deep.safetensors"
    save_file(HalfUNet(1, 1, 4, blocks=2, norm=True).state_dict(), deep)
    with pytest.raises(UsageError, match="--blocks"):
        start(HalfUNet(1, 1, 4, blocks=1, norm=True), deep)
    with pytest.raises(UsageError, match="expected weights"):
        start(HalfUNet(1, 1, 4, norm=True), tmp_path / "nowhere")
    with pytest.raises(UsageError, match="start-from"):
        start(HalfUNet(1, 1, 4, norm=True), enhancer[1])
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(UsageError, match="expected weights"):
        start(CompactBMEX(4, 3), tmp_path / "text.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UsageError, match="got none"):
        start(CompactBMEX(4, 3), tmp_path / "empty.safetensors")


def test_a_file_of_several_networks_is_no_beginning(tmp_path):
    path = tmp_path / "both.safetensors"
    save_file(Members([CompactBMEX(4, 0), CompactBMEX(4, 0)]).state_dict(), path)
    with pytest.raises(UsageError, match="several networks"):
        start(CompactBMEX(4, 0), path)
