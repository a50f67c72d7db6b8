# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.imaging.resampling import grid_of_spacing, resample_like, resample_to_spacing
from bmex_bids.interfaces.files import on_original_grid, with_codes_of


def centre_of(shape, affine):
    return nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)


@pytest.mark.parametrize("oblique", [0.0, 20.0])
@pytest.mark.parametrize(
    ("old", "spacing", "new"),
    [
        ((1.0, 1.0, 1.0), 0.8, (10, 12, 13)),  # 8, 9, 10 mm: 10, 11.25, 12.5 voxels
        ((1.0, 1.0, 1.0), 2.0, (4, 5, 5)),
        ((1.0, 1.0, 1.0), 1.0, (8, 9, 10)),
        ((0.8, 1.6, 2.4), 0.8, (8, 18, 30)),  # exact: nothing is added
        ((1.0, 1.0, 1.0), 100.0, (1, 1, 1)),
    ],
)
def test_the_new_grid_keeps_the_centre_and_rounds_up(old, spacing, new, oblique, make_image):
    image = make_image("LIA", (8, 9, 10), spacing=old, oblique=oblique)
    shape, affine = grid_of_spacing(image.shape, image.affine, spacing)
    assert shape == new
    assert_allclose(voxel_sizes(affine), spacing)
    assert_allclose(centre_of(shape, affine), centre_of(image.shape, image.affine), atol=1e-5)
    # the axes keep their directions
    assert_allclose(
        affine[:3, :3] / spacing,
        image.affine[:3, :3] / np.array(voxel_sizes(image.affine)),
        atol=1e-6,
    )


def test_a_rounding_error_adds_no_voxel():
    affine = np.diag([0.8000007, 0.79999626, 0.8, 1])
    assert grid_of_spacing((300, 300, 300), affine, 0.8)[0] == (300, 300, 300)


def test_the_original_affine_is_left_alone():
    affine = np.eye(4)
    grid_of_spacing((8, 8, 8), affine, 0.8)
    assert_array_equal(affine, np.eye(4))


@pytest.mark.parametrize("oblique", [0.0, 20.0])
def test_a_linear_ramp_is_resampled_exactly(oblique, make_image):
    image = make_image("PIR", (10, 11, 12), spacing=(1.0, 1.2, 1.5), oblique=oblique)
    ramp = ramp_on(image.shape, image.affine)
    image = make_image("PIR", spacing=(1.0, 1.2, 1.5), oblique=oblique, data=ramp)
    fine = resample_to_spacing(image, 0.7)
    expected = ramp_on(fine.shape, fine.affine)
    inner = (slice(2, -2),) * 3  # the outermost voxels reach beyond the old centres
    assert_allclose(fine.get_fdata()[inner], expected[inner], atol=1e-3)


def ramp_on(shape, affine):
    world = nib.affines.apply_affine(affine, np.indices(shape).reshape(3, -1).T)
    return (2 * world[:, 0] - 3 * world[:, 1] + 0.5 * world[:, 2] + 7).reshape(shape)


def test_doubling_by_hand():
    # centres 0, 1, 2, 3 become -0.25, 0.25, 0.75 ...; the ends repeat
    image = nib.Nifti1Image(np.tile(np.array([0, 4, 8, 4], np.float32), (2, 2, 1)), np.eye(4))
    fine = resample_to_spacing(image, 0.5)
    assert fine.shape == (4, 4, 8)
    assert_allclose(fine.get_fdata()[1, 1], [0, 1, 3, 5, 7, 7, 5, 4], atol=1e-5)


def test_same_spacing_is_the_same_image(make_image):
    image = make_image(spacing=(0.8, 0.8, 0.8000007))
    assert resample_to_spacing(image, 0.8) is image


def test_a_constant_stays_constant_to_the_edge():
    image = nib.Nifti1Image(np.full((8, 9, 10), 5, np.float32), np.diag([1.0, 1.0, 3.0, 1.0]))
    # 8 and 9 mm are whole numbers of 0.5 and 1.5 mm voxels only in part: rounded up, never beyond half a voxel
    for spacing in (0.5, 1.0, 2.0):
        assert_allclose(resample_to_spacing(image, spacing).get_fdata(), 5, atol=1e-5)


def test_outside_the_field_of_view_is_zero(make_image):
    image = make_image(data=np.ones((8, 8, 8)), origin=(0, 0, 0))
    shifted = np.eye(4)
    shifted[0, 3] = 6
    result = resample_like(image, ((8, 8, 8), shifted)).get_fdata()
    assert_allclose(result[:2], 1)
    assert_allclose(result[3:], 0)


