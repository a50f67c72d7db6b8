# SPDX-License-Identifier: Apache-2.0
"""What the campaigns break: a dataset of small brains, the app with a tiny network, its output.

As a program this is ``bmex`` itself, but for the weights, which are those of ``BMEX_TINY``: a
network so small that a brain takes a second.  Everything else is as users have it::

    BMEX_TINY=WEIGHTS_FOLDER python tests/faults/tiny.py BIDS OUT participant …
"""

from __future__ import annotations

import atexit
import gzip
import hashlib
import importlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results import Lost

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("fetal", "month0", "month3", "month6", "month9", "month12", "month18", "month24")
SEED = 20250711
# before anything imports torch: runs are forks of this process
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ |= {"NO_ET": "1", "NIPYPE_NO_ET": "1", "MPLBACKEND": "Agg"}
#: seconds after which a run hangs
PATIENCE = 300.0
#: what differs between two runs though nothing is wrong: times, dates, the run's own name
TIMING = re.compile(r"[Ss]econds|Duration|Date|Time$")
#: in JSON, where the dataset is and what was typed: other folders, the same output
OF_A_RUN = {"raw", "Command"}
#: the same in pages
COMMAND_LINE = re.compile(r"<th>Command line</th><td>.*?</td>", re.S)
#: in pages and pictures: dates, ids that matplotlib and nireports draw by lot
FLEETING = re.compile(
    r"\d{8}-\d{6}[\w-]*|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?|\d+(\.\d+)? s\b"
)


# The dataset


