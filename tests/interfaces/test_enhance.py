# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bmex_bids.imaging.orientation import conform
from bmex_bids.interfaces import enhance as enhance_nodes
from bmex_bids.interfaces.enhance import (
    Enhance,
    Restore,
    limited,
    resampled_inside,
    to_axes_of,
    voxels_coincide,
)
from bmex_bids.metrics.familiarity import FEATURES
from bmex_bids.network.inference import predict

RECORD = {
    "name": "test",
    "kind": "enhance",
    "path": "/nowhere/test.safetensors",
    "sha256": "0" * 64,
    "licence": "MIT",
    "source": "a test",
    "description": "",
    "variant": "bmex-compact",
    "input_units": "template units",
    "age_groups": ["month24"],
    "contrasts": ["T1w"],
    "version": "1",
}


def test_what_lies_outside_the_support_is_not_mixed_in():
    # one axis, from 1 mm to 0.5 mm: the brain is 10 up to its last voxel, and 0 outside
    data = np.zeros((8, 8, 8), np.float32)
    data[:4] = 10
    image = nib.Nifti1Image(data, np.eye(4))
    support = nib.Nifti1Image((data > 0).astype(np.float32), np.eye(4))
    affine = np.diag([0.5, 1, 1, 1])
    mask = np.zeros((16, 8, 8), bool)
    mask[:8] = True
    (result,) = resampled_inside([image], support, ((16, 8, 8), affine), mask, orders=[3])
    np.testing.assert_allclose(result[:8], 10, rtol=1e-5)
    assert not result[8:].any()


def test_a_part_of_the_mask_beyond_the_support_takes_the_nearest_value():
    data = np.zeros((8, 8, 8), np.float32)
    data[2] = 5
    data[3] = 7
    image = nib.Nifti1Image(data, np.eye(4))
    support = nib.Nifti1Image((data > 0).astype(np.float32), np.eye(4))
    mask = np.zeros((8, 8, 8), bool)
    mask[2:6] = True
    (result,) = resampled_inside([image], support, ((8, 8, 8), np.eye(4)), mask, orders=[3])
    assert result[:, 4, 4].tolist() == [0, 0, 5, 7, 7, 7, 0, 0]


def test_there_and_back_again_a_sharp_image_stays_sharp(head_phantom):
    from bmex_bids.imaging.resampling import resample_to_spacing

    phantom = head_phantom(spacing=4.0, noise=0.0)
    smooth = np.asarray(phantom.image.dataobj)
    image = nib.Nifti1Image(smooth, phantom.image.affine)
    finer = resample_to_spacing(image, 3.6, order=3)
    support = nib.Nifti1Image(np.ones(finer.shape, np.float32), finer.affine)
    grid = (image.shape, image.affine)
    errors = [
        np.abs(resampled_inside([finer], support, grid, phantom.mask, orders=[order])[0] - smooth)[
            phantom.mask
        ].mean()
        for order in (1, 3)
    ]
    assert errors[1] < 0.6 * errors[0]


def test_voxels_that_coincide_are_not_interpolated():
    assert voxels_coincide(np.diag([2, 2, 2, 1.0]), np.diag([-2, 2, 2, 1.0]))
    shifted = np.diag([2, 2, 2, 1.0])
    shifted[0, 3] = 1.0
    assert not voxels_coincide(np.diag([2, 2, 2, 1.0]), shifted)
    assert not voxels_coincide(np.diag([2, 2, 2, 1.0]), np.diag([4, 2, 2, 1.0]))


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAS", "PIR", "SAL"])
def test_axes_come_back_without_interpolation(make_image, orientation):
    image = make_image(orientation, (4, 5, 6), spacing=(1, 2, 3), oblique=12)
    back = to_axes_of(conform(image), (image.shape, image.affine))
    np.testing.assert_array_equal(back, np.asarray(image.dataobj))


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SLA"])
def test_axes_at_45_degrees_about_two_directions_come_back(make_image, orientation):
    # which axis is nearest to which direction is a toss-up there
    image = make_image(orientation, (5, 6, 7), oblique=45)
    back = to_axes_of(conform(image), (image.shape, image.affine))
    np.testing.assert_array_equal(back, np.asarray(image.dataobj))


