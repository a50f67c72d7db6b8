# SPDX-License-Identifier: Apache-2.0
"""The training loop: reproducible, resumable, logged.

The batches are a function of the step (see :mod:`bmex_bids.training.pairs`), so that a run killed
at any moment goes on from its last checkpoint with the very batches it would have seen.  An
exponential moving average of the weights is what is validated and exported: it takes the place of
a long annealing phase and lets a run be stopped whenever time is up.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from bmex_bids.common.replacing import put_in_place
from bmex_bids.exceptions import UsageError

LOGGER = logging.getLogger(__name__)
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.  Steps are optimiser steps; ``minutes`` limits the wall clock."""

    steps: int = 6000
    batch: int = 4
    rate: float = 1.5e-3
    warmup: int = 100
    final_rate: float = 0.05  # share of ``rate`` at the last step
    weight_decay: float = 1e-4
    average: float = 0.997
    minutes: float = math.inf
    timed: bool = (
        False  # the rate falls over ``minutes``, all sittings together, not over ``steps``
    )
    validate_every: int = 250
    seed: int = 20261121
    threads: int = 2
    workers: int = 1  # processes that prepare chunks
    device: str = "cpu"
    precision: str = "float32"  # or "bfloat16": mixed, the weights stay float32

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise UsageError(
                f"expected a precision of float32 or bfloat16, got {self.precision!r}"
            )
        if self.timed and not math.isfinite(self.minutes):
            raise UsageError(
                "expected a number of minutes, over which the rate falls; add --minutes"
            )
        if self.steps < 1 or self.batch < 1 or self.workers < 1 or self.threads < 1:
            raise UsageError("expected at least one step, sample, worker and thread")

    @property
    def mixed(self) -> bool:
        """Whether the forward pass uses bfloat16 where that is safe."""
        return self.precision == "bfloat16"

    def rate_at(self, step: int, minutes: float = 0.0) -> float:
        """Linear warm-up, then half a cosine; ``minutes`` have been trained so far."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        t = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        if self.timed:
            t = max(t, min(minutes / self.minutes, 1.0))
        return self.rate * (
            self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * t))
        )


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, model: nn.Module, step: int) -> None:
        """Blend in the current parameters; early steps count more (a bias correction)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                self.state[key].lerp_(value, 1 - decay)


def begin_run(schedule: Schedule, paths: Sequence[Path], held: Sequence[Path]) -> None:
    """Set the seed, and log it with how many images train and validate."""
    torch.manual_seed(schedule.seed)
    LOGGER.info("seed %d; %d images train, %d validate", schedule.seed, len(paths), len(held))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    put_in_place(temporary, path)


def export_half(average: Average, target: Path) -> Path:
    """Write averaged weights as float16 safetensors, under a temporary name first."""
    temporary = target.with_name(target.name + ".tmp")
    save_file(
        {k: v.cpu().to(torch.float16).contiguous() for k, v in average.state.items()},
        str(temporary),
    )
    put_in_place(temporary, target)
    return target


def fit(
    model: nn.Module,
    chunks: Dataset[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    out_dir: Path,
    schedule: Schedule,
    *,
    resume: bool = True,
) -> Average:
    """Train ``model`` and return the averaged weights.

    Parameters
    ----------
    model : the network, on the CPU
    chunks : item ``i`` is a tuple of stacked samples; it is cut into batches in order
    loss : of the model and one batch, on the schedule's device
    validate : figures of the averaged model, written to ``log.csv``
    out_dir : gets ``checkpoint.pt``, ``log.csv`` and ``schedule.json``
    schedule : see :class:`Schedule`
    resume : go on from ``out_dir/checkpoint.pt`` when it is there
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "schedule.json").write_text(json.dumps(asdict(schedule), indent=2))
    torch.manual_seed(schedule.seed)
    torch.set_num_threads(schedule.threads)
    device = torch.device(schedule.device)
    flat = all(p.ndim != 5 for p in model.parameters())
    layout = torch.channels_last if flat else torch.channels_last_3d
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=schedule.rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.99)
    )
    average = Average(model, schedule.average)
    start, spent = 0, 0.0
    checkpoint = out_dir / "checkpoint.pt"
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average.state = state["average"]
        start, spent = int(state["step"]), float(state.get("minutes", 0.0))
        LOGGER.info("resuming at step %d from %s", start, checkpoint)

    begun = time.monotonic()

    def minutes() -> float:  # of all sittings where the schedule is timed, else of this one
        return (time.monotonic() - begun) / 60 + (spent if schedule.timed else 0.0)

    def store(step: int) -> None:
        save_atomically(
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average.state,
                "step": step,
                "minutes": minutes(),
            },
            checkpoint,
        )

    bar = tqdm(
        total=schedule.steps, initial=start, unit="step", disable=None
    )  # on a terminal only
    running, last = 0.0, math.nan
    done, shown = start, dict[str, float]()
    for step, batch in enumerate(_batches(chunks, schedule, start), start=start):
        if step >= schedule.steps or minutes() > schedule.minutes:
            break
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step, minutes())
        with torch.autocast(device.type, torch.bfloat16, enabled=schedule.mixed):
            value = loss(model, tuple(part.to(device, non_blocking=True) for part in batch))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model, step)
        done = step + 1
        bar.update()
        running += float(value.detach())
        if (step + 1) % 25 == 0:
            LOGGER.info(
                "step %d of %d · loss %.5f · %.1f min",
                step + 1,
                schedule.steps,
                running / 25,
                minutes(),
            )
            last, running = running / 25, 0.0
            bar.set_postfix(shown | {"loss": last})
        if (step + 1) % schedule.validate_every == 0:
            store(step + 1)
            current = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average.state)
            figures = {"loss": last, "rate": schedule.rate_at(step, minutes()), **validate(model)}
            model.load_state_dict(current)
            shown = {k: v for k, v in figures.items() if k != "rate"}
            _log(
                out_dir / "log.csv",
                {"step": step + 1, "minutes": minutes(), **figures},
            )
            LOGGER.info(
                "step %d · %s", step + 1, " · ".join(f"{k} {v:.3f}" for k, v in figures.items())
            )
    bar.close()
    store(done)
    return average


def _batches(chunks: Dataset[Batch], schedule: Schedule, start: int) -> Iterator[Batch]:
    """Batches from step ``start`` on; one worker process prepares chunks ahead."""
    known = getattr(chunks, "samples", None)  # else one has to be made to be counted
    samples = int(known or len(chunks[0][0]))
    if schedule.batch > samples:
        raise UsageError(
            f"expected a batch of at most {samples}, which are made at once, got {schedule.batch}; "
            "lower --batch, or make more at once"
        )
    per_chunk = samples // schedule.batch
    first, offset = divmod(start, per_chunk)
    order = range(first, len(chunks))  # type: ignore[arg-type]
    loader = DataLoader(
        chunks,
        batch_size=None,
        sampler=order,
        num_workers=schedule.workers,
        prefetch_factor=2,
        worker_init_fn=_quiet_worker,
    )
    for chunk in loader:
        for k in range(offset, per_chunk):
            yield tuple(part[k * schedule.batch : (k + 1) * schedule.batch] for part in chunk)
        offset = 0


def _quiet_worker(worker: int) -> None:
    torch.set_num_threads(1)
    os.nice(1)


def _log(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
