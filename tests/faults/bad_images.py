# SPDX-License-Identifier: Apache-2.0
"""Bad and odd images: all of ``bad_cases.py`` in one dataset, one run of ``bmex``, a row for each.

::

    python tests/faults/bad_images.py RESULTS [--quick] [--keep FOLDER]

Each image must end enhanced (all files there, finite, on the grid of the input) or refused (no
file, and a reason that names the file and says what to do); the ten healthy ones among them must
be done.  The run has no network where ``unshare`` can take it away.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from bad_cases import ENHANCED, MARKED, REFUSED, Case, Exact, cases
from results import LOST, SURVIVED, Lost, Results

PRODUCTS = (
    "desc-enhanced_{suffix}",
    "res-{res}_desc-enhanced_{suffix}",
    "desc-preproc_{suffix}",
    "desc-brain_mask",
    "desc-enhanced_dseg",
    "label-CSF_desc-enhanced_probseg",
    "label-GM_desc-enhanced_probseg",
    "label-WM_desc-enhanced_probseg",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the dataset, run ``bmex`` once, look at what came of each image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true", help="two cases of each group")
    parser.add_argument("--keep", type=Path, help="leave dataset and output in this folder")
    parser.add_argument("--only", nargs="*", help="names of cases")
    options = parser.parse_args(argv)
    results = Results(options.results, "bad_images")
    chosen = selection(list(cases()), options.quick, options.only)
    with tempfile.TemporaryDirectory(prefix="bmex-bad-") as temporary:
        folder = options.keep or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        write_dataset(folder, chosen)
        start = time.monotonic()
        code = run(folder)
        seconds = time.monotonic() - start
        whole_run(results, folder, code, seconds, chosen)
        rows = status(folder / "out")
        for case in chosen:
            row = rows.get(image_name(case), {})
            try:
                outcome, verdict = check(case, row, folder), SURVIVED
            except Lost as error:
                outcome, verdict = str(error), LOST
            took = float(row.get("seconds") or 0)  # of the image within the run
            results.add(group(case), words(case.name), case.expected, outcome, verdict, took)
    return results.exit_code


def selection(every: list[Case], quick: bool, only: Sequence[str] | None) -> list[Case]:
    """The cases of this run."""
    if only:
        return [case for case in every if case.name in only]
    if not quick:
        return every
    seen: dict[str, int] = {}
    chosen = []
    for case in every:
        seen[case.group] = seen.get(case.group, 0) + 1
        if seen[case.group] <= 2:
            chosen.append(case)
    return chosen


def group(case: Case) -> str:
    """The heading under which the case's row stands."""
    return (
        "healthy images beside bad ones"
        if case.group == "healthy"
        else f"bad images: {case.group}"
    )


def words(name: str) -> str:
    """A name in words: ``truncatedGzip`` → ``truncated gzip``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def image_name(case: Case) -> str:
    """As in ``status.tsv``."""
    return f"sub-{case.name}_{case.suffix}"


def image_path(case: Case, folder: Path) -> Path:
    """Of the raw image."""
    return folder / "bids" / f"sub-{case.name}" / "anat" / f"{image_name(case)}{case.extension}"


# ---------------------------------------------------------------- the dataset
def write_dataset(folder: Path, chosen: Sequence[Case]) -> None:
    """``folder/bids`` and, for given masks, ``folder/masks``."""
    bids, masks = folder / "bids", folder / "masks"
    for root in (bids, masks):
        root.mkdir(parents=True)
        description = {"Name": "bad images", "BIDSVersion": "1.10.0"}
        (root / "dataset_description.json").write_text(json.dumps(description))
    ages = "".join(
        f"sub-{case.name}\t" + ("0.5\tn/a\n" if case.newborn else "n/a\t25\n") for case in chosen
    )
    (bids / "participants.tsv").write_text(f"participant_id\tage_months\tga_weeks\n{ages}")
    for case in chosen:
        put(case.make(), image_path(case, folder))
        if case.mask is not None:
            anat = masks / f"sub-{case.name}" / "anat"
            put(case.mask(), anat / f"sub-{case.name}_desc-brain_mask.nii.gz")


def put(content: Any, path: Path) -> None:
    """Write what a case makes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    elif isinstance(content, Exact):
        path.write_bytes(content)
    else:
        plain = content if isinstance(content, bytes) else content.to_bytes()
        path.write_bytes(gzip.compress(plain, 1) if path.suffix == ".gz" else plain)


# ---------------------------------------------------------------- the run
def run(folder: Path) -> int:
    """One run over all images; its output goes to ``folder/printed.txt``."""
    command = [
        *(["unshare", "-rn"] if can_unshare() else []),
        sys.executable,
        str(Path(__file__).with_name("bmex_light.py")),
        str(folder / "bids"),
        str(folder / "out"),
        "participant",
        *("--work-dir", str(folder / "work"), "--skip-bids-validation", "--nprocs", "1"),
        *("--derivatives", f"masks={folder / 'masks'}", "--omp-nthreads", "1"),
    ]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with (folder / "printed.txt").open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, stdout=stream, stderr=subprocess.STDOUT, check=False, env=environment
        )
    return done.returncode


def can_unshare() -> bool:
    """Whether a process without a network can be started here."""
    program = shutil.which("unshare")
    if program is None:
        return False
    tried = subprocess.run([program, "-rn", "true"], check=False, capture_output=True)
    return tried.returncode == 0


