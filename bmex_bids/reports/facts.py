# SPDX-License-Identifier: Apache-2.0
"""What was done to a dataset, from the sidecars of all images in the output.

Whichever run they come from: so a text about them can be written again at any time.
"""

from __future__ import annotations

import inspect
import logging
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from bmex_bids.common.names import BidsName
from bmex_bids.network.variants import VARIANTS
from bmex_bids.outputs.records import (
    CORRECTION_SHARE,
    KEY,
    MOTION,
    NOISE,
    SPIKES,
    SPLIT,
    SUPER,
    TEMPLATE_MATCH,
    THICK,
    TISSUE_MAPS,
    UNEVEN,
    Kind,
    MaskMethod,
    RecordError,
    find_records,
    read_sidecar,
    table_of,
)

LOGGER = logging.getLogger(__name__)

#: name in the frame → distribution
PACKAGES = {
    "nipype": "nipype",
    "pybids": "pybids",
    "nibabel": "nibabel",
    "simpleitk": "SimpleITK",
    "scipy": "scipy",
    "torch": "torch",
    "nireports": "nireports",
}
OUR_SOURCE = "trained by the bmex_bids developers"


@dataclass(frozen=True)
class WeightSet:
    """Weights that were used.

    Attributes
    ----------
    origin : ``"own"`` (trained by us), ``"published"`` (with BME-X) or ``"other"``
    images : how many went through them
    slices : whether their network works on slices (``network.models.slices``)
    """

    name: str
    sha256: str = ""
    licence: str = ""
    source: str = ""
    origin: str = "other"
    images: int = 0
    slices: bool = False


@dataclass(frozen=True)
class Facts:
    """What was done to a dataset; of what is empty, nothing is said.

    Attributes
    ----------
    images, participants : with a result
    contrasts, age_groups : → number of images
    postnatal_months, fetal_weeks : lowest and highest age
    processed_by : versions of bmex_bids that the sidecars name
    versions : of bmex_bids, Python and the packages, now
    weights, strip_weights, structure_weights, super_weights, tissue_weights : of the network that
        enhances, that strips, that labels structures, that halves the edges of voxels, and that
        finds tissues where the enhancement's own does not
    masks : ``outputs.records.MaskMethod``, or what else the sidecar says → images
    mask_sources : whose masks were given
    reoriented : images whose header was corrected
    motion_looked_for, motion_undone, jumps_undone, lines_mended, spikes_removed,
        slices_sharpened, noise_reduced : images; ``motion_undone`` is periodic motion
    slices_split : images whose scan has thick slices, which were split
    spacing_mm, fetal_spacing_mm : of the network's grid, after and before birth
    native, resolution, preproc, measured : images enhanced on the input's grid, on the network's,
        back in their head; images of which only quality measures were kept
    devices, precisions : of the networks
    mirrored, mirrored_slices : images whose mirror images, left-right and front-back, went through
        the network too; images of which every other direction of slices was mirrored
    max_changes : limits to the change of a voxel, % → images
    shares : parts of the correction that were applied where it was not all, % → images
    matched_to : label of a template, instead of the age's reference → images
    turns : images for which several networks took turns with these
    spaces : label of a template → images that were brought there
    in_spaces : images that were brought to any
    contrast_measured : images whose tissue contrast (TCT) was measured
    gate : pass, warn, fail → number of images
    pictures : whether there are any
    n4_mm, n4_iterations : voxels and iterations of the bias correction
    match_points, match_levels, match_share : of the histogram matching
    """

    images: int = 0
    participants: int = 0
    contrasts: Mapping[str, int] = field(default_factory=dict)
    age_groups: Mapping[str, int] = field(default_factory=dict)
    postnatal_months: tuple[float, float] | None = None
    fetal_weeks: tuple[float, float] | None = None
    processed_by: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[WeightSet, ...] = ()
    strip_weights: tuple[WeightSet, ...] = ()
    structure_weights: tuple[WeightSet, ...] = ()
    super_weights: tuple[WeightSet, ...] = ()
    tissue_weights: tuple[WeightSet, ...] = ()
    masks: Mapping[str, int] = field(default_factory=dict)
    mask_sources: tuple[str, ...] = ()
    reoriented: int = 0
    motion_looked_for: int = 0
    motion_undone: int = 0
    jumps_undone: int = 0
    lines_mended: int = 0
    spikes_removed: int = 0
    slices_sharpened: int = 0
    noise_reduced: int = 0
    slices_split: int = 0
    spacing_mm: float | None = None
    fetal_spacing_mm: float | None = None
    native: int = 0
    resolution: int = 0
    preproc: int = 0
    measured: int = 0
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    mirrored: int = 0
    mirrored_slices: int = 0
    max_changes: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, int] = field(default_factory=dict)
    matched_to: Mapping[str, int] = field(default_factory=dict)
    turns: int = 0
    spaces: Mapping[str, int] = field(default_factory=dict)
    in_spaces: int = 0
    contrast_measured: int = 0
    gate: Mapping[str, int] = field(default_factory=dict)
    pictures: bool = False
    n4_mm: float = 0.0
    n4_iterations: tuple[int, ...] = ()
    match_points: int = 0
    match_levels: int = 0
    match_share: float = 0.0


