# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.testing import assert_close

from bmex_bids.network.models.compact import (
    BRIGHTNESS,
    CENTRE,
    DETAIL,
    ChannelNorm,
    CompactBMEX,
    HalfUNet,
    box_mean,
    shuffle,
    split,
    unshuffle,
)


def test_unshuffle_moves_a_block_of_eight_voxels_into_channels():
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    assert unshuffle(x).shape == (1, 8, 1, 1, 1)
    assert unshuffle(x).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    # the second block along the last axis becomes the second voxel of each channel
    x = torch.arange(16.0).reshape(1, 1, 2, 2, 4)
    assert unshuffle(x)[0, :, 0, 0, 0].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert unshuffle(x)[0, :, 0, 0, 1].tolist() == [2, 3, 6, 7, 10, 11, 14, 15]


def test_shuffle_is_the_inverse():
    x = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(shuffle(unshuffle(x)), x)
    y = torch.randn(2, 16, 2, 3, 4)
    assert torch.equal(unshuffle(shuffle(y)), y)


def test_split_of_a_constant_is_its_brightness_without_detail():
    x = torch.zeros(1, 1, 12, 12, 12)
    x[..., 3:9, 3:9, 3:9] = CENTRE + 2 * BRIGHTNESS
    inside = (x > 0).float()
    result = split(x)
    assert_close(
        result[:, :1], 2 * inside, atol=1e-4, rtol=0
    )  # the edge of the mask makes no edge
    assert_close(result[:, 1:], 0 * inside, atol=1e-4, rtol=0)


def test_split_can_be_undone():
    x = torch.rand(1, 1, 8, 8, 8) * 1000 + 1
    mean, detail = split(x)[:, :1], split(x)[:, 1:]
    assert_close(mean * BRIGHTNESS + CENTRE + detail * DETAIL, x, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("tissue_width", [4, 0])
def test_an_untrained_network_returns_its_input(tissue_width):
    x = torch.rand(2, 1, 16, 8, 24) * 1000
    with torch.no_grad():
        scores, image = CompactBMEX(4, tissue_width)(x)
    assert torch.equal(image, x)
    assert scores.shape == (2, 4, 16, 8, 24)
    assert not scores.any()


def test_a_correction_leaves_in_units_of_detail():
    network = CompactBMEX(4, 0)
    torch.nn.init.constant_(network.enhance.head.bias, 0.5)
    x = torch.rand(1, 1, 8, 8, 8) * 1000
    with torch.no_grad():
        assert_close(network(x)[1], x + 0.5 * DETAIL)


def test_training_and_inference_are_one_function():
    network = CompactBMEX(4, 4)
    torch.nn.init.normal_(network.enhance.head.weight)
    x = torch.rand(1, 1, 8, 8, 8) * 1000
    with torch.no_grad():
        trained = network.train()(x)[1]
        assert not torch.equal(trained, x)
        assert torch.equal(network.eval()(x)[1], trained)


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_reach_every_parameter_once_the_head_has_moved(norm):
    torch.manual_seed(0)
    network = HalfUNet(1, 1, 4, norm=norm)
    for name, parameter in network.named_parameters():
        if name.endswith("conv2.weight") or name == "head.weight":
            torch.nn.init.normal_(parameter)
    network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    untouched = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a constant before a normalisation is taken away again
    assert not [n for n in untouched if not (norm and n.endswith("conv1.bias"))]


def test_the_mean_of_a_cube_is_that_of_the_cube():
    x = torch.randn(1, 1, 7, 8, 9)
    expected = torch.nn.functional.avg_pool3d(x, 5, 1, 2)
    torch.testing.assert_close(box_mean(x), expected)


def test_box_means_are_not_rounded_where_half_precision_is_on():
    x = torch.rand(1, 2, 8, 9, 10, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = box_mean(x, 7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, box_mean(x, 7), rtol=0, atol=0)
    pooled = torch.nn.functional.avg_pool3d(x, 7, 1, 3)
    torch.testing.assert_close(found, pooled)


def test_the_normalisation_and_its_gradients_are_torchs():
    generator = torch.Generator().manual_seed(5)
    ours, theirs = ChannelNorm(3), torch.nn.GroupNorm(3, 3)
    for name, value in theirs.named_parameters():
        torch.nn.init.normal_(value, generator=generator)
        ours.get_parameter(name).data.copy_(value)
    x = 40 + 5 * torch.randn(2, 3, 4, 5, 6, generator=generator)
    direction = torch.randn(x.shape, generator=generator)
    results = []
    for layer in (ours, theirs):
        fed = x.clone().requires_grad_()
        y = layer(fed)
        (y * direction).sum().backward()
        results.append((y.detach(), fed.grad, layer.weight.grad, layer.bias.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_the_normalisation_does_its_sums_in_full_where_half_precision_is_on():
    x = (100 + torch.randn(1, 2, 8, 8, 8)).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = ChannelNorm(2)(x)
    assert found.dtype == torch.bfloat16
    expected = torch.nn.functional.instance_norm(x.double())
    assert (
        found.double() - expected
    ).abs().max() < 0.02  # the last step's rounding of values near 3
