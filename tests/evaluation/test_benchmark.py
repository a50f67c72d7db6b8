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
from threadpoolctl import threadpool_info

from bmex_bids.evaluation import benchmark, methods, rows
from bmex_bids.evaluation.benchmark import Settings, do_cell, plan
from bmex_bids.evaluation.cells import CELLS, SAMPLE
from bmex_bids.evaluation.subjects import MARGIN, Subject, boxed, paint_head, seed_of
from bmex_bids.exceptions import UsageError
from bmex_bids.training.images import CleanImage


@pytest.fixture
def settings(tmp_path, tiny_records):
    record = next(r for r in tiny_records if r.kind == "enhance")
    return Settings(data=tmp_path, out=tmp_path / "out", record=record, images=("sub-0003",))


@pytest.fixture
def ball():
    """A brain of three shells, 0.8 mm, in a larger array."""
    r = np.linalg.norm(np.indices((66, 64, 68)) - 32.0, axis=0)
    truth = np.select([r < 14, r < 21, r < 27], [3, 2, 1], 0).astype(np.uint8)
    wave = 20 * np.sin(np.indices(r.shape)[0] * 1.1)
    data = np.where(truth > 0, np.array([0, 200, 400, 600])[truth] + wave, 0).astype(np.float32)
    return CleanImage("sub-0003", data, truth > 0, truth, (0.8,) * 3, "month18", "T1w")


@pytest.fixture
def prepared(settings, ball, monkeypatch):
    monkeypatch.setattr(benchmark, "load_case", lambda data, name: boxed(ball, ball.data))
    return benchmark._prepare(settings, "sub-0003")[0]


def unit(settings, prints, cell):
    (found,) = [u for u in plan(settings, prints) if u.arguments == ("sub-0003", cell)]
    return found


def test_figures_of_one_pass_are_not_taken_for_those_of_four(settings):
    prints = {"sub-0003": "a"}
    four, one = (
        {name: key for u in plan(s, prints) for name, key in u.keys.items()}
        for s in (settings, replace(settings, mirroring=False))
    )
    assert set(four) == set(one)
    changed = {name[2] for name in four if four[name] != one[name]}
    assert changed == {"bmex", "bmex registered"}


def test_a_cell_gives_all_figures_of_all_methods_and_leaves_its_slices(settings, prepared):
    settings = replace(settings, parts=("cells",))
    wanted = unit(settings, {"sub-0003": prepared}, "2.4 mm")
    found = do_cell(settings, *wanted.arguments, wanted.keys)
    names = set(settings.methods())
    assert {row.method for row in found} == names
    assert {"cubic", "lanczos", "nlm", "tv", "n4", "bmex", "degraded", "matched"} <= names
    by = {(row.method, row.metric): row.value for row in found}
    assert by["cubic", "psnr"] > by["degraded", "psnr"]
    assert by["degraded", "psnr"] == pytest.approx(
        10 * math.log10(1e6 / by["degraded", "mse"]), abs=1e-6
    )
    for metric in ("ssim", "ms_ssim", "uqi", "vif", "dice", "volume_dark", "seconds"):
        assert all(math.isfinite(by[name, metric]) for name in names)
    assert benchmark.slice_file(settings.out, "sub-0003", "2.4 mm", "bmex").exists()
    assert rows.finished(found) == {(*name, key) for name, key in wanted.keys.items()}


def test_a_clean_image_is_itself_and_the_segmenter_agrees_with_itself(settings, prepared):
    wanted = unit(replace(settings, parts=("cells",)), {"sub-0003": prepared}, "clean")
    keys = {name: key for name, key in wanted.keys.items() if name[2] == "degraded"}
    by = {row.metric: row.value for row in do_cell(settings, "sub-0003", "clean", keys)}
    assert by["psnr"] == math.inf
    assert by["dice"] == 1
    assert by["volume_middle"] == 0


