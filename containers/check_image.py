# SPDX-License-Identifier: Apache-2.0
"""The end-to-end test of an image: two small brains, no network, a stranger as user, read-only.

    python3 containers/check_image.py docker bmex_bids:0.1.0
    python3 containers/check_image.py apptainer bmex_bids.sif

It asks the image for its version and health, lets it make a small dataset, then runs bmex as a
user who exists nowhere, with the root file system and the dataset read-only and without a
network, and looks at the output: exit code, BIDS validator, what the sidecars say of the image,
whose files they are, whether the dataset is untouched.  Needs Python and the runtime, no more.
Ends with 0 when all is well, else with 1 and what is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
NAMES = ("sub-01/anat/sub-01_T2w", "sub-02/ses-A/anat/sub-02_ses-A_T2w")


class Done(NamedTuple):
    """How a container ended."""

    code: int
    text: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line it said."""
        return self.text.splitlines()[-1] if self.text else "nothing"


class Runtime:
    """How one kind of runtime is told the same things."""

    def __init__(self, command: str, image: str, user: int) -> None:
        self.command = shlex.split(command)
        self.image = image
        self.user = user
        name = Path(self.command[-1] if "sing" in self.command[-1] else self.command[0]).name
        self.is_file = image.endswith(".sif") or name in ("apptainer", "singularity")

    def line(
        self,
        program: str | None,
        arguments: Sequence[str],
        read: Sequence[Path] = (),
        write: Sequence[Path] = (),
        as_root: bool = False,
    ) -> list[str]:
        """A command line; program None is the image's own."""
        mounts = [(path, ":ro") for path in read] + [(path, "") for path in write]
        volumes = [f"{path}:{path}{mode}" for path, mode in mounts]
        if self.is_file:
            verb = "run" if program is None else "exec"
            line = [*self.command, verb, "--containall", "--cleanenv", "--no-home"]
            line += [word for volume in volumes for word in ("-B", volume)]
            return [*line, self.image, *([program] if program else []), *arguments]
        line = [*self.command, "run", "--rm", "--network", "none", "--read-only"]
        line += ["--tmpfs", "/tmp", "--user", "0:0" if as_root else f"{self.user}:{self.user}"]
        line += [word for volume in volumes for word in ("-v", volume)]
        line += ["--entrypoint", program] if program else []
        return [*line, self.image, *arguments]

    def run(
        self,
        program: str | None,
        arguments: Sequence[str],
        read: Sequence[Path] = (),
        write: Sequence[Path] = (),
        as_root: bool = False,
    ) -> Done:
        """Run it; show what it said when it failed."""
        begun = time.monotonic()
        line = self.line(program, arguments, read, write, as_root)
        ended = subprocess.run(line, capture_output=True, text=True, check=False)
        done = Done(ended.returncode, ended.stdout.strip(), time.monotonic() - begun)
        if done.code:
            print(f"    {shlex.join(line)}\n    {done.text}\n    {ended.stderr.strip()}")
        return done


class Checks:
    """What was found, said as it is found."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, good: bool, text: str) -> bool:
        print(f"{'ok  ' if good else 'FAIL'}  {text}", flush=True)
        self.failed += not good
        return good


def checksums(folder: Path) -> dict[str, str]:
    """Name and content of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def labels(runtime: Runtime) -> list[str]:
    """Version, source revision and date: what the image's labels say it was built from."""
    if runtime.is_file:
        line = [*runtime.command, "inspect", "--json", "--labels", runtime.image]
    else:
        line = [
            *runtime.command,
            "image",
            "inspect",
            "--format",
            "{{json .Config.Labels}}",
            runtime.image,
        ]
    found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if "data" in found:
        found = found["data"]["attributes"]["labels"]
    return [found[f"org.opencontainers.image.{key}"] for key in ("version", "revision", "created")]


def identity(check: Checks, runtime: Runtime, expected: Sequence[str]) -> None:
    """Version and health."""
    done = runtime.run(None, ["--version"])
    check(done.code == 0 and done.last.startswith("bmex "), f"--version: {done.last}")
    for word in expected:
        check(word in done.last, f"--version names {word}")
    done = runtime.run("bmex-health", [])
    check(done.code == 0, f"health: {done.last} ({done.seconds:.0f} s with the start)")
    if runtime.is_file:
        no_python_from_outside(check, runtime)
    for verb in ("test", "run-help") if runtime.is_file else ():
        line = [*runtime.command, verb, runtime.image]
        ended = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
        words = ended.stdout.strip().splitlines() or ["nothing"]
        check(
            ended.returncode == 0 and words != ["nothing"],
            f"{verb}: {words[-1 if verb == 'test' else 0]}",
        )


