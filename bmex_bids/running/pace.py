# SPDX-License-Identifier: Apache-2.0
"""How fast this machine is today: from earlier runs of the same kind, else from a timed convolution."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bmex_bids.config import Config
from bmex_bids.exceptions import BmexError
from bmex_bids.outputs.status import Status, read_status
from bmex_bids.running.plan_view import Pace, Task, estimate

#: seconds of :func:`timed_convolution` on the idle server core that ``plan_view`` counts in
REFERENCE_S = 0.007
#: between which factors the time may lie
SPREAD_TIMED, SPREAD_EARLIER = 1.5, 1.25
#: runs that are looked into, the newest first
RUNS = 20


def pace(config: Config, tasks: Sequence[Task], device: str) -> Pace:
    """Of this run: what earlier runs into the same output took, else what a convolution takes."""
    ratios = _earlier(config, tasks, device)
    if ratios:
        return Pace(statistics.median(ratios), SPREAD_EARLIER, "by earlier runs")
    return Pace(timed_convolution() / REFERENCE_S, SPREAD_TIMED, "by a timed convolution")


def timed_convolution(repeats: int = 15) -> float:
    """Seconds of a small convolution in one thread (0.2 GFLOP), the median of some."""
    import torch

    image, kernel = torch.zeros(1, 16, 24, 24, 24), torch.zeros(16, 16, 3, 3, 3)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(repeats):
                begun = time.perf_counter()
                torch.nn.functional.conv3d(image, kernel, padding=1)
                times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[1:])  # the first one sets up


def _earlier(config: Config, tasks: Sequence[Task], device: str) -> list[float]:
    """Seconds that images took in runs with these settings, by their estimates."""
    known = {task.name: task for task in tasks if task.planned.runnable}
    ratios = []
    for folder in sorted(config.log_dir.parent.glob("*_*"), reverse=True)[:RUNS]:
        if not _same_kind(folder, config):
            continue
        for row in read_status(folder):
            task = known.get(row.get("image", ""))
            if task is not None and row.get("status") == Status.DONE:
                try:
                    seconds = float(row.get("seconds", ""))
                except ValueError:
                    continue
                expected, _ = estimate(task, device, config.resources.omp_nthreads)
                ratios.append(seconds / expected)
    return ratios


def _same_kind(folder: Path, config: Config) -> bool:
    try:
        other = Config.from_toml((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, BmexError):
        return False
    return other.resources == config.resources and other.processing == config.processing
