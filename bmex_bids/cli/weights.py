# SPDX-License-Identifier: Apache-2.0
"""``bmex-weights``: see, fetch, verify and convert the weights that ``bmex`` can use."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bmex_bids.cli.ending import ended
from bmex_bids.exceptions import OutputError, UsageError, WeightsError

PROGRAM = "bmex-weights"
LONGEST_S = 86400  # that a server may be silent


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``bmex-weights``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="List, fetch, verify and convert network weights. The published ones are not "
        "part of the package; docs/weights.md says where they come from.",
    )
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--weights-dir", "--weights_dir", type=Path, metavar="DIR",
        help="the weights folder (default: BMEX_WEIGHTS_DIR, else bmex_bids/weights in the cache)",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    show = commands.add_parser(
        "list", parents=[place], help="list all sets, and which are installed"
    )
    show.add_argument(
        "--json", action="store_true", help="JSON for programs, a record for each file"
    )

    fetch = commands.add_parser(
        "fetch", parents=[place], help="download or copy published weights"
    )
    fetch.add_argument("names", nargs="*", metavar="NAME", help="a set or one of its files")
    fetch.add_argument(
        "--from", dest="source", type=Path, metavar="PATH",
        help="a folder or ZIP file with published files, under their own names",
    )  # fmt: skip
    fetch.add_argument("--url", help="address of the one file NAME, or of a ZIP file of the set")
    fetch.add_argument("--sha256", metavar="HEX", help="expected SHA-256 of the one file NAME")
    fetch.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS",
        help="longest time without data from the server (default: %(default)g)",
    )  # fmt: skip
    fetch.add_argument("--quiet", action="store_true", help="no progress bar")

    verify = commands.add_parser("verify", parents=[place], help="compare files with checksums")
    verify.add_argument("names", nargs="*", metavar="NAME", help="a set or file (default: all)")

    change = commands.add_parser(
        "convert", help="write a weight file as safetensors, values unchanged"
    )
    change.add_argument("source", type=Path, metavar="IN", help=".pt, .caffemodel, .safetensors")
    change.add_argument("target", type=Path, metavar="OUT", help="ends in .safetensors")
    change.add_argument("--overwrite", action="store_true", help="replace OUT")

    path = commands.add_parser("path", parents=[place], help="print the folder, or a file's path")
    path.add_argument("name", nargs="?", metavar="NAME", help="a set or one of its files")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex-weights`` with a command line and return its exit code."""
    options = build_parser().parse_args(argv)
    run = {
        "list": _list, "fetch": _fetch, "verify": _verify, "convert": _convert, "path": _path,
    }[options.command]  # fmt: skip

    def work() -> int:
        try:
            return run(options)
        except OSError as error:  # a folder that may not be read or written, a full disk
            raise OutputError(
                f"expected to read and write what was named, got: {error}; check the permissions "
                "and the space, or choose another folder with --weights-dir"
            ) from error

    again = "interrupted; give the same command again to go on"
    return ended(PROGRAM, work, interrupted=again)


# ------------------------------------------------------------------ list
def records(folder: Path) -> Iterator[dict[str, Any]]:
    """One record a weight file, bundled or published, whether it is here or not."""
    from bmex_bids.network.weights import published, registry

    for record in registry.bundled():
        yield {
            "name": record.name, "set": record.name, "kind": record.kind, "origin": "bundled",
            "age_groups": list(record.age_groups), "contrasts": list(record.contrasts),
            "variant": record.variant, "input_units": record.input_units,
            "source": record.source, "licence": record.licence, "version": record.version,
            "description": record.description, "file": record.path.name,
            "sha256": record.sha256, "sha256_from": "the package", "url": None, "page": None,
            "path": str(record.path),
        }  # fmt: skip
    for release in published.published_sets():
        for file in release.files:
            path = published.locate(folder, file.file)
            noted = published.ledger(folder).get(path.name if path else file.file, {})
            known = file.sha256 or noted.get("sha256")
            whose = "its publisher" if file.sha256 else "first use" if known else None
            yield {
                "name": release.record_name(file), "set": release.name, "kind": release.kind,
                "origin": "published", "age_groups": list(file.age_groups),
                "contrasts": list(file.contrasts), "variant": release.variant,
                "input_units": release.input_units, "source": release.source,
                "licence": release.licence, "version": release.version,
                "description": release.description, "file": file.file, "sha256": known,
                "sha256_from": whose, "url": file.url, "page": release.page,
                "path": str(path) if path else None,
            }  # fmt: skip


