# SPDX-License-Identifier: Apache-2.0
"""The viewer: for whoever has its address on this machine, and for the images of the output alone."""

from __future__ import annotations

import gzip
import http.client
import json
import threading

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli.view import main
from bmex_bids.reports.viewer import LOOPBACK, Viewer, address, server

NAME = "sub-01_T1w"


@pytest.fixture
def output(tmp_path, head_phantom):
    """An output with one image, brighter by a quarter than the raw one, and a secret beside it."""
    phantom = head_phantom(spacing=6.0)
    raw = np.asarray(phantom.image.dataobj)
    source = tmp_path / "bids" / "sub-01" / "anat" / f"{NAME}.nii.gz"
    anat = tmp_path / "out" / "sub-01" / "anat"
    for folder in (source.parent, anat):
        folder.mkdir(parents=True)
    nib.save(phantom.image, source)
    for name, data in (
        ("sub-01_desc-preproc_T1w", np.where(phantom.mask, raw * 1.25, raw).astype(np.float32)),
        ("sub-01_desc-brain_mask", phantom.mask.astype(np.uint8)),
        ("sub-01_desc-enhanced_dseg", phantom.tissues),
    ):
        nib.save(nib.Nifti1Image(data, phantom.image.affine), anat / f"{name}.nii.gz")
    sidecar = {
        "Sources": [f"bids:raw:sub-01/anat/{NAME}.nii.gz"],
        "BMEX": {"Gate": {"Verdict": "pass"}},
    }
    (anat / "sub-01_desc-enhanced_T1w.json").write_text(json.dumps(sidecar))
    description = {"DatasetLinks": {"raw": "../bids"}}
    (tmp_path / "out" / "dataset_description.json").write_text(json.dumps(description))
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path / "out"


@pytest.fixture
def viewer(output):
    return Viewer(output.resolve())


@pytest.fixture
def made(viewer):
    """A running server."""
    with server(viewer) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def ask(made, viewer):
    """A function that asks for a path below the token; status and content."""

    def request(path, method="GET", body=None, token=viewer.token, **headers):
        connection = http.client.HTTPConnection(LOOPBACK, made.server_address[1], timeout=20)
        connection.request(method, f"/{token}/{path}" if token else f"/{path}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    return request


def test_it_listens_on_the_loopback_address_alone(made):
    assert made.server_address[0] == LOOPBACK


def test_without_the_token_or_under_another_name_there_is_nothing(ask):
    assert ask("")[0] == 200
    for token in ("", "x", "../"):
        assert ask("images.json", token=token)[0] == 404
        assert ask("rating", "POST", "{}", token=token)[0] == 404
    assert ask("images.json", Host="evil.example")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "%2e%2e/secret.txt",
        "image/..%2f..%2fsecret.txt/after.nii.gz",
        f"image/{NAME}/..%2fdataset_description.json",
        f"image/{NAME}/sidecar.json",
        "dataset_description.json",
    ],
)
def test_only_the_images_are_served(ask, path):
    assert ask(path)[0] == 404


def test_each_layer_is_an_image_on_one_grid(ask, output):
    (image,) = json.loads(ask("images.json")[1])
    assert (image["name"], image["verdict"], image["rating"]) == (NAME, "pass", "")
    assert image["layers"] == ["after", "before", "mask", "tissues"]
    loaded = {}
    for layer in (*image["layers"], "difference"):
        status, content = ask(f"image/{NAME}/{layer}.nii.gz")
        assert status == 200
        loaded[layer] = nib.Nifti1Image.from_bytes(gzip.decompress(content)).get_fdata()
    difference = loaded["after"] - loaded["before"]
    np.testing.assert_allclose(loaded["difference"], difference, atol=1e-3)
    assert difference[loaded["mask"] > 0].mean() > 10


def test_a_raw_image_outside_the_dataset_is_not_served(output):
    path = output / "sub-01" / "anat" / "sub-01_desc-enhanced_T1w.json"
    path.write_text(json.dumps({"Sources": ["bids:raw:../secret.nii"], "BMEX": {"Version": "1"}}))
    (output.parent / "secret.nii").write_text("secret")
    assert "before" not in Viewer(output.resolve()).files[NAME]


