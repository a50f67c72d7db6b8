# SPDX-License-Identifier: Apache-2.0
"""From the long table to the short ones: goals, whether they were reached, and means by cell.

Goals are judged on each image and cell by itself, not on means, which could hide a loss; where faults were
drawn several times, on the mean over the draws.  A goal of which nothing was computed says so; one of which a
part was computed (images, cells, methods to be compared with) is not called reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bmex_bids.evaluation.cells import CELLS, MOTION, NOISY, RESOLUTION
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.subjects import SUBJECTS, subject_name
from bmex_bids.metrics.statistics import cohens_d_paired, paired_t

BASELINES = ("degraded", "matched", "nlm", "tv", "bm4d", "n4", "cubic", "lanczos")
DENOISERS = ("nlm", "tv", "bm4d")
#: those that a comparison cannot do without: BM4D is optional, slices are put together where there are any
NEEDED, NEEDED_IN_SLICES = ("degraded", "nlm", "tv", "n4"), ("cubic", "lanczos")
NEEDED_DENOISERS = ("nlm", "tv")
#: images that every goal is about
WHOLE = tuple(name for name, subject in SUBJECTS.items() if subject.whole and not subject.painted)
METHODS = (*BASELINES, "ablation", "bmex")
CLASSES = ("dark", "middle", "bright")
#: goals of the project
MSE_DROP, NOISE_SLACK_DB, CLEAN_DB, VOLUME_SLACK = 0.42, 0.3, 34.0, 0.02
#: measure → (heading, digits)
MEASURES = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "ms_ssim": ("MS-SSIM", 4),
    "uqi": ("UQI", 4),
    "vif": ("VIF", 3),
    "dice": ("Dice of three classes against those of the clean image", 4),
}


@dataclass(frozen=True)
class Goal:
    """One goal: its words, what was found, and the verdict."""

    words: str
    found: str
    verdict: str


class Table:
    """The long table, by what a figure is of."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.values = {(r.image, r.cell, r.method, r.metric): r.value for r in rows}
        self.images = list(dict.fromkeys(key[0] for key in self.values))

    def averaged(self) -> Table:
        """Means over the draws of each image."""
        found: dict[tuple[str, str, str, str], list[float]] = {}
        for (image, *rest), value in self.values.items():
            cell, method, metric = rest
            found.setdefault((subject_name(image), cell, method, metric), []).append(value)
        table = Table([])
        table.values = {key: _mean(values) for key, values in found.items()}
        table.images = list(dict.fromkeys(map(subject_name, self.images)))
        return table

    def get(self, image: str, cell: str, method: str, metric: str) -> float:
        """A figure; NaN where it was not computed."""
        return self.values.get((image, cell, method, metric), math.nan)

    def places(self, cells: Sequence[str], method: str, metric: str) -> list[tuple[str, str]]:
        """(image, cell) of which there is a figure, among these cells."""
        return [
            (image, cell)
            for cell in cells
            for image in self.images
            if (image, cell, method, metric) in self.values
        ]

    def mean(self, cell: str, method: str, metric: str) -> float:
        """Mean over images; NaN without any."""
        found = [self.get(i, c, method, metric) for i, c in self.places([cell], method, metric)]
        return _mean(found)

    def covers(self, cells: Sequence[str], methods: Iterable[str], metric: str) -> bool:
        """Whether each of :data:`WHOLE` has a figure of each of these methods in each of these cells."""
        return all(
            (image, cell, method, metric) in self.values
            for image in WHOLE
            for cell in cells
            for method in methods
        )

    def pairs(
        self, cells: Sequence[str], first: str, second: str, metric: str
    ) -> list[tuple[str, float, float]]:
        """(image and cell, figure of the first, of the second method), where both were computed."""
        return [
            (f"{image} {cell}", self.get(image, cell, first, metric),
             self.get(image, cell, second, metric))
            for image, cell in self.places(cells, first, metric)
            if (image, cell, second, metric) in self.values
        ]  # fmt: skip


# ---------------------------------------------------------------- goals
def goals(table: Table) -> list[Goal]:
    """Every goal that this benchmark can judge."""
    return [
        _beats_baselines(table),
        _noise(table),
        _mse(table),
        _ablation(table),
        *_clean(table),
        _rises(
            table, "segmentation Dice higher after than before in every motion cell",
            table.pairs(MOTION, "degraded", "bmex", "dice"),
        ),
        _rises(
            table, "registration Dice higher after than before in every motion cell",
            table.pairs(MOTION, "degraded registered", "bmex registered", "registration_dice"),
        ),
        _contrast(table),
    ]  # fmt: skip


