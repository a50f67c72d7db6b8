# SPDX-License-Identifier: Apache-2.0
"""``bmex-demo``: one image enhanced, from nothing but the installed packages.

The image is the MNI152 template (ICBM 2009a, symmetric, 1 mm) that the nilearn package carries:
the average of 152 adult brains, already without skull.  Our own motion simulator degrades it and
noise is added, so the truth is known and the result can be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids.cli.ending import ended
from bmex_bids.exceptions import BmexError, OutputError, UsageError

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
#: standard deviation of the Rician noise: 2.5 % of the range
NOISE = 25.0
#: standard deviation of the smoothing by which the bias field is found again
FIELD_MM = 6.0


def main(argv: Sequence[str] | None = None) -> int:
    """Make the dataset, enhance it, validate the output, and say what came out of it."""
    options = _parser().parse_args(argv)
    start = time.monotonic()
    return ended("bmex-demo", lambda: _demo(options, start))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bmex-demo",
        description="Degrade the MNI152 template by simulated head motion and noise, enhance it, "
        "and measure how much of the damage was repaired.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("demo"),
        help="folder to work in (default: %(default)s)",
    )
    parser.add_argument(
        "--severity",
        default="moderate",
        choices=["minor", "moderate", "severe", "severe+", "severe++"],
        help="severity of the simulated motion (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument("--omp-nthreads", metavar="N", help="threads for the computation")
    return parser


def _demo(options: argparse.Namespace, start: float) -> int:
    folder = options.folder.resolve()
    dataset, output = folder / "bids", folder / "derivatives"
    _say(
        start,
        f"1/4 dataset: the MNI152 template, {options.severity} motion, 2.5 % noise, in {dataset}",
    )
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
        "4/4 measured inside the brain, before and after, against the clean template",
    )
    before, after = measure(clean, _stages(folder / "work"), _enhanced(output))
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

    from bmex_bids.degrade.levels import draw
    from bmex_bids.degrade.recipe import Recipe

    template = load_mni152_template(resolution=1)
    values = np.asarray(template.dataobj, dtype=np.float32) * PEAK
    # the mean of 152 brains has no noise of its own; a scan has
    noise: dict[str, Any] = {"kind": "rician-noise", "sigma": NOISE, "seed": SEED}
    recipe = Recipe((*draw(severity, np.random.default_rng(SEED)).steps, noise))
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
    from bmex_bids.outputs.dataset import BIDS_VERSION

    description = {
        "Name": "MNI152 template with simulated head motion and noise",
        "BIDSVersion": BIDS_VERSION,
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
        "the nilearn\npackage carries it, degraded by the motion simulator of bmex_bids, with noise of "
        "2.5 % added. Made by\nbmex-demo. It is an average\nof 152 adult brains, not a person; the age in "
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
    from bmex_bids.running.validation import PROGRAM, summary, validate

    errors = validate(output)
    if errors is None:
        raise BmexError(
            f"expected the program {PROGRAM}, found none that runs; "
            "install it: pip install bids-validator-deno"
        )
    print(*summary(errors), sep="\n", end="\n" if errors else "")
    return not errors


def measure(clean: nib.Nifti1Image, stages: Path, enhanced: Path) -> tuple[float, float]:
    """PSNR in dB, inside the brain, of the image as it came and of what the app made of it.

    Motion and noise are also mended before the network, so what that was fed is not *before*.
    Both are compared with the clean image, treated as the damaged one was: scaled alike, with the
    bias field that was found and the histogram map that was made, neither of which is damage or
    repair.  Template units, range :data:`PEAK`; the same comparison as ``bmex-evaluate`` makes.

    Parameters
    ----------
    clean : on any grid in the same place
    stages : folder of the stage *preprocess*, with what its nodes left
    enhanced : the enhanced brain on the network's grid
    """
    import numpy as np

    from bmex_bids.imaging.orientation import load_image
    from bmex_bids.metrics.reference import psnr

    came = load_image(stages / "before" / "matched.nii.gz")
    truth = treated(clean, stages, came)
    before = np.asarray(came.dataobj)
    after = np.asarray(load_image(enhanced).dataobj)
    mask = (truth > 0) & (before > 0)
    return tuple(float(psnr(image, truth, mask, PEAK)) for image in (before, after))  # type: ignore[return-value]


def treated(clean: nib.Nifti1Image, stages: Path, grid: nib.Nifti1Image) -> NDArray[Any]:
    """A clean image on the network's grid, with a damaged one's scale, bias field and match.

    The field is the ratio of the damaged image after and before its correction, smoothed by
    :data:`FIELD_MM`.  Returns (X, Y, Z) in template units, zero outside the brain of ``clean``.
    """
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from bmex_bids.imaging.intensity import HistogramMatch, IntensityScale
    from bmex_bids.imaging.orientation import conform, load_image
    from bmex_bids.imaging.resampling import resample_like

    chain = json.loads((stages / "match_histogram" / "intensity.json").read_text("utf-8"))
    scale = IntensityScale(**chain["scale"])

    def on_grid(image: nib.Nifti1Image) -> NDArray[np.float32]:
        whole = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)
        found = np.asarray(resample_like(conform(whole), grid, order=3).dataobj)
        return np.where(found > 0, scale.apply(found), 0).clip(0, None)

    corrected = np.asarray(load_image(stages / "correct_brain" / "brain.nii.gz").dataobj)
    damaged = on_grid(load_image(stages / "conform" / "conformed.nii.gz"))
    inside = (corrected > 0) & (damaged > 0)
    sigma = FIELD_MM / nib.affines.voxel_sizes(grid.affine)
    after, before = (gaussian_filter(np.where(inside, x, 0), sigma) for x in (corrected, damaged))
    field = np.divide(after, before, out=np.ones_like(after), where=before > 1e-3)
    truth = on_grid(clean)
    match = HistogramMatch.of(chain["match"])
    return np.where(truth > 0, match.apply(truth * field), 0).astype(np.float32)


def _enhanced(output: Path) -> Path:
    return output / f"sub-{LABEL}" / "anat" / f"sub-{LABEL}_res-0p8_desc-enhanced_T1w.nii.gz"


def _stages(work: Path) -> Path:
    """Where the image's stage *preprocess* left its files."""
    folders = sorted(work.glob("bmex_*_wf/*_wf/preprocess_wf"), key=lambda f: f.stat().st_mtime)
    if not folders:
        raise UsageError(
            f"expected intermediate files in {work}, found none: the image was done before, and "
            "the input of its network is gone; remove the demo's folder, or name another"
        )
    return folders[-1]


def _report(output: Path) -> Path:
    return output / f"sub-{LABEL}.html"


def _say(start: float, text: str) -> None:
    print(f"[{time.monotonic() - start:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
