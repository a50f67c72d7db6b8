# SPDX-License-Identifier: Apache-2.0
"""docs/simulation.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bmex_bids.degrade.kinds import KINDS
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import SEVERITIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulation.md"


@pytest.fixture(scope="module")
def text() -> str:
    """The page."""
    return PAGE.read_text(encoding="utf-8")


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The first table whose header begins so: first cell → the others."""
    lines = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_table_of_levels_is_that_of_the_code(text):
    table = rows(text, "| kind | number, unit |")
    frequencies = table.pop("… its frequency")
    assert [float(cell) for cell in frequencies[1:-1]] == [f for _, f in SEVERITIES.values()]
    assert list(table) == list(KINDS)
    for name, kind in KINDS.items():
        *levels, psnr = table[name][1:]
        assert [float(cell) for cell in levels] == list(kind.levels.values())
        assert 10 < float(psnr) < 40


def test_the_recipe_on_the_page_is_one(text):
    example = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    assert Recipe.from_dict(example).as_dict() == example


def test_the_python_on_the_page_runs(text):
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    values = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
    names = {"values": values, "spacing": (1, 1, 1), "head": values, "mask": values > 0.5}
    exec(code, names)  # noqa: S102 – the page is our own
    assert names["bad"].shape == values.shape
    assert not names["brain"][values <= 0.5].any()


def test_the_commands_on_the_page_are_understood(text):
    from bmex_bids.cli.degrade import build_parser

    commands = re.findall(r"(?:^\$ |`)bmex-degrade ([^`#\n]*(?:nii\.gz|png)[^`#\n]*)", text, re.M)
    assert len(commands) >= 5
    for command in commands:
        build_parser().parse_args(command.split())
    options = set(re.findall(r"^\| `(--[a-z-]+)", text, re.M))
    known = {flag for action in build_parser()._actions for flag in action.option_strings}
    assert options <= known
    assert known - options <= {"-h", "--help", "--version"} | {f for f in known if "_" in f}


def test_the_picture_is_small_enough():
    assert (PAGE.parent / "images" / "degradations.png").stat().st_size <= 500_000
