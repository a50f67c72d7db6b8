# SPDX-License-Identifier: Apache-2.0
import dataclasses
import importlib
import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.common.tissues import TISSUES
from bmex_bids.evaluation import prepared, subjects, summary, uncertainty
from bmex_bids.evaluation.app import Networks
from bmex_bids.evaluation.benchmark import Settings
from bmex_bids.evaluation.rows import Row, append
from bmex_bids.evaluation.subjects import Subject
from bmex_bids.evaluation.summary import Table
from bmex_bids.exceptions import UsageError
from bmex_bids.metrics.confidence import coverage
from bmex_bids.metrics.familiarity import FEATURES


@pytest.fixture
def settings(tmp_path, tiny_slices, head_phantom, monkeypatch):
    """A tiny stripped brain that judges, one that trained, and weights that give their input back."""
    phantom = head_phantom(spacing=2.0, size=0.28)  # as large as a young fetus
    nib.save(phantom.brain, tmp_path / "brain.nii.gz")
    for module, name, image in (
        (subjects, "SUBJECTS", "one"), (summary, "SUBJECTS", "one"),
        (uncertainty, "SUBJECTS", "one"), (subjects, "TRAINED", "other"),
        (uncertainty, "TRAINED", "other"),
    ):  # fmt: skip
        table = {image: Subject("brain.nii.gz", 5, "fetus", len(image), contrast="T2w")}
        monkeypatch.setattr(module, name, table)
    monkeypatch.setattr(uncertainty, "IMAGES", ("one",))
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_slices)
    monkeypatch.setattr(uncertainty, "bundled", lambda: tiny_slices)
    by = {record.kind: record for record in tiny_slices}
    return Settings(
        data=tmp_path,
        out=tmp_path / "out",
        networks=Networks(by["enhance"], by["strip"], device="cpu"),
        images=("one",),
        cells=("clean", "noise 2.5%"),
    )


def test_the_error_is_what_the_damage_left(settings, monkeypatch):
    """Without motion correction, and weights that give their input back."""
    monkeypatch.setattr(uncertainty, "refocused", lambda brain, bad, *_: bad)
    clean, noisy = uncertainty.plan(settings, ("one",), settings.cells)
    found = {(r.method, r.metric): r.value for r in uncertainty.do_unit(settings, noisy)}
    brain = prepared.prepare(settings.data, settings.out, "one", settings.networks)
    assert not brain.data[~brain.mask].any()
    assert not brain.mask[: prepared.AIR].any()
    assert brain.mask[prepared.AIR].any()
    bad = prepared.damage(brain, "noise 2.5%", 3)
    error = (bad - brain.data)[brain.mask]
    assert found["sigma", "rmse"] == pytest.approx(float(np.sqrt((error**2).mean())), rel=0.02)
    # untrained weights expect one error everywhere, and change nothing
    assert math.isnan(found["sigma", "spearman"])
    assert math.isnan(found["change", "spearman"])
    assert -1 < found["gradient", "spearman"] < 1
    shares = [found["sigma", f"covered_{k}"] for k in range(len(uncertainty.FACTORS))]
    np.testing.assert_array_equal(shares, sorted(shares))
    assert shares[0] < 0.9 < shares[-1]
    assert found["sigma", f"feature_{len(FEATURES) - 1}"] > -10
    assert set(uncertainty.volume_errors(Table(_rows(found)), "one", "noise 2.5%"))
    still = {(r.method, r.metric): r.value for r in uncertainty.do_unit(settings, clean)}
    assert still["sigma", "rmse"] < 0.1
    assert still["sigma", "litres_GM"] == still["sigma", "truth_GM"]


def _rows(found):
    return [Row("one", "noise 2.5%", m, "k", name, value) for (m, name), value in found.items()]


def _made_up(image, cell, size):
    """Errors ``size`` times as large as expected, volumes off by 0.01 litres for a spread of 0.05."""
    rng = np.random.default_rng(0)
    shares = coverage(size * rng.normal(0, 1, 50000), np.ones(50000), uncertainty.FACTORS)
    values = {f"covered_{k}": float(s) for k, s in enumerate(shares)}
    for tissue in TISSUES:
        values |= {
            f"litres_{tissue.label}": 0.51,
            f"truth_{tissue.label}": 0.5,
            f"spread_{tissue.label}": 0.05,
        }
    values |= {"rmse": 10.0, "expected": 9.0, "spearman": 0.7, "way": 0.6, "seconds": 1.0}
    return values


