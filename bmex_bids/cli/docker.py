# SPDX-License-Identifier: Apache-2.0
"""``bmex-docker``, ``bmex-singularity``: ``bmex`` in its container image, with the paths of this machine.

The command line is that of ``bmex``.  Each path on it is mounted into the container *under its own
name*: the dataset and every file read-only, the output and the work folder writable.  So messages
name paths that exist here, the relative link from the derivatives to the raw data is right, and
the configuration of a run (``config.toml``) can be used again with and without a container.

Needs nothing but Python: of this package only what has no dependencies is loaded.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.cli import foreign
from bmex_bids.cli import parser as flags
from bmex_bids.config import ENTRIES, Paths
from bmex_bids.exceptions import BmexError, EnvironmentProblem, OutputError, UsageError
from bmex_bids.network.weights.published import weights_folder
from bmex_bids.running.planning import is_weights_folder
from bmex_bids.settings import Place, absolute

DOCKER_LIKE = ("docker", "podman")
FILE_LIKE = ("apptainer", "singularity")
#: the settings of ``bmex``, by argparse's name
SETTINGS = {s.option: s for s in (*(entry.setting for entry in ENTRIES), flags.CONFIG_FILE)}
#: folders of the image that nothing may be laid over
OF_THE_IMAGE = (
    "/bin", "/dev", "/etc", "/lib", "/lib64", "/opt/bmex", "/proc", "/sbin", "/sys",
    "/usr/bin", "/usr/lib", "/usr/local/bin", "/usr/local/lib",
)  # fmt: skip
ENFORCING = Path("/sys/fs/selinux/enforce")
#: what ``--dry-run`` without a value means here
COMMAND = "command"


@dataclass(frozen=True)
class Mount:
    """One path that the container sees under its own name."""

    path: Path
    writable: bool = False


@dataclass(frozen=True)
class Call:
    """What is asked of the container runtime.

    Attributes
    ----------
    runtime : ``docker``, ``podman``, ``apptainer`` or ``singularity``
    image : name of an image, or path of a file
    arguments : of ``bmex``; every path absolute
    mounts : parents before what lies in them
    user : ``UID:GID``; not for the runtimes that never change the user
    gpus : ``""`` (none), ``"all"``, or numbers with commas
    extra : passed to the runtime as they are
    """

    runtime: str
    image: str
    arguments: tuple[str, ...]
    mounts: tuple[Mount, ...]
    user: str
    gpus: str = ""
    extra: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """``bmex-docker``: with docker or podman, whichever is there."""
    return run("bmex-docker", DOCKER_LIKE, argv)


def singularity(argv: Sequence[str] | None = None) -> int:
    """``bmex-singularity``: with apptainer or singularity, whichever is there."""
    return run("bmex-singularity", FILE_LIKE, argv)


def run(
    program: str,
    preferred: Sequence[str],
    argv: Sequence[str] | None,
    execute: Callable[[Sequence[str]], int] | None = None,
) -> int:
    """Check the paths, show the command, and become it (so that signals and exit code are its own).

    Parameters
    ----------
    preferred : runtimes to look for when none is named
    execute : takes the command's place in tests
    """
    parser = build_parser(program, preferred)
    try:
        argv, notes = foreign.translate(sys.argv[1:] if argv is None else argv)
        for note in notes:
            print(f"{program}: {note}", file=sys.stderr)
        options = parser.parse_args(argv)
        call, to_make = prepare(parser, options, preferred)
        command = command_line(call)
        if getattr(options, "dry_run", "") == COMMAND:
            print(shlex.join(command))
            return 0
        shows = bool(getattr(options, "dry_run", ""))
        made = {p for folder in to_make for p in (folder, *folder.parents) if not p.exists()}
        for folder in to_make:
            _make(folder)
        print(f"{program}: {shlex.join(command)}", file=sys.stderr, flush=True)
        try:
            return (execute or (_start if shows else _become))(command)
        finally:
            if shows:  # a dry run makes nothing
                _remove_empty(made)
    except BmexError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code


def build_parser(program: str, preferred: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of ``bmex`` and a group of its own.

    Values are kept as they were written, and only what was given is in the result; whether a
    number is one is for the ``bmex`` in the image to say.
    """
    parser = flags.build_parser()
    parser.prog = program
    parser.description = (
        "Run bmex in its container image: mount each path of the command line under its own name "
        "(the dataset read-only), pass the user and the GPU, print the command and run it. "
        "All flags of bmex are accepted; those of the container are in the first group."
    )
    for action in parser._actions:
        if action.type is not Path:
            action.type = None
        if action.dest != "help":
            if action.help and action.default is not argparse.SUPPRESS:
                action.help = action.help.replace("%(default)s", str(action.default))
            action.default = argparse.SUPPRESS
        if action.dest == "dry_run":
            action.const, action.choices = COMMAND, [COMMAND, "table", "json"]
            action.help = (
                "show the command and do nothing; --dry-run=table and --dry-run=json start the "
                "container, to say what would be done with each image"
            )
    group = parser.add_argument_group("Options for the container")
    parser._action_groups.remove(group)
    parser._action_groups.insert(0, group)
    group.add_argument(
        "--image",
        metavar="IMAGE",
        help=f"name of the image (bmex_bids:{__version__}); for apptainer a file (bmex_bids.sif)",
    )
    group.add_argument(
        "--runtime",
        choices=[*DOCKER_LIKE, *FILE_LIKE],
        help=f"container runtime (default: the first installed of {', '.join(preferred)})",
    )
    group.add_argument(
        "--gpus",
        nargs="?",
        const="all",
        metavar="N,N",
        help="let the container use all GPUs, or these; implied by --device cuda",
    )
    group.add_argument(
        "--user",
        metavar="UID:GID",
        help="owner of the output (default: you); with rootless Docker give 0:0, which is you",
    )
    group.add_argument(
        "--mount",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="further files or folders, mounted read-only, such as targets of links in the dataset",
    )
    group.add_argument(
        "--runtime-arg",
        action="append",
        metavar="ARG",
        help="option for the runtime, such as --runtime-arg=--memory=16g; can be repeated",
    )
    return parser


