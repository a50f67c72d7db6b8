# SPDX-License-Identifier: Apache-2.0
"""Campaign: a machine that gives out: disk, memory, permissions, work folder, clock, language.

Mounting and limits of memory need root; where it is not had, those cases are left out, aloud.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import Bench, bench, check_clean, check_whole, counts
from results import Lost
from tiny import Run, same_output, statuses

CODES = (0, 1, 3, 5)
MIB = 1 << 20
#: another user
NOBODY = 65534


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A small file system of so many bytes at a folder."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    subprocess.run(command, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fill a file system but for so many bytes."""
    filler = folder / "somebody-elses-file"
    with filler.open("wb") as stream:
        status = os.statvfs(folder)
        stream.write(b"\0" * max(0, status.f_bavail * status.f_frsize - leave))
    return filler


def used(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def disks(bench: Bench) -> None:
    """A disk that is full from the start, or becomes full in the middle."""
    for which in ("output", "work"):
        for share in (0.0, 0.1, 0.35, 0.6, 0.85):
            for nprocs in ("1", "2"):
                if nprocs == "2" and share not in (0.1, 0.6):
                    continue
                if bench.quick and share != 0.35:
                    continue

                def check(which: str = which, share: float = share, nprocs: str = nprocs) -> str:
                    folder = bench.fresh()
                    with mounted(folder, 64 * MIB):
                        needed = used(bench.undisturbed if which == "output" else bench.work)
                        filler = fill(folder, int(share * needed))
                        target = folder / "target"
                        out, work = (target, bench.fresh())
                        if which == "work":
                            out, work = work, out
                        flags = ("--nprocs", nprocs)
                        run = bench.app.run(bench.bids, out, work, *flags)
                        check_clean(run, [5], "No space left on device")
                        check_whole(out)
                        filler.unlink()
                        return f"code {run.code}; then {bench.again(out, work, *flags)}"

                bench.case(
                    "disk full",
                    f"{which} folder with room for {share:.0%}, --nprocs {nprocs}",
                    "ends by itself and says so, nothing half; with room the same command ends well",
                    check,
                )


def read_only(bench: Bench) -> None:
    """Folders that cannot be written, from the start or from the middle on."""

    # even root may then write only where its owner may
    before = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]

    def foreign() -> Path:
        folder = bench.fresh()
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        return folder

    def locked(which: str) -> str:
        mine, theirs = bench.fresh(), foreign()
        out, work = (theirs, mine) if which == "output" else (mine, theirs)
        run = bench.app.run(bench.bids, out, work, before=before)
        check_clean(run, [5], "permissions", str(theirs))
        os.chown(theirs, os.geteuid(), os.getegid())
        again = bench.app.run(bench.bids, out, work, before=before)
        check_clean(again, [0])
        return f"code 5; then {same_output(out, bench.undisturbed)}"

    def homeless() -> str:
        out = bench.fresh()
        environment = {"HOME": str(foreign() / "home"), "USER": None, "LOGNAME": None}
        run = bench.app.run(bench.bids, out, bench.fresh(), before=before, environment=environment)
        check_clean(run, [0])
        return same_output(out, bench.undisturbed)

    def turned(which: str, step: str) -> Callable[[], str]:
        def check() -> str:
            folder = bench.fresh()
            with mounted(folder, 64 * MIB):
                out, work = (folder / "target", bench.fresh())
                if which == "work":
                    out, work = work, out
                run = bench.app.start(bench.bids, out, work)
                run.until(step)
                _remount(folder, "ro")
                run.wait()
                check_whole(out)
                _remount(folder, "rw")
                check_clean(run, CODES, "Read-only file system")
                return f"code {run.code}; then {bench.again(out, work)}"

        return check

    expected = "ends by itself and says so, nothing half; then the same command ends well"
    group = "read-only"
    for which in ("output", "work"):
        bench.case(
            group,
            f"{which} folder of another user",
            "code 5 at once, says what to do; then the same command ends well",
            lambda which=which: locked(which),  # type: ignore[misc]
        )
    bench.case(group, "no home folder, no user name", "as undisturbed", homeless)
    for which, step in [("output", "tissues and image"), ("output", "image 2 of 2"),
                        ("work", "tissues and image")]:  # fmt: skip
        bench.case(group, f'{which} becomes read-only at "{step}"', expected, turned(which, step))


