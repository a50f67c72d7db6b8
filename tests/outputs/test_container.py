# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bmex_bids import __version__
from bmex_bids.cli.parser import parse
from bmex_bids.interfaces.outputs import processing_record
from bmex_bids.outputs.container import container, version_line
from bmex_bids.outputs.dataset import describe

IMAGE = {
    "BMEX_CONTAINER_TYPE": "docker",
    "BMEX_CONTAINER_TAG": "bmex_bids:0.1.0-cuda",
    "BMEX_CONTAINER_REVISION": "0123456789ab",
    "BMEX_CONTAINER_CREATED": "2026-11-21T13:54:28Z",
}
SAID = {
    "Type": "docker",
    "Tag": "bmex_bids:0.1.0-cuda",
    "Revision": "0123456789ab",
    "Created": "2026-11-21T13:54:28Z",
}


def test_outside_an_image_nothing_is_said():
    assert container({}) == {}
    assert container({"BMEX_CONTAINER_TAG": ""}) == {}
    assert version_line("bmex", {}) == f"bmex {__version__}"


def test_in_an_image_its_name_and_origin():
    assert container(IMAGE) == SAID


@pytest.mark.parametrize(
    ("variable", "kind"),
    [("APPTAINER_CONTAINER", "apptainer"), ("SINGULARITY_CONTAINER", "singularity")],
)
def test_the_docker_image_as_one_file_says_what_runs_it(variable, kind):
    assert container({**IMAGE, variable: "/x.sif"})["Type"] == kind
    # this package installed in somebody else's image: that one is not ours to describe
    assert container({variable: "/x.sif"}) == {}


def test_version_description_and_sidecars_repeat_it(monkeypatch, tmp_path, capsys):
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in IMAGE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        parse(["--version"])
    assert stop.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()  # one line, however long
    assert line == (
        f"bmex {__version__} (docker image bmex_bids:0.1.0-cuda, revision 0123456789ab, "
        "created 2026-11-21T13:54:28Z)"
    )
    (generator,) = describe(tmp_path / "bids", tmp_path / "out")["GeneratedBy"]
    assert generator["Container"] == SAID
    provenance = dict.fromkeys(
        ("weights", "weights_sha256", "weights_licence", "weights_source", "device", "precision",
         "mirrored", "seconds")
    )  # fmt: skip
    planned = {"age": None, "age_group": None, "warnings": []}
    assert processing_record(planned, provenance, {}, {}, {})["Container"] == SAID
