# SPDX-License-Identifier: Apache-2.0
"""Voxels of half the edge against interpolation: real images, and painted brains.

A real image is averaged over 2 × 2 × 2 voxels and brought back.  A brain is painted at 0.4 mm from a
label map, averaged to 0.8 mm and brought back; its fluid is found by brightness alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage
import SimpleITK as sitk
from numpy.typing import NDArray

from bmex_bids.common.structures import STRUCTURES
from bmex_bids.evaluation.anatomy import structures_of
from bmex_bids.network.inference.halve import halve
from bmex_bids.network.weights.registry import WeightRecord
from bmex_bids.training.within import darkest, picture

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: images that do not train, relative to the folder of data
IMAGES = (
    "adult-brains/sub-31_T1w.nii.gz",
    "adult-brains/sub-68_T1w.nii.gz",
    "heads-open/ds000011_sub-14_T1w.nii.gz",
    "heads-open/child10_T1w.nii.gz",
)
#: ways to bring an image back, beside the network
INTERPOLATORS: Mapping[str, int] = {
    "cubic": sitk.sitkBSpline3,
    "lanczos": sitk.sitkLanczosWindowedSinc,
}
#: of a painted brain: mm of the map and of what is painted, edge of its cube in voxels of the map
MAP_MM, FINE_MM, CUBE = 1.0, 0.4, 72
#: brightness of nothing, fluid, grey and white matter; deviation of the texture
LEVELS, TEXTURE = np.array([0, 150, 450, 700], np.float32), 25.0
#: mm: of the Gaussian that smooths labels, and of the textures
SMOOTH_MM, GRAIN_MM = 0.7, (0.4, 1.2)
#: number of fluid
FLUID = 1


def coarse_of(fine: Array) -> Array:
    """(X, Y, Z), the means of blocks of an image (2X, 2Y, 2Z)."""
    blocks = fine.reshape([k for n in fine.shape for k in (n // 2, 2)])
    return np.asarray(blocks.mean((1, 3, 5)))


def interpolated(image: Array, interpolator: int) -> Array:
    """Voxels of half the edge, (2X, 2Y, 2Z), never negative; beyond the edges the last go on."""
    resample = sitk.ResampleImageFilter()
    resample.SetSize([2 * n for n in image.shape])
    resample.SetOutputSpacing([0.5] * 3)
    resample.SetOutputOrigin([-0.25] * 3)
    resample.SetInterpolator(interpolator)
    resample.SetUseNearestNeighborExtrapolator(True)
    fine = resample.Execute(sitk.GetImageFromArray(image.transpose(2, 1, 0)))
    return np.asarray(sitk.GetArrayFromImage(fine).transpose(2, 1, 0).clip(0), dtype=np.float32)


def ways(
    coarse: Array, inside: Mask, record: WeightRecord, threads: int
) -> Iterator[tuple[str, Array]]:
    """An image brought back by each interpolation, and by the ``network``."""
    for name, interpolator in INTERPOLATORS.items():
        yield name, interpolated(coarse, interpolator)
    yield "network", halve(coarse, inside, record, device="cpu", threads=threads)


def rmse_of(truth: Array, record: WeightRecord, threads: int = 1) -> dict[str, float]:
    """Root mean square error in the brain or head, way → units of 0…1000.

    Parameters
    ----------
    truth : (X, Y, Z), 0…1000; an odd last plane is left out
    """
    truth = np.ascontiguousarray(truth[tuple(slice(0, n // 2 * 2) for n in truth.shape)])
    head = truth > darkest(truth)
    inside = coarse_of(head.astype(np.float32)) > 0
    return {
        name: float(np.sqrt(((fine - truth)[head] ** 2).mean()))
        for name, fine in ways(coarse_of(truth), inside, record, threads)
    }


def image_rows(
    paths: Sequence[Path], record: WeightRecord, threads: int = 1
) -> Iterator[tuple[str, dict[str, float]]]:
    """Name of an image and :func:`rmse_of` it."""
    for path in paths:
        image, _ = picture(path)
        yield path.name.split(".")[0], rmse_of(image, record, threads)


def painted(
    labels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Array, NDArray[np.uint8]]:
    """A brain at :data:`FINE_MM`, painted, and its tissues (1 fluid, 2 grey, 3 white matter).

    Parameters
    ----------
    labels : (X, Y, Z) numbers of tissues, voxels of :data:`MAP_MM`
    """
    zoom = MAP_MM / FINE_MM
    shape = [int(n * zoom) // 2 * 2 for n in labels.shape]
    best = np.full(shape, -1.0, np.float32)
    tissues = np.zeros(shape, np.uint8)
    for tissue in range(len(LEVELS)):
        share = scipy.ndimage.gaussian_filter(
            (labels == tissue).astype(np.float32), SMOOTH_MM / MAP_MM
        )
        fine = scipy.ndimage.affine_transform(
            share, [1 / zoom] * 3, offset=0.5 / zoom - 0.5, output_shape=shape, order=1,
            mode="nearest",
        )  # fmt: skip
        tissues[fine > best] = tissue
        best = np.maximum(best, fine)
    image = LEVELS[tissues]
    for grain in GRAIN_MM:
        noise = scipy.ndimage.gaussian_filter(
            rng.standard_normal(shape, dtype=np.float32), grain / FINE_MM / 2.355
        )
        image += noise * (TEXTURE / max(float(noise.std()), 1e-6) / len(GRAIN_MM) ** 0.5)
    return np.where(tissues > 0, image.clip(1), 0).astype(np.float32), tissues


def fluid_of(image: Array) -> Mask:
    """Fluid by brightness: nearer to its level than to that of grey matter or of nothing."""
    return np.asarray((image > LEVELS[:2].mean()) & (image < LEVELS[1:3].mean()))


def fluid_rows(
    maps: Sequence[Path], record: WeightRecord, threads: int = 1
) -> Iterator[tuple[str, dict[str, float]]]:
    """Name of a label map, and Dice of the fluid in the middle of its brain, way → 0…1."""
    tissue_of = np.array([0, *(part.tissue for part in STRUCTURES)], dtype=np.uint8)
    for path in maps:
        labels = tissue_of[structures_of(path)]
        middle = [int(np.median(places)) for places in np.nonzero(labels > FLUID)]
        cube = labels[tuple(slice(max(m - CUBE // 2, 0), m + CUBE // 2) for m in middle)]
        truth, tissues = painted(cube, np.random.default_rng(0))
        coarse = coarse_of(truth)
        inside = coarse > 0
        fluid = tissues == FLUID
        found = {}
        for name, fine in ways(coarse, inside, record, threads):
            seen = fluid_of(fine)
            found[name] = float(2 * (seen & fluid).sum() / max(int(seen.sum() + fluid.sum()), 1))
        yield path.name.split(".")[0], found
