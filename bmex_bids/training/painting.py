# SPDX-License-Identifier: Apache-2.0
"""Brains painted from label maps: a drawn contrast, texture and partial volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.degrade.intensity import texture
from bmex_bids.imaging.orientation import conform, load_image
from bmex_bids.training.images import CleanImage

#: FreeSurfer numbers of the label maps, grouped: cortex, deep grey, white, stem, fluid
FREESURFER = {
    "cortex": (3, 42, 8, 47),
    "deep": (10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58, 28, 60),
    "white": (2, 41, 7, 46, 85),
    "stem": (16,),
    "fluid": (4, 43, 5, 44, 14, 15, 24, 31, 63),
}
TISSUE = {"cortex": 2, "deep": 2, "white": 3, "stem": 3, "fluid": 1}
#: template units (low, high) of the class means: how the contrasts look at the ages
CONTRASTS: dict[str, dict[str, tuple[float, float]]] = {
    "T1w-mature": {"fluid": (130, 300), "cortex": (360, 480), "white": (500, 640)},
    "T1w-newborn": {"fluid": (200, 340), "cortex": (470, 560), "white": (400, 450)},
    "T1w-isointense": {"fluid": (120, 240), "cortex": (250, 420), "white": (262, 440)},
    "T2w-mature": {"white": (240, 330), "cortex": (350, 430), "fluid": (520, 850)},
    "T2w-newborn": {"cortex": (380, 520), "white": (540, 640), "fluid": (720, 950)},
}


@dataclass(frozen=True)
class LabelBrain:
    """The brain part of a label map, grouped: 0 outside, then the order of :data:`FREESURFER`."""

    name: str
    groups: NDArray[np.uint8]


def load_label_brain(path: Path) -> LabelBrain:
    """Read a label map, conform it and group its brain labels."""
    groups = grouped(np.rint(np.asarray(conform(load_image(path)).dataobj)).astype(np.int32))
    return LabelBrain(path.name.split(".")[0], np.pad(groups[bounding_box(groups > 0, 8)], 4))


def grouped(labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The brain's labels by group: 0 elsewhere, then the order of :data:`FREESURFER`."""
    groups = np.zeros(labels.shape, dtype=np.uint8)
    for k, members in enumerate(FREESURFER.values(), start=1):
        groups[np.isin(labels, members)] = k
    return groups


def draw_means(kind: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness of no tissue and of each group, template units, in a contrast."""
    means = {name: float(rng.uniform(*limits)) for name, limits in CONTRASTS[kind].items()}
    mix = rng.uniform(0.2, 0.6)
    means["deep"] = (1 - mix) * means["cortex"] + mix * means["white"]
    means["stem"] = means["white"] + rng.normal(0, 10)
    return np.array([0.0] + [means[name] for name in FREESURFER], dtype=np.float32)


def textured(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Texture at two scales.

    Little of it is fine: much of that is noise to the eye, and a network would learn to keep it.
    """
    shape = (image.shape[0], image.shape[1], image.shape[2])
    image = image + rng.uniform(1, 6) * texture(shape, float(rng.uniform(0.6, 1.2)), rng)
    image += rng.uniform(4, 15) * texture(shape, float(rng.uniform(2.0, 5.0)), rng)
    return np.asarray(image, dtype=np.float32)


def paint_head(labels: NDArray[np.int32], contrast: str, seed: int) -> NDArray[np.float32]:
    """Paint a whole-head label map in an adult's contrast; each label outside has a brightness."""
    rng = np.random.default_rng(seed)
    groups = grouped(labels)
    image = draw_means(f"{contrast}-mature", rng)[groups]
    for number in np.unique(labels[(labels > 0) & (groups == 0)]).tolist():
        image[(labels == number) & (groups == 0)] = rng.uniform(30, 700)
    image = np.where(labels > 0, textured(image, rng), 0)
    blurred = scipy.ndimage.gaussian_filter(np.clip(image, 0, 1000), 0.6)
    return np.asarray(blurred, dtype=np.float32)


def paint(brain: LabelBrain, rng: np.random.Generator) -> CleanImage:
    """Paint a label map in a drawn contrast, with texture and partial volume."""
    kind = str(rng.choice(list(CONTRASTS)))
    image = textured(draw_means(kind, rng)[brain.groups], rng)
    tissue = np.array([0] + [TISSUE[name] for name in FREESURFER], dtype=np.uint8)
    mask = brain.groups > 0
    # as sharp as a scan: with half of this blur their edges were twice as steep, and a network that
    # saw them learnt to smooth nothing, so as not to spoil those
    blur = float(rng.uniform(0.6, 1.0))
    # nothing from outside is mixed in, as in the application: a dark rim would be learnt as anatomy
    image = scipy.ndimage.gaussian_filter(np.where(mask, image, 0), blur)
    image /= np.maximum(scipy.ndimage.gaussian_filter(mask.astype(np.float32), blur), 1e-3)
    return CleanImage(
        name=f"{brain.name}:{kind}",
        data=np.where(mask, np.clip(image, 0, 1000), 0).astype(np.float32),
        mask=mask,
        labels=tissue[brain.groups],
        spacing=(0.8, 0.8, 0.8),
        age_group="",
        contrast="",
    )
