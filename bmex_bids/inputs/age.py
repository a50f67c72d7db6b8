# SPDX-License-Identifier: Apache-2.0
"""How old was the subject when the image was made, and how do we know?

The first of these that holds an age wins: the command line, a table given there, the scans table,
the sessions table, the participants table.  Tables are taken as users really write them; whatever had to be guessed
becomes a warning that travels with the age into the sidecar.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from bmex_bids.exceptions import AgeError, UsageError
from bmex_bids.inputs.collect import SourceImage, read_json, sidecar_metadata

DAYS_PER_YEAR = 365.25
DAYS_PER_MONTH = DAYS_PER_YEAR / 12
OLDEST_YEARS = 130.0
MOST_TABLE_BYTES = 1 << 26  # a million participants have less
LONGEST_GESTATION_WEEKS = 45.0

#: unit as written (lower case, no trailing s) → days
UNITS: Mapping[str, float] = {
    **dict.fromkeys(("day", "d"), 1.0),
    **dict.fromkeys(("week", "wk", "w"), 7.0),
    **dict.fromkeys(("month", "mo", "mth", "mnth", "m"), DAYS_PER_MONTH),
    **dict.fromkeys(("year", "yr", "y", "yo", "a"), DAYS_PER_YEAR),  # a: UCUM, as BIDS recommends
}
#: words beside a unit that count it from conception, and those that say nothing
FROM_CONCEPTION = frozenset({"gestational", "gestation", "ga"})
#: before a unit: of an age that counts from before birth, also of a born child
POSTMENSTRUAL = "postmenstrual"
SILENT = frozenset({"s", "old", "age", "in", "completed"})
#: columns in order of preference, and the unit their name says
COLUMNS: Mapping[str, str | None] = {
    "age_days": "days",
    "age_weeks": "weeks",
    "age_months": "months",
    "age_years": "years",
    "age": None,
    # last: beside another age, it is that at birth
    "gestational_age_weeks": "gestational_weeks",
}
#: words of a column's name that say neither age nor unit: "age_at_scan_in_months"
FILLERS = frozenset("at in the scan scanning mri session ses visit acquisition".split())
MISSING = frozenset(
    {"", "n/a", "na", "n.a.", "#n/a", "<na>", "nan", "none", "null", "nil", "unknown", "unk"}
    | {"missing", "-", "--", "?", ".", "nd", "tbd", "-9", "-99", "-999", "-9999"}
)
SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "participant", "sub")
SESSION_COLUMNS = ("session_id", "session", "ses")

#: from this age in months on, the model is that of …
GROUPS: Sequence[tuple[float, str]] = (
    (0, "month0"),
    (2, "month3"),
    (5, "month6"),
    (7, "month9"),
    (10, "month12"),
    (15, "month18"),
    (21, "month24"),
)


@dataclass(frozen=True)
class Age:
    """An age and where it was found.

    Attributes
    ----------
    months : since birth, or since conception when ``fetal``
    fetal : counted in weeks of gestation, before birth
    value, unit : as found
    source : the table, relative to the dataset; ``"command line"``; or the age file's name
    column : of the table
    warnings : what was guessed
    """

    months: float
    fetal: bool
    value: str
    unit: str
    source: str
    column: str
    warnings: tuple[str, ...] = ()


def age_group(age: Age) -> str:
    """The model of an age; nothing is rounded.

    >>> age_group(Age(1.999, False, "1.999", "months", "", ""))
    'month0'
    """
    if age.fetal:
        return "fetal"
    chosen = GROUPS[0][1]
    for start, group in GROUPS:
        if age.months >= start:
            chosen = group
    return chosen


def near_boundary(age: Age) -> str | None:
    """A warning when another model begins less than a month away."""
    if age.fetal:
        return None
    for start, group in GROUPS[1:]:
        if abs(age.months - start) < 1:
            return f"age of {age.months:.2f} months is within a month of {start:g}, where model {group} begins"
    return None


def find_age(
    image: SourceImage,
    bids_dir: Path,
    *,
    override_months: float | None = None,
    fetal: bool = False,
    age_file: Path | None = None,
) -> Age:
    """The age at an image.

    Parameters
    ----------
    image : of the dataset
    bids_dir : the dataset's folder
    override_months : an age given on the command line, in months; 0 is an age
    fetal : the subject was not born yet; an age without a unit is then in weeks of gestation
    age_file : a table outside the dataset, which is asked before the dataset's own

    Raises
    ------
    AgeError
        No table holds one, or what it holds is none.
    """
    if override_months is not None:
        return _checked(
            Age(
                override_months,
                fetal,
                f"{override_months:g}",
                "months",
                "command line",
                "--age-months",
            )
        )
    bids_dir = Path(bids_dir).absolute()
    looked: list[str] = []
    similar: list[str] = []
    born: list[str] = []
    for table, rows, warnings in _candidates(image, bids_dir, age_file):
        relative = _shown(table, bids_dir)
        looked.append(relative)
        ages = [age for row in rows if (age := _age_of_row(row, table, bids_dir, fetal))]
        if ages:
            if len({(age.months, age.fetal) for age in ages}) > 1:
                values = ", ".join(sorted({_written(age) for age in ages}))
                raise AgeError(
                    f"expected one age for {image.name} in {relative}, found several ({values}); "
                    "say in a session_id column which is of which session, or give --age-months"
                )
            return _checked(replace(ages[0], warnings=(*warnings, *ages[0].warnings)))
        similar += [f"{name} in {relative}" for name in _similar(rows)]
        if table.name == "participants.tsv" and not fetal:
            born += [name for name, unit in _age_columns(rows[0]) if _from_conception(unit)]
    where = (
        ", ".join(looked)
        if looked
        else "no scans, sessions or participants table with a row for it"
    )
    hint = f" (is it {', '.join(similar)}? Rename that, with its unit)" if similar else ""
    hint += (
        f" ({', '.join(born)} is taken for that at birth; if not, give --fetal)" if born else ""
    )
    raise AgeError(
        f"expected an age for {image.name} in a column {', '.join(COLUMNS)} of its scans.tsv, "
        f"sessions.tsv or participants.tsv, found {where}{' without one' if looked else ''}"
        f"{hint}; add it, or give --age-months"
    )


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
    if not _age_columns(header):
        raise UsageError(
            f"expected a column {', '.join(COLUMNS)} in {path}, found {', '.join(header)}; rename "
            "the column of ages"
        )


def _shown(table: Path, bids_dir: Path) -> str:
    """A table as messages and sidecars name it."""
    if table.is_relative_to(bids_dir):
        return table.relative_to(bids_dir).as_posix()
    return f"{table.name} (--age-file)"


#: a table, its rows about the image, and what was guessed to find them
Candidate = tuple[Path, list[dict[str, str]], tuple[str, ...]]


def _candidates(image: SourceImage, bids_dir: Path, age_file: Path | None) -> Iterator[Candidate]:
    """Tables from the most to the least specific, with the rows that are about the image."""
    if age_file is not None:
        yield from _about(Path(age_file).absolute(), image, bids_dir, by_subject=True)
    subject_dir = bids_dir / f"sub-{image.subject}"
    session_dir = subject_dir / f"ses-{image.session}" if image.session else subject_dir
    prefix = f"sub-{image.subject}" + (f"_ses-{image.session}" if image.session else "")
    # the specification puts scans.tsv into the session's folder; people also put it by the image
    for folder in dict.fromkeys((session_dir, image.path.parent)):
        table = folder / f"{prefix}_scans.tsv"
        rows, notes = _table(table)
        if rows:
            chosen, warnings = _scan_rows(rows, image)
            yield table, chosen, (*notes, *warnings)
    if image.session:
        table = subject_dir / f"sub-{image.subject}_sessions.tsv"
        yield from _about(table, image, bids_dir, by_session=True)
        # a sessions table for everybody at the top, with both columns
        table = bids_dir / "sessions.tsv"
        yield from _about(table, image, bids_dir, by_subject=True, by_session=True)
    yield from _about(bids_dir / "participants.tsv", image, bids_dir, by_subject=True)


def age_tables(image: SourceImage, bids_dir: Path) -> list[Path]:
    """The tables of the dataset that may hold an image's age, and their JSON files."""
    subject_dir = bids_dir / f"sub-{image.subject}"
    session_dir = subject_dir / f"ses-{image.session}" if image.session else subject_dir
    prefix = f"sub-{image.subject}" + (f"_ses-{image.session}" if image.session else "")
    tables = [folder / f"{prefix}_scans.tsv" for folder in (session_dir, image.path.parent)]
    if image.session:
        tables += [subject_dir / f"sub-{image.subject}_sessions.tsv", bids_dir / "sessions.tsv"]
    tables.append(bids_dir / "participants.tsv")
    return [path for table in tables for path in (table, table.with_suffix(".json"))]


