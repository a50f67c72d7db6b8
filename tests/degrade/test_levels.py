# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from bmex_bids.degrade.kinds import ACTS, KINDS
from bmex_bids.degrade.levels import draw, draw_level
from bmex_bids.degrade.motion import _quantise, periodic, piecewise
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import SEVERITIES, Scan, usual_frequency

SPACING = (0.8, 0.8, 0.8)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    blocks = np.zeros((24, 30, 26), np.float32)
    blocks[6:18, 7:20, 6:19] = 400
    blocks[9:12, 9:14, 9:15] = 700
    return gaussian_filter(blocks, 1)


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_back_and_does_the_same(kind, image):
    recipe = draw_level(kind, "severe", rng())
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert_array_equal(again.apply(image, SPACING), recipe.apply(image, SPACING))
    assert recipe == draw_level(kind, "severe", rng())


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_level_is_worse(kind, image):
    wide = np.pad(image, 8)  # nothing comes in again on the other side
    error = [
        np.mean(
            [
                np.abs(draw_level(kind, level, rng(seed)).apply(wide, SPACING) - wide).mean()
                for seed in range(3)
            ]
        )
        for level in ("minor", "moderate", "severe")
    ]
    assert 0 < error[0] < error[1] < error[2]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_kind_is_the_identity(kind, image):
    nothing = 1.0 if kind == "contrast" else 0.0
    result = draw_level(kind, nothing, rng()).apply(image, SPACING)
    assert_allclose(result, np.abs(image), atol=2e-3)


def test_each_act_is_reached_by_a_kind():
    kinds = {draw_level(kind, "minor", rng()).steps[0]["kind"] for kind in KINDS}
    assert kinds == set(ACTS)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_periodic_motion_is_what_draw_always_drew(severity):
    """The figures of the short benchmark hang on it."""
    assert draw_level("motion-periodic", severity, rng()) == draw(severity, rng())


def test_the_severities_are_those_of_the_paper():
    table = {name: (a, usual_frequency(a)) for name, (a, _) in SEVERITIES.items()}
    assert table == {
        "minor": (1, pytest.approx(0.12)),
        "moderate": (2, pytest.approx(0.18)),
        "severe": (3, pytest.approx(0.42)),
        "severe+": (4, pytest.approx(0.48)),
        "severe++": (5, pytest.approx(0.54)),
    }


@pytest.mark.parametrize("phase_axis", [0, 1, 2])
def test_motion_has_the_amplitude_that_was_asked_for(phase_axis):
    scan = Scan(phase_axis=phase_axis)
    for seed in range(20):
        (step,) = draw_level("motion-periodic", 3.0, rng(seed), scan).steps
        assert np.linalg.norm(step["amplitude"][:3]) == pytest.approx(3)
        assert 0.9 <= abs(step["amplitude"][3]) <= 3
        (step,) = draw_level("motion-sudden", 3.0, rng(seed), scan).steps
        poses = np.array(step["poses"])
        assert_allclose(np.linalg.norm(poses[1:, :3], axis=1), 3)
        assert_allclose(np.linalg.norm(poses[1:, 3:], axis=1), 3)
        (step,) = draw_level("motion-continuous", 3.0, rng(seed), scan).steps
        path = piecewise(100, step["times"], step["poses"], smooth=True)
        assert np.linalg.norm(path.translations[-1]) == pytest.approx(3)
        assert np.linalg.norm(path.rotations[-1]) == pytest.approx(3)
        # a drift: always onwards
        assert (np.diff(np.linalg.norm(path.translations, axis=1)) >= -1e-12).all()
        assert step["phase_axis"] == phase_axis


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_severity_has_its_own_frequency(severity):
    steps = draw_level("motion-periodic", severity, np.random.default_rng(0), Scan()).steps
    assert steps[0]["frequency"] == SEVERITIES[severity][1]


def test_periodic_motion_keeps_to_its_frequency():
    path = periodic(200, np.array([1.0, 0, 0, 0, 0, 0]), 0.12, 0.3)
    spectrum = np.abs(np.fft.rfft(path.translations[:, 0]))
    assert spectrum.argmax() == 24  # 0.12 cycles a line, 200 lines


@pytest.mark.parametrize("phase_axis", [0, 1, 2])
def test_blur_goes_along_the_read_out_whatever_the_phase_axis(phase_axis):
    (step,) = draw_level("blur", "minor", rng(), Scan(phase_axis=phase_axis)).steps
    assert step["readout_axis"] != step["phase_axis"] == phase_axis


