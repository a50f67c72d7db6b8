# SPDX-License-Identifier: Apache-2.0
"""Draw a recipe: one kind at a level (:func:`draw_level`), or what training draws (:func:`draw`)."""

from __future__ import annotations

import math

import numpy as np

from bmex_bids.degrade.checks import Step
from bmex_bids.degrade.kinds import KINDS
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import (
    FASTEST,
    MOST_ROTATIONS,
    SEVERITIES,
    SLOWEST,
    Scan,
    draw_periodic,
    usual_frequency,
)


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


def severity(
    name: str, rng: np.random.Generator, *, phase_axis: int = 1, blur_sigma: float = 0.0
) -> Recipe:
    """Periodic motion of a named severity: both along the phase axis and as a nod about axis 0."""
    if name not in SEVERITIES:
        raise ValueError(f"expected a severity of {list(SEVERITIES)}, got {name!r}")
    amplitude, frequency = SEVERITIES[name]
    return Recipe(
        (
            draw_periodic(rng, amplitude, frequency, phase_axis),
            *_maybe_jitter(rng, blur_sigma, phase_axis),
        )
    )


def draw(name: str, rng: np.random.Generator, *, intensity_range: float = 1000.0) -> Recipe:
    """Throw the dice for a named kind of degradation.

    Parameters
    ----------
    name : a severity of :data:`SEVERITIES`, ``"motion"`` (of any size, in two fifths with thick
        slices), ``"noisy-motion"`` (the same, with noise), ``"low-resolution"``, ``"noise"``,
        ``"smoothing"``, ``"mixed"`` (anything, mostly mild), ``"acquisition"`` (what scans meet, see
        :func:`draw_acquisition`) or ``"clean"``
    rng : the source of randomness; every drawn number is in the recipe
    intensity_range : full range of the image, for noise
    """
    if name == "clean":
        return Recipe(())
    if name in SEVERITIES:
        return severity(name, rng)
    if name in ("motion", "noisy-motion"):
        motion = _draw_strong_motion(rng) if rng.random() < 0.8 else _draw_motion(rng)
        steps = (motion, _draw_slices(rng)) if rng.random() < 0.42 else (motion,)
        noise = (_draw_noise(rng, intensity_range),) if name == "noisy-motion" else ()
        return Recipe((*steps, *noise))
    if name == "low-resolution":
        return Recipe((_draw_slices(rng),))
    if name == "noise":
        return Recipe((_draw_noise(rng, intensity_range),))
    if name == "smoothing":
        return Recipe(({"kind": "smoothing", "fwhm_mm": float(rng.uniform(0.8, 2.4))},))
    if name == "mixed":
        return _draw_mixed(rng, intensity_range)
    if name == "acquisition":
        return draw_acquisition(rng, intensity_range)
    known = ["clean", *SEVERITIES, "motion", "noisy-motion", "low-resolution", "noise"]
    known += ["smoothing", "mixed", "acquisition"]
    raise ValueError(f"expected one of {known}, got {name!r}")


def draw_acquisition(rng: np.random.Generator, intensity_range: float = 1000.0) -> Recipe:
    """A scan with motion of any size, and what else scans have, now and then, in a scan's order.

    Any phase-encoding axis; in two fifths 2-D slices of 1.5 to 5 mm along any other axis, read
    interleaved; fold-over, ringing and noise as they come.  Sizes are continuous, small ones as
    often as large ones on a logarithmic scale.
    """
    phase_axis = int(rng.integers(3))
    others = [axis for axis in range(3) if axis != phase_axis]
    scan = Scan(intensity_range, phase_axis, others[int(rng.integers(2))])
    kinds: list[tuple[str, float]] = []
    if rng.random() < 0.1:
        kinds.append(("fold-over", float(rng.uniform(2, 25))))
    sliced = bool(rng.random() < 0.4)
    size = float(0.15 * (5.0 / 0.15) ** rng.random())
    kinds.append(("rigid-motion-2d" if sliced else "rigid-motion", size))
    if rng.random() < 0.25:
        kinds.append(("gibbs", float(rng.uniform(10, 60))))
    if rng.random() < 0.5:
        kind = str(rng.choice(["parallel-noise", "rician-noise"]))
        kinds.append((kind, float(0.2 * (7 / 0.2) ** rng.random())))
    steps = [draw_level(kind, value, rng, scan).steps[0] for kind, value in kinds]
    if sliced:
        place = next(k for k, step in enumerate(steps) if step["kind"] == "rigid-motion") + 1
        steps.insert(
            place,
            {
                "kind": "low-resolution",
                "axis": steps[place - 1]["slice_axis"],
                "thickness_mm": steps[place - 1]["slice_mm"],
                "degree": 3,  # as the application resamples
            },
        )
    return Recipe(tuple(steps))


