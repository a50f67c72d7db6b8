# SPDX-License-Identifier: Apache-2.0
"""Coil sensitivity maps: simulated by birdcage coils, or estimated from the centre of k-space."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.exceptions import EnvironmentProblem
from bmex_bids.recon.operators import centre_lines

Complex = NDArray[np.complex64]
#: of simulated coils, relative to half of the field of view
RADII = (1.2, 1.35, 1.5, 1.65, 1.8)
#: lines of the centre that ESPIRiT takes at most, and those below which it has too few equations
MOST_CALIBRATION, FEWEST_CALIBRATION = 24, 12
#: lines of the centre that low-resolution maps take at most
LOW_RESOLUTION = 32


def library(name: str) -> Any:
    """A module of the extra ``recon``; EnvironmentProblem says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise EnvironmentProblem(
            f"expected the package {name.split('.')[0]}, which is not installed; "
            "run: pip install 'bmex_bids[recon]'"
        ) from error


def birdcage(
    coils: int, shape: tuple[int, int], rng: np.random.Generator, *, spare: float = 0.25
) -> Complex:
    """Birdcage coils of one of :data:`RADII` about a random centre; their squares sum to 1.

    Parameters
    ----------
    coils, shape : R and (H, W) of the result (R, H, W)
    spare : share of a side by which the centre may be off
    """
    room = [int(n * spare) for n in shape]
    maps = _birdcage(coils, shape[0] + room[0], shape[1] + room[1], float(rng.choice(RADII)))
    y, x = (int(rng.integers(0, more + 1)) for more in room)
    return maps[:, y : y + shape[0], x : x + shape[1]]


@functools.lru_cache(maxsize=2 * len(RADII))
def _birdcage(coils: int, height: int, width: int, radius: float) -> Complex:
    maps = library("sigpy.mri").birdcage_maps((coils, height, width), r=radius)
    return normalised(maps)


def normalised(maps: NDArray[Any]) -> Complex:
    """Maps (R, H, W) whose squares sum to 1, or to 0 where all are 0."""
    total = np.sqrt((np.abs(maps) ** 2).sum(0))
    result: Complex = (maps / np.where(total > 0, total, 1)).astype(np.complex64)
    return result


def low_resolution(kspace: Complex, lines: int) -> Complex:
    """Coil images of the centre of k-space over their root sum of squares.

    Parameters
    ----------
    kspace : (R, H, W), of one slice
    lines : of the fully sampled centre
    """
    rows, columns = (_window(n, lines) for n in kspace.shape[1:])
    window = rows[:, None] * columns
    return normalised(centred_inverse(kspace * window))


def _window(length: int, lines: int) -> NDArray[np.float32]:
    """Hann window over the middle of a side."""
    size = max(min(lines, length, LOW_RESOLUTION), 2)
    window = np.zeros(length, dtype=np.float32)
    first = length // 2 - size // 2
    window[first : first + size] = np.hanning(size + 2)[1:-1]
    return window


def centred_transform(image: NDArray[Any], axes: tuple[int, ...] = (-2, -1)) -> NDArray[Any]:
    """Centred, orthonormal Fourier transform of an array."""
    shifted = np.fft.ifftshift(image, axes=axes)
    return np.fft.fftshift(np.fft.fftn(shifted, axes=axes, norm="ortho"), axes=axes)


def centred_inverse(kspace: NDArray[Any], axes: tuple[int, ...] = (-2, -1)) -> NDArray[Any]:
    """Centred, orthonormal inverse Fourier transform of an array."""
    shifted = np.fft.ifftshift(kspace, axes=axes)
    return np.fft.fftshift(np.fft.ifftn(shifted, axes=axes, norm="ortho"), axes=axes)


def espirit(kspace: Complex, lines: int) -> Complex:
    """ESPIRiT maps of one slice (R, H, W) by sigpy; 0 where there is no signal.

    Uecker et al., Magn. Reson. Med. 71:990-1001 (2014).
    """
    width = min(MOST_CALIBRATION, lines, *kspace.shape[1:])
    maps = library("sigpy.mri.app").EspiritCalib(
        kspace, calib_width=width, crop=0.8, max_iter=30, show_pbar=False
    )
    return np.asarray(maps.run(), dtype=np.complex64)


def estimated(kspace: Complex, mask: NDArray[np.bool_]) -> tuple[Complex, str]:
    """Maps of one slice and the name of their method.

    ESPIRiT where the centre has :data:`FEWEST_CALIBRATION` lines, else low-resolution maps.
    """
    lines = centre_lines(mask)
    if len(kspace) > 1 and lines >= FEWEST_CALIBRATION:
        return espirit(kspace, lines), "ESPIRiT"
    return low_resolution(kspace, max(lines, 2)), "low resolution"