def test_coarser_voxels_do_not_alias():
    # the finest stripes there are, 0 and 100 in turn: sampled at every second voxel without
    # smoothing they would be all black or all white
    stripes = np.zeros((40, 4, 4), np.float32)
    stripes[::2] = 100
    coarse = resample_to_spacing(nib.Nifti1Image(stripes, np.eye(4)), 4.0)
    assert_allclose(coarse.get_fdata()[2:-2], 50, atol=3)
    # an odd grid meets voxel centres exactly
    target = np.diag([2.0, 1.0, 1.0, 1.0])
    plain = resample_like(nib.Nifti1Image(stripes, np.eye(4)), ((20, 4, 4), target), order=0)
    assert_array_equal(plain.get_fdata(), 100)  # what order 0 does, as it says
    smooth = resample_like(nib.Nifti1Image(stripes, np.eye(4)), ((20, 4, 4), target), order=1)
    assert abs(smooth.get_fdata()[4:-4] - 50).max() < 20


def test_labels_stay_labels():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[3:6, 3:6, 3:6] = 7
    result = resample_to_spacing(nib.Nifti1Image(labels, np.eye(4)), 0.6, order=0)
    assert result.get_data_dtype() == np.uint8
    assert set(np.unique(result.get_fdata())) == {0, 7}
    # the middle of a block of 27 mm³ keeps its volume, give or take a layer
    assert result.get_fdata().astype(bool).sum() * 0.6**3 == pytest.approx(27, rel=0.4)


def test_there_and_back_is_close(head_phantom):
    brain = head_phantom(spacing=6.0, noise=0.0).brain
    back = resample_like(resample_to_spacing(brain, 3.0), brain)
    assert back.shape == brain.shape
    assert np.corrcoef(back.get_fdata().ravel(), brain.get_fdata().ravel())[0, 1] > 0.97


# ------------------------------------------------------------------ axes at right angles
def tilted(shear=0.0, degrees=0.0, noise=0.0, spacing=1.0):
    """An affine of axes that are turned, sheared and noisy, voxel → RAS+ mm."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    axes = np.array([[1, shear, -shear], [0, 1, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = spacing * about_x @ about_z @ axes
    affine[:3, :3] += np.random.default_rng(0).normal(0, noise, (3, 3))
    affine[:3, 3] = -20, 5, 30
    return affine


def itk_reads(image, path):
    nib.save(image, path)
    try:
        sitk.ReadImage(str(path))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("codes", [(0, 1), (1, 1), (1, 0), (2, 4)])  # qform, sform
@pytest.mark.parametrize("spacing", [1.0, 0.8])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("degrees", [0.0, 17.0])
@pytest.mark.parametrize("shear", [0.0, 1e-4, 2e-3, 1e-2, 0.1])
def test_itk_reads_what_is_resampled_and_what_is_on_the_grid_of_an_image_it_reads(
    shear, degrees, noise, spacing, codes, tmp_path
):
    affine = tilted(shear, degrees, noise, spacing)
    raw = nib.Nifti1Image(np.arange(8.0 * 9 * 10, dtype=np.float32).reshape(8, 9, 10), affine)
    raw.set_sform(affine, codes[1])
    raw.set_qform(affine, codes[0])
    source = tmp_path / "raw.nii"
    readable = itk_reads(raw, source)
    image = conform(load_image(source))
    res = with_codes_of(resample_to_spacing(image, 0.8), source)
    axes = res.affine[:3, :3] / np.array(voxel_sizes(res.affine))
    assert_allclose(axes.T @ axes, np.eye(3), atol=2e-6)
    assert itk_reads(res, tmp_path / "res.nii")
    native = on_original_grid(np.zeros(raw.shape), source, np.uint8)
    assert itk_reads(native, tmp_path / "native.nii") == readable


def test_a_sheared_image_lies_in_its_new_grid_and_at_its_place():
    shape = (20, 24, 30)
    image = nib.Nifti1Image(ramp_on(shape, tilted(0.1, 17)).astype(np.float32), tilted(0.1, 17))
    fine = resample_to_spacing(image, 0.8)
    corners = nib.affines.apply_affine(
        np.linalg.inv(fine.affine) @ image.affine,
        [np.array(c) * shape - 0.5 for c in np.ndindex(2, 2, 2)],
    )
    assert (corners >= -0.5 - 1e-6).all()
    assert (corners <= np.array(fine.shape) - 0.5 + 1e-6).all()
    inside = resample_like(nib.Nifti1Image(np.ones(shape, np.float32), image.affine), fine)
    deep = scipy.ndimage.binary_erosion(inside.get_fdata() > 0.999, iterations=3)
    assert_allclose(fine.get_fdata()[deep], ramp_on(fine.shape, fine.affine)[deep], atol=1e-2)


def test_a_shear_of_the_working_spacing_is_resampled_and_noise_of_the_affine_is_not():
    data = np.arange(8.0 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)
    sheared = nib.Nifti1Image(data, tilted(0.02, spacing=0.8))
    assert not np.array_equal(resample_to_spacing(sheared, 0.8).get_fdata(), data)
    noisy = nib.Nifti1Image(data, tilted(noise=1e-4, spacing=0.8))
    result = resample_to_spacing(noisy, 0.8)
    assert_array_equal(result.get_fdata(), data)
    assert_allclose(centre_of(data.shape, result.affine), centre_of(data.shape, noisy.affine))
