# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.noise import noise_sigma
from bmex_bids.degrade.cells import CELLS, QUICK
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.exceptions import UsageError
from bmex_bids.training import enhance, pairs
from bmex_bids.training.images import (
    LOGGER,
    NOISY,
    TOO_NOISY,
    UNKNOWN,
    CleanImage,
    fit_to_train,
    prepare,
)
from bmex_bids.training.painting import FREESURFER, LabelBrain, load_label_brain, paint
from bmex_bids.training.pairs import (
    Faults,
    PatchChunks,
    Sources,
    _augment,
    degrade_like_app,
    load_sources,
)

SHAPE = (20, 22, 18)


@pytest.fixture(scope="module")
def clean():
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    radius = np.sqrt(x**2 + (y - 0.1) ** 2 + z**2)
    mask = radius < 0.8
    labels = np.where(mask, np.where(radius < 0.5, 3, 2), 0).astype(np.uint8)
    values = 200.0 * labels + 20 * np.random.default_rng(0).random(SHAPE)
    data = np.where(mask, values, 0).astype(np.float32)
    return CleanImage("ball", data, mask, labels, (0.8, 0.8, 0.8), "month24", "T1w")


@pytest.fixture(scope="module")
def drawn(clean):
    """The ball as a label map: cortex around white matter, with fluid in the middle."""
    groups = np.array([0, 0, 1, 3], np.uint8)[clean.labels]
    groups[9:11, 10:12, 8:10] = 5
    return LabelBrain("map", groups)


@pytest.fixture(scope="module")
def sources(clean, drawn):
    return Sources([clean], [clean], [drawn])


