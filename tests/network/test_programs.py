# SPDX-License-Identifier: Apache-2.0
"""Layer by layer over the volume against the network's own ``forward`` over all of it at once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bmex_bids.network.engine import layers, programs
from bmex_bids.network.engine.folding import Affine, affine, ahead, folded, lift
from bmex_bids.network.engine.kernels import FEW_BELOW
from bmex_bids.network.engine.layers import Tally
from bmex_bids.network.engine.pool import Pool
from bmex_bids.network.engine.programs import (
    bytes_per_voxel,
    emptiness,
    has_program,
    receptive_field,
    run_program,
)
from bmex_bids.network.engine.regions import Regions, Run
from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.models.bmex import BMEX
from bmex_bids.network.models.compact import CompactBMEX

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
        if "conv" in name and parameter.ndim == 5 and isinstance(network, BMEX):
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
        "compact": trained_like(CompactBMEX(8, 8)),
        "without tissues": trained_like(CompactBMEX(8, 0)),
        "two blocks": trained_like(CompactBMEX(8, 8, blocks=2)),
    }


@pytest.fixture(scope="module", params=["bmex", "compact", "without tissues", "two blocks"])
def network(request):
    return networks()[request.param]


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
        return torch.cat(network(volume[None, None]), 1)[0].permute(1, 2, 3, 0)


def difference(found, expected, mask=None):
    """The largest, relative to the largest value; of scores and image separately."""
    worst = 0.0
    for part in (slice(0, 4), slice(4, 5)):
        a, b = found[..., part], expected[..., part]
        if mask is not None:
            a, b = a[torch.from_numpy(mask)], b[torch.from_numpy(mask)]
        if b.numel():
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)))
    return worst


@pytest.mark.parametrize("winograd", [True, False])
@pytest.mark.parametrize("shape", [(16, 24, 40), (8, 8, 8), (24, 16, 8)])
def test_the_whole_volume_is_the_plain_network(network, shape, winograd):
    volume, mask = ball(shape, margin=1)
    regions = Regions(mask, whole=True)
    assert difference(run_program(network, volume, regions, winograd=winograd),
                      plain(network, volume)) < NEAR  # fmt: skip


def test_near_the_brain_it_is_the_plain_network_too(network):
    volume, mask = ball((32, 40, 32), margin=9)
    expected = plain(network, volume)
    assert expected[..., 4].std() > 1e-3  # it does something
    found = run_program(network, volume, Regions(mask))
    assert difference(found, expected, mask) < 1e-4
    # and what is left out would have been felt: without context the result is another
    assert difference(run_program(network, volume, Regions(mask, reach=0)), expected, mask) > 1e-4


def test_tissues_alone_are_the_same(network):
    volume, mask = ball((24, 24, 32))
    both = run_program(network, volume, Regions(mask))
    alone = run_program(network, volume, Regions(mask), tissues_only=True)
    assert alone.shape == (24, 24, 32, 4)
    inside = torch.from_numpy(mask)
    scale = both[..., :4][inside].abs().max().clamp_min(1e-6)
    assert (alone[inside] - both[..., :4][inside]).abs().max() <= NEAR * scale


def test_emptiness_is_what_the_network_makes_of_endless_zeros():
    network = networks()["bmex"]
    patterns = emptiness(network, torch.device("cpu"))
    x = torch.zeros(1, 1, 8, 8, 200)
    # endless in two directions by wrapping is not what conv3d does; a long line has ends on
    # the others, so look at a volume whose middle sees no end: the first dense block suffices
    x = torch.zeros(1, 1, 24, 24, 24)
    with torch.inference_mode():
        a = network.tissue._activate("1", network.tissue._conv("1", x))
        stack = network.tissue.conv2(a)[0, :, 12, 12, 12]
    # what a dense block makes is stored higher
    spans = {"2": (0, 8), "3": (0, 10), "4": (0, 12), "4_1": (0, 14)}
    readers = [(network.tissue.get_submodule(f"bn{name}"), spans[name]) for name in spans]
    stack = (stack + lift(readers, 14)[:8]).float()
    torch.testing.assert_close(patterns["tissue.1"][0, 0, 0], a[0, :, 12, 12, 12])
    torch.testing.assert_close(patterns["tissue.2"][3, 5, 7], stack)
    assert patterns["tissue.6"].shape == (4, 4, 4, 8)
    assert patterns["tissue.pool3"].shape == (1, 1, 1, 16)
    assert emptiness(network, torch.device("cpu")) is patterns


def test_far_from_the_brain_nothing_is_computed():
    network = networks()["compact"]
    volume, mask = torch.zeros(48, 48, 96), np.zeros((48, 48, 96), bool)
    mask[16:32, 16:32, 8:24], volume[16:32, 16:32, 8:24] = True, 500.0
    few, all_ = Tally(), Tally()
    run_program(network, volume, Regions(mask), tally=few)
    run_program(network, volume, Regions(mask, whole=True), tally=all_)
    assert few.plain < 0.6 * all_.plain


def test_operations_are_counted_by_hand():
    network = CompactBMEX(8, 0).eval()
    tally = Tally()
    regions = Regions(np.ones((16, 16, 16), bool), whole=True)
    run_program(network, torch.zeros(16, 16, 16), regions, winograd=False, tally=tally)
    w, half, quarter, eighth = 8, 8**3, 4**3, 2**3
    expected = 2 * (
        27 * (16 * w + 4 * w * w + w * 8) * half  # stem, two residuals, head
        + 8 * (w * 2 * w) * quarter + 27 * 4 * (2 * w) ** 2 * quarter
        + 8 * (2 * w * 4 * w) * eighth + 27 * 4 * (4 * w) ** 2 * eighth
        + 8 * (4 * w * 2 * w) * eighth + 8 * (2 * w * w) * quarter
    )  # fmt: skip
    assert tally.plain == tally.done == expected
    fast = Tally()
    run_program(network, torch.zeros(16, 16, 16), regions, tally=fast)
    assert fast.plain == expected
    assert 0.25 * expected < fast.done < 0.6 * expected


def test_the_published_cost_is_that_of_the_paper():
    """668 GFLOP for a cube of 40 voxels at w = 64, without computing it: tensors without data."""
    network = BMEX(64).to("meta").eval()
    tally = Tally()
    regions = Regions(np.ones((40, 40, 40), bool), whole=True)
    out = run_program(network, torch.zeros(40, 40, 40, device="meta"), regions, tally=tally)
    assert out.shape == (40, 40, 40, 5)
    assert tally.plain == pytest.approx(668e9, rel=0.01)


def test_every_array_is_on_the_device_of_the_volume():
    """Of a GPU only this is tested here: no array is made elsewhere than the volume is."""
    for network in networks().values():
        elsewhere = network.to("meta")
        out = run_program(
            elsewhere, torch.zeros(16, 16, 16, device="meta"), Regions(ball((16, 16, 16))[1])
        )
        assert out.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "where", "native", "expected"),
    [
        ("bmex", "cpu", torch.bfloat16, torch.bfloat16),
        ("bmex", "cpu", torch.float32, torch.float32),
        ("compact", "cpu", torch.bfloat16, torch.float32),
        ("compact", "cuda", torch.bfloat16, torch.bfloat16),
        ("compact", "cuda", torch.float32, torch.float32),
    ],
)
def test_bfloat16_only_where_it_is_faster(monkeypatch, name, where, native, expected):
    monkeypatch.setattr(programs, "native_dtype", lambda device: native)
    assert programs.best_dtype(networks()[name], torch.device(where)) == expected


@pytest.mark.parametrize("network", [BMEX(32), CompactBMEX(24, 12)], ids=["bmex", "compact"])
def test_the_arrays_of_a_program_fit_into_the_memory_that_it_says(network, monkeypatch):
    """None is made beside the stretch that is taken at the start."""
    pools = []

    class Watched(Pool):
        def __init__(self, capacity):
            super().__init__(capacity)
            pools.append(self)

    monkeypatch.setattr("bmex_bids.network.engine.pool.Pool", Watched)
    volume, mask = ball((40, 48, 40))
    for dtype in (torch.float32, torch.bfloat16):
        run_program(trained_like(network), volume, Regions(mask), dtype=dtype)
    assert [pool.missed for pool in pools] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_side_by_side_give_what_one_thread_gives(network, dtype):
    volume, mask = ball((48, 56, 40))
    regions = Regions(mask, slab=8)  # many pieces
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            result = run_program(network, volume, regions, dtype=dtype)
            assert torch.get_num_threads() == threads  # as it was
            found.append(result[torch.from_numpy(mask)])
    finally:
        torch.set_num_threads(before)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    for other in found[1:]:
        assert (other - found[0]).abs().max() <= near * found[0].abs().max()


def test_bfloat16_keeps_the_grey_values_of_the_image():
    network = networks()["compact"]
    volume, mask = ball((24, 24, 24))
    expected = plain(network, volume)
    found = run_program(network, volume, Regions(mask), dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    inside = torch.from_numpy(mask)
    error = (found - expected)[inside][..., 4].pow(2).mean().sqrt()
    change = (expected[..., 4] - volume)[inside].pow(2).mean().sqrt()
    assert 0 < error < 0.05 * change


def test_bfloat16_of_the_published_network():
    network = networks()["bmex"]
    volume, mask = ball((16, 16, 24))
    expected = plain(network, volume)
    found = run_program(network, volume, Regions(mask), dtype=torch.bfloat16)
    assert 0 < difference(found, expected, mask) < 0.05


def one_convolution(
    channels, results, dtype, source=None, scale=500.0, *, target=None, before=None, width=32
):
    """A convolution in pieces and in float64, (D, H, W, results) each, and the mask."""
    volume, mask = ball((16, 16, width))
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(*mask.shape, channels, generator=generator) + 0.5
    x = (x * volume[..., None].sign() * scale).to(source or dtype)
    weight = torch.randn(results, channels, 3, 3, 3, generator=generator)
    weight -= weight.mean(
        dim=(1, 2, 3, 4), keepdim=True
    )  # an edge is little beside the brightness
    bias = torch.randn(results, generator=generator)
    run = layers.Layers(
        Regions(mask), x.device, dtype, {"a": torch.zeros(1, 1, 1, results, dtype=dtype)}
    )
    out = run.array(1, results, target)
    with run:
        run.convolve("a", [x], out, (weight, bias), scale=1, need=0, before=before)
    if before is not None:
        x = torch.relu(x.double() * before.scale + before.shift)
    exact = F.conv3d(
        x.double().permute(3, 0, 1, 2)[None], weight.double(), bias.double(), padding=1
    )
    return out.double(), exact[0].permute(1, 2, 3, 0), torch.from_numpy(mask)


def test_what_reads_the_image_keeps_its_grey_values_in_products_of_bfloat16():
    """In units of what the results are rounded to; a bfloat16 image alone is many times as far off."""
    errors = {}
    for source in (torch.float32, torch.bfloat16):
        found, exact, mask = one_convolution(2, 8, torch.bfloat16, source)
        rounded = exact.bfloat16().double()
        errors[source] = float(
            (found - rounded)[mask].abs().mean() / (rounded - exact)[mask].abs().mean()
        )
    assert errors[torch.float32] < 0.1
    assert errors[torch.bfloat16] > 1


@pytest.mark.parametrize("results", [2, 4, 8])
def test_results_in_float32_of_features_in_bfloat16_have_sixteen_bits(results, monkeypatch):
    """A hundredth of what the bits of bfloat16 leave, with a normalisation ahead (whose floors bfloat16 has)."""
    scale = torch.linspace(0.3, 2.0, 40).double()
    before = Affine(scale, scale * (8.0 * torch.arange(40).double() - 160))
    plain = layers.Layers._to_float32
    used = []
    monkeypatch.setattr(
        layers.Layers, "_to_float32", lambda *a: used.append(plain(*a)) or used[-1]
    )
    found, exact, mask = one_convolution(
        40, results, torch.bfloat16, target=torch.float32, before=before
    )
    assert used[0] is not None
    lost = (exact.bfloat16().double() - exact)[mask].abs().mean()
    assert 0 < (found - exact)[mask].abs().mean() < 0.02 * lost


@pytest.mark.parametrize("results", [1, layers.NARROW])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_other_results_in_float32_are_computed_in_float32(results, scale):
    before = Affine(torch.full((5,), scale).double(), torch.full((5,), 400.0).double())
    found, exact, mask = one_convolution(
        5, results, torch.bfloat16, target=torch.float32, before=before
    )
    assert (found - exact)[mask].abs().mean() < 1e-5 * exact[mask].abs().mean()


@pytest.mark.parametrize("results", [layers.WIDE - 1, layers.WIDE])
def test_rows_of_many_results_are_cut_and_the_results_are_the_same(results, monkeypatch):
    longest = []
    plain_one = layers.F.conv3d

    def watched(x, *args, **how):
        if x.dtype == torch.bfloat16:
            longest.append(x.shape[4] - 2)
        return plain_one(x, *args, **how)

    monkeypatch.setattr(layers.F, "conv3d", watched)
    found, exact, mask = one_convolution(8, results, torch.bfloat16, width=112)
    assert (max(longest) <= layers.LONGEST) == (results == layers.WIDE)
    assert float((found - exact)[mask].abs().mean() / exact[mask].abs().mean()) < 0.02


@pytest.mark.parametrize("channels", [5, 32, 40])
@pytest.mark.parametrize("results", [layers.NARROW, layers.NARROW + 1])
def test_channels_of_zeros_behind_the_others_change_nothing(channels, results, monkeypatch):
    """Not even where a work array had other things in it before."""
    found, _, mask = one_convolution(channels, results, torch.bfloat16)
    made = layers.Workspace.take

    def dirty(self, name, shape, *, zeros=False):
        new = name not in self._held
        held = made(self, name, shape, zeros=zeros)
        return held if zeros or not new else held.fill_(torch.nan)

    monkeypatch.setattr(layers.Workspace, "take", dirty)
    again, exact, _ = one_convolution(channels, results, torch.bfloat16)
    assert torch.equal(found[mask], again[mask])
    assert float((found - exact)[mask].abs().mean() / exact[mask].abs().mean()) < 0.02


@pytest.mark.parametrize("boxes", [0, 1, 3])
def test_what_lies_around_is_filled_once_with_the_pieces_or_without_any(boxes, monkeypatch):
    pattern = torch.arange(8.0).reshape(1, 2, 2, 2)
    run = layers.Layers(Regions(np.ones((8, 16, 16), bool)), torch.device("cpu"), torch.float32)
    run.patterns = {"a": pattern}
    whole = [(slice(0, 8), slice(0, 8), slice(4 * k, 4 * k + 4)) for k in range(4)]
    pieces = [Run(box, ()) for box in whole[:boxes]] + [Run(None, (box,)) for box in whole[boxes:]]
    monkeypatch.setattr(run.regions, "runs", lambda *_: pieces)
    out = torch.full((8, 16, 16, 2), -1.0)
    filled = []
    plain_one = run._fill
    monkeypatch.setattr(run, "_fill", lambda *args: (filled.append(1), plain_one(*args)))
    found = run._pieces("a", out, 1, 0, list)
    assert [piece.box for piece in found] == whole[:boxes]
    for piece in found:
        piece.first()
    assert len(filled) == 4 - boxes
    expected = torch.full_like(out, -1)
    expected[:8, :8, 4 * boxes : 16] = pattern.repeat(8, 4, 8 - 2 * boxes, 1)
    assert torch.equal(out, expected)


def test_the_largest_pieces_come_first():
    """So that no thread begins with a large one when the others are done."""
    run = layers.Layers(Regions(np.ones((8, 8, 8), bool)), torch.device("cpu"))
    boxes = [(slice(0, 1), slice(0, 1), slice(0, n)) for n in (3, 8, 5)]
    order = []
    run._each(
        [layers.Piece(box, lambda: order.append("first")) for box in boxes],
        lambda box: order.append(box[2].stop),
    )
    assert order == ["first", 8, "first", 5, "first", 3]


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


def test_a_normalisation_ahead_of_a_convolution_by_hand():
    """relu(2x − 1) is 2·(max(x, ½) − ½), and relu(½x + 2) is ½·(max(x, −4) + 4)."""
    before = Affine(torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 2.0]))
    weight, bias = torch.zeros(1, 2, 3, 3, 3), torch.tensor([7.0])
    weight[0, :, 1, 1, 1], weight[0, :, 0, 0, 0] = torch.tensor([10.0, 100.0]), 1.0
    after, scaled, moved = ahead(before, weight, bias, torch.float32)
    assert after.floor.tolist() == [0.5, -4]
    assert scaled[0, :, 1, 1, 1].tolist() == [20, 50]
    assert scaled[0, :, 0, 0, 0].tolist() == [2, 0.5]
    # 7 − (20 + 2)·½ + (50 + ½)·4
    assert moved.tolist() == [7 - 11 + 202]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_stays_nothing_when_a_floor_is_rounded(dtype):
    """What the ReLU cuts gives exactly the bias, else a long sum of roundings would show."""
    generator = torch.Generator().manual_seed(0)
    before = Affine(*(torch.rand(2, 9, generator=generator) + 0.3))
    weight, bias = torch.randn(4, 9, 3, 3, 3, generator=generator), torch.arange(4.0)
    after, scaled, moved = ahead(before, weight, bias, dtype)
    assert after.floor.dtype == dtype
    nothing = after.floor.double().view(1, -1, 1, 1, 1).expand(1, -1, 3, 3, 3)
    found = F.conv3d(nothing, scaled, moved).flatten()
    torch.testing.assert_close(found, bias.double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-42, 1e-38, 3e-37])
def test_a_normalisation_with_other_scales_is_left_as_it_is(scale):
    before = Affine(torch.tensor([2.0, scale]), torch.tensor([-1.0, 1.0]))
    weight, bias = torch.ones(1, 2, 3, 3, 3), torch.zeros(1)
    assert ahead(before, weight, bias, torch.float32) == (before, weight, bias)
    assert ahead(Affine(), weight, bias, torch.float32) == (Affine(), weight, bias)


def norm_of(scales, shifts, means=0.0):
    """A batch normalisation with a variance of one."""
    norm = nn.BatchNorm3d(len(scales), eps=0).eval()
    norm.weight.data, norm.bias.data = torch.tensor(scales), torch.tensor(shifts)
    norm.running_mean.fill_(means)
    return norm


def test_features_are_stored_so_that_the_lowest_floor_is_zero_by_hand():
    """Floors: −1/2 and 4 of one reader, 2 and 1 of the other (who reads the second channel and a third)."""
    one, other = norm_of([2.0, 0.5], [1.0, -2.0]), norm_of([1.0, 3.0], [-2.0, -3.0])
    higher = lift([(one, (0, 2)), (other, (1, 3))], 4)
    torch.testing.assert_close(
        higher, torch.tensor([0.5, -2.0, -1.0, 0.0], dtype=torch.float64), atol=1e-5, rtol=0
    )
    x = torch.randn(4, generator=torch.Generator().manual_seed(0)).double()
    before = affine(other)
    moved = before.lifted(higher[1:3])
    torch.testing.assert_close(
        (x + higher)[1:3] * moved.scale + moved.shift, x[1:3] * before.scale + before.shift
    )
    floor = ahead(moved, torch.ones(1, 2, 3, 3, 3), torch.zeros(1), torch.bfloat16)[0]
    assert floor.below == ()


def test_a_channel_that_is_hardly_used_does_not_move_the_others():
    """Its floor is a million away: stored there, bfloat16 would have nothing left for who else reads it."""
    usual, dead = norm_of([1.0, 1.0], [0.5, 0.5]), norm_of([1e-6, -1.0], [1.0, 7.0])
    higher = lift([(dead, (0, 2)), (usual, (0, 2))], 2)
    torch.testing.assert_close(higher, torch.full((2,), 0.5).double(), atol=1e-5, rtol=0)
    assert lift([(dead, (0, 2))], 2).tolist() == [0, 0]


def test_the_fast_comparison_is_used(monkeypatch):
    """All stacks but the one that is handed on activated."""
    seen = []
    plain_one = layers.no_less
    monkeypatch.setattr(
        layers,
        "no_less",
        lambda *args: (seen.append(len(args[3]) <= FEW_BELOW), plain_one(*args)),
    )
    volume, mask = ball((16, 16, 16), margin=1)
    run_program(trained_like(BMEX(8)), volume, Regions(mask), dtype=torch.bfloat16)
    assert seen.count(False) <= 4 < 50 < seen.count(True)


def test_bfloat16_pays_little_for_floors_that_lie_far_apart(monkeypatch):
    """Stored for the lowest of four floors, the highest lies where numbers are coarse."""
    network = trained_like(BMEX(8))
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.bias.data.normal_(0.5, 1.5, generator=generator)
    volume, mask = ball((24, 24, 32))
    whole = run_program(network, volume, Regions(mask))
    errors = []
    for lifted in (True, False):
        if not lifted:
            monkeypatch.setattr(
                programs, "lift", lambda _readers, n: torch.zeros(n, dtype=torch.float64)
            )
        programs._patterns.clear()
        half = run_program(network, volume, Regions(mask), dtype=torch.bfloat16)
        errors.append((half - whole)[torch.from_numpy(mask)].square().mean().sqrt())
    assert 0 < errors[0] < 1.2 * errors[1]
    assert errors[0] != errors[1]


@pytest.mark.parametrize("winograd", [True, False])
def test_scales_below_zero_are_the_plain_network_too(winograd):
    network = trained_like(BMEX(8))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.weight.data[::3] *= -1
    volume, mask = ball((16, 24, 16), margin=1)
    found = run_program(network, volume, Regions(mask, whole=True), winograd=winograd)
    assert difference(found, plain(network, volume)) < NEAR


@pytest.mark.parametrize("name", ["bmex", "compact", "without tissues", "two blocks"])
def test_the_receptive_field_is_where_influence_ends(name):
    """The derivative of one result: nothing beyond the field, and something near its edge."""
    network = (BMEX(4) if name == "bmex" else networks()[name]).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_parameters()  # neither moves nor scales
    for parameter in network.parameters():  # averages: no ReLU shuts, nothing grows
        parameter.requires_grad_(False)
        parameter.abs_()
        if parameter.ndim == 5:
            parameter.div_(parameter.sum() / parameter.shape[0])
    field = receptive_field(network)
    length = 8 * (-(-(2 * field + 24) // 8))
    # pooling hands the derivative to the larger value: towards either end
    ramp = torch.linspace(450, 550, length).double().expand(1, 1, 8, 8, length)
    furthest = 0
    for image in (ramp, ramp.flip(-1)):
        for place in range(length // 2, length // 2 + 8, 2):
            x = image.clone().requires_grad_()
            network(x)[1][0, 0, 4, 4, place].backward()
            felt = x.grad[0, 0].abs().sum(dim=(0, 1)).nonzero().flatten()
            furthest = max(furthest, place - int(felt.min()), int(felt.max()) - place)
    assert field - 6 <= furthest <= field


def test_fields_by_hand():
    # conv ×6, pool (2a − 1): counted outwards along one axis in the paper's network, twice
    assert 150 < receptive_field(BMEX(4)) < 185
    assert receptive_field(CompactBMEX(4, 0)) < receptive_field(CompactBMEX(4, 4)) < 150


def test_networks_without_a_program():
    assert has_program(BMEX(4))
    assert has_program(CompactBMEX(4, 4))
    assert not has_program(BMEX(4, caffe=True))
    assert not has_program(nn.Identity())
    with pytest.raises(TypeError, match="with a program"):
        bytes_per_voxel(nn.Identity())
    with pytest.raises(TypeError, match="with a program"):
        receptive_field(nn.Identity())


def test_memory_of_a_voxel():
    # 2w + 11w/4 channels of 4 bytes are the most, and a few beside
    assert 4 * 304 <= bytes_per_voxel(BMEX(64)) <= 4 * 330
    assert bytes_per_voxel(BMEX(64), torch.bfloat16) == bytes_per_voxel(BMEX(64)) // 2
    assert bytes_per_voxel(CompactBMEX(24, 16)) < 300


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
        results.append(run_program(network, volume, Regions(cube), dtype=dtype))
    nothing, found = results
    spread = float(nothing[..., 4].float().std())
    far = float((found[..., 4] - nothing[..., 4]).float().abs().median())
    assert far < (1e-4 if dtype == torch.float32 else 0.1) * spread
