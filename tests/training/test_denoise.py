# SPDX-License-Identifier: Apache-2.0
"""Training to tell noise: what is drawn, and twenty steps that go on where they stopped."""

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
from bmex_bids.common.noise import noise_sigma
from bmex_bids.network.models.denoise import DenoiseNet, build
from bmex_bids.training import denoise as training
from bmex_bids.training.denoise import (
    DenoiseChunks,
    DenoiseConfig,
    drawn,
    fit_denoise,
    gain_map,
    loss_of,
    noisy,
    quiet_picture,
    with_noise,
)
from bmex_bids.training.linear import TRAINING
from bmex_bids.training.loop import Schedule
from bmex_bids.training.score import HELD
from bmex_bids.training.within import picture


@pytest.fixture
def path(tmp_path):
    """A blurred ball with texture, in a file."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices((40, 44, 42)) - 21
    ball = np.where(x**2 + y**2 + z**2 < 18**2, 500 + 300 * rng.normal(size=x.shape), 0)
    image = gaussian_filter(ball, 1.5).clip(0) * (x**2 + y**2 + z**2 < 18**2)
    file = tmp_path / "ball.nii.gz"
    nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([-0.9, -0.9, 1, 1])), file)
    return file


def test_the_network_is_told_about_the_noise_that_is_there(path, monkeypatch):
    monkeypatch.setattr(training, "PARALLEL", 0.0)  # white noise
    monkeypatch.setattr(training, "UNSURE", 0.0)
    monkeypatch.setattr(training, "COARSE", 0.0)
    monkeypatch.setattr(training, "NOISE", (30.0, 60.0))
    image, _ = picture(path)
    for seed in range(6):
        volume = noisy(image, np.random.default_rng(seed))
        assert volume.sigma == pytest.approx(volume.usual, rel=0.25)
        assert volume.masked
        assert not volume.image[volume.truth == 0].any(), "noise outside the mask"
        assert 0.8 * 30 < volume.usual < 60


def test_an_image_that_trains_has_little_noise_of_its_own(path, tmp_path):
    image, _ = picture(path)
    assert quiet_picture(path) is image
    inside = image > 0
    noise = 30 * np.random.default_rng(1).normal(size=image.shape)
    file = tmp_path / "noisy.nii.gz"
    data = np.where(inside, (image + noise).clip(1), 0).astype(np.float32)
    nib.save(nib.Nifti1Image(data, nib.load(path).affine), file)
    noisy, _ = picture(file)
    quiet = quiet_picture(file)
    assert noise_sigma(quiet, inside) < 0.7 * noise_sigma(noisy, inside)
    assert not quiet[~inside].any()
    assert quiet[inside].mean() == pytest.approx(noisy[inside].mean(), rel=0.02)


def test_blocks_of_voxels_are_averaged(path):
    image, _ = picture(path)
    shapes = set()
    for seed in range(10):
        made = training.coarse(image, np.random.default_rng(seed))
        shapes.add(made.shape)
        sizes = [n // m for n, m in zip(image.shape, made.shape, strict=True)]
        assert max(sizes) >= 2
        block = image[tuple(slice(4 * k, 5 * k) for k in sizes)]
        assert made[4, 4, 4] == pytest.approx(block.mean(), rel=1e-4)
    assert len(shapes) > 3


def test_noise_of_parallel_imaging_differs_from_place_to_place(monkeypatch):
    monkeypatch.setattr(training, "PARALLEL", 1.0)
    monkeypatch.setattr(training, "GAIN", 5.0)
    image = np.full((32, 32, 32), 500, np.float32)
    local = []
    for seed in range(8):
        noise = with_noise(image, 20.0, np.random.default_rng(seed)) - image
        parts = noise.reshape(4, 8, 4, 8, 4, 8).std(axis=(1, 3, 5))
        local.append(parts.max() / parts.min())
    assert max(local) > 2
    gain = gain_map((8, 9, 10), np.random.default_rng(0))
    assert gain.shape == (8, 9, 10)
    assert 1 <= gain.min() < gain.max() <= 5


def test_patches_are_turned_with_their_noise(path):
    image, _ = picture(path)
    volume = noisy(image, np.random.default_rng(1))
    given, noise, weight, sigma = drawn(volume, 30, np.random.default_rng(2))
    assert given.shape == noise.shape == weight.shape == (30, 1, *(training.PATCH,) * 3)
    assert sigma.tolist() == pytest.approx([volume.sigma] * 30)
    inside = weight > 0
    assert torch.equal(inside, given > 0)
    truth = given - noise
    values = set(volume.truth.flatten().round(1).tolist())
    assert set(truth[inside][:200].numpy().round(1).tolist()) <= values
    edges = {
        int(np.argmax(inside[k, 0].any(1).any(1).numpy())) for k in range(30)
    }  # of the ball, from all sides
    assert len(edges) > 1


def test_the_loss_is_one_for_a_network_that_finds_nothing(path):
    image, _ = picture(path)
    volume = noisy(image, np.random.default_rng(1))
    parts = drawn(volume, 60, np.random.default_rng(2))
    assert loss_of(DenoiseNet((4, 4)), parts).item() == pytest.approx(1, rel=0.2)


def test_in_a_head_the_background_counts_little(path, monkeypatch):
    image, _ = picture(path)
    monkeypatch.setattr(training, "is_masked", lambda _: False)
    volume = noisy(image, np.random.default_rng(1))
    _, _, weight, _ = drawn(volume, 30, np.random.default_rng(2))
    dark, bright = sorted(set((weight * volume.usual**2).flatten().numpy().round(3).tolist()))
    assert (dark, bright) == pytest.approx((training.DARK, 1.0))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 2)
    monkeypatch.setattr(training, "WIDTHS", (4, 4))
    schedule = Schedule(steps=20, batch=2, rate=2e-3, validate_every=10, threads=1)
    return DenoiseConfig(per_volume=6, schedule=schedule)


def test_twenty_steps_go_on_where_they_stopped(path, small, tmp_path):
    whole = load_file(fit_denoise([path], [path], tmp_path / "whole", small))
    half = dataclasses.replace(small, schedule=dataclasses.replace(small.schedule, steps=10))
    fit_denoise([path], [path], tmp_path / "parts", half)
    again = load_file(fit_denoise([path], [path], tmp_path / "parts", small))
    assert whole.keys() == again.keys()
    build(whole).load_state_dict(whole)
    log = (tmp_path / "whole" / "log.csv").read_text().splitlines()
    assert "left" in log[0]
    assert len(log) == 3


def test_a_chunk_mixes_its_volumes(path, small):
    chunks = DenoiseChunks([path], 0, 6)
    parts = chunks[1]
    assert len(parts[0]) == 12
    assert len(set(parts[3].tolist())) == 2, "two levels of noise"
    assert all(torch.equal(a, b) for a, b in zip(parts, chunks[1], strict=True))


def test_held_images_do_not_train(monkeypatch, tmp_path):
    asked = {}

    def fit(paths, held, *_, **__):
        asked.update(train=paths, held=held)
        return tmp_path / "weights"

    monkeypatch.setattr(training, "require", lambda *_: None)
    monkeypatch.setattr(training, "fit_denoise", fit)
    options = ["denoise", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert command.train(command.build_parser().parse_args(options)) == tmp_path / "weights"
    assert {p.name.split(".")[0] for p in asked["held"]} == set(HELD)
    assert not set(asked["held"]) & set(asked["train"])
    real = [source for source in TRAINING if source.group != "templates"]
    assert len(asked["train"]) + len(asked["held"]) == len(real)


def test_weights_to_begin_with(path, small, tmp_path, caplog):
    first = fit_denoise([path], [path], tmp_path / "first", small)
    caplog.set_level(logging.INFO, "bmex_bids")
    fit_denoise([path], [path], tmp_path / "second", dataclasses.replace(small, start_from=first))
    assert "0 tensors are new" in caplog.text
