# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import errno

import pytest

from bmex_bids.common.failure import Failure
from bmex_bids.exceptions import ImageError, OutputError, StepError, WeightsError


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (ImageError("expected one,\n  got none"), "expected one, got none", 1),
        (WeightsError("damaged"), "damaged", 5),
        (StepError("failed", 5), "failed", 5),
        (KeyError("x"), "KeyError: 'x'", 1),
        (RuntimeError("first\nsecond"), "RuntimeError: first", 1),
        (RuntimeError(), "RuntimeError: no message", 1),
        (OSError(errno.EACCES, "denied", "/f"), "PermissionError: [Errno 13] denied: '/f'", 1),
    ],
)
def test_what_a_record_says_of_an_error(error, text, code):
    failure = Failure.of(error)
    assert (str(failure), failure.exit_code) == (text, code)


def test_the_error_of_a_step_goes_from_process_to_process():
    error = copy.copy(StepError("failed", 5))  # as pickle does
    assert (str(error), error.exit_code) == ("failed", 5)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [ImageError, ValueError, None])
def test_a_full_disk_is_found_behind_what_it_caused(number, wrapped):
    def fail():
        try:
            raise OSError(number, "full", "/f")
        except OSError as error:
            if wrapped is None:
                raise
            raise wrapped("cannot be saved") from error

    with pytest.raises((OSError, ImageError, ValueError)) as caught:
        fail()
    failure = Failure.of(caught.value)
    assert failure.exit_code == 5
    assert ("full: /f; free some space" in failure.message) is (wrapped is not ImageError)


def test_a_file_that_may_not_be_so_long_ends_the_run_and_says_why():
    """Under ``ulimit -f``, and on FAT, each image failed of itself, and the run ended with 1."""
    failure = Failure.of(OSError(errno.EFBIG, "File too large", "/f"))
    assert failure.exit_code == 5
    assert "File too large: /f; allow longer files (ulimit -f" in failure.message


def test_a_full_disk_that_was_dealt_with_is_none():
    error = ImageError("damaged")
    error.__context__ = OSError(errno.ENOSPC, "full")
    assert Failure.of(error).exit_code == 5
    error.__suppress_context__ = True  # raised "from None"
    assert Failure.of(error).exit_code == 1


def test_a_record_survives_a_file():
    failure = Failure.of(OutputError("no room for “é”\tand tabs"))
    assert Failure.from_line(failure.as_line()) == failure
    assert "\n" not in failure.as_line()
    assert Failure.from_line("Traceback (most recent call last):") is None
    assert Failure.from_line("Failure: {") is None
