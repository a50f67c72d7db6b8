# SPDX-License-Identifier: Apache-2.0
"""The quality gate: pass, warn or fail, from rules that can be read in one table.

The gate labels, it never stops anything: :func:`judge` takes figures, answers with a verdict for
each rule and one for the image (the worst), and raises nothing.  ``warn`` asks a person to look;
``fail`` says that the result must not be used without a look.  A figure that is missing or not
finite is a ``warn``, since nobody knows that it was fine.

``docs/quality-gate.md`` has how often each rule fires on good and on broken outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bmex_bids.common.tissues import TISSUES
from bmex_bids.metrics.limits import (
    BORDER_CONTACT,
    BRIGHTNESS_ORDER,
    COMPONENTS,
    CORRELATION,
    EMPTY_SHARE,
    ESTIMATED_ERROR,
    FETAL_SHARES,
    FETAL_WHITE_DEPTH,
    FLAT_FACE,
    FLUID_CONTRAST,
    MEAN_SHIFT,
    MOTION_AFTER,
    MOTION_BEFORE,
    ORIENTATION,
    QUALITY_INDEX,
    SHARES,
    SMALL_TISSUE,
    TCT_AFTER,
    TCT_BEFORE,
    TISSUE_CHANGE,
    TRAINING_DISTANCE,
    VERDICTS,
    VOLUME_SLACK,
    WHITE_DEPTH,
    WRITTEN_CHANGE,
    Limits,
    Verdict,
)

LABELS = tuple(tissue.label for tissue in TISSUES)
#: the rule whose failure means that tissues were taken for each other, so that no map is written
CONTRAST_RULE = "contrast"


@dataclass(frozen=True)
class Measures:
    """What the gate looks at; ``None`` or NaN is "not measured".

    Attributes
    ----------
    volume_litres : of the mask
    litres_for_age : usual volumes for the age, lower and upper, litres
    components : pieces of the mask
    border_contact : share of the mask's surface on the border of the field of view, 0…1
    empty_share : share of the mask in which the image shows nothing, 0…1
    tissues_before, tissues_after : litres of CSF, GM and WM in the image as it came, and as they
        are written, both by the network that enhances: they differ where motion was undone
    enhanced_tissue_change : see :func:`largest_change`; tissues by one network in the
        network's input and in the enhanced image
    correlation : of the network's input (motion undone) and the enhanced image inside the mask, −1…1
    mean_shift : relative change of the mean inside the mask, between the same two
    tct_before, tct_after : tissue contrast
    qi : ``tct_before / tct_after``
    turn : what of the axes the header says and the image shows, where they differ
    turn_margin : how much better that fits than what the header says, 0 where they agree
    flat_face, white_depth, brightness_order : see :mod:`bmex_bids.metrics.anatomy`
    age_months, fetal : decide which shares of tissues are usual
    contrast : that the image is said to have, ``"T1w"`` or ``"T2w"``
    fluid_contrast : below 0 where its fluid is darker than tissue, above where it is brighter
    motion_before, motion_after : severity by the network that scores, 0 none to 3 severe
    estimated_error_before, estimated_error_after : the network's estimate of how far the input and
        the enhanced image are from an image without faults, share of the brain's mean
    training_distance : from the images that trained the network; 1 is usual
    """

    volume_litres: float | None = None
    litres_for_age: tuple[float, float] | None = None
    components: int | None = None
    border_contact: float | None = None
    empty_share: float | None = None
    tissues_before: Mapping[str, float] | None = None
    tissues_after: Mapping[str, float] | None = None
    enhanced_tissue_change: float | None = None
    correlation: float | None = None
    mean_shift: float | None = None
    tct_before: float | None = None
    tct_after: float | None = None
    qi: float | None = None
    turn: str | None = None
    turn_margin: float | None = None
    contrast: str | None = None
    fluid_contrast: float | None = None
    flat_face: float | None = None
    white_depth: float | None = None
    brightness_order: float | None = None
    age_months: float | None = None
    fetal: bool = False
    motion_before: float | None = None
    motion_after: float | None = None
    estimated_error_before: float | None = None
    estimated_error_after: float | None = None
    training_distance: float | None = None


@dataclass(frozen=True)
class Rule:
    """One rule's answer.

    Attributes
    ----------
    name : of the rule, as in the documentation
    value : what was judged; None where it was not measured
    limits : what it was held against
    verdict : pass, warn or fail
    reason : a sentence: what was found and, unless it passed, what to look at
    """

    name: str
    value: float | None
    limits: Limits
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Gate:
    """The verdict on an image: the worst of its rules."""

    verdict: Verdict
    rules: tuple[Rule, ...] = field(default=())

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass, the worst first."""
        chosen = [rule for rule in self.rules if rule.verdict != "pass"]
        chosen.sort(key=lambda rule: -VERDICTS.index(rule.verdict))
        return tuple(rule.reason for rule in chosen)

    def as_table(self) -> dict[str, Any]:
        """The key ``Gate`` of a sidecar: plain values."""
        return {
            "Verdict": self.verdict,
            "Rules": [
                {
                    "Rule": rule.name,
                    "Value": rule.value,
                    "Verdict": rule.verdict,
                    "Reason": rule.reason,
                    "WarnOutside": [rule.limits.warn_below, rule.limits.warn_above],
                    "FailOutside": [rule.limits.fail_below, rule.limits.fail_above],
                }
                for rule in self.rules
            ],
        }


