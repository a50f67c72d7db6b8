# SPDX-License-Identifier: Apache-2.0
"""Faults of scans for the network over slices: a pair of degraded and clean volume.

What moves in a scanner is a head.  So a head is degraded as a head, and half of the stripped brains
are put into a drawn one first (:mod:`.surroundings`).  The field of view is of any size, since it
decides where a ghost lands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.contrasts import MEAN
from bmex_bids.degrade.checks import Step
from bmex_bids.degrade.intensity import smooth_field
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import FASTEST, SLOWEST, direction, usual_frequency
from bmex_bids.training.images import CleanImage
from bmex_bids.training.patients import LESION, Patients, with_lesions
from bmex_bids.training.surroundings import ROOM, surround

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: label of brain whose tissue is not known
NO_TISSUE = 9
#: what happens to a volume, and how often; several at once are joined by "+"
FAULTS = {
    "motion": 0.42, "motion+noise": 0.1, "noise": 0.16, "slices": 0.19, "motion+slices": 0.04,
    "slices+noise": 0.03, "ghosting": 0.02, "smoothing": 0.01, "clean": 0.03,
}  # fmt: skip
#: standard deviation of noise, of a brain mean of 400: from, to; a doubling as often as another
NOISE = (1.8, 65.0)
#: share of the noise that is white; the rest is that of a scanner's grid, resampled by cubic splines
WHITE = 0.25
#: voxels of a scanner, in voxels of the network: from, to
SCANNER_VOXELS = (0.8, 1.7)
#: share of the adults whose contrast becomes another one
OTHER_CONTRAST = 0.22
#: a T1w brain's intensities (brain mean 400) → those of a FLAIR-like and a PD-like image
T1W_LEVELS = (0.0, 170.0, 355.0, 540.0, 700.0, 2000.0)
FLAIR_LEVELS = (20.0, 70.0, 430.0, 340.0, 420.0, 900.0)
PD_LEVELS = (30.0, 480.0, 440.0, 370.0, 420.0, 900.0)
#: how often an axis is the phase-encoding one (left–right, front–back, top–bottom)
PHASE = (0.3, 0.5, 0.2)
#: share of volumes whose stored axis is not the one that was encoded, since no user knows
WRONG_AXIS = 0.12
#: share of stripped brains that are put into a drawn head
IN_A_HEAD = 0.55
#: most voxels of air on a side, around a brain and around a head
AIR, HEAD_AIR = 36, 8
#: brightest stored voxel
TOP_STORED = 4000.0


@dataclass(frozen=True)
class Scan:
    """A degraded volume and its truth, first axis the phase-encoding one.

    Attributes
    ----------
    bad, clean : (P, A, B) float16, brain mean of ``bad`` 400; zero outside the mask
    mask : (P, A, B)
    labels : (P, A, B) uint8: 0 outside, 1 CSF, 2 GM, 3 WM, 4 lesion, :data:`NO_TISSUE` where not
        known
    """

    bad: NDArray[np.float16]
    clean: NDArray[np.float16]
    mask: Mask
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """How a scan was spoiled.

    Attributes
    ----------
    motion : root mean squared error in the brain by motion alone, of a brain mean of 400; None
        where other ghosts were added
    noise : standard deviation of what was added, same unit
    thickness_mm : of slices that became thick, or the width of a smoothing; 0 without
    """

    motion: float | None
    noise: float
    thickness_mm: float


def scan(
    group: str, clean: CleanImage, rng: np.random.Generator, patients: Patients | None = None
) -> Scan:
    """Augment a clean image, degrade it, and cut out its brain.

    Parameters
    ----------
    group : ``"heads"`` where the image holds a head
    clean : brain mean 400
    patients : lesions that some of the images get first
    """
    if patients is not None:
        clean = with_lesions(clean, patients, rng)
    return scan_with_truth(group, clean, rng)[0]


def scan_with_truth(group: str, clean: CleanImage, rng: np.random.Generator) -> tuple[Scan, Truth]:
    """As :func:`scan` of an image as it is, with what was done."""
    is_head = group == "heads"
    box = bounding_box(clean.mask, int(rng.integers(14, 46)) if is_head else 6)
    data, mask, labels = clean.data[box], clean.mask[box], clean.labels[box]
    flips = tuple(a for a, share in ((0, 0.5), (1, 0.12), (2, 0.08)) if rng.random() < share)
    data, mask, labels = np.flip(data, flips), np.flip(mask, flips), np.flip(labels, flips)
    if rng.random() < 0.3:
        data, mask, labels = _bent(data, mask, labels, rng)
    data, dark_fluid = _contrast(group, data, mask, clean.contrast != "T2w", rng)
    axis = int(rng.choice(3, p=PHASE))
    shape, before = data.shape, np.zeros(3, dtype=int)
    whole = data
    if not is_head and rng.random() < IN_A_HEAD:
        whole = surround(data, mask, "T1w" if dark_fluid else "T2w", rng)
        before += ROOM
    room = rng.integers(0, HEAD_AIR if is_head else AIR, (3, 2))
    # lengths that a Fourier transform is fast at
    length = [int(n + a + b) for n, (a, b) in zip(whole.shape, room, strict=True)]
    room[:, 1] += [scipy.fft.next_fast_len(n, real=True) - n for n in length]
    whole, before = np.pad(whole, room), before + room[:, 0]
    faults = draw_faults(rng)
    part = tuple(slice(int(s), int(s) + n) for s, n in zip(before, shape, strict=True))
    bad = whole.astype(np.float32)
    motion: float | None = None if "ghosting" in faults else 0.0
    noise = thickness = 0.0
    # all are drawn before the first is applied
    for step in [_step(name, axis, whole.shape[axis], rng) for name in faults if name != "noise"]:
        bad = Recipe((step,)).apply(bad, clean.spacing)
        if step["kind"].startswith("motion"):
            motion = float(np.sqrt(((bad[part] - data)[mask] ** 2).mean()))
        thickness = float(step.get("thickness_mm", step.get("fwhm_mm", thickness)))
    bad = bad[part]
    if "noise" in faults:
        low, high = NOISE
        noise = float(low * (high / low) ** rng.random())
        bad = _noisy(bad, noise, rng)
    bad = np.where(mask, np.clip(bad, 0, None), 0)
    scale = MEAN / max(float(bad[mask].mean()), 1.0)
    stored = int(rng.integers(3)) if rng.random() < WRONG_AXIS else axis
    found = _stored(bad * scale, data * scale, mask, labels, stored)
    return found, Truth(motion, noise * scale, thickness)


def as_scan(bad: Array, clean: CleanImage, *, axis: int) -> Scan:
    """A degraded image of which the clean one is known; ``axis`` is the phase-encoding one."""
    bad = np.where(clean.mask, np.clip(bad, 0, None), 0)
    scale = MEAN / max(float(bad[clean.mask].mean()), 1.0)
    return _stored(bad * scale, clean.data * scale, clean.mask, clean.labels, axis)


def draw_faults(rng: np.random.Generator) -> list[str]:
    """Names of faults that act together, in a scan's order; none for a clean image."""
    name = str(rng.choice(list(FAULTS), p=list(FAULTS.values())))
    return [] if name == "clean" else name.split("+")


