# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.training.labels import contrast_is_sure, tissue_labels


@pytest.mark.parametrize("noise", [5.0, 40.0])
def test_the_tissues_of_a_phantom_are_found(head_phantom, noise):
    phantom = head_phantom(spacing=4.0, noise=noise)
    image = np.asarray(phantom.brain.dataobj)
    labels = tissue_labels(image, phantom.mask, "T1w")
    assert labels.dtype == np.uint8
    assert not labels[~phantom.mask].any()
    assert (labels == phantom.tissues)[phantom.mask].mean() > 0.95


def test_in_t2w_the_order_is_turned_round(head_phantom):
    phantom = head_phantom(spacing=4.0)
    image = np.asarray(phantom.brain.dataobj)
    t1 = tissue_labels(image, phantom.mask, "T1w")
    t2 = tissue_labels(image, phantom.mask, "T2w")
    np.testing.assert_array_equal(t2[phantom.mask], 4 - t1[phantom.mask])


def test_the_unit_does_not_matter(head_phantom):
    phantom = head_phantom(spacing=6.0, noise=20.0)
    image = np.asarray(phantom.brain.dataobj)
    a = tissue_labels(image, phantom.mask, "T1w")
    b = tissue_labels(image * np.float32(7), phantom.mask, "T1w")
    assert (a == b).mean() > 0.999


def test_labels_are_made_where_contrast_is_sure():
    assert contrast_is_sure("month24", "T1w")
    assert not contrast_is_sure("month6", "T1w")  # grey and white matter look alike
    assert not contrast_is_sure("month24", "T2w")