def _remount(folder: Path, how: str) -> None:
    command = ["mount", "-o", f"remount,{how}", folder]
    for _ in range(200):
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.01)  # busy: a file is being written just now
    raise Lost(f"could not be mounted {how}")


def memory(bench: Bench) -> None:
    """Limits of memory: ulimit -v, and a cgroup where the kernel kills."""
    sizes = [(mib, "1") for mib in (256, 512, 1024, 1536, 2048, 2304, 2560, 3072)]
    sizes += [(1024, "2"), (2048, "2"), (3072, "2")]
    for mib, nprocs in sizes[2:4] if bench.quick else sizes:

        def limited(mib: int = mib, nprocs: str = nprocs) -> str:
            out, work = bench.fresh(), bench.fresh()
            before = ["prlimit", f"--as={mib * MIB}"]
            run = bench.app.start(bench.bids, out, work, "--nprocs", nprocs, before=before)
            run.wait()
            check_whole(out)
            if mib >= 512:  # with less Python cannot even load its own modules
                check_clean(run, CODES)
            return f"code {run.code}; then {bench.again(out, work)}"

        bench.case(
            "memory full",
            f"ulimit -v of {mib} MiB, --nprocs {nprocs}",
            "ends by itself, nothing half; with memory the same command ends well",
            limited,
        )
    peak = _peak(bench)

    def refused() -> str:
        out, work = bench.fresh(), bench.fresh()
        limit = peak // 2
        with cgroup(limit) as (before, _):
            run = bench.app.run(bench.bids, out, work, before=before)
        check_clean(run, [4], "memory")
        return f"code 4 at {limit / MIB:.0f} MiB; then {bench.again(out, work)}"

    bench.case(
        "memory full",
        "a cgroup with less than an image needs, from the start",
        "the images are refused with the reason; with memory the same command ends well",
        refused,
    )
    cases = [(nprocs, step) for nprocs in "12" for step in ("brain mask", "tissues and image")]
    for nprocs, step in cases[:1] if bench.quick else cases:

        def killed(nprocs: str = nprocs, step: str = step) -> str:
            out, work = bench.fresh(), bench.fresh()
            flags = ("--nprocs", nprocs)
            with cgroup(8 << 30) as (before, group):
                run = bench.app.start(bench.bids, out, work, *flags, before=before)
                run.until(step)
                group.tighten(MIB)
                run.wait()
                kills = group.kills()
            check_whole(out)
            if run.code not in (*CODES, -signal.SIGKILL):
                raise Lost(f"ended with {run.code}: {run.tail()}")
            return f"the kernel killed {kills}, code {run.code}; then {bench.again(out, work)}"

        bench.case(
            "memory full",
            f'a cgroup becomes full at "{step}", --nprocs {nprocs}: the kernel kills',
            "killed or ended, nothing half; with memory the same command ends well",
            killed,
        )


def _peak(bench: Bench) -> int:
    """Peak of resident memory of an undisturbed run, bytes."""
    run = bench.app.start(bench.bids, bench.fresh(), bench.fresh(), afresh=True)
    peak = 0
    while run.code is None:
        peak = max(peak, run.peak_kib() * 1024)
        time.sleep(0.02)
    return peak


@dataclass(frozen=True)
class Cgroup:
    """A cgroup of the memory controller, of version 1 or 2."""

    folder: Path
    first: bool

    def limit(self, size: int) -> None:
        """Allow so many bytes."""
        file = "memory.limit_in_bytes" if self.first else "memory.max"
        (self.folder / file).write_text(str(size))

    def tighten(self, spare: int) -> None:
        """Allow little more than is used now."""
        file = "memory.usage_in_bytes" if self.first else "memory.current"
        for _ in range(100):
            try:
                self.limit(int((self.folder / file).read_text()) + spare)
            except OSError:  # used more at once than was read
                continue
            return

    def kills(self) -> int:
        """How many processes the kernel killed for want of memory."""
        file = "memory.oom_control" if self.first else "memory.events"
        words = (self.folder / file).read_text().split()
        return int(words[words.index("oom_kill") + 1])


