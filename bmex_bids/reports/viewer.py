# SPDX-License-Identifier: Apache-2.0
"""A server of this machine alone that shows an output's images and takes ratings.

It listens on the loopback address, answers only below a secret path, and serves no file but the
page, the images in the output and the raw images that they were made from.
"""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote

from bmex_bids.outputs.files import write_text
from bmex_bids.outputs.pages import render
from bmex_bids.outputs.records import find_records, table_of

LOOPBACK = "127.0.0.1"
TABLE = "ratings.tsv"
COLUMNS = ("image", "rating", "comment", "time")
#: 0 is of no use, 3 is excellent
RATINGS = ("0", "1", "2", "3")
MOST_BYTES = 10_000
NIIVUE = "niivue-0.69.0.umd.js.gz"
#: what a page may load: itself and what it has made; nothing from elsewhere
POLICY = (
    "default-src 'self' 'unsafe-inline' data: blob:; script-src 'self' 'unsafe-inline' "
    "'wasm-unsafe-eval' blob:; worker-src blob:; frame-ancestors 'none'; base-uri 'none'"
)
#: layer of the page → ending of the file in the output, after the source's name
LAYERS: Mapping[str, str] = {
    "after": "desc-preproc_{suffix}",
    "mask": "desc-brain_mask",
    "tissues": "desc-enhanced_dseg",
    "uncertainty": "desc-uncertainty_{suffix}",
}


@dataclass(frozen=True)
class Viewer:
    """What is shown of an output.

    Attributes
    ----------
    output_dir : absolute
    token : the secret part of the address
    """

    output_dir: Path
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    lock: Any = field(default_factory=Lock, repr=False)

    @cached_property
    def files(self) -> dict[str, dict[str, Path]]:
        """Image → layer → file; ``before`` is the raw image, where it is found."""
        found: dict[str, dict[str, Path]] = {}
        for image in find_records(self.output_dir):
            sidecar, name = image.sidecar(), str(image.source)
            folder = next(iter(image.paths.values())).parent
            layers = {}
            for layer, ending in LAYERS.items():
                stem = name.rpartition("_")[0]
                suffix = name.rpartition("_")[2]
                spaced = folder / f"{stem}_space-{suffix}_{ending}.nii.gz"
                plain = folder / f"{stem}_{ending.format(suffix=suffix)}.nii.gz"
                path = spaced if spaced.is_file() else plain
                if path.is_file() and path.resolve().is_relative_to(self.output_dir):
                    layers[layer] = path
            raw = self._raw(sidecar)
            if raw is not None:
                layers["before"] = raw
            if "after" in layers:
                found[name] = layers
        return found

    def _raw(self, sidecar: Mapping[str, Any]) -> Path | None:
        """The raw image of a sidecar, inside the dataset that the output links to."""
        description = self.output_dir / "dataset_description.json"
        try:
            links = json.loads(description.read_text(encoding="utf-8"))["DatasetLinks"]
            root = (self.output_dir / unquote(links["raw"])).resolve()
        except (OSError, ValueError, LookupError, TypeError):
            return None
        for source in sidecar.get("Sources") or []:
            path = (root / str(source).removeprefix("bids:raw:")).resolve()
            inside = str(source).startswith("bids:raw:") and path.is_relative_to(root)
            if inside and path.name.endswith((".nii", ".nii.gz")) and path.is_file():
                return path
        return None

    def listing(self) -> list[dict[str, Any]]:
        """What the page knows of each image."""
        ratings = self.ratings()
        verdicts = {
            str(image.source): table_of(image.record(), "Gate").get("Verdict", "")
            for image in find_records(self.output_dir)
        }
        return [
            {
                "name": name,
                "layers": sorted(layers),
                "packed": {k: path.name.endswith(".gz") for k, path in layers.items()},
                "verdict": verdicts.get(name, ""),
                "rating": ratings.get(name, {}).get("rating", ""),
                "comment": ratings.get(name, {}).get("comment", ""),
            }
            for name, layers in self.files.items()
        ]

    def ratings(self) -> dict[str, dict[str, str]]:
        """Image → its row of ``ratings.tsv``; empty where there is none."""
        try:
            lines = (self.output_dir / TABLE).read_text(encoding="utf-8").splitlines()
        except OSError:
            return {}
        header, *rows = [line.split("\t") for line in lines] or [[]]
        tables = [dict(zip(header, row, strict=False)) for row in rows]
        return {row["image"]: row for row in tables if row.get("image")}

    def rate(self, image: str, rating: str, comment: str) -> None:
        """Write a rating into ``ratings.tsv``, in place of an earlier one (ValueError)."""
        if image not in self.files:
            raise ValueError(f"expected an image of the output, got {image!r}")
        if rating not in RATINGS:
            raise ValueError(f"expected a rating of 0, 1, 2 or 3, got {rating!r}")
        with self.lock:
            rows = self.ratings()
            now = f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S}"
            words = " ".join(comment.split())
            rows[image] = {"image": image, "rating": rating, "comment": words, "time": now}
            cells = [[row.get(key) or "n/a" for key in COLUMNS] for row in rows.values()]
            text = "\n".join("\t".join(row) for row in [list(COLUMNS), *sorted(cells)])
            write_text(self.output_dir / TABLE, f"{text}\n")

    def difference(self, image: str) -> bytes:
        """The enhanced minus the raw image of an image, as packed NIfTI; KeyError without a raw."""
        import nibabel as nib
        import numpy as np

        layers = self.files[image]
        first, second = (
            nib.squeeze_image(nib.load(layers[key]))  # type: ignore[arg-type]
            for key in ("before", "after")
        )
        change = np.asarray(second.dataobj, np.float32) - np.asarray(first.dataobj, np.float32)
        return gzip.compress(nib.Nifti1Image(change, second.affine).to_bytes(), 1)


