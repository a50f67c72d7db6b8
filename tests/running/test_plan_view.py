# SPDX-License-Identifier: Apache-2.0
import json
from types import SimpleNamespace

import pytest

from bmex_bids.inputs.age import Age
from bmex_bids.running import plan_view
from bmex_bids.running.plan_view import Pace, brain_litres


@pytest.fixture
def head(monkeypatch):
    """A task with the head of an adult, 8 million voxels, 12 on the network's grid."""
    # base first: it takes voxel_count by name when it is imported
    monkeypatch.setattr("bmex_bids.workflows.base.memory_gb", lambda *_: 1.5)
    monkeypatch.setattr(
        "bmex_bids.interfaces.files.voxel_count",
        lambda _, spacing=None: 12_000_000 if spacing else 8_000_000,
    )

    def make(variant="bmex-compact", mirrored=("x", "y"), **options):
        image = SimpleNamespace(path="head.nii.gz", relative_path="head.nii.gz")
        planned = SimpleNamespace(
            spacing_mm=0.8, image=image, age=None, age_group="month24", name="head",
            runnable=True, skip_reason=None, warnings=(),
        )  # fmt: skip
        weights = SimpleNamespace(variant=variant, mirrored=mirrored, name=variant)
        return plan_view.Task(planned, weights=weights, **options)

    return make


BRAIN = 1.4 / 0.8**3  # million voxels


@pytest.mark.parametrize(
    ("variant", "mirrored", "device", "network"),
    [
        ("bmex-compact", ("x", "y"), "cpu", 2.4 * 4 * BRAIN / 2),
        ("bmex-compact", (), "cpu", 2.4 * BRAIN / 2),
        ("bmex-pytorch", (), "cpu", 66 * BRAIN / 2),
        ("bmex-pytorch", (), "cuda", 66 * BRAIN / 50),
        ("bmex-caffe", (), "cpu", 30 * BRAIN / 2),
        ("bmex-slices", ("x",), "cpu", 4 * 2 * BRAIN / 2),
    ],
)
def test_the_time_of_an_adult_head_by_hand(head, variant, mirrored, device, network):
    """12 million voxels on the network's grid, 8 of the input, two threads."""
    seconds, memory = plan_view.estimate(head(variant, mirrored), device, 2)
    motion = 8 * 2.6 / 2
    if variant == "bmex-slices":  # half a pass, at the voxels of the input
        motion += 0.5 * 4 * BRAIN * 8 / 12 / 2
    assert seconds == pytest.approx(10 + 12 * 3.8 + motion + network)
    still, _ = plan_view.estimate(head(variant, mirrored, motion_correction=False), device, 2)
    assert seconds - still == pytest.approx(motion)
    assert memory == pytest.approx(0.8 + 2 * 1.5)


def test_halving_edges_takes_time_and_memory(head, monkeypatch):
    monkeypatch.setattr("bmex_bids.workflows.base.halving_gb", lambda *_: 4.5)
    before, _ = plan_view.estimate(head(), "cpu", 2)
    seconds, memory = plan_view.estimate(head(super_weights="w"), "cpu", 2)
    assert seconds - before == pytest.approx(plan_view.HALVING_COST * BRAIN / 2)
    assert memory == pytest.approx(0.8 + 4.5)


def test_the_time_that_was_measured_lies_within_the_range(head):
    """An adult head with the bundled weights took 69 s without motion correction."""
    seconds, _ = plan_view.estimate(head(motion_correction=False), "cpu", 2)
    low, high = Pace().range(seconds)
    assert low < 69 < high
    assert seconds == pytest.approx(69, rel=0.2)


def test_one_pass_is_a_quarter_of_the_networks_time(head):
    one, _ = plan_view.estimate(head(mirroring=False), "cpu", 2)
    four, _ = plan_view.estimate(head(), "cpu", 2)
    base = 10 + 12 * 3.8 + 8 * 2.6 / 2
    assert one - base == pytest.approx((four - base) / 4)


def test_brains_grow_and_never_fill_the_field_of_view():
    ages = [Age(m, False, "", "", "", "") for m in (0, 1, 6, 24, 60, 72, 1000)]
    litres = [brain_litres(age) for age in ages]
    assert litres == sorted(litres)
    assert (litres[0], litres[-1]) == (0.4, 1.4)
    assert 0.1 < brain_litres(Age(6, True, "", "", "", "")) < 0.4


def test_the_plan_gives_a_range_and_says_how_it_is_known(head, tmp_path):
    pace = Pace(2.0, 1.25, "by earlier runs")
    seconds, _ = plan_view.estimate(head(), "cpu", 2)
    first, last = plan_view.estimates([head()], "cpu", 2, pace)
    assert f"head: {2 * seconds / 1.25:.0f} to {2 * seconds * 1.25:.0f} s" in first
    assert last == "2 to 3 min in all, one image after the other (by earlier runs)"
    *_, short = plan_view.estimates([head()], "cpu", 2, Pace(0.5, 1.25, ""))
    assert short.startswith(f"{0.4 * seconds:.0f} to {0.625 * seconds:.0f} s in all")
    assert list(plan_view.estimates([], "cpu", 2, pace)) == []
    text = plan_view.as_json(
        [head()], bids_dir=tmp_path, output_dir=tmp_path, device="cpu", threads=2, pace=pace
    )
    (entry,) = json.loads(text)["images"]
    assert entry["seconds"] == round(2 * seconds)
    assert entry["seconds_range"] == [round(1.6 * seconds), round(2.5 * seconds)]
