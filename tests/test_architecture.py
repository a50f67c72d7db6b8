# SPDX-License-Identifier: Apache-2.0
"""The import rule, read from the syntax tree: a package imports only from lower lines.

1. ``cli``, ``api``
2. ``slurm``
3. ``evaluation``, which judges what the app and ``training`` make
4. ``running``
5. ``workflows``, ``reports``
6. ``config``
7. ``interfaces``, ``training``
8. ``inputs``, ``outputs``, ``imaging``, ``refocus``, ``network``, ``degrade``, ``metrics``,
   ``recon``: never each other
9. ``settings``
10. ``common``
11. ``exceptions``, ``values``, ``data``, ``boilerplate``

``cli``, ``slurm`` and ``running`` read ``config``; nothing below does.  Third-party packages have
homes: torch at module top only in ``network``, ``recon``, ``refocus`` and ``training``; sigpy, h5py
and ismrmrd in ``recon``; nipype in ``interfaces``, ``workflows`` and ``running``; pybids in
``inputs/index.py``; argparse in ``cli``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bmex_bids"

LINES = (
    {"__main__"},
    {"cli", "api"},
    {"slurm"},
    {"evaluation"},  # judges what the app makes
    {"running"},
    {"workflows", "reports"},
    {"config"},
    {"interfaces", "training"},
    {"inputs", "outputs", "imaging", "refocus", "network", "degrade", "metrics", "recon"},
    {"settings"},
    {"common"},
    {"exceptions", "values", "data", "boilerplate"},
    {"__init__"},  # of the package itself: the version, which all may read
)
#: the same inside a package: its parts, uppermost first
INSIDE = {
    "network": (
        {"inference"},
        {"engine", "weights"},  # never each other
        {"models"},
        {"devices", "variants"},
    ),
}
#: of a function; public constructors may have more
MOST_PARAMETERS = 8
#: so many lines stand in one place only
REPEATED_LINES = 6
#: of a file that is no table
MOST_LINES = 500
#: files that may be longer
TABLES = {"config.py"}
LINE = {part: number for number, parts in enumerate(LINES) for part in parts}

#: third-party package -> (where it may be imported, whether the rule holds inside functions too)
HOMES: dict[str, tuple[tuple[str, ...], bool]] = {
    "torch": (("network/", "recon/", "refocus/", "training/"), False),
    "sigpy": (("recon/",), True),
    "h5py": (("recon/",), True),
    "ismrmrd": (("recon/",), True),
    "nipype": (("interfaces/", "workflows/", "running/"), True),
    "niworkflows": (("interfaces/", "workflows/", "reports/"), True),
    "nireports": (("interfaces/", "workflows/", "reports/"), True),
    "bids": (("inputs/index.py",), True),
    "argparse": (("cli/",), True),
}


@dataclass(frozen=True)
class Import:
    """One imported module: its full name, the line, and whether it happens on import."""

    name: str
    line: int
    on_import: bool


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in a syntax tree; ``if TYPE_CHECKING`` blocks do not happen on import."""

    def walk(node: ast.AST, on_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, on_import)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = module.split(".")
                    parts = parts[: len(parts) - child.level + is_package]
                    base = ".".join([*parts, base] if base else parts)
                for alias in child.names:
                    # "from bmex_bids import config" imports a part, not a name of the root
                    yield Import(f"{base}.{alias.name}", child.lineno, on_import)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, False)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, on_import and not inside)

    yield from walk(tree, True)


def part_of(name: str) -> str | None:
    """The part of bmex_bids a full module name belongs to; None for third parties."""
    root, _, rest = name.partition(".")
    if root != "bmex_bids":
        return None
    first = rest.split(".")[0]
    return first if first in LINE else "__init__"


