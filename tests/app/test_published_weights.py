# SPDX-License-Identifier: Apache-2.0
"""The whole app with files of the published names: which file an image gets, and what is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from app_runs import bmex, participants, status_of
from literal_network import encode_caffemodel, random_caffe, randomised

from bmex_bids.cli import weights
from bmex_bids.network.models.bmex import BMEX


def published_name(name: str) -> str:
    module, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    return {"tissue": rest, "recon": f"{layer}_recon.{kind}"}.get(module, name)


def save_release(path: Path, width: int) -> None:
    """Random weights that make an image of about 400 template units."""
    state = randomised(BMEX(width)).float().state_dict()
    state = {published_name(name): tensor for name, tensor in state.items()}
    for first in ("conv1.weight", "conv2_con.weight"):
        state[first] = state[first] / 1000
    state["bn32_recon.weight"] = torch.tensor([100.0])
    state["bn32_recon.bias"] = torch.tensor([400.0])
    torch.save(state, path)


def record_of(out: Path) -> dict[str, object]:
    (path,) = out.rglob("*_res-0p75_desc-enhanced_T2w.json")
    record: dict[str, object] = json.loads(path.read_text())
    return record


FETUS = ("--fetal", "--age-months", "6", "--skull-strip", "skip")


@pytest.fixture
def dataset(bids_skeleton, head_phantom):
    """One fetal brain of 0.029 litres: the less to compute."""
    phantom = head_phantom(spacing=2.0, size=0.28)
    values = np.where(phantom.mask, 1000 - np.asarray(phantom.image.dataobj), 0)  # fluid is bright
    brain = nib.Nifti1Image(values.astype(np.float32), phantom.image.affine)
    return bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T2w.nii.gz": brain})


@pytest.mark.parametrize("width", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_the_age_picks_its_published_file_and_the_sidecar_names_it(
    dataset, tmp_path, monkeypatch, width
):
    (tmp_path / "downloads").mkdir()
    path = tmp_path / "downloads" / "BMEX-Fetal-T2-model.pt"
    save_release(path, width)
    monkeypatch.setenv("BMEX_WEIGHTS_DIR", str(tmp_path / "weights"))
    assert weights.main(["fetch", "--from", str(path.parent)]) == 0
    code = bmex(dataset, "--weights", "bmex-1.0.5", *FETUS)
    (row,) = status_of(tmp_path / "out")
    assert row["status"] == "done", row
    assert code in (0, 1)  # the gate may well refuse what random weights make
    record = record_of(tmp_path / "out")
    table = record["BMEX"]
    assert table["Weights"]["Name"] == "bmex-1.0.5-fetal-T2w"
    assert table["Weights"]["SHA256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert table["Weights"]["License"] == "MIT"
    text = (tmp_path / "out" / "logs" / "CITATION.md").read_text()
    assert "with the weights published with it" in text
    assert "as in the published BME-X" in text  # its histogram matching


def test_the_caffe_release_goes_the_same_way(dataset, tmp_path, monkeypatch):
    blobs, kinds = random_caffe(4)
    for first in ("Labelconv1a", "conv1a"):
        blobs[first][0] /= 1000
    blobs["conv6_3-Scale1"] = [torch.tensor([100.0]), torch.tensor([400.0])]
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "reconstruction_fetal_T2.caffemodel"
    path.write_bytes(encode_caffemodel(blobs, kinds))
    bmex(dataset, "--weights", "bmex-1.0.1", "--weights-dir", str(path.parent), *FETUS)
    assert [row["status"] for row in status_of(tmp_path / "out")] == ["done"]
    table = record_of(tmp_path / "out")["BMEX"]
    assert table["Weights"]["Name"] == "bmex-1.0.1-fetal-T2w"


def test_absent_weights_end_with_five_and_say_what_to_do(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BMEX_WEIGHTS_DIR", str(tmp_path / "weights"))
    assert bmex(dataset, "--weights", "bmex-1.0.5", *FETUS) == 5
    err = capsys.readouterr().err
    assert f"BMEX-Fetal-T2-model.pt in {tmp_path / 'weights'}" in err
    assert "run: bmex-weights fetch bmex-1.0.5; or download the file" in err


def test_changed_weights_end_with_five(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BMEX_WEIGHTS_DIR", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "BMEX-Fetal-T2-model.pt"
    save_release(path, 4)
    assert weights.main(["verify"]) == 0
    path.write_bytes(path.read_bytes() + b"\0")
    assert bmex(dataset, *FETUS) == 5  # auto finds it, and does not pass over it silently
    assert "changed or damaged" in capsys.readouterr().err


def test_weights_that_are_no_weights_end_with_five_before_anything_is_written(
    dataset, tmp_path, capsys
):
    (tmp_path / "BMEX-Fetal-T2-model.pt").write_text("<html>404</html>")
    assert bmex(dataset, "--weights", str(tmp_path), *FETUS) == 5
    assert "BMEX-Fetal-T2-model.pt cannot be read as network weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
