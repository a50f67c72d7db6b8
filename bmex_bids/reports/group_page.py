# SPDX-License-Identifier: Apache-2.0
"""The page of the level *group*: box plots, outliers, verdicts; no script, nothing fetched."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

from bmex_bids import __version__
from bmex_bids.inputs.age import DAYS_PER_MONTH, DAYS_PER_YEAR
from bmex_bids.reports import boxplots
from bmex_bids.reports.group_rows import AGE_GROUPS, FETUS, NOTHING, Row, grouped, measure_names
from bmex_bids.reports.outliers import (
    FEWEST_FOR_OUTLIERS,
    FEWEST_OF_AGE,
    REACH,
    Finding,
    Outlier,
    find_outliers,
)

VERDICTS = ("fail", "warn", "pass", NOTHING)
#: measure → heading and unit
HEADINGS: Mapping[str, str] = {
    "quality_tct_before": "Tissue contrast (TCT) before",
    "quality_tct_after": "Tissue contrast (TCT) after",
    "quality_qi": "Quality index (TCT before / after)",
    "quality_correlation": "Correlation of before and after",
    "quality_mean_shift": "Change of the mean intensity (share of it)",
    "quality_empty_share": "Share of the mask without signal",
    "quality_csf_litres_before": "Cerebrospinal fluid before, litres",
    "quality_gm_litres_before": "Grey matter before, litres",
    "quality_wm_litres_before": "White matter before, litres",
    "quality_csf_litres_after": "Cerebrospinal fluid after, litres",
    "quality_gm_litres_after": "Grey matter after, litres",
    "quality_wm_litres_after": "White matter after, litres",
    "mask_volume_litres": "Brain mask: volume, litres",
    "mask_components": "Brain mask: pieces",
    "mask_border_contact": "Brain mask: share of its surface at the image's border",
}


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
.name{white-space:nowrap}
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
    measures = _distinct(rows, measure_names(rows))
    findings = find_outliers(rows, measures)
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


def _distinct(rows: Sequence[Row], measures: Sequence[str]) -> list[str]:
    """Measures without those of the gate that repeat another one, image by image."""
    kept: list[str] = []
    columns: list[dict[str, float]] = []
    for measure in measures:
        column = {row.name: row.measures[measure] for row in rows if measure in row.measures}
        # equal constants need not be the same thing
        varies = len(set(column.values())) > 1
        if not (measure.startswith("gate_") and varies and column in columns):
            kept.append(measure)
            columns.append(column)
    return kept


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
    rows: Sequence[Row], measures: Sequence[str], findings: Sequence[Finding]
) -> Iterator[str]:
    odd = {(finding.measure, finding.outlier.image) for finding in findings}
    groups = {
        key: _in_order(key, grouped(rows, label)) for key, (_, label, _) in GROUPINGS.items()
    }
    # what is worth a comparison is shown first
    first = next((key for key, labels in groups.items() if len(labels) > 1), "age")
    yield "<section aria-labelledby='measures'><h2 id='measures'>Measures</h2>"
    yield (
        "<p class='hint'>A box goes from quartile to quartile, the line in it is the median; "
        "whiskers reach the farthest point within 1.5 box lengths. Point at a mark to see its "
        "image; click it to open the subject's page. Orange diamonds are in the list of "
        f"outliers below. Groups of fewer than {boxplots.SMALLEST_BOX} images have no box; of "
        f"more than {boxplots.MOST_POINTS}, not every point is drawn. What the quality gate judged is "
        "drawn apart only where it is not among the other measures.</p>"
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
                f"<figure><figcaption>{escape(heading(measure))} <small>{escape(measure)}</small>"
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


def _outlier_list(rows: Sequence[Row], findings: Sequence[Finding]) -> Iterator[str]:
    pages = {row.name: row.page for row in rows}
    yield "<section><h2 id='outliers'>Outliers</h2>"
    yield (
        f"<p class='hint'>A value is listed when it lies more than {REACH:g} interquartile ranges "
        f"(IQR) below the first or above the third quartile, of at least {FEWEST_FOR_OUTLIERS} "
        f"images. Images of an age group with at least {FEWEST_OF_AGE} images are compared with "
        "one another, others with all, so that an unusual age can show as well. An outlier is "
        "worth a look; it need not be a bad image.</p>"
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
    text = f"<span class='name'>{escape(name)}</span>"
    return f"<a href='{escape(page)}'>{text}</a>" if page else text


def _images(rows: Sequence[Row], findings: Sequence[Finding]) -> Iterator[str]:
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
            f"<td>{odd[row.name] or ''}</td><td>{reasons}</td></tr>"
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
