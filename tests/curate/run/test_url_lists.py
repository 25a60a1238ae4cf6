"""Curating a list of URLs: one row for each, with the evidence of its fetch, and each image fetched once."""

from __future__ import annotations

from pathlib import Path

import pytest

from uhr.manifests.manifest import Manifest


@pytest.fixture(scope="module")
def site(forge, http_site):
    server = http_site.Site()
    for seed, name in enumerate(("a", "b", "small", "reserved")):
        size = (60, 40) if name == "small" else (480, 320)
        server.images[f"/{name}.jpg"] = forge.encode(forge.image(*size, seed=seed), "JPEG", quality=90)
    server.headers["/reserved.jpg"] = {"X_Robots_Tag": "noai"}
    yield server
    server.stop()


@pytest.fixture
def pipeline(site, tmp_path) -> Path:
    """A pipeline whose source is a list with sizes, captions and licences; `tiny` is rejected by its size."""
    lines = ["url,width,height,caption,license"]
    for name in ("a.jpg", "b.jpg", "small.jpg", "reserved.jpg", "missing"):
        lines.append(f"{site.address}/{name},480,320,an image,CC0")
    lines.append(f"{site.address}/never.jpg,100,100,too small,CC0")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    file = tmp_path / "web.yaml"
    file.write_text(f"""
        preset: quickstart
        rules: {{stated: stated_width >= 200, flatness: null}}
        sources:
          web:
            kind: urls
            path: {tmp_path / "list.csv"}
            contract: C-1
            http: {{private: true, retries: 0, pause: 0.01}}
    """)
    return file


@pytest.mark.parametrize("workers", [0, 2])
def test_every_url_is_one_row_and_is_requested_once(site, pipeline, tmp_path, uhr, workers):
    site.requests.clear()
    arguments = ("curate", "run", pipeline, "--out", tmp_path / "out", "--engine", "local")
    code, _, errors = uhr(*arguments, "--workers", workers)
    assert code == 0, errors
    manifest = Manifest.open(tmp_path / "out")
    rows = {row["uri"].rpartition("/")[2]: row for row in manifest.table().to_pylist()}
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == {
        "a.jpg": ("kept", None),
        "b.jpg": ("kept", None),
        "small.jpg": ("rejected", "resolution"),
        "reserved.jpg": ("rejected", "opt_out"),
        "missing": ("failed", "download"),
        "never.jpg": ("rejected", "stated"),
    }
    assert rows["missing"]["http_status"] == 404
    assert rows["missing"]["error"] == "header: HTTP 404 Not Found"
    assert rows["reserved.jpg"]["opt_out"] == "X-Robots-Tag: noai"
    kept = rows["a.jpg"]
    assert (kept["caption"], kept["license"], kept["contract"]) == ("an image", "CC0", "C-1")
    assert (kept["source_name"], kept["source_url"]) == ("web", kept["uri"])
    assert kept["fetch_time"] is not None
    assert site.requests.pop("/robots.txt") == 1
    assert set(site.requests.values()) == {1}
    assert "/never.jpg" not in site.requests
    assert not (tmp_path / "out" / "fetched").exists()
    # an image that was rejected before it was fetched has no evidence
    assert rows["never.jpg"]["fetch_time"] is None
    # later steps read the stored bytes: of the kept images, also through a slice and in another folder
    site.requests.clear()
    code, printed, errors = uhr(
        "manifest", "slice", tmp_path / "out", "--sample", 1, "--out", tmp_path / "cut"
    )
    assert code == 0, errors
    code, printed, _ = uhr("manifest", "verify", tmp_path / "cut", "--pixels")
    assert code == 0, printed
    for folder in ("out", "cut"):
        manifest = Manifest.open(tmp_path / folder)
        for row in manifest.table(where="status = 'kept'").to_pylist():
            assert manifest.source.open(row).read() == site.images[f"/{row['uri'].rpartition('/')[2]}"]
    assert not site.requests
    small = Manifest.open(tmp_path / "out").source.open(rows["small.jpg"])
    assert small.read() == site.images["/small.jpg"], "a rejected image is fetched again"
    assert site.requests["/small.jpg"] == 1


@pytest.mark.parametrize("pixels", ["none", "all"])
def test_which_bytes_are_stored_is_a_choice(site, pipeline, tmp_path, uhr, pixels):
    arguments = ("curate", "run", pipeline, "--out", tmp_path / "out", "--engine", "local", "--workers", 0)
    code, _, errors = uhr(*arguments, "--set", f"pixels={pixels}")
    assert code == 0, errors
    manifest = Manifest.open(tmp_path / "out")
    site.requests.clear()
    rows = manifest.table(where="content_hash is not null").to_pylist()
    assert len(rows) == 2
    for row in rows:
        assert manifest.source.open(row).sha256() == row["content_hash"]
    fetched = set(site.requests) - {"/robots.txt"}
    assert fetched == (set() if pixels == "all" else {"/a.jpg", "/b.jpg"})


def test_a_run_that_is_killed_fetches_nothing_twice(site, pipeline, tmp_path, uhr, monkeypatch):
    from uhr.curate.run import job

    site.requests.clear()
    monkeypatch.setattr(job, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ("curate", "run", pipeline, "--out", tmp_path / "out", "--engine", "local", "--workers", 0)
    uhr(*arguments)
    fetched = dict(site.requests)
    assert fetched
    monkeypatch.undo()
    for part in (tmp_path / "out" / "units").rglob("unit-*.parquet"):
        part.unlink()  # the unit was not finished either
    code, _, errors = uhr(*arguments)
    assert code == 0, errors
    assert site.requests == fetched
