# SPDX-License-Identifier: Apache-2.0
"""The score judged: what it says of validation images that were damaged in known ways.

A unit is one image in one cell and one draw.  Its figures are appended to a table when they are
done, so a run that was stopped goes on.  Tissue contrast and other measures of the same images
stand beside the score.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.contrasts import MEAN
from bmex_bids.common.noise import noise_sigma, robust_deviation
from bmex_bids.degrade.cells import CELLS
from bmex_bids.evaluation import torchio_cells
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import TOP
from bmex_bids.imaging.noise import non_local_means
from bmex_bids.metrics.confidence import rank_correlation
from bmex_bids.metrics.tissue import GM, WM, tct
from bmex_bids.network.inference.score import (
    GRID_MM,
    RANGE,
    Score,
    after_change,
    before_change,
    change_between,
    level,
    of_slices,
    score,
)
from bmex_bids.network.weights.registry import WeightRecord
from bmex_bids.refocus.refocus import refocus
from bmex_bids.refocus.thick import find_thick_slices
from bmex_bids.training.images import CleanImage
from bmex_bids.training.linear import VALIDATION, Source, read

Array = NDArray[np.float32]

#: cell → level of motion; the named severities of our simulator
SEVERITIES: Mapping[str, float] = {"clean": 0, "minor": 1, "moderate": 2, "severe": 3}
NOISES: Mapping[str, float] = {"noise 1%": 1.0, "noise 2.5%": 2.5, "noise 5%": 5.0}
THICK: Mapping[str, float] = {"2.4 mm": 2.4, "4.8 mm": 4.8}
TORCHIO = "torchio motion"
#: of clean and of moved images: a smooth image is not a good one
SMOOTHED = tuple(
    f"{how} {what}" for what in ("clean", "moderate", "severe") for how in ("smoothed", "blurred")
)
#: cells with something drawn
DRAWN = (*list(SEVERITIES)[1:], *NOISES, TORCHIO)
#: "moderate or worse"
WORSE = 2.0
COLUMNS = (
    "image", "cell", "draw", "level", "motion", "motion_low", "motion_high", "noise",
    "noise_percent", "thickness_mm", "resolution_mm", "tct", "cjv",
    "reported", "known",
)  # fmt: skip
#: columns of other measures; the third says whether a higher one means a better image
OTHERS: Sequence[tuple[str, str, bool]] = (
    ("tct", "tissue contrast (TCT)", True),
    ("cjv", "coefficient of joint variation (cjv)", False),
)
Row = dict[str, str]


@dataclass(frozen=True)
class Unit:
    """One image in one cell and draw."""

    source: Source
    cell: str
    draw: int


def plan(draws: int, *, images: Sequence[str] = (), second: bool = True) -> Iterator[Unit]:
    """All units, image by image.

    Parameters
    ----------
    draws : of each cell in which something is drawn
    images : names; none are all
    second : TorchIO's cell too
    """
    for source in VALIDATION:
        if images and source.name not in images:
            continue
        for cell in (*SEVERITIES, *NOISES, *THICK, TORCHIO, *SMOOTHED):
            if cell == TORCHIO and not second:
                continue
            for draw in range(draws if cell in DRAWN else 1):
                yield Unit(source, cell, draw)


def damaged(clean: CleanImage, cell: str, draw: int) -> Array:
    """The image of a cell; a head with what is around its brain."""
    seed = 500 + draw
    if cell == TORCHIO:
        affine = np.diag([-GRID_MM, -GRID_MM, GRID_MM, 1.0])
        return torchio_cells.damage("motion", clean.data, affine, seed, 1)
    how, _, what = cell.partition(" ")
    if how in ("smoothed", "blurred"):
        image = damaged(clean, what, draw) * clean.mask
        if how == "blurred":
            return np.asarray(scipy.ndimage.gaussian_filter(image, 1.0), dtype=np.float32)
        sigma = max(noise_sigma(image, clean.mask), 0.02 * MEAN)
        return non_local_means(image, sigma, strength=1.0, search=3)
    return np.clip(CELLS[cell].recipe(seed).apply(clean.data, clean.spacing), 0, None)


def row_of(unit: Unit, clean: CleanImage, record: WeightRecord) -> Row:
    """The figures of a unit."""
    whole = damaged(clean, unit.cell, unit.draw)
    image = np.where(clean.mask, whole, 0).astype(np.float32)
    found = score(image, clean.mask, record)
    if found is not None:  # as the app knows from its first step
        found = of_slices(found, slices_in(image, clean))
    table = {} if found is None else found.as_table()
    brain = float(image[clean.mask].mean())
    own = noise_sigma(clean.data, clean.mask) / (MEAN * 2.5) * 100
    added = NOISES.get(unit.cell)
    values = {
        **{name: table.get(name, math.nan) for name in COLUMNS if name in table},
        "level": SEVERITIES.get(unit.cell, math.nan),
        "noise": math.nan if added is None else math.hypot(added * MEAN / brain, own),
        "thickness_mm": THICK.get(unit.cell, math.nan),
        "tct": tct(image, clean.labels),
        "cjv": _cjv(image, clean.labels),
        "reported": _reported(found, image, unit, clean, record),
    }
    if unit.cell in SEVERITIES and found is not None:
        head = whole if unit.source.group == "heads" else image
        values["known"] = _known(found, head, clean, record)
    if unit.cell == TORCHIO:
        values["level"] = level(float(np.sqrt(((image - clean.data)[clean.mask] ** 2).mean())))
    return {
        "image": unit.source.name,
        "cell": unit.cell,
        "draw": str(unit.draw),
        **{name: f"{values[name]:.5g}" for name in COLUMNS[3:] if name in values},
    }


def slices_in(image: Array, clean: CleanImage) -> float:
    """Thickness of slices that an image shows, mm; 0 for none."""
    import torch

    support = torch.from_numpy(scipy.ndimage.binary_fill_holes(clean.mask).astype(np.float32))
    scaled = torch.from_numpy(image * (TOP / (MEAN * RANGE)))
    thick = find_thick_slices(scaled, support, clean.spacing)
    return 0.0 if thick is None else thick.thickness * clean.spacing[thick.axis]


def _reported(
    found: Score | None, image: Array, unit: Unit, clean: CleanImage, record: WeightRecord
) -> float:
    """Severity that a report has of a smoothed image, which knows the image before; else NaN."""
    if unit.cell not in SMOOTHED or found is None:
        return math.nan
    cell = unit.cell.split(" ", 1)[1]
    original = np.where(clean.mask, damaged(clean, cell, unit.draw), 0).astype(np.float32)
    before = score(original, clean.mask, record)
    if before is None:
        return math.nan
    change = change_between(original, image, clean.mask)
    return after_change(before, found, change).motion.value


def _known(found: Score, head: Array, clean: CleanImage, record: WeightRecord) -> float:
    """Severity that the app reports: no less than the motion that it finds and undoes."""
    undone = refocus(head, clean.spacing)
    still = undone.image * clean.mask
    after = score(still, clean.mask, record) if undone.motion else None
    if after is None:
        return found.motion.value
    change = change_between(head, still, clean.mask)
    return before_change(found, after, change).motion.value


def _cjv(image: Array, labels: NDArray[np.uint8]) -> float:
    """Coefficient of joint variation, (σ WM + σ GM) / abs(μ WM − μ GM), by medians as MRIQC does."""
    spread, middle = [], []
    for tissue in (WM, GM):
        values = image[labels == tissue]
        if not values.size:
            return math.nan
        middle.append(float(np.median(values)))
        spread.append(robust_deviation(values - middle[-1]))
    return sum(spread) / max(abs(middle[0] - middle[1]), 1e-6)


def run(
    data_dir: Path,
    out: Path,
    units: Sequence[Unit],
    record: WeightRecord,
    report: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Compute what is missing in ``out/score.tsv`` and return the rows of the units.

    A table of other weights is not gone on with: that is a UsageError.
    """
    out.mkdir(parents=True, exist_ok=True)
    note, path = out / "weights.txt", out / "score.tsv"
    if note.exists() and note.read_text() != record.sha256:
        raise UsageError(
            f"expected figures of {record.name} in {out}, found those of other weights; "
            "name another folder with --out"
        )
    note.write_text(record.sha256)
    kept = out / "clean"
    kept.mkdir(exist_ok=True)
    done = {(row["image"], row["cell"], row["draw"]): row for row in _read(path)}
    clean: CleanImage | None = None
    rows = []
    for number, unit in enumerate(units, start=1):
        key = (unit.source.name, unit.cell, str(unit.draw))
        if key not in done:
            if clean is None or clean.name != unit.source.name:
                clean = read(data_dir, unit.source, kept)
            done[key] = row_of(unit, clean, record)
            _append(path, done[key])
            report(f"{number}/{len(units)} {unit.source.name}, {unit.cell}")
        rows.append(done[key])
    return rows


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [dict(row) for row in csv.DictReader(stream, delimiter="\t") if row["draw"]]