def test_another_grid_is_not_taken_for_the_same_with_other_axes(make_image):
    image = make_image("LPS", (5, 6, 7))
    with pytest.raises(ValueError, match="expected the same grid"):
        to_axes_of(image, (image.shape, make_image("LPS", (5, 6, 7), oblique=45).affine))


@pytest.mark.parametrize(
    ("added", "limit", "undone"),
    [(0, None, 0), (20, None, 0), (30, 2.0, 0), (30, 3.0, 10), (20, None, 10)],
)
@pytest.mark.parametrize(
    ("orientation", "oblique"), [("LPS", 0), ("LAS", 0), ("PIR", 0), ("SAL", 15)]
)
def test_restore_returns_to_the_grid_and_the_intensities_of_the_input(
    make_image, tmp_path, monkeypatch, orientation, oblique, added, limit, undone
):
    monkeypatch.chdir(tmp_path)
    shape = (20, 22, 24)
    box = np.zeros(shape, bool)
    box[5:15, 5:15, 5:15] = True
    values = np.where(box, 300, 80) + np.arange(shape[0])[:, None, None]
    raw = make_image(
        orientation, data=values, dtype="int16", oblique=oblique, path=tmp_path / "raw.nii.gz"
    )
    lps = conform(nib.Nifti1Image(values.astype(np.float32), raw.affine))
    mask = conform(nib.Nifti1Image(box.astype(np.uint8), raw.affine))
    inside = np.asarray(mask.dataobj) > 0
    # 0...1000 is ten times the input's intensity; template units are half of that
    chain = {
        "scale": {"lower": 0.0, "upper": 100.0},
        "match": {"source": [0.0, 10.0, 5000.0], "reference": [0.0, 5.0, 2500.0]},
    }
    (tmp_path / "chain.json").write_text(json.dumps(chain))

    def save(data, name):
        nib.save(nib.Nifti1Image(data.astype(np.float32), lps.affine), tmp_path / name)
        return str(tmp_path / name)

    # the bias field is 1.25 everywhere
    template_units = np.where(inside, np.asarray(lps.dataobj) * 10 / 1.25 / 2, 0)
    grey = np.where(inside, 0.75, 0)
    result = Restore(
        original=str(tmp_path / "raw.nii.gz"),
        conformed=save(np.asarray(lps.dataobj), "conformed.nii.gz"),
        native=save(np.asarray(lps.dataobj) * 10 / 1.25, "native.nii.gz"),
        # 10 of template units, which the motion correction added, are 20 of the working range
        before=save(np.asarray(lps.dataobj) * 10 / 1.25 - 2 * undone, "came.nii.gz"),
        field=save(np.full(lps.shape, 1.25), "field.nii.gz"),
        mask=save(inside, "mask.nii.gz"),
        mask_res=save(inside, "mask_res.nii.gz"),
        matched=save(template_units, "matched.nii.gz"),
        enhanced=save(template_units + np.where(inside, added, 0), "enhanced.nii.gz"),
        probabilities=[
            save(np.where(inside, 0.25, 0), "csf.nii.gz"),
            save(grey, "gm.nii.gz"),
            save(np.zeros_like(grey), "wm.nii.gz"),
        ],
        probabilities_before=[
            save(np.where(inside, value, 0), f"{name}_before.nii.gz")
            for name, value in (("csf", 0.1), ("gm", 0.2), ("wm", 0.7))
        ],
        deviation=save(np.where(inside, 7, 0), "deviation.nii.gz"),
        max_change=limit,
        intensity_json=str(tmp_path / "chain.json"),
    ).run()

    if limit is not None:
        added = 20  # of 30; 2 % of 1000, or 3 % less what was undone

    def load(path):
        image = nib.load(path)
        assert image.shape == shape
        np.testing.assert_array_equal(image.affine, raw.affine)
        return np.asanyarray(image.dataobj)

    np.testing.assert_array_equal(load(result.outputs.mask_native), box)
    # a network that changes nothing gives the input back, head and brain, bias field included; 20
    # template units are 40 of the working range, 4 of the input, and 5 where the field is 1.25
    preproc = load(result.outputs.preproc_native)
    np.testing.assert_allclose(preproc[~box], values[~box], rtol=1e-5)
    deep = np.zeros(shape, bool)
    deep[8:12, 8:12, 8:12] = True  # the seam is behind
    np.testing.assert_allclose(preproc[deep], values[deep] + added / 4, rtol=1e-4)
    if not added:
        np.testing.assert_allclose(preproc, values, rtol=1e-5)
    np.testing.assert_allclose(
        load(result.outputs.enhanced_native), np.where(box, values * 4 + added, 0), rtol=1e-4
    )
    np.testing.assert_array_equal(load(result.outputs.dseg_native), box * 1)  # BIDS: 1 is GM
    csf, gm, wm = (load(path) for path in result.outputs.probseg_native)
    np.testing.assert_allclose(csf, box * 0.25, atol=1e-6)
    np.testing.assert_allclose(gm, box * 0.75, atol=1e-6)
    assert not wm.any()
    np.testing.assert_array_equal(load(result.outputs.dseg_before), box * 2)
    deviation = load(result.outputs.uncertainty_native)
    np.testing.assert_allclose(deviation, box * 7, atol=1e-5)