def no_python_from_outside(check: Checks, runtime: Runtime) -> None:
    """Without --cleanenv the shell's variables come along; another Python's modules must not."""
    code = "import sys; sys.exit('/another/python' in sys.path)"
    line = [*runtime.command, "exec", runtime.image, "/opt/bmex/bin/python", "-c", code]
    environment = {**os.environ, "PYTHONPATH": "/another/python"}
    done = subprocess.run(line, env=environment, stderr=subprocess.DEVNULL, check=False)
    check(done.returncode == 0, "PYTHONPATH of the shell outside is not used inside")


def end_to_end(check: Checks, runtime: Runtime, folder: Path, expected: Sequence[str]) -> None:
    """The app, on a dataset that the image makes."""
    dataset, out, work = folder / "data set", folder / "out", folder / "work"
    for path in (dataset, out, work):
        path.mkdir()
        path.chmod(0o777)
    maker = HERE / "small_dataset.py"
    done = runtime.run(
        "/opt/bmex/bin/python", [str(maker), str(dataset)], read=[maker], write=[dataset]
    )
    if not check(done.code == 0, "a dataset of two small brains"):
        return
    before = checksums(dataset)
    arguments = [str(dataset), str(out), "participant", "group", "--work-dir", str(work)]
    done = runtime.run(None, arguments, read=[dataset], write=[out, work])
    check(
        done.code == 0,
        f"bmex participant group: exit code {done.code} ({done.seconds:.0f} s)",
    )
    check(checksums(dataset) == before, "the dataset is untouched")
    done = runtime.run("bids-validator-deno", [str(out), "--ignoreWarnings"], read=[dataset, out])
    check(done.code == 0, f"bids-validator-deno on the output: exit code {done.code}")
    outputs(check, out, expected)
    owners = {path.lstat().st_uid for path in out.rglob("*")}
    check(owners == {runtime.user}, f"all output belongs to user {runtime.user}: {sorted(owners)}")


def outputs(check: Checks, out: Path, expected: Sequence[str]) -> None:
    """What is there, and what it says of the image."""
    for name in NAMES:
        made = sorted(out.glob(f"{name.removesuffix('_T2w')}*.nii.gz"))
        check(len(made) == 8, f"{name}: {len(made)} images of 8")
        sidecar = out / f"{name.removesuffix('_T2w')}_desc-enhanced_T2w.json"
        said = (
            json.loads(sidecar.read_text())["BMEX"].get("Container", {})
            if sidecar.exists()
            else {}
        )
        found = " ".join(said.values())
        check(all(word in found for word in expected), f"{sidecar.name}: Container is {said}")
    for name in ("sub-01.html", "sub-02_ses-A.html", "group_T2w.html", "logs/CITATION.md"):
        check((out / name).is_file(), name)
    description = out / "dataset_description.json"
    if check(description.is_file(), description.name):
        (generator,) = json.loads(description.read_text())["GeneratedBy"]
        found = " ".join(generator.get("Container", {}).values())
        check(
            all(word in found for word in expected),
            f"GeneratedBy: {generator.get('Container')}",
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", help="docker, podman, apptainer, or a command like one of them")
    parser.add_argument("image", help="name of an image, or a .sif file")
    parser.add_argument(
        "--user", type=int, help="number of the user (a random one; with a file: you)"
    )
    options = parser.parse_args()
    user = options.user
    if user is None:
        is_file = options.image.endswith(".sif")
        user = os.getuid() if is_file else random.randint(20000, 60000)  # noqa: S311
    runtime = Runtime(options.command, options.image, user)
    check = Checks()
    expected = labels(runtime)
    check(all(expected), f"labels: version, revision, created: {', '.join(expected)}")
    identity(check, runtime, expected)
    with tempfile.TemporaryDirectory(prefix="bmex-image-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            end_to_end(check, runtime, folder, expected)
        finally:  # the stranger's files, which perhaps only root in a container can remove
            if not runtime.is_file and os.getuid():
                runtime.run(
                    "rm", ["-rf", *map(str, folder.iterdir())], write=[folder], as_root=True
                )
    print(f"{check.failed} of the checks failed" if check.failed else "all checks passed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