def collect_facts(output_dir: Path) -> Facts:
    """The facts of all images in an output dataset, and the versions of what is installed."""
    from bmex_bids.imaging import intensity
    from bmex_bids.inputs.plan import FETAL_SPACING, SPACING
    from bmex_bids.inputs.units import DAYS_PER_MONTH

    images = _read_images(output_dir)
    records = [image.record for image in images]
    ages = [
        age for record in records if (age := table_of(record, "Age")).get("months") is not None
    ]
    fetal = [float(age["months"]) * DAYS_PER_MONTH / 7 for age in ages if age.get("fetal")]
    born = [float(age["months"]) for age in ages if not age.get("fetal")]
    groups = _count(record.get("Model") for record in records)
    masks = [table_of(record, "Mask") for record in records]
    motion = [table_of(record, MOTION) for record in records]
    spaces = [spaces_of(image) for image in images]
    n4 = inspect.signature(intensity.n4).parameters
    return Facts(
        images=len(images),
        participants=len({image.source.subject for image in images}),
        contrasts=_count(image.source.suffix for image in images),
        age_groups=groups,
        postnatal_months=(min(born), max(born)) if born else None,
        fetal_weeks=(min(fetal), max(fetal)) if fetal else None,
        processed_by=tuple(_count(record.get("Version") for record in records)),
        versions=installed_versions(),
        weights=_weight_sets(table_of(record, "Weights") for record in records),
        strip_weights=_weight_sets(_weights_in(masks)),
        structure_weights=_weight_sets(
            _weights_in(table_of(table_of(record, "Quality"), "Structures") for record in records)
        ),
        super_weights=_weight_sets(
            table_of(table_of(record, SUPER), "Weights") for record in records
        ),
        tissue_weights=_weight_sets(
            table_of(table_of(record, TISSUE_MAPS), "Weights") for record in records
        ),
        masks=_count(mask.get("method") for mask in masks),
        mask_sources=tuple(
            _count(mask.get("source") for mask in masks if mask.get("method") == MaskMethod.GIVEN)
        ),
        spacing_mm=SPACING[0] if set(groups) - {"fetal"} else None,
        fetal_spacing_mm=FETAL_SPACING[0] if "fetal" in groups else None,
        native=sum(Kind.NATIVE in image.kinds for image in images),
        resolution=sum(Kind.RES in image.kinds for image in images),
        preproc=sum(Kind.PREPROC in image.kinds for image in images),
        measured=sum(image.kinds == {Kind.QUALITY} for image in images),
        devices=tuple(_count(_device(record.get("Device")) for record in records)),
        precisions=tuple(_count(record.get("Precision") for record in records)),
        reoriented=sum("reoriented" in mask for mask in masks),
        motion_looked_for=sum(bool(table) for table in motion),
        motion_undone=sum(table.get("Model") == "periodic" for table in motion),
        jumps_undone=sum(table.get("Model") == "jumps" for table in motion),
        lines_mended=sum(UNEVEN in table for table in motion),
        spikes_removed=sum(SPIKES in table for table in motion),
        slices_sharpened=sum(THICK in table for table in motion),
        noise_reduced=sum(NOISE in table for table in motion),
        slices_split=sum(SPLIT in record for record in records),
        mirrored=sum("y" in (record.get("MirroredAxes") or ()) for record in records),
        mirrored_slices=sum(record.get("MirroredAxes") == ["x"] for record in records),
        max_changes=_count(
            f"{limit:g}" for record in records if (limit := record.get("MaxChange")) is not None
        ),
        shares=_count(
            f"{100 * share:g}"
            for record in records
            if (share := table_of(record, "Weights").get(CORRECTION_SHARE, 1.0)) != 1.0
        ),
        matched_to=_count(record.get(TEMPLATE_MATCH) for record in records),
        turns=sum(record.get("Networks") not in (None, 1) for record in records),
        spaces=_count(label for labels in spaces for label in labels),
        in_spaces=sum(bool(labels) for labels in spaces),
        contrast_measured=sum(
            table_of(record, "Quality").get("tct_after") is not None for record in records
        ),
        gate=_count(table_of(record, "Gate").get("Verdict") for record in records),
        pictures=next(output_dir.glob("sub-*/**/figures/*.svg"), None) is not None,
        n4_mm=float(n4["shrink_mm"].default),
        n4_iterations=tuple(n4["iterations"].default),
        match_points=intensity.MATCH_POINTS,
        match_levels=intensity.LEVELS,
        match_share=intensity.ROBUST_SHARE,
    )


