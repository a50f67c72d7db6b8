# SPDX-License-Identifier: Apache-2.0
"""``bmex-recon``: multi-coil k-space becomes a raw image of a BIDS dataset."""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids import __version__
from bmex_bids.cli import arguments
from bmex_bids.cli.ending import ended
from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import BidsName, sidecar_of, subject_folder
from bmex_bids.exceptions import UsageError, WeightsError

if TYPE_CHECKING:
    from bmex_bids.network.weights.registry import WeightRecord
    from bmex_bids.recon.rawdata import RawData
    from bmex_bids.recon.reconstruct import Reconstructed

PROGRAM = "bmex-recon"
NETWORK, VARIANT = "lfmri", "lfmri"
#: method → label of the entity ``rec``, and what a person reads
METHODS: Mapping[str, tuple[str, str]] = {
    NETWORK: ("lfmri", "LF-MRI, an unrolled network"),
    "sense": ("sense", "CG-SENSE"),
    "wavelet": ("wavelet", "SENSE with an L1 penalty of wavelets"),
    "zero-filled": ("zerofilled", "root sum of squares of the zero-filled coil images"),
}
#: where no weights are given and none come with the package
CLASSICAL = "sense"


def main(argv: Sequence[str] | None = None) -> int:
    """Reconstruct one file and return an exit code, as ``bmex`` has them."""
    options = build_parser().parse_args(argv)
    return ended(
        PROGRAM, lambda: _work(options), interrupted="interrupted; no half-written file is left"
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex-recon``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Reconstruct an image from Cartesian k-space of several coils (fastMRI HDF5 or "
        "ISMRMRD).\nThe image goes into the raw part of a BIDS dataset, with rec-METHOD in its name, "
        "and bmex\nprocesses it like any other. Needs: pip install 'bmex_bids[recon]'.",
        epilog="Exit codes: 0 the image is written; 1 the raw data cannot be used; 2 wrong command "
        "line;\n5 a package or weights are missing, or the output cannot be written.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN.h5", type=Path, help="raw data; not changed")
    parser.add_argument(
        "bids_dir", metavar="BIDS_DIR", type=Path, help="BIDS dataset; created if there is none"
    )
    name = parser.add_argument_group("name of the image (BIDS entities)")
    name.add_argument(
        "--subject", required=True, type=_label, metavar="LABEL", help="participant, without sub-"
    )
    name.add_argument("--session", type=_label, metavar="LABEL", help="session, without ses-")
    name.add_argument(
        "--acquisition", type=_label, metavar="LABEL", help="acquisition, without acq-"
    )
    name.add_argument(
        "--run", type=arguments.number(int, at_least=1), metavar="N", help="number of the run"
    )
    name.add_argument("--contrast", required=True, choices=list(SUFFIXES), help="suffix")
    how = parser.add_argument_group("reconstruction")
    how.add_argument(
        "--method",
        choices=list(METHODS),
        help=f"{NETWORK} is a network; default: {NETWORK} if it has weights, else {CLASSICAL}",
    )
    how.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help=f"weights of {NETWORK}, as 'bmex-train recon' writes them",
    )
    how.add_argument(
        "--accel-mask",
        "--accel_mask",
        type=Path,
        metavar="FILE.npy",
        help="sampling pattern to try: one number for each phase-encoding line, 0 leaves it out",
    )
    how.add_argument(
        "--axes",
        type=_axes,
        default="PLS",
        help="directions of increasing row (readout), column (phase encoding) and slice, for files "
        "that do not say, such as fastMRI's (default: %(default)s, axial slices)",
    )
    how.add_argument(
        "--attention",
        action="store_true",
        help=f"with {NETWORK}: also write its map of lesions, in derivatives/bmex_recon",
    )
    how.add_argument("--force", action="store_true", help="replace an image that exists")
    how.add_argument(
        "--threads", type=arguments.number(int, at_least=1), default=1, metavar="N",
        help="threads of the processor (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _label(text: str) -> str:
    if not re.fullmatch(r"[0-9a-zA-Z]+", text):
        raise argparse.ArgumentTypeError(f"expected letters and digits only, got {text!r}")
    return text


def _axes(text: str) -> str:
    if sorted(
        next((k for k, pair in enumerate(("RL", "AP", "SI")) if c in pair), 3) for c in text
    ) != [0, 1, 2]:
        raise argparse.ArgumentTypeError(f"expected three directions such as PLS, got {text!r}")
    return text


def _work(options: argparse.Namespace) -> int:
    record = weights_of(options.weights)
    method = options.method or (NETWORK if record else CLASSICAL)
    if method == NETWORK and record is None:
        raise WeightsError(
            "expected weights for the method lfmri, and none come with this version; name a file "
            f"with --weights, or use --method {CLASSICAL}"
        )
    if method != NETWORK:
        if options.weights is not None or options.attention:
            flag = "--weights" if options.weights is not None else "--attention"
            raise UsageError(
                f"{flag} is for --method {NETWORK}, got --method {method}; leave it out"
            )
        record = None
    target = options.bids_dir / name_of(options, method)
    if target.exists() and not options.force:
        raise UsageError(f"expected no image at {target}, found one; add --force to replace it")
    done, raw = _reconstruct(options, method, record)
    _write(options, target, done, sidecar(options.source.name, method, raw, done, record))
    why = "" if options.method or record else "; no weights of LF-MRI were given"
    print(f"{target}\n  {METHODS[method][1]} ({method}){why}")
    print(
        f"  {len(raw.kspace)} slices, {raw.kspace.shape[1]} coils, acceleration "
        f"{raw.acceleration:.2f}, coil maps: {done.coil_maps}"
    )
    if raw.assumed:
        print(f"  orientation is assumed: rows, columns, slices are {', '.join(options.axes)}")
    return 0


def weights_of(path: Path | None) -> WeightRecord | None:
    """The weights of a file, or those of the package; None where it brings none."""
    from bmex_bids.network.weights.registry import bundled, unregistered, verify

    if path is not None:
        return unregistered(path, VARIANT)
    for record in bundled():
        if record.kind == "recon":
            verify(record.path, record.sha256)
            return record
    return None


def name_of(options: argparse.Namespace, method: str) -> str:
    """Path of the image in its dataset."""
    entities = {
        "sub": options.subject,
        "ses": options.session,
        "acq": options.acquisition,
        "rec": METHODS[method][0],
        "run": options.run,
    }
    given = {key: str(value) for key, value in entities.items() if value is not None}
    folder = subject_folder(options.subject, options.session)
    return f"{folder}/anat/{BidsName(given, options.contrast, '.nii.gz')}"


def _reconstruct(
    options: argparse.Namespace, method: str, record: WeightRecord | None
) -> tuple[Reconstructed, RawData]:
    import dataclasses

    import torch

    from bmex_bids.network.weights.checkpoints import load_network
    from bmex_bids.recon.rawdata import read
    from bmex_bids.recon.reconstruct import reconstruct

    torch.set_num_threads(options.threads)
    raw = read(options.source, options.axes)
    if options.accel_mask is not None:
        kept = _lines_of(options.accel_mask, raw.mask.size) & raw.mask
        raw = dataclasses.replace(raw, mask=kept, kspace=raw.kspace * kept)
    network: Any = load_network(record.path, VARIANT) if record else None
    if options.attention and network.attention == "none":
        raise UsageError(
            "expected weights that look for lesions with --attention, got some that do not; "
            "leave it out, or name others with --weights"
        )

    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\rslice {done} of {of}", end="\n" if done == of else "", file=sys.stderr)

    return reconstruct(raw, method, network, progress), raw


def _lines_of(path: Path, lines: int) -> Any:
    import numpy as np

    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"expected a mask in {path}, got: {error}") from error
    if mask.shape != (lines,) or not (mask != 0).any():
        raise UsageError(
            f"expected {lines} numbers, not all 0, in {path.name}, got shape {mask.shape}"
        )
    return mask != 0


