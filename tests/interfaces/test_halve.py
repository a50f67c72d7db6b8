# SPDX-License-Identifier: Apache-2.0
"""The node that halves the edges of voxels, and the close-up of the report."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import Undefined

from bmex_bids.interfaces import closeup
from bmex_bids.interfaces import halve as module
from bmex_bids.interfaces.closeup import busiest, cubic_halves, draw_closeup
from bmex_bids.interfaces.halve import Halve, halved_affine
from bmex_bids.network.weights.registry import bundled_of
from bmex_bids.workflows.request import as_table

OBLIQUE = np.array([[-0.8, 0, 0.02, 50], [0, -0.8, 0, 60], [0.02, 0, 0.8, -40], [0, 0, 0, 1.0]])


@pytest.fixture
def save(tmp_path):
    def put(data, name, affine=OBLIQUE):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
        return str(tmp_path / f"{name}.nii.gz")

    return put


@pytest.fixture
def brain():
    mask = np.zeros((31, 30, 29), np.uint8)
    mask[4:-4, 4:-4, 4:-4] = 1
    place = np.indices(mask.shape).sum(0)
    return ((500 + 200 * np.sin(place / 2)) * mask).astype(np.float32), mask


def test_blocks_of_two_lie_where_the_voxel_lay():
    half = halved_affine(OBLIQUE)
    corners = np.array([[2 * 3 + i, 2 * 4 + j, 2 * 5 + k, 1] for i, j, k in np.ndindex(2, 2, 2)])
    assert np.allclose((corners @ half.T).mean(0), OBLIQUE @ [3, 4, 5, 1])
    assert np.allclose(nib.affines.voxel_sizes(half), nib.affines.voxel_sizes(OBLIQUE) / 2)


def test_the_image_its_grid_and_what_made_it(brain, save, make_image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, mask = brain
    raw = make_image("RAS", (6, 6, 6), "int16", path=tmp_path / "raw.nii.gz")
    raw.set_sform(raw.affine, 1)
    nib.save(raw, tmp_path / "raw.nii.gz")
    record = bundled_of("super")
    asked = {}
    own = module.halve

    def halve(data, inside, weights, **where):
        asked.update(where, weights=weights)
        return own(data, inside, weights, **where)

    monkeypatch.setattr(module, "halve", halve)
    result = (
        Halve(
            enhanced=save(image, "enhanced"),
            mask_res=save(mask, "mask"),
            original=str(tmp_path / "raw.nii.gz"),
            weights=as_table(record),
            provenance={"device": "cpu"},
            device="cpu",
            num_threads=2,
        )
        .run()
        .outputs
    )
    made = nib.load(result.enhanced_half)
    assert made.shape == (62, 60, 58)
    assert np.allclose(made.affine, halved_affine(OBLIQUE), atol=1e-5)
    assert made.get_data_dtype() == np.int16
    assert int(made.header["sform_code"]) == 1
    means = made.get_fdata().reshape(31, 2, 30, 2, 29, 2).mean((1, 3, 5))
    assert np.abs(means - image).max() < 0.01 * 700
    table = dict(result.provenance["super"])
    assert table.pop("seconds") >= 0
    assert table == {
        "weights": record.name, "weights_sha256": record.sha256,
        "weights_licence": record.licence, "weights_source": record.source, "spacing_mm": 0.4,
    }  # fmt: skip
    assert result.provenance["device"] == "cpu"
    assert asked == {"device": "cpu", "threads": 2, "weights": record}


def test_the_cubic_picture_is_on_the_voxels_of_half_the_edge():
    """A ramp: what lies a quarter of a voxel before and after its centre."""
    image = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 30, 20)).astype(np.float32)
    inside = np.ones(image.shape, bool)
    inside[:, :, 12:] = False
    box = (slice(10, 20), slice(0, 9), slice(11, 13))
    fine = cubic_halves(image, inside, box)
    assert fine.shape == (20, 18, 4)
    assert fine[:, 5, 0] == pytest.approx(np.arange(9.75, 19.5, 0.5), abs=0.05)
    assert not fine[..., 2:].any()


def test_the_square_in_which_voxels_differ_most_is_shown():
    image = np.full((120, 130, 9), 100, np.float32)
    inside = np.zeros(image.shape, bool)
    inside[5:-5, 5:-5, 2:7] = True
    image[80:100:2, 20:60, 4] = 300
    x, y, z = busiest(image, inside, 0.8)
    assert (x.stop - x.start, y.stop - y.start) == (55, 55)
    assert x.start <= 80
    assert x.stop >= 100
    assert y.start <= 20
    assert y.stop >= 60
    assert z == slice(4, 5)


def test_three_panels_or_no_picture(brain, save, tmp_path, monkeypatch):
    image, mask = brain
    monkeypatch.setattr(closeup, "SHOWN_MM", 8.0)
    fine = image.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    inputs = SimpleNamespace(
        enhanced_res=save(image, "enhanced"),
        mask_res=save(mask, "mask"),
        enhanced_half=save(fine, "half", halved_affine(OBLIQUE)),
    )
    draw_closeup(inputs, tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text()
    assert text.count("<image ") == 3
    inputs.enhanced_half = Undefined
    draw_closeup(inputs, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
