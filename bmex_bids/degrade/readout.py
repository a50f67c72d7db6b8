# SPDX-License-Identifier: Apache-2.0
"""When each line of k-space is read, where the head is then, and the image that this makes.

A 3-D scan reads one plane of k-space (all samples of one phase-encoding index) a repetition.  A 2-D
multi-slice scan reads one line of each slice a repetition, the slices one after the other, so each
slice sees the head at times of its own; with concatenations, a part of the slices is read during one
pass and the others during the next.  The head has six degrees of freedom at any time: jumps, drifts
and waves (breathing, nodding) add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from bmex_bids.common.poses import LEVER_MM
from bmex_bids.degrade.motion import Trajectory, apply_motion, rotate

Array = NDArray[np.float32]
Poses = NDArray[np.float64]
Spacing = tuple[float, float, float]
#: voxels of slices whose lines are shifted at once
BLOCK_VOXELS = 1 << 19


@dataclass(frozen=True)
class Timing:
    """In which order a scan reads its lines.

    Attributes
    ----------
    phase_axis : of the array
    slice_axis : of the array, of a 2-D scan; None is a 3-D scan
    slab_voxels : thickness of a slice in voxels; the planes of a slice are read together
    interleave : slices are read 0, n, 2n … 1, n + 1, …
    concatenations : passes over which the slices are spread
    centric : lines from the middle of k-space outwards; else from one edge to the other
    """

    phase_axis: int
    slice_axis: int | None = None
    slab_voxels: float = 1.0
    interleave: int = 1
    concatenations: int = 1
    centric: bool = False

    def duration(self, shape: tuple[int, ...]) -> float:
        """Repetitions of the whole scan."""
        passes = 1 if self.slice_axis is None else self.concatenations
        return float(passes * shape[self.phase_axis])

    def line_times(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """(lines, planes): when each line of each plane is read, in repetitions.

        Lines go from the most negative frequency to the most positive.  A 3-D scan has one column.
        """
        n = shape[self.phase_axis]
        rank = np.arange(n)
        if self.centric:
            rank = np.argsort(np.argsort(np.abs(np.arange(n) - n // 2), kind="stable"))
        if self.slice_axis is None:
            return rank[:, np.newaxis].astype(np.float64)
        planes = np.arange(shape[self.slice_axis])
        slab = np.floor((planes + 0.5) / max(self.slab_voxels, 1.0)).astype(int)
        count = int(slab[-1]) + 1
        order = np.concatenate(
            [np.arange(first, count, self.interleave) for first in range(self.interleave)]
        )
        place = np.empty(count, dtype=int)
        place[order] = np.arange(count)
        in_pass = -(-count // self.concatenations)
        passed, within = place[slab] // in_pass, place[slab] % in_pass
        return np.asarray(passed * n + rank[:, np.newaxis] + within / in_pass, dtype=np.float64)


def poses_at(motion: Mapping[str, Any], times: NDArray[np.float64], duration: float) -> Poses:
    """(…, 6): where the head is, three translations in mm and three rotations in degrees.

    Parameters
    ----------
    motion : any of ``jump_times`` and ``jumps`` (a pose holds from its time to the next),
        ``drift_times`` and ``drifts`` (linear between poses; times are shares of the scan), and
        ``waves`` (rows of six amplitudes, cycles a repetition, phase in radians)
    times : repetitions, any shape
    duration : of the scan, repetitions
    """
    share = times / max(duration - 1, 1e-9)
    total = np.zeros((*times.shape, 6))
    if "jumps" in motion:
        knots = np.asarray(motion["jump_times"])
        index = np.clip(np.searchsorted(knots, share, side="right") - 1, 0, len(knots) - 1)
        total += np.asarray(motion["jumps"], dtype=np.float64)[index]
    if "drifts" in motion:
        table = np.asarray(motion["drifts"], dtype=np.float64)
        total += np.stack(
            [np.interp(share, motion["drift_times"], table[:, k]) for k in range(6)], axis=-1
        )
    for wave in motion.get("waves", ()):
        swing = np.sin(2 * np.pi * wave[6] * times + wave[7])
        total += swing[..., np.newaxis] * np.asarray(wave[:6], dtype=np.float64)
    return total


def at_rest(poses: Poses) -> Poses:
    """The same motion, with the mean pose of the central eighth of k-space taken as rest.

    ``poses`` is (lines, …, 6).  A degraded image then lies on top of its clean original.
    """
    n = len(poses)
    half = max(n // 16, 1)
    middle = poses[max(n // 2 - half, 0) : n // 2 + half + 1]
    return np.asarray(poses - middle.reshape(-1, 6).mean(axis=0))


def displacement(poses: Poses) -> float:
    """Root mean square displacement in mm over the lines, from the pose at rest.

    Of a ball of 80 mm radius (Jenkinson, FMRIB technical report TR99MJ1): the translation, and
    50.6 mm times the rotation in radians.
    """
    moved = at_rest(poses).reshape(-1, 6)
    turned = LEVER_MM * np.deg2rad(moved[:, 3:])
    return float(np.sqrt((moved[:, :3] ** 2).sum(axis=1).mean() + (turned**2).sum(axis=1).mean()))


def snapped(
    points: NDArray[np.float64], most: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Group points into at most ``most``: (group of each point, (groups, k) centres).

    Where there are no more different points, each is its own centre.  Else k-means by Lloyd's steps,
    from groups of equal size along the direction in which the points vary most.
    """
    centres, labels = np.unique(points, axis=0, return_inverse=True)
    if len(centres) <= most:
        return labels.reshape(-1), centres
    deviation = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(deviation.T @ deviation)
    along = deviation @ vectors[:, int(values.argmax())]
    labels = np.argsort(np.argsort(along, kind="stable"), kind="stable") * most // len(points)
    for _ in range(12):
        counts = np.bincount(labels, minlength=most)
        sums = np.stack([np.bincount(labels, column, most) for column in points.T], axis=1)
        centres = (sums / np.maximum(counts, 1)[:, np.newaxis])[counts > 0]
        distance = ((points[:, np.newaxis] - centres[np.newaxis]) ** 2).sum(axis=2)
        labels, most = distance.argmin(axis=1), len(centres)
    return labels, centres


