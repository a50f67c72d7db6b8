# SPDX-License-Identifier: Apache-2.0
"""What every campaign of runs starts from: a dataset, its undisturbed output, fresh folders."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from results import Lost, Results
from tiny import App, Run, dataset, files, same_output, statuses, temporaries

LABELS = ("01", "02")


@dataclass
class Bench:
    """A folder of its own, the app, and the results.

    Attributes
    ----------
    folder : everything lies here; removed in the end
    only : a regular expression; a case whose group and name do not hold it is left out
    """

    folder: Path
    results: Results
    quick: bool
    only: str = ""
    number: int = 0

    @cached_property
    def app(self) -> App:
        """The app with the tiny network."""
        return App(self.folder)

    @cached_property
    def bids(self) -> Path:
        """Two small brains."""
        return dataset(self.folder / "bids", LABELS)

    @cached_property
    def undisturbed(self) -> Path:
        """What comes out when nothing happens; made once, and checked to be the same twice."""
        out = self.fresh("undisturbed")
        self.work = self.fresh("undisturbed-work")
        run = self.app.run(self.bids, out, self.work)
        self.lines = run.said.count("\n")
        if run.code != 0:
            raise RuntimeError(f"the undisturbed run ended with {run.code}: {run.said}")
        return out

    def fresh(self, name: str = "case") -> Path:
        """A path nobody has used."""
        self.number += 1
        return self.folder / f"{name}-{self.number:03d}"

    def case(self, group: str, case: str, expected: str, check: Callable[[], str]) -> None:
        """Run a case; the undisturbed run's time is not the case's."""
        if not re.search(self.only, f"{group}: {case}"):
            return
        self.undisturbed  # noqa: B018
        self.results.case(group, case, expected, check)
        self.app.stop_all()
        for path in self.folder.glob("case-*"):
            shutil.rmtree(path, ignore_errors=True)

    def again(self, out: Path, work: Path, *flags: str, bids: Path | None = None) -> str:
        """The same command once more, in peace: all must be as if nothing had happened."""
        check_whole(out)
        run = self.app.run(bids or self.bids, out, work, *flags)
        if run.code != 0:
            raise Lost(f"the second run ended with {run.code}: {run.tail()}")
        return same_output(out, self.undisturbed)


def check_whole(out: Path) -> None:
    """Every file of an output can be read to its end; Lost names one that cannot."""
    import nibabel as nib
    import numpy as np

    if not out.exists():
        return
    for name in files(out):
        path = out / name
        if path in temporaries(path.parent):
            continue
        try:
            if name.name.endswith(".nii.gz"):
                np.asarray(nib.load(path).dataobj)
                sidecar = path.with_name(name.name.replace(".nii.gz", ".json"))
                json.loads(sidecar.read_text("utf-8"))
            elif path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
            elif path.suffix in {".html", ".svg"}:
                text = path.read_text("utf-8").rstrip()
                if name.parent != Path() or path.suffix == ".svg":
                    whole = bool(text)
                else:
                    whole = text.endswith("</html>")
                if path.suffix == ".svg":
                    whole = text.endswith("</svg>")
                if not whole:
                    raise ValueError("it ends too early")
        except (OSError, EOFError, ValueError) as error:
            raise Lost(f"{name} is not whole: {error}") from error


def check_clean(run: Run, codes: Sequence[int], *words: str) -> None:
    """A run ended by itself, with one of the codes, with the words, without a traceback."""
    if run.code not in codes:
        raise Lost(f"ended with {run.code}, not {codes}: {run.tail()}")
    for word in words:
        if word not in run.said:
            raise Lost(f"did not say {word!r} but: {run.tail()}")
    begin = run.said.find("Traceback")
    if begin >= 0:
        raise Lost(f"a traceback was shown: {run.said[begin:][:1500]}")


def counts(out: Path) -> str:
    """What became of the images, in words."""
    rows = [row["status"] for row in statuses(out).values()]
    return ", ".join(f"{rows.count(status)} {status}" for status in dict.fromkeys(rows))


@contextmanager
def bench(name: str, argv: Sequence[str] | None = None) -> Iterator[Bench]:
    """Read a campaign's command line, make its folder and remove it in the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", metavar="REGEX", help='part of "group: case"')
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix=f"bmex-{name}-"))
    folder.chmod(0o755)  # some cases run as somebody else
    try:
        yield Bench(folder, Results(options.results, name), options.quick, options.only)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
