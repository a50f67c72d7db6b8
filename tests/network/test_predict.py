# SPDX-License-Identifier: Apache-2.0
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.exceptions import DeviceError, ImageError, MemoryLimitError
from bmex_bids.network.devices import resolve_device
from bmex_bids.network.inference import passes, predict, volumes
from bmex_bids.network.inference.predict import classify, enhance
from bmex_bids.network.inference.volumes import brain_box
from bmex_bids.network.models.bmex import BMEX
from bmex_bids.network.models.compact import CompactBMEX, Members
from bmex_bids.network.variants import facts
from bmex_bids.network.weights.checkpoints import load_network


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_untrained_network_leaves_the_brain_as_it_is(brain, make_record, precision):
    data, mask = brain
    result = enhance(
        data,
        mask,
        make_record(CompactBMEX(4, 4), "bmex-compact"),
        device="cpu",
        threads=1,
        precision=precision,
    )
    assert_allclose(result.image[mask], data[mask], rtol=1e-5)
    assert not result.image[~mask].any()
    assert result.image.dtype == np.float32
    assert (result.device, result.precision) == ("cpu", precision)


def test_bfloat16_changes_little_of_what_the_network_changes(brain, make_record):
    data, mask = brain
    record = small(make_record)
    how = {"device": "cpu", "threads": 1, "mirroring": False}
    whole, half = (
        enhance(data, mask, record, precision=name, **how).image[mask]
        for name in ("float32", "bfloat16")
    )
    error = np.sqrt(np.square(half - whole).mean())
    assert 0 < error < 0.05 * np.sqrt(np.square(whole - data[mask]).mean())


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
    monkeypatch.setattr("bmex_bids.network.inference.predict._network", lambda *_: Pointwise())
    record = make_record(CompactBMEX(4, 0), "bmex-compact")
    for tile, overlap in ((96, 24), (16, 8), (16, 0), (24, 16)):
        result = enhance(data, mask, record, device="cpu", threads=1, tile=tile, overlap=overlap)
        assert_allclose(result.image[mask], data[mask] * 0.5 + 7, rtol=1e-5)
        expected = np.stack([data - 600, data - 300, 500 - data]).argmax(axis=0) + 1
        assert (result.labels[mask] == expected[mask]).mean() > 0.999  # ties aside


class Shifting(torch.nn.Module):
    """A network that answers with the voxel before, along each axis in turn: it knows left from right."""

    def forward(self, x):
        before = [torch.roll(x, 1, dims=axis) for axis in (2, 3, 4)]  # z, x, y
        return torch.cat([x * 0, *before], 1), before[1] + 10 * before[2]


def test_mirror_images_are_averaged_voxel_by_voxel(brain, make_record, monkeypatch):
    data, mask = brain
    monkeypatch.setattr("bmex_bids.network.inference.predict._network", lambda *_: Shifting())
    record = make_record(CompactBMEX(4, 0), "bmex-compact")
    assert record.mirrored == ("x", "y")
    fed = np.where(mask, data, 0)
    low = [np.roll(fed, 1, axis) for axis in (0, 1)]
    high = [np.roll(fed, -1, axis) for axis in (0, 1)]

    once = enhance(data, mask, record, device="cpu", threads=1, mirroring=False)
    assert once.mirrored == ()
    assert_allclose(once.image[mask], (low[0] + 10 * low[1])[mask], rtol=1e-5)
    mean = enhance(data, mask, record, device="cpu", threads=1)
    assert mean.mirrored == ("x", "y")
    expected = (low[0] + high[0]) / 2 + 10 * (low[1] + high[1]) / 2
    assert_allclose(mean.image[mask], expected[mask], rtol=1e-5)
    scores = np.stack([np.roll(fed, 1, 2), (low[0] + high[0]) / 2, (low[1] + high[1]) / 2])
    assert (mean.labels[mask] == scores.argmax(axis=0)[mask] + 1).mean() > 0.999  # ties aside


