# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bmex_bids.exceptions import ImageError
from bmex_bids.metrics.tissue import dice
from bmex_bids.network.inference import stripper
from bmex_bids.network.inference.headgrid import background, normalise, resize
from bmex_bids.network.inference.stripper import brain_probability, second_view
from bmex_bids.network.inference.tiling import volume_order
from bmex_bids.network.models.compact import HalfUNet
from bmex_bids.network.weights.checkpoints import load_network


@pytest.mark.parametrize(
    ("n", "zoom"), [(40, 0.5), (40, 1 / 3), (41, 0.4), (30, 0.3), (24, 1.0), (20, 1.7), (48, 0.25)]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resize_keeps_a_linear_ramp_in_its_place(n, zoom, axis):
    shape, zooms = [6, 6, 6], [1.0, 1.0, 1.0]
    shape[axis], zooms[axis] = n, zoom
    lie = [1, 1, 1]
    lie[axis] = n
    ramp = torch.arange(n).float().reshape(lie).expand(shape)
    result = resize(ramp.contiguous(), tuple(zooms)).movedim(axis, 0)[:, 3, 3].numpy()
    assert len(result) == round(n * zoom)
    # the same field of view from edge to edge: voxel j's centre is at (j + 1/2) n/m − 1/2
    place = (np.arange(len(result)) + 0.5) * n / len(result) - 0.5
    inner = (place > 3) & (place < n - 4)
    assert inner.sum() >= 3
    assert_allclose(result[inner], place[inner], atol=1e-3)


def test_resize_averages_whole_blocks():
    volume = torch.arange(64.0).reshape(4, 4, 4)
    result = resize(volume, (0.5, 0.5, 0.5))
    assert result.shape == (2, 2, 2)
    assert result[0, 0, 0] == volume[:2, :2, :2].mean()


def test_resize_of_a_constant_is_the_constant():
    for zoom in ((0.3, 0.5, 2.0), (0.7, 0.11, 0.5)):
        result = resize(torch.full((20, 21, 22), 7.0), zoom)
        assert_allclose(result.numpy(), 7, rtol=1e-5)


def test_normalise_by_hand():
    data = torch.cat([torch.zeros(500), torch.arange(1.0, 1002.0)])
    result = normalise(data)
    # above the minimum: 1…1001, percentile 1 is 11, percentile 99.5 is 996
    assert result[500 + 10] == pytest.approx(0, abs=1e-5)
    assert result[500 + 995] == pytest.approx(1, abs=1e-5)
    assert_allclose(normalise(3 * data + 50).numpy(), result.numpy(), atol=1e-5)
    assert not normalise(torch.full((4, 4), 9.0)).any()
    outlier = normalise(torch.cat([data, torch.tensor([1e6, -1e6])]))
    assert outlier.max() == 2
    assert outlier.min() == -0.5


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((31, 27, 35), (1.0, 1.0, 1.0)), ((33, 40, 9), (0.9, 0.7, 5.0)), ((11, 8, 13), (4, 6.5, 3))],
)
def test_the_probability_has_the_shape_of_the_input(make_record, shape, spacing):
    record = make_record(HalfUNet(1, 1, 4), "bmex-strip", kind="strip")
    data = np.random.default_rng(0).random(shape, dtype=np.float32)
    result = brain_probability(data, spacing, record, device="cpu", threads=1)
    assert result.shape == shape
    assert result.dtype == np.float32
    assert_allclose(result, 0.5)  # untrained: it does not know


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.3, 0.8, 4.0), (3.0, 3.0, 3.0)])
def test_the_probability_is_where_the_brain_is(make_record, monkeypatch, spacing):
    class Threshold(torch.nn.Module):
        def forward(self, x):
            assert all(n % 8 == 0 for n in x.shape[2:])
            return (x - 0.5) * 50

    monkeypatch.setattr("bmex_bids.network.inference.stripper._network", lambda *_: Threshold())
    record = make_record(HalfUNet(1, 1, 4), "bmex-strip", kind="strip")
    shape = [int(100 / s) | 1 for s in spacing]
    x, y, z = np.meshgrid(
        *[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    # away from the middle, and of another extent along each axis
    ball = ((x - 8) / 30) ** 2 + ((y + 5) / 36) ** 2 + ((z - 3) / 24) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 2, shape)
    data = (ball * 100 + noise).astype(np.float32)
    result = brain_probability(data, spacing, record, device="cpu", threads=1)
    assert dice(result > 0.5, ball) > 0.93


def test_an_empty_image_gives_an_answer_and_a_series_is_refused(make_record):
    record = make_record(HalfUNet(1, 1, 4), "bmex-strip", kind="strip")
    empty = np.zeros((9, 9, 9), np.float32)
    assert np.isfinite(brain_probability(empty, (2, 2, 2), record, device="cpu", threads=1)).all()
    with pytest.raises(ImageError, match="three-dimensional"):
        brain_probability(np.zeros((4, 4, 4, 2), np.float32), (1, 1, 1), record, device="cpu")


def ball_image(extent_mm, spacing, radius):
    shape = [int(extent_mm / s) | 1 for s in spacing]
    x, y, z = np.meshgrid(
        *[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    ball = (x - 4) ** 2 + (y + 6) ** 2 + (z - 3) ** 2 < radius**2
    noise = np.random.default_rng(0).normal(0, 2, shape)
    return (ball * 100 + noise).astype(np.float32), ball


def brain_box(x, y, z):
    logits = torch.full((72, 80, 72), -3.0)
    logits[slice(*x), slice(*y), slice(*z)] = 3.0
    return logits


def test_air_is_the_median_of_what_is_dark():
    head = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 100.0, 100.0, 100.0])
    assert background(head) == 2  # of 0 … 4, which are below the mean of 38.75
    assert background(torch.full((3, 3, 3), 5.0)) == 5


def test_a_small_field_of_view_does_not_stand_out_from_what_is_put_around_it(
    make_record, monkeypatch
):
    """Noise with the least value around it was taken for a head of that size."""
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, x):
            seen.append(volume_order(x[0, 0]))
            return torch.full_like(x, -1.0)

    rng = np.random.default_rng(0)
    noise = rng.rayleigh(10, (40, 44, 40)).astype(np.float32)  # as air in a magnitude image
    noise[15:25, 15:28, 15:25] += 100
    monkeypatch.setattr("bmex_bids.network.inference.stripper._network", lambda *_: Watched())
    record = make_record(HalfUNet(1, 1, 4), "bmex-strip", kind="strip")
    brain_probability(noise, (3.0,) * 3, record, device="cpu", threads=1)
    (window,) = seen
    around = window[0, 0, 0]
    # the image lies in the middle: its corner, without the ball
    air = window[17:26, 19:28, 17:26]
    assert air.std() > 0
    assert abs(float(air.median() - around)) < 0.5 * float(air.std())  # the least: 1.8