def test_no_voxel_moves_further_than_the_limit():
    before = np.full((1, 1, 3), 400, np.float32)
    after = np.array([[[390, 460, 0]]], np.float32)
    outside = np.array([[[0, 0, 1]]], np.float32)
    made = predict.Enhancement(
        image=after,
        labels=np.zeros((1, 1, 3), np.uint8),
        classified=np.zeros((1, 1, 3), np.uint8),
        probabilities=np.stack([outside, 1 - outside, 0 * outside, 0 * outside]),
        device="cpu",
        precision="float32",
        seconds=1.0,
        deviation=np.array([[[30, 30, 0]]], np.float32),
    )
    assert limited(made, before, None) is made
    found = limited(made, before, 2.0)
    np.testing.assert_allclose(found.image, [[[390, 420, 0]]])
    np.testing.assert_allclose(found.deviation, [[[30, 50, 0]]])  # 40 were cut off
    assert limited(dataclasses.replace(made, deviation=None), before, 2.0).deviation is None


@pytest.mark.parametrize("yardstick", [False, True])
def test_tissues_are_found_again_in_what_the_network_made(
    yardstick, make_image, tmp_path, monkeypatch
):

    monkeypatch.chdir(tmp_path)
    shape = (4, 5, 6)
    calls, measured_by = {}, set()

    def tissues(labels):
        return predict.Tissues(labels, np.stack([labels, labels + 1, labels + 2]))

    def enhance(data, mask, record, **where):
        calls["enhance"] = where
        return predict.Enhancement(
            image=data + 1,
            labels=mask.astype(np.uint8),
            classified=tissues(4 * mask.astype(np.uint8)),
            probabilities=np.full((4, *shape), 0.5, np.float32),
            device="cpu",
            precision="float32",
            seconds=1.0,
            deviation=np.where(mask, 5, 0).astype(np.float32) if yardstick else None,
        )

    def classify(data, mask, record, **where):
        calls["classify"] = where
        measured_by.add(record.name)
        return tissues(np.where(mask, data, 0).astype(np.uint8))

    monkeypatch.setattr(enhance_nodes, "enhance", enhance)
    monkeypatch.setattr(enhance_nodes, "classify", classify)
    half = np.zeros(shape, np.uint8)
    half[:2] = 1
    make_image("LPS", data=np.full(shape, 2, np.float32), path=tmp_path / "in.nii.gz")
    make_image("LPS", data=half, dtype="uint8", path=tmp_path / "mask.nii.gz")
    knowing = {
        "volume_scale": 0.5,
        "error_scale": 1.4,
        "share": 0.5,
        "usual": {"mean": [9.0] * len(FEATURES), "precision": np.eye(len(FEATURES)).tolist()},
    }
    outputs = (
        Enhance(
            in_file=str(tmp_path / "in.nii.gz"),
            mask=str(tmp_path / "mask.nii.gz"),
            weights=RECORD | (knowing if yardstick else {}),
            device="cpu",
            num_threads=3,
            geometry="reference",
            mirroring=False,
            precision="bfloat16",
            tile=32,
            memory_mb=900.0,
            **({"yardstick": RECORD | {"name": "small"}} if yardstick else {}),
        )
        .run()
        .outputs
    )
    told = {
        "device": "cpu",
        "threads": 3,
        "geometry": "reference",
        "mirroring": False,
        "precision": "bfloat16",
        "tile": 32,
        "memory_mb": 900.0,
    }
    assert calls == {"enhance": {**told, **calls["enhance"]}, "classify": told}

    def load(path):
        return np.asarray(nib.load(path).dataobj)

    np.testing.assert_array_equal(load(outputs.labels), half)
    assert measured_by == {"small" if yardstick else "test"}
    # found by the yardstick where there is one, else as those after, which the enhancement knew
    np.testing.assert_array_equal(load(outputs.labels_before), half * (2 if yardstick else 4))
    # of 2 + 1, not of 2, or of half of that correction
    np.testing.assert_array_equal(load(outputs.labels_after), half * (2 if yardstick else 3))
    # no motion was undone
    assert outputs.probabilities_before == outputs.probabilities
    assert (load(outputs.out_file) == (2.5 if yardstick else 3)).all()
    # a network that has not learnt its error writes none
    assert isdefined(outputs.deviation) is yardstick
    assert not yardstick or load(outputs.deviation).max() == 7  # calibrated, once and for all
    # a half of a half of each voxel of 1 mm³, of weights that know it
    litres = 0.25 * np.prod(shape) / 1e6
    known = {name: pytest.approx(litres) for name in ("CSF", "GM", "WM")}
    assert outputs.litres_sd == (known if yardstick else {})
    assert (outputs.training_distance or 0) > (1 if yardstick else -1)
    assert (outputs.training_distance is None) != yardstick


