# SPDX-License-Identifier: Apache-2.0
"""Training of the network that labels structures."""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
import pytest
import torch

from bmex_bids.common.structures import STRUCTURES, TISSUE_OF
from bmex_bids.metrics.tissue import dice_by_structure
from bmex_bids.network.inference.segment import most_probable
from bmex_bids.network.models.segment import CELLS, SegmentUNet
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.training import segment
from bmex_bids.training.loop import Schedule
from bmex_bids.training.segment import (
    TISSUES_FROM,
    UNKNOWN,
    SegmentConfig,
    StructureChunks,
    Validation,
    example,
    loss_of,
    painted_whole,
)
from bmex_bids.training.structures import (
    SHARES,
    StructureMap,
    atlas_of,
    draw_brightness,
    draw_patch,
    imagined_tissues,
    load_structure_map,
    paint_labels,
    tissues_by_brightness,
)


@pytest.fixture(scope="module")
def ball():
    """All structures as shells and sectors of a ball."""
    index = (np.indices((40, 44, 36)).T - [20, 22, 18]).T
    r = np.linalg.norm(index, axis=0)
    sector = (np.arctan2(index[0], index[1]) + np.pi) / (2 * np.pi + 1e-6) * 11
    labels = np.select([r < 12, r < 14, r < 16], [3 + sector.astype(int), 2, 1], 0)
    return StructureMap(labels.astype(np.uint8), np.clip(10 * (r - 14), 0, 250).astype(np.uint8))


def test_a_label_map_is_brought_to_the_grid_and_grouped(tmp_path):
    numbers = np.zeros((30, 30, 30), np.int16)
    numbers[5:25, 5:25, 5:25] = 24
    numbers[8:22, 8:22, 8:22] = 2
    numbers[12:18, 12:18, 12:18] = 53
    nib.save(nib.Nifti1Image(numbers, np.diag([-1, -1, 1, 1])), tmp_path / "map.nii.gz")
    found = load_structure_map(tmp_path / "map.nii.gz")
    assert found.labels.shape == (35, 35, 35)  # of 28 voxels of 1 mm
    sizes = np.bincount(found.labels.ravel()) * 0.8**3
    assert sizes[9] == pytest.approx(216, rel=0.25)  # corners are rounded off
    assert sizes[4] == pytest.approx(14**3 - 216, rel=0.1)
    assert set(np.unique(found.labels)) == {0, 1, 4, 9}
    assert not found.depth[found.labels == 4].max() > 10
    assert found.depth[0, 0, 0] > 50


def test_an_example_hangs_on_its_seed_and_fits_together(ball):
    x, places, labels = example(ball, np.random.default_rng(1), 32)
    again = example(ball, np.random.default_rng(1), 32)
    assert all(torch.equal(a, b) for a, b in zip((x, places, labels), again, strict=True))
    assert x.shape == (4, 32, 32, 32)
    assert places.shape == (4, 16, 16, 16)
    assert labels.dtype == torch.uint8
    inside = labels > 0
    assert not x[:, ~inside].any()
    whole = torch.nn.functional.avg_pool3d(inside[None].float(), 2)[0]
    assert torch.equal(places[3], whole)
    chunk = StructureChunks([ball], SegmentConfig(patch=32, chunk=3))[0]
    assert [part.shape[0] for part in chunk] == [3, 3, 3]


def test_places_of_a_patch_are_those_of_its_voxels(ball):
    """Labels at the ends of the brain's box lie where the places are 1 in size."""
    inside = ball.labels > 0
    patch = draw_patch(inside, np.random.default_rng(0), 64, (1.0, 1.0))
    labels = patch.take(torch.from_numpy(inside.astype(np.float32))[None], "nearest")[0].numpy()
    coarse = torch.nn.functional.max_pool3d(torch.from_numpy(labels)[None], 2)[0].numpy() > 0
    for axis in range(3):
        seen = patch.places[axis][coarse]
        assert 0.75 < seen.max() < 1.3
        assert -1.3 < seen.min() < -0.75


