# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it runs, and what became of each image."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bmex_bids.common.failure import UNKNOWN, Failure
from bmex_bids.outputs.status import Status
from bmex_bids.running.interrupts import raise_pending

if TYPE_CHECKING:
    from bmex_bids.running.events import Event


@dataclass
class Track:
    """One image of the run: what is left to do, and how it went."""

    name: str
    number: int
    pending: set[str]
    begun: float | None = None
    seconds: float | None = None
    step: str = ""
    reason: str | None = None
    failure: Failure | None = None
    said: set[str] = field(default_factory=set)
    dropped: bool = False  # its intermediate files were removed

    @property
    def status(self) -> Status:
        """Waiting, running, done, failed, or in the end not run."""
        if self.failure is not None:
            return Status.FAILED
        if not self.pending:
            return Status.DONE
        if self.reason is not None:
            return Status.NOT_RUN
        return Status.WAITING if self.begun is None else Status.RUNNING


class Progress:
    """Listens to the workflow and says one line for each image and step.

    Parameters
    ----------
    steps : for each image's workflow, in order: the image's name, and the full names of its nodes
    say : where a line goes
    changed : called when an image has begun or ended; where it returns False, it is called again
        at the next event
    clock : seconds, monotonic
    """

    def __init__(
        self,
        steps: Mapping[str, tuple[str, set[str]]],
        *,
        say: Callable[[str], None],
        changed: Callable[[Progress], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._changed, self._clock = say, changed, clock
        self._start = clock()
        self._to_tell = False
        self.tracks = {
            workflow: Track(name, number, set(nodes))
            for number, (workflow, (name, nodes)) in enumerate(steps.items(), start=1)
        }

    def __call__(self, event: Event) -> None:
        """Take note of an event, and say what is new; or end the run, if that was asked for."""
        raise_pending()
        track = self.tracks[event.workflow]
        before = track.status
        self._note(track, event)
        self._to_tell = self._to_tell or track.status != before
        if self._to_tell:
            self._to_tell = self._changed(self) is False

    def _note(self, track: Track, event: Event) -> None:
        if track.begun is None:
            track.begun = self._clock()
        if event.status == "start":
            if event.step not in track.said and track.failure is None:
                track.said.add(event.step)
                self._line(track, event.step)
            return
        if event.status == "again":
            self._line(track, f"{event.step}: {event.reason}")
            return
        track.pending.discard(event.node)
        track.seconds = self._clock() - track.begun
        if track.failure is not None:
            return
        if event.status == "exception":
            track.failure = event.failure or UNKNOWN
            track.step, track.reason = event.step, str(track.failure)
            self._line(track, f"FAILED in {track.step}: {track.reason}")
        elif not track.pending:
            self._line(track, f"done in {track.seconds:.0f} s")

    def end(self) -> None:
        """The run is over: what is not done will not be."""
        for track in self.tracks.values():
            if track.status in {Status.WAITING, Status.RUNNING}:
                track.reason = "the run ended before this image was done"

    def _line(self, track: Track, text: str) -> None:
        elapsed = round(self._clock() - self._start)
        stamp = f"{elapsed // 3600:02d}:{elapsed // 60 % 60:02d}:{elapsed % 60:02d}"
        self._say(f"[{stamp}] image {track.number} of {len(self.tracks)}  {track.name}  {text}")


class Sparingly:
    """Calls a function that takes longer the more images there are, so often that it takes 1 %.

    A call that comes too early is left out and returns False.
    """

    SHARE = 0.01

    def __init__(
        self, call: Callable[[Progress], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._call, self._clock = call, clock
        self._next = float("-inf")

    def __call__(self, progress: Progress) -> bool:
        """Call, unless the last call was so long, and so short a time ago; whether it was done."""
        begun = self._clock()
        if begun < self._next:
            return False
        self._call(progress)
        ended = self._clock()
        self._next = ended + (ended - begun) / self.SHARE
        return True
