# SPDX-License-Identifier: Apache-2.0
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from bmex_bids.exceptions import OutputError, WeightsError
from bmex_bids.network.models.bmex import BMEX, from_published
from bmex_bids.network.models.compact import CompactBMEX, Members, whose_turn
from bmex_bids.network.weights import checkpoints
from bmex_bids.network.weights.checkpoints import convert, load_network, read_state

#: names and shapes of the published release (w = 64), written down from the table of its layers
PUBLISHED = json.loads(Path(__file__).with_name("published_tensors.json").read_text())


def published_name(name):
    """The name that the release gives to one of our tensors."""
    module, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    return {"tissue": rest, "recon": f"{layer}_recon.{kind}"}.get(module, name)


@pytest.fixture
def small():
    """The state of a narrow BMEX, under the published names."""
    return {published_name(k): v.clone() for k, v in BMEX(4).state_dict().items()}


@pytest.fixture
def save(tmp_path):
    def write(state, name="weights.pt"):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file({k: v.contiguous() for k, v in state.items()}, str(path))
        else:
            torch.save(state, path)
        return path

    return write


def test_the_release_has_488_tensors_and_33_million_parameters():
    assert len(PUBLISHED) == 488
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(math.prod(v) for k, v in PUBLISHED.items() if not k.endswith(statistics))
    assert count == 32_929_311


def test_the_network_has_the_published_names_and_shapes():
    with torch.device("meta"):
        network = BMEX(64)
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == {from_published(name): shape for name, shape in PUBLISHED.items()}
    assert sum(p.numel() for p in network.parameters()) == 32_929_311


@pytest.mark.parametrize("extension", ["pt", "safetensors"])
def test_a_file_of_the_published_size_loads(save, extension):
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(7)
        for name, shape in PUBLISHED.items()
    }
    network = load_network(save(state, f"published.{extension}"), "bmex-pytorch")
    assert not network.training
    assert torch.equal(network.recon.conv4_1.weight, state["conv4_1_recon.weight"])
    assert torch.equal(network.tissue.bn31.running_var, state["bn31.running_var"])
    assert torch.equal(network.tissue.deconv15.bias, state["deconv15.bias"])
    assert torch.equal(network.conv2_con.weight, state["conv2_con.weight"])
    assert network.recon.bn32.num_batches_tracked == 7


def test_a_state_dict_inside_another_dictionary_is_unwrapped(small, save):
    path = save({"state_dict": small, "epoch": 5})
    network = load_network(path, "bmex-pytorch")
    assert torch.equal(network.tissue.conv9.weight, small["conv9.weight"])


def test_half_precision_becomes_single(small, save):
    half = {k: v.half() if v.is_floating_point() else v for k, v in small.items()}
    state = read_state(save(half, "half.safetensors"))
    assert state["conv1.weight"].dtype == torch.float32
    assert state["bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("conv1.weight", lambda t: torch.full_like(t, torch.nan), "not finite"),
        ("bn1.running_var", lambda t: -t - 1, "below zero"),
        ("conv1.weight", lambda t: t.to(torch.int8), "torch.int8, not a float"),
        ("conv1.weight", lambda t: t.to(torch.complex64), "complex64, not a float"),
        ("conv1.bias", lambda t: t.to_sparse(), "not dense"),
        ("conv1.weight", lambda t: t.flatten()[0], "got one number"),
    ],
)
def test_tensors_that_can_be_no_weights_are_named(small, save, name, spoil, words):
    """Some were loaded without a word, others ended in an error of torch."""
    small[name] = spoil(small[name])
    with pytest.raises(WeightsError, match=rf"{name}.*{words}"):
        load_network(save(small), "bmex-pytorch")


def test_missing_tensors_are_named(small, save):
    del small["conv17_recon.weight"]
    with pytest.raises(WeightsError, match=r"missing recon\.conv17\.weight"):
        load_network(save(small), "bmex-pytorch")


