# SPDX-License-Identifier: Apache-2.0
"""Quality measures of MRIQC, under its names and by its formulas (version 24).

Esteban et al., PLoS ONE 2017; https://mriqc.readthedocs.io/en/latest/iqms/t1w.html.  The formulas
are MRIQC's; tissue maps, bias field and the masks of brain, head and air are this application's, so
values come close to MRIQC's and are not the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

#: of the maps, in their order
TISSUES = ("csf", "gm", "wm")
#: median of white matter that intensities are scaled to
WHITE_MATTER = 1000.0
#: probability from which a voxel counts as white matter for that
SURE = 0.9
#: 1 / sqrt(2 / (4 - pi)) (Dietrich et al., J. Magn. Reson. Imaging 2007)
DIETRICH = 0.6551364
#: standard deviation of a normal distribution over its median absolute deviation
NORMAL_MAD = 0.6744897501960817
#: standard deviation to full width at half maximum
FWHM = 2.35482
#: fewest zeros of a picture that is padded; deviations of the air beyond which it is an artifact
FEWEST_PADDED, ARTIFACT = 500, 10.0
#: height in the brain, 0 its lowest and 1 its highest point, above which air counts: there are
#: neither eyes nor neck.  MRIQC takes the level of glabella and inion, 14 mm below the commissure.
HAT = 0.37
#: edge in mm of the blocks that the head is looked for in; brightness of its surface as a share of
#: the brain's median
BLOCK_MM, SKIN = 3.0, 0.15


@dataclass(frozen=True)
class Scan:
    """An image and what is known of it.

    Attributes
    ----------
    image : (X, Y, Z), axes LPS, the scanner's intensities
    field : (X, Y, Z), the bias field that the image is divided by, mean about 1
    maps : (3, X, Y, Z), probabilities of CSF, GM and WM, 0…1; zero outside the brain
    brain : (X, Y, Z)
    head : (X, Y, Z), see :func:`head_mask`; None for an image without skull and air
    """

    image: Array
    field: Array
    maps: Array
    brain: Mask
    head: Mask | None


def measures(scan: Scan) -> dict[str, float]:
    """All measures that are defined for an image, by MRIQC's names.

    What needs air or the head (``cnr``, ``snrd_*``, ``efc``, ``fber``, ``wm2max``,
    ``summary_bg_*``) is left out where there is none, and so is what is not finite.  Empty where
    there is no white matter.
    """
    box = bounding_box(scan.brain) if scan.brain.any() else ()
    maps = [np.clip(part[box], 0, 1) for part in scan.maps]
    corrected = np.clip(np.nan_to_num(scan.image / scan.field), 0, None)
    scale = _scale(corrected[box], maps[2])
    if not scale:
        return {}
    corrected = corrected * np.float32(scale)
    stats = {name: summary(corrected[box], part) for name, part in zip(TISSUES, maps, strict=True)}
    found: dict[str, float] = {
        "cjv": _over(
            stats["wm"]["mad"] + stats["gm"]["mad"],
            abs(stats["wm"]["median"] - stats["gm"]["median"]),
        )
    }
    found |= _with_total("snr", {t: _snr(stats[t]) for t in TISSUES})
    found |= icvs(maps)
    found |= rpve(maps, scan.brain.size)
    found |= fwhm(scan.image[box], scan.brain[box])
    inu = scan.field[scan.brain]
    found["inu_med"] = float(np.median(inu))
    found["inu_range"] = float(np.ptp(np.percentile(inu, [5, 95])))
    if scan.head is not None:
        stats |= _of_the_head(scan, corrected, stats, found)
    for name, table in stats.items():
        found |= {f"summary_{name}_{key}": value for key, value in table.items()}
    return {name: found[name] for name in sorted(found) if math.isfinite(found[name])}


def _of_the_head(
    scan: Scan, corrected: Array, stats: Mapping[str, Mapping[str, float]], found: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Add what needs the head to ``found``; returns the statistics of the air as ``bg``."""
    assert scan.head is not None  # noqa: S101 - for mypy: the caller asks
    padded = padding(scan.image)
    found["efc"] = efc(corrected[~padded])
    found["fber"] = fber(corrected, scan.head, padded)
    found["wm2max"] = _over(stats["wm"]["median"], float(np.percentile(corrected, 99.95)))
    air = air_mask(scan.image, scan.brain, scan.head)
    if not corrected[air].any():
        return {}  # what the scanner saw there was set to zero
    around = summary(corrected[air], np.ones(int(air.sum()), np.float32))
    spread = around["mad"] if around["mad"] > 1 else around["stdv"]
    found |= _with_total(
        "snrd", {t: _over(DIETRICH * stats[t]["median"], spread) for t in TISSUES}
    )
    found["cnr"] = _over(
        abs(stats["wm"]["median"] - stats["gm"]["median"]),
        math.sqrt(sum(table["stdv"] ** 2 for table in (around, stats["gm"], stats["wm"]))),
    )
    return {"bg": around}


