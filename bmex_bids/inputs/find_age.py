# SPDX-License-Identifier: Apache-2.0
"""How old was the subject when the image was made, and how do we know?

The first of these that speaks of the age wins: the command line, a table given there, the scans
tables, the sessions tables, the participants table.  Where the first of them says that the age is
not known, it is not known.  Whatever had to be guessed becomes a warning that travels with the age
into the sidecar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.exceptions import AgeError, UsageError
from bmex_bids.inputs.age import Age, age_group, checked
from bmex_bids.inputs.cells import Context, Reading, Unknown, read_row
from bmex_bids.inputs.numbers import is_missing, parse_age
from bmex_bids.inputs.sources import (
    Source,
    levels,
    other_tables,
    sessions_with_images,
    without_row,
)
from bmex_bids.inputs.tables import read_table
from bmex_bids.inputs.units import (
    COLUMNS,
    DAYS_PER_MONTH,
    DAYS_PER_YEAR,
    SUBJECT_COLUMNS,
    age_columns,
    counts_before_birth,
    similar_columns,
    unit_days,
)

if TYPE_CHECKING:
    from bmex_bids.inputs.collect import SourceImage

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class _Found:
    """What a level of tables says: an age, or that it is not known."""

    reading: Reading | Unknown
    source: Source


def find_age(
    image: SourceImage,
    bids_dir: Path,
    *,
    override_months: float | None = None,
    fetal: bool = False,
    age_file: Path | None = None,
    strict: bool = False,
) -> Age:
    """The age at an image.

    Parameters
    ----------
    image : of the dataset
    bids_dir : the dataset's folder
    override_months : an age given on the command line, in months; 0 is an age
    fetal : the subject was not born yet; an age without a unit is then in weeks of gestation
    age_file : a table outside the dataset, which is asked before the dataset's own
    strict : refuse an age about which anything had to be guessed

    Raises
    ------
    AgeError
        No table holds one, what it holds is none or contradicts itself, or it says that the age is
        not known.
    """
    bids_dir = Path(bids_dir).absolute()
    if override_months is not None:
        text = f"{override_months:g}"
        age = checked(Age(override_months, fetal, text, "months", COMMAND_LINE, "--age-months"))
        found = _look(image, bids_dir, age_file, fetal)
        notes = _overruled(age, [item.reading for item in found])
        return replace(age, warnings=tuple(notes))
    passed: list[str] = []
    found = _look(image, bids_dir, age_file, fetal, passed=passed)
    if not found:
        raise AgeError(_nothing(image, bids_dir, age_file, fetal))
    nearest, *farther = found
    if isinstance(nearest.reading, Unknown):
        hint = _hint(nearest.source, fetal)
        raise AgeError(_not_known(image, nearest.reading, [i.reading for i in farther], hint))
    reading = nearest.reading
    checked(reading.age)
    others = [item for item in farther if isinstance(item.reading, Reading)]
    _refuse_doubtful_unit(reading, [item.reading for item in others], image)
    doubts = list(reading.doubts)
    notes = [*nearest.source.notes, *reading.notes]
    sessions = sessions_with_images(image, bids_dir) if image.session else []
    if len(sessions) > 1 and not nearest.source.of_session:
        doubts.append(
            f"one age for {len(sessions)} sessions ({_some(sessions)}) in {reading.age.source}; "
            "give each its own in a sessions table or scans table"
        )
    if age_file is not None and nearest.source.table == Path(age_file).absolute():
        notes += _overruled(reading.age, [item.reading for item in others])
    else:
        doubts += _contradicted(reading, others, several=len(sessions) > 1)
        if image.session and not nearest.source.of_session:
            doubts += [
                f"{table} has ages and none of the session {image.session}; that of "
                f"{reading.age.source} is taken"
                for table in without_row(image, bids_dir)
            ]
    notes += _patient_age(image, reading)
    notes += [f"{column} is not used: its unit is not known" for column in passed]
    doubts = [*nearest.source.doubts, *doubts]
    if strict and doubts:
        raise AgeError(
            f"expected an age of {image.name} that needs no assumption (--strict-ages), got "
            f"{reading.age.written}: {'; '.join(doubts)}"
        )
    return replace(reading.age, warnings=(*doubts, *notes))


def check_age_file(path: Path) -> None:
    """Refuse a table of ages that cannot be one, for it was asked for.

    Raises
    ------
    UsageError
        It is missing or empty, or has no column of participants or of ages.
    """
    path = Path(path)
    rows = read_table(path)
    if not rows:
        what = "no rows" if path.is_file() else "no such file"
        raise UsageError(
            f"expected a table of ages in {path}, found {what}; give a TSV file with the columns "
            "participant_id, age_months (or age_weeks, age_years) and, if needed, session_id"
        )
    header = rows[0]
    if not any(column in header for column in SUBJECT_COLUMNS):
        raise UsageError(
            f"expected a column participant_id in {path}, found {', '.join(header)}; rename the "
            "column of participants"
        )
    if not age_columns(header):
        raise UsageError(
            f"expected a column {', '.join(COLUMNS)} in {path}, found {', '.join(header)}; rename "
            "the column of ages"
        )


def _look(
    image: SourceImage,
    bids_dir: Path,
    age_file: Path | None,
    fetal: bool,
    *,
    passed: list[str] | None = None,
) -> list[_Found]:
    """What the tables say, the nearest first; only the faults of that are raised.

    ``passed`` takes the names of nearer columns that no one can use; without it nothing is raised.
    """
    found: list[_Found] = []
    for level in levels(image, bids_dir, age_file):
        try:
            one = _of_level(image, level, bids_dir, fetal)
        except AgeError:
            if passed is not None and not found:
                raise
            continue
        if one is not None:
            found.append(one)
        elif passed is not None and not found:
            for source in level:
                name = Context(source.table, bids_dir, fetal).name
                passed += [f"{column} of {name}" for column in _without_unit(source)]
    return found


def _of_level(
    image: SourceImage, level: Sequence[Source], bids_dir: Path, fetal: bool
) -> _Found | None:
    """What tables of one level say; they must say one thing."""
    found = []
    for source in level:
        context = Context(source.table, bids_dir, fetal)
        for row in source.rows:
            reading = read_row(row, context)
            if reading is not None:
                found.append(_Found(reading, source))
    ages = [item.reading for item in found if isinstance(item.reading, Reading)]
    if not ages:
        return found[0] if found else None
    finest = min(ages, key=lambda reading: reading.precision)
    if len(ages) < len(found) or not all(finest.agrees(reading) for reading in ages):
        values = {reading.age.written for reading in ages}
        values |= {item.reading.written for item in found if isinstance(item.reading, Unknown)}
        tables = dict.fromkeys(_name(item) for item in found)
        hint = (
            "say in a session_id column which is of which session"
            if len(tables) == 1
            else "correct one of them"
        )
        raise AgeError(
            f"expected one age for {image.name} in {' and '.join(tables)}, found several "
            f"({', '.join(sorted(values))}); {hint}, or give --age-months"
        )
    return next(item for item in found if item.reading is finest)


def _without_unit(source: Source) -> list[str]:
    """Columns of ages that hold a value whose unit no one says."""
    row = source.rows[0]
    columns = [column for column, unit in age_columns(row) if unit is None]
    return [column for column in columns if not is_missing(row[column])]


def _name(item: _Found) -> str:
    reading = item.reading
    return reading.table if isinstance(reading, Unknown) else reading.age.source


def _refuse_doubtful_unit(
    reading: Reading, others: Sequence[Reading | Unknown], image: SourceImage
) -> None:
    """Refuse BIDS' default unit where another table of the dataset says another for its ages."""
    if not reading.unit_guessed or reading.age.fetal:
        return
    for other in others:
        if not isinstance(other, Reading) or other.unit_guessed:
            continue
        unit = unit_days(other.age.unit)
        if unit is not None and not unit[1] and unit[0] != DAYS_PER_YEAR:
            raise AgeError(
                f"expected to know the unit of {reading.age.value} for {image.name} in "
                f"{reading.age.source}, found none, and {other.age.source} has {other.age.written}, "
                f"not BIDS' default, years; write 'Units' for the column {reading.age.column} into "
                "its JSON sidecar, or give --age-months"
            )


