# SPDX-License-Identifier: Apache-2.0
"""Read tables of a dataset as users really write them."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

from bmex_bids.inputs.sidecars import text_of
from bmex_bids.inputs.units import column_name

MOST_TABLE_BYTES = 1 << 26  # a million participants have less


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file, keys lower case, values stripped; an absent or unreadable file has none.

    A quotation mark is a character as any other, as BIDS has it, unless a whole cell is quoted.
    Where the header has no tab, semicolons, commas or blanks part the cells.
    """
    return table_with_notes(path)[0]


def table_with_notes(path: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """Rows of a table, and what had to be guessed to read it."""
    try:
        state = path.stat()
        if not path.is_file() or state.st_size > MOST_TABLE_BYTES:  # a pipe would be waited for
            return [], ()
        return _parsed_table(path, state.st_mtime_ns, state.st_size)
    except (OSError, csv.Error):
        return [], ()


@lru_cache(maxsize=64)
def _parsed_table(
    path: Path, mtime_ns: int, size: int
) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """The rows of a file as it was when it had that time and size; not to be changed."""
    text = text_of(path.read_bytes())
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return [], ()
    cells, marks = _split(lines)
    header, *rows = [[_cell(cell) for cell in line] for line in cells]
    names = [column_name(name) for name in header]
    if rows and [row[: len(row) - len(names)] for row in rows] == [
        [str(number)] for number in range(1, len(rows) + 1)
    ]:
        rows = [row[1:] for row in rows]  # R numbers the rows, and the header not
    notes = (f"{path.name} is separated by {marks}, not by tabs",) if marks else ()
    return [_row(names, row) for row in rows], notes


def _row(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """The cells of a row by column, none of them lost in silence.

    Where two columns have one name and differ, the cell holds both; where there are more cells than
    columns, nobody knows which is which, and each but the first holds the whole row: such a cell
    is no number.  Where there are fewer, an editor took the blanks at the end away: they are empty.
    """
    if any(cells[len(names) :]):
        return dict.fromkeys(names, " | ".join(cells)) | {names[0]: cells[0]}
    row: dict[str, str] = {}
    for name, cell in zip_longest(names, cells[: len(names)], fillvalue=""):
        before = row.get(name, "")
        row[name] = f"{before} | {cell}" if before and cell and before != cell else before or cell
    return row


def _split(lines: Sequence[str]) -> tuple[list[list[str]], str]:
    """Cells of lines, and what parts them when it is no tab."""
    for mark, name in (("\t", ""), (";", "semicolons"), (",", "commas")):
        if mark in lines[0] and mark == "\t":
            return [line.split(mark) for line in lines], name
        if mark in lines[0]:
            return list(csv.reader(lines, delimiter=mark)), name
    for blanks in (r"\s{2,}", r"\s+"):
        cells = [re.split(blanks, line.strip()) for line in lines]
        if len(cells[0]) > 1 and len({len(line) for line in cells}) == 1:
            return cells, "blanks"
    return [[line] for line in lines], ""


def _cell(written: str) -> str:
    cell = written.strip()
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
