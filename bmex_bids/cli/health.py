# SPDX-License-Identifier: Apache-2.0
"""``bmex-health``: does this installation work?  A tiny brain goes all the way, in seconds.

It is what the container image's health check runs, and the first thing to try on a new machine:
the bundled networks are loaded and a phantom of a fetal brain, stored obliquely, is enhanced as
``bmex-enhance`` would any image.  Nothing is read but the package, and nothing stays behind.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.cli import arguments
from bmex_bids.exceptions import BmexError, EnvironmentProblem

if TYPE_CHECKING:
    import nibabel as nib

PROGRAM = "bmex-health"
#: a fetus of five months: the smallest brain that is taken for one (0.07 litres)
AGE_MONTHS = 5
RADII_MM = (24.0, 29.0, 26.0)
SPACING_MM = 1.5
#: fluid, grey and white matter: (share of the radius up to which it reaches, intensity)
SHELLS = ((1.0, 900), (0.92, 450), (0.65, 800), (0.2, 900))

NOISE = 15.0


def main(argv: Sequence[str] | None = None) -> int:
    """Check the installation; 0 when it works, 5 (with what is wrong) when it does not."""
    options = build_parser().parse_args(argv)
    start = time.monotonic()
    try:
        names = _load_networks()
        _enhance(options.device)
    except (BmexError, OSError, ImportError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EnvironmentProblem.exit_code
    print(
        f"{PROGRAM}: {', '.join(names)} loaded, a small brain enhanced; all well after "
        f"{time.monotonic() - start:.0f} s"
    )
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex-health``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Check that this installation works: load the bundled networks, enhance a "
        "tiny synthetic brain, and check the result. Takes seconds, and reads and leaves no "
        "files.",
        epilog="Exit codes: 0 the installation works; 5 it does not, and a message says why.",
        allow_abbrev=False,
    )
    arguments.add_shared(parser, "device")
    parser.add_argument("--version", action=arguments.ShowVersion)
    return parser


def _load_networks() -> list[str]:
    """Load every bundled set of weights; their names (WeightsError where one is damaged)."""
    from bmex_bids.network.weights.checkpoints import load_network
    from bmex_bids.network.weights.registry import bundled, verify

    records = bundled()
    for record in records:
        verify(record.path, record.sha256)
        load_network(record.path, record.variant)
    return [record.name for record in records]


def _enhance(device: str) -> None:
    """Enhance the phantom in a temporary folder and check what came out."""
    import nibabel as nib

    from bmex_bids.cli.enhance import main as enhance
    from bmex_bids.imaging.orientation import load_image

    with tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-") as name:
        source, target = Path(name) / "phantom_T2w.nii.gz", Path(name) / "enhanced.nii.gz"
        nib.save(phantom(), source)
        command = [str(source), str(target), "--fetal", "--age-months", str(AGE_MONTHS)]
        command += ["--contrast", "T2w", "--skull-strip", "skip", "--device", device]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = enhance([*command, "--weights", "bundled", "--omp-nthreads", "1"])
        if code:
            raise EnvironmentProblem(
                f"expected a phantom to be enhanced, got exit code {code}; it said:\n"
                f"{said.getvalue().strip()}"
            )
        check(load_image(source), load_image(target))


def phantom() -> nib.Nifti1Image:
    """A brain of shells in a little noise, (45, 41, 38) int16, stored posterior–inferior–right, oblique."""
    import nibabel as nib
    import numpy as np

    radii = np.array(RADII_MM)
    counts = [int(2 * (radius + 5) / SPACING_MM) for radius in radii]
    axes = [
        (np.arange(n) - (n - 1) / 2) * SPACING_MM / r for n, r in zip(counts, radii, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    distance = np.sqrt(x**2 + y**2 + z**2)
    values = np.zeros(distance.shape, np.int16)
    for share, intensity in SHELLS:
        values[distance <= share] = intensity
    # without noise it would have four values, and be refused as a segmentation
    noise = np.random.default_rng(0).normal(0, NOISE, values.shape)
    values = np.where(values > 0, values + np.rint(noise), 0).astype(np.int16)
    # a stored order and a tilt that only right geometry survives
    values = values.transpose(1, 2, 0)[::-1, ::-1, :]
    turn = np.deg2rad(12.0)
    tilt = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]) * SPACING_MM
    affine[:3, 3] = (-20, 30, 25)
    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header.set_xyzt_units("mm", "sec")
    return image


def check(source: nib.Nifti1Image, result: nib.Nifti1Image) -> None:
    """Finite, bright inside the brain and zero outside, in place; else EnvironmentProblem."""
    import numpy as np

    if result.shape != source.shape or not np.allclose(result.affine, source.affine, atol=1e-4):
        raise EnvironmentProblem(
            f"expected the result on the grid of the phantom, {source.shape}, got {result.shape} "
            "or another affine; something is wrong with this installation, please report it"
        )
    brain = np.asarray(source.dataobj) > 0
    values = np.asarray(result.dataobj)
    outside = float(np.abs(values[~brain]).max()) if (~brain).any() else 0.0
    if not np.isfinite(values).all() or not (100 < np.median(values[brain]) < 1000) or outside:
        raise EnvironmentProblem(
            f"expected a brain of template units with zeros around it, got values of "
            f"{values.min():.3g} to {values.max():.3g}, {outside:.3g} outside; something is wrong "
            "with this installation, please report it"
        )


if __name__ == "__main__":
    sys.exit(main())