@contextmanager
def cgroup(size: int) -> Iterator[tuple[list[str], Cgroup]]:
    """A cgroup below our own with so many bytes of memory, and what to put before a command."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":")[1]: line.split(":")[2].lstrip("/") for line in lines}
    first = "memory" in own
    root = Path("/sys/fs/cgroup/memory") / own["memory"] if first else Path("/sys/fs/cgroup")
    group = Cgroup(root / f"bmex-faults-{os.getpid()}-{time.monotonic_ns()}", first)
    group.folder.mkdir()
    try:
        group.limit(size)
        script = f'echo $$ > "{group.folder}/cgroup.procs"; exec "$@"'
        yield ["sh", "-c", script, "sh"], group
    finally:
        for _ in range(100):
            for process in (group.folder / "cgroup.procs").read_text().split():
                os.kill(int(process), signal.SIGKILL)  # of a run that hung
            try:
                group.folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def deleted(bench: Bench) -> None:
    """Folders that somebody removes while the run is on."""
    cases = [(which, step, nprocs) for which in ("work", "output")
             for step in ("intensities", "tissues and image", "report: pictures", "image 2 of 2")
             for nprocs in "12"]  # fmt: skip
    for which, step, nprocs in cases[::6] if bench.quick else cases:

        def check(which: str = which, step: str = step, nprocs: str = nprocs) -> str:
            out, work = bench.fresh(), bench.fresh()
            flags = ("--nprocs", nprocs)
            run = bench.app.start(bench.bids, out, work, *flags)
            run.until(step)
            _remove(work if which == "work" else out)
            run.wait()
            check_whole(out)
            check_clean(run, CODES)
            what = counts(out) if which == "work" else f"code {run.code}"
            return f"{what}; then {bench.again(out, work, *flags)}"

        bench.case(
            "folder deleted",
            f'{which} folder at "{step}", --nprocs {nprocs}',
            "ends by itself without a traceback; the same command ends well",
            check,
        )


def _remove(folder: Path) -> None:
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def clocks(bench: Bench) -> None:
    """Time that jumps, files from the future, other time zones."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

    def jumps(later: str) -> str:
        out, work, rc = bench.fresh(), bench.fresh(), bench.fresh()
        rc.write_text("+0\n")
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(rc),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        run = bench.app.start(bench.bids, out, work, environment=environment)
        run.until("brain mask")
        rc.write_text(later + "\n")
        run.wait()
        check_clean(run, [0])
        seconds = [float(row["seconds"]) for row in statuses(out).values()]
        if not all(0 <= value < 600 for value in seconds):
            raise Lost(f"status.tsv says an image took {seconds} seconds")
        return f"{same_output(out, bench.undisturbed)}; {bench.again(out, work)}"

    if library:
        for later in ("-2d", "+400d", "-3600")[: 1 if bench.quick else 3]:
            bench.case(
                "clock",
                f"the clock jumps by {later} in mid-run (libfaketime)",
                "as undisturbed",
                lambda later=later: jumps(later),  # type: ignore[misc]
            )
    else:
        print("libfaketime is not here: the cases with a jumping clock are left out")

    def future() -> str:
        bids, out, work = bench.fresh(), bench.fresh(), bench.fresh()
        shutil.copytree(bench.bids, bids)
        for path in bids.rglob("*"):
            os.utime(path, (4e9, 4e9))
        run = bench.app.run(bids, out, work)
        check_clean(run, [0])
        return f"{same_output(out, bench.undisturbed)}; {bench.again(out, work, bids=bids)}"

    def past() -> str:
        bids, out, work = bench.fresh(), bench.fresh(), bench.fresh()
        shutil.copytree(bench.bids, bids)
        for path in bids.rglob("*"):
            os.utime(path, (0, 0))
        run = bench.app.run(bids, out, work)
        check_clean(run, [0])
        return f"{same_output(out, bench.undisturbed)}; {bench.again(out, work, bids=bids)}"

    def zones() -> str:
        out, work = bench.fresh(), bench.fresh()
        run = bench.app.start(bench.bids, out, work, environment={"TZ": "Pacific/Kiritimati"})
        run.until("image 2 of 2")
        run.kill_group()
        second = bench.app.run(bench.bids, out, work, environment={"TZ": "Pacific/Pago_Pago"})
        check_clean(second, [0])
        return f"{same_output(out, bench.undisturbed)}; {bench.again(out, work)}"

    bench.case("clock", "the dataset's files are from 2096", "as undisturbed", future)
    bench.case("clock", "the dataset's files are from 1970", "as undisturbed", past)
    bench.case("clock", "killed at UTC+14, resumed at UTC-11", "as undisturbed", zones)


