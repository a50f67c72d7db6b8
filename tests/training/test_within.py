# SPDX-License-Identifier: Apache-2.0
"""Training within slices: what is drawn, and twenty steps that go on where they stopped."""

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
from bmex_bids.network.models.within import EDGE, SLICES, build, neighbourhoods
from bmex_bids.training import within as training
from bmex_bids.training.linear import TRAINING
from bmex_bids.training.loop import Schedule
from bmex_bids.training.score import HELD
from bmex_bids.training.within import WithinChunks, WithinConfig, drawn, fit_within, sliced


@pytest.fixture
def path(tmp_path):
    """A blurred ball with texture, in a file."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices((40, 44, 42)) - 21
    ball = np.where(x**2 + y**2 + z**2 < 18**2, 400 + 200 * rng.normal(size=x.shape), 0)
    image = gaussian_filter(ball, 0.8).clip(0) * (x**2 + y**2 + z**2 < 18**2)
    file = tmp_path / "ball.nii.gz"
    nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([-0.9, -0.9, 1, 1])), file)
    return file


@pytest.fixture
def volume(path):
    return sliced(*training.picture(path), np.random.default_rng(4))


def test_voxels_are_drawn_as_the_application_shows_them(volume):
    """The training's and the application's neighbourhoods are the same but for turns."""
    parts = drawn(volume, 400, np.random.default_rng(0))
    around, place, estimate, thickness, deviation, truth, weight = parts
    assert around.shape == (400, SLICES, EDGE**2)
    assert 0 <= float(place.min()) <= float(place.max())
    assert float(thickness[0]) == pytest.approx(volume.thickness)
    assert float(deviation[0]) == pytest.approx(volume.deviation)
    error = float(((estimate - truth) ** 2).mean())
    assert float(weight[0]) == pytest.approx(1 / max(error, 1), rel=1e-4)
    # the middle of a neighbourhood is the slice of the voxel
    some = np.argwhere(volume.estimate == float(estimate[0]))[0]
    at = (some[2] - volume.first) / volume.thickness
    nearest = int(np.clip(np.round(at), 0, volume.slices.shape[2] - 1))
    plane = neighbourhoods(torch.from_numpy(volume.slices), nearest, at < nearest)
    same = plane.reshape(*volume.slices.shape[:2], SLICES, EDGE**2)[some[0], some[1]]
    assert sorted(same.flatten().tolist()) == pytest.approx(sorted(around[0].flatten().tolist()))
    assert same[:, EDGE**2 // 2].tolist() == pytest.approx(around[0, :, EDGE**2 // 2].tolist())


def test_slices_have_what_was_drawn(path):
    image, spacing = training.picture(path)
    assert spacing == pytest.approx((0.9, 0.9, 1.0))
    seen = [sliced(image, spacing, np.random.default_rng(seed)) for seed in range(12)]
    low, high = training.THICKNESS
    assert all(low <= one.thickness <= high for one in seen)
    assert len({one.truth.shape for one in seen}) > 1, "one axis alone was cut"
    assert all(one.estimate.shape == one.truth.shape for one in seen)


def test_contrasts_are_turned_round(path, monkeypatch):
    image, _ = training.picture(path)
    monkeypatch.setattr(training, "BENT", 1.0)
    for share, sign in ((0.0, 1), (1.0, -1)):
        monkeypatch.setattr(training, "TURNED", share)
        one = sliced(image, (1.0, 1.0, 1.0), np.random.default_rng(1))
        same = next(
            np.moveaxis(image, k, -1) for k in range(3) if image.shape[k] == one.truth.shape[2]
        )
        inside = same > 0
        assert sign * np.corrcoef(same[inside], one.truth[inside])[0, 1] > 0.9
        assert not one.truth[~inside].any()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 2)
    schedule = Schedule(steps=20, batch=300, rate=2e-3, validate_every=10, threads=1)
    return WithinConfig(per_volume=600, schedule=schedule)


def test_twenty_steps_go_on_where_they_stopped(path, small, tmp_path):
    whole = load_file(fit_within([path], [path], tmp_path / "whole", small))
    half = dataclasses.replace(small, schedule=dataclasses.replace(small.schedule, steps=10))
    fit_within([path], [path], tmp_path / "parts", half)
    again = load_file(fit_within([path], [path], tmp_path / "parts", small))
    assert whole.keys() == again.keys()
    build(whole).load_state_dict(whole)
    log = (tmp_path / "whole" / "log.csv").read_text().splitlines()
    assert "left" in log[0]
    assert len(log) == 3


def test_a_chunk_mixes_its_volumes(path, small):
    chunks = WithinChunks([path], seed=0, chunks=4, per_volume=50)
    parts = chunks[1]
    assert len(parts[0]) == 100
    assert len(set(parts[3].tolist())) == 2, "two thicknesses"
    assert all(torch.equal(a, b) for a, b in zip(parts, chunks[1], strict=True))


def test_held_images_do_not_train(monkeypatch, tmp_path):
    asked = {}

    def fit(paths, held, *_, **__):
        asked.update(train=paths, held=held)
        return tmp_path / "weights"

    monkeypatch.setattr(training, "require", lambda *_: None)
    monkeypatch.setattr(training, "fit_within", fit)
    options = ["within", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert command.train(command.build_parser().parse_args(options)) == tmp_path / "weights"
    assert {p.name.split(".")[0] for p in asked["held"]} == set(HELD)
    assert not set(asked["held"]) & set(asked["train"])
    real = [source for source in TRAINING if source.group != "templates"]
    assert len(asked["train"]) + len(asked["held"]) == len(real)


def test_weights_to_begin_with(path, small, tmp_path, caplog):
    first = fit_within([path], [path], tmp_path / "first", small)
    caplog.set_level(logging.INFO, "bmex_bids")
    fit_within([path], [path], tmp_path / "second", dataclasses.replace(small, start_from=first))
    assert "0 tensors are new" in caplog.text
