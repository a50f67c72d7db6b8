# SPDX-License-Identifier: Apache-2.0
"""The enhancement network as a hint at motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmex_bids.network.inference import hints as module
from bmex_bids.network.inference.hints import brain_of, correction_of
from bmex_bids.network.inference.slices import FEW_PLANES, run_slices
from bmex_bids.network.weights.registry import bundled_of, select


@pytest.fixture(scope="module")
def record():
    return select(
        "enhance", weights="bundled", age_group="month24", contrast="T1w", age_months=300
    )


def test_the_correction_is_that_of_the_brain_and_zero_around_it(record, monkeypatch):
    monkeypatch.setattr(module, "native_dtype", lambda _: torch.float32)
    generator = torch.Generator().manual_seed(0)
    image = 300 + 200 * torch.rand((30, 40, 35), generator=generator)
    brain = torch.zeros_like(image)
    brain[6:26, 8:34, 5:29] = 1
    found = correction_of(image, brain, record=record)
    assert not found[brain == 0].any()
    network = module._network(record.path, record.variant)
    box = (slice(6, 26), slice(8, 34), slice(5, 29))
    expected = run_slices(
        network,
        image[box].numpy(),
        np.ones((20, 26, 24), bool),
        device=torch.device("cpu"),
        planes=FEW_PLANES,
    ).correction
    assert found[box].numpy() == pytest.approx(expected, abs=1e-3)
    assert found[box].any()


def test_another_network_is_refused():
    record = bundled_of("denoise")
    with pytest.raises(TypeError, match="over slices"):
        correction_of(torch.ones(8, 8, 8), torch.ones(8, 8, 8), record=record)


def test_the_brain_is_a_little_smaller_than_what_was_found(monkeypatch):
    asked = []

    def probability(data, spacing, record, *, device, threads):
        asked.append((spacing, record, device, threads))
        found = np.zeros_like(data)
        found[2:9, 2:9, 2:9] = 1
        return found

    monkeypatch.setattr(module, "brain_probability", probability)
    record = bundled_of("strip")
    brain = brain_of(torch.ones(12, 12, 12), [1.0, 2.0, 1.5], record=record)
    assert int(brain.sum()) == 5**3
    assert brain[3:8, 3:8, 3:8].all()
    assert asked == [((1.0, 2.0, 1.5), record, "cpu", torch.get_num_threads())]
