# SPDX-License-Identifier: Apache-2.0
"""Runs that share a work folder keep out of each other's intermediate files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bmex_bids.outputs import lock

CLAIMS = ".claims"


@contextmanager
def own_folder(work_dir: Path, run: str, workflows: Sequence[str], run_id: str) -> Iterator[Path]:
    """The folder in which this run's workflow works: the work folder, unless another run is there.

    Two runs that write the same intermediate files destroy each other's, or take them for theirs:
    those of the same image, or of images of one name in two datasets.

    Parameters
    ----------
    work_dir : may be shared
    run : folder of the runs in it, where intermediate files of earlier runs are found again
    workflows : of this run's images
    run_id : where one of them is another's, all work in a folder of this name, removed at the end
    """
    folder = work_dir / run / CLAIMS
    mine: list[Path] = []
    try:
        for name in workflows:
            if not lock.claim(folder / name):
                break
            mine.append(folder / name)
        else:
            yield work_dir
            return
        _give_back(mine)
        own = work_dir / f"bmex_{run_id}_wf"
        lock.claim(own / CLAIMS / "run")
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
    finally:
        _give_back(mine)


def in_use(run_folder: Path) -> bool:
    """Whether other runs work in a run's folder."""
    claims = [*run_folder.glob(f"{CLAIMS}/*")]
    free = [path for path in claims if lock.claim(path)]
    others = len(claims) - len(free)
    _give_back(free)
    return others > 0


def _give_back(claims: list[Path]) -> None:
    for path in claims:
        with suppress(OSError):
            path.unlink()
    for folder in {path.parent for path in claims}:
        with suppress(OSError):
            folder.rmdir()  # unless others are there
    claims.clear()