def test_degraded_images_are_made_once(settings, prepared):
    case, _ = benchmark.cached_case(settings.out, "sub-0003")
    first = benchmark.cached_degraded(settings.out, "sub-0003", "rician 5%", case)
    (kept,) = settings.out.glob("cache/*rician*")
    np.save(kept, first + 1)
    np.testing.assert_array_equal(
        benchmark.cached_degraded(settings.out, "sub-0003", "rician 5%", case), first + 1
    )


def test_new_weights_ask_for_the_networks_figures_again_and_for_no_others(settings):
    prints = {"sub-0003": "print"}
    before = {k: v for u in plan(settings, prints) for k, v in u.keys.items()}
    new = replace(settings, record=replace(settings.record, sha256="f" * 64))
    after = {k: v for u in plan(new, prints) for k, v in u.keys.items()}
    changed = {name[2] for name in before if before[name] != after[name]}
    assert changed == {"bmex", "bmex registered"}
    moved = {k: v for u in plan(settings, {"sub-0003": "other"}) for k, v in u.keys.items()}
    same = {name for name in before if before[name] == moved[name]}
    assert {name[1] for name in same} == {"as it is"}  # the ten images come from their files


def test_what_is_finished_is_not_done_again(settings):
    whole = next(iter(plan(settings, {"sub-0003": "print"})))
    done = {(*name, key) for name, key in whole.keys.items() if name[2] != "nlm"}
    left = benchmark._missing(whole, done)
    assert [name[2] for name in left.keys] == ["nlm"]


