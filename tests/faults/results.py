# SPDX-License-Identifier: Apache-2.0
"""The fault campaign: what a campaign is, and the rows it writes.

``tests/faults/`` breaks whole runs on purpose, too slowly for the test suite (pytest does not
collect it).  ``make test-faults`` runs every campaign and writes a table of all cases.

A campaign is a program of its own::

    python tests/faults/NAME.py RESULTS [--quick]

RESULTS is a folder.  The campaign writes ``RESULTS/NAME.tsv`` there, with this header and a row
for each case, each row as soon as it is known (see :class:`Results`):

========  ====================================================================================
group     a few words; the rows of one group stand together in the summary ("killed", "disk full")
case      what was done, in words; unique within the group
expected  what must come of it, in words
outcome   what came of it, in words
verdict   ``survived``: as expected, or ``lost``: anything else, the campaign's own errors too
seconds   wall-clock, one decimal
========  ====================================================================================

Its exit code is 0 when no case is lost.  ``--quick`` runs some cases of each kind, in minutes.
A campaign never stops at a lost case.  ``report.py`` reads all ``*.tsv`` of RESULTS, writes
``RESULTS/cases.md``, and ends with 1 where a case is lost.  ``docs/reliability.md`` has the summary.

To add a campaign: write ``tests/faults/NAME.py`` with a docstring, put NAME into ``CAMPAIGNS`` in
``tests/faults/all.py``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("group", "case", "expected", "outcome", "verdict", "seconds")
SURVIVED, LOST = "survived", "lost"


class Lost(Exception):
    """What was expected did not come; the message says what came instead."""


@dataclass(frozen=True)
class Row:
    """One case; see this module's docstring."""

    group: str
    case: str
    expected: str
    outcome: str
    verdict: str
    seconds: float

    def line(self) -> str:
        """The row as TSV."""
        cells = (self.group, self.case, self.expected, self.outcome, self.verdict)
        return "\t".join([*(" ".join(cell.split()) for cell in cells), f"{self.seconds:.1f}"])


class Results:
    """The rows of one campaign, on disk as soon as they are known.

    Parameters
    ----------
    folder : RESULTS; made where it is missing
    name : of the campaign; a table of an earlier run is replaced
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.tsv"
        self.path.write_text("\t".join(COLUMNS) + "\n", encoding="utf-8")
        self.rows: list[Row] = []

    def case(self, group: str, case: str, expected: str, check: Callable[[], str]) -> Row:
        """Run a case: ``check`` returns the outcome in words, or raises, then the case is lost."""
        start = time.monotonic()
        try:
            outcome, verdict = check(), SURVIVED
        except Lost as error:
            outcome, verdict = str(error), LOST
        except Exception as error:  # noqa: BLE001 - a campaign goes on
            traceback.print_exc()
            outcome, verdict = f"{type(error).__name__}: {error}", LOST
        return self.add(group, case, expected, outcome, verdict, time.monotonic() - start)

    def add(
        self, group: str, case: str, expected: str, outcome: str, verdict: str, seconds: float
    ) -> Row:
        """Write a row whose verdict is known."""
        if verdict not in (SURVIVED, LOST):
            raise ValueError(f"expected {SURVIVED} or {LOST}, got {verdict!r}")
        row = Row(group, case, expected, outcome, verdict, seconds)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(row.line() + "\n")
        self.rows.append(row)
        print(f"{verdict:8s} {seconds:6.1f} s  {group}: {case}: {outcome}", flush=True)
        return row

    @property
    def exit_code(self) -> int:
        """0 when nothing is lost."""
        return int(any(row.verdict == LOST for row in self.rows))


def read_rows(path: Path) -> list[Row]:
    """The rows of a campaign's table; ValueError where it is not one."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    if tuple(header.split("\t")) != COLUMNS:
        raise ValueError(f"expected the columns {COLUMNS} in {path}, got {header!r}")
    rows = []
    for line in lines:
        *cells, seconds = line.split("\t")
        rows.append(Row(*cells, seconds=float(seconds)))
    return rows
