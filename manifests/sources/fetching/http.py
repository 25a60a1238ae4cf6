"""Fetch one URL: with limits of time and size, retries, and refusal of private addresses.

Only the standard library is used, because the address that a name resolves to is checked before the
connection is made to it; a client that resolves the name again could be led to another one.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import ipaddress
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO, NamedTuple

from pydantic import ByteSize, Field

import uhr
from uhr.base.config import Config
from uhr.base.errors import one_line
from uhr.base.formatting import human_bytes

AGENT = "uhr"
"""The name that robots.txt and X-Robots-Tag know this software by."""

REFUSED = (401, 403)
"""Status of a host that gives the image to others, with other credentials, or at another time."""

MOST_REDIRECTS = 5
LONGEST_WAIT = 60.0
"""Seconds that are waited at most before a retry, whatever Retry-After says."""

_DIGITS = re.compile(r"[0-9]{1,18}")
"""A number in a header; `str.isdigit` also accepts digits that `int` refuses."""

IMAGE_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")


_CREDENTIALS = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)[^/?#]*@")


_PORTS = {"http": 80, "https": 443}


def without_credentials(url: str) -> str:
    """Return a URL without the user name and the password before its host."""
    return _CREDENTIALS.sub(r"\1", url, count=1) if _CREDENTIALS.match(url) else url


def host_of(url: str) -> str | None:
    """Return the host that a URL is requested from, in lower case, with its port if that is not the usual one
    (`example.org:8080`); None if it is no http or https URL.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.scheme not in _PORTS:
        return None
    named = f"[{host}]" if ":" in host else host
    return named if port in (None, _PORTS[parts.scheme]) else f"{named}:{port}"


class HttpOptions(Config):
    """How URLs are fetched.

    timeout: seconds without a byte; total: seconds for one attempt; retries: attempts after the first, of
    what may pass by itself (no connection, time-outs, 408, 425, 429, 5xx); concurrency: fetches at once in
    each worker process; per_host: fetches at once from one host, of all processes and machines; most: bytes
    of an answer; private: whether addresses that are not public may be fetched; obey: whether robots.txt,
    X-Robots-Tag and tdm-reservation are obeyed; user_agent: the header; `uhr/VERSION` by default.
    """

    timeout: float = Field(20.0, gt=0)
    total: float = Field(120.0, gt=0)
    retries: int = Field(3, ge=0, le=20)
    concurrency: int = Field(16, ge=1, le=512)
    per_host: int = Field(4, ge=1, le=512)
    most: ByteSize = Field(ByteSize(200 * 2**20), ge=1)
    private: bool = False
    obey: bool = True
    user_agent: str | None = Field(None, pattern=r"^[ -~]+$")
    pause: float = Field(1.0, gt=0)
    """Seconds before the first retry; doubled before each further one, and varied by half."""


@dataclass(frozen=True)
class Fetched:
    """An answer, or the failure to get one.

    url: the one that answered, after redirects. whole: whether the body was written. fault: why it was not;
    `transient` if another attempt may succeed. opt_out: the site's reservation because of which it was not.
    """

    url: str
    whole: bool = False
    status: int | None = None
    headers: Mapping[str, list[str]] = field(default_factory=dict)
    time: str = ""
    fault: str | None = None
    transient: bool = False
    opt_out: str | None = None

    def header(self, name: str) -> str | None:
        return (self.headers.get(name) or [None])[0]


class NotFetched(Exception):
    """A URL cannot be fetched; `transient` if another attempt may succeed."""

    def __init__(self, fault: str, transient: bool = False) -> None:
        super().__init__(fault)
        self.fault, self.transient = fault, transient


@dataclass(frozen=True)
class Request:
    """What to fetch, and what to accept.

    types: beginnings of the accepted content types; all if empty. allowed: called with each URL before it is
    fetched, redirects included; returns the reservation because of which it must not be, or None, or raises
    NotFetched. usable: called with the headers of the answer before its body is read; returns the reservation
    because of which it must not be used, or None. take: called before each URL is requested; waits until its
    host may be. The time of `allowed` and `take` does not count.
    """

    url: str
    options: HttpOptions
    types: tuple[str, ...] = IMAGE_TYPES
    allowed: Callable[[str], str | None] = lambda url: None
    take: Callable[[str], None] = lambda url: None
    usable: Callable[[Mapping[str, list[str]]], str | None] = lambda headers: None


def get(request: Request, body: BinaryIO) -> Fetched:
    """Fetch a URL into `body`, and follow redirects. Raises nothing for what a URL or a server does.

    `body` has the whole answer if `Fetched.whole`, and anything otherwise.
    """
    options = request.options
    for attempt in range(options.retries + 1):
        body.seek(0)
        body.truncate()
        found = _attempt(request, body)
        # a refusal does not pass in seconds, but with another key, or on another day
        if not found.transient or found.status in REFUSED or attempt == options.retries:
            break
        wait = options.pause * 2**attempt * random.uniform(0.5, 1.5)
        time.sleep(min(LONGEST_WAIT, max(wait, _seconds(found.header("retry-after")))))
    return found


