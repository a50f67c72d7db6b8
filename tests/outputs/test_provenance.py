# SPDX-License-Identifier: Apache-2.0
"""``prov/`` of the output, as BIDS-Prov describes it."""

from __future__ import annotations

import json

import pytest

from bmex_bids.outputs.provenance import LABEL, activity_id, write_provenance

RECORD = {
    "Version": "0.1.0",
    "Environment": {"OperatingSystem": "Linux-6", "Python": "3.11.7"},
    "Weights": {"Name": "w", "SHA256": "a" * 64},
    "Mask": {"method": "network", "weights": "s", "weights_sha256": "b" * 64},
    "NetworkSeconds": 3.0,
}


@pytest.fixture
def sidecar(tmp_path):
    """A function that writes the sidecar of an image of a participant."""

    def make(label, **changes):
        record = RECORD | changes
        path = tmp_path / f"sub-{label}" / "anat" / f"sub-{label}_desc-enhanced_T1w.json"
        path.parent.mkdir(parents=True)
        content = {
            "Sources": [f"bids:raw:sub-{label}/anat/sub-{label}_T1w.nii.gz"],
            "GeneratedBy": activity_id(f"sub-{label}_T1w", record),
            "BMEX": record | {"Fingerprint": {}},
        }
        path.write_text(json.dumps(content))
        return content["GeneratedBy"]

    return make


def read(folder):
    """Kind of object → the objects."""
    found = {}
    for path in (folder / "prov").glob(f"{LABEL}_*.json"):
        found |= json.loads(path.read_text())
    return found


def test_every_identifier_is_described_once(sidecar, tmp_path):
    activities = {sidecar("01"), sidecar("02", Version="0.2.0", Container={"Tag": "x/y:2"})}
    run = tmp_path / "logs" / "20251121-080534_1f0c9a7e"
    run.mkdir(parents=True)
    (run / "status.tsv").write_text("image\tstatus\nsub-01_T1w\tdone\nsub-02_T1w\tfailed\n")
    (run / "config.toml").write_text('command = "bmex in out participant"\n')
    written = write_provenance(tmp_path)
    assert {path.name for path in written} == {
        *(f"{LABEL}_{suffix}.json" for suffix in ("act", "ent", "soft", "env")),
        "provenance.tsv",
        "provenance.json",
    }
    found = read(tmp_path)
    assert {item["Id"] for item in found["Activities"]} == activities
    described = [item["Id"] for items in found.values() for item in items]
    assert len(described) == len(set(described))
    for activity in found["Activities"]:
        assert activity["AssociatedWith"] in {item["Id"] for item in found["Software"]}
        assert set(activity["Used"]) <= set(described)
    one, two = sorted(found["Activities"], key=lambda item: item["Label"])
    assert one["Label"] == "Enhancement of sub-01_T1w"
    assert (one["Command"], two["Command"]) == ("bmex in out participant", "bmex")
    assert {item["Version"] for item in found["Software"]} == {"0.1.0", "0.2.0"}
    assert {item["Label"] for item in found["Environments"]} == {"Python 3.11.7", "x/y:2"}
    raw = "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    assert raw in one["Used"]
    digests = {item["Digest"]["sha256"] for item in found["ProvEntities"] if "Digest" in item}
    assert digests == {"a" * 64, "b" * 64}
    table = (tmp_path / "prov" / "provenance.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in table] == ["provenance_label", LABEL]


def test_the_time_of_the_network_makes_no_other_activity():
    first = activity_id("sub-01_T1w", RECORD)
    assert first == activity_id("sub-01_T1w", RECORD | {"NetworkSeconds": 9.9})
    assert first != activity_id("sub-01_T1w", RECORD | {"Version": "0.2.0"})
    assert first != activity_id("sub-02_T1w", RECORD)


def test_an_output_without_activities_gets_no_folder(tmp_path):
    assert write_provenance(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