def _table(settings):
    settings.out.mkdir()
    return settings.out / uncertainty.TABLE


def made_up_rows(settings, sizes):
    units = [
        *uncertainty.plan(settings, ("one",), settings.cells),
        *uncertainty.plan(settings, ("other",), settings.cells),
    ]
    return [
        Row(*name, key, metric, value)
        for unit in units
        for name, key in unit.keys.items()
        for metric, value in _made_up(unit.image, unit.cell, sizes[unit.image]).items()
        if name[2] == "sigma" or metric in {"spearman", "way", "seconds"}
    ]


def test_only_images_that_do_not_judge_give_the_factor(settings):
    rows = made_up_rows(settings, {"one": 1.0, "other": 2.0})
    fitted = uncertainty.calibrate(Table(rows))
    assert fitted.error_scale == pytest.approx(2, rel=0.03)
    assert fitted.volume_scale == pytest.approx(0.01 / 0.05 / 2)
    only = [row for row in rows if row.image == "one"]
    assert math.isnan(uncertainty.calibrate(Table(only)).error_scale)
    assert uncertainty.covered(Table(rows), "one", "noise 2.5%", 1.0) == pytest.approx(
        0.95, abs=0.005
    )


def test_the_command_fits_stores_and_replaces_the_table_of_a_page(settings, tmp_path, capsys):
    append(_table(settings), made_up_rows(settings, {"one": 1, "other": 2}))
    digest = settings.networks.enhance.sha256
    weights, page = tmp_path / "weights.json", tmp_path / "page.md"
    weights.write_text(json.dumps({"sets": [{"sha256": "0"}, {"sha256": digest}]}))
    page.write_text("a <!-- uncertainty: begin --> old <!-- uncertainty: end --> b")
    flags = ["--data", str(settings.data), "--out", str(settings.out), "--device", "cpu"]
    flags += ["--cells", ";".join(settings.cells), "--tables-only"]
    assert (
        evaluate.main(["uncertainty", *flags, "--store", str(weights), "--page", str(page)]) == 0
    )
    first, second = json.loads(weights.read_text())["sets"]
    assert first == {"sha256": "0"}
    assert second["error_scale"] == pytest.approx(2, rel=0.03)
    assert second["volume_scale"] == pytest.approx(0.1)
    assert "usual" not in second  # of two samples there is no spread
    table = page.read_text()
    assert " old " not in table
    # half as many with the width of the error; all with twice that
    assert "| 95.0% | 100.0% | 100% |" in table.replace("99.9%", "100.0%").replace(
        "95.1%", "95.0%"
    )
    assert "Fitted to other images" in capsys.readouterr().out


def test_what_cannot_be_is_refused(settings, tmp_path, tiny_records):
    fitted = uncertainty.Calibration(1.0, 1.0)
    (tmp_path / "weights.json").write_text('{"sets": []}')
    with pytest.raises(UsageError, match="found none"):
        uncertainty.store(tmp_path / "weights.json", "0", fitted)
    with pytest.raises(UsageError, match="images that trained"):
        uncertainty.store(tmp_path / "weights.json", "0", replace(fitted, error_scale=math.nan))
    other = replace(settings, networks=replace(settings.networks, enhance=tiny_records[0]))
    with pytest.raises(UsageError, match="have learnt their error, got tiny"):
        list(uncertainty.plan(other, ("one",), ("clean",)))
    with pytest.raises(UsageError, match="give its folder with --data"):
        list(uncertainty.plan(replace(settings, data=tmp_path / "no"), ("one",), ("clean",)))


