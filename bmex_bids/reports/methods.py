# SPDX-License-Identifier: Apache-2.0
"""The methods text of a dataset: what was really done, in words that can go into a paper.

The words are in ``boilerplate/methods.md``, the facts come from ``reports.facts``.  A step that they
do not vouch for is not mentioned.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.common.contrasts import CONTRASTS, MEAN
from bmex_bids.outputs.files import write_together
from bmex_bids.outputs.records import MaskMethod
from bmex_bids.reports.facts import Facts, WeightSet, collect_facts
from bmex_bids.reports.references import (
    REFERENCES_HEADING,
    bibliography,
    cited_keys,
    html_page,
    to_html,
    to_latex,
)

__all__ = ["Facts", "WeightSet", "collect_facts", "methods_text", "write_citation"]

LOGGER = logging.getLogger(__name__)

TITLE = "Methods: enhancement with bmex_bids"
PANDOC_SECONDS = 60
PRECISIONS = {"float32": "single precision", "float16": "half precision", "bfloat16": "bfloat16"}
#: stands where a condition did not hold, so that its line does not become a blank one
GAP = "\0"


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
    sliced = _sliced(facts)
    return {
        "nothing": facts.images == 0,
        "something": facts.images > 0,
        "dataset": "pybids" in facts.versions,  # one image without a dataset needs none
        "ages": bool(facts.postnatal_months or facts.fetal_weeks),
        "measured": facts.measured > 0,
        "mask_network": facts.masks.get(MaskMethod.NETWORK, 0) > 0,
        "strip_own": all(weights.origin == "own" for weights in facts.strip_weights),
        "strip_published": bool(facts.strip_weights)
        and all(weights.origin == "published" for weights in facts.strip_weights),
        "mask_stripped": facts.masks.get(MaskMethod.STRIPPED, 0) > 0,
        "mask_given": facts.masks.get(MaskMethod.GIVEN, 0) > 0,
        "mask_sources": bool(facts.mask_sources),
        "mask_other": bool(set(facts.masks) - {*MaskMethod}),
        "spacing": bool(facts.spacing_mm or facts.fetal_spacing_mm),
        "age_groups": bool(facts.age_groups),
        "interpolation": (own or published) and not other,
        "match_brain": own and not published and not other,
        "match_published": published and not own and not other,
        "match_both": own and published and not other,
        "match_tissues": sliced > 0,
        "match_mean": bool(_unreferenced(facts)),
        "joined": sliced < facts.images,
        "slices": sliced > 0,
        "weights_own": own,
        "weights_published": published,
        "weights_other": other,
        "devices": bool(facts.devices),
        "precision": bool(facts.precisions),
        "motion": facts.motion_looked_for > 0,
        "motion_undone": facts.motion_undone > 0,
        "jumps": facts.jumps_undone > 0,
        "lines": facts.lines_mended > 0,
        "spikes": facts.spikes_removed > 0,
        "thick": facts.slices_sharpened > 0,
        "noise": facts.noise_reduced > 0,
        "split": facts.slices_split > 0,
        "reoriented": facts.reoriented > 0,
        "mirrored": facts.mirrored > 0,
        "turns": facts.turns > 0,
        "limited": bool(facts.max_changes),
        "shared": bool(facts.shares),
        "match_template": bool(facts.matched_to),
        "native": facts.native > 0,
        "preproc": facts.preproc > 0,
        "resolution": facts.resolution > 0,
        "spaces": facts.in_spaces > 0,
        "ratio": _ratios(facts) > 0,
        "contrast": facts.contrast_measured > 0,
        "structures": bool(facts.structure_weights),
        "super": bool(facts.super_weights),
        "tissues": bool(facts.tissue_weights),
        "gate": bool(facts.gate),
        "pictures": facts.pictures,
        "enhanced": facts.images > facts.measured,
    }


def _values(facts: Facts) -> dict[str, str]:
    """What stands in the frame; that of a step that was not done is not looked at."""
    of_images = partial(_share, total=facts.images)
    sets = {kind: _of(facts, kind) for kind in ("own", "published", "other")}
    numbers = {kind: sum(part.images for part in parts) for kind, parts in sets.items()}
    others = sorted(set(facts.masks) - {*MaskMethod})
    return {
        **{name: _escape(version) for name, version in facts.versions.items()},
        "version": _own_version(facts),
        "images": _images(facts.images),
        "participants": _plural(facts.participants, "participant"),
        "contrasts": _list(
            f"{number} {CONTRASTS[name].word if name in CONTRASTS else name}"
            for name, number in facts.contrasts.items()
        ),
        "ages": _list(
            _span(limits, written)
            for limits, written in (
                (facts.postnatal_months, _birth_age),
                (facts.fetal_weeks, _gestation),
            )
            if limits
        ),
        "measured_images": of_images(facts.measured),
        "n4_mm": f"{facts.n4_mm:g}",
        "n4_iterations": _list(str(number) for number in facts.n4_iterations),
        "n4_levels": str(len(facts.n4_iterations)),
        "network_images": of_images(facts.masks.get(MaskMethod.NETWORK, 0)),
        "strip_weights": _list(_describe(part) for part in facts.strip_weights),
        "Stripped_images": _capital(of_images(facts.masks.get(MaskMethod.STRIPPED, 0))),
        "given_images": of_images(facts.masks.get(MaskMethod.GIVEN, 0)),
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
        "sliced_images": of_images(_sliced(facts)),
        "unreferenced_images": of_images(sum(_unreferenced(facts).values())),
        "unreferenced_contrasts": _list(CONTRASTS[name].word for name in _unreferenced(facts)),
        "match_mean_level": f"{MEAN:g}",
        "own_images": of_images(numbers["own"]),
        "own_weights": _list(_describe(part) for part in sets["own"]),
        "published_images": of_images(numbers["published"]),
        "published_weights": _list(_describe(part) for part in sets["published"]),
        "other_images": of_images(numbers["other"]),
        "other_weights": _list(_describe(part, source=True) for part in sets["other"]),
        "devices": _list("the CPU" if name == "cpu" else _escape(name) for name in facts.devices),
        "precision": _list(
            f"{PRECISIONS[name]} ({name})" if name in PRECISIONS else _escape(name)
            for name in facts.precisions
        ),
        "motion_images": of_images(facts.motion_looked_for),
        "undone_images": of_images(facts.motion_undone),
        "jumps_images": of_images(facts.jumps_undone),
        "lines_images": of_images(facts.lines_mended),
        "spikes_images": of_images(facts.spikes_removed),
        "thick_images": of_images(facts.slices_sharpened),
        "noise_images": of_images(facts.noise_reduced),
        "split_images": of_images(facts.slices_split),
        "reoriented_images": of_images(facts.reoriented),
        "directions": _directions(facts),
        "mirrored_images": of_images(facts.mirrored),
        "limited_images": of_images(sum(facts.max_changes.values())),
        "max_change": _list(_escape(limit) for limit in facts.max_changes),
        "shared_images": of_images(sum(facts.shares.values())),
        "correction_shares": _list(_escape(share) for share in facts.shares),
        "template_images": of_images(sum(facts.matched_to.values())),
        "templates": _list(_escape(label) for label in facts.matched_to),
        "structure_images": of_images(sum(part.images for part in facts.structure_weights)),
        "structure_weights": _list(_describe(part) for part in facts.structure_weights),
        "super_images": of_images(sum(part.images for part in facts.super_weights)),
        "super_weights": _list(_describe(part) for part in facts.super_weights),
        "tissue_images": of_images(sum(part.images for part in facts.tissue_weights)),
        "tissue_weights": _list(_describe(part) for part in facts.tissue_weights),
        "space_images": of_images(facts.in_spaces),
        "spaces": _list(
            f"{_escape(label)} for {number}" for label, number in facts.spaces.items()
        ),
        "ratio_images": of_images(_ratios(facts)),
        "gate": _list(f"{verdict} for {number}" for verdict, number in facts.gate.items()),
    }


def _sliced(facts: Facts) -> int:
    """Images that went through a network over slices."""
    return sum(part.images for part in _of(facts, "own") if part.slices)


def _directions(facts: Facts) -> str:
    """The directions in which a network over slices was applied."""
    six, three = "six directions, every other one mirrored left to right", "three directions"
    few = _sliced(facts) - facts.mirrored_slices
    if few <= 0:
        return six
    return f"{six} ({three} for {_plural(few, 'image')})" if facts.mirrored_slices else three


def _unreferenced(facts: Facts) -> dict[str, int]:
    """Contrast without a histogram reference → number of images."""
    return {
        name: number
        for name, number in facts.contrasts.items()
        if name in CONTRASTS and not CONTRASTS[name].reference
    }


def _ratios(facts: Facts) -> int:
    """Images that are a ratio of two."""
    return sum(
        number
        for name, number in facts.contrasts.items()
        if name in CONTRASTS and CONTRASTS[name].ratio
    )


def _own_version(facts: Facts) -> str:
    """The versions that did the work; and the one whose settings are told, where that is another."""
    if not facts.processed_by:
        return __version__
    done = _list(_escape(version) for version in facts.processed_by)
    if facts.processed_by == (__version__,):
        return done
    return f"{done} (the settings described here are those of {__version__})"


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


def _span(limits: tuple[float, float], written: Callable[[float], tuple[str, str]]) -> str:
    """A range of ages, or one.

    >>> _span((1, 5), _birth_age), _span((6, 72), _birth_age), _span((1, 1), _birth_age)
    ('1 to 5 months', '6 months to 6 years', '1 month')
    """
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
    text = re.sub(r"([\\`*\[\]{}<>$^~|@#&!])", r"\\\1", " ".join(text.split()))
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
    texts = {"md": text, "bib": bibliography(cited_keys(text)).to_string("bibtex")}
    if not markdown_only:
        texts["html"] = html_page(_html(text, texts["bib"]), title=TITLE)
        texts["tex"] = _latex(text, texts["bib"])
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


def _html(text: str, bibtex: str) -> str:
    made = run_pandoc(text, bibtex, ["--citeproc", "--to=html5"])
    return made if made is not None else to_html(text)


def _latex(text: str, bibtex: str) -> str:
    # natbib makes the list and its heading
    body = text.rstrip().removesuffix(REFERENCES_HEADING)
    made = run_pandoc(body, bibtex, ["--natbib", "--standalone", "--to=latex"])
    return made if made is not None else to_latex(text)


def run_pandoc(text: str, bibtex: str, arguments: Sequence[str]) -> str | None:
    """What Pandoc makes of a text; None where there is no Pandoc, or it fails."""
    program = shutil.which("pandoc")
    if program is None:
        return None
    command = [
        program,
        "CITATION.md",
        "--from=markdown",
        "--bibliography=CITATION.bib",
        "--wrap=preserve",
        *arguments,
    ]
    try:
        with tempfile.TemporaryDirectory(prefix="bmex-citation-") as folder:
            Path(folder, "CITATION.md").write_text(text, encoding="utf-8")
            Path(folder, "CITATION.bib").write_text(bibtex, encoding="utf-8")
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
