# SPDX-License-Identifier: Apache-2.0
"""Asking for help is quick: it loads neither the network nor the workflow machinery."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "nipype", "bids", "niworkflows", "nireports", "SimpleITK", "nilearn", "pandas")

CHILD = """
import importlib, sys
module, function, argument = sys.argv[1:4]
main = getattr(importlib.import_module(module), function)
sys.argv = ["program", argument]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
print("\\n--", code or 0, *sorted(set(sys.modules) & set({heavy!r})))
"""


def console_scripts() -> dict[str, str]:
    """Name and target of each command, from setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): target.strip() for name, target in (x.split("=") for x in lines)}


def run_child(code: str, *arguments: str) -> str:
    """Run Python code in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", console_scripts())
def test_help_loads_nothing_heavy(command: str) -> None:
    module, _, function = console_scripts()[command].partition(":")
    printed = run_child(CHILD.format(heavy=HEAVY), module, function, "--help")
    assert "usage:" in printed
    assert printed.splitlines()[-1].split() == ["--", "0"]


def test_version_is_one_line_and_loads_nothing_heavy() -> None:
    printed = run_child(CHILD.format(heavy=HEAVY), "bmex_bids.cli.run", "main", "--version")
    assert printed.splitlines()[-1].split() == ["--", "0"]
    assert "bmex" in printed
    assert len(printed.strip().splitlines()) == 3  # the version, a blank line, our own line


def test_importing_the_package_loads_nothing_heavy_and_prints_nothing() -> None:
    code = f"import bmex_bids, sys; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    assert run_child(code).strip() == ""
