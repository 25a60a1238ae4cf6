"""An S3 that runs in this process and fails on request (moto behind a werkzeug server on the loopback)."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

DROP = 0
"""In place of a status: the connection breaks off without an answer."""


class ObjectStoreServer:
    """`endpoint` is its address. `requests` holds (method, path) of every request, and `ranges` (path, first,
    last) of every one for a range of bytes; `fault(method, path)` may give a status to fail one with, or
    `DROP`.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def puts(self, below: str) -> list[str]:
        """Paths of the PUT requests with `below` in them, in their order."""
        return [path for method, path in self.requests if method == "PUT" and below in path]

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        if "HTTP_RANGE" in environ:
            first, _, last = environ["HTTP_RANGE"].removeprefix("bytes=").partition("-")
            self.ranges.append((path, int(first), int(last)))
        status = self.fault(method, path)
        if status == DROP:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if status is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = b"<Error><Code>%d</Code><Message>on request</Message></Error>" % status
            start(
                f"{status} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            )
            return [] if method == "HEAD" else [body]
        return self._moto(environ, start)
