# SPDX-License-Identifier: Apache-2.0
"""How often each rule of the quality gate fires: on good outputs, and on outputs that were broken.

Three kinds of samples: outputs of ``bmex`` with the figures that it measured, their masks and tissues;
brains that were not processed, with the tissues of :mod:`.segmentation`; label maps.
A rule whose figure a sample does not have is not counted.  Everything is looked at on voxels of
about 1.6 mm.
"""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.contrasts import taken_as
from bmex_bids.common.names import BidsName
from bmex_bids.evaluation.segmentation import segment
from bmex_bids.evaluation.subjects import ADULT_MONTHS
from bmex_bids.evaluation.summary import grid
from bmex_bids.imaging.mask import plausible_litres
from bmex_bids.imaging.orientation import conform, voxel_sizes
from bmex_bids.inputs.tables import read_table
from bmex_bids.metrics.anatomy import brightness_order, flat_face, white_depth
from bmex_bids.metrics.change import correlation, empty_share, mean_shift, tissue_litres
from bmex_bids.metrics.contrast import fluid_contrast
from bmex_bids.metrics.gate import Gate, Measures, judge, largest_change
from bmex_bids.metrics.tissue import quality_index, tct
from bmex_bids.outputs.files import write_whole
from bmex_bids.outputs.records import Kind, find_records, table_of

Array = NDArray[np.float32]
#: label of the bright, middle and dark class by contrast: 1 CSF, 2 GM, 3 WM
BY_BRIGHTNESS = {"T1w": (0, 1, 2, 3), "T2w": (0, 3, 2, 1)}
#: numbers of the fetal label maps → tissue: white matter, ventricles, cerebellum, outer fluid,
#: cortex, deep grey matter, brain stem, corpus callosum
FETAL_LABELS = (0, 3, 1, 2, 1, 2, 2, 3, 3)
#: output labels (1 GM, 2 WM, 3 CSF) → those of the network
FROM_BIDS = (0, 2, 3, 1)
#: voxels around the brain that are kept; of the closing of label maps, mm
MARGIN, CLOSING_MM = 3, 8.0
#: of the smoothed result, mm
SMOOTHING_MM = 3.0
#: characters of a line of the page
PAGE_WIDTH = 99
GOOD, DAMAGED = "good", "of a damaged scan"
HEADER = ("sample", "kind", "rule", "verdict", "value")


@dataclass(frozen=True)
class Sample:
    """One output, good or broken.

    Attributes
    ----------
    name : of the image
    measures : its figures; what is None was not measured
    mask, labels : (X, Y, Z), voxels of about 1.6 mm, axes LPS; labels 1 CSF, 2 GM, 3 WM
    spacing : mm
    image : (X, Y, Z), of an output the enhanced one; None of a label map
    """

    name: str
    measures: Measures
    mask: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    spacing: tuple[float, ...]
    image: Array | None = None


@dataclass(frozen=True)
class Row:
    """The verdict of a rule on a sample; rule ``""`` is the whole gate."""

    sample: str
    kind: str
    rule: str
    verdict: str
    value: float