def _attempt(request: Request, body: BinaryIO) -> Fetched:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = Fetched(request.url, time=now)
    options = request.options
    end = time.monotonic() + options.total
    seen = {request.url}
    try:
        while True:
            target = _Target.of(found.url, options)
            begin = time.monotonic()
            if (why := request.allowed(found.url)) is not None:
                return replace(found, opt_out=why)
            request.take(found.url)
            end += time.monotonic() - begin
            with _answer(target, options, end) as answer:
                headers: dict[str, list[str]] = {}
                for name, value in answer.getheaders():
                    headers.setdefault(name.lower(), []).append(value)
                found = replace(found, status=answer.status, headers=headers)
                location = found.header("location")
                if answer.status not in (301, 302, 303, 307, 308) or not location:
                    return _used(found, answer, request, body, end)
            try:
                onward = without_credentials(urllib.parse.urljoin(found.url, location))
            except ValueError:
                raise NotFetched("it redirects to what is not a valid URL") from None
            if onward in seen or len(seen) > MOST_REDIRECTS:
                raise NotFetched(f"it redirects in a circle, or more than {MOST_REDIRECTS} times")
            seen.add(onward)
            found = replace(found, url=onward)
    except NotFetched as failure:
        return replace(found, fault=failure.fault, transient=failure.transient)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, ssl.SSLCertVerificationError):
            return replace(found, fault=f"its certificate is not valid ({error.verify_message})")
        if time.monotonic() >= end:
            what = f"it took longer than {options.total:g} s"
        elif isinstance(error, TimeoutError):
            what = f"no byte came for {options.timeout:g} s"
        else:
            what = f"the connection failed ({one_line(error) or type(error).__name__})"
        return replace(found, fault=what, transient=True)


def _used(
    found: Fetched, answer: http.client.HTTPResponse, request: Request, body: BinaryIO, end: float
) -> Fetched:
    """Write the body of the last answer, if it may and can be used."""
    status = answer.status
    if status != 200:
        transient = status in (*REFUSED, 408, 425, 429) or status >= 500
        raise NotFetched(f"HTTP {status} {one_line(answer.reason)}".rstrip(), transient)
    if (why := request.usable(found.headers)) is not None:
        return replace(found, opt_out=why)
    kind = (found.header("content-type") or "").partition(";")[0].strip().lower()
    if request.types and kind and not kind.startswith(request.types):
        raise NotFetched(f"its content type is {kind}")
    length = found.header("content-length")
    stated = int(length) if length is not None and _DIGITS.fullmatch(length) else None
    limit = int(request.options.most)
    if stated is not None and stated > limit:
        raise NotFetched(f"it has {human_bytes(stated)}, more than the limit of {human_bytes(limit)}")
    size = 0
    while chunk := answer.read1(1 << 16):
        body.write(chunk)
        size += len(chunk)
        if size > limit:
            raise NotFetched(f"it has more than the limit of {human_bytes(limit)}")
    if time.monotonic() >= end:
        raise NotFetched(f"it took longer than {request.options.total:g} s", transient=True)
    if stated is not None and size < stated:
        raise NotFetched(f"the answer ended after {size:,} of {stated:,} bytes", transient=True)
    return replace(found, whole=True)


class _Target(NamedTuple):
    """A URL that was taken apart, and the address that its host's name resolves to."""

    secure: bool
    host: str
    port: int
    named: str
    path: str
    family: int
    address: tuple

    @classmethod
    def of(cls, url: str, options: HttpOptions) -> _Target:
        """Raises NotFetched if the URL is invalid, or its host has no address or one that is not public."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        except (ValueError, UnicodeError):
            raise NotFetched("it is not a valid URL") from None
        if parts.scheme not in _PORTS or not host or any(ord(c) < 32 for c in url):
            raise NotFetched("it is not an http or https URL")
        secure = parts.scheme == "https"
        family, address = _resolved(host, port or _PORTS[parts.scheme], options.private)
        named = f"[{host}]" if ":" in host else host
        path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            path += f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~?')}"
        named = named if port is None else f"{named}:{port}"
        return cls(secure, host, address[1], named, path, family, address)


def _resolved(host: str, port: int, private: bool) -> tuple[int, tuple]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        transient = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        raise NotFetched(f"its host {host} has no address ({one_line(error)})", transient) from None
    for *_, address in found:
        if not private and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            what = f"its host {host} has the private address {address[0]}"
            raise NotFetched(f"{what}: `http: {{private: true}}` of the source allows it")
    return found[0][0], found[0][4]


@contextlib.contextmanager
def _answer(target: _Target, options: HttpOptions, end: float) -> Generator[http.client.HTTPResponse]:
    """Request a URL; the connection is cut at `end` (of `time.monotonic`), whatever the server does."""
    connection = http.client.HTTPConnection(target.host, target.port)
    with socket.socket(target.family, socket.SOCK_STREAM) as sock, sock.dup() as cut:
        timer = threading.Timer(max(0.0, end - time.monotonic()), _shut, [cut])
        timer.daemon = True
        timer.start()
        try:
            sock.settimeout(options.timeout)
            sock.connect(target.address)
            connection.sock = sock
            if target.secure:
                context = ssl.create_default_context()
                connection.sock = context.wrap_socket(sock, server_hostname=target.host)
            connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            for name, value in (
                ("Host", target.named),
                ("User-Agent", options.user_agent or f"{AGENT}/{uhr.__version__}"),
                ("Accept", "image/*, */*;q=0.5"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ):
                connection.putheader(name, value)
            connection.endheaders()
            with contextlib.closing(connection.getresponse()) as answer:
                yield answer
        finally:
            timer.cancel()
            connection.close()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _seconds(after: str | None) -> float:
    """The seconds of a Retry-After header, which is a number or a date; 0 if there is none."""
    if after is None:
        return 0.0
    if _DIGITS.fullmatch(after.strip()):
        return float(after)
    try:
        return email.utils.parsedate_to_datetime(after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