def chunks(sources, seed=5):
    return PatchChunks(
        sources, seed=seed, chunks=9, patch=8, window=3, stride=1, patches_per_volume=2
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_chunk_is_a_function_of_the_seed_and_its_index(sources):
    fresh = chunks(sources)[3]
    walked = chunks(sources)
    items = [walked[k] for k in range(5)]
    assert same(items[3], fresh)
    assert same(walked[3], fresh)  # and back again
    assert not same(items[2], fresh)
    assert not same(chunks(sources, seed=6)[3], fresh)
    assert len(walked) == 9
    assert set(walked._volumes) <= {(0, k) for k in (3, 4, 5, 6)}  # old ones are forgotten


def test_each_stream_has_volumes_of_its_own(sources):
    """Worker w of two gets chunks w, w + 2, …: no volume is made by both."""
    two = PatchChunks(sources, seed=5, chunks=8, patch=8, window=3, stride=1, streams=2)
    made = [two[k] for k in (0, 2, 4)]
    assert {stream for stream, _ in two._volumes} == {0}
    assert two[1] is not made[0]
    assert {stream for stream, _ in two._volumes} == {0, 1}
    again = PatchChunks(sources, seed=5, chunks=8, patch=8, window=3, stride=1, streams=2)
    assert same(again[4], made[2])
    one = PatchChunks(sources, seed=5, chunks=8, patch=8, window=3, stride=1)
    assert same(one[0], made[0])  # the first row is what a single worker has
    assert not same(again[1], made[0])


def test_a_chunk_holds_patches_in_the_order_of_the_network(sources):
    bad, target, mask, labels = chunks(sources)[0]
    assert bad.shape == target.shape == mask.shape == (6, 1, 8, 8, 8)
    assert labels.shape == (6, 8, 8, 8)
    assert (bad.dtype, mask.dtype, labels.dtype) == (torch.float32, torch.bool, torch.uint8)
    assert chunks(sources).samples == 6
    assert not bad[~mask].any()
    assert not target[~mask].any()
    assert mask.flatten(1).any(dim=1).all()  # centred on brain


def test_patches_are_cut_as_z_x_y(clean):
    place = np.indices(SHAPE).astype(np.float32)
    values = 1 + place[0] + 100 * place[1] + 10_000 * place[2]
    ramp = CleanImage("ramp", values, np.ones(SHAPE, bool), clean.labels, (1, 1, 1), "x", "")
    made = chunks(Sources([ramp], [], []))
    made.volume = lambda number, stream: (ramp.data, ramp)
    _, target, _, _ = made[0]
    for axis, step in ((2, 10_000), (3, 1), (4, 100)):
        assert (target.diff(dim=axis) == step).all()


def test_degraded_brains_keep_to_the_mask(clean):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        bad = degrade_like_app(clean, rng)
        assert bad.dtype == np.float32
        assert bad.shape == SHAPE
        assert np.isfinite(bad).all()
        assert bad.min() >= 0
        assert not bad[~clean.mask].any()


def test_augmentation_moves_image_mask_and_labels_alike(clean):
    seen = set()
    for seed in range(12):
        result = _augment(clean, np.random.default_rng(seed))
        np.testing.assert_array_equal(result.data > 0, result.mask)
        np.testing.assert_array_equal(result.labels > 0, result.mask)
        np.testing.assert_array_equal(np.sort(result.data.ravel()), np.sort(clean.data.ravel()))
        seen.add(result.data.tobytes())
    assert len(seen) > 1


def test_painted_brains_have_their_map_as_labels(drawn):
    for seed in range(4):
        image = paint(drawn, np.random.default_rng(seed))
        again = paint(drawn, np.random.default_rng(seed))
        np.testing.assert_array_equal(image.data, again.data)
        np.testing.assert_array_equal(image.mask, drawn.groups > 0)
        np.testing.assert_array_equal(image.labels, np.array([0, 2, 2, 3, 3, 1])[drawn.groups])
        assert not image.data[~image.mask].any()
        assert image.data.max() <= 1000


def test_sources_are_picked_by_their_shares(clean, drawn):
    rng = np.random.default_rng(0)
    only_maps = Sources([clean], [clean], [drawn], shares=(0, 0, 1))
    assert only_maps.pick(rng).name.startswith("map:")
    assert Sources([clean], [], [], shares=(1, 0, 0)).pick(rng) is clean


def test_label_maps_are_grouped(make_image, tmp_path):
    labels = np.zeros((30, 30, 30), np.int16)
    for k, members in enumerate(FREESURFER.values()):
        labels[8 + 2 * k : 10 + 2 * k, 8:20, 8:20] = members[0]
    labels[20:22, 8:20, 8:20] = 258  # outside the brain
    make_image("RAS", data=labels, dtype="int16", path=tmp_path / "map_01.nii.gz")
    brain = load_label_brain(tmp_path / "map_01.nii.gz")
    assert brain.name == "map_01"
    counts = np.bincount(brain.groups.ravel())
    assert counts[1:].tolist() == [2 * 12 * 12] * 5
    # read as RAS, kept as LPS: the first group, leftmost of RAS's axis, is last
    order = brain.groups[:, brain.groups.shape[1] // 2, brain.groups.shape[2] // 2]
    assert order[order > 0].tolist() == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1]


def test_a_brain_is_brought_to_the_grid_and_units_of_the_network(head_phantom, tmp_path):
    phantom = head_phantom(spacing=2.0, size=0.2)
    nib.save(phantom.brain, tmp_path / "sub-01_T1w.nii.gz")
    image = prepare(tmp_path / "sub-01_T1w.nii.gz", "month24", "T1w")
    assert image.spacing == (0.8, 0.8, 0.8)
    assert image.data.shape == image.mask.shape == image.labels.shape
    millilitres = [phantom.mask.sum() * 2.0**3, image.mask.sum() * 0.8**3]
    assert millilitres[1] == pytest.approx(millilitres[0], rel=0.1)
    assert not image.data[~image.mask].any()
    assert 0 < image.data.max() <= 1100
    assert set(np.unique(image.labels[image.mask])) == {1, 2, 3}
    unsure = prepare(tmp_path / "sub-01_T1w.nii.gz", "month6", "T1w")
    assert (unsure.labels == UNKNOWN).all()


def test_a_painted_brain_has_no_dark_rim(clean):
    one_tissue = LabelBrain("white", np.where(clean.mask, 3, 0).astype(np.uint8))
    rim = clean.mask & ~ndimage.binary_erosion(clean.mask)
    for seed in range(4):
        painted = paint(one_tissue, np.random.default_rng(seed)).data
        assert painted[rim].mean() == pytest.approx(painted[clean.mask & ~rim].mean(), rel=0.03)


def test_the_box_has_a_margin_and_stays_inside():
    mask = np.zeros((10, 10, 10), bool)
    mask[4, 5:7, 1] = True
    assert bounding_box(mask, 2) == (slice(2, 7), slice(3, 9), slice(0, 4))


def test_missing_data_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"35 files are missing .*sub-0001.*--data"):
        load_sources(tmp_path)


def test_figures_of_validation_by_hand(clean):
    a, b = np.array([0, 10, 999.0]), np.array([0, 0, 0.0])
    mask = np.array([True, True, False])
    assert enhance.psnr_inside(a, b, mask) == pytest.approx(10 * np.log10(1e6 / 50))
    for cell in QUICK:
        bad = CELLS[cell].recipe(3).apply(clean.data, clean.spacing)
        assert np.array_equal(bad, clean.data) == (cell == "clean")
        assert np.array_equal(bad, CELLS[cell].recipe(3).apply(clean.data, clean.spacing))


