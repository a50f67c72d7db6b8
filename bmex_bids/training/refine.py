# SPDX-License-Identifier: Apache-2.0
"""Train the stripper's second network (``bmex-train refine``): it corrects the first one's outline.

Cubes are cut where the first network was wrong, so that nothing is spent on what it knows.
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
from bmex_bids.network.headgrid import linear, normalise
from bmex_bids.network.stripper import CUBE, FINE_MM, coarse_logits, refined_logits
from bmex_bids.network.tiling import network_order
from bmex_bids.training.loop import Schedule, export_half, fit
from bmex_bids.training.strip import TRAINING_MAPS, VALIDATION_MAPS, label_maps, loss_of, soft_dice
from bmex_bids.training.synthesis import HeadMap, synthesise

FIELD = (108, 120, 108)  # voxels of FINE_MM: the field of view of the first network's window
REACH = 20  # voxels from the error that a cube is cut around to the cube's middle, at most

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefineConfig:
    """Everything that decides the weights, besides the data and the first network."""

    width: int = 24
    blocks: int = 2
    heads: int = 2  # in a chunk
    cubes: int = 6  # of each head
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=1600,
            batch=2,
            rate=2e-3,
            warmup=30,
            final_rate=0.01,
            average=0.99,
            validate_every=100,
        )
    )


@dataclass(frozen=True)
class Seen:
    """A head at 2 mm as the second network gets it: all (X, Y, Z)."""

    image: Tensor  # normalised
    logits: Tensor  # the first network's
    brain: Tensor  # fraction, 0…1


@torch.no_grad()
def look(coarse: nn.Module, head: HeadMap, rng: np.random.Generator) -> Seen:
    """Synthesise a head and ask the first network."""
    image, brain = synthesise(head, rng, size=FIELD, spacing_mm=FINE_MM)
    full = torch.from_numpy(image)
    logits = linear(coarse_logits(coarse, full, FINE_MM), full.shape)
    return Seen(normalise(full), logits, torch.from_numpy(brain))


def cut(seen: Seen, corner: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One cube: (2, Z, X, Y) image and logits, (1, Z, X, Y) brain, in the network's order."""
    box = tuple(slice(c, c + CUBE) for c in corner)
    image, logits, brain = (network_order(v[box]) for v in (seen.image, seen.logits, seen.brain))
    return torch.stack([image, logits]), brain[None]


class CubeChunks(Dataset[tuple[Tensor, Tensor]]):
    """Chunk ``i`` → cubes (n, 2, Z, X, Y) and their brains (n, 1, …); a function of (seed, i)."""

    def __init__(
        self, coarse: nn.Module, heads: Sequence[HeadMap], config: RefineConfig, *, chunks: int
    ) -> None:
        self.coarse, self.heads, self.config, self.chunks = coarse, heads, config, chunks

    def __len__(self) -> int:
        return self.chunks

    @property
    def samples(self) -> int:
        """Cubes in a chunk."""
        return self.config.heads * self.config.cubes

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.schedule.seed, index])
        cubes, brains = [], []
        for _ in range(self.config.heads):
            head = self.heads[int(rng.integers(len(self.heads)))]
            seen = look(self.coarse, head, rng)
            wrong = np.argwhere(((seen.logits > 0) != (seen.brain > 0.5)).numpy())
            if len(wrong) == 0:
                wrong = np.array([[n // 2 for n in FIELD]])
            for _ in range(self.config.cubes):
                near = rng.integers(-REACH, REACH + 1, 3)
                middle = wrong[int(rng.integers(len(wrong)))] + near
                room = np.array(FIELD) - CUBE
                cube, brain = cut(seen, np.clip(middle - CUBE // 2, 0, room).tolist())
                cubes.append(cube)
                brains.append(brain)
        order = torch.from_numpy(rng.permutation(self.samples))
        return torch.stack(cubes)[order], torch.stack(brains)[order]


def refiner(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The second network of a model that is trained here."""
    if not isinstance(model, TwoStageStripper):
        raise TypeError(f"expected a TwoStageStripper, got {type(model).__name__}")
    return model.refine


class RefineValidation:
    """Dice at 2 mm of whole heads from label maps that never train, after and before."""

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
        for seen in self.seen:
            device = next(model.parameters()).device
            refined = refined_logits(refiner(model), seen.image.to(device), seen.logits.to(device))
            after.append(soft_dice(refined.cpu(), seen.brain))
            before.append(soft_dice(seen.logits, seen.brain))
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
    chunks = CubeChunks(first, label_maps(data_dir, TRAINING_MAPS), config, chunks=10**6)
    validation = RefineValidation(first, label_maps(data_dir, VALIDATION_MAPS))
    model = TwoStageStripper(first, HalfUNet(2, 1, config.width, config.blocks, norm=True))
    model.coarse.requires_grad_(False)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.fine.parameters()))

    def loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        cubes, brain = batch
        return loss_of(refiner(network)(cubes[:, :1], cubes[:, 1:]), brain)

    average = fit(model, chunks, loss, validation, out_dir, config.schedule, resume=resume)
    return export_half(average, out_dir / "strip-fine.safetensors")
