"""How many URLs of one host are fetched at once, and what counts as one host."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.manifests.sources.base import FetchedFiles
from uhr.manifests.sources.fetching.hosts import Machines
from uhr.manifests.sources.fetching.urls import Urls


def listed(tmp_path, *urls, **http) -> Urls:
    """A list of these URLs, in a run."""
    file = tmp_path / "list.txt"
    file.write_text("\n".join(urls))
    source = Urls.model_validate({"path": str(file), "http": {"private": True, "timeout": 60, **http}})
    return source.spooled(FetchedFiles(folder=str(tmp_path / "spool")))


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_per_host_requests_at_once(site, tmp_path, limit):
    urls = [f"{site.address}/{number}.jpg" for number in range(9)]
    site.images.update({f"/{number}.jpg": b"x" for number in range(9)})
    site.together, site.delay = threading.Barrier(limit, timeout=60), 0.05
    source = listed(tmp_path, *urls, per_host=limit, concurrency=9, obey=False)
    source.prefetch([{"uri": url} for url in urls])
    assert site.most_at_once == limit
    assert sum(site.requests.values()) == 9


def test_a_redirect_takes_a_place_of_the_host_that_it_leads_to(site, http_site, tmp_path):
    away = http_site.Site()
    away.delay = 0.05
    numbers = range(8)
    away.images.update({f"/{number}.jpg": b"x" for number in numbers})
    site.answers.update({f"/{n}": (302, {"Location": f"{away.address}/{n}.jpg"}) for n in numbers})
    # two names of the host that redirects: together they may ask it for twice as much
    hosts = (site.address, site.address.replace("127.0.0.1", "localhost"))
    urls = [f"{hosts[number % 2]}/{number}" for number in numbers]
    source = listed(tmp_path, *urls, per_host=1, concurrency=8, obey=False)
    try:
        source.prefetch([{"uri": url} for url in urls])
        assert all(source.open({"uri": url}).facts["fault"] is None for url in urls)
        assert sum(away.requests.values()) == 8
        assert away.most_at_once == 1
    finally:
        away.stop()


def test_the_sources_of_a_run_share_the_places_of_a_host(site, tmp_path):
    files = FetchedFiles(folder=str(tmp_path / "spool"))
    urls = [f"{site.address}/{number}.jpg" for number in range(8)]
    site.images.update({f"/{number}.jpg": b"x" for number in range(8)})
    site.delay = 0.05
    plain = listed(tmp_path, *urls, per_host=1, concurrency=4, obey=False)
    sources = [plain.spooled(files.within(name)) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        halves = ([{"uri": url} for url in urls[at::2]] for at in range(2))
        list(pool.map(lambda source, items: source.prefetch(items), sources, halves))
    assert sum(site.requests.values()) == 8
    assert site.most_at_once == 1


def test_a_url_that_several_processes_want_is_fetched_once(site, tmp_path):
    """Each has a source of its own, as processes do, and opens the files of locks anew."""
    urls = [f"{site.address}/{number}.jpg" for number in range(3)]
    site.images.update({f"/{number}.jpg": b"x" for number in range(3)})
    site.delay = 0.1
    sources = [listed(tmp_path, *urls, concurrency=4, per_host=4, obey=False) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda source: source.prefetch([{"uri": url} for url in urls]), sources))
    assert {source.open({"uri": url}).read() for source in sources for url in urls} == {b"x"}
    assert dict(site.requests) == {f"/{number}.jpg": 1 for number in range(3)}
    assert not list((tmp_path / "spool").rglob("*.lock"))


def test_machines_that_fetch_into_one_store_divide_the_places_of_a_host(site, tmp_path, s3, monkeypatch):
    monkeypatch.setattr("uhr.manifests.sources.fetching.hosts.COUNTED_AGAIN", 0.0)
    urls = [f"{site.address}/{number}.jpg" for number in range(12)]
    site.images.update({f"/{number}.jpg": b"x" for number in range(12)})
    site.delay = 0.05
    plain = listed(tmp_path, *urls, per_host=3, concurrency=6, obey=False)
    sources = []
    for name in ("one", "two"):
        # each machine has a cache of its own
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        files = FetchedFiles(folder=str(tmp_path / f"{name}-spool"), store=f"s3://{s3.bucket}/out/fetched")
        sources.append(plain.spooled(files.within("web")))
        alone = sources[-1].answers.hosts.here == 3
        assert alone == (name == "one")
    assert sorted(source.answers.hosts.here for source in sources) == [1, 2]
    with ThreadPoolExecutor(2) as pool:
        halves = ([{"uri": url} for url in urls[at::2]] for at in range(2))
        list(pool.map(lambda source, items: source.prefetch(items), sources, halves))
    assert sum(site.requests.values()) == 12
    assert site.most_at_once <= 3
    # a machine that has been silent for a minute is gone
    monkeypatch.setattr("uhr.manifests.sources.fetching.hosts.SILENT", -1.0)
    assert sources[0].answers.hosts.here == 3


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://E.org:443/a.jpg", "e.org"),
        ("http://e.org?id=1", "e.org"),
        ("http://e.org#2", "e.org"),
        ("http://e.org:8080/a.jpg", "e.org:8080"),
        ("http://[::1]:9?id=1", "[::1]:9"),
        ("http://[bad/a.jpg", None),
        ("http://e.org:99999/a.jpg", None),
        ("ftp://e.org/a.jpg", None),
        ("images/a.jpg", None),
    ],
)
def test_urls_of_one_host_share_its_limits_however_they_are_written(tmp_path, url, host):
    source = listed(tmp_path, url)
    (item,) = source.list().items.to_pylist()
    assert source.lane(item) == (None if host is None else f"host {host}")
    if host is None:
        # no machine can fetch it: that says nothing of this one
        assert source.contact([item]) is None
        assert "URL" in source.open(item).facts["fault"]


def test_a_host_with_queries_alone_is_one_host(site, tmp_path):
    site.delay = 0.05
    site.images.update({f"/?{number}": b"x" for number in range(4)})
    source = listed(tmp_path, *(f"{site.address}?{n}" for n in range(4)), per_host=1, obey=False)
    source.prefetch(source.list().items.to_pylist())
    assert sum(site.requests.values()) == 4
    assert site.most_at_once == 1


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_shares_of_machines_are_the_whole_and_nobody_is_left_without(places, count):
    shares = []
    for rank in range(count):
        machine = Machines.__new__(Machines)
        machine._found, machine._until = (rank, count), math.inf
        shares.append(machine.share(places))
    assert sum(shares) == max(places, count)
    assert max(shares) - min(shares) <= 1
