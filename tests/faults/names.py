# SPDX-License-Identifier: Apache-2.0
"""Campaign: odd names and links: what shells, globs, DataLad and long paths do to a run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bench import Bench, bench, check_clean
from results import Lost
from tiny import same_output, statuses

ANNEX = ".git/annex/objects/Xx/9z/SHA256E-s1--0a/SHA256E-s1--0a"
#: what the folders of dataset, output and work are called
NAMES = {
    "spaces": "my study  of brains ",
    "umlauts, Chinese, an emoji": "Größe 脳の研究 🧠",
    "decomposed accents": "e\u0301tude nai\u0308ve",
    "quotes": 'it\'s "quoted" `here`',
    "what a shell would do": "$HOME;$(touch x)&|<>*?",
    "what a glob would do": "[abc] {a,b} sub-*",
    "percent, braces, hash": "100% {out} %s #1",
    "backslash": "back\\slash\\n",
    "a line break": "two\nlines",
    "what a BIDS parser would do": "sub-99_ses-x/derivatives/sub-98",
    "a leading dash": "-n",
    "dots": "a..b/.hidden/c.nii.gz",
}


def folders(bench: Bench) -> None:
    """The same run in folders with odd names."""
    names = list(NAMES.items())
    for what, name in names[::5] if bench.quick else names:

        def check(name: str = name) -> str:
            top = bench.fresh() / name
            top.mkdir(parents=True)
            bids, out, work = top / "bids", top / "out", top / "work"
            shutil.copytree(bench.bids, bids)
            run = bench.app.run(bids, out, work)
            check_clean(run, [0])
            if list(bench.folder.rglob("x")):
                raise Lost("a shell ran what was in a name")
            return f"{same_output(out, bench.undisturbed)}; {bench.again(out, work, bids=bids)}"

        bench.case("odd names", f"folders with {what}", "as undisturbed", check)

    def not_text(where: str) -> str:
        top = bench.fresh()
        odd = top / "caf\udce9"  # a byte of Latin 1
        odd.mkdir(parents=True)
        bids, out, work = (odd if name == where else top for name in ("bids", "out", "work"))
        shutil.copytree(bench.bids, bids / "bids")
        run = bench.app.run(bids / "bids", out / "out", work / "work")
        check_clean(run, [2] if where == "bids" else [0, 2])
        if run.code:
            return f"code {run.code}: {run.said.splitlines()[-1][:120]}"
        return same_output(out / "out", bench.undisturbed)

    def odd_file() -> str:
        bids, out = bench.fresh(), bench.fresh()
        shutil.copytree(bench.bids, bids)
        anat = bids / "sub-01/anat"
        for name in ("caf\udce9.txt", "sub-01_acq-caf\udce9_T2w.nii.gz"):
            shutil.copy(anat / "sub-01_T2w.nii.gz", anat / name)
        run = bench.app.run(bids, out, bench.fresh())
        check_clean(run, [0, 3])
        return f"code {run.code}; {_others(out, bench)}"

    for where in ("bids", "out", "work"):
        bench.case(
            "odd names",
            f"{where} folder with bytes that are no UTF-8",
            "refused, with the reason" if where == "bids" else "as undisturbed, or refused",
            lambda where=where: not_text(where),  # type: ignore[misc]
        )
    bench.case(
        "odd names", "files in the dataset with bytes that are no UTF-8", "the others are done",
        odd_file,
    )  # fmt: skip

    def several() -> str:
        top = bench.fresh() / NAMES["umlauts, Chinese, an emoji"] / NAMES["quotes"]
        top.mkdir(parents=True)
        shutil.copytree(bench.bids, top / "bids")
        run = bench.app.run(top / "bids", top / "out", top / "work", "--nprocs", "2")
        check_clean(run, [0])
        return same_output(top / "out", bench.undisturbed)

    bench.case("odd names", "the same with --nprocs 2", "as undisturbed", several)

    def deep(length: int, codes: tuple[int, ...]) -> str:
        top = bench.fresh()
        while len(str(top)) < length - 200:
            top /= "d" * 99
        top /= "d" * max(1, length - len(str(top)) - 1)
        bids, out, work = top / "bids", top / "out", bench.fresh()
        top.mkdir(parents=True)
        shutil.copytree(bench.bids, bids)
        run = bench.app.run(bids, out, work)
        check_clean(run, codes)
        if run.code == 0:
            return same_output(out, bench.undisturbed)
        return f"code {run.code}: {run.said.splitlines()[-1][:120]}"

    bench.case("odd names", "folders of 1500 characters", "as undisturbed",
               lambda: deep(1500, (0,)))  # fmt: skip
    bench.case("odd names", "folders of 3900 characters (the limit is 4096)",
               "done, or refused without a traceback",
               lambda: deep(3900, (0, 1, 2, 3, 5)))  # fmt: skip

    def labels() -> str:
        out, bids = bench.fresh(), bench.fresh()
        shutil.copytree(bench.bids, bids)
        long = "x" * 100
        (bids / "sub-01").rename(bids / f"sub-{long}")
        anat = bids / f"sub-{long}/anat"
        entities = f"sub-{long}_acq-{long[:60]}"
        (anat / "sub-01_T2w.nii.gz").rename(anat / f"{entities}_T2w.nii.gz")
        table = bids / "participants.tsv"
        table.write_text(table.read_text().replace("sub-01", f"sub-{long}"))
        run = bench.app.run(bids, out, bench.fresh())
        check_clean(run, [0])
        _others(out, bench)
        return f"{len(list(out.rglob(f'{entities}*.nii.gz')))} images of that name"

    bench.case("odd names", "an image's name of 180 characters", "both images done", labels)


def links(bench: Bench) -> None:
    """Symbolic links that lead somewhere."""

    def all_linked() -> str:
        top = bench.fresh()
        for name in ("bids", "real-out", "real-work"):
            (top / name).mkdir(parents=True)
        (top / "dataset").symlink_to(bench.bids)
        (top / "out").symlink_to("real-out")
        (top / "work").symlink_to(top / "real-work")
        run = bench.app.run(top / "dataset", top / "out", top / "work")
        check_clean(run, [0])
        return same_output(top / "real-out", bench.undisturbed)

    def parts_linked() -> str:
        bids, store, out = bench.fresh(), bench.fresh(), bench.fresh()
        shutil.copytree(bench.bids, bids)
        shutil.move(bids / "sub-01", store / "one")
        (bids / "sub-01").symlink_to(store / "one")
        image = bids / "sub-02/anat/sub-02_T2w.nii.gz"
        shutil.move(image, store / "two")
        image.symlink_to(store / "two")
        run = bench.app.run(bids, out, bench.fresh())
        check_clean(run, [0])
        return same_output(out, bench.undisturbed)

    def annexed() -> str:
        bids, out = bench.fresh(), bench.fresh()
        shutil.copytree(bench.bids, bids)
        for number, path in enumerate(sorted(bids.rglob("*.*"))):
            if path.is_file() and path.name != "dataset_description.json":
                _annex(bids, path, number, present=True)
        run = bench.app.run(bids, out, bench.fresh())
        check_clean(run, [0])
        return same_output(out, bench.undisturbed)

    def loops() -> str:
        bids, out = bench.fresh(), bench.fresh()
        shutil.copytree(bench.bids, bids)
        (bids / "sub-01/anat/all").symlink_to(bids)
        loop = bids / "sub-01/anat/sub-01_acq-loop_T2w.nii.gz"
        loop.symlink_to(loop)
        run = bench.app.run(bids, out, bench.fresh())
        check_clean(run, [3])
        row = statuses(out)["sub-01_acq-loop_T2w"]
        return f"the loop: {row['status']}: {row['reason']}; {_others(out, bench)}"

    group = "symbolic links"
    bench.case(group, "dataset, output and work are links", "as undisturbed", all_linked)
    bench.case(group, "a participant and an image are links", "as undisturbed", parts_linked)
    bench.case(group, "annexed dataset, all content present", "as undisturbed", annexed)
    bench.case(group, "links that go in circles", "the other images are done", loops)


def _others(out: Path, bench: Bench) -> str:
    """The second participant came out as if nothing were wrong with the first."""
    return same_output(out, bench.undisturbed, only="sub-02/")


def _annex(bids: Path, path: Path, number: int, present: bool) -> None:
    """Move a file where git-annex keeps it, or drop it, and leave annex' link."""
    target = bids / f"{ANNEX}{number}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if present:
        shutil.move(path, target)
        target.chmod(0o444)
    else:
        path.unlink()
    depth = len(path.parent.relative_to(bids).parts)
    path.symlink_to(f"{'../' * depth}{target.relative_to(bids)}")


