# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.common.contrasts import MEAN
from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.intensity import load_histogram, match_histogram
from bmex_bids.imaging.levels import (
    ADULT,
    STEEPEST,
    bounded,
    find_levels,
    match_levels,
    reference_levels,
)

ADULT_MONTHS = 400.0


def brain(shares, means=(170.0, 355.0, 540.0), noise=30.0, size=60):
    """A brain of three tissues and its mask, (size, size, size), with the tissue of each voxel."""
    rng = np.random.default_rng(0)
    tissue = rng.choice(3, size=(size,) * 3, p=shares)
    data = np.asarray(means)[tissue] + rng.normal(0, noise, tissue.shape)
    return data.clip(1).astype(np.float32), np.ones(tissue.shape, bool), tissue


def matched_levels(data, mask, **choice):
    """The brain in template units, the map that made it, and how that was found."""
    match, levels = match_levels(data, mask, **choice)
    how = "quantiles" if levels is None else "levels"
    return np.where(mask, match.apply(data), 0), match, how


def test_three_tissues_are_found():
    data, _, _ = brain((0.15, 0.45, 0.4))
    found = find_levels(data)
    np.testing.assert_allclose(found.means, (170, 355, 540), rtol=0.03)
    np.testing.assert_allclose(found.shares, (0.15, 0.45, 0.4), atol=0.02)
    assert found.apart


def test_counts_weigh_like_voxels():
    data, _, _ = brain((0.15, 0.45, 0.4))
    whole = np.rint(data).astype(int)
    counts = np.bincount(whole.ravel())
    np.testing.assert_allclose(
        find_levels(np.arange(counts.size), counts).means, find_levels(whole).means, rtol=0.01
    )


def test_one_tissue_alone_is_not_told_apart():
    rng = np.random.default_rng(0)
    assert not find_levels(rng.normal(400, 40, 100_000)).apart


def test_an_empty_brain_is_an_error():
    with pytest.raises(ImageError, match="found none"):
        find_levels(np.zeros(10))


def test_the_reference_goes_from_the_published_one_to_the_adults():
    at_two, at_ten, grown = (reference_levels("month24", m) for m in (24, 120, ADULT_MONTHS))
    assert grown == pytest.approx(ADULT)
    assert reference_levels("month24", None) == at_two
    for young, child, adult in zip(at_two, at_ten, grown, strict=True):
        assert min(young, adult) <= child <= max(young, adult)
    assert reference_levels("month6", 6.0) is None  # grey and white matter are alike


@pytest.mark.parametrize("more", [0.0, 0.1, 0.3])
def test_more_fluid_stays_fluid(more):
    """Quantiles would make it grey matter: they match the shares of the tissues."""
    fluid = 0.15 + more
    rest = (1 - fluid) / 0.85
    data, mask, tissue = brain((fluid, 0.45 * rest, 0.4 * rest))
    matched, _, how = matched_levels(
        data, mask, age_group="month24", contrast="T1w", age_months=ADULT_MONTHS
    )
    assert how == "levels"
    for k, level in enumerate(ADULT):
        assert np.median(matched[tissue == k]) == pytest.approx(level, rel=0.05)
    quantiles, _ = match_histogram(data, load_histogram("month24", "T1w"), mask)
    if more == 0.3:
        assert np.median(quantiles[tissue == 0]) > 1.3 * reference_levels("month24", None)[0]


@pytest.mark.parametrize(
    ("group", "contrast", "months"), [("month6", "T1w", 6), ("month24", "T2w", 30)]
)
def test_where_tissues_cannot_be_told_quantiles_are_used_with_bounded_slopes(
    group, contrast, months
):
    data, mask, _ = brain((0.15, 0.45, 0.4))
    _, match, how = matched_levels(
        data, mask, age_group=group, contrast=contrast, age_months=months
    )
    assert how == "quantiles"
    slopes = np.diff(match.reference) / np.diff(match.source)
    overall = match.reference[-1] / match.source[-1]
    assert slopes.min() >= overall / STEEPEST * 0.999
    assert slopes.max() <= overall * STEEPEST * 1.001


def test_matching_is_undone_exactly():
    data, mask, _ = brain((0.15, 0.45, 0.4))
    matched, match, _ = matched_levels(data, mask, age_group="month24", contrast="T1w")
    np.testing.assert_allclose(match.invert(matched), data, rtol=1e-4, atol=1e-2)


def test_a_map_without_a_range_is_an_error():
    with pytest.raises(ImageError, match="one level"):
        bounded((0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("contrast", ["FLAIR", "PDw"])
def test_a_contrast_without_a_reference_is_scaled_to_a_mean(contrast):
    data, mask, _ = brain((0.1, 0.5, 0.4), means=(60.0, 210.0, 170.0))
    mask[:20] = False
    match, levels = match_levels(data, mask, age_group="month24", contrast=contrast)
    assert levels is None
    matched = match.apply(data)
    assert matched[mask].mean() == pytest.approx(MEAN)
    np.testing.assert_allclose(match.invert(matched), data, rtol=1e-5)
