# SPDX-License-Identifier: Apache-2.0
"""The table of degradations: a row a kind.

A row says what a step of the kind holds, what it does to an image, the unit of its number, the
number at each named level, and how a step is drawn.  Parser, checks, recipes, gallery and the help of
``bmex-degrade`` read this table.  docs/simulation.md has it in words.

What an act computes never changes.  If one day it must, the better act gets a new name, and old
recipes keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade import (
    blur,
    ghost,
    intensity,
    low_field,
    motion,
    noise,
    readout,
    sampling,
    steps,
)
from bmex_bids.degrade.checks import Check, Step, across, flag, number, path, shares, table, whole
from bmex_bids.degrade.steps import MOST_ROTATIONS, SEVERITIES, Draw

Array = NDArray[np.float32]
Spacing = tuple[float, float, float]

_AXIS, _SEED, _POSES = whole(0, 2), whole(0, 2**63 - 1), whole(1, MOST_ROTATIONS)


@dataclass(frozen=True)
class Act:
    """What a kind of step holds and does.

    Attributes
    ----------
    name : ``kind`` of the step
    apply : (image, spacing in mm, step, threads) → image
    fields : what a step must say → its check
    optional : what it may say besides
    sound : what of a whole step is wrong, as words for what was expected; empty where it is right
    """

    name: str
    apply: Callable[[Array, Spacing, Step, int], Array]
    fields: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)
    sound: Callable[[Step], str] = lambda step: ""

    def check(self, position: int, step: Step) -> None:
        """Raise ValueError where a step cannot be done; ``position`` is its number, from 1."""
        known, where = {**self.fields, **self.optional}, f"step {position} ({self.name})"
        strange = sorted(set(step) - set(known) - {"kind"})
        if strange:
            raise ValueError(f"expected only {sorted(known)} in {where}, got {strange}")
        for name, wanted in known.items():
            if name not in step:
                if name in self.optional:
                    continue
                raise ValueError(f"expected {name!r} in {where}, found none")
            problem = wanted(step[name])
            if problem:
                raise ValueError(f"expected {problem} for {name!r} in {where}, got {step[name]!r}")
        problem = self.sound(step)
        if problem:
            raise ValueError(f"expected {problem} in {where}, got {dict(step)}")


@dataclass(frozen=True)
class Kind:
    """One kind of degradation.

    Attributes
    ----------
    act : what its steps do
    unit : of its number
    levels : name → number; more is worse
    low, high : between which a number makes sense
    draw : (number, dice, scan) → one step
    """

    act: Act
    unit: str
    levels: Mapping[str, float]
    low: float
    high: float
    draw: Draw


# ---------------------------------------------------------------- acts
def _periodic(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    lines = image.shape[int(step["phase_axis"])]
    course = motion.periodic(
        lines, np.asarray(step["amplitude"]), step["frequency"], step["phase"]
    )
    return _moved(image, spacing, step, workers, course)


def _piecewise(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    lines = image.shape[int(step["phase_axis"])]
    course = motion.piecewise(lines, step["times"], step["poses"], smooth=step["smooth"])
    return _moved(image, spacing, step, workers, course)


def _moved(
    image: Array, spacing: Spacing, step: Step, workers: int, course: motion.Trajectory
) -> Array:
    return motion.apply_motion(
        image,
        spacing,
        course.centred(),
        phase_axis=int(step["phase_axis"]),
        max_rotations=step.get("max_rotations", 9),
        workers=workers,
    )


def _rigid(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    across_ = step.get("slice_axis")
    timing = readout.Timing(
        phase_axis=int(step["phase_axis"]),
        slice_axis=across_,
        slab_voxels=1.0 if across_ is None else step.get("slice_mm", 0.0) / spacing[across_],
        interleave=int(step.get("interleave", 1)),
        concatenations=int(step.get("concatenations", 1)),
        centric=bool(step.get("centric", False)),
    )
    most = int(step.get("max_rotations", steps.MIXED_POSES))
    return readout.acquire(image, spacing, step, timing, most=most, workers=workers)


def _sound_motion(step: Step) -> str:
    problem = path(step, "jump_times", "jumps") or path(step, "drift_times", "drifts")
    return problem or across(step, "phase_axis", "slice_axis")


def _jitter(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    axis = int(step["phase_axis"])
    rng = np.random.default_rng(step["seed"])
    shifts: NDArray[np.float64] = float(step["sigma"]) * rng.standard_normal((image.shape[axis],))
    middle = slice(image.shape[axis] // 2 - 4, image.shape[axis] // 2 + 5)
    shifts -= shifts[middle].mean()
    return blur.line_jitter(
        image, shifts, phase_axis=axis, readout_axis=int(step["readout_axis"]), workers=workers
    )


def _low_resolution(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    axis = int(step["axis"])
    factor = max(step["thickness_mm"] / spacing[axis], 1.0)
    return blur.thick_slices(image, axis, factor, int(step.get("degree", 1)))


def _white(
    add: Callable[[Array, float, np.random.Generator], Array],
    image: Array, spacing: Spacing, step: Step, workers: int,
) -> Array:  # fmt: skip
    return add(image, step["sigma"], np.random.default_rng(step["seed"]))


def _parallel(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return noise.parallel(
        image,
        step["sigma"],
        np.exp(intensity.smooth_field(image.shape, np.asarray(step["control"]))),
        np.random.default_rng(step["seed"]),
        alias=noise.Alias(int(step["phase_axis"]), step["acceleration"], step["coupling"]),
        kept=tuple(step.get("bandwidth", (1.0, 1.0, 1.0))),
        workers=workers,
    )


def _smooth(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return blur.smooth(image, spacing, step["fwhm_mm"])


def _bias(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return intensity.bias_field(image, np.asarray(step["control"]))


def _gamma(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return intensity.gamma(image, step["exponent"], step["reference"])


def _ghosting(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    axis = int(step["phase_axis"])
    return ghost.ghosting(image, step["strength"], step["period"], step["phase"], phase_axis=axis)


def _fold(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return sampling.fold_over(image, int(step["axis"]), step["overlap"])


def _gibbs(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return sampling.gibbs(image, tuple(step["kept"]), workers=workers)


def _low_field(image: Array, spacing: Spacing, step: Step, workers: int) -> Array:
    return low_field.scan(image, spacing, step).interpolated()


_PIECEWISE = Act(
    "motion-piecewise", _piecewise,
    {"times": table((None,)), "poses": table((None, 6)), "smooth": flag, "phase_axis": _AXIS},
    {"max_rotations": _POSES}, lambda step: path(step, "times", "poses"),
)  # fmt: skip
_RIGID = Act(
    "rigid-motion", _rigid, {"phase_axis": _AXIS},
    {
        "jump_times": table((None,)), "jumps": table((None, 6)),
        "drift_times": table((None,)), "drifts": table((None, 6)), "waves": table((None, 8)),
        "centric": flag, "slice_axis": _AXIS, "slice_mm": number(0), "interleave": whole(1, 64),
        "concatenations": whole(1, 64), "max_rotations": _POSES,
    },
    _sound_motion,
)  # fmt: skip
_PERIODIC = Act(
    "motion-periodic", _periodic,
    {"amplitude": table((6,)), "frequency": number(0), "phase": number(), "phase_axis": _AXIS},
    {"max_rotations": _POSES},
)  # fmt: skip
_JITTER = Act(
    "line-jitter", _jitter,
    {"sigma": number(0), "seed": _SEED, "phase_axis": _AXIS, "readout_axis": _AXIS},
    sound=lambda step: across(step, "phase_axis", "readout_axis"),
)  # fmt: skip
_SLICES = Act(
    "low-resolution", _low_resolution, {"axis": _AXIS, "thickness_mm": number(0)},
    {"degree": whole(1, 3)},
)  # fmt: skip
_GAUSSIAN, _RICIAN = (
    Act(name, partial(_white, add), {"sigma": number(0), "seed": _SEED})
    for name, add in (("gaussian-noise", noise.gaussian), ("rician-noise", noise.rician))
)
_PARALLEL = Act(
    "parallel-noise", _parallel,
    {
        "sigma": number(0), "seed": _SEED, "control": table((None, None, None)),
        "phase_axis": _AXIS, "acceleration": whole(1, 16), "coupling": number(0, 1),
    },
    {"bandwidth": shares},
)  # fmt: skip
_SMOOTH = Act("smoothing", _smooth, {"fwhm_mm": number(0)})
_BIAS = Act("bias-field", _bias, {"control": table((None, None, None))})
_GAMMA = Act("gamma", _gamma, {"exponent": number(1e-3, 1e3), "reference": number(1e-30)})
_LOW_FIELD = Act(
    "low-field", _low_field,
    {
        "axis": _AXIS, "plane_mm": number(0), "thickness_mm": number(0), "fwhm_mm": number(0),
        "exponent": number(1e-3, 1e3), "reference": number(1e-30),
        "control": table((None, None, None)), "sigma": number(0), "seed": _SEED,
    },
)  # fmt: skip
_GHOSTS = Act(
    "ghosting", _ghosting,
    {"strength": number(0, 0.95), "period": number(1), "phase": number(), "phase_axis": _AXIS},
)  # fmt: skip
_FOLD = Act("fold-over", _fold, {"axis": _AXIS, "overlap": number(0, 0.9)})
_GIBBS = Act("gibbs", _gibbs, {"kept": shares})


# ---------------------------------------------------------------- the table
def _levels(*values: float) -> dict[str, float]:
    return dict(zip(SEVERITIES, values, strict=True))


_MM, _RMS = "mm and degrees", "mm (RMS)"
_AMPLITUDES = {name: amplitude for name, (amplitude, _) in SEVERITIES.items()}
#: every kind, with its number at each level
KINDS: Mapping[str, Kind] = {
    "motion-periodic": Kind(_PERIODIC, _MM, _AMPLITUDES, 0, 30, steps.periodic),
    "motion-continuous": Kind(_PIECEWISE, _MM, _AMPLITUDES, 0, 30, steps.continuous),
    "motion-sudden": Kind(_PIECEWISE, _MM, _AMPLITUDES, 0, 30, steps.sudden),
    "rigid-motion": Kind(_RIGID, _RMS, _levels(0.5, 1, 2, 3, 4), 0, 30, steps.rigid),
    "rigid-motion-2d": Kind(_RIGID, _RMS, _levels(0.5, 1, 2, 3, 4), 0, 30, steps.rigid_slices),
    "blur": Kind(_JITTER, "voxels (sigma)", _levels(0.5, 1, 1.5, 2, 2.5), 0, 20, steps.jitter),
    "low-resolution": Kind(_SLICES, "mm thick", _levels(1.6, 2.4, 3.2, 4, 5), 0, 20, steps.slices),
    "gaussian-noise": Kind(_GAUSSIAN, "% of range", _levels(2.5, 5, 10, 15, 20), 0, 100, steps.noise("gaussian-noise")),
    "rician-noise": Kind(_RICIAN, "% of range", _levels(2.5, 5, 10, 15, 20), 0, 100, steps.noise("rician-noise")),
    "parallel-noise": Kind(_PARALLEL, "% of range", _levels(2.5, 5, 10, 15, 20), 0, 100, steps.parallel_noise),
    "smoothing": Kind(_SMOOTH, "mm (FWHM)", _levels(1, 2, 3, 4, 5), 0, 20, steps.smoothing),
    "bias-field": Kind(_BIAS, "% peak to peak", _levels(20, 40, 80, 120, 160), 0, 190, steps.bias),
    "contrast": Kind(_GAMMA, "exponent", _levels(1.15, 1.3, 1.5, 1.75, 2), 1, 10, steps.contrast),
    "ghosting": Kind(_GHOSTS, "% of image", _levels(5, 10, 20, 35, 50), 0, 95, steps.ghosts),
    "fold-over": Kind(_FOLD, "% of the head", _levels(5, 12, 20, 30, 40), 0, 90, steps.fold_over),
    "low-field": Kind(_LOW_FIELD, "% of 64 mT's", _levels(25, 50, 75, 100, 125), 0, 200, steps.low_field),
    "gibbs": Kind(_GIBBS, "% of k-space", _levels(20, 35, 50, 60, 70), 0, 90, steps.gibbs),
}  # fmt: skip
#: what a step may be
ACTS: Mapping[str, Act] = {kind.act.name: kind.act for kind in KINDS.values()}
