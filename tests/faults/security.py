# SPDX-License-Identifier: Apache-2.0
"""Hostile datasets, flags and files: nothing leaves its place, nothing is run, nothing is sent.

::

    python tests/faults/security.py RESULTS [--quick] [--keep FOLDER]

One run over a dataset whose names, sidecars and tables were made to break out, with a record of
every connection that is tried; some refusals of the command line; and what can be said of the
dependencies offline.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

from bad_cases import healthy
from bad_images import can_unshare, put, status
from results import Lost, Results

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "<script>window.pwned=1<script>"
IMG = "<img src=x onerror=alert(1)>"
#: labels of participants; the whole brain is enhanced for the first ones, the others are no images
ENHANCED = (IMG, 'quote" onmouseover="pwned\'')
LABELS = (
    "a;touch PWNED;",
    "$(touch PWNED)",
    "`touch PWNED`",
    "%s%n{resolution}",
    "a+b",
    "a b",
    "-rf",
    SCRIPT,
)
UNPRINTABLE = (b"line\nbreak", b"tab\tstop", b"\x1b[31mred", b"\xff\xfe", "\u202eright".encode())
#: written by what must not run
MARK = "PWNED"

#: takes the place of sitecustomize: notes and refuses every connection that is not local
GUARD = """
import os, socket, sys
def note(what, address):
    with open(os.environ["CONNECTIONS"], "a") as stream:
        stream.write(f"{what} {address}\\n")
    raise OSError("no network here")
real = socket.socket.connect
def connect(self, address):
    return real(self, address) if self.family == socket.AF_UNIX else note("connect", address)
socket.socket.connect = connect
socket.socket.connect_ex = connect
socket.getaddrinfo = lambda *given, **more: note("look-up", given)
socket.gethostbyname = lambda *given: note("look-up", given)
"""


class Runs:  # what a pickle calls when it is read as one
    """Writes the mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.mark),))


def main(argv: Sequence[str] | None = None) -> int:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true", help="without the run over the dataset")
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    options = parser.parse_args(argv)
    results = Results(options.results, "security")
    with tempfile.TemporaryDirectory(prefix="bmex-security-") as temporary:
        folder = (options.keep or Path(temporary)).absolute()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command_line(results, folder / "flags")
        if not options.quick:
            hostile_dataset(results, folder / "hostile")
        dependencies(results)
    return results.exit_code


