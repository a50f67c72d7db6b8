# SPDX-License-Identifier: Apache-2.0
"""Which network strips, and how LifespanStrip is fed."""

import dataclasses
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from bmex_bids.exceptions import MaskError, WeightsError
from bmex_bids.imaging.mask import LIKELY
from bmex_bids.interfaces import stripping
from bmex_bids.interfaces.preprocess import Conform, MaskBrain
from bmex_bids.interfaces.quality import turn_in_words
from bmex_bids.interfaces.stripping import network_mask
from bmex_bids.interfaces.weights import weight_record
from bmex_bids.network.inference import deepbet, lifespanstrip
from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.weights.registry import select
from bmex_bids.network.weights.template import template_values
from bmex_bids.workflows.request import as_table


@pytest.fixture
def folder(tmp_path):
    """A weights folder with a small LifespanStrip of random weights."""
    torch.manual_seed(0)
    torch.save({"state_dict": ADUNet(4).state_dict()}, tmp_path / "T1T2w-model.pt")
    return tmp_path


@pytest.fixture
def template(folder):
    """LifespanStrip's template, as a pair of Analyze files: 0…9990."""
    data = (np.arange(1000).reshape(10, 10, 10) * 10).astype(np.int16)
    nib.save(nib.AnalyzeImage(data, np.eye(4)), folder / "template.img")
    return data


@pytest.fixture
def brighter_is_brain(monkeypatch):
    """A network to which brain is what is brighter than 0.09; it keeps what it was fed."""
    fed = []

    class Threshold(torch.nn.Module):
        def forward(self, x):
            fed.append(x)
            brain = torch.sigmoid((x - 0.09) * 1000)
            half = brain / 2
            return torch.cat([1 - brain, torch.zeros_like(brain), half, half], 1)

    monkeypatch.setattr(lifespanstrip, "_network", lambda *_: Threshold())
    return fed


def mask_of(head, record):
    return network_mask(head, record, device="cpu", threads=1)


def test_the_head_goes_in_as_the_release_feeds_it(brighter_is_brain, monkeypatch, folder):
    z, y, x = np.meshgrid(np.arange(70), np.arange(9), np.arange(5), indexing="ij")
    head = (x * 10_000 + y * 100 + z).transpose(2, 1, 0).astype(np.float32)
    result = lifespanstrip.head_probability(head, folder / "x.pt", device="cpu", threads=1)
    assert result.shape == (5, 9, 70)
    shapes = {tuple(window.shape) for window in brighter_is_brain}
    assert shapes == {(1, 1, 64, 64, 64)}
    assert len(brighter_is_brain) == 2  # 70 voxels along z
    inside = brighter_is_brain[0][0, 0, :, 27:36, 29:34]  # what is too small lies in the middle
    assert torch.allclose(inside * 10_000, torch.from_numpy((x * 1e4 + y * 100 + z)[:64]).float())


def test_windows_are_averaged_where_they_overlap(folder, monkeypatch):
    calls = []

    class Count(torch.nn.Module):
        def forward(self, x):
            calls.append(1)
            return torch.full((1, 4, *x.shape[2:]), len(calls) / 2)

    monkeypatch.setattr(lifespanstrip, "_network", lambda *_: Count())
    head = np.ones((64, 64, 96), np.float32)
    result = lifespanstrip.head_probability(head, folder / "x.pt", device="cpu", threads=1)
    assert [result[0, 0, k] for k in (0, 31, 32, 63, 64, 95)] == [1, 1, 1.5, 1.5, 2, 2]


def test_lifespanstrip_finds_the_brain_where_it_is(head_phantom, folder, brighter_is_brain):
    head = head_phantom(spacing=2.0, noise=0.0)
    record = select("strip", weights_dir=folder)
    mask, info = mask_of(head.brain, record)
    found = np.asarray(mask.dataobj) > 0
    assert mask.shape == head.brain.shape
    white = head.tissues >= 2
    assert (found & white).sum() > 0.97 * white.sum()
    assert (found & ~head.mask).sum() < 0.01 * found.sum()
    assert info["weights"] == "lifespanstrip-2"
    assert info["template"] == "none"
    assert info["notes"] == [stripping.NO_TEMPLATE]


