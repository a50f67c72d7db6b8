# SPDX-License-Identifier: Apache-2.0
"""The nodes around the motion correction: the image that goes on, and the one that came."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.interfaces.preprocess import CorrectBrain, CorrectHead, MatchHistogram
from bmex_bids.interfaces.refocus import Before, Refocus
from bmex_bids.network.weights.registry import bundled_of
from bmex_bids.refocus import refocus
from bmex_bids.refocus.refocus import Refocused
from bmex_bids.workflows.request import as_table

MOTION = {"Model": "periodic", "PhaseEncodingAxis": 1, "RMSDisplacement": 1.9}


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture
def head(head_phantom, tmp_path, monkeypatch):
    """A phantom of a head and its files; the current folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    phantom = head_phantom(spacing=5.0)

    def save(data, name):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(data, phantom.image.affine), path)
        return str(path)

    data = np.asarray(phantom.image.dataobj)
    return SimpleNamespace(
        data=data, save=save, phantom=phantom, path=save(data, "head"), mask=phantom.mask
    )


@pytest.fixture
def found(monkeypatch):
    """What the algorithm is asked, and that it finds motion and halves the image."""
    asked = []

    def find(image, spacing, *, num_threads, **_):
        asked.append((spacing, num_threads))
        return Refocused(image / 2, True, "periodic motion", MOTION, 9.0, 8.5)

    monkeypatch.setattr(refocus, "refocus", find)
    return asked


def test_an_image_without_motion_is_handed_on_as_the_same_file(head, monkeypatch):
    monkeypatch.setattr(
        refocus, "refocus", lambda image, *_, **__: Refocused(image, False, "still", {}, 9.0, 8.9)
    )
    outputs = Refocus(in_file=head.path).run().outputs
    assert outputs.out_file == head.path
    assert outputs.refocus == {
        "applied": False, "reason": "still", "motion": {}, "lines": {}, "spikes": 0,
        "slices": {}, "noise": {}, "entropy_before": 9.0, "entropy_after": 8.9,
    }  # fmt: skip


def test_motion_that_is_found_is_undone_in_a_new_file(head, found):
    outputs = Refocus(in_file=head.path, num_threads=2).run().outputs
    assert found == [((5.0, 5.0, 5.0), 2)]
    np.testing.assert_allclose(voxels(outputs.out_file), head.data / 2)
    np.testing.assert_array_equal(nib.load(outputs.out_file).affine, nib.load(head.path).affine)
    np.testing.assert_array_equal(voxels(head.path), head.data)
    assert outputs.refocus["applied"] is True
    assert outputs.refocus["motion"] == MOTION
    json.dumps(outputs.refocus, allow_nan=False)


def test_a_brain_without_its_head_is_tried_too(head, found):
    brain = np.where(head.mask, head.data, 0)
    outputs = Refocus(in_file=head.save(brain, "brain")).run().outputs
    assert len(found) == 1
    np.testing.assert_allclose(voxels(outputs.out_file), brain / 2)


def test_entropies_that_were_not_measured_are_not_told(head, monkeypatch):
    monkeypatch.setattr(
        refocus, "refocus", lambda image, *_, **__: Refocused(image, False, "still", {}, 0.0, 0.0)
    )
    said = Refocus(in_file=head.path).run().outputs.refocus
    assert said == {
        "applied": False, "reason": "still", "motion": {}, "lines": {}, "spikes": 0, "slices": {},
        "noise": {},
    }  # fmt: skip


def test_lines_and_spikes_that_were_mended_are_told(head, monkeypatch):
    lines = {"PhaseEncodingAxis": 1, "Period": 4.0}
    thick = {"Axis": 2, "Thickness": 3.0}
    monkeypatch.setattr(
        refocus,
        "refocus",
        lambda image, *_, **__: Refocused(image, True, "ghosts", {}, 9.0, 8.9, lines, 3, thick),
    )
    said = Refocus(in_file=head.path).run().outputs.refocus
    assert (said["lines"], said["spikes"], said["motion"]) == (lines, 3, {})
    assert said["slices"] == thick


def test_thick_slices_are_sharpened_by_the_network_that_was_given(head, monkeypatch):
    asked = []

    def find(image, *_, within, **__):
        asked.append(within)
        return Refocused(image, False, "still", {}, 0.0, 0.0)

    monkeypatch.setattr(refocus, "refocus", find)
    record = bundled_of("within")
    Refocus(in_file=head.path).run()
    Refocus(in_file=head.path, within_weights=as_table(record)).run()
    assert asked[0] is None
    assert asked[1].keywords == {"record": record}


