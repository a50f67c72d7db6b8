# SPDX-License-Identifier: Apache-2.0
import math

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.training import lesions
from bmex_bids.training.lesions import Lesion, Part

SPACING = (1.0, 1.0, 2.0)


@pytest.fixture
def brain():
    """An ellipsoid of 400 with 4 voxels of air."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 44, 24)), indexing="ij")
    mask = np.pad(x**2 + y**2 + z**2 <= 1, 4)
    return np.where(mask, 400, 0).astype(np.float32), mask


def volume(mask, spacing=SPACING):
    return float(mask.sum()) * math.prod(spacing)


@pytest.mark.parametrize("size", [4.0, 9.0, 16.0])
def test_a_drawn_shape_has_the_volume_of_its_ball(size):
    shape = lesions.drawn_shape(Lesion((0, 0, 0), size, -0.2, 0.5, seed=3), SPACING)
    assert volume(shape) == pytest.approx(math.pi / 6 * size**3, rel=0.05)
    other = lesions.drawn_shape(Lesion((0, 0, 0), size, -0.2, 0.5, seed=4), SPACING)
    assert shape.shape != other.shape or (shape != other).any()


def test_the_same_lesions_give_the_same_image_also_from_json(brain):
    image, mask = brain
    drawn = lesions.draw(
        np.random.default_rng(0), mask, SPACING, [(8.0, -0.2), (4.0, -0.3), (4.0, 0.1)]
    )
    assert [lesion.size_mm for lesion in drawn] == [8, 4, 4]
    first, labels = lesions.put_in(image, mask, SPACING, drawn)
    again, _ = lesions.put_in(image, mask, SPACING, lesions.from_json(lesions.as_json(drawn)))
    np.testing.assert_array_equal(first, again)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert not first[~mask].any()
    for number, lesion in enumerate(drawn, start=1):
        core = labels == number
        assert volume(core) == pytest.approx(math.pi / 6 * lesion.size_mm**3, rel=0.2)
        # a soft border takes from the contrast, of a small lesion most
        change = first[core].mean() / 400 - 1
        assert 0.5 * abs(lesion.contrast) < abs(change) <= abs(lesion.contrast)
        assert change * lesion.contrast > 0


def test_lesions_keep_apart_and_what_has_no_room_is_left_out(brain):
    _, mask = brain
    drawn = lesions.draw(np.random.default_rng(1), mask, SPACING, [(16.0, -0.2)] * 30)
    assert 1 <= len(drawn) < 30
    places = np.array([lesion.centre for lesion in drawn]) * SPACING
    for k, place in enumerate(places):
        others = np.delete(places, k, axis=0)
        assert (np.abs(others - place).max(axis=1) > 8).all()
    assert lesions.draw(np.random.default_rng(1), np.zeros_like(mask), SPACING, [(4.0, 0.1)]) == []


def test_parts_of_a_mask_are_named_by_size_and_lie_where_its_header_says(tmp_path):
    data = np.zeros((30, 30, 30), np.uint8)
    data[2:4, 2:4, 2:4] = 1
    data[10:14, 20:24, 5:9] = 1
    data[20, 20, 20] = 1  # a speck
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -15  # RAS
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "patient9_lesions.nii.gz")
    parts = lesions.read_parts(tmp_path / "patient9_lesions.nii.gz")
    assert [(name, int(part.shape.sum())) for name, part in parts.items()] == [
        ("patient9:1", 64), ("patient9:2", 8),
    ]  # fmt: skip
    # right and anterior are negative here: (11.5, 21.5, 6.5) − 15
    assert parts["patient9:1"].centre_mm == (3.5, -6.5, -8.5)


def test_strokes_come_out_of_their_packed_file(tmp_path):
    shape = np.zeros((4, 5, 3), bool)
    shape[1:, 2:, :2] = True
    affine = np.diag([-1.0, 1, 1, 1])
    np.savez(
        tmp_path / "strokes.npz",
        affine=affine,
        shape=[20, 20, 20],
        **{"sub-7": np.packbits(shape), "sub-7_box": np.array([5, 6, 7, 9, 11, 10])},
    )
    assert lesions.stroke_names(tmp_path / "strokes.npz") == ["sub-7"]
    (part,) = lesions.read_strokes(tmp_path / "strokes.npz", ["sub-7"]).values()
    assert part.shape.sum() == shape.sum()
    # the box of what is true: voxels 6…8, 8…10, 7…8; x goes to the left already
    assert part.centre_mm == (7.0, -9.0, 7.5)


def test_a_real_lesion_is_moved_into_its_tissue(brain):
    image, mask = brain
    tissue = mask.copy()
    tissue[24:] = False
    part = Part(np.ones((24, 24, 24), bool), (0.0, 16.5, 5.5))  # the middle of the brain
    _, centre = lesions.on_grid(part, mask, SPACING)
    low = np.argwhere(mask).min(axis=0)
    extent = np.argwhere(mask).max(axis=0) + 1 - low
    np.testing.assert_allclose(centre, low + extent / 2, atol=1)
    found, shapes = lesions.place_parts(
        np.random.default_rng(0), {"a": part}, (mask, tissue), SPACING, [-0.3]
    )
    assert found[0].source == "a"
    assert abs(found[0].centre[1] - centre[1]) <= 1
    changed, labels = lesions.put_in(image, mask, SPACING, found, shapes)
    assert tissue[labels == 1].mean() >= 0.75
    assert changed[labels == 1].mean() < 400 * 0.85
    nowhere = np.zeros_like(mask)
    assert lesions.place_parts(
        np.random.default_rng(0), {"a": part}, (mask, nowhere), SPACING, [-0.3]
    ) == ([], {})