def _overruled(age: Age, others: Sequence[Reading | Unknown]) -> list[str]:
    """A warning where an age given for this run has another model than the dataset's."""
    for other in others:
        if isinstance(other, Reading) and not other.unit_guessed:
            if age_group(other.age) == age_group(age):
                return []
            return [
                f"the age of {age.written} ({age.source}) overrules {other.age.written} of "
                f"{other.age.source}"
            ]
    return []


def _contradicted(reading: Reading, others: Sequence[_Found], *, several: bool) -> list[str]:
    """Doubts where a table farther from the image has another age.

    A participant with several sessions has one age in the participants table and others there.
    """
    for item in others:
        other = item.reading
        if not isinstance(other, Reading) or other.unit_guessed or reading.unit_guessed:
            continue
        if not reading.is_comparable(other) or (several and not item.source.of_session):
            continue
        if not reading.agrees(other):
            return [
                f"{reading.age.source} says {reading.age.written}, {other.age.source} says "
                f"{other.age.written}; the former is taken"
            ]
    return []


def _patient_age(image: SourceImage, reading: Reading) -> list[str]:
    """A warning where the scanner's ``PatientAge`` in the image's JSON has another model."""
    written = image.metadata.get("PatientAge")
    parsed = parse_age(written) if isinstance(written, str) else None
    unit = unit_days(parsed[1]) if parsed is not None and parsed[1] else None
    if parsed is None or unit is None or unit[1] or reading.age.fetal:
        return []
    scanner = Age(parsed[0] * unit[0] / DAYS_PER_MONTH, False, str(written), "", "", "")
    if age_group(scanner) == age_group(reading.age):
        return []
    if reading.agrees(Reading(scanner, unit[0])):
        return []
    return [
        f"PatientAge in the image's JSON is {written}, {reading.age.source} says "
        f"{reading.age.written}; the latter is taken"
    ]


