# SPDX-License-Identifier: Apache-2.0
"""From the long table of figures to Markdown: means with intervals, each image's row, a row an age."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from bmex_bids.degrade.cells import CELLS
from bmex_bids.evaluation.judge import CLASSES, SEGMENTERS
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.subjects import SUBJECTS
from bmex_bids.exceptions import UsageError
from bmex_bids.metrics.statistics import bootstrap_interval

#: an image that becomes worse by more than this is named
WORSE = 0.02
CLASSICAL = ("damaged", "n4", "nlm", "nlm, known noise")
INTERPOLATIONS = ("damaged", "lanczos")
#: between these a table of a page is replaced
MARKS = "<!-- {0}: begin -->", "<!-- {0}: end -->"


class Table:
    """The long table, by what a figure is of."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.values = {(r.image, r.cell, r.method, r.metric): r.value for r in rows}
        there = {(image, cell) for image, cell, _, _ in self.values}
        self.images = [name for name in SUBJECTS if any(image == name for image, _ in there)]
        self.cells = [name for name in CELLS if any(cell == name for _, cell in there)]

    def get(self, image: str, cell: str, method: str, metric: str) -> float:
        """A figure; NaN where it was not computed."""
        return self.values.get((image, cell, method, metric), math.nan)

    def column(
        self, cell: str, method: str, metric: str, images: Sequence[str] | None = None
    ) -> list[float]:
        """A figure of each image that has one."""
        found = [
            self.get(image, cell, method, metric)
            for image in (self.images if images is None else images)
        ]
        return [value for value in found if not math.isnan(value)]

    def change(self, image: str, cell: str, metric: str) -> float:
        """Squared error after the network over that before, minus one; NaN where there was none."""
        before, after = (self.get(image, cell, m, metric) for m in ("damaged", "bmex"))
        return after / before - 1 if before > 0 else math.nan

    def changes(
        self, cell: str, metric: str, images: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Image → relative change of its squared error."""
        chosen = self.images if images is None else images
        found = {image: self.change(image, cell, metric) for image in chosen}
        return {image: value for image, value in found.items() if not math.isnan(value)}


def beats(own: float, other: float) -> bool:
    """Whether a figure, of which more is better, is above another; a tie is none."""
    return own > other


def best_classical(table: Table, image: str, cell: str) -> tuple[str, float]:
    """The classical method with the highest PSNR in template units, and that PSNR."""
    found = {m: table.get(image, cell, m, "psnr") for m in CLASSICAL}
    found = {m: value for m, value in found.items() if not math.isnan(value)}
    if not found:
        return "", math.nan
    best = max(found, key=found.__getitem__)
    return best, found[best]


# ---------------------------------------------------------------- Markdown
def markdown(rows: Sequence[Row], weights: str) -> str:
    """The tables of a run with these weights, as Markdown."""
    table = Table(rows)
    parts = [
        f"{weights[0].upper()}{weights[1:]}. {len(table.images)} of {len(SUBJECTS)} images, "
        f"{len(table.cells)} of {len(CELLS)} cells.",
        f"### By damage\n\n{by_cell(table)}",
        f"### By age: change of squared error, template units\n\n{by_age(table)}",
        f"### Against classical methods\n\n{against(table)}",
        f"### Tissue classes\n\n{tissues(table)}",
        f"### Volumes of the clean images after the app\n\n{volumes(table)}",
        f"### Each image\n\n{each_image(table)}",
    ]
    return "\n\n".join(parts) + "\n"


def page_tables(rows: Sequence[Row]) -> str:
    """The tables of the documentation: by damage, without intervals, and each image's error."""
    table = Table(rows)
    parts = by_cell(table, intervals=False), tissues(table), each_image(table)
    return "\n\n".join(parts)


def replaced(page: str, text: str, name: str = "benchmark") -> str:
    """A page with the text between two marks replaced; UsageError where it has none.

    Parameters
    ----------
    name : of the command whose table it is, in the marks
    """
    begin, end = (mark.format(name) for mark in MARKS)
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    if not pattern.search(page):
        raise UsageError(f"expected a page with the marks {begin} and {end}, found none; add them")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page, count=1)


def by_cell(table: Table, *, intervals: bool = True) -> str:
    """A row a cell: change of error on both grids, PSNR, and the image that fares worst."""
    lines = []
    for cell in table.cells:
        if cell == "clean":
            lines.append(_clean_line(table))
            continue
        changes = table.changes(cell, "mse")
        native = table.changes(cell, "native_mse")
        worst = max(changes, key=changes.__getitem__, default="")
        lines.append(
            [
                f"{cell} ({len(changes)})",
                percent(list(changes.values()), intervals),
                percent(list(native.values()), intervals),
                _arrow(table, cell, "psnr", 1),
                _arrow(table, cell, "native_psnr", 1),
                f"{worst} {changes[worst]:+.0%}" if worst else "",
            ]
        )
    head = [
        "damage (images)", "squared error, template units", "squared error, input grid",
        "PSNR, template units, dB", "PSNR, input grid, dB", "worst image",
    ]  # fmt: skip
    return grid(head, lines)


