# SPDX-License-Identifier: Apache-2.0
"""Images of the level *group* as rows of a table, from the sidecars of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bmex_bids.common.names import BidsName
from bmex_bids.inputs.numbers import is_missing
from bmex_bids.inputs.tables import read_table
from bmex_bids.inputs.units import SUBJECT_COLUMNS
from bmex_bids.outputs.records import (
    KEY,
    RecordError,
    find_records,
    motion_undone_mm,
    read_sidecar,
    table_of,
)
from bmex_bids.reports.individual import page_name

NOTHING = "n/a"
#: text columns of the table; the measures follow
COLUMNS = (
    "image",
    "participant_id",
    "session_id",
    "age_months",
    "age_group",
    "model",
    "weights",
    "version",
    "verdict",
    "Manufacturer",
    "ManufacturersModelName",
    "MagneticFieldStrength",
    "site",
    "repeats",
    "rank",
    "best",
)
#: what the names of measures begin with, in the order of the table
KINDS = ("quality", "mask", "motion", "gate")
#: key of the sidecar's measures that have MRIQC's names; when → measures
MRIQC = "MRIQC"
#: columns of participants.tsv that name the site, from the one preferred
SITE_COLUMNS = ("site", "site_id", "scanner")
#: from this age in months on → the group's name; up to two years these are the models' ages
AGE_GROUPS: Sequence[tuple[float, str]] = (
    (0, "0 to 2 months"),
    (2, "2 to 5 months"),
    (5, "5 to 7 months"),
    (7, "7 to 10 months"),
    (10, "10 to 15 months"),
    (15, "15 to 21 months"),
    (21, "21 to 72 months"),
    (72, "6 to 12 years"),
    (144, "12 to 18 years"),
    (216, "18 to 40 years"),
    (480, "40 to 65 years"),
    (780, "65 years and older"),
)
FETUS = "before birth"


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes
    ----------
    name : such as ``sub-0001_ses-V01_T1w``
    text : column of :data:`COLUMNS` → value; ``n/a`` where unknown
    age_months : None where unknown
    measures : name → finite number; a measure without one is left out
    reasons : why the quality gate did not let it pass
    page : of the subject, relative to the group page; empty where there is none
    mriqc : ``before`` and ``after`` → measure → number, by MRIQC's names
    """

    name: str
    text: Mapping[str, str]
    age_months: float | None
    measures: Mapping[str, float]
    reasons: tuple[str, ...] = ()
    page: str = ""
    mriqc: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def read_rows(
    output_dir: Path, suffix: str, sites: Mapping[str, str]
) -> tuple[list[Row], dict[str, str]]:
    """The images of a contrast, and the sidecars that cannot be used with the reason.

    Parameters
    ----------
    sites : from :func:`read_sites`

    Returns
    -------
    rows : in the order of their names
    skipped : path relative to ``output_dir`` → reason
    """
    rows, skipped = [], {}
    for image in find_records(output_dir):
        if image.source.suffix != suffix or not (paths := image.latest_first()):
            continue
        try:
            sidecar = read_sidecar(paths[0])
            if not isinstance(sidecar[KEY].get("Quality"), dict):
                raise RecordError(f"lacks the quality measures (key Quality under {KEY})")
        except RecordError as error:
            skipped[paths[0].relative_to(output_dir).as_posix()] = str(error)
        else:
            rows.append(_row(image.source, sidecar, sites, output_dir))
    return rows, skipped


def _row(
    source: BidsName, sidecar: Mapping[str, Any], sites: Mapping[str, str], folder: Path
) -> Row:
    record = sidecar[KEY]
    subject, session = source.subject, source.session
    age, weights, gate = (table_of(record, key) for key in ("Age", "Weights", "Gate"))
    months = _finite(age.get("months"))
    rules = [rule for rule in _list(gate.get("Rules")) if isinstance(rule, dict)]
    text = {
        "image": str(source),
        "participant_id": f"sub-{subject}",
        "session_id": f"ses-{session}" if session else NOTHING,
        "age_months": NOTHING if months is None else f"{months:.6g}",
        "age_group": age_group_label(months, bool(age.get("fetal"))),
        "model": _text(record.get("Model")),
        "weights": _text(weights.get("Name")),
        "version": _text(record.get("Version")),
        "verdict": _text(gate.get("Verdict")),
        "site": sites.get(_label_key(subject), NOTHING),
    }
    for key in ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength"):
        text[key] = _text(sidecar.get(key))
    text |= {"repeats": "1", "rank": "1", "best": "true"}
    quality = {key: value for key, value in record["Quality"].items() if key != MRIQC}
    measures = dict(_leaves("quality", quality))
    measures.update(_leaves("mask", record.get("Mask")))
    undone = motion_undone_mm(record)
    if undone is not None:
        measures["motion_undone_mm"] = undone
    for rule in rules:
        value = _finite(rule.get("Value"))
        if value is not None:
            measures["gate_" + "_".join(_text(rule.get("Rule")).lower().split())] = value
    return Row(
        str(source),
        {column: text[column] for column in COLUMNS},
        months,
        measures,
        _reasons(rules),
        _page_of(folder, subject, session),
        {
            when: {name: x for name, value in part.items() if (x := _finite(value)) is not None}
            for when, part in table_of(record["Quality"], MRIQC).items()
            if isinstance(part, dict)
        },
    )


