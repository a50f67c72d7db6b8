# SPDX-License-Identifier: Apache-2.0
"""Downloads against a real server on this machine that cuts, lies, refuses and dawdles."""

import fcntl
import hashlib
import io
import socket
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from http_server import serve
from literal_network import encode_caffemodel, random_caffe

from bmex_bids.exceptions import OutputError, WeightsError
from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.weights import download as download_module
from bmex_bids.network.weights import fetch, published
from bmex_bids.network.weights.download import download
from bmex_bids.network.weights.fetch import fetch_archive, fetch_file, install, take
from bmex_bids.network.weights.published import ledger
from bmex_bids.network.weights.registry import published_set

CONTENT = bytes(range(256)) * 100  # 25,600 bytes
NAME = "T1T2w-model.pt"


@pytest.fixture
def site():
    with serve() as site:
        site.content = CONTENT
        yield site


@pytest.fixture
def get(site, tmp_path):
    def get(**options):
        return download(site.url, tmp_path / "file", wait_s=0.001, **options).read_bytes()

    return get


@pytest.fixture(scope="module")
def stripper():
    """The bytes of a small LifespanStrip file."""
    stream = io.BytesIO()
    torch.save({"state_dict": ADUNet(4).state_dict()}, stream)
    return stream.getvalue()


@pytest.fixture
def template(tmp_path):
    """A folder with a template of LifespanStrip whose brightest voxel is given."""

    def template(brightest, place="spm"):
        (tmp_path / place).mkdir(parents=True)
        values = np.linspace(0, brightest, 27, dtype=np.float32).reshape(3, 3, 3)
        nib.Spm99AnalyzeImage(values, np.eye(4)).to_filename(tmp_path / place / "template.img")
        for extra in (tmp_path / place).glob("*.mat"):
            extra.unlink()
        return tmp_path / place

    return template


@pytest.fixture
def release():
    return published_set("lifespanstrip-2")


# ------------------------------------------------------------------ one address
def test_a_file_comes_as_it_is_and_progress_is_told(get, site):
    seen = []
    assert get(progress=lambda *told: seen.append(told)) == CONTENT
    assert seen[0] == ("file", 0, len(CONTENT))
    assert seen[-1] == ("file", len(CONTENT), len(CONTENT))
    assert "Range" not in site.asked[0]


def test_a_connection_that_is_cut_goes_on_where_it_ended(get, site):
    site.plans = [{"cut": 9000}, {"cut": 5000}, {}]
    assert get() == CONTENT
    assert [asked.get("Range") for asked in site.asked] == [None, "bytes=9000-", "bytes=14000-"]
    assert site.asked[1]["If-Range"] == '"one"'


def test_a_later_call_goes_on_too(get, site):
    site.plans = [{"cut": 9000}, {"status": 503}]
    with pytest.raises(
        WeightsError, match=r"2 failures in a row \(the last: 503 .*9000 bytes are kept"
    ):
        get(attempts=2)
    site.plans = [{}]
    assert get() == CONTENT
    assert site.asked[-1]["Range"] == "bytes=9000-"


def test_a_server_without_ranges_sends_all_again(get, site):
    site.plans = [{"cut": 9000, "ranges": False}, {"ranges": False}]
    assert get() == CONTENT


def test_a_file_that_changed_in_between_is_fetched_from_the_start(get, site):
    site.plans = [{"cut": 9000, "etag": '"old"'}, {"etag": '"new"'}]
    assert get() == CONTENT
    assert site.asked[1]["If-Range"] == '"old"'


def test_without_a_validator_another_length_is_noticed(get, site):
    site.plans = [{"cut": 9000, "etag": None}, {"status": 404}]
    with pytest.raises(WeightsError, match="404"):
        get()
    site.content = CONTENT[::-1] + b"more"
    site.plans = [{"etag": None}]
    assert get() == CONTENT[::-1] + b"more"


def test_halves_of_two_files_are_not_put_together(get, site):
    """Another file of the same length, and a server that says of neither which it is."""
    site.plans = [{"cut": 9000, "etag": None}, {"status": 404}]
    with pytest.raises(WeightsError, match="404"):
        get()
    site.content = CONTENT[::-1]
    site.plans = [{"etag": None}]
    assert get() == CONTENT[::-1]
    assert "Range" not in site.asked[-1]


def test_within_a_call_a_cut_line_is_gone_on_with_all_the_same(get, site):
    site.plans = [{"cut": 9000, "etag": None}, {"etag": None}]
    assert get() == CONTENT
    assert site.asked[1]["Range"] == "bytes=9000-"