def _stored(bad: Array, data: Array, mask: Mask, labels: NDArray[np.uint8], axis: int) -> Scan:
    box = bounding_box(mask)
    order = (axis, *(k for k in range(3) if k != axis))
    known = np.where((labels >= 1) & (labels <= LESION), labels, NO_TISSUE)

    def kept(volume: Array) -> NDArray[np.float16]:
        return np.clip(volume * mask, 0, TOP_STORED)[box].transpose(order).astype(np.float16)

    return Scan(
        kept(bad),
        kept(data),
        mask[box].transpose(order),
        np.where(mask, known, 0)[box].transpose(order).astype(np.uint8),
    )


# ------------------------------------------------------------------ the clean image
def _bent(
    data: Array, mask: Mask, labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Array, Mask, NDArray[np.uint8]]:
    """Turned, sheared and scaled about the middle; what is outside the array is lost."""
    matrix = np.eye(3) + rng.normal(0, 0.05, (3, 3))
    matrix = matrix @ np.diag(rng.uniform(0.92, 1.1, 3))
    size = np.array(data.shape[::-1], dtype=float)
    turn = np.zeros((1, 3, 4), dtype=np.float32)
    turn[0, :, :3] = matrix[::-1, ::-1] * size[None, :] / size[:, None]
    grid = F.affine_grid(torch.from_numpy(turn), [1, 1, *data.shape], align_corners=False)

    def moved(volume: NDArray[np.generic], mode: str) -> Array:
        x = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
        found = F.grid_sample(x, grid, mode=mode, align_corners=False)[0, 0]
        return np.asarray(found.numpy(), dtype=np.float32)

    inside = moved(mask, "nearest") > 0.5
    known = np.where(inside, moved(labels, "nearest"), 0).astype(np.uint8)
    return moved(data, "bilinear"), inside, known


