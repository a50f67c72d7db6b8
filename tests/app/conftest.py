# SPDX-License-Identifier: Apache-2.0
"""A tiny network and small brains for tests of the whole app.

The network is untrained: its last layers are zero, so it returns its input.
"""

from __future__ import annotations

import hashlib

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

GROUPS = ("fetal", "month0", "month3", "month6", "month9", "month12", "month18", "month24")


@pytest.fixture(scope="module")
def tiny_records(tmp_path_factory):
    """Weight records of a network so small that a brain takes a second."""
    import torch
    from safetensors.torch import save_file

    from bmex_bids.network.compact import CompactBMEX
    from bmex_bids.network.registry import WeightRecord

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(CompactBMEX(width=4, tissue_width=4).state_dict(), path)
    common = {
        "path": path,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "source": "made by a test",
        "description": "untrained",
        "variant": "bmex-compact",
        "input_units": "template units",
        "version": "0",
    }
    return [
        WeightRecord(
            name="tiny", kind="enhance", age_groups=GROUPS, contrasts=("T1w", "T2w"), **common
        ),
        WeightRecord(name="tiny-strip", kind="strip", age_groups=(), contrasts=(), **common),
    ]


@pytest.fixture(autouse=True)
def tiny_network(tiny_records, monkeypatch, tmp_path):
    """The tiny network takes the bundled one's place; the current folder is the test's own."""
    monkeypatch.setattr("bmex_bids.network.registry.bundled", lambda: tiny_records)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """Pictures take most of the time: one test has all of them, the others the summary only."""
    from bmex_bids.interfaces import reportlets

    only = {"summary": reportlets.write_summary}
    monkeypatch.setattr(reportlets, "drawings", lambda: only)


@pytest.fixture
def brain(head_phantom):
    """A stripped brain of a newborn, 0.21 litres, in any orientation, as a scanner stores it."""

    def make(orientation: str = "LPS", oblique: float = 0.0, seed: int = 0) -> nib.Nifti1Image:
        phantom = head_phantom(spacing=2.5, size=0.55, seed=seed)
        image = nib.Nifti1Image(
            np.rint(np.asarray(phantom.brain.dataobj) * 3).astype(np.int16), phantom.image.affine
        )
        wanted = axcodes2ornt(tuple(orientation))
        image = image.as_reoriented(ornt_transform(io_orientation(image.affine), wanted))
        cos, sin = np.cos(np.deg2rad(oblique)), np.sin(np.deg2rad(oblique))
        turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        turned = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)
        turned.set_qform(turned.affine, 1)
        turned.set_sform(turned.affine, 2)
        turned.header.set_xyzt_units("mm", "sec")
        return turned

    return make
