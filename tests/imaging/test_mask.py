# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.common.boxes import bounding_box
from bmex_bids.exceptions import MaskError
from bmex_bids.imaging.mask import (
    SIDES,
    blend_into_head,
    border_contact,
    check_mask,
    clean_mask,
    cut_sides,
    hysteresis_mask,
    left_out,
    open_mask,
    plausible_litres,
)
from bmex_bids.imaging.resampling import resample_to_spacing
from bmex_bids.imaging.stripped import (
    brain_voxels,
    head_signs,
    is_all_brain,
    is_stripped,
    without_offset,
)

LIFESPAN = ["1/V01/T1w", "1/V02/T1w", *(f"{n}/V01/T1w" for n in range(2, 9)), "9/V01/T2w"]


def mask_of(array, spacing=1.0):
    return nib.Nifti1Image(np.asarray(array, np.uint8), np.diag([spacing, spacing, spacing, 1]))


def box(shape, *sides):
    array = np.zeros(shape, bool)
    for side in sides:
        array[tuple(slice(*s) for s in side)] = True
    return array


# ------------------------------------------------------------------ stripped or not
@pytest.mark.parametrize("size", [0.5, 0.7, 1.0])
def test_a_phantom_is_stripped_or_not(size, head_phantom):
    head = head_phantom(spacing=4.0 * size, size=size)
    assert is_stripped(head.brain)
    assert not is_stripped(head.image)


def test_a_head_without_background_noise_is_still_a_head(head_phantom):
    head = head_phantom(noise=0.0)
    assert (head.image.get_fdata() == 0).any()
    assert not is_stripped(head.image)


def test_an_empty_image_is_not_stripped():
    assert not is_stripped(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)))


def test_a_brain_that_leaves_the_field_of_view_is_not_taken_for_one(head_phantom):
    brain = head_phantom().brain
    assert not is_stripped(brain.slicer[10:-10, :, 20:])


@pytest.mark.parametrize("name", LIFESPAN)
def test_real_brains_are_stripped(name, shared_data):
    number, session, suffix = name.split("/")
    stem = f"sub-000{number}_ses-{session}_{suffix}.nii.gz"
    folder = shared_data / "lifespan-bids" / f"sub-000{number}" / f"ses-{session}" / "anat"
    assert is_stripped(nib.load(folder / stem))


@pytest.mark.parametrize("name", ["chris_t1", "chris_PD"])
def test_real_heads_are_not(name, shared_data):
    assert not is_stripped(nib.load(shared_data / "heads" / f"{name}.nii.gz"))


def deprived(name, data):
    """A head from which something was taken that does not make it a brain (axes RAS+)."""
    changed = data.copy()
    if name != "background":
        changed[:, :, : int(0.35 * data.shape[2])] = 0  # the neck
    if name == "face":
        changed[:, int(0.7 * data.shape[1]) :, : int(0.55 * data.shape[2])] = 0
    return changed


