# SPDX-License-Identifier: Apache-2.0
"""One image without a dataset: the same result as bmex's, or nothing and a reason."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from app_runs import bmex, participants
from scipy.stats import spearmanr

from bmex_bids.cli.enhance import conclusion, main


@pytest.fixture(autouse=True)
def surroundings(tiny_records, monkeypatch, tmp_path):
    """The tiny network, few pictures, and folders of the test's own, the temporary one too."""
    from bmex_bids.interfaces import reportlets

    only = {"summary": reportlets.write_summary}
    monkeypatch.setattr(reportlets, "drawings", lambda: only)
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_records)
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def source(brain):
    """The image in the current folder."""
    nib.save(brain(), "in.nii.gz")
    return Path("in.nii.gz").absolute()


def enhance(*flags: str, age: str = "0.5") -> int:
    """Run the program in this process; return its exit code."""
    try:
        code = main([*flags, "--age-months", age, "--omp-nthreads", "1"])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    assert list(Path(tempfile.gettempdir()).iterdir()) == []  # whatever happened
    return code


def files() -> set[str]:
    """Names of all files in the current folder, hidden ones too."""
    return {path.name for path in Path().iterdir()}


@pytest.mark.parametrize(("orientation", "oblique"), [("LAS", 0.0), ("PIR", 12.0)])
def test_all_that_can_be_saved_lies_where_the_input_lies(
    brain, capsys, monkeypatch, orientation, oblique
):
    raw = brain(orientation, oblique)
    nib.save(raw, "head 1.nii")
    Path("head 1.json").write_text(json.dumps({"EchoTime": 0.003, "Resolution": "high"}))
    wishes = ["--save-head", "head.nii.gz", "--save-mask", "mask.nii", "--save-dseg", "d.nii.gz"]
    assert enhance("head 1.nii", "out.nii.gz", *wishes, "--save-res", "res.nii.gz") == 0
    images = {"out.nii.gz", "head.nii.gz", "mask.nii", "d.nii.gz", "res.nii.gz"}
    sidecars = {f"{name.split('.')[0]}.json" for name in images}
    assert files() == images | sidecars | {"head 1.nii", "head 1.json"}

    truth = np.asarray(raw.dataobj)
    for name in images - {"res.nii.gz"}:
        image = nib.load(name)
        assert image.shape == raw.shape, name
        np.testing.assert_array_equal(image.affine, nib.load("head 1.nii").affine)
        assert image.header["sform_code"] == 2, name
        assert image.header["qform_code"] == 1, name
    mask = nib.load("mask.nii").get_fdata() > 0
    assert 2 * (mask & (truth > 0)).sum() / (mask.sum() + (truth > 0).sum()) > 0.98
    # the network gives its input back, matched by a map that rises: what was moved by one voxel
    # would have a rank correlation of 0.7
    for name in ("out.nii.gz", "head.nii.gz"):
        assert spearmanr(nib.load(name).get_fdata()[mask], truth[mask])[0] > 0.99, name
    assert not nib.load("out.nii.gz").get_fdata()[~mask].any()
    assert set(np.unique(nib.load("d.nii.gz").get_fdata())) <= {0, 1, 2, 3}
    res = nib.load("res.nii.gz")
    np.testing.assert_allclose(res.header.get_zooms(), 0.8, atol=1e-4)

    sidecar = json.loads(Path("out.json").read_text())
    assert sidecar["Sources"] == ["head 1.nii"]
    assert sidecar["SpatialReference"] == "head 1.nii"
    assert sidecar["EchoTime"] == 0.003  # of the JSON file beside IN
    assert "Resolution" not in sidecar  # would be wrong on this grid
    record = sidecar["BMEX"]
    assert record["Age"]["months"] == 0.5
    assert record["Age"]["source"] == "command line"
    assert record["Weights"]["Name"] == "tiny"
    assert record["Gate"]["Verdict"] in {"pass", "warn"}
    assert not {"Fingerprint", "Outputs"} & set(record)

    printed = capsys.readouterr().out
    assert "head 1.nii: T1w, age 0.5 months, model month0, weights tiny, 0.8 mm" in printed
    assert "head 1.nii  preprocess: brain mask" in printed
    assert "head 1.nii  done in" in printed
    assert f"enhanced: {Path('out.nii.gz').absolute()}" in printed
    assert f"mask: {Path('mask.nii').absolute()}" in printed
    assert "(TCT): not measured -> not measured" in printed  # an untrained network has one tissue
    for text in record["Warnings"]:
        assert f"warning: {text}" in printed