def test_networks_of_one_file_take_turns_with_the_mirror_images(brain, make_record):
    data, mask = (part[3:35, 3:27] for part in brain)  # multiples of 8: no padding on one side
    one, other = (moved(CompactBMEX(4, 4), seed) for seed in (0, 1))
    records = [
        make_record(network, "bmex-compact", name=name)
        for network, name in ((one, "one"), (other, "other"), (Members([one, other]), "both"))
    ]
    results = [enhance(data, mask, record, device="cpu", threads=1) for record in records]
    images = [result.image for result in results]
    assert [result.networks for result in results] == [1, 1, 2]
    once = [
        enhance(data, mask, record, device="cpu", threads=1, mirroring=False).image
        for record in records
    ]
    assert_array_equal(once[0], once[2])
    flips = [(), (0,), (1,), (0, 1)]  # x, y
    passes = [
        np.flip(
            enhance(
                np.flip(data, flip), np.flip(mask, flip), records[len(flip) % 2],
                device="cpu", threads=1, mirroring=False,
            ).image, flip,
        )
        for flip in flips
    ]  # fmt: skip
    inside = (
        mask & (images[2] > 1) & np.all([p > 1 for p in passes], axis=0)
    )  # nothing was cut at zero
    assert inside.mean() > 0.9 * mask.mean()
    assert_allclose(images[2][inside], np.mean(passes, axis=0)[inside], rtol=1e-3, atol=0.1)
    assert np.abs(images[2] - images[0])[mask].mean() > 1


def test_one_network_that_is_loaded_again_is_still_one(brain, make_record, monkeypatch):
    """As when a GPU gives way to the processor in the middle of a brain."""
    monkeypatch.setattr("bmex_bids.network.inference.predict._network", lambda *_: Shifting())
    record = make_record(CompactBMEX(4, 0), "bmex-compact")
    assert enhance(*brain, record, device="cpu", threads=1).networks == 1


def test_a_mirrored_brain_gives_the_mirrored_result(brain, make_record):
    data, mask = (part[3:35, 3:27] for part in brain)  # multiples of 8: no padding on one side
    record = make_record(moved(CompactBMEX(4, 4)), "bmex-compact")
    one = enhance(data, mask, record, device="cpu", threads=1)
    other = enhance(data[::-1], mask[::-1], record, device="cpu", threads=1)
    once = enhance(data[::-1], mask[::-1], record, device="cpu", threads=1, mirroring=False)
    assert_allclose(one.image, other.image[::-1], atol=0.01)
    assert_array_equal(one.labels, other.labels[::-1])
    assert np.abs(one.image - once.image[::-1])[mask].mean() > 1  # one pass alone would differ


def test_the_published_network_sees_no_mirror_image(brain, make_record):
    data, mask = brain
    record = make_record(_published(), "bmex-pytorch")
    assert record.mirrored == ()
    result = enhance(data, mask, record, device="cpu", threads=1, tile=16, overlap=8)
    once = enhance(
        data, mask, record, device="cpu", threads=1, tile=16, overlap=8, mirroring=False
    )
    assert_array_equal(result.image, once.image)


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


def _published(width=4):
    """The published network with random weights, named as its file names them."""
    torch.manual_seed(0)
    network = BMEX(width)
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

    monkeypatch.setattr("bmex_bids.network.inference.predict._network", lambda *_: Ramp())
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
    found = classify(data, mask, record, **options)
    labels = found.labels
    assert found.shares.sum(axis=0)[mask].min() >= 254
    assert not found.shares[:, ~mask].any()
    assert labels.dtype == np.uint8
    assert_array_equal(labels, expected)


def test_tissues_alone_of_the_published_network(brain, make_record):
    data, mask = brain
    record = make_record(_published(), "bmex-pytorch")
    options = {"device": "cpu", "threads": 1, "tile": 16, "overlap": 8}
    expected = enhance(data, mask, record, **options).labels
    assert len(np.unique(expected)) > 2
    assert_array_equal(classify(data, mask, record, **options).labels, expected)