def test_its_template_is_matched_where_it_is_there(
    head_phantom, folder, template, brighter_is_brain
):
    head = head_phantom(spacing=3.0, noise=0.0)
    record = select("strip", weights_dir=folder)
    _, info = mask_of(head.brain, record)
    assert (info["template"], info["notes"]) == ("template.hdr", [])
    top = max(float(window.max()) for window in brighter_is_brain)
    assert top == pytest.approx(template.max() / 10_000, rel=0.01)


def test_the_nodes_take_the_published_record_and_tell_the_doubt(
    head_phantom, folder, brighter_is_brain, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    head = head_phantom(spacing=3.0, noise=0.0)
    nib.save(head.brain, tmp_path / "head.nii.gz")
    table = as_table(select("strip", weights_dir=folder))
    outputs = (
        MaskBrain(
            in_file=tmp_path / "head.nii.gz",
            corrected=tmp_path / "head.nii.gz",
            skull_strip="force",
            weights=table,
        )
        .run()
        .outputs
    )
    assert outputs.mask_info["weights"] == "lifespanstrip-2"
    assert outputs.mask_info["warnings"][0] == stripping.NO_TEMPLATE
    assert "notes" not in outputs.mask_info


def test_a_record_survives_the_way_through_nipype(folder, template):
    for record in (select("strip", weights_dir=folder), select("strip", weights="bundled")):
        assert weight_record(as_table(record)) == record
    assert select("strip", weights_dir=folder).companion == folder / "template.hdr"


def test_a_random_lifespanstrip_runs_over_a_head(head_phantom, folder):
    """No stub: the file is read, and the probabilities are some."""
    head = head_phantom(spacing=6.0)
    record = select("strip", weights_dir=folder)
    result = lifespanstrip.head_probability(
        head.image.get_fdata(dtype=np.float32), record.path, device="cpu", threads=1
    )
    assert result.shape == head.image.shape
    assert 0 < result.min() < result.max() < 1


def test_a_template_that_cannot_be_used_is_said(folder, template):
    record = select("strip", weights_dir=folder)
    (folder / "template.hdr").write_bytes(b"no header")
    with pytest.raises(WeightsError, match=r"LifespanStrip's template in .*template\.hdr, got"):
        template_values(record.companion)
    nib.save(nib.AnalyzeImage(np.ones((4, 4, 4), np.int16), np.eye(4)), folder / "template.img")
    with pytest.raises(WeightsError, match="an image of one value"):
        template_values(record.companion)
    assert dataclasses.replace(record, companion=None) != record


@pytest.fixture
def fake_deepbet(monkeypatch, tmp_path):
    """A package deepbet that finds what is brighter than 300, or nothing."""
    package = tmp_path / "site" / "deepbet"
    models = tmp_path / "site" / "data" / "models"
    package.mkdir(parents=True)
    models.mkdir(parents=True)
    (models / "model.pt").write_bytes(b"weights")
    (package / "__init__.py").write_text(
        "import nibabel as nib\n"
        "class BrainExtraction:\n"
        "    def __init__(self, no_gpu):\n"
        "        assert no_gpu\n"
        "    def run(self, image):\n"
        "        found = image.get_fdata() > 300\n"
        "        assert found.any(), 'Not enough foreground'\n"
        "        return image, nib.Nifti1Image(found.astype('uint8'), image.affine), 0.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(deepbet.metadata, "version", lambda _: "1.0.2")
    monkeypatch.delitem(sys.modules, "deepbet", raising=False)
    deepbet.deepbet_record.cache_clear()
    yield
    deepbet.deepbet_record.cache_clear()
    sys.modules.pop("deepbet", None)


def test_deepbet_strips_where_it_is_asked_for(head_phantom, fake_deepbet):
    head = head_phantom(spacing=4.0, noise=0.0)
    mask, info = mask_of(head.brain, deepbet.deepbet_record())
    assert info["weights"] == "deepbet-1.0.2"
    assert (info["weights_licence"], info["notes"]) == ("MIT", [])
    found = np.asarray(mask.dataobj) > 0
    assert found[head.tissues >= 2].all()
    assert weight_record(as_table(deepbet.deepbet_record())) == deepbet.deepbet_record()


def test_a_head_without_a_brain_for_deepbet_is_an_error(head_phantom, fake_deepbet):
    head = head_phantom(spacing=6.0)
    dark = nib.Nifti1Image(np.asarray(head.image.dataobj) * 0.1, head.image.affine)
    with pytest.raises(MaskError, match="deepbet finds a brain, got none"):
        mask_of(dark, deepbet.deepbet_record())


def test_deepbet_that_is_not_installed_is_said(monkeypatch):
    deepbet.deepbet_record.cache_clear()
    monkeypatch.setattr(deepbet.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=r"install 'bmex_bids\[deepbet\]'"):
        deepbet.deepbet_record()


def test_the_likely_brain_around_the_sure_is_in_our_mask(head_phantom, monkeypatch):
    head = head_phantom(spacing=3.0, noise=0.0)
    likely = np.where(head.tissues >= 2, 0.9, np.where(head.mask, LIKELY + 0.05, 0.05)).astype(
        np.float32
    )
    monkeypatch.setattr(stripping, "brain_probability", lambda *_, **__: likely)
    mask, _ = mask_of(head.image, select("strip", weights="bundled"))
    found = np.asarray(mask.dataobj) > 0
    assert (found & head.mask).sum() > 0.97 * head.mask.sum()
    assert (found & ~head.mask).sum() < 0.01 * head.mask.sum()


@pytest.mark.parametrize(
    ("marked", "content"),
    [("ball", "noise"), ("ball", "one value"), ("nothing", "noise")],
)
def test_an_image_without_a_brain_is_an_error(tmp_path, monkeypatch, marked, content):
    """Noise and phantoms ended as brains, with a warning at most."""
    monkeypatch.chdir(tmp_path)
    shape = (48, 48, 48)
    inside = np.hypot(*(np.indices(shape)[:2] - 23.5)) < 16
    data = np.abs(np.random.default_rng(0).normal(100, 30, shape))
    if content == "one value":
        data = np.where(inside, 1000 + data / 10, data / 10)
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([-4, -4, 4, 1])), "in.nii.gz")
    found = 0.9 * (inside if marked == "ball" else np.zeros(shape))
    monkeypatch.setattr(stripping, "brain_probability", lambda *_, **__: found.astype(np.float32))
    node = MaskBrain(
        in_file="in.nii.gz",
        corrected="in.nii.gz",
        skull_strip="force",
        weights=as_table(select("strip", weights="bundled")),
    )
    with pytest.raises(MaskError, match="found no brain"):
        node.run()


