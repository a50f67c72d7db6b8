# SPDX-License-Identifier: Apache-2.0
"""What the fields of a step must say, and the words for what they say wrongly.

A check takes a value and returns what was expected, or an empty string where the value is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Step = Mapping[str, Any]
Check = Callable[[Any], str]


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number within limits."""

    def check(value: Any) -> str:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if good and math.isfinite(value) and low <= value <= high:
            return ""
        limits = f" from {low:g} to {high:g}" if math.isfinite(low) or math.isfinite(high) else ""
        return f"a number{limits}"

    return check


def whole(low: int, high: int) -> Check:
    """A whole number within limits."""

    def check(value: Any) -> str:
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return "" if good else f"a whole number from {low} to {high}"

    return check


def flag(value: Any) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else "true or false"


def table(shape: tuple[int | None, ...]) -> Check:
    """Numbers nested in lists; None stands for any length of at least one."""

    def check(value: Any) -> str:
        words = " × ".join("n" if n is None else str(n) for n in shape)
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            return f"{words} numbers"
        fits = array.ndim == len(shape) and all(
            have >= 1 and want in (None, have)
            for want, have in zip(shape, array.shape, strict=True)
        )
        return "" if fits and np.isfinite(array).all() else f"{words} finite numbers"

    return check


def shares(value: Any) -> str:
    """Three numbers above 0 and up to 1, one for each axis."""
    problem = table((3,))(value)
    good = not problem and all(0 < share <= 1 for share in value)
    return "" if good else "3 numbers above 0 and up to 1"


def path(step: Step, times: str, poses: str) -> str:
    """Whether there is a pose for each time, and times increase; empty where neither is there."""
    if times not in step and poses not in step:
        return ""
    at, where = list(step.get(times, ())), step.get(poses, ())
    if len(at) == len(where) and at == sorted(at):
        return ""
    return f"increasing {times!r}, one for each of {len(where)} poses"


def across(step: Step, first: str, second: str) -> str:
    """Whether two axes differ."""
    same = second in step and step[first] == step[second]
    names = {"readout_axis": "a read-out axis", "slice_axis": "a slice axis"}
    return f"{names[second]} across the phase axis" if same else ""