# ---------------------------------------------------------------- samples
def thin_image(path: Path) -> tuple[NDArray[Any], nib.Nifti1Image]:
    """Voxels of about 1.6 mm, axes LPS, and the image that they are."""
    image: Any = nib.load(path)
    step = [max(1, round(1.6 / size)) for size in voxel_sizes(image.affine)]
    data = np.asanyarray(image.dataobj)[tuple(slice(n // 2, None, n) for n in step)]
    corner = image.affine @ np.array([*(n // 2 for n in step), 1])
    affine = image.affine @ np.diag([*step, 1])
    affine[:3, 3] = corner[:3]
    found = conform(nib.Nifti1Image(np.ascontiguousarray(data, dtype=np.float32), affine))
    return np.asarray(found.dataobj, dtype=np.float32), found


def outputs(folder: Path) -> Iterator[Sample]:
    """The images of an output of ``bmex`` that is on the input's grid."""
    for image in find_records(folder):
        record = image.record()
        main = image.paths.get(Kind.NATIVE, image.paths.get(Kind.RES))
        if main is None or not record:
            continue
        stem = main.parent / image.source.stem
        dseg, mask = (Path(f"{stem}_desc-{end}.nii.gz") for end in ("enhanced_dseg", "brain_mask"))
        if not (dseg.exists() and mask.exists()):
            continue
        inside, like = thin_image(mask)
        box = bounding_box(inside > 0, MARGIN)
        labels = thin_image(dseg)[0][box].astype(np.uint8)
        enhanced = Path(f"{stem}_desc-enhanced_{image.source.suffix}.nii.gz")
        yield Sample(
            f"{folder.name}/{image.source}",
            recorded(record, image.source),
            inside[box] > 0,
            np.array(FROM_BIDS, dtype=np.uint8)[labels],
            voxel_sizes(like.affine),
            thin_image(enhanced)[0][box] if enhanced.exists() else None,
        )


def recorded(record: Mapping[str, Any], source: BidsName) -> Measures:
    """The figures of a sidecar's record."""
    quality, mask, age = (table_of(record, key) for key in ("Quality", "Mask", "Age"))
    tissues: dict[str, dict[str, Any]] = {
        when: {name: quality.get(f"{name.lower()}_litres_{when}") for name in ("CSF", "GM", "WM")}
        for when in ("before", "after")
    }
    months, fetal = age.get("months"), bool(age.get("fetal"))
    plain = ("correlation", "mean_shift", "tct_before", "tct_after", "qi", "empty_share",
             "fluid_contrast", "estimated_error_after", "enhanced_tissue_change")  # fmt: skip
    return Measures(
        volume_litres=mask.get("volume_litres"),
        litres_for_age=plausible_litres(months, fetal),
        components=mask.get("components"),
        border_contact=mask.get("border_contact"),
        tissues_before=tissues["before"],
        tissues_after=tissues["after"],
        turn=None,
        turn_margin=mask.get("turn_margin"),
        contrast=taken_as(source.suffix),
        age_months=months,
        fetal=fetal,
        **{name: quality.get(name) for name in plain},
    )


def brains(
    folder: Path, months: Mapping[str, float], masks: Path | None = None
) -> Iterator[Sample]:
    """Images that were not processed: stripped ones, or heads with masks ``NAME_*.nii.gz``."""
    for path in sorted(folder.glob("*_T[12]w.nii.gz")):
        stem = path.name.removesuffix(".nii.gz")
        contrast = stem[-3:]
        given = sorted(masks.glob(f"{stem}_*.nii.gz")) if masks is not None else []
        if masks is not None and not given:
            continue
        image, like = thin_image(path)
        mask = (thin_image(given[0])[0] if given else image) > 0
        mask = scipy.ndimage.binary_fill_holes(mask)
        box = bounding_box(mask, MARGIN)
        image, mask = image[box], mask[box]
        spacing = voxel_sizes(like.affine)
        classes = segment(image, mask)
        labels = np.array(BY_BRIGHTNESS[contrast], dtype=np.uint8)[classes]
        yield measured(
            Sample(
                stem,
                Measures(
                    contrast=contrast,
                    age_months=months.get(path.name, ADULT_MONTHS),
                    fluid_contrast=fluid_contrast(image, mask, spacing),
                    empty_share=empty_share(image, mask),
                    tct_before=tct(image, labels),
                ),
                mask,
                labels,
                spacing,
                image,
            )
        )


def label_maps(folder: Path, lookup: Sequence[int], months: float | None) -> Iterator[Sample]:
    """Maps of tissues; of a fetus where ``months`` is None."""
    for path in sorted(folder.glob("*.nii.gz")):
        if "T2w" in path.name:
            continue
        numbers, like = thin_image(path)
        table = np.zeros(max(len(lookup), int(numbers.max()) + 1), dtype=np.uint8)
        table[: len(lookup)] = lookup
        labels = table[numbers.astype(np.int16)]
        box = bounding_box(labels > 0, MARGIN)
        labels, spacing = labels[box], voxel_sizes(like.affine)
        mask = closed(labels > 0, spacing)
        labels[mask & (labels == 0)] = 1  # what furrows enclose is fluid
        scan = path.with_name(path.name.replace("labels", "T2w"))
        image = thin_image(scan)[0][box] if months is None and scan.exists() else None
        base = Measures(
            age_months=months, fetal=months is None, contrast=None if image is None else "T2w"
        )
        yield measured(
            Sample(
                path.name.removesuffix(".nii.gz"), base, mask, labels, spacing, image,
            )
        )  # fmt: skip


def closed(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.bool_]:
    """A mask as the application makes it: furrows up to 16 mm wide are part of the brain."""
    width = [int(CLOSING_MM / size) + 2 for size in spacing]
    padded = np.pad(mask, [(n, n) for n in width])
    grown = scipy.ndimage.distance_transform_edt(~padded, sampling=spacing) <= CLOSING_MM
    found = scipy.ndimage.distance_transform_edt(grown, sampling=spacing) > CLOSING_MM
    return np.asarray((found | padded)[tuple(slice(n, -n) for n in width)])


def measured(sample: Sample) -> Sample:
    """A sample with its volume and tissues as figures."""
    base = sample.measures
    voxel = float(np.prod(sample.spacing))
    litres = tissue_litres(sample.labels, voxel)
    return replace(
        sample,
        measures=replace(
            base,
            volume_litres=float(sample.mask.sum()) * voxel / 1e6,
            litres_for_age=plausible_litres(base.age_months, base.fetal),
            tissues_before=litres,
            tissues_after=litres,
            enhanced_tissue_change=0.0,
        ),
    )


def anatomical(sample: Sample) -> Measures:
    """The figures of a sample with those that its mask, tissues and image have now."""
    base = sample.measures
    order = math.nan
    if sample.image is not None:
        order = brightness_order(
            sample.image, sample.labels, base.contrast or "T1w", base.age_months, base.fetal
        )
    return replace(
        base,
        flat_face=flat_face(sample.mask, sample.spacing),
        white_depth=white_depth(sample.labels, sample.spacing),
        brightness_order=None if math.isnan(order) else order,
    )


# ---------------------------------------------------------------- broken outputs
def swapped(sample: Sample, first: int, second: int) -> Measures:
    """Two tissues taken for each other."""
    table = np.arange(4, dtype=np.uint8)
    table[[first, second]] = second, first
    changed = replace(sample, labels=table[sample.labels])
    litres = tissue_litres(changed.labels, float(np.prod(sample.spacing)))
    return replace(anatomical(changed), tissues_before=litres, tissues_after=litres)


def halved(sample: Sample, axis: int, low: bool) -> Measures:
    """Half of the brain is missing, in the mask and in all that is made with it."""
    there = np.flatnonzero(sample.mask.any(axis=tuple(k for k in range(3) if k != axis)))
    middle = int(there[0] + there[-1]) // 2
    part: list[Any] = [slice(None)] * 3
    part[axis] = slice(None, middle) if low else slice(middle, None)
    mask = sample.mask.copy()
    mask[tuple(part)] = False
    figures = anatomical(replace(sample, mask=mask, labels=np.where(mask, sample.labels, 0)))
    return replace(figures, volume_litres=float(mask.sum() * np.prod(sample.spacing) / 1e6))


def inverted(sample: Sample) -> Measures:
    """The result is dark where the input is bright."""
    after = _negative(sample)
    return _changed(sample, after, tct(after, sample.labels))


def inverted_input(sample: Sample) -> Measures:
    """The raw image is an inverted one, and the result follows it."""
    assert sample.image is not None  # noqa: S101 - for mypy: see BROKEN
    image = _negative(sample)
    figures = anatomical(replace(sample, image=image))
    return replace(figures, fluid_contrast=fluid_contrast(image, sample.mask, sample.spacing))


def smoothed(sample: Sample) -> Measures:
    """The result is blurred; its tissues are found anew by the segmenter."""
    assert sample.image is not None  # noqa: S101 - for mypy: see BROKEN
    width = [SMOOTHING_MM / 2.355 / size for size in sample.spacing]
    after = scipy.ndimage.gaussian_filter(sample.image, width)
    figures = _changed(sample, after, tct(after, sample.labels))
    voxel = float(np.prod(sample.spacing))
    litres = [tissue_litres(segment(image, sample.mask), voxel) for image in (sample.image, after)]
    return replace(figures, enhanced_tissue_change=largest_change(*litres))


def shifted(sample: Sample) -> Measures:
    """The mask lies a quarter of the brain too far to the front."""
    assert sample.image is not None  # noqa: S101 - for mypy: see BROKEN
    there = np.flatnonzero(sample.mask.any(axis=(0, 2)))
    mask = np.roll(sample.mask, -int(there[-1] - there[0]) // 4, axis=1)
    figures = anatomical(replace(sample, mask=mask))
    return replace(figures, empty_share=empty_share(sample.image, mask))


def of_other_age(sample: Sample) -> Measures:
    """An infant's or fetus's image called an adult's, or an adult's called a newborn's."""
    young = sample.measures.fetal or (sample.measures.age_months or 0) < 24
    months = ADULT_MONTHS if young else 0.5
    called = replace(
        sample.measures,
        age_months=months,
        fetal=False,
        litres_for_age=plausible_litres(months, False),
    )
    return anatomical(replace(sample, measures=called))


def _negative(sample: Sample) -> Array:
    assert sample.image is not None  # noqa: S101 - for mypy: see BROKEN
    top = float(np.percentile(sample.image[sample.mask], 99.5))
    return np.where(sample.mask, np.clip(top - sample.image, 0, None), 0).astype(np.float32)


def _changed(sample: Sample, after: Array, contrast: float) -> Measures:
    assert sample.image is not None  # noqa: S101 - for mypy: see BROKEN
    return replace(
        anatomical(sample),
        correlation=correlation(sample.image, after, sample.mask),
        mean_shift=mean_shift(sample.image, after, sample.mask),
        tct_after=contrast,
        qi=quality_index(sample.image, after, sample.labels),
    )


#: half that is missing → (axis of LPS, whether it is that of the lower indices)
HALVES = {
    "right": (0, True),
    "left": (0, False),
    "front": (1, True),
    "back": (1, False),
    "lower": (2, True),
    "upper": (2, False),
}
#: end of the name of their kinds
HALF = "half missing"
#: kind → (what makes it, whether it needs an image)
BROKEN: Mapping[str, tuple[Callable[[Sample], Measures], bool]] = {
    "CSF and GM swapped": (partial(swapped, first=1, second=2), True),
    "GM and WM swapped": (partial(swapped, first=2, second=3), False),
    "CSF and WM swapped": (partial(swapped, first=1, second=3), True),
    **{
        f"{name} {HALF}": (partial(halved, axis=axis, low=low), False)
        for name, (axis, low) in HALVES.items()
    },
    "result inverted": (inverted, True),
    "input inverted": (inverted_input, True),
    "mask shifted by a quarter": (shifted, True),
    "result blurred by 3 mm": (smoothed, True),
    "wrong age": (of_other_age, False),
}


# ---------------------------------------------------------------- rows and tables
def rows_of(sample: Sample, kind: str = GOOD) -> Iterator[Row]:
    """The verdicts on a sample as it is, and on each way to break it.

    Parameters
    ----------
    kind : :data:`GOOD`, or :data:`DAMAGED` of an output of a scan that had been damaged
    """
    yield from _verdicts(sample.name, kind, judge(anatomical(sample)))
    for broken, (make, needs_image) in BROKEN.items():
        # tissues of a fetus that were swapped are told by an image alone
        needed = needs_image or (sample.measures.fetal and "swapped" in broken)
        if sample.image is not None or not needed:
            yield from _verdicts(sample.name, broken, judge(make(sample)))


def _verdicts(sample: str, kind: str, gate: Gate) -> Iterator[Row]:
    """Of the rules whose figure was measured; then the worst of them."""
    known = [rule for rule in gate.rules if rule.value is not None]
    for rule in known:
        yield Row(sample, kind, rule.name, rule.verdict, float(rule.value or 0.0))
    worst = max((rule.verdict for rule in known), key=("pass", "warn", "fail").index)
    yield Row(sample, kind, "", worst, math.nan)


def ages(manifest: Path) -> dict[str, float]:
    """File name → age in months, of a table with the columns ``file`` and ``age`` (``39 y``)."""
    found = {}
    for row in read_table(manifest):
        number, _, unit = row.get("age", "").partition(" ")
        if unit.startswith("y") and number.isdigit():
            found[Path(row.get("file", "")).name] = 12.0 * int(number)
    return found


def append(path: Path, rows: Sequence[Row]) -> None:
    """Write the table of all rows."""

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(HEADER)
            for row in rows:
                value = f"{row.value:.6g}" if math.isfinite(row.value) else "n/a"
                writer.writerow([row.sample, row.kind, row.rule, row.verdict, value])

    write_whole(path, fill)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table that :func:`append` wrote; none where there is no table."""
    return [
        Row(row["sample"], row["kind"], row["rule"], row["verdict"],
            math.nan if row["value"] == "n/a" else float(row["value"]))
        for row in read_table(path)
    ]  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """What the page shows: verdicts by kind of output, and the good outputs that do not pass."""
    samples = {row.sample for row in rows}
    parts = [f"{len(samples)} samples.", by_kind(rows)]
    noted = [row for row in rows if row.kind == GOOD and row.rule and row.verdict != "pass"]
    if noted:
        rules: dict[str, list[str]] = {}
        for row in noted:
            rules.setdefault(row.sample, []).append(f"{row.rule} {row.value:.3g} ({row.verdict})")
        lines = [
            textwrap.fill(
                f"- {sample}: {', '.join(found)}", PAGE_WIDTH,
                subsequent_indent="  ", break_long_words=False, break_on_hyphens=False,
            )
            for sample, found in rules.items()
        ]  # fmt: skip
        parts.append("\n".join(["Good samples that do not pass:\n", *lines]))
    return "\n\n".join(parts)


def by_kind(rows: Sequence[Row]) -> str:
    """A row a kind of output, all missing halves in one: how many fail, warn, pass."""
    kinds: dict[str, list[str]] = {}
    for kind in (GOOD, DAMAGED, *BROKEN):
        found = [row.verdict for row in rows if row.kind == kind and not row.rule]
        if found:
            kinds.setdefault(HALF if kind.endswith(HALF) else kind, []).extend(found)
    lines = [
        [kind, *(str(found.count(verdict)) for verdict in ("fail", "warn", "pass"))]
        for kind, found in kinds.items()
    ]
    return grid(["output", "fail", "warn", "pass"], lines)


def by_rule(rows: Sequence[Row]) -> str:
    """A row a rule: values on good outputs, and the shares of outputs that it does not pass."""
    lines = []
    for rule in dict.fromkeys(row.rule for row in rows if row.rule):
        good = [row for row in rows if row.rule == rule and row.kind == GOOD]
        if good:
            values = [row.value for row in good]
            broken = [row for row in rows if row.rule == rule and row.kind in BROKEN]
            span = f"{min(values):.3g} … {max(values):.3g}"
            lines.append([rule, str(len(good)), span, _noticed(good), _noticed(broken)])
    head = ["rule", "good outputs", "their values", "not passed", "not passed, broken outputs"]
    return grid(head, lines)


def _noticed(rows: Sequence[Row]) -> str:
    """Share of the rows that did not pass."""
    return f"{sum(row.verdict != 'pass' for row in rows) / len(rows):.0%}" if rows else ""
