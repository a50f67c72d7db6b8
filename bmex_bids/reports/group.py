# SPDX-License-Identifier: Apache-2.0
"""The level *group*: one table and one page on all images of a contrast.

Only sidecars are read, no image, so a thousand of them take seconds.  What can be seen on the
page is in the table beside it, but for the outliers, which follow from it by the rule of
:func:`group_outliers`.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bmex_bids import __version__
from bmex_bids.exceptions import NoInputError
from bmex_bids.inputs.age import (
    DAYS_PER_MONTH,
    DAYS_PER_YEAR,
    MISSING,
    SUBJECT_COLUMNS,
    read_table,
)
from bmex_bids.outputs.files import write_together
from bmex_bids.reports import boxplots
from bmex_bids.reports.individual import page_name

LOGGER = logging.getLogger(__name__)

NOTHING = "n/a"
#: kinds of sidecar, from the one preferred: native grid, finer grid alone, --qc-only
KINDS = ("enhanced", "res-enhanced", "quality")
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
)
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
#: so many values are needed to say that one of them is far from the others
FEWEST_FOR_OUTLIERS = 5
#: so many images of one age group are compared with one another, else with all images
FEWEST_OF_AGE = 10
#: how far beyond the quartiles, in interquartile ranges
REACH = 1.5
VERDICTS = ("fail", "warn", "pass", NOTHING)
#: measure → heading and unit
HEADINGS: Mapping[str, str] = {
    "quality_tct_before": "Tissue contrast (TCT) before",
    "quality_tct_after": "Tissue contrast (TCT) after",
    "quality_qi": "Quality index (TCT before / after)",
    "mask_volume_litres": "Brain mask: volume, litres",
    "mask_components": "Brain mask: pieces",
    "mask_border_contact": "Brain mask: share of its surface at the image's border",
}


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
    """

    name: str
    text: Mapping[str, str]
    age_months: float | None
    measures: Mapping[str, float]
    reasons: tuple[str, ...] = ()
    page: str = ""


@dataclass(frozen=True)
class Outlier:
    """A value far from the others.

    Attributes
    ----------
    image : its name
    value : of the measure
    low, high : what is not far
    distance : interquartile ranges between the value and the nearer quartile, negative below;
        infinite where the range is zero
    """

    image: str
    value: float
    low: float
    high: float
    distance: float


@dataclass(frozen=True)
class _Finding:
    """An outlier, in which measure, and compared with whom."""

    measure: str
    outlier: Outlier
    peers: str


def write_group(
    output_dir: Path, bids_dir: Path, suffixes: Sequence[str] = ("T1w", "T2w")
) -> list[Path]:
    """Write ``group_<suffix>.tsv`` and ``group_<suffix>.html`` for each contrast with images.

    Parameters
    ----------
    output_dir : with the sidecars, ``sub-*/**/*_desc-enhanced_<suffix>.json``
    bids_dir : the raw dataset; its participants.tsv may name the sites
    suffixes : contrasts

    Returns
    -------
    What was written.  All of it appears together, or nothing.

    Raises
    ------
    NoInputError
        There is no readable sidecar of any of the contrasts.
    OutputError
        The file system refuses.
    """
    output_dir, bids_dir = Path(output_dir), Path(bids_dir)
    sites = read_sites(bids_dir)
    found = {suffix: read_rows(output_dir, suffix, sites) for suffix in suffixes}
    for _, skipped in found.values():
        for path, reason in skipped.items():
            LOGGER.warning("%s is left out of the group level: %s", path, reason)
    present = [suffix for suffix, (rows, _) in found.items() if rows]
    if not present:
        spoilt = sum(len(skipped) for _, skipped in found.values())
        what = f"{spoilt} that cannot be used (named in the log)" if spoilt else "none"
        raise NoInputError(
            f"expected sidecars sub-*/**/*_desc-enhanced_<{'|'.join(suffixes)}>.json in "
            f"{output_dir}, got {what}; run 'bmex {bids_dir} {output_dir} participant' first"
        )
    fills: dict[Path, Callable[[Path], object]] = {}
    for suffix in present:
        rows, skipped = found[suffix]
        table, page = group_table(rows), group_page(rows, skipped, suffix, present)
        for name, text in ((f"group_{suffix}.tsv", table), (f"group_{suffix}.html", page)):
            fills[output_dir / name] = partial(_write, text)
    write_together(fills)
    return list(fills)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------ reading


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
    best: dict[str, tuple[int, Path]] = {}
    for path in sorted(output_dir.glob(f"sub-*/**/sub-*_{suffix}.json")):
        kind = _kind(path.name)
        name = _image_name(path.name)
        if kind is not None and (name not in best or kind < best[name][0]):
            best[name] = (kind, path)
    rows, skipped = [], {}
    for name, (_, path) in sorted(best.items()):
        content = _load(path)
        if isinstance(content, str):
            skipped[path.relative_to(output_dir).as_posix()] = content
        else:
            rows.append(_row(name, content, sites, output_dir))
    return rows, skipped


