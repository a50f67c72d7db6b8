# SPDX-License-Identifier: Apache-2.0
"""Draw, record and apply a degradation.

A :class:`Recipe` is a list of steps, each a name of :data:`ACTS` and its plain numbers.  It can be
written as JSON, read again, and gives the same degraded image each time.

Named severities follow the corruptions of Sun et al., Nat. Biomed. Eng. 2025 (amplitude in mm and
degrees, frequency in cycles per repetition time).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade import blur, intensity, motion, noise

Array = NDArray[np.float32]
Spacing = tuple[float, float, float]
Step = Mapping[str, Any]

#: amplitude (mm and degrees) and frequency (cycles per phase-encoding line) of periodic motion
SEVERITIES: Mapping[str, tuple[float, float]] = {
    "minor": (1.0, 0.12),
    "moderate": (2.0, 0.18),
    "severe": (3.0, 0.42),
    "severe+": (4.0, 0.48),
    "severe++": (5.0, 0.54),
}


def _periodic(image: Array, spacing: Spacing, step: Step) -> Array:
    axis = int(step["phase_axis"])
    path = motion.periodic(
        image.shape[axis], np.asarray(step["amplitude"]), step["frequency"], step["phase"]
    )
    return motion.apply_motion(
        image, spacing, path.centred(), phase_axis=axis, max_rotations=step.get("max_rotations", 9)
    )


def _piecewise(image: Array, spacing: Spacing, step: Step) -> Array:
    axis = int(step["phase_axis"])
    path = motion.piecewise(image.shape[axis], step["times"], step["poses"], smooth=step["smooth"])
    return motion.apply_motion(
        image, spacing, path.centred(), phase_axis=axis, max_rotations=step.get("max_rotations", 9)
    )


def _jitter(image: Array, spacing: Spacing, step: Step) -> Array:
    axis = int(step["phase_axis"])
    rng = np.random.default_rng(step["seed"])
    shifts: NDArray[np.float64] = float(step["sigma"]) * rng.standard_normal((image.shape[axis],))
    middle = slice(image.shape[axis] // 2 - 4, image.shape[axis] // 2 + 5)
    shifts -= shifts[middle].mean()
    return blur.line_jitter(image, shifts, phase_axis=axis, readout_axis=int(step["readout_axis"]))


def _low_resolution(image: Array, spacing: Spacing, step: Step) -> Array:
    axis = int(step["axis"])
    return blur.thick_slices(image, axis, max(step["thickness_mm"] / spacing[axis], 1.0))


def _gaussian(image: Array, spacing: Spacing, step: Step) -> Array:
    return noise.gaussian(image, step["sigma"], np.random.default_rng(step["seed"]))


def _rician(image: Array, spacing: Spacing, step: Step) -> Array:
    return noise.rician(image, step["sigma"], np.random.default_rng(step["seed"]))


def _smooth(image: Array, spacing: Spacing, step: Step) -> Array:
    return blur.smooth(image, spacing, step["fwhm_mm"])


def _bias(image: Array, spacing: Spacing, step: Step) -> Array:
    return intensity.bias_field(image, np.asarray(step["control"]))


def _gamma(image: Array, spacing: Spacing, step: Step) -> Array:
    return intensity.gamma(image, step["exponent"], step["reference"])


#: the one table of what a step may be
ACTS: Mapping[str, Callable[[Array, Spacing, Step], Array]] = {
    "motion-periodic": _periodic,
    "motion-piecewise": _piecewise,
    "line-jitter": _jitter,
    "low-resolution": _low_resolution,
    "gaussian-noise": _gaussian,
    "rician-noise": _rician,
    "smoothing": _smooth,
    "bias-field": _bias,
    "gamma": _gamma,
}


@dataclass(frozen=True)
class Recipe:
    """Steps that degrade an image; the same recipe gives the same image."""

    steps: tuple[Step, ...]

    def apply(self, image: Array, spacing: Spacing) -> Array:
        """Degrade an (X, Y, Z) image; intensities keep their unit, spacing is in mm."""
        result = np.asarray(image, dtype=np.float32)
        for step in self.steps:
            result = ACTS[step["kind"]](result, spacing, step)
        return result

    def to_json(self) -> str:
        """The recipe as JSON text."""
        return json.dumps({"steps": [dict(step) for step in self.steps]}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe again; an unknown kind of step raises ValueError."""
        steps = json.loads(text)["steps"]
        unknown = sorted({step["kind"] for step in steps} - set(ACTS))
        if unknown:
            raise ValueError(f"expected steps of {sorted(ACTS)}, got {unknown}")
        return cls(tuple(steps))


