# SPDX-License-Identifier: Apache-2.0
"""Layer by layer over the volume against the network's own ``forward`` over all of it at once."""

import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bmex_bids.network.engine.folding import affine, folded
from bmex_bids.network.engine.layers import Layer, Layers, convolution, thin_convolution
from bmex_bids.network.engine.regions import Regions
from bmex_bids.network.engine.run import bytes_per_voxel, emptiness, run_layers, runs_in_layers
from bmex_bids.network.models.adunet import ADUNet, steps_of
from bmex_bids.network.models.bmex import BMEX
from bmex_bids.network.models.compact import CompactBMEX
from bmex_bids.network.models.topology import INPUT, OUTPUT, needs

NEAR = 1e-5  # of the largest value


def trained_like(network, seed=0):
    """Statistics that are not 0 and 1, and last layers that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.3),
            ):
                tensor.uniform_(low, high, generator=generator)
    for name, parameter in network.named_parameters():
        if "conv" in name and parameter.ndim == 5 and isinstance(network, BMEX | ADUNet):
            nn.init.normal_(
                parameter, std=(1.2 / parameter[0].numel()) ** 0.5, generator=generator
            )
        if "head.weight" in name or "conv2.weight" in name:
            nn.init.normal_(parameter, std=0.05, generator=generator)
    return network.eval()


def networks():
    torch.manual_seed(0)
    return {
        "bmex": trained_like(BMEX(8)),
        "caffe": trained_like(BMEX(8, caffe=True)),
        "five classes": trained_like(BMEX(8, classes=5)),
        "one network": trained_like(ADUNet(8)),
    }


@pytest.fixture(scope="module", params=["bmex", "caffe", "five classes", "one network"])
def network(request):
    return networks()[request.param]


def run(network, volume, regions, **how):
    return run_layers(network, volume, regions, **how).values


def ball(shape, margin=4):
    """A ball in the middle: (volume, mask)."""
    axes = [np.arange(n) - (n - 1) / 2 for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    a, b, c = (n / 2 - margin for n in shape)
    mask = (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 < 1
    values = np.random.default_rng(0).uniform(200, 800, shape)
    return torch.from_numpy(np.where(mask, values, 0).astype(np.float32)), mask


def plain(network, volume):
    """(D, H, W, 5) by the network's own forward."""
    with torch.inference_mode():
        made = network(volume[None, None])
        return (torch.cat(made, 1) if isinstance(made, tuple) else made)[0].permute(1, 2, 3, 0)


def difference(found, expected, mask=None):
    """The largest, relative to the largest value; of scores and image separately."""
    worst = 0.0
    for part in (slice(0, 4), slice(4, None)):
        a, b = found[..., part], expected[..., part]
        if mask is not None:
            a, b = a[torch.from_numpy(mask)], b[torch.from_numpy(mask)]
        if b.numel():
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)))
    return worst


@pytest.mark.parametrize("shape", [(16, 24, 40), (8, 8, 8), (24, 16, 8)])
def test_the_whole_volume_is_the_plain_network(network, shape):
    volume, mask = ball(shape, margin=1)
    regions = Regions(mask, whole=True)
    assert difference(run(network, volume, regions),
                      plain(network, volume)) < NEAR  # fmt: skip


def test_near_the_brain_it_is_the_plain_network_too(network):
    volume, mask = ball((32, 40, 32), margin=9)
    expected = plain(network, volume)
    assert expected[..., -1].std() > 1e-3  # it does something
    found = run(network, volume, Regions(mask))
    assert difference(found, expected, mask) < 1e-4
    # and what is left out would have been felt: without context the result is another
    assert difference(run(network, volume, Regions(mask, reach=0)), expected, mask) > 1e-4


def test_tissues_alone_are_the_same():
    network = networks()["bmex"]
    volume, mask = ball((24, 24, 32))
    both = run(network, volume, Regions(mask))
    alone = run(network, volume, Regions(mask), tissues_only=True)
    assert alone.shape == (24, 24, 32, 4)
    inside = torch.from_numpy(mask)
    scale = both[..., :4][inside].abs().max().clamp_min(1e-6)
    assert (alone[inside] - both[..., :4][inside]).abs().max() <= NEAR * scale


