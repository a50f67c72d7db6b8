# SPDX-License-Identifier: Apache-2.0
"""Voxels of half the edge against interpolation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bmex_bids.cli.evaluate import main
from bmex_bids.evaluation import halving
from bmex_bids.evaluation.halving import INTERPOLATORS, coarse_of, interpolated, painted, rmse_of
from bmex_bids.network.weights.registry import bundled_of


def ball(n=41):
    x, y, z = np.indices((n, n + 3, n - 2)) - n // 2
    inside = x**2 + 1.2 * y**2 + 0.8 * z**2 < (0.38 * n) ** 2
    rng = np.random.default_rng(0)
    image = gaussian_filter(np.where(inside, 500 + 900 * rng.normal(size=x.shape), 0), 0.9)
    return (image.clip(1) * inside).astype(np.float32)


@pytest.mark.parametrize("way", INTERPOLATORS)
def test_a_ramp_is_brought_back_in_its_place(way):
    ramp = np.broadcast_to(np.arange(48.0)[:, None, None], (48, 12, 10)).astype(np.float32)
    fine = interpolated(coarse_of(ramp), INTERPOLATORS[way])
    assert fine.shape == ramp.shape
    assert np.abs(fine - ramp)[14:-14].max() < 0.1


def test_errors_are_those_inside_the_brain(monkeypatch):
    image = ball()
    monkeypatch.setattr(
        halving,
        "ways",
        lambda coarse, *_: [("none", coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2))],
    )
    found = rmse_of(image, None)
    even = image[:40, :44, :38]
    back = coarse_of(np.ascontiguousarray(even)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert found["none"] == pytest.approx(np.sqrt(((back - even)[even > 0] ** 2).mean()), rel=1e-5)


def test_painted_tissues_have_their_levels_and_texture():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[3:, 3:, 3:] = 1
    labels[8:, 3:, 3:] = 2
    labels[14:, 3:, 3:] = 3
    image, tissues = painted(labels, np.random.default_rng(0))
    assert image.shape == tissues.shape == (50, 50, 50)
    assert set(np.unique(tissues)) == {0, 1, 2, 3}
    for tissue, level in enumerate(halving.LEVELS):
        assert image[tissues == tissue].mean() == pytest.approx(level, abs=8)
    assert 15 < image[tissues == 2].std() < 35
    assert not image[tissues == 0].any()
    assert tissues[30, 30, 30] == labels[12, 12, 12]


def test_the_command_prints_both_tables(tmp_path, monkeypatch, capsys):
    path = tmp_path / "ball_T1w.nii.gz"
    nib.save(nib.Nifti1Image(ball(), np.diag([-1, -1, 1, 1.0])), path)
    assert main(["super", str(path)]) == 0
    text = capsys.readouterr().out
    assert bundled_of("super").name in text
    row = next(line for line in text.splitlines() if line.startswith("ball_T1w"))
    cubic, lanczos, network = map(float, row.split()[1:4])
    assert network < min(cubic, lanczos)
    assert float(row.split()[4]) == pytest.approx(100 * (network / cubic - 1), abs=0.1)
    monkeypatch.setattr(halving, "IMAGES", ("ball_T1w.nii.gz",))
    maps = ("map.nii.gz",)
    (tmp_path / "map.nii.gz").touch()
    monkeypatch.setattr("bmex_bids.training.images.VALIDATION_MAPS", maps)
    labels = np.zeros((26, 26, 26), np.uint8)
    labels[3:23, 3:23, 3:23] = 24  # fluid
    labels[6:20, 6:20, 6:20] = 3
    labels[8:18, 8:18, 8:18] = 2
    labels[12:14, 12:13, 8:18] = 4
    monkeypatch.setattr(halving, "structures_of", lambda _: structures(labels))
    assert main(["super", "--data", str(tmp_path)]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    figures = [float(cell) for cell in row.split()[1:4]]
    assert row.startswith("map")
    assert all(0.5 < figure <= 1 for figure in figures)


def structures(labels):
    from bmex_bids.common.structures import structure_labels

    return structure_labels(labels.astype(np.int32))


def test_no_image_that_is_measured_trains():
    from bmex_bids.training.linear import TRAINING

    trained = {Path(source.file).name for source in TRAINING}
    assert not trained & {Path(name).name for name in halving.IMAGES}