@pytest.mark.parametrize("threshold", [10, 20, 60])  # of 255; 20 empties much of the skull, too
@pytest.mark.parametrize("missing", ["background", "neck", "face"])
@pytest.mark.parametrize("name", ["chris_t1", "chris_PD"])
def test_a_head_does_not_become_a_brain_by_zeros(name, missing, threshold, shared_data):
    image = nib.load(shared_data / "heads" / f"{name}.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    data = np.asarray(image.dataobj)
    data = deprived(missing, np.where(data > threshold, data, 0))
    assert not is_stripped(nib.Nifti1Image(data, image.affine))


def test_a_phantom_whose_skull_is_zero_and_whose_neck_is_cut_is_a_head(head_phantom):
    head = head_phantom(noise=0.0)
    data = head.image.get_fdata(dtype=np.float32)
    data[data < 200] = 0  # scalp and brain, with nothing between; 1.8 litres in two pieces
    data[:, :, :12] = 0
    assert (data > 0).sum() * 0.064 / 1000 < 2.2
    assert not is_stripped(nib.Nifti1Image(data, head.image.affine))


def test_specks_outside_a_brain_do_not_matter(head_phantom):
    brain = head_phantom().brain
    data = brain.get_fdata(dtype=np.float32)
    data[2, 2, 2] = data[-3, 20, 4] = 900
    assert is_stripped(nib.Nifti1Image(data, brain.affine))


# ------------------------------------------------------------------ what may lie outside a brain
def outside(image, mask, kind):
    """A phantom's brain with something else than zeros outside."""
    data = image.get_fdata(dtype=np.float32)
    rng = np.random.default_rng(3)
    noise = np.abs(rng.normal(0, 15, data.shape)).astype(np.float32)  # the brain: up to 720
    changed = {
        "constant": np.where(mask, data + 40, 40),
        "negative": np.where(mask, data, -1000),
        "noise": np.where(mask, data, noise),
        "noise everywhere": data + noise,
    }[kind]
    return nib.Nifti1Image(changed.astype(np.float32), image.affine)


OUTSIDE = ["constant", "negative", "noise", "noise everywhere"]


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_brain_need_not_have_zeros_around_it(kind, head_phantom):
    head = head_phantom(noise=0.0)
    image = outside(head.brain, head.mask, kind)
    assert is_stripped(image)
    found = clean_mask(mask_of(brain_voxels(image), 4.0)).get_fdata() > 0
    assert (found != head.mask).mean() < 0.001


@pytest.mark.parametrize("centre", [400, 480, 600])  # grey matter has 480
def test_zeros_may_lie_amid_the_values_of_a_brain(centre, head_phantom):
    """Of z scores, what is near zero seemed a skull, and at the surface it was lost."""
    head = head_phantom(spacing=2.0)

    def scores(image, where):
        data = np.where(where, (image.get_fdata() - centre) / 200, 0)
        return nib.Nifti1Image(data.astype(np.float32), head.image.affine)

    data = scores(head.brain, head.mask).get_fdata(dtype=np.float32)
    surface = head.mask & ~scipy.ndimage.binary_erosion(head.mask)  # grey matter, near zero
    data[surface] = np.random.default_rng(0).normal(0, 0.2, surface.sum())
    brain = nib.Nifti1Image(data, head.image.affine)
    assert is_stripped(brain)
    assert head_signs(brain).dark_shell < 0.02
    found = clean_mask(mask_of(brain_voxels(brain), 2.0)).get_fdata() > 0
    assert (found != head.mask).mean() < 0.001
    darkest = without_offset(brain).get_fdata()
    assert darkest[~head.mask].max() <= np.percentile(darkest[head.mask], 1)
    np.testing.assert_array_equal(darkest[head.mask], brain.get_fdata()[head.mask])
    inside = scipy.ndimage.binary_fill_holes(head.image.get_fdata() > 200)
    assert not is_stripped(scores(head.image, inside))
    assert head_signs(scores(head.image, inside)).dark_shell > 0.9


@pytest.mark.parametrize("kind", OUTSIDE)
def test_nor_does_a_head(kind, head_phantom):
    head = head_phantom(noise=0.0)
    assert not is_stripped(outside(head.image, head.image.get_fdata() > 0, kind))


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_small_brain_in_a_large_field_of_view(kind, head_phantom):
    head = head_phantom(noise=0.0, size=0.45, spacing=1.8)
    brain = nib.Nifti1Image(np.pad(head.brain.get_fdata(), 35), head.brain.affine)
    mask = np.pad(head.mask, 35)
    assert mask.mean() < 0.015
    assert is_stripped(outside(brain, mask, kind))


def test_a_head_in_loud_noise_without_a_skull_to_be_seen_is_a_head(head_phantom):
    head = head_phantom(noise=0.0)
    rng = np.random.default_rng(0)
    data = np.abs(head.brain.get_fdata() + rng.normal(0, 60, head.mask.shape))
    image = nib.Nifti1Image(data.astype(np.float32), head.image.affine)
    assert head_signs(image).dark_shell == 0
    assert not is_stripped(image)


def test_a_dim_scalp_is_seen_in_the_noise(head_phantom):
    head = head_phantom(noise=0.0, size=0.6, spacing=2.4)
    data = head.image.get_fdata()
    data[(data == 850) | (data == 60)] = 40  # scalp and bone
    noise = np.random.default_rng(0).normal(0, 15, data.shape)
    image = nib.Nifti1Image(np.abs(data + noise).astype(np.float32), head.image.affine)
    head_litres = 4 / 3 * np.pi * 84 * 102 * 92 * 0.6**3 / 1e6
    assert head_signs(image).litres == pytest.approx(head_litres, rel=0.15)


def test_zeros_are_the_background_where_no_face_shows_any():
    array = np.full((12, 12, 12), 500.0, np.float32) + np.arange(12, dtype=np.float32)
    array[5:7, 5:7, 5:7] = 0
    image = nib.Nifti1Image(array, np.eye(4))
    assert_array_equal(brain_voxels(image), array != 0)
    assert not is_stripped(image)


def test_thick_slices_and_a_tight_field_of_view(head_phantom):
    head = head_phantom(spacing=2.0)
    thick = head.brain.slicer[:, :, ::3]
    assert thick.header.get_zooms() == (2, 2, 6)
    assert is_stripped(thick)
    assert is_stripped(head.brain.slicer[bounding_box(head.mask)])
    assert not is_stripped(head.image.slicer[:, :, ::3])


def test_a_rim_of_skull_does_not_make_a_head(head_phantom):
    head = head_phantom()
    rim = scipy.ndimage.binary_dilation(head.mask, iterations=2)  # fluid and bone, no scalp
    data = np.where(rim, head.image.get_fdata(), 0)
    assert is_stripped(nib.Nifti1Image(data.astype(np.float32), head.image.affine))


def test_what_was_found_is_all_there_is(head_phantom):
    """Of half a brain a network finds all but the edges; of a head, the brain."""
    head = head_phantom(spacing=2.0)
    half = np.arange(head.mask.shape[0])[:, None, None] < head.mask.shape[0] // 2
    found = scipy.ndimage.binary_erosion(head.mask & half, iterations=2)

    def all_brain(data, where=found):
        return is_all_brain(nib.Nifti1Image(data.astype(np.float32), head.image.affine), where)

    brain, whole = (np.where(half, image.get_fdata(), 0) for image in (head.brain, head.image))
    assert all_brain(brain)
    assert not all_brain(whole)  # a scalp beyond a skull
    assert not all_brain(brain, np.zeros_like(found))
    assert not all_brain(brain, found & (np.arange(found.shape[2]) < found.shape[2] // 2))
    low = np.arange(found.shape[2]) < found.shape[2] // 2
    assert all_brain(np.where(low, brain, 0), found & low)  # cut twice
    stump = head.brain.get_fdata()
    middle = [n // 2 for n in stump.shape]
    stump[middle[0] - 14 : middle[0] + 14, middle[1] - 14 : middle[1] + 14, 10 : middle[2]] = 480
    assert head_signs(nib.Nifti1Image(stump.astype(np.float32), head.image.affine)).cuts == 1
    assert not all_brain(stump, head.mask)  # a stripper left some of the neck
    neck = brain.copy()
    neck[10:35, 30:70, :20] = 500
    assert not all_brain(neck)
    noise = np.random.default_rng(0).normal(0, 1, brain.shape)
    assert all_brain(np.where(brain > 0, brain, 5 * noise))
    assert not all_brain(np.where(brain > 0, brain, 100 * noise))


def test_a_scalp_on_a_thin_skull_is_no_surface_of_a_brain(head_phantom):
    """Of an axial slab of a child's head little lies far from the brain, and no skull is seen."""
    head = head_phantom(spacing=2.0)
    middle = head.mask.shape[2] // 2
    slab = np.abs(np.arange(head.mask.shape[2]) - middle) < 12
    brain = np.where(slab, head.brain.get_fdata(), 0)
    rim = scipy.ndimage.binary_dilation(head.mask, iterations=4) & slab & ~head.mask
    for data, expected in ((brain, True), (np.where(rim, 480, brain), False)):
        image = nib.Nifti1Image(data.astype(np.float32), head.image.affine)
        assert not is_stripped(image)
        assert is_all_brain(image, head.mask & slab) == expected
    rounded = head.mask & (np.abs(np.arange(slab.size) - middle) < 9)  # short of both cuts
    assert is_all_brain(nib.Nifti1Image(brain.astype(np.float32), head.image.affine), rounded)


def test_an_end_that_was_missed_is_brain_if_it_looks_like_what_was_found(head_phantom):
    """Of a thin slab a network misses a whole end; what is left out of a head looks otherwise."""
    head = head_phantom(spacing=2.0)
    x, y, _ = np.indices(head.mask.shape)
    slab = np.abs(x - head.mask.shape[0] // 2) < 10
    brain = np.where(slab, head.brain.get_fdata(), 0)
    rounded = scipy.ndimage.binary_erosion(head.mask & slab)
    end = y >= 65

    def all_brain(data, found):
        return is_all_brain(nib.Nifti1Image(data.astype(np.float32), head.image.affine), found)

    assert all_brain(brain, rounded & ~end)
    assert not all_brain(brain, rounded & (y < 55))  # most was missed
    assert not all_brain(np.where(end, 2 * brain, brain), rounded & ~end)  # fat
    assert not all_brain(np.where(end & (brain > 0), 500, brain), rounded & ~end)  # muscle
    deep = scipy.ndimage.binary_erosion(head.mask & slab, iterations=3)
    assert not all_brain(brain, deep & ~end)  # something lies around what was found, too


@pytest.mark.parametrize("order", [1, 3])
def test_a_cut_that_resampling_blurs_and_tilts_is_one(order, head_phantom):
    """Two degrees: no voxel plane is the cut's, and the outermost one holds a corner of it."""
    head = head_phantom(spacing=2.0)
    x = np.arange(head.mask.shape[0])[:, None, None] - head.mask.shape[0] // 2
    cos, sin = np.cos(np.deg2rad(2)), np.sin(np.deg2rad(2))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    centre = (np.array(head.mask.shape) - 1) / 2

    def turned(data, order):
        where = {"offset": centre - turn @ centre + 0.4, "order": order}
        return scipy.ndimage.affine_transform(data.astype(np.float32), turn, **where)

    brain = head.brain.get_fdata()
    for slab, short in ((x < 0, x < -2), (np.abs(x) < 12, np.abs(x) < 8)):
        image = nib.Nifti1Image(turned(np.where(slab, brain, 0), order), head.image.affine)
        found = turned(head.mask & short, 1) > 0.5
        assert head_signs(image).flat < 0.6
        assert is_all_brain(image, found)


def test_signs_by_hand(head_phantom):
    head = head_phantom(spacing=2.0, noise=0.0)
    signs = head_signs(head.brain)
    assert signs.litres == pytest.approx(4 / 3 * np.pi * 60 * 76 * 68 / 1e6, rel=0.02)
    assert signs.flat < 0.05
    assert (signs.dark_shell, signs.noise) == (0, 0)
    assert head_signs(head.image).dark_shell == 1
    hollow = head.brain.get_fdata()
    hollow[head.tissues == 3] = 0  # 80 mm wide
    assert head_signs(nib.Nifti1Image(hollow, head.image.affine)).litres == signs.litres
    # half of an ellipsoid: the cut is the widest plane
    half = head_signs(head.brain.slicer[: head.mask.shape[0] // 2])
    assert half.flat == pytest.approx(1 - 29 / 15**2)  # of 30 planes, less a ball's first
    assert half.cut == half.flat
    assert signs.flat < signs.cut < 0.3
    # another size, the same signs; a speck of a brain is none
    small = nib.Nifti1Image(head.brain.get_fdata(), head.brain.affine @ np.diag([0.2] * 3 + [1]))
    assert head_signs(small).litres == pytest.approx(signs.litres / 125, rel=0.02)
    assert not is_stripped(small)


@pytest.mark.parametrize("threshold", [0, 20])
@pytest.mark.parametrize("name", ["chris_t1", "chris_PD"])
def test_a_small_head_is_a_head(name, threshold, shared_data):
    """As small as an infant's, its neck and face cut off obliquely: only the skull tells."""
    image = nib.load(shared_data / "heads" / f"{name}.nii.gz")
    data = np.asarray(image.dataobj)
    spacing = image.header.get_zooms()
    y, z = (np.arange(n) * s for n, s in zip(data.shape[1:], spacing[1:], strict=True))
    low = (z[None, :] - 0.6 * (y[:, None] - 0.25 * y[-1])) < 0  # RAS: rises towards the face
    data = np.where(low[None] | (data <= threshold), 0, data)
    image = nib.Nifti1Image(data, image.affine @ np.diag([0.6, 0.6, 0.6, 1]))
    signs = head_signs(image)
    assert signs.litres < 1
    assert not is_stripped(image)


# ------------------------------------------------------------------ geometry of masks
def test_bounding_box_by_hand():
    mask = box((10, 10, 10), ((2, 5), (0, 1), (9, 10)))
    assert bounding_box(mask) == (slice(2, 5), slice(0, 1), slice(9, 10))
    assert bounding_box(mask, margin=1) == (slice(1, 6), slice(0, 2), slice(8, 10))


def test_border_contact_by_hand():
    # a cube of 3: 26 of its 27 voxels are surface; on one face of the array lie 9 of them
    assert border_contact(box((9, 9, 9), [(3, 6)] * 3)) == 0
    assert border_contact(box((9, 9, 9), ((0, 3), (3, 6), (3, 6)))) == pytest.approx(9 / 26)
    # in a corner, three faces: 9 + 6 + 4
    assert border_contact(box((9, 9, 9), [(6, 9)] * 3)) == pytest.approx(19 / 26)
    assert border_contact(np.ones((3, 3, 3), bool)) == 1
    assert border_contact(np.zeros((3, 3, 3), bool)) == 0


# ------------------------------------------------------------------ cleaning
def assert_same_cube(found, expected):
    """A ball does not reach into the eight corners of a cube; all else must be the same."""
    assert not (found & ~expected).any()
    assert (expected & ~found).sum() <= 8


def test_a_thin_bridge_is_cut_and_the_largest_piece_kept():
    big, small = ((4, 24), (4, 24), (4, 24)), ((32, 42), (8, 18), (8, 18))
    bridge = ((24, 32), (12, 14), (12, 14))  # 2 mm thick, 8 mm long
    cleaned = clean_mask(mask_of(box((46, 28, 28), big, small, bridge))).get_fdata() > 0
    assert not cleaned[30:].any()
    assert_same_cube(cleaned[4:24], box((46, 28, 28), big)[4:24])


def test_a_thick_bridge_is_kept():
    array = box((46, 28, 28), ((4, 24), (4, 24), (4, 24)), ((24, 42), (8, 18), (8, 18)))
    cleaned = clean_mask(mask_of(array)).get_fdata() > 0
    assert cleaned[40, 12, 12]


def test_a_hole_is_filled_and_a_gap_closed():
    array = box((28, 28, 28), [(4, 24)] * 3)
    array[10:16, 10:16, 10:16] = False  # inside
    array[13, 13, 5:8] = False  # just below the surface
    array[14, 9, 4:8] = False  # a pin prick from outside, in a face: its mouth stays
    cleaned = clean_mask(mask_of(array)).get_fdata() > 0
    assert cleaned[14, 9, 5:8].all()
    cleaned[14, 9, 4] = True
    assert_same_cube(cleaned, box((28, 28, 28), [(4, 24)] * 3))


def test_the_largest_piece_is_kept():
    small, large = [(2, 10)] * 3, [(14, 26)] * 3
    cleaned = clean_mask(mask_of(box((28, 28, 28), small, large))).get_fdata() > 0
    assert_same_cube(cleaned, box((28, 28, 28), large))


def test_a_mask_thinner_than_the_opening_is_not_lost():
    array = box((20, 20, 20), ((5, 15), (5, 15), (9, 11)), ((0, 1), (0, 1), (0, 1)))
    cleaned = clean_mask(mask_of(array)).get_fdata() > 0
    assert_array_equal(cleaned, box((20, 20, 20), ((5, 15), (5, 15), (9, 11))))


def test_a_clean_mask_is_left_as_it_is(head_phantom):
    head = head_phantom()
    image = nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine)
    cleaned = clean_mask(image)
    assert (cleaned.get_fdata() > 0)[~head.mask].mean() < 0.01
    assert (cleaned.get_fdata() > 0)[head.mask].all()
    assert cleaned.get_data_dtype() == np.uint8
    assert_array_equal(cleaned.affine, image.affine)


def test_a_mask_at_the_border_is_not_eaten():
    array = box((16, 16, 16), ((0, 12), (0, 12), (0, 12)))
    assert_same_cube(clean_mask(mask_of(array)).get_fdata() > 0, array)


def test_nothing_to_clean():
    with pytest.raises(MaskError, match=r"got an empty one; .*--skull-strip"):
        clean_mask(mask_of(np.zeros((8, 8, 8))))


# ------------------------------------------------------------------ judging
def cube_of(litres, shape=30, border=False):
    """A cube of 20 voxels a side with the wanted volume."""
    start = 0 if border else 5
    return mask_of(box((shape,) * 3, [(start, start + 20)] * 3), (litres * 1e6 / 8000) ** (1 / 3))


def test_a_usual_mask_has_nothing_odd():
    check = check_mask(cube_of(1.2), age_months=72)
    assert check.volume_litres == pytest.approx(1.2)
    assert (check.components, check.border_contact, check.warnings) == (1, 0, ())


@pytest.mark.parametrize("options", [{}, {"age_months": 0}, {"fetal": True}])
def test_an_empty_mask_is_refused(options):
    with pytest.raises(MaskError, match="got an empty one"):
        check_mask(mask_of(np.zeros((8, 8, 8))), **options)


@pytest.mark.parametrize(
    ("litres", "options"),
    [
        (4.0, {}),  # a whole head
        (0.005, {}),
        (4.0, {"age_months": 72}),
        (0.3, {"age_months": 72}),  # less than half of 0.7
        (1.7, {"age_months": 0}),  # more than 1.5 times 1.1
        (1.0, {"fetal": True}),
    ],
)
def test_an_absurd_volume_is_refused(litres, options):
    with pytest.raises(MaskError, match=rf"got {litres:.3f}; look at the image"):
        check_mask(cube_of(litres), **options)


@pytest.mark.parametrize(("litres", "months"), [(0.5, 72), (2.4, 72), (0.15, 0), (1.3, 0)])
def test_an_odd_volume_is_a_warning(litres, months):
    (warning,) = check_mask(cube_of(litres), age_months=months).warnings
    assert "are usual at this age" in warning


def test_pieces_and_contact_are_warnings():
    image = cube_of(1.2, border=True)
    array = image.get_fdata()
    array[28, 28, 28] = 1
    check = check_mask(mask_of(array, image.affine[0, 0]), age_months=72)
    assert check.components == 2
    assert [w for w in check.warnings if "in 2 pieces" in w]
    assert [w for w in check.warnings if "lies on the border" in w]


def test_limits_by_age():
    assert plausible_litres(None, False) == (0.02, 2.2)
    assert plausible_litres(None, True) == plausible_litres(6, True) == (0.02, 0.65)
    assert plausible_litres(0, False) == plausible_litres(2.99, False) == (0.18, 1.1)
    assert plausible_litres(3, False) == (0.35, 1.6)
    assert plausible_litres(12, False) == (0.5, 1.9)
    assert plausible_litres(36, False) == plausible_litres(1000, False) == (0.7, 2.2)


def test_limits_rise_with_age():
    limits = [plausible_litres(m, False) for m in range(0, 60)]
    assert limits == sorted(limits)


# ------------------------------------------------------------------ back into the head
def test_the_seam_by_hand():
    mask = np.repeat(np.repeat(box((1, 1, 24), ((0, 1), (0, 1), (2, 22))), 31, 0), 31, 1)
    head, brain = np.zeros(mask.shape, np.float32), np.full(mask.shape, 100, np.float32)
    line = blend_into_head(head, brain, mask, (1, 1, 1), width_mm=2)[15, 15]
    # centres lie 0.5, 1.5, 2.5 mm below the surface: weights 0.25, 0.75, 1
    assert_allclose(line[:6], [0, 0, 25, 75, 100, 100])
    assert_allclose(line, line[::-1])


def test_outside_unchanged_deep_inside_the_brain_and_monotone_between(head_phantom):
    head = head_phantom(spacing=4.0)
    inside = head.mask
    original = head.image.get_fdata(dtype=np.float32)
    brain = original + 100
    result = blend_into_head(original, brain, inside, (4, 4, 4), width_mm=8)
    gain = result - original
    assert_array_equal(result[~inside], original[~inside])
    middle = gain[gain.shape[0] // 2, gain.shape[1] // 2]
    assert middle[middle.size // 2] == pytest.approx(100, abs=1e-3)
    assert (np.diff(middle[: middle.size // 2]) >= -1e-3).all()
    assert gain.min() >= 0
    assert gain.max() == pytest.approx(100, abs=1e-3)
    assert ((gain[inside] > 1) & (gain[inside] < 99)).any()


def test_no_width_is_a_hard_edge_and_no_mask_is_the_head():
    head, brain = np.zeros((9, 9, 9), np.float32), np.ones((9, 9, 9), np.float32)
    mask = box((9, 9, 9), [(3, 6)] * 3)
    assert_array_equal(blend_into_head(head, brain, mask, (1, 1, 1), width_mm=0), mask)
    assert_array_equal(blend_into_head(head, brain, mask & False, (1, 1, 1)), head)


def test_a_stripped_brain_is_still_stripped_on_another_grid(head_phantom):
    assert is_stripped(resample_to_spacing(head_phantom().brain, 3.0))


def test_a_second_brain_that_is_left_out_is_told_and_specks_are_not():
    one = np.zeros((30, 12, 12), np.uint8)
    one[2:12, 2:10, 2:10] = 1  # 640 voxels of 1 mm³
    two, specks = one.copy(), one.copy()
    two[16:26, 2:10, 2:10] = 1
    specks[16:20, 2:5, 2:5] = 1  # 36 voxels
    kept = nib.Nifti1Image(one, np.eye(4))
    note = left_out(nib.Nifti1Image(two, np.eye(4)), kept)
    assert note.startswith("0.001 litres that look like brain lie apart from the largest piece")
    assert left_out(nib.Nifti1Image(specks, np.eye(4)), kept) is None
    assert left_out(kept, kept) is None


def test_the_published_cleaning_opens_and_keeps_the_largest_piece_without_holes():
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[5:25, 5:25, 5:25] = 1
    mask[14:16, 14:16, 14:16] = 0  # a hole
    mask[25:38, 14:17, 14:17] = 1  # a bar thinner than the ball
    mask[29:38, 28:37, 28:37] = 1  # a smaller piece
    result = np.asarray(open_mask(nib.Nifti1Image(mask, np.eye(4))).dataobj)
    assert result[14, 14, 14] == 1
    assert not result[26:].any()
    assert result[10:20, 10:20, 10:20].all()
    assert result[5, 12, 12] == 1  # flat sides stay


def test_a_mask_that_opening_empties_is_an_error():
    mask = np.zeros((20, 20, 20), np.uint8)
    for voxels in ((), (slice(4, 6),) * 3):
        if voxels:
            mask[voxels] = 1
        with pytest.raises(MaskError, match="empty once it is opened"):
            open_mask(nib.Nifti1Image(mask, np.eye(4)))


# ------------------------------------------------------------------ brains that were resampled
def _resampled(brain, method):
    """From voxels of 2 mm to 1.7 mm, by a program other than ours."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(brain.T)
    image.SetSpacing([2.0] * 3)
    size = [int(np.ceil(n * 2.0 / 1.7)) for n in image.GetSize()]
    fine = sitk.Resample(
        image, size, sitk.Transform(), getattr(sitk, f"sitk{method}"), image.GetOrigin(),
        [1.7] * 3, image.GetDirection(), 0.0,
    )  # fmt: skip
    return sitk.GetArrayFromImage(fine).T


@pytest.mark.parametrize("outside", [0.0, -0.01])
@pytest.mark.parametrize("method", ["Linear", "BSpline", "LanczosWindowedSinc"])
def test_a_resampled_brain_keeps_its_volume_and_is_known_as_stripped(
    head_phantom, method, outside
):
    head = head_phantom(spacing=2.0, size=0.55)
    data = _resampled(np.asarray(head.brain.dataobj), method)
    data[data == 0] = outside
    data[:2] = data[-2:] = 0  # the fill of the resampling is still there
    image = nib.Nifti1Image(data, np.diag([-1.7, -1.7, 1.7, 1]))
    assert is_stripped(image)
    found = brain_voxels(image)
    mask = clean_mask(nib.Nifti1Image(found.astype(np.uint8), image.affine))
    litres = np.asarray(mask.dataobj).sum() * 1.7**3 / 1e6
    assert litres == pytest.approx(head.litres, rel=0.03)


def test_a_brain_that_was_cut_out_sharply_keeps_every_voxel(head_phantom):
    head = head_phantom(spacing=3.0)
    data = np.asarray(head.brain.dataobj)
    data[head.mask & (head.tissues == 1)] = 20.0  # fluid, a fortieth of white matter
    found = brain_voxels(nib.Nifti1Image(data, head.image.affine))
    assert_array_equal(found, head.mask)


# ------------------------------------------------------------------ sure and likely
def test_likely_brain_counts_near_what_is_sure():
    probability = np.full((12, 12, 20), 0.1, np.float32)
    probability[2:10, 2:10, 2:8] = 0.9
    probability[2:10, 2:10, 8:16] = 0.3
    found = hysteresis_mask(probability, (1, 1, 1), sure=0.5, likely=0.2, reach_mm=3.0)
    assert_array_equal(np.flatnonzero(found[5, 5]), np.arange(2, 11))
    assert found.sum() == 8 * 8 * 9
    nothing = hysteresis_mask(probability - 0.5, (1, 1, 1), sure=0.5, likely=0.2, reach_mm=3.0)
    assert not nothing.any()


# ------------------------------------------------------------------ the field of view
@pytest.mark.parametrize(("axis", "names"), list(enumerate(SIDES)))
@pytest.mark.parametrize("end", [0, 1])
def test_each_side_that_cuts_the_brain_off_is_told(head_phantom, axis, names, end):
    """A cut through the side had less of the mask's surface on the border than one at the top."""
    mask = head_phantom(spacing=3.0).mask
    extent = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
    cut = [slice(None)] * 3
    cut[axis] = slice(extent[0] + 5, None) if end == 0 else slice(None, extent[-1] - 4)
    part = mask[tuple(cut)]
    assert cut_sides(part, (3, 3, 3)) == (names[end],)
    (warning,) = [w for w in check_mask(mask_of(part, 3.0)).warnings if "cut it off" in w]
    assert f"the {names[end]} of the image" in warning
    # a network's mask that ends short of the border
    short = part.copy()
    index = [slice(None)] * 3
    index[axis] = slice(0, 1) if end == 0 else slice(-1, None)
    short[tuple(index)] = False
    assert cut_sides(short, (3, 3, 3)) == ()
    assert cut_sides(short, (3, 3, 3), within_mm=6.0) == (names[end],)


def test_a_whole_brain_is_cut_off_nowhere_however_tight_its_box(head_phantom):
    mask = head_phantom(spacing=3.0).mask
    assert cut_sides(mask, (3, 3, 3), within_mm=6.0) == ()
    tight = mask[bounding_box(mask)]
    assert cut_sides(tight, (3, 3, 3)) == ()
    assert cut_sides(tight & False, (3, 3, 3)) == ()
