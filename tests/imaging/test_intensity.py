# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.intensity import (
    HistogramMatch,
    IntensityScale,
    count_template,
    load_histogram,
    match_histogram,
    match_whole,
    n4,
    rescale_robust,
)

GROUPS = ["month0", "month3", "month6", "month9", "month12", "month18", "month24"]
TABLES = [f"{group}_{contrast}" for group in GROUPS for contrast in ("T1w", "T2w")] + ["fetal_T2w"]


# ------------------------------------------------------------------ scaling
def test_scaling_by_hand():
    scale = IntensityScale(100, 300)
    assert_allclose(scale.apply(np.array([100, 200, 300, 400], np.float32)), [0, 500, 1000, 1500])
    assert_allclose(scale.invert(np.array([0, 500, 1000], np.float32)), [100, 200, 300])


def test_robust_scaling_and_back():
    rng = np.random.default_rng(0)
    data = rng.normal(500, 80, (20, 20, 20)).astype(np.float32)
    data[:10] = 0
    data[15, 15, 15] = 1e6  # one bright vessel decides nothing
    scaled, scale = rescale_robust(data)
    assert (scaled.min(), scaled.max()) == (0, 1000)
    assert scale.lower == 0
    assert scale.upper == pytest.approx(np.percentile(data[data > 0], 99.9))
    usual = data <= scale.upper
    assert_allclose(scale.invert(scaled)[usual], data[usual], rtol=1e-5, atol=1e-3)
    assert_allclose(scale.invert(scaled)[~usual], scale.upper, rtol=1e-5)


def test_the_mask_says_where_the_top_is():
    data = np.zeros((10, 10, 10), np.float32)
    data[:5] = 2000  # bright scalp
    data[6:8] = 100
    mask = data == 100
    assert rescale_robust(data, mask)[1].upper == pytest.approx(100)
    assert rescale_robust(data)[1].upper == pytest.approx(2000)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_scaling_does_not_depend_on_the_unit(factor):
    data = np.random.default_rng(0).random((10, 10, 10), dtype=np.float32)
    assert_allclose(
        rescale_robust(data * np.float32(factor))[0], rescale_robust(data)[0], atol=0.01
    )


@pytest.mark.parametrize("value", [0, 5])
def test_nothing_to_scale(value):
    with pytest.raises(ImageError, match="expected"):
        rescale_robust(np.full((8, 8, 8), value, np.float32))
    with pytest.raises(ImageError, match="expected"):
        rescale_robust(np.full((8, 8, 8), value, np.float32), np.ones((8, 8, 8), bool))


# ------------------------------------------------------------------ bias field
def test_n4_removes_a_known_field_and_keeps_the_level(head_phantom):
    head = head_phantom(spacing=4.0, noise=5.0)
    clean = head.brain.get_fdata(dtype=np.float32)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in clean.shape), indexing="ij")
    known = np.exp(0.35 * x - 0.25 * y + 0.2 * z * z).astype(np.float32)
    image = nib.Nifti1Image(clean * known, head.brain.affine)
    mask = nib.Nifti1Image(head.mask.astype(np.uint8), head.brain.affine)
    corrected, field = n4(image, mask, iterations=(30, 30))
    white = head.tissues == 3

    def variation(data):
        return data[white].std() / data[white].mean()

    before, after = variation(image.get_fdata()), variation(corrected.get_fdata())
    assert after < before / 2
    assert field.get_fdata()[head.mask].mean() == pytest.approx(1, abs=1e-4)
    assert corrected.get_fdata()[white].mean() == pytest.approx(
        image.get_fdata()[white].mean(), rel=0.05
    )
    assert_allclose(
        corrected.get_fdata() * field.get_fdata(), image.get_fdata(), rtol=1e-4, atol=1e-2
    )
    assert (corrected.get_fdata()[~head.mask] == 0).all()


def test_n4_wants_a_mask(head_phantom):
    head = head_phantom(spacing=8.0)
    empty = nib.Nifti1Image(np.zeros(head.mask.shape, np.uint8), head.image.affine)
    with pytest.raises(ImageError, match="got an empty one"):
        n4(head.brain, empty)


def test_n4_with_a_mask_that_the_coarse_grid_misses(head_phantom):
    head = head_phantom(spacing=4.0)
    mask = np.zeros(head.mask.shape, np.uint8)
    mask[20, 20, 20] = 1
    corrected, _ = n4(
        head.brain, nib.Nifti1Image(mask, head.brain.affine), shrink_mm=16.0, iterations=(2,)
    )
    assert np.isfinite(corrected.get_fdata()).all()


