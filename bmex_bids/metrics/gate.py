# SPDX-License-Identifier: Apache-2.0
"""The quality gate: pass, warn or fail, from rules that can be read in one table.

The gate labels, it never stops anything: :func:`judge` takes figures, answers with a verdict for
each rule and one for the image (the worst), and raises nothing.  ``warn`` asks a person to look;
``fail`` says that the result must not be used without a look.  A figure that is missing or not
finite is a ``warn``, since nobody knows that it was fine.

Limits were set on ten real images (fetus to six years), a real head, and on some of them made wrong
on purpose; ``docs/quality-gate.md`` has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bmex_bids.common.tissues import TISSUES

Verdict = Literal["pass", "warn", "fail"]
#: from good to bad
VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "fail")
LABELS = tuple(tissue.label for tissue in TISSUES)


@dataclass(frozen=True)
class Limits:
    """From where a value is odd, and from where it is wrong; a limit itself is still allowed.

    ``None`` is no limit.
    """

    fail_below: float | None = None
    warn_below: float | None = None
    warn_above: float | None = None
    fail_above: float | None = None

    def verdict(self, value: float) -> Verdict:
        """The verdict on a finite value."""
        for verdict, low, high in (
            ("fail", self.fail_below, self.fail_above),
            ("warn", self.warn_below, self.warn_above),
        ):
            if (low is not None and value < low) or (high is not None and value > high):
                return verdict  # type: ignore[return-value]
        return "pass"

    def is_below(self, value: float) -> bool:
        """Whether a value that was not passed is too low (else it is too high)."""
        lowest = self.warn_below if self.warn_below is not None else self.fail_below
        return lowest is not None and value < lowest


#: The limits of a volume for an age are wide already (they catch what is no brain, not a brain
#: that is unusual), so a mask beyond them by this much of a limit is wrong, and in between is odd.
VOLUME_SLACK = 0.2

#: A brain is one piece.  A detached cerebellum or a speck makes a few; a mask in crumbs is noise.
COMPONENTS = Limits(warn_above=1, fail_above=10)

#: Share of the mask's surface on the border of the field of view.  A tightly cropped brain touches
#: each of six faces with a cap one voxel deep, together some 4 %: odd, not wrong.  At 10 % a flat
#: cut goes through the brain (a 2 cm slice of an adult's vertex is 11 %), or the mask is no brain.
BORDER_CONTACT = Limits(warn_above=0.02, fail_above=0.10)

#: Share of the mask where the image shows nothing.  The ten have 0.1 to 0.8 %; a mask that is off by
#: a tenth of the brain has 15 % in an image without a skull, one off by half of it 54 % and more.
EMPTY_SHARE = Limits(warn_above=0.03, fail_above=0.10)

#: Largest relative change of a tissue's volume.  The ten change by up to 2.8 %.  Beyond 15 % a study
#: of volumes would measure the enhancement (heavy noise in a newborn's image: 23 %), and beyond 40 %
#: tissue was invented or taken away (a blur of two voxels: 95 %).
TISSUE_CHANGE = Limits(warn_above=0.15, fail_above=0.40)
#: A tissue that is a smaller share of the brain than this is compared with this share: what
#: doubles from one per cent to two has not changed the brain.
SMALL_TISSUE = 0.05

#: Correlation of the enhanced image with the network's input inside the mask.  The ten have 0.984
#: and more; a newborn under noise of twice its own SD, mended, still has 0.92.  Below 0.5 the two
#: share less than a quarter of their variance: another picture (a brain flipped left to right, 0.3).
CORRELATION = Limits(warn_below=0.85, fail_below=0.50)

#: Mean of the enhanced image over that of the input, less 1.  Noise, motion and blur hardly move a
#: brain's mean, so nor should mending them: the ten change by 0.5 % at most.  Intensities are
#: harmonised before the network, not by it.
MEAN_SHIFT = Limits(fail_below=-0.20, warn_below=-0.05, warn_above=0.05, fail_above=0.20)

#: Tissue contrast.  The ten have 0.48 (a fetus) to 1.7; at 0.3 grey and white matter overlap
#: so much that tissues, and every figure that is made with them, mean little.
TCT_BEFORE = Limits(warn_below=0.30)
#: The result has to be better than that: at 0.1 it shows no tissues at all (noise has 0.00, a brain
#: flipped left to right 0.2).
TCT_AFTER = Limits(fail_below=0.10, warn_below=0.30)

#: Contrast before over contrast after; 0.89 to 1.00 for the ten.  Above 1, enhancement has cost
#: contrast: two per cent is noise of the figure, a quarter is harm.  Below 0.5 the contrast has
#: doubled, so the input was poor and much of the result is the network's knowledge, not the scan's;
#: below 0.2 the result is a drawing of the labels (the tissues' means, painted: 0.05 to 0.12).
QUALITY_INDEX = Limits(fail_below=0.20, warn_below=0.50, warn_above=1.02, fail_above=1.25)


#: Skewness of what differs from its surroundings: below 0 where fluid is darker than tissue, above
#: where it is brighter (:mod:`bmex_bids.metrics.contrast`).  T1w images of all ages have -0.3 and
#: less, T2w images 0.26 and more; noise brings both nearer to 0.
FLUID_CONTRAST = {
    "T1w": Limits(warn_above=0.0, fail_above=0.15),
    "T2w": Limits(fail_below=-0.15, warn_below=0.0),
    "FLAIR": Limits(warn_above=0.0, fail_above=0.15),
}
#: How much better the average brain fits turned by right angles than as the header says
#: (:mod:`bmex_bids.imaging.likeness`), 0 where no turn is clearly better.
ORIENTATION = Limits(fail_above=0.0)
#: the rule whose failure means that tissues were taken for each other, so that no map is written
CONTRAST_RULE = "contrast"


#: Expected error of the enhanced image over the brain's mean, of networks that have learnt it.
#: Clean images have 0.03 to 0.05, minor motion up to 0.09, moderate motion 0.06 to 0.19.
ESTIMATED_ERROR = Limits(warn_above=0.10)
#: Distance from the images that trained the network (:mod:`bmex_bids.metrics.familiarity`); these
#: have 1 in the root mean square.
TRAINING_DISTANCE = Limits(warn_above=3.0)


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
    tissues_before, tissues_after : litres of CSF, GM and WM by one network's classification of
        the enhancement's input and of the enhanced image
    correlation : of input and enhanced image inside the mask, −1…1
    mean_shift : relative change of the mean inside the mask
    tct_before, tct_after : tissue contrast
    qi : ``tct_before / tct_after``
    turn : what of the axes the header says and the image shows, where they differ
    turn_margin : how much better that fits than what the header says, 0 where they agree
    contrast : that the image is said to have, ``"T1w"`` or ``"T2w"``
    fluid_contrast : below 0 where its fluid is darker than tissue, above where it is brighter
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
    correlation: float | None = None
    mean_shift: float | None = None
    tct_before: float | None = None
    tct_after: float | None = None
    qi: float | None = None
    turn: str | None = None
    turn_margin: float | None = None
    contrast: str | None = None
    fluid_contrast: float | None = None
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
            high="left and right cannot be told; correct the header and run again",
        ),
        *_contrast(measures),
        _tissues(measures),
        _number(
            "correlation with input",
            measures.correlation,
            CORRELATION,
            text="the enhanced image and the input correlate with {:.3f} inside the mask",
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
            text="the error left in the enhanced image is estimated at {:.1%} of the brain's mean",
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
            text="the image is {:.1f} times as far from those that trained the network as these "
            "are from their mean",
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
        + f"(T1w, FLAIR: below 0, fluid is darker; T2w: above 0, it is brighter), and the image is called "
        f"{named}",
        low="fluid is darker than tissue, as in a T1w or FLAIR image: correct the image's name; "
        "where this fails, no tissue maps are written",
        high="fluid is brighter than tissue, as in a T2w image: correct the image's name; where "
        "this fails, no tissue maps are written",
    )
    return (rule,)


def contrast_is_wrong(gate: Mapping[str, Any]) -> bool:
    """Whether the contrast failed, in a gate as a table (:meth:`Gate.as_table`)."""
    return any(
        rule["Rule"] == CONTRAST_RULE and rule["Verdict"] == "fail"
        for rule in gate.get("Rules", ())
    )


def _tissues(measures: Measures) -> Rule:
    name = "tissue volume change"
    changes = relative_change(measures.tissues_before, measures.tissues_after)
    if changes is None:
        return _number(name, None, TISSUE_CHANGE, text="")
    worst = max(LABELS, key=lambda tissue: abs(changes[tissue]))
    return _number(
        name,
        abs(changes[worst]),
        TISSUE_CHANGE,
        text=f"enhancement changed the volume of {worst} by {changes[worst]:+.1%}",
        high="look at the tissues before and after; do not measure volumes on this image",
    )
