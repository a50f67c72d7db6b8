# SPDX-License-Identifier: Apache-2.0
"""A workflow is run: by our own plugins or by one of Nipype's, with a listener."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Workflow

from bmex_bids.running import batch_plugins
from bmex_bids.running.events import Listener, tell
from bmex_bids.running.monitor import Monitor
from bmex_bids.running.plugins import PoolPlugin, SerialPlugin


@dataclass(frozen=True)
class Limits:
    """What the steps of a run share.

    Attributes
    ----------
    nprocs : one process for each step in parallel; with 1, all happens in this process
    memory_gb, gpu_slots : of all steps that run at once; None is Nipype's own limit of memory
    one_at_a_time : the next image begins when the one before is done
    """

    nprocs: int = 1
    memory_gb: float | None = None
    gpu_slots: int = 0
    one_at_a_time: bool = False


def run(
    workflow: Workflow,
    *,
    listener: Listener,
    order: Sequence[str] = (),
    limits: Limits = Limits(),
    verbosity: int = 0,
    plugin: tuple[str, dict[str, Any]] | None = None,
    monitor_file: Path | None = None,
) -> None:
    """Run a workflow of independent images to its end, whatever fails.

    Parameters
    ----------
    workflow : from ``init_run_wf``
    listener : called in this process for each event
    order : names of the images' workflows, the most urgent first
    plugin : name and arguments of one of Nipype's plugins, instead of our own; MultiProc is our
        own, with these arguments before the others
    monitor_file : where what Nipype's resource monitor measured is put, also of a run that fails
    """
    monitor = None if monitor_file is None else Monitor(workflow, listener)
    listener = monitor or listener
    try:
        name, arguments = plugin or ("", {})
        if name not in {"", "MultiProc"}:
            _run_elsewhere(workflow, listener, name, arguments)
        else:  # our own is Nipype's MultiProc, mended, and takes its arguments
            own = {
                "n_procs": limits.nprocs,
                "n_gpu_procs": limits.gpu_slots,
                "raise_insufficient": False,
                "order": {name: number for number, name in enumerate(order)},
                "verbosity": verbosity,
                "one_at_a_time": limits.one_at_a_time,
            }
            if limits.memory_gb is not None:
                own["memory_gb"] = limits.memory_gb
            _run_here(workflow, listener, own | arguments)
    finally:
        if monitor is not None and monitor_file is not None:
            monitor.write(monitor_file)


def _run_elsewhere(
    workflow: Workflow, listener: Listener, name: str, arguments: dict[str, Any]
) -> None:
    """Run with one of Nipype's own plugins, the batch systems' among them."""
    failed = False

    def told(node: Any, status: str) -> None:
        nonlocal failed
        failed = failed or status == "exception"
        tell(listener, node, status)

    if batch_plugins.is_batch(name):
        batch_plugins.prepare(workflow, name, arguments)
    plugin = batch_plugins.guarded(name, {**arguments, "status_callback": told})
    try:
        workflow.run(plugin=plugin)
    except RuntimeError:
        if not failed:  # else the listener knows, and the others were done
            raise


def _run_here(workflow: Workflow, listener: Listener, arguments: Mapping[str, Any]) -> None:
    callback = {"status_callback": partial(tell, listener)}
    if int(arguments["n_procs"]) == 1:
        workflow.run(plugin=SerialPlugin(callback))
        return
    plugin = PoolPlugin(callback | dict(arguments))
    try:
        workflow.run(plugin=plugin)
    except RuntimeError:
        if not plugin.failed:  # else the listener knows, and the others were done
            raise
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        plugin.pool.shutdown(wait=False, cancel_futures=True)


def write_graph(workflow: Workflow, folder: Path) -> Path:
    """Draw a workflow as SVG with graphviz; without graphviz, write what it would draw from."""
    source = folder / "workflow.dot"
    workflow.write_hierarchical_dotfile(dotfilename=str(source), colored=True, simple_form=True)
    program = shutil.which("dot")
    if program is None:
        return source
    picture = source.with_suffix(".svg")
    command = [program, "-Tsvg", str(source), "-o", str(picture)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)  # noqa: S603
    return picture if done.returncode == 0 else source


def steps_of(workflow: Workflow) -> set[str]:
    """Full names of the nodes of a workflow of :func:`run` that do work."""
    names = set()
    for name in workflow.list_node_names():
        if not isinstance(workflow.get_node(name).interface, IdentityInterface):
            names.add(f"{workflow.fullname}.{name}")
    return names
