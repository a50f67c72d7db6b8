# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.evaluation import lesions
from bmex_bids.evaluation.app import Networks
from bmex_bids.evaluation.benchmark import Settings
from bmex_bids.evaluation.lesions import Case, figures_of, group_of
from bmex_bids.evaluation.prepared import Prepared
from bmex_bids.evaluation.rows import Row, append
from bmex_bids.training.lesions import Lesion, draw, from_json, put_in


@pytest.fixture
def case():
    """Two lesions of 8 mm and one of 4 mm in a block of white matter with a little texture."""
    rng = np.random.default_rng(0)
    mask = np.pad(np.ones((50, 44, 40), bool), 5)
    data = np.where(mask, 500 + rng.normal(0, 5, mask.shape), 0).astype(np.float32)
    brain = Prepared(data, mask, np.eye(4) * [-1, -1, 1, 1])
    found = draw(rng, mask, brain.spacing, [(8.0, -0.2), (8.0, -0.3), (4.0, -0.3)])
    image, labels = put_in(data, mask, brain.spacing, found)
    groups = tuple(map(group_of, found))
    return Case(
        Prepared(image, mask, brain.affine), labels, groups, mask & (labels == 0), tuple(found)
    )


def test_what_leaves_a_lesion_alone_keeps_it(case):
    truth = case.brain.data
    deviation = np.where(case.labels > 0, 20, 10).astype(np.float32)
    figures = figures_of(case, truth, truth, deviation)
    assert [figures[g]["n"] for g in ("drawn 8 mm", "drawn 4 mm", "stroke")] == [2, 1, 0]
    eight = figures["drawn 8 mm"]
    assert eight["kept_after"] == pytest.approx(eight["contrast"])
    assert eight["there_after"] == 1
    assert eight["mse_after"] == 0
    assert eight["seen_truth"] > 0.99
    assert eight["sigma_ratio"] == 2
    assert eight["sigma_auroc"] == 1


def test_what_smooths_a_lesion_away_is_seen(case):
    """The damaged image has it all, the enhanced one a quarter of it."""
    truth = case.brain.data
    flat = np.where(case.labels > 0, 500 + (truth - 500) / 4, truth)
    eight = figures_of(case, truth, flat, None)["drawn 8 mm"]
    assert eight["kept_before"] == pytest.approx(eight["contrast"])
    assert eight["kept_after"] == pytest.approx(eight["contrast"] / 4, rel=0.05)
    assert (eight["there_before"], eight["there_after"]) == (1, 0)
    assert eight["mse_after"] > 100
    assert "sigma_ratio" not in eight


def test_a_unit_has_rows_of_every_group_a_picture_and_its_lesions(
    case, tiny_slices, tmp_path, monkeypatch
):
    """Untrained weights give their input back: what is kept is what the damage left."""
    monkeypatch.setattr(lesions, "refocused", lambda brain, bad, *_: bad)
    monkeypatch.setattr(lesions, "prepare", lambda *_: case.brain)
    monkeypatch.setattr(lesions, "case_of", lambda *_: case)
    by = {record.kind: record for record in tiny_slices}
    networks = Networks(by["enhance"], by["strip"], device="cpu")
    settings = Settings(data=tmp_path, out=tmp_path, networks=networks)
    keys = {("adult-31", "noise 2.5%", group): "k" for group in lesions.GROUPS}
    rows = lesions.do_unit(settings, lesions.Unit("adult-31", "noise 2.5%", keys))
    found = {(row.method, row.metric): row.value for row in rows}
    assert {method for method, _ in found} == {*lesions.GROUPS}
    assert found["stroke", "n"] == 0
    eight = {metric: value for (method, metric), value in found.items() if method == "drawn 8 mm"}
    assert eight["kept_after"] == pytest.approx(eight["kept_before"], rel=0.02)
    assert eight["sigma_ratio"] == pytest.approx(1, abs=0.01)
    assert from_json((tmp_path / "lesions_adult-31.json").read_text()) == list(case.lesions)
    assert (tmp_path / "lesions_adult-31_noise-2.5pc.png").read_bytes().startswith(b"\x89PNG")


def test_groups():
    assert group_of(Lesion((0, 0, 0), 8.0, -0.1, 0.5)) == "drawn 8 mm"
    assert group_of(Lesion((0, 0, 0), 12.0, -0.1, 0.5, source="sub-5")) == "stroke"
    assert group_of(Lesion((0, 0, 0), 3.9, -0.1, 0.5, source="patient26:1")) == "MS < 4 mm"
    assert sorted(sum(lesions.SIZES.values(), ())) == sorted(lesions.GROUPS)
    assert {group_of(Lesion((0, 0, 0), 4.0, 0.1, 0.5, source="p:1")), "stroke"} <= {
        *lesions.GROUPS
    }


def test_the_command_writes_the_table(tmp_path, capsys, monkeypatch):
    rows = [
        Row(image, "minor", "drawn 8 mm", "k", name, value)
        for image, share, n in (("adult-31", 0.9, 1.0), ("head-14", 0.6, 2.0))
        for name, value in {
            "n": n, "contrast": 100.0, "kept_before": 50.0, "kept_after": 100 * share,
            "there_before": 0.0, "there_after": 1.0, "mse_before": 400.0, "mse_after": 100.0,
            "seen_truth": 0.99, "seen_before": 0.6, "seen_after": 0.9, "seconds": 1.0,
        }.items()
    ]  # fmt: skip
    keys = {("adult-31", "minor", "drawn 8 mm"): "k", ("head-14", "minor", "drawn 8 mm"): "k"}
    units = [
        lesions.Unit(image, "minor", {name: key for name, key in keys.items() if name[0] == image})
        for image in ("adult-31", "head-14")
    ]
    monkeypatch.setattr(lesions, "plan", lambda settings: units)
    append(tmp_path / lesions.TABLE, rows)
    page = tmp_path / "page.md"
    page.write_text("<!-- lesions: begin -->\n<!-- lesions: end -->")
    flags = ["--out", str(tmp_path), "--device", "cpu", "--tables-only", "--page", str(page)]
    assert evaluate.main(["lesions", *flags]) == 0
    line = "| minor | drawn 8 mm | 3 | 50% | 70% | 0% | 100% | 34.0 | 40.0 | 0.99 | 0.60 | 0.90 |"
    assert line in (tmp_path / "lesions.md").read_text()
    short = "| minor | ≥ 4 mm | 3 | 50% → 70% | 0% → 100% | 34.0 → 40.0 |"
    assert short in page.read_text()
    assert "weights bmex-slices" in capsys.readouterr().out
