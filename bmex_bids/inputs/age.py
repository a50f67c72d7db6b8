# SPDX-License-Identifier: Apache-2.0
"""How old was the subject when the image was made, and how do we know?

The first of these that holds an age wins: the command line, the scans table, the sessions table,
the participants table.  Tables are taken as users really write them; whatever had to be guessed
becomes a warning that travels with the age into the sidecar.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bmex_bids.exceptions import AgeError
from bmex_bids.inputs.collect import SourceImage

DAYS_PER_YEAR = 365.25
DAYS_PER_MONTH = DAYS_PER_YEAR / 12
OLDEST_YEARS = 130.0
LONGEST_GESTATION_WEEKS = 45.0

#: unit as written (lower case, no trailing s) → (days, counted from conception?)
UNITS: Mapping[str, tuple[float, bool]] = {
    "day": (1.0, False),
    "d": (1.0, False),
    "week": (7.0, False),
    "wk": (7.0, False),
    "w": (7.0, False),
    "month": (DAYS_PER_MONTH, False),
    "mo": (DAYS_PER_MONTH, False),
    "year": (DAYS_PER_YEAR, False),
    "yr": (DAYS_PER_YEAR, False),
    "y": (DAYS_PER_YEAR, False),
    "a": (DAYS_PER_YEAR, False),  # UCUM, which BIDS recommends
    "gestational_week": (7.0, True),
    "gestation_week": (7.0, True),
    "week_gestation": (7.0, True),
    "week_of_gestation": (7.0, True),
    "week_gestational": (7.0, True),
    "week_gestational_age": (7.0, True),
    "ga_week": (7.0, True),
    "week_ga": (7.0, True),
    "gestational_day": (1.0, True),
}
#: columns in order of preference, and the unit their name says
COLUMNS: Mapping[str, str | None] = {
    "age_days": "days",
    "age_weeks": "weeks",
    "age_months": "months",
    "age_years": "years",
    "gestational_age_weeks": "gestational_weeks",
    "age": None,
}
MISSING = {"", "n/a", "na", "nan", "none", "null", "unknown", "-"}

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
    source : the table, relative to the dataset, or ``"command line"``
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
) -> Age:
    """The age at an image.

    Parameters
    ----------
    image : of the dataset
    bids_dir : the dataset's folder
    override_months : an age given on the command line, in months; 0 is an age
    fetal : the subject was not born yet; an age without a unit is then in weeks of gestation

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
    for table, rows, warning in _candidates(image, bids_dir):
        relative = table.relative_to(bids_dir).as_posix()
        looked.append(relative)
        for row in rows:
            age = _age_of_row(row, table, relative, fetal)
            if age is not None:
                notes = (*((warning,) if warning else ()), *age.warnings)
                return _checked(replace(age, warnings=notes))
    where = (
        ", ".join(looked)
        if looked
        else "no scans, sessions or participants table with a row for it"
    )
    raise AgeError(
        f"expected an age for {image.name} in a column {', '.join(COLUMNS)} of its scans.tsv, "
        f"sessions.tsv or participants.tsv, found {where}{' without one' if looked else ''}; add it, or give "
        "--age-months"
    )


def _candidates(
    image: SourceImage, bids_dir: Path
) -> Iterator[tuple[Path, list[dict[str, str]], str | None]]:
    """Tables from the most to the least specific, with the rows that are about the image."""
    subject_dir = bids_dir / f"sub-{image.subject}"
    session_dir = subject_dir / f"ses-{image.session}" if image.session else subject_dir
    prefix = f"sub-{image.subject}" + (f"_ses-{image.session}" if image.session else "")
    # the specification puts scans.tsv into the session's folder; people also put it by the image
    for folder in (session_dir, image.path.parent):
        table = folder / f"{prefix}_scans.tsv"
        rows = read_table(table)
        if rows:
            chosen, warning = _scan_rows(rows, image)
            yield table, chosen, warning
    if image.session:
        table = subject_dir / f"sub-{image.subject}_sessions.tsv"
        yield from _by_label(table, ("session_id", "session", "ses"), "ses-", image.session)
        # a sessions table for everybody at the top, with both columns
        table = bids_dir / "sessions.tsv"
        rows = [
            row
            for row in read_table(table)
            if _label_fits(_first(row, SUBJECT_COLUMNS), "sub-", image.subject)
            and _label_fits(_first(row, ("session_id", "session", "ses")), "ses-", image.session)
        ]
        if rows:
            yield table, rows, None
    yield from _by_label(bids_dir / "participants.tsv", SUBJECT_COLUMNS, "sub-", image.subject)


SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "participant", "sub")


def _by_label(
    table: Path, columns: Sequence[str], prefix: str, label: str
) -> Iterator[tuple[Path, list[dict[str, str]], str | None]]:
    rows = [row for row in read_table(table) if _label_fits(_first(row, columns), prefix, label)]
    if rows:
        yield table, rows, None


