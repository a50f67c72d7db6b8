# SPDX-License-Identifier: Apache-2.0
"""``bmex-weights``, as a user gives it."""

import dataclasses
import hashlib
import io
import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from http_server import serve
from literal_network import encode_caffemodel, random_caffe
from safetensors.torch import load_file

from bmex_bids.cli import weights
from bmex_bids.exceptions import WeightsError
from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.models.bmex import BMEX
from bmex_bids.network.weights import fetch, published
from bmex_bids.network.weights.registry import bundled, select

ADULT = "BMEX-Month24-T1-model.pt"
BUNDLED = next(record.name for record in bundled() if record.kind == "enhance")


def published_name(name):
    module, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    return {"tissue": rest, "recon": f"{layer}_recon.{kind}"}.get(module, name)


def as_bytes(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def template():
    """Header and voxels of LifespanStrip's template."""
    values = np.linspace(0, 1, 27, dtype=np.float32).reshape(3, 3, 3)
    image = nib.Spm99AnalyzeImage(values, np.eye(4))
    halves = nib.Spm99AnalyzeImage.make_file_map(
        {"header": io.BytesIO(), "image": io.BytesIO(), "mat": io.BytesIO()}
    )
    image.to_file_map(halves)
    return {
        "template.hdr": halves["header"].fileobj.getvalue(),
        "template.img": halves["image"].fileobj.getvalue(),
    }


@pytest.fixture(scope="module")
def files():
    """Small networks in files of the published names."""
    torch.manual_seed(0)
    bmex = {published_name(k): v for k, v in BMEX(4).state_dict().items()}
    return {
        ADULT: as_bytes(bmex),
        "T1T2w-model.pt": as_bytes({"state_dict": ADUNet(4).state_dict()}),
        "reconstruction_9m_T1.caffemodel": encode_caffemodel(*random_caffe(4)),
        **template(),
    }


@pytest.fixture
def downloads(tmp_path, files):
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    monkeypatch.setenv("BMEX_WEIGHTS_DIR", str(path))
    return path


@pytest.fixture
def say(capsys):
    """Run the command; give its exit code, standard output and standard error."""

    def say(*words):
        code = weights.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return say


@pytest.fixture
def site(files):
    with serve() as site:
        site.content = files[ADULT]
        yield site


def test_list_shows_all_sets_and_what_is_here(say, folder, downloads):
    code, out, _ = say("list")
    assert code == 0
    assert f"weights folder: {folder} (not there yet)" in out
    for text in (
        "bmex-1.0.5  (published, 0 of 15 files here)",
        "bmex-1.0.1  (published, 0 of 8 files here)",
        "lifespanstrip-2  (published, 0 of 1 file here)",
        f"{BUNDLED}  (bundled, 1 of 1 file here)",
        "licence MIT",
        "- bmex-1.0.5-fetal-T2w",
    ):
        assert text in out
    say("fetch", "--from", downloads)
    _, out, _ = say("list")
    assert "bmex-1.0.5  (published, 1 of 15 files here)" in out
    assert "+ bmex-1.0.5-month24-T1w" in out
    assert "(first use)" in out


def test_list_for_programs_has_one_complete_record_a_file(say, folder):
    code, out, _ = say("list", "--json")
    table = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0
    assert sum(entry["origin"] == "published" for entry in table.values()) == 24
    entry = table["bmex-1.0.5-month24-T1w"]
    assert (entry["age_groups"], entry["contrasts"]) == (["month24"], ["T1w"])
    assert (entry["variant"], entry["licence"], entry["path"]) == ("bmex-pytorch", "MIT", None)
    for entry in table.values():
        assert entry["source"]
        assert entry["input_units"]
        assert entry["licence"]
    assert all(entry["sha256"] for entry in table.values() if entry["origin"] == "bundled")


def test_fetch_from_a_folder_knows_the_published_names(say, folder, downloads, files):
    code, out, err = say("fetch", "--from", downloads)
    assert code == 0
    size = f"{len(files[ADULT]) / 1e6:.1f}"
    assert f"{ADULT}: 0.0 MB\n{ADULT}: {size} of {size} MB, " in err
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
        *files, "checksums.json",
    }  # fmt: skip
    digest = hashlib.sha256(files[ADULT]).hexdigest()
    assert (
        f"{ADULT}: fetched (bmex-1.0.5); SHA-256 {digest}, its publisher gives no checksum: "
        "trusted on first use, written down"
    ) in out
    assert "reconstruction_9m_T1.caffemodel: fetched (bmex-1.0.1)" in out
    _, out, _ = say("fetch", "--from", downloads, "lifespanstrip-2")
    assert "T1T2w-model.pt: was here already (lifespanstrip-2)" in out
    assert ADULT not in out