def test_a_whole_part_is_not_fetched_again(get, site):
    """The call before was stopped after the last byte; the server refused to send more, and all came anew."""
    assert get() == CONTENT
    asked = len(site.asked)
    assert get() == CONTENT
    assert len(site.asked) == asked


def test_what_is_of_another_file_is_cut_before_the_new_one_is_noted(get, site, monkeypatch):
    """Stopped in between, the old bytes passed for the beginning of the new file."""
    site.plans = [{"cut": 9000, "etag": '"old"'}, {"status": 404}]
    with pytest.raises(WeightsError):
        get()

    def stopped(*_):
        raise KeyboardInterrupt

    site.content, site.plans = CONTENT[::-1], [{"etag": '"new"'}]
    with monkeypatch.context() as patch:
        patch.setattr(download_module, "_note", stopped)
        with pytest.raises(KeyboardInterrupt):
            get()
    site.plans = [{"etag": '"new"'}]
    assert get() == CONTENT[::-1]


def test_another_part_than_asked_for_is_not_taken(get, site):
    site.plans = [{"cut": 9000}, {"moved": 100}, {}]
    assert get() == CONTENT


def test_a_part_of_another_address_is_not_gone_on_with(get, site):
    site.plans = [{"cut": 9000}, {"status": 404}]
    with pytest.raises(WeightsError):
        get()
    site.plans, site.url = [{}], site.url + "2"
    assert get() == CONTENT
    assert "Range" not in site.asked[-1]


