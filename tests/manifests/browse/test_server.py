"""Only the page reaches the server, and every request is answered in one line."""

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.manifests.browse import thumbnails
from uhr.manifests.browse.server import LARGEST_BODY, BrowseServer
from uhr.manifests.browse.session import Page, Session
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest

Answer = tuple[int, dict[str, str], bytes]


def request(server: BrowseServer, path: str, body: Any = None, whole: bool = False, **headers: str) -> Answer:
    """Ask for a path behind the token, or a `whole` one; header names are written with underscores."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = json.dumps(body).encode() if body is not None else None
    if data is not None:
        sent = {"Content-Type": "application/json"} | sent
    connection.request("POST" if data else "GET", path if whole else f"/{server.token}/{path}", data, sent)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


@pytest.fixture
def server(
    manifest: Manifest, open_session: Callable[..., Session], serve: Callable[..., BrowseServer]
) -> BrowseServer:
    return serve(open_session(manifest))


def test_the_page_and_its_files_are_there_and_load_nothing_else(server: BrowseServer) -> None:
    for path in ("", "theme.css", "page.css", "page.js", "common.js", "list.js", "record.js", "review.js"):
        status, headers, data = request(server, path)
        assert status == 200, path
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert b"http:" not in data
        assert b"https:" not in data
    assert request(server, "facts")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test", "127.0.0.1@evil.test", "[::1]", "127.0.0.1:x", ""]
)
def test_a_request_under_another_name_is_refused(server: BrowseServer, host: str) -> None:
    status, _, data = request(server, "facts", Host=host)
    assert status == 403
    assert b"counts" not in data


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9", "127.0.0.1:8000"])
def test_this_machine_has_two_names_and_a_forwarded_port_may_differ(server: BrowseServer, host: str) -> None:
    assert request(server, "facts", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_request_of_another_site_is_refused(server: BrowseServer, headers: dict[str, str]) -> None:
    assert request(server, "facts", **headers)[0] == 403
    assert request(server, "page", {}, **headers)[0] == 403
    own = f"http://127.0.0.1:{server.server_port}"
    assert request(server, "page", {}, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("path", ["/", "/facts", "/wrong/facts", "/{token}x/facts", "/%2e/{token}", "//"])
def test_an_address_without_the_token_is_refused(server: BrowseServer, path: str) -> None:
    status, _, data = request(server, path.replace("{token}", server.token), whole=True)
    assert status == 403
    assert server.token.encode() not in data
    assert len(server.token) >= 32


@pytest.mark.parametrize(
    "path",
    ["nothing", "../manifest.json", "%2e%2e/manifest.json", "page.py", "sample/x", "image/-1", "sample/1/2"],
)
def test_other_addresses_lead_nowhere(server: BrowseServer, path: str) -> None:
    status, _, data = request(server, path)
    assert status == 404
    assert json.loads(data)["error"]


def test_requests_that_make_no_sense_are_named(server: BrowseServer) -> None:
    for path, body, part in (
        ("page", {"count": 1000}, "'count' "),
        ("page", {"filter": {"where": "entropy >"}}, "not an SQL condition"),
        ("page", {"order": {"by": "x"}}, "unknown column 'x'"),
        ("facets", {"wher": "a"}, "wher"),
        ("review", {"positions": [], "name": "a"}, "positions"),
        ("slice", {"name": "../x"}, "no name of a folder"),
        ("slice", {"name": "x", "filter": {"where": "entropy > 100"}}, "nothing is left"),
        ("reviews", {"name": "x"}, "no reviews"),
    ):
        status, _, data = request(server, path, body)
        error = json.loads(data)["error"]
        assert (status, part in error, "\n" in error) == (400, True, False), error
    for data, headers, status in (
        ([1], {}, 400),
        ({}, {"Content_Type": "text/plain"}, 415),
        ({}, {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({}, {"Content_Length": str(LARGEST_BODY + 1)}, 413),
    ):
        assert request(server, "page", data, **headers)[0] == status
    assert request(server, "sample/100")[0] == 404
    assert request(server, "facts")[0] == 200, "it goes on"


def test_thumbnails_are_the_previews(server: BrowseServer, manifest: Manifest) -> None:
    rows = manifest.table(["sample_id", "status"]).to_pylist()
    stored = manifest.previews([row["sample_id"] for row in rows])
    for number in (0, 41, 98):
        status, headers, data = request(server, f"thumbnail/{number}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert data == stored[rows[number]["sample_id"]]
    status, _, data = request(server, "thumbnail/99")
    assert rows[99]["status"] == "failed"
    assert (status, json.loads(data)["error"]) == (404, "no known image format")


def decoded(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found


def test_an_image_without_a_preview_is_decoded_once_by_another_process(
    with_files: Manifest,
    open_session: Callable[..., Session],
    image: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = open_session(with_files)
    small, large = session.image(0, large=False), session.image(0, large=True)
    assert decoded(small).shape == (240, 320, 3)
    assert decoded(large).shape == (300, 400, 3)
    assert np.abs(decoded(large).astype(int) - decoded(image(40, 400, 300))).max() <= 4
    patch = next(n for n, row in enumerate(with_files.table(["box"]).to_pylist()) if row["box"])
    assert decoded(session.image(patch, large=True)).shape == (32, 64, 3), "a patch is cut out"
    with pytest.raises(thumbnails.Fault, match="not an image"):
        session.image(4, large=False)
    with pytest.raises(thumbnails.Fault, match="unreadable"):
        session.image(5, large=False)
    renderer = session._thumbnails._renderer
    process = renderer._process
    assert process is not None
    calls: list[Any] = []
    monkeypatch.setattr(renderer, "render", lambda *arguments: calls.append(arguments))
    assert session.image(0, large=False) == small
    with pytest.raises(thumbnails.Fault, match="not an image"):
        session.image(4, large=False)
    assert not calls, "images and faults are kept"
    monkeypatch.undo()
    # the process ends in the middle of an image, as a decoder that crashes
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(thumbnails, "TIMEOUT", 0.2)
    with pytest.raises(thumbnails.Fault, match=r"more than 0.2 s"):
        session.image(1, large=False)
    monkeypatch.undo()
    assert process.poll() is not None
    assert decoded(session.image(2, large=False)).shape == (240, 320, 3), "a new process goes on"
    again = renderer._process
    assert again is not None
    again.kill()
    again.wait()
    with pytest.raises(thumbnails.Fault, match="crash"):
        session.image(1, large=True)


def test_a_port_that_is_taken_is_named(
    server: BrowseServer, manifest: Manifest, open_session: Callable[..., Session]
) -> None:
    with pytest.raises(UserError, match=f"--port {server.server_port} cannot be used"):
        BrowseServer(open_session(manifest), server.server_port)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_ends_the_command_at_once(
    warm_curation: Any, manifest: Manifest, options: tuple[str, ...]
) -> None:
    process = warm_curation.start(["-m", "uhr", "manifest", "browse", str(manifest.path), *options])
    try:
        while "http://127.0.0.1:" not in process.stdout():
            assert process.poll() is None, process.stderr()
            time.sleep(0.02)
        if options:
            assert json.loads(process.stdout())["url"].startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stderr()
        assert process.stderr() == ""
        assert ("stopped" in process.stdout()) == (not options)
    finally:
        process.kill()


def test_a_manifest_in_a_store_is_browsed_with_its_reviews_beside_it_or_elsewhere(
    s3: Any,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = f"s3://{s3.bucket}/sets/a slice"
    slice_manifest(manifest, address, SliceOptions(status="any"))
    pages: list[dict[str, Any]] = []

    def serve_forever(self: BrowseServer, poll_interval: float) -> None:
        jpeg = self.session.image(41, large=False)
        pages.append(self.session.facts() | {"jpeg": jpeg} | self.session.page(Page()))
        raise KeyboardInterrupt

    monkeypatch.setattr(BrowseServer, "serve_forever", serve_forever)
    monkeypatch.chdir(tmp_path)
    there, here = f"s3://{s3.bucket}/sets", str(tmp_path)
    for options, into in (([], there), (["--into", ".", "--reviews", "a slice-reviews.jsonl"], here)):
        assert main(["manifest", "browse", address, "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["into"], found["reviews"]) == (into, f"{into}/a slice-reviews.jsonl")
    page = pages[0]
    assert (page["name"], page["path"], page["total"]) == ("a slice", address, 100)
    assert address in page["command"]
    assert page["jpeg"].startswith(b"\xff\xd8")


def test_stopping_removes_what_is_half_written(
    manifest: Manifest,
    tmp_path: Path,
    open_session: Callable[..., Session],
    serve: Callable[..., BrowseServer],
) -> None:
    session = open_session(manifest)
    server = serve(session)
    session._stopping.set()
    status, _, _ = request(server, "slice", {"name": "new", "filter": {}})
    assert status == 503
    assert not (tmp_path / "new").exists()
