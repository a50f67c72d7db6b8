# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np

from bmex_bids.degrade.kinds import ACTS
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.evaluation.cells import CELLS, MOTION, NOISY, RESOLUTION, SAMPLE, fingerprint
from bmex_bids.training.enhance import cell_recipe


def test_the_table_has_every_cell_that_was_asked_for():
    assert len(MOTION) == 3 * 3 + 2
    assert len(NOISY) == 2 * 3
    assert RESOLUTION == ("1.6 mm", "2.4 mm")
    assert len(CELLS) == 1 + 11 + 2 + 6 + 3
    assert set(SAMPLE) <= set(CELLS)


def test_the_same_seed_gives_the_same_recipe_and_motion_comes_before_slices():
    cell = CELLS["moderate 2.4 mm"]
    assert cell.recipe(3).to_json() == cell.recipe(3).to_json() != cell.recipe(4).to_json()
    assert [step["kind"] for step in cell.recipe(3).steps] == ["motion-periodic", "low-resolution"]
    assert CELLS["clean"].recipe(0).steps == ()


def test_cells_that_the_quick_benchmark_has_too_are_the_same():
    for name in ("minor", "moderate", "severe"):
        assert CELLS[name].recipe(1).to_json() == cell_recipe(name, 1).to_json()
    (slices,) = CELLS["2.4 mm"].recipe(1).steps
    # there the methods put slices together; here there is one way, the application's
    assert cell_recipe("2.4 mm", 1).steps == ({**slices, "degree": 3},)


def test_a_fingerprint_knows_the_recipe_and_what_its_steps_do(monkeypatch):
    recipe = CELLS["rician 5%"].recipe(0)
    before = fingerprint(recipe)
    assert before == fingerprint(Recipe.from_json(recipe.to_json()))
    assert before != fingerprint(CELLS["rician 5%"].recipe(1))
    other = replace(ACTS["rician-noise"], apply=lambda image, *_: image + np.float32(50))
    monkeypatch.setitem(ACTS, "rician-noise", other)
    assert before != fingerprint(recipe)
