# SPDX-License-Identifier: Apache-2.0
"""Nipype's settings and loggers in this process."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from configparser import Interpolation
from contextlib import contextmanager
from pathlib import Path

from nipype import config as nipype_config
from nipype import logging as nipype_logging

from bmex_bids.running import batch_plugins

POLL_SECONDS = 0.2
#: what a run rests on, whatever a ``nipype.cfg`` of the user's (home, or the folder that a run was
#: started in) says
FIXED = {
    "logging": {"log_to_file": "false"},
    "execution": {
        "crashfile_format": "txt",
        "remove_unnecessary_outputs": "false",
        "remove_node_directories": "false",
        "keep_inputs": "false",
        "hash_method": "timestamp",
        "local_hash_check": "true",
        "use_relative_paths": "false",
        "parameterize_dirs": "true",
        "stop_on_first_rerun": "false",
        "stop_on_unknown_version": "false",
        "write_provenance": "false",
        "create_report": "false",
        "get_linked_libs": "false",
        "check_version": "false",
    },
}


def configure(
    *,
    crash_dir: Path,
    verbosity: int = 0,
    stop_on_first_crash: bool = False,
    resource_monitor: bool = False,
) -> None:
    """Nipype's settings for this process; call it before any node is made.

    Crash files are text.  Nipype says nothing unless ``verbosity`` is 1 (its progress) or 2.
    """
    nipype_config.resource_monitor = resource_monitor
    # a "%" in the path of a folder is no reference to another setting
    nipype_config._config._interpolation = Interpolation()
    nipype_config.update_config(
        {
            "logging": FIXED["logging"]
            | dict.fromkeys(
                ("workflow_level", "interface_level", "utils_level"), level_name(verbosity)
            ),
            "execution": FIXED["execution"]
            | {
                "crashdump_dir": str(crash_dir),
                "stop_on_first_crash": str(stop_on_first_crash).lower(),
                "job_finished_timeout": str(batch_plugins.RESULT_TIMEOUT_S),
                "poll_sleep_duration": str(POLL_SECONDS),
            },
        }
    )
    quieten(verbosity)


def level_name(verbosity: int) -> str:
    """Level of Nipype's loggers for a number of ``-v``."""
    return ("CRITICAL", "INFO", "DEBUG")[min(verbosity, 2)]


def quieten(verbosity: int) -> None:
    """Set the loggers of this process: Nipype's and ours."""
    for name in ("workflow_level", "interface_level", "utils_level"):
        nipype_config.set("logging", name, level_name(verbosity))
    nipype_logging.update_logging(nipype_config)
    # nibabel tells what is wrong with a header without the image's name; we tell it with
    logging.getLogger("nibabel.global").setLevel(level_name(verbosity))
    ours = logging.getLogger("bmex_bids")
    ours.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)])
    if verbosity and not ours.handlers:
        ours.addHandler(logging.StreamHandler())


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage: while a workflow is built all of it stays, and each search sees more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def without_old_garbage() -> Iterator[None]:
    """What is there now, the workflow of all images, is not searched for garbage any more.

    Nipype's MultiProc collects before each step: with many images that takes most of the time; in
    one process Python's own collections grow with the number of images.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
