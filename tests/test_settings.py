# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bmex_bids.exceptions import UsageError
from bmex_bids.settings import dumps, loads


@dataclass(frozen=True)
class Inner:
    a: int = 1
    b: float = math.inf


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    place: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_a_dataclass_is_written_and_read_again():
    settings = Outer('a "quoted" name\n', Path("/some where"), Inner(3, 0.25))
    assert loads(Outer, dumps(settings), "it") == settings
    assert loads(Outer, dumps(Outer()), "it") == Outer()


def test_what_the_text_does_not_name_keeps_the_default_that_was_given():
    default = Outer("mine", None, Inner(7, 2.0))
    read = loads(Outer, "[inner]\nb = 5\n", "it", default)
    assert read == Outer("mine", None, Inner(7, 5.0))
    assert loads(Outer, "[inner]\nb = 5\n", "it") == Outer("x", None, Inner(1, 5.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [("a = ", "TOML"), ("colour = 1", "colour"), ("name = 1", "str"), ("inner = 1", "table")],
)
def test_a_bad_text_is_refused_with_its_fault(text, words):
    for default in (None, Outer()):
        with pytest.raises(UsageError, match=words):
            loads(Outer, text, "it", default)