def _kind(file_name: str) -> int | None:
    """Which of :data:`KINDS` a sidecar is; None for none of them."""
    parts = file_name.split("_")
    fine = any(part.startswith("res-") for part in parts)
    if "desc-enhanced" in parts:
        return KINDS.index("res-enhanced" if fine else "enhanced")
    return KINDS.index("quality") if "desc-quality" in parts and not fine else None


def _image_name(file_name: str) -> str:
    """Name of the source image.

    >>> _image_name("sub-1_ses-2_res-0p8_desc-enhanced_T1w.json")
    'sub-1_ses-2_T1w'
    """
    parts = file_name.split(".")[0].split("_")
    return "_".join(part for part in parts if not part.startswith(("res-", "desc-", "space-")))


def _load(path: Path) -> dict[str, Any] | str:
    """A sidecar, or why it cannot be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError) as error:
        return f"is not complete JSON ({error})"
    if not isinstance(content, dict) or not isinstance(content.get("BMEX"), dict):
        return "lacks the key BMEX, so it is not of bmex_bids or not complete"
    if not isinstance(content["BMEX"].get("Quality"), dict):
        return "lacks the quality measures (key Quality under BMEX)"
    return content


def _row(name: str, sidecar: Mapping[str, Any], sites: Mapping[str, str], folder: Path) -> Row:
    bmex = sidecar["BMEX"]
    entities = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
    subject, session = entities["sub"], entities.get("ses")
    age = bmex.get("Age") if isinstance(bmex.get("Age"), dict) else {}
    months = _finite(age.get("months"))
    weights = bmex.get("Weights") if isinstance(bmex.get("Weights"), dict) else {}
    gate = bmex.get("Gate") if isinstance(bmex.get("Gate"), dict) else {}
    rules = [rule for rule in _list(gate.get("Rules")) if isinstance(rule, dict)]
    text = {
        "image": name,
        "participant_id": f"sub-{subject}",
        "session_id": f"ses-{session}" if session else NOTHING,
        "age_months": NOTHING if months is None else f"{months:.6g}",
        "age_group": age_group_label(months, bool(age.get("fetal"))),
        "model": _text(bmex.get("Model")),
        "weights": _text(weights.get("Name")),
        "version": _text(bmex.get("Version")),
        "verdict": _text(gate.get("Verdict")),
        "site": sites.get(_label_key(subject), NOTHING),
    }
    for key in ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength"):
        text[key] = _text(sidecar.get(key))
    measures = dict(_leaves("quality", bmex["Quality"]))
    measures.update(_leaves("mask", bmex.get("Mask")))
    for rule in rules:
        value = _finite(rule.get("Value"))
        if value is not None:
            measures["gate_" + "_".join(_text(rule.get("Rule")).lower().split())] = value
    return Row(
        name,
        {column: text[column] for column in COLUMNS},
        months,
        measures,
        _reasons(rules),
        _page_of(folder, subject, session),
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
    return NOTHING if text.lower() in MISSING else text


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


# ------------------------------------------------------------------------------------- table


def measure_names(rows: Iterable[Row]) -> list[str]:
    """All measures of the rows, in order of first appearance: quality, mask, gate."""
    names = dict.fromkeys(name for row in rows for name in row.measures)
    return sorted(names, key=lambda name: ("quality", "mask", "gate").index(name.split("_")[0]))


def group_table(rows: Sequence[Row]) -> str:
    """The rows as TSV text, ``n/a`` where a measure is missing."""
    measures = measure_names(rows)
    lines = ["\t".join((*COLUMNS, *measures))]
    for row in rows:
        numbers = [f"{row.measures[m]:.9g}" if m in row.measures else NOTHING for m in measures]
        lines.append("\t".join((*row.text.values(), *numbers)))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------- outliers


def group_outliers(
    values: Mapping[str, float], peers: Sequence[float] | None = None
) -> list[Outlier]:
    """Values beyond a quartile by more than 1.5 times the interquartile range (Tukey).

    Quartiles are interpolated linearly.  Fewer than five values have no outliers.  Where the
    range is zero, because most values are equal, every other value is one.

    Parameters
    ----------
    values : image → value, finite
    peers : what the values are held against; None is the values themselves

    Returns
    -------
    The outliers, the farthest first.

    >>> group_outliers({"a": 1, "b": 2, "c": 3, "d": 4, "e": 10})
    [Outlier(image='e', value=10, low=-1.0, high=7.0, distance=3.0)]
    """
    against = list(values.values()) if peers is None else list(peers)
    if len(against) < FEWEST_FOR_OUTLIERS:
        return []
    first, _, third = boxplots.quartiles(against)
    spread = third - first
    # what only rounding tells apart is equal
    noise = 1e-9 * max(abs(first), abs(third))
    if spread <= noise:
        spread = 0.0
    low, high = first - REACH * spread, third + REACH * spread
    found = []
    for image, value in values.items():
        beyond = min(value - first, 0.0) + max(value - third, 0.0)
        if value < low - noise or value > high + noise:
            distance = beyond / spread if spread else math.copysign(math.inf, beyond)
            found.append(Outlier(image, value, low, high, distance))
    return sorted(found, key=lambda outlier: (-abs(outlier.distance), outlier.image))


def _findings(rows: Sequence[Row], measures: Sequence[str]) -> list[_Finding]:
    """Outliers of every measure: within the age group where it is large, else within all."""
    found = []
    for measure in measures:
        known = [row for row in rows if measure in row.measures]
        everybody = [row.measures[measure] for row in known]
        for label, members in _grouped(known, lambda row: row.text["age_group"]).items():
            values = {row.name: row.measures[measure] for row in members}
            own = len(values) >= FEWEST_OF_AGE and label != NOTHING
            peers = f"{len(values)} images, {label}" if own else f"all {len(everybody)} images"
            for outlier in group_outliers(values, None if own else everybody):
                found.append(_Finding(measure, outlier, peers))
    return sorted(found, key=lambda f: (-abs(f.outlier.distance), f.outlier.image, f.measure))


def _grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Rows by label, in order of first appearance; upper and lower case are one label."""
    groups: dict[str, list[Row]] = {}
    spelling: dict[str, str] = {}
    for row in rows:
        label = key(row)
        groups.setdefault(spelling.setdefault(label.casefold(), label), []).append(row)
    return groups