def brain(size: float = 0.255, spacing: float = 2.5, seed: int = 0) -> Any:
    """A stripped brain of nested ellipsoids, int16, LPS+; ``size`` 1 holds 1.3 litres."""
    import nibabel as nib
    import numpy as np

    half = np.array([70.0, 86.0, 78.0]) * size
    shape = np.ceil(2 * half / spacing).astype(int)
    x, y, z = (
        ((np.arange(n) - (n - 1) / 2) * spacing / size).reshape(np.roll([n, 1, 1], axis))
        for axis, n in enumerate(shape)
    )
    values = np.zeros(tuple(shape))
    for radii, level in (((60, 76, 68), 2160), ((57, 73, 65), 1440), ((46, 62, 54), 1200)):
        values[(x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 <= 1] = level
    values[(x / 8) ** 2 + (y / 18) ** 2 + (z / 10) ** 2 <= 1] = 2160  # the ventricles
    noise = np.random.default_rng(seed).normal(0, 15, tuple(shape))
    values = np.where(values > 0, values + noise, 0)
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = [half[0], half[1], -half[2]]
    return nib.Nifti1Image(np.rint(values).astype(np.int16), affine)


def dataset(folder: Path, labels: Sequence[str], **shape: Any) -> Path:
    """A BIDS dataset of fetuses (the smallest brains there are) with one T2w image each."""
    folder.mkdir(parents=True)
    description = {"Name": "Broken on purpose", "BIDSVersion": "1.10.0", "Authors": ["Nobody"]}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    (folder / "README.md").write_text("Small brains, made to be broken.\n" * 20)
    rows = "".join(f"sub-{label}\t28\n" for label in labels)
    (folder / "participants.tsv").write_text(f"participant_id\tgestational_age_weeks\n{rows}")
    columns = {"gestational_age_weeks": {"Description": "At the scan", "Units": "weeks"}}
    (folder / "participants.json").write_text(json.dumps(columns))
    for number, label in enumerate(labels):
        path = folder / f"sub-{label}/anat/sub-{label}_T2w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(brain(seed=number, **shape).to_bytes(), 1, mtime=0))
    return folder


# The app


def weights(folder: Path) -> Path:
    """A folder with the tiny network, for ``BMEX_TINY``."""
    import torch
    from safetensors.torch import save_file

    from bmex_bids.network.models.compact import CompactBMEX

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file(CompactBMEX(width=4, tissue_width=4).state_dict(), folder / "tiny.safetensors")
    return folder


def records() -> list[Any]:
    """Takes the place of ``network.registry.bundled``."""
    from bmex_bids.network.weights.registry import WeightRecord

    path = Path(os.environ["BMEX_TINY"]) / "tiny.safetensors"
    common: dict[str, Any] = {
        "path": path,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "source": "made by a campaign",
        "description": "untrained",
        "variant": "bmex-compact",
        "input_units": "template units",
        "version": "0",
    }
    contrasts = ("T1w", "T2w")
    return [
        WeightRecord(
            name="tiny", kind="enhance", age_groups=GROUPS, contrasts=contrasts, **common
        ),
        WeightRecord(name="tiny-strip", kind="strip", age_groups=(), contrasts=(), **common),
    ]


@dataclass
class App:
    """Runs the app; every run is a process group of its own.

    Attributes
    ----------
    folder : the tiny weights are there, and what the runs print
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    number: int = 0
    started: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.environment = {
            **os.environ,
            "BMEX_TINY": str(weights(self.folder / "weights")),
            "PYTHONPATH": str(ROOT),
            **self.environment,
        }

    def command(self, bids: Path, out: Path, work: Path, *flags: str) -> list[str]:
        """The command line; one process unless the flags say another number."""
        return [
            *(sys.executable, str(Path(__file__).resolve()), str(bids), str(out), "participant"),
            *("-w", str(work), "--skip-bids-validation", "--omp-nthreads", "1", "--nprocs", "1"),
            *flags,
        ]

    def start(
        self,
        bids: Path,
        out: Path,
        work: Path,
        *flags: str,
        before: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        afresh: bool = False,
        **options: Any,
    ) -> Run:
        """Start a run.

        Parameters
        ----------
        before : goes in front of the command
        environment : changes; None unsets a variable
        afresh : load the modules anew, as a user's command does; else the run is a fork of this
            process.  Whatever needs ``before``, an environment or options is loaded afresh.
        options : of Popen
        """
        self.number += 1
        log = self.folder / f"run-{self.number:03d}.log"
        if not (before or environment or afresh or options):
            arguments = self.command(bids, out, work, *flags)[2:]
            run = Run(Forked(arguments, log, self.environment, self.folder), log)
            self.started.append(run)
            return run
        changed = {**self.environment, **(environment or {})}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*before, *self.command(bids, out, work, *flags)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in changed.items() if value is not None},
                cwd=self.folder,
                start_new_session=True,
                **options,
            )
        run = Run(process, log)
        self.started.append(run)
        return run

    def stop_all(self) -> None:
        """Nothing of a case runs into the next one."""
        for run in self.started:
            if group(run.process.pid):
                run.kill_group()
        self.started.clear()

    def run(self, bids: Path, out: Path, work: Path, *flags: str, **how: Any) -> Run:
        """Start a run and wait for its end."""
        run = self.start(bids, out, work, *flags, **how)
        run.wait()
        return run


class Forked:
    """A run in a fork of this process, which has loaded all modules: that saves most of the time.

    It has the methods of ``subprocess.Popen`` that :class:`Run` uses.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path
    ) -> None:
        load()
        log.touch()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)
            return
        code = 70
        try:
            os.setsid()
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(stream, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            sys.modules["__main__"].__file__ = __file__  # workers load it
            code = self._child(list(arguments))
        except BaseException:  # noqa: BLE001 - nothing of it may reach the parent's code
            traceback.print_exc()
        finally:
            os._exit(code)

    @staticmethod
    def _child(arguments: list[str]) -> int:
        from bmex_bids.cli.run import main

        pretend()
        try:
            code = main(arguments)
        except SystemExit as stop:  # of argparse
            code = int(stop.code or 0)
        threading._shutdown()  # type: ignore[attr-defined] # what the interpreter does at its end
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    def poll(self) -> int | None:
        """Exit code, negative after a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As of Popen."""
        end = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("bmex", timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """As of Popen."""
        if self.poll() is None:
            os.kill(self.pid, number)


def load() -> None:
    """All that a run will import."""
    import bids  # noqa: F401
    import SimpleITK  # noqa: F401
    import torch  # noqa: F401

    import bmex_bids

    for module in pkgutil.walk_packages(bmex_bids.__path__, "bmex_bids."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


@dataclass
class Run:
    """A run of the app."""

    process: subprocess.Popen[bytes] | Forked
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs, negative after a signal."""
        return self.process.poll()

    @property
    def said(self) -> str:
        """All it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="backslashreplace")

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end; a run that hangs is killed and lost."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_group()
            raise Lost(f"the run hung for {seconds:.0f} s; it said: {self.tail()}") from None

    def until(self, words: str, seconds: float = PATIENCE) -> None:
        """Wait until it prints something."""
        end = time.monotonic() + seconds
        while not re.search(words, self.said):
            if self.code is not None or time.monotonic() > end:
                self.kill_group()
                raise Lost(f"the run never said {words!r}; it said: {self.tail()}")
            time.sleep(0.02)

    def send(self, number: int) -> None:
        """To the main process only, as ``docker stop`` does."""
        self.process.send_signal(number)

    def kill_group(self, number: int = signal.SIGKILL) -> None:
        """To the main process and all its children, as a terminal or the kernel does."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass
        if number == signal.SIGKILL:
            self.process.wait()

    def children(self) -> list[int]:
        """Processes of its group that live, the main one left out."""
        return [pid for pid in group(self.process.pid) if pid != self.process.pid]

    def peak_kib(self) -> int:
        """Most memory that the main process held so far, KiB; 0 when it has ended."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)

    def processor_seconds(self) -> float:
        """What all processes of the run used so far, those that ended and were waited for, too."""
        ticks = sum(
            sum(map(int, fields[11:15])) for fields in processes(self.process.pid).values()
        )
        return float(ticks) / os.sysconf("SC_CLK_TCK")

    def tail(self, length: int = 300) -> str:
        """The end of what it said."""
        return self.said[-length:].strip()


def processes(leader: int) -> dict[int, list[str]]:
    """Of a process group, zombies too: number → fields of /proc/…/stat behind the name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended just now
            continue
        if int(fields[2]) == leader:
            found[int(path.parent.name)] = fields
    return found


def group(leader: int) -> list[int]:
    """Processes of a process group that live (a zombie does not)."""
    return [number for number, fields in processes(leader).items() if fields[0] != "Z"]


# The output


def statuses(out: Path) -> dict[str, dict[str, str]]:
    """The rows of the last run's table, by image."""
    tables = sorted(out.glob("logs/*/status.tsv"), key=lambda path: path.stat().st_mtime_ns)
    if not tables:
        raise Lost("there is no status.tsv")
    header, *rows = [line.split("\t") for line in tables[-1].read_text("utf-8").splitlines()]
    table = [dict(zip(header, row, strict=True)) for row in rows]
    return {row["image"]: row for row in table}


def files(out: Path) -> Iterator[Path]:
    """The files of an output that are not of one run only, relative."""
    for path in sorted(out.rglob("*")):
        relative = path.relative_to(out)
        if relative.parts[0] != "logs" and not path.is_dir():
            yield relative


def temporaries(*folders: Path) -> list[Path]:
    """Hidden files but ``.bidsignore``: what was to become a file and did not."""
    return [
        path
        for folder in folders
        for path in folder.rglob(".*")
        if path.is_file() and path.name != ".bidsignore"
    ]


def same_output(out: Path, undisturbed: Path, *, only: str = "") -> str:
    """Compare two outputs file by file; Lost says what differs.

    Parameters
    ----------
    only : part of the names of the files to compare, such as ``sub-01``; "" for all
    """
    left = temporaries(out)
    if left:
        raise Lost(f"left behind: {', '.join(path.name for path in left[:3])}")
    here, there = ({p for p in files(folder) if only in str(p)} for folder in (out, undisturbed))
    if here != there:
        missing = ", ".join(sorted(map(str, there - here))[:3])
        more = ", ".join(sorted(map(str, here - there))[:3])
        raise Lost(f"files missing: {missing or 'none'}; too many: {more or 'none'}")
    for name in sorted(here):
        _same_file(out / name, undisturbed / name)
    return f"{len(here)} files as undisturbed"


def _same_file(mine: Path, theirs: Path) -> None:
    where = ""
    if mine.name.endswith(".nii.gz"):
        import nibabel as nib
        import numpy as np

        one, two = nib.load(mine), nib.load(theirs)
        same = (
            np.array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
            and np.array_equal(one.affine, two.affine)
            and one.header == two.header
        )
    elif mine.suffix == ".json":
        here, there = (_flat(_timeless(json.loads(p.read_text("utf-8")))) for p in (mine, theirs))
        odd = sorted(key for key in {*here, *there} if here.get(key) != there.get(key))
        where = "".join(f" at {key}: {here.get(key)!r}, not {there.get(key)!r}" for key in odd[:1])
        same = not odd
    elif mine.suffix in {".html", ".svg"}:  # ids and dates differ; the words must not
        one, two = _words(mine), _words(theirs)
        where = "".join(f": {a!r}, not {b!r}" for a, b in zip(one, two, strict=False) if a != b)
        same = one == two
    else:
        same = mine.read_bytes() == theirs.read_bytes()
    if not same:
        raise Lost(f"{mine.name} differs from that of the undisturbed run{where[:200]}")


def _flat(table: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested JSON by their paths."""
    if isinstance(table, list):
        table = dict(enumerate(table))
    if not isinstance(table, Mapping):
        return {name: table}
    return {k: v for key in table for k, v in _flat(table[key], f"{name}/{key}").items()}


def _timeless(table: Any) -> Any:
    """JSON without what differs between two runs: times, folders, checksums of files with them."""
    if isinstance(table, Mapping):
        return {
            key: _names(value) if key == "Outputs" else _timeless(value)
            for key, value in table.items()
            if not TIMING.search(key) and key not in OF_A_RUN
        }
    return [_timeless(item) for item in table] if isinstance(table, list) else table


def _names(outputs: Mapping[str, str]) -> Any:
    """Checksums of images only: a sidecar holds how long the network took."""
    return {name: sum_ if name.endswith(".nii.gz") else "" for name, sum_ in outputs.items()}


def _words(path: Path) -> list[str]:
    """The words of a page or picture, without dates, durations and drawn ids."""
    text = COMMAND_LINE.sub(" ", path.read_text())
    text = re.sub(r"<(script|style|metadata|defs).*?</\1>", " ", text, flags=re.S)
    return FLEETING.sub("…", re.sub(r"<[^>]*>", " ", text)).split()


def plain_drawings(real: Mapping[str, Any]) -> dict[str, Any]:
    """The report's summary, and small pictures in the place of all others, which take most of a run.

    None is left out: an image without one of its pictures is not unchanged in the next run.
    """
    return {**dict.fromkeys(real, _draw_a_circle), "summary": real["summary"]}


def _draw_a_circle(_: Any, path: Path) -> None:
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>\n')


def pretend() -> None:
    """The tiny network and the plain pictures take the places of the real ones."""
    from bmex_bids.interfaces import reportlets
    from bmex_bids.network.weights import registry

    registry.bundled = records
    real = reportlets.drawings()
    reportlets.drawings = lambda: plain_drawings(real)


if __name__ in {"__main__", "__mp_main__"}:  # in the worker processes, too
    from bmex_bids.cli.streams import forgiving

    with forgiving():
        pretend()

if __name__ == "__main__":
    from bmex_bids.cli.run import main

    sys.exit(main())
