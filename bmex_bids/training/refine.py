# SPDX-License-Identifier: Apache-2.0
"""Train the stripper's second network (``bmex-train refine``): it looks at the brain more closely.

Heads are synthesised as scans, the first network says where the brain is, and the window that it
asks for, a little off, is what trains.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bmex_bids.exceptions import UsageError
from bmex_bids.network.checkpoints import load_network
from bmex_bids.network.compact import HalfUNet, TwoStageStripper
from bmex_bids.network.headgrid import linear, resize, window
from bmex_bids.network.stripper import (
    CLOSE,
    closer_view,
    coarse_logits,
    look_closer,
    refined_logits,
)
from bmex_bids.network.tiling import network_order
from bmex_bids.training.growth import start
from bmex_bids.training.loop import Schedule, export_half, fit
from bmex_bids.training.strip import TRAINING_MAPS, VALIDATION_MAPS, label_maps, loss_of, soft_dice
from bmex_bids.training.synthesis import HeadMap, scan

ZOOM, SHIFT = 0.08, 4  # the window is off by up to this share of its size and so many voxels
TRIES = 20  # heads in a row in which the first network may find no brain

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefineConfig:
    """Everything that decides the weights, besides the data and the first network."""

    width: int = 32
    blocks: int = 2
    heads: int = 2  # in a chunk
    views: int = 2  # of each head
    start_from: Path | None = None  # weights to begin with, of a stripping network no larger
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=6000,
            batch=1,
            rate=1e-3,
            warmup=60,
            final_rate=0.01,
            average=0.995,
            validate_every=500,
        )
    )


@dataclass(frozen=True)
class Seen:
    """A head, and what the first network says of it."""

    image: Tensor  # (X, Y, Z), any unit
    brain: Tensor  # (X, Y, Z), fraction, 0…1
    spacing_mm: float  # of both
    logits: Tensor  # on the first network's grid


@torch.no_grad()
def look(coarse: nn.Module, head: HeadMap, rng: np.random.Generator) -> Seen:
    """Synthesise a head and ask the first network."""
    image, brain, spacing = scan(head, rng)
    full = torch.from_numpy(image)
    return Seen(full, torch.from_numpy(brain), spacing, coarse_logits(coarse, full, spacing))


def closer(seen: Seen, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(2, Z, X, Y) image and logits, (1, Z, X, Y) brain, in the network's order."""
    view = closer_view(
        seen.logits,
        zoom=float(rng.uniform(1 - ZOOM, 1 + ZOOM)),
        shift=tuple(int(k) for k in rng.integers(-SHIFT, SHIFT + 1, 3)),
    )
    if view is None:
        raise ValueError("expected a head in which the first network finds a brain")
    parts = look_closer(seen.image, seen.spacing_mm, seen.logits, view)
    fine = resize(seen.brain, (seen.spacing_mm / view.spacing_mm,) * 3)
    brain = window(fine, view.first, 0.0, CLOSE)
    return torch.stack([network_order(part) for part in parts]), network_order(brain)[None]


class CloseChunks(Dataset[tuple[Tensor, Tensor]]):
    """Chunk ``i`` → windows (n, 2, Z, X, Y) and their brains (n, 1, …); a function of (seed, i)."""

    def __init__(
        self, coarse: nn.Module, heads: Sequence[HeadMap], config: RefineConfig, *, chunks: int
    ) -> None:
        self.coarse, self.heads, self.config, self.chunks = coarse, heads, config, chunks

    def __len__(self) -> int:
        return self.chunks

    @property
    def samples(self) -> int:
        """Windows in a chunk."""
        return self.config.heads * self.config.views

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.schedule.seed, index])
        pairs = []
        for _ in range(self.config.heads):
            seen = self._head(rng)
            pairs += [closer(seen, rng) for _ in range(self.config.views)]
        windows, brains = zip(*(pairs[k] for k in rng.permutation(len(pairs))), strict=True)
        return torch.stack(windows), torch.stack(brains)

    def _head(self, rng: np.random.Generator) -> Seen:
        """A head in which the first network finds a brain."""
        for _ in range(TRIES):
            seen = look(self.coarse, self.heads[int(rng.integers(len(self.heads)))], rng)
            if closer_view(seen.logits) is not None:
                return seen
        raise UsageError(
            f"expected a first network that finds brains, got none in {TRIES} heads; check --coarse"
        )


def refiner(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The second network of a model that is trained here."""
    if not isinstance(model, TwoStageStripper):
        raise TypeError(f"expected a TwoStageStripper, got {type(model).__name__}")
    return model.refine


def _dice(logits: Tensor, brain: Tensor) -> float:
    """Dice on the brain's grid."""
    return soft_dice(linear(logits, brain.shape).cpu(), brain)


class RefineValidation:
    """Dice of whole heads from label maps that never train, on their own grid, after and before."""

    def __init__(
        self,
        coarse: nn.Module,
        heads: Sequence[HeadMap],
        *,
        contrasts: int = 2,
        seed: int = 17,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.seen = [look(coarse, head, rng) for head in heads for _ in range(contrasts)]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        after, before = [], []
        device = next(model.parameters()).device
        for seen in self.seen:
            image, rough = seen.image.to(device), seen.logits.to(device)
            refined = refined_logits(refiner(model), image, seen.spacing_mm, rough)
            after.append(_dice(refined, seen.brain))
            before.append(_dice(rough, seen.brain))
        model.train()
        return {
            "Dice": float(np.mean(after)),
            "worst": float(np.min(after)),
            "first network": float(np.mean(before)),
        }


def train(
    data_dir: Path, out_dir: Path, coarse: Path, config: RefineConfig, *, resume: bool = True
) -> Path:
    """Train from the label maps in ``data_dir``; returns a file with both networks, float16.

    Parameters
    ----------
    data_dir : folder with ``label-maps``
    out_dir : checkpoints, log and weights
    coarse : weights of the first network, made by ``bmex-train strip``
    """
    torch.set_num_threads(config.schedule.threads)
    torch.manual_seed(config.schedule.seed)
    first = load_network(coarse, "bmex-strip")
    if not isinstance(first, HalfUNet):
        raise UsageError(f"expected weights of one stripping network in {coarse}")
    LOGGER.info("seed %d; reading label maps", config.schedule.seed)
    chunks = CloseChunks(first, label_maps(data_dir, TRAINING_MAPS), config, chunks=10**6)
    validation = RefineValidation(first, label_maps(data_dir, VALIDATION_MAPS))
    model = TwoStageStripper(first, HalfUNet(2, 1, config.width, config.blocks, norm=True))
    if config.start_from is not None:
        start(model.fine, config.start_from)
    model.coarse.requires_grad_(False)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.fine.parameters()))

    def loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        seen, brain = batch
        return loss_of(refiner(network)(seen[:, :1], seen[:, 1:]), brain)

    average = fit(model, chunks, loss, validation, out_dir, config.schedule, resume=resume)
    return export_half(average, out_dir / "strip-fine.safetensors")