def acquire(
    image: Array,
    spacing: Spacing,
    motion: Mapping[str, Any],
    timing: Timing,
    *,
    most: int = 6,
    workers: int = 1,
) -> Array:
    """The magnitude image of a head that moved during the read-out.

    Parameters
    ----------
    image : (X, Y, Z), any intensity unit, kept
    spacing : mm
    motion : as for :func:`poses_at`
    timing : when each line is read
    most : how many different rotations are computed (for a 2-D scan, of rotations with shifts across
        the slices); translations within a plane are exact for each line
    workers : threads

    Returns
    -------
    (X, Y, Z) float32 array, never negative; no motion gives |image|
    """
    image = np.asarray(image, dtype=np.float32)
    poses = poses_at(motion, timing.line_times(image.shape), timing.duration(image.shape))
    poses = at_rest(poses)
    if timing.slice_axis is not None:
        return _by_slices(image, spacing, poses, timing, most, workers)
    labels, centres = snapped(poses[:, 0, 3:], most)
    path = Trajectory(poses[:, 0, :3], centres[labels])
    return apply_motion(
        image, spacing, path, phase_axis=timing.phase_axis, max_rotations=len(poses),
        workers=workers,
    )  # fmt: skip


def _by_slices(
    image: Array, spacing: Spacing, poses: Poses, timing: Timing, most: int, workers: int
) -> Array:
    """:func:`acquire` of a 2-D scan; ``poses`` is (lines, planes, 6)."""
    phase, across = timing.phase_axis, int(timing.slice_axis or 0)
    (readout,) = {0, 1, 2} - {phase, across}
    axes = (phase, across, readout)
    n, planes = image.shape[phase], image.shape[across]
    order = np.fft.ifftshift(np.arange(n))  # time index of each FFT frequency
    poses = poses[order]
    through = [across, 3, 4, 5]
    labels, centres = snapped(poses[..., through].reshape(-1, 4), most)
    labels = labels.reshape(n, planes)
    half = n // 2 + 1
    hybrid = np.zeros((n, planes, image.shape[readout]), dtype=np.complex64)
    step = np.asarray(spacing, dtype=np.float64)
    for number, (shift_mm, *degrees) in enumerate(centres):
        chosen = (labels == number)[..., np.newaxis]
        moved = rotate(image, np.array(degrees), step, workers=workers)
        moved = _shifted(moved, across, float(shift_mm) / spacing[across], workers)
        lines = np.ascontiguousarray(moved.transpose(axes))
        spectrum = scipy.fft.rfft(lines, axis=0, workers=workers)
        np.copyto(hybrid[:half], spectrum, where=chosen[:half])
        # the head is real, so line n - j of its k-space is the conjugate of line j
        mirrored = spectrum[1 : n - half + 1][::-1].conj()
        np.copyto(hybrid[half:], mirrored, where=chosen[half:])
    shifts = poses[..., [phase, readout]] / np.array([spacing[phase], spacing[readout]])
    result = _imaged(hybrid, shifts, workers)
    return np.ascontiguousarray(result.transpose(np.argsort(axes)))


