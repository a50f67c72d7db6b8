# SPDX-License-Identifier: Apache-2.0
import csv
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from bmex_bids.exceptions import UsageError
from bmex_bids.training.loop import Average, Schedule, export_half, fit


class Chunks(Dataset):
    """Three batches of two a chunk, a function of the index."""

    def __init__(self, chunks=100):
        self.chunks = chunks

    def __len__(self):
        return self.chunks

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return (torch.randn((6, 1, 4, 4, 4), generator=generator),)


@pytest.fixture
def model():
    def make():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv3d(1, 2, 3), torch.nn.ReLU(), torch.nn.Conv3d(2, 1, 2)
        )

    return make


def loss(network, batch):
    return (network(batch[0]) - 1).square().mean()


def validate(network):
    return {"bias": float(network[2].bias[0].detach())}


SCHEDULE = Schedule(
    steps=12, batch=2, warmup=3, average=0.9, validate_every=5, seed=1, threads=1, rate=1e-2
)


def killed_at(step):
    """The loss of a run that is killed in a step (counted from its own start)."""
    calls = iter(range(1000))

    def fail(network, batch):
        if next(calls) == step:
            raise KeyboardInterrupt
        return loss(network, batch)

    return fail


def test_a_run_that_was_killed_and_goes_on_equals_one_that_was_not(model, tmp_path):
    whole = model()
    expected = fit(whole, Chunks(), loss, validate, tmp_path / "whole", SCHEDULE)

    for step in (3, 7):  # before and after the first checkpoint, both within a chunk
        with pytest.raises(KeyboardInterrupt):
            fit(model(), Chunks(), killed_at(step), validate, tmp_path / "killed", SCHEDULE)
    checkpoint = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 5
    resumed = model()
    result = fit(resumed, Chunks(), loss, validate, tmp_path / "killed", SCHEDULE)

    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)
        assert torch.equal(result.state[name], expected.state[name])
    a, b = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("whole", "killed")
    )
    assert a["step"] == b["step"] == 12
    assert str(a["optimiser"]) == str(b["optimiser"])
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_finished_run_is_not_trained_again_and_resume_can_be_refused(model, tmp_path):
    expected = fit(model(), Chunks(), loss, validate, tmp_path, SCHEDULE)
    again = fit(model(), Chunks(), killed_at(0), validate, tmp_path, SCHEDULE)
    for name, tensor in expected.state.items():
        assert torch.equal(again.state[name], tensor)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), Chunks(), killed_at(0), validate, tmp_path, SCHEDULE, resume=False)


def test_a_run_ends_with_its_data_or_its_time(model, tmp_path):
    fit(model(), Chunks(2), loss, validate, tmp_path / "data", SCHEDULE)
    assert torch.load(tmp_path / "data" / "checkpoint.pt", weights_only=True)["step"] == 6
    none = Schedule(minutes=0.0, batch=2, threads=1)
    fit(model(), Chunks(2), killed_at(0), validate, tmp_path / "time", none)
    assert torch.load(tmp_path / "time" / "checkpoint.pt", weights_only=True)["step"] == 0


def test_what_happened_is_logged(model, tmp_path):
    fit(model(), Chunks(), loss, validate, tmp_path, SCHEDULE)
    with (tmp_path / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["5", "10"]
    assert list(rows[0]) == ["step", "minutes", "loss", "rate", "bias"]
    assert float(rows[0]["rate"]) == pytest.approx(SCHEDULE.rate_at(4))
    assert json.loads((tmp_path / "schedule.json").read_text())["steps"] == 12


def test_validation_sees_the_average_and_training_goes_on_with_the_weights(model, tmp_path):
    seen, plain = [], model()

    def look(network):
        seen.append(network[2].bias.detach().clone())
        return {}

    schedule = Schedule(
        steps=5, batch=2, warmup=3, average=0.9, validate_every=5, threads=1, rate=0.1
    )
    average = fit(plain, Chunks(), loss, look, tmp_path, schedule)
    assert torch.equal(seen[0], average.state["2.bias"])
    assert not torch.equal(plain[2].bias, seen[0])


def test_the_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    average = Average(model, 0.9)
    torch.nn.init.constant_(model.weight, 11.0)
    average.update(model, 0)  # early: decay is 1/10
    assert average.state["weight"].item() == pytest.approx(10)
    average.update(model, 10_000)  # late: 0.9
    assert average.state["weight"].item() == pytest.approx(10.1)


def test_the_rate_warms_up_and_falls_along_half_a_cosine():
    schedule = Schedule(steps=110, warmup=10, rate=1.0, final_rate=0.2)
    assert [schedule.rate_at(k) for k in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
    assert schedule.rate_at(60) == pytest.approx(0.6)
    assert schedule.rate_at(110) == schedule.rate_at(500) == pytest.approx(0.2)


def test_workers_do_not_change_the_batches(model, tmp_path):
    one = fit(model(), Chunks(), loss, validate, tmp_path / "one", SCHEDULE)
    two = fit(model(), Chunks(), loss, validate, tmp_path / "two", replace(SCHEDULE, workers=2))
    for name, tensor in one.state.items():
        assert torch.equal(two.state[name], tensor)


def test_mixed_precision_keeps_the_weights_in_float32(model, tmp_path):
    seen = []

    def look(network, batch):
        seen.append(network(batch[0]).dtype)
        return loss(network, batch)

    mixed = replace(SCHEDULE, precision="bfloat16", steps=2)
    average = fit(model(), Chunks(), look, validate, tmp_path, mixed)
    assert set(seen) == {torch.bfloat16}
    assert {tensor.dtype for tensor in average.state.values()} == {torch.float32}


@pytest.mark.parametrize("bad", [{"precision": "half"}, {"steps": 0}, {"workers": 0}])
def test_a_schedule_that_cannot_be_is_refused(bad):
    with pytest.raises(UsageError, match="expected"):
        Schedule(**bad)


def test_weights_are_exported_in_half_precision(tmp_path):
    model = torch.nn.Linear(3, 2)
    path = export_half(Average(model, 0.9), tmp_path / "weights.safetensors")
    state = load_file(str(path))
    assert state["weight"].dtype == torch.float16
    assert torch.equal(state["bias"], model.bias.detach().half())
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_batch_larger_than_what_is_made_at_once_is_refused(model, tmp_path):
    """It was a division by zero."""
    with pytest.raises(UsageError, match="at most 6, which are made at once, got 8"):
        fit(model(), Chunks(), loss, validate, tmp_path, replace(SCHEDULE, batch=8))
