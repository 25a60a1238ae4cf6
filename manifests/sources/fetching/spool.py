"""What was fetched over a network during a run, in a folder: each URL is fetched once, by any process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import tempfile
import time
import urllib.parse
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from uhr.base.files import sha256_file, write_json
from uhr.manifests.sources.fetching.http import AGENT, Fetched, HttpOptions, NotFetched, Request, get
from uhr.manifests.sources.fetching.robots import Robots, opt_out, opt_out_headers

LONGEST_ROBOTS = 512 * 1024
"""Bytes of a robots.txt that are read, as RFC 9309 requires at least."""

ROBOTS_AGAIN = 60.0
"""Seconds after which a robots.txt that could not be read is requested again."""


class Spool:
    """A folder with the answers of URLs, the rules of their sites, and the locks that bound the number of
    fetches from one host, for all processes and threads of a machine.

    An answer that another attempt may change (a time-out, HTTP 503) is only remembered, until `forget`.
    """

    def __init__(self, folder: Path, options: HttpOptions) -> None:
        self.folder, self.options = folder, options
        self._failed: dict[str, Mapping[str, Any]] = {}

    def forget(self) -> None:
        """Let `fetch` try again what failed."""
        self._failed.clear()

    def fetch(self, url: str) -> Mapping[str, Any]:
        """Fetch a URL, unless its answer is here. Returns the facts of the answer, by the columns of
        the stage `fetch`, with `path`, the file of its body, or with `fault` or `opt_out`, which says
        why there is none.
        """
        facts = self._file(url)
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return {**json.loads(facts.read_bytes()), "path": str(facts.with_suffix(".bytes"))}
        if url not in self._failed:
            found = self._fetch(url, facts)
            if not found.transient:
                return self.fetch(url)
            self._failed[url] = {**_facts(found), "transient": True}
        return self._failed[url]

    def remove(self, url: str) -> None:
        """Delete the answer of a URL."""
        facts = self._file(url)
        facts.unlink(missing_ok=True)
        facts.with_suffix(".bytes").unlink(missing_ok=True)

    def _file(self, url: str) -> Path:
        key = hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def _fetch(self, url: str, facts: Path) -> Fetched:
        facts.parent.mkdir(parents=True, exist_ok=True)
        request = Request(url, self.options)
        if self.options.obey:
            request = replace(request, allowed=self._disallowed, usable=lambda found: opt_out(found, AGENT))
        with self._slot(url), tempfile.NamedTemporaryFile(dir=facts.parent, suffix=".tmp") as body:
            found = get(request, cast(BinaryIO, body))
            if not found.transient:
                tree = _facts(found)
                if found.whole:
                    body.flush()
                    # a link, as the temporary name is deleted; another process may have been faster, or an
                    # earlier one was killed before it wrote the facts: then its bytes are those that are read
                    with contextlib.suppress(FileExistsError):
                        os.link(body.name, facts.with_suffix(".bytes"))
                    tree["content_hash"] = sha256_file(facts.with_suffix(".bytes"))
                # last: where the facts are, the body is whole
                write_json(facts, tree)
        return found

    def _disallowed(self, url: str) -> str | None:
        """`robots.txt` if that does not allow to fetch a URL; None if it does, or if there is none.

        Raises NotFetched if it cannot be read: then nothing is allowed, as RFC 9309 says.
        """
        parts = urllib.parse.urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc}".lower()
        file = self.folder / "robots" / hashlib.sha256(site.encode()).hexdigest()[:32]
        with _locked(file.with_suffix(".lock")):
            found = None
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                found = json.loads(file.read_bytes())
            if found is None or (found["fault"] is not None and time.time() > found["time"] + ROBOTS_AGAIN):
                found = self._robots(f"{site}/robots.txt")
                write_json(file, found)
        if found["fault"] is not None:
            raise NotFetched(f"its site's robots.txt cannot be read: {found['fault']}", transient=True)
        return None if Robots.parse(found["text"], AGENT).allows(url) else "robots.txt"

    def _robots(self, url: str) -> dict[str, Any]:
        """Read a robots.txt; a site without one (4xx) allows everything."""
        options = self.options.model_copy(update={"most": LONGEST_ROBOTS, "retries": 1})
        body = io.BytesIO()
        found = get(Request(url, options, types=()), body)
        if found.whole:
            return {"text": body.getvalue().decode("utf-8-sig", "replace"), "fault": None, "time": 0}
        absent = found.status is not None and 400 <= found.status < 500 and found.status != 429
        return {"text": "", "fault": None if absent else found.fault, "time": time.time()}

    @contextlib.contextmanager
    def _slot(self, url: str) -> Generator[None]:
        """Hold one of the `per_host` places of a URL's host."""
        host = url.partition("://")[2].partition("/")[0].lower()
        folder = self.folder / "hosts"
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(host.encode()).hexdigest()[:16]
        while True:
            for place in range(self.options.per_host):
                handle = os.open(folder / f"{name}-{place}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    continue
                try:
                    yield
                    return
                finally:
                    os.close(handle)
            time.sleep(0.02)


@contextlib.contextmanager
def _locked(file: Path) -> Generator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _facts(found: Fetched) -> dict[str, Any]:
    return {
        "fetch_time": found.time,
        "final_url": found.url,
        "http_status": found.status,
        "etag": found.header("etag"),
        "opt_out": found.opt_out,
        "opt_out_headers": opt_out_headers(found.headers),
        "fault": found.fault,
    }
