# SPDX-License-Identifier: Apache-2.0
"""The network against the published table, evaluated layer by layer without our modules."""

import pytest
import torch
import torch.nn.functional as F

from bmex_bids.network.adunet import ADUNet
from bmex_bids.network.bmex import BMEX


def randomised(network, seed=0):
    """Random weights, statistics and scales, so that no channel can be mistaken for another."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            tensor.copy_(noise.abs() + 0.3)
        elif ".bn" in f".{name}" and name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        elif tensor.ndim == 5:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.3 * noise)
    return network


def literal(s, x, *, regular_b=False, regular_d=False):
    """The table of one ADU-Net; ``regular_*`` undo the two irregularities of the release."""

    def conv(n, t):
        return F.conv3d(t, s[f"conv{n}.weight"], s[f"conv{n}.bias"], padding=1)

    def up(n, t):
        weight, bias = s[f"deconv{n}.weight"], s[f"deconv{n}.bias"]
        return F.conv_transpose3d(t, weight, bias, stride=2, padding=1)

    def act(n, t):
        part = [s[f"bn{n}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(t, *part, training=False, eps=1e-5))

    def pool(t):
        return F.max_pool3d(t, 3, stride=2, padding=1)

    def cat(*parts):
        return torch.cat(parts, dim=1)

    stem = act("1", conv("1", x))
    # dense A
    a2 = conv("2", stem)
    a3 = cat(a2, conv("3", act("2", a2)))
    a4 = cat(a3, conv("4", act("3", a3)))
    a5 = cat(a4, conv("4_1", act("4", a4)))
    skip1 = conv("5", act("4_1", a5))
    # dense B
    b6 = conv("6", pool(act("5", skip1)))
    new = conv("7", act("6", b6))
    b7 = cat(b6, new) if regular_b else cat(new, b6)
    b8 = cat(b7, conv("8", act("7", b7)))
    b9 = cat(b8, conv("9", act("8", b8)))
    skip2 = conv("10", act("9", b9))
    # bottleneck
    skip3 = conv("11", pool(act("10", skip2)))
    low = cat(skip3, up("11", pool(act("11", skip3))))
    # dense C
    c12 = conv("12", low)
    c13 = cat(c12, conv("13", act("12", c12)))
    c14 = cat(c13, conv("14", act("13", c13)))
    c15 = cat(c14, conv("15", act("14", c14)))
    half = cat(skip2, up("15", act("15", c15)))
    # dense D
    d16 = conv("16", half)
    d17 = cat(d16, conv("17", act("16", d16)))
    d18 = cat(d17, conv("18", act("17", d17)))
    d18_active = act("18", d18)
    d19 = cat(d18 if regular_d else d18_active, conv("19", d18_active))
    # dense E
    e20 = conv("20", act("19", d19))
    e21 = cat(e20, conv("21", act("20", e20)))
    e22 = cat(e21, conv("22", act("21", e21)))
    e23 = cat(e22, conv("23", act("22", e22)))
    full = cat(skip1, up("23", act("23", e23)))
    # dense F
    f24 = conv("24", full)
    f25 = cat(f24, conv("25", act("24", f24)))
    f26 = cat(f25, conv("26", act("25", f25)))
    f27 = cat(f26, conv("27", act("26", f26)))
    # dense G
    g28 = conv("28", act("27", f27))
    g29 = cat(g28, conv("29", act("28", g28)))
    g30 = cat(g29, conv("30", act("29", g29)))
    g31 = cat(g30, conv("31", act("30", g30)))
    return act("32", conv("32", act("31", g31)))


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