@pytest.fixture
def learns_error(tiny_slices, monkeypatch):
    """The network that expects an error."""
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_slices)


@pytest.mark.usefixtures("coarse_grid")
def test_the_expected_error_is_saved(source, capsys, learns_error):
    assert enhance("in.nii.gz", "out.nii.gz", "--save-uncertainty", "sd.nii.gz") == 0
    assert files() == {"in.nii.gz", "out.nii.gz", "out.json", "sd.nii.gz", "sd.json"}
    inside = nib.load("out.nii.gz").get_fdata() > 0
    values = nib.load("sd.nii.gz").get_fdata()
    assert values[inside].min() > 0
    assert not values[~inside].any()
    assert (
        "error that the network expects" in json.loads(Path("sd.json").read_text())["Description"]
    )
    assert f"uncertainty: {Path('sd.nii.gz').absolute()}" in capsys.readouterr().out


@pytest.mark.usefixtures("coarse_grid")
def test_an_image_that_is_not_made_is_named(source, capsys):
    assert enhance("in.nii.gz", "out.nii.gz", "--save-uncertainty", "sd.nii.gz") == 0
    assert files() == {"in.nii.gz", "out.nii.gz", "out.json"}
    said = "uncertainty: not made, so --save-uncertainty saved nothing"
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("coarse_grid")
def test_the_same_voxels_as_bmex_on_a_dataset(bids_skeleton, brain):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain("LAS")})
    assert bmex(bids, "--omp-nthreads", "1") == 0
    assert enhance(str(bids / "sub-01/anat/sub-01_T1w.nii.gz"), "one.nii.gz") == 0
    theirs = nib.load("out/sub-01/anat/sub-01_desc-enhanced_T1w.nii.gz")
    np.testing.assert_array_equal(nib.load("one.nii.gz").dataobj, theirs.dataobj)
    np.testing.assert_array_equal(nib.load("one.nii.gz").affine, theirs.affine)
    records = [
        json.loads(path.read_text())["BMEX"]
        for path in (Path("one.json"), Path("out/sub-01/anat/sub-01_desc-enhanced_T1w.json"))
    ]
    assert records[0]["Quality"] == records[1]["Quality"]
    assert set(records[0]) == set(records[1]) - {"Fingerprint", "Outputs"}


def test_what_is_said_at_the_end():
    rules = [
        {"Rule": "a", "Verdict": "warn", "Reason": "a little small"},
        {"Rule": "b", "Verdict": "pass", "Reason": "fine"},
    ]
    record = {
        "Quality": {"tct_before": 1.234, "tct_after": 2.468, "qi": 0.5},
        "Warnings": ["near another model"],
        "Gate": {"Verdict": "warn", "Rules": rules},
    }
    lines = list(conclusion({"OUT": Path("/x/o.nii")}, record))
    assert [line for line, _ in lines] == [
        "enhanced: /x/o.nii",
        "tissue contrast (TCT): 1.23 -> 2.47; quality index (QI, before over after): 0.50",
        "warning: near another model",
        "quality gate: a little small",
    ]
    assert all(good for _, good in lines)
    record["MotionCorrection"] = {"Applied": True, "Model": "poses", "RMSDisplacement": 1.5}
    said = {line for line, _ in conclusion({}, record)}
    assert "corrected: poses, 1.5 mm RMS, undone in k-space" in said
    record["MotionCorrection"]["Applied"] = False
    assert not [line for line, _ in conclusion({}, record) if line.startswith("motion")]