def _first(row: Mapping[str, str], columns: Sequence[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _label_fits(written: str, prefix: str, label: str) -> bool:
    """``sub-0001``, ``0001`` and, from a spreadsheet that drops zeros, ``1`` are one label."""
    written = written.removeprefix(prefix)
    if not written:
        return False
    if written == label:
        return True
    numeric = re.sub(r"\.0$", "", written)
    return numeric.isdigit() and label.isdigit() and int(numeric) == int(label)


def _scan_rows(
    rows: list[dict[str, str]], image: SourceImage
) -> tuple[list[dict[str, str]], str | None]:
    """Rows of a scans table about an image: by file name, else the only row there is."""
    name = image.path.name
    fitting = [row for row in rows if Path(row.get("filename", "")).name == name]
    if fitting:
        return fitting, None
    bare = name.split(".")[0]
    fitting = [row for row in rows if Path(row.get("filename", "")).name.split(".")[0] == bare]
    if fitting:
        return fitting, None
    if len(rows) == 1:
        written = rows[0].get("filename", "")
        return (
            rows,
            f"the only row of the scans table names {written or 'no file'}, not {name}; taken "
            "all the same",
        )
    return [], None


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file, keys lower case, values stripped; an absent or unreadable file has none.

    A quotation mark is a character as any other, as BIDS has it, unless a whole cell is quoted.
    """
    try:
        contents = path.read_bytes()
    except OSError:
        return []
    if contents.startswith((b"\xff\xfe", b"\xfe\xff")):  # "Unicode text" of a spreadsheet
        text = contents.decode("utf-16", errors="replace")
    else:
        try:
            text = contents.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = contents.decode("latin-1")
    rows = [[_cell(c) for c in line.split("\t")] for line in text.splitlines() if line.strip()]
    if not rows:
        return []
    header = [name.lower() for name in rows[0]]
    return [dict(zip(header, row, strict=False)) for row in rows[1:]]


def _cell(written: str) -> str:
    cell = written.strip()
    return cell[1:-1].strip() if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _age_of_row(row: Mapping[str, str], table: Path, relative: str, fetal: bool) -> Age | None:
    """The age in a row, by the first column that holds one."""
    for column, implied in COLUMNS.items():
        written = row.get(column, "")
        if written.lower() in MISSING:
            continue
        parsed = parse_age(written)
        if parsed is None:
            raise AgeError(
                f"expected an age in column {column} of {relative}, got {written!r}; write a "
                "number, or a number and a unit such as '6 months', or n/a"
            )
        number, unit = parsed
        warnings = []
        said = _column_unit(table, column)
        if unit is None:
            unit = implied or said
        elif said is not None and unit_days(said) != unit_days(unit):
            warnings.append(
                f"{relative} says {written!r}, its sidecar {said!r}; the former is taken"
            )
        if unit is None:
            unit = "gestational_weeks" if fetal else "years"
            warnings.append(
                f"no unit for column {column} of {relative}; "
                + ("weeks of gestation are taken" if fetal else "years, BIDS' default, are taken")
            )
        days = unit_days(unit)
        if days is None:
            raise AgeError(
                "expected a unit of age (days, weeks, months, years, gestational_weeks) for "
                f"column {column} of {relative}, got {unit!r}; correct 'Units' in its JSON sidecar"
            )
        months = number * days[0] / DAYS_PER_MONTH
        return Age(months, days[1] or fetal, written, unit, relative, column, tuple(warnings))
    return None


def parse_age(text: str) -> tuple[float, str | None] | None:
    """A number and, when it is written with one, a unit; None for what is no age.

    >>> parse_age("6 years"), parse_age("30 gestational_weeks"), parse_age("89+"), parse_age("0.5")
    ((6.0, 'years'), (30.0, 'gestational_weeks'), (89.0, None), (0.5, None))
    >>> parse_age("six") is None
    True
    """
    match = re.fullmatch(
        r"\s*([+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?)\s*\+?\s*([A-Za-z][A-Za-z _-]*)?\s*", text
    )
    if match is None:
        return None
    number = float(match[1].replace(",", "."))
    return (number, match[2].strip() if match[2] else None)


def unit_days(unit: str) -> tuple[float, bool] | None:
    """Days of a unit, and whether it counts from conception; None for an unknown one.

    >>> (
    ...     unit_days("Years"),
    ...     unit_days("gestational weeks"),
    ...     unit_days("week"),
    ...     unit_days("fortnight"),
    ... )
    ((365.25, False), (7.0, True), (7.0, False), None)
    """
    words = re.split(r"[\s_-]+", unit.strip().lower())
    singular = [word.removesuffix("s") if len(word) > 1 else word for word in words]
    return UNITS.get("_".join(singular))


def _column_unit(table: Path, column: str) -> str | None:
    """The unit that the table's JSON sidecar gives for a column."""
    try:
        sidecar = json.loads(table.with_suffix(".json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    described = (
        {str(key).lower(): value for key, value in sidecar.items()}
        if isinstance(sidecar, dict)
        else {}
    )
    entry = described.get(column)
    if not isinstance(entry, dict):
        return None
    for key in ("Units", "units", "Unit", "unit"):
        if isinstance(entry.get(key), str) and entry[key].strip():
            return str(entry[key]).strip()
    return None


def _checked(age: Age) -> Age:
    """Refuse an age that no image can have."""
    years = age.months * DAYS_PER_MONTH / DAYS_PER_YEAR
    weeks = age.months * DAYS_PER_MONTH / 7
    bad = not math.isfinite(age.months) or age.months < 0
    if bad or (years > OLDEST_YEARS) or (age.fetal and not 10 <= weeks <= LONGEST_GESTATION_WEEKS):
        limits = "10 to 45 weeks of gestation" if age.fetal else f"0 to {OLDEST_YEARS:g} years"
        raise AgeError(
            f"expected an age of {limits}, got {age.value} {age.unit} ({age.source}, "
            f"{age.column}); correct the value or its unit, or give --age-months"
        )
    return age