def _contrast(
    group: str, data: Array, mask: Mask, dark_fluid: bool, rng: np.random.Generator
) -> tuple[Array, bool]:
    """Bend the contrast, now and then into that of a T2w, FLAIR or PDw image; brain mean 400.

    Returns the image, and whether fluid is dark in it.
    """
    if group in ("adults", "heads") and dark_fluid and rng.random() < OTHER_CONTRAST:
        kind = rng.random()
        if kind < 0.45:  # T2w
            top = rng.uniform(550, 900)
            turned = np.clip(top - data * top / rng.uniform(620, 800), rng.uniform(20, 120), None)
        else:
            levels = np.array(FLAIR_LEVELS if kind < 0.78 else PD_LEVELS)
            levels = levels * np.exp(rng.normal(0, 0.1, levels.size))
            turned = np.interp(
                data * (MEAN / max(float(data[mask].mean()), 1.0)), T1W_LEVELS, levels
            )
        dark_fluid = 0.45 <= kind < 0.78
        data = np.where(mask, turned, data * rng.uniform(0.3, 1.2))
    if group == "painted" and rng.random() < 0.4:  # tissues in any order of brightness
        levels = np.sort(rng.uniform(60, 900, 4))
        rng.shuffle(levels)
        data = np.interp(data, [0, 250, 400, 520, 700], [20, *levels]) * mask
    if rng.random() < 0.6:
        knots = np.array([0, 100, 200, 300, 400, 500, 600, 1200.0])
        steps = np.diff(knots) * np.exp(rng.normal(0, 0.22, len(knots) - 1))
        data = np.interp(data, knots, np.concatenate([[0], np.cumsum(steps)]))
    if rng.random() < 0.3:
        data = data * np.exp(smooth_field(data.shape, rng.normal(0, 0.12, (3, 3, 3))))
    scale = MEAN / max(float(data[mask].mean()), 1.0)
    return np.clip(data * scale, 0, 1.5 * TOP_STORED).astype(np.float32), dark_fluid


# ------------------------------------------------------------------ the faults
def _step(fault: str, axis: int, lines: int, rng: np.random.Generator) -> Step:
    if fault == "motion":
        return _motion(axis, rng)
    if fault == "slices":
        thick = rng.uniform(1.3, 7.0 if rng.random() < 0.4 else 3.6)
        # as the application resamples
        return {
            "kind": "low-resolution",
            "axis": int(rng.integers(3)),
            "thickness_mm": 0.8 * float(thick),
            "degree": 3,
        }
    if fault == "ghosting":
        return {
            "kind": "ghosting", "strength": float(rng.uniform(0.03, 0.4)),
            "period": float(rng.uniform(2, 8)), "phase": float(rng.uniform(0, 2 * np.pi)),
            "phase_axis": axis,
        }  # fmt: skip
    return {"kind": "smoothing", "fwhm_mm": float(rng.uniform(0.4, 2.4))}


