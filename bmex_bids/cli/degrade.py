# SPDX-License-Identifier: Apache-2.0
"""``bmex-degrade``: spoil a good image in a known way, and write down how."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids import __version__
from bmex_bids.cli import arguments
from bmex_bids.cli.ending import ended
from bmex_bids.cli.files import check_distinct, check_target, same_file
from bmex_bids.common.names import sidecar_of
from bmex_bids.exceptions import ImageError, UsageError
from bmex_bids.running.single import check_source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bmex_bids.degrade.recipe import Recipe
    from bmex_bids.degrade.steps import Scan

PROGRAM = "bmex-degrade"
#: anatomical axis → axis of an LPS array
AXES: Mapping[str, int] = {"LR": 0, "AP": 1, "IS": 2}
DEFAULT_KIND, DEFAULT_LEVEL = "motion-periodic", "moderate"
#: options that say what to draw, and so make no sense beside a recipe
DRAWING = ("severity", "kind", "seed", "phase_encoding", "slice_axis", "intensity_range")


@dataclass(frozen=True)
class Source:
    """The image to degrade, axes LPS, and what its file looks like.

    Attributes
    ----------
    path : of the file
    stored : as nibabel loads it; the degraded image takes its form
    values : (X, Y, Z) float32, axes LPS
    spacing : mm
    """

    path: Path
    stored: Any
    values: NDArray[np.float32]
    spacing: tuple[float, float, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Degrade one image and return an exit code, as ``bmex`` has them."""
    options = build_parser().parse_args(argv)

    def work() -> int:
        _check_options(options)
        return _gallery(options) if options.gallery else _degrade(options)

    return ended(PROGRAM, work, interrupted="interrupted; no half-written file is left")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex-degrade``."""
    from bmex_bids.degrade.kinds import KINDS
    from bmex_bids.degrade.steps import SEVERITIES

    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Degrade an image by simulation: motion, blur, thick slices, noise, smoothing, "
        "bias, contrast, ghosts. OUT has the grid, the geometry and the data type of IN; OUT.json "
        "beside it holds the recipe, which makes the same image again.",
        epilog="kinds, with the unit of NUMBER and the value of each level:\n"
        + "\n".join(
            f"  {name:<18} {kind.unit + ':':<17} "
            + ", ".join(f"{level} {value:g}" for level, value in kind.levels.items())
            for name, kind in KINDS.items()
        )
        + "\n\nExit codes: 0 done; 1 the image cannot be used; 2 the command line is wrong; 5 the "
        "output\ncannot be written.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="NIfTI image; it is not changed")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the degraded image: .nii.gz or .nii"
    )
    drawing = parser.add_argument_group("simulated damage")
    drawing.add_argument(
        "--severity",
        choices=list(SEVERITIES),
        help="level of periodic motion or, with --kind, of kinds without a level",
    )
    drawing.add_argument(
        "--kind",
        action="append",
        metavar="KIND[=LEVEL|=NUMBER]",
        help="kind of degradation, see below; can be repeated, kinds are applied in this order "
        f"(default: {DEFAULT_KIND}, {DEFAULT_LEVEL})",
    )
    drawing.add_argument(
        "--seed",
        type=arguments.number(int, at_least=0),
        metavar="N",
        help="random seed (default: a random one, saved in OUT.json)",
    )
    drawing.add_argument(
        "--phase-encoding",
        "--phase_encoding",
        choices=list(AXES),
        help="axis of phase encoding, along which motion blurs and ghosts lie (default: AP)",
    )
    drawing.add_argument(
        "--slice-axis",
        "--slice_axis",
        choices=list(AXES),
        help="axis across thick slices (default: IS)",
    )
    drawing.add_argument(
        "--intensity-range",
        "--intensity_range",
        type=arguments.number(float, at_least=1e-6),
        metavar="X",
        help="intensity that is 100 %% for noise (default: the 99th percentile of the voxels above "
        "zero)",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE.json",
        help="apply a recipe, or that in the sidecar of a degraded image, instead of drawing one",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="brain mask on the grid of IN (brain above 0.5): the whole head is degraded, then "
        "stripped",
    )
    parser.add_argument(
        "--gallery",
        action="store_true",
        help="write OUT.png, a picture of every kind at every level, instead of an image",
    )
    parser.add_argument(
        "--threads",
        type=arguments.number(int, at_least=1),
        default=1,
        metavar="N",
        help="processors to use (default: %(default)s); the result does not depend on it",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    """Look at options and paths before anything is read."""
    if options.recipe is not None or options.gallery:
        chosen = "--gallery" if options.gallery else "--recipe"
        useless = ("severity", "kind", "recipe", "mask") if options.gallery else DRAWING
        given = [name for name in useless if getattr(options, name) is not None]
        if given:
            raise UsageError(
                f"expected {chosen} without {_flag(given[0])}, got both; leave one of them out"
            )
    source = options.source = options.source.expanduser().absolute()
    out = options.out = options.out.expanduser().absolute()
    check_source("IN", source)
    if options.gallery:
        _check_picture(out)
        return
    check_target("OUT", out)
    read = {"IN": source}
    if options.mask is not None:
        read["--mask"] = options.mask = options.mask.expanduser().absolute()
        check_source("--mask", options.mask)
    check_distinct(read, {"OUT": out})
    if options.recipe is not None:
        options.recipe = options.recipe.expanduser().absolute()
        taken = {options.recipe: "--recipe"}
        if options.recipe.exists() and same_file(sidecar_of(out), taken):
            raise UsageError(
                f"expected another file than --recipe for the sidecar of OUT, got {options.recipe} "
                "for both; nothing was written, name another OUT"
            )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_picture(out: Path) -> None:
    if out.suffix != ".png":
        raise UsageError(f"expected a name that ends in .png with --gallery, got {out.name}")
    # the folder is checked as for any other output
    check_target("OUT", out.with_suffix(".nii"))


def _load(path: Path) -> Source:
    """Read and check an image; ImageError says what is wrong with it."""
    import nibabel as nib
    import numpy as np

    from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes

    working = conform(load_image(path))
    values = np.ascontiguousarray(working.dataobj, dtype=np.float32)
    return Source(path, nib.load(path), values, voxel_sizes(working.affine))


def _load_mask(path: Path, source: Source) -> NDArray[np.bool_]:
    import numpy as np

    mask = _load(path)
    if mask.values.shape != source.values.shape or not np.allclose(
        mask.stored.affine, source.stored.affine, atol=1e-3
    ):
        raise ImageError(
            f"expected a mask on the grid of {source.path.name}, got another one in {path.name} "
            f"(shapes {mask.stored.shape} and {source.stored.shape}); resample it first"
        )
    return np.asarray(mask.values > 0.5)


def _degrade(options: argparse.Namespace) -> int:
    known = None if options.recipe is None else _read_recipe(options.recipe)
    wanted = _wanted(options)  # wrong words are found before the image is read
    source = _load(options.source)
    mask = None if options.mask is None else _load_mask(options.mask, source)
    if known is None:
        recipe, record = _draw(options, wanted, source)
    else:
        recipe, record = known[0], {}
    if mask is None:
        result = recipe.apply(source.values, source.spacing, workers=options.threads)
    else:
        result = recipe.apply_before_stripping(
            source.values, mask, source.spacing, workers=options.threads
        )
    record = {
        **record,
        "Recipe": recipe.as_dict(),
        "StrippedAfterwards": mask is not None,
        "InputVoxels": _fingerprint(source.values),
        "OutputVoxels": _fingerprint(result),
        "Software": _software(),
    }
    cut = _write(options.out, source, result, record)
    kinds = ", ".join(step["kind"] for step in recipe.steps) or "nothing"
    print(f"{options.out}\n  {kinds}" + (f"; seed {record['Seed']}" if "Seed" in record else ""))
    if cut:
        kind = source.stored.get_data_dtype()
        print(f"{PROGRAM}: {cut} voxels beyond {kind} were cut off to it", file=sys.stderr)
    if known is not None:
        _compare(known[1], record)
    return 0


def _wanted(options: argparse.Namespace) -> list[tuple[str, str | float]]:
    """Kinds and levels as the command line names them; UsageError where there is no such."""
    import numpy as np

    from bmex_bids.degrade.levels import draw_level

    pairs: list[tuple[str, str | float]] = []
    for text in options.kind or [DEFAULT_KIND]:
        kind, equals, level = text.partition("=")
        if not equals:
            level = options.severity or DEFAULT_LEVEL
        number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", level)
        pairs.append((kind, float(level) if number else level))
        try:
            draw_level(*pairs[-1], np.random.default_rng(0))
        except ValueError as error:
            raise UsageError(f"{error} (--kind {text})") from error
    return pairs


def _scan(options: argparse.Namespace, source: Source) -> Scan:
    import numpy as np

    from bmex_bids.degrade.steps import Scan

    full = options.intensity_range
    if full is None:
        inside = source.values[source.values > 0]
        if not inside.size:
            raise ImageError(
                f"expected voxels above zero in {source.path.name}, got none; "
                "say --intensity-range, or export the image again"
            )
        full = float(np.percentile(inside, 99))
    return Scan(
        float(full), AXES[options.phase_encoding or "AP"], AXES[options.slice_axis or "IS"]
    )


def _draw(
    options: argparse.Namespace, wanted: Sequence[tuple[str, str | float]], source: Source
) -> tuple[Recipe, dict[str, Any]]:
    """Throw the dice; returns the recipe, and what was asked for."""
    import numpy as np

    from bmex_bids.degrade.levels import draw_level
    from bmex_bids.degrade.recipe import Recipe

    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    rng, scan = np.random.default_rng(seed), _scan(options, source)
    steps = [step for kind, level in wanted for step in draw_level(kind, level, rng, scan).steps]
    return Recipe(tuple(steps)), {
        "Drawn": [{"Kind": kind, "Level": level} for kind, level in wanted],
        "Seed": seed,
        "IntensityRange": scan.intensity_range,
    }


def _read_recipe(path: Path) -> tuple[Recipe, Mapping[str, Any]]:
    """A recipe, and what its sidecar says of the image that was made with it."""
    from bmex_bids.degrade.recipe import Recipe

    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        told = table["BMEX"]["Degradation"] if "BMEX" in table else {"Recipe": table}
        return Recipe.from_dict(told["Recipe"]), told
    except OSError as error:
        raise UsageError(
            f"expected a recipe at {path}, got: {error.strerror or error}; check the path"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"expected a recipe of {PROGRAM} in {path.name}, or the sidecar of an image that it "
            f"made, got: {reason}"
        ) from error


def _compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say whether the same image came out as the recipe's own."""
    if "OutputVoxels" not in before:
        return
    if before["OutputVoxels"] == now["OutputVoxels"]:
        print("  made again, equal to the last bit")
    elif before.get("InputVoxels") != now["InputVoxels"]:
        print("  IN is not the image that the recipe's sidecar belongs to")
    elif before.get("StrippedAfterwards") != now["StrippedAfterwards"]:
        print("  the recipe's sidecar says otherwise about --mask")
    else:
        print(
            f"{PROGRAM}: the voxels differ from those that the sidecar describes; it was made with "
            f"{before.get('Software')}, and here is {now['Software']}",
            file=sys.stderr,
        )


