# SPDX-License-Identifier: Apache-2.0
"""Edges of voxels halved: the start, the network, and a whole brain."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from safetensors.torch import save_file

from bmex_bids.common.splines import halving_weights
from bmex_bids.exceptions import ImageError
from bmex_bids.network.inference import halve as module
from bmex_bids.network.inference.halve import above, halve, spline_halves
from bmex_bids.network.models.halve import (
    EDGE,
    PARTS,
    HalvedEdges,
    blocks,
    build,
    frequencies,
    halved,
    windows,
)
from bmex_bids.network.weights.registry import bundled_of, unregistered


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = HalvedEdges((12, 8))
    torch.nn.init.normal_(made.conclude.weight, std=0.2)
    return made.eval()


@pytest.fixture
def record(network, tmp_path):
    path = tmp_path / "super.safetensors"
    save_file(network.state_dict(), path)
    return unregistered(path, "bmex-super")


def mean_of_blocks(fine):
    return halved(torch.from_numpy(fine)).numpy()


def test_halves_have_the_voxels_as_means_and_a_ramp_goes_on():
    for n in (1, 2, 5, 40):
        weights = halving_weights(n)
        assert weights.shape == (2 * n, n)
        assert np.allclose(weights.reshape(n, 2, n).mean(1), np.eye(n), atol=1e-12)
    ramp = halving_weights(40) @ np.arange(40.0)
    assert ramp[39:41] == pytest.approx([19.25, 19.75], abs=1e-6)


def test_the_start_has_the_image_as_means():
    image = torch.rand(5, 6, 7)
    fine = spline_halves(image)
    assert fine.shape == (10, 12, 14)
    assert torch.allclose(halved(fine), image, atol=1e-5)
    assert torch.allclose(spline_halves(spline_halves(image, (0,)), (1, 2)), fine, atol=1e-5)


def test_views_are_those_of_each_voxel():
    image = torch.arange(6 * 7 * 8, dtype=torch.float32).reshape(6, 7, 8)
    around = windows(image)
    assert around.shape == (6, 7, 8, EDGE, EDGE, EDGE)
    half = EDGE // 2
    assert around[3, 4, 5, half, half, half] == image[3, 4, 5]
    assert around[3, 4, 5, half + 1, half, half - 2] == image[4, 4, 3]
    assert around[0, 0, 0, 0, 0, 0] == image[0, 0, 0]  # beyond the edges the last voxels go on
    parts = blocks(image[:, :6])
    assert parts[1, 2, 3, 1, 0, 1] == image[3, 4, 7]


def test_a_file_says_the_widths(network):
    again = build(network.state_dict())
    again.load_state_dict(network.state_dict())
    assert [layer.out_features for layer in again.layers] == [12, 8]


def test_frequencies_are_raised_and_nothing_is_lost():
    matrix = frequencies()
    lengths = matrix.norm(dim=0)
    assert lengths.argmin() == 0
    assert lengths.argmax() == EDGE**3 - 1
    assert torch.allclose(matrix.T @ matrix, torch.diag(lengths**2), atol=1e-4)


def test_a_process_that_has_applied_the_network_can_train_it():
    frequencies.cache_clear()
    around, start, deviation = torch.rand(5, EDGE**3), torch.rand(5, PARTS), torch.tensor(1.0)
    network = HalvedEdges()
    with torch.inference_mode():
        network(around, start, deviation)
    network(around, start, deviation).sum().backward()


def test_an_untrained_network_is_the_start():
    torch.manual_seed(0)
    start = torch.rand(5, PARTS)
    assert torch.equal(HalvedEdges()(torch.rand(5, EDGE**3), start, torch.tensor(1.0)), start)


def test_brightness_and_its_scale_go_through_and_means_stay(network):
    torch.manual_seed(1)
    around, start, deviation = torch.rand(6, EDGE**3), torch.rand(6, PARTS), torch.tensor(0.3)
    with torch.no_grad():
        plain = network(around, start, deviation)
        other = network(70 * around + 9, 70 * start + 9, 70 * deviation)
    assert torch.allclose(other, 70 * plain + 9, rtol=1e-4)
    assert float((plain - start).abs().max()) > 0.01
    assert torch.allclose(plain.mean(1), start.mean(1), atol=1e-5)


def test_parts_below_the_lowest_are_raised_and_means_stay():
    parts = torch.tensor([[-3.0, 5, 1, 1, 1, 1, 1, 1], [-1] * 8, [2] * 8])
    made = above(parts, torch.tensor([[1.0], [0.5], [2.0]]), 0.0)
    assert made[0].tolist() == pytest.approx([0, 40 / 11, *[8 / 11] * 6])
    assert made[1].tolist() == [0.5] * 8
    assert made[2].tolist() == [2.0] * 8
    assert above(parts[:1], torch.tensor([[1.0]]), -3.0)[0, 0] == -3


@pytest.fixture
def brain():
    """An odd box, textured, in a mask that has a corner cut off."""
    shape = (21, 18, 23)
    data = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 1)
    mask = np.zeros(shape, bool)
    mask[2:-3, 3:-2, 1:-4] = True
    mask[2:8, 3:8, 1:8] = False
    return (500 + 900 * data).clip(0).astype(np.float32), mask


@pytest.mark.parametrize("planes", [3, 64])
def test_the_mean_of_each_eight_is_the_voxel_and_outside_is_zero(
    brain, record, monkeypatch, planes
):
    image, mask = brain
    monkeypatch.setattr(module, "PLANES", planes)
    monkeypatch.setattr(module, "VOXELS", 500)
    fine = halve(image, mask, record, device="cpu", threads=1)
    assert fine.shape == (42, 36, 46)
    assert fine.dtype == np.float32
    assert np.abs(mean_of_blocks(fine) - image)[mask].max() < 0.01 * (image.max() - image.min())
    outside = ~mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert not fine[outside].any()
    assert fine.min() >= 0


def test_a_voxel_by_hand(brain, record, network, monkeypatch):
    """One pass without mirrors: neighbourhood and start are those of the brain alone."""
    image, mask = brain
    monkeypatch.setattr(module, "MIRRORS", ((),))
    fine = halve(image, mask, record, device="cpu", threads=1)
    alone = torch.from_numpy(np.pad(np.where(mask, image, 0), 8)).float()
    x, y, z = 9, 9, 9
    seen = windows(alone)[x + 8, y + 8, z + 8].reshape(1, -1)
    start = blocks(spline_halves(alone))[x + 8, y + 8, z + 8].reshape(1, -1)
    deviation = torch.tensor(float(image[mask].std()))
    with torch.no_grad():
        expected = network(seen, start, deviation).reshape(2, 2, 2)
    found = torch.from_numpy(fine[18:20, 18:20, 18:20])
    assert torch.allclose(found, expected, rtol=2e-3, atol=0.5)


def test_mirrored_brains_are_treated_alike(brain, record):
    """The passes are those of a group: a mirror of the front and back and of the left and right."""
    image, mask = brain
    turned = np.flip(image, (0, 1)).copy(), np.flip(mask, (0, 1)).copy()
    fine = halve(image, mask, record, device="cpu", threads=1)
    again = halve(*turned, record, device="cpu", threads=1)
    assert np.allclose(np.flip(again, (0, 1)), fine, atol=0.2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error_in_the_brain_alone(brain, record, value):
    image, mask = brain
    image[0, 0, 0] = value
    assert np.isfinite(halve(image, mask, record, device="cpu", threads=1)).all()
    image[10, 10, 10] = value
    with pytest.raises(ImageError, match="expected finite intensities"):
        halve(image, mask, record, device="cpu", threads=1)


def test_shapes_that_do_not_fit_and_other_networks_are_refused(brain, record):
    image, mask = brain
    with pytest.raises(ImageError, match="one three-dimensional shape"):
        halve(image[1:], mask, record)
    with pytest.raises(TypeError, match="expected a network that halves edges"):
        halve(image, mask, bundled_of("score"))


def test_the_bundled_network_sharpens_an_edge_more_than_cubic_splines_do():
    """A ball of 600 in 200, and a thin shell of 900, averaged over 2 × 2 × 2 voxels."""
    n = 56
    place = np.indices((n, n, n)) - (n - 1) / 2
    radius = np.sqrt(((place * np.array([1, 1.1, 0.9])[:, None, None, None]) ** 2).sum(0))
    truth = np.where(radius < 15, 600, 200) + np.where(abs(radius - 20) < 0.8, 700, 0)
    truth = scipy.ndimage.gaussian_filter(truth.astype(np.float32), 0.6)
    coarse = mean_of_blocks(truth)
    cubic = scipy.ndimage.affine_transform(
        coarse, [0.5] * 3, offset=-0.25, output_shape=truth.shape, order=3, mode="nearest"
    )
    record = bundled_of("super")
    assert record is not None
    fine = halve(coarse, np.ones(coarse.shape, bool), record, device="cpu", threads=2)
    near = radius < 24
    errors = [float(np.sqrt(((one - truth)[near] ** 2).mean())) for one in (fine, cubic)]
    assert errors[0] < 0.8 * errors[1]
