# SPDX-License-Identifier: Apache-2.0
"""Numbers and amounts as people, spreadsheets and statistics programs write them."""

from __future__ import annotations

import re
import unicodedata

from bmex_bids.inputs.units import BEFORE_BIRTH_PREFIX, unit_days

#: what stands for "no value", in small letters: BIDS, R, SAS, SPSS, Stata, pandas, spreadsheets
MISSING = frozenset(
    {"", "n/a", "na", "n.a.", "n.a", "#n/a", "#n/a n/a", "<na>", "nan", "nat", "none", "null"}
    | {"nil", "unknown", "unk", "missing", "-", "--", "?", ".", "nd", "tbd", "n/k", "nk"}
    | {"na_integer_", "na_real_", "na_character_", "1.#qnan", "-1.#ind", "not available"}
    | {"not known", "not applicable", "not reported", "._", "-9", "-99", "-999", "-9999"}
    | {"\N{EN DASH}", "\N{EM DASH}"}
    | {f".{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"}
)
#: signs that mean another: spaces, minus signs, primes, dashes of ranges
ALIKE = str.maketrans(
    {
        **dict.fromkeys("\xa0\u2007\u2009\u202f\u3000\t", " "),
        **dict.fromkeys("\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2019\u02bc\u00b4", "'"),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014", "–"),
        **dict.fromkeys("\u00b7\u066b", "."),
        "\uff0b": "+",
    }
)

_EXPONENT = r"(?:[eE][+-]?\d+|[dD][+-]\d+)?"
_THOUSANDS = r"[1-9]\d{0,2}"
#: one comma before exactly three digits: thousands or decimals
AMBIGUOUS = re.compile(rf"({_THOUSANDS}),(\d{{3}})")
#: one point before exactly three digits: thousandths, or thousands as long as a life in days
_POINTED = re.compile(r"([1-9]\d?)\.(\d{3})")
#: form → how it becomes a number of Python's: marks that go, and the decimal mark
_FORMS = (
    # 6  6.5  6.  .5
    (re.compile(rf"(?:\d+\.?\d*|\.\d+){_EXPONENT}"), "", "."),
    # 6,5  ,5  6,
    (re.compile(rf"(?:\d+,\d*|,\d+){_EXPONENT}"), "", ","),
    # 1 095  1'095
    (re.compile(rf"{_THOUSANDS}(?:([ '])\d{{3}})(?:\1\d{{3}})*(?:\.\d*)?"), " '", "."),
    (re.compile(rf"{_THOUSANDS}(?:([ '])\d{{3}})(?:\1\d{{3}})*,\d*"), " '", ","),
    # 1,234,567  1,095.5
    (re.compile(rf"{_THOUSANDS}(?:(?:,\d{{3}}){{2,}}(?:\.\d*)?|(?:,\d{{3}})+\.\d*)"), ",", "."),
    # 1.234.567  1.095,5
    (re.compile(rf"{_THOUSANDS}(?:(?:\.\d{{3}}){{2,}}(?:,\d*)?|(?:\.\d{{3}})+,\d*)"), ".", ","),
)

#: a number in a longer text, not yet looked at
TOKEN = rf"(?:\d[\d.,]*(?:[ '](?=\d{{3}}(?!\d))[\d.,]+)*|[.,]\d+){_EXPONENT}"
UNIT = r"[A-Za-z][A-Za-z /_.,-]*(?:\(s\))?"
_VULGAR = "".join(chr(n) for n in (*range(0xBC, 0xBF), *range(0x2150, 0x215F)))
#: as obstetricians write weeks and days: 25+3, 25+3/7, 25w+3d, 25 3/7, 25+3 weeks
WEEKS_AND_DAYS = re.compile(
    r"\s*(\d{1,2})\s*(?:(?:w|wks?|weeks?)?\s*\+\s*([0-6])(?:/7)?\s*(?:d|days?)?|\s([0-6])/7)"
    rf"\s*({UNIT})?\s*"
)


