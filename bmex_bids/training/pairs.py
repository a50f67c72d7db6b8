# SPDX-License-Identifier: Apache-2.0
"""Pairs of degraded and clean patches for the enhancement network.

A pair is one clean image, augmented, degraded by a drawn recipe, masked, and matched to the age's
histogram again, as the app would do with a bad image.

Every chunk of patches is a pure function of (seed, chunk index), which makes a run reproducible
and a killed run resumable without storing a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bmex_bids.degrade.intensity import gamma
from bmex_bids.degrade.levels import draw
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import load_histogram, match_histogram
from bmex_bids.network.inference.tiling import network_order
from bmex_bids.training.images import (
    REAL_IMAGES,
    TEMPLATES,
    TRAINING_MAPS,
    CleanImage,
    fit_to_train,
    prepare,
    require,
)
from bmex_bids.training.painting import LabelBrain, load_label_brain, paint
from bmex_bids.training.surroundings import surround, take_out
from bmex_bids.training.volumes import VolumeRows

Array = NDArray[np.float32]

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


def load_sources(data_dir: Path) -> Sources:
    """Read everything that may train; an absent file is a UsageError that names it.

    Images with much noise of their own are left out, those with some are denoised.
    """
    require(data_dir, [*(name for name, _, _ in REAL_IMAGES + TEMPLATES), *TRAINING_MAPS])
    return Sources(
        real=fit_to_train([prepare(data_dir / name, *kind) for name, *kind in REAL_IMAGES]),
        templates=fit_to_train([prepare(data_dir / name, *kind) for name, *kind in TEMPLATES]),
        maps=[load_label_brain(data_dir / name) for name in TRAINING_MAPS],
    )


class PatchChunks(
    VolumeRows[tuple[Array, CleanImage]], Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]
):
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
        super().__init__(seed)
        self.sources, self.chunks, self.patch = sources, chunks, patch
        self.window, self.stride, self.patches_per_volume = window, stride, patches_per_volume
        self.easy_volumes, self.faults = easy_volumes, faults or Faults()
        self.streams = streams

    def __len__(self) -> int:
        return self.chunks

    @property
    def samples(self) -> int:
        """Patches in a chunk."""
        return self.window * self.patches_per_volume

    def make(self, number: int, rng: np.random.Generator) -> tuple[Array, CleanImage]:
        """Degraded and clean volume of a number in a row of volumes."""
        clean = _augment(self.sources.pick(rng), rng)
        kind = "noise" if number < self.easy_volumes else self.faults.pick(rng)
        return degrade_like_app(clean, rng, kind), clean

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, 1, index])
        place, stream = divmod(index, self.streams)
        stacks: list[list[NDArray[Any]]] = [[], [], [], []]
        for bad, clean in self.kept(self.stride * place, self.window, stream):
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
