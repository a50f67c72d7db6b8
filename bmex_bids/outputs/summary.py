# SPDX-License-Identifier: Apache-2.0
"""The summary of one image: its record as an HTML fragment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bmex_bids.common.scoring import in_figures, in_intervals, in_words
from bmex_bids.common.tissues import TISSUES
from bmex_bids.outputs.pages import render
from bmex_bids.outputs.records import (
    SUPER,
    TISSUE_MAPS,
    MaskMethod,
    motion_in_words,
    slices_in_words,
    table_of,
)

#: heading of a figure, quantity of the score, note
SCORED = (
    ("Motion", "motion", "0 none, 1 minor, 2 moderate, 3 severe"),
    ("Noise", "noise_percent", "of the range"),
    ("Resolution", "resolution_mm", "of the coarsest axis"),
)


def summary_html(record: Mapping[str, Any], *, contrast: str = "") -> str:
    """The summary of one image.

    Parameters
    ----------
    record : see :mod:`bmex_bids.outputs.records`; what is not in it is left out
    contrast : suffix of the image

    Returns
    -------
    figures at a glance and in words, the verdict of the quality gate, warnings, a table; all text
    escaped
    """
    age, weights, mask, quality, gate, container = (
        table_of(record, key) for key in ("Age", "Weights", "Mask", "Quality", "Gate", "Container")
    )
    before, after = (_figure(quality.get(f"tct_{when}")) for when in ("before", "after"))
    scored = table_of(quality, "Score")
    errors = [quality.get(f"estimated_error_{when}") for when in ("before", "after")]
    figures = [
        ("Age", *_age_of(age)),
        *(
            [("Estimated error", " → ".join(f"{e:.1%}" for e in errors), "of the brain's mean")]
            if all(error is not None for error in errors)
            else []
        ),
        *(
            (label, in_figures(name, scored["before"], scored.get("after")), note)
            for label, name, note in SCORED
            if scored.get("before")
        ),
        ("Brain", _with_unit(mask.get("volume_litres"), "L"), "volume of the mask"),
    ]
    pieces = mask.get("components")
    rows = {
        "Age from": _joined(age.get("source"), _labelled("column", age.get("column"))),
        "Model": _joined(record.get("Model"), contrast),
        "Weights": _joined(weights.get("Name"), _labelled("licence", weights.get("License"))),
        "Weights made by": weights.get("Source"),
        "Weights' SHA-256": weights.get("SHA256"),
        "Computed on": _joined(record.get("Device"), record.get("Precision")),
        "Network time": _with_unit(record.get("NetworkSeconds"), "s", digits=0),
        "Super-resolution": _halving(table_of(record, SUPER)),
        "Tissues found by": table_of(table_of(record, TISSUE_MAPS), "Weights").get("Name"),
        "Motion correction": motion_in_words(record),
        "Thick slices": slices_in_words(record),
        "Brain mask": _joined(
            MaskMethod.words_of(mask.get("method")),
            "" if pieces is None else f"{pieces} component{'s' * (pieces != 1)}",
        ),
        **{
            tissue.name.capitalize(): _change(
                *(
                    quality.get(f"{tissue.label.lower()}_litres_{which}")
                    for which in ("before", "after", "sd")
                )
            )
            for tissue in TISSUES
        },
        "Score, 90 % intervals": (
            in_intervals(scored["before"], scored.get("after")) if scored.get("before") else ""
        ),
        "Contrast of grey to white matter (TCT)": (
            f"{before} → {after}; more is not always better" if quality else ""
        ),
        "TCT before / after (QI)": (
            f"{_figure(quality.get('qi'))}; 1 where the contrast stayed" if quality else ""
        ),
        "Software": _joined(
            _labelled("bmex_bids", record.get("Version")),
            _labelled("image", container.get("Tag")),
        ),
    }
    return render(
        "summary.html.j2",
        figures=figures,
        sentence=in_words(scored["before"], scored.get("after")) if scored.get("before") else "",
        gate=gate and _gate(gate),
        warnings=record.get("Warnings", []),
        rows={name: value for name, value in rows.items() if value},
    )


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of the quality gate and its rules, as words."""
    rules = [
        {
            "name": str(rule.get("Rule")),
            "verdict": str(rule.get("Verdict")),
            "value": _value(rule.get("Value")),
            "reason": str(rule.get("Reason") or ""),
        }
        for rule in gate.get("Rules") or []
    ]
    noted = [rule for rule in rules if rule["verdict"].lower() != "pass"]
    verdict = str(gate.get("Verdict", "")).lower() or "unknown"
    return {"verdict": verdict, "rules": rules, "noted": noted}


def _halving(table: Mapping[str, Any]) -> str:
    """Voxels that the network's were divided into, and by which weights; empty where none were."""
    if not table:
        return ""
    return f"{table['VoxelSize']:g} mm, weights {table_of(table, 'Weights').get('Name')}"


def _age_of(age: Mapping[str, Any]) -> tuple[str, str]:
    """The age as the dataset has it, and a note with what it is in months.

    >>> _age_of({"value": 25, "unit": "gestational_weeks", "months": 5.75, "fetal": True})
    ('25 weeks', 'of gestation, 5.75 months')
    >>> _age_of({"value": "6 years", "unit": "years", "months": 72.0})
    ('6 years', '72 months')
    """
    if age.get("months") is None:
        return "unknown", ""
    months = f"{age['months']:.2f}".rstrip("0").rstrip(".") + " months"
    note = "of gestation, " if age.get("fetal") else ""
    value, unit = str(age.get("value") or ""), str(age.get("unit") or "")
    if not value or unit.lower().startswith("month"):
        return months, note.removesuffix(", ") or "at the scan"
    if not re.search("[a-z]", value, re.I):
        value = f"{value} {re.sub('gestational[_ ]', '', unit)}"
    return value, f"{note}{months}"


def _change(before: float | None, after: float | None, deviation: float | None = None) -> str:
    """Two volumes in litres, the standard deviation of the second, and by how much it differs.

    >>> _change(0.5, 0.51), _change(0.5, 0.51, 0.0123), _change(0.5, 0.5)
    ('0.500 → 0.510 L (+2.0 %)', '0.500 → 0.510 ± 0.012 L (+2.0 %)', '0.500 L')
    """
    if before is None or after is None:
        return ""
    spread = "" if deviation is None else f" ± {deviation:.3f}"
    if before == after:  # no motion was undone
        return f"{after:.3f}{spread} L"
    share = f" ({100 * (after / before - 1):+.1f} %)" if before > 0 else ""
    return f"{before:.3f} → {after:.3f}{spread} L{share}"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value or "")


def _with_unit(value: float | None, unit: str, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f} {unit}"


def _labelled(label: str, value: Any) -> str:
    return f"{label} {value}" if value else ""


def _joined(*values: Any) -> str:
    return ", ".join(str(value) for value in values if value)