# ------------------------------------------------------------------ references
def test_count_template_by_hand():
    counts = count_template(np.array([0, 0, 1, 1000], np.uint16))
    assert counts.shape == (1001,)
    assert (counts[0], counts[1], counts[1000], counts.sum()) == (2, 1, 1, 4)


@pytest.mark.parametrize("bad", [[0.5], [-1.0], [1001.0]])
def test_count_template_wants_whole_numbers(bad):
    with pytest.raises(ImageError, match="whole numbers"):
        count_template(np.array(bad))


@pytest.mark.parametrize("table", TABLES)
def test_every_age_and_contrast_has_a_reference(table):
    counts = load_histogram(*table.split("_"))
    assert counts.shape == (1001,)
    assert counts.min() >= 0
    assert counts[1:].sum() > 100_000  # voxels of brain


def test_there_is_no_reference_of_a_fetal_t1w():
    with pytest.raises(ImageError, match="got 'fetal_T1w'"):
        load_histogram("fetal", "T1w")


def test_a_reference_is_a_copy():
    load_histogram("month0", "T1w")[:] = 0
    assert load_histogram("month0", "T1w").any()


@pytest.mark.parametrize("table", TABLES)
def test_references_are_the_counts_of_the_published_templates(table, shared_data):
    group, contrast = table.split("_")
    name = f"Template-{group.capitalize()}-{contrast}.nii.gz"
    template = nib.load(shared_data / "histogram-templates" / name)
    expected = np.bincount(np.asarray(template.dataobj).ravel(), minlength=1001)
    assert_array_equal(load_histogram(group, contrast), expected)


# ------------------------------------------------------------------ matching
def itk_match(data, reference):
    """What the published code does, by ITK itself."""
    matcher = sitk.HistogramMatchingImageFilter()
    matcher.SetNumberOfHistogramLevels(1024)
    matcher.SetNumberOfMatchPoints(7)
    matcher.ThresholdAtMeanIntensityOn()
    images = [sitk.GetImageFromArray(np.asarray(a, np.float32)) for a in (data, reference)]
    return sitk.GetArrayFromImage(matcher.Execute(*images))


def row_of(counts):
    """An image of one row whose histogram is the reference."""
    return np.repeat(np.arange(1001, dtype=np.float32), counts).reshape(1, 1, -1)


def brain_like(seed=0, shape=(24, 24, 24)):
    rng = np.random.default_rng(seed)
    data = np.zeros(shape, np.float32)
    inner = tuple(n - 8 for n in shape)
    tissue = rng.choice([150.0, 400.0, 700.0], inner) + rng.normal(0, 60, inner)
    data[4:-4, 4:-4, 4:-4] = np.clip(tissue, 1, None)
    return data


def small_reference():
    rng = np.random.default_rng(1)
    values = np.clip(
        np.concatenate([rng.normal(300, 60, 9000), rng.normal(600, 90, 9000)]), 1, 1000
    )
    return count_template(np.concatenate([np.zeros(50_000), np.rint(values)]))


@pytest.mark.parametrize("seed", range(5))
def test_the_published_matching_is_itks(seed):
    data, counts = brain_like(seed), small_reference()
    ours, _ = match_histogram(data, counts, method="published")
    theirs = itk_match(data, row_of(counts))
    assert_allclose(ours[data > 0], theirs[data > 0], atol=1e-2)


def test_the_published_matching_of_a_real_image_to_a_real_template(shared_data):
    path = "sub-0007/ses-V01/anat/sub-0007_ses-V01_T1w.nii.gz"
    image = nib.load(shared_data / "lifespan-bids" / path)
    data = np.asarray(image.dataobj, np.float32)[::2, ::2, ::2]
    template = nib.load(shared_data / "histogram-templates" / "Template-Month3-T1w.nii.gz")
    theirs = itk_match(data, np.asarray(template.dataobj))
    # one row with the template's histogram does as well as the template, to the last bit
    counts = load_histogram("month3", "T1w")
    assert_array_equal(itk_match(data, row_of(counts)), theirs)
    ours, _ = match_histogram(data, counts, method="published")
    assert_allclose(ours[data > 0], theirs[data > 0], atol=1e-2)


@pytest.mark.parametrize("method", ["brain", "published"])
def test_matching_can_be_undone(method):
    data = brain_like()
    matched, match = match_histogram(data, small_reference(), method=method)
    inside = data > 0
    assert_allclose(match.invert(matched)[inside], data[inside], rtol=1e-4, atol=0.05)
    again = HistogramMatch.of(json.loads(json.dumps(dataclasses.asdict(match))))
    assert again == match
    assert_array_equal(again.apply(data), match.apply(data))