def _append(path: Path, row: Row) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter="\t", restval="nan")
        if new:
            writer.writeheader()
        writer.writerow(row)


# ------------------------------------------------------------------ the table
@dataclass(frozen=True)
class Line:
    """A figure, and its goal; NaN where it could not be computed."""

    what: str
    value: float
    goal: str = ""
    reached: bool | None = None


def lines(rows: Sequence[Row]) -> list[Line]:
    """The figures of a run, those with a goal first."""
    ours = [row for row in rows if row["cell"] in SEVERITIES]
    clean = [row for row in rows if row["cell"] == "clean"]
    second = clean + [row for row in rows if row["cell"] == TORCHIO]
    noisy = [row for row in rows if row["cell"] in NOISES]
    thick = [row for row in rows if row["cell"] in THICK]

    def no_less(what: str, value: float, goal: float) -> Line:
        return Line(what, value, f"≥ {goal:g}", value >= goal)

    def no_more(what: str, value: float, goal: float) -> Line:
        return Line(what, value, f"≤ {goal:g}", value <= goal)

    found = [
        no_less("Spearman with the named severity", spearman(ours, "motion"), 0.9),
        no_less("  with the motion that was found", spearman(ours, "known"), 0.9),
        no_less("Spearman, TorchIO motion", spearman(second, "motion"), 0.75),
        no_more("mean absolute error, levels", _mean(_errors(ours, "motion", "level")), 0.4),
        no_more("  with the motion that was found", _mean(_errors(ours, "known", "level")), 0.4),
        no_less("AUC, moderate or worse", auc(ours, "motion"), 0.95),
        no_less("  with the motion that was found", auc(ours, "known"), 0.95),
        no_less("AUC, moderate or worse, TorchIO", auc(second, "motion"), 0.85),
        no_more("highest of clean images", max(_column(clean, "motion"), default=math.nan), 0.7),
        no_more(
            "noise, mean relative error",
            _mean(_errors(noisy, "noise_percent", "noise", relative=True)),
            0.25,
        ),
        no_more(
            "resolution, mean error, mm",
            _mean(_errors(thick, "resolution_mm", "thickness_mm")),
            0.4,
        ),
        no_more("clean image, gain by smoothing", _gain(rows), 0.3),
    ]
    for cell in ("clean", "moderate", "severe", *SMOOTHED):
        these = [row for row in rows if row["cell"] == cell]
        found.append(Line(f"motion of: {cell}", _mean(_column(these, "motion"))))
        if cell in SMOOTHED:
            found.append(Line("  as a report has it", _mean(_column(these, "reported"))))
    for column, name, higher in OTHERS:
        found += [
            Line(f"{name}: Spearman", spearman(ours, column)),
            Line(f"{name}: AUC", auc(ours, column, better=higher)),
            Line(f"{name}: AUC, TorchIO", auc(second, column, better=higher)),
        ]
    return found


