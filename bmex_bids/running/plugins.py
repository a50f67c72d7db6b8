# SPDX-License-Identifier: Apache-2.0
"""The plugins that run a workflow's nodes on this machine: in this process, or in a pool of workers.

Nipype's own plugins would do, but for four things:

* images are done one after the other, so the first result comes early;
* a step that needs many processors is not overtaken for ever by those that need few;
* a worker that the kernel kills (memory) takes at most its own image with it: the steps that were
  lost are done again, one at a time;
* the reason of a failure is known when it happens.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from traceback import format_exception
from typing import Any

import networkx as nx
import numpy as np
from nipype import config as nipype_config
from nipype.pipeline.engine.utils import topological_sort
from nipype.pipeline.plugins.base import PluginBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin
from numpy.typing import NDArray

from bmex_bids.common.failure import Failure
from bmex_bids.common.orphans import end_with_parent
from bmex_bids.running import address_space, crash_files
from bmex_bids.running.engine import quieten, without_old_garbage
from bmex_bids.running.events import failure_of
from bmex_bids.running.monitor import sampled

#: Nipype begins no step where less than 0.01 is free, and waits for ever
LEAST_MEMORY_GB = 0.1
#: jobs after which what is there is not searched for garbage any more
FREEZE_EVERY = 100
WORKER_DIED = (
    "expected a worker process to finish this step, but it died twice, the second time without "
    "other steps beside it; most likely the memory was full; use --low-mem, or give the run more "
    "memory"
)
#: the second in a row that dies with the same step condemns the step
TRIES = 2


class SerialPlugin(PluginBase):
    """One node after another in this process, image after image."""

    def run(self, graph: nx.DiGraph, config: Any, updatehash: bool = False) -> None:
        """Run all nodes but those that need one that failed."""
        folder = Path.cwd()
        stop = str(config["execution"]["stop_on_first_crash"]).lower() == "true"
        nodes, _ = topological_sort(graph, depth_first=True)
        try:
            with without_old_garbage():
                self._run_in_turn(nodes, graph, stop=stop, updatehash=updatehash)
        finally:
            os.chdir(folder)

    def _run_in_turn(
        self, nodes: Sequence[Any], graph: nx.DiGraph, *, stop: bool, updatehash: bool
    ) -> None:
        dropped: set[Any] = set()
        for node in nodes:
            if node in dropped:
                continue
            self._status_callback(node, "start")
            try:
                with sampled(node):
                    node.run(updatehash=updatehash)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is its image's failure
                node.failure = failure_of(node, error)
                node._traceback = format_exception(error)
                crash_files.write(node)
                self._status_callback(node, "exception")
                if stop:
                    return
                dropped |= nx.descendants(graph, node)
            else:
                self._status_callback(node, "end")


class _Dependencies:
    """How many unfinished jobs each job waits for, asked for as Nipype asks its matrix.

    Nipype sums a matrix of all jobs by all jobs, twice at each look, and searches another after
    each job: work that grows with the square of the number of images.
    """

    def __init__(self, matrix: Any) -> None:
        """From Nipype's sparse (jobs, jobs) matrix: not 0 where the column's job needs the row's."""
        needs = matrix.tocsr() != 0
        self._open: NDArray[np.int64] = np.array(needs.sum(axis=0), dtype=np.int64).reshape(1, -1)
        self._first, self._followers = needs.indptr, needs.indices

    def sum(self, axis: int) -> NDArray[np.int64]:
        """Unfinished jobs before each job, (1, jobs)."""
        if axis != 0:
            raise ValueError(f"expected the sum over axis 0, got axis {axis}")
        return self._open

    def finish(self, jobid: int) -> None:
        """Nobody waits for this job any more."""
        self._open[0, self._followers[self._first[jobid] : self._first[jobid + 1]]] -= 1


