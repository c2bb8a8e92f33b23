"""Headless Chromium over its pipe: opens pages, uses them, tells what they asked for and said.

The protocol is https://chromedevtools.github.io/devtools-protocol: JSON, each message ended by a
zero byte, on the file descriptors 3 (in) and 4 (out).
"""

import base64
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome")
FOUND = [path for path in map(shutil.which, NAMES) if path]
CHROMIUM = FOUND[0] if FOUND and os.name == "posix" else None  # the pipe needs file descriptors
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio",
    "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
    # Whatever is asked of a network fails at once.
    "--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
KEYS = {" ": ("Space", 32), "ArrowLeft": ("ArrowLeft", 37), "ArrowUp": ("ArrowUp", 38),
        "ArrowRight": ("ArrowRight", 39), "ArrowDown": ("ArrowDown", 40), "End": ("End", 35),
        "Delete": ("Delete", 46), "Enter": ("Enter", 13), "Tab": ("Tab", 9)}  # fmt: skip


class Page:
    """One tab. `requests`, `failures` and `messages` are of the page that was opened last."""

    def __init__(self, write, read):
        self._write, self._read = write, read
        self._number, self._rest, self._session = 0, b"", None
        self.requests, self.failures, self.messages, self._events = [], [], [], set()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def open(self, url, width=1400, height=900):
        """Load a page, in a window of this size, and wait until it is done."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.requests, self.failures, self.messages, self._events = [], [], [], set()
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._events:
            self._note(self._next())
        self.run("document.fonts.ready.then(() => 0)")

    def run(self, script):
        """The value of a JavaScript expression."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, *keys):
        """Press and let go of keys, by their names in `KEYS`."""
        for key in keys:
            code, number = KEYS[key]
            named = dict(key=key, code=code, windowsVirtualKeyCode=number)
            text = {" ": " ", "Enter": "\r"}.get(key)
            down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            self.call("Input.dispatchKeyEvent", **down, **named)
            self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def drag(self, *points):
        """Press the mouse at the first point (x, y) of the window, pass the others, let go."""

        def mouse(kind, point, buttons):
            x, y = point
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                buttons=buttons, clickCount=1,
            )  # fmt: skip

        mouse("mousePressed", points[0], 1)
        for point in points[1:]:
            mouse("mouseMoved", point, 1)
        mouse("mouseReleased", points[-1], 0)

    def wait(self, script, seconds=60):
        """The value of an expression, once it is true."""
        until = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.1)
        return found

    def screenshot(self, path):
        """What the window shows, as a PNG file."""
        found = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self, seconds=60):
        until = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            self._rest += os.read(self._read, 1 << 20)
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        name, what = event.get("method", ""), event.get("params", {})
        self._events.add(name)
        if name == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif name == "Network.loadingFailed":
            self.failures.append(what["errorText"])
        elif name == "Runtime.consoleAPICalled":
            self.messages.append(str(what["args"]))
        elif name == "Runtime.exceptionThrown":
            self.messages.append(str(what["exceptionDetails"]))
        elif name == "Log.entryAdded":
            self.messages.append(what["entry"]["text"])


@contextmanager
def browser():
    """A `Page` of a browser of its own."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # A shell moves the two ends to the numbers that the browser wants.
        line = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
        process = subprocess.Popen(
            ["bash", "-c", line, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        try:
            yield Page(to_write, from_read)
        finally:
            os.close(to_write)  # the browser ends with its pipe
            os.close(from_read)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def printed(process, pattern):
    """(match, text so far) of the first line of a process that has the pattern; it must come."""
    said = ""
    for line in process.stdout:
        said += line
        found = re.search(pattern, line)
        if found:
            return found, said
    raise AssertionError(f"no line has {pattern}:\n{said}")