def _about(
    table: Path,
    image: SourceImage,
    bids_dir: Path,
    *,
    by_subject: bool = False,
    by_session: bool = False,
) -> Iterator[Candidate]:
    """A table with its rows about an image's subject and session, if there are any.

    What a table must say (``by_subject``, ``by_session``) it says in each row; what it need not
    say is heeded where it is said: a participants table may have a row for each session.
    """
    rows, notes = _table(table)
    warnings = list(notes)
    subject_dir = bids_dir / f"sub-{image.subject}"
    fitting = _exactly(table, subject_dir.name) if by_subject else []
    fitting = fitting or _labelled(rows, SUBJECT_COLUMNS, subject_dir, must=by_subject)
    if rows and not fitting and not by_subject:
        # the table lies in the subject's own folder: a wrong label in it is a slip
        written = _first(rows[0], SUBJECT_COLUMNS)
        warnings.append(f"{table.name} names the subject {written}; taken all the same")
        fitting = rows
    if image.session:
        session_dir = subject_dir / f"ses-{image.session}"
        fitting = _labelled(fitting, SESSION_COLUMNS, session_dir, must=by_session)
    if fitting:
        yield table, fitting, tuple(warnings)


def _exactly(table: Path, folder: str) -> list[dict[str, str]]:
    """The rows of a table about a subject whose label is written as its folder's, or without sub-.

    Without a search: a table may have a hundred thousand rows, and an image each.
    """
    try:
        state = table.stat()
        by_subject = _rows_by_subject(table, state.st_mtime_ns, state.st_size)
    except (OSError, csv.Error):
        return []
    found = by_subject.get(folder, []) + by_subject.get(folder.partition("-")[2], [])
    return [row for _, row in sorted(found, key=lambda item: item[0])]


