# SPDX-License-Identifier: Apache-2.0
"""Pairs of degraded and clean patches for the enhancement network.

Clean images come the way the app would bring them to the network (conformed, bias-corrected,
resampled, histogram-matched).  A pair is one clean image, augmented, degraded by a drawn recipe,
masked, and matched to the age's histogram again, as the app would do with a bad image.

Every chunk of patches is a pure function of (seed, chunk index), which makes a run reproducible
and a killed run resumable without storing a buffer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bmex_bids.common.boxes import bounding_box
from bmex_bids.degrade.intensity import gamma, texture
from bmex_bids.degrade.recipe import draw
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import load_histogram, match_histogram, n4, rescale_robust
from bmex_bids.imaging.noise import noise_sigma, non_local_means
from bmex_bids.imaging.orientation import conform, load_image
from bmex_bids.imaging.resampling import resample_to_spacing
from bmex_bids.network.tiling import network_order
from bmex_bids.training.labels import contrast_is_sure, tissue_labels
from bmex_bids.training.surroundings import surround, take_out

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
UNKNOWN = 255

#: the real brains of the shared development data: (file, age group, contrast); 0003 and 0007
#: validate
REAL_IMAGES: tuple[tuple[str, str, str], ...] = (
    ("lifespan-bids/sub-0001/ses-V01/anat/sub-0001_ses-V01_T1w.nii.gz", "month24", "T1w"),
    ("lifespan-bids/sub-0001/ses-V02/anat/sub-0001_ses-V02_T1w.nii.gz", "month6", "T1w"),
    ("lifespan-bids/sub-0002/ses-V01/anat/sub-0002_ses-V01_T1w.nii.gz", "month24", "T1w"),
    ("lifespan-bids/sub-0004/ses-V01/anat/sub-0004_ses-V01_T1w.nii.gz", "month12", "T1w"),
    ("lifespan-bids/sub-0005/ses-V01/anat/sub-0005_ses-V01_T1w.nii.gz", "month9", "T1w"),
    ("lifespan-bids/sub-0006/ses-V01/anat/sub-0006_ses-V01_T1w.nii.gz", "month6", "T1w"),
    ("lifespan-bids/sub-0008/ses-V01/anat/sub-0008_ses-V01_T1w.nii.gz", "month0", "T1w"),
    ("lifespan-bids/sub-0009/ses-V01/anat/sub-0009_ses-V01_T2w.nii.gz", "fetal", "T2w"),
)
TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("histogram-templates/Template-Month0-T1w.nii.gz", "month0", "T1w"),
    ("histogram-templates/Template-Month6-T1w.nii.gz", "month6", "T1w"),
    ("histogram-templates/Template-Month9-T1w.nii.gz", "month9", "T1w"),
    ("histogram-templates/Template-Month12-T1w.nii.gz", "month12", "T1w"),
    ("histogram-templates/Template-Month24-T1w.nii.gz", "month24", "T1w"),
    ("histogram-templates/Template-Month0-T2w.nii.gz", "month0", "T2w"),
    ("histogram-templates/Template-Month6-T2w.nii.gz", "month6", "T2w"),
    ("histogram-templates/Template-Month9-T2w.nii.gz", "month9", "T2w"),
    ("histogram-templates/Template-Month12-T2w.nii.gz", "month12", "T2w"),
    ("histogram-templates/Template-Month24-T2w.nii.gz", "month24", "T2w"),
    ("histogram-templates/Template-Fetal-T2w.nii.gz", "fetal", "T2w"),
)
VALIDATION_IMAGES: tuple[tuple[str, str, str], ...] = (
    ("lifespan-bids/sub-0003/ses-V01/anat/sub-0003_ses-V01_T1w.nii.gz", "month18", "T1w"),
    ("lifespan-bids/sub-0007/ses-V01/anat/sub-0007_ses-V01_T1w.nii.gz", "month3", "T1w"),
)
#: label maps 1–16 train, 17–20 validate
TRAINING_MAPS = tuple(f"label-maps/training_seg_{k:02d}.nii.gz" for k in range(1, 17))


@dataclass(frozen=True)
class CleanImage:
    """A brain as the network sees it: LPS axes, template units, zero outside the mask."""

    name: str
    data: Array  # (X, Y, Z)
    mask: NDArray[np.bool_]
    labels: NDArray[np.uint8]  # 255 where not known
    spacing: tuple[float, float, float]
    age_group: str
    contrast: str


def prepare(path: Path, age_group: str, contrast: str, *, with_labels: bool = True) -> CleanImage:
    """Bring one already stripped brain to the network's grid and units, as the app does."""
    image = conform(load_image(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    brain = data > 0
    scaled, _ = rescale_robust(data, brain)
    scaled = np.where(brain, scaled, 0).astype(np.float32)
    mask_image = nib.Nifti1Image(brain.astype(np.uint8), image.affine)
    corrected, _ = n4(nib.Nifti1Image(scaled, image.affine), mask_image)
    spacing_mm = 0.75 if age_group == "fetal" else 0.8
    data = np.asarray(corrected.dataobj, dtype=np.float32)
    box = bounding_box(brain, 4)
    offset = nib.affines.apply_affine(image.affine, [b.start for b in box])
    affine = image.affine.copy()
    affine[:3, 3] = offset
    resampled = resample_to_spacing(nib.Nifti1Image(data[box] * brain[box], affine), spacing_mm)
    inside = resample_to_spacing(
        nib.Nifti1Image(brain[box].astype(np.float32), affine), spacing_mm
    )
    mask = np.asarray(inside.dataobj) > 0.5
    matched, _ = match_histogram(
        np.asarray(resampled.dataobj, dtype=np.float32) * mask,
        load_histogram(age_group, contrast),
        mask,
    )
    labels = np.full(mask.shape, UNKNOWN, dtype=np.uint8)
    if with_labels and contrast_is_sure(age_group, contrast):
        labels = tissue_labels(np.asarray(matched, dtype=np.float32), mask, contrast)
    pad = [(8, 8)] * 3
    return CleanImage(
        name=path.name.split(".")[0],
        data=np.pad(np.where(mask, matched, 0).astype(np.float32), pad),
        mask=np.pad(mask, pad),
        labels=np.pad(labels, pad, constant_values=UNKNOWN),
        spacing=(spacing_mm,) * 3,
        age_group=age_group,
        contrast=contrast,
    )


# ---------------------------------------------------------------- brains drawn from label maps
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
    image = conform(load_image(path))
    labels = np.rint(np.asarray(image.dataobj)).astype(np.int32)
    groups = np.zeros(labels.shape, dtype=np.uint8)
    for k, members in enumerate(FREESURFER.values(), start=1):
        groups[np.isin(labels, members)] = k
    return LabelBrain(path.name.split(".")[0], np.pad(groups[bounding_box(groups > 0, 8)], 4))


def paint(brain: LabelBrain, rng: np.random.Generator) -> CleanImage:
    """Paint a label map in a drawn contrast, with texture and partial volume."""
    from scipy.ndimage import gaussian_filter

    kind = str(rng.choice(list(CONTRASTS)))
    means = {name: float(rng.uniform(*limits)) for name, limits in CONTRASTS[kind].items()}
    mix = rng.uniform(0.2, 0.6)
    means["deep"] = (1 - mix) * means["cortex"] + mix * means["white"]
    means["stem"] = means["white"] + rng.normal(0, 10)
    table = np.array([0.0] + [means[name] for name in FREESURFER], dtype=np.float32)
    tissue = np.array([0] + [TISSUE[name] for name in FREESURFER], dtype=np.uint8)
    image = table[brain.groups]
    shape = (image.shape[0], image.shape[1], image.shape[2])
    # little fine texture: much of it is noise to the eye, and the network would learn to keep it
    image += rng.uniform(1, 6) * texture(shape, float(rng.uniform(0.6, 1.2)), rng)
    image += rng.uniform(4, 15) * texture(shape, float(rng.uniform(2.0, 5.0)), rng)
    mask = brain.groups > 0
    # as sharp as a scan: with half of this blur their edges were twice as steep, and a network that
    # saw them learnt to smooth nothing, so as not to spoil those
    blur = float(rng.uniform(0.6, 1.0))
    # nothing from outside is mixed in, as in the application: a dark rim would be learnt as anatomy
    image = gaussian_filter(np.where(mask, image, 0), blur)
    image /= np.maximum(gaussian_filter(mask.astype(np.float32), blur), 1e-3)
    return CleanImage(
        name=f"{brain.name}:{kind}",
        data=np.where(mask, np.clip(image, 0, 1000), 0).astype(np.float32),
        mask=mask,
        labels=tissue[brain.groups],
        spacing=(0.8, 0.8, 0.8),
        age_group="",
        contrast="",
    )


# ---------------------------------------------------------------- pairs
IN_A_HEAD = 0.5


def degrade_like_app(clean: CleanImage, rng: np.random.Generator, kind: str = "mixed") -> Array:
    """Degrade a clean brain by a drawn recipe, mask it, and half the time match its histogram.

    The app matches every image, so the network must undo what matching does to a noisy histogram;
    the other half keeps it from relying on that.  Half of what moves or is cut into slices does so in
    a head (:mod:`.surroundings`), which real images are degraded in; noise needs none.
    """
    if kind not in ("noise", "clean") and rng.random() < IN_A_HEAD:
        contrast = "T2w" if "T2w" in (clean.contrast or clean.name) else "T1w"
        head = surround(clean.data, clean.mask, contrast, rng)
        bad = take_out(draw(kind, rng).apply(head, clean.spacing))
    else:
        bad = draw(kind, rng).apply(clean.data, clean.spacing)
    bad = np.where(clean.mask, np.clip(bad, 0, None), 0).astype(np.float32)
    if clean.age_group and rng.random() < 0.5:
        matched, _ = match_histogram(
            bad, load_histogram(clean.age_group, clean.contrast), clean.mask
        )
        bad = np.where(clean.mask, matched, 0).astype(np.float32)
    return bad


def _augment(clean: CleanImage, rng: np.random.Generator) -> CleanImage:
    """Mirror left and right, front and back, now and then top and bottom; bend the contrast a little.

    Front and back as often as not: the headers of the real images turn them by 180° about the
    vertical axis (what they call anterior is the occiput), those of most users' images do not.
    """
    flips = tuple(a for a, chance in ((0, 0.5), (1, 0.5), (2, 0.15)) if rng.random() < chance)
    data, mask, labels = clean.data, clean.mask, clean.labels
    if flips:
        data, mask, labels = np.flip(data, flips), np.flip(mask, flips), np.flip(labels, flips)
    if not clean.age_group:  # painted: no histogram to keep to
        data = gamma(data, float(rng.uniform(0.85, 1.2)), 500.0)
    return CleanImage(
        clean.name,
        np.ascontiguousarray(data),
        np.ascontiguousarray(mask),
        np.ascontiguousarray(labels),
        clean.spacing,
        clean.age_group,
        clean.contrast,
    )


@dataclass(frozen=True)
class Faults:
    """How often a volume gets each kind of fault (see ``degrade.recipe.draw``); relative shares.

    Nearly half of them move: what mending motion gains is a tenth of what smoothing noise gains, and
    drawn no more often the network learns the second and forgets the first.  A good part of that has
    noise as well, as scans do: with motion alone and noise alone the network took one for the other
    (noise of 1 % made it mend motion, of 1.5 % it did not).  Few are clean: mild faults teach the
    same.
    """

    motion: float = 0.3
    noisy_motion: float = 0.18
    noise: float = 0.27
    low_resolution: float = 0.16
    clean: float = 0.04
    mixed: float = 0.05

    def __post_init__(self) -> None:
        shares = astuple(self)
        if min(shares) < 0 or sum(shares) <= 0:
            raise UsageError(f"expected shares of faults of 0 or more, not all 0, got {shares}")

    def pick(self, rng: np.random.Generator) -> str:
        """One kind, drawn by the shares."""
        names = [part.name for part in fields(self)]
        shares = np.array(astuple(self), dtype=np.float64)
        return names[int(rng.choice(len(names), p=shares / shares.sum()))].replace("_", "-")


@dataclass(frozen=True)
class Sources:
    """Where pairs come from: real brains, templates and label maps, and how often each."""

    real: Sequence[CleanImage]
    templates: Sequence[CleanImage]
    maps: Sequence[LabelBrain]
    shares: tuple[float, float, float] = (0.62, 0.18, 0.2)

    def pick(self, rng: np.random.Generator) -> CleanImage:
        """One clean image, drawn by the shares."""
        which = rng.choice(3, p=self.shares)
        if which == 2:
            return paint(self.maps[int(rng.integers(len(self.maps)))], rng)
        pool = self.real if which == 0 else self.templates
        return pool[int(rng.integers(len(pool)))]


#: noise of a "clean" image, standard deviation in template units: above the first it is denoised
#: before it trains, above the second it does not train
NOISY, TOO_NOISY = 4.0, 9.0


def quiet(clean: CleanImage, noise: float) -> CleanImage:
    """The image without most of its own noise, by non-local means.

    What a network shall take for anatomy must not be noise: of a target with noise of its own it
    learns to keep whatever looks like noise, the ripples of motion included.
    """
    found = non_local_means(clean.data, noise, strength=0.7, search=3)
    return replace(clean, data=np.where(clean.mask, np.clip(found, 0, None), 0).astype(np.float32))


def _fit_to_train(images: Sequence[CleanImage]) -> list[CleanImage]:
    """The images that are clean, or can be made so."""
    chosen = []
    for image in images:
        noise = noise_sigma(image.data, image.mask)
        if noise > TOO_NOISY:
            LOGGER.info("%s: noise of %.1f units, left out", image.name, noise)
        elif noise > NOISY:
            LOGGER.info("%s: noise of %.1f units, denoised", image.name, noise)
            chosen.append(quiet(image, noise))
        else:
            chosen.append(image)
    return chosen


def load_sources(data_dir: Path) -> Sources:
    """Read everything that may train; an absent file is a UsageError that names it.

    Images with much noise of their own are left out, those with some are denoised.
    """
    wanted = [name for name, _, _ in REAL_IMAGES + TEMPLATES] + list(TRAINING_MAPS)
    missing = [name for name in wanted if not (data_dir / name).exists()]
    if missing:
        raise UsageError(
            f"expected the development data in {data_dir}, but {len(missing)} files are missing "
            f"(first: {missing[0]}); give their folder with --data"
        )
    return Sources(
        real=_fit_to_train([prepare(data_dir / name, *kind) for name, *kind in REAL_IMAGES]),
        templates=_fit_to_train([prepare(data_dir / name, *kind) for name, *kind in TEMPLATES]),
        maps=[load_label_brain(data_dir / name) for name in TRAINING_MAPS],
    )


class PatchChunks(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Chunk ``i`` → shuffled patches (bad, clean, mask, labels).

    Each is (n, 1, P, P, P), labels (n, P, P, P), axes in the network's order (z, x, y) of LPS.

    Degrading a volume takes seconds, a training step less than one, so volumes are used more than
    once; but a chunk made of two volumes only taught the network those two faults, and the next
    chunk the opposite (300 steps without any gain).  So a window slides over an endless row of
    degraded volumes: chunk ``i`` takes a few patches from each of volumes ``stride·i … stride·i +
    window − 1``, and the next chunk exchanges ``stride`` of them.  Volumes are remembered, not
    stored: each is a function of the seed and its number, so chunks are too.

    With several worker processes each has a row of its own (``streams``: one for each worker), so that
    none degrades what another has degraded already.

    The first ``easy_volumes`` of a row have noise only.  Noise asks for smoothing, blur for the opposite:
    shown both from the start, a network that cannot tell them apart yet learns to do nothing.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        seed: int,
        chunks: int,
        patch: int = 48,
        window: int = 24,
        stride: int = 2,
        patches_per_volume: int = 2,
        easy_volumes: int = 40,
        faults: Faults | None = None,
        streams: int = 1,
    ) -> None:
        self.sources, self.seed, self.chunks, self.patch = sources, seed, chunks, patch
        self.window, self.stride, self.patches_per_volume = window, stride, patches_per_volume
        self.easy_volumes, self.faults = easy_volumes, faults or Faults()
        self.streams = streams
        self._volumes: dict[tuple[int, int], tuple[Array, CleanImage]] = {}

    def __len__(self) -> int:
        return self.chunks

    @property
    def samples(self) -> int:
        """Patches in a chunk."""
        return self.window * self.patches_per_volume

    def volume(self, number: int, stream: int = 0) -> tuple[Array, CleanImage]:
        """Degraded and clean volume of a number in a row of volumes."""
        if (stream, number) not in self._volumes:
            row = [stream] if stream else []  # the first row is the one that a single worker has
            rng = np.random.default_rng([self.seed, 0, *row, number])
            clean = _augment(self.sources.pick(rng), rng)
            kind = "noise" if number < self.easy_volumes else self.faults.pick(rng)
            self._volumes[stream, number] = (degrade_like_app(clean, rng, kind), clean)
        return self._volumes[stream, number]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, 1, index])
        place, stream = divmod(index, self.streams)
        first = self.stride * place
        for old in [key for key in self._volumes if key[0] == stream and key[1] < first]:
            del self._volumes[old]
        stacks: list[list[NDArray[Any]]] = [[], [], [], []]
        for number in range(first, first + self.window):
            bad, clean = self.volume(number, stream)
            volumes: tuple[NDArray[Any], ...] = (bad, clean.data, clean.mask, clean.labels)
            centres = np.argwhere(clean.mask)
            room = np.array(clean.mask.shape) - self.patch
            for centre in centres[rng.integers(len(centres), size=self.patches_per_volume)]:
                corner = np.clip(centre - self.patch // 2, 0, room)
                box = tuple(slice(int(c), int(c) + self.patch) for c in corner)
                for stack, whole in zip(stacks, volumes, strict=True):
                    stack.append(network_order(whole[box]))
        order = rng.permutation(self.samples)
        bads, targets, masks, labels = (
            torch.from_numpy(np.stack([stack[k] for k in order])) for stack in stacks
        )
        return bads[:, None], targets[:, None], masks[:, None], labels