def test_fetch_from_a_zip_file(say, folder, downloads, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(downloads / ADULT, f"checkpoints/{ADULT}")
    code, _, _ = say("fetch", "--from", tmp_path / "all.zip", "--weights-dir", tmp_path / "other")
    assert code == 0
    assert (tmp_path / "other" / ADULT).exists()
    assert not folder.exists()


def test_fetch_from_an_address_shows_progress_and_goes_on(say, folder, site):
    site.plans = [{"cut": 100_000}, {}]
    code, out, err = say("fetch", "bmex-1.0.5-month24-T1w", "--url", site.url)
    assert code == 0
    assert f"{ADULT}: fetched" in out
    assert f"{ADULT}: 0.0 of {len(site.content) / 1e6:.1f} MB" in err
    assert site.asked[1]["Range"] == "bytes=100000-"
    code, out, err = say("fetch", ADULT, "--url", site.url, "--quiet")
    assert code == 0
    assert "was here already" in out
    assert not err


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = weights.Bar()
    bar("x.pt", 0, 4_000_000)
    bar("x.pt", 1_000_000, 4_000_000)
    bar.end()
    err = capsys.readouterr().err
    assert "x.pt:  25%|" in err
    assert "1.00M/4.00M" in err
    assert err.endswith("\n")


def test_fetch_of_a_set_takes_its_archive(say, folder, site, downloads, tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.write(downloads / ADULT, f"checkpoints/{ADULT}")
    site.content = stream.getvalue()
    code, out, _ = say("fetch", "bmex-1.0.5", "--url", site.url)
    assert code == 0
    assert f"{ADULT}: fetched (bmex-1.0.5)" in out


def test_a_checksum_of_ones_own_is_kept_to(say, folder, site):
    digest = hashlib.sha256(site.content).hexdigest()
    code, _, err = say("fetch", ADULT, "--url", site.url, "--sha256", "ab" * 32)
    assert code == 5
    assert f"which you gave, got {digest}" in err
    assert not (folder / ADULT).exists()
    code, out, _ = say("fetch", ADULT, "--url", site.url, "--sha256", digest)
    assert code == 0
    assert out.endswith("as you said\n")


def test_a_refusing_server_ends_with_five(say, folder, site):
    site.plans = [{"status": 404}]
    code, _, err = say("fetch", ADULT, "--url", site.url)
    assert code == 5
    assert "got the answer 404" in err


def test_where_no_address_is_known_it_says_so(say, folder):
    for name in ("bmex-1.0.1-month9-T1w", "bmex-1.0.1"):
        code, _, err = say("fetch", name)
        assert code == 5
        assert "expected an address of reconstruction_" in err
        assert "but none is known" in err
        assert "bmex-weights fetch --from FOLDER" in err
    assert not folder.exists()


def test_one_file_of_an_archive_brings_its_companions(say, folder, site, downloads, monkeypatch):
    """The others of its ZIP file came anyway, so they are kept."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.write(downloads / ADULT, ADULT)
    site.content = stream.getvalue()
    sets = tuple(
        dataclasses.replace(release, archive=site.url if release.archive else None)
        for release in published.published_sets()
    )
    monkeypatch.setattr(published, "published_sets", lambda: sets)
    code, out, err = say("fetch", "bmex-1.0.5-month3-T1w")
    assert code == 0
    assert "one ZIP file only" in err
    assert f"{ADULT}: fetched" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["fetch"], "a NAME or --from PATH, got neither"),
        (["fetch", "bmex-1.0.5", "--timeout", "-1"], "--timeout between 0 and 86400 s, got -1"),
        (["fetch", "bmex-1.0.5", "--timeout", "nan"], "got nan"),
        (["fetch", "bmex-9"], "got bmex-9; see bmex-weights list"),
        (["fetch", "--from", "x", "--url", "http://x"], "got both"),
        (["fetch", "bmex-1.0.1", "bmex-1.0.5", "--url", "http://x"], "got several"),
        (["convert", "a.pt", "b.pt"], "expected OUT to end in .safetensors"),
        (["path", "nothing"], "got nothing; see bmex-weights list"),
    ],
)
def test_a_wrong_command_line_ends_with_two(say, folder, words, reason):
    code, _, err = say(*words)
    assert code == 2
    assert reason in err


def test_verify_finds_a_change(say, folder, downloads):
    say("fetch", "--from", downloads)
    code, out, _ = say("verify")
    assert code == 0
    assert f"{BUNDLED}.safetensors: as the package says" in out
    assert f"{ADULT}: unchanged since it came" in out
    assert "3 published files in" in out
    path = folder / ADULT
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    path.write_bytes(content)
    code, out, err = say("verify")
    assert code == 5
    assert f"{ADULT}: BAD: expected {path}" in err
    assert "3 published files in" in out
    assert "1 bad" in out
    assert say("verify", "lifespanstrip-2")[0] == 0


def test_verify_trusts_a_file_that_was_put_there_by_hand_once(say, folder, files):
    folder.mkdir()
    (folder / ADULT).write_bytes(files[ADULT])
    assert "trusted as it is now, written down" in say("verify", ADULT)[1]
    assert "unchanged since it came" in say("verify", ADULT)[1]
    code, _, err = say("verify", "lifespanstrip-2")
    assert code == 5
    assert "found none of it" in err


@pytest.mark.parametrize("name", [ADULT, "T1T2w-model.pt", "reconstruction_9m_T1.caffemodel"])
def test_convert_is_exact(say, folder, downloads, tmp_path, name):
    target = tmp_path / "converted.safetensors"
    code, out, _ = say("convert", downloads / name, target)
    assert code == 0
    assert "tensors, read back and equal" in out
    code, _, err = say("convert", downloads / name, target)
    assert code == 2
    assert "is there already" in err
    if name == ADULT:
        before = torch.load(downloads / name, weights_only=True)
        after = load_file(target)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert all(before[key].dtype == after[key].dtype for key in before)


def test_convert_of_what_is_no_weight_file_leaves_nothing(say, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"bad")
    code, _, err = say("convert", tmp_path / "bad.pt", tmp_path / "bad.safetensors")
    assert code == 5
    assert "cannot be read" in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def test_path_prints_where_things_are(say, folder, downloads, tmp_path):
    assert say("path")[1] == f"{folder}\n"
    assert say("path", "--weights-dir", tmp_path)[1] == f"{tmp_path}\n"
    assert say("path", "bmex-strip-6")[1].endswith("data/weights/bmex-strip-6.safetensors\n")
    code, _, err = say("path", "bmex-1.0.5")
    assert code == 5
    assert "run: bmex-weights fetch bmex-1.0.5" in err
    say("fetch", "--from", downloads)
    assert say("path", "bmex-1.0.5-month24-T1w")[1] == f"{folder / ADULT}\n"


def test_verify_looks_at_the_template_too(say, folder, downloads):
    say("fetch", "--from", downloads)
    code, out, _ = say("verify")
    assert code == 0
    assert "template.img: unchanged since it came" in out
    (folder / "template.img").write_bytes(b"tampered")
    code, _, err = say("verify", "lifespanstrip-2")
    assert code == 5
    assert "template.img: BAD" in err
    with pytest.raises(WeightsError, match=r"template\.img to have the SHA-256"):
        select("strip", weights_dir=folder)


def test_a_folder_that_may_only_be_read_can_be_verified(say, folder, files, monkeypatch):
    folder.mkdir()
    (folder / ADULT).write_bytes(files[ADULT])

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(published, "write_down", denied)
    code, out, _ = say("verify")
    assert code == 0
    assert (
        f"{ADULT}: its publisher gives no checksum; it was not written down (Permission denied)"
        in out
    )


def test_what_the_disk_says_is_no_traceback(say, folder, downloads, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "weights")

    monkeypatch.setattr(fetch, "write_down", denied)
    code, _, err = say("fetch", "--from", downloads)
    assert code == 5
    assert "Permission denied: 'weights'; check the permissions and the space" in err


def test_checksums_that_are_none_are_said(say, folder, files):
    folder.mkdir()
    (folder / ADULT).write_bytes(files[ADULT])
    (folder / "checksums.json").write_text("[]")
    code, _, err = say("list")
    assert code == 5
    assert "expected an object in" in err
    with pytest.raises(WeightsError, match="got list; remove that file"):
        select("enhance", age_group="month24", contrast="T1w")