def _verdict(ok: bool, complete: bool) -> str:
    """A goal that was missed stays missed; one that was only looked at in part is not reached."""
    if not ok:
        return "not reached"
    return "reached" if complete else "reached in the part that was run"


def _goal(
    words: str, results: Sequence[tuple[str, bool]], complete: bool, found: str = ""
) -> Goal:
    """A goal that asks for something of every one of several results."""
    if not results:
        return Goal(words, "–", "not run")
    failed = [name for name, ok in results if not ok]
    text = f"{len(results) - len(failed)} of {len(results)}"
    if failed:
        text += f"; not: {', '.join(failed[:6])}{' …' if len(failed) > 6 else ''}"
    return Goal(words, f"{found}; {text}" if found else text, _verdict(not failed, complete))


def _beats_baselines(table: Table) -> Goal:
    results = []
    for image, cell in table.places((*MOTION, *RESOLUTION), "bmex", "psnr"):
        needed = _needed(cell)
        if any(math.isnan(table.get(image, cell, name, "psnr")) for name in needed):
            continue
        worse = []
        for metric in ("psnr", "ssim", "ms_ssim"):
            own = table.get(image, cell, "bmex", metric)
            others = {
                name: value
                for name in BASELINES
                if not math.isnan(value := table.get(image, cell, name, metric))
            }
            best = max(others, key=others.__getitem__)
            if own <= others[best]:
                worse.append(f"{MEASURES[metric][0].split(',')[0]} {best}")
        results.append((f"{image} {cell} ({', '.join(worse)})", not worse))
    return _goal(
        "better than every baseline in PSNR, SSIM and MS-SSIM in every motion and resolution cell",
        results,
        all(table.covers([c], ("bmex", *_needed(c)), "psnr") for c in (*MOTION, *RESOLUTION)),
    )  # fmt: skip


def _needed(cell: str) -> tuple[str, ...]:
    """The methods without which ours is not compared in a cell."""
    return (*NEEDED, *(NEEDED_IN_SLICES if CELLS[cell].slices_mm is not None else ()))


def _noise(table: Table) -> Goal:
    results, margins = [], []
    for image, cell in table.places(NOISY, "bmex", "psnr"):
        if any(math.isnan(table.get(image, cell, name, "psnr")) for name in NEEDED_DENOISERS):
            continue
        others = [table.get(image, cell, name, "psnr") for name in DENOISERS]
        best = max(value for value in others if not math.isnan(value))
        margin = table.get(image, cell, "bmex", "psnr") - best
        margins.append(margin)
        results.append((f"{image} {cell} ({margin:+.2f} dB)", margin >= -NOISE_SLACK_DB))
    found = f"worst {min(margins):+.2f} dB" if margins else ""
    return _goal(
        f"not worse than the best denoiser by more than {NOISE_SLACK_DB} dB in any noise cell",
        results, table.covers(NOISY, ("bmex", *NEEDED_DENOISERS), "psnr"), found,
    )  # fmt: skip


def _mse(table: Table) -> Goal:
    words = f"mean squared error of the motion cells down by at least {MSE_DROP:.0%} on average"
    pairs = table.pairs(MOTION, "degraded", "bmex", "mse")
    if not pairs:
        return Goal(words, "–", "not run")
    drop = float(np.mean([1 - after / before for _, before, after in pairs]))
    return Goal(
        words, f"{drop:.1%} over {len(pairs)} images × cells",
        _verdict(drop >= MSE_DROP, table.covers(MOTION, ("bmex", "degraded"), "mse")),
    )  # fmt: skip


def _ablation(table: Table) -> Goal:
    words = "better than the network without tissues on the mean of the motion cells (PSNR)"
    pairs = table.pairs(MOTION, "ablation", "bmex", "psnr")
    if not pairs:
        return Goal(words, "–", "not run")
    gain = float(np.mean([own - other for _, other, own in pairs]))
    return Goal(
        words, f"{gain:+.3f} dB over {len(pairs)} images × cells",
        _verdict(gain > 0, table.covers(MOTION, ("bmex", "ablation"), "psnr")),
    )  # fmt: skip


