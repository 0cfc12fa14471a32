"""A headless Chromium that is used as a person uses one: pointed at, clicked, typed into, resized, read.

It is driven through the DevTools protocol on a pipe (--remote-debugging-pipe: JSON messages, each ended by
NUL, on descriptors 3 and 4), so that clicks and keys take the way that real ones take.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import missing

PROGRAM = "chromium"
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 120.0
KEYS = {
    "Enter": (13, "\r"),
    "Backspace": (8, ""),
    "Tab": (9, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
}
"""Keys that are pressed -> their codes, and the text that they type."""


class Browser:
    """One tab of a browser."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._number, self._rest, self._session = 0, b"", ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._back, 1 << 20) if ready else b""
            assert data, f"the browser says nothing more (its exit code: {self._process.poll()})"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, path: Path, width: int = 1280, height: int = 720, *, dark: bool = False) -> None:
        """Open a page and wait until it is drawn."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("window.left = true")
        self.call("Page.navigate", url=path.as_uri())
        drawn = "(!window.left && document.body && document.body.dataset.ready) || ''"
        deadline = time.monotonic() + SECONDS
        while not (state := self.ask(drawn)):
            assert time.monotonic() < deadline, "the page is not drawn"
            time.sleep(0.02)
        assert state == "yes", self.ask("document.body.innerText.slice(0, 500)")

    def ask(self, expression: str) -> Any:
        """Return what an expression is, or the body of a function returns, in the page."""
        if "return " in expression:
            expression = f"(() => {{ {expression} }})()"
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """Scroll to an element and return the place of one of its points (from 0 to 1) on the screen."""
        box = self.ask(
            f"const it = document.querySelector({json.dumps(selector)}); "
            "it.scrollIntoView({block: 'nearest'}); "
            "const head = document.querySelector('header').getBoundingClientRect().bottom; "
            "const hidden = head - it.getBoundingClientRect().top; if (hidden > 0) scrollBy(0, -hidden - 2); "
            "const box = it.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]"
        )
        return box[0] + box[2] * x, box[1] + box[3] * y

    def point(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Move the pointer to an element."""
        self._mouse("mouseMoved", self.place(selector, x, y))

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click an element, where it is visible."""
        where = self.place(selector, x, y)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._mouse(kind, where)

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag over an element from left to right."""
        self.point(selector, start)
        self._mouse("mousePressed", self.place(selector, start))
        self._mouse("mouseMoved", self.place(selector, (start + end) / 2), buttons=1)
        self._mouse("mouseMoved", self.place(selector, end), buttons=1)
        self._mouse("mouseReleased", self.place(selector, end))

    def _mouse(self, kind: str, where: tuple[float, float], buttons: int = 0) -> None:
        button = "none" if kind == "mouseMoved" else "left"
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=where[0],
            y=where[1],
            button=button,
            buttons=buttons,
            clickCount=1,
        )

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, where the focus is."""
        for key in keys:
            code, text = KEYS.get(key, (ord(key[0]), key if len(key) == 1 else ""))
            shared = {"key": key, "windowsVirtualKeyCode": code, "code": key}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **shared)
            self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser that keeps its files in a folder, and end it."""
    program = shutil.which(PROGRAM)
    if program is None:
        missing(PROGRAM)
    mine, its_out = os.pipe()
    its_in, to = os.pipe()

    def descriptors() -> None:
        high = [os.dup(fd) for fd in (its_in, its_out)]  # 3 and 4 may be among them
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [program, *OPTIONS, f"--user-data-dir={folder / 'profile'}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(3, 4),
        preexec_fn=descriptors,  # noqa: PLW1509 - no thread of the tests holds a lock that it takes
    )
    os.close(its_in)
    os.close(its_out)
    try:
        found = Browser(process, to, mine)
        yield found
        found.call("Browser.close")  # it takes its files in the directory of temporary ones along
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to)
        os.close(mine)
