# SPDX-License-Identifier: Apache-2.0
"""What became of each image: rows of ``status.tsv``, a summary, an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids.exceptions import EnvironmentProblem
from bmex_bids.outputs.records import motion_undone_mm, table_of
from bmex_bids.outputs.status import FILE_NAME, WITH_RESULT, Status, read_status

if TYPE_CHECKING:
    from bmex_bids.common.failure import Failure
    from bmex_bids.inputs.not_taken import NotTaken
    from bmex_bids.running.plan_view import Task
    from bmex_bids.running.progress import Progress

Row = dict[str, str]
EXIT_DONE, EXIT_FAILED, EXIT_PARTIAL = 0, 1, 3
#: column → quantity of the score, and whether of the raw or of the enhanced image
SCORED: Mapping[str, tuple[str, str]] = {
    "motion_before": ("before", "motion"),
    "motion_after": ("after", "motion"),
    "noise_percent_before": ("before", "noise_percent"),
    "resolution_mm_before": ("before", "resolution_mm"),
}
#: root mean square of the motion that was undone, mm
MOTION_UNDONE = "motion_undone_mm"
COLUMNS = ("image", "status", "step", "seconds", "gate", "reason", *SCORED, MOTION_UNDONE)
#: in the order of the summary
STATUSES = (
    Status.DONE, Status.UNCHANGED, Status.FAILED, Status.NOT_RUN, Status.SKIPPED, Status.NOT_TAKEN,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of a run: the rows of its table, and why images failed."""

    rows: Sequence[Row]
    failures: Sequence[Failure] = ()

    @property
    def exit_code(self) -> int:
        """5 where an image failed by a fault of the machine, else that of the rows."""
        if any(failure.exit_code == EnvironmentProblem.exit_code for failure in self.failures):
            return EnvironmentProblem.exit_code
        return exit_code(self.rows)


def status_rows(
    tasks: Sequence[Task],
    progress: Progress,
    *,
    committed: Callable[[Task], Mapping[str, Any] | None] = lambda _: None,
    not_taken: Sequence[NotTaken] = (),
) -> list[Row]:
    """One row an image, in the plan's order: what became of it, and why; then what is not taken.

    A participant that was asked for and brings nothing is skipped.

    Parameters
    ----------
    committed : the record of an image whose products are all there, else None.  What the disk
        says counts more than what a scheduler told or failed to tell.
    """
    tracks = {track.name: track for track in progress.tracks.values()}
    rows = []
    for task in tasks:
        row = dict.fromkeys(COLUMNS, "")
        row["image"] = task.name
        track = tracks.get(task.name)
        if task.unchanged:
            row["status"] = Status.UNCHANGED
        elif track is None:
            row |= {"status": Status.SKIPPED, "reason": task.planned.skip_reason or ""}
        else:
            row |= {"status": track.status, "step": track.step, "reason": track.reason or ""}
            if track.seconds is not None:
                row["seconds"] = f"{track.seconds:.1f}"
        record = committed(task) if row["status"] in {*WITH_RESULT, Status.NOT_RUN} else None
        if record is not None:
            if row["status"] == Status.NOT_RUN:
                row |= {"status": Status.DONE, "step": "", "reason": ""}
            scored = table_of(table_of(record, "Quality"), "Score")
            for column, (when, quantity) in SCORED.items():
                value = table_of(scored, when).get(quantity)
                row[column] = "" if value is None else f"{value:.2f}"
            undone = motion_undone_mm(record)
            row[MOTION_UNDONE] = "" if undone is None else f"{undone:.2f}"
            gate = record.get("Gate")
            if isinstance(gate, Mapping):
                row["gate"] = str(gate.get("Verdict", ""))
                if row["gate"] != "pass":
                    row["reason"] = " ".join(gate_reasons(gate))
        rows.append(row)
    for item in not_taken:
        row = dict.fromkeys(COLUMNS, "")
        became = Status.SKIPPED if item.asked_for else Status.NOT_TAKEN
        rows.append(row | {"image": item.name, "status": became, "reason": item.reason})
    return rows


def left_running(log_dir: Path) -> set[str]:
    """The images that the run before this one had begun when it was killed.

    Parameters
    ----------
    log_dir : of this run; the others' are beside it, their names begin with their dates
    """
    runs = [path.parent for path in log_dir.parent.glob(f"*/{FILE_NAME}")]
    others = sorted(run for run in runs if run != log_dir)
    rows = read_status(others[-1]) if others else ()
    return {row["image"] for row in rows if row.get("status") == Status.RUNNING}


def in_order(tasks: Sequence[Task], last: Set[str]) -> list[Task]:
    """The tasks as planned, but those named in ``last`` at the end.

    An image that gets the whole run killed (memory) would stand in the way of those behind it
    each time the command is given again.
    """
    return sorted(tasks, key=lambda task: task.name in last)


def gate_reasons(gate: Mapping[str, Any]) -> Iterator[str]:
    """Why an image did not pass, the failures first."""
    rules = [rule for rule in gate.get("Rules", []) if isinstance(rule, Mapping)]
    for verdict in ("fail", "warn"):
        for rule in rules:
            if rule.get("Verdict") == verdict:
                yield str(rule.get("Reason", rule.get("Rule", "")))


def counts_of(rows: Sequence[Row]) -> dict[str, int]:
    """How many images have each status."""
    return {status: sum(row["status"] == status for row in rows) for status in STATUSES}


def exit_code(rows: Sequence[Row]) -> int:
    """0: all images have a result that passed or was only warned of; 1: none has; 3: some have.

    What is not taken does not count.

    >>> exit_code([{"status": "done", "gate": ""}, {"status": "unchanged", "gate": "warn"}])
    0
    >>> exit_code([{"status": "done", "gate": ""}, {"status": "skipped", "gate": ""}])
    3
    >>> exit_code([{"status": "done", "gate": "fail"}])
    1
    """
    images = [row for row in rows if row["status"] != Status.NOT_TAKEN]
    good = [row["status"] in WITH_RESULT and row["gate"] != "fail" for row in images]
    if all(good):
        return EXIT_DONE
    return EXIT_PARTIAL if any(good) else EXIT_FAILED


def complaints(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each image that is not as its user hoped."""
    for row in rows:
        if row["status"] == Status.NOT_TAKEN:
            continue  # the plan has said it, and the closing line says how many
        if row["status"] not in WITH_RESULT:
            where = f" in {row['step']}" if row["step"] else ""
            yield f"{row['image']} {row['status']}{where}: {row['reason']}"
        elif row["gate"] in {"fail", "warn"}:
            word = "did NOT pass" if row["gate"] == "fail" else "passed with a warning"
            yield f"{row['image']} {word} the quality gate: {row['reason']}"


def summary(rows: Sequence[Row]) -> str:
    """The numbers in one line.

    >>> summary([{"status": "done", "gate": "fail"}, {"status": "skipped", "gate": ""}])
    '1 done (1 did not pass the quality gate), 1 skipped'
    """
    parts = []
    for status, number in counts_of(rows).items():
        if number:
            bad = sum(row["status"] == status and row["gate"] == "fail" for row in rows)
            parts.append(
                f"{number} {status}" + (f" ({bad} did not pass the quality gate)" if bad else "")
            )
    return ", ".join(parts)