# -------------------------------------------------------------------------------------- page


def _scanner(row: Row) -> str:
    """Maker, model and field strength as one label."""
    maker, model, field_strength = (
        row.text[key]
        for key in ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength")
    )
    parts = [part for part in (maker, model) if part != NOTHING]
    if field_strength != NOTHING:
        parts.append(f"{field_strength} T")
    return " ".join(parts) or "unknown"


def _site(row: Row) -> str:
    return "unknown" if row.text["site"] == NOTHING else row.text["site"]


def _age(row: Row) -> str:
    return "unknown" if row.text["age_group"] == NOTHING else row.text["age_group"]


#: key → (name, label of a row, why there may be none)
GROUPINGS: Mapping[str, tuple[str, Callable[[Row], str], str]] = {
    "scanner": (
        "scanner",
        _scanner,
        "No sidecar of the dataset names a scanner (Manufacturer, ManufacturersModelName, "
        "MagneticFieldStrength).",
    ),
    "site": (
        "site",
        _site,
        "participants.tsv has no column site, site_id or scanner with a value for these images.",
    ),
    "age": ("age", _age, "No sidecar holds an age."),
}

STYLE = """
body{font-family:system-ui,sans-serif;margin:0 auto;max-width:1250px;padding:1rem;color:#222;
background:#fff}
h1{font-size:1.5rem}h2{font-size:1.2rem;border-bottom:2px solid #0072b2;margin-top:2rem}
nav a{margin-right:1rem}a{color:#005a8c}p.hint{color:#555;margin:.2rem 0 .5rem;max-width:75ch}
p.warning{background:#fff3cd;border-left:4px solid #e69f00;padding:.4rem .7rem}
.choice{position:absolute;opacity:0}
.choice+label{display:inline-block;padding:.35rem .9rem;border:1px solid #0072b2;cursor:pointer;
margin:.3rem .4rem .8rem 0;border-radius:4px}
.choice:checked+label{background:#0072b2;color:#fff}
.choice:focus-visible+label{outline:3px solid #000}
.plots{display:none}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr));gap:1rem}
figure{margin:0;border:1px solid #ddd;border-radius:4px;padding:.5rem}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:.3rem}
figcaption small{font-weight:400;color:#555}
.scroll{overflow:auto;max-height:32rem;border:1px solid #ddd}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.25rem .7rem;border-bottom:1px solid #e5e5e5;vertical-align:top}
th{position:sticky;top:0;background:#f2f6f9}td.n{text-align:right;font-variant-numeric:tabular-nums}
.verdict{font-weight:600;white-space:nowrap;padding:.05rem .5rem;border-radius:3px}
.verdict.fail{background:#a32a00;color:#fff}.verdict.warn{background:#ffd97a;color:#222}
.verdict.pass{background:#d5ebf7;color:#003a5c}
footer{color:#666;margin-top:2rem;font-size:.85rem}
"""