def languages(bench: Bench) -> None:
    """Locales, encodings, and outputs that cannot be printed to."""
    plain = dict.fromkeys(("LANG", "LC_ALL", "LC_CTYPE", "LANGUAGE", "PYTHONIOENCODING"))
    no_utf8 = {**plain, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    settings = {
        "LC_ALL=C": {**plain, "LC_ALL": "C"},
        "LC_ALL=POSIX, PYTHONUTF8=0, no coercion": {**no_utf8, "LC_ALL": "POSIX"},
        "LANG unset": plain,
        "LC_ALL=tr_TR.UTF-8": {**plain, "LC_ALL": "tr_TR.UTF-8"},
        "LC_ALL=de_DE.UTF-8 (decimal comma)": {**plain, "LC_ALL": "de_DE.UTF-8"},
        "LC_ALL=xx_XX.UTF-8, which does not exist": {**plain, "LC_ALL": "xx_XX.UTF-8"},
        "PYTHONIOENCODING=ascii": {**plain, "PYTHONIOENCODING": "ascii"},
        "PYTHONIOENCODING=latin-1": {**plain, "PYTHONIOENCODING": "latin-1"},
    }
    for name, environment in list(settings.items())[:: 4 if bench.quick else 1]:

        def spoken(environment: dict[str, str | None] = environment) -> str:
            out, work = bench.fresh(), bench.fresh("case-ä")
            run = bench.app.run(bench.bids, out, work, environment=environment)
            check_clean(run, [0])
            return same_output(out, bench.undisturbed)

        bench.case("language", f"{name}, non-ASCII work folder", "as undisturbed", spoken)

    def piped(script: str) -> Callable[[], str]:
        def check() -> str:
            out, work = bench.fresh(), bench.fresh()
            before = ["bash", "-c", script, "bash"]
            run = bench.app.run(bench.bids, out, work, before=before)
            _no_traceback(run)
            return f"{same_output(out, bench.undisturbed)}; {bench.again(out, work)}"

        return check

    for name, script in {
        "bmex | head -3: nobody reads on": '"$@" | head -3',
        "standard output is a full disk": '"$@" > /dev/full',
        "standard output and error are closed": '"$@" >&- 2>&-',
    }.items():
        bench.case("language", name, "the images are done all the same", piped(script))


def _no_traceback(run: Run) -> None:
    if "Traceback" in run.said:
        raise Lost(f"a traceback was shown: {run.tail(500)}")


def main() -> int:
    """Run the campaign."""
    with bench("machine") as this:
        if os.geteuid() == 0:
            disks(this)
            read_only(this)
            memory(this)
        else:
            print(
                "not root: full disks, foreign folders and limits of memory are left out",
                file=sys.stderr,
            )
        deleted(this)
        clocks(this)
        languages(this)
        return this.results.exit_code


if __name__ == "__main__":
    sys.exit(main())
