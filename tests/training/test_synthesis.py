# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.compact import HalfUNet
from bmex_bids.training.strip import (
    HeadChunks,
    StripConfig,
    Validation,
    loss_of,
    soft_dice,
    train,
)
from bmex_bids.training.synthesis import (
    TISSUES,
    Grid,
    _halve,
    brain_fraction,
    deform,
    draw_brightness,
    load_head,
    scan,
    synthesise,
)

SIZE = (24, 32, 16)


def test_a_head_is_a_function_of_the_seed(head):
    a = synthesise(head, np.random.default_rng(3), size=SIZE)
    b = synthesise(head, np.random.default_rng(3), size=SIZE)
    c = synthesise(head, np.random.default_rng(4), size=SIZE)
    assert_array_equal(a[0], b[0])
    assert_array_equal(a[1], b[1])
    assert not np.array_equal(a[0], c[0])


def test_a_head_half_as_large_fills_voxels_half_as_large(head):
    brains = [
        synthesise(head, np.random.default_rng(7), size=(40, 44, 40), spacing_mm=s, scale=s / 2)[1]
        for s in (2.0, 1.0)
    ]
    assert brains[0].sum() > 500
    assert brains[1].sum() == pytest.approx(brains[0].sum(), rel=0.15)


def test_voxels_of_a_scan_go_with_the_head(head):
    """Head and field of view keep their proportion, whatever the size: the brain is always in it."""
    spacings, voxels = [], []
    for seed in range(8):
        image, brain, spacing = scan(head, np.random.default_rng(seed))
        assert image.shape == brain.shape == (108, 120, 108)
        spacings.append(spacing)
        voxels.append(brain.sum())
    assert min(spacings) < 1.5 < 2.0 < max(spacings) < 3.0
    assert min(voxels) > 500  # (9 voxels of 2 mm) ball: 3054, less where voxels are larger
    again = scan(head, np.random.default_rng(7))
    assert again[2] == spacings[-1]
    assert_array_equal(again[0], image)


def test_heads_are_normalised_and_brains_are_fractions(head):
    for seed in range(12):
        image, brain = synthesise(head, np.random.default_rng(seed), size=SIZE)
        assert image.shape == brain.shape == SIZE
        assert image.dtype == brain.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= -0.5
        assert image.max() <= 2
        assert brain.min() >= 0
        assert 0.5 < brain.max() <= 1 + 1e-5


def test_the_map_of_a_head_is_not_changed(head):
    before = head.fractions.copy(), head.brain.copy()
    synthesise(head, np.random.default_rng(0), size=SIZE)
    assert_array_equal(head.fractions, before[0])
    assert_array_equal(head.brain, before[1])


