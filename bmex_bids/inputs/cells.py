# SPDX-License-Identifier: Apache-2.0
"""The age in a row of a table: what is written, in which unit, and from when it counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bmex_bids.exceptions import AgeError
from bmex_bids.inputs.age import Age, age_group
from bmex_bids.inputs.numbers import (
    WEEKS_AND_DAYS,
    decimals,
    is_lower_bound,
    is_missing,
    number,
    parse_age,
    parse_range,
    pointed,
    readings,
    tidy,
)
from bmex_bids.inputs.sidecars import (
    applicable_sidecars,
    read_json,
    sidecar_metadata,
    unreadable,
)
from bmex_bids.inputs.units import (
    DAYS_PER_MONTH,
    DAYS_PER_WEEK,
    DAYS_PER_YEAR,
    Origin,
    age_columns,
    column_name,
    counts_before_birth,
    origin_described,
    origin_of,
    unit_days,
)

#: an age in weeks within these may count from birth or from before it (infants up to 20 weeks
#: after term are described in weeks since before birth, too)
UNCLEAR_WEEKS = (16.0, 60.0)

#: an age beside that of a fetus may be its mother's from this on
MOTHERS_MONTHS = 144


@dataclass(frozen=True)
class Reading:
    """An age as a table has it.

    Attributes
    ----------
    age : without its warnings
    precision : step of the number as written, days
    notes : what its user should know
    doubts : what was guessed and may be wrong
    unit_guessed : no one said the unit
    """

    age: Age
    precision: float
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    unit_guessed: bool = False

    @property
    def days(self) -> float:
        """Of the age."""
        return self.age.months * DAYS_PER_MONTH

    def agrees(self, other: Reading) -> bool:
        """Whether two may be one age, one of them perhaps rounded."""
        step = max(self.precision, other.precision)
        near = self.days == other.days or abs(self.days - other.days) < step - 1e-6
        return self.age.fetal == other.age.fetal and near

    def is_comparable(self, other: Reading) -> bool:
        """Whether two count from one day: beside a fetus' age may stand the mother's."""
        before = (counts_before_birth(self.age.unit), counts_before_birth(other.age.unit))
        if self.age.fetal and not other.age.fetal:
            return other.age.months < MOTHERS_MONTHS
        return self.age.fetal == other.age.fetal and before[0] == before[1]


@dataclass(frozen=True)
class Unknown:
    """A table says that the age is not known."""

    table: str
    column: str
    written: str


@dataclass(frozen=True)
class Context:
    """Where a cell is.

    Attributes
    ----------
    table : absolute
    bids_dir : the dataset's folder, absolute
    fetal : the subject was not born yet
    """

    table: Path
    bids_dir: Path
    fetal: bool

    @property
    def name(self) -> str:
        """The table as messages and sidecars name it."""
        if self.table.is_relative_to(self.bids_dir):
            return self.table.relative_to(self.bids_dir).as_posix()
        return f"{self.table.name} (--age-file)"

    @property
    def fault(self) -> str | None:
        """Why what would describe the columns cannot be read; None where nothing is wrong."""
        inside = self.table.is_relative_to(self.bids_dir)
        described = applicable_sidecars(self.table, self.bids_dir) if inside else []
        return unreadable([*described, self.table.with_suffix(".json")])

    def sidecar(self, column: str) -> Mapping[str, object]:
        """What the table's JSON files say of a column; empty where they do not.

        They are inherited as BIDS has it: ``sessions.json`` at the top holds for all subjects.
        """
        inside = self.table.is_relative_to(self.bids_dir)
        contents = sidecar_metadata(self.table, self.bids_dir) if inside else {}
        contents = {**contents, **read_json(self.table.with_suffix(".json"))}
        entry = {column_name(str(key)): value for key, value in contents.items()}.get(column)
        if isinstance(entry, str):
            return {"Description": entry}
        return entry if isinstance(entry, Mapping) else {}


def read_row(row: Mapping[str, str], context: Context) -> Reading | Unknown | None:
    """The age in a row; None where it has no cell of ages.

    Raises
    ------
    AgeError
        What is written is no age, nobody knows which, or two columns contradict each other.
    """
    columns = age_columns(row, context.fetal)
    unknown = first = None
    for column, implied in columns:
        cell = Cell(row[column], column, implied, context)
        before_birth = counts_before_birth(implied) and not context.fetal
        level = cell.level
        if level or is_missing(cell.written):
            said = f"{cell.written} ({level})" if level else cell.written
            unknown = unknown or (None if before_birth else Unknown(context.name, column, said))
            continue
        at_birth = before_birth and context.table.name == "participants.tsv"
        if at_birth and (len(columns) > 1 or cell.is_at_birth):
            continue
        if first is None:
            first = cell.read(guess_of_fetus=at_birth)
        else:
            first = _compared(first, cell)
    return first or unknown


def _compared(first: Reading, cell: Cell) -> Reading:
    """The age of the preferred column, after a look at another column of the same row."""
    try:
        other = cell.read()
    except AgeError:
        return first
    if other is None or not first.is_comparable(other):
        return first
    ours = f"{first.age.written} in column {first.age.column}"
    theirs = f"{other.age.written} in column {cell.column}"
    if _are_parts(first, other):
        raise AgeError(
            f"expected one age in a row of {cell.context.name}, got {ours} and {theirs}, which "
            "may be the parts of one; write it in one column, or give --age-months"
        )
    if first.agrees(other):
        return first
    if not (first.unit_guessed or other.unit_guessed):
        raise AgeError(
            f"expected one age in a row of {cell.context.name}, got {ours} and {theirs}; correct "
            "one of them, or give --age-months"
        )
    doubt = f"{cell.context.name} says {ours} and {theirs}; the former is taken"
    return replace(first, doubts=(*first.doubts, doubt))


def _are_parts(first: Reading, other: Reading) -> bool:
    """Whether two may be the years and the months of one age, or months and days.

    1 year and 8 months may also be one age, rounded: nobody knows.
    """
    small, large = sorted((first, other), key=lambda reading: reading.days)
    units = [unit_days(reading.age.unit) for reading in (small, large)]
    if units[0] is None or units[1] is None or units[0][0] >= units[1][0]:
        return False
    return 0 < small.days < units[1][0] <= large.days


@dataclass(frozen=True)
class Cell:
    """A cell of a column of ages: what is written, and what the column's name says of its unit."""

    written: str
    column: str
    implied: str | None
    context: Context

    @property
    def place(self) -> str:
        """In messages."""
        return f"column {self.column} of {self.context.name}"

    @property
    def is_at_birth(self) -> bool:
        """Whether the sidecars describe a column of gestational ages as those at birth."""
        return "birth" in description_of(self.context.sidecar(self.column)).lower()

    @property
    def level(self) -> str | None:
        """What the sidecar's ``Levels`` say of the value, which is then a code and no age."""
        levels = self.context.sidecar(self.column).get("Levels")
        said = _labelled(levels, tidy(self.written)) if isinstance(levels, Mapping) else None
        label = said.get("Description") if isinstance(said, Mapping) else said
        return None if said is None else str(label or "a level")

    def read(self, *, guess_of_fetus: bool = False) -> Reading | None:
        """The age; None where no one says the unit and the column is not BIDS' ``age``.

        ``guess_of_fetus``: the column of gestational ages may also be of those at birth.
        """
        low, high, beside = self._numbers()
        unit = self._unit(beside)
        if unit is None:
            return None
        text, doubts, notes, guessed = unit
        days, fetal = self._days(text, beside, (low, high))
        if fetal and not counts_before_birth(text):
            text = text if self.context.fetal else f"gestational {text}"
        if guess_of_fetus:
            doubts.append(
                f"{self.column} of {self.context.name} is taken for a fetus' age at the scan; if "
                "it is that at birth, write the age since birth, or give --age-months"
            )
        age, note = self._of_range(low, high, text, (days, fetal))
        places = decimals(self.written)
        step = min(days, DAYS_PER_MONTH) if places is None else days * 10.0**-places
        doubts += _of_whole_years(age, places, days)
        doubts += self._of_thousands(days)
        return Reading(age, step, (*notes, *note), tuple(doubts), guessed)

    def _of_thousands(self, days: float) -> list[str]:
        """A doubt about days with a point before three digits, as Germans write thousands."""
        both = pointed(self.written) if days == 1 else None
        if both is None:
            return []
        return [f"{self.written!r} in {self.place} is taken for {both[1]} days; is it {both[0]}?"]

    def _numbers(self) -> tuple[float, float, str | None]:
        """Lower and upper number, and the unit beside them."""
        one = parse_age(self.written)
        if one is not None:
            return one[0], one[0], one[1]
        span = parse_range(self.written)
        if span is not None:
            return span
        both = readings(self.written)
        if both is not None:
            raise AgeError(
                f"expected an age in {self.place}, got {self.written!r}, which is {both[0]} or "
                f"{both[1]}; write it without a mark between thousands and with a decimal point"
            )
        raise AgeError(
            f"expected an age in {self.place}, got {self.written!r}; write a number, or a number "
            "and a unit such as '6 months', or n/a"
        )

    def _unit(self, beside: str | None) -> tuple[str, list[str], list[str], bool] | None:
        """The unit with doubts, notes, and whether it was guessed.

        From beside the number, the column's name, the sidecar, or BIDS' default; None where only
        the default is left and the column is not BIDS' ``age``.
        """
        said, note = unit_of_sidecar(self.context.sidecar(self.column))
        stated = [
            (f"the cell {self.written!r}", beside),
            (f"the column {self.column}", self.implied),
            ("its sidecar", None if note else said),
        ]
        known = [(who, unit) for who, unit in stated if unit is not None]
        if not known and said is not None:
            # years, BIDS' default, are no news
            years = unit_days(said) == (DAYS_PER_YEAR, False)
            return said, [], [] if years else [f"no Units for {self.place}; {note}"], False
        if not known:
            fetal = self.context.fetal
            if not fetal and self.column != "age":
                return None
            default = "weeks of gestation are" if fetal else "years, BIDS' default, are"
            fault = self.context.fault
            why = f"no unit for {self.place}" + (f", since {fault}" if fault else "")
            doubt = f"{why}; {default} taken"
            return "gestational_weeks" if fetal else "years", [doubt], [], True
        (first, unit), *others = known
        doubts = []
        for who, other in others:
            ours, theirs = unit_days(unit), unit_days(other)
            if ours is None or theirs is None or ours == theirs:
                continue
            if ours[0] == theirs[0]:
                # '25 weeks' in a column of gestational weeks: one says more, none another thing
                unit = unit if ours[1] or origin_of(unit) else other
                continue
            doubts.append(
                f"{first} of {self.context.name} says {unit!r}, {who} {other!r}; the former is "
                "taken"
            )
        return unit, doubts, [], False

    def _days(
        self, unit: str, beside: str | None, numbers: tuple[float, float]
    ) -> tuple[float, bool]:
        """Days of the unit, and whether it counts from before birth."""
        known = unit_days(unit)
        if known is None:
            raise AgeError(
                "expected a unit of age (days, weeks, months, years, gestational_weeks) for "
                f"{self.place}, got {unit!r}; correct 'Units' in its JSON sidecar"
            )
        days, before_birth = known
        entry = self.context.sidecar(self.column)
        stated = [unit, beside or "", self.implied or "", unit_of_sidecar(entry)[0] or ""]
        origin = next(filter(None, map(origin_of, stated)), None)
        if origin is None and days < DAYS_PER_YEAR:
            origin = origin_described(description_of(entry))
        if self.context.fetal:
            return days, True
        if origin is Origin.MENSTRUAL:
            raise AgeError(
                f"expected an age since birth, or weeks of gestation, in {self.place}, got "
                f"{unit!r}, which counts from before birth, as the cell or its sidecar says; a born "
                "child's age does not follow from that: write the age since birth, or give "
                "--age-months, or --fetal"
            )
        before_birth = before_birth or origin is Origin.GESTATION
        form = WEEKS_AND_DAYS.fullmatch(tidy(self.written)) is not None
        low, high = UNCLEAR_WEEKS
        unclear = days == DAYS_PER_WEEK and any(low <= number <= high for number in numbers)
        if (form or unclear) and not (before_birth or origin is Origin.BIRTH):
            raise AgeError(
                f"expected to know from when {self.written!r} in {self.place} counts, found no word "
                "of gestation; write 'gestational_weeks' or 'weeks since birth' as its 'Units', or "
                "the age in months, or give --fetal"
            )
        return days, before_birth

    def _of_range(
        self, low: float, high: float, unit: str, known: tuple[float, bool]
    ) -> tuple[Age, tuple[str, ...]]:
        """The age of a number, or the middle of a range that has one model."""
        days, before_birth = known
        fetal = before_birth or self.context.fetal
        ages = [
            Age(
                number * days / DAYS_PER_MONTH,
                fetal,
                self.written,
                unit,
                self.context.name,
                self.column,
            )
            for number in (low, (low + high) / 2, high)
        ]
        groups = [age_group(age) for age in ages]
        if low < high and groups[0] != groups[2]:
            raise AgeError(
                f"expected one age in {self.place}, got {self.written!r}, whose ends have different "
                f"models ({groups[0]}, {groups[2]}); write the age, or give --age-months"
            )
        oldest = age_group(Age(math.inf, fetal, "", "", "", ""))
        if is_lower_bound(self.written) and groups[0] != oldest:
            raise AgeError(
                f"expected one age in {self.place}, got {self.written!r}, which has no upper end "
                f"and more than one model ({groups[0]} to {oldest}); write the age, or give "
                "--age-months"
            )
        if low == high:
            return ages[0], ()
        return ages[1], (f"{self.context.name} says {self.written!r}; the middle of it is taken",)


