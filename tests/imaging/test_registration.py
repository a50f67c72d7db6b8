# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk
import template_home

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.registration import (
    bring,
    inverse_of,
    points_of,
    register,
    to_itk,
    write_transform,
)


@pytest.fixture(scope="module")
def template():
    return template_home.shrunk(4)


def masked(image):
    return nib.Nifti1Image((np.asarray(image.dataobj) > 20).astype(np.uint8), image.affine)


def moved(image, degrees, size, shift):
    """The same voxels on a grid that is turned, scaled and shifted in the world."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    affine = turn @ np.diag([size, size, size, 1.0]) @ image.affine
    affine[:3, 3] += shift
    return nib.Nifti1Image(np.asarray(image.dataobj), affine)


@pytest.mark.parametrize("same_contrast", [True, False])
def test_a_turned_and_smaller_brain_comes_back_onto_its_template(template, same_contrast):
    subject = moved(template, 12, 0.7, (20, -15, 8))
    found = register(
        template, masked(template), subject, masked(subject), same_contrast=same_contrast
    )
    assert found.overlap > 0.97
    assert found.folded < 0.002
    there = bring(subject, template, points_of(found.transform, template), order=3)
    inside = np.asarray(masked(template).dataobj) > 0
    assert np.corrcoef(there[inside], np.asarray(template.dataobj)[inside])[0, 1] > 0.93
    corner = np.array(template.affine[:3, 3])
    wanted = (subject.affine @ np.linalg.inv(template.affine) @ np.append(corner * 0.3, 1))[:3]
    lps = np.array(found.transform.TransformPoint((corner * 0.3 * [-1, -1, 1]).tolist()))
    np.testing.assert_allclose(lps * [-1, -1, 1], wanted, atol=3.0)


def test_a_transform_is_read_by_itk_again(template, tmp_path):
    subject = moved(template, 5, 0.9, (0, 0, 0))
    found = register(template, masked(template), subject, masked(subject))
    read = sitk.ReadTransform(write_transform(found.transform, tmp_path / "xfm.h5"))
    point = (10.0, 20.0, 30.0)
    assert read.TransformPoint(point) == pytest.approx(found.transform.TransformPoint(point))


@pytest.mark.parametrize("same_contrast", [True, False])
def test_there_and_back_every_point_of_the_brain_is_where_it_was(
    template, tmp_path, same_contrast
):
    """The subject is bent, so that the field is not next to nothing."""
    places = np.indices(template.shape).astype(float)
    places[0] += 2 * np.sin(places[1] / 6)
    data = scipy.ndimage.map_coordinates(np.asarray(template.dataobj, float), places, order=1)
    subject = moved(nib.Nifti1Image(data, template.affine), 8, 0.8, (10, -5, 8))
    found = register(
        template, masked(template), subject, masked(subject), same_contrast=same_contrast
    )
    back = sitk.ReadTransform(write_transform(inverse_of(found.transform), tmp_path / "from.h5"))
    inside = np.argwhere(np.asarray(masked(template).dataobj) > 0)[::97]
    points = nib.affines.apply_affine(template.affine, inside) * [-1, -1, 1]
    there = [found.transform.TransformPoint(point.tolist()) for point in points]
    again = np.array([back.TransformPoint(point) for point in there])
    away = np.linalg.norm(again - points, axis=1)
    assert np.linalg.norm(np.array(there) - points, axis=1).mean() > 5
    assert np.median(away) < 0.1
    assert np.quantile(away, 0.99) < 1.0
    if same_contrast:  # without the field's inverse it would not come back
        affine = found.transform.GetNthTransform(0).GetInverse()
        straight = np.array([affine.TransformPoint(point) for point in there])
        assert np.median(np.linalg.norm(straight - points, axis=1)) > 0.5


def test_points_of_nothing_moved_are_those_of_the_grid(make_image):
    grid = make_image("PIR", (5, 6, 7), spacing=(2, 1, 3), oblique=15)
    points = points_of(sitk.Transform(3, sitk.sitkIdentity), grid)
    np.testing.assert_allclose(bring(grid, grid, points, order=1), grid.get_fdata(), atol=0.01)


def test_a_coarser_grid_gets_means_not_samples(make_image):
    checks = np.indices((16, 16, 16)).sum(axis=0) % 2 * 100.0
    fine = make_image("RAS", data=checks, spacing=(1, 1, 1), origin=(0, 0, 0))
    coarse = make_image("RAS", (4, 4, 4), spacing=(4, 4, 4), origin=(1, 1, 1))
    points = points_of(sitk.Transform(3, sitk.sitkIdentity), coarse)
    there = bring(fine, coarse, points, order=1)
    np.testing.assert_allclose(there[1:3, 1:3, 1:3], 50, atol=10)


def test_what_cannot_be_registered_is_refused(template):
    empty = nib.Nifti1Image(np.zeros(template.shape, np.uint8), template.affine)
    with pytest.raises(ImageError, match="an empty mask"):
        register(template, masked(template), template, empty)
    affine = template.affine.copy()
    affine[0, 1] = 2.0
    with pytest.raises(ImageError, match="sheared"):
        to_itk(nib.Nifti1Image(np.asarray(template.dataobj), affine))
