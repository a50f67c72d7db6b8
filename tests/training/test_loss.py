# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from skimage.filters import threshold_multiotsu
from skimage.metrics import structural_similarity

from bmex_bids.training.loss import BINS, JointLoss, _classes, disagreement, ssim


@pytest.fixture
def batch():
    """Two patches: every voxel of the first is wrong by 180, of the second by 80."""
    target = torch.full((2, 1, 8, 8, 8), 500.0)
    bad = target + torch.tensor([180.0, -80.0]).reshape(2, 1, 1, 1, 1)
    mask = torch.zeros(2, 1, 8, 8, 8, dtype=torch.bool)
    mask[..., 1:3] = True
    labels = torch.randint(1, 4, (2, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    return bad, target, mask, labels.to(torch.uint8)


def certain(labels):
    return 100 * torch.nn.functional.one_hot(labels.long(), 4).movedim(-1, 1).float()


def what_a_term_costs(term, image, bad, target, mask):
    """Of a weight of two, beside the image's error alone; one patch, labels not known."""
    labels = torch.full(target.shape[1:], 255, dtype=torch.uint8)
    scores = torch.zeros(1, 4, *target.shape[2:])
    without, with_it = (
        float(
            JointLoss(structure=0, floor=40, **{term: weight})(
                scores, image, bad, target, mask, labels
            )
        )
        for weight in (0.0, 2.0)
    )
    return with_it - without


def test_a_perfect_output_costs_nothing(batch):
    bad, target, mask, labels = batch
    assert JointLoss()(certain(labels), target, bad, target, mask, labels) == pytest.approx(0)


def test_an_unchanged_image_costs_about_one(batch):
    bad, target, mask, labels = batch
    loss = JointLoss(tissue=0, floor=20, structure=0)(
        certain(labels), bad, bad, target, mask, labels
    )
    expected = (180**2 / (180**2 + 20**2) + 80**2 / (80**2 + 20**2)) / 2
    assert loss == pytest.approx(expected)
    loss = JointLoss(tissue=0, floor=0, structure=0)(
        certain(labels), bad, bad, target, mask, labels
    )
    assert loss == pytest.approx(1)


def test_ignorance_of_tissues_costs_the_logarithm_of_four(batch):
    bad, target, mask, labels = batch
    scores = torch.zeros(2, 4, 8, 8, 8, dtype=torch.float64)
    loss = JointLoss(tissue=0.1)(scores, target, bad, target, mask, labels)
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


def test_structure_is_scikit_images_and_lost_structure_costs_its_share():
    generator = torch.Generator().manual_seed(1)
    target = 400 + 200 * torch.rand(1, 1, 20, 20, 20, generator=generator)
    bad = target + 60 * torch.randn(target.shape, generator=generator)
    x, y = bad[0, 0].numpy(), target[0, 0].numpy()
    whole = {"win_size": 7, "data_range": 1000, "use_sample_covariance": False, "full": True}
    expected = structural_similarity(x, y, **whole)[1]
    middle = (slice(3, -3),) * 3  # the libraries differ beyond the edge
    found = ssim(bad, target)[0, 0].numpy()
    assert np.abs(found - expected)[middle].max() < 1e-4

    mask = torch.zeros(target.shape, dtype=torch.bool)
    mask[..., 6:14, 6:14, 6:14] = True
    labels = torch.full((1, 20, 20, 20), 255, dtype=torch.uint8)
    scores = torch.zeros(1, 4, 20, 20, 20)
    losses = [
        JointLoss(structure=share, structure_floor=0)(scores, bad, bad, target, mask, labels)
        for share in (0.0, 0.3)
    ]
    assert float(losses[1] - losses[0]) == pytest.approx(0.3)
    assert JointLoss()(scores, target, bad, target, mask, labels) == pytest.approx(0, abs=1e-6)


def test_where_the_sign_is_not_known_doing_half_costs_less_than_nothing():
    """The mean of what may be, not its median: a ghost of unknown phase is made weaker."""
    target = torch.full((1, 1, 8, 8, 8), 500.0)
    target[..., ::4] += 90.0  # a quarter of the voxels
    bad = torch.full_like(target, 500.0)
    mask = torch.ones_like(target, dtype=torch.bool)
    labels = torch.full((1, 8, 8, 8), 255, dtype=torch.uint8)
    scores = torch.zeros(1, 4, 8, 8, 8)
    loss = JointLoss(floor=20, structure=0)
    nothing, mean = (
        float(loss(scores, bad + shift, bad, target, mask, labels)) for shift in (0.0, 22.5)
    )
    assert nothing == pytest.approx(45**2 / (45**2 + 20**2))
    assert mean < 0.9 * nothing


def test_what_is_gone_at_half_the_resolution_costs_nothing_there():
    """A chequerboard has no part in the means of 2×2×2 voxels."""
    place = torch.arange(16)
    sign = 1 - 2 * ((place[:, None, None] + place[:, None] + place) % 2).float()
    target = torch.full((1, 1, 16, 16, 16), 500.0)
    bad = target + 60 * sign
    mask = torch.ones_like(target, dtype=torch.bool)
    labels = torch.full((1, 16, 16, 16), 255, dtype=torch.uint8)
    scores = torch.zeros(1, 4, 16, 16, 16)
    plain = JointLoss(structure=0)(scores, bad, bad, target, mask, labels)
    one, two = (
        float(JointLoss(scales=scales)(scores, bad, bad, target, mask, labels) - plain)
        for scales in (1, 2)
    )
    assert one > 0.2
    assert two == pytest.approx(one / 2, abs=1e-5)


def test_a_coarse_fault_costs_at_every_scale():
    target = torch.full((1, 1, 16, 16, 16), 500.0)
    bad = target.clone()
    bad[..., 8:] += 90.0
    mask = torch.ones_like(target, dtype=torch.bool)
    labels = torch.full((1, 16, 16, 16), 255, dtype=torch.uint8)
    scores = torch.zeros(1, 4, 16, 16, 16)
    losses = [
        float(
            JointLoss(structure_floor=0, scales=scales)(scores, image, bad, target, mask, labels)
        )
        for scales in (1, 3)
        for image in (bad, target)
    ]
    share = 90**2 / 2 / (90**2 / 2 + 12**2)
    assert losses == pytest.approx([share + 0.3, 0, share + 0.3, 0], abs=1e-5)


def test_a_histogram_that_has_shrunk_costs_and_one_that_lies_elsewhere_does_not():
    """By hand: five values that are halved towards their mean are 10, 5, 0, 5, 10 away when sorted."""
    target = torch.tensor([480.0, 490, 500, 510, 520]).reshape(1, 1, 5, 1, 1)
    halved = 500 + (target - 500) / 2
    elsewhere = target[:, :, [3, 0, 4, 1, 2]]
    bad = target + 30
    mask = torch.ones_like(target, dtype=torch.bool)
    costs = [
        what_a_term_costs("histogram", image, bad, target, where)
        for image, where in (
            (target, mask),
            (elsewhere, mask),
            (halved, mask),
            (halved, mask & False),
        )
    ]
    assert costs == pytest.approx([0, 0, 2 * 50 / (30**2 + 40**2), 0])


def test_each_patch_has_a_histogram_of_its_own_and_all_of_its_voxels_learn():
    target = torch.tensor([400.0, 600.0]).reshape(2, 1, 1, 1, 1).expand(2, 1, 2, 2, 2)
    image = target.flip(0).clone().requires_grad_()  # together, the two have the right histogram
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[0, ..., 0] = False  # of different sizes
    labels = torch.full((2, 2, 2, 2), 255, dtype=torch.uint8)
    scores = torch.zeros(2, 4, 2, 2, 2)
    bad = target + 100
    loss = JointLoss(structure=0, floor=0, histogram=1.0)
    cost = loss(scores, image, bad, target, mask, labels)
    cost.backward()
    assert float(cost.detach()) == pytest.approx(2 * 200**2 / 100**2)
    assert image.grad is not None
    assert torch.equal(image.grad != 0, mask)


def three_classes():
    """100, 400 and 700, two voxels each: the classes have these means and next to no spread."""
    return torch.tensor([100.0, 100, 400, 400, 700, 700]).reshape(1, 1, 6, 1, 1)


@pytest.mark.parametrize(
    ("values", "dice"),
    [
        ([100, 100, 400, 400, 700, 700], (1, 1, 1)),
        ([100, 100, 400, 400, 400, 700], (1, 4 / 5, 2 / 3)),  # a bright one taken for the middle
        ([100, 100, 400, 400, 400, 400], (1, 2 / 3, 0)),  # both
        ([700, 100, 400, 400, 700, 700], (2 / 3, 1, 4 / 5)),
        ([100, 100, 405, 395, 701, 699], (1, 1, 1)),  # still nearest to their own class
    ],
)
def test_classes_are_compared_by_the_coefficient_of_dice(values, dice):
    target = three_classes()
    image = torch.tensor(values, dtype=torch.float32).reshape(target.shape)
    mask = torch.ones_like(target, dtype=torch.bool)
    expected = 1 - sum(dice) / 3
    found = disagreement([image, target], target, mask).tolist()
    assert found == [pytest.approx([expected], abs=1e-6), pytest.approx([0], abs=1e-6)]


def test_disagreement_is_relative_to_the_damaged_images_and_may_be_unknown():
    target, image, bad = three_classes(), three_classes(), three_classes()
    image[0, 0, 5], bad[0, 0, 4:] = 400, 400
    mask = torch.ones_like(target, dtype=torch.bool)
    costs = [
        what_a_term_costs("classes", y, bad, clean, where)
        for y, clean, where in (
            (target, target, mask),
            (image, target, mask),
            (image, target, mask & False),
            (image, target * 0 + 300, mask),  # without classes
        )
    ]
    after, before = 1 - (1 + 4 / 5 + 2 / 3) / 3, 1 - (1 + 2 / 3) / 3
    assert costs == pytest.approx([0, 2 * after / (before + 0.1), 0, 0], abs=1e-5)


def test_classes_are_those_of_otsus_criterion_and_draw_an_image_to_its_target():
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 3, (1, 1, 12, 12, 12), generator=generator)
    noise = 60 * torch.randn(kind.shape, generator=generator)
    target = torch.tensor([200.0, 450, 800])[kind] + noise
    mask = torch.ones_like(target, dtype=torch.bool)
    found = _classes(target[mask])
    assert found is not None
    values = target.flatten().numpy()
    parts = np.digitize(values, threshold_multiotsu(values, 3, nbins=BINS))
    means = [float(values[parts == k].mean()) for k in range(3)]
    assert found[0].tolist() == pytest.approx(means, abs=float(np.ptp(values)) / BINS)
    assert float(found[1]) == pytest.approx(
        math.sqrt(np.mean([(values[parts == k] - means[k]).var() for k in range(3)])), rel=0.3
    )
    image = (0.5 * target + 0.5 * target.mean()).requires_grad_()
    before = disagreement([image], target, mask)
    (step,) = torch.autograd.grad(before.sum(), image)
    moved = disagreement([(image - 1e6 * step).detach()], target, mask)
    assert float(moved) < 0.9 * float(before.detach())
    assert float(((image.detach() - target) * step).sum()) > 0
