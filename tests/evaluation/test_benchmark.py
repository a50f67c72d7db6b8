# SPDX-License-Identifier: Apache-2.0
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.degrade.cells import CELLS, QUICK
from bmex_bids.evaluation import app, benchmark, judge, rows, subjects
from bmex_bids.evaluation.app import STRUCTURE, Passed
from bmex_bids.evaluation.benchmark import do_unit, missing, plan
from bmex_bids.evaluation.prepared import prepare
from bmex_bids.evaluation.subjects import load_clean
from bmex_bids.exceptions import StepError, UsageError
from bmex_bids.interfaces import stripping
from bmex_bids.refocus import refocus
from bmex_bids.refocus.refocus import Refocused


def truth_with(clean, mask):
    data = clean.data
    labels = mask.astype(np.uint8)
    none = np.zeros(0, STRUCTURE)
    passed = Passed(data, data, data, mask, data, mask, labels, labels, clean.affine, none)
    return benchmark.Truth(clean, passed, {})


def by_method(found):
    return {(row.method, row.metric): row.value for row in found}


def test_a_stripped_brain_goes_through_the_app_and_is_judged_on_both_grids(settings):
    clean, noisy = plan(settings)
    found = by_method(do_unit(settings, noisy))
    assert {method for method, _ in found} == {"damaged", "bmex", "n4", "nlm", "nlm, known noise"}
    assert found["damaged", "psnr"] == pytest.approx(
        10 * math.log10(1e6 / found["damaged", "mse"]), abs=1e-6
    )
    # untrained weights return their input
    assert found["bmex", "psnr"] == pytest.approx(found["damaged", "psnr"], abs=0.1)
    assert found["bmex", "mask_dice"] > 0.99
    for name in judge.segmenters():
        assert 0 < found["damaged", f"dice_{name}"] < 1
    still = by_method(do_unit(settings, clean))
    assert still["damaged", "mse"] == 0
    assert still["damaged", "native_psnr"] > 60
    assert still["damaged", "dice_own"] == 1
    assert benchmark.slice_file(settings.out, "one", "clean").exists()


def test_a_run_that_was_stopped_goes_on_and_new_weights_are_judged_anew(settings, monkeypatch):
    (unit,) = plan(replace(settings, cells=("clean",)))
    done = {(*name, key) for name, key in unit.keys.items() if name[2] != "nlm"}
    assert [name[2] for name in missing(unit, done).keys] == ["nlm"]
    assert not missing(unit, {(*name, key) for name, key in unit.keys.items()}).keys
    other = replace(settings.networks.enhance, sha256="f" * 64)
    new = replace(settings, networks=replace(settings.networks, enhance=other), cells=("clean",))
    (again,) = plan(new)
    assert set(again.keys) == set(unit.keys)
    assert set(again.keys.values()).isdisjoint(unit.keys.values())


