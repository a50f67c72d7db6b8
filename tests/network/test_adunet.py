# SPDX-License-Identifier: Apache-2.0
"""The network against the published table, evaluated layer by layer without our modules."""

import pytest
import torch
import torch.nn.functional as F
from literal_network import literal, randomised

from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.models.bmex import BMEX


def difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def pair():
    network = randomised(ADUNet(8, 1, 4))
    x = torch.randn((1, 1, 8, 16, 24), generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        return network.state_dict(), x, network(x)


def test_one_network_is_the_table_evaluated(pair):
    state, x, result = pair
    assert result.shape == (1, 4, 8, 16, 24)
    expected = literal(state, x)
    assert expected.max() > 0.1  # not all rectified away
    assert difference(result, expected) <= 1e-6


@pytest.mark.parametrize("made_regular", ["regular_b", "regular_d"])
def test_each_irregularity_of_the_release_matters_and_is_kept(pair, made_regular):
    state, x, result = pair
    assert difference(result, literal(state, x, **{made_regular: True})) > 1e-3


def test_both_networks_and_their_connection_are_the_table_evaluated():
    network = randomised(BMEX(8), seed=2)
    s = network.state_dict()
    x = torch.randn((1, 1, 8, 8, 16), generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        scores, image = network(x)

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in s.items() if k.startswith(prefix)}

    def connect(n, t):
        t = F.conv3d(t, s[f"conv{n}_con.weight"], s[f"conv{n}_con.bias"], padding=1)
        bn = [s[f"bn{n}_con.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(t, *bn, eps=1e-5))

    seg = literal(part("tissue."), x)
    joined = torch.cat([connect("1", torch.softmax(seg, 1)), connect("2", x)], 1)
    assert joined.shape[1] == 64
    recon = literal(part("recon."), joined)
    assert recon.max() > 0.1
    assert difference(scores, seg) <= 1e-6
    assert difference(image, recon) <= 1e-6
    assert (scores >= 0).all()  # rectified, no softmax


def test_dropout_is_silent_in_inference_only():
    network = ADUNet(4)
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(x), network(x))
    assert network.dropout.p == 0.1
