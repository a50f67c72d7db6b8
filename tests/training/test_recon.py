# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch

from bmex_bids.evaluation import recon as judged
from bmex_bids.exceptions import UsageError
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.recon.unrolled import Cascade
from bmex_bids.training import recon
from bmex_bids.training.recon import ReconConfig, label_loss, loss_of, run
from bmex_bids.training.recon_slices import (
    HeadSlices,
    LabelledSlices,
    Painted,
    PaintedSlices,
    PairedSlices,
    measure,
    paint,
)

pytest.importorskip("sigpy")


@pytest.fixture
def heads():
    """A head of rings: skin, cortex, white matter with deep grey in it."""
    y, x = np.indices((60, 50))
    radius = np.hypot((y - 30) / 28, (x - 25) / 23)
    labels = np.select([radius < 0.3, radius < 0.7, radius < 0.85, radius < 1], [3, 1, 2, 4], 0)
    numbers = np.array([0, 2, 3, 10, 500], dtype=np.int32)
    return [HeadSlices(np.stack([labels] * 2).astype(np.uint8), numbers)]


def test_chunks_are_functions_of_the_seed_and_their_number(heads):
    one, same, other = (PaintedSlices(heads, seed=s, size=2, voxels=32)[3] for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    adjoint, maps, mask, target, label, lesions = one
    assert adjoint.shape == target.shape == (2, 32, 32)
    assert (maps.shape, mask.shape) == ((2, 8, 32, 32), (2, 1, 1, 32))
    assert (label.dtype, lesions.shape) == (torch.float32, (2, 1, 32, 32))


def test_the_label_says_whether_there_is_a_lesion_unless_it_is_drawn_by_lot(heads):
    for shuffled in (False, True):
        chunk = PaintedSlices(heads, seed=0, size=24, voxels=32, shuffled=shuffled)[0]
        there = chunk[5].flatten(1).any(1)
        assert 0 < there.sum() < 24
        assert torch.equal(chunk[4] > 0.5, there) != shuffled


def test_lesions_lie_in_the_brain_and_change_it(heads):
    rng = np.random.default_rng(0)
    found = [paint(heads[0], rng, 48) for _ in range(12)]
    ill = [one for one in found if one.lesions.any()]
    assert 2 <= len(ill) <= 10
    assert all((one.magnitude[one.lesions] > 0).mean() > 0.9 for one in ill)


def test_the_first_chunks_have_lesions_that_are_easier_to_see(heads):
    def share(index):
        chunks = PaintedSlices(heads, seed=0, size=12, voxels=32, easy=10)
        return float(chunks[index][5].float().mean())

    assert share(0) > 2 * share(10)


def test_the_real_slice_is_judged_in_the_head(tmp_path):
    folder = tmp_path / "kspace"
    folder.mkdir()
    y, x = np.indices((24, 20))
    image = (np.hypot(y - 12, x - 10) < 6) * np.ones((2, 1, 1))
    np.save(tmp_path / judged.REAL, np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image))))
    assert list(judged.real_cases(tmp_path / "nowhere")) == []
    cases = list(judged.real_cases(tmp_path))
    assert len(cases) == 2 * judged.REAL_MASKS
    assert all(np.allclose(case.judged, image[0]) for case in cases)
    assert not cases[0].kspace[..., ~cases[0].mask].any()


def test_data_consistency_is_that_of_what_was_measured(heads):
    painted = paint(heads[0], np.random.default_rng(1), 48)
    measured = measure(painted.magnitude, 4, np.random.default_rng(2))
    assert measured.mask.sum() == 12
    assert not measured.kspace[..., ~measured.mask].any()
    assert np.allclose(np.abs(measured.coil_images).max(0) > 0, painted.magnitude > 0)


def test_only_the_oracle_sees_the_lesions(heads):
    torch.manual_seed(0)
    batch = list(PaintedSlices(heads, seed=3, size=4, voxels=32)[0])
    batch[5] = torch.ones_like(batch[5])
    for attention, seen in (("oracle", 1.0), ("none", 0.0)):
        found = run(Cascade(1, 4, attention=attention), tuple(batch)).attention
        assert (found == seen).all()
    learnt = run(Cascade(1, 4), tuple(batch)).attention
    assert 0 < learnt.min() < learnt.max() < 1
    with pytest.raises(UsageError, match="attention"):
        ReconConfig(attention="wise")


def test_the_loss_falls_as_images_and_scores_come_near(heads):
    batch = PaintedSlices(heads, seed=0, size=2, voxels=32)[0]
    done = run(Cascade(2, 4), batch)
    target, label = batch[3], batch[4]
    rough = loss_of(done, target, label, 0.1)
    assert loss_of(replace(done, images=[target] * 2), target, label, 0.1) < rough
    sure = replace(done, scores=[20 * (label - 0.5)] * 2)
    assert loss_of(sure, target, label, 0.1) < rough