def group_page(
    rows: Sequence[Row], skipped: Mapping[str, str], suffix: str, suffixes: Sequence[str]
) -> str:
    """The page: box plots, outliers, verdicts; HTML that needs no other file and no script.

    Parameters
    ----------
    rows : at least one
    skipped : sidecar → why it is left out
    suffix : contrast of the rows
    suffixes : contrasts with a page
    """
    measures = measure_names(rows)
    findings = _findings(rows, measures)
    title = f"{suffix} images of the group"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_count(len(rows), 'image')} of "
        f"{_count(len({row.text['participant_id'] for row in rows}), 'participant')}; "
        f"the figures are in <a href='group_{suffix}.tsv'>group_{suffix}.tsv</a>.</p>",
        "<nav><a href='#measures'>Measures</a><a href='#outliers'>Outliers</a>"
        "<a href='#images'>Images and verdicts</a>",
        *(
            f"<a href='group_{other}.html'>{other} images</a>"
            for other in suffixes
            if other != suffix
        ),
        "</nav>",
        *_notes(rows, skipped),
        *_plots(rows, measures, findings),
        *_outlier_list(rows, findings),
        *_images(rows, findings),
        f"<footer>bmex_bids {__version__}. The enhanced images are estimates: do not diagnose "
        "from them.</footer>",
    ]
    rules = "".join(f"#by-{key}:checked~.by-{key}{{display:block}}" for key in GROUPINGS)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        # else a browser asks the server for one
        "<link rel='icon' href='data:,'>"
        f"<title>{escape(title)}</title>\n<style>{STYLE}{boxplots.CSS}{rules}</style></head>"
        "<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _count(number: int, noun: str) -> str:
    """
    >>> _count(1, "image"), _count(2, "image")
    ('1 image', '2 images')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def heading(measure: str) -> str:
    """Name of a measure for people; an unknown one is spelt out.

    >>> heading("quality_qi"), heading("gate_mask_volume")
    ('Quality index (TCT before / after)', 'Quality gate: mask volume')
    """
    if measure in HEADINGS:
        return HEADINGS[measure]
    kind, _, rest = measure.partition("_")
    name = {"quality": "Quality", "mask": "Brain mask", "gate": "Quality gate"}[kind]
    return f"{name}: {rest.replace('_', ' ')}"


def _notes(rows: Sequence[Row], skipped: Mapping[str, str]) -> Iterator[str]:
    """What a reader should know before comparing."""
    for path, reason in skipped.items():
        yield f"<p class='warning'>Left out: <code>{escape(path)}</code> {escape(reason)}.</p>"
    for column, what in (("version", "versions of bmex_bids"), ("weights", "weights")):
        used = Counter(row.text[column] for row in rows)
        if len(used) > 1:
            listed = ", ".join(f"{name} ({count})" for name, count in used.most_common())
            yield (
                f"<p class='warning'>Images were made with different {what}: {escape(listed)}. "
                "Differences between them may come from that.</p>"
            )


def _plots(
    rows: Sequence[Row], measures: Sequence[str], findings: Sequence[_Finding]
) -> Iterator[str]:
    odd = {(finding.measure, finding.outlier.image) for finding in findings}
    groups = {
        key: _in_order(key, _grouped(rows, label)) for key, (_, label, _) in GROUPINGS.items()
    }
    # what is worth a comparison is shown first
    first = next((key for key, labels in groups.items() if len(labels) > 1), "age")
    yield "<section aria-labelledby='measures'><h2 id='measures'>Measures</h2>"
    yield (
        "<p class='hint'>A box goes from quartile to quartile, the line in it is the median; "
        "whiskers reach the farthest point within 1.5 box lengths. Point at a mark to see its "
        "image; click it to open the subject's page. Orange diamonds are in the list of "
        f"outliers below. Groups of fewer than {boxplots.SMALLEST_BOX} images have no box; of "
        f"more than {boxplots.MOST_POINTS}, not every point is drawn.</p>"
    )
    for key, (name, _, _) in GROUPINGS.items():
        checked = " checked" if key == first else ""
        yield (
            f"<input class='choice' type='radio' name='grouping' id='by-{key}'{checked}>"
            f"<label for='by-{key}'>by {name}</label>"
        )
    for key, (name, _, nothing) in GROUPINGS.items():
        yield f"<div class='plots by-{key}'>"
        if list(groups[key]) == ["unknown"]:
            yield f"<p class='hint'>{nothing}</p>"
        yield "<div class='cards'>"
        for measure in measures:
            points = {
                label: [
                    boxplots.Point(
                        row.name, row.measures[measure], (measure, row.name) in odd, row.page
                    )
                    for row in members
                    if measure in row.measures
                ]
                for label, members in groups[key].items()
            }
            yield (
                f"<figure><figcaption>{escape(heading(measure))} <small>{measure}</small>"
                f"</figcaption>{boxplots.box_plot(f'{heading(measure)} by {name}', points)}"
                "</figure>"
            )
        yield "</div></div>"
    yield "</section>"


def _in_order(key: str, groups: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Ages from young to old, other labels by the alphabet; unknown at the end."""
    ages = [FETUS, *(name for _, name in AGE_GROUPS)]

    def place(label: str) -> tuple[bool, int, str]:
        return label == "unknown", ages.index(label) if label in ages else 0, label.casefold()

    return {label: groups[label] for label in sorted(groups, key=place)}


