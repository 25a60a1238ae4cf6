"""The HTTP server of the page, on 127.0.0.1, for one user.

Every address begins with a random token. A request needs a Host header that names this machine, so that
another site cannot reach it by pointing its own name to 127.0.0.1 (DNS rebinding), and comes from the page
itself: an Origin or Sec-Fetch-Site header of another site is refused. The page loads nothing from elsewhere,
and says so in its Content-Security-Policy.
"""

from __future__ import annotations

import contextlib
import hmac
import http.server
import json
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from uhr.base.config import build
from uhr.base.console import warn
from uhr.base.errors import UserError, one_line
from uhr.base.pages.template import THEME
from uhr.manifests.browse.filters import Filter
from uhr.manifests.browse.session import Decision, Distributions, Page, Saving, Session, Stopped
from uhr.manifests.browse.thumbnails import Fault

HERE = Path(__file__).parent
HOST = "127.0.0.1"

FILES = {
    "": (HERE / "page.html", "text/html; charset=utf-8"),
    "theme.css": (THEME, "text/css; charset=utf-8"),
    "page.css": (HERE / "page.css", "text/css; charset=utf-8"),
    **{
        f"{name}.js": (HERE / f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("common", "list", "page", "ranges", "record", "review")
    },
}

LARGEST_BODY = 1 << 20
"""Bytes of a request."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Refused(Exception):
    """A request is answered with a status and a text."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(text)


class BrowseServer(http.server.ThreadingHTTPServer):
    """Serves a session at `url` until it is closed. Port 0 takes a free one."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            what = f"--port {port} cannot be used ({getattr(error, 'strerror', None) or one_line(error)})"
            raise UserError(what, "name another port, or 0 for a free one") from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def server_close(self) -> None:
        """Stop listening, and close the session."""
        super().server_close()
        self.session.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line what failed in a thread; a connection that the page has closed is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            warn(f"a request failed ({type(error).__name__}: {one_line(error)})")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "uhr", ""
    timeout = 60
    _received: bytes | None = None

    @property
    def _server(self) -> BrowseServer:
        assert isinstance(self.server, BrowseServer)
        return self.server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        # before anything is refused: a client that is still sending would not see the answer
        length = self.headers.get("Content-Length", "")
        allowed = length.isascii() and length.isdecimal() and int(length) <= LARGEST_BODY
        self._received = self.rfile.read(int(length)) if allowed else None
        self._answer(self._post)
        if not allowed:
            self._read_rest()

    def _read_rest(self) -> None:
        """Read for a moment what the client still sends: a closed connection loses the answer."""
        left = 8 * LARGEST_BODY
        with contextlib.suppress(OSError):
            self.connection.settimeout(1)
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (data := self.connection.recv(1 << 16)):
                left -= len(data)

    def _answer(self, method: Callable[[str], tuple[bytes, str]]) -> None:
        status, kind = HTTPStatus.OK, "application/json"
        try:
            data, kind = method(self._path())
        except Refused as refused:
            status, data = refused.status, _json({"error": refused.text})
            self.close_connection = True
        except UserError as error:
            status, data = HTTPStatus.BAD_REQUEST, _json({"error": str(error.with_options())})
        except IndexError:
            status, data = HTTPStatus.NOT_FOUND, _json({"error": "there is no such row"})
        except Fault as fault:
            status, data = HTTPStatus.NOT_FOUND, _json({"error": str(fault)})
        except Stopped:
            status, data = HTTPStatus.SERVICE_UNAVAILABLE, _json({"error": "the browser was stopped"})
        except Exception as error:  # noqa: BLE001 - the page shows it, and the server goes on
            text = f"unexpected {type(error).__name__}: {one_line(error)}"
            warn(text)
            status, data = HTTPStatus.INTERNAL_SERVER_ERROR, _json({"error": text})
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        keep = kind == "image/jpeg"
        self.send_header("Cache-Control", "private, max-age=3600" if keep else "no-store")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _path(self) -> str:
        """Return the path behind the token. Raises Refused if the request is not from the page."""
        hosts = self.headers.get_all("Host", [])
        # another port is allowed: it may be forwarded
        if len(hosts) != 1 or _name(hosts[0]) not in (HOST, "localhost"):
            raise Refused(HTTPStatus.FORBIDDEN, "this is not the name of this machine")
        origins = self.headers.get_all("Origin", [])
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            raise Refused(HTTPStatus.FORBIDDEN, "a request of another site")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "a request of another site")
        _, token, *rest = (urlsplit(self.path).path + "/").split("/", 2)
        if not hmac.compare_digest(token.encode(), self._server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "the address has no valid token: take it from the terminal")
        return rest[0].removesuffix("/") if rest else ""

    def _get(self, path: str) -> tuple[bytes, str]:
        session = self._server.session
        if path in FILES:
            file, kind = FILES[path]
            return file.read_bytes(), kind
        if path == "facts":
            return _json(session.facts()), "application/json"
        what, _, number = path.partition("/")
        if what in ("sample", "thumbnail", "image") and number.isascii() and number.isdecimal():
            if what == "sample":
                return _json(session.sample(int(number))), "application/json"
            return session.image(int(number), large=what == "image"), "image/jpeg"
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def _post(self, path: str) -> tuple[bytes, str]:
        session = self._server.session
        if path == "page":
            found: Any = session.page(build(Page, self._body(), "the page"))
        elif path == "facets":
            found = session.facets(build(Filter, self._body(), "the filter"))
        elif path == "distributions":
            found = session.distributions(build(Distributions, self._body(), "the columns"))
        elif path == "review":
            found = session.review(build(Decision, self._body(), "review"))
        elif path == "slice":
            found = session.save_slice(build(Saving, self._body(), "the slice"))
        elif path == "reviews":
            found = session.save_reviews(build(Saving, self._body(), "the manifest"))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        return _json(found), "application/json"

    def _body(self) -> Mapping[str, Any]:
        # a form of another site cannot send this type
        if self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
        if self._received is None:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")
        try:
            found = json.loads(self._received)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "send a JSON object")
        return found

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for each request."""


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = host.partition(":")
    return name.lower() if not colon or port.isdecimal() else ""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str).encode(
        "utf-8", "backslashreplace"
    )
