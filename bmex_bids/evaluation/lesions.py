# SPDX-License-Identifier: Apache-2.0
"""What becomes of lesions: put into healthy brains, damaged with them, enhanced.

What is right is known: the clean image with the lesion.  A lesion's contrast is the difference of
its mean from that of the white matter around it.  Beside drawn lesions there are masks of real ones,
and one patient whose lesions are real.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.degrade.cells import CELLS
from bmex_bids.evaluation import judge
from bmex_bids.evaluation.benchmark import Settings, Unit, rows_of, run_units
from bmex_bids.evaluation.prepared import (
    PREPARED_VERSION,
    Prepared,
    damage,
    enhanced,
    prepare,
    refocused,
)
from bmex_bids.evaluation.rows import Row, key_of
from bmex_bids.evaluation.subjects import MARKED, REAL_LESIONS, require_data, subject_of
from bmex_bids.evaluation.summary import grid
from bmex_bids.imaging.orientation import load_image
from bmex_bids.imaging.resampling import resample_like
from bmex_bids.metrics.confidence import auroc
from bmex_bids.network.weights.registry import sha256
from bmex_bids.outputs.files import write_text, write_whole
from bmex_bids.training import lesions as putting
from bmex_bids.training.lesions import Lesion

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
#: changes when the figures do
FIGURES_VERSION = "2"
TABLE = "lesions.tsv"
IMAGES = ("adult-31", "adult-68", "head-14", "head-child10", *REAL_LESIONS)
CELLS_JUDGED = ("clean", "noise 2.5%", "2.4 mm", "minor", "moderate")
#: size of drawn lesions, mm → how many of each contrast
DRAWN = {2.0: 3, 4.0: 3, 8.0: 2, 16.0: 1}
CONTRASTS = (0.1, 0.2, 0.3)
#: real lesions below and above this size are told apart
LARGE_MM = 4.0
GROUPS = (
    "drawn 2 mm", "drawn 4 mm", "drawn 8 mm", "drawn 16 mm", "MS < 4 mm", "MS ≥ 4 mm", "stroke",
    "patient < 4 mm", "patient ≥ 4 mm",
)  # fmt: skip
#: rows of the page's table → groups
SIZES: Mapping[str, tuple[str, ...]] = {
    "≥ 4 mm": ("drawn 4 mm", "drawn 8 mm", "drawn 16 mm", "MS ≥ 4 mm", "stroke"),
    "< 4 mm": ("drawn 2 mm", "MS < 4 mm"),
    "patient, ≥ 4 mm": ("patient ≥ 4 mm",),
    "patient, < 4 mm": ("patient < 4 mm",),
}
#: masks that have trained nothing: of multiple sclerosis, and every tenth stroke
MS_MASKS = tuple(f"lesions/ms-masks/patient{k}_lesions.nii.gz" for k in range(26, 31))
STROKES = "lesions/stroke_soop_mni_1mm.npz"
EVERY_STROKE = 10
MOST_MS, MOST_STROKES = 12, 2
STROKE_MM = (8.0, 30.0)
#: mm from a lesion: the white matter that it is compared with
NEAR_MM, FAR_MM = 2.0, 6.0
#: voxels around a lesion that count for its error
AROUND = 2
#: share of its contrast with which a lesion still counts as there
THERE = 0.5
#: the range of PSNR, template units
RANGE = 1000.0


@dataclass(frozen=True)
class Case:
    """A brain with lesions.

    Attributes
    ----------
    brain : clean, with the lesions
    labels : (X, Y, Z), 0 or the number of a lesion, from 1
    groups : of each lesion, one of :data:`GROUPS`
    tissue : (X, Y, Z), white matter
    lesions : what was put in; none where they are real
    """

    brain: Prepared
    labels: NDArray[np.int32]
    groups: tuple[str, ...]
    tissue: Mask
    lesions: tuple[Lesion, ...] = ()


def plan(settings: Settings) -> Iterator[Unit]:
    """Image × cell, with the key of the figures; UsageError for a file that is not there."""
    for image in settings.images:
        subject = subject_of(image)
        files = [settings.data / name for name in (subject.path, MARKED, STROKES, *MS_MASKS)]
        for path in files:
            require_data(path, "the file")
        for cell in settings.cells or CELLS_JUDGED:
            key = key_of(
                FIGURES_VERSION, PREPARED_VERSION, sha256(files[0]), cell,
                CELLS[cell].recipe(subject.seed).to_json(), settings.networks.version,
            )  # fmt: skip
            yield Unit(image, cell, {(image, cell, group): key for group in GROUPS})


def run(
    settings: Settings, report: Callable[[str], None] = lambda line: None, *, compute: bool = True
) -> list[Row]:
    """The figures of all images and cells."""
    return run_units(settings, list(plan(settings)), do_unit, TABLE, report, compute=compute)


def do_unit(settings: Settings, unit: Unit) -> list[Row]:
    """The figures of one image in one cell, and a picture."""
    begun = time.monotonic()
    networks = settings.networks
    brain = prepare(settings.data, settings.out, unit.image, networks)
    case = case_of(settings.data, unit.image, brain)
    write_text(settings.out / f"lesions_{unit.image}.json", putting.as_json(case.lesions))
    subject = subject_of(unit.image)
    before = damage(case.brain, unit.cell, subject.seed)
    given = refocused(case.brain, before, subject, networks)
    result = enhanced(given, brain.mask, networks)
    figures = figures_of(case, before, result.image, result.deviation)
    name = f"lesions_{unit.image}_{unit.cell}.png".replace(" ", "-").replace("%", "pc")
    draw(settings.out / name, case, before, result.image, result.deviation)
    return rows_of(unit, figures, time.monotonic() - begun)


# ---------------------------------------------------------------- which lesions
def case_of(data: Path, image: str, brain: Prepared) -> Case:
    """The lesions of an image: those that were marked, or those that its seed draws."""
    subject = subject_of(image)
    bright = subject.contrast == "T1w"  # white matter is
    tissue = judge.classes("own", brain.data, brain.mask) == (len(judge.CLASSES) if bright else 1)
    if image in REAL_LESIONS:
        marked = resample_like(
            load_image(data / MARKED), (brain.mask.shape, brain.affine), order=0
        )
        labels, count = scipy.ndimage.label((np.asarray(marked.dataobj) > 0.5) & brain.mask)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * np.prod(brain.spacing)
        groups = tuple(f"patient {_side((6 * v / np.pi) ** (1 / 3))}" for v in sizes)
        return Case(brain, labels.astype(np.int32), groups, tissue & (labels == 0))
    rng = np.random.default_rng(subject.seed)
    signs = [-c if bright else c for c in CONTRASTS]
    parts = _parts(data, subject.seed)
    found, shapes = putting.place_parts(rng, parts, (brain.mask, tissue), brain.spacing, signs)
    _, labels = putting.put_in(brain.data, brain.mask, brain.spacing, found, shapes)
    near = round(putting.GAP_MM / min(brain.spacing))
    free = tissue & ~scipy.ndimage.binary_dilation(labels > 0, iterations=near)
    wanted = [(size, sign) for size, n in DRAWN.items() for sign in signs for _ in range(n)]
    found += putting.draw(rng, free, brain.spacing, wanted)
    image_with, labels = putting.put_in(brain.data, brain.mask, brain.spacing, found, shapes)
    return Case(
        replace(brain, data=image_with), labels, tuple(map(group_of, found)),
        tissue & (labels == 0), tuple(found),
    )  # fmt: skip


def _parts(data: Path, seed: int) -> dict[str, putting.Part]:
    """Strokes and the lesions of one patient, as the seed chooses them; the largest first."""
    strokes = putting.stroke_names(data / STROKES)[::EVERY_STROKE]
    start = seed % len(strokes)
    chosen: dict[str, putting.Part] = {}
    for name in (*strokes[start:], *strokes[:start]):
        for found, part in putting.read_strokes(data / STROKES, [name]).items():
            size = (6 * float(part.shape.sum()) / math.pi) ** (1 / 3)
            if STROKE_MM[0] <= size <= STROKE_MM[1]:
                chosen[found] = part
        if len(chosen) == MOST_STROKES:
            break
    lesions = putting.read_parts(data / MS_MASKS[seed % len(MS_MASKS)])
    return chosen | dict(list(lesions.items())[:MOST_MS])


def group_of(lesion: Lesion) -> str:
    """One of :data:`GROUPS`."""
    if not lesion.source:
        return f"drawn {lesion.size_mm:g} mm"
    return "stroke" if lesion.source.startswith("sub-") else f"MS {_side(lesion.size_mm)}"


def _side(size_mm: float) -> str:
    return f"{'≥' if size_mm >= LARGE_MM else '<'} {LARGE_MM:g} mm"


# ---------------------------------------------------------------- figures
def figures_of(
    case: Case, before: Array, after: Array, deviation: Array | None
) -> dict[str, dict[str, float]]:
    """Group → figures; sums, or means over its lesions, and ``n``, how many there are."""
    found: dict[str, list[dict[str, float]]] = {group: [] for group in GROUPS}
    for number, group in enumerate(case.groups, start=1):
        one = _lesion(case, number, before, after, deviation)
        if one:
            found[group].append(one)
    return {
        group: {"n": float(len(lesions))}
        | {
            name: float(np.nanmean([one[name] for one in lesions]))
            for name in (lesions[0] if lesions else ())
            if not all(math.isnan(one[name]) for one in lesions)
        }
        for group, lesions in found.items()
    }


def _lesion(
    case: Case, number: int, before: Array, after: Array, deviation: Array | None
) -> dict[str, float]:
    """The figures of one lesion; none where no white matter is near it."""
    step = min(case.brain.spacing)
    box = bounding_box(case.labels == number, math.ceil(FAR_MM / step) + 1)
    core = case.labels[box] == number
    distance = scipy.ndimage.distance_transform_edt(~core, sampling=case.brain.spacing)
    near = case.tissue[box] & (distance > NEAR_MM) & (distance <= FAR_MM)
    if not near.any():
        return {}
    truth = case.brain.data[box]
    first, second, right = (
        float(image[core].mean() - image[near].mean())
        for image in (before[box], after[box], truth)
    )
    around = scipy.ndimage.binary_dilation(core, iterations=AROUND) & case.brain.mask[box]
    sign = math.copysign(1, right)
    figures = {
        "contrast": right**2,
        "kept_before": first * right,
        "kept_after": second * right,
        "there_before": float(first * right >= THERE * right**2),
        "there_after": float(second * right >= THERE * right**2),
        "mse_before": float(((before[box] - truth)[around] ** 2).mean()),
        "mse_after": float(((after[box] - truth)[around] ** 2).mean()),
        "seen_truth": auroc(sign * truth[core], sign * truth[near]),
        "seen_before": auroc(sign * before[box][core], sign * before[box][near]),
        "seen_after": auroc(sign * after[box][core], sign * after[box][near]),
    }
    if deviation is not None:
        inside, outside = deviation[box][core], deviation[box][near]
        figures |= {
            "sigma_ratio": float(np.median(inside) / max(float(np.median(outside)), 1e-6)),
            "sigma_auroc": auroc(inside, outside),
        }
    return figures


# ---------------------------------------------------------------- table and pictures
def short(rows: Sequence[Row]) -> str:
    """The table of the page: a row a cell and size of lesions, damaged → enhanced."""
    head = ["damage", "lesions", "number", "contrast kept", "still there", "PSNR"]
    lines = [
        [*line[:3], *(f"{line[k]} → {line[k + 1]}" for k in (3, 5, 7))]
        for line in _lines(rows, SIZES)
    ]
    return grid(head, lines)


def markdown(rows: Sequence[Row]) -> str:
    """A row a cell and group of lesions, over all images."""
    head = [
        "damage", "lesions", "number", "contrast kept, damaged", "enhanced",
        "still there, damaged", "enhanced", "PSNR, damaged", "enhanced",
        "told from white matter, true", "damaged", "enhanced", "expected error inside",
        "told by it",
    ]  # fmt: skip
    return grid(head, _lines(rows, {group: (group,) for group in GROUPS}))


def _lines(rows: Sequence[Row], parts: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """The cells of a row for each cell and each name of some groups."""
    values = {(r.image, r.cell, r.method, r.metric): r.value for r in rows}
    images = sorted({row.image for row in rows})
    found = [
        [cell, name, *_line(values, images, cell, groups)]
        for cell in CELLS
        for name, groups in parts.items()
    ]
    return [line for line in found if len(line) > 2]


def _line(
    values: Mapping[tuple[str, str, str, str], float],
    images: Sequence[str],
    cell: str,
    groups: Sequence[str],
) -> list[str]:
    """Figures of all lesions of some groups in a cell; none where there are none."""
    counts = {
        (image, group): values.get((image, cell, group, "n"), 0.0)
        for image in images
        for group in groups
    }
    total = sum(counts.values())
    if not total:
        return []

    def mean(metric: str) -> float:
        pairs = [
            (n, values[image, cell, group, metric])
            for (image, group), n in counts.items()
            if n and (image, cell, group, metric) in values
        ]
        return sum(n * v for n, v in pairs) / sum(n for n, _ in pairs) if pairs else math.nan

    def decibels(metric: str) -> str:
        error = mean(metric)
        return f"{10 * math.log10(RANGE**2 / error):.1f}" if error > 0 else "∞"

    def number(value: float, form: str) -> str:
        return "" if math.isnan(value) else format(value, form)

    contrast = mean("contrast")
    return [
        f"{total:.0f}",
        f"{mean('kept_before') / contrast:.0%}",
        f"{mean('kept_after') / contrast:.0%}",
        f"{mean('there_before'):.0%}",
        f"{mean('there_after'):.0%}",
        decibels("mse_before"),
        decibels("mse_after"),
        number(mean("seen_truth"), ".2f"),
        number(mean("seen_before"), ".2f"),
        number(mean("seen_after"), ".2f"),
        number(mean("sigma_ratio"), ".2f"),
        number(mean("sigma_auroc"), ".2f"),
    ]


def draw(path: Path, case: Case, before: Array, after: Array, deviation: Array | None) -> None:
    """The axial slices with most lesions: truth, damaged, enhanced, expected error."""
    from matplotlib.figure import Figure

    counts = np.array([len(np.unique(plane)) for plane in np.moveaxis(case.labels, 2, 0)])
    levels = sorted(np.argsort(-counts, kind="stable")[:1]) + _far(counts)
    top = float(np.percentile(case.brain.data[case.brain.mask], 99.5))
    figure = Figure(figsize=(15, 4.6 * len(levels)), layout="constrained", facecolor="black")
    columns = [("truth", case.brain.data, top, "gray"), ("damaged", before, top, "gray")]
    columns.append(("enhanced", after, top, "gray"))
    if deviation is not None:
        columns.append(("expected error", deviation, 120.0, "magma"))
    axes = figure.subplots(len(levels), len(columns), squeeze=False)
    for row, level in zip(axes, levels, strict=True):
        for axis, (title, volume, most, colours) in zip(row, columns, strict=True):
            axis.imshow(volume[:, :, level].T, cmap=colours, vmin=0, vmax=most)
            outline = (case.labels[:, :, level] > 0).T.astype(float)
            if title == "truth" and outline.any():
                axis.contour(outline, [0.5], colors="red", linewidths=0.6)
            axis.set_title(title, color="white", fontsize=9)
            axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)

    def fill(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=80, facecolor="black")

    write_whole(path, fill)


def _far(counts: NDArray[np.intp]) -> list[int]:
    """The level with most lesions that is at least a tenth of the volume from the first."""
    first, away = int(counts.argmax()), len(counts) // 10
    left = counts.copy()
    left[max(first - away, 0) : first + away] = 0
    return [int(left.argmax())] if left.any() else []
