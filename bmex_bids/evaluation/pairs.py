# SPDX-License-Identifier: Apache-2.0
"""A still and a moved scan of one person: how near does enhancement bring the one to the other?

The moved scan is registered to the still one as it is, and its enhanced version is moved by the same
transform, so that a better registration is no part of the gain.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.names import BidsName
from bmex_bids.common.tissues import TISSUES
from bmex_bids.evaluation import judge
from bmex_bids.evaluation.app import volumes_in
from bmex_bids.evaluation.judge import CLASSES, SEGMENTERS, linear_fit, range_of
from bmex_bids.evaluation.registration import on_grid_of, rigid
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import n4
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.metrics.reference import psnr, ssim
from bmex_bids.outputs.files import write_whole
from bmex_bids.outputs.sidecar import distinct_space

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
#: of the bias correction, which a linear fit follows
FIELD_MM, FIELD_ITERATIONS = 6.0, (30, 20)
#: columns of the table of figures
HEADER = (
    "still",
    "moved",
    "condition",
    "measure",
    "before",
    "after",
    "still_value",
)
#: measures that compare with the still scan; more is better
AGREEMENT = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    **{f"dice_{name}": f"Dice of classes, {words}" for name, words in SEGMENTERS.items()},
}
#: whose volumes: of a segmenter, or of the app
NETWORK = "network"
SOURCES = {**SEGMENTERS, NETWORK: "tissues of the app"}
STRUCTURE = "structure"


def volume_words(measure: str) -> str:
    """How tables call a measure of volume; empty for another measure.

    >>> volume_words("hmrf_GM_litres"), volume_words("own_dark_litres"), volume_words("psnr")
    ('GM, HMRF of dipy', 'dark class, Otsu and Potts', '')
    >>> volume_words("structure_hippocampus")
    'hippocampus, structures of the app'
    """
    source, _, name = measure.partition("_")
    if source == STRUCTURE:
        return f"{name}, structures of the app"
    if source not in SOURCES or not name.endswith("_litres"):
        return ""
    name = name.removesuffix("_litres")
    return f"{name}{' class' * (name in CLASSES)}, {SOURCES[source]}"


@dataclass(frozen=True)
class Choice:
    """Which images: entities with their labels, as ``acq-standard`` or ``ses-1_run-2``."""

    text: str
    entities: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Choice:
        """A choice as it is written; UsageError for what is none."""
        entities = {}
        for word in text.split("_"):
            key, dash, label = word.partition("-")
            if not (dash and key and label):
                raise UsageError(
                    f"expected entities such as acq-standard or ses-1_run-2, got {text!r}"
                )
            entities[key] = label
        return cls(text, entities)

    def takes(self, name: BidsName) -> bool:
        """Whether an image has these labels."""
        return all(name.entities.get(key) == label for key, label in self.entities.items())


@dataclass(frozen=True)
class Pair:
    """A still scan and a moved one of the same person; ``condition`` says which kind of moved."""

    still: Path
    moved: Path
    condition: str

    @property
    def name(self) -> str:
        """The moved scan's name."""
        return self.moved.name.partition(".")[0]


@dataclass(frozen=True)
class Row:
    """A figure of a pair before and after enhancement.

    Attributes
    ----------
    still_value : of the still scan, where it has one
    """

    still: str
    moved: str
    condition: str
    measure: str
    before: float
    after: float
    still_value: float = math.nan


@dataclass(frozen=True)
class Compared:
    """A pair on the grid of the still scan; intensities fitted to it.

    Attributes
    ----------
    still, before, after : (X, Y, Z), corrected for their bias fields
    mask : what both brains have
    voxel_ml : volume of a voxel
    """

    still: Array
    before: Array
    after: Array
    mask: Mask
    voxel_ml: float