def test_far_from_the_brain_nothing_is_computed():
    network = networks()["bmex"]
    volume, mask = torch.zeros(48, 48, 96), np.zeros((48, 48, 96), bool)
    mask[16:32, 16:32, 8:24], volume[16:32, 16:32, 8:24] = True, 500.0
    few = run_layers(network, volume, Regions(mask)).operations
    assert few < 0.6 * run_layers(network, volume, Regions(mask, whole=True)).operations


def test_the_published_cost_is_that_of_the_paper():
    """668 GFLOP for a cube of 40 voxels at w = 64, without computing it: tensors without data."""
    network = BMEX(64).to("meta").eval()
    regions = Regions(np.ones((40, 40, 40), bool), whole=True)
    made = run_layers(network, torch.zeros(40, 40, 40, device="meta"), regions)
    assert made.values.shape == (40, 40, 40, 5)
    assert made.operations == pytest.approx(668e9, rel=0.01)


def test_every_array_is_on_the_device_of_the_volume():
    """Of a GPU only this is tested here: no array is made elsewhere than the volume is."""
    for network in networks().values():
        elsewhere = network.to("meta")
        out = run(
            elsewhere, torch.zeros(16, 16, 16, device="meta"), Regions(ball((16, 16, 16))[1])
        )
        assert out.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_side_by_side_give_what_one_thread_gives(network, dtype):
    volume, mask = ball((24, 32, 40))
    regions = Regions(mask, slab=8)  # many pieces
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            result = run(network, volume, regions, dtype=dtype)
            assert torch.get_num_threads() == threads  # as it was
            found.append(result[torch.from_numpy(mask)])
    finally:
        torch.set_num_threads(before)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    for other in found[1:]:
        assert (other - found[0]).abs().max() <= near * found[0].abs().max()


def test_bfloat16_of_the_published_network():
    network = networks()["bmex"]
    volume, mask = ball((16, 16, 24))
    expected = plain(network, volume)
    found = run(network, volume, Regions(mask), dtype=torch.bfloat16)
    assert 0 < difference(found, expected, mask) < 0.05


@pytest.mark.parametrize("name", ["1", "32"])
def test_folding_is_exact(name):
    network = trained_like(ADUNet(8, 1, 4), seed=3)
    layer, norm = network.get_submodule(f"conv{name}"), network.get_submodule(f"bn{name}")
    x = torch.randn(1, layer.in_channels, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = norm(layer(x))
        found = F.conv3d(x, *folded(layer, norm), padding=1)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (layer(x) - expected).abs().max() > 1e-2


def test_a_normalisation_is_one_product_and_sum():
    norm = trained_like(nn.Sequential(nn.BatchNorm3d(5)))[0]
    x = torch.randn(1, 5, 2, 3, 4)
    found = affine(norm)
    view = (-1, 1, 1, 1)
    torch.testing.assert_close(
        (x * found.scale.view(view) + found.shift.view(view)).float(), norm(x)
    )
    bare = nn.BatchNorm3d(2, affine=False).eval()
    assert affine(bare).shift.tolist() == [0, 0]
    with pytest.raises(TypeError, match="batch normalisation"):
        affine(nn.ReLU())


def test_scales_below_zero_are_the_plain_network_too():
    network = trained_like(BMEX(8))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.weight.data[::3] *= -1
    volume, mask = ball((16, 24, 16), margin=1)
    found = run(network, volume, Regions(mask, whole=True))
    assert difference(found, plain(network, volume)) < NEAR


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-40, 1e-38, 1e-37, 1e-36, 1e-20, 1e-10])
def test_a_scale_that_has_decayed_to_nothing_does_no_harm(scale, dtype):
    """Its weights vanished while the bias kept what belongs to them; at 1e-38 the image was not a number."""
    volume = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for least in (0.0, scale):
        torch.manual_seed(0)
        network = trained_like(BMEX(8))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d) and module.num_features > 4:
                module.weight.data[1] = least
        cube = np.ones((16, 16, 16), bool)
        results.append(run(network, volume, Regions(cube), dtype=dtype))
    nothing, found = results
    spread = float(nothing[..., 4].float().std())
    far = float((found[..., 4] - nothing[..., 4]).float().abs().median())
    assert far < (1e-4 if dtype == torch.float32 else 0.1) * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_are_not_swallowed(dtype, value):
    """Comparisons of bfloat16 as integers made finite numbers of them."""
    volume, mask = ball((16, 16, 16))
    volume[8, 8, 8] = value
    found = run(networks()["bmex"], volume, Regions(mask), dtype=dtype)
    assert not found[torch.from_numpy(mask)].isfinite().all()


