# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib

import pytest
import torch

from bmex_bids.exceptions import WeightsError
from bmex_bids.network import registry
from bmex_bids.network.registry import published_file, select, sha256, verify

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


def test_the_published_file_names_are_the_fifteen_of_the_release():
    names = {published_file(age, contrast) for age in AGES for contrast in ("T1w", "T2w")}
    months = (0, 3, 6, 9, 12, 18, 24)
    expected = {f"BMEX-Month{m}-{c}-model.pt" for m in months for c in ("T1", "T2")}
    assert names - expected == {"BMEX-Fetal-T1-model.pt", "BMEX-Fetal-T2-model.pt"}
    assert expected < names


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


def test_stripping_does_not_care_about_the_choice_for_enhancement(sets, weights_dir):
    for weights in ("auto", "bundled", "two", "bmex-1.0.5"):
        assert select("strip", weights=weights, weights_dir=weights_dir).name == "strip"


def test_what_is_asked_for_and_absent_is_said(sets, weights_dir):
    asked = {"age_group": "month24", "contrast": "T2w"}
    with pytest.raises(WeightsError, match=r"needs the folder.*--weights-dir"):
        select("enhance", weights="bmex-1.0.5", **asked)
    with pytest.raises(WeightsError, match=r"BMEX-Month24-T2-model\.pt in .*README"):
        select("enhance", weights="bmex-1.0.5", weights_dir=weights_dir, **asked)
    with pytest.raises(WeightsError, match=r"auto, bundled, bmex-1\.0\.5 or one of .*got 'three'"):
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