def find_pairs(
    bids_dir: Path, reference: Choice, moved: Sequence[Choice], suffix: str
) -> list[Pair]:
    """Every moved scan with a still one that has the same entities but for those chosen by.

    UsageError where there is none.
    """
    names = {}
    for ending in (".nii.gz", ".nii"):
        for path in sorted(bids_dir.glob(f"sub-*/**/anat/*_{suffix}{ending}")):
            if (name := BidsName.parse(path.name)) is not None:
                names[path] = name
    chosen_by = {key for choice in (reference, *moved) for key in choice.entities}

    def rest(name: BidsName) -> str:
        return str(name.without(*chosen_by))

    stills: dict[str, Path] = {}
    for path, name in names.items():
        if reference.takes(name):
            stills.setdefault(rest(name), path)
    found = [
        Pair(stills[rest(name)], path, choice.text)
        for choice in moved
        for path, name in names.items()
        if choice.takes(name) and stills.get(rest(name), path) != path
    ]
    if not found:
        raise UsageError(
            f"expected {suffix} images with {reference.text} and with "
            f"{' or '.join(choice.text for choice in moved)} of the same participants in "
            f"{bids_dir}, got {sum(map(reference.takes, names.values()))} still ones among "
            f"{len(names)}, none with a moved partner; correct --reference and --moved"
        )
    return found


def derivative(image: Path, bids_dir: Path, enhanced: Path, desc: str, suffix: str = "") -> Path:
    """The file that ``bmex`` makes of a raw image."""
    name = BidsName.of(image.name)
    entities = {"desc": desc}
    if suffix and (space := distinct_space(image, name)):
        entities["space"] = space
    folder = enhanced / image.parent.relative_to(bids_dir)
    return folder / str(name.derived(entities, suffix, ".nii.gz"))


def compare(pair: Pair, bids_dir: Path, enhanced: Path) -> Compared:
    """Bring both versions of the moved scan onto the still one.

    Parameters
    ----------
    enhanced : the output of ``bmex`` on ``bids_dir``

    Raises
    ------
    UsageError
        A derivative is absent.
    """
    files = {
        "still mask": derivative(pair.still, bids_dir, enhanced, "brain", "mask"),
        "moved mask": derivative(pair.moved, bids_dir, enhanced, "brain", "mask"),
        "enhanced": derivative(pair.moved, bids_dir, enhanced, "preproc"),
    }
    for path in files.values():
        if not path.exists():
            raise UsageError(f"expected {path}, found none")
    still, before = (conform(load_image(path)) for path in (pair.still, pair.moved))
    masks = {name: conform(load_image(path)) for name, path in files.items()}
    after = masks.pop("enhanced")
    fixed, moving = masks["still mask"], masks["moved mask"]
    still, before, after = (
        unbiased(image, mask)
        for image, mask in ((still, fixed), (before, moving), (after, moving))
    )
    transform = rigid(still, before, fixed, moving)
    both = _data(fixed) > 0
    both &= on_grid_of(moving, still, transform, nearest=True) > 0
    truth = np.where(both, _data(still), 0).astype(np.float32)
    seen = []
    for image in (before, after):
        data = on_grid_of(image, still, transform)
        seen.append(np.where(both, linear_fit(data, truth, both), 0).astype(np.float32))
    voxel_ml = float(np.prod(voxel_sizes(still.affine))) / 1000
    return Compared(truth, seen[0], seen[1], both, voxel_ml)


def _data(image: nib.Nifti1Image) -> Array:
    return np.asarray(image.dataobj, dtype=np.float32)


