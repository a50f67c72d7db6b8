# SPDX-License-Identifier: Apache-2.0
"""Throw the dice for one step: a number in the kind's unit becomes a step of plain numbers.

Named severities follow the corruptions of Sun et al., Nat. Biomed. Eng. 2025 (amplitude in mm and
degrees, frequency in cycles per repetition time).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.readout import displacement, poses_at

Step = Mapping[str, Any]
Draw = Callable[[float, np.random.Generator, "Scan"], Step]

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
#: as many as an image has lines, so that each pose has a rotation of its own
MOST_ROTATIONS = 1024
#: of sudden motion
MOST_JUMPS = 10
#: stretches of a drift, each at its own pace
FEWEST_STRETCHES, MOST_STRETCHES = 2, 4
#: poses computed for a continuous motion, so that neighbours differ by little
CONTINUOUS_POSES = 9
#: rotations computed for a mixture of motions
MIXED_POSES = 5
#: lines at which the size of a drawn motion is measured
NOMINAL_LINES = 192
#: of a scan at 64 mT: edges of a voxel in plane and across, mm (the usual scan of the Swoop is 1.5 ×
#: 1.5 × 5 mm in Deoni et al., NeuroImage 2021, and 1.6 × 1.6 × 5 mm in later versions)
PLANE_MM, SLICE_MM = 1.6, 5.0
#: mm (FWHM) in plane: the read-out's filter and the decay along the echoes; one voxel, our choice
READOUT_MM = 1.6
#: exponent of its intensities: grey matter of 0.7 of white matter's signal gets 0.78.  T1 of grey
#: over white matter is 1.2 at 50 mT (O'Reilly and Webb, Magn. Reson. Med. 2022) and 1.6 at 3 T
#: (Stanisz et al., Magn. Reson. Med. 2005)
FLATTER = 0.7
#: its receive field, % peak to peak: twice the strongest of BrainWeb, our choice
LOW_BIAS = 80.0
#: its noise, % of the range: white matter has about ten times as much signal, our choice
LOW_NOISE = 9.0
#: slices of a 2-D scan, mm
THINNEST_MM, THICKEST_MM = 1.5, 5.0


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


def usual_frequency(amplitude: float) -> float:
    """Cycles a line that go with an amplitude in mm: those of the severities, linear in between."""
    amplitudes, frequencies = zip(*SEVERITIES.values(), strict=True)
    return float(np.interp(amplitude, amplitudes, frequencies))


# ---------------------------------------------------------------- motion
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


def periodic(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """Periodic motion at the frequency that goes with its amplitude."""
    return draw_periodic(rng, value, usual_frequency(value), scan.phase_axis)


def direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """A unit vector, any direction as likely as any other."""
    vector = rng.standard_normal(3)
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


def _pose(length: float, rng: np.random.Generator) -> list[float]:
    """A translation of ``length`` mm in any direction, and as many degrees about any axis."""
    return [float(v) for v in (*(length * direction(rng)), *(length * direction(rng)))]


def sudden(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """One jump for each mm: once a jump is longer than the detail in a line, only how many lines
    moved, and how near the centre of k-space, makes it worse."""
    moves = min(max(round(value), 1), MOST_JUMPS)
    times = [0.0, *sorted(float(t) for t in rng.uniform(0.1, 0.9, moves))]
    poses = [[0.0] * 6, *(_pose(value, rng) for _ in range(moves))]
    return _piecewise(times, poses, False, scan, MOST_ROTATIONS)


def continuous(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A drift to one pose, in a few stretches of different pace."""
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