def _outlier_list(rows: Sequence[Row], findings: Sequence[_Finding]) -> Iterator[str]:
    pages = {row.name: row.page for row in rows}
    yield "<section><h2 id='outliers'>Outliers</h2>"
    yield (
        f"<p class='hint'>A value is listed when it lies more than {REACH:g} interquartile ranges "
        f"(IQR) below the first or above the third quartile, of at least {FEWEST_FOR_OUTLIERS} "
        f"images. Images of an age group with at least {FEWEST_OF_AGE} images are compared with "
        "one another, others with all. An outlier is worth a look; it need not be a bad image.</p>"
    )
    if len(rows) < FEWEST_FOR_OUTLIERS:
        yield f"<p>{_count(len(rows), 'image')}: too few to look for outliers.</p>"
    elif not findings:
        yield "<p>None.</p>"
    else:
        yield (
            f"<p>{_count(len(findings), 'value')} of "
            f"{_count(len({f.outlier.image for f in findings}), 'image')}.</p>"
            "<div class='scroll' tabindex='0'><table><thead><tr><th>Image</th><th>Measure</th>"
            "<th>Value</th><th>Usual</th><th>How far</th><th>Compared with</th></tr></thead>"
            "<tbody>"
        )
        for finding in findings:
            outlier = finding.outlier
            yield (
                f"<tr><td>{_linked(outlier.image, pages[outlier.image])}</td>"
                f"<td>{escape(heading(finding.measure))}</td>"
                f"<td class='n'>{boxplots.number(outlier.value)}</td>"
                f"<td>{boxplots.number(outlier.low)} to {boxplots.number(outlier.high)}</td>"
                f"<td>{_how_far(outlier)}</td><td>{escape(finding.peers)}</td></tr>"
            )
        yield "</tbody></table></div>"
    yield "</section>"


