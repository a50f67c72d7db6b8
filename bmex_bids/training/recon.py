# SPDX-License-Identifier: Apache-2.0
"""Train LF-MRI (``bmex-train recon``): the classifier alone first, then the whole cascade."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.exceptions import UsageError
from bmex_bids.recon.operators import Encoding
from bmex_bids.recon.unrolled import ATTENTIONS, Cascade, Cascaded, scale_of
from bmex_bids.training.growth import start
from bmex_bids.training.images import TRAINING_MAPS, VALIDATION_MAPS
from bmex_bids.training.loop import Batch, Schedule, export_half, fit
from bmex_bids.training.recon_slices import (
    HeadSlices,
    LabelledSlices,
    PaintedSlices,
    PairedSlices,
    load_all,
)

LOGGER = logging.getLogger(__name__)

#: of the squared error of a stage to that of the next
EARLIER = 0.5
#: of the order in a pair to the labels
ORDER_WEIGHT = 0.5
#: factor on the squared error
ERROR_WEIGHT = 100.0


@dataclass(frozen=True)
class ReconConfig:
    """Everything that decides the weights, besides the data."""

    stages: int = 4
    width: int = 24
    solver: str = "cg"
    solver_steps: int = 4
    pooling: str = "log-sum-exp"
    attention: str = "learnt"
    label_weight: float = 0.02  # of the cross-entropy of the labels
    classifier_steps: int = 1500
    classifier_batch: int = 4  # pairs, of a slice with lesions and the same without
    classifier_rate: float = 2e-3
    easy_steps: int = 350  # chunks of the classifier over which lesions become as they are
    chunk: int = 8  # slices that are made at once
    voxels: int = 192
    start_from: Path | None = None  # weights of such a cascade to begin with, of any attention
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=3000,
            batch=1,
            rate=1e-3,
            warmup=50,
            final_rate=0.02,
            average=0.99,
            validate_every=250,
            threads=1,
        )
    )

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise UsageError(f"expected an attention of {ATTENTIONS}, got {self.attention!r}")


def run(network: nn.Module, batch: Batch) -> Cascaded:
    """The cascade's answer to a batch of :class:`PaintedSlices`."""
    adjoint, maps, mask, _, _, lesions = batch
    guide = lesions.float() if network.attention == "oracle" else None
    done: Cascaded = network(adjoint, Encoding(maps, mask), guide)
    return done


def loss_of(done: Cascaded, target: Tensor, label: Tensor, label_weight: float) -> Tensor:
    """Squared errors of all stages, the last one most, and cross-entropy of the labels."""
    scale = scale_of(target)
    total = target.new_zeros((), dtype=torch.float32)
    weight = 1.0
    for image in reversed(done.images):
        difference = (image - target) / scale
        total = (
            total + weight * ERROR_WEIGHT * torch.view_as_real(difference).square().sum(-1).mean()
        )
        weight *= EARLIER
    for score in done.scores:
        entropy = F.binary_cross_entropy_with_logits(score, label)
        total = total + label_weight * entropy / len(done.scores)
    return total


