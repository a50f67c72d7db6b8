# SPDX-License-Identifier: Apache-2.0
"""Change one harmful line at a time, run the nearest tests, and print the changes that nobody notices.

``make mutants``, or ``python tests/mutants/run.py [WORD …]`` for the rows that hold all the words.
The table ``mutants.tsv`` has a row a mutant: file below ``bmex_bids``, the text that stands there
once, what it becomes (``\\n`` is the end of a line), the tests to run.

The work is done in a copy of the tree; the tree itself stays as it is.  Each mutant has a process of
its own, forked from one that has loaded the libraries: loading them takes longer than most tests.
"""

from __future__ import annotations

import csv
import importlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutants.tsv")
#: what a mutant's tests need
COPIED = (
    "bmex_bids", "boilerplate", "tests", "docs", "README.md", "setup.cfg", "pyproject.toml",
    "Makefile",
)  # fmt: skip
LIBRARIES = (
    "numpy", "scipy.ndimage", "scipy.stats", "torch", "nibabel", "matplotlib", "nipype",
    "nipype.pipeline.engine", "bids.layout", "nireports.assembler", "nilearn.plotting",
    "nireports.reportlets.mosaic", "SimpleITK", "skimage.metrics", "safetensors.torch",
)  # fmt: skip


def rows(words: list[str]) -> list[dict[str, str]]:
    """The rows of the table that hold all the words."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row for row in found if all(word in "\t".join(row.values()) for word in words)]


def mutated(source: str, row: dict[str, str]) -> str:
    """The source with one text replaced; ValueError where it does not stand there once."""
    before, after = ((row[key] or "").replace("\\n", "\n") for key in ("before", "after"))
    if source.count(before) != 1:
        raise ValueError(
            f"expected {before!r} once in {row['file']}, found {source.count(before)}; mend the row"
        )
    return source.replace(before, after)


def outcome(tree: Path, row: dict[str, str], log: Path) -> int:
    """Exit code of pytest on the nearest tests with the change: 0 where they pass, 1 where not."""
    path = tree / "bmex_bids" / row["file"]
    source = path.read_text(encoding="utf-8")
    path.write_text(mutated(source, row), encoding="utf-8")
    _forget_bytecode(path)
    try:
        child = os.fork()
        if not child:
            _test(tree, row["tests"], log)
        _, status = os.waitpid(child, 0)
    finally:
        path.write_text(source, encoding="utf-8")
        _forget_bytecode(path)
    return os.waitstatus_to_exitcode(status)


def _forget_bytecode(path: Path) -> None:
    """Of a source that changes twice within a second, Python would take what it compiled first."""
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def _test(tree: Path, tests: str, log: Path) -> None:
    """Run tests in this process, and end it."""
    code = 99
    try:
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        quiet = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
        code = int(pytest.main([*quiet, *shlex.split(tests)]))
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def main(words: list[str]) -> int:
    """Run the mutants; 1 where some survive."""
    chosen, left = rows(words), []
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    if any(name.split(".")[0] == "bmex_bids" for name in sys.modules):
        raise RuntimeError("expected no library to import bmex_bids, one did; mend LIBRARIES")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / name)
        for number, row in enumerate(chosen, start=1):
            log = tree / f"{number}.log"
            begun = time.monotonic()
            try:
                code = outcome(tree, row, log)
                word = {0: "SURVIVES", 1: "noticed"}.get(code, "CANNOT RUN")
            except ValueError as error:
                word = f"MEND: {error}"
            print(
                f"{number}/{len(chosen)} {time.monotonic() - begun:.0f} s  {word}  {row['what']}",
                flush=True,
            )
            if word == "CANNOT RUN":
                print(log.read_text(encoding="utf-8")[-1500:], flush=True)
            elif word == "noticed":  # by what: tests that fail without a change notice nothing
                lines = log.read_text(encoding="utf-8").splitlines()
                print(*(f"    {line}" for line in lines if line.startswith("FAILED")), flush=True)
            if word != "noticed":
                left.append(row)
    print(f"\n{len(left)} of {len(chosen)} survive")
    for row in left:
        print(f"  {row['file']}: {row['what']}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
