# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch

from bmex_bids.exceptions import UsageError
from bmex_bids.training import refine
from bmex_bids.training.refine import CloseChunks, RefineConfig, closer, look


class Brightest(torch.nn.Module):
    """A first network: brain is what is bright."""

    def forward(self, x):
        return (x - 0.5) * 10


class Nothing(torch.nn.Module):
    def forward(self, x):
        return torch.full_like(x, -4.0)


def chunks(head, coarse, seed=3):
    config = RefineConfig()
    config = replace(config, schedule=replace(config.schedule, seed=seed))
    return CloseChunks(coarse, [head], config, chunks=5)


def test_a_chunk_is_a_function_of_the_seed_and_its_index(head):
    made = chunks(head, Brightest())
    windows, brains = made[1]
    assert windows.shape == (4, 2, 96, 96, 112)  # (Z, X, Y), image and logits
    assert brains.shape == (4, 1, 96, 96, 112)
    assert made.samples == 4
    assert len(made) == 5
    again = chunks(head, Brightest())[1]
    assert torch.equal(windows, again[0])
    assert torch.equal(brains, again[1])
    assert not torch.equal(windows, made[2][0])
    assert not torch.equal(windows, chunks(head, Brightest(), seed=4)[1][0])


def test_the_brain_is_where_the_first_network_saw_it(head):
    """A first network that knows the answer: its logits and the brain overlap in each window."""
    seen = look(Brightest(), head, np.random.default_rng(0))
    whole = 0.0 + seen.brain
    seen = replace(seen, image=whole, logits=refine.coarse_logits(
        Brightest(), whole, seen.spacing_mm
    ))  # fmt: skip
    places = []
    for seed in range(4):
        window, brain = closer(seen, np.random.default_rng(seed))
        a, b = window[1] > 0, brain[0] > 0.5
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9
        places.append(b.nonzero().float().mean(0))
    assert torch.stack(places).std(0).min() > 0.3  # the views are off, each in its own way


def test_a_first_network_that_finds_no_brain_is_an_error(head):
    with pytest.raises(UsageError, match="check --coarse"):
        chunks(head, Nothing())[0]
    with pytest.raises(ValueError, match="finds a brain"):
        closer(look(Nothing(), head, np.random.default_rng(0)), np.random.default_rng(0))
