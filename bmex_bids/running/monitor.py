# SPDX-License-Identifier: Apache-2.0
"""What Nipype's resource monitor measured of each step, in one table, whatever became of the run.

Nipype itself writes its table only after a workflow without failures, and only of steps whose
results are still there; the samples it writes into the current folder, which may be read-only.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from nipype import config as nipype_config
from nipype.pipeline.engine import Workflow
from nipype.utils.filemanip import indirectory, loadpkl

if TYPE_CHECKING:
    from bmex_bids.running.events import Event

#: in the work folder: a folder for each step that runs
FOLDER = "resource_monitor"
#: samples of a step: time, percent of a processor, resident and virtual MiB
SAMPLES = ".proc-*"
COLUMNS = ("time", "name", "interface", "rss_GiB", "vms_GiB", "cpus", "mapnode", "params")
MIB_PER_GIB = 1024


@contextlib.contextmanager
def sampled(node: Any) -> Iterator[None]:
    """Run a node inside this block, so that the monitor's samples go to a folder of the node."""
    if not nipype_config.resource_monitor:
        yield
        return
    folder = _folder(Path(node.base_dir), node.fullname)
    folder.mkdir(parents=True, exist_ok=True)
    with indirectory(folder):
        yield


def _folder(base: Path, node: str) -> Path:
    return base / FOLDER / node


class Monitor:
    """Listens to a workflow, gathers the samples of each step when it ends, and writes them.

    Parameters
    ----------
    workflow : that is run; its nodes in :func:`sampled`, or by another plugin
    listener : is told each event after its samples are gathered
    """

    def __init__(self, workflow: Workflow, listener: Callable[[Event], None]) -> None:
        self._workflow, self._listener = workflow, listener
        self._base = Path(workflow.base_dir or ".")
        self._table: dict[str, list[Any]] = {column: [] for column in COLUMNS}
        shutil.rmtree(self._base / FOLDER, ignore_errors=True)  # of a run that was killed

    def __call__(self, event: Event) -> None:
        """Take note of an event, and pass it on."""
        if event.status != "start":
            self._gather(event.node)
        self._listener(event)

    def write(self, path: Path) -> None:
        """Write the table as JSON: one list for each column, as Nipype does.

        The steps that were running when a run was interrupted are in it.
        """
        for folder in sorted((self._base / FOLDER).glob("*")):
            self._gather(folder.name)
        shutil.rmtree(self._base / FOLDER, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._table), encoding="utf-8")

    def _gather(self, node: str) -> None:
        folder = _folder(self._base, node)
        samples = [
            values
            for file in sorted(folder.glob(SAMPLES))
            for line in file.read_text(encoding="ascii").splitlines()
            if len(values := line.split(",")) == 4  # else cut off: its process was killed
        ]
        shutil.rmtree(folder, ignore_errors=True)
        inner = self._workflow.get_node(node.removeprefix(f"{self._workflow.fullname}."))
        for time, cpus, rss, vms in samples or self._of_result(node):
            row = {
                "time": float(time),
                "name": node,
                "interface": type(inner.interface).__name__,
                "rss_GiB": float(rss) / MIB_PER_GIB,
                "vms_GiB": float(vms) / MIB_PER_GIB,
                "cpus": float(cpus),
                "mapnode": 0,
                "params": "",
            }
            for column in COLUMNS:
                self._table[column].append(row[column])

    def _of_result(self, node: str) -> Iterator[tuple[float, float, float, float]]:
        """The samples in the result of a step that another plugin ran, perhaps elsewhere."""
        *parents, name = node.split(".")
        path = self._base.joinpath(*parents, name, f"result_{name}.pklz")
        try:
            measured = loadpkl(path).runtime.prof_dict
        except (OSError, EOFError, UnpicklingError, AttributeError):
            return
        columns = (measured[column] for column in ("time", "cpus", "rss_GiB", "vms_GiB"))
        for time, cpus, rss, vms in zip(*columns, strict=True):
            yield time, cpus, rss * MIB_PER_GIB, vms * MIB_PER_GIB
