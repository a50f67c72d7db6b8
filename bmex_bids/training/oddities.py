# SPDX-License-Identifier: Apache-2.0
"""What scanners make of some heads: odd backgrounds, slabs, folded and half heads."""

from __future__ import annotations

import numpy as np

from bmex_bids.training.heads import dark_share
from bmex_bids.training.synthesis import Array

#: share of heads with each
BACKGROUND, SLAB, FOLDED, HALF = 0.25, 0.12, 0.06, 0.05
SLAB_MM = (25.0, 90.0)
FOLD_MM = (10.0, 45.0)


def odd(
    image: Array, brain: Array, spacing_mm: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A head, now and then with an odd background, folded, or in part.

    Parameters
    ----------
    image, brain : (X, Y, Z) as a scan has them, 0 dark and about 1 bright; brain 0…1
    spacing_mm : of both

    Returns
    -------
    image, brain : a slab has fewer voxels on one axis
    """
    if rng.random() < BACKGROUND:
        image = with_background(image, brain, rng)
    if rng.random() < FOLDED:
        image, brain = folded(image, brain, round(rng.uniform(*FOLD_MM) / spacing_mm), rng)
    if rng.random() < HALF:
        image, brain = halved(image, brain, rng)
    if rng.random() < SLAB:
        image, brain = slab(image, brain, round(rng.uniform(*SLAB_MM) / spacing_mm), rng)
    return image, brain


def with_background(image: Array, brain: Array, rng: np.random.Generator) -> Array:
    """Noise as in MP2RAGE's UNI images, grey as in PSIR, or brighter than the head."""
    dark = dark_share(image, brain, float(rng.uniform(0.08, 0.25)))
    kind = str(rng.choice(["noise", "grey", "bright"]))
    if kind == "bright":
        filled = np.full(image.shape, rng.uniform(0.9, 2.0))
    else:
        middle = rng.uniform(0.2, 0.7)
        reach = rng.uniform(0.2, 1.0) if kind == "noise" else rng.uniform(0.0, 0.15)
        filled = middle + reach * rng.uniform(-0.5, 0.5, image.shape)
    return np.asarray(image + dark * (filled - image), dtype=np.float32)


def folded(
    image: Array, brain: Array, depth: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """The lowest ``depth`` planes (LPS: the neck) lie on the highest ones; they are in neither."""
    depth = min(depth, image.shape[2] // 4)
    if depth < 1:
        return image, brain
    rest = image[:, :, depth:].copy()
    rest[:, :, -depth:] += np.float32(rng.uniform(0.3, 1)) * np.clip(image[:, :, :depth], 0, None)
    return rest, brain[:, :, depth:].copy()


def halved(image: Array, brain: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """One side is empty, from about the middle of the brain on."""
    planes = np.flatnonzero(brain.any(axis=(1, 2)))
    if planes.size == 0:
        return image, brain
    middle = round((planes[0] + planes[-1]) / 2 + rng.normal(0, 3))
    gone = slice(0, max(middle, 0)) if rng.random() < 0.5 else slice(max(middle, 0), None)
    image, brain = image.copy(), brain.copy()
    image[gone], brain[gone] = 0, 0
    return image, brain


def slab(image: Array, brain: Array, width: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """``width`` planes of one axis, somewhere in the brain."""
    axis = int(rng.integers(3))
    planes = np.flatnonzero(brain.any(axis=tuple(k for k in range(3) if k != axis)))
    if planes.size == 0:
        return image, brain
    width = max(width, 8)
    latest = max(int(planes[-1]) - width, int(planes[0])) + 1
    first = int(rng.integers(int(planes[0]), latest + 1))
    cut = [slice(None)] * 3
    cut[axis] = slice(first, first + width)
    return image[tuple(cut)].copy(), brain[tuple(cut)].copy()