@pytest.fixture
def save(make_image, tmp_path):
    """Write an image of one brightness, and tell its path."""

    def write(name, value, dtype="float32"):
        path = tmp_path / f"{name}.nii.gz"
        make_image("LPS", data=np.full((4, 5, 6), value), dtype=dtype, path=path)
        return str(path)

    return write


def value(path):
    """The brightness of an image that has one."""
    (found,) = np.unique(np.asarray(nib.load(path).dataobj))
    return found


@pytest.mark.parametrize("limit", [None, 1.0])
def test_tissues_before_and_the_limit_are_those_of_the_image_as_it_came(
    save, tmp_path, monkeypatch, limit
):
    monkeypatch.chdir(tmp_path)

    def tissues(data):
        shares = np.stack([data, data + 39, 0 * data])
        return predict.Tissues(data.astype(np.uint8), shares.astype(np.uint8))

    def enhance(data, mask, record, **_):
        maps = np.stack([~mask, mask, 0 * mask, 0 * mask]).astype(np.float32)
        return predict.Enhancement(
            data + 6, mask.astype(np.uint8), tissues(data), maps, "cpu", "float32", 1.0
        )

    monkeypatch.setattr(enhance_nodes, "enhance", enhance)
    monkeypatch.setattr(enhance_nodes, "classify", lambda data, *_, **__: tissues(data))

    node = Enhance(
        in_file=save("refocused", 20), before=save("came", 12), mask=save("mask", 1, "uint8"),
        weights=RECORD, max_change=limit,
    )  # fmt: skip
    outputs = node.run().outputs

    assert value(outputs.out_file) == (26 if limit is None else 22)  # 1 % of 1000 above 12
    # the gate judges the network alone: what was undone before it is undone here too
    assert value(outputs.labels_before) == 20
    csf, gm, wm = (value(path) for path in outputs.probabilities_before)
    assert (csf, gm, wm) == (np.float32(12 / 255), np.float32(0.2), 0)
    node.inputs.before = node.inputs.in_file  # nothing was undone
    outputs = node.run().outputs
    assert value(outputs.out_file) == 26
    assert value(outputs.labels_before) == 20  # what the enhancement knew
    assert outputs.probabilities_before == outputs.probabilities


