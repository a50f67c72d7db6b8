# SPDX-License-Identifier: Apache-2.0
"""Crash files of Nipype: which step failed, with what inputs, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

#: characters of a traceback or of a node's inputs that are shown, from the end
LONGEST = 20_000


@dataclass(frozen=True)
class Crash:
    """A step that failed, as its crash file tells."""

    path: Path
    node: str
    inputs: str
    traceback: str

    @property
    def step(self) -> str:
        """The node without the names of the run's and of the image's workflow."""
        return ".".join(self.node.split(".")[2:]) or self.node

    @property
    def reason(self) -> str:
        """The line of the traceback that names the error; Nipype writes others below it."""
        lines = [line.strip() for line in self.traceback.splitlines() if line.strip()]
        named = [
            line for line in lines if re.match(r"[\w.]*(Error|Exception|Died|Problem)\b.*: ", line)
        ]
        return (named or lines or ["no reason was given"])[-1]

    def is_of(self, image: str) -> bool:
        """Whether the node worked for an image such as ``sub-01_ses-A_T1w``."""
        return f"{mangled(image)}_wf" in self.node.split(".")

    def is_of_session(self, subject: str, session: str | None) -> bool:
        """Whether the node worked for a participant and session; None is without sessions."""
        stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        prefix = mangled(stem) + "_"
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
    inputs, traceback = "", rest
    if rest.startswith("Node inputs:"):
        start = re.search(r"^(Traceback \(most|\w*(Error|Died|Exception)\b.*:)", rest, re.M)
        cut = start.start() if start else len("Node inputs:")
        inputs, traceback = rest[:cut].removeprefix("Node inputs:").strip(), rest[cut:].strip()
    return Crash(path, head[1].strip(), inputs[-LONGEST:], traceback[-LONGEST:])


def mangled(name: str) -> str:
    """A name as the names of Nipype's workflows have it.

    >>> mangled("sub-01_ses-A_T1w")
    'sub_01_ses_A_T1w'
    """
    return re.sub(r"\W", "_", name)