def _fingerprint(values: NDArray[np.float32]) -> str:
    """SHA-256 of float32 voxels, little-endian, axes LPS, the last one fastest."""
    import numpy as np

    return "sha256:" + hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


def _software() -> dict[str, str]:
    import numpy
    import scipy

    return {"bmex_bids": __version__, "numpy": numpy.__version__, "scipy": scipy.__version__}


def _write(
    out: Path, source: Source, result: NDArray[np.float32], record: Mapping[str, Any]
) -> int:
    """Write image and sidecar together; returns how many voxels its number type cut off."""
    from bmex_bids.imaging.storing import store_like
    from bmex_bids.outputs.files import as_json, write_together

    image, cut = store_like(result, source.stored)
    text = as_json(_sidecar(source.path, record))

    def save(path: Path) -> None:
        # nibabel chooses the format by the name, which a temporary file does not have
        content = image.to_bytes()
        path.write_bytes(gzip.compress(content, 6, mtime=0) if out.suffix == ".gz" else content)

    write_together(
        {out: save, sidecar_of(out): lambda path: path.write_text(text, encoding="utf-8")}
    )
    return cut


def _sidecar(source: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON file beside the degraded image: what the source's says, and the recipe."""
    from bmex_bids.outputs.sidecar import NOT_CARRIED, finite

    metadata = _metadata(source)
    table: dict[str, Any] = {
        "Description": "Degraded by simulation, on purpose; the recipe is under BMEX, Degradation"
    }
    table.update({key: value for key, value in metadata.items() if key not in NOT_CARRIED})
    if record["StrippedAfterwards"]:
        table["SkullStripped"] = True
    elif isinstance(metadata.get("SkullStripped"), bool):
        table["SkullStripped"] = metadata["SkullStripped"]
    table["Sources"] = [_within_dataset(source)]
    table["BMEX"] = {"Degradation": finite(record)}
    return table


def _metadata(source: Path) -> dict[str, Any]:
    """The JSON file beside the source, where there is one that can be read."""
    path = sidecar_of(source)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _within_dataset(path: Path) -> str:
    """The path below the BIDS dataset it is in, or the bare name: never one of this machine."""
    for folder in path.parents:
        if (folder / "dataset_description.json").is_file():
            return path.relative_to(folder).as_posix()
    return path.name


def _gallery(options: argparse.Namespace) -> int:
    from bmex_bids.outputs.files import write_whole
    from bmex_bids.reports.degradations import gallery

    source = _load(options.source)
    seed = options.seed or 0
    picture = gallery(
        source.values, source.spacing, _scan(options, source), seed, workers=options.threads
    )
    write_whole(options.out, lambda path: path.write_bytes(picture))
    print(f"{options.out}\n  every kind at every level; seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
