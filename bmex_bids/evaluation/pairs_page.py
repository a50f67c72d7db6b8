# SPDX-License-Identifier: Apache-2.0
"""Figures of pairs of a still and a moved scan as one Markdown page with pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bmex_bids.evaluation.figures import show
from bmex_bids.evaluation.pairs import AGREEMENT, Compared, Pair, Row, volume_words
from bmex_bids.evaluation.summary import changed, grid, probability
from bmex_bids.metrics.statistics import cohens_d, cohens_d_paired, icc, paired_t

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: under what a table of volumes stands
VOLUMES_SAY = (
    "Litres. Before and after are the mean difference from "
    "the still scan, absolute the mean of its size, d the mean difference over the pooled standard "
    "deviation of the two groups (Cohen: 0.2 small, 0.5 medium), d_z over that of the differences, "
    "ICC(2,1) the agreement with the still scan."
)
#: share of the brain's brightest that is shown as the largest error
ERROR = 0.15


def markdown(
    rows: Sequence[Row], left_out: Mapping[str, str], pictures: Sequence[Path], *, heading: str
) -> str:
    """The page.

    Parameters
    ----------
    rows : of all pairs
    left_out : moved scan → why
    pictures : PNG files in the folder of the page
    heading : what was compared
    """
    conditions = list(dict.fromkeys(row.condition for row in rows))
    parts = [f"# Real motion: {heading}"]
    count = len({row.moved for row in rows})
    parts.append(
        f"{count} moved scan{'s' * (count != 1)}, registered rigidly to the still scan of the same "
        "participant; bias fields removed, intensities fitted linearly, figures inside both brain "
        "masks. Before is the scan, after is `desc-preproc`, moved by the same transform. Intervals "
        "are of the bootstrap (95 %), p of the paired t-test, d_z is Cohen's d of the pairs (mean "
        "change over its standard deviation)."
    )
    parts.append("## Agreement with the still scan\n\n" + agreement(rows, conditions))
    parts.append(
        "## Volumes\n\nClasses by brightness, of segmenters that do not know the network; what the "
        f"app has measured, in the enhanced scans. {VOLUMES_SAY}\n\n" + volumes(rows, conditions)
    )
    parts += [f"![{path.stem}]({path.name})" for path in pictures]
    if left_out:
        parts.append(left_out_list(left_out))
    return "\n\n".join(parts) + "\n"


def left_out_list(left_out: Mapping[str, str]) -> str:
    """Scans that were not compared, and why."""
    lines = "\n".join(f"- {name}: {why}" for name, why in left_out.items())
    return f"## Left out\n\n{lines}"


def agreement(
    rows: Sequence[Row],
    conditions: Sequence[str],
    measures: Mapping[str, str] = AGREEMENT,
    *,
    sides: tuple[str, str, str, str] = ("moved", "pairs", "before", "after"),
    less_is_better: bool = False,
) -> str:
    """A row a condition and measure, with a paired test over the rows of each.

    Parameters
    ----------
    measures : measure → its words
    sides : what a condition is, what is counted, and what is compared
    """
    head = [sides[0], "measure", *sides[1:], "change", "better", "p", "d_z"]
    lines = []
    for condition, measure, found in _each(rows, conditions, measures):
        before, after = [row.before for row in found], [row.after for row in found]
        change = [b - a for a, b in zip(before, after, strict=True)]
        better = sum((value < 0) if less_is_better else (value > 0) for value in change)
        lines.append(
            [
                condition,
                measures[measure],
                str(len(found)),
                _number(float(np.mean(before))),
                _number(float(np.mean(after))),
                changed(change, 3),
                f"{better} of {len(change)}",
                probability(paired_t(after, before)),
                _effect(cohens_d_paired(change)),
            ]
        )
    return grid(head, lines)


def volumes(rows: Sequence[Row], conditions: Sequence[str]) -> str:
    """A row a condition and volume: differences from the still scan, before and after."""
    head = [
        "moved", "volume", "pairs", "still", "before", "after", "absolute before",
        "absolute after", "p of the absolute", "d before", "d after", "d_z before", "d_z after",
        "ICC before", "ICC after",
    ]  # fmt: skip
    lines = []
    names = {row.measure: words for row in rows if (words := volume_words(row.measure))}
    for condition, measure, found in _each(rows, conditions, names):
        still = np.array([row.still_value for row in found])
        values = [np.array([getattr(row, when) for row in found]) for when in ("before", "after")]
        there = still > 0
        shares = [value[there] / still[there] - 1 for value in values]
        offs = [np.abs(share) for share in shares]
        lines.append(
            [
                condition,
                names[measure],
                str(len(found)),
                f"{still.mean():.4g}",
                *(said(_mean(share), "+.1%") for share in shares),
                *(said(_mean(off), ".1%") for off in offs),
                probability(paired_t(list(offs[1]), list(offs[0]))),
                *(_effect(cohens_d(list(value), list(still))) for value in values),
                *(_effect(cohens_d_paired(list(value - still))) for value in values),
                *(said(icc(list(value), list(still)), ".2f") for value in values),
            ]
        )
    return grid(head, lines)


def _each(
    rows: Sequence[Row], conditions: Sequence[str], measures: Mapping[str, str]
) -> Iterator[tuple[str, str, list[Row]]]:
    """A volume has a still value; before enhancement some are not measured."""
    for condition in conditions:
        for measure in measures:
            found = [
                row
                for row in rows
                if (row.condition, row.measure) == (condition, measure)
                and math.isfinite(row.after)
                and any(math.isfinite(value) for value in (row.before, row.still_value))
            ]
            if found:
                yield condition, measure, found


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def said(value: float, how: str) -> str:
    """A figure in a format; empty for NaN."""
    return "" if math.isnan(value) else format(value, how)


def _number(value: float) -> str:
    return f"{value:.3f}"


def _effect(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}"


def lines_figure(rows: Sequence[Row]) -> Figure:
    """Each pair as a line from before to after; a panel a measure and condition."""
    from matplotlib.figure import Figure

    conditions = list(dict.fromkeys(row.condition for row in rows))
    there = {row.measure for row in rows}
    measures = {name: words for name, words in AGREEMENT.items() if name in there}
    figure = Figure(
        figsize=(2.6 * len(measures), 2.4 * len(conditions) + 0.3), layout="constrained"
    )
    axes = figure.subplots(len(conditions), len(measures), squeeze=False)
    for line, condition in enumerate(conditions):
        for column, (measure, name) in enumerate(measures.items()):
            axis = axes[line, column]
            for _, _, found in _each(rows, [condition], {measure: name}):
                for row in found:
                    better = row.after > row.before
                    axis.plot(
                        [0, 1],
                        [row.before, row.after],
                        color="#0072b2" if better else "#d55e00",
                        linestyle="-" if better else "--",
                        marker="o",
                        markersize=3,
                        linewidth=1,
                    )
            axis.set_xticks([0, 1], ["before", "after"])
            axis.set_xlim(-0.25, 1.25)
            axis.set_title(name, fontsize=9)
        axes[line, 0].set_ylabel(condition, fontsize=9)
    figure.suptitle("each line a scan; broken: worse after", fontsize=9)
    return figure


def pair_figure(pair: Pair, compared: Compared) -> Figure:
    """Still scan, before, after and both errors in an axial slice."""
    from matplotlib.figure import Figure

    z = int(np.argmax(compared.mask.sum(axis=(0, 1))))
    planes = {
        "still": compared.still,
        "before": compared.before,
        "after": compared.after,
        "error before": np.abs(compared.before - compared.still),
        "error after": np.abs(compared.after - compared.still),
    }
    top = float(np.percentile(compared.still[compared.mask], 99.9)) or 1.0
    figure = Figure(figsize=(2.2 * len(planes), 2.9), layout="constrained")
    for axis, (name, data) in zip(figure.subplots(1, len(planes)), planes.items(), strict=True):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(name, fontsize=9)
        if name.startswith("error"):
            show(axis, data[:, :, z], ERROR * top, "magma")
        else:
            show(axis, data[:, :, z], top, "gray")
    figure.suptitle(f"{pair.name}; errors up to {ERROR:.0%} of the brightest", fontsize=9)
    return figure
