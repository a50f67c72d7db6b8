# SPDX-License-Identifier: Apache-2.0
"""Real heads with given masks, and odd heads, as training data of brain extraction."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.compact import HalfUNet
from bmex_bids.training import strip
from bmex_bids.training.heads import (
    REAL_MM,
    VALIDATION_HEADS,
    as_it_is,
    dark_share,
    head_files,
    load_real_head,
    repaint,
    scan_real,
)
from bmex_bids.training.loop import Average
from bmex_bids.training.oddities import folded, halved, odd, slab, with_background
from bmex_bids.training.strip import HeadChunks, StripConfig


@pytest.fixture
def folders(head_phantom, tmp_path):
    """A head and one that validates, each with its mask; a head without."""
    head = head_phantom(spacing=5.0)
    mask = nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine)
    heads, masks = tmp_path / "heads", tmp_path / "masks"
    for name in ("a_T1w", f"{VALIDATION_HEADS[0]}_T1w", "without_T1w"):
        heads.mkdir(exist_ok=True)
        masks.mkdir(exist_ok=True)
        nib.save(head.image, heads / f"{name}.nii.gz")
        if name != "without_T1w":
            nib.save(mask, masks / f"{name}_other.nii.gz")
    return heads, masks


@pytest.fixture
def real(folders):
    return load_real_head(*head_files(*folders)[0])


def ball(radius, size=40):
    place = np.indices((size,) * 3) - (size - 1) / 2
    return ((place**2).sum(axis=0) <= radius**2).astype(np.float32)


def test_heads_that_validate_never_train(folders):
    training, judging = (head_files(*folders, validating=judge) for judge in (False, True))
    assert [head.name for head, _ in training] == ["a_T1w.nii.gz"]
    assert [head.name for head, _ in judging] == [f"{VALIDATION_HEADS[0]}_T1w.nii.gz"]


def test_folders_without_a_pair_are_refused(folders, tmp_path):
    with pytest.raises(UsageError, match="found no pair"):
        head_files(folders[0], tmp_path)


def test_heads_and_masks_go_together(tmp_path):
    with pytest.raises(UsageError, match="--heads and --masks together"):
        StripConfig(heads=tmp_path)


def test_a_real_head_keeps_its_brain(real, head_phantom):
    litres = head_phantom(spacing=5.0).mask.sum() * 5.0**3
    assert real.brain.sum() / 255 * REAL_MM**3 == pytest.approx(litres, rel=0.03)
    inside = real.image[real.brain > 250].astype(np.float32)
    assert np.percentile(inside, 98) == pytest.approx(1, abs=0.05)


def test_a_mask_that_lies_elsewhere_is_refused(folders):
    head, mask = head_files(*folders)[0]
    image = nib.load(mask)
    away = image.affine + np.pad([[1000.0]], ((0, 3), (3, 0)))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), away), mask)
    with pytest.raises(UsageError, match="on the head"):
        load_real_head(head, mask)


def test_a_real_head_is_scanned_in_other_sizes_and_contrasts(real):
    brighter = 0
    for seed in range(3):
        image, brain, spacing = scan_real(real, np.random.default_rng(seed))
        assert image.shape == brain.shape
        assert brain.max() > 0.9
        assert 0.8 < spacing < 3
        brighter += image[brain > 0.9].mean() > image[brain < 0.1].mean()
    assert brighter == 3  # air is dark in each
    again = scan_real(real, np.random.default_rng(2))
    np.testing.assert_array_equal(image, again[0])
    image, brain, spacing = as_it_is(real)
    assert spacing == REAL_MM
    assert image[brain > 0.5].mean() > image[brain < 0.5].mean()


def test_a_curve_of_brightness_leaves_air_dark():
    brain = ball(12)
    head = np.where(brain > 0, 0.8, 1.2) * ball(16)
    head[ball(8) > 0] = 0.05  # fluid
    kinds = [repaint(head.astype(np.float32), brain, np.random.default_rng(k)) for k in range(20)]
    air = ball(18) == 0
    assert max(kind[air].max() for kind in kinds) < 0.05
    fluid_bright = [
        kind[ball(8) > 0].mean() > kind[(brain > 0) & (ball(9) == 0)].mean() for kind in kinds
    ]
    assert 0 < sum(fluid_bright) < 20


def test_dark_fluid_of_the_brain_is_not_taken_for_air():
    brain = ball(12)
    image = np.where(ball(6) > 0, 0, 0.8) * ball(15)
    dark = dark_share(image.astype(np.float32), brain, 0.2)
    assert dark[ball(6) > 0].max() == 0
    assert dark[ball(18) == 0].min() == 1


def test_backgrounds_fill_the_air_alone():
    brain = ball(12)
    image = (0.7 * ball(15)).astype(np.float32)
    air, seen = ball(18) == 0, set()
    for seed in range(20):
        filled = with_background(image, brain, np.random.default_rng(seed))
        np.testing.assert_allclose(filled[brain > 0], image[brain > 0])
        assert filled[air].mean() > 0.15
        seen.add(
            "bright"
            if filled[air].mean() > 0.85
            else "noise"
            if filled[air].std() > 0.06
            else "grey"
        )
    assert seen == {"bright", "noise", "grey"}


def test_a_folded_head_has_its_neck_on_top():
    image = np.zeros((6, 6, 40), np.float32)
    image[:, :, :4], image[:, :, 20:30] = 1, 0.5
    brain = (image == 0.5).astype(np.float32)
    found, there = folded(image, brain, 4, np.random.default_rng(0))
    assert found.shape == there.shape == (6, 6, 36)
    assert found[:, :, -4:].min() >= 0.3
    np.testing.assert_array_equal(there[:, :, 16:26], 1)
    assert there.sum() == brain.sum()


def test_a_half_head_and_a_slab_lose_image_and_brain_alike():
    brain = ball(12)
    image = 0.5 * brain
    half, left = halved(image, brain, np.random.default_rng(1))
    np.testing.assert_array_equal(half, 0.5 * left)
    assert left.sum() == pytest.approx(brain.sum() / 2, rel=0.6)
    for seed in range(6):
        part, inside = slab(image, brain, 10, np.random.default_rng(seed))
        assert sorted(part.shape) == [10, 40, 40]
        np.testing.assert_array_equal(part, 0.5 * inside)
        assert inside.any()


def test_heads_without_a_brain_are_left_as_they_are():
    image = ball(10)
    for change in (halved, lambda i, b, r: slab(i, b, 9, r)):
        found, brain = change(image, 0 * image, np.random.default_rng(0))
        np.testing.assert_array_equal(found, image)
        assert not brain.any()


def test_most_heads_are_not_odd():
    image = ball(14)
    plain = sum(
        np.array_equal(odd(image, ball(10), 2.0, np.random.default_rng(k))[0], image)
        for k in range(100)
    )
    assert 45 < plain < 75


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_real_heads_are_their_share_of_a_chunk(head, share, monkeypatch):
    """Heads of both kinds are odd now and then, where there are real ones."""
    made = []

    def note(kind):
        def scan(*_):
            made.append(kind)
            return ball(8), ball(6), 2.0

        return scan

    def oddly(image, brain, spacing_mm, rng):
        made.append("odd")
        return image, brain

    monkeypatch.setattr(strip, "scan", note("drawn"))
    monkeypatch.setattr(strip, "scan_real", note("real"))
    monkeypatch.setattr(strip, "odd", oddly)
    HeadChunks([head], seed=3, chunks=1, size=2, real=["a head"], share=share)[0]
    assert made == ["real" if share else "drawn", "odd"]
    made.clear()
    HeadChunks([head], seed=3, chunks=1, size=2, share=share)[0]
    assert made == ["drawn"]


def test_a_training_takes_the_heads_of_its_folders(head, folders, tmp_path, monkeypatch):
    """Real heads train and judge; the log has their Dice."""
    trained = []

    def fit(model, chunks, loss, validation, *_, **__):
        trained.extend([chunks, validation])
        return Average(model, 0.9)

    monkeypatch.setattr(strip, "fit", fit)
    monkeypatch.setattr(strip, "label_maps", lambda *_: [head])
    config = StripConfig(width=4, blocks=1, heads=folders[0], masks=folders[1], real=0.3)
    (tmp_path / "out").mkdir()
    strip.train(tmp_path, tmp_path / "out", config)
    chunks, validation = trained
    assert [one.name for one in chunks.real] == ["a_T1w"]
    assert chunks.share == 0.3
    assert len(validation.real) == 2  # two looks at the head that validates
    assert set(validation(HalfUNet(1, 1, 4, norm=True))) == {"Dice", "worst", "real"}