def _gain(rows: Sequence[Row]) -> float:
    """By how much any smoothed image is scored better than its clean original, in the worst case."""
    before = {row["image"]: float(row["motion"]) for row in rows if row["cell"] == "clean"}
    return max(
        (
            before[row["image"]] - float(row["motion"])
            for row in rows
            if row["cell"] in SMOOTHED and row["image"] in before
        ),
        default=math.nan,
    )


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [value for row in rows if math.isfinite(value := float(row.get(name) or "nan"))]


def _pairs(rows: Sequence[Row], first: str, second: str) -> NDArray[np.float64]:
    pairs = np.array([[float(row.get(name) or "nan") for name in (first, second)] for row in rows])
    pairs = pairs.reshape(-1, 2)
    return np.asarray(pairs[np.isfinite(pairs).all(axis=1)])


def _errors(
    rows: Sequence[Row], estimate: str, truth: str, *, relative: bool = False
) -> list[float]:
    a, b = _pairs(rows, estimate, truth).T
    return list(np.abs(a - b) / (b if relative else 1))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def spearman(rows: Sequence[Row], name: str) -> float:
    """Rank correlation of a column with the level; NaN of fewer than three rows."""
    a, b = _pairs(rows, name, "level").T
    return rank_correlation(a, b) if len(a) > 2 else math.nan


def auc(rows: Sequence[Row], name: str, *, better: bool = False) -> float:
    """How often a column tells an image of level :data:`WORSE` or more from one of less.

    Parameters
    ----------
    better : higher values are of better images
    """
    values, levels = _pairs(rows, name, "level").T
    bad, good = values[levels >= WORSE], values[levels < WORSE]
    if not len(bad) or not len(good):
        return math.nan
    if better:
        bad, good = -bad, -good
    above = (bad[:, None] > good).mean() + 0.5 * (bad[:, None] == good).mean()
    return float(above)
