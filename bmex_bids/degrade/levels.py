# SPDX-License-Identifier: Apache-2.0
"""Kinds of degradation at named levels: one number each, and the rest drawn at random.

The levels of motion are those of Sun et al., Nat. Biomed. Eng. 2025 (docs/simulation.md has the
table with units, formulas and references).  :func:`draw_level` turns a kind and a level, or any
number in the kind's unit, into a :class:`~bmex_bids.degrade.recipe.Recipe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.fields import MOST_ROTATIONS
from bmex_bids.degrade.recipe import (
    SEVERITIES,
    Recipe,
    Step,
    draw_periodic,
    usual_frequency,
)

#: of sudden motion
MOST_JUMPS = 10
#: stretches of a drift, each at its own pace
FEWEST_STRETCHES, MOST_STRETCHES = 2, 4
#: poses computed for a continuous motion, so that neighbours differ by little
CONTINUOUS_POSES = 9


@dataclass(frozen=True)
class Scan:
    """What drawing must know of the image.

    Attributes
    ----------
    intensity_range : what a percentage of noise is a percentage of, and what gamma leaves alone
    phase_axis : the phase-encoding axis of the array
    slice_axis : the axis along which slices become thick
    """

    intensity_range: float = 1000.0
    phase_axis: int = 1
    slice_axis: int = 2

    @property
    def readout_axis(self) -> int:
        """The last axis that is not the phase-encoding one."""
        return 2 if self.phase_axis != 2 else 1


@dataclass(frozen=True)
class Kind:
    """One kind of degradation.

    Attributes
    ----------
    unit : of its number
    levels : name → number; more is worse
    low, high : between which a number makes sense
    draw : (number, dice, scan) → one step
    """

    unit: str
    levels: Mapping[str, float]
    low: float
    high: float
    draw: Callable[[float, np.random.Generator, Scan], Step]


def _periodic(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    return draw_periodic(rng, value, usual_frequency(value), scan.phase_axis)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """A unit vector, any direction as likely as any other."""
    vector = rng.standard_normal(3)
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


def _pose(length: float, rng: np.random.Generator) -> list[float]:
    """A translation of ``length`` mm in any direction, and as many degrees about any axis."""
    return [float(v) for v in (*(length * _direction(rng)), *(length * _direction(rng)))]


def _sudden(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """One jump for each mm: once a jump is longer than the detail in a line, only how many lines
    moved, and how near the centre of k-space, makes it worse."""
    moves = min(max(round(value), 1), MOST_JUMPS)
    times = [0.0, *sorted(float(t) for t in rng.uniform(0.1, 0.9, moves))]
    poses = [[0.0] * 6, *(_pose(value, rng) for _ in range(moves))]
    return _piecewise(times, poses, False, scan, MOST_ROTATIONS)


def _continuous(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    end = np.array(_pose(value, rng))
    stretches = int(rng.integers(FEWEST_STRETCHES, MOST_STRETCHES + 1))
    times = [float(t) for t in np.linspace(0, 1, stretches + 1)]
    way = [0.0, *sorted(float(v) for v in rng.random(stretches - 1)), 1.0]
    poses = [[float(v) for v in share * end] for share in way]
    return _piecewise(times, poses, True, scan, CONTINUOUS_POSES)


def _piecewise(
    times: list[float], poses: list[list[float]], smooth: bool, scan: Scan, rotations: int
) -> Step:
    return {
        "kind": "motion-piecewise",
        "times": times,
        "poses": poses,
        "smooth": smooth,
        "phase_axis": scan.phase_axis,
        "max_rotations": rotations,
    }


def _jitter(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    return {
        "kind": "line-jitter",
        "sigma": value,
        "seed": _seed(rng),
        "phase_axis": scan.phase_axis,
        "readout_axis": scan.readout_axis,
    }


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _slices(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    return {"kind": "low-resolution", "axis": scan.slice_axis, "thickness_mm": value}


def _noise(kind: str) -> Callable[[float, np.random.Generator, Scan], Step]:
    def draw(value: float, rng: np.random.Generator, scan: Scan) -> Step:
        return {"kind": kind, "sigma": value / 100 * scan.intensity_range, "seed": _seed(rng)}

    return draw


def _smoothing(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    return {"kind": "smoothing", "fwhm_mm": value}


def _bias(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A 3 × 3 × 3 grid whose smallest and largest factors are 1 ∓ value / 200."""
    control = rng.random((3, 3, 3))
    control = (control - control.min()) / (control.max() - control.min())
    factor = 1 + (2 * control - 1) * value / 200
    return {"kind": "bias-field", "control": np.log(factor).tolist()}


