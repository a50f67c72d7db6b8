# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from bmex_bids.degrade.intensity import bias_field, gamma
from bmex_bids.degrade.kinds import ACTS
from bmex_bids.degrade.levels import draw
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import SEVERITIES, usual_frequency

NAMES = ["clean", *SEVERITIES, "motion", "low-resolution", "noise", "smoothing", "mixed"]


@pytest.fixture
def image() -> np.ndarray:
    blocks = np.zeros((24, 28, 26), np.float32)
    blocks[6:18, 7:20, 6:19] = 400
    blocks[9:12, 9:14, 9:15] = 700
    return gaussian_filter(blocks, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_read_from_json_makes_the_same_image(name, image):
    recipe = draw(name, np.random.default_rng(7))
    again = Recipe.from_json(recipe.to_json())
    spacing = (0.8, 0.8, 0.8)
    assert_array_equal(recipe.apply(image, spacing), again.apply(image, spacing))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_draws_the_same_recipe(name):
    assert draw(name, np.random.default_rng(3)) == draw(name, np.random.default_rng(3))


def test_weak_noise_is_drawn_as_often_as_strong():
    rng = np.random.default_rng(0)
    sigmas = [draw("noise", rng).steps[0]["sigma"] for _ in range(1000)]
    assert min(sigmas) >= 2
    assert max(sigmas) <= 70
    assert np.mean(np.array(sigmas) < np.sqrt(2 * 70)) == pytest.approx(0.5, abs=0.06)


def test_clean_changes_nothing(image):
    assert_array_equal(draw("clean", np.random.default_rng(0)).apply(image, (1, 1, 1)), image)


def test_the_input_is_not_changed(image):
    before = image.copy()
    for seed in range(5):
        draw("mixed", np.random.default_rng(seed)).apply(image, (0.8, 0.8, 0.8))
    assert_array_equal(image, before)


def test_severities_grow(image):
    error = [
        np.abs(draw(name, np.random.default_rng(0)).apply(image, (0.8,) * 3) - image).mean()
        for name in ("minor", "moderate", "severe")
    ]
    assert error == sorted(error)


def test_mixed_draws_every_kind_that_pairs_may_have():
    rng = np.random.default_rng(0)
    kinds = {step["kind"] for _ in range(200) for step in draw("mixed", rng).steps}
    assert {"motion-periodic", "motion-piecewise", "low-resolution", "rician-noise"} <= kinds
    assert kinds <= set(ACTS)


def test_noisy_motion_is_motion_and_then_noise():
    for seed in range(20):
        steps = draw("noisy-motion", np.random.default_rng(seed)).steps
        kinds = [step["kind"] for step in steps]
        assert kinds[0].startswith("motion-")
        assert kinds[-1].endswith("-noise")
        assert set(kinds[1:-1]) <= {"low-resolution"}


def test_motion_is_drawn_in_all_sizes_and_now_and_then_with_thick_slices():
    rng = np.random.default_rng(0)
    recipes = [draw("motion", rng).steps for _ in range(400)]
    assert all(steps[0]["kind"].startswith("motion-") for steps in recipes)
    thick = np.mean([len(steps) == 2 for steps in recipes])
    assert 0.35 < thick < 0.49
    sizes = [np.linalg.norm(steps[0].get("amplitude", [])[:3]) for steps in recipes]
    assert max(sizes) > SEVERITIES["severe+"][0]


def test_half_of_the_motion_has_about_the_pace_of_the_severities():
    rng = np.random.default_rng(0)
    steps = [draw("motion", rng).steps[0] for _ in range(600)]
    steps = [step for step in steps if step["kind"] == "motion-periodic"]
    strong = [s for s in steps if 1.0 < np.linalg.norm(s["amplitude"][:3]) < 2.2]  # slow ones
    near = [
        abs(np.log(s["frequency"] / usual_frequency(np.linalg.norm(s["amplitude"][:3])))) < 0.5
        for s in strong
    ]
    assert 0.5 < np.mean(near) < 0.8  # of the others a fifth by chance
    paces = [step["frequency"] for step in steps]
    assert 0.02 <= min(paces) < 0.06
    assert 0.5 < max(paces) <= 0.55


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="expected one of"):
        draw("terrible", np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected steps of"):
        Recipe.from_json('{"steps": [{"kind": "magic"}]}')


@pytest.mark.parametrize("kind", sorted(ACTS))
def test_a_step_that_is_read_is_checked(kind):
    with pytest.raises(ValueError, match="step 1"):
        Recipe.from_dict({"steps": [{"kind": kind, "nonsense": 1}]})


def test_bias_field_is_exact_at_the_corners():
    control = np.zeros((2, 2, 2))
    control[1, 0, 1] = np.log(3.0)
    result = bias_field(np.full((5, 5, 5), 10, np.float32), control)
    assert result[4, 0, 4] == pytest.approx(30, rel=1e-5)
    assert result[0, 4, 0] == pytest.approx(10, rel=1e-5)


def test_gamma_keeps_zero_and_the_reference():
    values = np.array([[[0.0, 250.0, 500.0]]], np.float32)
    assert_allclose(gamma(values, 2.0, 500.0).ravel(), [0, 125, 500], rtol=1e-6)
