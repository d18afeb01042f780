"""A headless Chromium that is told what to do through a pipe, by the DevTools protocol."""

import json
import os
import shutil
import signal
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium")
PATIENCE_S = 60


class Tab:
    """A tab of the browser. requests: the addresses that it has asked for; console: what was said
    there, and errors."""

    def __init__(self, commands: int, events: int):
        self.commands = os.fdopen(commands, "wb", buffering=0)
        self.events = os.fdopen(events, "rb")
        self.sent, self.session = 0, {}
        self.requests: list[str] = []
        self.console: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **given: Any) -> dict[str, Any]:
        """The browser's answer to a command; what happens meanwhile is noted."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": given, **self.session}
        self.commands.write(json.dumps(message).encode() + b"\0")
        while True:
            told = json.loads(self._next())
            if told.get("id") == self.sent:
                assert "error" not in told, told
                return told["result"]
            self._note(told.get("method"), told.get("params", {}))

    def _next(self) -> bytes:
        letters = bytearray()
        while (letter := self.events.read(1)) != b"\0":
            assert letter, "the browser has ended"
            letters += letter
        return bytes(letters)

    def _note(self, event: str | None, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Log.entryAdded":
            self.console.append(told["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.console.append(str([x.get("value") for x in told["args"]]))
        elif event == "Runtime.exceptionThrown":
            self.console.append(str(told["exceptionDetails"]))

    def run(self, script: str) -> Any:
        """The value of a script's expression in the page."""
        told = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true in the page."""
        end = time.monotonic() + PATIENCE_S
        while not self.run(script):
            assert time.monotonic() < end, f"never: {script}"
            time.sleep(0.05)

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """A page in a window of this size, light or dark, until it is loaded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setScrollbarsHidden", hidden=True)
        self.send("Page.navigate", url=address)
        self.wait(f"location.href == {json.dumps(address)} && document.readyState == 'complete'")

    def type(self, text: str) -> None:
        """Into what has the focus, as from a keyboard."""
        self.send("Input.insertText", text=text)

    def picture(self, file: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        given = {"captureBeyondViewport": whole}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            given["clip"] = {**size, "scale": 1}
        file.write_bytes(b64decode(self.send("Page.captureScreenshot", **given)["data"]))


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A browser with one tab; it ends with the context, or when it says nothing for too long."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    flags.append(f"--user-data-dir={profile}")
    (heard, commands), (events, said) = os.pipe(), os.pipe()
    # Chromium reads commands from 3 and writes what happens to 4.
    shell = ["bash", "-c", f'exec "$@" 3<&{heard} 4>&{said}', "bash", BROWSER, *flags]
    process = subprocess.Popen(
        shell, pass_fds=(heard, said), stderr=subprocess.DEVNULL, start_new_session=True
    )
    os.close(heard)
    os.close(said)
    try:
        yield Tab(commands, events)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
