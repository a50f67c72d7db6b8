# SPDX-License-Identifier: Apache-2.0
"""``bmex-demo``: one image enhanced, from nothing but the installed packages.

The image is the MNI152 template (ICBM 2009a, symmetric, 1 mm) that the nilearn package carries:
the average of 152 adult brains, already without skull.  Our own motion simulator degrades it, so
the truth is known and the result can be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids.exceptions import BmexError, OutputError

if TYPE_CHECKING:
    import nibabel as nib
    from numpy.typing import NDArray

LABEL = "0001"
NAME = f"sub-{LABEL}_T1w"
AGE_YEARS = 30
#: what the template's brightest voxel becomes; scanners store whole numbers
PEAK = 1000
#: chosen once and kept, so that figures can be compared between versions
SEED = 2025
#: standard deviation of the smoothing that takes shading away: half of N4's finest mesh
SHADING_MM = 12.0


def main(argv: Sequence[str] | None = None) -> int:
    """Make the dataset, enhance it, validate the output, and say what came out of it."""
    options = _parser().parse_args(argv)
    start = time.monotonic()
    try:
        return _demo(options, start)
    except BmexError as error:
        print(f"bmex-demo: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bmex-demo",
        description="Degrade the MNI152 template by simulated head motion, enhance it, "
        "and measure how much of the damage was repaired.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("demo"), help="where to work (%(default)s)"
    )
    parser.add_argument(
        "--severity",
        default="moderate",
        choices=["minor", "moderate", "severe", "severe+", "severe++"],
        help="of the simulated motion (%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    parser.add_argument("--omp-nthreads", metavar="N", help="threads for the computation")
    return parser


def _demo(options: argparse.Namespace, start: float) -> int:
    folder = options.folder.resolve()
    dataset, output = folder / "bids", folder / "derivatives"
    _say(start, f"1/4 dataset: the MNI152 template with {options.severity} motion, in {dataset}")
    clean = write_dataset(folder, severity=options.severity)

    command = [str(dataset), str(output), "participant", "--participant-label", LABEL]
    command += ["--work-dir", str(folder / "work"), "--device", options.device]
    if options.omp_nthreads:
        command += ["--omp-nthreads", options.omp_nthreads]
    _say(start, f"2/4 bmex {' '.join(command)}")
    from bmex_bids.cli.run import main as bmex

    code = bmex(command)
    if code:
        print(f"bmex-demo: bmex ended with exit code {code}; see above", file=sys.stderr)
        return code

    _say(start, "3/4 bids-validator-deno on the output")
    valid = check(output)

    _say(
        start,
        "4/4 measured inside the brain, against the clean template, scale and shading made equal",
    )
    before, after = measure(
        clean, dataset / f"sub-{LABEL}/anat/{NAME}.nii.gz", _enhanced(output), peak=PEAK
    )
    print(
        f"\n  PSNR before {before:.2f} dB, after {after:.2f} dB: {after - before:+.2f} dB"
        f"\n  Report      {_report(output)}"
        f"\n  Outputs     {output}"
        f"\n  BIDS        {'valid, no error' if valid else 'NOT valid, see above'}"
        f"\n  Time        {time.monotonic() - start:.0f} s\n"
    )
    return 0 if valid else 1


def write_dataset(folder: Path, *, severity: str) -> nib.Nifti1Image:
    """Write ``folder/bids`` with one degraded image; return the clean one.

    Also written: ``folder/clean.nii.gz`` and ``folder/recipe.json``, which makes the same damage
    again.  Raises OutputError where the folder cannot be written.
    """
    import nibabel as nib
    import numpy as np
    from nilearn.datasets import load_mni152_template

    from bmex_bids.degrade.recipe import draw

    template = load_mni152_template(resolution=1)
    values = np.asarray(template.dataobj, dtype=np.float32) * PEAK
    recipe = draw(severity, np.random.default_rng(SEED))
    damaged = recipe.apply(values, (1.0, 1.0, 1.0))
    # The skull is gone already, and what motion smears outside the brain goes with it.
    damaged = np.where(values > 0, np.clip(damaged, 0, None), 0)

    anat = folder / "bids" / f"sub-{LABEL}" / "anat"
    try:
        anat.mkdir(parents=True, exist_ok=True)
        for name, content in _dataset_texts().items():
            (folder / "bids" / name).write_text(content, encoding="utf-8")
        (folder / "recipe.json").write_text(recipe.to_json() + "\n", encoding="utf-8")
        clean = _whole_numbers(values, template.affine)
        nib.save(clean, folder / "clean.nii.gz")
        nib.save(_whole_numbers(damaged, template.affine), anat / f"{NAME}.nii.gz")
    except OSError as error:
        raise OutputError(
            f"expected to write the demo's dataset into {folder}, got: {error}. "
            "Name another folder: bmex-demo FOLDER"
        ) from error
    return clean


def _whole_numbers(values: NDArray[Any], affine: NDArray[Any]) -> nib.Nifti1Image:
    import nibabel as nib
    import numpy as np

    image = nib.Nifti1Image(np.rint(values).astype(np.int16), affine)
    image.header.set_xyzt_units("mm", "sec")
    return image


def _dataset_texts() -> dict[str, str]:
    """The text files of the dataset, by their paths."""
    description = {
        "Name": "MNI152 template with simulated head motion",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "The template: Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging "
        "Centre, Montreal Neurological Institute, McGill University; free use with this notice",
        "Authors": ["V. Fonov", "A. C. Evans", "D. L. Collins"],
        "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.07.033"],
    }
    participants = {
        "age": {"Description": "Age, made up for the demo: any adult age", "Units": "years"}
    }
    readme = (
        "# Demo dataset\n\n"
        "One image: the MNI152 template (ICBM 2009a nonlinear symmetric, 1 mm, skull-stripped) as "
        "the nilearn\npackage carries it, degraded by the motion simulator of bmex_bids. Made by "
        "bmex-demo. It is an average\nof 152 adult brains, not a person; the age in "
        "participants.tsv is made up.\n"
    )
    sidecar = {"Modality": "MR", "SkullStripped": True}
    return {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        "README.md": readme,
        "participants.tsv": f"participant_id\tage\nsub-{LABEL}\t{AGE_YEARS}\n",
        "participants.json": json.dumps(participants, indent=2) + "\n",
        f"sub-{LABEL}/anat/{NAME}.json": json.dumps(sidecar, indent=2) + "\n",
    }


def check(output: Path) -> bool:
    """Show the validator's errors, and say whether there are none."""
    from bmex_bids.cli.validation import PROGRAM, summary, validate

    errors = validate(output)
    if errors is None:
        raise BmexError(
            f"expected the program {PROGRAM}, found none that runs; "
            "install it: pip install bids-validator-deno"
        )
    print(*summary(errors), sep="\n", end="\n" if errors else "")
    return not errors


