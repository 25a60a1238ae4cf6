"""Lists of URLs: every failure of a server is a fault with its status, and nothing is fetched twice."""

from __future__ import annotations

import io
import json
import re
import time
from itertools import count, product
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.errors import UserError
from uhr.manifests import sources
from uhr.manifests.sources.base import FetchedFiles, numbered
from uhr.manifests.sources.fetching import http
from uhr.manifests.sources.fetching.robots import Robots, opt_out
from uhr.manifests.sources.fetching.urls import Urls
from uhr.pixels.types import PixelFault

FAST = {"private": True, "timeout": 60, "total": 120, "retries": 1, "pause": 0.01, "most": 100_000}
SHORT = {"timeout": 0.5, "total": 1.0}
"""For servers that take longer. Others would be requested again on a slow machine."""


def listed(tmp_path, *urls, **http) -> Urls:
    file = tmp_path / "list.txt"
    file.write_text("\n".join(urls))
    source = Urls.model_validate({"path": str(file), "http": {**FAST, **http}})
    return source.spooled(FetchedFiles(folder=str(tmp_path / "spool")))


def test_a_url_is_fetched_once_and_its_answer_is_evidence(site, tmp_path):
    site.headers["/a.jpg"] = {"ETag": '"v1"'}
    source = listed(tmp_path, f"{site.address}/a.jpg", f"{site.address}/moved")
    items = source.list().items.to_pylist()
    source.prefetch(items)
    blob = source.open(items[0])
    assert blob.read() == site.images["/a.jpg"]
    assert (blob.header().width, blob.size, blob.head(2)) == (64, len(blob.read()), b"\xff\xd8")
    # another process of the same run, and a later run
    assert (
        source.spooled(FetchedFiles(folder=str(tmp_path / "spool"))).open(items[0]).sha256()
        == blob.facts["content_hash"]
    )
    assert (blob.facts["http_status"], blob.facts["etag"]) == (200, '"v1"')
    moved = source.open(items[1]).facts
    assert (items[1]["uri"], moved["final_url"]) == (f"{site.address}/moved", f"{site.address}/a.jpg")
    assert site.requests == {"/robots.txt": 1, "/a.jpg": 2, "/moved": 1}


FAULTS = {
    "missing": (404, "HTTP 404 Not Found", 1),
    "broken": (500, "HTTP 500", 2),
    "loop": (302, "redirects in a circle", 1),
    "far/0": (302, "redirects in a circle, or more than 5 times", 1),
    "page": (200, "its content type is text/html", 1),
    "large": (200, "more than the limit of", 1),
    "endless": (200, "more than the limit of", 1),
    "cut": (200, "ended after 3 of 5,000 bytes", 2),
    "silent": (None, "no byte came for 0.5 s", 2),
    "slow": (200, "it took longer than 1 s", 2),
    "reset": (None, "the connection failed", 2),
}


@pytest.mark.parametrize("path", FAULTS)
def test_every_failure_is_a_fault_with_its_status(site, tmp_path, path):
    status, message, requests = FAULTS[path]
    source = listed(tmp_path, f"{site.address}/{path}", **(SHORT if path in ("silent", "slow") else {}))
    blob = source.open(source.list().items.to_pylist()[0])
    with pytest.raises(PixelFault, match=message) as fault:
        blob.read()
    assert fault.value.kind == ("download" if requests == 1 else "unavailable")
    assert blob.facts["http_status"] == status
    assert site.requests[f"/{path}"] == requests, "what may pass is tried again, and nothing else"


def test_a_server_that_recovers_is_tried_again(site, tmp_path):
    source = listed(tmp_path, f"{site.address}/recovers", retries=2)
    assert source.open({"uri": f"{site.address}/recovers"}).read() == site.images["/a.jpg"]
    assert site.requests["/recovers"] == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a.jpg", "not an http or https URL"),
        ("a.jpg", "not an http or https URL"),
        ("http:///a.jpg", "not an http or https URL"),
        ("http://[::1/a.jpg", "not a valid URL"),
        ("http://host:99999/a.jpg", "not a valid URL"),
        ("http://no-such-host.invalid/a.jpg", "has no address"),
        ("http://127.0.0.1/a.jpg", r"has the private address 127\.0\.0\.1: `http: \{private: true\}`"),
        ("http://localhost:1/a.jpg", "has the private address"),
        ("http://169.254.169.254/latest/meta-data", "has the private address"),
        ("http://[::ffff:10.0.0.1]/a.jpg", "has the private address"),
    ],
)
def test_invalid_urls_and_private_addresses_are_refused(tmp_path, url, message):
    source = listed(tmp_path, url, private=False, retries=0)
    with pytest.raises(PixelFault, match=message):
        source.open(source.list().items.to_pylist()[0]).read()


