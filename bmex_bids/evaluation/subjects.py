# SPDX-License-Identifier: Apache-2.0
"""The brains the benchmark judges on: two real ones, and heads painted from unseen label maps.

None of them, nor the label maps, ever trained the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.degrade.recipe import Recipe
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import load_histogram, match_histogram
from bmex_bids.network.inference.predict import brain_box
from bmex_bids.training.images import CleanImage, prepare
from bmex_bids.training.painting import CONTRASTS, FREESURFER, TISSUE
from bmex_bids.training.synthesis import read_labels

Array = NDArray[np.float32]

#: voxels around the brain; windows of the measures reach eight voxels beyond the mask
MARGIN = 10


@dataclass(frozen=True)
class Subject:
    """One validation image: where it comes from, and its own seed for every fault.

    Attributes
    ----------
    path : below the data folder
    age_group, contrast : decide the histogram it is matched to
    seed : of motion and noise
    whole : all cells by default; else the sample of :data:`bmex_bids.evaluation.cells.SAMPLE`
    painted : the file is a label map to paint, not an image
    """

    path: str
    age_group: str
    contrast: str
    seed: int
    whole: bool = True
    painted: bool = False


_REAL = "lifespan-bids/sub-{0}/ses-V01/anat/sub-{0}_ses-V01_T1w.nii.gz"
_MAP = "label-maps/training_seg_{0}.nii.gz"
#: name in the tables → subject; the seeds of the real ones are those of ``bmex-evaluate quick``
SUBJECTS: Mapping[str, Subject] = {
    "sub-0003": Subject(_REAL.format("0003"), "month18", "T1w", 0),
    "sub-0007": Subject(_REAL.format("0007"), "month3", "T1w", 1),
    "map-17": Subject(_MAP.format("17"), "month24", "T1w", 17, whole=False, painted=True),
    "map-18": Subject(_MAP.format("18"), "month24", "T1w", 18, whole=False, painted=True),
    "map-19": Subject(_MAP.format("19"), "month24", "T2w", 19, whole=False, painted=True),
    "map-20": Subject(_MAP.format("20"), "month24", "T2w", 20, whole=False, painted=True),
}
#: between a subject and the number of its draw, in the names of images
DRAW = " draw "
#: draws beyond the first have the subject's seed and so many times this
DRAWS_APART = 100
#: of a default run
DEFAULT_SUBJECTS = ("sub-0003", "sub-0007", "map-17", "map-19")


def drawn(name: str, number: int) -> str:
    """The name of a subject's ``number``-th draw, from 1: ``sub-0003``, then ``sub-0003 draw 2``."""
    return name if number == 1 else f"{name}{DRAW}{number}"


def subject_name(image: str) -> str:
    """The subject of which an image is a draw."""
    return image.partition(DRAW)[0]


def seed_of(image: str) -> int:
    """The seed of everything that is drawn for an image, which may be a further draw of a subject."""
    name, _, number = image.partition(DRAW)
    return SUBJECTS[name].seed + DRAWS_APART * (int(number or 1) - 1)


@dataclass(frozen=True)
class Case:
    """A clean image and the head it is degraded in.

    Attributes
    ----------
    clean : the brain's box, template units, matched to its age; ``labels`` are exact for painted
        heads
    head : (X, Y, Z) what the scanner would have seen: the brain with skull and skin for painted
        heads, the brain alone for real images, which come stripped
    box : where the brain's box lies in the head
    """

    clean: CleanImage
    head: Array
    box: tuple[slice, slice, slice]

    def degraded(self, recipe: Recipe) -> Array:
        """The degraded head, cut to the brain's box, not yet masked, not negative."""
        bad = recipe.apply(self.head, self.clean.spacing)[self.box]
        return np.clip(bad, 0, None).astype(np.float32)


def load_case(data_dir: Path, name: str) -> Case:
    """Read and prepare one subject; unknown or absent, it is a UsageError."""
    if name not in SUBJECTS:
        raise UsageError(f"expected images of {', '.join(SUBJECTS)}, got {name!r}")
    subject = SUBJECTS[name]
    path = data_dir / subject.path
    if not path.exists():
        raise UsageError(
            f"expected the validation data at {path}, found none; give its folder with --data"
        )
    if subject.painted:
        return paint_head(path, name, subject)
    clean = replace(
        prepare(path, subject.age_group, subject.contrast, with_labels=False), name=name
    )
    return boxed(clean, clean.data)


def boxed(clean: CleanImage, head: Array) -> Case:
    """Cut the clean brain to its box with :data:`MARGIN`, padding where the array has none."""
    pad = [(MARGIN, MARGIN)] * 3
    mask, data, labels = (
        np.pad(clean.mask, pad),
        np.pad(clean.data, pad),
        np.pad(clean.labels, pad),
    )
    head = np.pad(head, pad)
    box = brain_box(mask, MARGIN)
    return Case(replace(clean, data=data[box], mask=mask[box], labels=labels[box]), head, box)


def paint_head(path: Path, name: str, subject: Subject) -> Case:
    """Paint a whole-head label map in a grown-up's contrast, as :mod:`training.painting` paints brains.

    Class means are drawn from the contrast's ranges; extra-cerebral labels, one brightness each;
    texture at two scales, and a blur that makes partial volumes.  A voxel of the 1 mm map counts
    as one of 0.8 mm, as in training.  The brain is matched to the histogram of its age group; what
    lies around it keeps its brightness.
    """
    labels = read_labels(path)
    rng = np.random.default_rng(subject.seed)
    means = {
        tissue: float(rng.uniform(*limits))
        for tissue, limits in CONTRASTS[f"{subject.contrast}-mature"].items()
    }
    means["deep"] = 0.6 * means["cortex"] + 0.4 * means["white"]
    means["stem"] = means["white"]
    groups = np.zeros(labels.shape, dtype=np.uint8)
    for number, members in enumerate(FREESURFER.values(), start=1):
        groups[np.isin(labels, members)] = number
    table = np.array([0.0] + [means[group] for group in FREESURFER], dtype=np.float32)
    image = table[groups]
    brain = groups > 0
    for number in np.unique(labels[(labels > 0) & ~brain]).tolist():
        image[(labels == number) & ~brain] = rng.uniform(30, 700)
    shape = (image.shape[0], image.shape[1], image.shape[2])
    seen = labels > 0
    for width, strength in ((0.9, 10.0), (3.0, 10.0)):
        field = scipy.ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width)
        image += np.where(seen, np.float32(strength / field.std()) * field, 0)
    image = scipy.ndimage.gaussian_filter(np.clip(image, 0, 1000), 0.5)
    matched, _ = match_histogram(
        np.where(brain, image, 0).astype(np.float32),
        load_histogram(subject.age_group, subject.contrast),
        brain,
    )
    head = np.where(brain, matched, image).astype(np.float32)
    tissue = np.array([0] + [TISSUE[group] for group in FREESURFER], dtype=np.uint8)
    clean = CleanImage(
        name=name,
        data=np.where(brain, matched, 0).astype(np.float32),
        mask=brain,
        labels=tissue[groups],
        spacing=(0.8, 0.8, 0.8),
        age_group=subject.age_group,
        contrast=subject.contrast,
    )
    return boxed(clean, head)
