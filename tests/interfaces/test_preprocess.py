# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import template_home

from bmex_bids.exceptions import MaskError
from bmex_bids.imaging.intensity import IntensityScale, from_zero, rescale_robust
from bmex_bids.imaging.stripped import without_offset
from bmex_bids.interfaces import grid
from bmex_bids.interfaces.enhance import add_correction, into_head
from bmex_bids.interfaces.grid import on_network_grid, with_slices_split
from bmex_bids.interfaces.preprocess import (
    Conform,
    CorrectBrain,
    CorrectHead,
    MaskBrain,
    MatchHistogram,
    given_mask_like,
    head_region,
)
from bmex_bids.network.weights.registry import bundled_of
from bmex_bids.workflows.request import as_table


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Save an image in a folder of its own, which is also the current one."""
    monkeypatch.chdir(tmp_path)

    def save(image, name="image.nii.gz"):
        nib.save(image, tmp_path / name)
        return str(tmp_path / name)

    return save


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


def test_conform_hands_on_the_raw_image_and_a_copy_in_the_working_order(make_image, saved):
    raw = saved(make_image("SAR", (9, 10, 11), "int16"))
    outputs = Conform(in_file=raw).run().outputs
    assert outputs.original == raw
    assert nib.aff2axcodes(nib.load(outputs.out_file).affine) == ("L", "P", "S")


def test_the_corrected_head_has_the_intensities_of_the_input(head_phantom, saved):
    head = head_phantom(spacing=6.0)
    data = np.asarray(head.image.dataobj) * 7 + 20  # a scanner's own units
    outputs = CorrectHead(in_file=saved(nib.Nifti1Image(data, head.image.affine))).run().outputs
    scale = json.loads(Path(outputs.scale_file).read_text())
    assert 0 <= scale["lower"] < 60
    assert 5000 < scale["upper"] < 8000
    corrected = voxels(outputs.corrected)
    restored = IntensityScale(**scale).invert(corrected)
    assert corrected.min() >= 0
    white = head.tissues == 3
    assert np.median(restored[white]) == pytest.approx(np.median(data[white]), rel=0.1)


def test_the_field_is_what_the_head_was_divided_by(head_phantom, saved):
    head = head_phantom(spacing=6.0)
    outputs = CorrectHead(in_file=saved(head.image)).run().outputs
    scale = IntensityScale(**json.loads(Path(outputs.scale_file).read_text()))
    again = scale.invert(voxels(outputs.corrected) * voxels(outputs.field))
    np.testing.assert_allclose(again, np.asarray(head.image.dataobj), rtol=1e-3, atol=1)


def on_offset(values, mask, kind):
    """A brain of 0 to some 800 whose background is constant and far away, or not."""
    rng = np.random.default_rng(0)
    faint = rng.normal(0, 3, values.shape)
    return {
        "both": values + 2e4,
        "both negative": values - 2e4,
        "brain above zeros": np.where(mask, values + 2e4, 0),
        "brain below zeros": np.where(mask, values - 2e4, 0),
        "zeros beside a brain of 2 million": np.where(mask, values + 2e6, 0),
        "the largest whole number around": np.where(mask, values, 32767),
        "the smallest whole number around": np.where(mask, values, -32768),
        "noise around, both": np.where(mask, values, np.abs(faint)) + 2e4,
    }[kind].astype(np.float32)


OFFSETS = [
    "both",
    "both negative",
    "brain above zeros",
    "brain below zeros",
    "zeros beside a brain of 2 million",
    "the largest whole number around",
    "the smallest whole number around",
    "noise around, both",
]


@pytest.mark.parametrize("kind", OFFSETS)
def test_an_offset_of_a_stripped_brain_changes_nothing(head_phantom, saved, kind):
    """What was 20,000 to 21,600 in zeros had no tissues, and "no brain" was found."""
    phantom = head_phantom(noise=0.0)
    mask = phantom.mask
    values = np.asarray(phantom.brain.dataobj)
    # fluid is little brighter than the background
    values = np.where(mask, values - values[mask].min() + 40, 0)

    def prepared(data):
        path = saved(nib.Nifti1Image(data, phantom.image.affine))
        head = CorrectHead(in_file=path).run().outputs
        brain = MaskBrain(in_file=path, corrected=head.corrected, age_months=60.0).run().outputs
        assert brain.stripped
        return voxels(head.corrected), voxels(brain.out_file) > 0

    usual, usual_mask = prepared(np.where(mask, values, 0).astype(np.float32))
    found, found_mask = prepared(on_offset(values, mask, kind))
    assert 2 * (usual_mask & found_mask).sum() / (usual_mask.sum() + found_mask.sum()) > 0.999
    # the background is as dark as fluid then, and noise moves the robust range a little
    np.testing.assert_allclose(found[usual_mask], usual[usual_mask], atol=70)
    assert found[~found_mask].max() < 50
    assert found.min() > -50


def test_an_image_without_an_offset_is_not_copied(head_phantom):
    head = head_phantom(spacing=6.0)
    for image in (head.image, head.brain):
        assert without_offset(image) is image


def test_what_is_one_value_in_zeros_is_still_no_brain(head_phantom, saved):
    head = head_phantom()
    noise = np.random.default_rng(0).normal(0, 5, head.mask.shape)
    path = saved(
        nib.Nifti1Image(np.where(head.mask, 5000 + noise, 0).astype("f4"), head.image.affine)
    )
    corrected = CorrectHead(in_file=path).run().outputs.corrected
    with pytest.raises(MaskError, match="no tissues of a brain"):
        MaskBrain(in_file=path, corrected=corrected, age_months=60.0).run()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_a_lost_slice_does_not_cost_half_of_a_stripped_brain(head_phantom, saved, axis, count):
    phantom = head_phantom()
    data = np.asarray(phantom.brain.dataobj).copy()
    middle = data.shape[axis] // 2
    np.moveaxis(data, axis, 0)[middle : middle + count] = 0
    path = saved(nib.Nifti1Image(data, phantom.image.affine), "lost.nii.gz")
    result = MaskBrain(in_file=path, corrected=path, age_months=60.0).run().outputs
    mask = np.asarray(nib.load(result.out_file).dataobj) > 0
    assert 2 * (mask & phantom.mask).sum() / (mask.sum() + phantom.mask.sum()) > 0.98
    assert f"{count} slice(s) in the middle of the brain" in " ".join(result.mask_info["warnings"])


def test_the_region_of_a_bias_fit_leaves_out_air(head_phantom):
    head = head_phantom(spacing=6.0)
    region = head_region(np.asarray(head.image.dataobj)) > 0
    assert region[head.tissues == 3].mean() > 0.99
    corner = region[:3, :3, :3]
    assert not corner.any()


def test_a_clipped_image_is_told(head_phantom, saved):
    brain = head_phantom(spacing=4.0).brain
    data = np.asarray(brain.dataobj)
    for most, clipped in ((1000, False), (600, True)):  # white matter has 720
        path = saved(nib.Nifti1Image(np.minimum(data, most), brain.affine), "clipped.nii.gz")
        info = MaskBrain(in_file=path, corrected=path, skull_strip="skip").run().outputs.mask_info
        words = [w for w in info["warnings"] if "the image was clipped" in w]
        assert bool(words) is clipped
        assert (info["at_highest"] > 0.3) is clipped
        assert info["at_lowest"] < 0.01
    assert words[0].startswith(f"{100 * info['at_highest']:.0f} % of the brain's voxels")


@pytest.mark.parametrize("mode", ["auto", "skip"])
def test_the_mask_of_a_stripped_image_is_its_brain(head_phantom, saved, mode):
    head = head_phantom(spacing=4.0)
    brain = saved(head.brain)
    outputs = MaskBrain(in_file=brain, corrected=brain, skull_strip=mode).run().outputs
    assert outputs.stripped is True
    mask = voxels(outputs.out_file) > 0
    assert (mask & head.mask).sum() > 0.99 * head.mask.sum()
    assert outputs.mask_info["volume_litres"] == pytest.approx(head.litres, rel=0.02)
    assert outputs.mask_info["components"] == 1


@pytest.mark.parametrize("mode", ["auto", "force"])
def test_a_head_is_given_to_the_stripping_network(head_phantom, saved, monkeypatch, mode):
    from bmex_bids.interfaces import stripping as stripper

    head = head_phantom(spacing=4.0)
    asked = {}

    def brain_probability(data, spacing, record, **options):
        asked.update(options, spacing=spacing, name=record.name)
        return np.where(head.mask, 0.9, 0.2).astype(np.float32)

    monkeypatch.setattr(stripper, "brain_probability", brain_probability)
    image = saved(head.image if mode == "auto" else head.brain)
    record = {
        "name": "strip-0",
        "kind": "strip",
        "path": "/nowhere",
        "sha256": "0" * 64,
        "licence": "none",
        "source": "",
        "description": "",
        "variant": "",
        "input_units": "",
        "age_groups": [],
        "contrasts": [],
        "version": "0",
    }
    outputs = (
        MaskBrain(in_file=image, corrected=image, skull_strip=mode, weights=record, num_threads=2)
        .run()
        .outputs
    )
    assert outputs.stripped is False
    assert outputs.mask_info["weights"] == "strip-0"
    assert asked == {"device": "auto", "threads": 2, "spacing": (4.0, 4.0, 4.0), "name": "strip-0"}
    mask = voxels(outputs.out_file) > 0
    assert (mask & head.mask).sum() > 0.98 * mask.sum()


@pytest.mark.parametrize("mode", ["auto", "skip", "force"])
def test_a_given_mask_is_used_as_it_is(head_phantom, saved, monkeypatch, mode):
    from bmex_bids.interfaces import stripping as stripper

    monkeypatch.delattr(stripper, "brain_probability")
    head = head_phantom(spacing=4.0)
    given = head.mask.astype(np.uint8)
    given[2:4, 2:4, 2:4] = 1  # a piece apart, which cleaning would take away
    mask = saved(nib.Nifti1Image(given, head.image.affine), "given.nii.gz")
    image = saved(head.image)
    outputs = (
        MaskBrain(
            in_file=image,
            corrected=image,
            skull_strip=mode,
            given_mask=mask,
            given_source="hand: x",
        )
        .run()
        .outputs
    )
    assert (voxels(outputs.out_file) == given).all()
    assert nib.load(outputs.out_file).get_data_dtype() == np.uint8
    assert outputs.stripped is (mode == "skip")
    assert (outputs.mask_info["method"], outputs.mask_info["source"]) == ("given", "hand: x")
    assert outputs.mask_info["components"] == 2
    assert outputs.mask_info["warnings"] == ["brain mask in 2 pieces"]


@pytest.mark.parametrize("change", ["flipped", "finer", "cropped", "0 and 255", "probabilities"])
def test_a_given_mask_of_another_grid_comes_on_the_images(head_phantom, saved, change):
    head = head_phantom(spacing=4.0)
    given = nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine)
    if change == "flipped":
        given = nib.as_closest_canonical(given)
        assert not np.allclose(given.affine, head.image.affine)
    elif change == "finer":
        finer = np.repeat(np.repeat(np.repeat(head.mask, 2, 0), 2, 1), 2, 2)
        affine = head.image.affine @ np.diag([0.5, 0.5, 0.5, 1])
        affine[:3, 3] = (head.image.affine @ [-0.25, -0.25, -0.25, 1])[:3]
        given = nib.Nifti1Image(finer.astype(np.uint8), affine)
    elif change == "cropped":
        given = given.slicer[5:-5, 5:-5, 5:-5]
    elif change == "0 and 255":
        given = nib.Nifti1Image(head.mask.astype(np.uint8) * 255, head.image.affine)
    else:
        values = np.where(head.mask, 0.8, 0.3).astype(np.float32)
        given = nib.Nifti1Image(values, head.image.affine)
    found = voxels_of(given_mask_like(saved(given), head.image)) > 0
    differing = (found != head.mask).sum() / head.mask.sum()
    assert differing == 0 if change != "finer" else differing < 0.01


def voxels_of(image):
    return np.asanyarray(image.dataobj)


def test_a_given_mask_that_lies_elsewhere_is_refused(head_phantom, saved):
    head = head_phantom(spacing=4.0)
    affine = head.image.affine.copy()
    affine[0, 3] += 60
    shifted = saved(nib.Nifti1Image(head.mask.astype(np.uint8), affine))
    with pytest.raises(
        MaskError, match=r"lies in its image .*of which .* or leave out --derivatives"
    ):
        given_mask_like(shifted, head.image)


def test_a_given_mask_that_is_empty_or_cut_off_is_refused(head_phantom, saved, tmp_path):
    head = head_phantom(spacing=6.0)
    empty = saved(nib.Nifti1Image(np.zeros(head.mask.shape, np.uint8), head.image.affine))
    with pytest.raises(MaskError, match="zero everywhere"):
        given_mask_like(empty, head.image)
    contents = Path(saved(head.image)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(contents[: len(contents) // 2])
    with pytest.raises(MaskError, match=r"cannot be used.*cut off"):
        given_mask_like(tmp_path / "cut.nii.gz", head.image)


def test_a_given_mask_that_is_no_brain_is_refused(head_phantom, saved):
    head = head_phantom(spacing=4.0)
    small = np.zeros(head.mask.shape, np.uint8)
    small[20:28, 20:28, 20:28] = 1  # 33 millilitres
    mask = saved(nib.Nifti1Image(small, head.image.affine), "given.nii.gz")
    image = saved(head.image)
    with pytest.raises(MaskError, match="litres at this age"):
        MaskBrain(in_file=image, corrected=image, given_mask=mask, age_months=360.0).run()


def test_a_mask_that_is_no_brain_is_refused(head_phantom, saved):
    head = head_phantom(spacing=4.0, size=0.3)  # 35 millilitres
    brain = saved(head.brain)
    with pytest.raises(MaskError, match="litres at this age"):
        MaskBrain(in_file=brain, corrected=brain, skull_strip="skip", age_months=360.0).run()


def ones_like(image):
    """A bias field of one."""
    return nib.Nifti1Image(np.ones(image.shape, np.float32), image.affine)


def unit_scale():
    """A scale file that says: input intensities are 0…1000."""
    path = Path("unit.json").absolute()
    path.write_text(json.dumps({"lower": 0.0, "upper": 1000.0}))
    return str(path)


def test_the_brain_comes_on_the_grid_of_the_network(head_phantom, saved):
    head = head_phantom(spacing=6.0)
    mask = nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine)
    outputs = (
        CorrectBrain(
            in_file=saved(head.image),
            mask=saved(mask, "mask.nii.gz"),
            scale_file=unit_scale(),
            field=saved(ones_like(head.image), "field.nii.gz"),
            spacing_mm=3.0,
        )
        .run()
        .outputs
    )
    image, inside = nib.load(outputs.out_file), nib.load(outputs.mask_res)
    np.testing.assert_allclose(image.header.get_zooms(), 3.0)
    assert image.shape == inside.shape
    assert inside.get_data_dtype() == np.uint8
    assert outputs.split_slices == {}
    litres = voxels(outputs.mask_res).sum() * 27 / 1e6
    assert litres == pytest.approx(head.litres, rel=0.03)


@pytest.mark.parametrize(
    ("order", "told"), [(3, {"Axis": 1, "Thickness": 6.0, "Parts": 2}), (1, {})]
)
def test_slices_that_are_split_are_told(head_phantom, saved, order, told):
    """Of 6 mm, for a grid of 3 mm; networks that learnt from linear interpolation split none."""
    head = head_phantom(spacing=3.0)
    thick = nib.Nifti1Image(
        np.asarray(head.image.dataobj)[:, ::2], head.image.affine @ np.diag([1, 2, 1, 1])
    )
    mask = nib.Nifti1Image(head.mask.astype(np.uint8)[:, ::2], thick.affine)
    node = CorrectBrain(
        in_file=saved(thick),
        mask=saved(mask, "mask.nii.gz"),
        scale_file=unit_scale(),
        field=saved(ones_like(thick), "field.nii.gz"),
        spacing_mm=3.0,
        order=order,
    )
    outputs = node.run().outputs
    assert outputs.split_slices == told
    sizes = {n // o for n, o in zip(nib.load(outputs.out_file).shape, thick.shape, strict=True)}
    assert sizes <= {1, 2}


def test_the_bias_field_of_the_brain_is_fitted_within_its_mask(head_phantom, saved):
    """What lies outside, however bright, changes nothing well inside the brain."""
    head = head_phantom(spacing=6.0)
    mask = saved(nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine), "mask.nii.gz")
    data = np.asarray(head.image.dataobj).astype(np.float32)
    ramp = np.linspace(0.2, 1.8, data.shape[0], dtype=np.float32)[:, None, None]
    other = np.where(head.mask, data, 600 * ramp).astype(np.float32)
    results = []
    for number, part in enumerate((data, other)):
        image = saved(nib.Nifti1Image(part, head.image.affine), f"{number}.nii.gz")
        node = CorrectBrain(
            in_file=image,
            mask=mask,
            scale_file=unit_scale(),
            field=saved(ones_like(head.image), "field.nii.gz"),
            spacing_mm=6.0,
        )
        results.append(voxels(node.run().outputs.out_file))
    deep = scipy.ndimage.binary_erosion(head.mask, iterations=2)
    assert deep.sum() > 500
    np.testing.assert_allclose(results[0][deep], results[1][deep], rtol=1e-5)


def test_the_field_in_all_is_that_of_the_head_times_that_of_the_brain(head_phantom, saved):
    head = head_phantom(spacing=6.0)
    mask = saved(nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine), "mask.nii.gz")
    ramp = np.linspace(0.5, 2, head.mask.shape[1], dtype=np.float32)[None, :, None]
    fields = []
    for before in (np.ones_like(ramp), ramp):
        of_head = np.broadcast_to(before, head.mask.shape).astype(np.float32)
        node = CorrectBrain(
            in_file=saved(head.image, "head.nii.gz"),
            mask=mask,
            scale_file=unit_scale(),
            field=saved(nib.Nifti1Image(of_head, head.image.affine), "field_of_head.nii.gz"),
            spacing_mm=6.0,
        )
        fields.append(voxels(node.run().outputs.field).copy())
    np.testing.assert_allclose(fields[1], ramp * fields[0], rtol=1e-4)


@pytest.mark.parametrize("method", ["brain", "published"])
def test_what_lies_outside_the_mask_does_not_choose_the_histogram_map(head_phantom, saved, method):
    """The published way counts every voxel above the mean, the skull too if it is not removed."""
    head = head_phantom(spacing=6.0)
    mask = saved(nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine), "mask.nii.gz")
    chains = []
    for image in (head.image, head.brain):
        node = MatchHistogram(
            in_file=saved(image),
            mask=mask,
            scale_file=unit_scale(),
            age_group="month24",
            contrast="T1w",
            method=method,
        )
        chains.append(json.loads(Path(node.run().outputs.intensity_json).read_text()))
    assert chains[0] == chains[1]


def test_the_matched_image_is_zero_outside_the_brain_and_its_map_is_written(head_phantom, saved):
    head = head_phantom(spacing=6.0)
    scale = Path("scale.json").absolute()
    scale.write_text(json.dumps({"lower": 0.0, "upper": 2000.0}))
    mask = nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine)
    outputs = (
        MatchHistogram(
            in_file=saved(head.image),
            mask=saved(mask, "mask.nii.gz"),
            scale_file=str(scale),
            age_group="month24",
            contrast="T1w",
        )
        .run()
        .outputs
    )
    matched = voxels(outputs.out_file)
    assert not matched[~head.mask].any()
    means = [matched[head.tissues == label].mean() for label in (1, 2, 3)]
    assert means == sorted(means)
    chain = json.loads(Path(outputs.intensity_json).read_text())
    assert chain["scale"] == {"lower": 0.0, "upper": 2000.0}
    assert len(chain["match"]["source"]) == len(chain["match"]["reference"])
    assert chain["method"] == "brain"
    assert chain["reference_levels"] is None


@pytest.mark.parametrize("method", ["brain", "levels"])
def test_a_template_takes_the_place_of_the_reference_of_the_age(
    head_phantom, saved, tmp_path, method
):
    head = head_phantom(spacing=6.0)
    template_home.put(tmp_path, "tpl-MNI_res-01", template_home.shrunk(6))
    image, mask = (
        str(tmp_path / f"tpl-MNI/tpl-MNI_res-01_{name}.nii.gz")
        for name in ("T1w", "desc-brain_mask")
    )
    outputs = (
        MatchHistogram(
            in_file=saved(head.image),
            mask=saved(
                nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine), "mask.nii.gz"
            ),
            scale_file=unit_scale(),
            age_group="month24",
            contrast="T1w",
            method=method,
            template=[image, mask],
        )
        .run()
        .outputs
    )
    inside = voxels(mask) > 0
    wanted, _ = rescale_robust(voxels(image), inside)
    shares = [0.25, 0.5, 0.75]
    there = np.quantile(voxels(outputs.out_file)[head.mask], shares)
    np.testing.assert_allclose(there, np.quantile(wanted[inside], shares), atol=40)
    chain = json.loads(Path(outputs.intensity_json).read_text())
    assert chain["method"] == "template"
    assert sum(chain["reference_counts"][1:]) == pytest.approx(inside.sum(), rel=0.01)


def test_an_adult_is_matched_to_the_levels_of_his_age_and_the_map_says_so(head_phantom, saved):
    """The phantom has three clear tissues; an infant of six months has no levels to match."""
    head = head_phantom(spacing=6.0)
    mask = saved(nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine), "mask.nii.gz")
    chains = {}
    for group, months in (("month24", 400.0), ("month6", 6.0)):
        node = MatchHistogram(
            in_file=saved(head.image),
            mask=mask,
            scale_file=unit_scale(),
            age_group=group,
            age_months=months,
            contrast="T1w",
            method="levels",
        )
        chains[group] = json.loads(Path(node.run().outputs.intensity_json).read_text())
    assert chains["month24"]["method"] == "levels"
    assert chains["month24"]["reference_levels"] == pytest.approx([167, 351, 537])
    assert chains["month6"]["method"] == "quantiles"
    assert chains["month6"]["reference_levels"] is None


@pytest.mark.parametrize(
    ("diameter", "level", "stripped", "method"),
    [
        (4, 250, True, "brain"),
        (8, 250, False, "published"),
        (8, 1000, False, "brain"),
        (8, -20, True, "brain"),
    ],
)
def test_a_lesion_keeps_its_contrast_on_the_way_to_an_output(
    head_phantom, saved, diameter, level, stripped, method
):
    """A network that changes nothing: what comes out is what went in."""
    head = head_phantom(spacing=2.0, size=0.6)
    image = head.brain if stripped else head.image
    data = np.asarray(image.dataobj) * np.float32(130 / 720)  # white matter of 130
    place = np.indices(data.shape) - np.array([28, 33, 38])[:, None, None, None]
    lesion = np.sqrt((place**2).sum(axis=0)) * 2.0 <= diameter / 2
    white = head.tissues == 3
    assert white[lesion].all()
    data[lesion] = level
    raw = saved(nib.Nifti1Image(data, image.affine))
    mask = saved(nib.Nifti1Image(head.mask.astype(np.uint8), image.affine), "mask.nii.gz")
    first = CorrectHead(in_file=raw).run().outputs
    brain = (
        CorrectBrain(
            in_file=first.corrected,
            mask=mask,
            scale_file=first.scale_file,
            field=first.field,
            spacing_mm=2.0,
        )
        .run()
        .outputs
    )
    options = {"age_group": "month24", "contrast": "T1w", "method": method}
    matched = (
        MatchHistogram(in_file=brain.out_file, mask=mask, scale_file=brain.scale_file, **options)
        .run()
        .outputs
    )
    chain = json.loads(Path(matched.intensity_json).read_text())
    native, field = voxels(brain.native), voxels(brain.field)
    enhanced = add_correction(native, 0.0, head.mask, chain)
    result = into_head(enhanced, native, field, data, head.mask, chain, image.affine)
    np.testing.assert_allclose(result, data, atol=0.01)
    steps = voxels(matched.out_file)
    assert np.sign(np.median(steps[lesion]) - np.median(steps[white & ~lesion])) == np.sign(
        level - 130
    )


def test_a_voxel_far_below_the_range_does_not_take_all_of_it():
    mask = np.ones((3, 3, 3), bool)
    data = np.full((3, 3, 3), 500, np.float32)
    scale = IntensityScale(100.0, 300.0)
    assert from_zero(data, mask, scale) == (data, scale)
    data[0, 0, 0] = -10_000
    shifted, wider = from_zero(data, mask, scale)
    assert (wider.lower, wider.upper) == (50.0, 300.0)  # a quarter of 200 more
    np.testing.assert_allclose(wider.invert(shifted), scale.invert(data), rtol=1e-5)
    assert shifted[1, 1, 1] == pytest.approx(600)


@pytest.fixture
def thick_scan():
    """A smooth blob in slices of 3 mm, oblique, and the blob at any point of space (mm)."""
    turn = nib.affines.from_matvec(
        np.array([[0.98, 0.0, 0.199], [0.0, 1.0, 0.0], [-0.199, 0.0, 0.98]])
        @ np.diag([1, 1, 3.0]),
        [-30, -35, -33],
    )

    def blob(points):
        distance = (np.asarray(points) - np.array([2.0, 1.0, 4.0])) / [18, 22, 16]
        return 800 * np.exp(-(distance**2).sum(-1) * 2)

    shape = (64, 70, 24)
    parts = np.linspace(-1 / 3, 1 / 3, 3)  # the mean over a slice
    grid = np.moveaxis(np.indices(shape), 0, -1).astype(float)
    data = np.mean(
        [blob(nib.affines.apply_affine(turn, np.add(grid, [0, 0, part]))) for part in parts],
        axis=0,
    )
    return nib.Nifti1Image(data.astype(np.float32), turn), blob


def test_thick_slices_are_split_in_place(thick_scan):
    """Before networks that learnt from splines; where the head lies does not change."""
    image, blob = thick_scan
    for order, limit in ((3, 3.0), (1, 60.0)):
        fine = on_network_grid(image, 1.0, order, {})
        assert np.allclose(nib.affines.voxel_sizes(fine.affine), 1.0, atol=0.02)
        grid = np.moveaxis(np.indices(fine.shape), 0, -1)
        truth = blob(nib.affines.apply_affine(fine.affine, grid))
        inside = truth > 200
        assert np.abs(np.asarray(fine.dataobj) - truth)[inside].max() < limit
    split = with_slices_split(image, 1.0, None)
    assert split.shape == (64, 70, 72)
    assert with_slices_split(split, 1.0, None) is split


def test_the_network_within_slices_is_asked_for_thick_slices_alone(thick_scan, monkeypatch):
    asked = []

    def within(slices, estimate, first, thickness, *, record):
        asked.append((record.name, first, thickness))
        return estimate

    monkeypatch.setattr(grid, "within_slices", within)
    weights = as_table(bundled_of("within"))
    image, _ = thick_scan
    on_network_grid(image, 1.0, 1, weights)
    assert asked == []
    fine = on_network_grid(image, 1.0, 3, weights)
    assert asked == [("bmex-within-1", 1.0, 3.0)]
    on_network_grid(fine, 1.0, 3, weights)
    assert len(asked) == 1