def test_a_redirect_to_a_private_address_is_refused(site, tmp_path, monkeypatch):
    source = listed(tmp_path, f"{site.address}/moved", private=False, obey=False)
    public = http.ipaddress.ip_address("93.184.216.34")
    resolved = []

    def first_is_public(address):
        resolved.append(address)
        return public if len(resolved) == 1 else real(address)

    real = http.ipaddress.ip_address
    monkeypatch.setattr(http.ipaddress, "ip_address", first_is_public)
    with pytest.raises(PixelFault, match=r"has the private address 127\.0\.0\.1"):
        source.open({"uri": f"{site.address}/moved"}).read()
    assert site.requests["/a.jpg"] == 0


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X_Robots_Tag": "noai"}, "X-Robots-Tag: noai"),
        ({"X_Robots_Tag": "noarchive, NoImageAI"}, "X-Robots-Tag: noimageai"),
        ({"X_Robots_Tag": "otherbot: noai"}, None),
        ({"X_Robots_Tag": "uhr: noindex"}, "X-Robots-Tag: noindex"),
        ({"TDM_Reservation": "1"}, "tdm-reservation: 1"),
        ({"TDM_Reservation": "0"}, None),
    ],
)
def test_reservations_in_headers_are_obeyed_unless_switched_off(site, tmp_path, headers, reason):
    site.headers["/a.jpg"] = headers
    url = f"{site.address}/a.jpg"
    blob = (
        listed(tmp_path / "obeys", url).open({"uri": url}) if (tmp_path / "obeys").mkdir() is None else None
    )
    assert blob.facts["opt_out"] == reason
    if reason:
        with pytest.raises(PixelFault, match="the site forbids it"):
            blob.read()
    (tmp_path / "not").mkdir()
    assert listed(tmp_path / "not", url, obey=False).open({"uri": url}).size == len(site.images["/a.jpg"])


def test_robots_txt_is_read_once_and_obeyed(site, tmp_path):
    site.robots = "User-agent: *\nDisallow: /private\n"
    site.images["/private/a.jpg"] = site.images["/a.jpg"]
    urls = [f"{site.address}/private/a.jpg", f"{site.address}/a.jpg"]
    source = listed(tmp_path, *urls)
    source.prefetch([{"uri": url} for url in urls])
    assert [source.open({"uri": url}).facts["opt_out"] for url in urls] == ["robots.txt", None]
    assert site.requests == {"/robots.txt": 1, "/a.jpg": 1}


def test_a_robots_txt_that_cannot_be_read_forbids_everything(site, tmp_path):
    site.robots = 503
    source = listed(tmp_path, f"{site.address}/a.jpg")
    facts = source.open({"uri": f"{site.address}/a.jpg"}).facts
    assert facts["fault"] == "its site's robots.txt cannot be read: HTTP 503 Service Unavailable"
    assert site.requests["/a.jpg"] == 0


ROBOTS = """
User-agent: other
Disallow: /

User-agent: UHR
User-agent: second
Disallow: /a/
Allow: /a/open
Disallow: /*.gif$  # all of them
Disallow: /caf%C3%A9

User-agent: *
Disallow: /everyone
"""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/a/b.jpg", False),
        ("/a/open/b.jpg", True),
        ("/x.gif", False),
        ("/x.gif?size=2", True),
        ("/everyone", True),
        ("/café/1.jpg", False),
    ],
)
def test_robots_rules_are_those_of_rfc_9309(path, allowed):
    assert Robots.parse(ROBOTS, "uhr").allows(f"https://e.org{path}") is allowed