def test_noise_is_told_by_the_network_that_was_given(head, monkeypatch):
    asked = []

    def find(image, *_, denoise, **__):
        asked.append(denoise)
        noise = {"StandardDeviation": 2.5, "Removed": 1.0} if denoise else {}
        return Refocused(image, bool(noise), "noise", {}, 0.0, 0.0, noise=noise)

    monkeypatch.setattr(refocus, "refocus", find)
    record = bundled_of("denoise")
    assert Refocus(in_file=head.path).run().outputs.refocus["noise"] == {}
    node = Refocus(in_file=head.path, denoise_weights=as_table(record))
    assert node.run().outputs.refocus["noise"] == {
        "StandardDeviation": 2.5, "Removed": 1.0,
        "Weights": {"Name": record.name, "SHA256": record.sha256},
    }  # fmt: skip
    assert asked[0] is None
    assert asked[1].keywords == {"record": record}


def test_jumps_are_hinted_at_by_the_networks_that_were_given(head, monkeypatch):
    asked = []

    def find(image, *_, hints, **__):
        asked.append(hints)
        return Refocused(image, False, "still", {}, 0.0, 0.0)

    monkeypatch.setattr(refocus, "refocus", find)
    slices, strip = bundled_of("enhance"), bundled_of("strip")
    Refocus(in_file=head.path).run()
    Refocus(in_file=head.path, hint_weights=as_table(slices)).run()
    node = Refocus(in_file=head.path, hint_weights=as_table(slices), strip_weights=as_table(strip))
    node.run()
    assert asked[0] is None
    assert asked[1].brain is None
    assert asked[2].correction.keywords == {"record": slices}
    assert asked[2].brain.keywords == {"record": strip}


@pytest.fixture(params=[0.0, 60.0, 2e4], ids=["from zero", "wider range", "offset"])
def prepared(request, head):
    """A head through the stage *preprocess*, and the inputs of the node ``Before``.

    With a hole in the brain that is darker than the air, the working range is widened for it.  A
    brain on an offset has its background brought near.
    """
    data = head.data + np.float32(request.param)
    if request.param == 60:
        data[17:20, 21:24, 19:22] = 0
    elif request.param:
        data[~head.mask] = 0
    path = head.save(data, "as_it_came")
    first = CorrectHead(in_file=path).run().outputs
    mask = head.save(head.mask.astype(np.uint8), "mask")
    second = (
        CorrectBrain(
            in_file=first.corrected, mask=mask, spacing_mm=4.0, scale_file=first.scale_file,
            field=first.field,
        )
        .run(cwd=_folder("brain"))
        .outputs
    )  # fmt: skip
    third = (
        MatchHistogram(
            in_file=second.out_file, mask=second.mask_res, scale_file=second.scale_file,
            age_group="month24", contrast="T1w",
        )
        .run(cwd=_folder("match"))
        .outputs
    )  # fmt: skip
    scales = [json.loads(Path(part.scale_file).read_text()) for part in (first, second)]
    assert (scales[0] != scales[1]) == (request.param == 60)
    return {
        "conformed": path, "corrected": first.corrected, "head_scale": first.scale_file,
        "head_field": first.field, "native": second.native, "field": second.field,
        "brain": second.out_file, "matched": third.out_file, "mask_res": second.mask_res,
        "intensity_json": third.intensity_json, "spacing_mm": 4.0,
    }  # fmt: skip


def _folder(name):
    path = Path(name).absolute()
    path.mkdir()
    return str(path)


NAMES = ("corrected", "native", "brain", "matched")


def test_where_nothing_was_undone_before_is_what_goes_on(prepared):
    outputs = Before(refocus={"applied": False}, **prepared).run(cwd=_folder("before")).outputs
    for name in NAMES:
        assert getattr(outputs, name) == prepared[name]


def test_the_image_as_it_came_is_prepared_as_the_refocused_one_was(prepared):
    # of the same image, the same
    outputs = Before(refocus={"applied": True}, **prepared).run(cwd=_folder("before")).outputs
    for name in NAMES:
        path = getattr(outputs, name)
        assert path != prepared[name]
        np.testing.assert_array_equal(nib.load(path).affine, nib.load(prepared[name]).affine)
        np.testing.assert_allclose(voxels(path), voxels(prepared[name]), atol=0.02)


def test_before_shows_the_image_as_it_came(prepared, head):
    came = voxels(prepared["conformed"]).copy()
    came[10:14] *= 1.5
    inputs = prepared | {"conformed": head.save(came, "moved")}
    outputs = Before(refocus={"applied": True}, **inputs).run(cwd=_folder("before")).outputs
    for name in NAMES:
        same = voxels(getattr(outputs, name)), voxels(prepared[name])
        assert np.abs(same[0] - same[1]).max() > 20, name
    outside = voxels(prepared["mask_res"]) == 0
    assert not voxels(outputs.matched)[outside].any()