def _clean(table: Table) -> list[Goal]:
    places = table.places(["clean"], "bmex", "psnr")
    decibels = [(image, table.get(image, "clean", "bmex", "psnr")) for image, _ in places]
    changes = [
        (f"{image} {name}", table.get(image, "clean", "bmex", f"volume_{name}"))
        for image, _ in places
        for name in CLASSES
        if (image, "clean", "bmex", f"volume_{name}") in table.values
    ]
    return [
        _goal(
            f"a clean image keeps PSNR ≥ {CLEAN_DB:g} dB",
            [(f"{name} ({value:.1f} dB)", value >= CLEAN_DB) for name, value in decibels],
            table.covers(["clean"], ["bmex"], "psnr"),
            f"lowest {min(v for _, v in decibels):.1f} dB" if decibels else "",
        ),
        _goal(
            f"its class volumes change by at most {VOLUME_SLACK:.0%}",
            [(f"{n} ({v:+.1%})", abs(v) <= VOLUME_SLACK) for n, v in changes],
            all(table.covers(["clean"], ["bmex"], f"volume_{name}") for name in CLASSES),
            f"largest {max((v for _, v in changes), key=abs):+.1%}" if changes else "",
        ),
    ]


def _rises(table: Table, words: str, pairs: Sequence[tuple[str, float, float]]) -> Goal:
    found = ""
    if pairs:
        found = f"mean {float(np.mean([after - before for _, before, after in pairs])):+.4f}"
    complete = {name for name, _, _ in pairs} >= {f"{i} {cell}" for i in WHOLE for cell in MOTION}
    return _goal(words, [(name, after > before) for name, before, after in pairs], complete, found)


def _contrast(table: Table) -> Goal:
    results = []
    for image, cell in table.places(["as it is"], "bmex", "tct_before"):
        before, after = (
            table.get(image, cell, "bmex", name) for name in ("tct_before", "tct_after")
        )
        results.append((f"{image} ({before:.3f} → {after:.3f})", after > before))
    return _goal("TCT rises on all ten real images as they are", results, len(results) >= 10)


