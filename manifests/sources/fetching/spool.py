"""What was fetched over a network during a run, in a folder or an object store: each URL is fetched once, by
any process of a machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
import urllib.parse
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from uhr.base.files import atomic, sha256_file, write_json
from uhr.base.paths import in_store, text_path
from uhr.base.store import FolderStore, ObjectStore, Store, StoreError
from uhr.manifests.sources.base import FetchedFiles
from uhr.manifests.sources.fetching.hosts import Hosts, Machines, locked
from uhr.manifests.sources.fetching.http import AGENT, Fetched, HttpOptions, NotFetched, Request, get
from uhr.manifests.sources.fetching.robots import Robots, opt_out, opt_out_headers

LONGEST_ROBOTS = 512 * 1024
"""Bytes of a robots.txt that are read, as RFC 9309 requires at least."""

ROBOTS_AGAIN = 60.0
"""Seconds after which a robots.txt that could not be read is requested again."""

CONTACT_TIMEOUT = 5.0
"""Seconds without a byte after which a host does not answer that is only contacted."""

COPIES = 256
"""The most files of a store of which a process has a copy at one time."""


class Spool:
    """The answers of URLs and the rules of their sites, for all processes and threads of a machine.

    The answers are in a folder, or in an object store, where all machines find them; then each process has
    copies of a few. An answer that another attempt may change (a time-out, HTTP 503) is only remembered,
    until `forget`.
    """

    def __init__(self, files: FetchedFiles, options: HttpOptions) -> None:
        self.files, self.options = files, options
        shared, self._store, machines = text_path(files.folder), None, None
        self.folder = shared / files.name
        if files.store is not None:
            shared = ObjectStore(files.store).work_folder()
            # no source can have this name
            machines = Machines(f"{files.store}/(machines)", shared)
            self._store = ObjectStore(f"{files.store}/{files.name}")
            self._copies = tempfile.TemporaryDirectory(prefix="uhr-fetched-")
            self.folder = Path(self._copies.name)
        # of all sources of the run; what a robots.txt says may depend on the options of one
        self.hosts = Hosts(shared / "hosts", options.per_host, machines)
        self._locks = shared / files.name / "locks"
        self._robots_texts = shared / files.name / "robots"
        self._failed: dict[str, Mapping[str, Any]] = {}
        self._held: deque[Path] = deque()

    def forget(self, urls: Iterable[str]) -> None:
        """Let `fetch` try again those of these URLs that failed."""
        for url in urls:
            self._failed.pop(url, None)

    def fetch(self, url: str) -> Mapping[str, Any]:
        """Fetch a URL, unless its answer is here. Returns the facts of the answer, by the columns of
        the stage `fetch`, with `fault` or `opt_out` if there is no body.
        """
        here = self._here(url)
        if here is not None and not self._is_tried_again(here):
            return here
        # a list may have a URL in several rows, which threads and processes fetch at the same time
        with locked(self._locks / self._name(url, ".lock"), lasting=False):
            known = self._known(url)
            if known is not None and not self._is_tried_again(known):
                return known
            if url not in self._failed:
                found = self._fetch(url, self._file(url))
                known = None if found.transient else self._known(url)
                if known is not None:
                    return known
                self._failed[url] = {**_facts(found), "transient": True}
            return self._failed[url]

    def _here(self, url: str) -> Mapping[str, Any] | None:
        """Return the facts of an answer that is in the folder."""
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads(self._file(url).read_bytes())
        return None

    def _known(self, url: str) -> Mapping[str, Any] | None:
        """Return the facts of an answer that is here, in the store, or in an earlier run."""
        here, facts = self._here(url), self._file(url)
        if here is not None:
            return here
        data = None if self._store is None else self._store.read(self._name(url))
        if data is None:
            return self._earlier(url, facts)
        with atomic(facts) as temporary:
            temporary.write_bytes(data)
        return json.loads(data)

    def _is_tried_again(self, known: Mapping[str, Any]) -> bool:
        """Whether an answer is one of an earlier run that could not fetch the URL, which this run tries."""
        again = self.files.again
        return bool(again) and known["fault"] is not None and known.get("run") != again

    def body(self, url: str) -> Path:
        """Return the file with the body of an answer, which `fetch` has found. Raises StoreError if the store
        does not have it any more.
        """
        path = self._file(url).with_suffix(".bytes")
        if self._store is not None and not path.exists():
            name = self._name(url, ".bytes")
            try:
                with atomic(path) as temporary:
                    self._store.fetch(name, temporary)
            except FileNotFoundError:
                what = f"{self._store.place(name)} is missing"
                raise StoreError(what, "start the run again with another --out") from None
            self._hold(path)
        return path

    def remove(self, url: str) -> None:
        """Delete the answer of a URL."""
        facts = self._file(url)
        facts.unlink(missing_ok=True)
        facts.with_suffix(".bytes").unlink(missing_ok=True)

    def remove_copy(self, url: str) -> None:
        """Delete the copy of a body that is in the store."""
        self._file(url).with_suffix(".bytes").unlink(missing_ok=True)

    def _hold(self, path: Path) -> None:
        """Note the copy of a body, and delete the oldest of too many."""
        self._held.append(path)
        while len(self._held) > COPIES:
            self._held.popleft().unlink(missing_ok=True)

    def _file(self, url: str) -> Path:
        return self.folder / self._name(url)

    def _name(self, url: str, suffix: str = ".json") -> str:
        key = hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
        return f"{key[:2]}/{key}{suffix}"

    def _earlier(self, url: str, facts: Path) -> Mapping[str, Any] | None:
        """Take over what an unfinished run has fetched. It must be what this one would fetch: a whole body of
        at most the allowed size, and no reservation was ignored that is to be obeyed.
        """
        for place in self._places:
            data = place.read(self._name(url))
            tree = None if data is None else json.loads(data)
            if tree is None or tree["fault"] or tree["opt_out"]:
                continue
            if self.options.obey and not tree.get("obeyed"):
                continue
            body = place.read(self._name(url, ".bytes"))
            whole = body is not None and hashlib.sha256(body).hexdigest() == tree.get("content_hash")
            if body is not None and whole and len(body) <= self.options.most:
                with atomic(facts.with_suffix(".bytes")) as temporary:
                    temporary.write_bytes(body)
                self._keep(url, tree)
                return tree
        return None

    @cached_property
    def _places(self) -> list[Store]:
        return [
            ObjectStore(place) if in_store(place) else FolderStore(str(text_path(place)))
            for place in (f"{each}/{self.files.name}" for each in self.files.earlier)
        ]

    def _keep(self, url: str, tree: Mapping[str, Any]) -> None:
        """Write the facts of an answer, whose body is in its file; last, so that where the facts are the body
        is whole.
        """
        facts = self._file(url)
        body = facts.with_suffix(".bytes")
        if self._store is not None and body.exists():
            self._store.upload(body, self._name(url, ".bytes"))
            self._hold(body)
        write_json(facts, tree)
        if self._store is not None:
            self._store.upload(facts, self._name(url))

    def _fetch(self, url: str, facts: Path) -> Fetched:
        facts.parent.mkdir(parents=True, exist_ok=True)
        request = Request(url, self.options)
        if self.options.obey:
            request = replace(request, allowed=self._disallowed, usable=lambda found: opt_out(found, AGENT))
        body = tempfile.NamedTemporaryFile(dir=facts.parent, suffix=".tmp")  # noqa: SIM115 - closed below
        with body, self.hosts.holding() as take:
            found = get(replace(request, take=take), cast(BinaryIO, body))
            if not found.transient:
                tree = {**_facts(found), "obeyed": self.options.obey, "run": self.files.again}
                if found.whole:
                    body.flush()
                    # a link, as the temporary name is deleted; another process may have been faster, or an
                    # earlier one was killed before it wrote the facts: then its bytes are those that are read
                    with contextlib.suppress(FileExistsError):
                        os.link(body.name, facts.with_suffix(".bytes"))
                    tree["content_hash"] = sha256_file(facts.with_suffix(".bytes"))
                self._keep(url, tree)
        return found

    def _disallowed(self, url: str) -> str | None:
        """`robots.txt` if that does not allow to fetch a URL; None if it does, or if there is none.

        Raises NotFetched if it cannot be read: then nothing is allowed, as RFC 9309 says.
        """
        site = _site(url)
        with self._robots_file(site) as (file, found):
            if found is None or (found["fault"] is not None and time.time() > found["time"] + ROBOTS_AGAIN):
                found = self._robots(site, self.options)
                write_json(file, found)
        if found["fault"] is not None:
            raise NotFetched(f"its site's robots.txt cannot be read: {found['fault']}", transient=True)
        return None if Robots.parse(found["text"], AGENT).allows(url) else "robots.txt"

    def contact(self, url: str) -> str | None:
        """Say why the host of a URL does not answer this machine; None if it does, whatever its answer is.

        Its robots.txt is requested once, unless that has been read already.
        """
        site = _site(url)
        with self._robots_file(site) as (file, found):
            if found is not None and found["fault"] is None:
                return None
            quick = {"timeout": min(CONTACT_TIMEOUT, self.options.timeout), "retries": 0}
            quick["total"] = min(2 * CONTACT_TIMEOUT, self.options.total)
            found = self._robots(site, self.options.model_copy(update=quick))
            if found["fault"] is None:
                # another answer may only be one to such a short time
                write_json(file, found)
        return None if found["answered"] else found["fault"]

    @contextlib.contextmanager
    def _robots_file(self, site: str) -> Generator[tuple[Path, dict[str, Any] | None]]:
        """Yield the file that has what is known of a site's robots.txt, and its content, while no other
        process can change it.
        """
        file = self._robots_texts / hashlib.sha256(site.encode()).hexdigest()[:32]
        with locked(file.with_suffix(".lock")):
            found = None
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                found = json.loads(file.read_bytes())
            yield file, found

    def _robots(self, site: str, options: HttpOptions) -> dict[str, Any]:
        """Read a robots.txt; a site without one (4xx) allows everything."""
        options = options.model_copy(update={"most": LONGEST_ROBOTS, "retries": min(1, options.retries)})
        body = io.BytesIO()
        found = get(Request(f"{site}/robots.txt", options, types=()), body)
        if found.whole:
            return {
                "text": body.getvalue().decode("utf-8-sig", "replace"),
                "fault": None,
                "time": 0,
                "answered": True,
            }
        absent = found.status is not None and 400 <= found.status < 500 and found.status != 429
        fault = None if absent else found.fault
        return {"text": "", "fault": fault, "time": time.time(), "answered": found.status is not None}


def _site(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


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