OWN = frozenset({"image", "runtime", "gpus", "user", "mount", "runtime_arg"})


def prepare(
    parser: argparse.ArgumentParser, options: argparse.Namespace, preferred: Sequence[str]
) -> tuple[Call, list[Path]]:
    """What to run, and the folders to make first.

    Raises
    ------
    UsageError
        A path is missing, lies where it must not, or cannot be mounted.
    EnvironmentProblem
        No container runtime is installed.
    """
    given = dict(vars(options))
    own = {name: given.pop(name, None) for name in OWN}
    for dest in given:
        if not (dest in SETTINGS and SETTINGS[dest].outside_only):
            continue
        raise UsageError(
            f"expected no {SETTINGS[dest].flag} for {parser.prog}, since there is no cluster "
            "inside a container; use bmex --submit slurm --container SIF, outside"
        )
    from_file = _file_options(given.get("config_file"))
    own_weights = weights_folder()
    if not from_file.get("weights_dir") and own_weights.is_dir():  # as bmex outside would do
        given.setdefault("weights_dir", own_weights)
    given.setdefault("work_dir", from_file.get("work_dir", Path("work")))
    values = {dest: _located(dest, value) for dest, value in given.items()}
    flags.check_paths(Paths(values["bids_dir"], values["output_dir"], values["work_dir"]))

    seen = [*_mounts(values), *_mounts({k: v for k, v in from_file.items() if k not in values})]
    seen += [Mount(_existing(path, "--mount")) for path in own["mount"] or ()]
    for mount in seen:
        _check_place(mount.path)
    shows_only = values.get("dry_run") == COMMAND
    if shows_only:
        del values["dry_run"]
    runtime = own["runtime"] or _installed(own["image"], preferred, shows_only)
    call = Call(
        runtime=runtime,
        image=_image(own["image"], runtime),
        arguments=tuple(_written(parser, values)),
        mounts=needed(seen),
        user=own["user"] or f"{os.getuid()}:{os.getgid()}",
        gpus=own["gpus"] or _gpus(str(values.get("device", from_file.get("device", "")))),
        extra=tuple(own["runtime_arg"] or ()),
    )
    return call, [mount.path for mount in call.mounts if mount.writable]