def status(out: Path) -> dict[str, dict[str, str]]:
    """Rows of the status table by image; empty where there is none."""
    tables = sorted(out.glob("logs/*/status.tsv"))
    if not tables:
        return {}
    header, *lines = [line.split("\t") for line in tables[-1].read_text().splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    return {row["image"]: row for row in rows}


def whole_run(
    results: Results, folder: Path, code: int, seconds: float, chosen: Sequence[Case]
) -> None:
    """What must hold of the run itself."""
    printed = (folder / "printed.txt").read_text(encoding="utf-8")
    network = "without a network" if can_unshare() else "with the machine's network"

    def ends() -> str:
        if code != 3 and any(case.expected == REFUSED for case in chosen):
            raise Lost(f"exit code {code}: {printed[-300:]}")
        missing = [image_name(c) for c in chosen if image_name(c) not in status(folder / "out")]
        if missing:
            raise Lost(f"exit code {code}, no row for {', '.join(missing)}")
        return f"exit code {code}, {len(chosen)} images in {seconds:.0f} s, {network}"

    def quiet() -> str:
        found = re.findall(r".*(?:Traceback|Warning:|Segmentation).*", printed)
        if found:
            raise Lost(f"printed: {found[0]}")
        return "none"

    def no_temporaries() -> str:
        left = [p for p in (folder / "out").rglob(".*") if p.name != ".bidsignore"]
        if left:
            raise Lost(f"left: {', '.join(p.name for p in left[:5])}")
        return "none"

    def pages() -> str:
        absent = [c.name for c in chosen if not (folder / "out" / f"sub-{c.name}.html").is_file()]
        if absent:
            raise Lost(f"no page for {', '.join(absent)}")
        return f"{len(chosen)} pages"

    where = "bad images: the run"
    results.case(where, "one run over all", "exit code 3, a row for each image", ends)
    results.case(where, "tracebacks and warnings on the terminal", "none", quiet)
    results.case(where, "temporary files left in the output", "none", no_temporaries)
    results.case(where, "a page for each participant", "each has one", pages)


# ---------------------------------------------------------------- one image
def check(case: Case, row: dict[str, str], folder: Path) -> str:
    """What became of a case, in words; raises Lost where it is not what was expected."""
    anat = folder / "out" / f"sub-{case.name}" / "anat"
    files = sorted(path.name for path in anat.rglob("*")) if anat.exists() else []
    if not row:
        raise Lost("not in status.tsv")
    if row["status"] == "done":
        if case.expected == REFUSED:
            raise Lost(f"enhanced ({row['gate']}: {row['reason']})")
        return check_enhanced(case, row, folder, anat, files)
    if case.expected == ENHANCED:
        raise Lost(f"{row['status']}: {row['reason']}")
    if files:
        raise Lost(f"{row['status']}, but it left {', '.join(files)}")
    reason = row["reason"]
    if not reason.startswith("expected ") or ";" not in reason:
        raise Lost(f"refused without a reason that helps: {reason}")
    if case.name not in row["image"]:
        raise Lost(f"refused in a row of {row['image']}: {reason}")
    if case.expected == REFUSED:
        look_for(case, reason)
    return f"refused: {reason.replace(str(folder), '…')}"


def look_for(case: Case, text: str) -> None:
    """One of the case's words must stand in a text."""
    if case.words and not any(word.lower() in text.lower() for word in case.words):
        raise Lost(f"none of {', '.join(case.words)} in: {text}")


def check_enhanced(
    case: Case, row: dict[str, str], folder: Path, anat: Path, files: Sequence[str]
) -> str:
    """All files are there, finite and on the grid of the input."""
    res = "0p8" if case.newborn else "0p75"
    stems = [f"sub-{case.name}_{name.format(suffix=case.suffix, res=res)}" for name in PRODUCTS]
    wanted = sorted(f"{stem}{end}" for stem in stems for end in (".nii.gz", ".json"))
    if list(files) != wanted:
        raise Lost(f"expected {len(wanted)} files, got {len(files)}: {', '.join(files)}")
    raw: Any = nib.load(image_path(case, folder))
    for stem in stems:
        made: Any = nib.load(anat / f"{stem}.nii.gz")
        voxels = made.get_fdata(dtype=np.float32)
        if not np.isfinite(voxels).all():
            raise Lost(f"{stem} is not finite")
        if "_res-" not in stem and made.shape != raw.shape[:3]:
            raise Lost(f"{stem} has shape {made.shape}, the input {raw.shape}")
        if "_res-" not in stem and not np.array_equal(made.affine, raw.affine):
            raise Lost(f"{stem} has another affine than the input")
        json.loads((anat / f"{stem}.json").read_text(encoding="utf-8"), parse_constant=no_number)
        if stem.endswith(("desc-brain_mask", f"desc-enhanced_{case.suffix}")):
            inside = voxels[voxels > 0]
            if inside.size == 0 or ("mask" not in stem and np.ptp(inside) == 0):
                raise Lost(f"{stem} shows nothing")
    record = json.loads((anat / f"{stems[0]}.json").read_text(encoding="utf-8"))["BMEX"]
    warnings = [text for text in record["Warnings"] if not text.startswith("no brain mask of")]
    remarks = " ".join([row["reason"], *warnings]).strip()
    if case.group == "healthy" and row["gate"] == "fail":
        raise Lost(f"a healthy image failed the gate: {remarks}")
    if case.expected == MARKED and row["gate"] == "pass":
        raise Lost(f"enhanced, and the gate passed it: {remarks}")
    look_for(case, remarks)
    litres = record["Mask"]["VolumeLitres"] if "VolumeLitres" in record["Mask"] else None
    size = f", {litres:.2f} l" if litres is not None else ""
    return f"enhanced{size}, gate {row['gate']}" + (f": {remarks}" if remarks else "")


def no_number(text: str) -> None:
    """JSON has no NaN."""
    raise Lost(f"a sidecar holds {text}, which is no JSON")


if __name__ == "__main__":
    sys.exit(main())