def test_bias_has_the_stated_range_and_is_smooth():
    (step,) = draw_level("bias-field", 40.0, rng()).steps
    flat = np.full((40, 41, 42), 100, np.float32)
    field = Recipe((step,)).apply(flat, SPACING) / 100
    assert np.exp(np.min(step["control"])) == pytest.approx(0.8)
    assert np.exp(np.max(step["control"])) == pytest.approx(1.2)
    assert field.min() >= 0.8 - 1e-6
    assert field.max() <= 1.2 + 1e-6
    assert field.max() - field.min() > 0.39  # its extremes lie on the grid, near voxels
    # from one voxel to the next it changes by a small part of its range (3 knots, 40 voxels)
    for axis in range(3):
        assert np.abs(np.diff(field, axis=axis)).max() < 0.4 * 1.5 / 19


def test_noise_is_a_percentage_of_the_range():
    (step,) = draw_level("rician-noise", 2.5, rng(), Scan(intensity_range=400)).steps
    assert step["sigma"] == pytest.approx(10)


def test_slices_of_given_thickness_along_a_given_axis():
    (step,) = draw_level("low-resolution", 2.4, rng(), Scan(slice_axis=0)).steps
    assert step == {"kind": "low-resolution", "axis": 0, "thickness_mm": 2.4}


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("magic", "minor", "expected a kind of"),
        ("blur", "terrible", "a level of"),
        ("contrast", 0.5, "from 1 to 10"),
        ("ghosting", float("nan"), "from 0 to 95"),
        ("rician-noise", -1.0, "from 0 to 100"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, level, words):
    with pytest.raises(ValueError, match=words):
        draw_level(kind, level, rng())


def test_a_recipe_says_its_version_and_axes():
    table = json.loads(draw_level("blur", "minor", rng()).to_json())
    assert (table["format"], table["version"], table["axes"]) == ("bmex-degrade recipe", 1, "LPS")


def test_a_recipe_from_before_versions_is_still_read():
    assert Recipe.from_json('{"steps": [{"kind": "smoothing", "fwhm_mm": 1.0}]}') == Recipe(
        ({"kind": "smoothing", "fwhm_mm": 1.0},)
    )


GOOD = {"kind": "motion-piecewise", "times": [0.0, 0.5], "poses": [[0.0] * 6, [1.0] * 6],
        "smooth": False, "phase_axis": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 1, got 2"),
        ({"axes": "RAS"}, "axes LPS, got 'RAS'"),
        ({"steps": "none"}, "list of"),
        ({"steps": ["blur"]}, r"got \['blur'\]"),
        ({"steps": [{}]}, r"got \['None'\]"),
        ({"steps": [{"kind": "smoothing"}]}, "'fwhm_mm' in step 1"),
        ({"steps": [{"kind": "smoothing", "fwhm_mm": "2"}]}, "expected a number"),
        ({"steps": [{"kind": "smoothing", "fwhm_mm": float("nan")}]}, "expected a number"),
        ({"steps": [{"kind": "smoothing", "fwhm_mm": -1}]}, "from 0"),
        ({"steps": [{"kind": "smoothing", "fwhm_mm": True}]}, "expected a number"),
        ({"steps": [{"kind": "smoothing", "fwhm_mm": 1, "sigma": 1}]}, r"got \['sigma'\]"),
        ({"steps": [{**GOOD, "phase_axis": 3}]}, "whole number from 0 to 2"),
        ({"steps": [{**GOOD, "phase_axis": 1.0}]}, "whole number from 0 to 2"),
        ({"steps": [{**GOOD, "poses": [[0.0] * 5] * 2}]}, "n × 6 finite numbers"),
        ({"steps": [{**GOOD, "poses": [[0.0] * 6, [1.0]]}]}, "n × 6 numbers"),
        ({"steps": [{**GOOD, "times": [0.5, 0.0]}]}, "increasing 'times'"),
        ({"steps": [{**GOOD, "times": [0.5]}]}, "increasing 'times'"),
        ({"steps": [{**GOOD, "smooth": 1}]}, "true or false"),
        (
            {"steps": [{"kind": "line-jitter", "sigma": 1, "seed": 0, "phase_axis": 1,
                        "readout_axis": 1}]},
            "across the phase axis",
        ),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_with_the_reason(change, words):
    with pytest.raises(ValueError, match=words):
        Recipe.from_dict({"steps": [GOOD], **change})
    assert Recipe.from_dict({"steps": [GOOD]}).steps == (GOOD,)


@pytest.mark.parametrize("level", ["moderate", "severe", "severe++"])
def test_each_jump_has_its_own_rotation(level):
    """Poses were grouped along one direction, and in three of four draws two jumps became one."""
    for seed in range(20):
        (step,) = draw_level("motion-sudden", level, rng(seed)).steps
        poses = np.array(step["poses"])[:, 3:]
        labels, centres = _quantise(np.repeat(poses, 9, axis=0), step["max_rotations"])
        assert_array_equal(centres[labels], np.repeat(poses, 9, axis=0))
