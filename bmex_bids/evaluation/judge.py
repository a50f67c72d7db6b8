# SPDX-License-Identifier: Apache-2.0
"""The figures of one image: against the clean one, in template units and on the input grid."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.noise import noise_sigma
from bmex_bids.degrade.blur import average_slabs, slab_centres
from bmex_bids.evaluation.segmentation import segment
from bmex_bids.imaging.noise import non_local_means
from bmex_bids.metrics.reference import mse, psnr, ssim
from bmex_bids.metrics.structure import Similarity
from bmex_bids.metrics.tissue import dice

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: of template units; on the input grid the range is this percentile of the clean brain
RANGE, TOP_PERCENTILE = 1000.0, 99.9
CLASSES = ("dark", "middle", "bright")
#: voxels around the brain that windows of measures may see
MARGIN = 10
#: half the width of the search for similar patches; filter strength over the noise
NLM_SEARCH, NLM_STRENGTH = 2, 0.5
#: lobes of the Lanczos kernel
LOBES = 3
HMRF_BETA, HMRF_ITERATIONS = 0.1, 20
#: standard deviation of the air around the brain, as a share of the brain's range
HMRF_AIR = 0.03
#: segmenters that do not know the network → how tables call them; the second shares no step with
#: the labels that train
SEGMENTERS = {"own": "Otsu and Potts", "hmrf": "HMRF of dipy"}


def in_template_units(image: Array, truth: Array, mask: Mask) -> dict[str, float]:
    """Error, PSNR, SSIM and MS-SSIM inside the mask, for a range of 1000.

    MS-SSIM is NaN for a brain that does not survive its four halvings.
    """
    box = bounding_box(mask, MARGIN)
    image, truth, mask = image[box], truth[box], mask[box]
    try:
        similarity, multi_scale = Similarity(truth, mask, RANGE).ssim_and_ms_ssim(image)
    except ValueError:
        similarity, multi_scale = ssim(image, truth, mask, RANGE), math.nan
    return {
        "mse": mse(image, truth, mask),
        "psnr": psnr(image, truth, mask, RANGE),
        "ssim": similarity,
        "ms_ssim": multi_scale,
    }


def on_input_grid(image: Array, truth: Array, mask: Mask) -> dict[str, float]:
    """Error and PSNR inside the mask after the linear fit of intensity, in the scanner's units."""
    fitted = linear_fit(image, truth, mask)
    top = float(np.percentile(truth[mask], TOP_PERCENTILE))
    return {
        "native_mse": mse(fitted, truth, mask),
        "native_psnr": psnr(fitted, truth, mask, top),
    }


def linear_fit(image: Array, truth: Array, mask: Mask) -> Array:
    """a · image + b with the a and b of least squared error inside the mask."""
    x, y = image[mask].astype(np.float64), truth[mask].astype(np.float64)
    variance = float(x.var())
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / variance if variance > 0 else 0.0
    return np.asarray(slope * (image - x.mean()) + y.mean(), dtype=np.float32)


def range_of(data: Array, mask: Mask) -> float:
    """What a percentage of noise is a percentage of: a high percentile of the brain."""
    return float(np.percentile(data[mask], TOP_PERCENTILE))


# ---------------------------------------------------------------- tissues
def segmenters() -> tuple[str, ...]:
    """Names of the segmenters that are here: ours, and dipy's where it is installed."""
    there = importlib.util.find_spec("dipy") is not None
    return tuple(name for name in SEGMENTERS if there or name != "hmrf")


def classes(name: str, image: Array, mask: Mask) -> NDArray[np.uint8]:
    """Three classes by rising brightness, 0 outside, by one segmenter."""
    if name == "own":
        return segment(image, mask)
    from dipy.segment.tissue import TissueClassifierHMRF

    box = bounding_box(mask, 2)
    # zeros around the brain are a class without variance, which takes the darkest tissue's mean:
    # classes are lost, or all becomes NaN; a drawn air with one draw makes it the same each time
    air = np.abs(np.random.default_rng(0).normal(0, HMRF_AIR, mask[box].shape))
    bright = np.clip(image[box] / max(range_of(image, mask), 1e-6), 1e-3, 1)
    inside = np.where(mask[box], bright, air)
    _, found, _ = TissueClassifierHMRF(verbose=False).classify(
        inside, len(CLASSES), HMRF_BETA, max_iter=HMRF_ITERATIONS
    )
    labels = np.zeros(image.shape, dtype=np.uint8)
    labels[box] = np.where(mask[box], np.clip(np.rint(found), 1, len(CLASSES)), 0)
    return labels


def tissue_agreement(
    name: str, found: NDArray[np.uint8], truth: NDArray[np.uint8], mask: Mask
) -> dict[str, float]:
    """Mean Dice of the classes, and the relative change of each volume."""
    figures = {f"dice_{name}": class_dice(found, truth, mask)}
    for number, tissue in enumerate(CLASSES, start=1):
        a, b = (np.count_nonzero(labels[mask] == number) for labels in (found, truth))
        figures[f"volume_{name}_{tissue}"] = a / b - 1 if b else math.nan
    return figures


def class_dice(found: NDArray[np.uint8], truth: NDArray[np.uint8], mask: Mask) -> float:
    """Mean Dice of the classes inside the mask."""
    numbers = range(1, len(CLASSES) + 1)
    return float(np.mean([dice(found[mask] == k, truth[mask] == k) for k in numbers]))


# ---------------------------------------------------------------- classical methods
def denoised(image: Array, mask: Mask, sigma: float | None = None) -> Array:
    """Non-local means with a known noise, or with the estimated one."""
    box = bounding_box(mask, MARGIN)
    found = noise_sigma(image[box], mask[box]) if sigma is None else sigma
    if found <= 0:
        return image
    result = image.copy()
    result[box] = non_local_means(image[box], found, strength=NLM_STRENGTH, search=NLM_SEARCH)
    return np.where(mask, result, 0).astype(np.float32)


def lanczos(clean: Array, axis: int, factor: float) -> Array:
    """Slices of ``factor`` voxels, interpolated by a Lanczos kernel (Duchon 1979) of three lobes."""
    thick = np.moveaxis(average_slabs(clean, axis, factor), axis, 0)
    n = clean.shape[axis]
    centres = slab_centres(n, factor)
    place = (np.arange(n) - centres[0]) / factor
    weights = np.zeros((n, len(centres)))
    first = np.floor(place).astype(int)
    for offset in range(1 - LOBES, LOBES + 1):
        slab = first + offset
        distance = place - slab
        kernel = np.where(
            np.abs(distance) < LOBES, np.sinc(distance) * np.sinc(distance / LOBES), 0
        )
        np.add.at(weights, (np.arange(n), np.clip(slab, 0, len(centres) - 1)), kernel)
    weights /= weights.sum(axis=1, keepdims=True)
    moved = np.tensordot(weights.astype(np.float32), thick, axes=1)
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis), dtype=np.float32)
