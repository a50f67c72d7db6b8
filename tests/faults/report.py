# SPDX-License-Identifier: Apache-2.0
"""The campaigns' rows as tables in ``RESULTS/cases.md``: a summary, then each case.

::

    python tests/faults/report.py RESULTS

Ends with 1 where a case is lost, or where there is no row at all.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from results import LOST, SURVIVED, Row, read_rows

#: the tables, in RESULTS
PAGE = "cases.md"


def summary(rows: Sequence[Row]) -> list[str]:
    """The table of groups: cases, survived, lost."""
    lines = ["| fault | cases | survived | lost | minutes |", "|---|--:|--:|--:|--:|"]
    groups = list(dict.fromkeys(row.group for row in rows))
    for group in groups:
        lines.append(_counts(group, [row for row in rows if row.group == group]))
    return [*lines, _counts("**all**", rows)]


def _counts(name: str, rows: Sequence[Row]) -> str:
    survived = sum(row.verdict == SURVIVED for row in rows)
    minutes = sum(row.seconds for row in rows) / 60
    return f"| {name} | {len(rows)} | {survived} | {len(rows) - survived} | {minutes:.1f} |"


def details(rows: Sequence[Row]) -> list[str]:
    """One table a group: each case, what was expected and what came."""
    lines = []
    for group, members in itertools.groupby(rows, key=lambda row: row.group):
        lines += ["", f"### {group.capitalize()}", ""]
        lines += ["| case | expected | what came | |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(row.case)} | {_cell(row.expected)} | {_cell(row.outcome)} | "
            f"{'**lost**' if row.verdict == LOST else row.verdict} |"
            for row in members
        ]
    return lines


def _cell(text: str) -> str:
    """Text that a Markdown table shows as it is, without the folders of this machine."""
    text = re.sub(r"/tmp/bmex-\w+-\w+|/(?:root|home|sys|usr)/[^\s\"',;:]*/", "…/", text)  # noqa: S108
    return re.sub(r"([|<>*_`\\])", r"\\\1", text)


def tables(rows: Sequence[Row]) -> str:
    """The page: the summary and the cases, by group."""
    groups = list(dict.fromkeys(row.group for row in rows))
    by_group = sorted(rows, key=lambda row: groups.index(row.group))
    return "\n".join([*summary(by_group), *details(by_group)]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables; 1 where a case is lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    options = parser.parse_args(argv)
    rows = [row for path in sorted(options.results.glob("*.tsv")) for row in read_rows(path)]
    page = options.results / PAGE
    page.write_text(tables(rows), encoding="utf-8")
    lost = [row for row in rows if row.verdict == LOST]
    print(f"{len(rows)} cases, {len(rows) - len(lost)} survived, {len(lost)} lost: {page}")
    for row in lost:
        print(f"lost: {row.group}: {row.case}: {row.outcome}")
    return int(bool(lost) or not rows)


if __name__ == "__main__":
    sys.exit(main())
