# SPDX-License-Identifier: Apache-2.0
"""Raw data as scanners would give them, of a volume that a test knows."""

from __future__ import annotations

import numpy as np

HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <acquisitionSystemInformation><systemVendor>Vendor</systemVendor>
  <systemFieldStrength_T>2.9</systemFieldStrength_T></acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz>
 </experimentalConditions>
 <encoding>
  <encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
   <fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{rx}</x><y>{y}</y><z>{z}</z></matrixSize>
   <fieldOfView_mm><x>{frx}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm></reconSpace>
  <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>
   <center>{centre}</center></kspace_encoding_step_1></encodingLimits>
  <trajectory>{trajectory}</trajectory>
 </encoding>
 <sequenceParameters><TR>500</TR><TE>10</TE><flipAngle_deg>70</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>"""


def header(rows, columns, spacing, *, oversampled=2, trajectory="cartesian", partitions=1):
    """The ISMRMRD header of a scan whose readout is oversampled."""
    return HEADER.format(
        x=rows * oversampled, y=columns, rx=rows,
        fx=rows * oversampled * spacing[0], frx=rows * spacing[0], fy=columns * spacing[1],
        fz=spacing[2] * partitions, z=partitions, last=columns - 1, centre=columns // 2, trajectory=trajectory,
    )  # fmt: skip


def measured(volume, coils=4, *, oversampled=2, seed=0):
    """k-space (slices, R, H, W) of a volume (rows, columns, slices) under smooth coils."""
    rows, columns, _ = volume.shape
    height = rows * oversampled
    padded = np.zeros((volume.shape[2], height, columns))
    first = height // 2 - rows // 2
    padded[:, first : first + rows] = np.moveaxis(volume, -1, 0)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : columns * 1j]
    angles = 2 * np.pi * np.arange(coils) / coils
    maps = np.stack(
        [np.exp(-((x - np.cos(a)) ** 2 + (y - np.sin(a)) ** 2) + 1j * a) for a in angles]
    )
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    image = maps * padded[:, None]
    shifted = np.fft.ifftshift(image, axes=(-2, -1))
    kspace = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1))
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, *kspace.shape)) * 1e-3 * padded.max()
    return (kspace + noise[0] + 1j * noise[1]).astype(np.complex64)


def write_fastmri(path, kspace, xml=None):
    """A file in the layout of fastMRI."""
    import h5py

    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if xml is not None:
            file["ismrmrd_header"] = xml.encode()
    return path


def write_ismrmrd(path, kspace, xml, spacing, *, lines=None, order=None, **more):
    """A file in the layout of ISMRMRD: axial slices, rows to posterior, columns to the left.

    ``more`` sets counters; ``volume=True`` writes the slices as partitions, which are k-space;
    ``cut=N`` leaves out the first N samples of each readout.
    """
    import ismrmrd

    volume, cut = more.pop("volume", False), more.pop("cut", 0)
    slices, _, height, columns = kspace.shape
    with ismrmrd.Dataset(str(path), create_if_needed=True) as file:
        file.write_xml_header(xml.encode())
        for k in order or range(slices):
            for column in range(columns) if lines is None else np.flatnonzero(lines):
                line = ismrmrd.Acquisition.from_array(
                    np.ascontiguousarray(kspace[k, :, cut:, column]),
                    center_sample=height // 2 - cut,
                    position=(1.0, 2.0, 3.0 + k * spacing[2] * (not volume)),
                    read_dir=(0.0, 1.0, 0.0), phase_dir=(1.0, 0.0, 0.0), slice_dir=(0.0, 0.0, 1.0),
                )  # fmt: skip
                line.idx.slice = 0 if volume else k
                line.idx.kspace_encode_step_2 = k if volume else 0
                line.idx.kspace_encode_step_1 = int(column)
                for name, value in more.items():
                    setattr(line.idx, name, value)
                file.append_acquisition(line)
    return path
