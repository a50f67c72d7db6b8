# SPDX-License-Identifier: Apache-2.0
"""Volumes of still and moved images as one Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bmex_bids.evaluation.pairs import Row, volume_words
from bmex_bids.evaluation.pairs_page import VOLUMES_SAY, left_out_list, said, volumes
from bmex_bids.evaluation.summary import grid
from bmex_bids.metrics.confidence import rank_correlation

Values = NDArray[np.float64]
#: anatomies that a slope needs
FEWEST = 3
#: of the condition that is no motion
STILL_SAYS = (
    "*still* is the still image itself: its *after* is what enhancement does to an anatomy that "
    "did not move."
)


def markdown(
    rows: Sequence[Row],
    truth: Mapping[tuple[str, str], float],
    *,
    heading: str,
    left_out: Mapping[str, str] | None = None,
) -> str:
    """The page.

    Parameters
    ----------
    rows : of still and moved images
    truth : (image, tissue or structure) → litres, of painted heads
    heading : what was compared
    left_out : image → why
    """
    chosen = [row for row in rows if volume_words(row.measure)]
    conditions = list(dict.fromkeys(row.condition for row in chosen))
    count = len({row.still for row in chosen})
    parts = [
        f"# Bias of volumes: {heading}",
        f"{count} still image{'s' * (count != 1)}. {VOLUMES_SAY} "
        + STILL_SAYS * ("still" in conditions),
        table(chosen, truth),
    ]
    if left_out:
        parts.append(left_out_list(left_out))
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row], truth: Mapping[tuple[str, str], float]) -> str:
    """Both tables, as they go into a page of the documentation."""
    conditions = list(dict.fromkeys(row.condition for row in rows))
    parts = [volumes(rows, conditions)]
    if known := against_truth(rows, truth):
        parts.append(
            "Against the true volumes of painted heads (outer fluid inside the brain mask). Slope is the "
            "regression of the measured volume on the true one over the heads, 1 where atrophy is "
            f"kept as it is; from {FEWEST} heads on.\n\n{known}"
        )
    return "\n\n".join(parts)


def against_truth(rows: Sequence[Row], truth: Mapping[tuple[str, str], float]) -> str:
    """A row a condition and volume: error, slope and rank correlation; empty without truth."""
    head = [
        "moved", "volume", "heads", "true, litres", "error before", "error after",
        "slope before", "slope after", "Spearman before", "Spearman after",
    ]  # fmt: skip
    groups: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for row in rows:
        wanted = truth.get((row.still, tissue_of(row.measure)), math.nan)
        if wanted > 0:
            groups.setdefault((row.condition, row.measure), []).append((wanted, row))
    lines = []
    for (condition, measure), found in groups.items():
        true = np.array([value for value, _ in found])
        sides = [
            np.array([getattr(row, when) for _, row in found]) for when in ("before", "after")
        ]
        lines.append(
            [
                condition,
                volume_words(measure),
                str(len(found)),
                f"{true.mean():.4g}",
                *(said(float((side / true - 1).mean()), "+.1%") for side in sides),
                *(said(slope(side, true), ".2f") for side in sides),
                *(
                    said(rank_correlation(side, true) if _enough(side) else math.nan, ".2f")
                    for side in sides
                ),
            ]
        )
    return grid(head, lines) if lines else ""


def tissue_of(measure: str) -> str:
    """The tissue or structure of a measure of volume."""
    return measure.partition("_")[2].removesuffix("_litres")


def slope(measured: Values, true: Values) -> float:
    """Of the regression of measured on true volumes; NaN for fewer than :data:`FEWEST`."""
    spread = float(((true - true.mean()) ** 2).sum())
    if not _enough(measured) or spread == 0:
        return math.nan
    return float(((true - true.mean()) * (measured - measured.mean())).sum()) / spread


def _enough(measured: Values) -> bool:
    return measured.size >= FEWEST and bool(np.isfinite(measured).all())