def test_a_fetus_and_an_output_that_is_not_packed(brain):
    nib.save(brain(contrast="T2w"), "in.nii.gz")
    flags = ["--fetal", "--contrast", "T2w", "--save-res", "res.nii"]
    assert enhance("in.nii.gz", "out.nii", *flags, age="6.5") == 0
    assert not Path("out.nii").read_bytes().startswith(b"\x1f\x8b")
    np.testing.assert_allclose(nib.load("res.nii").header.get_zooms(), 0.75, atol=1e-4)
    assert json.loads(Path("out.json").read_text())["BMEX"]["Model"] == "fetal"


@pytest.mark.usefixtures("coarse_grid")
def test_a_mask_made_elsewhere(head_phantom, capsys):
    phantom = head_phantom(spacing=2.5, size=0.55)
    nib.save(phantom.image, "sub-07_T2w.nii.gz")
    mask = phantom.mask.copy()
    mask[: mask.shape[0] // 2] = False
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), phantom.image.affine), "half.nii.gz")
    flags = ["--mask", "half.nii.gz", "--save-mask", "used.nii.gz"]
    enhance("sub-07_T2w.nii.gz", "out.nii.gz", *flags)
    np.testing.assert_array_equal(nib.load("used.nii.gz").dataobj, mask)
    record = json.loads(Path("out.json").read_text())["BMEX"]
    assert record["Mask"]["method"] == "given"
    assert record["Mask"]["source"] == "half.nii.gz"
    # the name is at odds with the contrast
    assert any("add --contrast T2w" in text for text in record["Warnings"])
    assert capsys.readouterr().out.count("add --contrast T2w") == 2  # at the start and the end


def test_a_mask_of_another_place(source, brain, capsys):
    far = brain()
    affine = far.affine.copy()
    affine[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(far.dataobj), affine), "far.nii.gz")
    assert enhance("in.nii.gz", "out.nii.gz", "--mask", "far.nii.gz") == 1
    message = capsys.readouterr().err
    assert "expected a brain mask that lies in its image" in message
    assert "leave out --mask" in message
    assert files() == {"in.nii.gz", "far.nii.gz"}


def test_a_mask_that_is_no_brain_is_named(source, brain, capsys):
    """The message spoke of a mask, and advised to give one."""
    image = brain()
    data = np.zeros(image.shape, np.uint8)
    data[5:8, 5:8, 5:8] = 1
    nib.save(nib.Nifti1Image(data, image.affine), "speck.nii.gz")
    assert enhance("in.nii.gz", "out.nii.gz", "--mask", "speck.nii.gz") == 1
    message = capsys.readouterr().err
    assert f"litres at this age in {Path('speck.nii.gz').absolute()}, got 0.0" in message
    assert "give another mask, leave out --mask" in message
    assert files() == {"in.nii.gz", "speck.nii.gz"}


@pytest.mark.usefixtures("coarse_grid")
def test_a_failed_gate_is_no_success_but_the_result_is_there(source, capsys, monkeypatch):
    from bmex_bids.interfaces import quality

    class Verdict:
        def as_table(self):
            rule = {"Rule": "volume", "Value": 9.0, "Verdict": "fail", "Reason": "too large"}
            return {"Verdict": "fail", "Rules": [rule]}

    monkeypatch.setattr("bmex_bids.interfaces.quality.judge", lambda _: Verdict())
    assert quality.MeasureQuality  # it asks for the judge when it runs
    assert enhance("in.nii.gz", "out.nii.gz") == 1
    printed = capsys.readouterr()
    assert "quality gate: too large" in printed.out
    assert "did NOT pass" in printed.err
    assert files() == {"in.nii.gz", "out.nii.gz", "out.json"}


@pytest.mark.usefixtures("coarse_grid")
def test_the_report_is_one_file(source, monkeypatch):
    from bmex_bids.interfaces import reportlets

    picture = '<svg xmlns="http://www.w3.org/2000/svg"><text>before</text></svg>'
    table = {
        "summary": reportlets.write_summary,
        "enhancement": lambda _, path: path.write_text(picture),
    }
    monkeypatch.setattr(reportlets, "drawings", lambda: table)
    assert enhance("in.nii.gz", "out.nii.gz", "--report", "page.html") == 0
    assert files() == {"in.nii.gz", "out.nii.gz", "out.json", "page.html"}
    page = Path("page.html").read_text()
    assert picture in page
    assert "The input consisted of 1 image of 1 participant" in page  # methods, without PyBIDS
    for name, target in re.findall(r"""\b(src|data|href)=["']([^"']*)["']""", page):
        assert target.startswith(("#", "data:", "http")), (name, target)


