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

A turn about one axis never mixes the slices across that axis, so volumes are worked on a few
slices at a time, which stay in the processor's cache; blocks do not depend on the number of
threads, and neither does the result, to the last bit.

Time runs along the phase-encoding axis from the most negative frequency to the most positive
(linear ordering), so the centre of k-space, which holds contrast and position, lies in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[np.float32]
Spectrum = NDArray[np.complex64]
Box = tuple[slice, slice, slice]

BLOCK_VOXELS = 1 << 18  # a block of slices and its spectrum fit into the cache of one core


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
        degraded image and its clean original would not lie on top of each other.
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


@dataclass(frozen=True)
class _Shear:
    """Shift along one axis in proportion to the distance from the centre of another axis.

    ramp : multiplies the half spectrum (rfft) along that axis
    """

    along: int
    ramp: Spectrum


def _make_shear(shape: Sequence[int], along: int, by: int, slope: float) -> _Shear:
    n = shape[along]
    frequency = np.fft.rfftfreq(n).astype(np.float32)
    position = np.arange(shape[by], dtype=np.float32) - (shape[by] - 1) / 2
    ramp = np.exp(-2j * np.pi * np.outer(frequency, slope * position)).astype(np.complex64)
    if n % 2 == 0:  # the Nyquist term of a real signal has no phase to turn
        ramp[-1] = ramp[-1].real
    return _Shear(along, _over_two_axes(ramp, along, by))


def _over_two_axes(table: Spectrum, first: int, second: int) -> Spectrum:
    """A table over two axes, shaped so that it multiplies a volume."""
    shape = [1, 1, 1]
    shape[first], shape[second] = table.shape
    return np.ascontiguousarray(table if first < second else table.T).reshape(shape)


def _apply_shear(image: Array, step: _Shear, spectrum: Spectrum | None = None) -> Array:
    """Shear a volume; ``spectrum`` is its half spectrum along the axis, where that is known."""
    if spectrum is None:
        spectrum = scipy.fft.rfft(image, axis=step.along)
    turned = scipy.fft.irfft(spectrum * step.ramp, n=image.shape[step.along], axis=step.along)
    return np.asarray(turned, dtype=np.float32)


def shear(image: Array, along: int, by: int, slope: float) -> Array:
    """Shift each line along one axis by ``slope`` × its distance from the centre of another
    axis (voxels)."""
    return _apply_shear(image, _make_shear(image.shape, along, by, slope))


def _rotation_shears(
    shape: Sequence[int], axis: int, degrees: float, spacing: NDArray[np.float64]
) -> list[_Shear]:
    """The three shears that are a rotation about one axis; none for (nearly) no angle.

    A rotation in the plane of axes (a, b) is the shears S_a(−tan θ/2) S_b(sin θ) S_a(−tan θ/2)
    (Unser, IEEE Trans. Image Process. 1995), each done in Fourier space.
    """
    angle = float(np.deg2rad(degrees))
    if abs(angle) < 1e-6:
        return []
    a, b = [k for k in range(3) if k != axis]
    if axis == 1:
        angle = -angle  # axes (0, 2) are a left-handed pair
    ratio = float(spacing[b] / spacing[a])
    outer = _make_shear(shape, a, b, -np.tan(angle / 2) * ratio)
    return [outer, _make_shear(shape, b, a, np.sin(angle) / ratio), outer]


def rotate(
    image: Array, degrees: NDArray[np.float64], spacing: NDArray[np.float64], *, workers: int = 1
) -> Array:
    """Rotate a volume about its centre, first about axis 0, then 1, then 2 (right-handed).

    Parameters
    ----------
    image : (X, Y, Z) float32 array
    degrees : about each axis; the corners leave the volume on one side and come in on the other,
        so what matters should lie within, more so the larger the angle
    spacing : mm
    workers : threads
    """
    for axis, angle in enumerate(np.asarray(degrees, dtype=np.float64)):
        steps = _rotation_shears(image.shape, axis, float(angle), spacing)
        if steps:
            image = _sheared(image, axis, steps, workers)
    return image


def _sheared(image: Array, axis: int, steps: Sequence[_Shear], workers: int) -> Array:
    """A volume after shears within the slices across ``axis``."""
    result = np.zeros(image.shape, dtype=np.float32)

    def work(part: Box) -> None:
        block = image[part]
        if block.any():
            for step in steps:
                block = _apply_shear(block, step)
            result[part] = block

    _in_blocks(work, image.shape, axis, workers)
    return result