def test_tissues_alone_leave_the_second_network_at_rest(brain, make_record, monkeypatch):
    data, mask = brain
    record = make_record(moved(CompactBMEX(4, 4)), "bmex-compact")

    def never(*_):
        raise AssertionError("the image was made, though only tissues were asked for")

    monkeypatch.setattr(CompactBMEX, "forward", never)
    assert classify(data, mask, record, device="cpu", threads=1).labels.any()


def test_tissues_of_an_image_that_does_not_fit_its_mask(brain, make_record):
    data, mask = brain
    record = make_record(CompactBMEX(4, 4), "bmex-compact")
    with pytest.raises(ImageError, match="one three-dimensional shape"):
        classify(data[1:], mask, record)


# ------------------------------------------------------------------ geometry, memory, devices
def small(make_record):
    return make_record(moved(CompactBMEX(4, 4)), "bmex-compact")


def test_the_reference_grid_is_the_published_one_bit_for_bit(brain, make_record):
    """40³ every 18 over the brain's box and 5 around it, 5 dropped, averaged: written out."""
    data, mask = (np.pad(np.repeat(part, 2, axis=0), 3) for part in brain)
    record = small(make_record)
    network = load_network(record.path, record.variant)
    a, b, c = np.nonzero(mask)
    box = [(int(k.min()) - 5, int(k.max()) + 6) for k in (a, b, c)]
    far = np.pad(np.where(mask, data, 0), 40)
    total, count = np.zeros_like(far, dtype=np.float32), np.zeros_like(far, dtype=np.float32)

    def firsts(low, high):
        length = max(high - low, 40)
        return [*(low + k for k in range(0, length - 40, 18)), low + length - 40]

    seen = 0
    for i in firsts(*box[0]):
        for j in firsts(*box[1]):
            for k in firsts(*box[2]):
                cube = far[i + 40 : i + 80, j + 40 : j + 80, k + 40 : k + 80]
                x = torch.from_numpy(np.ascontiguousarray(cube.transpose(2, 0, 1)))[None, None]
                with torch.inference_mode():
                    y = network(x)[1][0, 0].numpy().transpose(1, 2, 0)
                kept = (slice(i + 45, i + 75), slice(j + 45, j + 75), slice(k + 45, k + 75))
                total[kept] += y[5:-5, 5:-5, 5:-5]
                count[kept] += 1
                seen += 1
    assert seen > 1
    whole = total[40:-40, 40:-40, 40:-40] / np.maximum(count, 1)[40:-40, 40:-40, 40:-40]
    assert (count[40:-40, 40:-40, 40:-40][mask] > 0).all()
    expected = np.where(mask, np.clip(whole, 0, None), 0)
    once = {"geometry": "reference", "mirroring": False}
    found = enhance(data, mask, record, device="cpu", threads=1, **once)
    assert_allclose(found.image, expected, rtol=1e-5, atol=1e-3)
    assert found.precision == "float32"


def test_an_unknown_geometry_is_refused(brain, make_record):
    with pytest.raises(ValueError, match="'fast', 'reference'"):
        enhance(*brain, small(make_record), device="cpu", geometry="slow")


def test_fast_is_the_whole_volume_at_once(brain, make_record):
    """Published network, all of the brain in one: what its own forward makes of the same box."""
    data, mask = brain
    record = make_record(_published(), "bmex-pytorch")
    fed = np.pad(np.where(mask, data, 0).transpose(2, 0, 1)[brain_box_zxy(mask)], _to_eights(mask))
    with torch.inference_mode():
        _, image = load_network(record.path, record.variant)(
            torch.from_numpy(fed.astype(np.float32))[None, None]
        )
    inside = np.pad(mask.transpose(2, 0, 1)[brain_box_zxy(mask)], _to_eights(mask))
    found = enhance(data, mask, record, device="cpu", threads=1, precision="float32")
    ours = np.pad(found.image.transpose(2, 0, 1)[brain_box_zxy(mask)], _to_eights(mask))
    expected = image[0, 0].numpy()
    error = np.abs(ours - np.clip(expected, 0, None))[inside].max()
    assert error <= 1e-4 * np.abs(expected[inside]).max()