class PoolPlugin(MultiProcPlugin):
    """Nipype's MultiProc with strict priorities, and workers whose death is made good."""

    pool: ProcessPoolExecutor
    depidx: Any
    memory_gb: float

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self.failed = False
        self._given: dict[int, tuple[Any, bool]] = {}  # task → its node, updatehash
        self._tries: dict[int, int] = {}
        self._lost: list[int] = []  # tasks that wait to be done again
        self._alone: int | None = None  # the one that is
        self._urgency: dict[int, tuple[int, int]] = {}  # job → place in the order of images
        self._finished = 0  # jobs, since what they left was last put aside
        self.pool.shutdown()
        self.pool = self._new_pool()
        self.memory_gb = max(float(self.memory_gb), LEAST_MEMORY_GB)
        # a step takes one place on the GPU; Nipype counts its processors, of at most n_gpu_procs
        self._gpu_places = max(int(plugin_args.get("n_gpu_procs", 1)), 1)
        self.n_gpu_procs = 1

    def run(self, graph: nx.DiGraph, config: Any, updatehash: bool = False) -> None:
        """Run all nodes; the graph is complete when this is called."""
        with without_old_garbage():
            super().run(graph, config, updatehash=updatehash)

    def _new_pool(self) -> ProcessPoolExecutor:
        # never fork: this process has threads (torch, ITK) and perhaps a GPU
        methods = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in methods else "spawn"
        if method == "forkserver":
            _start_fork_server()
        return ProcessPoolExecutor(
            max_workers=self.processors,
            mp_context=multiprocessing.get_context(method),
            initializer=_start_worker,
            initargs=(
                self._cwd,
                self.plugin_args.get("verbosity", 0),
                nipype_config.resource_monitor,
            ),
        )

    def _check_resources(self, running_tasks: Sequence[tuple[int, int]]) -> tuple[Any, Any, Any]:
        """Memory, processors and places on the GPU that are free."""
        memory, processors, _ = super()._check_resources(running_tasks)
        taken = sum(self.procs[jobid].is_gpu_node() for _, jobid in running_tasks)
        return memory, processors, self._gpu_places - taken

    def _generate_dependency_list(self, graph: nx.DiGraph) -> None:
        super()._generate_dependency_list(graph)
        self.depidx = _Dependencies(self.depidx)

    def _task_finished_cb(self, jobid: int, cached: bool = False) -> None:
        self._status_callback(self.procs[jobid], "end")
        self.proc_pending[jobid] = False
        self.depidx.finish(jobid)
        self._finished += 1
        if self._finished == FREEZE_EVERY:  # what is kept of each job is no garbage either
            gc.collect()
            gc.freeze()
            self._finished = 0

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        taskid = int(self._taskid)
        self._given[taskid] = (node, updatehash)
        self._send(taskid)
        return taskid

    def _send(self, taskid: int) -> None:
        node, updatehash = self._given[taskid]
        task = partial(_run_node, node, updatehash, taskid)
        # a worker that is just being started would not be known yet
        with _blocked(signal.SIGINT, signal.SIGTERM):
            try:
                future = self.pool.submit(task)
            except BrokenProcessPool:
                self.pool.shutdown(wait=False)
                self.pool = self._new_pool()
                future = self.pool.submit(task)
        self._tries[taskid] = self._tries.get(taskid, 0) + 1
        self._task_obj[taskid] = future
        future.add_done_callback(partial(self._store, taskid))

    def _store(self, taskid: int, future: Future[dict[str, Any]]) -> None:
        try:
            result = future.result()
        except BrokenProcessPool:
            failure = Failure("WorkerDied", WORKER_DIED)
            result = {"result": None, "traceback": [str(failure)], "failure": failure}
            result["died"] = True
        except Exception as error:  # noqa: BLE001 - what cannot be sent is that node's failure
            result = {"result": None, "traceback": format_exception(error)}
            result["failure"] = Failure.of(error)
        self._taskresult[taskid] = result

    def _get_result(self, taskid: int) -> Any:
        """What came of a task; None while it is on its way, for the first or the second time.

        With one worker the pool loses all tasks that were running, and nobody knows which of them
        was to blame.  So each is done again while nothing else runs: then the blame is clear, and
        the memory is its own.
        """
        result = self._taskresult.get(taskid)
        if result is not None and result.get("died") and self._tries[taskid] < TRIES:
            del self._taskresult[taskid]
            self._lost.append(taskid)
            self._status_callback(self._given[taskid][0], "again")
            result = None
        if self._lost and self._lost[0] == taskid and self._idle():
            self._lost.pop(0)
            self._send(taskid)
            self._alone = taskid
        return result

    def _idle(self) -> bool:
        """Whether no task is with a worker."""
        return all(future.done() for future in self._task_obj.values())

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        del self._given[taskid], self._tries[taskid]  # a node holds its interface and inputs
        self._taskresult.pop(taskid, None)
        if self._alone == taskid:
            self._alone = None

    def _report_crash(self, node: Any, result: Any = None) -> str | None:
        node._result = (result or {}).get("result")
        return crash_files.write(node)

    def _clean_queue(self, jobid: int, graph: nx.DiGraph, result: Any = None) -> Any:
        self.failed = True
        node = self.procs[jobid]
        node.failure = (result or {}).get("failure") or failure_of(node, sys.exc_info()[1])
        node._traceback = (result or {}).get("traceback") or format_exception(*sys.exc_info())
        return super()._clean_queue(jobid, graph, result=result)

    def _sort_jobs(self, jobids: Sequence[int], scheduler: str = "tsort") -> list[int]:
        """The most urgent jobs that fit now; none behind the first that has to wait.

        Those that wait for the GPU alone hold up nobody: the processor's work of other images goes
        on beside the network of one.
        """
        if self._lost or self._alone is not None:
            return []
        order = self.plugin_args.get("order", {})

        def urgency(jobid: int) -> tuple[int, int]:
            job = int(jobid)
            if job not in self._urgency:  # asked of each job that is ready, at each look
                parts = self.procs[job].fullname.split(".")
                image = parts[1] if len(parts) > 2 else parts[0]
                self._urgency[job] = order.get(image, len(order)), job
            return self._urgency[job]

        memory, processors, gpus = self._check_resources(self.pending_tasks)
        chosen: list[int] = []
        ready = sorted(jobids, key=urgency)
        if self.plugin_args.get("one_at_a_time") and ready:
            running = [urgency(jobid)[0] for _, jobid in self.pending_tasks]
            image = min([*running, urgency(ready[0])[0]])
            ready = [jobid for jobid in ready if urgency(jobid)[0] == image]
        for jobid in ready:
            node = self.procs[jobid]
            if node.is_gpu_node() and gpus < 1:
                continue
            memory -= min(node.mem_gb, self.memory_gb)
            processors -= min(node.n_procs, self.processors)
            gpus -= bool(node.is_gpu_node())
            if processors < 0 or (memory < 0 and (chosen or self.pending_tasks)):
                break
            chosen.append(jobid)
        return chosen


