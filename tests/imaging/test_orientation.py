# SPDX-License-Identifier: Apache-2.0
import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.imaging.resampling import resample_like

#: 6 orders of the axes, 8 signs each
ORIENTATIONS = [
    "".join(axes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for axes in itertools.product(*order)
]


@pytest.mark.parametrize("oblique", [0.0, 15.0])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_comes_to_lps_and_back(orientation, oblique, make_image):
    image = make_image(orientation, (8, 9, 10), spacing=(1.0, 1.5, 2.0), oblique=oblique)
    working = conform(image)
    assert nib.aff2axcodes(working.affine) == ("L", "P", "S")
    # a marker's place in the world, before and after; all voxels differ, so that 345 is one voxel
    before = nib.affines.apply_affine(image.affine, np.argwhere(image.get_fdata() == 345)[0])
    after = nib.affines.apply_affine(working.affine, np.argwhere(working.get_fdata() == 345)[0])
    assert_allclose(after, before, atol=1e-5)

    back = resample_like(working, image)
    assert_array_equal(back.get_fdata(), image.get_fdata())
    assert_array_equal(back.affine, image.affine)
    for order in (0, 3):
        assert_allclose(
            resample_like(working, image, order=order).get_fdata(), image.get_fdata(), atol=1e-3
        )


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


def test_an_oblique_grid_stays_oblique(make_image):
    image = make_image("RAS", oblique=15.0)
    assert np.count_nonzero(np.abs(conform(image).affine[:3, :3]) > 1e-6) > 3


def test_las_by_hand(make_image):
    # LPS+ differs from LAS+ in the second axis: it is turned round, and its origin moves to the end
    image = make_image("LAS", (8, 9, 10), spacing=(1, 2, 3), origin=(0, 0, 0))
    working = conform(image)
    assert_array_equal(working.get_fdata(), image.get_fdata()[:, ::-1])
    assert_array_equal(working.affine, [[-1, 0, 0, 7], [0, -2, 0, 16], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert voxel_sizes(working.affine) == (1, 2, 3)


# ------------------------------------------------------------------ reading
def test_a_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"no\.nii\.gz, found none; check the path"):
        load_image(tmp_path / "no.nii.gz")


def test_a_dangling_link_is_a_matter_for_datalad(tmp_path):
    link = tmp_path / "sub-01_T1w.nii.gz"
    link.symlink_to(tmp_path / ".git" / "annex" / "objects" / "MD5E-1")
    with pytest.raises(ImageError, match="datalad get"):
        load_image(link)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off(share, make_image, tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (12, 12, 12))
    make_image(data=noise, dtype="int16", path="whole.nii.gz")
    contents = (tmp_path / "whole.nii.gz").read_bytes()
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(contents[: int(share * len(contents))])
    with pytest.raises(ImageError, match=r"cut\.nii\.gz.*damaged(,| or) cut off"):
        load_image(cut)


def test_a_file_with_a_flipped_byte(make_image, tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (12, 12, 12))
    make_image(data=noise, dtype="int16", path="whole.nii.gz")
    contents = bytearray((tmp_path / "whole.nii.gz").read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(contents)
    with pytest.raises(ImageError, match="damaged"):
        load_image(bad)


def test_an_uncompressed_file_that_was_cut_off(make_image, tmp_path):
    make_image(path="whole.nii")
    cut = tmp_path / "cut.nii"
    cut.write_bytes((tmp_path / "whole.nii").read_bytes()[:1000])
    with pytest.raises(ImageError, match="damaged or cut off"):
        load_image(cut)


@pytest.mark.parametrize("contents", [b"", b"hello", gzip.compress(b"hello", mtime=0)])
def test_what_is_no_image(contents, tmp_path):
    path = tmp_path / "no_image.nii.gz"
    path.write_bytes(contents)
    with pytest.raises(ImageError, match="no_image"):
        load_image(path)


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path / "folder.nii.gz")


def test_several_volumes_are_refused(make_image, tmp_path):
    make_image(data=np.ones((8, 8, 8, 3)), path="bold.nii.gz")
    with pytest.raises(
        ImageError, match=r"three-dimensional image in bold.nii.gz, got shape \(8, 8, 8, 3\)"
    ):
        load_image(tmp_path / "bold.nii.gz")


def test_a_single_slice_is_refused(tmp_path):
    slice_ = np.arange(100, dtype=np.int16).reshape(10, 10)
    nib.save(nib.Nifti1Image(slice_, np.eye(4)), tmp_path / "slice.nii.gz")
    with pytest.raises(ImageError, match="three-dimensional"):
        load_image(tmp_path / "slice.nii.gz")


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_trailing_axes_of_one_are_dropped(extra, make_image, tmp_path):
    data = np.arange(8 * 9 * 10).reshape(8, 9, 10)
    make_image(data=data.reshape(data.shape + extra), path="image.nii.gz")
    image = load_image(tmp_path / "image.nii.gz")
    assert_array_equal(image.get_fdata(), data)
    assert image.get_data_dtype() == np.float32


def test_nan_and_infinity_are_counted(make_image, tmp_path):
    data = np.arange(512.0).reshape(8, 8, 8)
    data[0, 0, :2] = np.nan
    data[1, 1, 1] = np.inf
    make_image(data=data, path="nan.nii.gz")
    with pytest.raises(ImageError, match="got 3 voxels that are NaN or infinite"):
        load_image(tmp_path / "nan.nii.gz")


@pytest.mark.parametrize(
    ("value", "what"), [(0, "zero everywhere"), (7, "the constant 7 everywhere")]
)
def test_a_constant_image_is_refused(value, what, make_image, tmp_path):
    make_image(data=np.full((8, 8, 8), value), path="flat.nii.gz")
    with pytest.raises(ImageError, match=what):
        load_image(tmp_path / "flat.nii.gz")


def test_a_tiny_image_is_refused_and_the_smallest_is_not(make_image, tmp_path):
    make_image(shape=(8, 7, 8), path="tiny.nii.gz")
    make_image(shape=(8, 8, 8), path="small.nii.gz")
    with pytest.raises(ImageError, match=r"at least 8 voxels.*\(8, 7, 8\)"):
        load_image(tmp_path / "tiny.nii.gz")
    assert load_image(tmp_path / "small.nii.gz").shape == (8, 8, 8)


def test_complex_numbers_and_colours_are_refused(make_image, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.complex64), np.eye(4)), tmp_path / "k.nii.gz")
    colours = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii.gz")
    for name in ("k", "rgb"):
        with pytest.raises(ImageError, match="expected real numbers"):
            load_image(tmp_path / f"{name}.nii.gz")


BROKEN = {
    "zero": np.diag([0.0, 0, 0, 1]),
    "flat": np.array([[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]),
    "metres": np.diag([0.001, 0.001, 0.001, 1]),
    "micrometres": np.diag([1000.0, 1000, 1000, 1]),
    "nan": np.diag([np.nan, 1, 1, 1]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_affine_that_cannot_be(name, tmp_path):
    path = tmp_path / "broken.nii"
    nib.save(nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)), path)
    contents = bytearray(path.read_bytes())
    contents[280:328] = BROKEN[name][:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(contents)
    with pytest.raises(ImageError, match=r"expected an affine with voxels of 0\.05 to 20 mm"):
        load_image(path)


def test_slope_and_intercept_are_honoured(tmp_path):
    stored = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    image.header.set_data_dtype("int16")
    path = tmp_path / "scaled.nii"
    image.to_filename(path)
    # whatever nibabel made of it, the file's own words are what counts
    contents = bytearray(path.read_bytes())
    contents[112:120] = np.array([0.5, 10], "<f4").tobytes()
    contents[352:] = stored.tobytes(order="F")
    path.write_bytes(contents)
    assert_allclose(load_image(path).get_fdata(), 0.5 * stored + 10)
