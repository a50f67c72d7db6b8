# SPDX-License-Identifier: Apache-2.0
"""Ask bids-validator-deno what it thinks of the input dataset."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bmex_bids.exceptions import NoInputError

PROGRAM = "bids-validator-deno"
#: errors this app cannot go on with; all others are only shown
FATAL = {
    ("MISSING_DATASET_DESCRIPTION", "/dataset_description.json"),
    ("JSON_INVALID", "/dataset_description.json"),
    ("EMPTY_FILE", "/dataset_description.json"),
}
MOST_LINES = 10


@dataclass(frozen=True)
class Finding:
    """One error of the validator: its code, where, and in words (may be empty)."""

    code: str
    location: str
    message: str = ""

    @property
    def fatal(self) -> bool:
        """Whether this app cannot go on with it."""
        return (self.code, self.location) in FATAL

    def __str__(self) -> str:
        return f"{self.code} {self.location} {self.message}".rstrip()


def validate(bids_dir: Path, participants: Sequence[str] | None = None) -> list[Finding] | None:
    """The errors of a dataset, worst first; None where the validator cannot be run.

    Parameters
    ----------
    participants : labels; only their folders and the files at the top are looked at, as the
        validator reads every file of what it is given
    """
    if participants is None:
        return _validate(bids_dir)
    try:
        with tempfile.TemporaryDirectory(prefix="bmex-") as folder:
            _link_part(bids_dir, participants, Path(folder))
            return _validate(Path(folder))
    except OSError:  # a folder for temporary files without links
        return _validate(bids_dir)


def _link_part(bids_dir: Path, participants: Sequence[str], target: Path) -> None:
    """Links to the files at a dataset's top and to the folders of these participants."""
    wanted = {f"sub-{label}" for label in participants}
    with os.scandir(bids_dir) as entries:
        for entry in entries:
            if entry.name in wanted or entry.is_file():
                (target / entry.name).symlink_to(Path(entry.path).absolute())


def _validate(bids_dir: Path) -> list[Finding] | None:
    beside = Path(sys.executable).with_name(PROGRAM)
    program = str(beside) if beside.exists() else shutil.which(PROGRAM)
    if program is None:
        return None
    done = subprocess.run(  # noqa: S603 - a program of our own environment, with a path of ours
        [program, "--format", "json", "--ignoreWarnings", str(bids_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return findings(done.stdout)
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def findings(text: str) -> list[Finding]:
    """Read the validator's JSON; errors only, the fatal ones first."""
    issues = json.loads(text)["issues"]["issues"]
    errors = [
        Finding(
            code=issue["code"],
            location=issue.get("location") or next(iter(issue.get("affects", [])), ""),
            message=" ".join((issue.get("issueMessage") or "").split()),
        )
        for issue in issues
        if issue.get("severity") == "error"
    ]
    return sorted(errors, key=lambda error: not error.fatal)


def summary(errors: Sequence[Finding]) -> list[str]:
    """Lines to show; the first few of many."""
    lines = [f"  {error}" for error in errors[:MOST_LINES]]
    if len(errors) > MOST_LINES:
        lines.append(f"  … and {len(errors) - MOST_LINES} more")
    return lines


def refuse_fatal(errors: Sequence[Finding]) -> None:
    """NoInputError for an error that this app cannot go on with."""
    fatal = [error for error in errors if error.fatal]
    if fatal:
        raise NoInputError(
            f"expected a BIDS dataset, but the validator found: {fatal[0]}; every dataset needs a "
            "dataset_description.json with Name and BIDSVersion. Is this the right folder? "
            "--skip-bids-validation goes on regardless"
        )
