# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.exceptions import DeviceError, ImageError
from bmex_bids.network.bmex import BMEX
from bmex_bids.network.compact import CompactBMEX
from bmex_bids.network.predict import brain_box, classify, enhance, resolve_device


@pytest.fixture
def brain():
    """An image that is bright everywhere, no multiple of 8, and the mask of an ellipsoid."""
    rng = np.random.default_rng(0)
    shape = (37, 30, 26)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    data = rng.uniform(200, 800, shape).astype(np.float32)
    return data, (x / 0.5) ** 2 + (y / 0.55) ** 2 + (z / 0.4) ** 2 < 1


def moved(network, seed=0):
    """The network as if it had been trained: its heads are not zero any more."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "head.weight" in name or "conv2.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_an_untrained_network_leaves_the_brain_as_it_is(brain, make_record):
    data, mask = brain
    result = enhance(
        data, mask, make_record(CompactBMEX(4, 4), "bmex-compact"), device="cpu", threads=1
    )
    assert_allclose(result.image[mask], data[mask], rtol=1e-5)
    assert not result.image[~mask].any()
    assert result.image.dtype == np.float32
    assert (result.device, result.precision) == ("cpu", "float32")


def test_labels_and_probabilities_keep_to_the_mask(brain, make_record):
    data, mask = brain
    record = make_record(moved(CompactBMEX(4, 4)), "bmex-compact")
    result = enhance(data, mask, record, device="cpu", threads=1)
    assert result.labels.dtype == np.uint8
    assert not result.labels[~mask].any()
    assert set(np.unique(result.labels[mask])) <= {1, 2, 3}
    assert result.probabilities.shape == (4, *data.shape)
    assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
    assert_array_equal(result.probabilities[0], ~mask)
    assert_array_equal(result.labels[mask], result.probabilities[:, mask].argmax(axis=0))


def test_what_lies_outside_the_mask_has_no_influence(brain, make_record):
    data, mask = brain
    record = make_record(moved(CompactBMEX(4, 4)), "bmex-compact")
    a = enhance(data, mask, record, device="cpu", threads=1)
    b = enhance(
        np.where(mask, data, 1e4).astype(np.float32), mask, record, device="cpu", threads=1
    )
    assert_array_equal(a.image, b.image)
    assert_array_equal(a.labels, b.labels)


class Pointwise(torch.nn.Module):
    """A network without context: tiles cannot make a difference."""

    def forward(self, x):
        return torch.cat([x * 0, x - 600, x - 300, 500 - x], 1) / 100, x * 0.5 + 7


def test_tiles_are_put_together_as_they_were_cut(brain, make_record, monkeypatch):
    data, mask = brain
    monkeypatch.setattr("bmex_bids.network.predict._network", lambda *_: Pointwise())
    record = make_record(CompactBMEX(4, 0), "bmex-compact")
    for tile, overlap in ((96, 24), (16, 8), (16, 0), (24, 16)):
        result = enhance(data, mask, record, device="cpu", threads=1, tile=tile, overlap=overlap)
        assert_allclose(result.image[mask], data[mask] * 0.5 + 7, rtol=1e-5)
        expected = np.stack([data - 600, data - 300, 500 - data]).argmax(axis=0) + 1
        assert (result.labels[mask] == expected[mask]).mean() > 0.999  # ties aside


def test_tiles_agree_with_one_big_tile(brain, make_record):
    data, mask = brain
    record = make_record(moved(CompactBMEX(4, 4)), "bmex-compact")
    whole = enhance(data, mask, record, device="cpu", threads=1)
    tiled = enhance(data, mask, record, device="cpu", threads=1, tile=32, overlap=24)
    change = np.abs(whole.image - data)[mask].mean()
    assert change > 1  # the network does something
    assert np.abs(tiled.image - whole.image)[mask].mean() < 0.05 * change
    assert (tiled.labels == whole.labels)[mask].mean() > 0.95


def test_the_published_network_runs_in_tiles_too(brain, make_record):
    data, mask = brain
    record = make_record(_published(), "bmex-pytorch")
    result = enhance(data, mask, record, device="cpu", threads=1, tile=16, overlap=8)
    assert np.isfinite(result.image).all()
    assert (result.image >= 0).all()
    assert set(np.unique(result.labels[mask])) <= {1, 2, 3}


def _published():
    """The published network with random weights, named as its file names them."""
    torch.manual_seed(0)
    network = BMEX(4)
    state = {}
    for name, tensor in network.state_dict().items():
        module, _, rest = name.partition(".")
        layer, _, kind = rest.partition(".")
        state[{"tissue": rest, "recon": f"{layer}_recon.{kind}"}.get(module, name)] = tensor
    return _State(state)


class _State:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


def test_the_axes_are_fed_as_z_x_y_and_come_back(brain, make_record, monkeypatch):
    data, mask = brain
    seen = []

    class Ramp(torch.nn.Module):
        """Adds 1 a voxel along the first axis that it is fed."""

        def forward(self, x):
            seen.append(tuple(x.shape))
            ramp = torch.arange(x.shape[2]).float()[:, None, None].expand_as(x)
            return x.new_zeros(1, 4, *x.shape[2:]), ramp

    monkeypatch.setattr("bmex_bids.network.predict._network", lambda *_: Ramp())
    record = make_record(CompactBMEX(4, 0), "bmex-compact")
    image = enhance(data, mask, record, device="cpu", threads=1).image
    box = brain_box(mask)
    z = np.arange(data.shape[2]) - box[2].start
    assert_allclose(image[mask], np.broadcast_to(z, data.shape)[mask])
    assert all(n % 8 == 0 for n in seen[0][2:])


def test_the_box_has_a_margin_and_stays_inside():
    mask = np.zeros((10, 10, 10), bool)
    mask[4, 5:7, 1] = True
    assert brain_box(mask, 2) == (slice(2, 7), slice(3, 9), slice(0, 4))
    with pytest.raises(ImageError, match="empty"):
        brain_box(mask & False)


def test_a_mask_of_another_shape_is_refused(brain, make_record):
    data, mask = brain
    record = make_record(CompactBMEX(4, 0), "bmex-compact")
    with pytest.raises(ImageError, match=r"\(37, 30, 26\) and \(37, 30, 25\)"):
        enhance(data, mask[..., 1:], record, device="cpu")


def test_devices(monkeypatch):
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="found 0 on this machine"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1").index == 1
    with pytest.raises(DeviceError, match="'cuda:2', found 2"):
        resolve_device("cuda:2")
    for name in ("gpu", "", "mps", "cuda:x"):
        with pytest.raises(DeviceError, match="auto, cpu, cuda"):
            resolve_device(name)


@pytest.mark.parametrize("tile", [96, 16])
def test_tissues_alone_are_those_of_the_whole_network(brain, make_record, tile):
    data, mask = brain
    record = make_record(moved(CompactBMEX(4, 4)), "bmex-compact")
    options = {"device": "cpu", "threads": 1, "tile": tile, "overlap": 8}
    expected = enhance(data, mask, record, **options).labels
    assert len(np.unique(expected)) == 4
    labels = classify(data, mask, record, **options)
    assert labels.dtype == np.uint8
    assert_array_equal(labels, expected)


def test_tissues_alone_of_the_published_network(brain, make_record):
    data, mask = brain
    record = make_record(_published(), "bmex-pytorch")
    options = {"device": "cpu", "threads": 1, "tile": 16, "overlap": 8}
    expected = enhance(data, mask, record, **options).labels
    assert len(np.unique(expected)) > 2
    assert_array_equal(classify(data, mask, record, **options), expected)


def test_tissues_alone_leave_the_second_network_at_rest(brain, make_record, monkeypatch):
    data, mask = brain
    record = make_record(moved(CompactBMEX(4, 4)), "bmex-compact")

    def never(*_):
        raise AssertionError("the image was made, though only tissues were asked for")

    monkeypatch.setattr(CompactBMEX, "forward", never)
    assert classify(data, mask, record, device="cpu", threads=1).any()


def test_tissues_of_an_image_that_does_not_fit_its_mask(brain, make_record):
    data, mask = brain
    record = make_record(CompactBMEX(4, 4), "bmex-compact")
    with pytest.raises(ImageError, match="one three-dimensional shape"):
        classify(data[1:], mask, record)
