# SPDX-License-Identifier: Apache-2.0
"""The fixtures of conftest.py are instruments: they are calibrated here."""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_make_image_has_the_orientation_shape_spacing_and_type_asked_for(make_image, orientation):
    image = make_image(orientation, (4, 5, 6), "int16", spacing=(1, 2, 3))
    assert "".join(nib.aff2axcodes(image.affine)) == orientation
    assert image.shape == (4, 5, 6)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), (1, 2, 3))


def test_make_image_keeps_the_corner_of_the_field_of_view(make_image):
    for orientation in ("RAS", "LPS", "PIR"):
        image = make_image(orientation, (4, 4, 4), origin=(-3, -4, -5))
        corners = nib.affines.apply_affine(image.affine, [[0, 0, 0], [3, 3, 3]])
        np.testing.assert_allclose(corners.min(axis=0), (-3, -4, -5))
        np.testing.assert_allclose(corners.max(axis=0), (0, -1, -2))


def test_make_image_oblique_is_a_rotation(make_image):
    straight, turned = make_image("LPS"), make_image("LPS", oblique=10)
    rotation = turned.affine[:3, :3] @ np.linalg.inv(straight.affine[:3, :3])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert np.count_nonzero(np.abs(rotation) > 1e-6) > 3


def test_head_phantom_has_the_brain_volume_it_promises(head_phantom):
    head = head_phantom()
    assert head.litres == pytest.approx(4 / 3 * np.pi * 60 * 76 * 68 / 1e6, rel=0.02)
    assert "".join(nib.aff2axcodes(head.image.affine)) == "LPS"
    assert set(np.unique(head.tissues[head.mask])) == {1, 2, 3}
    assert not head.tissues[~head.mask].any()
    assert not np.asanyarray(head.brain.dataobj)[~head.mask].any()


def test_bids_skeleton_writes_what_it_is_told(bids_skeleton):
    root = bids_skeleton(
        {
            "participants.tsv": [{"participant_id": "sub-01", "age": 3}],
            "participants.json": {"age": {"Units": "months"}},
            "sub-01": {"anat/sub-01_T1w.nii.gz": None},
        }
    )
    assert (root / "participants.tsv").read_text() == "participant_id\tage\nsub-01\t3\n"
    assert json.loads((root / "participants.json").read_text())["age"]["Units"] == "months"
    assert nib.load(root / "sub-01/anat/sub-01_T1w.nii.gz").ndim == 3
    assert (root / "dataset_description.json").is_file()
