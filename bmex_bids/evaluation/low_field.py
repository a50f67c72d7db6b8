# SPDX-License-Identifier: Apache-2.0
"""Simulated scans of 64 mT through the whole app, against the clean image.

The scan has a grid of its own.  Cubic splines, and non-local means that know the noise, get the app's
bias field, mask and map of intensities, so that only the enhancement differs.  All are compared on
the grid of the network, with the clean image as the app prepares it, within the masks of both.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.checks import Step
from bmex_bids.degrade.levels import draw_level
from bmex_bids.degrade.low_field import coarse, scan
from bmex_bids.degrade.steps import Scan
from bmex_bids.evaluation import judge
from bmex_bids.evaluation.app import nodes_of, preparation_of
from bmex_bids.evaluation.benchmark import (
    PHASE_AXIS,
    SLICE_AXIS,
    Settings,
    Unit,
    rows_of,
)
from bmex_bids.evaluation.figures import save, show
from bmex_bids.evaluation.rows import Row, key_of
from bmex_bids.evaluation.subjects import Clean, load_clean, require_data, subject_of
from bmex_bids.evaluation.summary import grid
from bmex_bids.exceptions import BmexError, StepError
from bmex_bids.imaging.intensity import HistogramMatch, IntensityScale
from bmex_bids.imaging.noise import non_local_means
from bmex_bids.imaging.resampling import resample_like, resample_to_spacing
from bmex_bids.imaging.stripped import without_offset
from bmex_bids.interfaces.files import data_of, read, with_data
from bmex_bids.interfaces.preprocess import with_histogram
from bmex_bids.network.weights.registry import sha256

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: changes when the figures do
FIGURES_VERSION = "1"
TABLE = "low-field.tsv"
IMAGES = ("adult-31", "adult-68", "head-14", "head-child10")
CELL = "64 mT"
#: of the kind ``low-field``: all of it
STRENGTH = 100.0
#: method → how tables call it
METHODS = {"cubic": "cubic", "nlm": "NLM + cubic", "bmex": "bmex"}
#: by how much bmex should exceed non-local means
GOALS = {"psnr": 1.0, "ssim": 0.02, "dice_own": 0.02, "dice_hmrf": 0.02}
MEASURES = {"psnr": "PSNR", "ssim": "SSIM", "dice_own": "Dice", "dice_hmrf": "Dice, HMRF"}
DIGITS = {"psnr": 2}


@dataclass(frozen=True)
class Seen:
    """An image on the network's grid, each way; template units, zero outside ``inside``.

    Attributes
    ----------
    truth : the clean image, (X, Y, Z)
    images : method → (X, Y, Z)
    inside : the brain in the clean image and in the scan
    overlap : Dice of both brains
    """

    truth: Array
    images: Mapping[str, Array]
    inside: Mask
    overlap: float


def plan(settings: Settings) -> Iterator[Unit]:
    """A unit an image; UsageError for one that is not there."""
    for image in settings.images:
        subject, version = (
            subject_of(image),
            f"{FIGURES_VERSION} {judge.NLM_STRENGTH} {judge.NLM_SEARCH}",
        )
        require_data(path := settings.data / subject.path)
        damage = json.dumps(fault(1.0, subject.seed))
        key = key_of(version, sha256(path), damage, settings.networks_for(subject).version)
        yield Unit(image, CELL, {(image, CELL, method): key for method in METHODS})


def fault(top: float, seed: int) -> Step:
    """What the scanner does; ``top`` is the brightness of the brain, in the image's units."""
    dice = np.random.default_rng(seed)
    (step,) = draw_level("low-field", STRENGTH, dice, Scan(top, PHASE_AXIS, SLICE_AXIS)).steps
    return step


def do_unit(settings: Settings, unit: Unit) -> list[Row]:
    """The figures of one image, and its picture."""
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="bmex-low-field-") as folder:
            found = seen(settings, unit.image, Path(folder))
    except BmexError as error:
        raise StepError(f"{unit.image}: {error}", error.exit_code) from error
    figures = figures_of(found)
    picture(settings.out / f"low-field_{unit.image}.png", unit.image, found, figures)
    return rows_of(unit, figures, time.monotonic() - begun)


