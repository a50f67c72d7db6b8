# SPDX-License-Identifier: Apache-2.0
"""Each row of docs/comparison.md names a test that exists; so no feature is only promised."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "comparison.md"


def rows() -> list[list[str]]:
    """Cells of all rows of all tables, without headings and rules."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[-1] != "test" and set(row[-1]) - set("-|")]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_page_has_its_rows():
    assert len(rows()) > 40


@pytest.mark.parametrize("row", rows(), ids=lambda row: re.sub(r"\W+", "-", row[0])[:50])
def test_every_row_of_ours_names_a_test_that_exists(row):
    test, feature = row[-1], row[0]
    if test == "–":
        ours = row[-2]
        assert re.search(r"\bnot (answered )?yet\b|still to come", ours), feature
        return
    path, _, name = test.partition("::")
    assert (ROOT / path).is_file(), f"{feature}: {path}"
    if name:
        assert name in names_in(ROOT / path), f"{feature}: {name} in {path}"
    else:
        assert any(found.startswith("test_") for found in names_in(ROOT / path))
