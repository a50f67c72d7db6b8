# SPDX-License-Identifier: Apache-2.0
"""``bmex-recon``, from a file of raw data to a dataset that the app takes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from app_runs import bmex, participants, status_of
from kspace import header, measured, write_fastmri, write_ismrmrd

from bmex_bids.cli.recon import METHODS, NETWORK, main
from bmex_bids.network.weights import registry
from bmex_bids.recon import classical, reconstruct
from bmex_bids.recon.operators import line_mask

for _name in ("h5py", "ismrmrd", "sigpy"):
    pytest.importorskip(_name)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", list)


def untrained(path, attention="learnt"):
    import torch
    from safetensors.torch import save_file

    from bmex_bids.recon.unrolled import Cascade

    torch.manual_seed(0)
    state = Cascade(1, 4, attention=attention).state_dict()
    save_file({k: v.half().contiguous() for k, v in state.items()}, path)
    return path


@pytest.fixture
def weights(tmp_path):
    """An untrained cascade: it gives back what data consistency makes."""
    return untrained(tmp_path / "small.safetensors")


@pytest.fixture
def small(tmp_path):
    """One slice of a square, every second line outside the centre."""
    volume = np.zeros((20, 24, 1))
    volume[5:15, 6:18] = 70
    lines = line_mask(24, 2, 0.5, np.random.default_rng(0))
    kspace = measured(volume) * lines
    return write_fastmri(tmp_path / "scan.h5", kspace, header(20, 24, (2, 2, 4)))


def image_of(folder, method, label="01"):
    path = folder / f"sub-{label}/anat/sub-{label}_rec-{method}_T1w.nii.gz"
    return nib.load(path), json.loads(path.with_name(path.name[:-7] + ".json").read_text())


def test_without_weights_a_classical_method_is_used_and_said(small, no_weights, capsys):
    assert main([str(small), "bids", "--subject", "01", "--contrast", "T1w"]) == 0
    printed = capsys.readouterr().out
    assert "(sense); no weights of LF-MRI were given" in printed
    assert "orientation is assumed" in printed
    image, table = image_of(Path("bids"), "sense")
    assert image.shape == (20, 24, 1)
    assert table["ParallelReductionFactorInPlane"] == pytest.approx(2)
    assert table["ParallelAcquisitionTechnique"] == "SENSE"
    assert table["MagneticFieldStrength"] == pytest.approx(2.9)
    facts = table["BMEX"]["Reconstruction"]
    assert (facts["Method"], facts["Source"], facts["OrientationAssumed"]) == (
        "sense", "scan.h5", True,
    )  # fmt: skip
    assert "Weights" not in facts
    description = json.loads(Path("bids/dataset_description.json").read_text())
    assert description["DatasetType"] == "raw"


def test_the_network_is_named_with_its_checksum_and_shows_where_it_looked(
    small, weights, tmp_path
):
    words = [str(small), "bids", "--subject", "01", "--contrast", "T1w", "--attention"]
    assert main([*words, "--weights", str(weights)]) == 0
    image, table = image_of(tmp_path / "bids", "lfmri")
    facts = table["BMEX"]["Reconstruction"]
    assert facts["SHA256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert 0 <= facts["LesionScore"] <= 1
    (attention,) = (tmp_path / "bids/derivatives").rglob("*_desc-lesionattention_T1w.nii.gz")
    assert attention.name == "sub-01_rec-lfmri_desc-lesionattention_T1w.nii.gz"
    assert nib.load(attention).shape == image.shape


def test_bundled_weights_are_the_default_and_are_checked(small, weights, monkeypatch, capsys):
    record = registry.unregistered(weights, "lfmri")
    record = dataclasses.replace(record, name="bmex-recon-0", kind="recon")
    others = [one for one in registry.bundled() if one.kind != "recon"]
    monkeypatch.setattr(registry, "bundled", lambda: [*others, record])
    words = [str(small), "bids", "--subject", "01", "--contrast", "T1w"]
    assert main(words) == 0
    _, table = image_of(Path("bids"), "lfmri")
    facts = table["BMEX"]["Reconstruction"]
    assert (facts["Method"], facts["Weights"]) == ("lfmri", "bmex-recon-0")
    assert main([*words, "--method", "sense"]) == 0
    monkeypatch.setattr(
        registry, "bundled", lambda: [dataclasses.replace(record, sha256="0" * 64)]
    )
    assert main([*words, "--force"]) == 5
    assert "the file is damaged" in capsys.readouterr().err


def test_weights_that_look_for_no_lesions_say_nothing_of_them(small, tmp_path, capsys):
    path = untrained(tmp_path / "none.safetensors", "none")
    words = [str(small), "bids", "--subject", "01", "--contrast", "T1w", "--weights", str(path)]
    assert main([*words, "--attention"]) == 2
    assert "expected weights that look for lesions" in capsys.readouterr().err
    assert not Path("bids").exists()
    assert main(words) == 0
    assert "LesionScore" not in image_of(Path("bids"), "lfmri")[1]["BMEX"]["Reconstruction"]


def test_every_method_can_be_asked_for():
    assert set(METHODS) == {NETWORK, *classical.METHODS}
    assert reconstruct.NETWORK == NETWORK


def test_nothing_pretends_to_be_the_network(small, no_weights, capsys):
    words = [str(small), "bids", "--subject", "01", "--contrast", "T1w"]
    assert main([*words, "--method", "lfmri"]) == 5
    assert "expected weights" in capsys.readouterr().err
    assert main([*words, "--method", "sense", "--attention"]) == 2
    assert "--attention is for --method lfmri" in capsys.readouterr().err


def test_an_image_that_is_there_is_kept_unless_told_otherwise(small, capsys):
    words = [str(small), "bids", "--subject", "01", "--contrast", "T1w"]
    words += ["--method", "zero-filled"]
    assert main(words) == 0
    assert main(words) == 2
    assert "add --force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0


def test_lines_can_be_left_out_to_try_a_pattern(small, tmp_path, capsys):
    mask = np.ones(24, dtype=np.uint8)
    mask[:8] = 0  # two of them in the centre
    np.save(tmp_path / "mask.npy", mask)
    words = [str(small), "bids", "--subject", "01", "--contrast", "T1w", "--method", "zero-filled"]
    assert main([*words, "--accel-mask", "mask.npy"]) == 0
    _, table = image_of(tmp_path / "bids", "zerofilled")
    assert table["ParallelReductionFactorInPlane"] > 2
    assert "ParallelAcquisitionTechnique" not in table
    np.save(tmp_path / "mask.npy", mask[1:])
    assert main([*words, "--accel-mask", "mask.npy", "--force"]) == 2
    assert "expected 24 numbers" in capsys.readouterr().err


@pytest.mark.parametrize("axes", ["PLX", "PP", "PAS"])
def test_axes_name_each_direction_once(axes):
    with pytest.raises(SystemExit):
        main(["a.h5", "b", "--subject", "1", "--contrast", "T1w", "--axes", axes])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["fastmri", "ismrmrd"])
def test_raw_data_run_from_end_to_end_into_the_app(
    layout, head_phantom, bids_skeleton, tiny_records, monkeypatch, tmp_path
):
    from bmex_bids.interfaces import reportlets
    from bmex_bids.running.validation import validate

    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_records)
    monkeypatch.setattr(reportlets, "drawings", lambda: {"summary": reportlets.write_summary})
    monkeypatch.setattr("bmex_bids.inputs.plan.SPACING", (1.6, "0p8"))
    phantom = head_phantom(spacing=2.5, size=0.55, seed=0)
    volume = np.asarray(phantom.brain.dataobj).transpose(1, 0, 2)  # LPS: rows are P, columns L
    volume = np.pad(volume, [(3, 3 + n % 2) for n in volume.shape[:2]] + [(2, 2)])
    spacing = (2.5, 2.5, 2.5)
    kspace = measured(volume.astype(float), coils=2)
    xml = header(*volume.shape[:2], spacing)
    if layout == "fastmri":
        source = write_fastmri(tmp_path / "scan.h5", kspace, xml)
    else:
        source = write_ismrmrd(tmp_path / "scan.h5", kspace, xml, spacing)
    bids = bids_skeleton(participants("01"))
    words = [str(source), str(bids), "--subject", "01", "--contrast", "T1w"]
    assert main([*words, "--method", "zero-filled"]) == 0
    assert not validate(bids)
    assert bmex(bids) == 0
    assert [row["status"] for row in status_of(tmp_path / "out")] == ["done"]
    (enhanced,) = (tmp_path / "out").rglob("sub-01_rec-zerofilled_desc-enhanced_T1w.nii.gz")
    assert nib.load(enhanced).shape == volume.shape
