# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

from bmex_bids.exceptions import WeightsError
from bmex_bids.network.weights import published, registry
from bmex_bids.network.weights.published import LEDGER, published_sets, write_down
from bmex_bids.network.weights.registry import published_set, select, sha256, verify

AGES = ("fetal", "month0", "month3", "month6", "month9", "month12", "month18", "month24")


@pytest.fixture
def sets(make_record, monkeypatch):
    """Three bundled sets: all ages, another for adults only, and one that strips."""
    network = torch.nn.Linear(1, 1)
    one = make_record(network, "bmex-compact", name="one")
    two = make_record(network, "bmex-compact", name="two")
    strip = make_record(network, "bmex-strip", kind="strip", name="strip")
    table = [one, dataclasses.replace(two, age_groups=("month24",)), strip]
    monkeypatch.setattr(registry, "bundled", lambda: table)
    return table


@pytest.fixture
def weights_dir(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "BMEX-Month24-T1-model.pt").write_bytes(b"weights")
    return folder


def test_what_travels_in_the_package_is_whole_and_small():
    records = registry.bundled()
    assert {record.kind for record in records} == {
        "enhance",
        "strip",
        "score",
        "within",
        "denoise",
        "super",
        "segment",
    }
    for record in records:
        verify(record.path, record.sha256)
    assert sum(record.path.stat().st_size for record in records) <= 40e6


def test_the_published_file_names_are_those_of_the_releases():
    months = (0, 3, 6, 9, 12, 18, 24)
    expected = {f"BMEX-Month{m}-{c}-model.pt" for m in months for c in ("T1", "T2")}
    files = published_set("bmex-1.0.5").files
    assert len(files) == 15
    assert {file.file for file in files} == {*expected, "BMEX-Fetal-T2-model.pt"}
    files = published_set("bmex-1.0.1").files
    expected = {f"reconstruction_{m}m_T1.caffemodel" for m in months}
    assert {file.file for file in files} == {*expected, "reconstruction_fetal_T2.caffemodel"}
    assert [file.file for file in published_set("lifespanstrip-2").files] == ["T1T2w-model.pt"]


def test_each_image_has_at_most_one_file_of_a_release_and_the_right_one():
    for release in published_sets():
        for age in AGES:
            for contrast in ("T1w", "T2w"):
                found = [file.file for file in release.files if file.serves(age, contrast)]
                assert len(found) <= 1
                word = age.removeprefix("month")
                assert all(word in name.lower() or release.kind == "strip" for name in found)
    names = [r.record_name(file) for r in published_sets() for file in r.files]
    assert len(set(names)) == len(names) == 24
    assert "bmex-1.0.5-month24-T1w" in names


def test_auto_takes_the_published_weights_where_they_are_and_else_the_bundled(sets, weights_dir):
    here = select("enhance", age_group="month24", contrast="T1w", weights_dir=weights_dir)
    assert here.path == weights_dir / "BMEX-Month24-T1-model.pt"
    assert here.variant == "bmex-pytorch"
    assert here.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert here.serves("enhance", "month24", "T1w")
    assert not here.serves("enhance", "month24", "T2w")
    for group, contrast, folder in (
        ("month24", "T2w", weights_dir),
        ("fetal", "T1w", weights_dir),
        ("month24", "T1w", None),
    ):
        record = select("enhance", age_group=group, contrast=contrast, weights_dir=folder)
        assert record.name == "one"


def test_bundled_and_names_do_not_look_into_the_folder(sets, weights_dir):
    asked = {"age_group": "month24", "contrast": "T1w", "weights_dir": weights_dir}
    assert select("enhance", weights="bundled", **asked).name == "one"
    assert select("enhance", weights="two", **asked).name == "two"


def test_stripping_is_ours_where_lifespanstrip_is_not_there(sets, weights_dir):
    for weights in ("auto", "bundled", "two", "bmex-1.0.5"):
        assert select("strip", weights=weights, weights_dir=weights_dir).name == "strip"