def offences(relative: str, source: str) -> list[str]:
    """What a file of the package imports although the rule forbids it."""
    path = Path(relative)
    module = module_of(relative)
    own = path.parts[0].removesuffix(".py")
    found = []
    for item in imports(ast.parse(source), module, path.name == "__init__.py"):
        part = part_of(item.name)
        where = f"bmex_bids/{relative}:{item.line}"
        if part is None:
            root = item.name.split(".")[0]
            homes, everywhere = HOMES.get(root, ((), False))
            if homes and (item.on_import or everywhere) and not relative.startswith(homes):
                found.append(f"{where}: {root} belongs in {' and '.join(homes)}")
        elif own == "__init__":
            if item.on_import and part != "exceptions":
                found.append(f"{where}: importing bmex_bids must not import {part}")
        elif part == "config" and own not in {"cli", "slurm", "running", "config"}:
            found.append(f"{where}: only cli, slurm and running read config")
        elif part == own and own in INSIDE and len(path.parts) > 1:
            lines = {name: number for number, names in enumerate(INSIDE[own]) for name in names}
            here = path.with_suffix("").parts[1]
            there = (item.name.split(".") + ["__init__"] * 3)[2]
            if here != there and here in lines and lines.get(there, -1) <= lines[here]:
                found.append(f"{where}: {own}.{here} imports {own}.{there}")
        elif part != own and LINE[part] <= LINE[own]:
            found.append(f"{where}: {own} (line {LINE[own]}) imports {part} (line {LINE[part]})")
    return found


