# SPDX-License-Identifier: Apache-2.0
"""In every test of the whole app, the network is tiny and the pictures are few."""

from __future__ import annotations

import pytest
from app_runs import participants


@pytest.fixture(autouse=True)
def tiny_network(tiny_records, monkeypatch, tmp_path):
    """The tiny network takes the bundled one's place; the current folder is the test's own."""
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_records)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """Pictures take most of the time: one test has all of them, the others the summary only."""
    from bmex_bids.interfaces import reportlets

    only = {"summary": reportlets.write_summary}
    monkeypatch.setattr(reportlets, "drawings", lambda: only)


@pytest.fixture
def one(bids_skeleton, brain):
    """A dataset of one small brain."""
    return bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
