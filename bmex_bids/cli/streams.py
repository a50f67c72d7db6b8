# SPDX-License-Identifier: Apache-2.0
"""What is printed is for whoever listens; that nobody does, or cannot read it, ends no run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Forgiving:
    """A text stream whose failures are silent.

    A sign that the encoding does not have becomes ``?``.  Once the reader is gone (``| head``) or
    the disk is full, what is written goes nowhere.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written; the length of the text."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush; what cannot be is dropped."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """From now on the stream leads nowhere: Python would stumble over it again in the end."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextmanager
def forgiving() -> Iterator[None]:
    """Standard output and error never raise; where they are closed, they lead nowhere.

    A file that is opened while they are closed would get their number, and with it what a library
    prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started; libraries count on there being one
            stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
        if not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line; control characters, which a dataset's texts may hold, do not reach a terminal."""
    plain = "".join(sign if sign.isprintable() else "\ufffd" for sign in line)
    print(plain, file=stream, flush=True)
