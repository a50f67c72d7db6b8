# SPDX-License-Identifier: Apache-2.0
"""Draw, record and apply a degradation.

A :class:`Recipe` is a list of steps, each a name of :data:`ACTS` and its plain numbers.  It can be
written as JSON, read again, and gives the same degraded image each time: to the last bit on one
machine, with any number of threads; on another machine or with other versions of numpy and scipy
up to rounding.

What a kind of step computes never changes.  If one day it must, the better act gets a new name,
and old recipes keep theirs; ``VERSION`` counts changes of the JSON layout alone.

Named severities follow the corruptions of Sun et al., Nat. Biomed. Eng. 2025 (amplitude in mm and
degrees, frequency in cycles per repetition time).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade import blur, ghost, intensity, motion, noise
from bmex_bids.degrade.fields import MOST_ROTATIONS, check_step

Array = NDArray[np.float32]
Spacing = tuple[float, float, float]
Step = Mapping[str, Any]

FORMAT = "bmex-degrade recipe"
VERSION = 1
#: where array axes 0, 1, 2 of the image point when a recipe is drawn and applied
AXES = "LPS"

#: amplitude (mm and degrees) and frequency (cycles per phase-encoding line) of periodic motion
SEVERITIES: Mapping[str, tuple[float, float]] = {
    "minor": (1.0, 0.12),
    "moderate": (2.0, 0.18),
    "severe": (3.0, 0.42),
    "severe+": (4.0, 0.48),
    "severe++": (5.0, 0.54),
}

#: cycles a line, between which motion is drawn
SLOWEST, FASTEST = 0.02, 0.55


def usual_frequency(amplitude: float) -> float:
    """Cycles a line that go with an amplitude in mm: those of the severities, linear in between."""
    amplitudes, frequencies = zip(*SEVERITIES.values(), strict=True)
    return float(np.interp(amplitude, amplitudes, frequencies))


def _periodic(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    axis = int(step["phase_axis"])
    path = motion.periodic(
        image.shape[axis], np.asarray(step["amplitude"]), step["frequency"], step["phase"]
    )
    return motion.apply_motion(
        image,
        spacing,
        path.centred(),
        phase_axis=axis,
        max_rotations=step.get("max_rotations", 9),
        workers=workers,
    )


def _piecewise(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    axis = int(step["phase_axis"])
    path = motion.piecewise(image.shape[axis], step["times"], step["poses"], smooth=step["smooth"])
    return motion.apply_motion(
        image,
        spacing,
        path.centred(),
        phase_axis=axis,
        max_rotations=step.get("max_rotations", 9),
        workers=workers,
    )


def _jitter(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    axis = int(step["phase_axis"])
    rng = np.random.default_rng(step["seed"])
    shifts: NDArray[np.float64] = float(step["sigma"]) * rng.standard_normal((image.shape[axis],))
    middle = slice(image.shape[axis] // 2 - 4, image.shape[axis] // 2 + 5)
    shifts -= shifts[middle].mean()
    readout = int(step["readout_axis"])
    return blur.line_jitter(image, shifts, phase_axis=axis, readout_axis=readout, workers=workers)


def _ghosting(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return ghost.ghosting(
        image,
        step["strength"],
        step["period"],
        step["phase"],
        phase_axis=int(step["phase_axis"]),
    )


def _low_resolution(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    axis = int(step["axis"])
    factor = max(step["thickness_mm"] / spacing[axis], 1.0)
    return blur.thick_slices(image, axis, factor, int(step.get("degree", 1)))


def _gaussian(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return noise.gaussian(image, step["sigma"], np.random.default_rng(step["seed"]))


def _rician(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return noise.rician(image, step["sigma"], np.random.default_rng(step["seed"]))


def _smooth(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return blur.smooth(image, spacing, step["fwhm_mm"])


def _bias(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return intensity.bias_field(image, np.asarray(step["control"]))


def _gamma(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return intensity.gamma(image, step["exponent"], step["reference"])


#: the one table of what a step may be
ACTS: Mapping[str, Callable[[Array, Spacing, Step, int], Array]] = {
    "motion-periodic": _periodic,
    "motion-piecewise": _piecewise,
    "line-jitter": _jitter,
    "low-resolution": _low_resolution,
    "gaussian-noise": _gaussian,
    "rician-noise": _rician,
    "smoothing": _smooth,
    "bias-field": _bias,
    "gamma": _gamma,
    "ghosting": _ghosting,
}


@dataclass(frozen=True)
class Recipe:
    """Steps that degrade an image; the same recipe gives the same image."""

    steps: tuple[Step, ...]

    def apply(self, image: Array, spacing: Spacing, *, workers: int = 1) -> Array:
        """Degrade an (X, Y, Z) image; intensities keep their unit, spacing is in mm.

        The axes must be those the recipe was drawn for (``AXES``).  ``workers`` is a number of
        threads, on which the result does not depend.
        """
        result = np.asarray(image, dtype=np.float32)
        for step in self.steps:
            result = ACTS[step["kind"]](result, spacing, step, workers)
        return result

    def apply_before_stripping(
        self, head: Array, mask: NDArray[np.bool_], spacing: Spacing, *, workers: int = 1
    ) -> Array:
        """Degrade a whole head, then take the skull away: what moves outside leaves its traces.

        Parameters
        ----------
        head, mask : (X, Y, Z), on one grid

        Returns
        -------
        (X, Y, Z) float32 array, never negative, zero outside the mask
        """
        degraded = np.clip(self.apply(head, spacing, workers=workers), 0, None)
        return np.where(mask, degraded, 0).astype(np.float32)

    def to_json(self) -> str:
        """The recipe as JSON text."""
        return json.dumps(self.as_dict(), indent=2)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as what JSON can hold."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "axes": AXES,
            "steps": [dict(step) for step in self.steps],
        }

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe again; ValueError says what is wrong with it."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, table: Any) -> Recipe:
        """Check and take a recipe read from JSON.

        Raises ValueError for a later version, other axes, an unknown kind of step, and a field
        that is missing, unknown or impossible.
        """
        if not isinstance(table, Mapping) or not isinstance(table.get("steps"), list):
            raise ValueError('expected a recipe with a list of "steps"')
        # the first recipes had neither version nor axes; they meant these
        version, axes = table.get("version", 1), table.get("axes", AXES)
        if version != VERSION:
            raise ValueError(
                f"expected a recipe of version {VERSION}, got {version!r}; a later bmex_bids may "
                "read it"
            )
        if axes != AXES:
            raise ValueError(f"expected a recipe for axes {AXES}, got {axes!r}")
        steps = table["steps"]
        kinds = [step.get("kind") if isinstance(step, Mapping) else step for step in steps]
        unknown = sorted({str(kind) for kind in kinds} - set(ACTS))
        if unknown:
            raise ValueError(f"expected steps of {sorted(ACTS)}, got {unknown}")
        for number, step in enumerate(steps, start=1):
            check_step(number, step)
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
        ``"smoothing"``, ``"mixed"`` (anything, mostly mild) or ``"clean"``
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
    known = ["clean", *SEVERITIES, "motion", "noisy-motion", "low-resolution", "noise"]
    known += ["smoothing", "mixed"]
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


def draw_periodic(
    rng: np.random.Generator, amplitude: float, frequency: float, phase_axis: int
) -> Step:
    """A translation in any direction and a nod about axis 0, in step with each other.

    Parameters
    ----------
    amplitude : length of the translation in mm; the nod has 0.3 to 1 times as many degrees
    frequency : cycles a line
    """
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