def test_what_is_usual_is_fitted_to_the_images_that_trained(settings, monkeypatch):
    rng = np.random.default_rng(0)
    names = [f"other-{k}" for k in range(20)]
    monkeypatch.setattr(uncertainty, "TRAINED", dict.fromkeys(names))
    rows = [
        Row(name, "minor", "sigma", "k", f"feature_{place}", float(value))
        for name in [*names, "one"]
        for place, value in enumerate(rng.normal(50 if name == "one" else 5, 1, len(FEATURES)))
    ]
    fitted = uncertainty.calibrate(Table(rows))
    np.testing.assert_allclose(fitted.usual["mean"], 5, atol=1)
    rows += [Row("one", "minor", "sigma", "k", "rmse", 1.0)]
    assert float(uncertainty.markdown(rows, fitted).split("(")[-1].split(")")[0]) > 10


def test_weights_are_judged_and_calibrated_on_images_of_an_age_that_they_serve(
    settings, tiny_slices, monkeypatch
):
    record = next(one for one in tiny_slices if one.kind == "enhance")
    monkeypatch.undo()
    old = dataclasses.replace(record, from_months=30.0)
    trained = ("adult-02", "adult-10", "adult-33", "head-09")
    judges = ("adult-31", "adult-68", "head-14", "head-child10")
    assert uncertainty.served_by(old, subjects.TRAINED) == trained
    young = dataclasses.replace(record, from_months=0.0)
    assert uncertainty.served_by(young, subjects.TRAINED) == tuple(subjects.TRAINED)
    done = []
    monkeypatch.setattr(uncertainty, "run_units", lambda _, units, *__, **___: done.extend(units))
    monkeypatch.setattr(uncertainty, "plan", lambda _, images, cells: images)
    networks = replace(settings.networks, enhance=old)
    uncertainty.run(replace(settings, networks=networks, images=uncertainty.IMAGES))
    assert tuple(done) == judges + trained


@pytest.mark.parametrize("module", ["uncertainty", "lesions"])
def test_the_network_gets_what_motion_correction_left_of_the_damage(settings, monkeypatch, module):
    """As in the app: a step that gives the clean image back leaves no error."""
    given = []

    def clean(brain, bad, subject, networks):
        given.append(float(np.abs(bad - brain.data).max()))
        return brain.data

    judge = importlib.import_module(f"bmex_bids.evaluation.{module}")
    monkeypatch.setattr(judge, "refocused", clean)
    brain = prepared.prepare(settings.data, settings.out, "one", settings.networks)
    if module == "uncertainty":
        _, noisy = uncertainty.plan(settings, ("one",), settings.cells)
        found = {(r.method, r.metric): r.value for r in judge.do_unit(settings, noisy)}
        assert found["sigma", "rmse"] < 0.1
    else:
        labels = np.zeros(brain.mask.shape, np.int32)
        labels[tuple(np.median(np.nonzero(brain.mask), 1).astype(int))] = 1
        case = judge.Case(brain, labels, ("stroke",), brain.mask & (labels == 0))
        monkeypatch.setattr(judge, "case_of", lambda *_: case)
        keys = {("one", "noise 2.5%", group): "k" for group in judge.GROUPS}
        unit = judge.Unit("one", "noise 2.5%", keys)
        found = {(r.method, r.metric): r.value for r in judge.do_unit(settings, unit)}
        assert found["stroke", "mse_after"] < 0.01 < found["stroke", "mse_before"]
    assert given[0] > 1


def test_refocused_is_the_first_step_of_the_app(settings, monkeypatch):
    """Spikes in k-space are found and removed, and nothing comes from outside the mask."""
    for search in ("find", "find_odd"):  # motion, which takes longer
        monkeypatch.setattr(f"bmex_bids.refocus.refocus.{search}", lambda *_: None)
    brain = prepared.prepare(settings.data, settings.out, "one", settings.networks)
    waves = np.fft.fftn(brain.data)
    waves[9, 20, 14] += 60 * np.abs(waves).max() / 100
    bad = np.where(brain.mask, np.abs(np.fft.ifftn(waves)), 0).astype(np.float32)
    mended = prepared.refocused(brain, bad, subjects.subject_of("one"), settings.networks)
    assert not mended[~brain.mask].any()
    error, left = (float(((x - brain.data) ** 2).mean()) for x in (bad, mended))
    assert left < 0.2 * error
