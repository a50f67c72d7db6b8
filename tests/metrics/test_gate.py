# SPDX-License-Identifier: Apache-2.0
"""Every rule from both sides of each of its limits."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from bmex_bids.metrics import gate
from bmex_bids.metrics.gate import Limits, Measures, judge, relative_change

TISSUES = {"CSF": 0.2, "GM": 0.5, "WM": 0.3}
#: a brain of six years about which nothing is odd
GOOD = Measures(
    volume_litres=1.2,
    litres_for_age=(0.7, 2.2),
    components=1,
    border_contact=0.0,
    empty_share=0.001,
    tissues_before=TISSUES,
    tissues_after=TISSUES,
    enhanced_tissue_change=0.01,
    correlation=0.99,
    mean_shift=0.0,
    tct_before=1.5,
    tct_after=1.6,
    qi=0.94,
    turn_margin=0.0,
    contrast="T1w",
    fluid_contrast=-0.6,
    flat_face=0.02,
    white_depth=0.2,
    brightness_order=0.3,
    age_months=72.0,
    motion_before=2.0,
    motion_after=0.3,
    estimated_error_after=0.04,
    training_distance=1.2,
)
A_LITTLE = 1e-6


def verdicts(**changed):
    """Rule → verdict, for the good brain with some figures changed."""
    found = judge(dataclasses.replace(GOOD, **changed))
    return {rule.name: rule.verdict for rule in found.rules}


def only(**changed):
    """The one rule that does not pass."""
    found = judge(dataclasses.replace(GOOD, **changed))
    (rule,) = [rule for rule in found.rules if rule.verdict != "pass"]
    assert found.verdict == rule.verdict
    return rule


def test_a_good_brain_passes_every_rule():
    found = judge(GOOD)
    assert found.verdict == "pass"
    assert len(found.rules) == 23
    assert {rule.verdict for rule in found.rules} == {"pass"}
    assert found.reasons == ()


#: measure, rule, (value still good, odd), (value still odd, wrong)
BOUNDARIES = [
    ("volume_litres", "mask volume", (0.7, 0.7 - A_LITTLE), (0.56, 0.56 - A_LITTLE)),
    ("volume_litres", "mask volume", (2.2, 2.2 + A_LITTLE), (2.64, 2.64 + A_LITTLE)),
    ("components", "mask components", (1, 2), (10, 11)),
    ("border_contact", "mask at border", (0.02, 0.02 + A_LITTLE), (0.1, 0.1 + A_LITTLE)),
    ("empty_share", "empty share of mask", (0.03, 0.03 + A_LITTLE), (0.1, 0.1 + A_LITTLE)),
    ("correlation", "correlation with input", (0.85, 0.85 - A_LITTLE), (0.5, 0.5 - A_LITTLE)),
    ("mean_shift", "mean intensity shift", (0.05, 0.05 + A_LITTLE), (0.2, 0.2 + A_LITTLE)),
    ("mean_shift", "mean intensity shift", (-0.05, -0.05 - A_LITTLE), (-0.2, -0.2 - A_LITTLE)),
    ("tct_after", "tissue contrast after", (0.25, 0.25 - A_LITTLE), (0.1, 0.1 - A_LITTLE)),
    ("fluid_contrast", "contrast", (0.0, A_LITTLE), (0.15, 0.15 + A_LITTLE)),
    (
        "enhanced_tissue_change",
        "tissues of the enhanced image",
        (0.15, 0.15 + A_LITTLE),
        (0.4, 0.4 + A_LITTLE),
    ),
    ("flat_face", "flat face of mask", (0.05, 0.05 + A_LITTLE), (0.1, 0.1 + A_LITTLE)),
    ("white_depth", "depth of white matter", (0.03, 0.03 - A_LITTLE), (0.0, -A_LITTLE)),
    ("brightness_order", "order of brightness", (0.02, 0.02 - A_LITTLE), (0.0, -A_LITTLE)),
    ("qi", "quality index", (1.02, 1.02 + A_LITTLE), (1.25, 1.25 + A_LITTLE)),
    ("qi", "quality index", (0.5, 0.5 - A_LITTLE), (0.2, 0.2 - A_LITTLE)),
]


@pytest.mark.parametrize(("measure", "rule", "warn", "fail"), BOUNDARIES)
def test_each_limit_from_both_sides(measure, rule, warn, fail):
    assert verdicts(**{measure: warn[0]})[rule] == "pass"
    assert verdicts(**{measure: fail[0]})[rule] == "warn"
    for value, verdict in ((warn[1], "warn"), (fail[1], "fail")):
        found = only(**{measure: value})
        assert (found.name, found.verdict) == (rule, verdict)
        assert found.value == value
        assert "; " in found.reason or "?" in found.reason  # it says what to look at


def test_the_contrast_of_the_input_alone_never_fails():
    assert verdicts(tct_before=0.25)["tissue contrast before"] == "pass"
    assert only(tct_before=0.25 - A_LITTLE).verdict == "warn"
    assert only(tct_before=0.0).verdict == "warn"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("tissue", ["CSF", "GM", "WM"])
def test_the_change_of_a_tissue_from_both_sides(tissue, sign):
    def changed(by):
        return {**TISSUES, tissue: TISSUES[tissue] * (1 + sign * by)}

    assert verdicts(tissues_after=changed(0.149))["tissue volume change"] == "pass"
    found = only(tissues_after=changed(0.151))
    assert (found.name, found.verdict) == ("tissue volume change", "warn")
    assert found.value == pytest.approx(0.151)
    assert tissue in found.reason
    assert f"{'+' if sign > 0 else '-'}15.1%" in found.reason


def test_tissues_that_came_out_from_under_a_fault_never_fail():
    """Stripes of a spike had doubled them; the image without stripes is right."""
    assert only(tissues_after={**TISSUES, "WM": 0.6}).verdict == "warn"


def test_a_tissue_that_doubled_in_the_enhanced_image_fails():
    assert only(enhanced_tissue_change=0.399).verdict == "warn"
    assert only(enhanced_tissue_change=0.401).verdict == "fail"


def test_a_small_tissue_is_held_against_a_twentieth_of_the_brain():
    before = {"CSF": 0.01, "GM": 0.59, "WM": 0.40}
    after = {"CSF": 0.02, "GM": 0.58, "WM": 0.40}
    assert relative_change(before, after)["CSF"] == pytest.approx(0.01 / 0.05)
    assert only(tissues_before=before, tissues_after=after).verdict == "warn"  # not fail


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, TISSUES),
        (TISSUES, None),
        (TISSUES, {"CSF": 0.2, "GM": 0.5}),
        (TISSUES, {**TISSUES, "GM": math.nan}),
        ({**TISSUES, "WM": 0.0}, TISSUES),  # nothing was classified as white matter
        ({"CSF": 1.0, "GM": 0.0, "WM": 0.0}, {"CSF": 1.0, "GM": 0.0, "WM": 0.0}),
    ],
)
def test_tissues_that_cannot_be_compared_are_a_warning(before, after):
    assert relative_change(before, after) is None
    found = only(tissues_before=before, tissues_after=after)
    assert (found.verdict, found.value) == ("warn", None)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "measure",
    [
        field.name
        for field in dataclasses.fields(Measures)
        if field.name
        not in {"litres_for_age", "tissues_before", "tissues_after", "contrast", "turn"}
        # figures without a rule
        and field.name not in {"estimated_error_before", "age_months", "fetal"}
    ],
)
def test_a_figure_that_is_missing_is_a_warning_with_a_reason(measure, missing):
    unlearnt = {"estimated_error_after", "training_distance", "motion_before", "motion_after"}
    if measure in unlearnt and missing is None:
        return  # the network has not learnt it: see below
    found = only(**{measure: missing})
    assert (found.verdict, found.value) == ("warn", None)
    assert "could not be measured" in found.reason


def test_an_estimated_error_warns_and_never_fails():
    assert verdicts(estimated_error_after=0.08)["estimated error"] == "pass"
    for value in (0.08 + A_LITTLE, 5.0):
        found = only(estimated_error_after=value)
        assert (found.name, found.verdict, found.value) == ("estimated error", "warn", value)


def test_white_matter_of_a_fetus_may_lie_less_deep():
    assert verdicts(white_depth=-0.2)["depth of white matter"] == "fail"
    for value, verdict in ((-0.2, "pass"), (-0.26, "warn"), (-0.31, "fail")):
        assert verdicts(white_depth=value, fetal=True)["depth of white matter"] == verdict


@pytest.mark.parametrize(("when", "limit"), [("before", 2.5), ("after", 1.5)])
def test_motion_warns_and_never_fails(when, limit):
    assert verdicts(**{f"motion_{when}": limit})[f"motion {when}"] == "pass"
    for value in (limit + A_LITTLE, 3.0):
        found = only(**{f"motion_{when}": value})
        assert (found.name, found.verdict, found.value) == (f"motion {when}", "warn", value)
    without = judge(dataclasses.replace(GOOD, **{f"motion_{when}": None}))
    assert without.verdict == "pass"
    assert f"motion {when}" not in {rule.name for rule in without.rules}


def test_an_image_that_is_unlike_those_that_trained_warns_and_never_fails():
    assert verdicts(training_distance=3.0)["unlike training"] == "pass"
    for value in (3.0 + A_LITTLE, 50.0):
        found = only(training_distance=value)
        assert (found.name, found.verdict, found.value) == ("unlike training", "warn", value)
        assert "new to the network" in found.reason


@pytest.mark.parametrize(
    ("figure", "rule"),
    [("estimated_error_after", "estimated error"), ("training_distance", "unlike training")],
)
def test_a_network_that_has_not_learnt_a_figure_is_not_judged_by_it(figure, rule):
    found = judge(dataclasses.replace(GOOD, **{figure: None}))
    assert found.verdict == "pass"
    assert rule not in {one.name for one in found.rules}


@pytest.mark.parametrize("usual", [None, (math.nan, 2.0)])
def test_a_volume_without_limits_is_a_warning(usual):
    found = only(litres_for_age=usual)
    assert (found.name, found.verdict, found.value) == ("mask volume", "warn", 1.2)
    assert "usual range for the age is unknown" in found.reason


def test_nothing_measured_is_a_warning_of_every_rule():
    found = judge(Measures())
    assert found.verdict == "warn"
    assert {rule.verdict for rule in found.rules} == {"warn"}
    assert len(found.reasons) == 16


def test_the_volume_goes_by_the_age():
    newborn = {"litres_for_age": (0.18, 1.1)}
    assert verdicts(volume_litres=0.35, **newborn)["mask volume"] == "pass"
    assert only(volume_litres=0.35).verdict == "fail"
    assert only(volume_litres=1.5, **newborn).verdict == "fail"
    assert "0.18 to 1.1 are usual" in only(volume_litres=1.5, **newborn).reason


def test_the_worst_verdict_is_the_image_s_and_comes_first():
    found = judge(dataclasses.replace(GOOD, components=2, qi=1.3, empty_share=math.nan))
    assert found.verdict == "fail"
    assert [reason.split()[:3] for reason in found.reasons] == [
        ["The", "quality", "index"],
        ["The", "brain", "mask"],
        ["Empty", "share", "of"],
    ]


def test_too_low_and_too_high_ask_for_different_things():
    assert "poor" in only(qi=0.4).reason
    assert "less tissue contrast than the input" in only(qi=1.1).reason
    assert "missing brain" in only(volume_litres=0.6).reason
    assert "background" in only(volume_litres=2.4).reason
    assert "dark" in only(mean_shift=-0.1).reason
    assert "bright" in only(mean_shift=0.1).reason


def test_a_sidecar_gets_plain_values():
    table = judge(dataclasses.replace(GOOD, qi=1.1, tct_before=math.nan)).as_table()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert table["Verdict"] == "warn"
    rules = {rule["Rule"]: rule for rule in table["Rules"]}
    assert rules["quality index"]["Value"] == 1.1
    assert rules["quality index"]["WarnOutside"] == [0.5, 1.02]
    assert rules["quality index"]["FailOutside"] == [0.2, 1.25]
    assert rules["tissue contrast before"]["Value"] is None
    assert rules["mask volume"]["FailOutside"] == pytest.approx([0.56, 2.64])
    assert all(rule["Reason"].endswith((".", "?")) for rule in table["Rules"])


def test_no_limit_lets_everything_pass():
    assert Limits().verdict(-1e9) == "pass"
    assert Limits(fail_below=0).verdict(-1) == "fail"
    assert Limits(fail_below=0).verdict(0) == "pass"


def test_limits_are_in_order():
    shares = [*(table for _, table in gate.SHARES), gate.FETAL_SHARES]
    by_age = {
        f"{k} {name}": limits for k, part in enumerate(shares) for name, limits in part.items()
    }
    for name, limits in {**vars(gate), **by_age}.items():
        if isinstance(limits, Limits):
            given = [
                value
                for value in (
                    limits.fail_below, limits.warn_below, limits.warn_above, limits.fail_above,
                )
                if value is not None
            ]  # fmt: skip
            assert given == sorted(given), name


def test_the_contrast_is_named_where_it_is_not_what_the_image_is_called():
    assert verdicts(contrast="T2w", fluid_contrast=0.6)["contrast"] == "pass"
    t1w = only(fluid_contrast=0.6)
    assert (t1w.verdict, t1w.value) == ("fail", 0.6)
    assert "is taken as T1w; fluid is brighter than tissue, as in a T2w image" in t1w.reason
    t2w = only(contrast="T2w")
    assert t2w.verdict == "fail"
    assert "is taken as T2w; fluid is darker than tissue, as in a T1w or FLAIR" in t2w.reason
    assert only(contrast="T2w", fluid_contrast=-0.1).verdict == "warn"
    assert only(contrast=None).verdict == "warn"
    assert only(contrast="FLAIR", fluid_contrast=0.6).verdict == "fail"
    assert "contrast" not in verdicts(contrast="PDw", fluid_contrast=0.6)  # either is usual


def test_an_image_that_lies_otherwise_than_its_header_says_fails():
    words = "the header says A–P, the image looks P–A"
    found = only(turn=words, turn_margin=0.2)
    assert (found.name, found.verdict) == ("orientation", "fail")
    assert found.reason.startswith("The header says A–P, the image looks P–A; left and right")


def test_a_gate_as_a_table_says_whether_the_contrast_is_wrong():
    for value, wrong in ((-0.6, False), (0.1, False), (0.6, True), (None, False)):
        table = judge(dataclasses.replace(GOOD, fluid_contrast=value)).as_table()
        assert gate.contrast_is_wrong(table) is wrong
    assert not gate.contrast_is_wrong({})


def tissues(csf, gm, wm):
    return {name: {"CSF": csf, "GM": gm, "WM": wm} for name in ("tissues_before", "tissues_after")}


@pytest.mark.parametrize(
    ("months", "fetal", "shares", "verdict"),
    [
        (6.0, False, (0.142, 0.840, 0.018), "fail"),  # a real brain of six months, as classified
        (1.0, False, (0.085, 0.864, 0.051), "warn"),
        (6.0, False, (0.12, 0.60, 0.28), "pass"),
        (9.0, False, (0.063, 0.667, 0.270), "pass"),
        (72.0, False, (0.142, 0.840, 0.018), "fail"),
        (372.0, False, (0.176, 0.448, 0.376), "pass"),
        (372.0, False, (0.448, 0.176, 0.376), "fail"),  # fluid and grey matter swapped
        (5.75, True, (0.223, 0.310, 0.467), "pass"),
        (None, False, (0.1, 0.6, 0.3), "pass"),
    ],
)
def test_shares_of_tissues_are_those_of_the_age(months, fetal, shares, verdict):
    found = judge(dataclasses.replace(GOOD, age_months=months, fetal=fetal, **tissues(*shares)))
    assert found.verdict == verdict
    assert all(rule.name.startswith("share of ") for rule in found.rules if rule.verdict != "pass")