def server(viewer: Viewer, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address; ``port`` 0 takes a free one."""
    handler = type("Handler", (_Handler,), {"viewer": viewer})
    made = ThreadingHTTPServer((LOOPBACK, port), handler)
    made.daemon_threads = True
    return made


def address(viewer: Viewer, made: ThreadingHTTPServer) -> str:
    """What to open in a browser of this machine."""
    return f"http://{LOOPBACK}:{made.server_address[1]}/{viewer.token}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers below the token; everything else is not found."""

    viewer: Viewer
    server_version = "bmex-view"

    def do_GET(self) -> None:
        """The page and what it loads."""
        parts = self._parts()
        if parts is None:
            return
        pages: dict[str, Callable[[], tuple[str, bytes]]] = {
            "": lambda: ("text/html; charset=utf-8", render("viewer.html.j2").encode()),
            "images.json": lambda: (
                "application/json",
                json.dumps(self.viewer.listing()).encode(),
            ),
        }
        if len(parts) == 1 and parts[0] in pages:
            self._send(*pages[parts[0]]())
        elif parts == ["niivue.js"]:
            content = (resources.files("bmex_bids.data") / "viewer" / NIIVUE).read_bytes()
            self._send("text/javascript; charset=utf-8", content, packed=True)
        elif len(parts) == 3 and parts[0] == "image":
            self._send_image(parts[1], parts[2].partition(".")[0])
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """A rating."""
        parts = self._parts()
        if parts is None:
            return
        if parts != ["rating"]:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            size = int(self.headers.get("Content-Length", 0))
            if not 0 < size <= MOST_BYTES:
                raise ValueError(f"expected at most {MOST_BYTES} bytes, got {size}")
            given = json.loads(self.rfile.read(size))
            self.viewer.rate(
                str(given["image"]), str(given["rating"]), str(given.get("comment", ""))
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._send("application/json", b"{}")

    def _parts(self) -> list[str] | None:
        """The path below the token; None, and answered, where the token or the host is wrong."""
        port = self.server.server_address[1]  # type: ignore[index]
        hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}  # not another name that leads here
        words = [unquote(word) for word in self.path.partition("?")[0].split("/")]
        token, parts = "".join(words[1:2]), words[2:]
        known = secrets.compare_digest(token.encode(), self.viewer.token.encode())
        if not known or not parts or self.headers.get("Host") not in hosts:
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return parts

    def _send_image(self, name: str, layer: str) -> None:
        layers = self.viewer.files.get(name, {})
        if layer == "difference" and {"before", "after"} <= set(layers):
            self._send("application/octet-stream", self.viewer.difference(name))
        elif layer in layers:
            self._send("application/octet-stream", layers[layer].read_bytes())
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _send(self, kind: str, content: bytes, *, packed: bool = False) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, text: str = "") -> None:
        content = (text or status.phrase).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing: an address holds the token."""
