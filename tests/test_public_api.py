# SPDX-License-Identifier: Apache-2.0
"""What others build on: public names, commands, exit codes, and that the package is whole."""

from __future__ import annotations

import configparser
import importlib
import inspect
import re
from pathlib import Path

import pytest

import bmex_bids
from bmex_bids import exceptions

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bmex_bids"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


PUBLIC = ["BmexError", "Enhanced", "__version__", "collect", "enhance", "plan", "select"]


def test_public_names_are_these() -> None:
    assert sorted(bmex_bids.__all__) == PUBLIC


def test_public_names_exist_and_are_documented() -> None:
    for name in PUBLIC:
        assert inspect.getdoc(getattr(bmex_bids, name)), f"bmex_bids.{name} has no docstring"


def test_dir_shows_what_all_promises() -> None:
    assert set(bmex_bids.__all__) <= set(dir(bmex_bids))


def test_exit_codes() -> None:
    codes = {
        name: thing.exit_code
        for name, thing in vars(exceptions).items()
        if inspect.isclass(thing) and issubclass(thing, exceptions.BmexError)
    }
    assert codes == {
        "BmexError": 1,
        "StepError": 1,
        "UsageError": 2,
        "NoInputError": 4,
        "EnvironmentProblem": 5,
        "DeviceError": 5,
        "WeightsError": 5,
        "TemplateError": 5,
        "OutputError": 5,
        "ImageProblem": 1,
        "ImageError": 1,
        "MaskError": 1,
        "MemoryLimitError": 1,
        "AgeError": 1,
    }


def test_there_is_one_version(setup_cfg: configparser.ConfigParser) -> None:
    version = setup_cfg["metadata"]["version"]
    assert bmex_bids.__version__ == version
    assert re.search(
        rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M
    )
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest[1] == version


def test_every_folder_of_code_is_installed(setup_cfg: configparser.ConfigParser) -> None:
    listed = set(setup_cfg["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} | {"bmex_bids.boilerplate"} == listed


COMMANDS = (
    "bmex",
    "bmex-degrade",
    "bmex-demo",
    "bmex-docker",
    "bmex-enhance",
    "bmex-evaluate",
    "bmex-health",
    "bmex-recon",
    "bmex-singularity",
    "bmex-train",
    "bmex-view",
    "bmex-weights",
)


def test_every_command_exists(setup_cfg: configparser.ConfigParser) -> None:
    lines = setup_cfg["options.entry_points"]["console_scripts"].strip().splitlines()
    commands = dict(line.split(" = ") for line in lines)
    assert set(commands) == set(COMMANDS)
    for target in commands.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "bmex-demo"])
def test_every_command_explains_itself(command, setup_cfg, capsys) -> None:
    lines = setup_cfg["options.entry_points"]["console_scripts"].strip().splitlines()
    module, _, function = dict(line.split(" = ") for line in lines)[command].partition(":")
    with pytest.raises(SystemExit, match="0"):
        getattr(importlib.import_module(module), function)(["--help"])
    assert command in capsys.readouterr().out


def test_every_dependency_is_pinned(setup_cfg: configparser.ConfigParser) -> None:
    options = setup_cfg["options"], setup_cfg["options.extras_require"]
    wanted = "\n".join([options[0]["install_requires"], options[1]["test"], options[1]["lint"]])
    names = {_normal(re.split(r"[ <>=;\[]", line)[0]) for line in wanted.split("\n") if line}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {_normal(line.split("==")[0]) for line in lines if not line.startswith("#")}
    assert names <= pins, f"not in constraints.txt: {sorted(names - pins)}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def test_every_source_file_names_its_licence() -> None:
    line = "# SPDX-License-Identifier: Apache-2.0"
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    without = [str(p.relative_to(ROOT)) for p in files if line not in p.read_text("utf-8")[:200]]
    assert without == []


def test_links_in_the_documentation_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
