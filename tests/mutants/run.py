# SPDX-License-Identifier: Apache-2.0
"""Change one harmful line at a time, run the nearest tests, and print the changes that nobody notices.

``make mutants``, or ``python tests/mutants/run.py [WORD …]`` for the rows that hold a word.  The table
``mutants.tsv`` has a row a mutant: file below ``bmex_bids``, the text that stands there once, what it
becomes, the tests to run.  The work is done in a copy of the tree; the tree itself stays as it is.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutants.tsv")
#: what a mutant's tests need
COPIED = ("bmex_bids", "boilerplate", "tests", "docs", "setup.cfg", "pyproject.toml", "Makefile")


def rows(words: list[str]) -> list[dict[str, str]]:
    """The rows of the table that hold all the words."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row for row in found if all(word in "\t".join(row.values()) for word in words)]


def mutated(source: str, row: dict[str, str]) -> str:
    """The source with one text replaced; ValueError where it does not stand there once."""
    before, after = (
        row[key].encode().decode("unicode_escape") if "\\n" in row[key] else row[key]
        for key in ("before", "after")
    )
    if source.count(before) != 1:
        raise ValueError(
            f"expected {before!r} once in {row['file']}, found {source.count(before)}"
        )
    return source.replace(before, after)


def survives(tree: Path, row: dict[str, str]) -> bool:
    """Whether the nearest tests pass with the change."""
    path = tree / "bmex_bids" / row["file"]
    source = path.read_text(encoding="utf-8")
    path.write_text(mutated(source, row), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *row["tests"].split()],
            cwd=tree, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        path.write_text(source, encoding="utf-8")
    if done.returncode not in (0, 1):
        print(f"  tests could not run: {row['tests']}\n{done.stdout[-600:]}", flush=True)
    return done.returncode != 1


def main(words: list[str]) -> int:
    """Run the mutants; 1 where some survive."""
    chosen, left = rows(words), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / name)
        for number, row in enumerate(chosen, start=1):
            try:
                alive = survives(tree, row)
            except ValueError as error:
                print(f"  {error}; mend the row", flush=True)
                alive = True
            print(
                f"{number}/{len(chosen)} {'SURVIVES' if alive else 'noticed'}  {row['what']}",
                flush=True,
            )
            if alive:
                left.append(row)
    print(f"\n{len(left)} of {len(chosen)} survive")
    for row in left:
        print(f"  {row['file']}: {row['what']}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