def rigid(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A mixture of jumps, drift, breathing and nodding during a 3-D read-out.

    ``value`` is the root mean square displacement in mm (see ``readout.displacement``).
    """
    return _mixture(value, rng, {"phase_axis": scan.phase_axis, "centric": _chance(rng, 0.15)})


def rigid_slices(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """The same during a 2-D multi-slice read-out, with interleaved slices of 1.5 to 5 mm."""
    interleave = int(rng.integers(1, 4))
    axis = scan.slice_axis
    if axis == scan.phase_axis:
        axis = 2 if scan.phase_axis != 2 else 1
    timing = {
        "phase_axis": scan.phase_axis,
        "centric": False,
        "slice_axis": axis,
        "slice_mm": float(rng.uniform(THINNEST_MM, THICKEST_MM)),
        "interleave": interleave,
        "concatenations": int(rng.integers(1, interleave + 1)),
    }
    return _mixture(value, rng, timing)


def _chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _mixture(value: float, rng: np.random.Generator, timing: Step) -> Step:
    """At least one of four motions, in drawn shares, scaled to a displacement of ``value`` mm."""
    chosen = rng.random(4) < 0.45
    chosen[rng.integers(4)] = True
    jumps, drift, breathing, nodding = (float(s) for s in chosen * rng.uniform(0.3, 1.0, 4))
    parts: dict[str, Any] = {}
    if jumps:
        count = int(rng.integers(1, 4))
        parts["jump_times"] = [0.0, *sorted(float(t) for t in rng.uniform(0.03, 0.97, count))]
        places = [np.zeros(6), *(jumps * np.array(_pose(1.0, rng)) for _ in range(count))]
        if count > 1 and _chance(rng, 0.4):
            places[-1] = places[-3]  # and back again
        parts["jumps"] = [pose.tolist() for pose in places]
    if drift:
        knots = int(rng.integers(2, 6))
        parts["drift_times"] = [float(t) for t in np.linspace(0, 1, knots)]
        walk = np.cumsum([np.array(_pose(1.0, rng)) for _ in range(knots)], axis=0)
        parts["drifts"] = (drift * (walk - walk[0]) / math.sqrt(knots)).tolist()
    waves = []
    if breathing:  # the chest lifts and shifts the head, and pitches it a little
        shift = np.array([0.1, 0.6, 1.0]) * rng.uniform(0.2, 1.0, 3) * rng.choice([-1, 1], 3)
        pitch = float(rng.uniform(-0.5, 0.5))
        waves.append([*(breathing * shift), breathing * pitch, 0.0, 0.0, *_wave(rng, 0.05)])
    if nodding:
        turn = np.array([1.0, 0.3 * rng.normal(), 0.3 * rng.normal()])
        waves.append([0.0, 0.0, 0.0, *(nodding * turn), *_wave(rng, SLOWEST / 4)])
    if waves:
        parts["waves"] = [[float(v) for v in wave] for wave in waves]
    times = np.arange(NOMINAL_LINES, dtype=np.float64)
    size = displacement(poses_at(parts, times, float(NOMINAL_LINES)))
    scale = value / max(size, 1e-9)
    for name in ("jumps", "drifts"):
        if name in parts:
            parts[name] = (scale * np.array(parts[name])).tolist()
    if waves:
        parts["waves"] = [[*(scale * v for v in w[:6]), *w[6:]] for w in parts["waves"]]
    return {"kind": "rigid-motion", **parts, **timing, "max_rotations": MIXED_POSES}


def _wave(rng: np.random.Generator, slowest: float) -> tuple[float, float]:
    """Cycles a repetition, a doubling as often as another, and a phase."""
    frequency = slowest * (FASTEST / slowest) ** float(rng.random())
    return frequency, float(rng.uniform(0, 2 * math.pi))


# ---------------------------------------------------------------- everything else
def draw_seed(rng: np.random.Generator) -> int:
    """A seed for what a step draws by itself when it acts."""
    return int(rng.integers(2**31))


def jitter(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A random shift of each line, voxels."""
    return {
        "kind": "line-jitter",
        "sigma": value,
        "seed": draw_seed(rng),
        "phase_axis": scan.phase_axis,
        "readout_axis": scan.readout_axis,
    }


def slices(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """Slices of so many mm."""
    return {"kind": "low-resolution", "axis": scan.slice_axis, "thickness_mm": value}


def noise(kind: str) -> Draw:
    """White noise, % of the range."""

    def draw(value: float, rng: np.random.Generator, scan: Scan) -> Step:
        sigma = value / 100 * scan.intensity_range
        return {"kind": kind, "sigma": sigma, "seed": draw_seed(rng)}

    return draw


def parallel_noise(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """Noise after a parallel reconstruction: stronger in the middle, correlated over aliases."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 3, indexing="ij"))
    centre = rng.uniform(-0.3, 0.3, 3)
    distance = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0)
    peak = float(np.log(rng.uniform(1.2, 2.2)))
    control = peak * np.exp(-distance) + rng.normal(0, 0.05, (5, 5, 5))
    bandwidth = [1.0, 1.0, 1.0]
    for axis in (scan.phase_axis, scan.readout_axis):
        bandwidth[axis] = float(rng.uniform(0.6, 1.0))
    return {
        "kind": "parallel-noise",
        "sigma": value / 100 * scan.intensity_range,
        "seed": draw_seed(rng),
        "control": control.tolist(),
        "phase_axis": scan.phase_axis,
        "acceleration": int(rng.integers(2, 5)),
        "coupling": float(rng.uniform(0.1, 0.6)),
        "bandwidth": bandwidth,
    }


def smoothing(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A Gaussian of so many mm full width at half maximum."""
    return {"kind": "smoothing", "fwhm_mm": value}


def bias(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A 3 × 3 × 3 grid whose smallest and largest factors are 1 ∓ value / 200."""
    control = rng.random((3, 3, 3))
    control = (control - control.min()) / (control.max() - control.min())
    factor = 1 + (2 * control - 1) * value / 200
    return {"kind": "bias-field", "control": np.log(factor).tolist()}


def low_field(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A scan at so many % of the way to a portable scanner of 64 mT."""
    share = value / 100
    return {
        "kind": "low-field",
        "axis": scan.slice_axis,
        "plane_mm": share * PLANE_MM,
        "thickness_mm": share * SLICE_MM,
        "fwhm_mm": share * READOUT_MM,
        "exponent": FLATTER**share,
        "reference": scan.intensity_range,
        "control": bias(share * LOW_BIAS, rng, scan)["control"],
        "sigma": share * LOW_NOISE / 100 * scan.intensity_range,
        "seed": draw_seed(rng),
    }


def contrast(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A bent contrast, either way."""
    exponent = value if rng.random() < 0.5 else 1 / value
    return {"kind": "gamma", "exponent": exponent, "reference": scan.intensity_range}


def ghosts(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """Copies along the phase axis, % of the image."""
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


def fold_over(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """A field of view that is so many % shorter than the head."""
    return {"kind": "fold-over", "axis": scan.phase_axis, "overlap": value / 100}


def gibbs(value: float, rng: np.random.Generator, scan: Scan) -> Step:
    """So many % of k-space left out along the phase axis, half the time along the read-out too."""
    kept = [1.0, 1.0, 1.0]
    kept[scan.phase_axis] = 1 - value / 100
    if _chance(rng, 0.5):
        kept[scan.readout_axis] = 1 - value / 100
    return {"kind": "gibbs", "kept": kept}