def test_a_part_that_is_too_long_is_thrown_away(get, site):
    site.plans = [{"cut": 9000}, {"status": 416}, {}]
    assert get() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final_and_said(get, site, status):
    site.plans = [{"status": status}]
    with pytest.raises(WeightsError, match=rf"got the answer {status} .*--from FOLDER"):
        get()
    assert len(site.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_fault_is_tried_again(get, site, status):
    site.plans = [{"status": status}, {"status": status}, {}]
    assert get() == CONTENT


def test_attempts_are_counted_anew_while_bytes_come(get, site):
    site.plans = [*({"cut": 2000} for _ in range(12)), {}]
    assert get(attempts=2) == CONTENT


def test_a_slow_server_is_waited_for(get, site):
    site.plans = [{"pause": 0.01}]
    assert get(timeout_s=20) == CONTENT
    assert len(site.asked) == 1


def test_a_silent_server_is_asked_again(get, site):
    site.plans = [{"cut": 9000, "hang": 3}, {}]
    assert get(timeout_s=0.5) == CONTENT
    assert site.asked[1]["Range"] == "bytes=9000-"


def test_an_unknown_length_is_no_hindrance(get, site):
    seen = []
    site.plans = [{"length": False}]
    assert get(progress=lambda *told: seen.append(told)) == CONTENT
    assert seen[-1] == ("file", len(CONTENT), None)


def test_a_web_page_is_not_taken_for_a_file(get, site):
    site.plans = [{"html": True}]
    with pytest.raises(WeightsError, match="got a web page"):
        get()


def test_no_server_and_no_address_are_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(WeightsError, match=r"2 failures in a row .*refused"):
            download(url, tmp_path / "file", attempts=2, wait_s=0.001)
    for url in ("file:///etc/passwd", "ftp://somewhere/file", "somewhere"):
        with pytest.raises(WeightsError, match="http:// or https://"):
            download(url, tmp_path / "file")


def test_a_full_disk_is_told_from_a_cut_line(get, site, monkeypatch):
    def full(_stream, _block, part):
        raise OSError(28, "No space left on device", str(part))

    monkeypatch.setattr(download_module, "_write", full)
    with pytest.raises(WeightsError, match="No space left on device; free some space"):
        get()
    assert len(site.asked) == 1


# ------------------------------------------------------------------ into the folder
def test_a_file_is_checked_installed_and_written_down(site, tmp_path, stripper, release):
    site.content = stripper
    folder = tmp_path / "weights"
    ((name, done),) = fetch_file(site.url, folder, release, NAME)
    assert name == "lifespanstrip-2"
    digest = hashlib.sha256(stripper).hexdigest()
    assert (done.sha256, done.trust, done.changed) == (digest, "first use", True)
    assert (folder / NAME).read_bytes() == stripper
    entry = ledger(folder)[NAME]
    assert (entry["sha256"], entry["from"]) == (digest, site.url)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {NAME, "checksums.json"}
    assert not fetch_file(site.url, folder, release, NAME)[0][1].changed
    assert not [
        path for path in folder.iterdir() if "lock" in path.name and "check" not in path.name
    ]


def test_two_processes_do_not_fetch_one_file(site, tmp_path, stripper, release):
    site.content = stripper
    with (tmp_path / f".{NAME}.part.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(WeightsError, match="no other process"):
            fetch_file(site.url, tmp_path, release, NAME)
    assert fetch_file(site.url, tmp_path, release, NAME)


def test_nobody_else_may_begin_before_the_file_is_in_its_place(
    site, tmp_path, stripper, release, monkeypatch
):
    """The lock ended with the transfer; three of four commands at once were tracebacks."""
    site.content = stripper
    seen = []
    whole = fetch.install

    def install_while_another_tries(*args, **options):
        monkeypatch.setattr(fetch, "install", whole)
        with pytest.raises(WeightsError, match="no other process"):
            fetch_file(site.url, tmp_path, release, NAME)
        seen.append(1)
        return whole(*args, **options)

    monkeypatch.setattr(fetch, "install", install_while_another_tries)
    ((_, done),) = fetch_file(site.url, tmp_path, release, NAME)
    assert done.changed
    assert seen == [1]


def test_a_lock_that_was_removed_meanwhile_does_not_count(tmp_path):
    """Two held one then: the old file's, which nobody sees any more, and the new one's."""
    part = tmp_path / "file.part"
    lock = tmp_path / ".file.part.lock"
    with lock.open("w") as handle:
        lock.unlink()
        assert not download_module._locked(handle, lock)
        with download_module.only_one(part):
            assert not download_module._locked(handle, lock)
    assert not lock.exists()


def test_a_file_system_without_locks_is_no_hindrance(
    site, tmp_path, stripper, release, monkeypatch
):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    site.content = stripper
    assert fetch_file(site.url, tmp_path, release, NAME)


def test_wrong_bytes_do_not_stay(site, tmp_path, stripper, release):
    site.content = stripper[:-2000] + bytes(2000)
    with pytest.raises(WeightsError, match="cannot be read as network weights"):
        fetch_file(site.url, tmp_path, release, NAME)
    central = stripper.rindex(b"PK\x01\x02")  # the end of a ZIP file is right, its list is not
    site.content = stripper[:central] + b"PK\x00\x00" + stripper[central + 4 :]
    with pytest.raises(WeightsError, match="cannot be read as network weights"):
        fetch_file(site.url, tmp_path, release, NAME)
    site.content = b"Not what you think it is." * 100
    with pytest.raises(WeightsError, match="cannot be read as network weights"):
        fetch_file(site.url, tmp_path, release, NAME)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == []


def test_weights_of_another_network_do_not_stay(site, tmp_path, release):
    blobs, kinds = random_caffe(4)
    site.content = encode_caffemodel(blobs, kinds)
    with pytest.raises(WeightsError, match="cannot be read"):
        fetch_file(site.url, tmp_path, release, NAME)
    assert not (tmp_path / NAME).exists()


def test_a_checksum_that_is_given_or_published_must_hold(
    site, tmp_path, stripper, release, monkeypatch
):
    site.content = stripper
    with pytest.raises(WeightsError, match=r"SHA-256 0000, which you gave, got [0-9a-f]{64}"):
        fetch_file(site.url, tmp_path, release, NAME, given_sha256="0000")
    assert not (tmp_path / NAME).exists()
    digest = hashlib.sha256(stripper).hexdigest()
    ((_, done),) = fetch_file(site.url, tmp_path, release, NAME, given_sha256=digest.upper())
    assert done.trust == "given"


def test_what_came_first_must_come_again(site, tmp_path, stripper, release):
    site.content = stripper
    fetch_file(site.url, tmp_path, release, NAME)
    stream = io.BytesIO()
    torch.save({"state_dict": ADUNet(8).state_dict()}, stream)
    site.content = stream.getvalue()
    with pytest.raises(WeightsError, match="the same file had when it first came"):
        fetch_file(site.url, tmp_path, release, NAME)
    assert (tmp_path / NAME).read_bytes() == stripper  # the good one stayed


def test_a_zip_file_of_the_whole_set_is_taken_apart(site, tmp_path, stripper, release, template):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"Model/{NAME}", stripper)
        for path in sorted(template(1.0).iterdir()):
            archive.writestr(f"Model/{path.name}", path.read_bytes())
        archive.writestr("../../outside.pt", b"no")
        archive.writestr("Model/README.md", b"text")
    site.content = stream.getvalue()
    site.plans = [{"cut": 3000}, {}]
    folder = tmp_path / "weights"
    done = fetch_archive(site.url, folder, release)
    assert [(name, f.path.name) for name, f in done] == [
        ("lifespanstrip-2", NAME), ("lifespanstrip-2", "template.hdr"),
        ("lifespanstrip-2", "template.img"),
    ]  # fmt: skip
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {NAME, "template.hdr", "template.img", "checksums.json"}
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".pt"]
    assert ledger(folder)[NAME]["from"] == site.url


