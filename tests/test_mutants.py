# SPDX-License-Identifier: Apache-2.0
"""The table of ``make mutants`` follows the source."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = runpy.run_path(str(ROOT / "tests/mutants/run.py"))


@pytest.mark.parametrize("row", RUN["rows"]([]), ids=lambda row: row["what"])
def test_each_text_stands_once_in_its_file(row):
    """Else ``make mutants``, which takes long, says so only when it is run."""
    source = (ROOT / "bmex_bids" / row["file"]).read_text(encoding="utf-8")
    assert RUN["mutated"](source, row) != source
    assert all((ROOT / part.split("::")[0]).exists() for part in row["tests"].split()[:1])
