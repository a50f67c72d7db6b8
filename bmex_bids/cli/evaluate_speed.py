# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate speed``: its flags, and its table."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bmex_bids.evaluation.speed import MatrixRate, NetworkRow, PlainRow

PARTS = ("network", "agreement", "n4")
PSNR_GOAL, SHARE_GOAL, N4_GOAL, SD_GOAL = 45.0, 0.6, 20.0, 0.005
PEAK_GOAL_GB = 10e9 / 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate speed``."""
    parser.add_argument(
        "--width", type=int, nargs="+", default=[32, 64], metavar="W",
        help="base widths of the published network to time, with random weights (default: 32 64); "
        "0 is the bundled network",
    )  # fmt: skip
    parser.add_argument(
        "--patches", type=int, default=3, metavar="N",
        help="patches of the reference geometry to time, from which its whole time is "
        "extrapolated (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[160, 192, 160], metavar=("X", "Y", "Z"),
        help="voxels of the synthetic brain (default: 160 192 160)",
    )  # fmt: skip
    parser.add_argument(
        "--mem-mb", type=float, metavar="M", help="limit the memory of the fast geometry"
    )
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=list(PARTS), metavar="A,B",
        help=f"only these of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="folder with lifespan-bids, for the agreement on a real brain (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, help="threads of the processor (default: all allowed)"
    )
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall",
        help="cpu counts processor time, for shared machines; best with --threads 1 "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.exceptions import UsageError
    from bmex_bids.running.resources import available_cpus

    wrong = sorted(set(options.parts) - set(PARTS))
    if wrong:
        raise UsageError(f"expected --parts of {', '.join(PARTS)}, got {', '.join(wrong)}")
    threads = options.threads or available_cpus()
    options.clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    for part in PARTS:
        if part in options.parts:
            for line in {"network": _network, "agreement": _agreement, "n4": _n4}[part](
                options, threads
            ):
                print(line, flush=True)
    return 0


def _network(options: argparse.Namespace, threads: int) -> Iterator[str]:
    from bmex_bids.evaluation import speed
    from bmex_bids.network.weights.registry import select

    found = speed.machine(threads, options.clock)
    yield (
        f"{found.processor}, {found.threads} threads, {found.memory_gb:.0f} GiB, torch "
        f"{found.torch}; matrix products {_rate(found.gflops)} GFLOP/s in float32, "
        + (
            f"{_rate(found.gflops_bf16)} in bfloat16"
            if found.gflops_bf16
            else "bfloat16 not in hardware, not measured"
        )
    )
    if options.clock is time.process_time:
        yield "times are processor seconds, since others may use the machine"
    data, mask = speed.synthetic_brain(tuple(options.shape))
    size = "×".join(str(n) for n in options.shape)
    yield f"\nsynthetic brain of {size} voxels, {mask.mean():.0%} of its box; no report, no N4"
    yield (
        f"{'network':<28}{'first':>9}{'time':>9}{'peak':>10}{'matrices':>14}{'convolutions':>14}"
        f"{'share':>7}   goals"
    )
    for width in options.width:
        with contextlib.ExitStack() as stack:
            record = (
                stack.enter_context(speed.random_weights(width))
                if width
                else select("enhance", weights="bundled")
            )
            row = speed.network_row(
                record, data, mask, threads=threads, patches=options.patches,
                memory_mb=options.mem_mb, clock=options.clock,
            )  # fmt: skip
            yield network_line(row)
            for plain in speed.plain_rows(
                record, data, mask, threads=threads, clock=options.clock
            ):
                yield plain_line(plain)
            yield reference_line(row)
    yield (
        "first, time: two passes of one process; in the first one the system gives it memory\n"
        "matrices: GFLOP/s of matrix products just before or just after (the higher), the median "
        "of a second (the best of milliseconds); convolutions: GFLOP/s, and their share of that"
    )


def _rate(rate: MatrixRate) -> str:
    return f"{rate.lasting:.0f} (best {rate.best:.0f})"


def network_line(row: NetworkRow) -> str:
    """One line of the table."""
    rate = row.rate.lasting
    matrices = f"{rate:.0f} ({row.rate.best:.0f})"
    limit = row.memory_mb / 1024 if row.memory_mb else PEAK_GOAL_GB
    goals = f"≤ {limit:.1f} GiB {_met(row.fast_peak_gb <= limit)}"
    share = f"{'':>21}"
    if row.tflop:
        done = row.tflop * 1000 / row.fast_s
        share = f"{done:>7.0f} GFLOP/s{done / rate:>6.0%}"
        goals += f"; ≥ {SHARE_GOAL:.0%} {_met(done / rate >= SHARE_GOAL)}"
    return (
        f"{row.weights:<28}{row.first_s:>7.1f} s{row.fast_s:>7.1f} s{row.fast_peak_gb:>6.2f} GiB"
        f"{matrices:>14}{share}   {goals}"
    )


def plain_line(row: PlainRow) -> str:
    """One line below that: torch alone."""
    line = f"  {row.name:<26}{'':>9}{row.seconds:>7.1f} s"
    return line if row.compile_s is None else f"{line}, after {row.compile_s:.0f} s of compiling"


def reference_line(row: NetworkRow) -> str:
    """The published geometry, extrapolated."""
    return (
        f"  {'published patches, float32':<26}{'':>9}{row.reference_s:>7.0f} s, the mean of "
        f"{row.patches_timed} timed patches of 40³ × their number, {row.patches}"
    )


def _agreement(options: argparse.Namespace, threads: int) -> Iterator[str]:
    from bmex_bids.evaluation import speed
    from bmex_bids.network.weights.registry import select

    record = select("enhance", weights="bundled")
    data, mask, name = speed.real_brain(options.data)
    found = speed.agreement(data, mask, record, name, threads=threads, clock=options.clock)
    yield (
        f"\nagreement of fast with reference inside the brain of {name}, trained weights "
        f"{record.name} (the published ones are not here):\n"
        f"{found.psnr_db:.1f} dB, goal ≥ {PSNR_GOAL:g} dB {_met(found.psnr_db >= PSNR_GOAL)}; "
        f"{found.same_labels:.2%} of the voxels have the same tissue; reference "
        f"{found.reference_s:.1f} s (all patches), fast {found.fast_s:.1f} s"
    )


def _n4(options: argparse.Namespace, threads: int) -> Iterator[str]:
    import os

    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    from bmex_bids.evaluation import speed

    row = speed.bias_row(tuple(options.shape), options.clock)
    yield (
        f"\nN4: shrunk {row.shrunk_s:.1f} s, full grid {row.full_s:.1f} s: {row.ratio:.1f} times, "
        f"goal ≥ {N4_GOAL:g} {_met(row.ratio >= N4_GOAL)}; the fields' ratio has a standard "
        f"deviation of {row.ratio_sd:.3%}, goal ≤ {SD_GOAL:.1%} {_met(row.ratio_sd <= SD_GOAL)}"
    )


def _met(reached: bool) -> str:
    return "reached" if reached else "NOT reached"