def _in_blocks(work: Callable[[Box], None], shape: Sequence[int], axis: int, workers: int) -> None:
    """Call ``work`` with a few slices across ``axis`` after another, until all are done."""
    thickness = max(1, round(BLOCK_VOXELS * shape[axis] / max(int(np.prod(shape)), 1)))
    parts = []
    for start in range(0, shape[axis], thickness):
        part = [slice(None)] * 3
        part[axis] = slice(start, start + thickness)
        parts.append((part[0], part[1], part[2]))
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, parts))
    else:
        for part_ in parts:
            work(part_)


def apply_motion(
    image: Array,
    spacing: tuple[float, float, float],
    trajectory: Trajectory,
    *,
    phase_axis: int = 1,
    max_rotations: int = 9,
    workers: int = 1,
) -> Array:
    """The magnitude image of a head that moved as the trajectory says.

    Parameters
    ----------
    image : (X, Y, Z) float array, any intensity unit, kept
    spacing : mm
    trajectory : one pose for each of ``image.shape[phase_axis]`` lines
    phase_axis : the phase-encoding axis of the array
    max_rotations : how many different rotations are computed
    workers : threads; the result does not depend on their number, to the last bit

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
    in_slices: dict[int, list[_Pose]] = {}
    for k, degrees in enumerate(centres):
        lines = np.flatnonzero(labels[order] == k)
        if not len(lines):
            continue
        source, axis, steps = _until_last_turn(image, degrees, step, phase_axis, workers)
        pose = _Pose(tuple(steps), lines, n)
        if source is image:
            in_slices.setdefault(axis, []).append(pose)
        else:
            _fill_lines(hybrid, source, [pose], axis, phase_axis, workers)
    for axis, poses in in_slices.items():
        _fill_lines(hybrid, image, poses, axis, phase_axis, workers)
    return _moved_image(hybrid, trajectory.translations[order] / step, phase_axis, workers)


def _until_last_turn(
    image: Array,
    degrees: NDArray[np.float64],
    spacing: NDArray[np.float64],
    phase_axis: int,
    workers: int,
) -> tuple[Array, int, list[_Shear]]:
    """Do all turns of a pose but the last, and say which one that is: (volume, axis, shears).

    A last turn about the phase axis is done as well, since a block of slices across that axis
    does not hold whole lines; no shears are left then.
    """
    turns = [_rotation_shears(image.shape, k, float(degrees[k]), spacing) for k in range(3)]
    axes = [k for k in range(3) if turns[k]]
    other = 0 if phase_axis != 0 else 1
    last, steps = (axes.pop(), 1) if axes and axes[-1] != phase_axis else (other, 0)
    for axis in axes:
        image = _sheared(image, axis, turns[axis], workers)
    return image, last, turns[last] if steps else []


class _Pose:
    """Shears within slices, and the lines (FFT frequencies 0 … n − 1) that see the head so.

    The head is real, so line n − j of its k-space is the conjugate of line j, and rows 0 … n / 2
    are enough: ``rows`` of the half spectrum are needed, ``rows[direct]`` become lines ``rows``
    themselves, ``rows[mirrored]`` become lines ``n − rows``.
    """

    def __init__(self, shears: tuple[_Shear, ...], lines: NDArray[np.intp], n: int) -> None:
        self.shears = shears
        self.rows = np.unique(np.minimum(lines, n - lines))
        self.direct = np.flatnonzero(np.isin(self.rows, lines))
        self.mirrored = np.flatnonzero(
            np.isin(n - self.rows, lines) & (self.rows > 0) & (2 * self.rows < n)
        )

    def half_lines(self, block: Array, phase_axis: int, starts: dict[int, Spectrum]) -> Spectrum:
        """The needed rows of the half spectrum of a block of slices.

        ``starts`` remembers the block's first transform, which is the same for each pose.
        """
        for number, step in enumerate(self.shears):
            if number == len(self.shears) - 1 and step.along == phase_axis:
                spectrum = scipy.fft.rfft(block, axis=phase_axis)  # stays in Fourier space
                part = _along(phase_axis, self.rows)
                return np.asarray(spectrum[part] * step.ramp[part])
            if number == 0:
                if step.along not in starts:
                    starts[step.along] = scipy.fft.rfft(block, axis=step.along)
                block = _apply_shear(block, step, starts[step.along])
            else:
                block = _apply_shear(block, step)
        return np.asarray(scipy.fft.rfft(block, axis=phase_axis)[_along(phase_axis, self.rows)])


def _along(axis: int, chosen: NDArray[np.intp]) -> tuple[slice | NDArray[np.intp], ...]:
    """The index that takes ``chosen`` of one axis and all of the others."""
    index: list[slice | NDArray[np.intp]] = [slice(None)] * 3
    index[axis] = chosen
    return tuple(index)


def _fill_lines(
    hybrid: Spectrum,
    image: Array,
    poses: Sequence[_Pose],
    axis: int,
    phase_axis: int,
    workers: int,
) -> None:
    """Put the lines that poses see into their places.

    Parameters
    ----------
    hybrid : (X, Y, Z), in Fourier space along ``phase_axis`` only; changed in place
    axis : the shears of all poses keep within the slices across it; not the phase axis
    """
    n = image.shape[phase_axis]

    def work(part: Box) -> None:
        block, target = image[part], hybrid[part]
        if not block.any():
            return
        starts: dict[int, Spectrum] = {}
        for pose in poses:
            values = pose.half_lines(block, phase_axis, starts)
            target[_along(phase_axis, pose.rows[pose.direct])] = values[
                _along(phase_axis, pose.direct)
            ]
            target[_along(phase_axis, n - pose.rows[pose.mirrored])] = values[
                _along(phase_axis, pose.mirrored)
            ].conj()

    _in_blocks(work, image.shape, axis, workers)


def _moved_image(
    hybrid: Spectrum, shifts: NDArray[np.float64], phase_axis: int, workers: int
) -> Array:
    """Multiply each line of k-space by the phase ramp of its own translation, and image it.

    Parameters
    ----------
    hybrid : (X, Y, Z), in Fourier space along ``phase_axis`` only; overwritten
    shifts : (n_lines, 3) voxels, in the order of FFT frequencies
    """
    n = hybrid.shape[phase_axis]
    first, second = [axis for axis in range(3) if axis != phase_axis]
    if np.any(np.abs(shifts[:, first]) > 1e-9):
        ramp = _line_ramp(hybrid.shape[first], shifts[:, first], phase_axis, first)

        def shift_first(part: Box) -> None:
            hybrid[part] = _shift_lines(hybrid[part], ramp, first)

        _in_blocks(shift_first, hybrid.shape, second, workers)
    result = np.empty(hybrid.shape, dtype=np.float32)
    ramp_second = (
        _line_ramp(hybrid.shape[second], shifts[:, second], phase_axis, second)
        if np.any(np.abs(shifts[:, second]) > 1e-9)
        else None
    )
    shape = [1, 1, 1]
    shape[phase_axis] = n
    own = np.exp(-2j * np.pi * np.fft.fftfreq(n) * shifts[:, phase_axis])
    ramp_own = own.astype(np.complex64).reshape(shape)

    def image_rest(part: Box) -> None:
        block = hybrid[part] * ramp_own
        if ramp_second is not None:
            block = _shift_lines(block, ramp_second, second)
        result[part] = np.abs(scipy.fft.ifft(block, axis=phase_axis, overwrite_x=True))

    _in_blocks(image_rest, hybrid.shape, first, workers)
    return result


def _line_ramp(n: int, shifts: NDArray[np.float64], phase_axis: int, axis: int) -> Spectrum:
    ramp = np.exp(-2j * np.pi * np.outer(shifts, np.fft.fftfreq(n))).astype(np.complex64)
    return _over_two_axes(ramp, phase_axis, axis)


def _shift_lines(lines: Spectrum, ramp: Spectrum, axis: int) -> Spectrum:
    spectrum = scipy.fft.fft(lines, axis=axis)
    spectrum *= ramp
    return np.asarray(scipy.fft.ifft(spectrum, axis=axis, overwrite_x=True))


def _quantise(
    rotations: NDArray[np.float64], most: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Group poses of similar rotation: along the direction in which the rotation varies most.

    Where as many groups are allowed as there are lines, each rotation is a group of its own.
    """
    if most >= len(rotations):
        centres, labels = np.unique(rotations, axis=0, return_inverse=True)
        return labels.reshape(-1), centres
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