# ---------------------------------------------------------------- running bmex
def bmex(
    folder: Path, *arguments: str, umask: int = 0o022, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``bmex`` in ``folder/here``, with a home of its own and a record of connections."""
    guard, here, home = (folder / name for name in ("guard", "here", "home"))
    for path in (guard, here, home):
        path.mkdir(parents=True, exist_ok=True)
    (guard / "sitecustomize.py").write_text(GUARD)
    variables = {
        **os.environ,
        "PYTHONPATH": f"{guard}{os.pathsep}{ROOT}",
        "CONNECTIONS": str(folder / "connections.txt"),
        "HOME": str(home),
        **environment,
    }
    for name in ("NO_ET", "NIPYPE_NO_ET", "TEMPLATEFLOW_HOME", "XDG_CACHE_HOME"):
        variables.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "bmex_bids", *arguments],
        cwd=here,
        env=variables,
        text=True,
        errors="replace",
        capture_output=True,
        check=False,
        umask=umask,
        timeout=3600,
    )


def small_dataset(bids: Path, image: object = b"no image") -> Path:
    """One participant."""
    put(
        image if not isinstance(image, bytes) else healthy(),
        bids / "sub-01/anat/sub-01_T2w.nii.gz",
    )
    (bids / "dataset_description.json").write_text('{"Name": "one", "BIDSVersion": "1.10.0"}')
    (bids / "participants.tsv").write_text("participant_id\tga_weeks\nsub-01\t25\n")
    return bids


# ---------------------------------------------------------------- flags
def command_line(results: Results, folder: Path) -> None:
    """What the command line refuses."""
    bids = small_dataset(folder / "bids")
    out = str(folder / "out")
    secret = folder / "secret"
    put(healthy(), secret / "sub-02/anat/sub-02_T2w.nii.gz")
    filters = folder / "filters.json"
    filters.write_text('{"t2w": {"session": "../../secret", "run": "/etc/passwd"}}')
    yaml = folder / "plugin.yml"
    yaml.write_text(f"plugin: !!python/object/apply:os.mkdir ['{folder / MARK}']\n")
    weights = folder / "weights"
    weights.mkdir()
    for name in ("BMEX-Fetal-T2-model.pt",):
        (weights / name).write_bytes(pickle.dumps(Runs(folder / MARK)))
    link = folder / "out_link"
    (link / "logs").parent.mkdir()
    (link / "logs").symlink_to(folder / "elsewhere")
    (folder / "elsewhere").mkdir()
    (folder / "out_figures" / "sub-01").mkdir(parents=True)
    (folder / "out_figures" / "sub-01" / "anat").symlink_to(folder / "elsewhere")
    base = [str(bids), out, "participant", "--skip-bids-validation"]
    dry = [*base, "--dry-run"]

    def case(name: str, arguments: Sequence[str], code: int, *words: str) -> None:
        results.case(
            "security: flags",
            name,
            f"exit code {code}, nothing read or written elsewhere",
            partial(refused, folder, arguments, code, words),
        )

    case("participant label ../secret/sub-02", [*dry, "--participant-label", "../secret/sub-02"], 2,
         "expected participant")  # fmt: skip
    case(
        "participant label /etc", [*dry, "--participant-label", "/etc"], 2, "expected participant"
    )
    case("participant label that is a pattern", [*dry, "--participant-label", ".*"], 2, "expected")
    case("session label ../..", [*dry, "--session-label", "../.."], 2, "expected session")
    case("run label with a wildcard", [*dry, "--run-label", "*"], 4, "expected a T1w or T2w")
    case("filter values that are paths", [*dry, "--bids-filter-file", str(filters)], 4, "filters")
    case("plugin file that would call Python", [*base, "--use-plugin", str(yaml)], 2, "YAML")
    case("weights that are a program in a pickle", [*base, "--weights", str(weights)], 5,
         "more than tensors")  # fmt: skip
    case("output inside the dataset", [str(bids), str(bids / "out"), "participant"], 2, "outside")
    case("logs of the output are a link out of it", [str(bids), str(link), "participant",
         "--skip-bids-validation"], 5, "link")  # fmt: skip
    case("participant's folder in the output is a link out of it", [str(bids),
         str(folder / "out_figures"), "participant", "--skip-bids-validation"], 4, "link")  # fmt: skip
    config = folder / "config.toml"
    config.write_text(settings(bids, folder / "out3", yaml))
    case("settings that name a plugin, another output and a run of ../..",
         [*dry, "--config-file", str(config)], 0)  # fmt: skip


def settings(bids: Path, out: Path, yaml: Path) -> str:
    """A configuration file that asks for more than it may."""
    return (
        f'run_id = "../../escaped"\nversion = "0"\n[paths]\nbids_dir = "{bids}"\n'
        f'output_dir = "{out}"\nwork_dir = "{out}-work"\n[execution]\n'
        f'plugin_file = "{yaml}"\nclean_workdir = true\n'
    )


def refused(folder: Path, arguments: Sequence[str], code: int, words: Sequence[str]) -> str:
    """A run that must end with a code, and leave everything as it was."""
    before = tree(folder)
    done = bmex(folder, *arguments)
    new = sorted(set(tree(folder)) - set(before))
    new = [name for name in new if not name.startswith(("home", "here", "guard"))]
    work = [
        name for name in new if not re.match(r"out[^/]*/(logs|dataset_desc|\.bids)|out$", name)
    ]
    said = done.stdout + done.stderr
    if (folder / MARK).exists():
        raise Lost("the code was run")
    if done.returncode != code:
        raise Lost(f"exit code {done.returncode}: {said[-300:]}")
    if "Traceback" in said:
        raise Lost(f"a traceback: {said[-300:]}")
    if any(word not in said for word in words):
        raise Lost(f"said {said[-300:]}")
    if "sub-02" in done.stdout:
        raise Lost("an image outside of the dataset was planned")
    if work:
        raise Lost(f"wrote {', '.join(work[:5])}")
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
    return f"exit code {code}: {last.replace(str(folder), '…')[:160]}"


def tree(folder: Path) -> list[str]:
    """Everything below a folder, links not followed."""
    found = []
    for path, folders, files in os.walk(folder):
        found += [os.path.relpath(Path(path, name), folder) for name in (*folders, *files)]
    return found


# ---------------------------------------------------------------- a hostile dataset
def hostile_dataset(results: Results, folder: Path) -> None:
    """One run of both levels over a dataset that was made to break out."""
    bids = folder / "bids"
    write_hostile(bids, folder)
    outside = folder / "outside"
    outside.mkdir()
    before = set(tree(folder))
    done = bmex(
        folder,
        *(str(bids), str(folder / "out"), "participant", "group", "--nprocs", "2"),
        *("--work-dir", str(folder / "work"), "--omp-nthreads", "1", "--skip-bids-validation"),
        umask=0o077,
    )
    (folder / "printed.txt").write_text(done.stdout + done.stderr, errors="replace")
    rows = status(folder / "out")
    out = folder / "out"
    where = "security: a hostile dataset"

    def case(name: str, expected: str, check: Callable[[], str]) -> None:
        results.case(where, name, expected, check)

    case("the run", "exit code 3, healthy ones done", partial(ended, done, rows))
    case("files outside output and work", "none", partial(nothing_else, folder, before))
    case("scripts and handlers in the pages", "none that a label or a table brought",
         partial(inert, out))  # fmt: skip
    case("rows and columns of the tables", "one row an image", partial(tables, out))
    case("names with line breaks, control characters and broken UTF-8", "left out and named",
         partial(left_out, done))  # fmt: skip
    case("escape sequences on the terminal", "none", partial(no_escapes, done))
    case("sidecars in the output", "valid JSON", partial(valid_json, out))
    case("files made with umask 077", "nobody else may read them", partial(modes, out, 0o077))
    case("connections tried", "none", partial(no_connections, folder))
    if can_unshare():
        case("a run without any network", "done as always", partial(unshared, folder))


def write_hostile(bids: Path, folder: Path) -> None:
    """The dataset: names, tables and sidecars that carry markup, commands and paths."""
    rows = ["participant_id\tga_weeks\tsex\tsite"]
    for label in (*ENHANCED, *LABELS):
        content = healthy() if label in ENHANCED else b"no image"
        name = f"sub-{label}/anat/sub-{label}_T2w.nii.gz"
        if isinstance(content, bytes):
            (bids / name).parent.mkdir(parents=True)
            (bids / name).write_bytes(content)
        else:
            put(content, bids / name)
        rows.append(f"sub-{label}\t25\t{IMG}\t=HYPERLINK('http://example.org')")
    for raw in UNPRINTABLE:
        path = os.fsencode(bids) + b"/sub-" + raw + b"/anat"
        os.makedirs(path)  # noqa: PTH103 - bytes
        with open(path + b"/sub-" + raw + b"_T2w.nii.gz", "wb") as stream:  # noqa: PTH123 - bytes
            stream.write(b"no image")
    extra = bids / "sub-plain" / "anat"
    put(healthy(), extra / "sub-plain_T2w.nii.gz")
    put(healthy(), extra / "sub-twice_T2w.nii.gz")
    put(healthy(), bids / "sub-twice" / "anat" / "sub-twice_T2w.nii.gz")
    put(healthy().to_bytes(), bids / "sub-both" / "anat" / "sub-both_T2w.nii")
    put(healthy(), bids / "sub-both" / "anat" / "sub-both_T2w.nii.gz")
    rows += [f"sub-{name}\t25\t{IMG}\t{SCRIPT}" for name in ("plain", "twice", "both")]
    rows.append("sub-evil\t" + "9" * 400000)
    rows.append(f"sub-../../escaped\t{IMG}\tx")
    (bids / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (bids / "participants.json").write_text('{"ga_weeks": ' + "[" * 100000 + "}")
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": IMG, "BIDSVersion": "1.10.0", "DatasetDOI": f"{IMG}\n../../x"})
    )
    metadata = (
        '{"Manufacturer": "<script>window.pwned=1</script>", "ManufacturersModelName": "'
        + IMG.replace('"', "'")
        + '", "BMEX": {"Gate": "pass"}, "Sources": ["../../../../etc/passwd"], "Half": "\\ud800",'
        ' "NotANumber": NaN, "Infinite": 1e999, "Age": "../../x", "SkullStripped": "<b>"}'
    )
    (extra / "sub-plain_T2w.json").write_text(metadata)
    deep = bids / f"sub-{ENHANCED[0]}" / "anat" / f"sub-{ENHANCED[0]}_T2w.json"
    deep.write_text('{"a": ' * 100000)
    os.mkfifo(bids / f"sub-{ENHANCED[1]}" / "anat" / f"sub-{ENHANCED[1]}_T2w.json")
    (bids / "sub-plain" / "sub-plain_scans.tsv").symlink_to("/dev/zero")
    (bids / "sub-link").symlink_to(folder)


def ended(done: subprocess.CompletedProcess[str], rows: dict[str, dict[str, str]]) -> str:
    if done.returncode != 3 or "Traceback" in done.stdout + done.stderr:
        raise Lost(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    for label in (*ENHANCED, "plain"):
        row = rows.get(f"sub-{label}_T2w", {})
        if row.get("status") != "done":
            raise Lost(f"{label}: {row.get('status')}: {row.get('reason')}")
    wrong = [
        name for name, row in rows.items() if row["status"] not in {"done", "failed", "skipped"}
    ]
    if wrong:
        raise Lost(f"{', '.join(wrong)} were not run")
    number = sum(row["status"] == "done" for row in rows.values())
    return f"exit code 3, {number} done, {len(rows) - number} refused"


def nothing_else(folder: Path, before: set[str]) -> str:
    new = {name for name in set(tree(folder)) - before if name.split("/")[0] != "printed.txt"}
    homes = {name.split("/")[0] for name in new}
    odd = homes - {"out", "work", "home", "here", "guard", "connections.txt"}
    inside = sorted(n for n in new if n.startswith(("bids", "outside")) or Path(n).name == MARK)
    here = [name for name in new if name.startswith("here/")]
    if odd or inside or here:
        raise Lost(f"wrote {', '.join([*sorted(odd), *inside, *here][:5])}")
    caches = sorted({"/".join(name.split("/")[1:3]) for name in new if name.startswith("home/")})
    return "none" + (f" (caches of libraries in the home: {', '.join(caches)})" if caches else "")


class Page(HTMLParser):
    """What of a page is active: scripts, handlers, links that run something."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.active.append(f"<{tag} {name}={value!r}>")
            if name in {"src", "data"} and urlparse(value or "").scheme in {"http", "https"}:
                self.active.append(f"<{tag} {name}={value!r}>")
            if tag == "img" and name == "src" and value == "x":
                self.active.append("<img src=x>")

    def handle_data(self, data: str) -> None:
        if self.inside == "script" and "pwned" in data:
            self.active.append("a script of the dataset")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def inert(out: Path) -> str:
    pages = [
        path for path in out.rglob("*") if path.suffix in {".html", ".svg"} and path.is_file()
    ]
    if len(pages) < 10:
        raise Lost(f"only {len(pages)} pages were written")
    for path in pages:
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        if page.active:
            raise Lost(f"{path.name}: {', '.join(page.active[:3])}")
    return f"none in {len(pages)} pages and pictures"


def tables(out: Path) -> str:
    count = 0
    for path in (*out.glob("logs/*/status.tsv"), *out.glob("group_*.tsv")):
        lines = path.read_text(encoding="utf-8").splitlines()
        widths = {len(line.split("\t")) for line in lines}
        if len(widths) != 1:
            raise Lost(f"{path.name} has lines of {sorted(widths)} cells")
        risky = [c for line in lines for c in line.split("\t") if c[:1] in {"=", "@"}]
        if risky:
            raise Lost(f"{path.name} has a formula: {risky[0]}")
        count += len(lines) - 1
    return f"{count} rows, each of one image"


def left_out(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    if len(lines) != len(UNPRINTABLE):
        raise Lost(f"{len(lines)} of {len(UNPRINTABLE)} were named: {lines}")
    return f"{len(lines)} left out: {lines[0][:70]} …"


def no_escapes(done: subprocess.CompletedProcess[str]) -> str:
    found = re.findall(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", done.stdout + done.stderr)
    if found:
        raise Lost(f"printed {found[0]!r}")
    return "none"


def valid_json(out: Path) -> str:
    count = 0
    for path in out.rglob("*.json"):
        text = path.read_text(encoding="utf-8")

        def refuse(constant: str, name: str = path.name) -> None:
            raise Lost(f"{name} holds {constant}")

        json.loads(text, parse_constant=refuse)
        count += 1
    return f"{count} files"


def modes(out: Path, mask: int) -> str:
    count = 0
    for path in [out, *out.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if path.is_symlink():
            raise Lost(f"{path.name} is a link")
        if mode & mask or (path.is_file() and mode & 0o111):
            raise Lost(f"{path.relative_to(out)} has mode {mode:o}")
        count += 1
    return f"{count} files and folders"


def no_connections(folder: Path) -> str:
    record = folder / "connections.txt"
    if record.exists():
        raise Lost(record.read_text().splitlines()[0])
    proof = subprocess.run(
        [sys.executable, "-c", "import socket; socket.getaddrinfo('example.org', 80)"],
        env={**os.environ, "PYTHONPATH": str(folder / "guard"), "CONNECTIONS": str(record)},
        check=False,
        capture_output=True,
    )
    if proof.returncode == 0 or not record.exists():
        raise Lost("the record does not work")
    return "none, in any process of a run of both levels (the record was tried out)"


def unshared(folder: Path) -> str:
    bids = small_dataset(folder / "one")
    command = [
        *(
            "unshare",
            "-rn",
            sys.executable,
            "-m",
            "bmex_bids",
            str(bids),
            str(folder / "out_alone"),
        ),
        *("participant", "--work-dir", str(folder / "work_alone"), "--nprocs", "1"),
    ]
    home = folder / "home_alone"
    home.mkdir()
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home)}
    for name in ("NO_ET", "NIPYPE_NO_ET", "TEMPLATEFLOW_HOME"):
        variables.pop(name, None)
    done = subprocess.run(command, env=variables, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise Lost(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
    return "exit code 0 under `unshare --net`, in an empty home"


# ---------------------------------------------------------------- dependencies
def dependencies(results: Results) -> None:
    """What can be said without an advisory database."""
    where = "security: dependencies"

    def consistent() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "check"], text=True, capture_output=True, check=False
        )
        if done.returncode != 0:
            raise Lost(done.stdout.splitlines()[0])
        return done.stdout.strip()

    def pinned() -> str:
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        loose = [line for line in pins if "==" not in line]
        if loose:
            raise Lost(f"no version for {loose[0]}")
        return f"{len(pins)} packages, each of one version"

    results.case(where, "pip check", "no conflict", consistent)
    results.case(where, "constraints.txt", "each package has one version", pinned)


if __name__ == "__main__":
    sys.exit(main())
