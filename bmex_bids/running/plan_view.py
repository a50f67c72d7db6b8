# SPDX-License-Identifier: Apache-2.0
"""What will be done with each image, as lines to read and as a table for programs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids.network.variants import facts
from bmex_bids.outputs.status import Status
from bmex_bids.running.resources import BASE_GB

if TYPE_CHECKING:
    from bmex_bids.config import Paths
    from bmex_bids.inputs.age import Age
    from bmex_bids.inputs.not_taken import NotTaken
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.network.weights.registry import WeightRecord

#: seconds that all else takes, for a million voxels of the field of view on the network's grid
OTHER_COST = 3.8
#: seconds of a thread that the search for motion takes, for a million voxels of the input; where
#: motion is undone, twice as many
MOTION_COST = 2.6
#: of a pass of a network over slices, at the voxels of the input, that a hint at jumps takes
HINTS_SHARE = 0.5
#: seconds of a thread that halving the edges takes, for a million voxels of brain
HALVING_COST = 20.0
GPU_SPEED = 50.0  # times a thread
BASE_SECONDS = 10.0
#: litres of brain at an age in months; fetal ages before 0
BRAIN_LITRES = ((-9, 0.02), (-3, 0.2), (0, 0.4), (6, 0.75), (12, 0.95), (24, 1.1), (72, 1.4))
#: of the field of view that a brain can take
MOST_BRAIN = 0.6


@dataclass(frozen=True)
class Pace:
    """How many times longer than on the reference machine, within which factor, and how known."""

    factor: float = 1.0
    spread: float = 1.5
    source: str = "not measured"

    def range(self, seconds: float) -> tuple[float, float]:
        """The seconds, at least and at most, of what takes so many on the reference machine."""
        return self.factor * seconds / self.spread, self.factor * seconds * self.spread


#: of what is not taken for one reason, in the plan
MOST_ALIKE = 5


@dataclass(frozen=True)
class Task:
    """A planned image with what only the command line decides.

    Attributes
    ----------
    weights : None for an image that is skipped
    strip_weights : of the stripping network; None where it will not be asked
    segment_weights : of the network that labels structures; None where it will not be asked
    super_weights : of the network that halves the edges of voxels; None where it will not be asked
    fingerprint : see ``outputs.resume``; None where the input cannot be read
    record : sidecar that says the image is done
    unchanged : whether it is done, from the same input, settings and weights
    mirroring : whether mirror images of the brain go through the network too, where it knows them
    motion_correction : whether motion is looked for
    outputs : relative to the output folder
    """

    planned: PlannedImage
    weights: WeightRecord | None = None
    strip_weights: WeightRecord | None = None
    segment_weights: WeightRecord | None = None
    super_weights: WeightRecord | None = None
    fingerprint: Mapping[str, str] | None = None
    record: Path | None = None
    unchanged: bool = False
    mirroring: bool = True
    motion_correction: bool = True
    outputs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the image."""
        return self.planned.name

    @property
    def to_run(self) -> bool:
        """Whether there is something to do and nothing stands in the way."""
        return self.planned.runnable and not self.unchanged


def table(tasks: Sequence[Task], device: str, not_taken: Sequence[NotTaken] = ()) -> Iterator[str]:
    """What will be done with each image, or why nothing; then what is not taken."""
    plural = "" if len(tasks) == 1 else "s"
    todo = sum(task.to_run for task in tasks)
    unchanged = sum(task.unchanged for task in tasks)
    kept = f", {unchanged} done before and unchanged" if unchanged else ""
    yield f"{len(tasks)} image{plural}, {todo} to process on {device}{kept}"
    for task in tasks:
        image = task.planned
        age = image.age
        if age is None or task.weights is None:
            yield f"  {task.name}: skipped: {image.skip_reason}"
            continue
        done = "unchanged since it was done; " if task.unchanged else ""
        mask = f", mask {image.mask}" if image.mask else ""
        yield (
            f"  {task.name}: {done}age {age.value} {age.unit} ({age.source}) → "
            f"{age.months:.2f} months{' of gestation' if age.fetal else ''}, model "
            f"{image.age_group}, weights {task.weights.name}, {image.spacing_mm:g} mm{mask} → "
            f"{image.output_dir}"
        )
        for text in image.warnings:
            yield f"    warning: {text}"
    yield from lines_of_not_taken(not_taken)


def lines_of_not_taken(not_taken: Sequence[NotTaken]) -> Iterator[str]:
    """A line for each; of many with one reason the first few and their number."""
    by_reason: dict[str, list[str]] = {}
    for item in not_taken:
        by_reason.setdefault(item.reason, []).append(item.name)
    for reason, names in by_reason.items():
        for name in names[:MOST_ALIKE]:
            yield f"  {name}: not taken: {reason}"
        if len(names) > MOST_ALIKE:
            more = len(names) - MOST_ALIKE
            yield f"  … and {more} more: not taken: {reason} (all are in status.tsv)"