# ------------------------------------------------------------------ a second look
def test_the_brain_fills_the_window_of_the_second_look():
    """Window 72 × 80 × 72, 6 voxels free on each side."""
    # 90, 102 and 60 mm over 60, 68 and 60 voxels: 1.5 mm; middles at 75, 111 and 120 mm
    view = second_view(brain_box((10, 40), (20, 54), (30, 50)))
    assert view.spacing_mm == pytest.approx(1.5)
    assert view.first == (14, 34, 44)  # 75 / 1.5 − 72 / 2 and so on
    off = second_view(brain_box((10, 40), (20, 54), (30, 50)), zoom=1.2, shift=(1, -2, 3))
    assert off.spacing_mm == pytest.approx(1.8)
    assert off.first == (7, 20, 34)  # 75 / 1.8 − 36 + 1 and so on


@pytest.mark.parametrize(("edge", "spacing_mm"), [(4, 1.2), (72, 3.0)])
def test_a_second_look_is_neither_finer_than_it_needs_nor_coarser_than_the_first(edge, spacing_mm):
    view = second_view(brain_box((0, edge), (0, edge), (0, edge)))
    assert view.spacing_mm == pytest.approx(spacing_mm)


def test_where_there_is_no_brain_there_is_no_second_look():
    assert second_view(torch.full((20, 20, 20), -5.0)) is None


@pytest.mark.parametrize(("radius", "spacing_mm"), [(30, 1.2), (70, 138 / 60)])
def test_what_a_second_look_finds_is_the_answer(make_record, monkeypatch, radius, spacing_mm):
    found = []

    class Eye(torch.nn.Module):
        def forward(self, x):
            found.append(int((x > 0.5).sum()))
            return (x - 0.5) * 20

    monkeypatch.setattr("bmex_bids.network.inference.stripper._network", lambda *_: Eye())
    record = make_record(HalfUNet(1, 1, 4), "bmex-strip", kind="strip")
    data, ball = ball_image(210, (2.0, 2.0, 2.0), radius)
    result = brain_probability(data, (2.0,) * 3, record, device="cpu", threads=1) > 0.5
    assert dice(result, ball) > 0.95
    assert len(found) == 2
    assert found[1] == pytest.approx(found[0] * (3 / spacing_mm) ** 3, rel=0.1)


def test_a_full_gpu_does_not_end_brain_extraction(make_record, monkeypatch):
    """Only the enhancement gave way to the processor."""
    asked = []

    def network(path, variant, device):
        asked.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load_network(path, variant)

    monkeypatch.setattr(stripper, "resolve_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(stripper, "_network", network)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    record = make_record(HalfUNet(1, 1, 4), "bmex-strip", kind="strip")
    data = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)
    assert brain_probability(data, (3.0, 3.0, 3.0), record, threads=1).shape == data.shape
    assert asked == ["cuda:0", "cpu"]