def _start_fork_server() -> None:
    """Start what starts the workers, deaf to Ctrl-C, as they will be.

    A terminal sends Ctrl-C to all processes; this one ends the others, in silence.
    """
    resource_tracker.ensure_running()  # first: it lets the signal in again, after its own start
    with _blocked(signal.SIGINT):
        forkserver.ensure_running()


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """These signals wait until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_node(node: Any, updatehash: bool, taskid: int) -> dict[str, Any]:
    """What a worker does with a node; its first failure counts, not that of reporting it.

    (Nipype's own asks for the result of a node that failed, which may not be there: a full disk.)
    """
    result: dict[str, Any] = {"result": None, "traceback": None, "taskid": taskid}
    try:
        with sampled(node):
            result["result"] = node.run(updatehash=updatehash)
    except Exception as error:  # noqa: BLE001 - whatever a node raises is its image's failure
        result["traceback"] = format_exception(error)
        result["failure"] = failure_of(node, error)
        with suppress(Exception):
            result["result"] = node.result
    return result


def _start_worker(folder: str, verbosity: int, resource_monitor: bool = False) -> None:
    """What a new worker process does first."""
    end_with_parent()
    nipype_config.resource_monitor = resource_monitor
    os.chdir(folder)
    os.environ["NIPYPE_NO_ET"] = "1"
    address_space.load_libraries()
    if verbosity == 0:
        warnings.simplefilter("ignore")
    quieten(verbosity)