def test_all_tissues_are_those_of_the_network_that_is_given_for_them(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def enhance(data, mask, record, **_):
        maps = np.stack([~mask, mask, 0 * mask, 0 * mask]).astype(np.float32)
        labels = mask.astype(np.uint8)
        own = predict.Tissues(labels, maps[1:].astype(np.uint8))
        return predict.Enhancement(data + 6, labels, own, maps, "cpu", "float32", 1.0)

    def tissues_of(data, mask, record, **how):
        """White matter where the image is as it came, else grey; never what the enhancement says."""
        asked.append((record.name, how))
        white = float(data.flat[0] == 12)
        return np.stack([0 * data, 0 * data, 1 - white + 0 * data, white + 0 * data])

    monkeypatch.setattr(enhance_nodes, "enhance", enhance)
    monkeypatch.setattr(enhance_nodes, "tissues_of", tissues_of)

    node = Enhance(
        in_file=save("refocused", 20), before=save("came", 12), mask=save("mask", 1, "uint8"),
        weights=RECORD | {"volume_scale": 0.5}, tissue_weights=RECORD | {"name": "finder"},
        device="cpu", num_threads=2,
    )  # fmt: skip
    outputs = node.run().outputs

    assert {name for name, _ in asked} == {"finder"}
    assert all(how == {"device": "cpu", "threads": 2} for _, how in asked)
    for name in ("labels", "labels_before", "labels_after"):
        assert value(getattr(outputs, name)) == 2
    assert [value(path) for path in outputs.probabilities] == [0, 1, 0]
    assert [value(path) for path in outputs.probabilities_before] == [0, 0, 1]
    assert outputs.litres_sd == {}  # the enhancement knows the error of its own tissues only
    assert outputs.provenance["tissues"]["weights"] == "finder"
    assert outputs.provenance["weights"] == RECORD["name"]


def test_the_networks_grid_has_the_codes_of_the_raw_image(make_image, tmp_path, monkeypatch):
    """It always said 0 and 2: no qform, and "aligned to something"."""

    def enhance(data, mask, record, **_):
        maps = np.ones((4, *data.shape), np.float32)
        labels = mask.astype(np.uint8)
        return predict.Enhancement(data, labels, tissues(mask), maps, "cpu", "float32", 1.0)

    def tissues(mask):
        return predict.Tissues(mask.astype(np.uint8), np.zeros((3, *mask.shape), np.uint8))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(enhance_nodes, "enhance", enhance)
    monkeypatch.setattr(enhance_nodes, "classify", lambda _, mask, *__, **___: tissues(mask))
    make_image("LPS", data=np.full((4, 5, 6), 2, np.float32), path=tmp_path / "in.nii.gz")
    make_image("LPS", data=np.ones((4, 5, 6), np.uint8), dtype="uint8", path=tmp_path / "m.nii.gz")
    node = Enhance(in_file=tmp_path / "in.nii.gz", mask=tmp_path / "m.nii.gz", weights=RECORD)
    # nothing is claimed of an image that says nothing: nibabel's own default stays
    for codes, expected in (((1, 1), (1, 1)), ((0, 3), (3, 3)), ((0, 0), (2, 0))):
        affine = np.eye(4) if any(codes) else None
        image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine)
        image.header["sform_code"], image.header["qform_code"] = codes
        nib.save(image, tmp_path / "raw.nii.gz")
        node.inputs.original = tmp_path / "raw.nii.gz"
        header = nib.load(node.run().outputs.out_file).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == expected
        if expected[1]:
            assert np.array_equal(header.get_qform(), header.get_sform())