def _shifted(image: Array, axis: int, voxels: float, workers: int) -> Array:
    """A volume moved along one axis by a phase ramp; it comes in again on the other side."""
    if abs(voxels) < 1e-9:
        return image
    n = image.shape[axis]
    shape = [1, 1, 1]
    shape[axis] = -1
    ramp = np.exp(-2j * np.pi * np.fft.rfftfreq(n) * voxels).astype(np.complex64)
    if n % 2 == 0:  # the Nyquist term of a real signal has no phase to turn
        ramp[-1] = ramp[-1].real
    spectrum = scipy.fft.rfft(image, axis=axis, workers=workers) * ramp.reshape(shape)
    moved = scipy.fft.irfft(spectrum, n=n, axis=axis, workers=workers)
    return np.asarray(moved, dtype=np.float32)


def _imaged(hybrid: NDArray[np.complex64], shifts: NDArray[np.float64], workers: int) -> Array:
    """Move each line of each slice within its plane, and take the magnitude.

    Parameters
    ----------
    hybrid : (lines, slices, read-out), in Fourier space along the first axis, FFT order
    shifts : (lines, slices, 2) voxels along the phase and the read-out axis
    """
    n, planes, samples = hybrid.shape
    result = np.empty(hybrid.shape, dtype=np.float32)
    frequency = scipy.fft.fftfreq(samples).astype(np.float32)
    own = np.exp(-2j * np.pi * np.fft.fftfreq(n)[:, np.newaxis] * shifts[..., 0])
    step = max(1, BLOCK_VOXELS // max(n * samples, 1))
    for first in range(0, planes, step):
        part = slice(first, first + step)
        block = hybrid[:, part]
        along = (-2 * np.pi * shifts[:, part, 1]).astype(np.float32)
        if np.any(np.abs(along) > 1e-6):
            angle = along[..., np.newaxis] * frequency
            block = scipy.fft.fft(block, axis=2, workers=workers)
            block *= np.cos(angle) + np.complex64(1j) * np.sin(angle)
            block = scipy.fft.ifft(block, axis=2, workers=workers, overwrite_x=True)
        block = block * own[:, part, np.newaxis].astype(np.complex64)
        result[:, part] = np.abs(scipy.fft.ifft(block, axis=0, workers=workers, overwrite_x=True))
    return result
