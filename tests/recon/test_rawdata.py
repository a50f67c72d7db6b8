# SPDX-License-Identifier: Apache-2.0
import nibabel as nib
import numpy as np
import pytest
from kspace import header, measured, write_fastmri, write_ismrmrd

from bmex_bids.exceptions import ImageError
from bmex_bids.recon.classical import METHODS
from bmex_bids.recon.coils import FEWEST_CALIBRATION, estimated, normalised
from bmex_bids.recon.operators import line_mask
from bmex_bids.recon.rawdata import RawData, read
from bmex_bids.recon.reconstruct import reconstruct

for _name in ("h5py", "ismrmrd", "sigpy"):
    pytest.importorskip(_name)

SPACING = (1.5, 1.25, 3.0)
ROWS, COLUMNS, SLICES = 20, 24, 3


@pytest.fixture(scope="module")
def volume():
    """Rows to posterior, columns to the left: a ball with a corner that no flip keeps."""
    y, x, z = np.indices((ROWS, COLUMNS, SLICES))
    ball = ((y - 10) / 8) ** 2 + ((x - 12) / 9) ** 2 < 1
    return ball * (50.0 + 10 * z) + 60.0 * ((y < 8) & (x > 14) & ball)


@pytest.fixture(scope="module")
def kspace(volume):
    return measured(volume)


def test_fastmri_gives_the_image_its_voxels_and_its_facts(tmp_path, volume, kspace):
    path = write_fastmri(tmp_path / "a.h5", kspace, header(ROWS, COLUMNS, SPACING))
    raw = read(path)
    assert (raw.shape, raw.mask.all(), raw.assumed) == ((ROWS, COLUMNS), True, True)
    assert nib.affines.voxel_sizes(raw.affine) == pytest.approx(SPACING)
    assert nib.aff2axcodes(raw.affine) == ("P", "L", "S")
    assert raw.facts == {
        "Manufacturer": "Vendor", "MagneticFieldStrength": pytest.approx(2.9),
        "RepetitionTime": 0.5, "EchoTime": 0.01, "FlipAngle": 70,
    }  # fmt: skip
    done = reconstruct(raw, "zero-filled")
    assert np.allclose(done.image.get_fdata() / done.factor, volume, atol=2)


def test_ismrmrd_says_where_the_slices_lie(tmp_path, volume, kspace):
    xml = header(ROWS, COLUMNS, SPACING)
    path = write_ismrmrd(tmp_path / "a.h5", kspace, xml, SPACING, order=[2, 0, 1])
    raw = read(path)
    assert np.allclose(raw.kspace, kspace)
    assert not raw.assumed
    assert nib.affines.voxel_sizes(raw.affine) == pytest.approx(SPACING)
    # the middle voxel lies at the position of the first slice, LPS there and RAS here
    centre = raw.affine @ (ROWS // 2, COLUMNS // 2, 0, 1)
    assert centre[:3] == pytest.approx((-1, -2, 3))
    assert nib.aff2axcodes(raw.affine) == ("P", "L", "S")


def test_ismrmrd_fills_lines_that_were_not_measured_with_zeros(tmp_path, kspace):
    lines = line_mask(COLUMNS, 2, 0.3, np.random.default_rng(0))
    xml = header(ROWS, COLUMNS, SPACING)
    raw = read(write_ismrmrd(tmp_path / "a.h5", kspace, xml, SPACING, lines=lines))
    assert (raw.mask == lines).all()
    assert raw.acceleration == pytest.approx(2)
    assert np.allclose(raw.kspace, kspace * lines)


def test_partitions_of_a_volume_become_slices(tmp_path, volume, kspace):
    spectrum = np.fft.fftshift(
        np.fft.fft(np.fft.ifftshift(kspace, axes=0), axis=0, norm="ortho"), axes=0
    ).astype(np.complex64)
    xml = header(ROWS, COLUMNS, SPACING, partitions=SLICES)
    path = write_ismrmrd(tmp_path / "a.h5", spectrum, xml, SPACING, volume=True)
    raw = read(path)
    assert np.allclose(raw.kspace, kspace, atol=1e-3)
    assert nib.affines.voxel_sizes(raw.affine) == pytest.approx(SPACING)
    middle = raw.affine @ (ROWS // 2, COLUMNS // 2, SLICES // 2, 1)
    assert middle[:3] == pytest.approx((-1, -2, 3))
    few = write_ismrmrd(tmp_path / "b.h5", spectrum, xml, SPACING, volume=True, order=[0, 1])
    with pytest.raises(ImageError, match="expected all partitions"):
        read(few)


def test_an_asymmetric_echo_keeps_the_centre_and_repeats_are_averaged(tmp_path, kspace):
    xml = header(ROWS, COLUMNS, SPACING)
    path = write_ismrmrd(tmp_path / "a.h5", kspace, xml, SPACING, cut=6)
    write_ismrmrd(path, 3 * kspace, xml, SPACING, cut=6, average=1)
    raw = read(path)
    assert np.allclose(raw.kspace[:, :, 6:], 2 * kspace[:, :, 6:], rtol=1e-5)
    assert not raw.kspace[:, :, :6].any()


def test_what_is_no_single_cartesian_image_is_refused(tmp_path, kspace):
    xml = header(ROWS, COLUMNS, SPACING, trajectory="spiral")
    with pytest.raises(ImageError, match="expected Cartesian sampling"):
        read(write_ismrmrd(tmp_path / "a.h5", kspace[:1], xml, SPACING))
    xml = header(ROWS, COLUMNS, SPACING)
    path = write_ismrmrd(tmp_path / "b.h5", kspace[:1], xml, SPACING)
    write_ismrmrd(path, kspace[:1], xml, SPACING, contrast=1)
    with pytest.raises(ImageError, match="one contrast"):
        read(path)
    with pytest.raises(ImageError, match="expected an HDF5 file"):
        read(tmp_path / "none.h5")
    with pytest.raises(ImageError, match="not all of them zero"):
        read(write_fastmri(tmp_path / "c.h5", 0 * kspace))
    with pytest.raises(ImageError, match="expected complex k-space"):
        read(write_fastmri(tmp_path / "d.h5", np.abs(kspace)))


def test_few_lines_in_the_centre_get_maps_of_low_resolution(kspace):
    lines = np.zeros(COLUMNS, dtype=bool)
    lines[COLUMNS // 2 - 3 : COLUMNS // 2 + 3] = True
    assert FEWEST_CALIBRATION > 6
    maps, how = estimated(kspace[1] * lines, lines)
    assert how == "low resolution"
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-4)
    full, how = estimated(kspace[1], np.ones(COLUMNS, dtype=bool))
    assert how == "ESPIRiT"
    inside = np.abs(full).sum(0) > 0
    assert inside.mean() > 0.2
    truth = normalised(measured(np.ones((ROWS, COLUMNS, 1)))[0])
    assert truth.shape == full.shape


@pytest.mark.parametrize("method", ["sense", "wavelet"])
def test_the_classical_methods_undo_what_sampling_did(volume, kspace, method):
    lines = line_mask(COLUMNS, 2, 0.5, np.random.default_rng(3))
    raw = RawData(kspace[:1] * lines, lines, (ROWS, COLUMNS), np.eye(4), True)

    def error(name):
        done = reconstruct(raw, name)
        return np.abs(done.image.get_fdata()[..., 0] / done.factor - volume[..., 0]).mean()

    assert error(method) < 0.8 * error("zero-filled")
    assert set(METHODS) == {"zero-filled", "sense", "wavelet"}
