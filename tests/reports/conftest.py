# SPDX-License-Identifier: Apache-2.0
"""A real browser for the pages: headless chromium, spoken to through its two debugging pipes."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0


class Browser:
    """One tab of chromium, and what it complained about.

    Attributes
    ----------
    requested : URLs, without those of data
    failed : URLs that could not be loaded
    complaints : messages of the console and of the browser's log; exceptions
    contexts : of scripts: that of the page, then those of its frames and objects
    """

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._send = os.pipe()
        self._receive, to_write = os.pipe()
        # chromium wants its commands at descriptor 3 and answers at 4
        command = (
            f'exec "$0" --headless --no-sandbox --disable-gpu --no-first-run --enable-unsafe-swiftshader '
            "--disable-background-networking --disable-component-update --disable-sync "
            '--remote-debugging-pipe "--user-data-dir=$1" --window-size=1200,900 '
            f"about:blank 3<&{to_read} 4>&{to_write}"
        )
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, program, str(profile)],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest, self._count = b"", 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._session: str | None = None
        self.requested: list[str] = []
        self.failed: list[str] = []
        self.complaints: list[str] = []
        self.contexts: list[int] = []
        self._urls: dict[str, str] = {}
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, page: Path | str) -> None:
        """Load a page from its file or address, with all that it needs."""
        for notes in (self.requested, self.failed, self.complaints, self.contexts):
            notes.clear()
        self._loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        self.wait(lambda: self._loaded)

    def evaluate(self, script: str, context: int | None = None) -> Any:
        """The value of a script, in the page or in the context of one of its objects."""
        where = {} if context is None else {"contextId": context}
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, **where)
        return result["result"].get("value")

    def point_at(self, selector: str) -> None:
        """Scroll to an element and put the pointer on its middle."""
        middle = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.point(*middle)

    def point(self, x: float, y: float) -> None:
        """Put the pointer somewhere, in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def pixels(self, selector: str, number: int = 0) -> NDArray[np.uint8]:
        """What is seen of the element with this number of those that a selector finds, RGB."""
        box = self.evaluate(
            f"(() => {{ const r = document.querySelectorAll({json.dumps(selector)})[{number}]"
            ".getBoundingClientRect(); return {x: r.x + scrollX, y: r.y + scrollY, "
            "width: r.width, height: r.height, scale: 0.5}; })()"
        )
        assert box["width"] > 0, f"{selector} {number} has no width"
        assert box["height"] > 0, f"{selector} {number} has no height"
        taken = self.call("Page.captureScreenshot", clip=box, captureBeyondViewport=True)
        with Image.open(io.BytesIO(base64.b64decode(taken["data"]))) as picture:
            return np.asarray(picture.convert("RGB"))

    def wait(self, happened: Callable[[], bool]) -> None:
        """Take messages until something is so; fail after a minute."""
        end = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < end, "chromium does not answer"
            self._take(0.2)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _take(self, seconds: float) -> None:
        """Read what there is to read; keep the answers and note the events."""
        if not select.select([self._receive], [], [], seconds)[0]:
            return
        data = os.read(self._receive, 1 << 20)
        assert data, "chromium ended"
        *whole, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            url = event["request"]["url"]
            self._urls[event["requestId"]] = url
            if not url.startswith("data:"):
                self.requested.append(url)
        elif method == "Network.loadingFailed":
            self.failed.append(self._urls.get(event["requestId"], "?"))
        elif method == "Log.entryAdded":
            self.complaints.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(event["args"]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(event["exceptionDetails"]["text"])
        elif method == "Runtime.executionContextsCleared":
            self.contexts.clear()
        elif method == "Runtime.executionContextCreated":
            self.contexts.append(event["context"]["id"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._send)
        os.close(self._receive)


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless chromium; the test is skipped where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a browser, one of {', '.join(NAMES)}; apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