def seen(settings: Settings, image: str, work: Path) -> Seen:
    """One image, scanned and enhanced; ``work`` is a folder for intermediate files."""
    subject = subject_of(image)
    networks = settings.networks_for(subject)
    clean = load_clean(settings.data, subject)
    path, mask = _stored(clean, work / "clean", subject.contrast)
    first = preparation_of(path, subject, networks, path.parent, mask)
    brain = read(first["find_brain"].out_file)

    step = fault(judge.range_of(clean.data, data_of(brain) > 0), subject.seed)
    low = scanned(clean, step)
    path, mask = _stored(low, work / "low", subject.contrast)
    nodes = nodes_of(path, subject, networks, path.parent, mask)
    enhanced = read(nodes["network"].out_file)
    known = data_of(read(nodes["correct_brain"].mask_res)) > 0.5

    there = data_of(resample_like(brain, enhanced, order=1)) > 0.5
    fine = resample_like(read(first["correct_brain"].native), enhanced, order=3)
    chain = json.loads(Path(first["match_histogram"].intensity_json).read_text())
    truth = with_histogram(HistogramMatch.of(chain["match"]), data_of(fine).clip(0), there)
    less = non_local_means(
        low.data, step["sigma"], strength=judge.NLM_STRENGTH, search=judge.NLM_SEARCH
    )
    if low.mask is not None:
        less = np.where(low.mask, less, 0)
    inside = there & known
    return Seen(
        np.where(inside, truth, 0),
        {
            "cubic": np.where(inside, by_splines(low.data, nodes), 0),
            "nlm": np.where(inside, by_splines(less, nodes), 0),
            "bmex": np.where(inside, data_of(enhanced), 0),
        },
        inside,
        2 * np.count_nonzero(inside) / (np.count_nonzero(there) + np.count_nonzero(known)),
    )


def scanned(clean: Clean, step: Step) -> Clean:
    """The scan that a step describes, on its own grid; a stripped brain has only its mask."""
    low = scan(clean.data, clean.spacing, step)
    affine = low.affine(clean.affine)
    if clean.mask is None:
        return Clean(low.data, affine, None)
    mask = coarse(clean.mask.astype(np.float32), clean.spacing, step).data > 0.5
    return Clean(np.where(mask, low.data, 0).astype(np.float32), affine, mask)


def _stored(image: Clean, folder: Path, contrast: str) -> tuple[Path, Path | None]:
    """Files of an image and its mask; None where it has none."""
    folder.mkdir()
    path = folder / f"sub-benchmark_{contrast}.nii"
    nib.save(image.image(image.data), path)
    if image.mask is None:
        return path, None
    mask = folder / "mask.nii"
    nib.save(image.image(image.mask.astype(np.uint8)), mask)
    return path, mask


def by_splines(data: Array, nodes: Mapping[str, Any]) -> Array:
    """A scan on the network's grid, template units, zero outside the mask: by cubic splines alone.

    Parameters
    ----------
    data : (X, Y, Z), grid and unit of the image that the app was given
    nodes : of the app's workflow → outputs; the bias field and the map of intensities are theirs
    """
    chain = json.loads(Path(nodes["match_histogram"].intensity_json).read_text())
    first = IntensityScale(**json.loads(Path(nodes["correct_head"].scale_file).read_text()))
    over_head = data_of(read(nodes["correct_head"].field))
    in_all = read(nodes["correct_brain"].field)
    head = data_of(without_offset(with_data(data, in_all)))
    # the working range may have been widened for the brain, after the head's field
    ranged = IntensityScale(**chain["scale"]).apply(first.invert(first.apply(head) / over_head))
    even = with_data(ranged * over_head / data_of(in_all), in_all)
    mask = read(nodes["correct_brain"].mask_res)
    fine = resample_to_spacing(even, float(nib.affines.voxel_sizes(mask.affine)[0]), order=3)
    match = HistogramMatch.of(chain["match"])
    return with_histogram(match, data_of(fine).clip(0), data_of(mask) > 0.5)