@pytest.mark.parametrize("method", ["brain", "published"])
def test_matching_is_monotone_and_keeps_zero_outside(method):
    data = brain_like()
    matched, match = match_histogram(data, small_reference(), method=method)
    assert (matched[data == 0] == 0).all()
    values = np.linspace(0, data.max() * 1.5, 500).astype(np.float32)
    assert (np.diff(match.apply(values)) >= -1e-4).all()


def test_the_map_by_hand():
    match = HistogramMatch((0, 10, 20), (0, 100, 120))
    x = np.array([0, 5, 10, 15, 20, 30], np.float32)
    # beyond the last knot with the last slope, 2
    assert_allclose(match.apply(x), [0, 50, 100, 110, 120, 140])
    assert_allclose(match.invert(match.apply(x)), x)


def test_matching_inside_the_brain_ignores_the_background():
    data, counts = brain_like(), small_reference()
    plain, match = match_histogram(data, counts)
    padded, again = match_histogram(np.pad(data, 10), counts)
    assert again == match
    assert_array_equal(padded[10:-10, 10:-10, 10:-10], plain)
    # and the background of the reference is as little to it
    counts[0] *= 100
    assert match_histogram(data, counts)[1] == match
    # which is what the published one does depend on
    few, many = (match_histogram(np.pad(data, n), counts, method="published")[1] for n in (0, 10))
    assert few != many


def test_matching_inside_the_brain_meets_the_references_quantiles():
    data, counts = brain_like(), small_reference()
    matched, _ = match_histogram(data, counts)
    brain = np.repeat(np.arange(1, 1001), counts[1:])
    shares = np.arange(1, 8) / 8
    assert_allclose(np.quantile(matched[data > 0], shares), np.quantile(brain, shares), atol=2)
    assert np.quantile(matched[data > 0], 0.999) == pytest.approx(np.quantile(brain, 0.999), abs=3)


def test_one_bright_voxel_does_not_change_the_contrast():
    data, counts = brain_like(), small_reference()
    plain, _ = match_histogram(data, counts)
    data[12, 12, 12] = 50_000
    bright, _ = match_histogram(data, counts)
    other = np.ones(data.shape, bool)
    other[12, 12, 12] = False
    # it is one of the four voxels above the 99.9th percentile, which moves a little
    assert np.abs(bright - plain)[other].max() < 10


def test_the_contrast_does_not_depend_on_the_scanners_unit():
    data, counts = brain_like(), small_reference()
    small, _ = match_histogram(data, counts)
    large, _ = match_histogram(data * 37, counts)
    assert_allclose(large, small, atol=0.5)


def test_nothing_to_match():
    with pytest.raises(ImageError, match="expected brain voxels"):
        match_histogram(np.zeros((8, 8, 8), np.float32), small_reference())
    with pytest.raises(ValueError, match="'brain' or 'published', got 'other'"):
        match_histogram(brain_like(), small_reference(), method="other")


@pytest.mark.parametrize("method", ["brain", "published"])
def test_a_brain_of_one_value_does_no_harm(method):
    data = np.zeros((10, 10, 10), np.float32)
    data[3:7, 3:7, 3:7] = 5
    matched, _ = match_histogram(data, small_reference(), method=method)
    assert np.isfinite(matched).all()


def test_numbers_too_small_for_32_bits_are_refused():
    data = np.linspace(0, 1e-39, 1000, dtype=np.float32).reshape(10, 10, 10)
    with pytest.raises(ImageError, match=r"that 32 bits can hold.*scl_slope"):
        rescale_robust(data)
    scaled, _ = rescale_robust(np.linspace(0, 1e-30, 1000, dtype=np.float32).reshape(10, 10, 10))
    assert np.isfinite(scaled).all()


def test_a_head_is_matched_to_another_as_itk_does():
    generator = np.random.default_rng(0)
    head, template = (
        np.clip(generator.gamma(shape, scale, (24, 20, 22)) - 100, 0, None).astype(np.float32)
        for shape, scale in ((1.5, 150.0), (2.5, 1200.0))
    )
    matcher = sitk.HistogramMatchingImageFilter()
    matcher.SetNumberOfHistogramLevels(1024)
    matcher.SetNumberOfMatchPoints(7)
    matcher.ThresholdAtMeanIntensityOn()
    images = [sitk.GetImageFromArray(array) for array in (head, template)]
    expected = sitk.GetArrayFromImage(matcher.Execute(*images))
    result = match_whole(head, template)
    assert result.shape == head.shape
    assert np.abs(result - expected).max() < 0.01 * template.max()
    assert np.abs(result - expected).mean() < 0.001 * template.max()


def test_an_image_matched_to_itself_stays():
    head = np.linspace(0, 900, 5000, dtype=np.float32).reshape(50, 10, 10)
    assert np.allclose(match_whole(head, head), head, atol=0.01)