def test_validation_looks_at_the_middle_and_at_the_cortex():
    mask = np.zeros((100, 90, 80), bool)
    mask[5:95, 10:88, 4:76] = True
    *central, side, front, back = enhance.validation_boxes(mask, 32)
    assert len(central) == 2
    assert all(mask[box].all() for box in central)
    assert side == (slice(5, 37), slice(29, 61), slice(24, 56))  # its first slice is the brain's
    assert front == (slice(34, 66), slice(10, 42), slice(24, 56))
    assert back == (slice(34, 66), slice(56, 88), slice(24, 56))  # its last slice is the brain's
    small = enhance.validation_boxes(np.ones((40, 40, 40), bool), 40)
    assert small == [(slice(0, 40),) * 3] * 5


def test_faults_are_picked_by_their_shares():
    rng = np.random.default_rng(0)
    assert Faults(0, 0, 0, 1, 0, 0).pick(rng) == "low-resolution"
    with pytest.raises(UsageError, match="shares of faults"):
        Faults(0, 0, 0, 0, 0, 0)
    picked = [Faults().pick(rng) for _ in range(2000)]  # the shares' sum is 1
    assert picked.count("motion") == pytest.approx(600, abs=80)
    assert picked.count("noisy-motion") == pytest.approx(360, abs=70)
    assert picked.count("noise") == pytest.approx(540, abs=80)


@pytest.mark.parametrize("kind", ["motion", "noisy-motion", "low-resolution"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_brain_comes_out_of_its_head_where_it_was(clean, kind, share, monkeypatch):
    monkeypatch.setattr(pairs, "IN_A_HEAD", share)
    monkeypatch.setattr(pairs, "draw", lambda *_: Recipe(()))
    unmatched = replace(clean, age_group="", data=np.where(clean.mask, clean.data, 0))
    bad = degrade_like_app(unmatched, np.random.default_rng(0), kind)
    np.testing.assert_array_equal(bad, unmatched.data)


def test_the_rim_of_a_brain_in_a_head_mixes_with_what_is_around_it(clean, monkeypatch):
    """Thick slices of a stripped brain take air in; in a head they take fluid."""
    flat = replace(clean, age_group="", data=np.where(clean.mask, np.float32(500), 0))
    rims = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(pairs, "IN_A_HEAD", share)
        step = {"kind": "smoothing", "fwhm_mm": 3.0}
        monkeypatch.setattr(pairs, "draw", lambda *_, step=step: Recipe((step,)))
        t2w = replace(flat, name="x:T2w")  # bright fluid
        bad = degrade_like_app(t2w, np.random.default_rng(1), "smoothing")
        rims.append(bad[clean.mask].min())
    assert rims[1] > rims[0] + 50


@pytest.fixture(scope="module")
def noisy():
    """A smooth brain with noise of a standard deviation."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 44, 36)], indexing="ij")
    mask = np.sqrt(x**2 + y**2 + z**2) < 0.9
    smooth = (400 + 150 * np.sin(2 * x) + 100 * y).astype(np.float32)

    def make(sigma, name="brain"):
        noise = sigma * np.random.default_rng(1).standard_normal(mask.shape)
        data = np.where(mask, smooth + noise, 0).astype(np.float32)
        labels = mask.astype(np.uint8)
        return CleanImage(name, data, mask, labels, (0.8, 0.8, 0.8), "month24", "T1w")

    make.smooth = smooth
    return make


@pytest.mark.parametrize("sigma", [3.0, 12.0])
def test_noise_is_the_standard_deviation_of_what_was_added(noisy, sigma):
    image, smooth = noisy(sigma), noisy(0)
    assert noise_sigma(image.data, image.mask) == pytest.approx(sigma, rel=0.05)
    assert noise_sigma(smooth.data, smooth.mask) < 0.3  # a smooth brain has next to none


def test_noisy_images_are_denoised_or_left_out_of_training(noisy, monkeypatch):
    """A network learns to keep what its clean images have, and ripples of motion look like noise."""
    a, b, c = noisy(2, "quiet"), noisy((NOISY + TOO_NOISY) / 2, "noisy"), noisy(12, "hopeless")
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lambda text, *values: said.append(text % values))
    kept = fit_to_train([a, b, c])
    assert [image.name for image in kept] == ["quiet", "noisy"]
    assert kept[0] is a
    inside = b.mask
    before, after = (np.std((i.data - noisy.smooth)[inside]) for i in (b, kept[1]))
    assert after < before / 2
    assert not kept[1].data[~inside].any()
    assert said[-1].startswith("hopeless: noise of 1")
