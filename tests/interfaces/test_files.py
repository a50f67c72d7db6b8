# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.interfaces.files import on_original_grid, voxel_count


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