def _motion(axis: int, rng: np.random.Generator) -> Step:
    """Periodic in three fifths, else sudden, else drifting; from hardly seen to very severe."""
    kind = rng.random()
    if kind < 0.62:
        size = 0.5 + 4.8 * float(rng.random()) ** 1.2
        pace = float(np.clip(usual_frequency(size) * np.exp(0.3 * rng.normal()), SLOWEST, FASTEST))
        frequency = pace if rng.random() < 0.5 else float(rng.uniform(SLOWEST, FASTEST))
        turn = np.zeros(3)
        if rng.random() < 0.7:  # about one axis
            turn[rng.integers(3)] = size * rng.uniform(0.3, 1) * rng.choice([-1, 1])
        else:
            turn = direction(rng) * size * rng.uniform(0, 1)
        return {
            "kind": "motion-periodic",
            "amplitude": [*map(float, direction(rng) * size), *map(float, turn)],
            "frequency": frequency, "phase": float(rng.uniform(0, 2 * np.pi)),
            "phase_axis": axis, "max_rotations": 5,
        }  # fmt: skip
    sudden = kind < 0.85
    if sudden:
        count, size = int(rng.integers(1, 6)), 0.3 + 3.5 * float(rng.random()) ** 1.5
        times = [0.0, *sorted(float(t) for t in rng.uniform(0.05, 0.95, count))]
        poses = [[0.0] * 6, *(_pose(size, rng, 0.3) for _ in range(count))]
    else:
        count, size = int(rng.integers(2, 6)), 0.3 + 4.0 * float(rng.random())
        times = [float(t) for t in np.linspace(0, 1, count + 1)]
        poses = [_pose(size, rng, 0.0) for _ in range(count + 1)]
    return {
        "kind": "motion-piecewise", "times": times, "poses": poses, "smooth": not sudden,
        "phase_axis": axis, "max_rotations": 7,
    }  # fmt: skip


def _pose(size: float, rng: np.random.Generator, least: float) -> list[float]:
    parts = [direction(rng) * size * rng.uniform(least, 1) for _ in range(2)]
    return [float(v) for v in np.concatenate(parts)]


def _noisy(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """Rician or Gaussian, white or as resampling leaves it, now and then uneven.

    ``sigma`` is that on the scanner's grid; resampling takes some of it away.
    """
    white = rng.random() < WHITE
    grid = ScannerGrid.draw(image.shape, rng)

    def field() -> Array:
        shape = image.shape if white else grid.shape
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
        return values if white else grid.resampled(values)

    real = field()
    if rng.random() < 0.2:
        real = real * np.exp(smooth_field(image.shape, rng.normal(0, 0.4, (3, 3, 3))))
    if rng.random() < 0.5:
        return np.asarray(np.hypot(image + real, field()), dtype=np.float32)
    return np.asarray(image + real, dtype=np.float32)


@dataclass(frozen=True)
class ScannerGrid:
    """A scanner's grid over one of the network, and how cubic splines lead from it to that.

    Attributes
    ----------
    weights : of each axis, (voxels of the network, voxels of the scanner)
    """

    weights: tuple[Array, Array, Array]

    @classmethod
    def draw(cls, shape: tuple[int, ...], rng: np.random.Generator) -> ScannerGrid:
        """Isotropic voxels in half of the cases, else one size for each axis."""
        sizes = rng.uniform(*SCANNER_VOXELS, 3)
        if rng.random() < 0.5:
            sizes[:] = sizes[0]
        first, second, third = (
            _spline(n, float(size), float(rng.uniform(0.5, 1.5)))
            for n, size in zip(shape, sizes, strict=True)
        )
        return cls((first, second, third))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the scanner's grid."""
        return tuple(part.shape[1] for part in self.weights)

    def resampled(self, values: Array) -> Array:
        """Values on the scanner's grid → on the network's."""
        for axis, part in enumerate(self.weights):
            values = np.moveaxis(np.tensordot(part, values, ([1], [axis])), 0, axis)
        return np.ascontiguousarray(values, dtype=np.float32)


def _spline(length: int, size: float, offset: float) -> Array:
    """Weights of a cubic interpolation from voxels of ``size`` to ``length`` voxels of 1."""
    many = int(np.ceil((length + 2) / size)) + 3
    coefficients = scipy.ndimage.spline_filter1d(np.eye(many), order=3, axis=0, mode="mirror")
    place = [(np.arange(length) + offset) / size]
    columns = [
        scipy.ndimage.map_coordinates(column, place, order=3, prefilter=False, mode="mirror")
        for column in coefficients.T
    ]
    return np.stack(columns, axis=1).astype(np.float32)