def _reasons(rules: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Reasons of the rules that failed, then of those that warn."""
    return tuple(
        _text(rule.get("Reason"))
        for verdict in ("fail", "warn")
        for rule in rules
        if rule.get("Verdict") == verdict
    )


def _page_of(folder: Path, subject: str, session: str | None) -> str:
    """The subject's page, as a link; empty where there is none."""
    for name in (page_name(subject, session), page_name(subject, None)):
        if (folder / name).is_file():
            return quote(name)
    return ""


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in nested tables and lists, with their way as name; true and false are none.

    >>> list(_leaves("q", {"a": 1, "b": {"c": 2.5, "d": None}, "e": [3], "f": True, "g": "x"}))
    [('q_a', 1.0), ('q_b_c', 2.5), ('q_e_1', 3.0)]
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f"{prefix}_{'_'.join(str(key).split())}", part)
    elif isinstance(value, list):
        for index, part in enumerate(value, 1):
            yield from _leaves(f"{prefix}_{index}", part)
    elif (number := _finite(value)) is not None:
        yield prefix, number


def _finite(value: Any) -> float | None:
    """A number as float; None for what is no number, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    """A value for a cell: one line, no tabs; ``n/a`` for nothing.

    >>> _text(3.0), _text(" GE\\tMR\\n"), _text(None), _text("")
    ('3', 'GE MR', 'n/a', 'n/a')
    """
    number = _finite(value)
    if number is not None:
        return f"{number:g}"
    if isinstance(value, dict | list):
        value = json.dumps(value)
    text = " ".join(str(value).split()) if value is not None else ""
    return NOTHING if is_missing(text) else text


def read_sites(bids_dir: Path) -> dict[str, str]:
    """Site of each participant, by the label's key, from the columns of participants.tsv.

    The first of the columns ``site``, ``site_id`` and ``scanner`` that is not empty counts.
    """
    sites: dict[str, str] = {}
    for row in read_table(bids_dir / "participants.tsv"):
        label = next((row[column] for column in SUBJECT_COLUMNS if row.get(column)), "")
        written = (_text(row.get(column)) for column in SITE_COLUMNS)
        site = next((name for name in written if name != NOTHING), None)
        if label and site:
            sites.setdefault(_label_key(label), site)
    return sites


def _label_key(label: str) -> str:
    """The same for ``sub-0001``, ``0001`` and, from a spreadsheet that drops zeros, ``1``."""
    bare = label.strip().removeprefix("sub-").removesuffix(".0")
    return str(int(bare)) if bare.isascii() and bare.isdigit() else bare


def age_group_label(months: float | None, fetal: bool) -> str:
    """Name of an age group; an upper limit belongs to the next group.

    >>> age_group_label(1.99, False), age_group_label(2, False), age_group_label(7, True)
    ('0 to 2 months', '2 to 5 months', 'before birth')
    """
    if fetal:
        return FETUS
    if months is None or months < 0:
        return NOTHING
    return next(name for start, name in reversed(AGE_GROUPS) if months >= start)


def measure_names(rows: Iterable[Row]) -> list[str]:
    """All measures of the rows, in order of first appearance: quality, mask, motion, gate."""
    names = dict.fromkeys(name for row in rows for name in row.measures)
    return sorted(names, key=lambda name: KINDS.index(name.split("_")[0]))


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Rows by label, in order of first appearance; upper and lower case are one label."""
    groups: dict[str, list[Row]] = {}
    spelling: dict[str, str] = {}
    for row in rows:
        label = key(row)
        groups.setdefault(spelling.setdefault(label.casefold(), label), []).append(row)
    return groups


def _no_formula(cell: str) -> str:
    """A cell that a spreadsheet shows instead of computing it: what a dataset says is only text.

    >>> _no_formula("=HYPERLINK('x')"), _no_formula("GE"), _no_formula("-5"), _no_formula("+a")
    ("'=HYPERLINK('x')", 'GE', '-5', "'+a")
    """
    if not cell.startswith(("=", "@", "+", "-")) or _finite_text(cell):
        return cell
    return f"'{cell}"


def _finite_text(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def group_table(rows: Sequence[Row]) -> str:
    """The rows as TSV text, ``n/a`` where a measure is missing."""
    measures = measure_names(rows)
    lines = ["\t".join((*COLUMNS, *measures))]
    for row in rows:
        numbers = [f"{row.measures[m]:.9g}" if m in row.measures else NOTHING for m in measures]
        lines.append("\t".join((*map(_no_formula, row.text.values()), *numbers)))
    return "\n".join(lines) + "\n"


def mriqc_table(rows: Sequence[Row], when: str) -> str:
    """MRIQC's measures before or after, as MRIQC's own group table is; empty without any."""
    found = {row.name: row.mriqc.get(when, {}) for row in rows}
    names = sorted({name for values in found.values() for name in values})
    if not names:
        return ""
    lines = ["\t".join(("bids_name", *names))]
    for image, values in found.items():
        cells = [f"{values[name]:.9g}" if name in values else NOTHING for name in names]
        lines.append("\t".join((image, *cells)))
    return "\n".join(lines) + "\n"
