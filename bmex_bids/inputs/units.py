# SPDX-License-Identifier: Apache-2.0
"""Units of age, from when they count, and what the names of columns say of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

DAYS_PER_WEEK = 7.0
DAYS_PER_YEAR = 365.25
DAYS_PER_MONTH = DAYS_PER_YEAR / 12

#: unit as written (lower case, no trailing s) → days
UNITS: Mapping[str, float] = {
    **dict.fromkeys(("hour", "hr", "h"), 1 / 24),
    **dict.fromkeys(("day", "dy", "d"), 1.0),
    **dict.fromkeys(("week", "wk", "w"), DAYS_PER_WEEK),
    **dict.fromkeys(("month", "mo", "mon", "mth", "mnth", "m"), DAYS_PER_MONTH),
    **dict.fromkeys(("year", "yr", "y", "yo", "a"), DAYS_PER_YEAR),  # a: UCUM, as BIDS recommends
}
#: words beside a unit that count it from conception, and those that say nothing
FROM_CONCEPTION = frozenset({"gestational", "gestation", "ga"})
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
SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "participant", "sub")
SESSION_COLUMNS = ("session_id", "session", "ses")
#: "agemonths"
_JOINED = re.compile(r"^(age)(?:in)?(days?|w(?:ee)?ks?|mo(?:nth)?s?|y(?:ea)?rs?)$", re.IGNORECASE)
#: before a number: "GA 38+2"
BEFORE_BIRTH_PREFIX = re.compile(r"(GA|PMA|PCA)\b[\s:=]*(?=\d)", re.IGNORECASE)


class Origin(Enum):
    """From when an age counts; the value says it in words."""

    BIRTH = "since birth"
    GESTATION = "of gestation"
    #: of an age that goes on counting after birth
    MENSTRUAL = "since before birth"


_SINCE_BIRTH = re.compile(
    r"\b(?:since|after|from)(?: (?:the|date|of))* (?:birth|delivery)\b"
    r"|\bpost ?natal(?:ly)?\b|\bchronological\b|\bcorrected\b"
)
_SINCE_BEFORE = re.compile(r"\bpost ?(?:menstrual|conception(?:al)?)\b|\bp[mc]a\b")
_OF_PEOPLE = re.compile(r"\b([dwmy])[./ ]*o\b\.?(?! *ld)")


def _words(text: str) -> str:
    """Small letters, and one blank for what is none: ``"Y.O."`` is ``"y old"``."""
    plain = re.sub(r"[^a-z./]+", " ", text.lower())
    return " ".join(re.sub(r"[^a-z]+", " ", _OF_PEOPLE.sub(r"\1 old", plain)).split())


def origin_of(text: str) -> Origin | None:
    """From when a text says that an age counts.

    >>> origin_of("weeks PMA"), origin_of("Weeks of gestation"), origin_of("postnatal weeks")
    (<Origin.MENSTRUAL: 'since before birth'>, <Origin.GESTATION: 'of gestation'>, <Origin.BIRTH: 'since birth'>)
    >>> origin_of("weeks old"), origin_of("weeks")
    (<Origin.BIRTH: 'since birth'>, None)
    """
    words = _words(text)
    if _SINCE_BEFORE.search(words):
        return Origin.MENSTRUAL
    if FROM_CONCEPTION & set(words.split()):
        return Origin.GESTATION
    born = _SINCE_BIRTH.search(words) or re.search(r"\bold$|\bof age$", words)
    return Origin.BIRTH if born else None


def origin_described(text: str) -> Origin | None:
    """From when the description of a column says that its ages count.

    >>> origin_described("Postmenstrual age at scan"), origin_described("gestational age at birth")
    (<Origin.MENSTRUAL: 'since before birth'>, None)
    """
    words = _words(text)
    if re.search("birth|born|correct", words):
        return Origin.BIRTH if _SINCE_BIRTH.search(words) else None
    if _SINCE_BIRTH.search(words):
        return Origin.BIRTH
    if re.search(r"menstr|\bconception|\bpost ?concept|\bpma\b", words):
        return Origin.MENSTRUAL
    return Origin.GESTATION if "gestat" in words else None


def unit_days(unit: str) -> tuple[float, bool] | None:
    """Days of a unit, and whether it counts from before birth; None for an unknown one.

    >>> unit_days("Years"), unit_days("gestational weeks"), unit_days("week(s)")
    ((365.25, False), (7.0, True), (7.0, False))
    >>> unit_days("y/o"), unit_days("weeks since birth"), unit_days("weeks PMA")
    ((365.25, False), (7.0, False), (7.0, True))
    >>> unit_days("fortnight") is None
    True
    """
    text = _words(unit)
    if "birth" in text and not _SINCE_BIRTH.search(text):
        return None  # an age at birth
    before = _SINCE_BEFORE.search(text) is not None
    text = _SINCE_BEFORE.sub(" ", _SINCE_BIRTH.sub(" ", text))
    text = re.sub(r"\bof age\b", " ", text)
    words = [word for word in text.split() if word not in SILENT]
    gestation = bool(FROM_CONCEPTION & set(words))
    if gestation:
        words = [word for word in words if word not in FROM_CONCEPTION and word != "of"]
    if len(words) != 1:
        return None
    days = UNITS.get(words[0], UNITS.get(words[0].removesuffix("s")))
    return None if days is None else (days, gestation or before)


def counts_before_birth(unit: str | None) -> bool:
    """Whether a unit that is known counts from before birth."""
    days = unit_days(unit) if unit else None
    return days is not None and days[1]


def column_name(written: str) -> str:
    """A column's name in small letters; names we know also as they are usually mistyped.

    >>> column_name("Participant ID"), column_name("Age Months"), column_name("Age (months)")
    ('participant_id', 'age_months', 'age (months)')
    >>> column_name("AgeAtScan"), column_name("ageyears"), column_name("SubjectID")
    ('age_at_scan', 'age_years', 'subject_id')
    """
    name = " ".join(written.lower().split())
    apart = _JOINED.sub(r"\1 \2", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", written.strip()))
    plain = re.sub(r"[\s-]+", "_", apart.lower())
    known = plain in (*SUBJECT_COLUMNS, *SESSION_COLUMNS, *COLUMNS)
    return (
        plain if known or (apart != written.strip() and column_unit(plain) is not None) else name
    )


def column_unit(name: str) -> str | None:
    """The unit that a column of ages says by its name; empty without one; None: of no ages.

    >>> column_unit("age (months)"), column_unit("age_at_scan"), column_unit("stage")
    ('months', '', None)
    >>> column_unit("ga_weeks"), column_unit("scan_age"), column_unit("age_group")
    ('ga_weeks', '', None)
    >>> column_unit("age.y") is None  # R's name for the second of two columns "age"
    True
    """
    if re.search(r"(?:age|ga)\.[xy]$", name.lower()):
        return None
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in FILLERS]
    if not words or not {"age", "ga"} & set(words):
        return None
    rest = "_".join(word for word in words if word != "age")
    known = unit_days(rest) if rest else None
    if known is None:
        return None if rest else rest
    return None if origin_of(rest) is Origin.MENSTRUAL else rest


def age_columns(names: Mapping[str, str], fetal: bool = False) -> list[tuple[str, str | None]]:
    """Columns of ages, the preferred first, and the unit that each one's name says."""
    found = [(name, unit) for name, unit in COLUMNS.items() if name in names]
    for name in names:
        unit = column_unit(name)
        if name not in COLUMNS and unit is not None:
            found.append((name, unit or None))

    def place(item: tuple[str, str | None]) -> int:
        if counts_before_birth(item[1]):
            return 0 if fetal else 3
        return 2 if not item[1] or unit_days(item[1]) is None else 1

    return sorted(found, key=place)


def similar_columns(names: Mapping[str, str]) -> list[str]:
    """Columns that may hold ages but do not say so clearly enough."""
    return [
        name
        for name in names
        if name not in COLUMNS and re.search(r"(^|[^a-z])(ages?|pma|ga)([^a-z]|$)", name)
    ]
