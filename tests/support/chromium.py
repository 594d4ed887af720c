"""A real browser without a window, driven over its debugging pipe: no port, no further package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 120.0


@dataclass
class Look:
    """What a page did when it was opened.

    Attributes:
        complaints: of the console, uncaught errors included.
        requests: addresses that were asked for, the page itself apart.
        scroll_width, window_width: pixels; equal if nothing sticks out.
        screenshot: PNG of the whole page; empty if none was wanted.
    """

    complaints: list[str]
    requests: list[str]
    scroll_width: int
    window_width: int
    screenshot: bytes


class Browser:
    """One page of a running browser."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, event: str) -> None:
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._receive())

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready = select.select([self._read_fd], [], [], max(0.0, end - time.monotonic()))[0]
            chunk = os.read(self._read_fd, 1 << 16) if ready else b""
            assert chunk, "the browser is silent"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a new profile; it and its children end with the block."""
    from_us, to_us = os.pipe(), os.pipe()
    redirect = f'exec "$@" 3<&{from_us[0]} 4>&{to_us[1]}'
    process = subprocess.Popen(
        ["bash", "-c", redirect, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(from_us[0], to_us[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(from_us[0])
    os.close(to_us[1])
    try:
        yield Browser(to_us[0], from_us[1])
    finally:
        os.close(from_us[1])
        os.close(to_us[0])
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def look(
    page: Path, profile: Path, width: int, *, is_dark: bool = False, shoots: bool = True
) -> Look:
    """Open a page and say what happened."""
    with browser(profile) as tab:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        tab.call("Page.navigate", url=page.resolve().as_uri())
        tab.wait_for("Page.loadEventFired")
        sizes = tab.value("[document.documentElement.scrollWidth, window.innerWidth]")
        picture = tab.call("Page.captureScreenshot", captureBeyondViewport=True) if shoots else {}
        events = tab.events
    complaints = [
        json.dumps(event["params"])
        for event in events
        if event.get("method")
        in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    ]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    return Look(
        complaints,
        [url for url in requests if url != page.resolve().as_uri()],
        sizes[0],
        sizes[1],
        base64.b64decode(picture.get("data", "")),
    )
