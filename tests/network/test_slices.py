# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from bmex_bids.common.contrasts import MEAN
from bmex_bids.exceptions import MemoryLimitError
from bmex_bids.network.inference import predict
from bmex_bids.network.inference.predict import classify, enhance
from bmex_bids.network.inference.slices import FEW_PLANES, PLANES, run_slices
from bmex_bids.network.models.slices import (
    CORRECTION_UNIT,
    DETAIL_UNIT,
    MEAN_UNIT,
    NEIGHBOURS,
    OUTPUTS,
    SliceUNet,
    features,
)
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.training.growth import start

CPU = torch.device("cpu")
WIDTHS = (8, 16, 16)


def brain(seed=0, shape=(20, 25, 18)):
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    mask[3:-3, 4:-2, 2:-4] = True
    data = np.where(mask, rng.uniform(100, 900, shape), 0).astype(np.float32)
    return data, mask


def random_network():
    torch.manual_seed(0)
    network = SliceUNet(WIDTHS)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    return network.eval()


@pytest.fixture
def record(make_record):
    return make_record(random_network(), "bmex-slices", name="slices-test")


class Echo(torch.nn.Module):
    """Gives back, as its correction, the middle slice that the features hold."""

    def forward(self, x):
        middle = NEIGHBOURS // 2
        value = x[:, middle] * MEAN_UNIT + MEAN + x[:, NEIGHBOURS + middle] * DETAIL_UNIT
        result = x.new_zeros((len(x), OUTPUTS, *x.shape[2:]))
        result[:, 0] = value / CORRECTION_UNIT
        return result


@pytest.mark.parametrize("plane", PLANES)
def test_what_is_found_in_a_slice_comes_back_to_its_place(plane):
    data, mask = brain()
    found = run_slices(Echo(), data, mask, device=CPU, planes=(plane,))
    np.testing.assert_allclose(found.correction[mask], data[mask], rtol=1e-4)
    assert not found.correction[~mask].any()


def test_a_few_hot_voxels_do_not_hide_the_rest():
    """300 in a brain cost an adult half of its white matter: the slices are normalised as a whole."""
    data, mask = brain()
    hot = data.copy()
    hot[10, 12, 9:12] = 50 * data.max()
    network = random_network()
    one, other = (run_slices(network, each, mask, device=CPU).correction for each in (data, hot))
    assert np.abs(other - one)[:6].max() < 0.5 * np.abs(one)[:6].max()
    seen = run_slices(Echo(), hot, mask, device=CPU).correction
    assert seen[hot > 1000] == pytest.approx(1.5 * np.percentile(hot[mask], 99.5), rel=1e-4)
    np.testing.assert_allclose(seen[hot < 1000], hot[hot < 1000], rtol=1e-3, atol=1e-2)


def test_all_planes_together_and_mirrored_ones():
    data, mask = brain()
    found = run_slices(Echo(), data, mask, device=CPU)
    np.testing.assert_allclose(found.correction, data, rtol=1e-4, atol=1e-3)
    # six like results: the spread between them adds nothing to exp(0) tenths of the unit
    scale = MEAN / data[mask].mean()
    np.testing.assert_allclose(found.deviation[mask], 10 / scale, rtol=0.02)


def test_each_axis_is_once_across_the_slices_of_the_few_planes():
    assert sorted(plane[2] for plane in FEW_PLANES) == [0, 1, 2]
    assert len(set(PLANES)) == 6


def test_brightness_and_texture_enter_apart():
    slices, mask = torch.full((1, NEIGHBOURS, 32, 32), MEAN + MEAN_UNIT), torch.ones(1, 5, 32, 32)
    found = features(slices, mask)
    torch.testing.assert_close(found[:, :NEIGHBOURS], torch.ones_like(slices))
    assert not found[:, NEIGHBOURS:].any()
    # beyond the mask nothing is mixed in: the mean is that of the voxels inside
    mask[..., :16] = 0
    found = features(slices * mask, mask)
    torch.testing.assert_close(found[:, :NEIGHBOURS, :, 16:], torch.ones(1, 5, 32, 16))
    assert not found[:, :NEIGHBOURS, :, :16].any()


def test_a_network_that_has_learnt_nothing_changes_nothing():
    data, mask = brain()
    found = run_slices(SliceUNet(WIDTHS).eval(), data, mask, device=CPU)
    assert not found.correction.any()


def test_the_unit_of_the_image_does_not_matter():
    data, mask = brain()
    network = random_network()
    one = run_slices(network, data, mask, device=CPU)
    ten = run_slices(network, data * 10, mask, device=CPU)
    assert one.correction.any()
    np.testing.assert_allclose(ten.correction, one.correction * 10, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(ten.deviation, one.deviation * 10, rtol=1e-3, atol=1e-2)


def test_a_file_gives_its_network_back(record):
    loaded = load_network(record.path, record.variant)
    assert isinstance(loaded, SliceUNet)
    for name, tensor in random_network().state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)


