# SPDX-License-Identifier: Apache-2.0
"""The pages and the programs' ``--help`` name the same flags; lines of prose fit a terminal."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import pytest

from bmex_bids.cli.evaluate import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
SUBCOMMANDS = {
    "bmex-evaluate": tuple(COMMANDS),
    "bmex-weights": ("list", "fetch", "verify", "convert", "path"),
}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
#: a command of ours on a page, in a code block or in the text
COMMAND = re.compile(r"(?:^(?:\$ )?|`)(bmex(?:-[a-z]+)?) ((?:\\\n|[^`#\n])*)", re.M)
#: flags of bmex that need no row: they do nothing, or are the same for every program
NOT_LISTED = {"--help", "--version", "--verbose"}


def programs() -> Mapping[str, Callable[[list[str]], int]]:
    """Name of each console script and its function."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    found = {}
    for line in lines:
        name, _, target = line.partition(" = ")
        module, _, function = target.partition(":")
        found[name] = getattr(import_module(module), function)
    return found


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """``--help`` of a program and of its subcommands."""
    text = ""
    for subcommand in ((), *((part,) for part in SUBCOMMANDS.get(name, ()))):
        with pytest.raises(SystemExit):
            programs()[name]([*subcommand, "--help"])
        text += capsys.readouterr().out
    return text


@pytest.mark.parametrize("name", sorted(programs()))
def test_commands_on_the_pages_have_flags_that_exist(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = set(FLAG.findall(help_of(name, capsys)))
    assert known
    unknown = [
        f"{page.relative_to(ROOT)}: {flag}"
        for page in PAGES
        for program, rest in COMMAND.findall(page.read_text("utf-8"))
        if program == name
        for flag in FLAG.findall(rest)
        if flag not in known
    ]
    assert unknown == []


@pytest.mark.parametrize(
    ("name", "pages"), [("bmex", ("usage", "clusters", "inputs")), ("bmex-enhance", ("usage",))]
)
def test_every_flag_is_on_a_page(
    name: str, pages: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text("utf-8") for page in pages)
    lines = re.findall(r"^ {2}(-.*?)(?: {2}|$)", help_of(name, capsys), re.M)
    assert len(lines) > 10
    missing = [
        line for line in lines if not set(FLAG.findall(line)) & {*FLAG.findall(text), *NOT_LISTED}
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_prose_are_short(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 99 and line[:1] != "|"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_code_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|json|npz|cfg|toml|j2))`", page.read_text("utf-8"))
    names = [name for name in named if "/" in name and not name.endswith("NAME.py")]
    bases = (ROOT, ROOT / "bmex_bids", ROOT / "docs")
    assert [name for name in names if not any((base / name).exists() for base in bases)] == []


@pytest.mark.parametrize("name", ["Makefile", "CONTRIBUTING.md", "setup.cfg", "pyproject.toml"])
def test_tests_and_folders_that_a_build_file_names_exist(name: str) -> None:
    """A test moved to another folder; its target of make named the old one."""
    text = (ROOT / name).read_text("utf-8")
    named = re.findall(r"(?<![\w/.])(?:tests|docs|containers|boilerplate)/[\w./-]*\w", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
