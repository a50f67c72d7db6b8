# SPDX-License-Identifier: Apache-2.0
"""The node that labels structures."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.interfaces import segment as module
from bmex_bids.interfaces.segment import Segment, volumes_ml


def test_labels_go_to_the_grid_of_the_input_and_volumes_into_the_quality(
    make_image, tmp_path, monkeypatch
):
    """A raw image with its own axes; the network's grid is twice as fine."""
    monkeypatch.chdir(tmp_path)
    shape = (12, 14, 10)
    raw = make_image("LAS", shape, "int16", path=tmp_path / "raw.nii.gz")
    lps = raw.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(raw.affine),
            nib.orientations.axcodes2ornt("LPS"),
        )
    )
    fine = lps.affine @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] = (lps.affine @ [-0.25, -0.25, -0.25, 1])[:3]
    voxel = float(np.prod(nib.affines.voxel_sizes(fine)))

    def save(data, name, affine):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / name)
        return str(tmp_path / name)

    mask = np.zeros(lps.shape, np.uint8)
    mask[2:-2, 2:-2, 2:-2] = 1
    mask_res = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    labels = np.where(mask_res > 0, 3, 0).astype(np.uint8)
    labels[: labels.shape[0] // 2] = np.where(labels[: labels.shape[0] // 2] > 0, 9, 0)
    image = np.full(mask_res.shape, 400, np.float32)
    tissues = [np.full(mask_res.shape, k / 4, np.float32) for k in range(3)]
    given = {}

    def labelled(data, probabilities, inside, record, **where):
        given.update(data=data, probabilities=probabilities, inside=inside, record=record, **where)
        return labels

    monkeypatch.setattr(module, "segment", labelled)
    result = Segment(
        enhanced=save(image, "enhanced.nii.gz", fine),
        probabilities=[save(part, f"p{k}.nii.gz", fine) for k, part in enumerate(tissues)],
        mask_res=save(mask_res, "mask_res.nii.gz", fine),
        mask=save(mask, "mask.nii.gz", lps.affine),
        original=str(tmp_path / "raw.nii.gz"),
        weights={
            "name": "w", "kind": "segment", "path": str(tmp_path / "w"), "sha256": "ab",
            "licence": "L", "source": "", "description": "", "variant": "bmex-segment",
            "input_units": "", "age_groups": [], "contrasts": [], "version": "1",
        },
        quality={"qi": 1.0},
        device="cpu",
        num_threads=3,
    ).run().outputs  # fmt: skip
    np.testing.assert_array_equal(given["probabilities"], tissues)
    np.testing.assert_array_equal(given["inside"], mask_res > 0)
    np.testing.assert_array_equal(given["data"], image)
    assert (given["device"], given["threads"], given["record"].name) == ("cpu", 3, "w")
    native = nib.load(result.structures_native)
    assert native.shape == raw.shape
    np.testing.assert_array_equal(native.affine, raw.affine)
    back = np.asarray(native.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(raw.affine), nib.orientations.axcodes2ornt("LPS")
        )
    ).dataobj)  # fmt: skip
    np.testing.assert_array_equal(back, labels[::2, ::2, ::2])
    assert native.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(nib.load(result.structures_res).dataobj, labels)
    assert result.quality["qi"] == 1.0
    found = result.quality["Structures"]
    assert found["weights"] == "w"
    assert found["hippocampus_ml"] == pytest.approx((labels == 9).sum() * voxel / 1000, abs=1e-3)
    assert found["thalamus_ml"] == 0


def test_volumes_are_in_millilitres():
    labels = np.repeat(np.arange(14, dtype=np.uint8), 1000)
    assert set(volumes_ml(labels, 0.5).values()) == {0.5}
    assert volumes_ml(labels, 0.5)["brain_stem_ml"] == 0.5