def test_a_short_run_gives_weights_that_the_evaluation_takes(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(recon, "load_all", lambda *_: heads)
    config = ReconConfig(
        stages=1, width=4, solver_steps=1, classifier_steps=1, classifier_batch=2, chunk=2,
        voxels=32, schedule=replace(ReconConfig().schedule, steps=2, validate_every=2),
    )  # fmt: skip
    path = recon.train(tmp_path, tmp_path, config)
    assert (tmp_path / "log.csv").read_text().startswith("step,")
    assert (tmp_path / "classifier/log.csv").is_file()
    assert load_network(path, "lfmri").stages == 1


def test_a_cascade_starts_from_one_of_another_attention(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(recon, "load_all", lambda *_: heads)
    config = ReconConfig(
        stages=1, width=4, solver_steps=1, classifier_steps=0, chunk=2, voxels=32,
        attention="none",
        schedule=replace(ReconConfig().schedule, steps=1, validate_every=2, rate=1e-9),
    )  # fmt: skip
    first = recon.train(tmp_path, tmp_path / "first", config)
    config = replace(config, attention="oracle", start_from=first)
    config = replace(config, schedule=replace(config.schedule, seed=1))
    second = load_network(recon.train(tmp_path, tmp_path / "second", config), "lfmri")
    assert second.attention == "oracle"
    begun = load_network(first, "lfmri").denoise.down1[0].weight
    torch.testing.assert_close(second.denoise.down1[0].weight, begun, atol=1e-3, rtol=0)


def test_labelled_slices_are_magnitudes(heads):
    images, labels = LabelledSlices(heads, seed=0, size=3, voxels=32)[0]
    assert images.shape == (3, 1, 32, 32)
    assert (images >= 0).all()
    assert set(labels.tolist()) <= {0.0, 1.0}


def test_a_pair_differs_by_its_lesions_alone(heads):
    (pairs,) = PairedSlices(heads, seed=0, size=6, voxels=48, easy=10)[0]
    assert pairs.shape == (6, 2, 48, 48)
    differs = (pairs[:, 0] - pairs[:, 1]).abs() > 0.02
    assert differs.flatten(1).any(1).all()
    assert differs.float().mean() < 0.5


def test_labels_by_lot_turn_half_of_the_pairs(heads):
    class Lesions(PairedSlices):
        """Lesions as bright as can be."""

        def painted(self, *_):
            found = np.zeros((8, 8), dtype=np.float32)
            return Painted(found + 1, found == 0, found)

    for shuffled, share in ((False, 1.0), (True, 0.5)):
        (pairs,) = Lesions(heads, seed=0, size=200, shuffled=shuffled)[0]
        first = (pairs[:, 0].mean((1, 2)) > 0.5).float().mean()
        assert float(first) == pytest.approx(share, abs=0.1)


def test_the_loss_of_labels_falls_as_the_scores_come_right(heads):
    class Sum(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, images):
            return self.factor * (images.flatten(1).mean(1) - 0.335), images

    pairs = torch.rand(3, 2, 16, 16)
    pairs[:, 0, :8] *= 0.1
    pairs[:, 1, :4] *= 0.1
    wrong, none, right = (float(label_loss(Sum(f), (pairs,))) for f in (20.0, 0.0, -20.0))
    assert right < none < wrong


def test_the_table_has_each_method_and_is_not_made_twice(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "load_all", lambda *_: heads)
    monkeypatch.setattr(judged, "paint", lambda head, rng: paint(head, rng, 32))
    monkeypatch.setattr(judged, "tuned", lambda *_: {
        (method, acceleration): 0.01 for method in judged.METHODS for acceleration in (4, 8)
    })  # fmt: skip
    said = []
    rows = judged.run(tmp_path, tmp_path, {"lfmri": Cascade(1, 4).eval()}, 2, said.append)
    assert len(rows) == 2 * 2 * 4
    table = judged.markdown(rows)
    assert table.count("| 2 painted |") == 8
    again = judged.run(tmp_path, tmp_path, {}, 2, said.append)
    assert [row.key for row in again] == [row.key for row in rows]
    assert len(said) == 4


def test_boxes_hold_the_lesions_and_a_margin():
    lesions = np.zeros((12, 12), dtype=bool)
    lesions[0:2, 5] = True
    box = judged.boxes(lesions)
    assert box.sum() == 4 * 5
    assert box[:4, 3:8].all()