def test_a_painted_image_has_the_sample_of_cells_and_unknown_names_are_refused(settings):
    assert settings.cells_of("map-17") == SAMPLE
    assert settings.cells_of("sub-0003") == tuple(CELLS)
    assert replace(settings, cells=("minor",)).cells_of("map-17") == ("minor",)
    for wrong, word in (
        ({"images": ("sub-0001",)}, "sub-0001"), ({"cells": ("worst",)}, "worst"),
        ({"parts": ("all",)}, "all"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"got {word}"):
            benchmark.run(replace(settings, **wrong))


def test_what_is_random_is_drawn_as_often_as_asked_for_and_everything_else_once(
    settings, prepared
):
    thrice = replace(settings, draws=3, parts=("cells",))
    units = [u.arguments for u in plan(thrice, {"sub-0003": "print"})]
    assert [image for image, cell in units if cell == "severe"] == [
        "sub-0003", "sub-0003 draw 2", "sub-0003 draw 3",
    ]  # fmt: skip
    assert [image for image, cell in units if cell == "rician 5%"] != ["sub-0003"]
    assert [image for image, cell in units if cell in ("2.4 mm", "smooth 1.2 mm", "clean")] == [
        "sub-0003"
    ] * 3
    assert [seed_of(image) for image in ("sub-0007", "sub-0007 draw 2", "map-20 draw 3")] == [
        1, 101, 220,
    ]  # fmt: skip
    case = benchmark.cached_case(settings.out, "sub-0003 draw 2")[0]
    first, second = (
        benchmark.cached_degraded(settings.out, image, "minor 1.6 mm", case)
        for image in ("sub-0003", "sub-0003 draw 2")
    )
    assert np.abs(first - second).max() > 1
    with pytest.raises(UsageError, match="got 0"):
        benchmark.run(replace(settings, draws=0))


def test_a_further_draw_has_all_figures_with_keys_of_its_own(settings, prepared):
    twice = replace(settings, draws=2, cells=("rician 5%",), parts=("cells",))
    first, second = plan(twice, {"sub-0003": prepared})
    assert set(first.keys.values()).isdisjoint(second.keys.values())
    found = do_cell(twice, *second.arguments, second.keys)
    assert {row.image for row in found} == {"sub-0003 draw 2"}
    assert {row.method for row in found} == {name for _, _, name in first.keys}


def test_the_box_keeps_the_brain_and_its_margin_and_knows_its_place_in_the_head(ball):
    case = boxed(ball, ball.data)
    assert case.clean.mask.sum() == ball.mask.sum()
    for axis in range(3):
        other = tuple(k for k in range(3) if k != axis)
        where = np.flatnonzero(case.clean.mask.any(axis=other))
        assert where[0] == MARGIN
        assert where[-1] == case.clean.mask.shape[axis] - 1 - MARGIN
    np.testing.assert_array_equal(case.head[case.box], case.clean.data)
    np.testing.assert_array_equal(case.degraded(CELLS["clean"].recipe(0)), case.clean.data)


def test_a_painted_head_has_skull_around_its_brain_and_exact_labels(tmp_path, make_image):
    r = np.linalg.norm(np.indices((48, 48, 48)) - 23.5, axis=0)
    labels = np.select([r < 9, r < 14, r < 17, r < 22], [2, 3, 24, 507], 0).astype(np.int16)
    path = tmp_path / "map.nii.gz"
    make_image("LIA", data=labels, dtype="int16", path=path)
    case = paint_head(path, "map-17", Subject("", "month24", "T1w", 17, painted=True))
    assert case.clean.mask.sum() == (r < 17).sum()
    assert set(np.unique(case.clean.labels)) == {0, 1, 2, 3}
    assert not case.clean.data[~case.clean.mask].any()
    assert (case.head > 0).sum() > 1.5 * case.clean.mask.sum()
    means = [case.clean.data[case.clean.labels == k].mean() for k in (1, 2, 3)]
    assert means == sorted(means)  # T1w: fluid, grey, white
    again = paint_head(path, "map-17", Subject("", "month24", "T1w", 17, painted=True))
    np.testing.assert_array_equal(again.head, case.head)


def test_bm4d_takes_part_only_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(methods, "has_bm4d", lambda: False)
    assert "bm4d" not in methods.methods(None)
    monkeypatch.setattr(methods, "has_bm4d", lambda: True)
    assert "bm4d" in methods.methods(None)


def test_scanners_contrast_and_registration_give_their_rows(settings, prepared, ball, monkeypatch):
    monkeypatch.setattr(benchmark, "prepare", lambda *_args, **_more: ball)
    units = list(plan(settings, {"sub-0003": prepared}))
    (scanners,) = [u for u in units if u.title.endswith("scanners")]
    found = benchmark.do_scanners(settings, *scanners.arguments, scanners.keys)
    assert len(found) == 3 * 6 + 1
    contrast = [u for u in units if u.title.endswith("as it is")]
    assert len(contrast) == 10
    found = benchmark.do_contrast(settings, *contrast[0].arguments, contrast[0].keys)
    assert {row.metric for row in found} >= {"tct_before", "tct_after", "tct_classes_before"}
    wanted = unit(replace(settings, parts=("registration",)), {"sub-0003": prepared}, "minor")
    found = do_cell(settings, *wanted.arguments, wanted.keys)
    by = {row.method: row.value for row in found if row.metric == "registration_dice"}
    assert set(by) == {"degraded registered", "bmex registered"}
    assert by["degraded registered"] > 0.8  # its partner is itself
    assert rows.finished(found) == {(*name, key) for name, key in wanted.keys.items()}


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    """They had gone on for minutes, and slowed whatever came next."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from bmex_bids.evaluation.benchmark import _pool\n"
        "if __name__ == '__main__':\n"
        "    with _pool(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600)\n"
        "        time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert psutil.pid_exists(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie":
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker was still there ten seconds after its parent")


def test_a_worker_has_one_thread_in_every_library():
    """numpy's had two: it reads OMP_NUM_THREADS when it is imported."""
    with benchmark._pool(1) as pool:
        found = [
            (one["internal_api"], one["num_threads"])
            for one in pool.submit(threadpool_info).result()
        ]
    assert found
    assert all(number == 1 for _, number in found), found


def test_what_other_files_give_is_computed_again(settings, prepared, tmp_path):
    """Rows of tissue contrast and registration were keyed by the files' names alone."""
    names = [name for name, *_ in (*benchmark.REAL_IMAGES, *benchmark.VALIDATION_IMAGES)]
    keys = []
    for content in (b"one", b"one", b"other"):
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_bytes(content)
        parts = replace(settings, data=tmp_path / "data", parts=("registration", "contrast"))
        units = plan(parts, {"sub-0003": prepared})
        keys.append({key for unit in units for key in unit.keys.items()})
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]
