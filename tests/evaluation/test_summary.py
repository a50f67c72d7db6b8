# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from bmex_bids.evaluation.cells import MOTION
from bmex_bids.evaluation.figures import write_figures
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.summary import Table, goals, markdown


def rows_of(cell, image="sub-1", **methods):
    """``rows_of("minor", bmex={"psnr": 30})``."""
    return [
        Row(image, cell, method.replace("_", " "), "k", metric, value)
        for method, figures in methods.items()
        for metric, value in figures.items()
    ]


def found(rows, word):
    (goal,) = [goal for goal in goals(Table(rows)) if word in goal.words]
    return goal


def figures(psnr, ssim=0.9, ms_ssim=0.95, **more):
    return {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim, **more}


def test_without_rows_every_goal_was_not_run():
    assert {goal.verdict for goal in goals(Table([]))} == {"not run"}


def test_one_worse_measure_against_one_baseline_in_one_cell_fails_the_goal_and_is_named():
    others = {name: figures(30) for name in ("degraded", "tv", "n4")}
    good = rows_of("minor", bmex=figures(31, 0.95, 0.98), nlm=figures(30.5), **others)
    assert found(good, "every baseline").verdict.startswith("reached")
    others |= {"nlm": figures(30), "cubic": figures(30, 0.96), "lanczos": figures(30)}
    bad = [*good, *rows_of("2.4 mm", bmex=figures(31, 0.95, 0.98), **others)]
    goal = found(bad, "every baseline")
    assert goal.verdict == "not reached"
    assert "1 of 2" in goal.found
    assert "2.4 mm (SSIM cubic)" in goal.found


def test_noise_allows_three_tenths_of_a_decibel():
    near = rows_of("rician 5%", bmex=figures(29.8), nlm=figures(30), tv=figures(29))
    assert found(near, "denoiser").verdict.startswith("reached")
    far = rows_of("rician 5%", bmex=figures(29.6), nlm=figures(30), tv=figures(29))
    assert found(far, "denoiser").verdict == "not reached"


PART = "reached in the part that was run"


@pytest.mark.parametrize(("after", "verdict"), [(57.9, PART), (58.1, "not reached")])
def test_the_mean_squared_error_has_to_fall_by_42_per_cent(after, verdict):
    rows = rows_of("severe", bmex={"mse": after}, degraded={"mse": 100.0})
    assert found(rows, "mean squared error").verdict == verdict


def test_clean_images_keep_their_decibels_and_volumes():
    rows = rows_of(
        "clean", bmex=figures(35, volume_dark=0.01, volume_middle=-0.03, volume_bright=0)
    )
    assert found(rows, "keeps PSNR").verdict.startswith("reached")
    goal = found(rows, "volumes")
    assert goal.verdict == "not reached"
    assert "middle (-3.0%)" in goal.found


def test_a_goal_is_reached_only_when_every_cell_was_run():
    rows = [
        row
        for image in ("sub-0003", "sub-0007")
        for cell in MOTION
        for row in rows_of(cell, image, bmex={"mse": 50}, degraded={"mse": 100})
    ]
    assert found(rows, "mean squared error").verdict == "reached"
    assert found(rows[2:], "mean squared error").verdict == PART


def test_a_goal_is_not_reached_without_what_it_compares_with():
    """One image, and no baseline but the degraded image, were "better than every baseline: reached"."""
    rows = [
        row
        for cell in (*MOTION, "1.6 mm", "2.4 mm", "rician 5%", "clean")
        for row in rows_of(cell, "sub-0003", bmex=figures(35, 0.95, 0.98), degraded=figures(30))
    ]
    assert found(rows, "every baseline").verdict == "not run"
    assert found(rows, "denoiser").verdict == "not run"
    assert found(rows, "keeps PSNR").verdict == PART


