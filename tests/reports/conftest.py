# SPDX-License-Identifier: Apache-2.0
"""``browser``: a real headless chromium that says what went wrong on a page."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 90.0  # seconds, for a busy machine


@dataclass
class Visit:
    """What happened while a page was open.

    requested : addresses asked for; failed : those that did not come; complaints : errors and
    warnings of the console and of scripts; answers : of the expressions, in order
    """

    requested: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)


class Browser:
    """Chromium, spoken to through a pipe: no port, no further package."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        # the browser reads from descriptor 3 and writes to 4; keep these free till then
        to_read, to_write = _moved(to_read), _moved(to_write)
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,900",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, program, *arguments],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest = b""
        self._count = 0
        self._events: list[dict[str, Any]] = []

    def visit(self, address: str, expressions: tuple[str, ...] = (), wait: float = 0.3) -> Visit:
        """Open a page in a tab of its own, evaluate JavaScript, and return what happened."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable", session)
        self._events.clear()
        self._ask("Page.navigate", session, url=address)
        self._until(lambda event: event.get("method") == "Page.loadEventFired")
        visit = Visit()
        for expression in expressions:
            reply = self._ask(
                "Runtime.evaluate",
                session,
                expression=expression,
                returnByValue=True,
                awaitPromise=True,
            )
            visit.answers.append(reply["result"].get("value"))
            if "exceptionDetails" in reply:
                visit.complaints.append(json.dumps(reply["exceptionDetails"]))
        end = time.monotonic() + wait
        while time.monotonic() < end:
            self._read(0.05)
        for event in self._events:
            self._note(event["method"], event["params"], visit)
        self._ask("Target.closeTarget", targetId=target)
        return visit

    def close(self) -> None:
        """End the browser and every process that it started."""
        try:
            self._ask("Browser.close")
            self._process.wait(20)
        except (OSError, subprocess.TimeoutExpired, TimeoutError):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    @staticmethod
    def _note(method: str, params: dict[str, Any], visit: Visit) -> None:
        if method == "Network.requestWillBeSent":
            visit.requested.append(params["request"]["url"])
        elif method == "Network.loadingFailed":
            visit.failed.append(params["errorText"])
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            visit.failed.append(f"{params['response']['status']} {params['response']['url']}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning"}:
            visit.complaints.append(json.dumps(params["args"]))
        elif method == "Runtime.exceptionThrown":
            visit.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            visit.complaints.append(params["entry"]["text"])

    def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        reply = self._until(lambda answer: answer.get("id") == number)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for event in self._events:
            if wanted(event):
                return event
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for message in self._read(0.5):
                if wanted(message):
                    return message
        raise TimeoutError("the browser did not answer")

    def _read(self, seconds: float) -> list[dict[str, Any]]:
        """Messages that came; events are kept as well."""
        if not select.select([self._in], [], [], seconds)[0]:
            return []
        data = os.read(self._in, 1 << 20)
        if not data:
            raise OSError("the browser ended")
        *whole, self._rest = (self._rest + data).split(b"\0")
        messages = [json.loads(part) for part in whole]
        self._events += [message for message in messages if "method" in message]
        return messages


def _moved(descriptor: int) -> int:
    """The same pipe under a number that is neither 3 nor 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser: ``browser.visit("file:///…", ("1 + 1",))``; skips where there is none."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser on this machine ({', '.join(NAMES)}); on Debian: chromium")
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