def _draw_mixed(rng: np.random.Generator, intensity_range: float) -> Recipe:
    """What the training pairs are made with: motion, slices and noise, alone and together."""
    steps: list[Step] = []
    if rng.random() < 0.05:
        return Recipe(())
    if rng.random() < 0.5:
        steps.append(_draw_motion(rng))
        if rng.random() < 0.35:
            steps.extend(_maybe_jitter(rng, float(rng.uniform(0.2, 1.2)), 1))
    if rng.random() < 0.35:
        steps.append(_draw_slices(rng))
    elif rng.random() < 0.1:
        steps.append({"kind": "smoothing", "fwhm_mm": float(rng.uniform(0.5, 2.0))})
    if not steps or rng.random() < 0.35:
        steps.append(_draw_noise(rng, intensity_range))
    return Recipe(tuple(steps))


def _draw_strong_motion(rng: np.random.Generator) -> Step:
    """Periodic, from half a millimetre to more than the strongest severity's.

    Half of them at about the pace that goes with their amplitude in :data:`SEVERITIES`, half at any.
    """
    amplitude = 0.5 + 4.8 * float(rng.random()) ** 1.3
    if rng.random() < 0.5:
        pace = usual_frequency(amplitude) * math.exp(0.25 * float(rng.normal()))
        frequency = min(max(pace, SLOWEST), FASTEST)
    else:
        frequency = float(rng.uniform(SLOWEST, FASTEST))
    return draw_periodic(rng, amplitude, frequency, 1)


def _draw_motion(rng: np.random.Generator) -> Step:
    choice = rng.random()
    if choice < 0.75:  # mostly mild: the square favours small amplitudes
        amplitude = 0.2 + 5.3 * float(rng.random()) ** 2
        return draw_periodic(rng, amplitude, float(rng.uniform(SLOWEST, FASTEST)), 1)
    count = int(rng.integers(2, 5))
    smooth = bool(choice > 0.87)
    times = [0.0, *sorted(float(t) for t in rng.uniform(0.1, 0.9, count - 1))]
    scale = 0.2 + 2.0 * float(rng.random()) ** 2
    poses = [[0.0] * 6] + [
        [float(v) for v in rng.normal(0, scale / 2, 6)] for _ in range(count - 1)
    ]
    return {
        "kind": "motion-piecewise",
        "times": times,
        "poses": poses,
        "smooth": smooth,
        "phase_axis": 1,
        "max_rotations": 5 if smooth else MOST_ROTATIONS,
    }


def _maybe_jitter(rng: np.random.Generator, sigma: float, phase_axis: int) -> tuple[Step, ...]:
    if sigma <= 0:
        return ()
    return (
        {
            "kind": "line-jitter",
            "sigma": sigma,
            "seed": int(rng.integers(2**31)),
            "phase_axis": phase_axis,
            "readout_axis": 2 if phase_axis != 2 else 1,
        },
    )


def _draw_slices(rng: np.random.Generator) -> Step:
    return {
        "kind": "low-resolution",
        "axis": int(rng.choice([0, 1, 2], p=[0.25, 0.25, 0.5])),
        "thickness_mm": float(rng.uniform(1.2, 4.0)),
        "degree": 3,  # as the application resamples
    }


def _draw_noise(rng: np.random.Generator, intensity_range: float) -> Step:
    """From 0.2 to 7 % of the range, a doubling as often as another.

    Drawn evenly, weak noise is rare, and a network that hardly saw any made it worse.
    """
    weakest, strongest = 0.002, 0.07
    return {
        "kind": str(rng.choice(["rician-noise", "gaussian-noise"])),
        "sigma": float(weakest * (strongest / weakest) ** rng.random() * intensity_range),
        "seed": int(rng.integers(2**31)),
    }
