# SPDX-License-Identifier: Apache-2.0
"""Flags of fMRIPrep, NiBabies and MRIQC: taken, so that a command line written for them works.

Each is replaced by ours, or left out, and a line says which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.units import DAYS_PER_MONTH, UNITS

FUNCTIONAL = "not needed here: only anatomical images are processed"
SURFACES = "not needed here: no FreeSurfer is run and no surface is made"
PRIVATE = "not needed here: nothing is sent anywhere"
FIXED = "not needed here: the processing of an image has no such setting"


@dataclass(frozen=True)
class Foreign:
    """A flag of another program.

    Attributes
    ----------
    flags : its spellings; those with underscores are taken too
    said : what becomes of it, in one line
    words : how many words follow: none, ``"1"``, ``"?"`` (a number, or none), ``"*"``
    ours : from these words, the arguments that take its place
    """

    flags: tuple[str, ...]
    said: str
    words: str = ""
    ours: Callable[..., Sequence[str]] | None = None


def age(text: str) -> tuple[str, str]:
    """An age with its unit as our flag; UsageError without, for years and months are both usual.

    >>> age("18m"), age("1.5 years")
    (('--age-months', '18'), ('--age-months', '18'))
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+?)s?", text.strip().lower())
    if found is None or found[2] not in UNITS:
        raise UsageError(
            f"expected a number with its unit for --age, such as 18m, 6w or 30y, got {text!r}; or "
            "give --age-months"
        )
    months = float(found[1]) * UNITS[found[2]] / DAYS_PER_MONTH
    return "--age-months", f"{months:g}"


FOREIGN: tuple[Foreign, ...] = (
    Foreign(("--age",), "here it is --age-months", "1", age),
    Foreign(
        ("--gpu",),
        "here it is --device cuda",
        "?",
        lambda *number: ("--device", ":".join(("cuda", *number))),
    ),
    Foreign(("--mem-gb",), "here it is --mem-mb", "1", lambda gb: ("--mem-mb", f"{gb}G")),
    Foreign(("--anat-only",), FUNCTIONAL),
    Foreign(("--level",), "left out: --qc-only and --output-res choose what is written", "1"),
    Foreign(("--sloppy", "--testing"), "left out; --no-mirroring makes a run faster"),
    Foreign(
        ("--fs-no-reconall", "--no-submm-recon", "--no-msm", "--medial-surface-nan"), SURFACES
    ),
    Foreign(("--fs-license-file", "--fs-subjects-dir", "--surface-recon-method"), SURFACES, "1"),
    Foreign(("--cifti-output",), SURFACES, "?"),
    Foreign(("--skull-strip-template", "--subject-anatomical-reference"), FIXED, "1"),
    Foreign(("--skull-strip-fixed-seed", "--longitudinal", "--deoblique"), FIXED),
    Foreign(("--species", "--segmentation-atlases-dir", "--ants-settings"), FIXED, "1"),
    Foreign(
        ("--ants-nthreads",), "here it is --omp-nthreads", "1", lambda n: ("--omp-nthreads", n)
    ),
    Foreign(("-t", "--task-id", "--echo-idx", "--ignore", "--dummy-scans"), FUNCTIONAL, "*"),
    Foreign(
        (
            "--bold2anat-init",
            "--bold2anat-dof",
            "--slice-time-ref",
            "--fd-spike-threshold",
            "--dvars-spike-threshold",
            "--fd-thres",
            "--start-idx",
            "--stop-idx",
        ),
        FUNCTIONAL,
        "1",
    ),
    Foreign(
        (
            "--use-aroma",
            "--force-bbr",
            "--force-no-bbr",
            "--force-syn",
            "--use-syn-sdc",
            "--me-output-echos",
            "--project-goodvoxels",
            "--ica",
            "--despike",
            "--hmc-off",
            "--correct-slice-timing",
            "--fft-spikes-detector",
        ),
        FUNCTIONAL,
    ),
    Foreign(("--no-sub", "--upload-strict", "--track-carbon"), PRIVATE),
    Foreign(("--email", "--webapi-url", "--webapi-port", "--country-code"), PRIVATE, "1"),
    Foreign(
        ("-f", "--float32"),
        "here it is --precision float32",
        "",
        lambda: ("--precision", "float32"),
    ),
    Foreign(("--verbose-reports",), "not needed here: the report always shows every picture"),
    Foreign(("--no-datalad-get",), "not needed here: nothing is fetched"),
    Foreign(("--dsname",), "left out: the name is that of the dataset", "1"),
)


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without foreign flags, and what became of each; UsageError for a bad value.

    >>> translate(["in", "--mem_gb", "8", "--no-sub"])[0]
    ['in', '--mem-mb', '8G']
    """
    known = {flag: item for item in FOREIGN for flag in item.flags}
    ours: list[str] = []
    notes: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.partition("=")
        item = known.get(flag.replace("_", "-"))
        if item is None:
            ours.append(word)
            continue
        words = [value] if equals else list(_words(item, waiting))
        if item.words == "1" and not words:
            raise UsageError(f"expected a word after {flag}, got none")
        notes.append(f"{flag}: {item.said}")
        if item.ours is not None:
            ours += item.ours(*words)
    return ours, notes


def _words(item: Foreign, waiting: list[str]) -> Iterator[str]:
    """Take the words of a flag from those that wait."""
    if item.words == "?":
        wanted = waiting[:1] if waiting and re.fullmatch(r"\d+k?", waiting[0]) else []
    elif item.words == "1":
        wanted = waiting[:1]
    else:
        wanted = []
        while item.words == "*" and len(wanted) < len(waiting):
            word = waiting[len(wanted)]
            if word.startswith("-"):
                break
            wanted.append(word)
    for _ in wanted:
        yield waiting.pop(0)
