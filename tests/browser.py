"""A headless browser for tests of pages: Chromium, driven by its DevTools protocol.

The protocol goes through two pipes (`--remote-debugging-pipe`), as JSON texts that end with a zero byte, so
that it takes neither a driver nor a package. One `Browser` serves a whole session of tests; a `Page` is a tab
with storage of its own. Host names lead nowhere, except for `REBOUND`, which is this machine.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

REBOUND = "rebound.test"
"""A name that leads to 127.0.0.1, as in an attack by DNS rebinding."""

WAIT = 30.0
"""Seconds after which a call is given up: a busy machine is no failure."""

OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check"),
    *("--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--mute-audio", "--force-color-profile=srgb"),
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def find() -> str | None:
    """The path of an installed browser; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running browser. `folder` is for its profile."""

    def __init__(self, program: str, folder: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # the browser reads from 3 and writes to 4: both ends are moved out of the way first
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        options = [*OPTIONS, *sandbox, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", program, *options],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._out, self._in = ours_out, ours_in
        self._held = b""
        self._number = 0
        self._pages: dict[str, Page] = {}

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Events go to their pages."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        data = json.dumps(message if session is None else message | {"sessionId": session}).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + WAIT
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser does not answer {waiting_for}"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._held += data
        text, _, self._held = self._held.partition(b"\0")
        message = json.loads(text)
        if "method" in message and (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.happened(message["method"], message["params"])
        return message

    @contextlib.contextmanager
    def page(self, width: int = 1280, height: int = 900) -> Iterator[Page]:
        """Open a tab of this size in px while the block runs."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.resize(width, height)
            yield page
        finally:
            del self._pages[session]
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Page:
    """One tab. `faults` are exceptions of its scripts, errors on its console, and refused or failed loads;
    `requests` are the URLs that it has requested.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.faults: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def happened(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] == "error":
            self.faults.append(" ".join(str(one.get("value")) for one in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.faults.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def open(self, url: str) -> None:
        """Go to an address, and wait until the page with its images and scripts is loaded."""
        found = self.call("Page.navigate", url=url)
        assert "errorText" not in found, f"{url}: {found['errorText']}"
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page; a promise is awaited. Returns its value as JSON has it."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression of the page is true."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            wait = f"""new Promise((done) => {{
                const end = Date.now() + 2000;
                (function look() {{
                    let found = false;
                    try {{ found = Boolean({condition}); }} catch {{ /* an element is not there yet */ }}
                    found || Date.now() > end ? done(found) : setTimeout(look, 15);
                }})();
            }})"""
            try:
                if self.run(wait):
                    return
            except AssertionError as error:
                # the page was replaced by another one meanwhile
                if "navigated" not in str(error) and "context" not in str(error):
                    raise
        raise AssertionError(f"never true: {condition}; the page says: {self.text()[:2000]}")

    def text(self, selector: str = "body") -> str:
        """The text of the first element that matches, as it is displayed."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match and are displayed."""
        shown = "filter((one) => one.getClientRects().length > 0).map((one) => one.innerText)"
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].{shown}")

    def click(self, selector: str, number: int = 0) -> None:
        """Click with the mouse in the middle of the element of this number among those that match."""
        x, y = self._middle(selector, number)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _middle(self, selector: str, number: int) -> tuple[float, float]:
        found = self.run(
            f"""(() => {{
                const one = document.querySelectorAll({json.dumps(selector)})[{number}];
                if (!one) return null;
                one.scrollIntoView({{block: "center", behavior: "instant"}});
                const box = one.getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                const top = document.elementFromPoint(x, y);
                return [x, y, Boolean(top) && (one.contains(top) || top.contains(one))];
            }})()"""
        )
        assert found is not None, f"no element {number} of {selector}"
        assert found[2], f"element {number} of {selector} is covered by another or has no area"
        return found[0], found[1]

    def write(self, selector: str, text: str) -> None:
        """Replace the text of an input as a user types it."""
        one = f"document.querySelector({json.dumps(selector)})"
        self.run(f"({one}.focus(), {one}.select())")
        if text:
            self.call("Input.insertText", text=text)
        else:
            self.press("Backspace")

    def choose(self, selector: str, value: str) -> None:
        """Choose the option with this value of a <select>."""
        self.run(
            f"""(() => {{
                const one = document.querySelector({json.dumps(selector)});
                one.value = {json.dumps(value)};
                one.dispatchEvent(new Event("change", {{bubbles: true}}));
            }})()"""
        )
        assert self.run(f"document.querySelector({json.dumps(selector)}).value") == value

    def press(self, key: str) -> None:
        """Press and release one key: a letter, or Enter, Escape, Backspace, ArrowLeft, ArrowRight."""
        codes = {"Enter": 13, "Escape": 27, "Backspace": 8, "ArrowLeft": 37, "ArrowRight": 39}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        code = codes.get(key, ord(key.upper()[0]))
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def fingers(self, *paths: Sequence[tuple[float, float]]) -> None:
        """Put a finger on the first place of each path, move all of them along together, and lift them."""
        self.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)
        for at, places in enumerate(zip(*paths, strict=True)):
            points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
            kind = "touchMove" if at else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window this size in px."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, dark: bool = True) -> None:
        """Prefer dark colours, or light ones."""
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def is_wider_than_its_window(self) -> bool:
        """Whether the page scrolls sideways."""
        return self.run("document.documentElement.scrollWidth > document.documentElement.clientWidth")

    def overlaps(self, selector: str) -> list[str]:
        """Pairs of texts of displayed elements that match and cover each other by more than one px."""
        return self.run(
            f"""(() => {{
                const all = [...document.querySelectorAll({json.dumps(selector)})]
                    .map((one) => [one.textContent, one.getBoundingClientRect()])
                    .filter(([, box]) => box.width > 0);
                const cover = (p, q) =>
                    p.right - 1 > q.left && q.right - 1 > p.left &&
                    p.bottom - 1 > q.top && q.bottom - 1 > p.top;
                return all.flatMap(([a, p], i) =>
                    all.slice(i + 1).filter(([, q]) => cover(p, q)).map(([b]) => `${{a}} | ${{b}}`));
            }})()"""
        )

    def screenshot(self, file: Path, whole: bool = False) -> Path:
        """Write a PNG of the window, or of the whole page."""
        options: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options = {"captureBeyondViewport": True, "clip": size | {"scale": 1}}
        found = self.call("Page.captureScreenshot", format="png", **options)
        file.write_bytes(base64.b64decode(found["data"]))
        return file
