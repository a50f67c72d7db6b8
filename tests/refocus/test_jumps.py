# SPDX-License-Identifier: Apache-2.0
"""Jumps of the head: a network hints, k-space says how, the entropy decides."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bmex_bids.refocus import jumps as module
from bmex_bids.refocus import refocus as whole
from bmex_bids.refocus.evidence import size_mm
from bmex_bids.refocus.jumps import Hints, Jump, Jumps, find_jumps

AXIS = 1
POSE = np.array([1.2, -0.8, 0.9, 0.8, -0.6, 0.7])
JUMPS = Jumps(AXIS, (Jump(6, 0, POSE),))


@pytest.fixture(scope="module")
def still(head):
    return torch.from_numpy(head.image)


@pytest.fixture(scope="module")
def jumped(head, still):
    """The head as a scan shows it when it jumps once."""
    return JUMPS.forward(still, head.spacing).clamp(min=0)


@pytest.fixture(scope="module")
def brain(head):
    return torch.from_numpy(head.mask.astype(np.float32))


def hints_at(truth, brain, share=0.05, noise=3.0):
    """A network that corrects a small part of what is wrong, and adds wrong things."""

    def correction(image, inside):
        generator = torch.Generator().manual_seed(1)
        wrong = noise * torch.randn(image.shape, generator=generator)
        return (share * (truth - image) + wrong) * inside

    return Hints(correction, lambda *_: brain)


def squared(image, truth, brain):
    return float((((image - truth) * brain) ** 2).sum())


@pytest.fixture
def all_lines(monkeypatch):
    """The head of the tests is a small one."""
    monkeypatch.setattr(module, "FEWEST_LINES", 40)


def test_forward_and_adjoint_belong_together(head):
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(head.image.shape, generator=generator) for _ in range(2))
    two = Jumps(AXIS, (Jump(4, 0, POSE), Jump(9, 1, -POSE), Jump(15, 0, 2 * POSE)))
    ahead = float((two.forward(one, head.spacing) * other).sum())
    assert ahead == pytest.approx(float((one * two.adjoint(other, head.spacing)).sum()), rel=1e-4)


def test_each_pair_of_lines_sees_two_poses():
    three = Jumps(0, (Jump(2, 0, POSE), Jump(4, 1, POSE), Jump(5, 0, POSE)))
    assert three.weights(12).T.tolist() == [
        [1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0],
        [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5],
    ]  # fmt: skip


def test_without_jumps_an_image_stays(head, still):
    none = Jumps(AXIS, ())
    assert torch.allclose(none.forward(still, head.spacing), still, atol=1e-2)


def test_known_jumps_are_undone(head, still, jumped, brain):
    ones = torch.ones_like(jumped)
    after = [JUMPS.undo(jumped, ones, head.spacing, n) for n in (1, 4)]
    errors = [squared(image, still, brain) for image in (jumped, *after)]
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.25 * errors[0]
    assert all(float(image.min()) >= 0 for image in after)
    half = torch.zeros_like(jumped)
    half[:20] = 1
    assert not JUMPS.undo(jumped, half, head.spacing, 1)[20:].any()


def test_a_jump_is_found_and_undone(head, still, jumped, brain, all_lines):
    ones = torch.ones_like(jumped)
    jumps, image = find_jumps(jumped, ones, head.spacing, hints_at(still, brain))
    assert jumps.phase_axis == AXIS
    assert abs(jumps.jumps[0].line - 6) <= 1
    assert jumps.gain < -module.LEAST_GAIN
    assert squared(image, still, brain) < 0.5 * squared(jumped, still, brain)
    facts = json.loads(json.dumps(jumps.facts(jumped.shape[AXIS]), allow_nan=False))
    assert facts["Model"] == "jumps"
    assert facts["Jumps"][0]["Line"] == jumps.jumps[0].line
    # half of the lines further out than this moved
    assert facts["RMSDisplacement"] == pytest.approx(size_mm(POSE) * (0.8 / 2) ** 0.5, rel=0.4)


@pytest.mark.parametrize(
    "hints",
    [
        pytest.param(lambda still, brain: hints_at(still, brain, share=0), id="noise"),
        pytest.param(lambda still, brain: hints_at(still, brain, 0, 0), id="nothing"),
        pytest.param(lambda still, brain: hints_at(0 * still, brain, 0.01, 0), id="darker"),
        pytest.param(lambda still, brain: hints_at(still, 0 * brain), id="no brain"),
        pytest.param(lambda still, brain: Hints(hints_at(still, brain).correction), id="a head"),
    ],
)
def test_without_a_hint_at_motion_nothing_is_found(head, still, jumped, brain, hints, all_lines):
    assert find_jumps(jumped, torch.ones_like(still), head.spacing, hints(still, brain)) is None


def test_a_hint_that_the_image_contradicts_is_not_followed(head, still, brain, all_lines):
    """In a still image any jump blurs."""
    hints = hints_at(JUMPS.forward(still, head.spacing), brain)
    assert find_jumps(still, torch.ones_like(still), head.spacing, hints) is None


def test_a_hint_that_stays_when_it_was_followed_is_no_motion(
    head, still, jumped, brain, all_lines
):
    always = 0.05 * (still - jumped) * brain
    hints = Hints(lambda *_: always, lambda *_: brain)
    assert find_jumps(jumped, torch.ones_like(still), head.spacing, hints) is None


@pytest.mark.parametrize("gate", ["LEAST_GAIN", "LEAST_SIGNED", "LEAST_RATIO", "LEAST_SHARE"])
def test_each_gate_closes(head, still, jumped, brain, all_lines, monkeypatch, gate):
    monkeypatch.setattr(module, gate, 1e9)
    ones = torch.ones_like(jumped)
    assert find_jumps(jumped, ones, head.spacing, hints_at(still, brain)) is None


def test_the_network_says_how_large_the_jump_is(
    head, still, jumped, brain, all_lines, monkeypatch
):
    """Of a motion of which two fifths are tried, it sees the rest."""
    monkeypatch.setattr(module, "TRIED_MM", (0.4 * size_mm(POSE),))
    monkeypatch.setattr(module, "LEFT", (-0.5, 0.95))
    ones = torch.ones_like(jumped)
    jumps, _ = find_jumps(jumped, ones, head.spacing, hints_at(still, brain, noise=0))
    assert size_mm(jumps.jumps[0].pose) > 0.6 * size_mm(POSE)


def test_the_jump_is_corrected_in_its_direction_too(head, jumped, brain):
    view = module._View(jumped, brain, torch.ones_like(jumped), head.spacing)
    assert view.gain(Jumps(AXIS, ())) == pytest.approx(0, abs=1e-5)
    wrong = np.array([0.5, 0.3, 0, 0, 0, 0])
    jumps = Jumps(AXIS, (Jump(6, 0, POSE - wrong),))
    # the network hints at a hundredth of half a jump of one line
    found = module._corrected(view, jumps, POSE / 200, wrong / 200)
    assert found.jumps[0].pose == pytest.approx(POSE, abs=0.25)
    assert found.gain == view.gain(found)
    for left in (0.8, -0.7):
        assert module._corrected(view, jumps, POSE / 200, left * POSE / 200) is None


def test_of_a_brain_without_its_head_only_the_brain_is_known(head, still, brain, all_lines):
    bare = JUMPS.forward(still * brain, head.spacing).clamp(min=0) * brain
    hints = hints_at(still * brain, brain)
    jumps, image = find_jumps(bare, brain, head.spacing, Hints(hints.correction))
    assert jumps.phase_axis == AXIS
    assert not image[brain == 0].any()
    assert squared(image, still, brain) < 0.7 * squared(bare, still, brain)


def test_refocus_undoes_jumps_where_no_periodic_motion_was_found(
    head, still, jumped, brain, all_lines, monkeypatch
):
    monkeypatch.setattr(whole, "find", lambda *_: None)
    given = 3 * jumped.numpy()
    found = whole.refocus(given, head.spacing, hints=hints_at(still, brain))
    top = float(np.percentile(given[given > 0], 99.9)) / 1000
    assert found.applied
    assert found.reason == (
        f"jumps of {found.motion['RMSDisplacement']:.1f} mm, phase encoding along axis {AXIS}"
    )
    assert found.entropy_after != found.entropy_before
    wrong = [
        squared(torch.from_numpy(image) / top, still * 3 / top, brain)
        for image in (given, found.image)
    ]
    assert wrong[1] < 0.6 * wrong[0]
    assert not whole.refocus(given, head.spacing).applied


def test_refocus_does_not_look_for_jumps_after_periodic_motion(head, moved, monkeypatch):
    periodic = {
        "Model": "periodic",
        "RMSDisplacement": 1.0,
        "PhaseEncodingAxis": 0,
        "Frequency": 0.2,
    }
    monkeypatch.setattr(
        whole, "_without_motion", lambda image, *_: whole._Mended(image, 1.0, periodic)
    )
    monkeypatch.setattr(whole, "find_jumps", lambda *_: pytest.fail("looked for"))
    found = whole.refocus(moved, head.spacing, hints=Hints(lambda *_: torch.zeros(1)))
    assert found.motion == periodic