def label_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the labels of pairs, and of which of the two has the lesions."""
    (pairs,) = batch
    score = network(scaled(pairs.transpose(0, 1).flatten(0, 1)[:, None]))[0].float()
    ill, well = score.chunk(2)
    labels = (F.softplus(-ill) + F.softplus(well)).mean() / 2
    return labels + ORDER_WEIGHT * F.softplus(well - ill).mean()


def peak_ratio(image: Tensor, reference: Tensor) -> float:
    """PSNR in dB of a magnitude (H, W); the range is the maximum of the reference."""
    error = (image.abs() - reference.abs()).square().mean()
    return float(20 * reference.abs().max().log10() - 10 * error.log10())


class Validation:
    """PSNR and label accuracy on fixed slices of label maps that never train."""

    def __init__(self, heads: Sequence[HeadSlices], config: ReconConfig, slices: int = 12) -> None:
        (self.batch,) = [PaintedSlices(heads, seed=17, size=slices, voxels=config.voxels)[0]]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        before, after, right = [], [], []
        for k in range(len(self.batch[0])):
            batch = tuple(part[k : k + 1] for part in self.batch)
            done = run(model, batch)
            before.append(peak_ratio(batch[0][0], batch[3][0]))
            after.append(peak_ratio(done.images[-1][0], batch[3][0]))
            right.append(float((done.scores[-1] > 0) == (batch[4] > 0.5)))
        model.train()
        return {
            "zero-filled": float(np.mean(before)),
            "PSNR": float(np.mean(after)),
            "labels": float(np.mean(right)),
        }


class LabelValidation:
    """Area under the curve of the classifier on fixed slices of label maps that never train.

    ``AUC easy`` is that of slices whose lesions are as easy to see as at the start of training.
    """

    def __init__(self, heads: Sequence[HeadSlices], config: ReconConfig, slices: int = 64) -> None:
        self.kinds = {
            name: LabelledSlices(heads, seed=19, size=slices, voxels=config.voxels, easy=easy)[0]
            for name, easy in (("AUC", 0), ("AUC easy", 1))
        }

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        found = {
            name: area_under_curve(
                torch.cat([model(scaled(part))[0] for part in images.split(8)]), labels
            )
            for name, (images, labels) in self.kinds.items()
        }
        model.train()
        return found


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Probability that a slice with a lesion scores higher than one without.

    >>> area_under_curve(torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    0.75
    """
    ill, well = scores[labels > 0.5], scores[labels <= 0.5]
    wins = (ill[:, None] > well).float() + 0.5 * (ill[:, None] == well)
    return float(wins.mean())


def scaled(images: Tensor) -> Tensor:
    """Magnitudes (n, 1, H, W) as the cascade shows them to its classifier."""
    return images / scale_of(images[:, 0])[:, None]


def train(data_dir: Path, out_dir: Path, config: ReconConfig, *, resume: bool = True) -> Path:
    """Train from the label maps in ``data_dir``; returns the float16 safetensors file."""
    schedule = config.schedule
    torch.set_num_threads(schedule.threads)
    torch.manual_seed(schedule.seed)
    heads = load_all(data_dir, TRAINING_MAPS, out_dir / "training-slices.npz")
    unseen = load_all(data_dir, VALIDATION_MAPS, out_dir / "validation-slices.npz")
    model = Cascade(
        config.stages,
        config.width,
        solver=config.solver,
        steps=config.solver_steps,
        pooling=config.pooling,
        attention=config.attention,
    )
    LOGGER.info("%d parameters", sum(p.numel() for p in model.parameters()))
    if config.start_from is not None:
        choices = model.get_buffer("choices").clone()  # of this training, not of the file's
        start(model, config.start_from)
        model.get_buffer("choices").copy_(choices)
    shuffled = config.attention == "shuffled"

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        done = run(network, batch)
        return loss_of(done, batch[3], batch[4], config.label_weight)

    def chunks(kind: type[PaintedSlices], seed: int, easy: int = 0) -> PaintedSlices:
        return kind(
            heads, seed=seed, size=config.chunk, shuffled=shuffled, voxels=config.voxels, easy=easy
        )

    if config.classifier_steps and config.attention in ("learnt", "shuffled"):
        first = replace(
            schedule,
            steps=config.classifier_steps,
            batch=config.classifier_batch,
            rate=config.classifier_rate,
            validate_every=min(schedule.validate_every, config.classifier_steps),
        )
        average = fit(
            model.classify,
            chunks(PairedSlices, schedule.seed + 1, config.easy_steps),
            label_loss,
            LabelValidation(unseen, config),
            out_dir / "classifier",
            first,
            resume=resume,
        )
        model.classify.load_state_dict(average.state)
    average = fit(
        model,
        chunks(PaintedSlices, schedule.seed),
        loss,
        Validation(unseen, config),
        out_dir,
        schedule,
        resume=resume,
    )
    return export_half(average, out_dir / "recon.safetensors")