@lru_cache(maxsize=8)
def _rows_by_subject(
    path: Path, mtime_ns: int, size: int
) -> dict[str, list[tuple[int, dict[str, str]]]]:
    """Number and contents of the rows of each subject, as written."""
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, row in enumerate(_table(path)[0]):
        if written := _first(row, SUBJECT_COLUMNS):
            found.setdefault(written, []).append((number, row))
    return found


def _labelled(
    rows: list[dict[str, str]], columns: Sequence[str], folder: Path, *, must: bool
) -> list[dict[str, str]]:
    """Rows with the label of a folder (``…/sub-0001``): so written, else one that may mean it.

    Unless they must have one, rows without a label follow those with it.
    """
    written = [_first(row, columns) for row in rows]
    chosen = [w for w in written if w in (folder.name, folder.name.partition("-")[2])]
    if not chosen:
        chosen = [w for w in written if _may_mean(w, folder)]
    fitting = [row for row, w in zip(rows, written, strict=True) if w and w in chosen]
    if fitting or must:
        return fitting
    return [row for row, w in zip(rows, written, strict=True) if w.lower() in MISSING]


def _first(row: Mapping[str, str], columns: Sequence[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _may_mean(written: str, folder: Path) -> bool:
    """Whether a label, which no folder has, is that of a folder but for zeros or small letters.

    A spreadsheet makes ``1`` or ``1.0`` of ``0001``.
    """
    prefix, _, label = folder.name.partition("-")
    bare = re.sub(rf"^{prefix}-", "", written, flags=re.IGNORECASE)
    numeric = re.sub(r"\.0+$", "", bare)
    if numeric.isdecimal() and label.isdecimal():
        alike = int(numeric) == int(label)
    else:
        alike = bare.lower() == label.lower()
    return alike and not (folder.parent / f"{prefix}-{bare}").is_dir()


def _scan_rows(
    rows: list[dict[str, str]], image: SourceImage
) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    """Rows of a scans table about an image: by file name, else the only row there is."""
    name = image.path.name
    names = [Path(row.get("filename", "").replace("\\", "/")).name for row in rows]
    for wanted, having in ((name, names), (_bare(name), [_bare(other) for other in names])):
        fitting = [row for row, other in zip(rows, having, strict=True) if other == wanted]
        if fitting:
            return fitting, ()
    if len(rows) == 1:
        written = rows[0].get("filename", "")
        return (
            rows,
            (
                f"the only row of the scans table names {written or 'no file'}, not {name}; taken "
                "all the same",
            ),
        )
    return [], ()


def _bare(name: str) -> str:
    return name.split(".")[0]


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file, keys lower case, values stripped; an absent or unreadable file has none.

    A quotation mark is a character as any other, as BIDS has it, unless a whole cell is quoted.
    Where the header has no tab, semicolons, commas or blanks part the cells.
    """
    return _table(path)[0]


def _table(path: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
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
    contents = path.read_bytes()
    if contents.startswith((b"\xff\xfe", b"\xfe\xff")):  # "Unicode text" of a spreadsheet
        text = contents.decode("utf-16", errors="replace")
    else:
        try:
            text = contents.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = contents.decode("latin-1")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return [], ()
    cells, marks = _split(lines)
    rows = [[_cell(cell) for cell in line] for line in cells]
    header = [column_name(name) for name in rows[0]]
    notes = (f"{path.name} is parted by {marks}, not by tabs",) if marks else ()
    return [dict(zip(header, row, strict=False)) for row in rows[1:]], notes


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


def column_name(written: str) -> str:
    """A column's name in small letters; names we know also as they are usually mistyped.

    >>> column_name("Participant ID"), column_name("Age Months"), column_name("Age (months)")
    ('participant_id', 'age_months', 'age (months)')
    """
    name = " ".join(written.lower().split())
    plain = re.sub(r"[\s-]+", "_", name)
    return plain if plain in (*SUBJECT_COLUMNS, *SESSION_COLUMNS, *COLUMNS) else name


def _cell(written: str) -> str:
    cell = written.strip()
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _age_columns(row: Mapping[str, str], fetal: bool = False) -> list[tuple[str, str | None]]:
    """Columns of ages, the preferred first, and the unit that each one's name says."""
    found = [(name, unit) for name, unit in COLUMNS.items() if name in row]
    for name in row:
        unit = column_unit(name)
        if name not in COLUMNS and unit is not None:
            found.append((name, unit or None))

    def place(item: tuple[str, str | None]) -> int:
        if _from_conception(item[1]):
            return 0 if fetal else 3
        return 2 if not item[1] or unit_days(item[1]) is None else 1

    return sorted(found, key=place)


def column_unit(name: str) -> str | None:
    """The unit that a column of ages says by its name; empty without one; None: of no ages.

    >>> column_unit("age (months)"), column_unit("age_at_scan"), column_unit("stage")
    ('months', '', None)
    >>> column_unit("ga_weeks"), column_unit("scan_age"), column_unit("age_group")
    ('ga_weeks', '', None)
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in FILLERS]
    if not words or not {"age", "ga"} & set(words):
        return None
    rest = "_".join(word for word in words if word != "age")
    return rest if not rest or unit_days(rest) is not None else None


def _similar(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Columns that may hold ages but do not say so clearly enough."""
    return [
        name
        for name in (rows[0] if rows else ())
        if name not in COLUMNS and re.search(r"(^|[^a-z])(ages?|pma|ga)([^a-z]|$)", name)
    ]


def _age_of_row(row: Mapping[str, str], table: Path, bids_dir: Path, fetal: bool) -> Age | None:
    """The age in a row, by the first column that holds one."""
    columns = _age_columns(row, fetal)
    for column, implied in columns:
        written = row[column]
        if _is_missing(written):
            continue
        at_birth = not fetal and table.name == "participants.tsv" and _from_conception(implied)
        if at_birth and (len(columns) > 1 or _of_birth(table, column, bids_dir)):
            continue
        cell = _Cell(written, column, implied, table, bids_dir, fetal)
        low, high, unit = cell.parsed()
        unit, warnings = cell.unit(unit)
        if unit is None:
            continue  # a column like scan_age, which may be in weeks or years
        days, from_conception = cell.days(unit)
        if at_birth:
            warnings.append(
                f"{column} of {cell.table_name} is taken for a fetus' age at the scan; if it is that "
                "at birth, write the age since birth, or give --age-months"
            )
        ages = [
            Age(
                number * days / DAYS_PER_MONTH,
                from_conception or fetal,
                written,
                unit,
                cell.table_name,
                column,
                tuple(warnings),
            )
            for number in (low, (low + high) / 2, high)
        ]
        if low == high:
            return ages[0]
        groups = [age_group(age) for age in ages]
        if groups[0] != groups[2]:
            raise AgeError(
                f"expected one age in column {column} of {cell.table_name}, got {written!r}, whose "
                f"ends have different models ({groups[0]}, {groups[2]}); write the age, or give "
                "--age-months"
            )
        note = f"{cell.table_name} says {written!r}; the middle of it is taken"
        return replace(ages[1], warnings=(*ages[1].warnings, note))
    return None


def _from_conception(unit: str | None) -> bool:
    days = unit_days(unit) if unit else None
    return days is not None and days[1]


def _of_birth(table: Path, column: str, bids_dir: Path) -> bool:
    """Whether the sidecars describe a column of gestational ages as those at birth."""
    return "birth" in _description(_sidecar_entry(table, column, bids_dir)).lower()


def _is_missing(written: str) -> bool:
    return re.sub(r"\.0+$", "", written.lower()) in MISSING


@dataclass(frozen=True)
class _Cell:
    """A cell of a column of ages: what is written, and what the column's name says of its unit."""

    written: str
    column: str
    implied: str | None
    table: Path
    bids_dir: Path
    fetal: bool

    @property
    def table_name(self) -> str:
        return _shown(self.table, self.bids_dir)

    def parsed(self) -> tuple[float, float, str | None]:
        """Lower and upper number, and the unit beside them."""
        one = parse_age(self.written)
        if one is not None:
            return one[0], one[0], one[1]
        span = parse_range(self.written)
        if span is None:
            raise AgeError(
                f"expected an age in column {self.column} of {self.table_name}, got "
                f"{self.written!r}; write a number, or a number and a unit such as '6 months', or "
                "n/a"
            )
        return span

    def unit(self, written: str | None) -> tuple[str | None, list[str]]:
        """The unit: beside the number, in the column's name, in the sidecar, or BIDS' default.

        None where only the default is left and the column is not BIDS' ``age``.
        """
        said, note = _sidecar_unit(self.table, self.column, self.bids_dir)
        if said is not None and said.startswith(POSTMENSTRUAL):
            said = said.replace(POSTMENSTRUAL, "gestational", 1)
            if not self.fetal:
                raise AgeError(
                    f"expected an age since birth, or weeks of gestation, in column {self.column} of "
                    f"{self.table_name}; its sidecar says that it counts from before birth, and a born "
                    "child's age does not follow from that; write the age since birth, or give "
                    "--age-months, or --fetal"
                )
        stated = [
            (f"the cell {self.written!r}", written),
            (f"the column {self.column}", self.implied),
            ("its sidecar", None if note else said),
        ]
        known = [(who, unit) for who, unit in stated if unit is not None]
        if not known and said is not None:
            return said, [note]
        if not known and self.fetal:
            return "gestational_weeks", [
                f"no unit for column {self.column} of {self.table_name}; weeks of gestation are taken"
            ]
        if not known:
            return ("years" if self.column == "age" else None), [
                f"no unit for column {self.column} of {self.table_name}; years, BIDS' default, are "
                "taken"
            ]
        (first, unit), *others = known
        warnings = []
        for who, other in others:
            ours, theirs = unit_days(unit), unit_days(other)
            if ours is None or theirs is None or ours == theirs:
                continue
            if ours[0] == theirs[0]:
                # '25 weeks' in a column of gestational weeks: one says more, none another thing
                unit = unit if ours[1] else other
                continue
            warnings.append(
                f"{first} of {self.table_name} says {unit!r}, {who} {other!r}; the former is taken"
            )
        return unit, warnings

    def days(self, unit: str) -> tuple[float, bool]:
        """Days of the unit, and whether it counts from conception."""
        days = unit_days(unit)
        if days is None:
            raise AgeError(
                "expected a unit of age (days, weeks, months, years, gestational_weeks) for "
                f"column {self.column} of {self.table_name}, got {unit!r}; correct 'Units' in its "
                "JSON sidecar"
            )
        if WEEKS_AND_DAYS.fullmatch(self.written) and not (days[1] or self.fetal):
            raise AgeError(
                f"expected to know from when {self.written!r} in column {self.column} of "
                f"{self.table_name} counts, found no word of gestation; write 'gestational_weeks' "
                "as its 'Units', or give --fetal"
            )
        return days


#: as obstetricians write weeks and days: 25+3, 25+3/7, 25+3 weeks
WEEKS_AND_DAYS = re.compile(r"\s*(\d{1,2})\s*\+\s*([0-6])(?:/7)?\s*([A-Za-z][A-Za-z _-]*)?\s*")
NUMBER = r"\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?"
UNIT = r"[A-Za-z][A-Za-z _.-]*(?:\(s\))?"


def parse_age(text: str) -> tuple[float, str | None] | None:
    """A number and, when it is written with one, a unit; None for what is no age.

    >>> parse_age("6 years"), parse_age("30 gestational_weeks"), parse_age("89+"), parse_age("0.5")
    ((6.0, 'years'), (30.0, 'gestational_weeks'), (89.0, None), (0.5, None))
    >>> parse_age("1 year 6 months"), parse_age("006M"), parse_age("> 89"), parse_age("six")
    ((1.5, 'year'), (6.0, 'M'), (89.0, None), None)
    """
    match = re.fullmatch(rf"\s*(?:>=?|≥)?\s*([+-]?{NUMBER})\s*\+?\s*({UNIT})?\s*", text)
    if match is not None:
        return _number(match[1]), match[2].strip() if match[2] else None
    match = WEEKS_AND_DAYS.fullmatch(text)
    if match is not None:
        return int(match[1]) + int(match[2]) / 7, (match[3] or "weeks").strip()
    pairs = re.findall(rf"({NUMBER})\s*([A-Za-z]+)", text)
    if len(pairs) < 2 or re.sub(rf"{NUMBER}\s*[A-Za-z]+|\band\b|[\s,]", "", text):
        return None
    units = [unit_days(unit.removesuffix("and")) for _, unit in pairs]
    days = [unit[0] for unit in units if unit is not None]
    if len(days) < len(pairs) or days != sorted(set(days), reverse=True):
        return None
    total = sum(_number(number) * each for (number, _), each in zip(pairs, days, strict=True))
    return total / days[0], pairs[0][1]


def parse_range(text: str) -> tuple[float, float, str | None] | None:
    """The ends of a range of ages and its unit; None for what is no range.

    >>> parse_range("20-25"), parse_range("2 to 3 months"), parse_range("25-20")
    ((20.0, 25.0, None), (2.0, 3.0, 'months'), None)
    """
    match = re.fullmatch(rf"\s*({NUMBER})\s*(?:-|–|to)\s*({NUMBER})\s*({UNIT})?\s*", text)
    if match is None or _number(match[1]) >= _number(match[2]):
        return None
    return _number(match[1]), _number(match[2]), match[3].strip() if match[3] else None


def _number(written: str) -> float:
    return float(written.replace(",", "."))


def unit_days(unit: str) -> tuple[float, bool] | None:
    """Days of a unit, and whether it counts from conception; None for an unknown one.

    >>> unit_days("Years"), unit_days("gestational weeks"), unit_days("week(s)")
    ((365.25, False), (7.0, True), (7.0, False))
    >>> unit_days("fortnight") is None
    True
    """
    words = [word for word in re.split(r"[^a-z]+", unit.lower()) if word and word not in SILENT]
    from_conception = bool(FROM_CONCEPTION & set(words))
    if from_conception:
        words = [word for word in words if word not in FROM_CONCEPTION and word != "of"]
    if len(words) != 1:
        return None
    days = UNITS.get(words[0], UNITS.get(words[0].removesuffix("s")))
    return None if days is None else (days, from_conception)


def _sidecar_entry(table: Path, column: str, bids_dir: Path) -> Mapping[str, object]:
    """What a table's JSON sidecars say of a column; empty where they do not."""
    sidecar = sidecar_metadata(table, bids_dir) if table.is_relative_to(bids_dir) else {}
    sidecar = {**sidecar, **read_json(table.with_suffix(".json"))}
    entry = {column_name(str(key)): value for key, value in sidecar.items()}.get(column)
    return entry if isinstance(entry, Mapping) else {}


def _description(entry: Mapping[str, object]) -> str:
    return " ".join(str(entry.get(key, "")) for key in ("LongName", "Description"))


def _sidecar_unit(table: Path, column: str, bids_dir: Path) -> tuple[str | None, str]:
    """The unit that a table's JSON sidecars give for a column, and a warning where it is a guess.

    Sidecars are inherited as BIDS has it: ``sessions.json`` at the top holds for all subjects.  What a
    description says of gestation goes before the unit, :data:`POSTMENSTRUAL` likewise.
    """
    entry = _sidecar_entry(table, column, bids_dir)
    text = _description(entry)
    origin = ""
    if not re.search("birth|born|correct", text, re.I):
        if re.search(r"menstr|concept|\bPMA\b", text, re.I):
            origin = f"{POSTMENSTRUAL} "
        elif re.search("gestat", text, re.I):
            origin = "gestational "
    for key in ("Units", "units", "Unit", "unit"):
        written = entry.get(key)
        if isinstance(written, str) and not _is_missing(written.strip()):
            known = unit_days(written)
            counts_from_birth = known is not None and not known[1]
            return (origin if counts_from_birth else "") + written.strip(), ""
    found = {word.lower() for word in re.findall(r"\b(?:day|week|month|year)s?\b", text, re.I)}
    if len({unit_days(word) for word in found}) != 1 or (
        not origin and re.search("gestat|menstr|concept", text, re.I)
    ):
        return None, ""
    unit = origin + max(found)  # the plural
    shown = _shown(table, bids_dir)
    return (
        unit,
        f"no Units for column {column} of {shown}; its description says {unit}, which is taken",
    )


def _checked(age: Age) -> Age:
    """Refuse an age that no image can have."""
    years = age.months * DAYS_PER_MONTH / DAYS_PER_YEAR
    weeks = age.months * DAYS_PER_MONTH / 7
    bad = not math.isfinite(age.months) or age.months < 0
    if bad or (years > OLDEST_YEARS) or (age.fetal and not 10 <= weeks <= LONGEST_GESTATION_WEEKS):
        limits = "10 to 45 weeks of gestation" if age.fetal else f"0 to {OLDEST_YEARS:g} years"
        raise AgeError(
            f"expected an age of {limits}, got {_written(age)} ({age.source}, "
            f"{age.column}); correct the value or its unit, or give --age-months"
        )
    return age


def _written(age: Age) -> str:
    """An age as found, with its unit unless that was written beside it."""
    return age.value if re.search("[A-Za-z]", age.value) else f"{age.value} {age.unit}"