def unbiased(image: nib.Nifti1Image, mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """An image without its bias field in the brain, and without negative values."""
    positive = nib.Nifti1Image(np.clip(_data(image), 0, None), image.affine)
    return n4(positive, mask, shrink_mm=FIELD_MM, iterations=FIELD_ITERATIONS)[0]


def measure(pair: Pair, compared: Compared) -> Iterator[Row]:
    """All figures of a pair."""

    def row(name: str, before: float, after: float, still: float = math.nan) -> Row:
        still_name = pair.still.name.partition(".")[0]
        return Row(still_name, pair.name, pair.condition, name, before, after, still)

    truth, mask = compared.still, compared.mask
    top = range_of(truth, mask)
    images = (compared.before, compared.after)
    yield row("psnr", *(psnr(image, truth, mask, top) for image in images))
    yield row("ssim", *(ssim(image, truth, mask, top) for image in images))
    for name in judge.segmenters():
        of_truth = judge.classes(name, truth, mask)
        labels = [judge.classes(name, image, mask) for image in images]
        overlaps = [judge.class_dice(found, of_truth, mask) for found in labels]
        yield row(f"dice_{name}", *overlaps)
        litres = [litres_of(found, compared.voxel_ml) for found in (*labels, of_truth)]
        for tissue, values in zip(CLASSES, zip(*litres, strict=True), strict=True):
            yield row(f"{name}_{tissue}_litres", *values)


def litres_of(classes: NDArray[np.uint8], voxel_ml: float) -> tuple[float, ...]:
    """Litres of the classes of a segmenter, from dark to bright."""
    counts = np.bincount(classes.ravel(), minlength=len(CLASSES) + 1)[1:]
    return tuple(float(count) * voxel_ml / 1000 for count in counts)


def measure_outputs(pair: Pair, bids_dir: Path, enhanced: Path) -> Iterator[Row]:
    """Volumes of tissues and structures in the outputs; of a raw scan there are none."""
    still, moved = (_written(path, bids_dir, enhanced) for path in (pair.still, pair.moved))
    for name in still.keys() & moved.keys():
        still_name = pair.still.name.partition(".")[0]
        yield Row(still_name, pair.name, pair.condition, name, math.nan, moved[name], still[name])


def _written(image: Path, bids_dir: Path, enhanced: Path) -> dict[str, float]:
    """Measure → volume, in the files that ``bmex`` has made of an image."""
    found: dict[str, float] = {}
    segmented = derivative(image, bids_dir, enhanced, "enhanced", "dseg")
    if segmented.exists():
        labels = load_image(segmented)
        counts = np.bincount(np.asarray(labels.dataobj, dtype=np.uint8).ravel(), minlength=4)
        voxel = float(np.prod(voxel_sizes(labels.affine))) / 1e6
        found |= {f"{NETWORK}_{t.label}_litres": float(counts[t.bids]) * voxel for t in TISSUES}
    name = BidsName.of(image.name)
    stem = str(name.without()).removesuffix(f"_{name.suffix}")
    for table in sorted(segmented.parent.glob(f"{stem}_*_dseg.tsv")):
        found |= {f"{STRUCTURE}_{part}": size for part, size in volumes_in(table).items()}
    return found


def run(
    pairs: Sequence[Pair],
    bids_dir: Path,
    enhanced: Path,
    *,
    say: Callable[[str], object] = print,
    seen: Callable[[Pair, Compared], object] = lambda *_: None,
) -> tuple[list[Row], dict[str, str]]:
    """Compare all pairs.

    Parameters
    ----------
    say : takes a line a pair
    seen : takes each pair's images, for pictures

    Returns
    -------
    rows : figures
    left_out : moved scan → why
    """
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for number, pair in enumerate(pairs, 1):
        try:
            compared = compare(pair, bids_dir, enhanced)
        except UsageError as error:
            left_out[pair.name] = str(error)
            say(f"{number} of {len(pairs)}  {pair.name}  left out: {error}")
            continue
        found = [*measure(pair, compared), *measure_outputs(pair, bids_dir, enhanced)]
        rows += found
        seen(pair, compared)
        first = found[0]
        say(f"{number} of {len(pairs)}  {pair.name}  {first.before:.2f} -> {first.after:.2f} dB")
    if not rows:
        raise UsageError(
            f"expected the images that bmex makes of {bids_dir} in {enhanced}, got those of no "
            f"pair (first: {next(iter(left_out.values()))}); run 'bmex {bids_dir} {enhanced} "
            "participant', or leave out --enhanced"
        )
    return rows, left_out


def write_table(path: Path, rows: Sequence[Row]) -> Path:
    """All figures as TSV, a figure a line."""

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows([_cell(getattr(row, name)) for name in HEADER] for row in rows)

    return write_whole(path, fill)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "n/a"
    return str(value)
