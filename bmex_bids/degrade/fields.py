# SPDX-License-Identifier: Apache-2.0
"""What each step of a recipe must say, and the words for what it says wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Step = Mapping[str, Any]


def _number(low: float = -math.inf, high: float = math.inf) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if good and math.isfinite(value) and low <= value <= high:
            return ""
        limits = f" from {low:g} to {high:g}" if math.isfinite(low) or math.isfinite(high) else ""
        return f"a number{limits}"

    return check


def _whole(low: int, high: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return "" if good else f"a whole number from {low} to {high}"

    return check


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _table(shape: tuple[int | None, ...]) -> Callable[[Any], str]:
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


#: of a step; as many as an image has lines, so with these each pose has a rotation of its own
MOST_ROTATIONS = 1024
_AXIS, _SEED, _POSES = _whole(0, 2), _whole(0, 2**63 - 1), _whole(1, MOST_ROTATIONS)
#: what each kind of step must say; those of :data:`_OPTIONAL` may be left out
FIELDS: Mapping[str, Mapping[str, Callable[[Any], str]]] = {
    "motion-periodic": {
        "amplitude": _table((6,)), "frequency": _number(0), "phase": _number(),
        "phase_axis": _AXIS, "max_rotations": _POSES,
    },
    "motion-piecewise": {
        "times": _table((None,)), "poses": _table((None, 6)), "smooth": _flag,
        "phase_axis": _AXIS, "max_rotations": _POSES,
    },
    "line-jitter": {
        "sigma": _number(0), "seed": _SEED, "phase_axis": _AXIS, "readout_axis": _AXIS,
    },
    "low-resolution": {"axis": _AXIS, "thickness_mm": _number(0), "degree": _whole(1, 3)},
    "gaussian-noise": {"sigma": _number(0), "seed": _SEED},
    "rician-noise": {"sigma": _number(0), "seed": _SEED},
    "smoothing": {"fwhm_mm": _number(0)},
    "bias-field": {"control": _table((None, None, None))},
    "gamma": {"exponent": _number(1e-3, 1e3), "reference": _number(1e-30)},
    "ghosting": {
        "strength": _number(0, 0.95), "period": _number(1), "phase": _number(),
        "phase_axis": _AXIS,
    },
}  # fmt: skip
_OPTIONAL = frozenset({"max_rotations", "degree"})


def check_step(number: int, step: Step) -> None:
    """Raise ValueError where a step cannot be done."""
    kind = step["kind"]
    fields, where = FIELDS[kind], f"step {number} ({kind})"
    strange = sorted(set(step) - set(fields) - {"kind"})
    if strange:
        raise ValueError(f"expected only {sorted(fields)} in {where}, got {strange}")
    for name, wanted in fields.items():
        if name not in step:
            if name in _OPTIONAL:
                continue
            raise ValueError(f"expected {name!r} in {where}, found none")
        problem = wanted(step[name])
        if problem:
            raise ValueError(f"expected {problem} for {name!r} in {where}, got {step[name]!r}")
    if kind == "motion-piecewise":
        times = list(step["times"])
        if len(times) != len(step["poses"]) or times != sorted(times):
            raise ValueError(
                f"expected increasing 'times', one for each of {len(step['poses'])} poses, in "
                f"{where}, got {times}"
            )
    if kind == "line-jitter" and step["phase_axis"] == step["readout_axis"]:
        raise ValueError(f"expected a read-out axis across the phase axis in {where}")
