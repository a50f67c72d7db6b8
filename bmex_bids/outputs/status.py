# SPDX-License-Identifier: Apache-2.0
"""``status.tsv``, a run's table of what became of each image: written and read here only."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path

from bmex_bids.outputs.files import write_text

FILE_NAME = "status.tsv"


class Status(str, Enum):
    """What became of an image; the text is that of the table."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    NOT_RUN = "not run"
    SKIPPED = "skipped"
    NOT_TAKEN = "not taken"

    __str__ = str.__str__


#: statuses of an image that has its results
WITH_RESULT = (Status.DONE, Status.UNCHANGED)


def write_status(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """The table of what became of each image: one row each, the columns of the first row."""
    header = list(rows[0]) if rows else ["image", "status"]
    lines = ["\t".join(header)]
    lines += ["\t".join(_cell(row.get(column, "")) for column in header) for row in rows]
    return write_text(path, "\n".join(lines) + "\n")


def _cell(value: str) -> str:
    return " ".join(str(value).split())


def read_status(run_dir: Path) -> tuple[dict[str, str], ...]:
    """The rows of a run's table, not to be changed; none where there is no readable table."""
    table = run_dir / FILE_NAME
    try:
        state = table.stat()
        return _read_rows(table, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=16)
def _read_rows(table: Path, mtime_ns: int, size: int) -> tuple[dict[str, str], ...]:
    """A table, read once for all pages."""
    lines = table.read_text(encoding="utf-8").splitlines()
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    return tuple(row for row in reader if row.get("image"))


def latest_first(output_dir: Path) -> list[Path]:
    """The folders of the runs, the one whose table was written last first.

    By the file system's clock: the names hold local times, which differ between the machines that
    write here.
    """
    logs = output_dir / "logs"
    folders = [path for path in logs.iterdir() if path.is_dir()] if logs.is_dir() else []
    return sorted(folders, key=_last_change, reverse=True)


def _last_change(folder: Path) -> tuple[int, str]:
    for path in (folder / FILE_NAME, folder):
        try:
            return path.stat().st_mtime_ns, folder.name
        except OSError:
            continue
    return 0, folder.name