def brain_box_zxy(mask):
    x, y, z = brain_box(mask)
    return z, x, y


def _to_eights(mask):
    return [(0, -(s.stop - s.start) % 8) for s in brain_box_zxy(mask)]


def test_cores_give_nearly_what_the_whole_does(brain, make_record):
    data, mask = brain
    record = small(make_record)
    whole = enhance(data, mask, record, device="cpu", threads=1).image
    cut = enhance(data, mask, record, device="cpu", threads=1, tile=24, overlap=8).image
    assert np.abs(cut - whole)[mask].mean() < 0.1 * np.abs(whole - data)[mask].mean()
    assert np.abs(cut - whole).max() > 0  # it was cut


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_little_memory_makes_smaller_tiles(brain, make_record, monkeypatch, precision):
    data, mask = brain
    shapes = []
    run = passes.Pass.plain

    def watched(self, volume):
        shapes.append(tuple(volume.shape))
        return run(self, volume)

    monkeypatch.setattr(passes.Pass, "plain", watched)
    record = small(make_record)
    monkeypatch.setattr(predict, "free_bytes", lambda device, limit: limit * 2**20)
    monkeypatch.setattr(predict, "SMALLEST", 8)
    how = {"device": "cpu", "threads": 1, "overlap": 8, "precision": precision}
    enhance(data, mask, record, memory_mb=1000, **how)
    assert len(shapes) == 4  # one for each mirror image
    shapes.clear()
    enhance(data, mask, record, memory_mb=5, **how)
    per_voxel = facts(record.variant).bytes_per_voxel
    assert len(shapes) > 4
    assert max(np.prod(s) for s in shapes) * per_voxel <= 5 * 2**20


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
                     "allocate memory: you tried to allocate 123 bytes. Error code 12"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
    ],
)  # fmt: skip
def test_short_memory_is_met_with_smaller_tiles(brain, make_record, monkeypatch, caplog, error):
    data, mask = brain
    record = small(make_record)
    whole = enhance(data, mask, record, device="cpu", threads=1).image
    run, tried = passes.Pass.plain, []

    def short(self, volume):
        tried.append(volume.numel())
        if len(tried) < 3:
            raise error
        return run(self, volume)

    monkeypatch.setattr(passes.Pass, "plain", short)
    monkeypatch.setattr(predict, "SMALLEST", 8)
    result = enhance(data, mask, record, device="cpu", threads=1, overlap=8)
    assert tried[0] > tried[1] > tried[2]
    assert np.abs(result.image - whole)[mask].mean() < 0.1 * np.abs(whole - data)[mask].mean()
    warnings = [r.message for r in caplog.records if "smaller tiles" in r.message]
    assert len(warnings) == 2


