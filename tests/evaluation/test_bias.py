# SPDX-License-Identifier: Apache-2.0
"""Volumes of still and moved images: painted heads with a stub of the app, and a dataset."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.evaluation import anatomy, benchmark, bias, bias_page, subjects
from bmex_bids.evaluation.app import structures_in, volumes_in
from bmex_bids.evaluation.benchmark import run_units
from bmex_bids.evaluation.judge import segmenters
from bmex_bids.evaluation.pairs import Row
from bmex_bids.evaluation.subjects import load_clean
from bmex_bids.exceptions import UsageError
from bmex_bids.network.weights import registry
from bmex_bids.outputs.sidecar import structures_table


def test_the_true_volumes_are_those_of_the_map(painted):
    path = painted.data / "map1.nii.gz"
    labels = subjects.read_labels(path)
    mask = labels > 0
    found = anatomy.true_litres(path, mask)
    assert found["WM"] == found["white_matter"] == pytest.approx((labels == 2).sum() / 1e6)
    assert found["ventricles"] == pytest.approx((labels == 4).sum() / 1e6) != 0
    assert found["CSF"] == pytest.approx(np.isin(labels, [4, 24]).sum() / 1e6)
    without = anatomy.true_litres(path, np.zeros_like(mask))
    assert without["outer_fluid"] == 0
    assert without["CSF"] == without["ventricles"] == found["ventricles"] < found["CSF"]
    assert without["GM"] == found["GM"] > 0


def test_the_command_compares_still_and_moved_heads_with_the_truth(painted, monkeypatch, capsys):
    mine = [painted.networks.enhance, painted.networks.strip]  # none for structures
    monkeypatch.setattr(registry, "bundled", lambda: mine)
    words = ["bias", "--data", painted.data, "--out", painted.out, "--device", "cpu"]
    words += ["--images", ";".join(painted.images), "--cells", "severe"]
    page = painted.data / "page.md"
    page.write_text("a\n<!-- bias: begin -->\nold\n<!-- bias: end -->\nb\n")
    assert evaluate.main([*map(str, words), "--page", str(page)]) == 0
    assert "6 to compute" in capsys.readouterr().out
    severe = replace(painted, cells=("severe",), by_age=True)
    units = list(bias.plan(severe))
    figures = run_units(severe, units, bias.do_unit, bias.TABLE, compute=False)
    rows = bias.changes(figures)
    for name in segmenters():
        moved = [r for r in rows if (r.condition, r.measure) == ("severe", f"{name}_GM_litres")]
        still = [r for r in rows if (r.condition, r.measure) == ("still", f"{name}_GM_litres")]
        assert len(moved) == len(still) == 3
        assert all(row.before != row.still_value for row in moved)
        assert all(row.before == row.after == row.still_value > 0 for row in still)
    sizes = [r for r in rows if r.measure == "structure_ventricles" and r.condition == "severe"]
    assert all(math.isnan(row.before) and row.after == row.still_value for row in sizes)
    text = (painted.out / "bias.md").read_text()
    assert 0 < text.index("| still |") < text.index("| severe |")
    for words_of in ("GM, Otsu and Potts", "WM, tissues of the app"):
        assert f"| severe | {words_of} | 3 |" in text
        assert f"| still | {words_of} | 3 |" in text
    assert "ventricles, structures of the app" in text
    assert "slope after" in page.read_text()
    assert "old" not in page.read_text()
    assert evaluate.main([*map(str, words)]) == 0
    assert "0 to compute" in capsys.readouterr().out


def test_volumes_are_measured_in_what_the_app_makes(settings):
    """A small brain through the app's own workflow; untrained weights return their input."""
    unit = next(bias.plan(settings))
    found = {(row.method, row.metric): row.value for row in bias.do_unit(settings, unit)}
    mask = load_clean(settings.data, subjects.SUBJECTS["one"]).mask
    litres = mask.sum() * 8 / 1e6  # voxels of 2 mm
    for source in ("network", *segmenters()):
        for method in (bias.BEFORE, bias.AFTER):
            parts = [found[method, f"{source}_{name}_litres"] for name in ("CSF", "GM", "WM")]
            assert sum(parts) == pytest.approx(litres, rel=0.15), (source, method)
    assert not any(metric.startswith("structure_") for _, metric in found)


def test_cells_and_images_that_there_are_not_are_refused(painted):
    with pytest.raises(UsageError, match="got worst"):
        list(bias.plan(replace(painted, cells=("worst",))))
    with pytest.raises(UsageError, match="got nobody"):
        list(bias.plan(replace(painted, images=("nobody",))))


def test_structures_are_asked_of_the_app_where_a_network_is_bundled(painted, monkeypatch):
    record = replace(painted.networks.enhance, kind="segment")
    told = []
    monkeypatch.setattr(registry, "bundled", lambda: [painted.networks.strip, record])
    monkeypatch.setattr(bias, "plan", lambda settings: [])
    monkeypatch.setattr(
        benchmark, "run_units", lambda settings, *_, **__: told.append(settings) or []
    )
    assert evaluate.main(["bias", "--out", str(painted.out), "--device", "cpu"]) == 0
    assert told[0].networks.structures == record
    assert told[0].networks.version != painted.networks.version


def test_a_pull_to_the_mean_shows_in_the_slope():
    true = [0.4, 0.5, 0.6, 0.7]
    truth = {(f"h{k}", "GM"): value for k, value in enumerate(true)}
    rows = [
        Row(f"h{k}", f"h{k}", "severe", "own_GM_litres", value, 0.55 + (value - 0.55) / 2, value)
        for k, value in enumerate(true)
    ]
    text = bias_page.markdown(rows, truth, heading="made up")
    assert "| severe | GM, Otsu and Potts | 4 | 0.55 | +0.0% | +2.2% | 1.00 | 0.50 |" in text


def test_tables_without_volumes_have_none(tmp_path):
    table = tmp_path / "a_dseg.tsv"
    table.write_text(structures_table({"hippocampus_ml": 3.97, "ventricles_ml": None}))
    assert volumes_in(table) == pytest.approx({"hippocampus": 0.00397})
    table.write_text("index\tname\n17\thippocampus\n")
    assert volumes_in(table) == {}


def test_structures_of_the_app_are_taken_where_it_labels_them():
    segment = SimpleNamespace(
        quality={"score": 1, "Structures": {"weights": "x", "hippocampus_ml": 4.2}}
    )
    assert structures_in({"segment": segment}) == pytest.approx({"hippocampus": 0.0042})
    assert structures_in({}) == {}


def test_a_dataset_needs_both_choices(tmp_path, capsys):
    words = ["bias", "--bids", str(tmp_path), "--out", str(tmp_path / "out")]
    assert evaluate.main(words) == 2
    assert "--reference and --moved" in capsys.readouterr().err