def test_brightness_is_drawn_for_each_tissue():
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_brightness(("cortex", "white", "outside-1"), rng) for _ in range(50)])
    assert drawn.shape == (50, 3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert len(np.unique(drawn)) == 150


def test_blocks_are_halved_to_their_share():
    mask = np.zeros((4, 2, 2), bool)
    mask[0] = True  # half of the first block
    mask[2, 0, 0] = True  # one of eight of the second
    assert _halve(mask).ravel().tolist() == [128, 32]  # 127.5 and 31.875 rounded


def test_fluid_between_the_tissues_is_brain_and_bone_is_not():
    names = (*TISSUES, "outside-258")
    labels = np.full((20, 16, 16), -1)
    labels[4:8, 4:12, 4:12] = names.index("cortex")
    labels[11:15, 4:12, 4:12] = names.index("white")
    labels[8:11, 4:8, 4:12] = names.index("fluid")  # a sulcus of 6 mm
    labels[8:11, 8:12, 4:12] = names.index("outside-258")  # and bone in it
    labels[1:4, 4:12, 4:12] = names.index("fluid")  # around the brain
    fractions = np.stack([labels == k for k in range(len(names))]).astype(np.uint8) * 255
    brain = brain_fraction(names, fractions, 2.0)
    assert (brain[4:8, 4:12, 4:12] == 255).all()
    assert (brain[11:15, 4:12, 4:12] == 255).all()
    assert (brain[8:11, 5:7, 5:11] == 255).all()
    assert not brain[8:11, 8:12].any()
    assert (brain[3, 5:11, 5:11] == 255).all()  # up to 2 mm of fluid around the brain
    assert not brain[:3].any()
    assert not brain[15:].any()


def test_a_label_map_becomes_fractions_that_fill_the_head(make_image, tmp_path):
    labels = np.zeros((30, 28, 26), np.int16)
    labels[4:26, 4:24, 4:22] = 258
    labels[8:22, 8:20, 8:18] = 3
    labels[11:19, 11:17, 11:15] = 2
    make_image("RAS", data=labels, dtype="int16", path=tmp_path / "seg_01.nii.gz")
    head = load_head(tmp_path / "seg_01.nii.gz")
    assert head.name == "seg_01"
    assert head.tissues[-1] == "outside-258"
    total = head.fractions.astype(int).sum(axis=0)
    assert abs(total.sum() / 255 * 8 - (labels > 0).sum()) < 0.02 * (labels > 0).sum()
    assert total.max() <= 256  # rounding
    cortex = head.fractions[head.tissues.index("cortex")] / 255
    assert cortex.sum() * 8 == pytest.approx((labels == 3).sum(), rel=0.01)
    assert head.brain.shape == total.shape
    assert head.brain.sum() / 255 * 8 == pytest.approx(np.isin(labels, (2, 3)).sum(), rel=0.05)


def test_chunks_of_heads_are_a_function_of_seed_and_index(head):
    small = HeadChunks([head], seed=1, chunks=5, size=2)
    images, brains = small[2]
    assert images.shape == brains.shape
    assert images.shape[:2] == (2, 1)
    assert small.samples == len(images)
    again = HeadChunks([head], seed=1, chunks=5, size=2)
    assert torch.equal(again[2][0], images)
    assert not torch.equal(again[1][0], images)


def test_the_loss_of_stripping_is_zero_for_the_right_answer():
    brain = torch.zeros(1, 1, 4, 4, 4)
    brain[..., :2] = 1
    right = 100 * (2 * brain - 1)
    assert loss_of(right, brain) == pytest.approx(0, abs=1e-5)
    # no idea: overlap 2 · 16 / (32 + 32), cross-entropy ln 2
    assert loss_of(0 * brain, brain) == pytest.approx(0.5 + math.log(2))
    assert soft_dice(right, brain) == 1
    assert soft_dice(-right, brain) == 0


def test_validation_has_the_same_heads_each_time(head):
    a, b = (Validation([head], contrasts=2) for _ in range(2))
    assert torch.equal(a.samples[1][0], b.samples[1][0])
    network = HalfUNet(1, 1, 4, norm=True)
    figures = a(network)
    assert figures == {"Dice": 0.0, "worst": 0.0}  # untrained: nothing is brain
    assert network.training


def test_missing_label_maps_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"16 are missing .*training_seg_01.*--data"):
        train(tmp_path, tmp_path / "out", StripConfig())


def test_a_head_on_a_finer_grid_is_the_same_head(head):
    """One seed, 3 mm and 2 mm: the same brain, seen with other voxels."""
    brain = head.brain.astype(np.float32) / 255
    coarse = deform(brain, brain, np.random.default_rng(5), Grid((24, 32, 16), 3.0))[1]
    fine = deform(brain, brain, np.random.default_rng(5), Grid((36, 48, 24), 2.0))[1]
    assert coarse.sum() * 27 == pytest.approx(fine.sum() * 8, rel=0.02)
    middle = [
        np.array([np.average(np.arange(n) + 0.5, weights=v.sum(axis=o)) for n, o in zip(
            v.shape, ((1, 2), (0, 2), (0, 1)), strict=True)]) * step
        for v, step in ((coarse, 3.0), (fine, 2.0))
    ]  # fmt: skip
    assert np.abs(middle[0] - middle[1]).max() < 0.5
