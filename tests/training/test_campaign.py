# SPDX-License-Identifier: Apache-2.0
"""The campaign: volumes, slices, loss, twenty steps, and the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bmex_bids.cli import train as command
from bmex_bids.evaluation import lesions as evaluated
from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.slices import NEIGHBOURS, SliceUNet
from bmex_bids.settings import dumps, loads
from bmex_bids.training import campaign, linear, patients, scans
from bmex_bids.training.campaign import CampaignConfig, SliceChunks, Validation, fit_slices
from bmex_bids.training.images import UNKNOWN, CleanImage
from bmex_bids.training.lesions import Part
from bmex_bids.training.linear import TRAINING, VALIDATION, Collection
from bmex_bids.training.loop import Schedule
from bmex_bids.training.patients import LESION, Patients


@pytest.fixture
def clean() -> CleanImage:
    """Nested ellipsoids, brain mean 400, with room around."""
    x, y, z = np.indices((32, 36, 30)) - np.array([16, 18, 15]).reshape(3, 1, 1, 1)
    r = np.sqrt((x / 14.0) ** 2 + (y / 16.0) ** 2 + (z / 13.0) ** 2)
    labels = np.select([r < 0.5, r < 0.85, r < 1], [3, 2, 1], 0).astype(np.uint8)
    data = np.array([0, 150, 380, 560], dtype=np.float32)[labels]
    data *= 400 / data[labels > 0].mean()
    return CleanImage("ball", data, labels > 0, labels, (0.8,) * 3, "month24", "T1w")


class OneBrain(Collection):
    """Draws the same image, with a group in turn."""

    def pick(self, rng: np.random.Generator) -> tuple[str, CleanImage]:
        return str(rng.choice(["adults", "heads", "painted"])), self.sources[0]


@pytest.fixture
def sources(clean: CleanImage, tmp_path: Path) -> Collection:
    return OneBrain(tmp_path, tmp_path, [clean], [])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "WINDOW", 3)
    monkeypatch.setattr(campaign, "COLUMNS", 32)
    monkeypatch.setattr(campaign, "LEAST_BRAIN", 100)
    monkeypatch.setattr(campaign, "ENDS", 3)
    monkeypatch.setattr(scans, "AIR", 4)
    monkeypatch.setattr(scans, "IN_A_HEAD", 0.1)
    monkeypatch.setattr(campaign, "QUICK", ("clean", "noise 2.5%"))


def test_no_image_trains_and_validates():
    assert not {s.file for s in TRAINING} & {s.file for s in VALIDATION}
    never = (
        "sub-0003",
        "sub-0007",
        "sub-31",
        "sub-68",
        "sub-14",
        "child10",
        "stroke",
        "GA31",
        "GA34",
    )
    assert [s.file for s in TRAINING if any(name in s.file for name in never)] == []
    assert {s.group for s in TRAINING} == set(linear.SHARES) - {"painted"}


@pytest.mark.parametrize("fault", scans.FAULTS)
def test_each_fault_gives_a_pair_on_one_grid(clean, fault, monkeypatch):
    parts = [] if fault == "clean" else fault.split("+")
    monkeypatch.setattr(scans, "draw_faults", lambda rng: parts)
    for seed, group in enumerate(("adults", "heads", "painted")):
        found = scans.scan(group, clean, np.random.default_rng(seed))
        assert found.bad.shape == found.clean.shape == found.mask.shape == found.labels.shape
        inside = found.mask
        assert found.bad[inside].astype(float).mean() == pytest.approx(400, rel=0.02)
        assert not found.bad[~inside].any()
        assert not found.labels[~inside].any()
        change = np.abs(found.bad.astype(float) - found.clean)[inside].mean()
        assert (change == 0) == (fault == "clean")


def test_noise_of_a_scanners_grid_has_little_of_what_the_grid_cannot_hold(monkeypatch):
    """Voxels of 1.6 hold nothing finer than 3.2; cubic splines let a little pass."""

    def spectrum() -> np.ndarray:
        noise = scans._noisy(
            np.full((64, 64, 64), 1e4, np.float32), 20.0, np.random.default_rng(1)
        )
        power = np.abs(np.fft.fft(noise - noise.mean(), axis=0)) ** 2
        return power.mean(axis=(1, 2))

    monkeypatch.setattr(scans, "WHITE", 1.0)
    white = spectrum()
    assert white[25:33].mean() == pytest.approx(white[2:10].mean(), rel=0.1)
    monkeypatch.setattr(scans, "WHITE", 0.0)
    monkeypatch.setattr(scans, "SCANNER_VOXELS", (1.6, 1.6))
    resampled = spectrum()
    assert resampled[28:33].mean() < 0.05 * resampled[2:10].mean()


def test_a_scanners_grid_is_interpolated_by_cubic_splines():
    grid = scans.ScannerGrid.draw((20, 24, 28), np.random.default_rng(0))
    ramp = np.add.outer(
        np.add.outer(*(np.arange(n) for n in grid.shape[:2])), np.arange(grid.shape[2])
    )
    steps = np.diff(grid.resampled(ramp.astype(np.float32))[6:-6, 12, 14])
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-2)  # a plane stays one
    np.testing.assert_allclose(grid.resampled(np.ones(grid.shape, np.float32)), 1, rtol=1e-4)


def test_adults_become_t2w_flair_and_pdw_now_and_then(clean, monkeypatch):
    monkeypatch.setattr(scans, "OTHER_CONTRAST", 1.0)
    orders = set()
    for seed in range(40):
        data, dark = scans._contrast(
            "adults", clean.data, clean.mask, True, np.random.default_rng(seed)
        )
        means = [float(data[clean.labels == tissue].mean()) for tissue in (1, 2, 3)]
        orders.add((tuple(np.argsort(means)), dark))
    assert ((0, 2, 1), True) in orders  # FLAIR: fluid, white, grey
    assert ((2, 1, 0), False) in orders  # T2w and PDw: white, grey, fluid
    assert not {dark for order, dark in orders if order[0] == 0} - {True}


def test_slabs_are_mirrored_with_their_truth(clean):
    found = scans.scan("adults", clean, np.random.default_rng(0))
    whole = campaign.slab(found, 1, 15)
    seen = set()
    for seed in range(40):
        bad, mask, truth, labels = campaign._flipped(*whole, np.random.default_rng(seed))
        for order in (1, -1):
            for rows in (1, -1):
                for columns in (1, -1):
                    back = (slice(None, None, rows), slice(None, None, columns))
                    if (mask[::order][(slice(None), *back)] == whole[1]).all() and (
                        labels[back] == whole[3]
                    ).all():
                        gain = bad.sum() / whole[0].sum()
                        np.testing.assert_allclose(
                            truth[back], whole[2] * gain, rtol=1e-3, atol=1e-2
                        )
                        seen.add((order, rows, columns))
    assert len(seen) == 8


def test_the_first_axis_is_mostly_the_phase_encoding_one(clean, monkeypatch):
    """Motion makes the first axis differ most from the truth where edges are displaced along it."""
    seen = []
    monkeypatch.setattr(scans, "_stored", lambda bad, data, mask, labels, axis: axis)
    monkeypatch.setattr(
        scans,
        "_motion",
        lambda axis, rng: seen.append(axis) or {"kind": "smoothing", "fwhm_mm": 1.0},
    )
    monkeypatch.setattr(scans, "draw_faults", lambda rng: ["motion"])
    rng = np.random.default_rng(0)
    stored = [scans.scan("adults", clean, rng) for _ in range(60)]
    assert 0.8 < np.mean(np.array(stored) == seen) < 1


def test_volumes_are_functions_of_the_seed_and_each_worker_has_its_own(sources):
    def volume(seed: int, stream: int) -> np.ndarray:
        return SliceChunks(sources, seed=seed, chunks=4, per_volume=2).volume(5, stream).bad

    np.testing.assert_array_equal(volume(1, 0), volume(1, 0))
    assert volume(1, 0).shape != volume(1, 1).shape or (volume(1, 0) != volume(1, 1)).any()
    assert volume(1, 0).shape != volume(2, 0).shape or (volume(1, 0) != volume(2, 0)).any()


def test_a_chunk_holds_slices_with_brain_and_the_middle_one_is_the_truth(sources, monkeypatch):
    monkeypatch.setattr(scans, "draw_faults", lambda rng: [])
    chunks = SliceChunks(sources, seed=3, chunks=4, per_volume=4)
    bad, mask, clean, labels = chunks[1]
    assert len(bad) == chunks.samples == 12
    assert bad.shape == mask.shape == (12, NEIGHBOURS, bad.shape[2], 32)
    assert clean.shape == labels.shape == (12, bad.shape[2], 32)
    middle = NEIGHBOURS // 2
    torch.testing.assert_close(bad[:, middle], clean, atol=0.5, rtol=1e-3)
    assert (mask[:, middle].sum((1, 2)) >= 100).all()


def test_the_loss_falls_only_where_the_image_or_the_tissues_are_wrong(sources):
    batch = SliceChunks(sources, seed=3, chunks=4, per_volume=4)[0]
    config = CampaignConfig(tissue_share=0.0, variance_share=0.0)

    class Perfect(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bad, _mask, clean, _labels = batch
            y = torch.zeros(len(x), 5, *x.shape[2:])
            y[:, 0] = ((clean - bad[:, NEIGHBOURS // 2]) / 30.0)[:, : x.shape[2]]
            return y

    with torch.no_grad():
        nothing = float(campaign.loss_of(SliceUNet(), batch, config))
        assert float(campaign.loss_of(Perfect(), batch, config)) < 0.02 * nothing
        with_tissues = dataclasses.replace(config, tissue_share=1.0)
        tissue = float(campaign.loss_of(SliceUNet(), batch, with_tissues)) - nothing
    assert tissue == pytest.approx(np.log(3), rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_twenty_steps_a_stop_and_the_rest(sources, clean, tmp_path, precision):
    """Resumes from its checkpoint, and its weights load as a network that changes the image."""
    schedule = Schedule(
        steps=12, batch=4, rate=1e-3, warmup=2, minutes=5.0, timed=True, validate_every=6,
        threads=1, precision=precision,
    )  # fmt: skip
    validation = Validation([clean], slices=1)
    out = tmp_path / "out"
    fit_slices(sources, validation, out, CampaignConfig(schedule=schedule))
    first = torch.load(out / "checkpoint.pt", weights_only=True)
    assert first["step"] == 12
    assert first["minutes"] > 0
    longer = dataclasses.replace(schedule, steps=20)
    weights = fit_slices(sources, validation, out, CampaignConfig(schedule=longer))
    second = torch.load(out / "checkpoint.pt", weights_only=True)
    assert second["step"] == 20
    assert second["minutes"] > first["minutes"]
    rows = (out / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "6", "12", "18"]
    network = SliceUNet()
    network.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    assert any(float(p.detach().abs().max()) > 0 for p in network.head.parameters())


@pytest.mark.parametrize("labelled", [True, False])
def test_lesions_are_in_the_image_and_have_a_label_where_it_is_wanted(
    clean, labelled, monkeypatch
):
    monkeypatch.setattr(patients, "LEAST_TISSUE", 100)
    monkeypatch.setattr(patients, "SIZES_MM", (3.0, 5.0))
    part = Part(np.ones((4, 4, 4), bool), (0.0, 16.5, 5.5))  # the middle of the brain
    those = Patients(labelled, share=1.0, parts={"p:1": part})
    found = patients.with_lesions(clean, those, np.random.default_rng(0))
    changed = found.data != clean.data
    assert changed.any()
    assert (found.data[changed] < clean.data[changed]).all()  # darker in T1w
    label = LESION if labelled else UNKNOWN
    where = found.labels == label
    assert where.any()
    assert (clean.labels[where] == 3).mean() > 0.5
    np.testing.assert_array_equal(found.labels[~where], clean.labels[~where])
    never = dataclasses.replace(those, share=0.0)
    assert patients.with_lesions(clean, never, np.random.default_rng(0)) is clean
    monkeypatch.setattr(scans, "draw_faults", lambda rng: [])
    volume = scans.scan("adults", clean, np.random.default_rng(1), those)
    assert (LESION in volume.labels) == labelled


def test_two_steps_with_a_class_of_lesions(sources, clean, tmp_path, monkeypatch):
    monkeypatch.setattr(patients, "LEAST_TISSUE", 100)
    schedule = Schedule(steps=2, batch=4, minutes=5.0, timed=True, validate_every=6, threads=1)
    config = CampaignConfig(schedule=schedule, lesions="label")
    weights = fit_slices(
        sources, Validation([clean], slices=1), tmp_path, config, Patients(True, share=1.0)
    )
    assert load_file(weights)["head.weight"].shape[0] == 4 * (2 + 4)


def test_masks_that_judge_do_not_train(tmp_path):
    assert not {*patients.MS_MASKS} & {*evaluated.MS_MASKS}
    assert patients.EVERY == evaluated.EVERY_STROKE
    assert patients.read_patients(tmp_path, "none") is None
    with pytest.raises(UsageError, match=r"found no lesions/ms-masks.*or train without lesions"):
        patients.read_patients(tmp_path, "label")
    with pytest.raises(UsageError, match="lesions of none, data, label"):
        patients.read_patients(tmp_path, "some")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_twenty_steps_on_cuda(sources, clean, tmp_path):
    schedule = Schedule(
        steps=20, batch=4, minutes=5.0, timed=True, validate_every=20, device="cuda"
    )
    config = CampaignConfig(schedule=schedule)
    assert fit_slices(sources, Validation([clean], slices=1), tmp_path, config).exists()


def test_the_rate_falls_over_the_minutes_given():
    schedule = Schedule(steps=10**6, rate=1.0, final_rate=0.0, minutes=10, timed=True)
    assert schedule.rate_at(500, 0.0) == pytest.approx(1, abs=1e-3)
    assert schedule.rate_at(500, 5.0) == pytest.approx(0.5, abs=1e-3)
    assert schedule.rate_at(500, 10.0) == pytest.approx(0, abs=1e-6)
    assert Schedule(steps=1000, rate=1.0).rate_at(500, 9.0) == Schedule(
        steps=1000, rate=1.0
    ).rate_at(500)
    with pytest.raises(UsageError, match="add --minutes"):
        Schedule(timed=True)


def test_the_command_trains_a_campaign(tmp_path, monkeypatch):
    asked = []

    def train(data: Path, out: Path, config: CampaignConfig, *, resume: bool) -> Path:
        asked.append((data, out, config.schedule.minutes, config.schedule.device, resume))
        return out / "slices.safetensors"

    monkeypatch.setattr(campaign, "train", train)
    line = ["campaign", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--minutes", "12"]
    assert command.main([*line, "--device", "cuda", "--fresh"]) == 0
    assert asked == [(tmp_path, tmp_path / "o", 12.0, "cuda", False)]


def test_absent_data_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"adult-brains/sub-01_T1w\.nii\.gz.*--data"):
        linear.collect(tmp_path, tmp_path / "kept")


def test_only_the_chosen_groups_train(tmp_path, clean, monkeypatch):
    config = loads(CampaignConfig, 'groups = ["adults", "heads"]', "settings", CampaignConfig())
    assert loads(CampaignConfig, dumps(config), "settings", CampaignConfig()) == config
    monkeypatch.setattr(linear, "read", lambda *_: clean)
    both = Collection(tmp_path, tmp_path, TRAINING, [], campaign.chosen(config.groups))
    rng = np.random.default_rng(0)
    assert {both.pick(rng)[0] for _ in range(40)} == {"adults", "heads"}
    every = dataclasses.replace(both, groups=tuple(linear.SHARES))
    assert {every.pick(rng)[0] for _ in range(200)} == set(linear.SHARES) - {"painted"}
    for wrong in (["adult"], []):
        with pytest.raises(UsageError, match="expected groups among adults, heads"):
            campaign.chosen(wrong)

    def collected(*_: object) -> Collection:
        return dataclasses.replace(every, sources=[])

    monkeypatch.setattr(campaign, "collect", collected)
    monkeypatch.setattr(campaign, "fit_slices", lambda sources, *_, **__: sources)
    monkeypatch.setattr(campaign, "Validation", lambda images: None)
    monkeypatch.setattr(campaign, "read", lambda *_: clean)
    assert campaign.train(tmp_path, tmp_path, config).groups == ("adults", "heads")