# ---------------------------------------------------------------- Markdown
def markdown(rows: Sequence[Row], name: str, sha: str) -> str:
    """The short tables of a run, as Markdown."""
    table = Table(rows)
    means = table.averaged()
    cells = [cell for cell in CELLS if means.places([cell], "degraded", "psnr")]
    images = [
        i for i in means.images if any((i, c, "degraded", "psnr") in means.values for c in cells)
    ]
    draws = max((len(table.places([c], "degraded", "psnr")) for c in cells), default=0)
    several = f", {draws} draws in all" if draws > len(images) else ""
    parts = [
        f"Weights `{name}`, SHA-256 `{sha[:12]}…`. Images: {', '.join(images) or '–'}{several}. "
        f"{len(cells)} of {len(CELLS)} cells, {len(rows)} figures.",
        f"### Goals\n\n{_goals(table, means)}",
    ]
    for metric, (heading, digits) in MEASURES.items():
        if means.places(cells, "degraded", metric):
            parts.append(f"### {heading}\n\n{_by_cell(means, cells, metric, digits)}")
    for heading, make, figures in (
        ("Tests", _tests, table), ("Registration Dice", _registration, means),
        ("Volumes", _volumes, table), ("Synthetic scanners", _scanners, table),
        ("Tissue contrast of the real images", _tct, table),
    ):  # fmt: skip
        text = make(figures)
        if text:
            parts.append(f"### {heading}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def _goals(table: Table, means: Table) -> str:
    """Each goal's verdict on means over draws, and, where there are several, what each draw says."""
    judged = goals(means)
    lines = [[g.words, g.found, f"**{g.verdict}**"] for g in judged]
    head = ["goal", "found", ""]
    if table.images != means.images:
        head.insert(2, "each draw by itself")
        for line, goal, single in zip(lines, judged, goals(table), strict=True):
            line.insert(2, single.found if single.found != goal.found else "")
    return _grid(head, lines, left=len(head))


def _grid(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(words)} |" for words in (head, rule, *lines))


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _by_cell(table: Table, cells: Sequence[str], metric: str, digits: int) -> str:
    """Means over images; the best method of a row in bold (none for the clean cell)."""
    shown = [m for m in METHODS if any(table.places([c], m, metric) for c in cells)]
    lines = []
    for cell in cells:
        values = [table.mean(cell, method, metric) for method in shown]
        best = np.nanmax(values) if cell != "clean" and not np.isnan(values).all() else math.nan
        words = [f"**{_number(v, digits)}**" if v == best else _number(v, digits) for v in values]
        lines.append([f"{cell} ({len(table.places([cell], 'degraded', metric))})", *words])
    return _grid(["cell (images)", *shown], lines)


def _tests(table: Table) -> str:
    """Two-sided paired t-tests of our network against each other method.

    Cells of an image have the same draw of motion or noise, only stronger or weaker.  So a pair is a draw
    of an image, with its mean over the cells.
    """
    lines = []
    for family in ("motion", "resolution", "noise", "smoothing"):
        cells = [name for name, cell in CELLS.items() if cell.family == family]
        for other in (*BASELINES, "ablation"):
            for metric in ("psnr", "ssim", "dice"):
                own, theirs = _by_draw(table, cells, other, metric)
                if len(own) < 2:
                    continue
                gains = [a - b for a, b in zip(own, theirs, strict=True)]
                heading = MEASURES[metric][0].split(",")[0].split(" ")[0]
                lines.append(
                    (family, other, heading, str(len(gains)), f"{np.mean(gains):+.4f}",
                     f"{cohens_d_paired(gains):+.2f}", f"{paired_t(own, theirs):.2g}")
                )  # fmt: skip
    head = ("cells", "against", "measure", "pairs", "mean gain", "Cohen's d", "p")
    note = (
        "A pair is a draw of an image: the means over its cells, which are not independent of each other. "
        "Draws of one image are not quite independent either, and two brains are few.\n\n"
    )
    return note + _grid(head, lines, left=3) if lines else ""


def _by_draw(
    table: Table, cells: Sequence[str], other: str, metric: str
) -> tuple[list[float], list[float]]:
    """Our and the other method's means over the cells that both have, of each draw of each image."""
    own, theirs = [], []
    for image in table.images:
        pairs = [
            (table.get(image, cell, "bmex", metric), table.get(image, cell, other, metric))
            for cell in cells
        ]
        both = [pair for pair in pairs if not any(map(math.isnan, pair))]
        if both:
            own.append(_mean([a for a, _ in both]))
            theirs.append(_mean([b for _, b in both]))
    return own, theirs


def _registration(table: Table) -> str:
    shown = ("degraded", "ablation", "bmex")
    lines = []
    for cell in ("clean", *MOTION):
        values = [table.mean(cell, f"{m} registered", "registration_dice") for m in shown]
        if not np.isnan(values).all():
            lines.append([cell, *(_number(v, 4) for v in values)])
    return _grid(["cell", *shown], lines) if lines else ""


def _volumes(table: Table) -> str:
    """Relative change of class volumes against the clean image, over the motion cells."""
    lines = []
    for name in CLASSES:
        for method in METHODS:
            metric = f"volume_{name}"
            changes = [
                table.get(image, cell, method, metric)
                for image, cell in table.places(MOTION, method, metric)
            ]
            if changes:
                lines.append(
                    (name, method, str(len(changes)), f"{np.mean(changes):+.1%}",
                     f"{np.mean(np.abs(changes)):.1%}", _number(cohens_d_paired(changes), 2))
                )  # fmt: skip
    head = ("class", "method", "images × cells", "bias", "mean absolute", "Cohen's d of the bias")
    return _grid(head, lines, left=2) if lines else ""


def _scanners(table: Table) -> str:
    stages = ("degraded", "matched", "enhanced")
    by_image: dict[str, dict[str, list[float]]] = {}
    for (image, cell, _, metric), value in table.values.items():
        if cell == "scanners" and metric.startswith("histogram_"):
            stage = metric.split("_")[1]
            by_image.setdefault(image, {s: [] for s in stages})[stage].append(value)
    lines = [
        [image, *(_number(_mean(found[stage]), 4) for stage in stages)]
        for image, found in by_image.items()
    ]
    head = ["image", "scaled only", "N4 and matched", "enhanced"]
    return _grid(head, lines) if lines else ""


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _tct(table: Table) -> str:
    lines = []
    for image, cell in table.places(["as it is"], "bmex", "tct_before"):
        values = [
            table.get(image, cell, "bmex", f"tct{kind}_{when}")
            for kind in ("", "_classes")
            for when in ("before", "after")
        ]
        lines.append([image, *(_number(v, 3) for v in values)])
    head = (
        "image", "before", "after", "before, independent labels", "after, independent labels",
    )  # fmt: skip
    return _grid(head, lines) if lines else ""