def judge(measures: Measures) -> Gate:
    """Hold every figure against its rule; the image gets the worst of the verdicts."""
    rules = (
        _volume(measures),
        _number(
            "mask components",
            measures.components,
            COMPONENTS,
            text="the brain mask has {:.0f} piece(s)",
            high="look at the mask for specks, or for a part that was cut off",
        ),
        _number(
            "mask at border",
            measures.border_contact,
            BORDER_CONTACT,
            text="{:.1%} of the brain mask's surface lies on the border of the field of view",
            high="check whether the scan cuts the brain off, or the mask reaches into the neck",
        ),
        _number(
            "flat face of mask",
            measures.flat_face,
            FLAT_FACE,
            text="{:.1%} of the brain mask's surface lies in one plane",
            high="check whether a part of the brain was cut off",
        ),
        _number(
            "empty share of mask",
            measures.empty_share,
            EMPTY_SHARE,
            text="{:.1%} of the brain mask lies where the image has no signal",
            high="check whether the mask is shifted, or belongs to another image",
        ),
        _number(
            "orientation",
            measures.turn_margin,
            ORIENTATION,
            text=measures.turn or "the image looks as its header says",
            high="left and right cannot be told apart; correct the header, or use --reorient",
        ),
        *_contrast(measures),
        *_anatomy(measures),
        _tissues(measures),
        _number(
            "tissues of the enhanced image",
            measures.enhanced_tissue_change,
            TISSUE_CHANGE,
            text="in the enhanced image a tissue has {:.1%} more or less volume than in the input",
            high="look at the enhanced image; another program will find other volumes in it than "
            "the tissue maps hold",
        ),
        _number(
            "correlation with input",
            measures.correlation,
            CORRELATION,
            text="the enhanced image and the network's input correlate with {:.3f} inside the mask",
            low="compare before and after: do they show the same brain?",
        ),
        _number(
            "mean intensity shift",
            measures.mean_shift,
            MEAN_SHIFT,
            text="enhancement changed the mean intensity inside the mask by {:+.1%}",
            low="look for parts of the brain that went dark",
            high="look for parts of the brain that went bright",
        ),
        _number(
            "tissue contrast before",
            measures.tct_before,
            TCT_BEFORE,
            text="tissue contrast (TCT) of the input is {:.2f}",
            low="look at the input; its tissues can hardly be told apart, so do not use tissue figures",
        ),
        _number(
            "tissue contrast after",
            measures.tct_after,
            TCT_AFTER,
            text="tissue contrast (TCT) of the enhanced image is {:.2f}",
            low="check whether the enhanced image shows grey and white matter",
        ),
        _number(
            "quality index",
            measures.qi,
            QUALITY_INDEX,
            text="the quality index (TCT before over after) is {:.2f}",
            low="look at the input: it was poor, so much of the result is the network's estimate",
            high="look at the enhanced image: it has less tissue contrast than the input",
        ),
        *_motion(measures),
        *_estimated_error(measures),
        *_training_distance(measures),
    )
    return Gate(max((rule.verdict for rule in rules), key=VERDICTS.index), rules)