def test_the_truth_is_made_once(settings, monkeypatch):
    benchmark.truth_of(settings, "one")
    monkeypatch.setattr(benchmark, "pass_through", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(judge, "classes", lambda *_: pytest.fail("segmented again"))
    truth = benchmark.truth_of(settings, "one")
    assert truth.mask.shape == truth.clean.data.shape
    assert truth.matched.shape == truth.mask_res.shape
    assert set(truth.classes) == set(judge.segmenters())


def test_the_clean_cell_is_the_truths_own_pass(settings, monkeypatch):
    benchmark.truth_of(settings, "one")
    monkeypatch.setattr(benchmark, "pass_through", lambda *_: pytest.fail("made again"))
    clean, _ = plan(settings)
    found = by_method(do_unit(settings, clean))
    assert found["bmex", "mask_dice"] == 1


def test_a_stripped_brain_has_only_its_mask_when_damaged_and_a_head_all_of_it(settings):
    cells = CELLS["severe"]
    for name, subject in benchmark.SUBJECTS.items():
        clean = load_clean(settings.data, subject)
        mask = clean.data > 0
        truth = truth_with(clean, mask)
        bad = benchmark.damage(truth, cells, 1)
        assert bad.min() >= 0
        assert (bad[~mask].max() > 0) == (name == "two")


def test_noise_is_a_share_of_the_brains_range_in_the_scanners_units(settings):
    clean = load_clean(settings.data, benchmark.SUBJECTS["one"])
    truth = truth_with(clean, clean.mask)
    bad = benchmark.damage(truth, CELLS["noise 5%"], 1)
    bright = clean.mask & (clean.data > np.median(clean.data[clean.mask]))
    expected = 0.05 * judge.range_of(clean.data, clean.mask)
    assert (bad - clean.data)[bright].std() == pytest.approx(expected, rel=0.1)


def test_unknown_names_and_absent_data_are_refused(settings):
    for wrong, word in (({"images": ("three",)}, "three"), ({"cells": ("worst",)}, "worst")):
        with pytest.raises(UsageError, match=f"got {word}"):
            benchmark.run(replace(settings, **wrong))
    with pytest.raises(UsageError, match="--data"):
        list(plan(replace(settings, data=settings.out)))


def test_quick_is_a_selection_of_the_cells():
    assert set(QUICK) <= set(CELLS)
    recipe = CELLS["moderate, noise 2.5%"].recipe(3)
    assert [step["kind"] for step in recipe.steps] == ["motion-periodic", "rician-noise"]
    assert recipe == CELLS["moderate, noise 2.5%"].recipe(3)
    assert recipe != CELLS["moderate, noise 2.5%"].recipe(4)
    assert recipe.steps[1]["sigma"] == 25
    assert CELLS["clean"].recipe(0).steps == ()


def test_the_command_writes_tables_and_pictures_and_computes_nothing_twice(
    settings, pool_here, monkeypatch, capsys
):
    """End to end, in this process; tiny images, untrained weights."""
    from bmex_bids.network.weights import registry

    monkeypatch.setattr(registry, "select", lambda kind, **_: getattr(settings.networks, kind))
    page = settings.data / "README.md"
    page.write_text("a\n<!-- benchmark: begin -->\nstale\n<!-- benchmark: end -->\nb\n")
    words = [
        "benchmark", "--data", settings.data, "--out", settings.out, "--images", "one",
        "--cells", "clean; noise 2.5%", "--page", page, "--device", "cpu",
    ]  # fmt: skip
    monkeypatch.setattr("bmex_bids.evaluation.summary.SUBJECTS", benchmark.SUBJECTS)
    assert evaluate.main([str(word) for word in words]) == 0
    assert "2 to compute" in capsys.readouterr().out
    text = (settings.out / "benchmark.md").read_text()
    assert "| noise 2.5% (1) |" in text
    assert (settings.out / "picture_one.png").stat().st_size > 5000
    assert "noise 2.5% (1)" in page.read_text()
    assert "| one |" in page.read_text()
    assert "Bold: worse" in page.read_text()
    assert "stale" not in page.read_text()
    assert evaluate.main([str(word) for word in words]) == 0
    assert "0 to compute" in capsys.readouterr().out


def test_the_command_takes_the_weights_of_each_age_as_the_app_does(settings, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(benchmark, "run", lambda asked, *_, **__: told.append(asked) or [])
    monkeypatch.setattr("bmex_bids.evaluation.figures.write_figures", lambda *_: [])
    words = ["benchmark", "--data", str(settings.data), "--out", str(settings.out)]
    assert evaluate.main(words) == 0
    assert told[0].by_age
    assert "bundled weights by age" in capsys.readouterr().out
    assert "Bundled weights by age" in (settings.out / "benchmark.md").read_text()
    file = settings.networks.enhance.path
    assert evaluate.main([*words, "--weights-file", str(file)]) == 0
    assert not told[1].by_age
    assert f"weights `{file.stem}`" in capsys.readouterr().out


def test_figures_hang_on_the_bundled_networks_before_the_enhancement(settings, monkeypatch):
    before = settings.networks.version
    record = replace(settings.networks.enhance, sha256="changed")
    monkeypatch.setattr("bmex_bids.evaluation.app.bundled_of", lambda _: record)
    assert settings.networks.version == f"{before.rsplit(' ', 3)[0]} changed changed changed"


def test_a_step_that_fails_ends_the_command_with_its_reason_and_no_traceback(
    settings, pool_here, capsys
):
    damaged = settings.data / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    words = ["--data", settings.data, "--out", settings.out, "--images", "one"]
    words += ["--cells", "clean", "--device", "cpu", "--weights-file", damaged]
    assert evaluate.main(["benchmark", *map(str, words)]) == 5
    said = capsys.readouterr().err
    assert said.startswith("bmex-evaluate: one, clean: failed in enhance: tissues and image: ")
    assert "damaged.safetensors" in said
    assert "Traceback" not in said


def test_a_worker_ends_with_the_run_that_was_killed(tmp_path):
    """It would compute on, and write into a table that a new run reads."""
    program = tmp_path / "run.py"
    program.write_text(
        "import sys, time\n"
        "from bmex_bids.evaluation.benchmark import _pool\n"
        "if __name__ == '__main__':\n"
        "    pool = _pool(1)\n"
        "    pool.submit(time.sleep, 0).result()\n"
        "    pool.submit(time.sleep, 600)\n"
        "    print(*pool._processes, flush=True)\n"
        "    time.sleep(600)\n"
    )
    run = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    (worker,) = map(int, run.stdout.readline().split())
    assert psutil.pid_exists(worker)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    end = time.monotonic() + 60
    while psutil.pid_exists(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker)


def test_finished_units_are_told_by_their_last_row(settings):
    (unit,) = plan(replace(settings, cells=("clean",)))
    found = do_unit(settings, unit)
    assert rows.finished(found) == {(*name, key) for name, key in unit.keys.items()}


def test_each_age_has_the_weights_of_the_app(settings, monkeypatch):
    told = []
    monkeypatch.setattr(
        benchmark, "through_app", lambda path, subject, networks, *_: told.append(networks)
    )
    clean = load_clean(settings.data, subjects.SUBJECTS["one"])
    for by_age in (False, True):
        benchmark.pass_through(replace(settings, by_age=by_age), "one", clean, clean.data)
    assert told[0] == settings.networks
    assert told[1].enhance.name != told[0].enhance.name
    assert told[1].strip == told[0].strip


def test_the_app_of_a_benchmark_undoes_motion_and_before_is_what_came(settings, monkeypatch):
    """The network returns its input: so what differs is what the motion correction did."""
    asked = []

    def ramped(image, *_, **__):
        asked.append(image.shape)
        ramp = np.linspace(0.5, 1, image.shape[1], dtype=np.float32)[:, None]
        return Refocused(image * ramp, True, "", {}, 9.0, 8.5)

    monkeypatch.setattr(refocus, "refocus", ramped)
    monkeypatch.setattr(stripping, "brain_probability", lambda data, *_, **__: 1.0 * (data > 150))
    clean = load_clean(settings.data, subjects.SUBJECTS["two"])
    result = benchmark.pass_through(settings, "two", clean, clean.data)
    assert asked == [clean.data.shape]
    inside = result.mask_res
    assert np.abs(result.enhanced - result.matched)[inside].mean() > 20
    assert np.abs(result.preproc - clean.data)[result.mask].mean() > 20
    for labels in (result.labels_before, result.labels_after):
        np.testing.assert_array_equal(labels > 0, result.mask_res)
    rising = result.matched[inside][np.argsort(result.corrected[inside])]  # of one image
    assert (np.diff(rising) >= -1e-3).all()


def test_what_is_prepared_for_the_network_alone_is_not_looked_at_for_motion(
    settings, tmp_path, monkeypatch
):
    told = {}

    def stop(*_, **named):
        told.update(named)
        raise StepError("enough", 1)

    monkeypatch.setattr(app, "init_preprocess_wf", stop)
    with pytest.raises(StepError, match="enough"):
        prepare(settings.data, tmp_path, "one", settings.networks)
    assert told["motion_correction"] == "off"


@pytest.mark.parametrize("contrasts", [("T1w",), ("T1w", "T2w")])
def test_structures_are_labelled_where_the_network_serves_the_image(
    settings, tmp_path, monkeypatch, contrasts
):
    record = replace(settings.networks.enhance, kind="segment", contrasts=contrasts)
    networks = replace(settings.networks, structures=record)
    told = []

    def stop(planned, networks, *_):
        told.append(networks)
        raise StepError("enough", 1)

    monkeypatch.setattr(app, "init_image_wf", stop)
    path = tmp_path / "sub-benchmark_T2w.nii.gz"
    (settings.data / "brain.nii.gz").rename(path)
    with pytest.raises(StepError, match="enough"):
        app.through_app(path, subjects.SUBJECTS["one"], networks, tmp_path)
    assert told[0].structures == (record if "T2w" in contrasts else None)
