# SPDX-License-Identifier: Apache-2.0
"""Campaign: processes that are killed or interrupted, and the same command again."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from bench import Bench, bench, check_clean, check_whole
from results import Lost
from tiny import SEED, Run, group, same_output, statuses

MOMENTS = 30
#: what is said at four moments of a run
STEPS = ("read, check, conform", "tissues and image", "report: pictures", "image 2 of 2")


def killed(bench: Bench) -> None:
    """Kill -9 of the whole process group at random moments."""
    lot = random.Random(SEED)  # noqa: S311
    for number in range(MOMENTS):
        moment, delay, nprocs = lot.random(), lot.random(), ("1", "2")[number % 3 == 2]
        if bench.quick and number % 10 != 2:
            continue

        def check(moment: float = moment, delay: float = delay, nprocs: str = nprocs) -> str:
            out, work = bench.fresh(), bench.fresh()
            flags = ("--nprocs", nprocs)
            run = bench.app.start(bench.bids, out, work, *flags)
            _reach(run, moment * bench.lines)
            time.sleep(delay * 0.5)
            done = run.code is not None
            run.kill_group()
            _gone(run, 5)
            when = "it had just ended" if done else f"after {_last_step(run)}"
            return f"{when}; {bench.again(out, work, *flags)}"

        bench.case(
            "killed (kill -9)",
            f"moment {number + 1}: at {moment:.0%} of a run, --nprocs {nprocs}",
            "the same command ends as if undisturbed, file by file",
            check,
        )


def _reach(run: Run, lines: float) -> None:
    """Wait until a run has said so many lines: its own clock, whatever the machine's load."""
    while run.said.count("\n") < int(lines) and run.code is None:
        time.sleep(0.01)


def _last_step(run: Run) -> str:
    lines = [line for line in run.said.splitlines() if line.startswith("[")]
    return f'"{lines[-1].split("  ", 1)[1]}"' if lines else "its start"


def _gone(run: Run, seconds: float) -> None:
    """No process of the run lives any more."""
    end = time.monotonic() + seconds
    while left := group(run.process.pid):
        if time.monotonic() > end:
            names = [Path(f"/proc/{pid}/cmdline").read_text()[:80] for pid in left]
            run.kill_group()
            raise Lost(f"still alive after {seconds:.0f} s: {names}")
        time.sleep(0.05)


def interrupted(bench: Bench) -> None:
    """SIGTERM to the main process; Ctrl-C to the whole group, as a terminal sends it."""
    cases = [(name, nprocs, step) for name in ("SIGTERM", "Ctrl-C") for nprocs in "12"
             for step in STEPS]  # fmt: skip
    if bench.quick:
        cases = cases[1::5]
    for name, nprocs, step in cases:

        def check(name: str = name, nprocs: str = nprocs, step: str = step) -> str:
            out, work = bench.fresh(), bench.fresh()
            flags = ("--nprocs", nprocs)
            run = bench.app.start(bench.bids, out, work, *flags)
            run.until(step)
            asked = time.monotonic()
            if name == "SIGTERM":
                run.send(signal.SIGTERM)
            else:
                run.kill_group(signal.SIGINT)
            run.wait(120)
            took = time.monotonic() - asked
            _gone(run, 5)
            check_clean(run, [143 if name == "SIGTERM" else 130], "interrupted")
            rows = statuses(out)
            if any(row["status"] in {"failed", "waiting", "running"} for row in rows.values()):
                raise Lost(f"status.tsv says {[row['status'] for row in rows.values()]}")
            return f"code {run.code} in {took:.1f} s; {bench.again(out, work, *flags)}"

        bench.case(
            "interrupted",
            f'{name} at "{step}", --nprocs {nprocs}',
            "code 143 (SIGTERM) or 130, no process left, status not run or done, resumes",
            check,
        )
    for nprocs in "12":

        def twice(nprocs: str = nprocs) -> str:
            out, work = bench.fresh(), bench.fresh()
            flags = ("--nprocs", nprocs)
            run = bench.app.start(bench.bids, out, work, *flags)
            run.until(STEPS[1])
            for _ in range(3):
                run.kill_group(signal.SIGINT)
                time.sleep(0.15)
            run.wait(120)
            _gone(run, 5)
            check_clean(run, [130], "interrupted")
            return f"code {run.code}; {bench.again(out, work, *flags)}"

        bench.case(
            "interrupted",
            f"Ctrl-C three times within half a second, --nprocs {nprocs}",
            "code 130, no process left, no traceback, resumes",
            twice,
        )

    def early() -> str:
        out, work = bench.fresh(), bench.fresh()
        run = bench.app.start(bench.bids, out, work)
        time.sleep(0.5)
        run.send(signal.SIGTERM)
        run.wait(120)
        _gone(run, 5)
        if run.code not in (143, -signal.SIGTERM):
            raise Lost(f"ended with {run.code}: {run.tail()}")
        return f"a shell sees 143; {bench.again(out, work)}"

    bench.case(
        "interrupted", "SIGTERM while modules are still loaded", "a shell sees 143, resumes", early
    )


def workers(bench: Bench) -> None:
    """Kill -9 of worker processes of a run with several."""
    cases = [(step, count) for step in STEPS[:3] for count in (1, 2)]
    for step, count in cases[:1] if bench.quick else cases:

        def check(step: str = step, count: int = count) -> str:
            out, work = bench.fresh(), bench.fresh()
            run = bench.app.start(bench.bids, out, work, "--nprocs", "2")
            run.until(step)
            for pid in _workers(run, seconds=30)[:count]:
                os.kill(pid, signal.SIGKILL)
            run.wait()
            _gone(run, 5)
            check_whole(out)
            check_clean(run, [0])
            times = run.said.count("tried again")  # none where the worker had just nothing to do
            return f"{times} steps done again; {same_output(out, bench.undisturbed)}"

        bench.case(
            "worker process killed",
            f'{count} of 2 workers at "{step}"',
            "the steps that were lost are done again, all images come out",
            check,
        )

    def always() -> str:
        out, work = bench.fresh(), bench.fresh()
        run = bench.app.start(bench.bids, out, work, "--nprocs", "2")
        run.until("sub-01_T2w  enhance: tissues")
        end = time.monotonic() + 120
        killed: set[int] = set()
        while run.code is None and time.monotonic() < end and len(killed) < 40:
            for pid in _workers(run, seconds=0):
                if pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.05)
        run.wait()
        _gone(run, 5)
        check_clean(run, [1, 3], "memory was full")
        return f"{len(killed)} killed, code {run.code}; {bench.again(out, work)}"

    bench.case(
        "worker process killed",
        "every worker, again and again",
        "the run ends, says that memory is short, resumes",
        always,
    )


def _workers(run: Run, seconds: float) -> list[int]:
    """The worker processes of a run: grandchildren, by way of multiprocessing's fork server."""
    end = time.monotonic() + seconds
    while True:
        children = {pid: _parent(pid) for pid in run.children()}
        found = [pid for pid, parent in children.items() if parent in children]
        if found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def main() -> int:
    """Run the campaign."""
    with bench("killed") as this:
        killed(this)
        interrupted(this)
        workers(this)
        return this.results.exit_code


if __name__ == "__main__":
    sys.exit(main())
