# SPDX-License-Identifier: Apache-2.0
"""The methods text of a dataset: what was really done, in words that can go into a paper.

The words are in ``boilerplate/methods.md``.  Here are the facts: from the sidecars of all images in
the output, whichever run they come from, and from what is installed.  A step that no sidecar
vouches for is not mentioned.
"""

from __future__ import annotations

import inspect
import json
import logging
import platform
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.outputs.files import write_together
from bmex_bids.reports.references import (
    REFERENCES_HEADING,
    Reference,
    cited_keys,
    html_page,
    read_bibtex,
    to_html,
    to_latex,
)

LOGGER = logging.getLogger(__name__)

TITLE = "Methods: enhancement with bmex_bids"
PANDOC_SECONDS = 60
#: name in the frame → distribution
PACKAGES = {
    "nipype": "nipype",
    "pybids": "pybids",
    "nibabel": "nibabel",
    "simpleitk": "SimpleITK",
    "scipy": "scipy",
    "torch": "torch",
    "nireports": "nireports",
}
CONTRASTS = {"T1w": "T1-weighted", "T2w": "T2-weighted"}
PRECISIONS = {"float32": "single precision", "float16": "half precision", "bfloat16": "bfloat16"}
#: what a sidecar says of its brain mask → the same in the facts
MASK_METHODS = {
    "stripping network": "network",
    "given: the image has no skull": "stripped",
    "given": "given",
}
OUR_SOURCE = "trained by the bmex_bids developers"
#: stands where a condition did not hold, so that its line does not become a blank one
GAP = "\0"
_SIDECAR = re.compile(
    r"(?P<stem>.+?)(?P<res>_res-[A-Za-z0-9]+)?_desc-(?P<desc>enhanced|preproc|quality)"
    r"_(?P<suffix>T[12]w)\.json"
)


@dataclass(frozen=True)
class WeightSet:
    """Weights that were used.

    Attributes
    ----------
    origin : ``"own"`` (trained by us), ``"published"`` (with BME-X) or ``"other"``
    images : how many went through them
    """

    name: str
    sha256: str = ""
    licence: str = ""
    source: str = ""
    origin: str = "other"
    images: int = 0


