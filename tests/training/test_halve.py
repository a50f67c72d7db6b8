# SPDX-License-Identifier: Apache-2.0
"""Training to halve edges: what is drawn, which images, and twenty steps that go on."""

from __future__ import annotations

import dataclasses
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from bmex_bids.cli import train as command
from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.halve import EDGE, PARTS, build, halved, windows
from bmex_bids.training import halve as training
from bmex_bids.training import within
from bmex_bids.training.halve import HalveChunks, HalveConfig, coarse, drawn, images_in, train
from bmex_bids.training.linear import TRAINING
from bmex_bids.training.loop import Schedule
from bmex_bids.training.score import HELD

REAL = [source for source in TRAINING if source.group != "templates"]


def put_ball(file, voxel=0.4):
    """A blurred ball with texture, in a file."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices((41, 44, 42)) - 21
    ball = np.where(x**2 + y**2 + z**2 < 18**2, 400 + 200 * rng.normal(size=x.shape), 0)
    image = gaussian_filter(ball, 0.8).clip(0) * (x**2 + y**2 + z**2 < 18**2)
    affine = np.diag([-voxel, -voxel, voxel, 1])
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), file)
    return file


@pytest.fixture
def folder(tmp_path):
    """Two images of 0.4 mm in a BIDS dataset, and what is none of them."""
    for k in "12":
        put_ball(tmp_path / f"seven/sub-{k}/anat/sub-{k}_T1w.nii.gz")
    put_ball(tmp_path / "seven/sub-1/anat/sub-1_dseg.nii.gz")
    (tmp_path / "seven/sub-1/anat/sub-1_T1w.json").write_text("{}")
    return tmp_path / "seven"


@pytest.fixture
def image(folder):
    return within.picture(folder / "sub-1/anat/sub-1_T1w.nii.gz")[0]


def test_voxels_are_drawn_as_the_application_shows_them(image):
    volume = coarse(image, np.random.default_rng(4))
    around, start, deviation, truth, weight = drawn(volume, 300, np.random.default_rng(1))
    assert around.shape == (300, EDGE**3)
    assert start.shape == truth.shape == (300, PARTS)
    assert torch.allclose(truth.mean(1), around[:, EDGE**3 // 2], atol=1e-2)
    assert torch.allclose(start.mean(1), truth.mean(1), atol=0.1)
    assert float(deviation[0]) == pytest.approx(volume.deviation)
    error = float(((start - truth) ** 2).mean())
    assert float(weight[0]) == pytest.approx(1 / max(error, 1), rel=1e-4)
    x, y, z = volume.inside[np.random.default_rng(1).integers(len(volume.inside), size=300)][0]
    assert sorted(windows(volume.image)[x, y, z].flatten().tolist()) == pytest.approx(
        sorted(around[0].tolist())
    )


def test_neighbourhood_start_and_truth_are_turned_together(image):
    """Where a neighbourhood rises along an axis, so do its start and its truth."""
    volume = coarse(image, np.random.default_rng(4))
    for seed in range(6):
        around, start, _, truth, _ = drawn(volume, 2000, np.random.default_rng(seed))
        near = around.reshape(-1, *[EDGE] * 3)[:, 1:4, 1:4, 1:4]
        for axis in (1, 2, 3):
            slope = near.select(axis, 2).mean((1, 2)) - near.select(axis, 0).mean((1, 2))
            for parts in (start, truth):
                cube = parts.reshape(-1, 2, 2, 2)
                change = cube.select(axis, 1).mean((1, 2)) - cube.select(axis, 0).mean((1, 2))
                assert float(torch.corrcoef(torch.stack([slope, change]))[0, 1]) > 0.3


@pytest.mark.parametrize("whole", [0.0, 1.0])
def test_voxels_that_are_partly_background_are_there_or_not(image, monkeypatch, whole):
    monkeypatch.setattr(training, "WHOLE", whole)
    monkeypatch.setattr(within, "BENT", 0.0)
    volume = coarse(image, np.random.default_rng(2))
    assert torch.equal(halved(volume.truth), volume.image)
    share = halved((volume.truth > 0).float())
    partly = (share > 0) & (share < 1)
    assert bool(partly.any()) == (whole == 0)
    x, y, z = volume.inside.T
    assert bool((share[x, y, z] > 0).all())


def test_parts_of_large_images_are_taken(monkeypatch):
    monkeypatch.setattr(training, "BLOCK", 12)
    rng = np.random.default_rng(0)
    cuts = [training.cut(41, rng) for _ in range(60)]
    assert {side.stop - side.start for side in cuts} == {12}
    assert min(side.start for side in cuts) == 0
    assert max(side.stop for side in cuts) == 41
    assert {(side.stop - side.start) % 2 for side in [training.cut(n, rng) for n in (3, 9)]} == {0}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 2)
    schedule = Schedule(steps=20, batch=300, rate=2e-3, validate_every=10, threads=1)
    return HalveConfig(per_volume=600, schedule=schedule)


def test_twenty_steps_of_fine_images_go_on_where_they_stopped(folder, small, tmp_path):
    whole = load_file(train(folder, tmp_path / "whole", small))
    half = dataclasses.replace(small, schedule=dataclasses.replace(small.schedule, steps=10))
    train(folder, tmp_path / "parts", half)
    again = load_file(train(folder, tmp_path / "parts", small))
    assert whole.keys() == again.keys()
    build(whole).load_state_dict(whole)
    rows = (tmp_path / "whole" / "log.csv").read_text().splitlines()
    assert len(rows) == 3
    left = [float(row.rpartition(",")[2]) for row in rows[1:]]
    assert left[1] < left[0] < 1.01, "the squared error over that of the spline"


def test_a_chunk_mixes_its_volumes(folder, small):
    chunks = HalveChunks(images_in(folder)[0], 0, 50)
    parts = chunks[1]
    assert len(parts[0]) == 100
    assert len(set(parts[2].tolist())) == 2, "two deviations"
    assert all(torch.equal(a, b) for a, b in zip(parts, chunks[1], strict=True))


def test_images_of_another_folder_are_found_and_one_is_kept_aside(folder):
    paths, held = images_in(folder)
    assert [path.name for path in held] == ["sub-1_T1w.nii.gz"]
    assert [path.name for path in paths] == ["sub-2_T1w.nii.gz"]
    held[0].unlink()
    with pytest.raises(UsageError, match="at least two images"):
        images_in(folder)


def test_of_the_development_data_those_held_do_not_train(tmp_path):
    for source in REAL:
        (tmp_path / source.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source.file).touch()
    paths, held = images_in(tmp_path)
    assert {path.name.split(".")[0] for path in held} == set(HELD)
    assert not set(paths) & set(held)
    assert len(paths) + len(held) == len(REAL)
    held[0].unlink()
    with pytest.raises(UsageError, match="1 files are missing"):
        images_in(tmp_path)


def test_the_command_trains_and_begins_with_weights(folder, small, tmp_path, caplog):
    first = train(folder, tmp_path / "first", small)
    caplog.set_level(logging.INFO, "bmex_bids")
    config = tmp_path / "config.toml"
    options = ["super", "--data", str(folder), "--out", str(tmp_path / "out"), "--steps", "2"]
    config.write_text("per_volume = 200\n[schedule]\nbatch = 100\n", encoding="utf-8")
    parsed = command.build_parser().parse_args(
        [*options, "--config", str(config), "--start-from", str(first)]
    )
    assert command.train(parsed) == tmp_path / "out" / "super.safetensors"
    assert "0 tensors are new" in caplog.text
    assert "1 images train, 1 validate" in caplog.text