def _how_far(outlier: Outlier) -> str:
    side, quartile = ("below", "first") if outlier.distance < 0 else ("above", "third")
    if math.isinf(outlier.distance):
        return f"{side} most others, which are equal"
    return f"{abs(outlier.distance):.1f} IQR {side} the {quartile} quartile"


def _linked(name: str, page: str) -> str:
    return f"<a href='{escape(page)}'>{escape(name)}</a>" if page else escape(name)


def _images(rows: Sequence[Row], findings: Sequence[_Finding]) -> Iterator[str]:
    """Every image with its verdict, the worst first."""
    odd = Counter(finding.outlier.image for finding in findings)

    def verdict(row: Row) -> str:
        return row.text["verdict"] if row.text["verdict"] in VERDICTS else NOTHING

    counts = Counter(verdict(row) for row in rows)
    yield "<section><h2 id='images'>Images and verdicts</h2>"
    yield (
        "<p>Quality gate: "
        + ", ".join(
            f"{_badge(name)} {counts[name]}"
            for name in VERDICTS
            if counts[name] or name != NOTHING
        )
        + ".</p>"
    )
    if counts[NOTHING]:
        yield (
            "<p class='hint'>Images without a verdict were made by a version without the quality "
            "gate; that is not a pass.</p>"
        )
    yield (
        "<div class='scroll' tabindex='0'><table><thead><tr><th>Verdict</th><th>Image</th>"
        "<th>Age</th><th>Model</th><th>Scanner</th><th>Site</th><th>Outlying measures</th>"
        "<th>Why</th></tr></thead><tbody>"
    )
    for row in sorted(rows, key=lambda row: VERDICTS.index(verdict(row))):
        reasons = "<br>".join(escape(reason) for reason in row.reasons)
        yield (
            f"<tr><td>{_badge(verdict(row))}</td><td>{_linked(row.name, row.page)}</td>"
            f"<td>{escape(_age_text(row))}</td><td>{escape(row.text['model'])}</td>"
            f"<td>{escape(_scanner(row))}</td><td>{escape(_site(row))}</td>"
            f"<td class='n'>{odd[row.name] or ''}</td><td>{reasons}</td></tr>"
        )
    yield "</tbody></table></div></section>"


def _badge(verdict: str) -> str:
    text = "none" if verdict == NOTHING else verdict
    return f"<span class='verdict {text}'>{text}</span>"


def _age_text(row: Row) -> str:
    """An age in the unit that people use for it."""
    if row.age_months is None:
        return "unknown"
    if row.text["age_group"] == FETUS:
        return f"{row.age_months * DAYS_PER_MONTH / 7:.1f} weeks of gestation"
    if row.age_months < 24:
        return f"{row.age_months:.1f} months"
    return f"{row.age_months * DAYS_PER_MONTH / DAYS_PER_YEAR:.1f} years"