def test_a_link_out_of_the_output_is_not_served(output):
    path = output / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz"
    path.unlink()
    path.symlink_to(output.parent / "secret.txt")
    assert "mask" not in Viewer(output.resolve()).files[NAME]


def test_a_rating_is_saved_and_replaced(ask, output):
    for rating, comment in (("2", "a\tb\nc"), (3, "")):
        body = json.dumps({"image": NAME, "rating": rating, "comment": comment})
        assert ask("rating", "POST", body) == (200, b"{}")
        header, row = (output / "ratings.tsv").read_text().splitlines()
        assert header.split("\t") == ["image", "rating", "comment", "time"]
        assert row.split("\t")[:3] == [NAME, str(rating), "a b c" if comment else "n/a"]
    (image,) = json.loads(ask("images.json")[1])
    assert image["rating"] == "3"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{",
        json.dumps({"image": "sub-02_T1w", "rating": "1"}),
        json.dumps({"image": NAME, "rating": "4"}),
        "x" * 20_000,
    ],
)
def test_what_is_no_rating_is_refused(ask, output, body):
    assert ask("rating", "POST", body)[0] == 400
    assert not (output / "ratings.tsv").exists()


def test_an_output_without_images_ends_the_program(tmp_path, capsys):
    assert main([str(tmp_path), "--no-browser"]) == 4
    assert "name the output folder of a run" in capsys.readouterr().err


def test_the_page_shows_before_and_after_and_takes_a_rating(made, viewer, output, browser):
    browser.open(address(viewer, made))
    browser.wait(lambda: browser.evaluate("window.shown") == NAME)
    assert browser.failed == []
    assert all(url.startswith(f"http://{LOOPBACK}:") for url in browser.requested)

    def brightness():
        return float(browser.pixels("canvas").mean())

    press = "document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}', bubbles: true}}))"
    after = brightness()
    assert after > 1
    browser.evaluate(press.format(" "))
    before = brightness()
    assert after > before * 1.03, "the enhanced brain is brighter"
    browser.evaluate(press.format("m"))
    assert browser.evaluate("document.getElementById('mask').checked")
    red, green, _ = browser.pixels("canvas").reshape(-1, 3).mean(0)
    assert red > green * 1.05
    browser.evaluate("document.getElementById('comment').value = 'fine'")
    browser.evaluate(press.format("2"))
    browser.wait(lambda: (output / "ratings.tsv").is_file())
    assert f"{NAME}\t2\tfine\t" in (output / "ratings.tsv").read_text()


def test_the_letters_of_the_directions_can_be_read(made, viewer, browser):
    """They were dim and lay under the cross hair."""
    browser.open(address(viewer, made))
    browser.wait(lambda: browser.evaluate("window.shown") == NAME)
    left = browser.pixels("canvas")[5:100, :10]  # beside the vertex
    assert (left.min(axis=2) > 100).sum() >= 10


def test_the_uncertainty_is_a_layer_of_colours_where_the_output_has_it(output, browser):
    like = nib.load(output / "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    inside = np.asarray(like.dataobj) > 0
    expected = np.where(inside, np.linspace(20, 100, inside.shape[0])[:, None, None], 0)
    image = nib.Nifti1Image(expected.astype(np.float32), like.affine)
    nib.save(image, output / "sub-01/anat/sub-01_desc-uncertainty_T1w.nii.gz")
    viewer = Viewer(output.resolve())
    with server(viewer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        browser.open(address(viewer, running))
        browser.wait(lambda: browser.evaluate("window.shown") == NAME)

        def colour():
            pixels = browser.pixels("canvas").reshape(-1, 3).astype(float)
            return float((pixels.max(1) - pixels.min(1)).mean())

        grey = colour()
        press = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'u', bubbles: true}))"
        browser.evaluate(press)
        assert browser.evaluate("document.getElementById('uncertainty').checked")
        assert colour() > grey + 5
        browser.evaluate(press)
        assert colour() == pytest.approx(grey, abs=1)
        running.shutdown()
    assert browser.failed == []


def test_without_a_map_of_the_uncertainty_its_box_is_off(made, viewer, browser):
    browser.open(address(viewer, made))
    browser.wait(lambda: browser.evaluate("window.shown") == NAME)
    box = "document.getElementById('uncertainty').parentElement.classList.contains('off')"
    assert browser.evaluate(box)
