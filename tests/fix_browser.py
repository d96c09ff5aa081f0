"""A page in a real browser: a headless Chromium, driven by its DevTools protocol over a pair of pipes.

For the tests of `make test-browser`, which fail without it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page in a headless Chromium, by its DevTools protocol over a pair of pipes."""

    def __init__(self, program: str, profile: Path, *more: str) -> None:
        """`more` are switches."""
        commands, self._commands = os.pipe()
        self._events, events = os.pipe()
        switches = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
                    "disable-component-update", "disable-sync", "remote-debugging-pipe", f"user-data-dir={profile}",
                    *more)  # fmt: skip
        line = f'exec "$0" "$@" 3<&{commands} 4>&{events}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, program, *(f"--{switch}" for switch in switches)],
            pass_fds=(commands, events),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(events)
        self._number = 0
        self._input = os.fdopen(self._events, "rb")
        self._read = b""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: object) -> Any:
        """Call a method of the protocol; what happens meanwhile is nobody's business."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> bytes:
        while b"\0" not in self._read:
            part = os.read(self._events, 65_536)
            assert part, "the browser has ended"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return message

    def run(self, script: str) -> Any:
        """Return what an expression gives, or what its promise is kept with."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, timeout=30_000)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Wait until an expression is true."""
        wait_until(lambda: self.run(f"Boolean({script})"), 20, script)
        return self.run(script)

    def open(self, url: str) -> None:
        """Go to a page; `violations` there are what its policy has refused, `faults` what went wrong in its scripts."""
        watch = (
            "window.violations = []; onsecuritypolicyviolation = event => violations.push(event.blockedURI);"
            "window.faults = []; addEventListener('error', event => faults.push(event.message));"
            "addEventListener('unhandledrejection', event => faults.push(String(event.reason)));"
            "console.error = console.warn = (...words) => faults.push(words.join(' '))"
        )
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=watch)
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState == 'complete'")  # its scripts have begun

    def screen(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Show the page as on such a screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def shoot(self) -> bytes:
        """Return a picture of what is on the screen, as PNG."""
        return b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        self._input.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def keep_picture(name: str, picture: bytes) -> None:
    """Write a picture of the documentation, where it is asked for: `KBATCHD_PICTURES=docs`."""
    if directory := os.environ.get("KBATCHD_PICTURES"):
        Path(directory, f"{name}.png").write_bytes(picture)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """One page of a headless Chromium; every name under rebound.example is this host."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, f"the browser's tests need one of {', '.join(PROGRAMS)} (Debian: apt-get install chromium)"
    with Browser(program, tmp_path / "profile", "host-resolver-rules=MAP *.rebound.example 127.0.0.1") as browser:
        yield browser
