"""A web site on the loopback that misbehaves in every way that image hosts do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site:
    """`address` is the beginning of its URLs. `images` holds bytes by path, `answers` status and headers;
    other paths are faults, by their name: see `_Handler`. `requests` counts the requests by path,
    `most_at_once` is the largest number at a time. `delay` are the seconds until an answer; with `together`
    so many requests have to be there before.
    """

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.robots: str | int = 404
        self.requests: Counter[str] = Counter()
        self.delay = 0.0
        self.together: threading.Barrier | None = None
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Forget images, headers, robots.txt and counts."""
        self.images.clear()
        self.answers.clear()
        self.headers.clear()
        self.requests.clear()
        self.robots, self.delay, self.together, self.most_at_once = 404, 0.0, None, 0

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextlib.contextmanager
    def counted(self, path: str) -> Any:
        with self._lock:
            self.requests[path] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        path = self.path
        # who has an answer may send the next request before this thread goes on
        with self.site.counted(path):
            if self.site.together is not None:
                self.site.together.wait()
            time.sleep(self.site.delay)
        with contextlib.suppress(OSError):
            if path == "/robots.txt":
                self._robots()
            elif path in self.site.answers:
                status, headers = self.site.answers[path]
                self._send(status, b"", **headers)
            elif path in self.site.images:
                self._send(200, self.site.images[path], **self.site.headers.get(path, {}))
            else:
                fault = path.strip("/").partition("/")[0]
                getattr(self, f"_{fault}", self._missing)()

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        names = {"Content_Type": "image/jpeg", "Content_Length": str(len(body)), **headers}
        for name, value in names.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _robots(self) -> None:
        if isinstance(self.site.robots, int):
            self._send(self.site.robots, b"")
        else:
            self._send(200, self.site.robots.encode(), Content_Type="text/plain")

    def _missing(self) -> None:
        self._send(404, b"no such image", Content_Type="text/html")

    def _broken(self) -> None:
        self._send(500, b"")

    def _recovers(self) -> None:
        """Fails twice, then answers."""
        if self.site.requests[self.path] <= 2:
            self._send(503, b"", Retry_After="0")
        else:
            self._send(200, self.site.images["/a.jpg"])

    def _loop(self) -> None:
        self._send(302, b"", Location="/loop")

    def _far(self) -> None:
        number = int(self.path.rpartition("/")[2])
        self._send(302, b"", Location=f"/far/{number + 1}")

    def _moved(self) -> None:
        self._send(301, b"", Location="/a.jpg")

    def _page(self) -> None:
        self._send(200, b"<html>", Content_Type="text/html; charset=utf-8")

    def _large(self) -> None:
        self._send(200, b"", Content_Length=str(10**12))

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65536)

    def _cut(self) -> None:
        self._send(200, b"\xff\xd8\xff", Content_Length="5000")

    def _silent(self) -> None:
        time.sleep(2)

    def _slow(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def _reset(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
