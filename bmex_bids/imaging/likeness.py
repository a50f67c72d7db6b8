# SPDX-License-Identifier: Apache-2.0
"""How much what lies in a mask looks like a brain, and which way up it looks.

An average brain of ten adults ships with the package: the share of seven tissues and of brain in
each voxel (from label maps of BBillot/SynthSeg, Apache-2.0, brought to one volume and one centre,
and averaged with their mirror images).  What lies in a mask is brought to the same volume and
centre, and compared with the average brain in each of the 24 ways to turn it by right angles, some
pitches of the head, with and without cerebellum and brain stem.  Two figures tell how well it fits:

- the share of the intensities' variance that the tissues explain, each with a brightness of its own,
  so that T1w and T2w images of all ages fit alike;
- the overlap (Dice) of the mask with the average brain.

Left and right cannot be told apart: the average brain is its own mirror image.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: the stored average brain: voxel size, and what its numbers are divided by to be shares
STORED_MM, STORED_LEVELS = 5.0, 31.0
#: the grid of the comparison: voxels a side, their size, and the volume that every brain is given
SIDE, GRID_MM, LITRES = 32, 6.0, 1.5
CEREBRUM, HINDBRAIN = (1, 2, 3, 4), (5, 6)  # of the stored tissues
PITCHES = (-20, -10, 0, 10, 20)  # degrees
COARSE_MM = 2.0
FULL = 0.9  # share of a voxel in the mask from which its intensity counts
#: directions that a working axis is said to have, low to high, and their opposites
TOWARDS, AWAY = "LPS", "RAI"

#: What is no brain explains 0.00 to 0.011 (noise, balls, cylinders, heads whose brain is replaced by
#: one value), brains 0.06 (a third cut off) to 0.69, parts of brains 0.03 and more.
EXPLAINED_LEAST = 0.02
#: standard deviation over mean of the smoothed intensities: brains 0.06 to 0.31, one value with
#: noise 0.01 and less, an empty head with some scalp 6
RELIEF = (0.02, 1.0)
#: What is taken for brain in necks reaches the top of the image.  Whole brains of which a fifth is
#: cut off overlap by 0.83 and more.  Overlap and :func:`bmex_bids.imaging.slab.part_score` add up to
#: 1.24 at most in four necks and twelve drawn spines, to 1.26 to 2.0 in slabs through brains of
#: children and adults and in brains of which a fifth or two are cut off, to 0.9 to 1.2 in thin slabs
#: through brains below two years, which are taken for necks.
OVERLAP_WHOLE, OVERLAP_AND_PART = 0.84, 1.25
#: A turn is told where it fits better than all others by this much (both figures added), and
#: overlaps so well.  Of 50 brains, fetus to adult, with masks that were not made here, 49 fit the
#: turn in which they lie by 0.105 to 0.48 better than any other; one, with a part cut off
#: obliquely, fits none clearly.  Halves and slabs overlap by less.
DISTINCT, OVERLAP_TURNED = 0.10, 0.85


@dataclass(frozen=True)
class Fit:
    """How well the average brain fits in one turn.

    Attributes
    ----------
    turn : where the working axes lead in the average brain, low to high, such as ``"RAS"``;
        ``"LPS"`` is as the header says
    explained : share of the variance, 0…1
    overlap : Dice, 0…1
    """

    turn: str
    explained: float
    overlap: float

    @property
    def score(self) -> float:
        """Both figures together."""
        return self.explained + self.overlap


@dataclass(frozen=True)
class Likeness:
    """What was found: the fits, best first, and the relief of the intensities.

    relief : standard deviation over mean of the intensities, smoothed by some 6 mm
    """

    fits: tuple[Fit, ...]
    relief: float

    @property
    def is_clear(self) -> bool:
        """Whether one turn fits clearly better than all others."""
        first, second = self.fits[:2]
        return first.score - second.score >= DISTINCT and first.overlap >= OVERLAP_TURNED

    @property
    def turn(self) -> str:
        """The turn that clearly fits best; that of the header where none does."""
        return self.fits[0].turn if self.is_clear else TOWARDS

    def held(self, axes: str) -> Likeness:
        """The same of the working axes, where the image was held with ``axes`` of them as L, P, S.

        >>> Likeness((Fit("RAS", 0.5, 0.9),), 0.2).held("LAI").fits[0].turn
        'RPI'
        """

        def named(turn: str) -> str:
            seen = dict(zip(axes, turn, strict=True))
            seen |= {_opposite(said): _opposite(shown) for said, shown in seen.items()}
            return "".join(seen[letter] for letter in TOWARDS)

        fits = tuple(dataclasses.replace(fit, turn=named(fit.turn)) for fit in self.fits)
        return dataclasses.replace(self, fits=fits)

    @property
    def margin(self) -> float:
        """How much better the turn fits than the header's; 0 where that is the header's."""
        scores = {fit.turn: fit.score for fit in self.fits}
        return scores[self.turn] - scores[TOWARDS]


def no_brain(like: Likeness, part: Callable[[], float] | None) -> str | None:
    """Why there is no brain in a mask; None where there may be one.

    Parameters
    ----------
    like : of the mask
    part : how well it fits as a part of a brain, where the mask reaches the top of the image
    """
    explained = max(fit.explained for fit in like.fits)
    overlap = max(fit.overlap for fit in like.fits)
    if explained < EXPLAINED_LEAST or not RELIEF[0] <= like.relief <= RELIEF[1]:
        return "the most brain-like part shows no tissues of a brain"
    if part is not None and overlap < OVERLAP_WHOLE and overlap + part() < OVERLAP_AND_PART:
        return (
            "the most brain-like part reaches the top of the image and does not look like a brain"
        )
    return None


def describe_turn(turn: str) -> str:
    """What a header says and the image shows, of the axes that differ.

    >>> describe_turn("RAS")
    'the header says A–P, the image looks P–A'
    >>> describe_turn("PIR")
    'the header says R–L, A–P, I–S, the image looks A–P, S–I, L–R'
    """
    # with left and right the other way round an image looks the same
    axes = [k for k, to in enumerate(turn) if to != TOWARDS[k] and (k, to) != (0, AWAY[0])]
    said = [f"{AWAY[k]}–{TOWARDS[k]}" for k in axes]
    seen = [f"{_opposite(turn[k])}–{turn[k]}" for k in axes]
    return f"the header says {', '.join(said)}, the image looks {', '.join(seen)}"


def _opposite(letter: str) -> str:
    return (AWAY + TOWARDS)[(TOWARDS + AWAY).index(letter)]


def likeness(
    image: NDArray[np.floating[Any]], mask: Mask, spacing: tuple[float, ...]
) -> Likeness | None:
    """Compare what lies in a mask with the average brain.

    Parameters
    ----------
    image, mask : (X, Y, Z), axes LPS; any unit
    spacing : mm

    Returns
    -------
    None where the mask is empty
    """
    inside, values, sizes = coarse(image, mask, spacing)
    if not inside.any():
        return None
    scale = (LITRES / (inside.sum() * float(np.prod(sizes)) / 1e6)) ** (1 / 3)
    values, share = (
        on_grid(part, inside, sizes, scale) for part in (np.where(inside, values, 0), inside)
    )
    full = share > FULL
    if not full.any():
        return None
    intensities = (values[full] / share[full]).astype(np.float64)
    intensities = np.clip(intensities, *np.percentile(intensities, [1, 99]))
    mean, deviation = float(intensities.mean()), float(intensities.std())
    fits = [_fit(turn, intensities - mean, full, share) for turn in _turns()]
    fits.sort(key=lambda fit: -fit.score)
    return Likeness(tuple(fits), deviation / abs(mean) if mean else math.inf)


def coarse(
    image: NDArray[np.floating[Any]], mask: Mask, spacing: tuple[float, ...]
) -> tuple[Mask, Array, NDArray[np.float64]]:
    """Mask and image as means of blocks of some :data:`COARSE_MM`, and the size of these, mm."""
    factor = [max(1, round(COARSE_MM / size - 0.2)) for size in spacing]
    sizes = np.array([n * size for n, size in zip(factor, spacing, strict=True)])
    return _blocks(mask, factor) > 0.5, _blocks(image, factor), sizes


def _blocks(data: NDArray[Any], factor: list[int]) -> Array:
    """Means of blocks of voxels."""
    whole = tuple(slice(n // k * k) for n, k in zip(data.shape, factor, strict=True))
    part = data[whole]
    if 0 in part.shape:
        return np.zeros(part.shape, dtype=np.float32)
    shape = [size for n, k in zip(part.shape, factor, strict=True) for size in (n // k, k)]
    return np.asarray(part.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32))


def on_grid(part: NDArray[Any], mask: Mask, sizes: NDArray[Any], scale: float) -> Array:
    """A volume on the grid of the comparison, centred on the mask.

    Parameters
    ----------
    part, mask : on one grid
    sizes : of its voxels, mm
    scale : by which the volume is made larger
    """
    sigma = 0.8 * GRID_MM / scale / sizes / 2.355
    matrix = np.diag(GRID_MM / scale / sizes)
    offset = np.array(scipy.ndimage.center_of_mass(mask)) - matrix @ np.full(3, (SIDE - 1) / 2)
    smooth = scipy.ndimage.gaussian_filter(part.astype(np.float32), sigma)
    return _at(smooth, matrix, offset)


def _at(volume: Array, matrix: NDArray[Any], offset: NDArray[Any]) -> Array:
    return np.asarray(
        scipy.ndimage.affine_transform(
            volume, matrix, offset, output_shape=(SIDE,) * 3, order=1, output=np.float32
        )
    )


@dataclass(frozen=True)
class _Turn:
    """Axis ``k`` leads along axis ``order[k]`` of the average brain, backwards where so."""

    order: tuple[int, ...]
    backwards: tuple[bool, ...]

    @property
    def name(self) -> str:
        pairs = zip(self.order, self.backwards, strict=True)
        return "".join((AWAY if back else TOWARDS)[axis] for axis, back in pairs)


@functools.cache
def _turns() -> tuple[_Turn, ...]:
    """The 24 turns by right angles, without mirror images."""
    found = []
    for order in itertools.permutations(range(3)):
        for backwards in itertools.product((False, True), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = [-1 if back else 1 for back in backwards]
            if np.linalg.det(matrix) > 0:
                found.append(_Turn(order, backwards))
    return tuple(found)


def _fit(turn: _Turn, centred: NDArray[np.float64], full: Mask, share: Array) -> Fit:
    """The best fit in one turn, over pitches and with or without the hindbrain."""
    places = np.argwhere(full)
    index = np.empty_like(places)
    for k, (axis, back) in enumerate(zip(turn.order, turn.backwards, strict=True)):
        index[:, axis] = SIDE - 1 - places[:, k] if back else places[:, k]
    flat = np.ravel_multi_index(tuple(index.T), share.shape)
    flipped = np.flip(share, tuple(k for k, back in enumerate(turn.backwards) if back))
    turned = np.transpose(flipped, np.argsort(turn.order))
    best = Fit(turn.name, 0.0, 0.0)
    for _, tissues, brain in average_brains():
        explained = explained_by(tissues[:, flat].astype(np.float64), centred)
        overlap = 2 * float(np.minimum(brain, turned).sum()) / float(brain.sum() + turned.sum())
        best = max(best, Fit(turn.name, explained, overlap), key=lambda fit: fit.score)
    return best


def explained_by(tissues: NDArray[np.float64], centred: NDArray[np.float64]) -> float:
    """Share of the variance that tissues explain, each with a brightness of its own, 0…1.

    Parameters
    ----------
    tissues : shares, (tissues, voxels)
    centred : intensities minus their mean, (voxels,)
    """
    total = float((centred**2).sum())
    columns = tissues - tissues.mean(axis=1, keepdims=True)
    towards = columns @ centred
    # so little of a ridge that it matters only where a tissue is absent
    ridge = 1e-5 * centred.size * np.eye(len(columns))
    weights = np.linalg.solve(columns @ columns.T + ridge, towards)
    model = weights @ columns
    return float(2 * weights @ towards - model @ model) / total if total else 0.0


@functools.cache
def average_brains() -> tuple[tuple[int, Array, Array], ...]:
    """Pitch, tissues (7, voxels) and brain (X, Y, Z) of each variant, on the comparison's grid."""
    with resources.files("bmex_bids.data").joinpath("average_brain.npz").open("rb") as stream:
        half = np.load(stream, allow_pickle=False)["shares"].astype(np.float32) / STORED_LEVELS
    whole = np.concatenate([half, half[:, ::-1]], axis=1)
    hindbrain = whole[list(HINDBRAIN)].sum(axis=0) >= whole[list(CEREBRUM)].sum(axis=0)
    variants: list[tuple[int, Array, Array]] = []
    for shares in (whole, whole * ~hindbrain):
        brain = shares[-1]
        scale = (LITRES / (float(brain.sum()) * STORED_MM**3 / 1e6)) ** (1 / 3)
        centre = np.array(scipy.ndimage.center_of_mass(brain))
        for pitch in PITCHES:
            cos, sin = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
            about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
            matrix = about_x * (GRID_MM / STORED_MM / scale)
            offset = centre - matrix @ np.full(3, (SIDE - 1) / 2)
            moved = np.stack([_at(part, matrix, offset) for part in shares])
            variants.append((pitch, moved[:-1].reshape(len(moved) - 1, -1), moved[-1]))
    return tuple(variants)
