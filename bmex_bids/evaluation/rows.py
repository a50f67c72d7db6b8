# SPDX-License-Identifier: Apache-2.0
"""The long table of the benchmark: one figure a row, appended as it is computed.

A row's key says what it was computed from (image, recipe, method, weights), so a run that was
stopped, or has new weights, computes only what is missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HEADER = ("image", "cell", "method", "key", "metric", "value")


@dataclass(frozen=True)
class Row:
    """One figure of one method on one image in one cell."""

    image: str
    cell: str
    method: str
    key: str
    metric: str
    value: float

    def line(self) -> str:
        """The row as a line of the table; infinity and NaN as Python writes them."""
        value = f"{self.value:.6g}" if math.isfinite(self.value) else str(self.value)
        words = (self.image, self.cell, self.method, self.key, self.metric, value)
        return "\t".join(words) + "\n"


def key_of(*parts: str) -> str:
    """Twelve hexadecimal digits for what a figure was computed from."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def read(path: Path) -> Iterator[Row]:
    """The rows of a table; a last line that a killed run cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
        words = line.rstrip("\n").split("\t")
        if line.endswith("\n") and len(words) == len(HEADER):
            yield Row(words[0], words[1], words[2], words[3], words[4], float(words[5]))


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows at the end; the header when the file is new.  All of a call, or a cut last line."""
    text = "".join(row.line() for row in rows)
    if not path.exists():
        text = "\t".join(HEADER) + "\n" + text
    elif not path.read_bytes().endswith(b"\n"):
        text = "\n" + text  # end the line that a killed run left, so that it is left out alone
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def finished(rows: Iterable[Row]) -> set[tuple[str, str, str, str]]:
    """(image, cell, method, key) of which there are figures.

    A unit of work ends with the row ``seconds``, so one that was cut short is done again.
    """
    return {(r.image, r.cell, r.method, r.key) for r in rows if r.metric == "seconds"}


def current(rows: Iterable[Row], keys: Mapping[tuple[str, str, str], str]) -> list[Row]:
    """The rows whose key is the one wanted now, the last of each figure, in the file's order."""
    found = {
        (r.image, r.cell, r.method, r.metric): r
        for r in rows
        if keys.get((r.image, r.cell, r.method)) == r.key
    }
    return list(found.values())
