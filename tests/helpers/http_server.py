# SPDX-License-Identifier: Apache-2.0
"""A local HTTP server that misbehaves as it is told, one plan a request."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Site:
    """What is offered, and how the next requests go.

    plans : one for each request, then the last for ever.  Keys: ``status`` (an error), ``cut``
        (bytes after which the connection ends), ``ranges`` (False: always the whole), ``etag``,
        ``html``, ``length`` (False: not said), ``pause`` (seconds before each thousandth byte),
        ``hang`` (seconds of silence after ``cut`` bytes), ``moved`` (a wrong Content-Range)
    """

    content: bytes = b""
    plans: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve() -> Iterator[Site]:
    """A site on a free port of this machine, stopped at the end."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            site.asked.append(dict(self.headers))
            plan = site.plans.pop(0) if len(site.plans) > 1 else site.plans[0]
            self.close_connection = True
            if "status" in plan:
                self.send_response(plan["status"])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = self._start(plan)
            body = site.content[start:]
            self.send_response(206 if start else 200)
            if start:
                first = start + plan.get("moved", 0)
                self.send_header(
                    "Content-Range",
                    f"bytes {first}-{len(site.content) - 1}/{len(site.content)}",
                )
            if plan.get("etag", '"one"'):
                self.send_header("ETag", plan.get("etag", '"one"'))
            if plan.get("length", True):
                self.send_header("Content-Length", str(len(body)))
            kind = "text/html" if plan.get("html") else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.end_headers()
            self._send(body, plan)

        def _start(self, plan: dict[str, Any]) -> int:
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            tag = plan.get("etag", '"one"')
            fresh = self.headers.get("If-Range", tag) == tag
            if found is None or not plan.get("ranges", True) or not fresh:
                return 0
            return int(found[1])

        def _send(self, body: bytes, plan: dict[str, Any]) -> None:
            body = body[: plan.get("cut", len(body))]
            try:
                for k in range(0, len(body), 1000):
                    time.sleep(plan.get("pause", 0))
                    self.wfile.write(body[k : k + 1000])
                    self.wfile.flush()
                time.sleep(plan.get("hang", 0))
            except OSError:
                pass  # the other side had enough

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/file"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