def is_missing(written: str) -> bool:
    """Whether a cell says that there is no value.

    >>> is_missing("N/A"), is_missing(" "), is_missing("-9.0"), is_missing("0")
    (True, True, True, False)
    """
    return re.sub(r"(?<=\d)\.0+$", "", written.strip().lower()) in MISSING


def tidy(text: str) -> str:
    """A text with one sign for each meaning; quotation marks of spreadsheets are taken away.

    >>> tidy('="006"'), tidy("6\\xa0months "), tidy("'6")
    ('006', '6 months', '6')
    """
    text = text.translate(ALIKE).strip()
    quoted = re.fullmatch(r"=?\"(.*)\"|'(.*?)'?", text)
    text = text if quoted is None else (quoted[1] or quoted[2] or "")
    # of a time span of pandas and R: "1095 days 00:00:00"
    return re.sub(r"(days?)\s+0+:00:00(?:\.0*)?$", r"\1", text.strip())


def number(text: str) -> float | None:
    """The number that is written; None for none, and for one with two readings.

    >>> number("6.5"), number("6,5"), number(".5"), number("30."), number("1 095"), number("1e1")
    (6.5, 6.5, 0.5, 30.0, 1095.0, 10.0)
    >>> number("1.095,5"), number("1,095.5"), number("1,234,567"), number("1.095")
    (1095.5, 1095.5, 1234567.0, 1.095)
    >>> number("1,095"), number("0,095"), number("1,0950"), number("6 9")
    (None, 0.095, 1.095, None)
    """
    sign = -1.0 if text.startswith("-") else 1.0
    bare = text.removeprefix("-").removeprefix("+").strip()
    if AMBIGUOUS.fullmatch(bare):
        return None
    for form, thousands, point in _FORMS:
        if form.fullmatch(bare):
            plain = bare.translate(dict.fromkeys(map(ord, thousands)))
            plain = plain.replace(point, ".").lower().replace("d", "e")
            return sign * float(plain)
    return None


def pointed(text: str) -> tuple[str, str] | None:
    """A number with a point before three digits, as thousands and as decimals.

    >>> pointed("1.095 days"), pointed("1.09"), pointed("1.0955")
    (('1095', '1.095'), None, None)
    """
    found = next((_POINTED.fullmatch(token) for token in re.findall(TOKEN, tidy(text))), None)
    return None if found is None else (found[1] + found[2], found[0])


def readings(text: str) -> tuple[str, str] | None:
    """Both readings of a text with a comma before three digits, as thousands and as decimals.

    >>> readings("1,095 days"), readings("6,5"), readings("1,095.5")
    (('1095 days', '1.095 days'), None, None)
    """
    found = [token for token in re.findall(TOKEN, tidy(text)) if AMBIGUOUS.fullmatch(token)]
    if not found:
        return None
    return (
        AMBIGUOUS.sub(r"\1\2", tidy(text)),
        AMBIGUOUS.sub(r"\1.\2", tidy(text)),
    )


def parse_age(text: str) -> tuple[float, str | None] | None:
    """A number and, when it is written with one, a unit; None for what is no age or may be two.

    >>> parse_age("6 years"), parse_age("30 gestational_weeks"), parse_age("89+"), parse_age("0.5")
    ((6.0, 'years'), (30.0, 'gestational_weeks'), (89.0, None), (0.5, None))
    >>> parse_age("1 year 6 months"), parse_age("006M"), parse_age("> 89"), parse_age("six")
    ((1.5, 'year'), (6.0, 'M'), (89.0, None), None)
    >>> parse_age("P1Y6M"), parse_age("1½ years"), parse_age("38 wk"), parse_age("1,095")
    ((1.5, 'Y'), (1.5, 'years'), (38.0, 'wk'), None)
    """
    text = tidy(text)
    prefix = BEFORE_BIRTH_PREFIX.match(text)
    if prefix is not None:  # "GA 38+2"
        rest = parse_age(text[prefix.end() :])
        return None if rest is None else (rest[0], f"{rest[1] or 'weeks'} {prefix[1]}")
    weeks = WEEKS_AND_DAYS.fullmatch(text)
    if weeks is not None:
        unit = (weeks[4] or "weeks").strip()
        unit = unit if unit_days(unit) else f"weeks {unit}"
        return int(weeks[1]) + int(weeks[2] or weeks[3]) / 7, unit
    match = re.fullmatch(rf"(?:>=?|≥)?\s*([+-]?{TOKEN})\s*\+?\s*({UNIT})?", text)
    if match is not None:
        value = number(match[1])
        return None if value is None else (value, match[2].strip() if match[2] else None)
    return _fraction(text) or _pairs(text)