def _contrast(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    exponent = value if rng.random() < 0.5 else 1 / value
    return {"kind": "gamma", "exponent": exponent, "reference": scan.intensity_range}


def _ghosts(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    period = float(rng.integers(2, 7))
    # with two lines the phase would only weaken the one ghost there is
    phase = 0.0 if period == 2 else float(rng.uniform(0, 2 * math.pi))
    return {
        "kind": "ghosting",
        "strength": value / 100,
        "period": period,
        "phase": phase,
        "phase_axis": scan.phase_axis,
    }


_MOTION = {name: amplitude for name, (amplitude, _) in SEVERITIES.items()}


def _levels(*values: float) -> dict[str, float]:
    return dict(zip(SEVERITIES, values, strict=True))


#: every kind, with its number at each level
KINDS: Mapping[str, Kind] = {
    "motion-periodic": Kind("mm and degrees", _MOTION, 0, 30, _periodic),
    "motion-continuous": Kind("mm and degrees", _MOTION, 0, 30, _continuous),
    "motion-sudden": Kind("mm and degrees", _MOTION, 0, 30, _sudden),
    "blur": Kind("voxels (sigma)", _levels(0.5, 1, 1.5, 2, 2.5), 0, 20, _jitter),
    "low-resolution": Kind("mm thick", _levels(1.6, 2.4, 3.2, 4, 5), 0, 20, _slices),
    "gaussian-noise": Kind("% of range", _levels(2.5, 5, 10, 15, 20), 0, 100, _noise("gaussian-noise")),
    "rician-noise": Kind("% of range", _levels(2.5, 5, 10, 15, 20), 0, 100, _noise("rician-noise")),
    "smoothing": Kind("mm (FWHM)", _levels(1, 2, 3, 4, 5), 0, 20, _smoothing),
    "bias-field": Kind("% peak to peak", _levels(20, 40, 80, 120, 160), 0, 190, _bias),
    "contrast": Kind("exponent", _levels(1.15, 1.3, 1.5, 1.75, 2), 1, 10, _contrast),
    "ghosting": Kind("% of image", _levels(5, 10, 20, 35, 50), 0, 95, _ghosts),
}  # fmt: skip


def draw_level(
    kind: str, level: str | float, rng: np.random.Generator, scan: Scan | None = None
) -> Recipe:
    """Throw the dice for one kind at one level; every drawn number is in the recipe.

    Parameters
    ----------
    kind : of :data:`KINDS`
    level : a name such as ``"moderate"``, or a number in the kind's unit
    rng : the source of randomness
    scan : of the image; the default is an LPS image in template units

    Raises
    ------
    ValueError
        Kind or level is unknown, or the number makes no sense.

    >>> draw_level("low-resolution", 2.4, np.random.default_rng(0)).steps[0]["thickness_mm"]
    2.4
    """
    if kind not in KINDS:
        raise ValueError(f"expected a kind of {list(KINDS)}, got {kind!r}")
    chosen = KINDS[kind]
    if isinstance(level, str):
        if level not in chosen.levels:
            raise ValueError(
                f"expected for {kind} a level of {list(chosen.levels)} or a number "
                f"({chosen.unit}), got {level!r}"
            )
        level = chosen.levels[level]
    if not chosen.low <= level <= chosen.high:
        raise ValueError(
            f"expected for {kind} a number from {chosen.low:g} to {chosen.high:g} "
            f"({chosen.unit}), got {level:g}"
        )
    return Recipe((chosen.draw(float(level), rng, scan or Scan()),))