def _file_options(path: Path | None) -> Mapping[str, Any]:
    """What a configuration file sets, paths included (they are the same inside)."""
    if path is None:
        return {}
    return flags.read_config(_existing(path, "--config-file")).as_options()


def _located(dest: str, value: Any) -> Any:
    """A value of the command line as the container is told it: paths absolute, and there."""
    setting = SETTINGS.get(dest)
    if dest == "weights" and is_weights_folder(value):
        return absolute(Path(value))
    if setting is None or setting.place is None:
        return value
    if dest == "weights_dir":
        return _existing(value, setting.flag)
    settled = setting.settle(value)
    return list(settled) if setting.several else settled


def _existing(path: Path, flag: str) -> Path:
    found = absolute(path)
    if not found.exists():
        raise UsageError(
            f"expected a file or folder for {flag} at {path}, found none; check the path"
        )
    return found


def _mounts(values: Mapping[str, Any]) -> Iterator[Mount]:
    """What the container must see of the values of flags."""
    for dest, value in values.items():
        setting = SETTINGS.get(dest)
        if setting is not None and setting.place is not None:
            for path in setting.paths_in(value):
                yield Mount(path, writable=setting.place is Place.WRITTEN)
        elif isinstance(value, Path):  # a folder of weights
            yield Mount(value)


