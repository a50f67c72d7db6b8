# SPDX-License-Identifier: Apache-2.0
"""Nipype's plugins for batch systems, with the holes mended that lose images.

What happens with Nipype 1.11 as it is, each seen on a real SLURM, and what is done here:

=====================================  ==========================================================
``LOGNAME`` is unset                   KeyError at the first job; it is set
a job is cancelled or killed           TypeError ends the run; it is that image's failure
the controller does not answer         live jobs are declared dead; it is asked again for a while
``job_finished_timeout`` of 5 s        live jobs are declared dead on slow file systems; 60 s
jobs are submitted without a size      killed for memory; each asks for its node's size
a path with a space or a ``$``         taken for shell; refused
each job is asked for every 0.2 s      (our own setting for MultiProc); every 5 s
SLURMGraph                             returns before a job has begun, and never fails; waited
                                       for, and each node looked at
SLURMGraph, a job that needs a failed  waits in the queue for ever; removed
=====================================  ==========================================================
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype import config as nipype_config
from nipype.interfaces.base import CommandLine
from nipype.pipeline import plugins as nipype_plugins
from nipype.pipeline.engine.utils import topological_sort
from nipype.pipeline.plugins.base import GraphPluginBase, SGELikeBatchManagerBase

from bmex_bids.common.failure import UNKNOWN, Failure, is_disk_full
from bmex_bids.exceptions import UsageError
from bmex_bids.running import crash_files
from bmex_bids.running.events import failure_of, last_line

LOGGER = logging.getLogger(__name__)

#: how long a queue that does not answer is asked again
PATIENCE_S = 1800.0
POLL_S = 5.0
#: how long a result may take to appear after its job (Nipype: 5 s; network file systems need more)
RESULT_TIMEOUT_S = 60
#: Python, torch and ITK, in 2^30 bytes, and what a node's estimate is multiplied by
BASE_GB, MEMORY_FACTOR = 1.5, 1.5
#: what a disk must have room for; less, and a job cannot have left its result
PROBE_BYTES = 2**20
#: what none of Nipype's command lines has to quote
PLAIN = re.compile(r"[\w./+@=:,-]+")
LOST = (
    "expected a job of the batch system to leave a result, found none: it was cancelled, "
    "killed (time limit, memory), or never ran; look at the files *.o, *.e and slurm-*.out in {}, "
    "and run the same command again"
)


class BatchGuard:
    """Before one of Nipype's plugins for queues: an error is one node's, never the run's."""

    _silent_since: float | None = None
    failed = False

    def _is_pending(self, taskid: int) -> Any:
        try:
            pending = super()._is_pending(taskid)  # type: ignore[misc]
        except Exception as error:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if now - self._silent_since > PATIENCE_S:
                raise
            LOGGER.warning("the queue does not answer and is asked again: %s", error)
            return True
        self._silent_since = None
        return pending

    def _get_result(self, taskid: int) -> Any:
        try:
            result = super()._get_result(taskid)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is of one node
            return {
                "result": None, "traceback": format_exception(error),
                "failure": Failure.of(error),
            }  # fmt: skip
        traceback = result and result.get("traceback")
        if isinstance(traceback, str):  # of a job without a result; as text, Nipype trips over it
            failure = _lost(self._pending.get(taskid, "."))  # type: ignore[attr-defined]
            return {**result, "traceback": [str(failure)], "failure": failure}
        return result

    def _report_crash(self, node: Any, result: Any = None) -> str | None:
        node._result = (result or {}).get("result")
        return crash_files.write(node)

    def _clean_queue(self, jobid: int, graph: Any, result: Any = None) -> Any:
        self.failed = True
        node = self.procs[jobid]  # type: ignore[attr-defined]
        if result is None:
            result = {"result": None, "traceback": format_exception(*sys.exc_info())}
        node._traceback = result["traceback"]
        node.failure = (
            result.get("failure")
            or getattr(getattr(result["result"], "runtime", None), "failure", None)
            or last_line("".join(result["traceback"]))
        )
        return super()._clean_queue(jobid, graph, result=result)  # type: ignore[misc]