def private_names(tree: ast.Module) -> Iterator[str]:
    """Underscored names of another module of bmex_bids that a file takes."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or part_of(node.module or "")):
            for alias in node.names:
                if re.fullmatch(r"_[^_].*", alias.name):
                    yield alias.name
                modules.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules and re.fullmatch(r"_[^_].*", node.attr):
                yield f"{node.value.id}.{node.attr}"


def graph(sources: dict[str, str]) -> nx.DiGraph:
    """Which module imports which, also inside functions; ``sources`` by paths in the package."""
    names = {name: module_of(name) for name in sources}
    found = nx.DiGraph()
    for relative, source in sources.items():
        own = names[relative]
        if own == "bmex_bids":  # its public names are imported when they are asked for
            continue
        for item in imports(ast.parse(source), own, relative.endswith("__init__.py")):
            target = item.name if item.name in names.values() else item.name.rpartition(".")[0]
            if target in names.values() and target not in (own, "bmex_bids"):
                found.add_edge(own, target)
    return found


def module_of(relative: str) -> str:
    """Full name of the module in a file of the package."""
    parts = Path(relative).with_suffix("").parts
    return ".".join(["bmex_bids", *parts]).removesuffix(".__init__")


def parameters(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each function that is no public constructor, and how many parameters a caller may give."""

    def walk(node: ast.AST, owner: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                of = child.args
                count = len(of.posonlyargs) + len(of.args) + len(of.kwonlyargs)
                first = (of.posonlyargs + of.args)[:1]
                count -= bool(owner and first and first[0].arg in ("self", "cls"))
                if child.name != "__init__" or owner.startswith("_"):
                    yield f"{owner}.{child.name}".lstrip("."), count
                yield from walk(child, "")
            else:
                yield from walk(child, child.name if isinstance(child, ast.ClassDef) else owner)

    yield from walk(tree, "")


def repeated(sources: dict[str, str], count: int) -> list[str]:
    """Runs of so many lines without a gap that stand in two places; imports do not count."""
    places: dict[tuple[str, ...], str] = {}
    found = []
    for relative, source in sources.items():
        lines = [line.strip() for line in source.split("\n")]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                    lines[number - 1] = ""
        for start in range(len(lines) - count + 1):
            run = tuple(lines[start : start + count])
            if all(run):
                here = f"{relative}:{start + 1}"
                there = places.setdefault(run, here)
                if there != here:
                    found.append(f"{there} and {here}")
    return found


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("relative", FILES)
def test_imports_only_from_lower_lines(relative: str) -> None:
    assert offences(relative, (PACKAGE / relative).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("relative", FILES)
def test_no_module_takes_anothers_underscored_names(relative: str) -> None:
    assert list(private_names(ast.parse((PACKAGE / relative).read_text(encoding="utf-8")))) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {name: (PACKAGE / name).read_text(encoding="utf-8") for name in FILES}
    assert list(nx.simple_cycles(graph(sources))) == []


def test_a_circle_and_an_underscored_name_are_found() -> None:
    sources = {
        "a/b.py": "from bmex_bids.a import c",
        "a/c.py": "def f():\n    from bmex_bids.a.b import g",
    }
    assert len(list(nx.simple_cycles(graph(sources)))) == 1
    code = "from bmex_bids.cli import run\nfrom bmex_bids.a import _x\nrun._main(run.__doc__)"
    assert list(private_names(ast.parse(code))) == ["_x", "run._main"]


@pytest.mark.parametrize("relative", FILES)
def test_no_function_takes_more_parameters_than_one_can_keep_apart(relative: str) -> None:
    tree = ast.parse((PACKAGE / relative).read_text(encoding="utf-8"))
    assert [name for name, count in parameters(tree) if count > MOST_PARAMETERS] == []


@pytest.mark.parametrize("relative", FILES)
def test_no_file_is_longer_than_one_can_read(relative: str) -> None:
    lines = (PACKAGE / relative).read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES or relative in TABLES


def test_nothing_is_said_twice_to_the_letter() -> None:
    sources = {name: (PACKAGE / name).read_text(encoding="utf-8") for name in FILES}
    assert repeated(sources, REPEATED_LINES) == []


def test_a_repeated_run_of_lines_is_found() -> None:
    code = "a = 1\nb = 2\nc = 3"
    assert repeated({"x.py": code, "y.py": f"import z\n\n{code}"}, 3) == ["x.py:1 and y.py:3"]
    assert repeated({"x.py": code, "y.py": code.replace("\nb", "\n\nb")}, 3) == []
    assert (
        repeated({"x.py": "from a import (\n  b,\n)", "y.py": "from a import (\n  b,\n)"}, 3) == []
    )


def test_parameters_are_counted() -> None:
    code = """
class A:
    def __init__(self, a, b, c): ...
    def f(self, a, /, b, *more, c=1, **rest): ...
class _B:
    def __init__(self, a): ...
def g(self, a):
    def h(a, b): ...
"""
    assert list(parameters(ast.parse(code))) == [
        ("A.f", 3),
        ("_B.__init__", 1),
        ("g", 2),
        ("h", 2),
    ]


def test_every_part_has_a_line() -> None:
    parts = {Path(name).parts[0].removesuffix(".py") for name in FILES}
    assert parts <= set(LINE), "give the new part a line in LINES, or put it into an old one"


def test_every_part_inside_has_a_line() -> None:
    for package, lines in INSIDE.items():
        parts = {path.stem for path in (PACKAGE / package).iterdir()} - {"__init__", "__pycache__"}
        assert parts == set().union(*lines)


@pytest.mark.parametrize(
    ("relative", "source", "word"),
    [
        ("imaging/mask.py", "from bmex_bids.network import predict", "imports network"),
        ("imaging/mask.py", "from ..network import predict", "imports network"),
        ("imaging/mask.py", "def f():\n    import bmex_bids.cli.run", "imports cli"),
        ("workflows/base.py", "from bmex_bids import config", "slurm and running read config"),
        ("reports/individual.py", "import bmex_bids.workflows.base", "imports workflows"),
        ("metrics/tissue.py", "import torch.nn as nn", "torch belongs in"),
        (
            "network/models/bmex.py",
            "from bmex_bids.network.engine import layers",
            "network.models imports network.engine",
        ),
        (
            "network/weights/fetch.py",
            "def f():\n    from ..engine import layers",
            "network.weights imports network.engine",
        ),
        ("cli/run.py", "if True:\n    from nipype import config", "nipype belongs in"),
        ("inputs/age.py", "def f():\n    from bids import BIDSLayout", "bids belongs in"),
        ("__init__.py", "from bmex_bids.cli.run import main", "must not import cli"),
    ],
)
def test_the_rule_finds_an_offence(relative: str, source: str, word: str) -> None:
    (message,) = offences(relative, source)
    assert word in message


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        (
            "imaging/mask.py",
            "from . import orientation\nfrom bmex_bids.exceptions import MaskError",
        ),
        (
            "interfaces/enhance.py",
            "def f():\n    import torch\n    from bmex_bids.network import x",
        ),
        ("interfaces/enhance.py", "if TYPE_CHECKING:\n    import torch"),
        ("network/models/adunet.py", "import torch"),
        ("network/models/bmex.py", "from . import adunet"),
        ("network/inference/predict.py", "from bmex_bids.network.devices import free_bytes"),
        ("cli/run.py", "from bmex_bids import __version__\nfrom bmex_bids.config import Config"),
        ("__init__.py", "def __getattr__(name):\n    from bmex_bids.network import predict"),
    ],
)
def test_the_rule_lets_good_imports_pass(relative: str, source: str) -> None:
    assert offences(relative, source) == []