def test_dice_registration_contrast_and_ablation():
    rows = [
        *rows_of("minor", bmex={"dice": 0.9, "psnr": 31}, degraded={"dice": 0.8},
                 ablation={"psnr": 30}),
        *rows_of("minor", bmex_registered={"registration_dice": 0.7},
                 degraded_registered={"registration_dice": 0.71}),
        *rows_of("as it is", bmex={"tct_before": 1.0, "tct_after": 1.1}),
    ]  # fmt: skip
    assert found(rows, "segmentation Dice").verdict.startswith("reached")
    assert found(rows, "registration Dice").verdict == "not reached"
    assert found(rows, "TCT").verdict.startswith("reached")
    assert found(rows, "without tissues").verdict.startswith("reached")


def full_table():
    rows = []
    for image in ("sub-1", "sub-2"):
        for cell in ("clean", "minor", "severe", "2.4 mm", "rician 5%"):
            degraded = math.inf if cell == "clean" else 30.0
            shift = 0.1 if image == "sub-2" else 0.0
            rows += rows_of(
                cell, image,
                degraded=figures(degraded, dice=0.8, volume_dark=0.1, mse=2.0),
                nlm=figures(30.5 + shift, dice=0.82, mse=1.5),
                bmex=figures(31 + shift, 0.95, 0.97, dice=0.9, volume_dark=0.05, mse=1.0),
            )  # fmt: skip
        rows += rows_of("as it is", image, bmex={"tct_before": 1.0, "tct_after": 1.1})
        rows += rows_of("scanners", image, bmex={"histogram_degraded_A-B": 0.3})
    return rows


def test_the_markdown_names_weights_goals_cells_and_marks_the_best():
    text = markdown(full_table(), "my-weights", "0123456789abcdef")
    assert "`my-weights`" in text
    assert "0123456789ab" in text
    assert "| minor (2) | 30.00 | 30.55 | **31.05** |" in text
    assert "| clean (2) | ∞ |" in text
    assert "| motion | nlm | PSNR | 2 | +0.5000 |" in text
    assert "each draw" not in text.partition("### Tests")[0]
    assert "### UQI" not in text
    assert "### Synthetic scanners" in text
    assert "| sub-1 | 0.3000 |" in text
    assert "nan" not in text


def test_goals_are_judged_on_the_mean_of_the_draws_and_each_draw_is_counted_too():
    rows = []
    for image, after in (("sub-0003", 0.9), ("sub-0003 draw 2", 0.79), ("sub-0007", 0.85)):
        rows += rows_of(
            "minor", image, bmex=figures(31, dice=after), degraded=figures(30, dice=0.8)
        )
    text = markdown(rows, "my-weights", "0" * 64)
    (line,) = [one for one in text.splitlines() if "segmentation Dice" in one]
    assert "| mean +0.0475; 2 of 2 | mean +0.0467; 2 of 3; not: sub-0003 draw 2 minor |" in line
    assert "Images: sub-0003, sub-0007, 3 draws in all." in text
    assert "| minor (2) | 0.8000 | **0.8475** |" in text  # 0.845 and 0.85


def test_cells_of_one_draw_are_one_pair():
    """They were taken for independent: 22 pairs of two draws gave p = 0.0002."""
    rows = [
        row
        for image, gain in (("sub-0003", 1.0), ("sub-0003 draw 2", 3.0), ("sub-0007", 2.0))
        for cell, more in (("minor", 0.5), ("severe", -0.5))
        for row in rows_of(
            cell, image, bmex={"psnr": 30 + gain + more}, degraded={"psnr": 30.0}
        )
    ]  # fmt: skip
    text = markdown(rows, "my-weights", "0" * 64)
    # by hand: gains 1, 3, 2; mean 2, deviation 1; t = 2·√3 with two degrees of freedom
    assert "| motion | degraded | PSNR | 3 | +2.0000 | +2.00 | 0.074 |" in text


def test_figures_are_drawn_of_what_is_there(tmp_path):
    paths = write_figures(full_table(), tmp_path, ["sub-1", "sub-2"])
    assert {path.name for path in paths} == {"gains.png", "contrast.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert write_figures([], tmp_path, ["sub-1"]) == []
