"""A headless Chromium, driven through pipes by its DevTools protocol.

Rules of this file:

* One page; every request, error and broken policy of it is kept, for a test to look at.
* Nothing is fetched from the network: only the name of loopback resolves.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

PROGRAM = "chromium-headless-shell"
SECONDS = 60.0
_FLAGS = (
    "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--hide-scrollbars",
)  # fmt: skip


def need_browser() -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not here (sh tools/test --full brings it)")


def _pipe() -> tuple[int, int]:
    """With descriptors above 3 and 4, which the shell is to replace."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Browser:
    """A browser with one page, as a context manager."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.faults: list[str] = []
        self._serial = 0
        self._session = ""
        self._rest = b""

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="metad-browser-")
        commands_r, self._commands = _pipe()
        self._answers, answers_w = _pipe()
        # Chromium reads descriptor 3 and writes descriptor 4; the shell puts ours there.
        script = f'exec "$0" "$@" 3<&{commands_r} 4>&{answers_w} {commands_r}<&- {answers_w}>&-'
        errors = (Path(self._home.name) / "errors").open("wb")
        self._process = subprocess.Popen(
            ["bash", "-c", script, PROGRAM, *_FLAGS, f"--user-data-dir={self._home.name}",
             "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(commands_r, answers_w), start_new_session=True,
            env=os.environ | {"HOME": self._home.name},
        )  # fmt: skip
        errors.close()
        os.close(commands_r)
        os.close(answers_w)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        try:
            self.call("Browser.close")
            self._process.wait(SECONDS)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._home.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        self._serial += 1
        command = {"id": self._serial, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._next()).get("id") != self._serial:
            self._note(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready = select.select([self._answers], [], [], SECONDS)[0]
            data = os.read(self._answers, 1 << 20) if ready else b""
            assert data, (Path(self._home.name) / "errors").read_text(errors="replace")[-2000:]
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.faults.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(str(params["entry"]))

    # -- the page

    def view(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """The size of the window, and what the user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=phone)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, as JSON has it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, good: Callable[[Any], bool] = bool) -> Any:
        """The expression's value, once it is as wished."""
        deadline = time.monotonic() + SECONDS
        while not good(value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression}: {value}"
            select.select([], [], [], 0.05)
        return value

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
