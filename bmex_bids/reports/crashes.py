# SPDX-License-Identifier: Apache-2.0
"""Crash files of Nipype: which step failed, with what inputs, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bmex_bids.common.failure import MARK, Failure
from bmex_bids.common.names import node_name

#: how Python begins one
TRACEBACK = "Traceback (most recent call last):"
#: how the notes begin that Nipype may write below a traceback
NOTES = ("When creating this crashfile", "During the creation of this crashfile")
#: characters of a traceback or of a node's inputs that are shown, from the end
LONGEST = 20_000


@dataclass(frozen=True)
class Crash:
    """A step that failed, as its crash file tells."""

    path: Path
    node: str
    inputs: str
    traceback: str
    failure: Failure | None = None

    @property
    def step(self) -> str:
        """The node without the names of the run's and of the image's workflow."""
        return ".".join(self.node.split(".")[2:]) or self.node

    @property
    def reason(self) -> str:
        """That of the record, else the end of the traceback."""
        if self.failure is not None:
            return str(self.failure)
        text = self.traceback
        for note in NOTES:
            text = text.partition(note)[0]
        return (text.strip().splitlines() or ["no reason was given"])[-1].strip()

    def is_of(self, image: str) -> bool:
        """Whether the node worked for an image such as ``sub-01_ses-A_T1w``."""
        return f"{node_name(image)}_wf" in self.node.split(".")

    def is_of_session(self, subject: str, session: str | None) -> bool:
        """Whether the node worked for a participant and session; None is without sessions."""
        stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        prefix = node_name(stem) + "_"
        return any(
            part.startswith(prefix) and (session or not part.startswith(f"{prefix}ses_"))
            for part in self.node.split(".")
        )


def find_crashes(run_dir: Path, subject: str, session: str | None) -> list[Crash]:
    """What failed for a participant and session in a run, in order of time, each once."""
    found: dict[tuple[str, str], Crash] = {}
    for path in sorted(run_dir.glob("crash-*.txt")):
        crash = _crash(path, path.stat().st_mtime_ns)
        if crash.is_of_session(subject, session):
            found.setdefault((crash.node, crash.traceback), crash)
    return list(found.values())


@lru_cache(maxsize=1024)
def _crash(path: Path, mtime_ns: int) -> Crash:
    """A crash file, read once for all pages."""
    return read_crash(path)


def read_crash(path: Path) -> Crash:
    """A text crash file of Nipype; one that looks otherwise is all traceback."""
    text = path.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"Node: (.+)\nWorking directory: .*\n", text)
    if head is None:
        return Crash(path, "", "", text.strip())
    rest = text[head.end() :].strip()
    # a file that a job's Nipype wrote has no record
    begin = f"\n{MARK}" if f"\n{MARK}" in rest else TRACEBACK
    inputs, found, traceback = rest.partition(begin)
    traceback = found.strip("\n") + traceback
    failure = Failure.from_line(traceback.partition("\n")[0])
    if failure is not None:
        traceback = traceback.partition("\n")[2]
    inputs = inputs.removeprefix("Node inputs:").strip()
    return Crash(path, head[1].strip(), inputs[-LONGEST:], traceback.strip()[-LONGEST:], failure)