@dataclass(frozen=True)
class Facts:
    """What was done to a dataset; of what is empty, nothing is said.

    Attributes
    ----------
    images, participants : with a result
    contrasts, age_groups : → number of images
    postnatal_months, fetal_weeks : lowest and highest age
    processed_by : versions of bmex_bids that the sidecars name
    versions : of bmex_bids, Python and the packages, now
    weights, strip_weights : of the enhancing and of the stripping network
    masks : ``network``, ``stripped`` (no skull), ``given``, or what the sidecar says → images
    mask_sources : whose masks were given
    spacing_mm, fetal_spacing_mm : of the network's grid, after and before birth
    native, resolution, preproc, measured : images enhanced on the input's grid, on the network's,
        back in their head; images of which only quality measures were kept
    devices, precisions : of the networks
    contrast_measured : images whose tissue contrast (TCT) was measured
    gate : pass, warn, fail → number of images
    seeds : of the runs that made the images
    pictures : whether there are any
    n4_mm, n4_iterations : voxels and iterations of the bias correction
    match_points, match_levels, match_share : of the histogram matching
    """

    images: int = 0
    participants: int = 0
    contrasts: Mapping[str, int] = field(default_factory=dict)
    age_groups: Mapping[str, int] = field(default_factory=dict)
    postnatal_months: tuple[float, float] | None = None
    fetal_weeks: tuple[float, float] | None = None
    processed_by: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[WeightSet, ...] = ()
    strip_weights: tuple[WeightSet, ...] = ()
    masks: Mapping[str, int] = field(default_factory=dict)
    mask_sources: tuple[str, ...] = ()
    spacing_mm: float | None = None
    fetal_spacing_mm: float | None = None
    native: int = 0
    resolution: int = 0
    preproc: int = 0
    measured: int = 0
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    contrast_measured: int = 0
    gate: Mapping[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    pictures: bool = False
    n4_mm: float = 0.0
    n4_iterations: tuple[int, ...] = ()
    match_points: int = 0
    match_levels: int = 0
    match_share: float = 0.0


# ------------------------------------------------------------------ facts
def collect_facts(output_dir: Path) -> Facts:
    """The facts of all images in an output dataset, and the versions of what is installed."""
    from bmex_bids.imaging import intensity
    from bmex_bids.inputs.age import DAYS_PER_MONTH
    from bmex_bids.inputs.plan import FETAL_SPACING, SPACING

    images = _read_images(output_dir)
    records = [image.record for image in images]
    ages = [age for record in records if (age := _table(record, "Age")).get("months") is not None]
    fetal = [float(age["months"]) * DAYS_PER_MONTH / 7 for age in ages if age.get("fetal")]
    born = [float(age["months"]) for age in ages if not age.get("fetal")]
    groups = _count(record.get("Model") for record in records)
    masks = [_table(record, "Mask") for record in records]
    n4 = inspect.signature(intensity.n4).parameters
    return Facts(
        images=len(images),
        participants=len({image.subject for image in images}),
        contrasts=_count(image.suffix for image in images),
        age_groups=groups,
        postnatal_months=(min(born), max(born)) if born else None,
        fetal_weeks=(min(fetal), max(fetal)) if fetal else None,
        processed_by=tuple(_count(record.get("Version") for record in records)),
        versions=installed_versions(),
        weights=_weight_sets(_table(record, "Weights") for record in records),
        strip_weights=_weight_sets(
            {
                "Name": mask["weights"],
                "SHA256": mask.get("weights_sha256"),
                "License": mask.get("weights_licence"),
            }
            for mask in masks
            if mask.get("weights")
        ),
        masks=_count(
            MASK_METHODS.get(str(mask["method"]), mask["method"])
            for mask in masks
            if mask.get("method")
        ),
        mask_sources=tuple(
            _count(mask.get("source") for mask in masks if mask.get("method") == "given")
        ),
        spacing_mm=SPACING[0] if set(groups) - {"fetal"} else None,
        fetal_spacing_mm=FETAL_SPACING[0] if "fetal" in groups else None,
        native=sum("enhanced" in image.products for image in images),
        resolution=sum("enhanced_res" in image.products for image in images),
        preproc=sum("preproc" in image.products for image in images),
        measured=sum(image.products == {"quality"} for image in images),
        devices=tuple(_count(_device(record.get("Device")) for record in records)),
        precisions=tuple(_count(record.get("Precision") for record in records)),
        contrast_measured=sum(
            _table(record, "Quality").get("tct_after") is not None for record in records
        ),
        gate=_count(_table(record, "Gate").get("Verdict") for record in records),
        seeds=_seeds(output_dir),
        pictures=next(output_dir.glob("sub-*/**/figures/*.svg"), None) is not None,
        n4_mm=float(n4["shrink_mm"].default),
        n4_iterations=tuple(n4["iterations"].default),
        match_points=intensity.MATCH_POINTS,
        match_levels=intensity.LEVELS,
        match_share=intensity.ROBUST_SHARE,
    )


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages of :data:`PACKAGES`, without loading any of them."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "(version unknown)"
    return found


@dataclass
class _Image:
    """One image of the output: what the first of its sidecars says, and what there is of it."""

    subject: str
    suffix: str
    record: Mapping[str, Any]
    products: set[str]


def _read_images(output_dir: Path) -> list[_Image]:
    """Every image with a sidecar under the key ``BMEX``, in the order of the names."""
    paths: dict[tuple[Path, str, str], dict[str, Path]] = {}
    for pattern in ("sub-*/anat/*.json", "sub-*/ses-*/anat/*.json"):
        for path in sorted(output_dir.glob(pattern)):
            if name := _SIDECAR.fullmatch(path.name):
                product = name["desc"] + ("_res" if name["res"] else "")
                paths.setdefault((path.parent, name["stem"], name["suffix"]), {})[product] = path
    images = []
    for (_, stem, suffix), products in sorted(paths.items()):
        for product in ("enhanced", "enhanced_res", "quality"):
            if product in products and (record := _read_record(products[product])):
                subject = stem.split("_")[0]
                images.append(_Image(subject, suffix, record, set(products)))
                break
    return images


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        LOGGER.warning("%s is left out of the methods text: %s", path, error)
        return {}
    return _table(content, "BMEX") if isinstance(content, dict) else {}


def _table(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table in a sidecar; empty where there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _count(values: Iterable[Any]) -> dict[str, int]:
    """How often each value occurs, the values sorted as people do; None does not count."""
    counts = Counter(str(value) for value in values if value not in (None, ""))
    return dict(sorted(counts.items(), key=lambda item: _natural(item[0])))


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts month3 before month12."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _device(value: Any) -> str | None:
    """``cuda:1 (NVIDIA X)`` → ``NVIDIA X``: which of several it was says nothing in a paper."""
    if not isinstance(value, str):
        return None
    name = re.fullmatch(r"cuda(?::\d+)? \((.+)\)", value)
    return name[1] if name else value


def _weight_sets(tables: Iterable[Mapping[str, Any]]) -> tuple[WeightSet, ...]:
    """Each set of weights once, with the number of its images."""
    from bmex_bids.network.registry import PUBLISHED, bundled

    ours = {record.sha256: record for record in bundled()}
    counts: Counter[WeightSet] = Counter()
    for table in tables:
        texts = {key: str(value) for key, value in table.items() if value}
        if "Name" not in texts:
            continue
        name, sha256 = texts["Name"], texts.get("SHA256", "")
        source = texts.get("Source", "")
        if name == PUBLISHED or name.startswith(f"{PUBLISHED}-"):
            origin = "published"
        elif sha256 in ours or source.startswith(OUR_SOURCE):
            origin = "own"
        else:
            origin = "other"
        counts[WeightSet(name, sha256, texts.get("License", ""), source, origin)] += 1
    return tuple(
        WeightSet(w.name, w.sha256, w.licence, w.source, w.origin, count)
        for w, count in sorted(counts.items(), key=lambda item: _natural(item[0].name))
    )


def _seeds(output_dir: Path) -> tuple[int, ...]:
    """Random seeds of the runs that completed an image, from their logs."""
    seeds = set()
    for config in output_dir.glob("logs/*/config.toml"):
        try:
            status = config.with_name("status.tsv").read_text(encoding="utf-8")
            settings = config.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        seed = re.search(r"^random_seed = (\d+)$", settings, re.MULTILINE)
        if seed and any("done" in line.split("\t") for line in status.splitlines()):
            seeds.add(int(seed[1]))
    return tuple(sorted(seeds))


# ------------------------------------------------------------------ text
def methods_text(facts: Facts) -> str:
    """The methods text in Pandoc's Markdown, with citation keys of ``boilerplate/references.bib``.

    A paragraph is one line; the last line is the heading under which references go.
    """
    frame = resources.files("bmex_bids.boilerplate").joinpath("methods.md")
    return fill_frame(frame.read_text(encoding="utf-8"), _flags(facts), _values(facts))


def fill_frame(frame: str, flags: Mapping[str, bool], values: Mapping[str, str]) -> str:
    """A frame with its conditions decided and its values put in.

    An unknown flag or value is a KeyError.

    >>> fill_frame(
    ...     "{?a}{x} {?b}cats{/}{?c}dogs{/}{/}\\nplay.", {"a": 1, "b": 0, "c": 1}, {"x": "2"}
    ... )
    '2 dogs play.\\n'
    """
    text = re.sub(r"<!--.*?-->", "", frame, flags=re.DOTALL)
    innermost = re.compile(r"\{\?(\w+)\}((?:(?!\{\?|\{/\}).)*)\{/\}", re.DOTALL)
    while innermost.search(text):
        text = innermost.sub(lambda match: match[2] if flags[match[1]] else GAP, text)
    paragraphs = (block.replace(GAP, "") for block in re.split(r"\n\s*\n", text))
    blocks = (" ".join(block.split()) for block in paragraphs)
    # values last, so that nothing in a value is taken for a part of the frame
    filled = (re.sub(r"\{(\w+)\}", lambda match: values[match[1]], block) for block in blocks)
    return "\n\n".join(block for block in filled if block) + "\n"


def _of(facts: Facts, origin: str) -> list[WeightSet]:
    return [weights for weights in facts.weights if weights.origin == origin]


def _flags(facts: Facts) -> dict[str, bool]:
    """Which conditions of the frame hold."""
    own, published, other = (bool(_of(facts, kind)) for kind in ("own", "published", "other"))
    return {
        "nothing": facts.images == 0,
        "something": facts.images > 0,
        "postnatal": facts.postnatal_months is not None,
        "fetal": facts.fetal_weeks is not None,
        "measured": facts.measured > 0,
        "mask_network": facts.masks.get("network", 0) > 0,
        "mask_stripped": facts.masks.get("stripped", 0) > 0,
        "mask_given": facts.masks.get("given", 0) > 0,
        "mask_sources": bool(facts.mask_sources),
        "mask_other": bool(set(facts.masks) - set(MASK_METHODS.values())),
        "spacing": bool(facts.spacing_mm or facts.fetal_spacing_mm),
        "age_groups": bool(facts.age_groups),
        "interpolation": (own or published) and not other,
        "match_brain": own and not published and not other,
        "match_published": published and not own and not other,
        "match_both": own and published and not other,
        "weights_own": own,
        "weights_published": published,
        "weights_other": other,
        "devices": bool(facts.devices),
        "precision": bool(facts.precisions),
        "seeds": bool(facts.seeds),
        "native": facts.native > 0,
        "preproc": facts.preproc > 0,
        "resolution": facts.resolution > 0,
        "contrast": facts.contrast_measured > 0,
        "gate": bool(facts.gate),
        "pictures": facts.pictures,
        "enhanced": facts.images > facts.measured,
    }


def _values(facts: Facts) -> dict[str, str]:
    """What stands in the frame; that of a step that was not done is not looked at."""
    of_images = partial(_share, total=facts.images)
    sets = {kind: _of(facts, kind) for kind in ("own", "published", "other")}
    numbers = {kind: sum(part.images for part in parts) for kind, parts in sets.items()}
    others = sorted(set(facts.masks) - set(MASK_METHODS.values()))
    return {
        **{name: _escape(version) for name, version in facts.versions.items()},
        "version": _own_version(facts),
        "images": _images(facts.images),
        "participants": _plural(facts.participants, "participant"),
        "contrasts": _list(
            f"{number} {CONTRASTS.get(name, name)}" for name, number in facts.contrasts.items()
        ),
        "postnatal_ages": _span(facts.postnatal_months, _birth_age),
        "fetal_ages": _span(facts.fetal_weeks, _gestation),
        "measured_images": of_images(facts.measured),
        "n4_mm": f"{facts.n4_mm:g}",
        "n4_iterations": _list(str(number) for number in facts.n4_iterations),
        "n4_levels": str(len(facts.n4_iterations)),
        "network_images": of_images(facts.masks.get("network", 0)),
        "strip_weights": _list(_describe(part) for part in facts.strip_weights),
        "Stripped_images": _capital(of_images(facts.masks.get("stripped", 0))),
        "given_images": of_images(facts.masks.get("given", 0)),
        "mask_sources": _list(_escape(name) for name in facts.mask_sources),
        "other_mask_images": of_images(sum(facts.masks[name] for name in others)),
        "mask_methods": _list(_escape(name) for name in others),
        "spacing": _spacing(facts),
        "interpolation": "cubic splines, or linear interpolation before the published weights"
        if sets["own"] and sets["published"]
        else ("linear interpolation" if sets["published"] else "cubic splines"),
        "age_groups": _list(
            f"{number} {_group(name)}" for name, number in facts.age_groups.items()
        ),
        "match_points": str(facts.match_points),
        "match_levels": str(facts.match_levels),
        "match_top": f"{100 * facts.match_share:g}",
        "Own_images": _capital(of_images(numbers["own"])),
        "own_weights": _list(_describe(part) for part in sets["own"]),
        "Published_images": _capital(of_images(numbers["published"])),
        "published_weights": _list(_describe(part) for part in sets["published"]),
        "Other_images": _capital(of_images(numbers["other"])),
        "other_weights": _list(_describe(part, source=True) for part in sets["other"]),
        "devices": _list("the CPU" if name == "cpu" else _escape(name) for name in facts.devices),
        "precision": _list(
            f"{PRECISIONS[name]} ({name})" if name in PRECISIONS else _escape(name)
            for name in facts.precisions
        ),
        "seeds": _list(str(seed) for seed in facts.seeds),
        "gate": _list(f"{verdict} for {number}" for verdict, number in facts.gate.items()),
    }


def _own_version(facts: Facts) -> str:
    """The versions that did the work; and the one whose settings are told, where that is another."""
    if not facts.processed_by:
        return __version__
    done = _list(_escape(version) for version in facts.processed_by)
    if facts.processed_by == (__version__,):
        return done
    return f"{done} (the settings told here are those of {__version__})"


def _spacing(facts: Facts) -> str:
    """``0.8 mm``, ``0.75 mm`` or ``0.8 mm (fetal images: 0.75 mm)``."""
    if facts.spacing_mm and facts.fetal_spacing_mm:
        return f"{facts.spacing_mm:g} mm (fetal images: {facts.fetal_spacing_mm:g} mm)"
    return f"{facts.spacing_mm or facts.fetal_spacing_mm or 0:g} mm"


def _describe(weights: WeightSet, *, source: bool = False) -> str:
    """``*name* (SHA-256 `…`; licence …)``"""
    details = []
    if weights.sha256:
        details.append(f"SHA-256 `{re.sub(r'[^0-9A-Za-z]', '', weights.sha256)}`")
    if weights.licence:
        details.append(f"licence: {_escape(weights.licence)}")
    if source and weights.source:
        details.append(f"source: {_escape(weights.source)}")
    name = f"*{_escape(weights.name)}*"
    return f"{name} ({'; '.join(details)})" if details else name


def _group(name: str) -> str:
    """An age group by its youngest age.

    >>> _group("fetal"), _group("month0"), _group("month24")
    ('fetal', 'from birth', 'from 24 months')
    """
    months = re.fullmatch(r"month(\d+)", name)
    if months is None:
        return _escape(name)
    return "from birth" if months[1] == "0" else f"from {months[1]} months"


def _birth_age(months: float) -> tuple[str, str]:
    """An age as number and unit, months up to three years."""
    number, unit = (months, "month") if months < 36 else (months / 12, "year")
    return _number(number), unit if _number(number) == "1" else f"{unit}s"


def _gestation(weeks: float) -> tuple[str, str]:
    return _number(weeks), "weeks of gestation"


def _number(value: float) -> str:
    """A number with one decimal, if that is not zero."""
    return f"{value:.1f}".removesuffix(".0")


def _span(limits: tuple[float, float] | None, written: Callable[[float], tuple[str, str]]) -> str:
    """A range of ages, or one.

    >>> _span((1, 5), _birth_age), _span((6, 72), _birth_age), _span((1, 1), _birth_age)
    ('1 to 5 months', '6 months to 6 years', '1 month')
    """
    if limits is None:
        return ""
    (low, low_unit), (high, high_unit) = (written(value) for value in limits)
    if (low, low_unit) == (high, high_unit):
        return f"{low} {low_unit}"
    same = low_unit.rstrip("s") == high_unit.rstrip("s")
    return f"{low}{'' if same else f' {low_unit}'} to {high} {high_unit}"


def _images(number: int) -> str:
    return _plural(number, "image")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _share(number: int, *, total: int) -> str:
    """So many of the images: all of them in words.

    >>> _share(1, total=1), _share(3, total=3), _share(1, total=3)
    ('the image', 'all images', '1 image')
    """
    if number == total:
        return "the image" if total == 1 else "all images"
    return _images(number)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _list(parts: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _escape(text: str) -> str:
    r"""A text from elsewhere, so that Markdown takes nothing in it for its own.

    >>> print(_escape("NVIDIA <X> a_b _c_ [@d]"))
    NVIDIA \<X\> a_b \_c\_ \[\@d\]
    """
    text = re.sub(r"([\\`*\[\]{}<>$^~|@#])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


# ------------------------------------------------------------------ files
def write_citation(output_dir: Path, facts: Facts, *, markdown_only: bool = False) -> list[Path]:
    """Write ``logs/CITATION.{md,bib,html,tex}``, whole, and return their paths.

    The references are those that the text cites.  Pandoc makes HTML and LaTeX where it is
    installed, otherwise ``reports.references`` does.

    Parameters
    ----------
    output_dir : the output dataset
    facts : see :func:`collect_facts`
    markdown_only : leave HTML and LaTeX alone; old ones, which would say something else, go

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    text = methods_text(facts)
    source = resources.files("bmex_bids.boilerplate").joinpath("references.bib")
    known = read_bibtex(source.read_text(encoding="utf-8"))
    references = {key: known[key] for key in cited_keys(text)}
    bibliography = "\n".join(f"{reference.source}\n" for reference in references.values())
    texts = {"md": text, "bib": bibliography}
    if not markdown_only:
        texts["html"] = html_page(_html(text, bibliography, references), title=TITLE)
        texts["tex"] = _latex(text, bibliography, references)
    targets = {kind: output_dir / "logs" / f"CITATION.{kind}" for kind in texts}
    write_together(
        {
            target: partial(Path.write_text, data=texts[kind], encoding="utf-8")
            for kind, target in targets.items()
        }
    )
    if markdown_only:
        for kind in ("html", "tex"):
            (output_dir / "logs" / f"CITATION.{kind}").unlink(missing_ok=True)
    return list(targets.values())


def _html(text: str, bibliography: str, references: Mapping[str, Reference]) -> str:
    made = run_pandoc(text, bibliography, ["--citeproc", "--to=html5"])
    return made if made is not None else to_html(text, references)


def _latex(text: str, bibliography: str, references: Mapping[str, Reference]) -> str:
    # natbib makes the list and its heading
    body = text.rstrip().removesuffix(REFERENCES_HEADING)
    made = run_pandoc(body, bibliography, ["--natbib", "--standalone", "--to=latex"])
    return made if made is not None else to_latex(text, references)


def run_pandoc(text: str, bibliography: str, arguments: Sequence[str]) -> str | None:
    """What Pandoc makes of a text; None where there is no Pandoc, or it fails."""
    program = shutil.which("pandoc")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bmex-citation-") as folder:
        Path(folder, "CITATION.md").write_text(text, encoding="utf-8")
        Path(folder, "CITATION.bib").write_text(bibliography, encoding="utf-8")
        command = [
            program,
            "CITATION.md",
            "--from=markdown",
            "--bibliography=CITATION.bib",
            "--wrap=preserve",
            *arguments,
        ]
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and no argument comes from outside
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PANDOC_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            LOGGER.info("pandoc could not be run: %s", error)
            return None
    made = done.stdout.decode("utf-8", errors="replace")
    if done.returncode != 0 or not made.strip():
        LOGGER.info("pandoc failed: %s", done.stderr.decode("utf-8", errors="replace").strip())
        return None
    return made
