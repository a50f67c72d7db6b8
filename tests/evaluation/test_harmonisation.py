# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.evaluation import benchmark, harmonisation
from bmex_bids.evaluation.benchmark import run_units
from bmex_bids.evaluation.harmonisation import ALL, BINS, ENHANCED, MATCHED, NAMES
from bmex_bids.evaluation.judge import SEGMENTERS, segmenters
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.subjects import Subject


def test_the_command_says_that_mended_scanners_are_nearer(painted, monkeypatch, capsys):
    monkeypatch.setattr(harmonisation, "PAINTED", dict.fromkeys(painted.images))
    page = painted.data / "page.md"
    page.write_text("<!-- harmonisation: begin -->\nold\n<!-- harmonisation: end -->\n")
    words = ["harmonisation", "--data", painted.data, "--out", painted.out, "--device", "cpu"]
    words += ["--images", ";".join(painted.images), "--page", page]
    assert evaluate.main([*map(str, words)]) == 0
    said = capsys.readouterr().out
    assert "bundled weights by age" in said
    assert "3 to compute" in said
    text = (painted.out / "harmonisation.md").read_text()
    by_age = replace(painted, by_age=True)
    units = list(harmonisation.plan(by_age))
    figures = run_units(by_age, units, harmonisation.do_unit, harmonisation.TABLE, compute=False)
    lines = harmonisation.table(figures).splitlines()
    assert len(lines) > 8
    for line in lines:
        assert line in text
        assert line in page.read_text()
    cells = [
        line.split(" | ") for line in text.splitlines() if line.startswith("| painted heads |")
    ]
    found = {words[1]: words for words in cells}
    for measure in (
        "RMSE between two scanners, template units",
        "RMSE to the image without a scanner",
    ):
        matched, enhanced = (float(value) for value in found[measure][3:5])
        # the stub takes half of what a scanner did
        assert enhanced == pytest.approx(matched / 2, rel=0.02)
        assert found[measure][6] == "3 of 3"
    for name in segmenters():
        assert f"spread of GM, %, {SEGMENTERS[name]}" in found
    assert harmonisation.CHANCE in found
    assert "| all |" not in text  # there are no others
    assert evaluate.main([*map(str, words)]) == 0
    assert "0 to compute" in capsys.readouterr().out


def test_scanners_change_what_they_say_and_keep_the_units(painted):
    truth = benchmark.truth_of(painted, painted.images[0])
    seen = {name: harmonisation.scanned(truth, name) for name in NAMES}
    clean = truth.clean.data
    inside = truth.mask
    for name, image in seen.items():
        assert image.min() >= 0
        assert np.abs(image - clean)[inside].mean() > 1, name
    ratio = {
        name: np.quantile(image[inside], 0.9) / np.quantile(image[inside], 0.1)
        for name, image in {**seen, "clean": clean}.items()
    }
    assert ratio["B"] > 1.1 * ratio["clean"]  # the contrast is bent both ways
    assert ratio["C"] < 0.9 * ratio["clean"]
    np.testing.assert_array_equal(seen["C"], harmonisation.scanned(truth, "C"))


def rows(shares):
    """Histograms of three brains in all scanners, by a function of brain and scanner."""
    return [
        Row(f"brain{b}", ALL, stage, "k", f"shares_{name}_{k}", value)
        for stage in (MATCHED, ENHANCED)
        for b in range(3)
        for place, name in enumerate(NAMES)
        for k, value in enumerate(shares(stage, b, place))
    ]


def test_a_classifier_finds_the_scanner_where_histograms_tell_it():
    def shares(stage, brain, place):
        rng = np.random.default_rng([brain, place])
        base = rng.normal(0, 0.01, BINS)
        if stage == MATCHED:
            base[place] += 1.0
        return base

    found = {stage: harmonisation.classified(rows(shares), stage) for stage in (MATCHED, ENHANCED)}
    assert set(found[MATCHED].values()) == {1.0}
    assert np.mean(list(found[ENHANCED].values())) < 0.8
    two = [row for row in rows(shares) if row.image != "brain2"]
    assert harmonisation.classified(two, MATCHED) == {}


def test_the_app_s_choice_of_weights_is_taken_for_each_age(painted):
    by_age = replace(painted, by_age=True)
    adult = by_age.networks_for(Subject("x", 300, "adult", 1)).enhance
    infant = by_age.networks_for(Subject("x", 3, "infant", 1)).enhance
    assert adult.from_months > 24
    assert infant.from_months == 0
    assert painted.networks_for(Subject("x", 300, "adult", 1)) == painted.networks