def severity(
    name: str, rng: np.random.Generator, *, phase_axis: int = 1, blur_sigma: float = 0.0
) -> Recipe:
    """Periodic motion of a named severity: both along the phase axis and as a nod about axis 0."""
    if name not in SEVERITIES:
        raise ValueError(f"expected a severity of {list(SEVERITIES)}, got {name!r}")
    amplitude, frequency = SEVERITIES[name]
    return Recipe(
        (
            _draw_periodic(rng, amplitude, frequency, phase_axis),
            *_maybe_jitter(rng, blur_sigma, phase_axis),
        )
    )


def draw(name: str, rng: np.random.Generator, *, intensity_range: float = 1000.0) -> Recipe:
    """Throw the dice for a named kind of degradation.

    Parameters
    ----------
    name : a severity of :data:`SEVERITIES`, ``"low-resolution"``, ``"noise"``, ``"smoothing"``,
        ``"mixed"`` (anything a training pair may have) or ``"clean"``
    rng : the source of randomness; every drawn number is in the recipe
    intensity_range : full range of the image, for noise
    """
    if name == "clean":
        return Recipe(())
    if name in SEVERITIES:
        return severity(name, rng)
    if name == "low-resolution":
        return Recipe((_draw_slices(rng),))
    if name == "noise":
        return Recipe((_draw_noise(rng, intensity_range),))
    if name == "smoothing":
        return Recipe(({"kind": "smoothing", "fwhm_mm": float(rng.uniform(0.8, 2.4))},))
    if name == "mixed":
        return _draw_mixed(rng, intensity_range)
    known = ["clean", *SEVERITIES, "low-resolution", "noise", "smoothing", "mixed"]
    raise ValueError(f"expected one of {known}, got {name!r}")


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


def _draw_motion(rng: np.random.Generator) -> Step:
    choice = rng.random()
    if choice < 0.75:  # mostly mild: the square favours small amplitudes
        amplitude = 0.2 + 3.3 * float(rng.random()) ** 2
        return _draw_periodic(rng, amplitude, float(rng.uniform(0.02, 0.5)), 1)
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
        "max_rotations": 5,
    }


def _draw_periodic(
    rng: np.random.Generator, amplitude: float, frequency: float, phase_axis: int
) -> Step:
    share = np.zeros(6)
    share[:3] = rng.normal(0, 1, 3)
    share[:3] *= amplitude / (np.linalg.norm(share[:3]) + 1e-9)
    share[3] = amplitude * rng.uniform(0.3, 1.0) * rng.choice([-1.0, 1.0])  # nodding
    return {
        "kind": "motion-periodic",
        "amplitude": [float(v) for v in share],
        "frequency": float(frequency),
        "phase": float(rng.uniform(0, 2 * np.pi)),
        "phase_axis": phase_axis,
        "max_rotations": 5,
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
            "readout_axis": 2,
        },
    )


def _draw_slices(rng: np.random.Generator) -> Step:
    return {
        "kind": "low-resolution",
        "axis": int(rng.choice([0, 1, 2], p=[0.25, 0.25, 0.5])),
        "thickness_mm": float(rng.uniform(1.2, 4.0)),
    }


def _draw_noise(rng: np.random.Generator, intensity_range: float) -> Step:
    return {
        "kind": str(rng.choice(["rician-noise", "gaussian-noise"])),
        "sigma": float(rng.uniform(0.002, 0.05) * intensity_range),
        "seed": int(rng.integers(2**31)),
    }
