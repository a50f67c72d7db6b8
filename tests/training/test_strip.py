# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from bmex_bids.training.strip import loss_of, soft_dice


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
