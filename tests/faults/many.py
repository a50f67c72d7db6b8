# SPDX-License-Identifier: Apache-2.0
"""Campaign: hundreds of participants in one run: time and memory by their number.

The brains are the smallest there are, and drawn by link from one file, so that what grows is what
the run itself adds for each image.  Measured: wall-clock seconds, processor seconds of all the run's
processes, and the main one's peak of resident memory.  Growth is called linear when the last
participants cost no more than :data:`TOLERANCE` times what the first ones do.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import Bench, bench, check_clean
from results import Lost
from tiny import dataset, statuses

NUMBERS = (75, 150, 300)
QUICK = (4, 8, 16)
#: of one participant's cost late in a run and early in it
TOLERANCE = 1.3
#: MiB that a participant may cost the main process, and that measuring is out by
MIB_EACH, MIB_NOISE = 1.0, 30.0
PATIENCE = 3 * 3600.0


@dataclass(frozen=True)
class Cost:
    """What a run of so many participants took."""

    number: int
    seconds: float
    processor: float
    mib: float

    def __str__(self) -> str:
        return (
            f"{self.number}: {self.seconds:.0f} s ({self.processor:.0f} s of the processor), "
            f"{self.mib:.0f} MiB"
        )


def participants(folder: Path, number: int) -> Path:
    """A dataset of so many participants, all with the same brain."""
    labels = [f"{n:04d}" for n in range(1, number + 1)]
    root = dataset(folder, labels[:1])
    image = root / "sub-0001/anat/sub-0001_T2w.nii.gz"
    for label in labels[1:]:
        copy = root / f"sub-{label}/anat/sub-{label}_T2w.nii.gz"
        copy.parent.mkdir(parents=True)
        os.link(image, copy)
    rows = "".join(f"sub-{label}\t28\n" for label in labels)
    (root / "participants.tsv").write_text(f"participant_id\tgestational_age_weeks\n{rows}")
    return root


def measure(bench: Bench, number: int, *flags: str) -> Cost:
    """Run so many participants from an empty output."""
    bids = participants(bench.fresh("many"), number)
    out, work = bench.fresh("many"), bench.fresh("many")
    start = time.monotonic()
    run = bench.app.start(bids, out, work, *flags, afresh=True)
    peak, processor = 0, 0.0
    while run.code is None:
        if time.monotonic() - start > PATIENCE:
            run.kill_group()
        peak = max(peak, run.peak_kib())
        processor = max(processor, run.processor_seconds())
        time.sleep(0.25)
    seconds = time.monotonic() - start
    check_clean(run, [0])
    done = sum(row["status"] == "done" for row in statuses(out).values())
    if done != number:
        raise Lost(f"{done} of {number} images are done")
    if len(list(out.glob("sub-*.html"))) != number:
        raise Lost("not every participant has a page")
    for path in (bids, out, work):
        shutil.rmtree(path)
    return Cost(number, seconds, processor, peak / 1024)


def growth(costs: list[Cost], again: Cost) -> str:
    """The slopes in words; Lost where the later participants cost more than the first ones.

    Parameters
    ----------
    costs : of ever more participants
    again : the smallest number once more, in the end: what it costs more than at first is the
        machine's doing (others use it), not the number's
    """
    first, middle, last = costs
    drift = max(1.0, again.processor / first.processor)

    def slope(a: Cost, b: Cost, what: str) -> float:
        return float((getattr(b, what) - getattr(a, what)) / (b.number - a.number))

    early, late = slope(first, middle, "processor"), slope(middle, last, "processor")
    memory = [slope(a, b, "mib") for a, b in ((first, middle), (middle, last))]
    words = (
        f"{'; '.join(map(str, costs))}; each more takes {early:.2f} s of the processor early, "
        f"{late:.2f} s late, {memory[0]:.2f} and {memory[1]:.2f} MiB; the first run, repeated in "
        f"the end, took {drift:.2f} times as long"
    )
    if late > TOLERANCE * drift * early:
        raise Lost(f"time grows faster than the number: {words}")
    noise = MIB_NOISE / (last.number - middle.number)
    if memory[1] > max(TOLERANCE * memory[0] + noise, MIB_EACH):
        raise Lost(f"memory grows faster than the number: {words}")
    return words


def main() -> int:
    """Run the campaign."""
    with bench("many") as this:
        numbers = QUICK if this.quick else NUMBERS
        for nprocs in "1" if this.quick else "12":

            def check(nprocs: str = nprocs) -> str:
                flags = ("--nprocs", nprocs)
                costs = [measure(this, number, *flags) for number in numbers]
                return growth(costs, measure(this, numbers[0], *flags))

            this.case(
                "many participants",
                f"{', '.join(map(str, numbers))} participants in one run, --nprocs {nprocs}",
                "all done; time and memory grow no faster than the number",
                check,
            )
        return this.results.exit_code


if __name__ == "__main__":
    sys.exit(main())
