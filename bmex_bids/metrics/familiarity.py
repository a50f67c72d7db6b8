# SPDX-License-Identifier: Apache-2.0
"""How far an image and its enhancement are from those that a network was trained with.

A few figures describe the contrast, the texture, the tissues and the error that the network
expects.  Their mean and covariance in images that trained, damaged anew, are kept with the weights.
The distance of an image is that of Mahalanobis over the root of the number of figures: about 1 for
what is usual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.tissues import TISSUES
from bmex_bids.metrics.change import estimated_error

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

#: names of the figures; all are natural logarithms
FEATURES = (
    "fluid over white matter", "grey over white matter",  # mean intensities of the input
    "detail", "detail, most over least of the axes",  # of the input
    "volume of fluid over white matter", "volume of grey over white matter",
    "estimated error before", "estimated error after",
)  # fmt: skip
#: share by which covariances are made smaller: of few images they are not well known
SHRINKAGE = 0.2
#: least standard deviation of a figure
LEAST_SPREAD = 0.02
TINY = 1e-6


def features(
    before: Array, after: Array, deviation: Array, labels: NDArray[np.integer[Any]], mask: Mask
) -> NDArray[np.float64]:
    """The figures of :data:`FEATURES`.

    Parameters
    ----------
    before, after, deviation : (X, Y, Z), one unit: input, enhanced image, its expected error
    labels : (X, Y, Z), tissues as the network numbers them
    mask : (X, Y, Z), the brain
    """
    inside = np.asarray(mask, dtype=bool)
    means, volumes = {}, {}
    for tissue in TISSUES:
        chosen = (labels == tissue.number) & inside
        volumes[tissue.label] = max(float(chosen.sum()), 1.0)
        means[tissue.label] = float(before[chosen].mean()) if chosen.any() else 0.0
    detail = _detail(before, inside)
    errors = estimated_error(before, after, deviation, inside)
    values = (
        means["CSF"] / max(means["WM"], TINY),
        means["GM"] / max(means["WM"], TINY),
        float(np.mean(detail)),
        max(detail) / max(min(detail), TINY),
        volumes["CSF"] / volumes["WM"],
        volumes["GM"] / volumes["WM"],
        *errors,
    )
    return np.log(np.maximum(values, TINY))


def _detail(image: Array, inside: Mask) -> list[float]:
    """Mean squared difference of neighbours over the variance, of each axis."""
    variance = max(float(image[inside].var()), TINY)
    found = []
    for axis in range(3):
        first, second = (
            tuple(side if k == axis else slice(None) for k in range(3))
            for side in (slice(1, None), slice(None, -1))
        )
        both = inside[first] & inside[second]
        steps = np.asarray(image[first][both], np.float64) - image[second][both]
        found.append(float((steps**2).mean()) / variance if steps.size else 0.0)
    return found


def usual(samples: Sequence[Sequence[float] | Array]) -> dict[str, Any]:
    """What is kept with the weights: ``mean`` and ``precision`` (the inverse of the covariance).

    Parameters
    ----------
    samples : figures of images that trained; three or more
    """
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 3:
        raise ValueError(f"expected figures of three images or more, got {len(values)}")
    covariance = np.cov(values, rowvar=False)
    spread = np.maximum(np.diag(covariance), LEAST_SPREAD**2)
    covariance = (1 - SHRINKAGE) * covariance
    np.fill_diagonal(covariance, spread)
    precision = np.linalg.inv(covariance)
    return {
        "mean": [round(float(v), 4) for v in values.mean(axis=0)],
        "precision": [[round(float(v), 4) for v in row] for row in precision],
    }


def distance(found: Sequence[float] | Array, known: Mapping[str, Any]) -> float:
    """How far figures are from the usual; NaN where some are not finite.

    Parameters
    ----------
    known : of :func:`usual`
    """
    away = np.asarray(found, dtype=np.float64) - np.asarray(known["mean"])
    squared = float(away @ np.asarray(known["precision"]) @ away) / away.size
    return math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else math.nan