def _fraction(text: str) -> tuple[float, str | None] | None:
    """``1½ years``, ``1 1/2``; a fraction alone (``1/2``) may be a date, and needs a unit."""
    match = re.fullmatch(rf"(\d*)\s*([{_VULGAR}])\s*({UNIT})?", text)
    if match is not None:
        value = int(match[1] or 0) + unicodedata.numeric(match[2])
        return value, match[3].strip() if match[3] else None
    match = re.fullmatch(rf"(?:(\d+)\s+)?(\d{{1,2}})/(2|3|4|6|8|12)\s*({UNIT})?", text)
    if match is None or not (match[1] or match[4]) or int(match[2]) >= int(match[3]):
        return None
    value = int(match[1] or 0) + int(match[2]) / int(match[3])
    return value, match[4].strip() if match[4] else None


def _pairs(text: str) -> tuple[float, str | None] | None:
    """``1 year 6 months``, ``2y3m``, ISO 8601's ``P1Y6M``; in the first unit."""
    spans = re.sub(r"^P(?=\d)|T?$", "", text) if re.fullmatch(r"P[\dYMWDT.,]+", text) else text
    pairs = re.findall(rf"({TOKEN})\s*([A-Za-z]+)", spans)
    if re.sub(rf"{TOKEN}\s*[A-Za-z]+|\band\b|[\s,]", "", spans) or (
        len(pairs) < 2 and spans is text
    ):
        return None
    units = [unit_days(unit.removesuffix("and")) for _, unit in pairs]
    numbers = [number(written) for written, _ in pairs]
    days = [unit[0] for unit in units if unit is not None]
    known = [value for value in numbers if value is not None]
    if not pairs or not len(pairs) == len(days) == len(known):
        return None
    if days != sorted(set(days), reverse=True):
        return None
    total = sum(value * each for value, each in zip(known, days, strict=True))
    return total / days[0], pairs[0][1]


def is_lower_bound(text: str) -> bool:
    """Whether an age is written as the least it may be.

    >>> is_lower_bound("89+"), is_lower_bound("> 3 months"), is_lower_bound("25+3")
    (True, True, False)
    """
    text = tidy(text)
    return bool(re.match(r">|≥", text) or re.fullmatch(rf"{TOKEN}\s*\+\s*({UNIT})?", text))


def decimals(text: str) -> int | None:
    """Digits after the decimal mark; None where the text is no plain number with or without a unit.

    >>> decimals("2"), decimals("2.0 years"), decimals("2,25"), decimals("2y3m")
    (0, 0, 2, None)
    """
    match = re.fullmatch(rf"[+-]?(\d*)(?:[.,](\d*))?\s*(?:{UNIT})?", tidy(text))
    return None if match is None else len((match[2] or "").rstrip("0"))


def parse_range(text: str) -> tuple[float, float, str | None] | None:
    """The ends of a range of ages and its unit; None for what is no range.

    >>> parse_range("20-25"), parse_range("2 to 3 months"), parse_range("25-20")
    ((20.0, 25.0, None), (2.0, 3.0, 'months'), None)
    """
    match = re.fullmatch(
        rf"({TOKEN})\s*({UNIT})?\s*(?:-|–|\bto\b)\s*({TOKEN})\s*({UNIT})?", tidy(text)
    )
    if match is None:
        return None
    low, high = number(match[1]), number(match[3])
    units = [unit.strip() for unit in (match[2], match[4]) if unit and unit.strip()]
    if low is None or high is None or low >= high or len({unit_days(u) for u in units}) > 1:
        return None
    return low, high, units[-1] if units else None
