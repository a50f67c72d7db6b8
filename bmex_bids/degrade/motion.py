# SPDX-License-Identifier: Apache-2.0
"""Rigid head motion, seen by a 3-D scan that fills k-space plane by plane.

A three-dimensional MPRAGE-like scan acquires, in each repetition, every sample that shares one
index along the phase-encoding axis.  All of those see the head in one pose, so motion is a pose a
phase-encoding index ("line"), and a degraded image is put together from lines of k-space of the
head in its different poses.

* A translation multiplies k-space by a phase ramp (the Fourier shift theorem): exact.
* A rotation is three shears, each a phase ramp along one axis: band-limited, no interpolation
  blur, and the total energy stays.

Only a finite number of different rotations is computed (``max_rotations``); each line takes the
nearest one.  Translations are exact for each line.

Time runs along the phase-encoding axis from the most negative frequency to the most positive
(linear ordering), so the centre of k-space, which holds contrast and position, lies in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Trajectory:
    """The pose of the head at each phase-encoding line.

    Attributes
    ----------
    translations : (n_lines, 3) array, mm along the array's axes
    rotations : (n_lines, 3) array, degrees about the array's axes, through the volume's centre
    """

    translations: NDArray[np.float64]
    rotations: NDArray[np.float64]

    def centred(self) -> Trajectory:
        """The same motion, with the mean pose of the central eighth of k-space taken as rest.

        Without this, motion during the centre of k-space would shift the whole image, and a
        degraded
        image and its clean original would not lie on top of each other.
        """
        n = len(self.translations)
        half = max(n // 16, 1)
        middle = slice(max(n // 2 - half, 0), n // 2 + half + 1)
        return Trajectory(
            self.translations - self.translations[middle].mean(axis=0),
            self.rotations - self.rotations[middle].mean(axis=0),
        )


def periodic(
    n_lines: int,
    amplitude: NDArray[np.float64],
    frequency: float,
    phase: float,
) -> Trajectory:
    """Sinusoidal motion (breathing, nodding).

    Parameters
    ----------
    n_lines : number of phase-encoding lines
    amplitude : 6 numbers, three translations in mm, then three rotations in degrees
    frequency : cycles per phase-encoding line (that is, per repetition time)
    phase : radians
    """
    wave = np.sin(2 * np.pi * frequency * np.arange(n_lines) + phase)[:, np.newaxis]
    amplitude = np.asarray(amplitude, dtype=np.float64)
    return Trajectory(wave * amplitude[:3], wave * amplitude[3:])


def piecewise(
    n_lines: int, times: list[float], poses: list[list[float]], *, smooth: bool
) -> Trajectory:
    """Sudden (steps) or continuous (linear between knots) motion.

    Parameters
    ----------
    n_lines : number of phase-encoding lines
    times : increasing fractions of the scan, 0…1
    poses : one pose (6 numbers, mm and degrees) for each time
    smooth : linear between the poses when true; else each pose holds from its time to the next
    """
    t = np.arange(n_lines) / max(n_lines - 1, 1)
    table = np.asarray(poses, dtype=np.float64)
    if smooth:
        pose = np.stack([np.interp(t, times, table[:, k]) for k in range(6)], axis=1)
    else:
        index = np.clip(np.searchsorted(times, t, side="right") - 1, 0, len(times) - 1)
        pose = table[index]
    return Trajectory(pose[:, :3], pose[:, 3:])


def shear(image: Array, along: int, by: int, slope: float) -> Array:
    """Shift each line along one axis by ``slope`` × its distance from the centre of another
    axis."""
    n = image.shape[along]
    spectrum = scipy.fft.rfft(image, axis=along)
    frequency = np.fft.rfftfreq(n).astype(np.float32)
    position = np.arange(image.shape[by], dtype=np.float32) - (image.shape[by] - 1) / 2
    ramp = np.exp(-2j * np.pi * np.outer(frequency, slope * position)).astype(np.complex64)
    if n % 2 == 0:  # the Nyquist term of a real signal has no phase to turn
        ramp[-1] = ramp[-1].real
    shape = [1, 1, 1]
    shape[along], shape[by] = ramp.shape
    spectrum *= (ramp if along < by else ramp.T).reshape(shape)
    result: Array = scipy.fft.irfft(spectrum, n=n, axis=along).astype(np.float32, copy=False)
    return result


def rotate(image: Array, degrees: NDArray[np.float64], spacing: NDArray[np.float64]) -> Array:
    """Rotate a volume about its centre, first about axis 0, then 1, then 2 (right-handed).

    A rotation in the plane of axes (a, b) is the shears S_a(−tan θ/2) S_b(sin θ) S_a(−tan θ/2)
    (Unser, IEEE Trans. Image Process. 1995), each done in Fourier space.
    """
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, dtype=np.float64))):
        if abs(angle) < 1e-6:
            continue
        a, b = [k for k in range(3) if k != axis]
        if axis == 1:
            angle = -angle  # axes (0, 2) are a left-handed pair
        ratio = spacing[b] / spacing[a]
        tangent, sine = -np.tan(angle / 2) * ratio, np.sin(angle) / ratio
        image = shear(shear(shear(image, a, b, tangent), b, a, sine), a, b, tangent)
    return image


def apply_motion(
    image: Array,
    spacing: tuple[float, float, float],
    trajectory: Trajectory,
    *,
    phase_axis: int = 1,
    max_rotations: int = 9,
) -> Array:
    """The magnitude image of a head that moved as the trajectory says.

    Parameters
    ----------
    image : (X, Y, Z) float array, any intensity unit, kept
    spacing : mm
    trajectory : one pose for each of ``image.shape[phase_axis]`` lines
    phase_axis : the phase-encoding axis of the array
    max_rotations : how many different rotations are computed

    Returns
    -------
    (X, Y, Z) float32 array, never negative; no motion gives |image|.
    """
    image = np.asarray(image, dtype=np.float32)
    n = image.shape[phase_axis]
    if len(trajectory.translations) != n:
        raise ValueError(
            f"expected one pose for each of {n} lines, got {len(trajectory.translations)}"
        )
    step = np.asarray(spacing, dtype=np.float64)
    labels, centres = _quantise(trajectory.rotations, max_rotations)
    order = np.fft.ifftshift(np.arange(n))  # time index of each FFT frequency

    hybrid = np.zeros(image.shape, dtype=np.complex64)
    for k, centre in enumerate(centres):
        chosen = labels[order] == k
        if not chosen.any():
            continue
        lines = scipy.fft.fft(rotate(image, centre, step), axis=phase_axis)
        index: list[slice | NDArray[np.bool_]] = [slice(None)] * 3
        index[phase_axis] = chosen
        hybrid[tuple(index)] = lines[tuple(index)]
    hybrid = _translate_lines(hybrid, trajectory.translations[order] / step, phase_axis)
    return np.asarray(np.abs(scipy.fft.ifft(hybrid, axis=phase_axis)), dtype=np.float32)


def _translate_lines(
    hybrid: NDArray[np.complex64], shifts: NDArray[np.float64], phase_axis: int
) -> NDArray[np.complex64]:
    """Multiply each line of k-space by the phase ramp of its own translation (voxels).

    ``hybrid`` is in Fourier space along ``phase_axis`` only; the other two axes are taken there
    when a
    shift along them is asked for.
    """
    n = hybrid.shape[phase_axis]
    for axis in range(3):
        if not np.any(np.abs(shifts[:, axis]) > 1e-9):
            continue
        if axis == phase_axis:
            ramp = np.exp(-2j * np.pi * np.fft.fftfreq(n) * shifts[:, axis]).astype(np.complex64)
            shape = [1, 1, 1]
            shape[phase_axis] = n
            hybrid *= ramp.reshape(shape)
            continue
        frequency = np.fft.fftfreq(hybrid.shape[axis])
        ramp = np.exp(-2j * np.pi * np.outer(shifts[:, axis], frequency)).astype(np.complex64)
        shape = [1, 1, 1]
        shape[phase_axis], shape[axis] = ramp.shape
        spectrum = scipy.fft.fft(hybrid, axis=axis, overwrite_x=True)
        spectrum *= (ramp if phase_axis < axis else ramp.T).reshape(shape)
        hybrid = scipy.fft.ifft(spectrum, axis=axis, overwrite_x=True)
    return hybrid


def _quantise(
    rotations: NDArray[np.float64], most: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Group poses of similar rotation: along the direction in which the rotation varies most."""
    centre = rotations.mean(axis=0)
    deviation = rotations - centre
    if np.abs(rotations).max() < 1e-6:
        return np.zeros(len(rotations), dtype=np.intp), np.zeros((1, 3))
    _, _, directions = np.linalg.svd(deviation, full_matrices=False)
    along = deviation @ directions[0]
    edges = np.linspace(along.min(), along.max() + 1e-9, most + 1)
    labels = np.clip(np.searchsorted(edges, along, side="right") - 1, 0, most - 1)
    centres = np.zeros((most, 3))
    for k in range(most):
        if (labels == k).any():
            centres[k] = rotations[labels == k].mean(axis=0)
    return labels, centres