def test_structures_differ_in_brightness_and_tissues_follow_them(ball):
    rng = np.random.default_rng(0)
    levels = draw_brightness(rng)
    assert levels[0] == 0
    assert len(np.unique(levels)) > 10
    image = paint_labels(ball.labels, levels, rng)
    assert not image[ball.labels == 0].any()
    for number in (4, 8):
        assert image[ball.labels == number].mean() == pytest.approx(levels[number], rel=0.3)
    tissues = imagined_tissues(ball.labels, rng)
    np.testing.assert_allclose(tissues.sum(axis=0), ball.labels > 0, atol=1e-5)
    for number in (1, 2, 3, 4):
        mean = tissues[:, ball.labels == number].mean(axis=1)
        assert mean.argmax() + 1 == TISSUE_OF[number]


@pytest.mark.parametrize("kind", SHARES)
def test_each_contrast_has_its_order_of_brightness(kind):
    rng = np.random.default_rng(0)
    number = {structure.name: structure.number for structure in STRUCTURES}
    levels = np.mean([draw_brightness(rng, kind) for _ in range(50)], axis=0)
    fluid, cortex, white = (
        levels[number[name]] for name in ("ventricles", "cortex", "white_matter")
    )
    if "isointense" not in kind:
        assert (cortex < white) == (kind in ("T1w-mature", "T2w-newborn"))
    if kind != "PDw":
        assert (fluid > max(cortex, white)) == kind.startswith("T2w")


def test_the_rim_of_the_mask_is_uneven(ball):
    levels = np.full(14, 500, np.float32)
    draws = [paint_labels(ball.labels, levels, np.random.default_rng(k)) for k in range(6)]
    rim, inner = (
        np.mean([image[where].std() for image in draws])
        for where in (ball.labels == 1, ball.labels > 1)
    )
    assert rim > 1.5 * inner


class Fixed(SegmentUNet):
    """Scores that a test chooses."""

    def __init__(self, scores):
        super().__init__((4, 4))
        self.chosen = scores

    def features(self, x, places):
        return self.chosen

    def scores(self, features):
        return features  # without the atlas


def chosen_scores(labels, size=10.0):
    """Of labels (D, H, W): high where they say."""
    one = torch.nn.functional.one_hot(labels.long(), 14).movedim(-1, 0)[None].float() * size
    return segment.unshuffle(one)


def test_tissues_by_brightness_call_what_is_as_bright_as_white_matter_white(ball):
    rng = np.random.default_rng(0)
    levels = np.full(len(TISSUE_OF), 400, dtype=np.float32)
    levels[[0, 1, 2, 4]] = 0, 200, 200, 600
    levels[8] = 600  # deep grey matter
    image = levels[ball.labels]
    tissues = tissues_by_brightness(image, levels, rng)
    np.testing.assert_allclose(tissues.sum(axis=0), ball.labels > 0, atol=1e-5)
    for number, tissue in ((1, 0), (2, 0), (3, 1), (4, 2), (8, 2)):
        assert tissues[:, ball.labels == number].mean(axis=1).argmax() == tissue


def test_patches_have_tissues_of_each_kind_and_none(ball, monkeypatch):
    called = []
    for name in ("imagined_tissues", "tissues_by_brightness"):
        made = getattr(segment, name)
        monkeypatch.setattr(segment, name, lambda *a, n=name, m=made: called.append(n) or m(*a))
    rng = np.random.default_rng(0)
    none = sum(not example(ball, rng, 16)[0][1:].any() for _ in range(20))
    assert 2 <= none <= 14
    assert set(called) == {"imagined_tissues", "tissues_by_brightness"}