def spaces_of(image: _Image) -> set[str]:
    """Labels of the templates to which there is a transform among an image's outputs."""
    to = re.compile(rf"_from-{image.source.suffix}_to-(.+)_mode-image_xfm\.h5")
    names = table_of(image.record, "Outputs")
    return {match[1] for name in names if (match := to.search(name))}


def _weights_in(tables: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What tables of a mask or of structures say of the weights that made them."""
    for table in tables:
        if table.get("weights"):
            yield {
                "Name": table["weights"],
                "SHA256": table.get("weights_sha256"),
                "License": table.get("weights_licence"),
            }


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages of :data:`PACKAGES`, without loading any of them."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "(version unknown)"
    return found


@dataclass(frozen=True)
class _Image:
    """An image of the output: what was done to it, and what was written of it."""

    source: BidsName
    record: Mapping[str, Any]
    kinds: Set[Kind]


def _read_images(output_dir: Path) -> list[_Image]:
    """Every image with a record that can be read, in the order of the names."""
    images = []
    for image in find_records(output_dir):
        for path in image.latest_first():
            try:
                record = read_sidecar(path)[KEY]
            except RecordError as error:
                LOGGER.warning("%s is left out of the methods text: it %s", path, error)
                continue
            images.append(_Image(image.source, record, set(image.paths)))
            break
    return images


def _count(values: Iterable[Any]) -> dict[str, int]:
    """How often each value occurs, the values sorted as people do; None does not count."""
    counts = Counter(str(value) for value in values if value not in (None, ""))
    return dict(sorted(counts.items(), key=lambda item: _natural(item[0])))


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts month3 before month12."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _device(value: Any) -> str | None:
    """``cuda:1 (NVIDIA X)`` → ``NVIDIA X``: which of several it was says nothing in a paper."""
    if not isinstance(value, str):
        return None
    name = re.fullmatch(r"cuda(?::\d+)? \((.+)\)", value)
    return name[1] if name else value


def _weight_sets(tables: Iterable[Mapping[str, Any]]) -> tuple[WeightSet, ...]:
    """Each set of weights once, with the number of its images."""
    from bmex_bids.network.weights.published import published_sets
    from bmex_bids.network.weights.registry import bundled

    theirs = tuple(release.name for release in published_sets())
    ours = {text for record in bundled() for text in (record.name, record.sha256)}
    sliced = {record.name for record in bundled() if VARIANTS[record.variant].slices}
    counts: Counter[WeightSet] = Counter()
    for table in tables:
        texts = {key: str(value) for key, value in table.items() if value}
        if "Name" not in texts:
            continue
        name, sha256 = texts["Name"], texts.get("SHA256", "")
        source = texts.get("Source", "")
        if name in theirs or name.startswith(tuple(f"{known}-" for known in theirs)):
            origin = "published"
        elif ours & {name, sha256} or source.startswith(OUR_SOURCE):
            origin = "own"
        else:
            origin = "other"
        licence, slices = texts.get("License", ""), name in sliced
        counts[WeightSet(name, sha256, licence, source, origin, slices=slices)] += 1
    return tuple(
        replace(weights, images=count)
        for weights, count in sorted(counts.items(), key=lambda item: _natural(item[0].name))
    )