def test_a_damaged_file_in_a_zip_file_is_said(tmp_path, stripper, release):
    source = tmp_path / "set.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(NAME, stripper)
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 255
    source.write_bytes(content)
    folder = tmp_path / "weights"
    with pytest.raises(WeightsError, match=f"expected {NAME} whole in .*CRC"):
        take(source, folder, (release,))
    assert not [path for path in folder.iterdir() if not path.name.startswith(".")]


def test_a_zip_file_that_is_none_is_said(site, tmp_path, release):
    with pytest.raises(WeightsError, match="a folder or a ZIP file"):
        fetch_archive(site.url, tmp_path, release)
    assert not list(tmp_path.glob("*.zip*"))


def test_published_names_are_found_in_a_folder_however_deep(tmp_path, stripper):
    blobs, kinds = random_caffe(4)
    source, folder = tmp_path / "downloads", tmp_path / "weights"
    (source / "a" / "b").mkdir(parents=True)
    (source / NAME).write_bytes(stripper)
    (source / "a" / "b" / "reconstruction_6m_T1.caffemodel").write_bytes(
        encode_caffemodel(blobs, kinds)
    )
    (source / "holiday.pt").write_bytes(b"?")
    done = take(source, folder)
    assert [(name, f.path.name) for name, f in done] == [
        ("bmex-1.0.1", "reconstruction_6m_T1.caffemodel"), ("lifespanstrip-2", NAME),
    ]  # fmt: skip
    assert (source / NAME).exists()
    with pytest.raises(WeightsError, match=r"published names .* found none"):
        take(source / "a", folder, (published_set("bmex-1.0.5"),))
    with pytest.raises(WeightsError, match="a folder or a ZIP file"):
        take(tmp_path / "nowhere", folder)


def test_a_bad_file_of_a_folder_is_named_and_not_installed(tmp_path):
    source, folder = tmp_path / "downloads", tmp_path / "weights"
    source.mkdir()
    (source / "BMEX-Month3-T2-model.pt").write_bytes(b"half a fi")
    with pytest.raises(WeightsError, match=r"BMEX-Month3-T2-model\.pt cannot be read"):
        take(source, folder)
    assert not (folder / "BMEX-Month3-T2-model.pt").exists()


def test_a_weights_folder_that_cannot_be_made_is_said(tmp_path, release):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="expected to make the weights folder"):
        fetch_file("http://127.0.0.1:9/", tmp_path / "file" / "weights", release, NAME)


def test_a_published_checksum_outweighs_all_but_the_given(
    tmp_path, stripper, release, monkeypatch
):
    import dataclasses

    file = dataclasses.replace(release.files[0], sha256="ab" * 32)
    known = dataclasses.replace(release, files=(file,))
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(stripper)
    with pytest.raises(WeightsError, match="which its publisher gave"):
        install(part, tmp_path, known, NAME, origin="a test")
    (tmp_path / NAME).write_bytes(stripper)
    with pytest.raises(WeightsError, match="which its publisher gave"):
        published.check(tmp_path / NAME, file)


# ------------------------------------------------------------------ names that others have too
def test_a_template_without_weights_of_its_set_is_somebody_elses(tmp_path, template, stripper):
    """An atlas in the downloads was taken for LifespanStrip's template."""
    source = template(1.0, "downloads/spm").parent
    folder = tmp_path / "weights"
    with pytest.raises(WeightsError, match="found none"):
        take(source, folder)
    assert not list(folder.glob("template*"))
    (folder / NAME).write_bytes(stripper)  # here already: then it may be its
    assert [one.path.name for _, one in take(source, folder)] == ["template.hdr", "template.img"]