def measure(
    clean: nib.Nifti1Image, before: Path, after: Path, *, peak: float
) -> tuple[float, float]:
    """PSNR in dB of two images against a clean one, inside its brain (where it is not 0).

    Scale and shading are not what is measured: bmex harmonises the one and evens out the other
    (N4), and the template was given neither treatment.  Both images are therefore brought to the
    clean one alike, first by the straight line that fits best inside the brain, then by the ratio
    of the two images smoothed by :data:`SHADING_MM`.
    """
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from bmex_bids.metrics.reference import psnr

    # float64: in single precision, numpy's line through two million voxels loses its slope
    truth = np.asarray(clean.dataobj, dtype=np.float64)
    mask = truth > 0
    sigma = SHADING_MM / nib.affines.voxel_sizes(clean.affine)
    smooth_truth = gaussian_filter(truth, sigma)

    def figure(path: Path) -> float:
        values = np.asarray(nib.load(path).dataobj, dtype=np.float64)  # type: ignore[attr-defined]
        slope, offset = np.polyfit(values[mask], truth[mask], 1)
        values = np.where(mask, slope * values + offset, 0)
        smooth = gaussian_filter(values, sigma)
        shading = np.divide(smooth_truth, smooth, out=np.ones_like(smooth), where=smooth > 1e-3)
        return float(psnr(values * shading, truth, mask, peak))

    return figure(before), figure(after)


def _enhanced(output: Path) -> Path:
    return output / f"sub-{LABEL}" / "anat" / f"sub-{LABEL}_desc-preproc_T1w.nii.gz"


def _report(output: Path) -> Path:
    return output / f"sub-{LABEL}.html"


def _say(start: float, text: str) -> None:
    print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