def test_wildcards_of_robots_are_those_of_a_regular_expression():
    def texts(letters, longest):
        return ["".join(each) for n in range(longest + 1) for each in product(letters, repeat=n)]

    paths = texts("ab$", 4)
    for pattern in texts("ab*$", 4):
        parts = [re.escape(part) for part in pattern.removesuffix("$").split("*")]
        end = r"\Z" if pattern.endswith("$") else ""
        wanted = re.compile("/" + ".*".join(parts) + end, re.DOTALL)
        rules = Robots.parse(f"User-agent: *\nDisallow: /{pattern}\n", "uhr")
        for path in paths:
            assert rules.allows(f"https://e.org/{path}") is (wanted.match(f"/{path}") is None), pattern


def test_no_robots_txt_holds_up_a_run():
    # a search that goes back takes years
    rules = Robots.parse(f"User-agent: *\nDisallow: /{'*a' * 40}$\n", "uhr")
    assert rules.allows(f"https://e.org/{'a' * 2000}b")


def test_an_empty_disallow_allows_everything():
    assert Robots.parse("User-agent: *\nDisallow:\n", "uhr").allows("https://e.org/a")
    assert opt_out({}, "uhr") is None


def test_the_wait_for_a_place_is_no_time_of_the_fetch(site, monkeypatch):
    waited = [0.0]
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + waited[0]))
    options = http.HttpOptions(private=True, total=60, retries=0)
    request = http.Request(
        f"{site.address}/a.jpg", options, take=lambda url: waited.append(waited.pop() + 999)
    )
    found = http.get(request, body := io.BytesIO())
    assert (found.whole, found.fault) == (True, None)
    assert body.getvalue() == site.images["/a.jpg"]


def test_lists_of_all_formats_give_the_same_items(tmp_path):
    rows = [{"URL": f"http://e.org/{n}.jpg", "WIDTH": 4000 + n, "caption": "é"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    text = "URL,WIDTH,caption\n" + "".join(f"{r['URL']},{r['WIDTH']},{r['caption']}\n" for r in rows)
    (tmp_path / "l.csv").write_text(text)
    (tmp_path / "l.tsv").write_bytes(text.replace(",", "\t").encode("utf-16"))
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listings = [
        sources.parse(f"urls:{tmp_path}/l.{s}").list().items for s in ("parquet", "csv", "tsv", "jsonl")
    ]
    assert listings[0]["uri"].to_pylist() == [row["URL"] for row in rows]
    assert listings[0]["stated_width"].to_pylist() == [4000, 4001, 4002]
    assert json.loads(listings[0]["given"][0].as_py()) == {"WIDTH": 4000, "caption": "é"}
    for listing in listings[1:]:
        assert listing.drop_columns("given") == listings[0].drop_columns("given")


def test_a_row_without_a_url_fails_and_a_url_that_occurs_again_is_a_row_of_its_own(tmp_path):
    (tmp_path / "l.csv").write_text("url,caption\nhttp://e.org/a,1\n,2\nhttp://e.org/a,3\n")
    rows = sources.parse(f"urls:{tmp_path}/l.csv").list().items.to_pylist()
    assert [(row["uri"], row["fault"]) for row in rows] == [
        ("http://e.org/a", None),
        ("http://e.org/a#2", None),
        ("l.csv#2", "download"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "a,b\n1,2\n", "has no column url"),
        ("l.csv", "url\n", "has no row"),
        ("l.csv", "url,b\n1\n", "line 2 has 1 cells, and the first has 2"),
        ("l.csv", "", "no line of column names"),
        ("l.parquet", "url", "cannot be read"),
        ("l.jsonl", "[1]\n", "object 1 is a JSON list"),
        ("l.doc", "url", "is not a table"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        sources.parse(f"urls:{tmp_path / name}").list()
    assert "\n" not in str(error.value)


def test_without_a_run_nothing_stays_behind(site, tmp_path):
    source = listed(tmp_path, f"{site.address}/a.jpg").model_copy(update={"spool": None})
    assert source.open({"uri": f"{site.address}/a.jpg"}).read() == site.images["/a.jpg"]
    assert list(source.answers.folder.rglob("*.bytes")) == []


@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "a#2#2", "b"]), max_size=12))
def test_the_number_of_a_name_is_the_first_that_is_free(names):
    seen: dict[str, int] = {}
    given: list[str] = []
    for name in names:
        free = (name if number == 1 else f"{name}#{number}" for number in count(1))
        expected = next(each for each in free if each not in given)
        given.append(numbered(name, seen))
        assert given[-1] == expected