def test_a_tile_that_did_not_fit_is_not_tried_again(brain, make_record, monkeypatch):
    """Halves of the volume were tried, each cut to the same tile that free memory had allowed."""
    data, mask = brain
    allowed = []
    whole = passes.cores

    def short(shape, most, *args):
        allowed.append(most)
        if len(allowed) < 3:
            raise MemoryError
        return whole(shape, most, *args)

    record = small(make_record)
    per_voxel = facts(record.variant).bytes_per_voxel
    monkeypatch.setattr(predict, "free_bytes", lambda *_: data.size // 4 * per_voxel)
    monkeypatch.setattr(passes, "cores", short)
    monkeypatch.setattr(predict, "SMALLEST", 8)
    enhance(data, mask, record, device="cpu", threads=1, overlap=8, precision="float32")
    assert allowed[0] == data.size // 4
    assert allowed[1:3] == [allowed[0] // 2, allowed[0] // 4]


def test_an_error_of_another_kind_is_not_hidden(brain, make_record, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("expected 4D input")

    monkeypatch.setattr(passes.Pass, "plain", broken)
    with pytest.raises(RuntimeError, match="4D"):
        enhance(*brain, small(make_record), device="cpu", threads=1)


def test_no_memory_at_all_is_told(brain, make_record, monkeypatch):
    def never(*_, **__):
        raise MemoryError

    monkeypatch.setattr(passes.Pass, "plain", never)
    with pytest.raises(MemoryLimitError, match="more memory, or fewer processes"):
        enhance(*brain, small(make_record), device="cpu", threads=1)


def test_a_full_gpu_gives_way_to_the_processor(brain, make_record, monkeypatch, caplog):
    """With a GPU that is not there: the device of the network is what changes."""
    data, mask = brain
    record = small(make_record)
    expected = enhance(data, mask, record, device="cpu", threads=1)
    network = predict._network(record, torch.device("cpu"))
    asked = []

    def network_of(_, device):
        asked.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network

    monkeypatch.setattr(predict, "resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(predict, "_network", network_of)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    result = enhance(data, mask, record, threads=1)
    assert asked[0] == "cuda"
    assert asked[-1] == "cpu"
    assert result.device == "cpu"
    assert_array_equal(result.image, expected.image)
    assert any("continuing without it" in r.message for r in caplog.records)


def test_weights_are_loaded_once_and_an_exchanged_file_again(brain, make_record, monkeypatch):
    data, mask = brain
    loads = []
    load = predict.load_network

    def counted(path, variant):
        loads.append(path)
        return load(path, variant)

    monkeypatch.setattr(predict, "load_network", counted)
    record = small(make_record)
    predict._loaded.cache_clear()
    for _ in range(2):
        enhance(data, mask, record, device="cpu", threads=1)
        classify(data, mask, record, device="cpu", threads=1)
    assert len(loads) == 1
    other = make_record(moved(CompactBMEX(4, 4), seed=9), "bmex-compact")
    assert other.path == record.path
    enhance(data, mask, other, device="cpu", threads=1)
    assert len(loads) == 2


LIMITED = """
import logging, resource, sys
import numpy as np
import torch
from bmex_bids.network.inference import predict
from bmex_bids.network.weights.registry import WeightRecord
logging.basicConfig(level="WARNING")
torch.set_num_threads(1)
record = WeightRecord("t", "enhance", __import__("pathlib").Path(sys.argv[1]), "0", *[""] * 3,
                      "bmex-pytorch", "", (), (), "")
data = np.full((64, 64, 64), 500, np.float32)
mask = np.zeros(data.shape, bool)
mask[8:56, 8:56, 8:56] = True
predict.enhance(data[:16, :16, :16], mask[:16, :16, :16], record, device="cpu", threads=1)
used = int([l for l in open("/proc/self/status") if l.startswith("VmSize")][0].split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20,) * 2)
if sys.argv[3] == "blind":  # as on a system that does not say how much is free
    predict.free_bytes = lambda *_: 2**40
result = predict.enhance(data, mask, record, device="cpu", threads=1)
print(np.isfinite(result.image).all(), bool((result.image[mask] >= 0).all()))
"""


@pytest.mark.slow  # how much address space a process has beside its data differs by machine
@pytest.mark.parametrize("sight", ["seeing", "blind"])
def test_under_a_limit_of_the_system(tmp_path, make_record, sight):
    """``ulimit -v`` in a process of its own: a real allocation fails, and the run goes on."""
    record = make_record(_published(16), "bmex-pytorch")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(record.path), "120", sight],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True", "True"]
    assert ("smaller tiles" in done.stderr) == (sight == "blind")


def test_the_caffe_releases_patches_are_closer_and_nothing_is_dropped(
    brain, make_record, monkeypatch
):
    """They were those of the later release: 18 voxels apart, five dropped."""
    data, mask = (np.pad(np.repeat(part, 4, axis=0), 3) for part in brain)

    class Rim(torch.nn.Module):
        """Says 100 where the later release would drop it, else 0."""

        caffe = True
        seen = 0

        def forward(self, x):
            Rim.seen += 1
            rim = torch.full_like(x, 100.0)
            rim[..., 5:-5, 5:-5, 5:-5] = 0
            return torch.zeros(1, 4, *x.shape[2:]), rim

    network = Rim()
    monkeypatch.setattr(predict, "_network", lambda *_: network)
    once = {"geometry": "reference", "mirroring": False, "device": "cpu", "threads": 1}
    image = enhance(data, mask, small(make_record), **once).image
    assert image[mask].max() > 0
    sides = [s.stop - s.start + 10 for s in brain_box(mask, 0)]
    expected = np.prod([1 + max(0, -(-(n - 40) // 12)) for n in sides])
    assert Rim.seen == expected
    network.caffe = False
    Rim.seen = 0
    assert enhance(data, mask, small(make_record), **once).image[mask].max() == 0
    assert Rim.seen < expected


def test_an_image_that_is_no_number_is_an_error(brain, make_record, monkeypatch):
    data, mask = brain

    class Broken(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(1, 4, *x.shape[2:]), x / 0

    monkeypatch.setattr(predict, "_network", lambda *_: Broken())
    with pytest.raises(ImageError, match="some that are not finite"):
        enhance(data, mask, small(make_record), device="cpu", threads=1)


def test_float32_on_a_gpu_is_float32():
    """cuDNN multiplies with ten bits unless it is told not to, and the sidecar said float32."""
    torch.backends.cudnn.allow_tf32 = True
    resolve_device("cpu")
    assert not torch.backends.cudnn.allow_tf32


def test_of_equal_tissues_the_first_is_the_label():
    """By hand; 1 CSF, 2 GM, 3 WM."""
    shares = np.array(
        [
            [0, 0.4, 0.4, 0.2],
            [0, 0.2, 0.4, 0.4],
            [0, 0.4, 0.2, 0.4],
            [0, 0.2, 0.3, 0.5],
            [1, 0, 0, 0],
        ],
        np.float32,
    ).T.reshape(4, 5, 1, 1)
    inside = shares[0] == 0
    assert volumes.labels_of(shares, inside).ravel().tolist() == [1, 2, 1, 3, 0]


def test_probabilities_are_the_softmax_of_the_tissues():
    scores = np.random.default_rng(0).normal(size=(4, 3, 4, 5)).astype(np.float32)
    inside = np.random.default_rng(1).random((3, 4, 5)) > 0.5
    found = volumes.tissue_probabilities(scores.transpose(0, 3, 2, 1), inside.T)
    powers = np.exp(scores[1:]).transpose(0, 3, 2, 1)
    assert_allclose(found[1:], np.where(inside.T, powers / powers.sum(axis=0), 0), rtol=1e-5)
    assert_array_equal(found[0], ~inside.T)


def test_axes_to_mirror_along_and_a_clock_may_be_given(brain, make_record):
    ticks = itertools.count()
    found = enhance(
        *brain, small(make_record), device="cpu", threads=1, mirroring=("x",),
        clock=lambda: next(ticks),
    )  # fmt: skip
    assert found.mirrored == ("x",)
    assert found.passes == (1, 1)
    assert found.seconds == 5  # a tick before, two for each of two passes, and one behind


def test_auto_precision_is_that_of_the_record(monkeypatch):
    monkeypatch.setattr(passes, "native_dtype", lambda _: torch.bfloat16)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    compact, published = facts("bmex-compact"), facts("bmex-pytorch")
    assert passes.precision_of("auto", compact, cpu) == torch.float32
    assert passes.precision_of("auto", compact, gpu) == torch.bfloat16
    assert passes.precision_of("auto", published, cpu) == torch.bfloat16
    assert passes.precision_of("float32", published, gpu) == torch.float32
    assert passes.precision_of("bfloat16", compact, cpu) == torch.bfloat16
    monkeypatch.setattr(passes, "native_dtype", lambda _: torch.float32)
    assert passes.precision_of("auto", published, cpu) == torch.float32