def _list(options: argparse.Namespace) -> int:
    from bmex_bids.network.weights.published import weights_folder

    folder = weights_folder(options.weights_dir)
    table = list(records(folder))
    if options.json:
        print(json.dumps(table, indent=2))
        return 0
    print(f"weights folder: {folder}{'' if folder.is_dir() else ' (not there yet)'}")
    for name in dict.fromkeys(entry["set"] for entry in table):
        entries = [entry for entry in table if entry["set"] == name]
        first = entries[0]
        here = sum(entry["path"] is not None for entry in entries)
        print(
            f"\n{name}  ({first['origin']}, {here} of {len(entries)} "
            f"file{'' if len(entries) == 1 else 's'} here)\n"
            f"  {first['description']}\n"
            f"  kind {first['kind']}, network {first['variant']}, licence {first['licence']}\n"
            f"  input: {first['input_units']}\n"
            f"  source: {first['source']}"
        )
        if first["page"]:
            print(f"  at {first['page']}")
        for entry in entries:
            digest = f"{entry['sha256'][:12]} ({entry['sha256_from']})" if entry["sha256"] else "-"
            print(
                f"  {'+' if entry['path'] else '-'} {entry['name']:<28} {entry['file']:<32} "
                f"{digest}"
            )
    return 0


# ------------------------------------------------------------------ fetch
def chosen(names: Sequence[str]) -> list[tuple[Any, Any]]:
    """The published sets and files that names mean; UsageError for one that is unknown."""
    from bmex_bids.network.weights.published import published_sets

    known = {}
    for release in published_sets():
        known[release.name] = [(release, file) for file in release.files]
        for file in release.files:
            known[release.record_name(file)] = [(release, file)]
            known[file.file] = [(release, file)]
    unknown = [name for name in names if name not in known]
    if unknown:
        sets = ", ".join(release.name for release in published_sets())
        raise UsageError(
            f"expected the name of a published set ({sets}) or of one of its files, got "
            f"{', '.join(unknown)}; see {PROGRAM} list"
        )
    return [pair for name in names for pair in known[name]]


def _fetch(options: argparse.Namespace) -> int:
    from bmex_bids.network.weights import fetch
    from bmex_bids.network.weights.published import weights_folder

    if options.source is not None and (options.url or options.sha256):
        raise UsageError("expected --from, or --url with --sha256, got both; leave one out")
    pairs = chosen(options.names)
    releases = tuple(dict.fromkeys(release for release, _ in pairs))
    if options.source is None and not pairs:
        raise UsageError(f"expected a NAME or --from PATH, got neither; see {PROGRAM} list")
    if (options.url or options.sha256) and len(pairs) != 1 and len(releases) != 1:
        raise UsageError("expected one NAME with --url or --sha256, got several")
    if not 0 < options.timeout < LONGEST_S:
        raise UsageError(
            f"expected --timeout between 0 and {LONGEST_S} s, got {options.timeout:g}"
        )
    folder = weights_folder(options.weights_dir)
    progress = fetch.silent if options.quiet else Bar()
    net = {"progress": progress, "timeout_s": options.timeout}
    if options.source is not None:
        done = fetch.take(options.source, folder, releases or None, progress=progress)
    elif len(pairs) == 1 and (options.url or pairs[0][1].url):
        release, file = pairs[0]
        url = options.url or file.url
        done = fetch.fetch_file(
            url, folder, release, file.file, given_sha256=options.sha256, **net
        )
    elif options.sha256:
        raise UsageError("expected the NAME of one file with an address for --sha256; add --url")
    else:
        done = []
        for release in releases:
            files = [file for owner, file in pairs if owner is release]
            done += _several(release, files, options.url, folder, net)
    _end(progress)
    for name, fetched in done:
        how = {
            "published": "as its publisher says",
            "given": "as you said",
            "first use": "its publisher gives no checksum: trusted on first use, written down",
        }[fetched.trust]
        word = "fetched" if fetched.changed else "was here already"
        print(f"{fetched.path.name}: {word} ({name}); SHA-256 {fetched.sha256}, {how}")
    return 0


def _several(
    release: Any, files: list[Any], url: str | None, folder: Path, net: dict[str, Any]
) -> list[tuple[str, Any]]:
    """Files of a set from its ZIP file, where it is offered as one; else each from its address."""
    from bmex_bids.network.weights import fetch

    address = url or release.archive
    if address:
        if len(files) < len(release.files):
            print(
                f"{release.name} is offered as one ZIP file only, so all of it is fetched",
                file=sys.stderr,
            )
        return fetch.fetch_archive(address, folder, release, **net)
    lacking = [file.file for file in files if not file.url]
    if lacking:
        raise WeightsError(
            f"expected an address of {', '.join(lacking)}, but none is known; download what you "
            f"need in a browser (links: {release.page}) and run: {PROGRAM} fetch --from FOLDER; "
            "or give the address of one file with --url"
        )
    return [
        one
        for file in files
        for one in fetch.fetch_file(file.url, folder, release, file.file, **net)
    ]


