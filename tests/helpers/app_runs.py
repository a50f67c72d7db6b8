# SPDX-License-Identifier: Apache-2.0
"""What tests of the whole app need: to run it, and to look at what came out."""

from __future__ import annotations

from pathlib import Path

from bmex_bids.cli.run import main


def participants(*labels: str, age: float = 0.5) -> dict[str, object]:
    """The tables of a dataset whose participants are of one age, in months."""
    return {
        "README.md": "Small brains, made by a test.\n" * 20,
        "participants.tsv": [{"participant_id": f"sub-{x}", "age": age} for x in labels],
        "participants.json": {"age": {"Description": "age", "Units": "months"}},
    }


def bmex(bids: Path, *flags: str, out: str = "out") -> int:
    """Run the app as the command line does, in this process; return its exit code."""
    return main([str(bids), out, "participant", "--nprocs", "1", *flags])


def status_of(out: Path) -> list[dict[str, str]]:
    """The rows of the status table of the last run."""
    table = max(out.glob("logs/*/status.tsv"), key=lambda path: path.stat().st_mtime_ns)
    header, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def derivatives(out: Path) -> set[str]:
    """Names of all images of the output."""
    return {path.name for path in out.rglob("*.nii.gz")}


IMAGES = (
    "{stem}_desc-enhanced_{suffix}.nii.gz",
    "{stem}_res-{res}_desc-enhanced_{suffix}.nii.gz",
    "{stem}_desc-preproc_{suffix}.nii.gz",
    "{stem}_desc-brain_mask.nii.gz",
    "{stem}_desc-enhanced_dseg.nii.gz",
    "{stem}_label-CSF_desc-enhanced_probseg.nii.gz",
    "{stem}_label-GM_desc-enhanced_probseg.nii.gz",
    "{stem}_label-WM_desc-enhanced_probseg.nii.gz",
)


def expected(stem: str, suffix: str = "T1w", res: str = "0p8") -> set[str]:
    return {name.format(stem=stem, suffix=suffix, res=res) for name in IMAGES}
