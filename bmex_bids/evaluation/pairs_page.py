# SPDX-License-Identifier: Apache-2.0
"""Figures of pairs of a still and a moved scan as one Markdown page with pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmex_bids.evaluation.figures import show
from bmex_bids.evaluation.pairs import AGREEMENT, VOLUMES, Compared, Pair, Row
from bmex_bids.evaluation.summary import changed, grid, probability
from bmex_bids.metrics.statistics import cohens_d_paired, paired_t

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        "are of the bootstrap (95 %), p of the paired t-test, d is Cohen's d of the pairs (mean "
        "change over its standard deviation)."
    )
    parts.append("## Agreement with the still scan\n\n" + agreement(rows, conditions))
    parts.append(
        "## Volumes of the classes\n\nClasses by brightness, of a segmenter that does not know the "
        "network. Difference of the moved from the still scan; d of that difference: 0 where motion "
        "does not show in the volumes.\n\n" + volumes(rows, conditions)
    )
    parts += [f"![{path.stem}]({path.name})" for path in pictures]
    if left_out:
        lines = "\n".join(f"- {name}: {why}" for name, why in left_out.items())
        parts.append(f"## Left out\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def agreement(rows: Sequence[Row], conditions: Sequence[str]) -> str:
    """A row a condition and measure."""
    head = ["moved", "measure", "pairs", "before", "after", "change", "better", "p", "d"]
    lines = []
    for condition, measure, found in _each(rows, conditions, AGREEMENT):
        before, after = [row.before for row in found], [row.after for row in found]
        change = [b - a for a, b in zip(before, after, strict=True)]
        lines.append(
            [
                condition,
                AGREEMENT[measure],
                str(len(found)),
                _number(float(np.mean(before))),
                _number(float(np.mean(after))),
                changed(change, 3),
                f"{sum(value > 0 for value in change)} of {len(change)}",
                probability(paired_t(after, before)),
                _effect(cohens_d_paired(change)),
            ]
        )
    return grid(head, lines)


def volumes(rows: Sequence[Row], conditions: Sequence[str]) -> str:
    """A row a condition and class: differences from the still scan, before and after."""
    head = [
        "moved", "volume", "still, litres", "before", "after", "absolute before",
        "absolute after", "p of the absolute", "d before", "d after",
    ]  # fmt: skip
    lines = []
    for condition, measure, found in _each(rows, conditions, VOLUMES):
        still = np.array([row.still_value for row in found])
        before, after = (
            np.array([getattr(row, when) for row in found]) / still - 1
            for when in ("before", "after")
        )
        lines.append(
            [
                condition,
                VOLUMES[measure],
                _number(float(still.mean())),
                *(f"{values.mean():+.1%}" for values in (before, after)),
                *(f"{np.abs(values).mean():.1%}" for values in (before, after)),
                probability(paired_t(list(np.abs(after)), list(np.abs(before)))),
                *(_effect(cohens_d_paired(list(values))) for values in (before, after)),
            ]
        )
    return grid(head, lines)


def _each(
    rows: Sequence[Row], conditions: Sequence[str], measures: Mapping[str, str]
) -> Iterator[tuple[str, str, list[Row]]]:
    for condition in conditions:
        for measure in measures:
            found = [
                row
                for row in rows
                if (row.condition, row.measure) == (condition, measure)
                and math.isfinite(row.before)
                and math.isfinite(row.after)
            ]
            if found:
                yield condition, measure, found


def _number(value: float) -> str:
    return f"{value:.3f}"


def _effect(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2f}"


def lines_figure(rows: Sequence[Row]) -> Figure:
    """Each pair as a line from before to after; a panel a measure and condition."""
    from matplotlib.figure import Figure

    conditions = list(dict.fromkeys(row.condition for row in rows))
    figure = Figure(
        figsize=(2.6 * len(AGREEMENT), 2.4 * len(conditions) + 0.3), layout="constrained"
    )
    axes = figure.subplots(len(conditions), len(AGREEMENT), squeeze=False)
    for line, condition in enumerate(conditions):
        for column, (measure, name) in enumerate(AGREEMENT.items()):
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