def datalad(bench: Bench) -> None:
    """Links of git-annex to content that was not fetched."""
    cases = {
        "an image": "sub-01/anat/sub-01_T2w.nii.gz",
        "an image's sidecar": "sub-01/anat/sub-01_T2w.json",
        "participants.tsv": "participants.tsv",
        "participants.json": "participants.json",
        "dataset_description.json": "dataset_description.json",
    }
    for what, name in list(cases.items())[: 2 if bench.quick else None]:

        def check(name: str = name) -> str:
            bids, out, work = bench.fresh(), bench.fresh(), bench.fresh()
            shutil.copytree(bench.bids, bids)
            (bids / name).touch()
            content = (bids / name).read_bytes()
            _annex(bids, bids / name, 0, present=False)
            run = bench.app.run(bids, out, work)
            fatal = name.endswith((".nii.gz", "sub-01_T2w.json"))
            check_clean(run, [3] if fatal else [0, 3, 4], "datalad get", name)
            if fatal:
                row = statuses(out)["sub-01_T2w"]
                if (
                    row["status"] not in {"skipped", "failed"}
                    or "datalad get" not in row["reason"]
                ):
                    raise Lost(f"status.tsv says {row}")
                _others(out, bench)
            (bids / f"{ANNEX}0").write_bytes(content)
            if name.endswith(".json") and not content:
                (bids / f"{ANNEX}0").write_text("{}")
            return f"code {run.code}; after datalad get: {bench.again(out, work, bids=bids)}"

        bench.case(
            "DataLad",
            f"{what} was not fetched",
            'says "run datalad get"; the other images are done; once fetched, all are',
            check,
        )

    def mask() -> str:
        masks, out, work = bench.fresh(), bench.fresh(), bench.fresh()
        path = masks / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
        path.parent.mkdir(parents=True)
        path.symlink_to(f"../../{ANNEX}")
        (masks / "dataset_description.json").write_text(
            '{"Name": "m", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}'
        )
        run = bench.app.run(bench.bids, out, work, "--derivatives", f"mine={masks}")
        check_clean(run, [3], "datalad get")
        states = {name[:6]: row["status"] for name, row in statuses(out).items()}
        if states != {"sub-01": "skipped", "sub-02": "done"}:
            raise Lost(f"status.tsv says {states}")
        return f"code {run.code}; the other image is done"

    bench.case("DataLad", "a given mask was not fetched", 'says "run datalad get"', mask)


def main() -> int:
    """Run the campaign."""
    with bench("names") as this:
        folders(this)
        links(this)
        datalad(this)
        return this.results.exit_code


if __name__ == "__main__":
    sys.exit(main())