def estimates(
    tasks: Sequence[Task], device: str, threads: int, pace: Pace | None = None
) -> Iterator[str]:
    """Time, as a range, and memory of each image, and of all."""
    pace = pace or Pace()
    total = 0.0
    for task in tasks:
        if task.to_run:
            seconds, memory = estimate(task, device, threads)
            total += seconds
            low, high = pace.range(seconds)
            yield f"  {task.name}: {low:.0f} to {high:.0f} s, {memory:.1f} GiB"
            for output in task.outputs:
                yield f"    {output}"
    if not total:
        return
    low, high = pace.range(total)
    unit, size = ("min", 60) if low >= 120 else ("s", 1)
    yield (
        f"{low / size:.0f} to {high / size:.0f} {unit} in all, one image after the other "
        f"({pace.source})"
    )


def estimate(task: Task, device: str, threads: int) -> tuple[float, float]:
    """Seconds on the idle reference machine, and GiB, that an image takes, by its header and age.

    As of a still head: whether motion will be undone is not known before.
    """
    from bmex_bids.interfaces.files import voxel_count
    from bmex_bids.workflows.base import halving_gb, memory_gb

    planned = task.planned
    spacing = planned.spacing_mm or 1.0
    voxels = (voxel_count(planned.image.path, spacing) or 5_000_000) / 1e6
    brain = min(brain_litres(planned.age) / spacing**3, MOST_BRAIN * voxels)
    weights = task.weights
    cost = facts(weights.variant if weights else "").cost
    passes = 2 ** len(weights.mirrored) if weights and task.mirroring else 1
    network = cost * passes * brain / (GPU_SPEED if device.startswith("cuda") else threads)
    motion = 0.0
    if task.motion_correction:
        own = (voxel_count(planned.image.path) or 5_000_000) / 1e6
        motion = MOTION_COST * own / threads
        if facts(weights.variant if weights else "").slices:
            motion += HINTS_SHARE * cost * brain * own / voxels / threads
    memory = 2 * memory_gb(planned.image.path, spacing)
    if task.super_weights is not None:
        network += HALVING_COST * brain / (GPU_SPEED if device.startswith("cuda") else threads)
        memory = max(memory, halving_gb(planned.image.path, spacing))
    return BASE_SECONDS + OTHER_COST * voxels + motion + network, BASE_GB + memory


def brain_litres(age: Age | None) -> float:
    """Volume of a brain, about, for an estimate of time.

    >>> brain_litres(None)
    1.4
    """
    if age is None:
        return BRAIN_LITRES[-1][1]
    months = age.months - 9 if age.fetal else age.months
    for (young, small), (old, large) in itertools.pairwise(BRAIN_LITRES):
        if months <= old:
            return small + (large - small) * max(months - young, 0) / (old - young)
    return BRAIN_LITRES[-1][1]


def as_json(
    tasks: Sequence[Task],
    *,
    bids_dir: Path,
    output_dir: Path,
    device: str,
    threads: int,
    pace: Pace | None = None,
    not_taken: Sequence[NotTaken] = (),
    group: Mapping[str, int] | None = None,
) -> str:
    """The plan for programs: one object, ``images`` with one entry each.

    ``group`` is as for :func:`group_lines`; None where that level is not asked for.
    """
    pace = pace or Pace()
    images = []
    for task in tasks:
        seconds, memory = (
            estimate(task, device, threads) if task.planned.runnable else (None, None)
        )
        age: dict[str, Any] | None = None
        if task.planned.age is not None:
            age = dataclasses.asdict(task.planned.age)
        images.append(
            {
                "image": task.name,
                "source": task.planned.image.relative_path,
                "age": age,
                "model": task.planned.age_group,
                "weights": task.weights.name if task.weights else None,
                "spacing_mm": task.planned.spacing_mm,
                "status": Status.SKIPPED
                if not task.planned.runnable
                else Status.UNCHANGED
                if task.unchanged
                else "to process",
                "reason": task.planned.skip_reason,
                "seconds": None if seconds is None else round(pace.factor * seconds),
                "seconds_range": None
                if seconds is None
                else [round(limit) for limit in pace.range(seconds)],
                "memory_gib": None if memory is None else round(memory, 1),
                "outputs": list(task.outputs),
                "warnings": list(task.planned.warnings),
            }
        )
    whole = {
        "bids_dir": str(bids_dir),
        "output_dir": str(output_dir),
        "device": device,
        "images": images,
        "not_taken": [{"name": item.name, "reason": item.reason} for item in not_taken],
    }
    if group is not None:
        whole["group"] = _group_table(group)
    return json.dumps(whole, indent=2, ensure_ascii=False)


def group_lines(group: Mapping[str, int], output_dir: Path) -> Iterator[str]:
    """The plan of the level ``group``: contrast → number of images with results."""
    for entry in _group_table(group):
        suffix, count = entry["suffix"], entry["images"]
        yield (
            f"group: {count} {suffix} image{'' if count == 1 else 's'} with results; would write "
            f"{' and '.join(entry['outputs'])} in {output_dir}"
            if count
            else f"group: no {suffix} image has results yet in {output_dir}"
        )


def group_json(group: Mapping[str, int], paths: Paths) -> str:
    """The same for programs, where the level ``group`` alone is asked for."""
    whole = {
        "bids_dir": str(paths.bids_dir),
        "output_dir": str(paths.output_dir),
        "group": _group_table(group),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False)


def _group_table(group: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "suffix": suffix,
            "images": count,
            "outputs": [f"group_{suffix}.{kind}" for kind in ("tsv", "html") if count],
        }
        for suffix, count in group.items()
    ]
