# SPDX-License-Identifier: Apache-2.0
"""Caffe models: files encoded by hand, read, and compared with the release's table."""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from literal_network import encode_caffemodel, literal_caffe, random_caffe

from bmex_bids.exceptions import WeightsError
from bmex_bids.network.models.adunet import steps_of
from bmex_bids.network.weights.caffe import caffe_state, read_layers
from bmex_bids.network.weights.checkpoints import convert, load_network, read_state


@pytest.fixture(scope="module")
def narrow():
    """A model of width 4: the connection has its 64 channels, all else little."""
    return random_caffe(4)


@pytest.fixture
def save(tmp_path):
    def write(blobs, kinds, name="some.caffemodel", **options):
        path = tmp_path / name
        path.write_bytes(encode_caffemodel(blobs, kinds, **options))
        return path

    return write


def difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


def test_the_model_of_the_release_has_its_number_of_layers():
    _, kinds = random_caffe(4)
    assert Counter(kinds.values()) == {
        "Convolution": 67, "BatchNorm": 67, "Scale": 67, "Deconvolution": 6,
    }  # fmt: skip


def test_a_file_of_the_published_size_is_the_table_evaluated(save):
    blobs, kinds = random_caffe(32)
    network = load_network(save(blobs, kinds), "bmex-caffe")
    assert sum(p.numel() for p in network.parameters()) == sum(
        b.numel() for n, bs in blobs.items() for b in bs if kinds[n] != "BatchNorm"
    )
    x = 300 * torch.rand((1, 1, 24, 16, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores, image = network(x)
        expected_scores, expected_image = literal_caffe(blobs, x)
    assert expected_scores.max() > 0.1  # not all rectified away
    assert expected_image.max() > 0.1
    assert difference(scores, expected_scores) <= 1e-4
    assert difference(image, expected_image) <= 1e-4


def test_each_way_in_which_caffe_differs_matters(save, narrow):
    blobs, kinds = narrow
    network = load_network(save(blobs, kinds), "bmex-caffe").double()
    x = torch.rand((1, 1, 16, 8, 16), generator=torch.Generator().manual_seed(2)).double()
    doubled = {name: [b.double() for b in parts] for name, parts in blobs.items()}
    with torch.no_grad():
        expected = literal_caffe(doubled, x)[1]
        assert difference(network(x)[1], expected) <= 1e-6
        for module, name, value in (
            (network.tissue, "steps", steps_of()),
            (network.tissue, "pool", torch.nn.MaxPool3d(3, stride=2, padding=1)),
            (network, "caffe", False),
        ):
            kept = getattr(module, name)
            setattr(module, name, value)
            assert difference(network(x)[1], expected) > 1e-3, name
            setattr(module, name, kept)


def test_pooling_halves_as_in_the_release(save, narrow):
    pool = load_network(save(*narrow), "bmex-caffe").tissue.pool
    sizes = [40]
    for _ in range(3):
        x = torch.zeros(1, 1, 1, 1, sizes[-1]).expand(1, 1, 3, 3, -1)
        sizes.append(pool(x).shape[-1])
    assert sizes == [40, 20, 10, 5]


def test_the_factor_of_batch_norm_is_divided_out(save, narrow):
    blobs, kinds = narrow
    blobs = dict(blobs)
    mean, var = torch.arange(4.0), torch.ones(4)
    blobs["Labelbn3"] = [mean * 999, var * 999, torch.tensor([999.0])]
    blobs["bn3"] = [mean, var, torch.tensor([0.0])]  # nothing was summed
    state = caffe_state(save(blobs, kinds))
    assert torch.allclose(state["tissue.bn5.running_mean"], mean)
    assert torch.allclose(state["tissue.bn5.running_var"], var)
    assert not state["recon.bn5.running_mean"].any()


def test_the_second_network_has_no_stem_and_gets_both_features(save, narrow):
    state = caffe_state(save(*narrow))
    assert not any(name.startswith("recon.conv1.") for name in state)
    assert torch.equal(state["conv2_con.weight"], narrow[0]["conv1a"][0])
    assert torch.equal(state["conv1_con.weight"], narrow[0]["Labelconv6_4-Convolution1"][0])
    assert state["recon.conv2.weight"].shape == (4, 64, 3, 3, 3)


def test_double_precision_and_the_shapes_of_an_old_caffe_are_read(save):
    blobs = {"one": [torch.arange(6.0).reshape(2, 3), torch.tensor([1.5])]}
    kinds = {"one": "InnerProduct"}
    layers = read_layers(save(blobs, kinds, doubles=True))
    assert layers["one"][0].tolist() == [[0, 1, 2], [3, 4, 5]]
    layers = read_layers(save(blobs, kinds, shapes="old"))
    assert layers["one"][0].shape == (1, 1, 2, 3)
    assert layers["one"][1].ravel().tolist() == [1.5]


def test_missing_and_surplus_layers_are_named(save, narrow):
    blobs, kinds = dict(narrow[0]), dict(narrow[1])
    del blobs["conv4-Scale2"]
    blobs["conv9"], kinds["conv9"] = [torch.zeros(1)], "Convolution"
    with pytest.raises(WeightsError, match=r"missing conv4-Scale2; surplus conv9"):
        load_network(save(blobs, kinds), "bmex-caffe")


def test_a_misshapen_layer_and_a_lacking_blob_are_named(save, narrow):
    blobs = dict(narrow[0])
    blobs["conv1c"] = [torch.zeros(4, 7, 3, 3, 1), torch.zeros(4)]
    with pytest.raises(WeightsError, match=r"misshapen recon\.conv5\.weight \(4, 7, 3, 3, 1\)"):
        load_network(save(blobs, narrow[1]), "bmex-caffe")
    blobs["conv1c"] = [torch.zeros(4, 7, 3, 3, 3)]
    with pytest.raises(WeightsError, match="2 blobs in the layer 'conv1c'"):
        load_network(save(blobs, narrow[1]), "bmex-caffe")


def test_another_network_is_refused(save):
    with pytest.raises(WeightsError, match=r"missing BatchNorm1.*surplus fc6"):
        load_network(save({"fc6": [torch.zeros(2)]}, {"fc6": "InnerProduct"}), "bmex-caffe")


def test_half_a_file_is_refused(save, narrow):
    path = save(*narrow)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read as a Caffe model"):
        read_state(path)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=64))
def test_bytes_that_are_no_model_are_refused(tmp_path, content):
    path = tmp_path / "some.caffemodel"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        load_network(path, "bmex-caffe")


def test_a_shape_that_its_numbers_do_not_fill_is_refused(tmp_path):
    # layer { name: "a" blobs { shape { dim: 2^62 dim: 2^62 } data: [1.0] } }
    huge = b"\xff" * 8 + b"\x3f"
    shape = b"\x0a" + bytes([2 * len(huge)]) + 2 * huge
    blob = b"\x3a" + bytes([len(shape)]) + shape + b"\x2a\x04\x00\x00\x80\x3f"
    layer = b"\x0a\x01a" + b"\x3a" + bytes([len(blob)]) + blob
    path = tmp_path / "some.caffemodel"
    path.write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    with pytest.raises(WeightsError, match="1 numbers in a blob of shape"):
        read_layers(path)


def test_converted_to_safetensors_it_is_the_same_network(save, narrow, tmp_path):
    path, target = save(*narrow), tmp_path / "some.safetensors"
    assert convert(path, target) == len(caffe_state(path))
    first, second = (load_network(p, "bmex-caffe").state_dict() for p in (path, target))
    assert all(torch.equal(first[name], second[name]) for name in first)