def relative_change(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None
) -> dict[str, float] | None:
    """Change of each tissue's volume relative to what it was, 0.1 for 10 % more.

    A tissue smaller than :data:`SMALL_TISSUE` of the brain is held against that share.  None where
    a tissue is missing, or was not found in the input at all: then nothing was classified.
    """
    volumes = [
        [_known(table.get(name)) for name in LABELS] for table in (before or {}, after or {})
    ]
    first = [value for value in volumes[0] if value is not None and value > 0]
    second = [value for value in volumes[1] if value is not None and value >= 0]
    if not len(first) == len(second) == len(LABELS):
        return None
    least = SMALL_TISSUE * sum(first)
    return {
        name: (b - a) / max(a, least) for name, a, b in zip(LABELS, first, second, strict=True)
    }


def largest_change(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None
) -> float | None:
    """The largest of :func:`relative_change`, without its sign."""
    changes = relative_change(before, after)
    return None if changes is None else max(map(abs, changes.values()))


def _motion(measures: Measures) -> Iterator[Rule]:
    """No rule where there is no score."""
    for when, value, limits in (
        ("before", measures.motion_before, MOTION_BEFORE),
        ("after", measures.motion_after, MOTION_AFTER),
    ):
        if value is not None:
            image = "input" if when == "before" else "enhanced image"
            yield _number(
                f"motion {when}",
                value,
                limits,
                text=f"motion in the {image} is scored {{:.1f}} (0 none, 3 severe)",
                high="look for motion in both images; do not measure fine structures",
            )


def _estimated_error(measures: Measures) -> tuple[Rule, ...]:
    """No rule where the network has not learnt its error."""
    value = measures.estimated_error_after
    if value is None:
        return ()
    return (
        _number(
            "estimated error",
            value,
            ESTIMATED_ERROR,
            text="the estimated error of the enhanced image is {:.1%} of the brain's mean",
            high="look for motion in the input; much of it is still in the enhanced image",
        ),
    )


def _training_distance(measures: Measures) -> tuple[Rule, ...]:
    """No rule where the usual figures are not kept with the weights."""
    if measures.training_distance is None:
        return ()
    return (
        _number(
            "unlike training",
            measures.training_distance,
            TRAINING_DISTANCE,
            text="the image lies {:.1f} times as far from the training images of the network as these "
            "lie from their mean",
            high="its contrast, resolution, age or faults are new to the network, so compare the "
            "result with the input",
        ),
    )


