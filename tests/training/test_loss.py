# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from bmex_bids.training.loss import JointLoss


@pytest.fixture
def batch():
    """Two patches: every voxel of the first is wrong by 180, of the second by 80."""
    target = torch.full((2, 1, 4, 4, 4), 500.0)
    bad = target + torch.tensor([180.0, -80.0]).reshape(2, 1, 1, 1, 1)
    mask = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    mask[..., 1:3] = True
    labels = torch.randint(1, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    return bad, target, mask, labels.to(torch.uint8)


def certain(labels):
    return 100 * torch.nn.functional.one_hot(labels.long(), 4).movedim(-1, 1).float()


def test_a_perfect_output_costs_nothing(batch):
    bad, target, mask, labels = batch
    assert JointLoss()(certain(labels), target, bad, target, mask, labels) == pytest.approx(0)


def test_an_unchanged_image_costs_about_one(batch):
    bad, target, mask, labels = batch
    loss = JointLoss(tissue=0, floor=20)(certain(labels), bad, bad, target, mask, labels)
    assert loss == pytest.approx((180 / 200 + 80 / 100) / 2)
    loss = JointLoss(tissue=0, floor=0)(certain(labels), bad, bad, target, mask, labels)
    assert loss == pytest.approx(1)


def test_ignorance_of_tissues_costs_the_logarithm_of_four(batch):
    bad, target, mask, labels = batch
    loss = JointLoss(tissue=0.1)(torch.zeros(2, 4, 4, 4, 4), target, bad, target, mask, labels)
    assert loss == pytest.approx(0.1 * math.log(4))


def test_unknown_labels_cost_nothing(batch):
    bad, target, mask, labels = batch
    wrong = -certain(labels)
    unknown = torch.full_like(labels, 255)
    assert JointLoss()(wrong, target, bad, target, mask, unknown) == 0
    half = labels.clone()
    half[0] = 255
    scores = certain(labels)
    scores[0] = wrong[0]
    assert JointLoss()(scores, target, bad, target, mask, half) == pytest.approx(0)


def test_what_lies_outside_the_mask_costs_nothing(batch):
    bad, target, mask, labels = batch
    image = torch.where(mask, target, target + 1e4)
    scores = torch.where(mask, certain(labels), -certain(labels))
    assert JointLoss()(scores, image, bad, target, mask, labels) == pytest.approx(0)
    assert JointLoss()(scores, image, bad, target, mask & False, labels) == 0