class Bar:
    """Progress on the error stream: a bar on a terminal, a line each tenth elsewhere."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}
        self._shown: dict[str, int] = {}
        self._bars: dict[str, Any] = {}

    def __call__(self, name: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            self._draw(name, done, total)
            return
        now = time.monotonic()
        begun, first = self._begun.setdefault(name, (now, done))
        rate = (done - first) / max(now - begun, 1e-3) / 1e6
        tenth = 10 * done // total if total else done // 100_000_000
        if self._shown.get(name) != tenth:
            self._shown[name] = tenth
            size = f"{done / 1e6:.1f}" + (f" of {total / 1e6:.1f}" if total else "")
            text = f"{name}: {size} MB" + (f", {rate:.1f} MB/s" if done > first else "")
            print(text, file=sys.stderr, flush=True)

    def _draw(self, name: str, done: int, total: int | None) -> None:
        from tqdm import tqdm

        if name not in self._bars:
            self._bars[name] = tqdm(
                desc=name, total=total, initial=done, unit="B", unit_scale=True, file=sys.stderr
            )
        bar = self._bars[name]
        bar.update(done - bar.n)

    def end(self) -> None:
        """Leave the bars' lines."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()


def _end(progress: Any) -> None:
    if isinstance(progress, Bar):
        progress.end()


# ------------------------------------------------------------------ verify, convert, path
def _verify(options: argparse.Namespace) -> int:
    from bmex_bids.network.weights import published, registry
    from bmex_bids.network.weights.checkpoints import load_network
    from bmex_bids.network.weights.template import template_values

    folder = published.weights_folder(options.weights_dir)
    pairs = chosen(options.names) if options.names else None
    bad = 0
    if pairs is None:
        for record in registry.bundled():
            registry.verify(record.path, record.sha256)
            print(f"{record.path.name}: as the package says")
    found = 0
    for release, file in pairs or chosen([r.name for r in published.published_sets()]):
        path = published.locate(folder, file.file)
        if path is None:
            continue
        beside = published.companions(release, folder)
        for one in (path, *beside):
            found += one == path
            try:
                trust = published.check(one, file)
                if one == path:
                    load_network(path, release.variant)
                elif len(beside) == len(release.companions):
                    template_values(beside[0])
            except WeightsError as error:
                bad += 1
                print(f"{one.name}: BAD: {error}", file=sys.stderr)
                continue
            print(f"{one.name}: {_trusted(one, trust)}")
    if pairs is not None and not found:
        raise WeightsError(f"expected {', '.join(options.names)} in {folder}, found none of it")
    print(f"{found} published file{'' if found == 1 else 's'} in {folder}, {bad} bad")
    return WeightsError.exit_code if bad else 0


def _trusted(path: Path, trust: str | None) -> str:
    """What a file was compared with; one that nothing is known of is written down, if that can be."""
    from bmex_bids.network.weights import published

    if trust is not None:
        return {
            "published": "as its publisher says",
            "first use": "unchanged since it came (its publisher gives no checksum)",
        }[trust]
    try:
        published.write_down(path, published.sha256(path), "found in the weights folder")
    except OSError as error:
        return f"its publisher gives no checksum; it was not written down ({error.strerror})"
    return "its publisher gives no checksum: trusted as it is now, written down"


def _convert(options: argparse.Namespace) -> int:
    from bmex_bids.network.weights.checkpoints import convert
    from bmex_bids.outputs.files import write_whole

    source, target = options.source, options.target
    if target.suffix != ".safetensors":
        raise UsageError(f"expected OUT to end in .safetensors, got {target.name}")
    if target.exists() and not options.overwrite:
        raise UsageError(f"{target} is there already; give another name, or --overwrite")
    count = 0

    def fill(path: Path) -> None:
        nonlocal count
        count = convert(source, path)

    write_whole(target, fill)
    print(f"{target}: {count} tensors, read back and equal")
    return 0


def _path(options: argparse.Namespace) -> int:
    from bmex_bids.network.weights.published import locate, weights_folder
    from bmex_bids.network.weights.registry import bundled

    folder = weights_folder(options.weights_dir)
    if options.name is None:
        print(folder)
        return 0
    ours = [record.path for record in bundled() if record.name == options.name]
    if ours:
        print(ours[0])
        return 0
    paths = [locate(folder, file.file) for _, file in chosen([options.name])]
    here = [path for path in paths if path is not None]
    if not here:
        raise WeightsError(
            f"expected {options.name} in {folder}, found none of it; run: {PROGRAM} fetch "
            f"{options.name}"
        )
    for path in here:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