def test_the_number_of_classes_belongs_to_the_weights(make_record):
    """A network that grew by a class has not learnt it, and finds the same tissues."""
    three, four = random_network(), SliceUNet(WIDTHS, classes=4)
    first = make_record(three, "bmex-slices", name="three")
    assert "head.weight" not in start(four, first.path)
    second = make_record(four, "bmex-slices", name="four")
    assert load_network(second.path, second.variant).classes == 4
    data, mask = brain()
    found, grown = (
        enhance(data, mask, record, device="cpu", threads=1, precision="float32")
        for record in (first, second)
    )
    assert (len(found.probabilities), len(grown.probabilities)) == (4, 5)
    np.testing.assert_allclose(grown.image, found.image, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(grown.labels, found.labels)
    assert 0 < grown.probabilities[4][mask].max() < 0.05
    with torch.no_grad():
        four.head.bias[-4:] = 50.0
    third = make_record(four, "bmex-slices", name="lesions")
    found = enhance(data, mask, third, device="cpu", threads=1, precision="float32")
    assert (found.labels[mask] == 4).all()
    assert not found.labels[~mask].any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_enhance_adds_the_correction_and_finds_tissues(record, precision):
    data, mask = brain()
    result = enhance(data, mask, record, threads=1, precision=precision)
    box = (slice(3, -3), slice(4, -2), slice(2, -4))  # no air around the brain goes in
    found = run_slices(random_network(), data[box], mask[box], device=CPU)
    direct = found.correction
    near = {"float32": 1e-3, "bfloat16": 0.05}[precision] * np.abs(direct).max()
    np.testing.assert_allclose(result.image[box], (data[box] + direct).clip(0), atol=near)
    np.testing.assert_allclose(result.deviation[box], found.deviation, rtol=0.1)
    assert not result.deviation[~mask].any()
    assert result.precision == precision
    assert not result.image[~mask].any()
    assert set(np.unique(result.labels[mask])) <= {1, 2, 3}
    np.testing.assert_allclose(result.probabilities[:, mask].sum(axis=0), 1, rtol=1e-4)
    labels = classify(data, mask, record, threads=1, precision=precision).labels
    np.testing.assert_array_equal(labels, result.classified.labels)


def test_tissues_alone_take_half_of_the_directions(record, monkeypatch):
    """And the same half before and after the enhancement, so that the gate compares like with like."""
    data, mask = brain()
    used = []

    def watched(*args, planes, **how):
        used.append(planes)
        return run_slices(*args, planes=planes, **how)

    monkeypatch.setattr(predict, "run_slices", watched)
    how = {"device": "cpu", "threads": 1, "precision": "float32"}
    both = enhance(data, mask, record, **how)
    alone = classify(data, mask, record, **how)
    few = enhance(data, mask, record, mirroring=False, **how)
    assert used == [PLANES, FEW_PLANES, FEW_PLANES]
    np.testing.assert_array_equal(alone.labels, both.classified.labels)
    np.testing.assert_array_equal(alone.shares, both.classified.shares)
    np.testing.assert_array_equal(alone.labels, few.labels)
    assert (both.labels != both.classified.labels).any()


def out_of_memory_beyond(monkeypatch, limit):
    """run_slices without memory for more slices than ``limit`` has for a device; what was tried."""
    tried = []

    def short(network, data, mask, *, device, batch, **how):
        tried.append((device.type, batch))
        if batch > limit.get(device.type, 0):
            raise torch.OutOfMemoryError("out of memory")
        return run_slices(network, data, mask, device=CPU, batch=batch, **how)

    monkeypatch.setattr(predict, "run_slices", short)
    return tried


def test_short_memory_is_met_with_fewer_slices_at_once(record, monkeypatch, caplog):
    data, mask = brain()
    whole = enhance(data, mask, record, device="cpu", threads=1, precision="float32")
    tried = out_of_memory_beyond(monkeypatch, {"cpu": 2})
    result = enhance(data, mask, record, device="cpu", threads=1, precision="float32")
    assert tried == [("cpu", 8), ("cpu", 4), ("cpu", 2)]
    np.testing.assert_allclose(result.image, whole.image, rtol=1e-5)
    assert len(result.passes) == 1
    assert sum("fewer slices at once" in r.message for r in caplog.records) == 2


def test_a_gpu_without_memory_for_one_slice_gives_way_to_the_processor(
    record, monkeypatch, caplog
):
    """With a GPU that is not there."""
    data, mask = brain()
    expected = enhance(data, mask, record, device="cpu", threads=1, precision="float32")
    tried = out_of_memory_beyond(monkeypatch, {"cpu": 8})
    network = predict._network(record, CPU)
    monkeypatch.setattr(predict, "_network", lambda *_: network)
    monkeypatch.setattr(predict, "resolve_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    result = enhance(data, mask, record, threads=1, precision="float32")
    assert tried == [*[("cuda", n) for n in (8, 4, 2, 1)], ("cpu", 8)]
    assert result.device == "cpu"
    np.testing.assert_array_equal(result.image, expected.image)
    assert any("continuing without it" in r.message for r in caplog.records)


def test_no_memory_for_one_slice_is_told(record, monkeypatch):
    out_of_memory_beyond(monkeypatch, {})
    with pytest.raises(MemoryLimitError, match=r"one slice.*more memory, or fewer processes"):
        enhance(*brain(), record, device="cpu", threads=1)


def test_slices_that_go_through_together_do_not_change_each_other():
    data, mask = brain()
    one, eight = (run_slices(random_network(), data, mask, device=CPU, batch=n) for n in (1, 8))
    np.testing.assert_allclose(one.correction, eight.correction, rtol=1e-4, atol=1e-3)
