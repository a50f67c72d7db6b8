# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity are an error, whichever way a network is run."""

import numpy as np
import pytest
import torch

from bmex_bids.exceptions import ImageError
from bmex_bids.network.inference import predict
from bmex_bids.network.inference.options import GEOMETRIES, PRECISIONS
from bmex_bids.network.inference.predict import classify, enhance
from bmex_bids.network.models.bmex import BMEX
from bmex_bids.network.models.compact import CompactBMEX
from bmex_bids.network.models.slices import SliceUNet
from bmex_bids.network.variants import VARIANTS

#: variant → a small network of it, and the first of its layers
NETWORKS = {
    "bmex-compact": (lambda: CompactBMEX(4, 4), "tissue.stem"),
    "bmex-pytorch": (lambda: BMEX(4), "tissue.conv1"),
    "bmex-caffe": (lambda: BMEX(4, caffe=True), "tissue.conv1"),
    "bmex-slices": (lambda: SliceUNet((8, 8, 8, 8)), "stem"),
}
STRIPPERS = {"bmex-strip", "lifespanstrip"}
every_way = [
    pytest.mark.parametrize("precision", PRECISIONS),
    pytest.mark.parametrize("geometry", GEOMETRIES),
    pytest.mark.parametrize("variant", NETWORKS),
]


def in_every_way(test):
    for mark in every_way:
        test = mark(test)
    return test


@pytest.fixture
def brain():
    mask = np.zeros((12, 10, 11), bool)
    mask[2:-2, 2:-2, 2:-2] = True
    data = np.random.default_rng(0).uniform(200, 800, mask.shape).astype(np.float32)
    return data, mask


def network_of(variant):
    make, first = NETWORKS[variant]
    torch.manual_seed(0)
    network = make().eval()
    for name, parameter in network.named_parameters():
        if "head.weight" in name or "conv2.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network, network.get_submodule(first)


def test_every_variant_that_enhances_is_here():
    assert set(NETWORKS) == set(VARIANTS) - STRIPPERS - {
        "bmex-denoise",
        "bmex-score",
        "bmex-segment",
        "bmex-super",
        "bmex-within",
        "lfmri",
    }


@in_every_way
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_is_an_error(
    brain, make_record, variant, precision, geometry, value
):
    data, mask = brain
    record = make_record(network_of(variant)[0], variant)
    data[5, 5, 5] = value
    how = {"device": "cpu", "threads": 1, "precision": precision, "geometry": geometry}
    for work in (enhance, classify):
        with pytest.raises(ImageError, match=r"expected finite intensities.* in 1 voxels"):
            work(data, mask, record, **how)


@pytest.mark.parametrize("variant", NETWORKS)
def test_outside_the_mask_a_value_that_is_not_finite_does_not_matter(
    brain, make_record, monkeypatch, variant
):
    data, mask = brain
    network, _ = network_of(variant)
    record = make_record(network, variant)
    monkeypatch.setattr(predict, "_network", lambda *_: network)
    data[0, 0, 0] = np.nan
    assert np.isfinite(enhance(data, mask, record, threads=1, precision="float32").image).all()


@in_every_way
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_a_layer_makes_that_is_not_finite_is_an_error(
    brain, make_record, monkeypatch, variant, precision, geometry, value
):
    """No ReLU, normalisation, maximum or average on the way may turn it into a number."""
    network, first = network_of(variant)
    record = make_record(network, variant)
    with torch.no_grad():
        first.bias.fill_(value)
    monkeypatch.setattr(predict, "_network", lambda *_: network)
    how = {"device": "cpu", "threads": 1, "precision": precision, "geometry": geometry}
    with pytest.raises(ImageError, match="not finite"):
        enhance(*brain, record, mirroring=False, **how)
