"""A browser that visits a served page, and what it notes on the way."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, BrowserType, Page, expect

CHROMIUM = Path(os.environ.get("CAPTION_RAY_CHROMIUM", "/usr/bin/chromium"))
_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
_FAILED_ANSWER = "Failed to load resource"  # what Chromium itself says of every answer of 400 and above
_READ_OVERLAY = """() => {
    const canvas = document.getElementById("attention");
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""
_SIDE = 112  # of the overlay's canvas, pixels


def launch(chromium: BrowserType) -> Browser:
    """Start Debian's Chromium without a window; where there is none, the test is skipped."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    return chromium.launch(executable_path=str(CHROMIUM), args=_ARGUMENTS.split())


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an ASGI app from a thread, on a free port of this machine; gives its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended before it began"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Visit:
    """One visit to the page, in a profile of its own.

    complaints: errors and warnings of the console, and exceptions.  addresses: of all requests.
    """

    def __init__(self, browser: Browser, address: str, *, motion: bool = False, **options: Any) -> None:
        self.complaints: list[str] = []
        self.failed_answers = 0
        self.addresses: list[str] = []
        self.context = browser.new_context(reduced_motion="no-preference" if motion else "reduce", **options)
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.address = address

    def open(self) -> "Visit":
        """Go to the page."""
        self.page.goto(f"{self.address}/")
        return self

    def choose(self, name: str, content: bytes, kind: str = "image/jpeg") -> None:
        """Choose a file as the button does."""
        self.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})

    def caption(self) -> str:
        """Return the caption once it is whole and nothing more is to come."""
        expect(self.page.locator("body:not(.busy) .caption.whole")).to_be_visible(timeout=20_000)
        return " ".join(self.page.locator(".word").all_text_contents())

    def problem(self) -> str:
        """Return the message about what went wrong, once there is one."""
        expect(self.page.locator("#problem")).to_be_visible(timeout=20_000)
        return self.page.locator("#problem").inner_text()

    def overlay(self) -> list[list[float]]:
        """Return the light on each of 7 x 7 cells of the overlay: the mean of red times opacity, from 0 to 255."""
        data = self.page.evaluate(_READ_OVERLAY)
        cell = _SIDE // 7
        light = [[0.0] * 7 for _ in range(7)]
        for index in range(_SIDE * _SIDE):
            y, x = divmod(index, _SIDE)
            light[y // cell][x // cell] += data[4 * index] * data[4 * index + 3] / 255 / cell**2
        return light

    def strangers(self) -> list[str]:
        """Return the requests that went elsewhere than to the service."""
        here = urlsplit(self.address).netloc
        return [
            url for url in self.addresses if not url.startswith(("blob:", "data:")) and urlsplit(url).netloc != here
        ]

    def _note(self, kind: str, text: str) -> None:
        if text.startswith(_FAILED_ANSWER):
            self.failed_answers += 1
        elif kind in ("error", "warning"):
            self.complaints.append(text)