def _known(value: float | None) -> float | None:
    """A value as a float, or None where it is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def _number(
    name: str,
    value: float | None,
    limits: Limits,
    *,
    text: str,
    low: str = "",
    high: str = "",
    usual: str = "",
) -> Rule:
    """A rule on one number.

    Parameters
    ----------
    text : what was found, with a place for the number
    low, high : what to look at when it is too low or too high
    usual : a further clause on what is usual
    """
    value = _known(value)
    if value is None:
        return Rule(
            name,
            None,
            limits,
            "warn",
            f"{name[0].upper()}{name[1:]}: could not be measured, so look at the image.",
        )
    verdict = limits.verdict(value)
    sentence = text.format(value) + usual
    if verdict != "pass":
        sentence += f"; {low if limits.is_below(value) else high}"
    sentence = sentence[0].upper() + sentence[1:] + ("" if sentence.endswith("?") else ".")
    return Rule(name, value, limits, verdict, sentence)


def _volume(measures: Measures) -> Rule:
    name = "mask volume"
    usual = measures.litres_for_age
    low, high = (None, None) if usual is None else (_known(usual[0]), _known(usual[1]))
    if low is None or high is None:
        return Rule(
            name,
            _known(measures.volume_litres),
            Limits(),
            "warn",
            "Mask volume: the usual range for the age is unknown, so look at the mask.",
        )
    limits = Limits(low * (1 - VOLUME_SLACK), low, high, high * (1 + VOLUME_SLACK))
    return _number(
        name,
        measures.volume_litres,
        limits,
        text="the brain mask has {:.2f} litres",
        usual=f" ({low:g} to {high:g} are usual at this age)",
        low="look for missing brain, and check the age",
        high="look for skull, neck or background in the mask, and check the age",
    )


def _contrast(measures: Measures) -> tuple[Rule, ...]:
    """The rule; none for a contrast whose fluid may be dark or bright."""
    named = measures.contrast or ""
    if named and named not in FLUID_CONTRAST:
        return ()
    limits = FLUID_CONTRAST.get(named, Limits())
    value = None if named not in FLUID_CONTRAST else measures.fluid_contrast
    rule = _number(
        CONTRAST_RULE,
        value,
        limits,
        text="fluid against tissue is {:+.2f} "
        + f"(T1w, FLAIR: below 0, fluid is darker; T2w: above 0, it is brighter), and the image is taken as "
        f"{named}",
        low="fluid is darker than tissue, as in a T1w or FLAIR image: correct the image's name; "
        "if this rule fails, no tissue maps are written",
        high="fluid is brighter than tissue, as in a T2w image: correct the image's name; if "
        "this rule fails, no tissue maps are written",
    )
    return (rule,)


def contrast_is_wrong(gate: Mapping[str, Any]) -> bool:
    """Whether the contrast failed, in a gate as a table (:meth:`Gate.as_table`)."""
    return any(
        rule["Rule"] == CONTRAST_RULE and rule["Verdict"] == "fail"
        for rule in gate.get("Rules", ())
    )


def _anatomy(measures: Measures) -> Iterator[Rule]:
    """Shares of the tissues at this age, where they lie, and which is brighter."""
    table = measures.tissues_after or {}
    volumes = {name: _known(table.get(name)) or 0.0 for name in LABELS}
    total = sum(volumes.values())
    usual = FETAL_SHARES if measures.fetal else _shares_at(measures.age_months)
    # where a tissue was not found at all, the rule on their change says that nothing was classified
    for name in LABELS if all(volumes.values()) else ():
        yield _number(
            f"share of {name}",
            volumes[name] / total,
            usual[name],
            text=f"{{:.1%}} of the brain is {name}",
            low="that is less than at this age: do not measure tissues on this image",
            high="that is more than at this age: do not measure tissues on this image",
        )
    yield _number(
        "depth of white matter",
        measures.white_depth,
        FETAL_WHITE_DEPTH if measures.fetal else WHITE_DEPTH,
        text="white matter lies deeper than grey matter by {:+.2f} of the brain's mean depth",
        low="look at the tissues: grey and white matter may be confused",
    )
    if measures.contrast and measures.contrast not in FLUID_CONTRAST:
        return
    yield _number(
        "order of brightness",
        measures.brightness_order,
        BRIGHTNESS_ORDER,
        text="the smallest step of brightness from tissue to tissue is {:+.2f} of the mean",
        low="look at the tissues: two of them may be confused",
    )


def _shares_at(months: float | None) -> Mapping[str, Limits]:
    """The usual shares; those of infants, which are wider, where the age is not known."""
    known = _known(months) or 0.0
    return next(table for since, table in SHARES if known >= since)


def _tissues(measures: Measures) -> Rule:
    name = "tissue volume change"
    changes = relative_change(measures.tissues_before, measures.tissues_after)
    if changes is None:
        return _number(name, None, WRITTEN_CHANGE, text="")
    worst = max(LABELS, key=lambda tissue: abs(changes[tissue]))
    return _number(
        name,
        abs(changes[worst]),
        WRITTEN_CHANGE,
        text=f"the tissue maps have {changes[worst]:+.1%} {worst} compared with the raw image",
        high="look at the corrected read-out faults; if the correction is right, so are the volumes",
    )
