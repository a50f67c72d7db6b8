# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from bmex_bids.imaging.orientation import conform, load_image
from bmex_bids.imaging.resampling import resample_to_spacing
from bmex_bids.interfaces.files import on_original_grid, voxel_count, with_codes_of


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (4, 2), (0, 0)])
@pytest.mark.parametrize("orientation", ["LAS", "PIR", "RAS"])
def test_a_result_keeps_qform_and_sform_with_their_codes(make_image, tmp_path, codes, orientation):
    image = make_image(orientation, (4, 5, 6), "int16", spacing=(1, 2, 3), oblique=10)
    image.set_qform(image.affine if codes[0] else None, codes[0])
    image.set_sform(image.affine if codes[1] else None, codes[1])
    image.header["descrip"] = b"scanned somewhere"
    nib.save(image, tmp_path / "raw.nii.gz")
    raw = nib.load(tmp_path / "raw.nii.gz")

    nib.save(
        on_original_grid(np.full((4, 5, 6), 0.5), tmp_path / "raw.nii.gz", np.float32),
        tmp_path / "result.nii.gz",
    )

    result = nib.load(tmp_path / "result.nii.gz")
    np.testing.assert_array_equal(result.affine, raw.affine)
    for key in ("qform_code", "sform_code", "pixdim", "quatern_b", "srow_x", "qoffset_z"):
        np.testing.assert_array_equal(result.header[key], raw.header[key], err_msg=key)
    assert result.get_data_dtype() == np.float32
    assert result.get_fdata().max() == 0.5
    assert bytes(result.header["descrip"]).strip(b"\0") == b""


SHAPE = (8, 9, 10)


def place_in_itk(path, index):
    """Where ITK puts a voxel, RAS mm."""
    return np.array(sitk.ReadImage(str(path)).TransformContinuousIndexToPhysicalPoint(index)) * [
        -1,
        -1,
        1,
    ]


def other_forms():
    """Affines that a qform may hold beside an sform of 1, 1.2 and 2 mm, by name."""
    sform = np.eye(4)
    sform[:3, :3] = Rotation.from_euler("xz", [12, -7], degrees=True).as_matrix()
    sform[:3, :3] *= 1, 1.2, 2
    sform[:3, 3] = -60, 20, 5
    nearly, moved, sizes, turned, flipped, sheared = (sform.copy() for _ in range(6))
    nearly[:3, 3] += 0.3
    moved[:3, 3] += 0, 30, 0
    sizes[:3, :3] *= 1.5
    turned[:3, :3] = Rotation.from_euler("y", 90, degrees=True).as_matrix() @ sform[:3, :3]
    flipped[0] *= -1
    sheared[0, 1] += 0.02
    return sform, {
        "same": sform,
        "nearly": nearly,
        "moved": moved,
        "other sizes": sizes,
        "turned": turned,
        "mirrored": flipped,
        "sheared": sheared,
    }


@pytest.mark.parametrize("codes", [(2, 2), (1, 1), (1, 4), (3, 2), (0, 2), (1, 0)])  # qform, sform
@pytest.mark.parametrize("name", other_forms()[1])
def test_all_programs_find_a_result_at_the_place_of_the_affine(name, codes, tmp_path):
    """nibabel reads the sform first, ITK now the one and now the other, viewers the voxel sizes."""
    sform, forms = other_forms()
    raw = nib.Nifti1Image(np.arange(720, dtype=np.int16).reshape(SHAPE), sform)
    if name == "sheared":  # here it is the sform that no rigid grid can say
        raw.set_sform(forms[name], codes[1])
        raw.set_qform(sform, codes[0])
    else:
        raw.set_sform(sform, codes[1])
        raw.set_qform(forms[name], codes[0])
    raw.header["pixdim"][1:4] = nib.affines.voxel_sizes(forms[name])
    source = tmp_path / "raw.nii"
    nib.save(raw, source)

    nib.save(on_original_grid(np.zeros(SHAPE), source, np.uint8), tmp_path / "native.nii")
    image = resample_to_spacing(conform(load_image(source)), 0.8)
    nib.save(with_codes_of(image, source), tmp_path / "res.nii")

    affine = nib.load(source).affine
    native, res = nib.load(tmp_path / "native.nii"), nib.load(tmp_path / "res.nii")
    np.testing.assert_array_equal(native.affine, affine)
    centre = (np.array(SHAPE) - 1) / 2
    for file in (native, res):
        qform, sform = file.get_qform(coded=True)[0], file.get_sform(coded=True)[0]
        if qform is not None and sform is not None:
            middle = (np.array(file.shape) - 1) / 2
            there = [nib.affines.apply_affine(form, middle) for form in (qform, sform)]
            np.testing.assert_allclose(*there, atol=1e-2)
        np.testing.assert_allclose(
            file.header.get_zooms(), nib.affines.voxel_sizes(file.affine), rtol=1e-4
        )
    true_place = nib.affines.apply_affine(affine, centre)
    middle = (np.array(res.shape) - 1) / 2
    np.testing.assert_allclose(place_in_itk(tmp_path / "res.nii", middle), true_place, atol=0.01)
    if name == "sheared" and codes == (0, 2):
        return  # ITK refuses the raw image, too
    np.testing.assert_allclose(
        place_in_itk(tmp_path / "native.nii", centre), true_place, atol=0.01
    )
    corner = nib.affines.apply_affine(affine, [0, 0, 0])
    far = 0.5 if name == "sheared" else 0.01
    np.testing.assert_allclose(place_in_itk(tmp_path / "native.nii", [0.0] * 3), corner, atol=far)


def test_a_qform_that_makes_no_sense_is_replaced_by_the_sform(make_image, tmp_path):
    image = make_image("RAS", (4, 5, 6), "int16", oblique=10)
    nib.save(image, tmp_path / "raw.nii")
    contents = bytearray((tmp_path / "raw.nii").read_bytes())
    contents[256:268] = np.array([3, 4, 5], "<f4").tobytes()  # quaternions longer than 1
    (tmp_path / "raw.nii").write_bytes(contents)
    result = on_original_grid(np.zeros((4, 5, 6)), tmp_path / "raw.nii", np.uint8)
    np.testing.assert_allclose(result.header.get_qform(), image.affine, atol=1e-5)


def test_a_result_of_a_scaled_image_is_not_scaled(make_image, tmp_path):
    image = make_image("LPS", (4, 5, 6), "float64")
    image.header.set_data_dtype("int16")  # nibabel scales on saving
    nib.save(image, tmp_path / "raw.nii.gz")
    result = on_original_grid(np.ones((4, 5, 6)), tmp_path / "raw.nii.gz", np.uint8)
    nib.save(result, tmp_path / "result.nii.gz")
    assert set(np.unique(np.asanyarray(nib.load(tmp_path / "result.nii.gz").dataobj))) == {1}


def test_voxels_are_counted_at_the_finer_grid(make_image, tmp_path):
    make_image("LPS", (10, 10, 10), spacing=(2, 2, 2), path="coarse.nii.gz")
    assert voxel_count(tmp_path / "coarse.nii.gz", 1.0) == 8000
    assert voxel_count(tmp_path / "coarse.nii.gz", 4.0) == 1000


def test_voxels_of_a_broken_file_cannot_be_counted(tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"nonsense")
    assert voxel_count(tmp_path / "broken.nii.gz", 1.0) is None
    assert voxel_count(tmp_path / "absent.nii.gz", 1.0) is None