class GraphGuard:
    """Before one of Nipype's plugins that submit a whole graph and go: wait, then look."""

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        self._callback: Callable[[Any, str], None] = plugin_args.pop("status_callback")
        self._token = f"bmex-{uuid.uuid4().hex}"
        own = f"--comment={self._token} --kill-on-invalid-dep=yes"
        plugin_args["sbatch_args"] = f"{plugin_args.get('sbatch_args', '')} {own}".strip()
        super().__init__(plugin_args=plugin_args)  # type: ignore[call-arg]
        self.failed = False

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Submit, wait until no job of ours is in the queue, and tell which nodes lack a result."""
        nodes, _ = topological_sort(graph)
        started = time.time()
        for node in nodes:
            self._callback(node, "start")
        try:
            super().run(graph, config, updatehash=updatehash)  # type: ignore[misc]
            while any(self._in_queue()):
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            _run(f"scancel {' '.join(self._in_queue())}")
            raise
        for node in nodes:
            if not has_result(node, started):
                self.failed = True
                if failure_of(node) is UNKNOWN:
                    crash = crash_of(node)
                    node.failure = last_line(crash) if crash else _lost(node.output_dir())
                self._callback(node, "exception")

    def _in_queue(self) -> Iterator[str]:
        """Numbers of our jobs that are not over."""
        first = time.monotonic()
        while True:
            try:
                lines = _run("squeue --noheader --format='%i %k'").splitlines()
                break
            except RuntimeError as error:
                if time.monotonic() - first > PATIENCE_S:
                    raise
                LOGGER.warning("the queue does not answer and is asked again: %s", error)
                time.sleep(POLL_S)
        for line in lines:
            number, _, comment = line.strip().partition(" ")
            if comment == self._token:
                yield number


def guarded(name: str, arguments: dict[str, Any]) -> Any:
    """One of Nipype's plugins by its name, with a guard where it is for a batch system.

    Parameters
    ----------
    name : such as ``"SLURM"``
    arguments : its ``plugin_args``, ``status_callback`` among them

    Raises
    ------
    UsageError
        There is no plugin of that name.
    """
    base = getattr(nipype_plugins, f"{name}Plugin", None)
    if base is None:
        known = sorted(n.removesuffix("Plugin") for n in dir(nipype_plugins) if n[-6:] == "Plugin")
        raise UsageError(
            f"expected one of Nipype's plugins ({', '.join(known)}), got {name!r}; correct the file "
            "of --use-plugin"
        )
    arguments = dict(arguments)
    if name == "SLURMGraph":
        return type(f"Guarded{name}", (GraphGuard, base), {})(arguments)
    if issubclass(base, SGELikeBatchManagerBase):
        return type(f"Guarded{name}", (BatchGuard, base), {})(plugin_args=arguments)
    return base(plugin_args=arguments)


def is_batch(name: str) -> bool:
    """Whether a plugin gives each node to a batch system."""
    base = getattr(nipype_plugins, f"{name}Plugin", None)
    return base is not None and issubclass(base, SGELikeBatchManagerBase | GraphPluginBase)


def prepare(workflow: Any, name: str, arguments: dict[str, Any]) -> None:
    """Make a workflow fit for a batch system: its paths, its environment, its jobs' sizes.

    Raises
    ------
    UsageError
        A path that Nipype would hand to a shell as it is.
    """
    crash_dir = nipype_config.get("execution", "crashdump_dir") or ""
    for path in (str(workflow.base_dir), crash_dir, sys.executable):
        if path and not PLAIN.fullmatch(path):
            raise UsageError(
                f"expected work and output folders of plain letters, digits and ./+@=:,_- with the "
                f"plugin {name}, for Nipype hands them to a shell, got {path!r}; name others (-w)"
            )
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid{os.getuid()}"
    os.environ.setdefault("LOGNAME", user)
    nipype_config.set("execution", "poll_sleep_duration", str(POLL_S))  # it is one squeue a job
    # SLURM's plugins know sbatch_args; the other systems' words for a size differ from site to site
    given = str(arguments.get("sbatch_args", ""))
    if not name.startswith("SLURM"):
        return
    for path in workflow.list_node_names():
        node = workflow.get_node(path)
        size = slurm_size(node.n_procs, node.mem_gb, given)
        if size and not node.plugin_args:
            node.plugin_args = {"sbatch_args": f" {size}"}


def slurm_size(n_procs: int, mem_gb: float, given: str) -> str:
    """Options of sbatch for a node's size; nothing that is given for all nodes.

    >>> slurm_size(2, 1.0, "")
    '--cpus-per-task=2 --mem=3072M'
    >>> slurm_size(2, 1.0, "-p long --mem=8G -c 4")
    ''
    """
    words = {word.partition("=")[0] for word in shlex.split(given)}
    parts = []
    if not words & {"-c", "--cpus-per-task"}:
        parts.append(f"--cpus-per-task={n_procs}")
    if not any(word.startswith("--mem") for word in words):
        parts.append(f"--mem={round(1024 * (BASE_GB + MEMORY_FACTOR * mem_gb))}M")
    return " ".join(parts)


def has_result(node: Any, since: float) -> bool:
    """Whether a node's folder says that it was finished, now or earlier with the same inputs."""
    folder = Path(node.output_dir())
    done = [path for path in folder.glob("_0x*.json") if not path.stem.endswith("_unfinished")]
    if any(folder.glob("_0x*_unfinished.json")):
        return False
    # an always_run node of an earlier run leaves its mark; file systems' clocks differ a little
    return any(
        path.stat().st_mtime >= since - 60 or not node.interface.always_run for path in done
    )


def crash_of(node: Any) -> str:
    """The newest crash file of a node; empty without."""
    folder = Path(node.config["execution"]["crashdump_dir"])
    found = sorted(folder.glob("crash-*.txt"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.startswith(f"Node: {node.fullname}\n"):
            return text
    return ""


def _lost(node_folder: str | Path) -> Failure:
    """What is known of a job that left nothing; a full disk is the reason where it is full."""
    try:
        with tempfile.TemporaryFile(dir=node_folder) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        if is_disk_full(error):
            return Failure.of(error)
    batch = [folder / "batch" for folder in Path(node_folder).parents]
    where = next((str(folder) for folder in batch if folder.is_dir()), "the work folder")
    return Failure("JobLost", LOST.format(where))


def _run(command: str) -> str:
    program, _, rest = command.partition(" ")
    done = CommandLine(
        program, args=rest, resource_monitor=False, terminal_output="allatonce"
    ).run()
    return str(done.runtime.stdout)
