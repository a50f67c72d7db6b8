# SPDX-License-Identifier: Apache-2.0
"""The folders of a run: made, tried, cleared of what killed runs left, dropped when done."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.config import Config
from bmex_bids.exceptions import OutputError
from bmex_bids.outputs.status import Status
from bmex_bids.running import claims
from bmex_bids.running.disks import keeps_names

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.running.progress import Progress


def prepare(config: Config) -> None:
    """Make the output and work folders and see that both can be written (OutputError)."""
    work_dir, output_dir = config.paths.work_dir, config.paths.output_dir
    for folder, option in (
        (work_dir, "name another work folder with -w"),
        (output_dir, "name another output folder"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix=".T1w_")
            os.close(handle)  # first: some file systems keep what is removed while it is open
            kept = keeps_names(Path(name))
            Path(name).unlink()
            if folder is work_dir and config.execution.clean_workdir:
                _empty(folder)
        except OSError as error:
            raise OutputError(
                f"expected a folder that can be written at {folder}, got: "
                f"{error.strerror or error}; {option}, or change its permissions"
            ) from error
        if not kept:
            raise OutputError(
                f"expected a file system that keeps names such as T1w at {folder}, found one that "
                f"changes small or capital letters; {option}, or mount it with other options"
            )
    logs = config.log_dir.parent
    if logs.is_symlink() and not logs.resolve().is_relative_to(output_dir.resolve()):
        raise OutputError(
            f"expected the folder {logs} within the output, got a link to {logs.resolve()}; remove "
            "the link, or name another output folder"
        )
    write_settings(config)


def write_settings(config: Config) -> None:
    """The run's settings in its log folder, unless they are there."""
    from bmex_bids.outputs.files import write_whole

    def fill(path: Path) -> None:
        path.write_text(config.to_toml(), encoding="utf-8", errors="surrogateescape")

    target = config.log_dir / "config.toml"
    if not target.exists():
        write_whole(target, fill)


def clear_abandoned(output_dir: Path, planned: Sequence[PlannedImage]) -> None:
    """Remove the half files of runs that were killed, where this run will write."""
    from bmex_bids.outputs import files

    folders = {output_dir, output_dir / "logs", *output_dir.glob("logs/*")}
    for image in planned:
        folders |= {
            output_dir / image.output_dir,
            output_dir / f"sub-{image.image.subject}" / "figures",
        }
    files.clear_abandoned(folders)


def _empty(folder: Path) -> None:
    """Remove what runs of ours left in a work folder, and nothing else; what runs now stays."""
    for path in folder.glob("bmex_*_wf"):
        if path.is_dir() and claims.in_use(path):
            continue
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def drop(folder: Path, progress: Progress) -> None:
    """Remove the intermediate files of the images that are done."""
    for workflow, track in progress.tracks.items():
        if track.status is Status.DONE and not track.dropped:
            shutil.rmtree(folder / workflow, ignore_errors=True)
            track.dropped = True