def test_memory_of_a_voxel():
    # 2w + 11w/4 channels of 4 bytes are the most, and a few beside
    assert 4 * 304 <= bytes_per_voxel(BMEX(64)) <= 4 * 330
    assert bytes_per_voxel(BMEX(64), torch.bfloat16) < 0.55 * bytes_per_voxel(BMEX(64))


def test_which_networks_run_in_layers():
    assert all(runs_in_layers(network) for network in networks().values())
    assert not runs_in_layers(CompactBMEX(4, 4))
    assert not runs_in_layers(nn.Identity())


def test_how_far_layers_are_needed_by_hand():
    """The last ten at full resolution: one voxel more each; then an up-sampling."""
    far = needs(steps_of(), 0)
    assert (far[OUTPUT], far["g"], far["f"], far["y1"]) == (0, 1, 5, 9)
    assert 11 <= far["e"] <= 12  # a voxel of the half grid more, and where that begins
    assert needs(steps_of(), 3)["y1"] == 12
    assert needs(steps_of(stem=False), 0)[INPUT] == far[INPUT] - 1


def test_a_convolution_of_few_channels_is_a_convolution():
    x = torch.randn(1, 8, 10, 9, 30).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(16, 8, 3, 3, 3), torch.randn(16)
    expected = F.conv3d(x, weight, bias)
    torch.testing.assert_close(convolution(x, weight, bias), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("results", [1, 4])
def test_a_thin_convolution_is_a_convolution(results):
    x = torch.randn(7, 8, 9, 6)
    weight, bias = torch.randn(results, 6, 3, 3, 3), torch.randn(results)
    expected = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, bias)[0].permute(1, 2, 3, 0)
    torch.testing.assert_close(thin_convolution(x, weight, bias), expected, rtol=1e-4, atol=1e-3)


def test_emptiness_is_what_the_network_makes_of_endless_zeros():
    network = networks()["bmex"]
    patterns = emptiness(network, torch.device("cpu"))
    tissue = network.tissue
    x = torch.zeros(1, 1, 24, 24, 24)  # the middle sees no end in the first layers
    with torch.inference_mode():
        first = F.relu(tissue.bn1(tissue.conv1(x)))
        second = tissue.conv2(first)
    torch.testing.assert_close(patterns["tissue.conv1"][0, 0, 0], first[0, :, 12, 12, 12])
    torch.testing.assert_close(patterns["tissue.conv2"][3, 5, 7], second[0, :, 12, 12, 12])
    assert patterns["tissue.conv6"].shape == (4, 4, 4, 8)
    assert patterns["tissue.x8"].shape == (1, 1, 1, 16)
    assert emptiness(network, torch.device("cpu")) is patterns


def one_layer(channels=5, results=8, dtype=torch.float32, *, device="cpu", regions=None):
    """A run of layers with one whose pattern of emptiness is known, its weights and a mask."""
    _, mask = ball((16, 16, 32))
    regions = Regions(mask) if regions is None else regions
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(results, channels, 3, 3, 3, generator=generator)
    bias = torch.randn(results, generator=generator)
    pattern = torch.zeros(1, 1, 1, results, dtype=dtype, device=device)
    return Layers(regions, torch.device(device), dtype, {"a": pattern}), weight, bias, mask


@pytest.mark.parametrize("results", [3, 8])
@pytest.mark.parametrize("float32", ["read", "written"])
def test_what_reads_or_writes_float32_is_computed_in_float32(float32, results):
    """So the image goes in and comes out with all its grey values, whatever the features are."""
    run, weight, bias, mask = one_layer(results=results, dtype=torch.bfloat16)
    x = torch.rand(*mask.shape, 5, generator=torch.Generator().manual_seed(4)) * 500
    if float32 == "written":
        x = x.bfloat16()
    out = run.array(1, results, torch.float32 if float32 == "written" else None)
    run.convolve(Layer("a", [x], out, 1, 0), weight, bias)
    exact = F.conv3d(
        x.double().permute(3, 0, 1, 2)[None], weight.double(), bias.double(), padding=1
    )[0].permute(1, 2, 3, 0)
    found, exact = out[torch.from_numpy(mask)].double(), exact[torch.from_numpy(mask)]
    lost = (exact.bfloat16().double() - exact).abs().mean()
    if float32 == "written":
        assert (found - exact).abs().mean() < 0.001 * lost
    else:  # rounded once, at the end
        assert (found - exact.bfloat16().double()).abs().mean() < 0.1 * lost