def test_a_bright_ball_is_no_stripped_brain_unless_somebody_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = np.linalg.norm(np.indices((40,) * 3) - 19.5, axis=0) < 15
    data = np.where(inside, 900 + np.random.default_rng(0).normal(0, 9, inside.shape), 0)
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([-4, -4, 4, 1])), "in.nii.gz")
    with pytest.raises(MaskError, match="found no brain"):
        MaskBrain(in_file="in.nii.gz", corrected="in.nii.gz").run()
    said = MaskBrain(in_file="in.nii.gz", corrected="in.nii.gz", skull_strip="skip").run().outputs
    assert said.mask_info["turn"] == "LPS"


def test_a_header_that_lies_is_told_with_the_mask(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = nib.load(shared_data / "adult-brains" / "sub-31_T1w.nii.gz")
    data = np.asarray(image.dataobj)[::2, ::2, ::2][:, ::-1, ::-1]
    affine = image.affine @ np.diag([2, 2, 2, 1])
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), "in.nii.gz")
    conformed = Conform(in_file=str(tmp_path / "in.nii.gz")).run().outputs.out_file
    info = MaskBrain(in_file=conformed, corrected=conformed).run().outputs.mask_info
    assert info["turn"] == "LAI"
    assert turn_in_words(info["turn"]) == ("the header says A–P, I–S, the image looks P–A, S–I")
    assert info["turn_margin"] > 0.2
