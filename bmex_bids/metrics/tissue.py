# SPDX-License-Identifier: Apache-2.0
"""Figures that need tissues instead of a reference.

Labels are the network's: 0 background, 1 CSF, 2 GM, 3 WM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.structures import STRUCTURES, Structure

GM, WM = 2, 3


def tct(image: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    """Tissue contrast t: ``|mean_WM − mean_GM| / sqrt(var_WM + var_GM)`` (Sun et al. 2025).

    Zero or more, without unit; more contrast and less noise are higher.  NaN where a tissue is
    absent or both are constant and equal, infinite where both are constant and differ.
    """
    white, grey = (image[labels == k].astype(np.float64) for k in (WM, GM))
    if not white.size or not grey.size:
        return math.nan
    difference = abs(float(white.mean() - grey.mean()))
    spread = math.sqrt(float(white.var() + grey.var()))
    if spread == 0:
        return math.inf if difference else math.nan
    return difference / spread


def quality_index(
    before: NDArray[np.floating[Any]],
    after: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
) -> float:
    """Quality index: TCT of the original over TCT of the enhanced image (Sun et al. 2025).

    Near 1, the image was good already; the lower, the more there was to mend.  NaN where it cannot
    be measured.
    """
    best = tct(after, labels)
    return tct(before, labels) / best if best > 0 else math.nan


def dice(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Dice overlap of two masks, ``2 |A ∩ B| / (|A| + |B|)``, 0…1; 1 when both are empty."""
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    total = int(x.sum() + y.sum())
    return 2 * int((x & y).sum()) / total if total else 1.0


def dice_by_structure(
    found: NDArray[np.generic],
    truth: NDArray[np.generic],
    structures: Sequence[Structure] = STRUCTURES,
) -> dict[str, float]:
    """Dice of each structure that is in the truth, by name; labels of ``common.structures``."""
    there = {part.name: truth == part.number for part in structures}
    return {
        part.name: dice(found == part.number, there[part.name])
        for part in structures
        if there[part.name].any()
    }