def _cut_off(image: nib.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes())[:-4000]


def _four_volumes(image: nib.Nifti1Image) -> bytes:
    data = np.stack([np.asarray(image.dataobj)] * 4, axis=-1)
    return gzip.compress(nib.Nifti1Image(data, image.affine).to_bytes())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: b"not an image at all", "expected a complete NIfTI image"),
        (_cut_off, "copy or convert it again"),
        (_four_volumes, "take one volume out of it"),
    ],
    ids=["unreadable", "cut off", "4D"],
)
def test_a_bad_image(brain, capsys, spoil, words):
    Path("in.nii.gz").write_bytes(spoil(brain()))
    assert enhance("in.nii.gz", "out.nii.gz") == 1
    message = capsys.readouterr().err
    assert message.startswith("bmex-enhance: ")
    assert words in message
    assert "Traceback" not in message
    assert files() == {"in.nii.gz"}


@pytest.mark.parametrize(
    ("arguments", "age", "code", "words"),
    [
        (["no.nii.gz", "out.nii.gz"], "1", 2, "found nothing; check the path"),
        ([".", "out.nii.gz"], "1", 2, "found a folder"),
        (["text.txt", "out.nii.gz"], "1", 2, "convert it first"),
        (["in.nii.gz", "out.nii.gz"], "-1", 2, "expected a number of 0 or more"),
        (["in.nii.gz", "out.nii.gz"], "six", 2, "expected a number of 0 or more"),
        (["in.nii.gz", "out.nii.gz"], "2000", 2, "expected an age of 0 to 130 years"),
        (["in.nii.gz", "out.nii.gz", "--fetal"], "7", 2, "add --contrast T2w"),
        (
            ["in.nii.gz", "out.nii.gz", "--fetal", "--contrast", "T2w"],
            "18",
            2,
            "10 to 45 weeks of gestation",
        ),
        (["in.nii.gz", "out.mgz"], "1", 2, "ends in .nii.gz or .nii for OUT"),
        (["in.nii.gz", "out"], "1", 2, "ends in .nii.gz or .nii for OUT"),
        (["in.nii.gz", ".nii.gz"], "1", 2, "ends in .nii.gz or .nii for OUT"),
        (["in.nii.gz", "folder.nii"], "1", 2, "add a name"),
        (["in.nii.gz", "in.nii.gz"], "1", 2, "name another OUT"),
        (["in.nii.gz", "../here/in.nii.gz"], "1", 2, "name another OUT"),
        (["in.nii.gz", "link.nii.gz"], "1", 2, "name another OUT"),
        (["in.nii.gz", "in.nii"], "1", 2, "different files for the JSON file of IN and"),
        (["in.nii.gz", "o.nii", "--save-head", "o.nii"], "1", 2, "name another --save-head"),
        (
            ["in.nii.gz", "o.nii", "--mask", "in.nii.gz", "--save-mask", "in.nii.gz"],
            "1",
            2,
            "--save-mask",
        ),
        (["in.nii.gz", "o.nii", "--mask", "no.nii.gz"], "1", 2, "an image for --mask"),
        (["in.nii.gz", "o.nii", "--report", "page.pdf"], "1", 2, "ends in .html for --report"),
        (["in.nii.gz", "no/out.nii.gz"], "1", 5, "mkdir -p"),
        (["in.nii.gz", "out.nii.gz", "--save-res", "no/r.nii"], "1", 5, "for --save-res"),
        (["in.nii.gz", "out.nii.gz", "--weights", "magic"], "1", 5, "--weights of auto"),
        (["in.nii.gz", "out.nii.gz", "--device", "gpu"], "1", 2, "expected auto, cpu, cuda"),
    ],
)
def test_a_bad_command_line_writes_nothing(source, capsys, arguments, age, code, words):
    Path("text.txt").write_text("text")
    Path("folder.nii").mkdir()
    Path("link.nii.gz").symlink_to("in.nii.gz")
    before, contents = files(), source.read_bytes()
    assert enhance(*arguments, age=age) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.out + printed.err
    assert files() == before
    assert source.read_bytes() == contents