def test_a_templates_halves_come_out_of_one_folder(tmp_path, template, stripper, release):
    """They were paired from two, and the network's input was matched to that."""
    source = tmp_path / "downloads"
    (template(1.0, "downloads/a") / "template.img").unlink()
    (template(2.0, "downloads/b") / "template.hdr").unlink()
    (source / NAME).write_bytes(stripper)
    done = take(source, tmp_path / "weights")
    assert [one.path.name for _, one in done] == [NAME]

    template(3.0, "downloads/c")
    template(4.0, "downloads/d")
    with pytest.raises(WeightsError, match=r"expected one folder .*downloads/c, .*downloads/d"):
        take(source, tmp_path / "weights")
    (source / "d" / NAME).write_bytes(stripper)  # beside the weights
    take(source, tmp_path / "weights")
    image = nib.load(tmp_path / "weights" / "template.hdr")
    assert np.asarray(image.dataobj).max() == pytest.approx(4.0)


def test_a_template_that_is_no_image_is_not_taken(tmp_path, stripper):
    source = tmp_path / "downloads"
    source.mkdir()
    for name in ("template.hdr", "template.img"):
        (source / name).write_bytes(b"spm")
    (source / NAME).write_bytes(stripper)
    with pytest.raises(
        WeightsError, match=r"template in .*downloads/template\.hdr.* The others were taken: T1T2w"
    ):
        take(source, tmp_path / "weights")
    names = {path.name for path in (tmp_path / "weights").iterdir() if path.name[0] != "."}
    assert names == {NAME, "checksums.json"}


# ------------------------------------------------------------------ what goes wrong half-way
def test_one_bad_file_does_not_keep_the_others_away(site, tmp_path, stripper):
    """One wrong byte among fifteen files cost a download of two gigabytes."""
    blobs, kinds = random_caffe(4)
    good = encode_caffemodel(blobs, kinds)
    names = [f"reconstruction_{n}m_T1.caffemodel" for n in (6, 9, 12)]
    source = tmp_path / "set.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for name, content in zip(names, (good, b"junk", good), strict=True):
            archive.writestr(name, content)
    with pytest.raises(
        WeightsError, match=rf"{names[1]} cannot be read.*taken: {names[0]}, {names[2]}"
    ):
        take(source, tmp_path / "weights")
    there = {path.name for path in (tmp_path / "weights").glob("*.caffemodel")}
    assert there == {names[0], names[2]}


def test_an_archive_stays_when_it_was_the_disk_that_failed(
    site, tmp_path, stripper, release, monkeypatch
):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(NAME, stripper)
    site.content = stream.getvalue()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", full)
        with pytest.raises(OutputError, match="No space left on device; free some space"):
            fetch_archive(site.url, tmp_path, release)
    assert (tmp_path / "lifespanstrip-2.zip.part").read_bytes() == site.content
    assert not (tmp_path / f"{NAME}.part").exists()
    assert [one.path.name for _, one in fetch_archive(site.url, tmp_path, release)] == [NAME]


def test_the_address_of_one_file_may_be_that_of_an_archive(
    site, tmp_path, stripper, release, template
):
    """A set of one file took its ZIP file for that file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"Model/{NAME}", stripper)
        for path in sorted(template(1.0).iterdir()):
            archive.writestr(f"Model/{path.name}", path.read_bytes())
    site.content = stream.getvalue()
    done = fetch_file(site.url, tmp_path / "weights", release, NAME)
    assert [one.path.name for _, one in done] == [NAME, "template.hdr", "template.img"]
    assert not list((tmp_path / "weights").glob("*.part*"))


def test_a_program_killed_while_it_checks_leaves_the_download(
    site, tmp_path, stripper, release, monkeypatch
):
    """It lay under a third name then, and nobody knew of it."""
    site.content = stripper

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "load_network", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_file(site.url, tmp_path, release, NAME)
    assert (tmp_path / f"{NAME}.part").read_bytes() == stripper
    asked = len(site.asked)
    fetch_file(site.url, tmp_path, release, NAME)
    assert len(site.asked) == asked


@pytest.mark.parametrize("words", ["http://[::1/x", "http://127.0.0.1:port/x"])
def test_an_address_that_is_none_is_said_at_once(tmp_path, words):
    with pytest.raises(WeightsError, match="an address that can be asked for"):
        download(words, tmp_path / "file")


def test_an_address_may_have_spaces_and_letters_of_any_script(site, tmp_path):
    url = f"{site.url}/my fïle.pt"
    assert download(url, tmp_path / "file", wait_s=0.001).read_bytes() == CONTENT
