# SPDX-License-Identifier: Apache-2.0
"""The network that labels structures: its sizes, what it is fed, and what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmex_bids.common.structures import STRUCTURES
from bmex_bids.exceptions import ImageError
from bmex_bids.network.inference import segment as module
from bmex_bids.network.inference.segment import (
    half_places,
    segment,
    standardised,
    tissues_of,
    with_share,
)
from bmex_bids.network.models.segment import INPUTS, PLACES, SegmentUNet, build
from bmex_bids.network.variants import VARIANTS
from bmex_bids.network.weights.registry import bundled_of


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = SegmentUNet((4, 4, 8, 8))
    torch.nn.init.normal_(made.head.weight, std=1.0)
    return made.eval()


@pytest.fixture(scope="module")
def brain():
    r = np.linalg.norm((np.indices((30, 34, 26)).T - [15, 17, 13]).T / 12, axis=0)
    rng = np.random.default_rng(0)
    image = np.where(r < 1, 400 + 100 * rng.random(r.shape), 7).astype(np.float32)
    tissues = rng.dirichlet(np.ones(3), r.shape).T.reshape(3, *r.shape).astype(np.float32)
    return image, tissues, r < 1


def test_a_file_says_the_sizes_of_its_network(network):
    again = build(network.state_dict())
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    x, places = torch.rand(1, INPUTS, 32, 16, 48), torch.rand(1, PLACES, 16, 8, 24)
    assert network(x, places).shape == (1, 14, 32, 16, 48)
    assert VARIANTS["bmex-segment"].build.endswith("models.segment:build")


def test_labels_are_in_the_mask_and_none_is_background(network, brain, make_record):
    record = make_record(network, "bmex-segment", kind="segment")
    image, tissues, mask = brain
    labels = segment(image, tissues, mask, record, device="cpu", threads=1)
    assert labels.dtype == np.uint8
    assert ((labels > 0) == mask).all()
    assert labels.max() <= 13
    assert len(np.unique(labels)) > 3


def test_brightness_units_and_what_is_outside_do_not_matter(network, brain, make_record):
    record = make_record(network, "bmex-segment", kind="segment")
    image, tissues, mask = brain
    first = segment(image, tissues, mask, record, device="cpu", threads=1)
    other = np.where(mask, image * 4, 9999).astype(np.float32)
    assert (segment(other, tissues, mask, record, device="cpu", threads=1) == first).mean() > 0.99
    moved = [np.pad(part, [(0, 0)] * (part.ndim - 3) + [(3, 0)] * 3) for part in brain]
    found = segment(*moved, record, device="cpu", threads=1)
    np.testing.assert_array_equal(found[3:, 3:, 3:], first)  # places are those in the brain's box


def test_the_tissues_and_the_place_are_looked_at(network, brain, make_record):
    record = make_record(network, "bmex-segment", kind="segment")
    image, tissues, mask = brain
    first = segment(image, tissues, mask, record, device="cpu", threads=1)
    other = segment(image, tissues[::-1].copy(), mask, record, device="cpu", threads=1)
    assert (first != other).any()


def test_a_tissue_is_the_sum_of_its_structures_by_the_image_alone(
    network, brain, make_record, monkeypatch
):
    record = make_record(network, "bmex-segment", kind="segment")
    image, tissues, mask = brain
    found = tissues_of(image, mask, record, device="cpu", threads=1)
    assert (found.dtype, found.shape) == (np.float32, (4, *mask.shape))
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(found[0], ~mask)
    moved = tissues_of(image + 500 * mask, mask, record, device="cpu", threads=1)
    np.testing.assert_allclose(moved, found, atol=0.1)
    # without the brightness of this image: what the network says
    monkeypatch.setattr(
        module,
        "refined",
        lambda _, logs, of: np.stack([np.exp(logs)[of == k].sum(0) for k in (1, 2, 3)]),
    )
    found = tissues_of(image, mask, record, device="cpu", threads=1)
    here = module._fed(image, np.zeros_like(tissues), mask)
    with torch.inference_mode():
        whole = network(here.channels[None], here.places[None])[0, 1:].softmax(dim=0).numpy()
    of = np.array([structure.tissue for structure in STRUCTURES])
    x, y, z = here.inside.shape
    for tissue in (1, 2, 3):
        sums = whole[of == tissue].sum(axis=0)[:x, :y, :z][here.inside]
        assert np.abs(found[tissue][mask] - sums).mean() < 0.02  # bfloat16
    with pytest.raises(ImageError, match="of one shape"):
        tissues_of(image[1:], mask, record)


def test_a_few_voxels_of_50_times_the_brightness_do_not_hide_the_rest(brain):
    image, _, mask = brain
    record = bundled_of("segment")
    first = tissues_of(image, mask, record, device="cpu", threads=1)
    bright = image.copy()
    few = tuple(np.argwhere(mask)[::300].T)
    bright[few] *= 50
    found = tissues_of(bright, mask, record, device="cpu", threads=1)
    rest = mask.copy()
    rest[few] = False
    assert np.abs(found - first)[:, rest].mean() < 0.05


def test_what_is_not_finite_is_refused_in_the_brain_and_ignored_outside(
    network, brain, make_record
):
    record = make_record(network, "bmex-segment", kind="segment")
    image, tissues, mask = brain
    first = tissues_of(image, mask, record, device="cpu", threads=1)
    outside = np.where(mask, image, np.nan)
    found = tissues_of(outside, mask, record, device="cpu", threads=1)
    np.testing.assert_array_equal(found, first)
    image = image.copy()
    image[tuple(np.argwhere(mask)[:2].T)] = np.nan, np.inf
    words = "finite intensities in the brain, .* in 2 voxels"
    with pytest.raises(ImageError, match=words):
        tissues_of(image, mask, record)
    with pytest.raises(ImageError, match=words):
        segment(image, tissues, mask, record)


def test_any_unit_of_brightness_gives_the_same(network, brain, make_record):
    record = make_record(network, "bmex-segment", kind="segment")
    image, _, mask = brain
    first = tissues_of(image, mask, record, device="cpu", threads=1)
    for factor in (1e-9, 1e9):
        found = tissues_of(image * np.float32(factor), mask, record, device="cpu", threads=1)
        np.testing.assert_allclose(found, first, atol=0.02)


def test_planes_at_a_time_are_the_whole(network):
    x = torch.rand(INPUTS, 48, 16, 16)
    places = torch.rand(PLACES, 24, 8, 8)
    parts = module.most_probable(network, x, places)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        whole = network(x[None], places[None])[0, 1:].argmax(0) + 1
    assert (parts == whole).float().mean() > 0.99


def test_places_are_one_at_the_ends_of_the_box():
    places = half_places((8, 6, 4), (0, 2, 0), (8, 6, 4))
    assert places.shape == (3, 4, 3, 2)
    np.testing.assert_allclose(places[0, :, 0, 0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(places[1, 0, :, 0], [-1.5, -0.5, 0.5])
    inside = torch.zeros(8, 6, 4, dtype=torch.bool)
    inside[0, :2] = True
    share = with_share(torch.from_numpy(places), inside)[3]
    assert share[0, 0].tolist() == [0.5, 0.5]
    assert float(share.sum()) == 1.0


def test_intensities_are_standardised_and_limited():
    image = np.array([[[300, 400, 9000, 5]]], np.float32)
    inside = np.array([[[1, 1, 1, 0]]], bool)
    np.testing.assert_allclose(standardised(image, inside, 400, 50), [[[-2, 0, 4, 0]]])


def test_shapes_that_do_not_fit_are_an_error(network, brain, make_record):
    image, tissues, mask = brain
    with pytest.raises(ImageError, match="of one shape"):
        segment(image[1:], tissues, mask, make_record(network, "bmex-segment"))