def test_a_name_that_occurs_often_is_not_searched_from_its_beginning():
    class Counted(dict):
        searches = 0

        def __contains__(self, key):
            self.searches += 1
            return super().__contains__(key)

    seen = Counted()
    assert [numbered("a", seen) for _ in range(1000)][-1] == "a#1000"
    assert seen.searches <= 3 * 1000


def test_every_row_has_a_uri_of_its_own_and_no_credentials(tmp_path):
    a = "http://127.0.0.1/a.jpg"
    source = listed(
        tmp_path, a, a, f"{a}#2", "http://bob:secret@127.0.0.1/b@c.jpg", "//eve:secret@x/a", "no/@"
    )
    items = source.list().items
    assert "secret" not in str(items.to_pylist())
    uris = ["//x/a", a, f"{a}#2", f"{a}#2#2", "http://127.0.0.1/b@c.jpg", "no/@"]
    assert items["uri"].to_pylist() == uris
    faults = dict(zip(uris, items["fault_words"].to_pylist(), strict=True))
    assert "password" in faults["//x/a"]
    assert "password" in faults["http://127.0.0.1/b@c.jpg"]
    assert sum(fault is None for fault in faults.values()) == 4


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ({"Location": "http://[bad/"}, "redirects to what is not a valid URL"),
        ({"Location": "HOST/a.jpg"}, None),
        ({"Retry_After": "\u00b2"}, "HTTP 503"),
    ],
)
def test_no_header_of_a_server_ends_the_run(site, tmp_path, headers, fault):
    headers = {k: v.replace("HOST", site.address.replace("//", "//eve:secret@")) for k, v in headers.items()}
    site.answers["/odd"] = (302 if "Location" in headers else 503, headers)
    source = listed(tmp_path, f"{site.address}/odd")
    facts = source.open(source.list().items.to_pylist()[0]).facts
    assert (fault is None) == (facts["fault"] is None)
    assert fault is None or fault in facts["fault"]
    assert fault is not None or facts["final_url"] == f"{site.address}/a.jpg"


def test_the_hash_is_of_the_bytes_that_are_read_after_a_kill(site, tmp_path):
    source = listed(tmp_path, f"{site.address}/a.jpg")
    item = source.list().items.to_pylist()[0]
    source.open(item).read()
    next(tmp_path.glob("spool/??/*.json")).unlink()  # killed before it was written
    site.images["/a.jpg"] = b"\xff\xd8 another image"
    again = listed(tmp_path, f"{site.address}/a.jpg").open(item)
    assert again.sha256() == again.facts["content_hash"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("l.csv", "url,url\nhttp://a,http://b\n", "two columns 'url'"),
        ("l.csv", "url,c,c\nhttp://a,1,2\n", "two columns 'c'"),
        ("l.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_an_ambiguous_table_is_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=why):
        Urls(path=str(tmp_path / name)).list()


def test_json_lines_may_contain_separators_of_lines(tmp_path):
    (tmp_path / "l.jsonl").write_text(
        '{"url": "http://a", "caption": "one\u2028two\x85"}\r\n', encoding="utf-8"
    )
    (row,) = Urls(path=str(tmp_path / "l.jsonl")).list().items.to_pylist()
    assert json.loads(row["given"]) == {"caption": "one\u2028two\x85"}


def test_nan_in_a_table_is_a_missing_value(tmp_path):
    pq.write_table(pa.table({"url": ["http://a"], "score": [float("nan")]}), tmp_path / "l.parquet")
    (row,) = Urls(path=str(tmp_path / "l.parquet")).list().items.to_pylist()
    assert row["given"] is None


@pytest.mark.parametrize("kind", ["named", "stored"])
def test_kinds_that_only_records_have_are_refused(kind):
    with pytest.raises(UserError, match=f"the kind '{kind}' is not one of its own"):
        sources.of_pipeline({"a": {"kind": kind}}, "p.yaml")


def test_an_empty_source_is_not_the_current_folder():
    with pytest.raises(UserError, match="--source is empty"):
        sources.parse("")