def sidecar(
    source: str, method: str, raw: RawData, done: Reconstructed, record: WeightRecord | None
) -> dict[str, Any]:
    """The JSON file of the image."""
    table: dict[str, Any] = dict(raw.facts)
    accelerated = raw.acceleration > 1.05
    if accelerated:
        table["ParallelReductionFactorInPlane"] = round(raw.acceleration, 3)
        if method != "zero-filled":  # which uses the lines alone
            table["ParallelAcquisitionTechnique"] = "SENSE"
    facts: dict[str, Any] = {
        "Method": method,
        "Description": METHODS[method][1],
        "Source": source,
        "CoilMaps": done.coil_maps,
        "Coils": raw.kspace.shape[1],
        "Acceleration": round(raw.acceleration, 3),
        "IntensityFactor": done.factor,
        "OrientationAssumed": raw.assumed,
        "Software": f"bmex_bids {__version__}",
    }
    if record is not None:
        facts |= {"Weights": record.name, "SHA256": record.sha256}
        if done.lesion_score is not None:
            facts["LesionScore"] = done.lesion_score
    table["BMEX"] = {"Reconstruction": facts}
    return table


def _write(
    options: argparse.Namespace, target: Path, done: Reconstructed, table: Mapping[str, Any]
) -> None:
    from bmex_bids.outputs.dataset import BIDS_VERSION
    from bmex_bids.outputs.files import as_json, write_json, write_together

    if not (options.bids_dir / "dataset_description.json").exists():
        write_json(
            options.bids_dir / "dataset_description.json",
            {"Name": options.bids_dir.name, "BIDSVersion": BIDS_VERSION, "DatasetType": "raw"},
        )
    write_together({target: _saved(done.image), sidecar_of(target): _text(as_json(table))})
    if not options.attention or done.attention is None:
        return
    folder = options.bids_dir / "derivatives" / "bmex_recon"
    if not (folder / "dataset_description.json").exists():
        write_json(
            folder / "dataset_description.json",
            {
                "Name": "bmex-recon: where LF-MRI looked for lesions",
                "BIDSVersion": BIDS_VERSION,
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": PROGRAM, "Version": __version__}],
            },
        )
    source = BidsName.of(target.name)
    name = source.derived({"desc": "lesionattention"}, extension=".nii.gz")
    path = folder / target.parent.relative_to(options.bids_dir) / str(name)
    about = {"Description": "Class activation map, 0 to 1", "Sources": [target.name]}
    write_together({path: _saved(done.attention), sidecar_of(path): _text(as_json(about))})
    print(path)


def _saved(image: Any) -> Callable[[Path], object]:
    content = gzip.compress(image.to_bytes(), 6, mtime=0)
    return lambda path: path.write_bytes(content)


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
