# SPDX-License-Identifier: Apache-2.0
"""The same recipe makes the same image to the last bit, whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from bmex_bids.degrade import motion
from bmex_bids.degrade.kinds import KINDS
from bmex_bids.degrade.levels import draw, draw_level
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import Scan

ROOT = Path(__file__).resolve().parents[2]
SPACING = (0.9, 0.8, 1.1)

CHILD = """
import hashlib, sys
import numpy as np
from bmex_bids.degrade.kinds import KINDS
from bmex_bids.degrade.levels import draw_level
image = np.random.default_rng(0).random((61, 74, 53), dtype=np.float32) * 1000
for kind in KINDS:
    recipe = draw_level(kind, "severe", np.random.default_rng(3))
    result = recipe.apply(image, (0.9, 0.8, 1.1), workers=int(sys.argv[1]))
    print(kind, hashlib.sha256(result.tobytes()).hexdigest())
"""


def hashes(threads: int) -> str:
    """Fingerprints of every kind, from a fresh interpreter with so many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(threads)],
        env=environment, capture_output=True, text=True, check=True, timeout=250,
    )  # fmt: skip
    return done.stdout


def test_no_kind_depends_on_the_number_of_threads():
    one = hashes(1)
    assert len(one.splitlines()) == len(KINDS)
    assert hashes(3) == one


def literal(image, spacing, path, phase_axis, most):
    """The motion model as its definition reads, whole volumes at a time."""
    n = image.shape[phase_axis]
    labels, centres = motion._quantise(path.rotations, most)
    order = np.fft.ifftshift(np.arange(n))
    hybrid = np.zeros(image.shape, np.complex128)
    for k, centre in enumerate(centres):
        turned = image.astype(np.float64)
        for axis, angle in enumerate(np.deg2rad(centre)):
            a, b = [j for j in range(3) if j != axis]
            angle = -angle if axis == 1 else angle
            ratio = spacing[b] / spacing[a]
            for along, by, slope in (
                (a, b, -np.tan(angle / 2) * ratio),
                (b, a, np.sin(angle) / ratio),
                (a, b, -np.tan(angle / 2) * ratio),
            ):
                turned = literal_shear(turned, along, by, slope)
        lines = np.fft.fft(turned, axis=phase_axis)
        chosen = [slice(None)] * 3
        chosen[phase_axis] = labels[order] == k
        hybrid[tuple(chosen)] = lines[tuple(chosen)]
    spectrum = np.fft.fftn(hybrid, axes=[k for k in range(3) if k != phase_axis])
    where = np.stack(np.meshgrid(*[np.fft.fftfreq(m) for m in image.shape], indexing="ij"))
    for j in range(n):
        part = [slice(None)] * 3
        part[phase_axis] = j
        shift = path.translations[order[j]] / np.asarray(spacing)
        spectrum[tuple(part)] *= np.exp(-2j * np.pi * np.tensordot(shift, where, 1))[tuple(part)]
    return np.abs(np.fft.ifftn(spectrum))


def literal_shear(image, along, by, slope):
    n = image.shape[along]
    frequency = np.fft.fftfreq(n).reshape([-1 if k == along else 1 for k in range(3)])
    position = np.arange(image.shape[by]) - (image.shape[by] - 1) / 2
    shift = slope * position.reshape([-1 if k == by else 1 for k in range(3)])
    ramp = np.exp(-2j * np.pi * frequency * shift)
    if n % 2 == 0:
        ramp = np.where(np.abs(frequency) == 0.5, ramp.real, ramp)
    return np.fft.ifft(np.fft.fft(image, axis=along) * ramp, axis=along).real


@pytest.mark.parametrize("phase_axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(12, 14, 16), (11, 13, 15)])
@pytest.mark.parametrize(
    "amplitude", [(1, -2, 3, 4, 0, 0), (1, 1, 1, 0, 5, 0), (0, 0, 0, 0, 0, 6), (1, 2, 0, 3, 4, -5)]
)
def test_working_slice_by_slice_gives_what_the_definition_says(phase_axis, shape, amplitude):
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    image[:3] = 0  # blocks of nothing are skipped
    path = motion.periodic(shape[phase_axis], np.array(amplitude, float), 0.19, 0.4).centred()
    fast = motion.apply_motion(image, SPACING, path, phase_axis=phase_axis, max_rotations=4)
    assert_allclose(fast, literal(image, SPACING, path, phase_axis, 4), atol=3e-6)


def test_blocks_of_one_slice_and_of_all_give_the_same(monkeypatch):
    image = np.random.default_rng(0).random((20, 22, 24), dtype=np.float32)
    recipe = draw("severe", np.random.default_rng(0))
    results = []
    for voxels in (1, 5000, 1 << 30):
        monkeypatch.setattr(motion, "BLOCK_VOXELS", voxels)
        results.append(recipe.apply(image, SPACING))
    assert_array_equal(results[0], results[1])
    assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_the_roles_of_the_axes_swaps_the_image(kind):
    """What happens along an axis does not hang on which axis it is."""
    if kind in ("bias-field", "low-field", "motion-periodic") or kind.endswith("-noise"):
        pytest.skip("draws in the order of voxels, or nods about axis 0")
    image = np.zeros((28, 32, 30), np.float32)
    image[10:17, 11:23, 9:18] = np.random.default_rng(0).random((7, 12, 9))
    image = gaussian_filter(image, 2.0)  # band-limited: the order of the shears matters not
    (step,) = draw_level(kind, "moderate", np.random.default_rng(1), Scan(phase_axis=1)).steps
    back = {0: 2, 1: 1, 2: 0}
    swapped = dict(step)
    for name in ("phase_axis", "readout_axis", "axis", "slice_axis"):
        if name in step:
            swapped[name] = back[step[name]]
    if "kept" in step:
        swapped["kept"] = step["kept"][::-1]
    moves = [name for name in ("poses", "jumps", "drifts", "waves") if name in step]
    for name in moves:  # one turn only: turns about several axes do not commute
        poses = np.array(step[name])
        poses[:, 4:6] = 0
        other = poses.copy()
        # mirrored axes order turns a right-handed frame into a left-handed one
        other[:, :6] = poses[:, [2, 1, 0, 5, 4, 3]] * [1, 1, 1, -1, -1, -1]
        step, swapped = {**step, name: poses.tolist()}, {**swapped, name: other.tolist()}
    there = Recipe((step,)).apply(image, (1.0, 1.0, 1.0))
    again = Recipe((swapped,)).apply(image.transpose(2, 1, 0), (1.0, 1.0, 1.0))
    assert_allclose(again.transpose(2, 1, 0), there, atol=2e-3 * image.max() if moves else 2e-5)