def test_operations_are_counted_by_hand():
    regions = Regions(np.ones((16, 16, 32), bool), whole=True)
    run, weight, bias, _ = one_layer(5, 8, device="meta", regions=regions)
    x = torch.zeros(16, 16, 32, 5, device="meta")
    run.convolve(Layer("a", [x], run.array(1, 8), 1, 0), weight.to("meta"), bias.to("meta"))
    voxels = 16 * 16 * 32
    assert run.operations == 2 * 27 * 5 * 8 * voxels
    run.pool(Layer("a", [x], run.array(2, 5), 2, 0), 1)
    assert run.operations == 2 * 27 * 5 * 8 * voxels
    half = torch.zeros(8, 8, 16, 5, device="meta")
    up = torch.zeros(5, 8, 4, 4, 4, device="meta")
    run.upsample(Layer("a", [half], run.array(1, 8), 1, 0), up, bias.to("meta"))
    assert run.operations == (2 * 27 * 5 * 8 + 2 * 64 * 5 * 8 / 8) * voxels


def test_the_largest_pieces_come_first_and_all_around_them_is_filled(monkeypatch):
    mask = np.zeros((24, 24, 64), bool)
    mask[8:16, 8:16, 8:16] = mask[:8, 8:16, 8:40] = True
    run, weight, bias, _ = one_layer(regions=Regions(mask, slab=8))
    sizes = []
    read = Layers._read

    def watched(self, layer, box, *args):
        sizes.append(box[2].stop - box[2].start)
        return read(self, layer, box, *args)

    monkeypatch.setattr(Layers, "_read", watched)
    out = run.array(1, 8).fill_(torch.nan)
    run.convolve(Layer("a", [torch.ones(24, 24, 64, 5)], out, 1, 0), weight, bias)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    runs = run.regions.runs(1, 0)
    assert all(
        out[part].isfinite().all() for one in runs for part in (one.box, *one.around) if part
    )
    assert any((out[part] == 0).all() for one in runs for part in one.around)


def test_influence_ends_where_layers_are_no_longer_needed():
    """The derivative of one result: nothing beyond, and something near the edge."""
    network = ADUNet(4).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_parameters()  # neither moves nor scales
    for parameter in network.parameters():  # averages: no ReLU shuts, nothing grows
        parameter.requires_grad_(False)
        parameter.abs_()
        if parameter.ndim == 5:
            parameter.div_(parameter.sum() / parameter.shape[0])
    field = needs(network.steps, 0)[INPUT]
    length = 8 * (-(-(2 * field + 24) // 8))
    # pooling hands the derivative to the larger value: towards either end
    ramp = torch.linspace(450, 550, length).double().expand(1, 1, 8, 8, length)
    furthest = 0
    for image in (ramp, ramp.flip(-1)):
        for place in range(length // 2, length // 2 + 8, 2):
            x = image.clone().requires_grad_()
            network(x)[0, 0, 4, 4, place].backward()
            felt = x.grad[0, 0].abs().sum(dim=(0, 1)).nonzero().flatten()
            furthest = max(furthest, place - int(felt.min()), int(felt.max()) - place)
    assert field - 6 <= furthest <= field


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_take_the_memory_that_is_foretold(monkeypatch, dtype):
    """Without computing them: tensors without data, and what of them is alive at a time."""
    network = BMEX(32).to("meta").eval()
    volume = torch.zeros(40, 48, 40, device="meta")
    regions = Regions(np.ones(volume.shape, bool), whole=True)
    run_layers(network, volume, regions, dtype=dtype)  # emptiness is known from here on
    held, most = [0], [0]
    make = Layers.array

    def released(size):
        held[0] -= size

    def watched(self, *args):
        made = make(self, *args)
        storage = made.untyped_storage()
        held[0] += storage.nbytes()
        most[0] = max(most[0], held[0])
        weakref.finalize(storage, released, storage.nbytes())
        return made

    monkeypatch.setattr(Layers, "array", watched)
    made = run_layers(network, volume, regions, dtype=dtype)
    assert held[0] == made.values.untyped_storage().nbytes()
    foretold = bytes_per_voxel(network, dtype) * volume.numel()
    assert 0.7 * foretold < most[0] <= foretold
