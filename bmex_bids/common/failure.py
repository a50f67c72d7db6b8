# SPDX-License-Identifier: Apache-2.0
"""Why something failed, as a record that one process writes and another reads."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass

from bmex_bids.exceptions import BmexError, EnvironmentProblem

#: what the system says of a full disk, a used-up quota, a file that is longer than may be
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TOO_LONG = "allow longer files (ulimit -f; FAT has 4 GB at most)"
#: how the line of a file begins that holds a record
MARK = "Failure: "


@dataclass(frozen=True)
class Failure:
    """Why a step failed.

    Attributes
    ----------
    kind : name of the error's class; empty for our own errors, whose messages say all
    message : for the user, in one line
    exit_code : of a run that ends with it
    """

    kind: str
    message: str
    exit_code: int = 1

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The record of an error; a full disk is one also where another error came of it."""
        if isinstance(error, BmexError):
            full = any(is_disk_full(link) for link in chain(error))
            code = EnvironmentProblem.exit_code if full else error.exit_code
            return cls("", " ".join(str(error).split()), code)
        for link in chain(error):
            if isinstance(link, OSError) and is_disk_full(link):
                where = f": {link.filename}" if link.filename else ""
                advice = TOO_LONG if link.errno == errno.EFBIG else "free some space"
                return cls(
                    type(link).__name__,
                    f"{link.strerror}{where}; {advice}, then run the same command again",
                    EnvironmentProblem.exit_code,
                )
        return cls(type(error).__name__, _line(error))

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.kind else self.message

    def as_line(self) -> str:
        """One line of a text file, without its end."""
        return MARK + json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Failure | None:
        """The record in a line of :meth:`as_line`; None where there is none."""
        if not line.startswith(MARK):
            return None
        try:
            return cls(**json.loads(line.removeprefix(MARK)))
        except (ValueError, TypeError):
            return None


#: of a step about which nobody knows more
UNKNOWN = Failure("", "no reason was given; see the crash file")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the system says that a disk, or a quota on it, is full."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came of."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _line(error: BaseException) -> str:
    """The first line of a message."""
    return next(iter(str(error).strip().splitlines()), "no message")