def _labelled(levels: Mapping[str, object], written: str) -> object:
    """What the level of a value says; pandas writes the code 777 as 777.0."""
    if written in levels:
        return levels[written]
    value = number(written)
    same = (said for code, said in levels.items() if value is not None and number(code) == value)
    return next(same, None)


def _of_whole_years(age: Age, places: int | None, days: float) -> Iterator[str]:
    """A doubt about an age in whole years where a year has several models."""
    if age.fetal or places != 0 or days != DAYS_PER_YEAR or age.months < 0:
        return
    end = replace(age, months=age.months + 12 - 1e-6)
    if age_group(age) != age_group(end):
        yield (
            f"{age.source} has the age in whole years ({age.written}), within which the model "
            f"changes from {age_group(age)} to {age_group(end)}; the beginning of the year is taken"
        )


def description_of(entry: Mapping[str, object]) -> str:
    """What a sidecar says of a column in words."""
    return " ".join(str(entry.get(key, "")) for key in ("LongName", "Description"))


def unit_of_sidecar(entry: Mapping[str, object]) -> tuple[str | None, str]:
    """The unit that a sidecar gives for a column, and a note where only its description does."""
    for key in ("Units", "units", "Unit", "unit"):
        written = entry.get(key)
        if isinstance(written, list) and len(written) == 1:
            written = written[0]
        if isinstance(written, str) and not is_missing(written):
            return written.strip(), ""
    text = description_of(entry)
    found = {word.lower() for word in re.findall(r"\b(?:day|week|month|year)s?\b", text, re.I)}
    before = origin_described(text) in {Origin.GESTATION, Origin.MENSTRUAL}
    mixed = not before and re.search("gestat|menstr|concept", text, re.I)
    if len({unit_days(word) for word in found}) != 1 or mixed:
        return None, ""
    unit = max(found)  # the plural
    origin = origin_described(text) if unit_days(unit) != (DAYS_PER_YEAR, False) else None
    shown = f"gestational {unit}" if origin is Origin.GESTATION else unit
    return shown, f"its description says {shown}, which is taken"
