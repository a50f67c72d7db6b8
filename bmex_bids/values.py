# SPDX-License-Identifier: Apache-2.0
"""Words of a command line as values; a ValueError says what was expected and what came."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

MEMORY_UNITS = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}  # in 2^30 bytes


def number(kind: Callable[[str], float], *, at_least: float) -> Callable[[str], float]:
    """A reader of finite numbers; ``kind`` is ``int`` or ``float``.

    >>> number(int, at_least=1)("3")
    3
    """

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= at_least):
            whole = "a whole number" if kind is int else "a number"
            raise ValueError(f"expected {whole} of {at_least} or more, got {text!r}")
        return value

    return read


def device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def memory(text: str) -> float:
    """Memory in 2^30 bytes.

    >>> memory("2048"), memory("1.5G"), memory("2T")
    (2.0, 1.5, 2048.0)
    >>> memory("4 GB"), memory("4GiB")
    (4.0, 4.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.strip().upper())
    if not found or float(found[1]) == 0:
        raise ValueError(f"expected memory such as 8000 or 8G, got {text!r}")
    return float(found[1]) * MEMORY_UNITS[found[2] or "M"]


def labels(prefix: str) -> Callable[[Iterable[str]], tuple[str, ...]]:
    """BIDS labels without their prefix and doubles, sorted; a comma parts labels too.

    >>> labels("sub-")(["sub-02,sub-03", "01", "02"])
    ('01', '02', '03')
    """

    def tidy(values: Iterable[str]) -> tuple[str, ...]:
        parts = [part.strip() for value in values for part in value.split(",")]
        return tuple(sorted({part.removeprefix(prefix) for part in parts if part}))

    return tidy
