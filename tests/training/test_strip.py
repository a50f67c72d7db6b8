# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from bmex_bids.exceptions import UsageError
from bmex_bids.training.strip import HeadChunks, StripConfig, looks, loss_of, soft_dice


def test_dice_by_hand():
    brain = torch.zeros(1, 1, 2, 2, 2)
    brain[..., 0] = 1
    found = torch.full_like(brain, -5.0)
    found[..., 0, 0] = 5.0  # two of the four voxels
    assert soft_dice(found, brain) == pytest.approx(2 * 2 / (2 + 4))


def test_a_small_head_counts_as_much_as_a_large_one():
    large, small = torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8)
    large[..., :4], small[..., 0, 0, :2] = 1, 1
    right, wrong = 20 * (2 * large - 1), torch.full_like(large, -20.0)
    both = loss_of(torch.cat([right, wrong]), torch.cat([large, small]))
    # the overlap of the small head is lost: half of the Dice part
    assert float(both) > 0.5


def test_both_looks_of_the_network_train_in_one_chunk(head):
    """A chunk of six is three heads, seen first at 3 mm and then through a window which the brain fills."""
    made = HeadChunks([head], seed=3, chunks=5, size=6)
    images, brains = made[1]
    assert images.shape == brains.shape == (6, 1, 72, 72, 80)  # (Z, X, Y)
    assert made.samples == 6
    again = HeadChunks([head], seed=3, chunks=5, size=6)[1]
    assert torch.equal(images, again[0])
    assert torch.equal(brains, again[1])
    assert not torch.equal(images, made[2][0])
    size = (brains > 0.5).sum(dim=(1, 2, 3, 4))
    assert bool((size[3:] > 2 * size[:3]).all())  # balls of 36 mm at most: seen at 1.2 mm or so


def ball_in_a_box(spacing_mm, shift_mm=12.0):
    x, y, z = np.meshgrid(
        *[(np.arange(n) - n / 2) * spacing_mm for n in (80, 90, 80)], indexing="ij"
    )
    radius = np.sqrt((x - shift_mm) ** 2 + y**2 + z**2)
    return np.where(radius < 45, 100, 0).astype(np.float32), (radius < 45).astype(np.float32)


@pytest.mark.parametrize("spacing", [1.6, 2.5])
def test_a_look_shows_image_and_brain_in_one_place(spacing):
    image, brain = ball_in_a_box(spacing)
    places = []
    for seed in range(4):
        (first, there), (second, here) = looks(image, brain, spacing, np.random.default_rng(seed))
        for seen, truth, mm in ((first, there, 3.0), (second, here, 1.5)):
            assert soft_dice(seen - 0.5, truth) > 0.97
            radius = mm * (3 * float(truth.sum()) / (4 * np.pi)) ** (1 / 3)
            assert radius == pytest.approx(45, rel=0.08)  # the second is zoomed by up to 6 %
        places.append((here[0] > 0.5).nonzero().float().mean(0))
    assert torch.stack(places).std(0).min() > 0.3  # each a little off


def test_a_head_without_brain_is_looked_at_twice_in_the_same_way():
    image, brain = ball_in_a_box(2.0)
    first, second = looks(image, 0 * brain, 2.0, np.random.default_rng(0))
    assert torch.equal(first[0], second[0])
    assert not first[1].any()


@pytest.mark.parametrize("chunk", [0, 1, 5])
def test_a_chunk_has_two_looks_at_each_head(chunk):
    with pytest.raises(UsageError, match="even chunk"):
        StripConfig(chunk=chunk)