def test_surplus_tensors_are_named(small, save):
    small["conv99.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"surplus tissue\.conv99\.weight"):
        load_network(save(small), "bmex-pytorch")


def test_misshapen_tensors_are_named_with_both_shapes(small, save):
    small["bn8.bias"] = torch.zeros(5)
    with pytest.raises(
        WeightsError, match=r"misshapen tissue\.bn8\.bias \(5,\) instead of \(8,\)"
    ):
        load_network(save(small), "bmex-pytorch")


def test_many_differences_are_cut_short(small, save):
    kept = {k: v for k, v in small.items() if "bn" not in k}
    with pytest.raises(WeightsError, match="…"):
        load_network(save(kept), "bmex-pytorch")


@pytest.mark.parametrize("variant", ["bmex-pytorch", "bmex-compact", "bmex-strip"])
def test_weights_of_another_network_are_refused(save, variant):
    path = save({"something.else": torch.zeros(3)})
    with pytest.raises(WeightsError, match="another network"):
        load_network(path, variant)


def test_an_unknown_variant_and_an_absent_file_are_refused(small, save, tmp_path):
    with pytest.raises(WeightsError, match=r"bmex-compact.*got 'caffe'"):
        load_network(save(small), "caffe")
    with pytest.raises(WeightsError, match="found none"):
        load_network(tmp_path / "absent.pt", "bmex-pytorch")


def test_several_networks_in_one_file(save):
    made = Members(CompactBMEX(8, 4, blocks) for blocks in (2, 1))
    found = load_network(save(made.state_dict(), "m.safetensors"), "bmex-compact")
    assert isinstance(found, Members)
    assert found.state_dict().keys() == made.state_dict().keys()
    assert whose_turn(found, 2) is whose_turn(found, 0) is found.members[0]
    assert whose_turn(found, 1) is found.members[1]
    assert whose_turn(found.members[1], 2) is found.members[1]


@pytest.mark.parametrize(("tissue_width", "blocks"), [(4, 1), (0, 1), (4, 2)])
def test_the_compact_network_is_rebuilt_from_its_tensors(save, tissue_width, blocks):
    made = CompactBMEX(8, tissue_width, blocks)
    network = load_network(save(made.state_dict(), "c.safetensors"), "bmex-compact")
    assert (network.tissue is None) == (tissue_width == 0)
    for name, tensor in made.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


class _Code:
    """Unpickled, it writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, how):
    touched = tmp_path / "touched"
    path = tmp_path / "weights.pt"
    if how == "torch":
        torch.save({"conv1.weight": _Code(touched)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv1.weight": _Code(touched)}))
    with pytest.raises(WeightsError, match=r"weights\.pt cannot be read"):
        read_state(path)
    assert not touched.exists()


@pytest.mark.parametrize("extension", ["pt", "safetensors"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=64))
def test_bytes_that_are_no_weights_are_refused(tmp_path, extension, content):
    path = tmp_path / f"weights.{extension}"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        load_network(path, "bmex-pytorch")


@pytest.mark.parametrize("extension", ["pt", "safetensors"])
def test_half_a_file_is_refused(small, save, extension):
    path = save(small, f"weights.{extension}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="damaged"):
        read_state(path)


def test_a_file_of_something_else_than_tensors_is_refused(save):
    with pytest.raises(WeightsError, match="dictionary of tensors"):
        read_state(save([torch.zeros(2)]))
    with pytest.raises(WeightsError, match="dictionary of tensors"):
        read_state(save({"epoch": 3}))


def test_loading_does_not_import_torchs_compiler(tmp_path):
    """It takes seconds, and makes a folder among the temporary files."""
    program = """
import sys
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.network.weights.registry import bundled
for record in bundled():
    load_network(record.path, record.variant)
print(sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", None])
def test_a_network_that_was_saved_as_it_trained_on_several_gpus(small, save, wrap):
    parallel = {f"module.{name}": tensor for name, tensor in small.items()}
    path = save({wrap: parallel} if wrap else parallel)
    network = load_network(path, "bmex-pytorch")
    assert torch.equal(network.tissue.conv9.weight, small["conv9.weight"])


def test_counters_of_training_steps_may_be_missing(small, save):
    bare = {name: t for name, t in small.items() if not name.endswith("num_batches_tracked")}
    network = load_network(save(bare), "bmex-pytorch")
    assert torch.equal(network.tissue.bn9.running_mean, small["bn9.running_mean"])
    assert network.tissue.bn9.num_batches_tracked == 0


def test_a_shape_without_numbers_is_no_weight(small, save, monkeypatch):
    small["conv1.weight"] = small["conv1.weight"].to("meta")
    monkeypatch.setattr(checkpoints, "read_state", lambda *_: small)
    with pytest.raises(WeightsError, match=r"conv1\.weight \(a shape without numbers\)"):
        load_network(save({}), "bmex-pytorch")


def test_what_is_converted_is_compared_to_the_last_bit(small, save, tmp_path):
    """A number that is none was taken for a difference, and the file removed."""
    small["conv1.bias"][0] = torch.nan
    small["half"] = torch.tensor([1.5, torch.nan], dtype=torch.bfloat16)
    assert convert(save(small), tmp_path / "out.safetensors") == len(small)


def test_a_disk_that_is_full_while_converting_is_said(small, save, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OutputError, match=r"No space left on device.*free some space"):
        convert(save(small), tmp_path / "out.safetensors")