def _clean_line(table: Table) -> list[str]:
    """Of the clean cell there is no error before, so PSNR alone."""
    after = {i: table.get(i, "clean", "bmex", "native_psnr") for i in table.images}
    after = {image: value for image, value in after.items() if not math.isnan(value)}
    worst = min(after, key=after.__getitem__, default="")
    return [
        f"clean ({len(after)})", "", "",
        _number(_mean(table.column("clean", "bmex", "psnr")), 1),
        _number(_mean(list(after.values())), 1),
        f"{worst} {after[worst]:.1f} dB" if worst else "",
    ]  # fmt: skip


def by_age(table: Table) -> str:
    """A row a cell, a column an age."""
    groups: dict[str, list[str]] = {}
    for image in table.images:
        groups.setdefault(SUBJECTS[image].group, []).append(image)
    lines = []
    for cell in table.cells:
        if cell == "clean":
            continue
        found = [list(table.changes(cell, "mse", images).values()) for images in groups.values()]
        lines.append([cell, *(percent(values, False) for values in found)])
    return grid(["damage", *(f"{g} ({len(i)})" for g, i in groups.items())], lines)


def against(table: Table) -> str:
    """PSNR of each method, and in how many images the network beats the best of the others."""
    lines = []
    for cell in table.cells:
        if cell == "clean":
            continue
        pairs = [
            (table.get(i, cell, "bmex", "psnr"), best_classical(table, i, cell)[1])
            for i in table.images
        ]
        pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
        won = sum(beats(own, other) for own, other in pairs)
        lines.append(
            [
                cell,
                *(_number(_mean(table.column(cell, m, "psnr")), 2) for m in (*CLASSICAL, "bmex")),
                *(
                    _number(_mean(table.column(cell, m, "native_psnr")), 2)
                    for m in (*INTERPOLATIONS, "bmex")
                ),
                f"{won} of {len(pairs)}",
            ]
        )
    head = [
        "damage", *CLASSICAL, "bmex",
        *(f"{m}, input grid" for m in (*INTERPOLATIONS, "bmex")), "bmex best",
    ]  # fmt: skip
    return grid(head, lines)


def tissues(table: Table) -> str:
    """Dice of the classes by each segmenter, before and after."""
    known = [s for s in SEGMENTERS if any(key[3] == f"dice_{s}" for key in table.values)]
    lines = [
        [cell, *(_arrow(table, cell, f"dice_{name}", 3) for name in known)] for cell in table.cells
    ]
    return grid(["damage", *(SEGMENTERS[name] for name in known)], lines)


def volumes(table: Table) -> str:
    """Relative change of the class volumes of clean images, an image a row."""
    columns = [(s, c) for s in SEGMENTERS for c in CLASSES]
    lines = []
    for image in table.images:
        values = [table.get(image, "clean", "bmex", f"volume_{s}_{c}") for s, c in columns]
        if not all(map(math.isnan, values)):
            lines.append([image, *("" if math.isnan(v) else f"{v:+.1%}" for v in values)])
    return grid(["image", *(f"{c}, {SEGMENTERS[s]}" for s, c in columns)], lines)


def each_image(table: Table) -> str:
    """A row an image, a column a cell: change of squared error in template units."""
    cells = [cell for cell in table.cells if cell != "clean"]
    lines = []
    for image in table.images:
        values = [table.change(image, cell, "mse") for cell in cells]
        words = [
            "" if math.isnan(v) else f"**{v:+.0%}**" if v > WORSE else f"{v:+.0%}" for v in values
        ]
        lines.append([image, *words])
    return grid(["image", *cells], lines) + "\n\nBold: worse than its input by more than 2 %."


def percent(values: Sequence[float], interval: bool) -> str:
    """A mean in per cent, with the interval of the bootstrap over images."""
    if not values:
        return ""
    text = f"{_mean(values):+.0%}"
    low, high = bootstrap_interval(values)
    return f"{text} [{low:+.0%}, {high:+.0%}]" if interval and not math.isnan(low) else text


def changed(values: Sequence[float], digits: int) -> str:
    """A mean with its sign, with the interval of the bootstrap."""
    low, high = bootstrap_interval(values)
    text = f"{_mean(values):+.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


def probability(value: float) -> str:
    """A p value; empty where there is none.

    >>> probability(0.0123), probability(1e-9), probability(math.nan)
    ('0.012', '< 0.001', '')
    """
    if math.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _arrow(table: Table, cell: str, metric: str, digits: int) -> str:
    before, after = (_mean(table.column(cell, m, metric)) for m in ("damaged", "bmex"))
    if math.isnan(before) or math.isnan(after):
        return ""
    return f"{_number(before, digits)} → {_number(after, digits)}"


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is words, the others are figures."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(words)} |" for words in (head, rule, *lines))


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