def _scale(corrected: Array, white: Array) -> float:
    """What brings the median of white matter to 1000, measured inside of it; 0 without any."""
    sure = white >= SURE
    inside = scipy.ndimage.binary_erosion(sure, scipy.ndimage.generate_binary_structure(3, 2))
    chosen = inside if inside.any() else sure
    level = float(np.median(corrected[chosen])) if chosen.any() else 0.0
    return WHITE_MATTER / level if level > 0 else 0.0


def _over(value: float, by: float) -> float:
    return value / by if by > 0 else math.nan


def _with_total(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """The tissues' values and, as ``total``, their mean."""
    return {
        **{f"{name}_{tissue}": value for tissue, value in values.items()},
        f"{name}_total": float(np.mean(list(values.values()))),
    }


def _snr(stats: Mapping[str, float]) -> float:
    count = stats["n"]
    spread = stats["stdv"] * math.sqrt(count / (count - 1)) if count > 1 else 0.0
    return _over(stats["median"], spread)


def summary(data: Array, weight: Array) -> dict[str, float]:
    """Statistics of intensities, weighted; all NaN but ``n`` where nothing weighs.

    Intensities are rounded to whole numbers and weights to three digits, as MRIQC does; kurtosis
    and median absolute deviation are those of the voxels of more than half the largest weight.

    Parameters
    ----------
    data, weight : of one shape
    """
    chosen = weight > 0
    values, weights = data[chosen], np.asarray(weight[chosen], dtype=np.float64)
    count = float(weights.sum())
    weights = np.round(weights, 3)
    total = float(weights.sum())
    if total <= 0:
        names = ("mean", "median", "p95", "p05", "k", "stdv", "mad")
        return {**dict.fromkeys(names, math.nan), "n": count}
    levels, places = np.unique(np.round(values).astype(np.float64), return_inverse=True)
    share = np.asarray(np.bincount(places, weights=weights), dtype=np.float64)
    mean = float((levels * share).sum()) / total
    deviation = math.sqrt(float(((levels - mean) ** 2 * share).sum()) / total)
    p05, median, p95 = _quantiles(levels, share, (0.05, 0.5, 0.95))
    core = values[weight[chosen] > 0.5 * weight.max()].astype(np.float64)
    spread = float(core.std())
    kurtosis = float(((core - core.mean()) ** 4).mean()) / spread**4 - 3 if spread else math.nan
    found = {
        "mean": mean,
        "median": median,
        "p95": p95,
        "p05": p05,
        "k": kurtosis,
        "stdv": deviation,
        "mad": float(np.median(np.abs(core - round(median, 4)))) / NORMAL_MAD,
    }
    return {**{name: round(value, 4) for name, value in found.items()}, "n": count}


def _quantiles(levels: Array, share: Array, wanted: tuple[float, ...]) -> list[float]:
    """Quantiles of weighted levels; between two levels where one ends just there."""
    there = share > 0
    levels, reached = levels[there], np.cumsum(share[there])
    found = []
    for part in wanted:
        target = part * float(reached[-1])
        place = min(int(np.searchsorted(reached, target)), levels.size - 1)
        exact = abs(target - float(reached[place])) < 1e-10 and place < levels.size - 1
        found.append(float(levels[place : place + 1 + exact].mean()))
    return found


def icvs(maps: list[Array]) -> dict[str, float]:
    """Shares of the tissues in their sum."""
    volumes = [float(part.sum(dtype=np.float64)) for part in maps]
    return {
        f"icvs_{name}": _over(volume, sum(volumes))
        for name, volume in zip(TISSUES, volumes, strict=True)
    }


def rpve(maps: list[Array], voxels: int) -> dict[str, float]:
    """Residual partial voluming of each tissue.

    Parameters
    ----------
    maps : probabilities, zero where there is none; they may be a part of the image
    voxels : of the whole image, since MRIQC counts each without the tissue as one
    """
    found = {}
    for name, part in zip(TISSUES, maps, strict=True):
        values = part[part > 0].astype(np.float64)
        if not values.size:
            continue
        low, high = np.percentile(values, [2, 98])
        kept = np.where((values < low) | (values > high), 0, values)
        most = kept > 0.5
        rest = voxels - int(most.sum()) - float(kept[~most].sum())
        found[f"rpve_{name}"] = (float(kept[most].sum()) + rest) / values.size
    return found


def fwhm(image: Array, brain: Mask) -> dict[str, float]:
    """Smoothness along the axes in voxels: full width at half maximum of a Gaussian.

    From the variance of differences of neighbours over that of the values (Forman et al., Magn.
    Reson. Med. 1995), as AFNI's 3dFWHMx computes it.  Left out where neighbours differ as if at
    random.
    """
    values = image[brain].astype(np.float64)
    variance = float(values.var(ddof=1)) if values.size > 1 else 0.0
    found = {}
    for axis, name in enumerate("xyz"):
        first, second = (
            tuple(part if other == axis else slice(None) for other in range(3))
            for part in (slice(None, -1), slice(1, None))
        )
        both = brain[first] & brain[second]
        steps = image[second][both].astype(np.float64) - image[first][both]
        rest = 1 - 0.5 * float(steps.var(ddof=1)) / variance if steps.size > 1 and variance else 0
        if 0 < rest < 1:
            found[f"fwhm_{name}"] = FWHM * math.sqrt(-1 / (4 * math.log(rest)))
    if len(found) == 3:
        found["fwhm_avg"] = float(np.mean(list(found.values())))
    return found


def efc(values: Array) -> float:
    """Entropy focus criterion: entropy of the intensities over the largest possible; 0…1."""
    count = values.size
    energy = math.sqrt(float((values.astype(np.float64) ** 2).sum()))
    if count < 2 or energy == 0:
        return math.nan
    share = values / np.float32(energy)
    entropy = float((share * np.log(share + np.float32(1e-30))).sum(dtype=np.float64))
    return round(entropy / (math.sqrt(count) * math.log(1 / math.sqrt(count))), 4)


def fber(image: Array, head: Mask, padded: Mask) -> float:
    """Median energy in the head over that around it; NaN where there is none around it."""
    around = image[~head & ~padded]
    if not around.size or not head.any():
        return math.nan
    outside = float(np.median(around.astype(np.float64) ** 2))
    inside = float(np.median(image[head].astype(np.float64) ** 2))
    return round(inside / outside, 4) if outside >= 1e-3 else math.nan


def padding(image: Array) -> Mask:
    """The largest piece of zeros: what was added when an image was turned, or cut away."""
    zeros = image <= 0
    if np.count_nonzero(zeros) < FEWEST_PADDED:
        return np.zeros(image.shape, dtype=bool)
    around = np.pad(zeros, 1, constant_values=True)
    around = scipy.ndimage.binary_opening(
        around, structure=scipy.ndimage.generate_binary_structure(3, 2)
    )
    pieces, count = scipy.ndimage.label(around)
    if count > 1:
        around = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    inner: Mask = around[1:-1, 1:-1, 1:-1]
    return inner if np.count_nonzero(inner) >= FEWEST_PADDED else np.zeros_like(inner)


def air_mask(image: Array, brain: Mask, head: Mask) -> Mask:
    """Air above the level of eyes and neck, without artifacts such as ghosts.

    Parameters
    ----------
    image : (X, Y, Z), axes LPS
    """
    air = ~head
    height = np.flatnonzero(brain.any(axis=(0, 1)))
    air[:, :, : int(height[0] + HAT * (height[-1] - height[0]))] = False
    values = image[air]
    positive = values[values > 0]
    if positive.size >= 10:
        middle = float(np.median(positive))
        spread = float(np.median(np.abs(positive - middle))) / NORMAL_MAD
        ghosts = np.zeros(air.shape, dtype=bool)
        ghosts[air] = values > ARTIFACT * spread
        air &= ~scipy.ndimage.binary_opening(ghosts)
    return air


def head_mask(image: Array, brain: Mask, spacing: tuple[float, ...]) -> Mask:
    """The head: what is brighter than air, with all that it encloses, and a rim of 3 mm.

    Parameters
    ----------
    image, brain : (X, Y, Z)
    spacing : mm
    """
    step = [max(1, round(BLOCK_MM / size)) for size in spacing]
    thin = tuple(slice(n // 2, None, n) for n in step)
    coarse = scipy.ndimage.uniform_filter(np.asarray(image, dtype=np.float32), step)[thin]
    middle = float(np.median(image[brain]))
    faces = np.concatenate([face.ravel() for face in _faces(coarse)])
    level = max(SKIN * middle, min(1.5 * float(np.median(faces)), 0.5 * middle))
    found = np.pad((coarse > level) | brain[thin], 3)
    found = scipy.ndimage.binary_closing(found, iterations=2)
    found = scipy.ndimage.binary_fill_holes(found)
    pieces, count = scipy.ndimage.label(found)
    if count > 1:
        found = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    found = scipy.ndimage.binary_dilation(found)[3:-3, 3:-3, 3:-3]
    for axis, n in enumerate(step):
        found = np.repeat(found, n, axis=axis)
        short = image.shape[axis] - found.shape[axis]
        if short > 0:
            found = np.concatenate([found, found.take([-1] * short, axis=axis)], axis=axis)
        found = found.take(range(image.shape[axis]), axis=axis)
    return np.asarray(found | brain)


def _faces(image: Array) -> Iterator[Array]:
    """All sides of the field of view but the lower one, where the neck leaves it; axes LPS."""
    yield from (image[0], image[-1], image[:, 0], image[:, -1], image[:, :, -1])
