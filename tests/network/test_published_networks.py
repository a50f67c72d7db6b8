# SPDX-License-Identifier: Apache-2.0
"""Files of the published names and shapes, loaded, against the tables evaluated by hand, float32.

The largest difference may be 1e-4 of the largest value.  See ``test_caffe.py`` for Caffe's.
"""

import json
from pathlib import Path

import pytest
import torch
from literal_network import literal, literal_pair, randomised

from bmex_bids.network.models.bmex import BMEX
from bmex_bids.network.models.lifespanstrip import LifespanStrip
from bmex_bids.network.weights.checkpoints import load_network

PUBLISHED = json.loads(Path(__file__).with_name("published_tensors.json").read_text())


def release_name(name):
    module, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    return {"tissue": rest, "recon": f"{layer}_recon.{kind}"}.get(module, name)


def difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture
def brain():
    return 1000 * torch.rand((1, 1, 16, 8, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", [32, 64])
def test_bmex_is_the_table_evaluated(tmp_path, brain, width):
    state = randomised(BMEX(width)).state_dict()
    state = {release_name(k): v.float() if v.is_floating_point() else v for k, v in state.items()}
    if width == 64:
        assert {k: list(v.shape) for k, v in state.items()} == PUBLISHED
    # an input of up to 1000, as in the release: the first layers bring it down
    for first in ("conv1.weight", "conv2_con.weight"):
        state[first] = state[first] / 1000
    path = tmp_path / "BMEX-Month24-T1-model.pt"
    torch.save(state, path)
    network = load_network(path, "bmex-pytorch")
    with torch.no_grad():
        scores, image = network(brain)
        expected_scores, expected_image = literal_pair(state, brain)
    assert expected_scores.max() > 0.1  # not all rectified away
    assert expected_image.max() > 0.1
    assert difference(scores, expected_scores) <= 1e-4
    assert difference(image, expected_image) <= 1e-4


def test_lifespanstrip_is_the_table_evaluated_and_a_softmax(tmp_path):
    state = randomised(LifespanStrip(32)).state_dict()
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path / "T1T2w-model.pt"
    torch.save({"state_dict": state, "epoch": 100}, path)
    network = load_network(path, "lifespanstrip")
    x = torch.rand((1, 1, 16, 24, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        classes = network(x)
        expected = torch.softmax(literal(state, x), dim=1)
    assert classes.shape == (1, 4, 16, 24, 16)
    assert expected.std() > 0.05
    assert difference(classes, expected) <= 1e-4
    assert torch.allclose(classes.sum(dim=1), torch.ones(1, 16, 24, 16), atol=1e-5)
