"""A list of URLs as a source: Parquet, CSV, JSON lines or a text file. Each image is fetched once."""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

import pyarrow as pa
from pydantic import Field

from uhr.base.errors import UserError, one_line
from uhr.base.paths import in_store, path_text, text_place
from uhr.base.store import StoreError
from uhr.manifests.schema import STATED
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import (
    GIVEN,
    ITEMS,
    Advance,
    AnyPlace,
    FetchedFiles,
    Item,
    Listing,
    items_table,
    numbered,
)
from uhr.manifests.sources.blobs import Blob, LocalBlob
from uhr.manifests.sources.fetching.http import HttpOptions, host_of, without_credentials
from uhr.manifests.sources.fetching.spool import Spool
from uhr.manifests.sources.table_rows import TableRows, stated_sizes
from uhr.pixels.decode import PixelLimits
from uhr.pixels.types import Header, PixelFault

URL_NAMES = ("url", "image_url", "source_url", "url_link", tables.LINE)

CONTACT_SECONDS = 30.0
"""After how many seconds no further host is contacted to find out whether one answers."""

_SCHEMA = pa.schema([*ITEMS, GIVEN, pa.field("source_url", pa.string()), *(c.field() for c in STATED)])


class Urls(TableRows):
    """Rows of tables that name images by URL.

    A URL that occurs again gets a fragment with its number as uri. A URL with a user name or a password fails
    its row, and is stored without them.

    path: a file, a folder or a pattern, also in an object store. url: the column of the URLs. width, height:
    the columns of the sizes that the list states.
    """

    kind = "urls"

    path: AnyPlace
    url: str | None = None
    width: str | None = None
    height: str | None = None
    http: HttpOptions = Field(default_factory=HttpOptions)
    spool: FetchedFiles | None = Field(None, exclude=True)
    """Where the files are that were fetched, set for the time of a run."""

    @property
    def fetches(self) -> bool:
        return True

    @property
    def obeys(self) -> bool:
        return self.http.obey

    @property
    def place(self) -> Path | str:
        return text_place(self.path)

    def check(self) -> None:
        if not in_store(self.path):
            tables.table_files(self.path)

    def _list(self, advance: Advance) -> Listing:
        rows: list[tuple[Any, ...]] = []
        seen: dict[str, int] = {}
        with tables.opened(self.path) as files:
            for file in files:
                found = list(self._rows_of(file, seen))
                rows += found
                advance(len(found))
        if not rows:
            raise UserError(f"the list {self.place} has no row", "name a list of URLs")
        return Listing(self, items_table(rows, _SCHEMA))

    def _rows_of(self, file: Path, seen: dict[str, int]) -> Iterator[tuple[Any, ...]]:
        table = tables.read_table(file)
        name = tables.column_of(table, self.url, URL_NAMES, str(file), "it with the option url")
        sizes = stated_sizes(table, self.width, self.height, str(file))
        links = (_text(value) for value in table[name].to_pylist())
        given = tables.given(table, (name,))
        for number, (link, values, *size) in enumerate(zip(links, given, *sizes, strict=True), 1):
            url = without_credentials(link)
            fault = _fault_of(link, url)
            uri = numbered(url or f"{file.name}#{number}", seen)
            yield uri, None, None, None, *fault, values, url or None, *size

    def open(self, item: Item) -> UrlBlob:
        return UrlBlob(self, _url(item))

    def spooled(self, files: FetchedFiles) -> Urls:
        return self.model_copy(update={"spool": files})

    def lane(self, item: Item) -> str | None:
        host = host_of(_url(item))
        return None if host is None else f"host {host}"

    def contact(self, items: Sequence[Item]) -> str | None:
        end = time.monotonic() + CONTACT_SECONDS
        first: str | None = None
        hosts = {lane: _url(item) for item in items if (lane := self.lane(item)) is not None}
        for lane, url in hosts.items():
            why = self.answers.contact(url)
            if why is None:
                return None
            first = first or f"{lane}: {why}"
            if time.monotonic() > end:
                break
        of = "its host does not answer" if len(hosts) == 1 else f"none of {len(hosts)} hosts answers"
        return first and f"{of} ({first})"

    def prefetch(self, items: Iterable[Item], fetch: Callable[[Item], None] | None = None) -> None:
        """Fetch these items, `concurrency` at a time. What fails is a fault of the item's Blob."""
        items = list(items)
        self.answers.forget(map(_url, items))
        with ThreadPoolExecutor(self.http.concurrency) as pool:
            for _ in pool.map(fetch or (lambda item: self.open(item).facts), items):
                pass

    @cached_property
    def answers(self) -> Spool:
        """Where the answers are; outside of a run in a folder of this process's own."""
        if self.spool is not None:
            return Spool(self.spool, self.http)
        folder = tempfile.mkdtemp(prefix="uhr-fetched-")
        weakref.finalize(self.http, rmtree, folder, ignore_errors=True)
        return Spool(FetchedFiles(folder=path_text(folder)), self.http)


class UrlBlob(Blob):
    """The bytes of a URL, fetched when they are first needed. Raises PixelFault("download") if they cannot
    be, or if the site reserves the image, and "unavailable" if another attempt may get them.
    """

    __slots__ = ("_source", "_url", "version")

    def __init__(self, source: Urls, url: str) -> None:
        self._source, self._url = source, url
        self.version = None

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._source.answers.fetch(self._url)

    @property
    def path(self) -> str | None:
        return None

    def _local(self) -> LocalBlob:
        facts = self.facts
        reason = facts["fault"] or (facts["opt_out"] and f"the site forbids it ({facts['opt_out']})")
        if reason:
            raise PixelFault("unavailable" if facts.get("transient") else "download", reason)
        try:
            return LocalBlob(str(self._source.answers.body(self._url)))
        except StoreError as error:
            raise PixelFault("unavailable", one_line(error)) from None

    @property
    def size(self) -> int:
        return self._local().size

    def header(self) -> Header:
        return self._local().header()

    def at(self, offset: int, count: int) -> bytes:
        return self._local().at(offset, count)

    def read(self, limits: PixelLimits | None = None) -> bytes:
        data = self._local().read(limits)
        if self._source.spool is None:
            # nobody reads it again: a set of images would fill the disk
            self._source.answers.remove(self._url)
        elif self._source.spool.store is not None:
            self._source.answers.remove_copy(self._url)
        return data

    def check_unchanged(self) -> None:
        """Do nothing: a URL is fetched once."""


def _url(item: Item) -> str:
    return item["uri"].partition("#")[0]


def _text(value: Any) -> str:
    return str(value).strip() if value is not None else ""


def _fault_of(link: str, url: str) -> tuple[str | None, str | None]:
    """Return `fault` and `fault_words` of a row of a list. `url` is the link without credentials."""
    if not url:
        return "download", "the list has no URL in this row"
    if url != link:
        what = "its URL in the list has a user name or a password, which are neither sent nor stored"
        return "download", what
    return None, None
