# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from bmex_bids.running import plan_view


@pytest.mark.parametrize(
    ("variant", "device", "expected"),
    [
        ("bmex-compact", "cpu", 10 + 12 * 8 + 12 * 15 / 2),
        ("bmex-pytorch", "cpu", 10 + 12 * 8 + 12 * 80 / 2),  # 586 s; 468 s were measured
        ("bmex-pytorch", "cuda", 10 + 12 * 8 + 12 * 80 / 50),
        ("bmex-caffe", "cpu", 10 + 12 * 8 + 12 * 40 / 2),
    ],
)
def test_the_time_of_an_adult_head_by_hand(monkeypatch, variant, device, expected):
    """12 million voxels, two threads."""
    # base first: it takes voxel_count by name when it is imported
    monkeypatch.setattr("bmex_bids.workflows.base.memory_gb", lambda *_: 1.5)
    monkeypatch.setattr("bmex_bids.interfaces.files.voxel_count", lambda *_: 12_000_000)
    planned = SimpleNamespace(spacing_mm=0.8, image=SimpleNamespace(path="head.nii.gz"))
    task = plan_view.Task(planned, weights=SimpleNamespace(variant=variant))
    seconds, memory = plan_view.estimate(task, device, 2)
    assert seconds == pytest.approx(expected)
    assert memory == pytest.approx(0.8 + 2 * 1.5)