def test_lifespanstrip_strips_where_it_is_there_and_nothing_bundled_is_asked_for(
    sets, weights_dir
):
    (weights_dir / "T1T2w-model.pt").write_bytes(b"strip")
    for weights in ("auto", "bmex-1.0.5", "bmex-1.0.1"):
        record = select("strip", weights=weights, weights_dir=weights_dir)
        assert (record.name, record.variant) == ("lifespanstrip-2", "lifespanstrip")
        assert record.companion is None
    for weights in ("bundled", "two"):
        assert select("strip", weights=weights, weights_dir=weights_dir).name == "strip"
    (weights_dir / "template.hdr").write_bytes(b"")
    assert select("strip", weights_dir=weights_dir).companion is None  # half an Analyze image
    (weights_dir / "template.img").write_bytes(b"")
    record = select("strip", weights_dir=weights_dir)
    assert record.companion == weights_dir / "template.hdr"


def test_the_folder_is_the_one_given_else_of_the_environment_else_in_the_cache(
    sets, weights_dir, monkeypatch, tmp_path
):
    asked = {"age_group": "month24", "contrast": "T1w"}
    monkeypatch.setenv("BMEX_WEIGHTS_DIR", str(weights_dir))
    assert select("enhance", **asked).path.parent == weights_dir
    (tmp_path / "other").mkdir()
    assert select("enhance", weights_dir=tmp_path / "other", **asked).name == "one"
    monkeypatch.delenv("BMEX_WEIGHTS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert select("enhance", **asked).name == "one"
    (tmp_path / "cache" / "bmex_bids").mkdir(parents=True)
    weights_dir.rename(tmp_path / "cache" / "bmex_bids" / "weights")
    assert select("enhance", **asked).name == "bmex-1.0.5-month24-T1w"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert select("enhance", **asked).name == "one"


def test_auto_does_not_take_the_caffe_release_which_knows_no_cerebellum(sets, weights_dir):
    (weights_dir / "BMEX-Month24-T1-model.pt").unlink()
    (weights_dir / "reconstruction_24m_T1.caffemodel").write_bytes(b"caffe")
    asked = {"age_group": "month24", "contrast": "T1w", "weights_dir": weights_dir}
    assert select("enhance", **asked).name == "one"
    record = select("enhance", weights="bmex-1.0.1", **asked)
    assert (record.name, record.variant) == ("bmex-1.0.1-month24-T1w", "bmex-caffe")


def test_a_converted_file_is_taken_where_the_published_one_is_not(sets, weights_dir):
    (weights_dir / "BMEX-Month3-T2-model.safetensors").write_bytes(b"converted")
    asked = {"age_group": "month3", "contrast": "T2w", "weights_dir": weights_dir}
    assert select("enhance", **asked).path.name == "BMEX-Month3-T2-model.safetensors"
    (weights_dir / "BMEX-Month3-T2-model.pt").write_bytes(b"published")
    assert select("enhance", **asked).path.name == "BMEX-Month3-T2-model.pt"


def test_a_published_file_that_changed_since_it_came_is_refused(sets, weights_dir):
    path = weights_dir / "BMEX-Month24-T1-model.pt"
    asked = {"age_group": "month24", "contrast": "T1w", "weights_dir": weights_dir}
    assert "none was written down" in select("enhance", **asked).description
    write_down(path, sha256(path), "a test")
    assert "unchanged since it came" in select("enhance", **asked).description
    path.write_bytes(b"other weights")
    with pytest.raises(WeightsError, match=r"which it had when it came, found .*changed"):
        select("enhance", **asked)
    (weights_dir / LEDGER).write_text("{")
    with pytest.raises(WeightsError, match=r"expected checksums in .*bmex-weights verify"):
        select("enhance", **asked)


def test_what_is_asked_for_and_absent_is_said(sets, weights_dir, monkeypatch):
    asked = {"age_group": "month24", "contrast": "T2w"}
    monkeypatch.setenv("BMEX_WEIGHTS_DIR", "/nowhere")
    with pytest.raises(
        WeightsError,
        match=r"BMEX-Month24-T2-model\.pt in /nowhere .*--weights-dir or BMEX_WEIGHTS_DIR.*run: "
        r"bmex-weights fetch bmex-1\.0\.5; .*dropbox.*fetch --from FOLDER.*--weights bundled",
    ):
        select("enhance", weights="bmex-1.0.5", **asked)
    with pytest.raises(WeightsError, match=r"which --weights-dir names.*--weights-dir /"):
        select("enhance", weights="bmex-1.0.5", weights_dir=weights_dir, **asked)
    with pytest.raises(WeightsError, match=r"bmex-1\.0\.1 was published for, got month24 and T2w"):
        select("enhance", weights="bmex-1.0.1", **asked)
    with pytest.raises(
        WeightsError, match=r"auto, bundled, bmex-1\.0\.5, bmex-1\.0\.1 or one of .*got 'three'"
    ):
        select("enhance", weights="three", **asked)
    with pytest.raises(WeightsError, match=r"age group fetal and contrast T2w \(--weights two\)"):
        select("enhance", age_group="fetal", contrast="T2w", weights="two")
    with pytest.raises(WeightsError, match="age group month3"):
        select("enhance", age_group="month3", contrast="T2w")


def test_a_damaged_or_absent_file_is_refused(sets):
    record = sets[0]
    verify(record.path, record.sha256)
    record.path.write_bytes(record.path.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=f"{record.sha256}, found {sha256(record.path)}"):
        select("enhance", age_group="month24", contrast="T1w")
    record.path.unlink()
    with pytest.raises(WeightsError, match="found none; install the package again"):
        select("enhance", age_group="month24", contrast="T1w")


def test_a_digest_is_computed_again_when_the_file_changes(tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"abc", b"abcd"):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()


def test_the_package_brings_weights_for_every_age_and_contrast():
    records = registry.bundled()
    assert len({record.name for record in records}) == len(records)
    for age in AGES:
        for contrast in ("T1w", "T2w"):
            for kind in ("enhance", "strip"):
                record = select(kind, age_group=age, contrast=contrast)  # checks the digest
                assert record.kind == kind
                assert record.licence
                assert record.source


def test_a_set_for_an_age_and_above_goes_before_one_for_all_ages(sets, make_record, weights_dir):
    older = make_record(torch.nn.Linear(1, 1), "bmex-slices", name="older")
    sets.append(dataclasses.replace(older, age_groups=("month24",), from_months=30.0))
    asked = {"age_group": "month24", "contrast": "T1w", "weights": "bundled"}
    assert select("enhance", age_months=30.0, **asked).name == "older"
    assert select("enhance", age_months=29.9, **asked).name == "one"
    assert select("enhance", **asked).name == "one"  # age not known
    with pytest.raises(WeightsError, match="month24"):
        select("enhance", age_group="month24", contrast="T1w", weights="older", age_months=24.0)


def test_an_image_unlike_those_that_trained_a_set_gets_a_share_of_its_correction(
    sets, weights_dir
):
    """The whole correction smoothed real T2w heads of adults, none of which had trained it."""
    sets[0] = dataclasses.replace(
        sets[0], contrasts=("T1w", "T2w"), shares={"T2w": {"from_months": 30, "share": 0.4}}
    )
    asked = {"age_group": "month24", "weights": "bundled"}
    assert select("enhance", contrast="T2w", age_months=30.0, **asked).share == 0.4
    assert select("enhance", contrast="T2w", age_months=29.0, **asked).share == 1
    assert select("enhance", contrast="T2w", **asked).share == 1
    assert select("enhance", contrast="T1w", age_months=30.0, **asked).share == 1


def test_a_folder_that_may_not_be_looked_into_has_no_published_weights(
    tmp_path, monkeypatch, caplog
):
    """With ``auto`` it ended the run."""
    published._say_once.cache_clear()

    def denied(_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", denied)
        assert published.locate(tmp_path, "x.pt") is None
        assert published.locate(tmp_path, "y.pt") is None
    assert caplog.text.count("are ignored: Permission denied") == 1


def test_a_user_without_a_home_has_a_weights_folder(monkeypatch):
    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    for name in ("BMEX_WEIGHTS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert published.weights_folder() == Path("/.cache/bmex_bids/weights")