def test_the_loss_is_least_for_the_truth_and_knows_tissues_and_nothing():
    labels = torch.randint(1, 14, (8, 8, 8), dtype=torch.uint8)
    x, places = torch.zeros(1, 4, 8, 8, 8), torch.ones(1, 4, 4, 4, 4)
    right, wrong = Fixed(chosen_scores(labels)), Fixed(chosen_scores(labels % 13 + 1))
    assert float(loss_of(right, (x, places, labels[None]))) < 0.1
    assert float(loss_of(wrong, (x, places, labels[None]))) > 5
    tissues = torch.from_numpy(TISSUE_OF)[labels.long()] + TISSUES_FROM
    assert float(loss_of(right, (x, places, tissues[None]))) < 0.1
    other = Fixed(chosen_scores(torch.where(labels == 3, 9, labels)))  # grey matter still
    assert float(loss_of(other, (x, places, tissues[None]))) < 0.1
    assert float(loss_of(wrong, (x, places, tissues[None]))) > 1
    unknown = torch.full_like(labels, UNKNOWN)
    assert float(loss_of(wrong, (x, places, unknown[None]))) == 0


def test_the_atlas_is_where_the_structures_are_and_alike_on_both_sides(ball):
    atlas = atlas_of([ball])
    assert atlas.shape == (14, CELLS, CELLS, CELLS)
    np.testing.assert_array_equal(atlas, atlas[:, ::-1])
    np.testing.assert_allclose(np.exp(atlas[:, 10:20, 10:20, 10:20]).sum(axis=0), 1, atol=0.02)
    network = SegmentUNet((4, 4))
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    network.atlas[0].copy_(torch.from_numpy(atlas))
    x, places, labels = painted_whole(ball, np.random.default_rng(0), tissues=False)
    found = most_probable(network, x, places).numpy()
    mirrored = np.where(found == found[::-1], found, labels)
    assert (mirrored[labels > 0] == labels[labels > 0]).mean() > 0.6  # its own atlas, two sizes


def test_dice_counts_the_structures_that_are_there():
    truth = np.array([3, 3, 9, 9, 0], np.uint8)
    found = np.array([3, 9, 9, 9, 1], np.uint8)
    assert dice_by_structure(found, truth) == {
        "cortex": pytest.approx(2 / 3),
        "hippocampus": pytest.approx(0.8),
    }


def test_a_whole_brain_fills_its_box(ball):
    x, places, labels = painted_whole(ball, np.random.default_rng(0), tissues=False)
    assert not x[1:].any()
    assert all(n % 16 == 0 for n in labels.shape)
    assert float(places[0].min()) == pytest.approx(-1, abs=0.1)
    assert painted_whole(ball, np.random.default_rng(0), tissues=True)[0][1:].any()


def test_validation_looks_at_the_brain_only(ball, monkeypatch):
    validation = Validation([ball])
    truth = validation.brains[0][2]
    found = torch.from_numpy(np.where(truth > 0, truth, 9))  # outside, hippocampus
    monkeypatch.setattr(segment, "most_probable", lambda *_: found)
    figures = validation(SegmentUNet((4, 4)))
    assert set(figures.values()) == {1.0}


def test_a_run_leaves_weights_that_load_and_goes_on(ball, tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "load_structure_map", lambda path: ball)
    monkeypatch.setattr(segment, "require", lambda *_: None)
    monkeypatch.setattr(segment, "WIDTHS", (4, 4, 8))
    schedule = Schedule(steps=2, batch=1, validate_every=2, workers=1, threads=1)
    config = SegmentConfig(patch=32, chunk=1, schedule=schedule)
    path = segment.train(tmp_path, tmp_path / "out", config)
    assert isinstance(load_network(path, "bmex-segment"), SegmentUNet)
    header, _ = (tmp_path / "out" / "log.csv").read_text().splitlines()
    assert {"Dice", *(s.name for s in STRUCTURES)} <= set(header.split(","))
    again = dataclasses.replace(
        config,
        start_from=path,
        schedule=dataclasses.replace(schedule, steps=1, validate_every=1, rate=1e-9),
    )
    after = load_network(segment.train(tmp_path, tmp_path / "again", again), "bmex-segment")
    for a, b in zip(
        after.parameters(), load_network(path, "bmex-segment").parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    more = dataclasses.replace(config, schedule=dataclasses.replace(schedule, steps=4))
    segment.train(tmp_path, tmp_path / "out", more)
    assert len((tmp_path / "out" / "log.csv").read_text().splitlines()) == 3