def _not_known(
    image: SourceImage, unknown: Unknown, farther: Sequence[Reading | Unknown], hint: str
) -> str:
    """That the nearest table says that the age is not known, whatever others say."""
    ages = [reading.age for reading in farther if isinstance(reading, Reading)]
    more = f", which counts more than {ages[0].written} of {ages[0].source}" if ages else ""
    return (
        f"expected an age for {image.name}, found {unknown.table} without one: its column "
        f"{unknown.column} says {unknown.written!r}, not known{more}{hint}; write the age there, or "
        "overrule it with --age-file or --age-months"
    )


def _nothing(image: SourceImage, bids_dir: Path, age_file: Path | None, fetal: bool) -> str:
    """Why there is no age, and where it might be."""
    sources = [source for level in levels(image, bids_dir, age_file) for source in level]
    names = [Context(source.table, bids_dir, fetal).name for source in sources]
    where = (
        f"{', '.join(names)} without one"
        if names
        else "no scans, sessions or participants table with a row for it"
    )
    similar = [
        f"{column} in {name}"
        for source, name in zip(sources, names, strict=True)
        for column in similar_columns(source.rows[0])
    ]
    hint = f" (is it {', '.join(similar)}? Rename that, with its unit)" if similar else ""
    hint += "".join(_hint(source, fetal) for source in sources)
    if "PatientAge" in image.metadata:
        hint += f" (PatientAge in its JSON is {image.metadata['PatientAge']})"
    others = other_tables(bids_dir)
    if others:
        hint += f" ({', '.join(others)} is not read; a participants table is participants.tsv)"
    return (
        f"expected an age for {image.name} in a column {', '.join(COLUMNS)} of its scans.tsv, "
        f"sessions.tsv or participants.tsv, found {where}{hint}; add it, or give --age-months"
    )


def _hint(source: Source, fetal: bool) -> str:
    """That a column of gestational ages was not taken for the age at the scan."""
    if fetal or source.table.name != "participants.tsv":
        return ""
    born = [name for name, unit in age_columns(source.rows[0]) if counts_before_birth(unit)]
    return f" ({', '.join(born)} is taken for that at birth; if not, give --fetal)" if born else ""


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + (" …" if len(labels) > 5 else "")