def needed(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Without what lies in another one (unless only it is writable); parents first.

    >>> needed([Mount(Path("/d/f.json")), Mount(Path("/d")), Mount(Path("/d/w"), writable=True)])
    (Mount(path=PosixPath('/d'), writable=False), Mount(path=PosixPath('/d/w'), writable=True))
    """
    chosen: list[Mount] = []
    for mount in sorted(
        set(mounts), key=lambda m: (len(m.path.parts), str(m.path), not m.writable)
    ):
        above = [m for m in chosen if mount.path.is_relative_to(m.path)]
        if not above or (mount.writable and not above[-1].writable):
            chosen.append(mount)
    return tuple(chosen)


def _check_place(path: Path) -> None:
    """Refuse what would hide a part of the image, and names that no runtime can be told."""
    for name in (*OF_THE_IMAGE, "/tmp"):  # noqa: S108 - of the image, not of this machine
        place = Path(name)
        inside = path.is_relative_to(place) and name != "/tmp"  # noqa: S108
        if place.is_relative_to(path) or inside:
            raise UsageError(
                f"expected a path that can be mounted under its own name, got {path}, where the "
                f"image has its own {name}; move it, or make a copy elsewhere"
            )
    if any(mark in str(path) for mark in "\n\r"):
        raise UsageError(f"expected a path without line breaks, got {str(path)!r}; rename it")


def _written(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> Iterator[str]:
    """The command line of ``bmex`` again: positionals first, then what was given."""
    yield from (str(values["bids_dir"]), str(values["output_dir"]), *values["analysis_level"])
    for action in parser._actions:
        if not action.option_strings or action.dest not in values:
            continue
        value = values[action.dest]
        name = next(text for text in action.option_strings if text.startswith("--"))
        if isinstance(value, bool):
            yield name
        elif isinstance(value, int):  # a flag that counts
            yield from [name] * value
        elif isinstance(value, list):
            yield from (name, *value)
        elif action.nargs == "?" or str(value).startswith("-"):
            yield f"{name}={value}"
        else:
            yield from (name, str(value))


def _installed(image: str | None, preferred: Sequence[str], shows_only: bool) -> str:
    if image is not None and image.endswith(".sif"):
        preferred = FILE_LIKE
    for runtime in preferred:
        if shutil.which(runtime):
            return runtime
    if shows_only:
        return preferred[0]
    raise EnvironmentProblem(
        f"expected {' or '.join(preferred)} on this machine, found neither; install one, or name "
        f"another with --runtime ({', '.join((*DOCKER_LIKE, *FILE_LIKE))})"
    )


def _image(image: str | None, runtime: str) -> str:
    """Name of the image; for apptainer a file, which must be there, or a ``docker://`` address."""
    if runtime in DOCKER_LIKE:
        return image or f"bmex_bids:{__version__}"
    image = image or "bmex_bids.sif"
    if "://" in image:
        return image
    path = absolute(Path(image))
    if not path.exists():
        raise UsageError(
            f"expected an image for {runtime} at {path}, found none; make one (make sif) or name "
            "it with --image"
        )
    return str(path)


def _gpus(device: str) -> str:
    """The GPUs that a device needs.

    >>> _gpus("cuda"), _gpus("cuda:1"), _gpus("auto")
    ('all', 'all', '')
    """
    return "all" if device.startswith("cuda") else ""


def command_line(call: Call) -> list[str]:
    """The runtime's command line; nothing in it goes through a shell."""
    if call.runtime in DOCKER_LIKE:
        return list(_docker(call))
    return list(_apptainer(call))


def _docker(call: Call) -> Iterator[str]:
    yield from (call.runtime, "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp")  # noqa: S108
    if call.runtime == "podman" and os.geteuid():  # rootless: the same user inside as outside
        yield from ("--userns", "keep-id")
    yield from ("--user", call.user)
    if _enforcing():  # else SELinux hides what is mounted; relabelling a dataset is not for us
        yield from ("--security-opt", "label=disable")
    for mount in call.mounts:
        yield from ("--mount", _mount_option(mount, "target", read_only="readonly=true"))
    if call.gpus and call.runtime == "podman":
        for number in call.gpus.split(","):
            yield from ("--device", f"nvidia.com/gpu={number}")
    elif call.gpus:
        yield from ("--gpus", "all" if call.gpus == "all" else f'"device={call.gpus}"')
    yield from (*call.extra, call.image, *call.arguments)


def _apptainer(call: Call) -> Iterator[str]:
    yield from (call.runtime, "run", "--containall", "--cleanenv", "--no-home", "--pwd", "/tmp")  # noqa: S108
    for mount in call.mounts:
        yield from ("--mount", _mount_option(mount, "destination", read_only="ro"))
    if call.gpus:
        yield "--nv"
        if call.gpus != "all":
            yield from ("--env", f"CUDA_VISIBLE_DEVICES={call.gpus}")
    yield from (*call.extra, call.image, *call.arguments)


def _mount_option(mount: Mount, target: str, *, read_only: str) -> str:
    """A bind mount as a line of CSV, which is how the runtimes read it: any name is possible."""
    fields = ["type=bind", f"source={mount.path}", f"{target}={mount.path}"]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(
        fields if mount.writable else [*fields, read_only]
    )
    return line.getvalue()


def _enforcing() -> bool:
    try:
        return ENFORCING.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def _make(folder: Path) -> None:
    """Made here and now, by the user: a runtime would make it as root, or refuse."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"expected a folder that can be made at {folder}, got: {error.strerror or error}; "
            "name another"
        ) from error


def _remove_empty(folders: Collection[Path]) -> None:
    for folder in sorted(folders, reverse=True):  # what lies in others first
        with suppress(OSError):
            folder.rmdir()


def _become(command: Sequence[str]) -> int:
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - a list, without a shell
    except OSError as error:
        raise _cannot_start(command, error) from error


def _start(command: Sequence[str]) -> int:
    try:
        return subprocess.run(list(command), check=False).returncode  # noqa: S603 - the same list
    except OSError as error:
        raise _cannot_start(command, error) from error


def _cannot_start(command: Sequence[str], error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"expected to start {command[0]}, got: {error.strerror or error}; install it, or name "
        "another with --runtime"
    )


if __name__ == "__main__":
    sys.exit(main())
