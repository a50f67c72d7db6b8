# SPDX-License-Identifier: Apache-2.0
"""Clean images in linear units for the network over slices: brains and whole heads of all ages.

No histogram is matched: the network sees an image as it is, scaled to its brain's mean.  A head keeps
what surrounds the brain, because that moves with it.  What is made is kept in a folder, since bias
correction takes minutes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.contrasts import MEAN
from bmex_bids.common.replacing import put_in_place
from bmex_bids.imaging.intensity import TOP, n4, rescale_robust
from bmex_bids.imaging.mask import clean_mask, hysteresis_mask
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.imaging.resampling import resample_to_spacing
from bmex_bids.network.inference.stripper import brain_probability
from bmex_bids.network.weights.registry import bundled
from bmex_bids.training.images import (
    REAL_IMAGES,
    TEMPLATES,
    TRAINING_MAPS,
    UNKNOWN,
    VALIDATION_IMAGES,
    CleanImage,
    corrected_brain,
    prepare,
    require,
)
from bmex_bids.training.labels import contrast_is_sure, tissue_labels
from bmex_bids.training.painting import LabelBrain, load_label_brain, paint

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]

#: voxels of 0.8 mm that a head keeps around its brain
HEAD_ROOM = 45
#: brightest voxel of a head, times the brain's 99.9th percentile
BRIGHTEST = 2.5
#: the bias field of a head is kept within these, where it is not known
FIELD = (0.5, 2.0)
#: percentile of a head that is taken for zero
DARKEST = 0.5
#: files that train, files that validate
_ADULTS = ("01 02 03 05 09 10 21 23 28 33 38 39 42 53 57 58 65 71", "31 68")
_HEADS = (
    "adult26 adult_colin27 adult_pycortexS1 adult_studyforrest child3 "
    "ds000011_sub-01 ds000011_sub-02 ds000011_sub-03 ds000011_sub-09",
    "child10 ds000011_sub-14",
)
_FETUSES = ("GA21_notoperated GA25_operated GA28_operated", "GA31_operated GA34_operated")


@dataclass(frozen=True)
class Source:
    """A file, and how it is read.

    Attributes
    ----------
    file : relative to the folder of data
    group : ``"adults"``, ``"heads"``, ``"infants"``, ``"fetuses"`` or ``"templates"``
    age_group, contrast : as in the tables of histograms
    """

    file: str
    group: str
    age_group: str
    contrast: str

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return Path(self.file).name.split(".")[0]


def _sources(which: int) -> tuple[Source, ...]:
    """Which 0: those that train; 1: those that validate."""
    infants = (REAL_IMAGES, VALIDATION_IMAGES)[which]
    rows = [
        *(
            Source(f"adult-brains/sub-{k}_T1w.nii.gz", "adults", "month24", "T1w")
            for k in _ADULTS[which].split()
        ),
        *(
            Source(f"heads-open/{k}_T1w.nii.gz", "heads", "month24", "T1w")
            for k in _HEADS[which].split()
        ),
        *(Source(file, "infants", group, contrast) for file, group, contrast in infants),
        *(
            Source(f"fetal-atlas/{k}_T2w.nii.gz", "fetuses", "fetal", "T2w")
            for k in _FETUSES[which].split()
        ),
    ]
    if which == 0:
        rows += [Source(file, "templates", group, contrast) for file, group, contrast in TEMPLATES]
    return tuple(rows)


TRAINING, VALIDATION = _sources(0), _sources(1)
#: how often each group is drawn; ``painted`` are label maps
SHARES: Mapping[str, float] = {
    "adults": 0.38, "heads": 0.2, "infants": 0.2, "fetuses": 0.08, "templates": 0.04, "painted": 0.1,
}  # fmt: skip


def read(data_dir: Path, source: Source, kept: Path) -> CleanImage:
    """A clean image: brain mean :data:`MEAN`, LPS; made, or read from the folder ``kept``.

    Zero outside the mask, but for a head, where ``mask`` is the brain in it.
    """
    file = kept / f"{source.name}.npz"
    if not file.exists():
        made = (
            _head(data_dir / source.file) if source.group == "heads" else _brain(source, data_dir)
        )
        temporary = file.with_name(f"{source.name}.{os.getpid()}.tmp.npz")
        np.savez(temporary, data=made[0].astype(np.float16), mask=made[1], labels=made[2])
        put_in_place(temporary, file)
        LOGGER.info("%s: %s voxels", source.name, " × ".join(map(str, made[1].shape)))
    with np.load(file, allow_pickle=False) as stored:
        data, mask, labels = (stored[key] for key in ("data", "mask", "labels"))
    return CleanImage(
        source.name, data.astype(np.float32), mask, labels, (0.8,) * 3,
        source.age_group, source.contrast,
    )  # fmt: skip


def _brain(source: Source, data_dir: Path) -> tuple[Array, NDArray[np.bool_], NDArray[np.uint8]]:
    path = data_dir / source.file
    if source.group == "templates":  # without a bias of its own
        ready = prepare(path, source.age_group, source.contrast)
        return _scaled(ready.data, ready.mask), ready.mask, ready.labels
    if source.group == "fetuses":  # averages: no bias, and the labels say where the brain is
        data, mask = _atlas(path)
    else:
        data, mask = corrected_brain(path, 0.75 if source.age_group == "fetal" else 0.8)
    return _scaled(data, mask), mask, _labels(data, mask, source)


def _atlas(path: Path) -> tuple[Array, NDArray[np.bool_]]:
    image, labels = (
        conform(load_image(file))
        for file in (path, path.with_name(path.name.replace("_T2w", "_labels")))
    )
    inside = np.asarray(labels.dataobj) > 0
    data = np.clip(np.asarray(image.dataobj, dtype=np.float32), 0, None) * inside
    box = bounding_box(inside, 8)
    data, brain = (
        np.asarray(
            resample_to_spacing(nib.Nifti1Image(part, image.affine).slicer[box], 0.75).dataobj,
            dtype=np.float32,
        )
        for part in (data.astype(np.float32), inside.astype(np.float32))
    )
    return data * (brain > 0.5), brain > 0.5


def _labels(data: Array, mask: NDArray[np.bool_], source: Source) -> NDArray[np.uint8]:
    labels = np.where(mask, UNKNOWN, 0).astype(np.uint8)
    if contrast_is_sure(source.age_group, source.contrast):
        box = bounding_box(mask)
        top = np.quantile(data[mask], 0.998)  # a few bright vessels are no class
        labels[box] = tissue_labels(
            np.minimum(data[box], top), mask[box], source.contrast, rounds=10
        )
    return labels


def _head(path: Path) -> tuple[Array, NDArray[np.bool_], NDArray[np.uint8]]:
    """A head and the brain in it: bias-corrected by the brain, cut around it, at 0.8 mm."""
    image = conform(load_image(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    data = np.clip(data - np.percentile(data, DARKEST), 0, None)
    record = next(record for record in bundled() if record.kind == "strip")
    spacing = voxel_sizes(image.affine)
    seen, _ = rescale_robust(data, data > 0)
    probability = brain_probability(np.clip(seen, 0, TOP), spacing, record, device="cpu")
    found = hysteresis_mask(probability, spacing)
    brain_image = clean_mask(nib.Nifti1Image(found.astype(np.uint8), image.affine))
    brain = np.asarray(brain_image.dataobj) > 0
    data = np.minimum(data, BRIGHTEST * np.percentile(data[brain], 99.9)).astype(np.float32)
    _, field = n4(nib.Nifti1Image(data, image.affine), brain_image)
    data = data / np.clip(np.asarray(field.dataobj, dtype=np.float32), *FIELD)
    box = bounding_box(brain, [round(HEAD_ROOM * 0.8 / size) for size in spacing])
    cut = nib.Nifti1Image(data, image.affine).slicer[box]
    inside = nib.Nifti1Image(brain.astype(np.float32), image.affine).slicer[box]
    head = np.asarray(resample_to_spacing(cut, 0.8).dataobj, dtype=np.float32)
    mask = np.asarray(resample_to_spacing(inside, 0.8).dataobj) > 0.5
    source = Source(path.name, "heads", "month24", "T1w")
    return _scaled(head, mask), mask, _labels(head, mask, source)


def _scaled(data: Array, mask: NDArray[np.bool_]) -> Array:
    """Brain mean :data:`MEAN`, not negative, in the range of float16."""
    factor = MEAN / max(float(data[mask].mean()), 1e-6)
    return np.clip(data * factor, 0, 6e4).astype(np.float32)


@dataclass(frozen=True)
class Collection:
    """Everything that trains: files by group, read when drawn, and label maps.

    ``groups`` are those of :data:`SHARES` that are drawn.
    """

    data_dir: Path
    kept: Path
    sources: Sequence[Source]
    maps: Sequence[LabelBrain]
    groups: Sequence[str] = tuple(SHARES)

    def pick(self, rng: np.random.Generator) -> tuple[str, CleanImage]:
        """A group and a clean image of it, drawn by :data:`SHARES`."""
        there = {source.group for source in self.sources} | ({"painted"} if self.maps else set())
        names = [name for name in SHARES if name in there and name in self.groups]
        shares = np.array([SHARES[name] for name in names])
        group = str(rng.choice(names, p=shares / shares.sum()))
        if group == "painted":
            clean = paint(self.maps[int(rng.integers(len(self.maps)))], rng)
            return group, clean
        members = [source for source in self.sources if source.group == group]
        return group, read(self.data_dir, members[int(rng.integers(len(members)))], self.kept)


def collect(data_dir: Path, kept: Path) -> Collection:
    """Find everything that may train, and make what is not yet in ``kept``.

    Raises UsageError, which names the first absent file.
    """
    require(data_dir, [*(source.file for source in TRAINING), *TRAINING_MAPS])
    kept.mkdir(parents=True, exist_ok=True)
    for source in TRAINING:
        read(data_dir, source, kept)
    return Collection(
        data_dir, kept, TRAINING, [load_label_brain(data_dir / name) for name in TRAINING_MAPS]
    )
