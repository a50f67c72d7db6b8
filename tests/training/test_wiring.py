# SPDX-License-Identifier: Apache-2.0
"""What goes from one function to the next: each test fails where one line is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmex_bids.degrade.recipe import Recipe
from bmex_bids.imaging.intensity import load_histogram, match_histogram
from bmex_bids.metrics.structure import SCALES
from bmex_bids.network.inference.headgrid import place_window
from bmex_bids.training import pairs
from bmex_bids.training.images import CleanImage
from bmex_bids.training.pairs import PatchChunks, Sources, degrade_like_app


@pytest.fixture
def clean() -> CleanImage:
    """A ball of two classes."""
    r = np.linalg.norm(np.indices((24, 26, 22)) - 11.0, axis=0)
    labels = np.select([r < 6, r < 10], [3, 2], 0).astype(np.uint8)
    values = 200.0 * labels + 20 * np.random.default_rng(0).random(r.shape)
    data = np.where(labels > 0, values, 0).astype(np.float32)
    return CleanImage("ball", data, labels > 0, labels, (0.8,) * 3, "month24", "T1w")


def test_volumes_of_training_hang_on_the_seed_and_not_only_the_places_of_patches(clean):
    def volume(seed: int) -> np.ndarray:
        sources = Sources([clean], [], [], shares=(1, 0, 0))
        return PatchChunks(sources, seed=seed, chunks=1, patch=8).volume(0)[0]

    np.testing.assert_array_equal(volume(3), volume(3))
    assert not np.array_equal(volume(3), volume(4))


def test_places_of_patches_hang_on_the_seed_and_not_only_the_volumes(clean, monkeypatch):
    bad = clean.data + np.arange(clean.data.size, dtype=np.float32).reshape(clean.data.shape)
    monkeypatch.setattr(PatchChunks, "make", lambda *_: (bad, clean))

    def patches(seed: int) -> torch.Tensor:
        sources = Sources([clean], [], [], shares=(1, 0, 0))
        return PatchChunks(sources, seed=seed, chunks=1, patch=8, window=2)[0][0]

    assert torch.equal(patches(3), patches(3))
    assert not torch.equal(patches(3), patches(4))


def test_half_of_the_pairs_have_the_histogram_of_their_age_again(clean, monkeypatch):
    """As the app matches a bad image; the other half stays as the fault left it."""
    monkeypatch.setattr(pairs, "draw", lambda *_: Recipe(({"kind": "smoothing", "fwhm_mm": 2.0},)))
    reference = load_histogram("month24", "T1w")
    matched = plain = 0
    for seed in range(12):
        bad = degrade_like_app(clean, np.random.default_rng(seed), "noise")
        again = np.where(clean.mask, match_histogram(bad, reference, clean.mask)[0], 0)
        change = float(np.abs(again - bad)[clean.mask].mean())
        matched += change < 5
        plain += change > 20
    assert matched >= 3
    assert plain >= 3
    assert matched + plain == 12


def test_a_head_with_its_neck_keeps_its_top():
    head = torch.zeros(12, 12, 40)
    head[2:10, 2:10, 3:37] = 1
    starts = place_window(head, (12, 12, 16))
    assert starts[2] + 16 == 37  # the highest slice of the head is the window's last


def test_the_exponents_of_ms_ssim_are_in_the_order_of_the_paper():
    assert SCALES == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # from fine to coarse