def figures_of(found: Seen) -> dict[str, dict[str, float]]:
    """Method → measure → value."""
    figures: dict[str, dict[str, float]] = {}
    wanted = {name: judge.classes(name, found.truth, found.inside) for name in judge.segmenters()}
    for method, image in found.images.items():
        measured = judge.in_template_units(image, found.truth, found.inside)
        for name, labels in wanted.items():
            here = judge.classes(name, image, found.inside)
            measured |= judge.tissue_agreement(name, here, labels, found.inside)
        figures[method] = measured
    figures["bmex"]["mask_dice"] = found.overlap
    return figures


# ---------------------------------------------------------------- the page
def table(figures: Sequence[Row]) -> str:
    """A row an image and the mean; each measure of each method."""
    values = {(r.image, r.method, r.metric): r.value for r in figures}
    images = list(dict.fromkeys(r.image for r in figures))
    measures = [m for m in MEASURES if all((name, "bmex", m) in values for name in images)]

    def cells(names: Sequence[str]) -> Iterator[str]:
        for measure in measures:
            means = [np.mean([values[n, method, measure] for n in names]) for method in METHODS]
            yield " / ".join(f"{mean:.{DIGITS.get(measure, 3)}f}" for mean in means)

    head = ["image", *(MEASURES[measure] for measure in measures)]
    lines = [[image, *cells([image])] for image in images]
    return grid(head, [*lines, ["mean", *cells(images)]])


def verdict(figures: Sequence[Row]) -> str:
    """How far bmex is above non-local means, each goal, and where least."""
    values = {(r.image, r.method, r.metric): r.value for r in figures}
    images = list(dict.fromkeys(r.image for r in figures))
    lines = []
    for measure, goal in GOALS.items():
        if not all((name, "bmex", measure) in values for name in images):
            continue
        gain = {n: values[n, "bmex", measure] - values[n, "nlm", measure] for n in images}
        mean, worst = float(np.mean(list(gain.values()))), min(images, key=lambda n: gain[n])
        digits = DIGITS.get(measure, 3)
        lines.append(
            f"- {MEASURES[measure]}: {mean:+.{digits}f}, goal {goal:+g} "
            f"{'reached' if mean >= goal else 'NOT reached'}; least in {worst} "
            f"({gain[worst]:+.{digits}f})"
        )
    return "\n".join(lines)


def markdown(figures: Sequence[Row], weights: str) -> str:
    """The page; ``weights`` in words."""
    return (
        f"# Simulated scans of 64 mT, {weights}\n\n"
        f"{' / '.join(METHODS.values())}, on the network's grid, in template units.\n\n"
        f"{table(figures)}\n\nbmex above non-local means:\n\n{verdict(figures)}\n"
    )


def picture(
    path: Path, name: str, found: Seen, figures: Mapping[str, Mapping[str, float]]
) -> None:
    """Three planes of the clean image and of each way, as a PNG file."""
    from matplotlib.figure import Figure

    columns = {"clean": found.truth} | {
        f"{METHODS[method]}, {figures[method]['psnr']:.1f} dB": image
        for method, image in found.images.items()
    }
    middle = [int(np.median(places)) for places in np.nonzero(found.inside)]
    box = tuple(slice(p.min(), p.max() + 1) for p in np.nonzero(found.inside))
    top = float(np.percentile(found.truth[found.inside], 99.9))
    figure = Figure(figsize=(4 * len(columns), 12), layout="constrained")
    for row, axis in enumerate((2, 1, 0)):
        for column, (title, image) in enumerate(columns.items()):
            panel = figure.add_subplot(3, len(columns), row * len(columns) + column + 1)
            plane = np.take(image, middle[axis], axis)
            plane = plane[tuple(side for k, side in enumerate(box) if k != axis)]
            show(panel, plane if axis == 2 else plane[:, ::-1], top, "gray")
            panel.set_axis_off()
            if row == 0:
                panel.set_title(title, fontsize=14)
    figure.suptitle(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, figure)