def test_the_age_must_be_given(source, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["in.nii.gz", "out.nii.gz"])
    assert stop.value.code == 2
    assert "--age-months" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(source, capsys):
    Path("locked").mkdir(mode=0o555)
    assert enhance("in.nii.gz", "locked/out.nii.gz") == 5
    assert "change its permissions" in capsys.readouterr().err


def test_a_folder_that_refuses(source, capsys, monkeypatch):
    def refuse(dir: object) -> None:  # noqa: A002 - tempfile's name for it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert enhance("in.nii.gz", "out.nii.gz") == 5
    message = capsys.readouterr().err
    assert "Permission denied; name another folder" in message
    assert files() == {"in.nii.gz"}


def test_no_room_for_temporary_files(source, capsys, monkeypatch):
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    assert enhance("in.nii.gz", "out.nii.gz") == 5
    assert "set TMPDIR" in capsys.readouterr().err


def test_no_room_in_a_step(source, capsys, monkeypatch):
    """It was the image's failure: code 1."""

    def full(*_args):
        raise OSError(28, "No space left on device", "work/conformed.nii.gz")

    monkeypatch.setattr("bmex_bids.interfaces.preprocess.write", full)
    assert enhance("in.nii.gz", "out.nii.gz") == 5
    said = capsys.readouterr().err
    assert "No space left on device: work/conformed.nii.gz; free some space" in said
    assert "nothing was written" in said


@pytest.mark.usefixtures("coarse_grid")
def test_a_disk_that_is_full_at_the_end_leaves_the_old_files(source, capsys, monkeypatch):
    Path("out.nii.gz").write_text("of an earlier run")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bmex_bids.cli.enhance._copy_image", full)
    assert enhance("in.nii.gz", "out.nii.gz") == 5
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert files() == {"in.nii.gz", "out.nii.gz"}
    assert Path("out.nii.gz").read_text() == "of an earlier run"


def test_an_annexed_image_that_is_not_here(capsys):
    Path("in.nii.gz").symlink_to(".git/annex/objects/MD5-s9--abc")
    assert enhance("in.nii.gz", "out.nii.gz") == 1
    assert "datalad get" in capsys.readouterr().err


@pytest.mark.usefixtures("coarse_grid")
def test_an_annexed_image_keeps_its_name(brain, capsys):
    Path("objects").mkdir()
    nib.save(brain(), "objects/MD5-s9--abc.nii.gz")
    Path("objects/MD5-s9--abc.nii.gz").rename("objects/MD5-s9--abc")
    Path("in.nii.gz").symlink_to("objects/MD5-s9--abc")
    assert enhance("in.nii.gz", "out.nii.gz") == 0
    assert json.loads(Path("out.json").read_text())["Sources"] == ["in.nii.gz"]


SLOW = """
import sys, time
from bmex_bids.interfaces.preprocess import Conform
from bmex_bids.cli.enhance import main

def wait(self, folder):
    print("waiting", flush=True)
    time.sleep(60)

Conform.work = wait
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_leaves_nothing_behind(source, tmp_path, number, code):
    command = [sys.executable, "-c", SLOW, "in.nii.gz", "out.nii.gz", "--age-months", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            line = ""
            while "waiting" not in line:
                line = child.stdout.readline()
                assert line, child.stderr.read() if child.stderr else ""
            assert list((tmp_path / "tmp").iterdir())
            begun = time.monotonic()
            child.send_signal(number)
            _, errors = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == code
    assert "interrupted; no half-written file is left" in errors
    assert "Traceback" not in errors
    assert time.monotonic() - begun < 20
    assert files() == {"in.nii.gz"}
    assert not list((tmp_path / "tmp").glob("bmex-enhance-*"))
