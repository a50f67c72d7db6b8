# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.orientation import conform, load_image
from bmex_bids.imaging.storing import in_sixteen_bits, store_like


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "ASL"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_an_unchanged_image_comes_back_as_it_was(make_image, tmp_path, orientation, dtype):
    path = tmp_path / "in.nii.gz"
    data = np.arange(720).reshape(8, 9, 10) % 200
    make_image(orientation, dtype=dtype, data=data, oblique=9.0, path=path)
    source = nib.load(path)
    values = np.asarray(conform(load_image(path)).dataobj)
    again, cut = store_like(values, source)
    assert cut == 0
    assert again.to_bytes() == source.to_bytes()


def test_whole_numbers_are_rounded_and_cut_off(make_image, tmp_path):
    source = make_image("LPS", dtype="uint8", path=tmp_path / "in.nii")
    values = np.full(source.shape, 7.6, np.float32)
    values[0, 0, :3] = [-3, 300, 255.4]
    image, cut = store_like(values, source)
    assert cut == 2
    assert_array_equal(np.asarray(image.dataobj)[0, 0, :4], [0, 255, 255, 8])


def test_another_grid_is_refused(make_image, tmp_path):
    source = make_image("RAS", path=tmp_path / "in.nii")
    with pytest.raises(ImageError, match=r"\(8, 9, 10\)"):
        store_like(np.zeros((8, 9, 11), np.float32), source)


@pytest.mark.parametrize(("low", "high"), [(0, 1234.5), (-2000, 500), (0, 0)])
def test_sixteen_bits_keep_zeros_and_lose_a_little(tmp_path, low, high):
    rng = np.random.default_rng(0)
    data = rng.uniform(low, high, (6, 7, 8)).astype(np.float32)
    data[:2] = 0
    affine = np.diag([-0.4, -0.4, 0.4, 1])
    nib.save(in_sixteen_bits(data, affine), tmp_path / "x.nii.gz")
    again = nib.load(tmp_path / "x.nii.gz")
    assert again.get_data_dtype() == np.int16
    assert np.allclose(again.affine, affine)
    values = again.get_fdata()
    assert not values[:2].any()
    assert np.abs(values - data).max() <= 0.51 * np.abs(data).max() / 32767 + 1e-9
