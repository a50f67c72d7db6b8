# SPDX-License-Identifier: Apache-2.0
"""The page of the level *group*: box plots, outliers, verdicts; no script, nothing fetched.

``data/templates/group.html.j2`` filled in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bmex_bids import __version__
from bmex_bids.common.scoring import QUANTITIES
from bmex_bids.inputs.units import DAYS_PER_MONTH, DAYS_PER_YEAR
from bmex_bids.outputs.pages import render
from bmex_bids.reports import boxplots
from bmex_bids.reports.group_rows import AGE_GROUPS, FETUS, NOTHING, Row, grouped, measure_names
from bmex_bids.reports.outliers import (
    FEWEST_FOR_OUTLIERS,
    FEWEST_OF_AGE,
    REACH,
    Outlier,
    find_outliers,
)
from bmex_bids.reports.repeats import FILTERS, deciding

VERDICTS = ("fail", "warn", "pass", NOTHING)
#: measure → heading and unit
HEADINGS: Mapping[str, str] = {
    **{
        f"quality_Score_{when}_{name}": f"{what}, {when}"
        for name, (_, _, what) in QUANTITIES.items()
        for when in ("before", "after")
    },
    "quality_tct_before": "Contrast of grey to white matter (TCT) before; no measure of quality",
    "quality_tct_after": "Contrast of grey to white matter (TCT) after; no measure of quality",
    "quality_fluid_contrast": "Contrast of fluid to tissue (T1w: below 0, T2w: above)",
    "quality_estimated_error_before": "Estimated error before (share of the brain's mean)",
    "quality_estimated_error_after": "Estimated error after (share of the brain's mean)",
    "quality_training_distance": "Distance from the images that trained (usual: 1)",
    "motion_undone_mm": "Motion that was undone (mm, root mean square)",
    "quality_qi": "Quality index (TCT before / after)",
    "quality_correlation": "Correlation of before and after",
    "quality_mean_shift": "Relative change of the mean intensity",
    "quality_empty_share": "Share of the mask without signal",
    "quality_enhanced_tissue_change": "Largest change of a tissue in the enhanced image",
    "quality_csf_litres_before": "Cerebrospinal fluid before, litres",
    "quality_gm_litres_before": "Grey matter before, litres",
    "quality_wm_litres_before": "White matter before, litres",
    "quality_csf_litres_after": "Cerebrospinal fluid after, litres",
    "quality_gm_litres_after": "Grey matter after, litres",
    "quality_wm_litres_after": "White matter after, litres",
    "quality_csf_litres_sd": "Cerebrospinal fluid, standard deviation, litres",
    "quality_gm_litres_sd": "Grey matter, standard deviation, litres",
    "quality_wm_litres_sd": "White matter, standard deviation, litres",
    "cjv": "Coefficient of joint variation (cjv) after",
    "mask_volume_litres": "Brain mask: volume, litres",
    "mask_components": "Brain mask: components",
    "mask_turn_margin": "Orientation: how much better a rotated brain fits",
    "mask_border_contact": "Brain mask: share of its surface at the image's border",
}

#: of the quality gate: measure of a rule → the measure that it judged
JUDGED: Mapping[str, str] = {
    "gate_mask_volume": "mask_volume_litres",
    "gate_mask_components": "mask_components",
    "gate_mask_at_border": "mask_border_contact",
    "gate_empty_share_of_mask": "quality_empty_share",
    "gate_orientation": "mask_turn_margin",
    "gate_contrast": "quality_fluid_contrast",
    "gate_correlation_with_input": "quality_correlation",
    "gate_mean_intensity_shift": "quality_mean_shift",
    "gate_tissue_contrast_before": "quality_tct_before",
    "gate_tissue_contrast_after": "quality_tct_after",
    "gate_quality_index": "quality_qi",
    "gate_motion_before": "quality_Score_before_motion",
    "gate_motion_after": "quality_Score_after_motion",
    "gate_estimated_error": "quality_estimated_error_after",
    "gate_unlike_training": "quality_training_distance",
    "gate_tissues_of_the_enhanced_image": "quality_enhanced_tissue_change",
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


@dataclass(frozen=True)
class Grouping:
    """One way to group the images.

    Attributes
    ----------
    name : for people
    nothing : why all images may be in one unknown group
    groups : label → rows, in the order of the plots
    """

    key: str
    name: str
    nothing: str
    groups: Mapping[str, Sequence[Row]]

    @property
    def is_empty(self) -> bool:
        """Whether no image has a label."""
        return list(self.groups) == ["unknown"]


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
    measures = [
        name
        for name in measure_names(rows)
        if not (is_repeated(name, rows) or name.endswith(("_low", "_high")))  # of an interval
    ]
    findings = find_outliers(rows, measures)
    odd = {(finding.measure, finding.outlier.image) for finding in findings}
    groupings = [
        Grouping(key, name, nothing, _in_order(grouped(rows, label)))
        for key, (name, label, nothing) in GROUPINGS.items()
    ]

    def plot(measure: str, grouping: Grouping) -> str:
        return boxplots.box_plot(
            f"{heading(measure)} by {grouping.name}",
            {
                label: [
                    boxplots.Point(
                        row.name, row.measures[measure], (measure, row.name) in odd, row.page
                    )
                    for row in members
                    if measure in row.measures
                ]
                for label, members in grouping.groups.items()
            },
        )

    verdicts = Counter(_verdict(row) for row in rows)
    repeats = [row for row in rows if row.text["repeats"] != "1"]
    return render(
        "group.html.j2",
        suffix=suffix,
        others=[other for other in suffixes if other != suffix],
        participants=len({row.text["participant_id"] for row in rows}),
        rows=sorted(rows, key=lambda row: VERDICTS.index(_verdict(row))),
        skipped=skipped,
        mixtures=list(_mixtures(rows)),
        groupings=groupings,
        # what is worth a comparison is shown first
        first=next((g.key for g in groupings if len(g.groups) > 1), "age"),
        measures=measures,
        heading=heading,
        plot=plot,
        boxplots=boxplots,
        findings=findings,
        repeats=sorted(repeats, key=lambda row: (_session_of(row), int(row.text["rank"]))),
        decided={row.name: heading(deciding(rows, row)) for row in repeats},
        filters=FILTERS,
        mriqc=any(row.mriqc for row in rows),
        outlying=Counter(finding.outlier.image for finding in findings),
        pages={row.name: row.page for row in rows},
        limits={"fewest": FEWEST_FOR_OUTLIERS, "of_age": FEWEST_OF_AGE, "reach": f"{REACH:g}"},
        how_far=_how_far,
        verdicts={name: verdicts[name] for name in VERDICTS if verdicts[name] or name != NOTHING},
        nothing=NOTHING,
        verdict_of=_verdict,
        age_of=_age_text,
        scanner_of=_scanner,
        site_of=_site,
        version=__version__,
    )


def is_repeated(measure: str, rows: Sequence[Row]) -> bool:
    """Whether a measure of the quality gate is drawn already, as the measure that it judged."""
    judged = JUDGED.get(measure, "")
    pairs = [
        (row.measures[measure], row.measures[judged])
        for row in rows
        if measure in row.measures and judged in row.measures
    ]
    return bool(pairs) and all(math.isclose(*pair, rel_tol=1e-6) for pair in pairs)


def heading(measure: str) -> str:
    """Name of a measure for people; an unknown one is spelt out.

    >>> heading("quality_qi"), heading("gate_mask_volume")
    ('Quality index (TCT before / after)', 'Quality gate: mask volume')
    """
    if measure in HEADINGS:
        return HEADINGS[measure]
    if not measure:
        return "the quality gate and the name"
    kind, _, rest = measure.partition("_")
    name = {"quality": "Quality", "mask": "Brain mask", "gate": "Quality gate"}[kind]
    return f"{name}: {rest.replace('_', ' ')}"


def _session_of(row: Row) -> tuple[str, str]:
    return row.text["participant_id"], row.text["session_id"]


def _mixtures(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """What the images do not have in common, and how often each occurs."""
    for column, what in (("version", "versions of bmex_bids"), ("weights", "weights")):
        used = Counter(row.text[column] for row in rows)
        if len(used) > 1:
            yield what, ", ".join(f"{name} ({count})" for name, count in used.most_common())


def _in_order(groups: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Ages from young to old, other labels by the alphabet; unknown at the end."""
    ages = [FETUS, *(name for _, name in AGE_GROUPS)]

    def place(label: str) -> tuple[bool, int, str]:
        return label == "unknown", ages.index(label) if label in ages else 0, label.casefold()

    return {label: groups[label] for label in sorted(groups, key=place)}


def _how_far(outlier: Outlier) -> str:
    side, quartile = ("below", "first") if outlier.distance < 0 else ("above", "third")
    if math.isinf(outlier.distance):
        return f"{side} most others, which are equal"
    return f"{abs(outlier.distance):.1f} IQR {side} the {quartile} quartile"


def _verdict(row: Row) -> str:
    """Of the quality gate; an unknown word is none."""
    return row.text["verdict"] if row.text["verdict"] in VERDICTS else NOTHING


def _age_text(row: Row) -> str:
    """An age in the unit that people use for it."""
    if row.age_months is None:
        return "unknown"
    if row.text["age_group"] == FETUS:
        return f"{row.age_months * DAYS_PER_MONTH / 7:.1f} weeks of gestation"
    if row.age_months < 24:
        return f"{row.age_months:.1f} months"
    return f"{row.age_months * DAYS_PER_MONTH / DAYS_PER_YEAR:.1f} years"
