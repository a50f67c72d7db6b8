# SPDX-License-Identifier: Apache-2.0
"""Choose images by the columns of ``scans.tsv``: ``--scans-filter 'QU_motion<=2'``.

::

    filter      QU_motion<=2 and (site=A or not repeated=yes)
    filter  =   choice {"or" choice}
    choice  =   part {"and" part}
    part    =   "not" part | "(" filter ")" | comparison
    comparison  column  < <= > >= = == !=  value

Values are numbers or words; words with blanks, and columns that are no words, stand in quotes.
Nothing is evaluated as Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.numbers import is_missing
from bmex_bids.inputs.sources import scans_rows

if TYPE_CHECKING:
    from bmex_bids.inputs.collect import SourceImage

TOKEN = re.compile(
    r"""\s*(?:(?P<sign>[()]|[<>!=]=|[<>=])|(?P<quoted>"[^"]*"|'[^']*')|(?P<word>[^\s()<>=!"']+))"""
)
SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
Row = Mapping[str, str]


@dataclass(frozen=True)
class ScansFilter:
    """A filter that was read.

    Attributes
    ----------
    text : as it was written
    columns : that it names
    passes : whether a row does; a comparison with a value that is missing is false
    """

    text: str
    columns: tuple[str, ...]
    passes: Callable[[Row], bool]


def read_filter(text: str) -> ScansFilter:
    """A filter from its text.

    >>> chosen = read_filter("QU_motion<=2 and not site = 'A b'")
    >>> chosen.columns
    ('QU_motion', 'site')
    >>> chosen.passes({"QU_motion": "1.5", "site": "B"}), chosen.passes({"QU_motion": "n/a"})
    (True, False)

    Raises
    ------
    UsageError
        It is not understood.
    """
    reader = _Reader(text)
    passes = reader.either()
    if reader.tokens:
        raise reader.fault(reader.tokens[0][1])
    return ScansFilter(text, tuple(dict.fromkeys(reader.columns)), passes)


class _Reader:
    """Takes the tokens of a filter from the left."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while text[place:].strip():
            found = TOKEN.match(text, place)
            if found is None:
                raise self.fault(text[place:].strip())
            kind = str(found.lastgroup)
            self.tokens.append(
                (kind, found[kind].strip("\"'") if kind == "quoted" else found[kind])
            )
            place = found.end()

    def fault(self, got: str) -> UsageError:
        return UsageError(
            f"expected comparisons of columns of scans.tsv joined by and, or, not for "
            f"--scans-filter, got {got or 'its end'!r} in {self.text!r}; write for example "
            "--scans-filter 'QU_motion<=2 and site!=B'"
        )

    def next_is(self, word: str) -> bool:
        """Whether a sign or word comes next, which is taken then."""
        here = bool(self.tokens) and self.tokens[0][0] != "quoted" and self.tokens[0][1] == word
        if here:
            self.tokens.pop(0)
        return here

    def take(self, *kinds: str) -> str:
        if not self.tokens or self.tokens[0][0] not in kinds:
            raise self.fault(self.tokens[0][1] if self.tokens else "")
        return self.tokens.pop(0)[1]

    def either(self) -> Callable[[Row], bool]:
        parts = [self.both()]
        while self.next_is("or"):
            parts.append(self.both())
        return lambda row: any(part(row) for part in parts)

    def both(self) -> Callable[[Row], bool]:
        parts = [self.part()]
        while self.next_is("and"):
            parts.append(self.part())
        return lambda row: all(part(row) for part in parts)

    def part(self) -> Callable[[Row], bool]:
        if self.next_is("not"):
            inner = self.part()
            return lambda row: not inner(row)
        if self.next_is("("):
            inner = self.either()
            if not self.next_is(")"):
                raise self.fault(self.tokens[0][1] if self.tokens else "")
            return inner
        column = self.take("word", "quoted")
        sign = self.take("sign")
        if sign not in SIGNS:
            raise self.fault(sign)
        value = self.take("word", "quoted")
        if _number(value) is None and sign not in {"=", "==", "!="}:
            raise self.fault(value)
        self.columns.append(column)
        return lambda row: _compare(cell_of(row, column), sign, value)


def cell_of(row: Row, column: str) -> str:
    """What a row has in a column; capitals do not count. Empty where there is no such column."""
    names = {name.lower(): cell for name, cell in row.items()}
    return names.get(column.lower(), "")


def _compare(cell: str, sign: str, value: str) -> bool:
    if is_missing(cell):
        return False
    here, there = _number(cell), _number(value)
    if here is not None and there is not None:
        return SIGNS[sign](here, there)
    if sign not in {"=", "==", "!="}:
        return False
    return (cell.strip() == value) == (sign != "!=")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def refusal(image: SourceImage, bids_dir: Path, chosen: ScansFilter) -> str:
    """Why a filter leaves an image out; empty where it passes.

    Each row about the image must pass; an image without a row does not.
    """
    table, rows = scans_rows(image, bids_dir)
    hint = f"--scans-filter {chosen.text!r} leaves it out"
    if table is None:
        return f"no row about it in a scans.tsv; {hint}"
    for row in rows:
        if not chosen.passes(row):
            values = ", ".join(f"{c} {cell_of(row, c) or 'n/a'}" for c in chosen.columns)
            return f"{values} in {table.name}; {hint}"
    return ""
