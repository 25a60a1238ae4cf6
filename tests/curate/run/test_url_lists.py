"""Curating a list of URLs: one row for each, with the evidence of its fetch, and each image fetched once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.curate.run import job
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


def test_a_url_in_several_rows_and_one_that_fails_for_now_are_requested_once(site, pipeline, tmp_path, uhr):
    lines = [
        f"{site.address}/{name},480,320,,CC0" for name in ("a.jpg", "a.jpg", "broken", "a.jpg", "broken")
    ]
    (tmp_path / "list.csv").write_text("\n".join(["url,width,height,caption,license", *lines]))
    site.requests.clear()
    site.delay = 0.2  # so that the rows wait for each other
    try:
        words = ("--out", tmp_path / "out", "--engine", "local", "--workers", 0)
        code, printed, errors = uhr("curate", "run", pipeline, *words)
    finally:
        site.delay = 0.0
    assert code == 0, errors
    assert f"--out NEW --reuse {tmp_path / 'out'}" in printed, "the same command alone does nothing"
    rows = Manifest.open(tmp_path / "out").table().to_pylist()
    assert [row["reason"] for row in rows] == [None, "duplicates", "duplicates", "unavailable", "unavailable"]
    assert dict(site.requests) == {"/robots.txt": 1, "/a.jpg": 1, "/broken": 1}


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


@pytest.fixture
def stop_before_commit(monkeypatch, uhr) -> Any:
    """Run a command until all is measured and nothing committed."""

    def stopped(*arguments: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(job, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            code, _, errors = uhr(*arguments)
        assert code == 130, errors

    return stopped


FETCHED_ONCE = ("/a.jpg", "/b.jpg", "/small.jpg", "/reserved.jpg", "/missing")


@pytest.mark.parametrize("place", ["folder", "store"])
def test_what_an_unfinished_run_has_fetched_is_fetched_by_nobody_else(
    site, pipeline, tmp_path, uhr, s3, monkeypatch, stop_before_commit, place
):
    site.requests.clear()
    half = tmp_path / "half" if place == "folder" else f"s3://{s3.bucket}/half"
    words = ("curate", "run", pipeline, "--engine", "local", "--workers", 0)
    stop_before_commit(*words, "--out", half)
    assert {path for path in site.requests if path != "/robots.txt"} == set(FETCHED_ONCE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    site.requests.clear()
    # another pipeline, in another OUT: the bytes are taken over, what had failed is as it was
    hashed = tmp_path / "hashed.yaml"
    hashed.write_text(pipeline.read_text().replace("rules:", "stages: {phash: {}}\n        rules:"))
    new = ("--out", f"s3://{s3.bucket}/new", "--reuse", half, "--json")
    code, printed, errors = uhr(*words[:2], hashed, *words[3:], *new)
    assert code == 0, errors
    assert not site.requests
    assert json.loads(printed)["counts"]["kept"] == 2
    fetched = Manifest.open(f"s3://{s3.bucket}/new")
    for row in fetched.table(where="status = 'kept'").to_pylist():
        assert row["phash"] is not None
        assert fetched.source.open(row).read() == site.images[f"/{row['uri'].rpartition('/')[2]}"]
    # the run itself goes on, without a request
    code, _, errors = uhr(*words, "--out", half)
    assert code == 0, errors
    assert not site.requests
    left = boto3.client("s3").list_objects_v2(Bucket=s3.bucket)["Contents"]
    assert not [each["Key"] for each in left if "/fetched/" in each["Key"]]


def test_what_was_fetched_without_obeying_reservations_is_not_taken_over_by_a_run_that_obeys(
    site, pipeline, tmp_path, uhr, stop_before_commit
):
    words = ("curate", "run", pipeline, "--engine", "local", "--workers", 0)
    stop_before_commit(*words, "--out", tmp_path / "half", "--set", "sources.web.http.obey=false")
    site.requests.clear()
    code, _, errors = uhr(*words, "--out", tmp_path / "new", "--reuse", tmp_path / "half")
    assert code == 0, errors
    rows = {r["uri"].rpartition("/")[2]: r for r in Manifest.open(tmp_path / "new").table().to_pylist()}
    assert (rows["reserved.jpg"]["status"], rows["reserved.jpg"]["reason"]) == ("rejected", "opt_out")


@pytest.mark.parametrize("finished", [False, True])
def test_a_download_that_failed_is_tried_again_on_request(
    site, pipeline, tmp_path, uhr, stop_before_commit, finished
):
    words = ("curate", "run", pipeline, "--engine", "local", "--workers", 0, "--out")
    out = tmp_path / "out"
    if finished:
        assert uhr(*words, out)[0] == 0
    else:
        stop_before_commit(*words, out)
    site.requests.clear()
    site.images["/missing"] = site.images["/a.jpg"]
    try:
        more = (tmp_path / "2", "--reuse", out) if finished else (out,)
        code, _, errors = uhr(*words, *more, "--retry", "download")
    finally:
        del site.images["/missing"]
    assert code == 0, errors
    assert {path for path in site.requests if path != "/robots.txt"} == {"/missing"}
    rows = Manifest.open(tmp_path / "2" if finished else out).table().to_pylist()
    again = next(row for row in rows if row["uri"].endswith("/missing"))
    # it has the bytes of a.jpg
    assert (again["reason"], again["http_status"], again["error"]) == ("duplicates", 200, None)


@pytest.mark.parametrize("pixels", ["none", "kept"])
def test_what_a_manifest_has_not_stored_is_fetched_together_and_once_for_all_passes(
    forge, http_site, tmp_path, uhr, pixels
):
    own = http_site.Site()
    names = [f"{number}.jpg" for number in range(6)]
    own.images = {
        f"/{name}": forge.encode(forge.image(200, 150, seed=seed), "JPEG") for seed, name in enumerate(names)
    }
    (tmp_path / "list.txt").write_text("\n".join(f"{own.address}/{name}" for name in names))
    http = {"private": True, "retries": 0, "per_host": 3}
    sources = json.dumps({"web": {"kind": "urls", "path": str(tmp_path / "list.txt"), "http": http}})
    words = ("curate", "run", "--engine", "local", "--workers", 0)
    first = ("as-is", "--set", f"sources={sources}", "--set", f"pixels={pixels}", "--out", tmp_path / "m")
    assert uhr(*words, *first)[0] == 0
    own.requests.clear()
    own.most_at_once, own.delay = 0, 0.2
    (tmp_path / "more.yaml").write_text("""
        stages: [header, decode, exact_duplicates, {stage: patches, size: 64, stages: [sharpness], rules: {}}]
        rules: {}
    """)
    code, _, errors = uhr(
        *words, tmp_path / "more.yaml", "--source", f"manifest:{tmp_path / 'm'}", "--out", tmp_path / "n"
    )
    own.stop()
    assert code == 0, errors
    rows = Manifest.open(tmp_path / "n").table().to_pylist()
    assert {row["status"] for row in rows} == {"kept"}
    assert sum(row["laplacian_var"] is not None for row in rows) >= 6
    assert {row["http_status"] for row in rows if row["parent_id"] is None} == {200}, (
        "as it was fetched first"
    )
    if pixels == "kept":
        assert not own.requests
    else:
        assert {path: n for path, n in own.requests.items() if path != "/robots.txt"} == {
            f"/{name}": 1 for name in names
        }
        assert own.most_at_once == 3
    assert not (tmp_path / "n" / "fetched").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_what_still_fails_when_it_is_tried_again_is_requested_once(
    site, pipeline, tmp_path, uhr, stop_before_commit, finished
):
    """By any of the workers: each has a unit with the URL."""
    url = f"{site.address}/missing,480,320,,CC0"
    (tmp_path / "list.csv").write_text("\n".join(["url,width,height,caption,license", *[url] * 4]))
    words = ("curate", "run", pipeline, "--engine", "local", "--set", "unit=1", "--out")
    out = tmp_path / "out"
    if finished:
        assert uhr(*words, out, "--workers", 0)[0] == 0
    else:
        stop_before_commit(*words, out, "--workers", 0)
    site.requests.clear()
    site.delay = 0.3  # so that the workers ask at the same time
    try:
        more = (tmp_path / "2", "--reuse", out) if finished else (out,)
        code, _, errors = uhr(*words, *more, "--retry", "download", "--workers", 2)
    finally:
        site.delay = 0.0
    assert code == 0, errors
    assert site.requests["/missing"] == 1
    rows = Manifest.open(tmp_path / "2" if finished else out).table().to_pylist()
    assert {row["error"] for row in rows} == {"header: HTTP 404 Not Found"}


@pytest.mark.parametrize("name", ["pd12m", "pd3m"])
def test_the_sizes_in_a_published_list_select_before_a_byte_is_fetched(
    site, documents, tmp_path, uhr, monkeypatch, name
):
    """The pipeline of docs/pipelines.md on a list in the layout of PD12M and PD3M."""
    documents.write_files(tmp_path)
    sizes = {"a.jpg": (4000, 3000), "b.jpg": (3000, 2000), "small.jpg": (None, None)}
    rows = [
        {
            "id": str(number),
            "url": f"{site.address}/{file}",
            "s3_key": f"images/{file}",
            "caption": "a lake",
            "hash": "ab",
            "width": size[0],
            "height": size[1],
            "mime_type": "image/jpeg",
            "license": "https://creativecommons.org/publicdomain/zero/1.0/",
            "source": "museum",
        }
        for number, (file, size) in enumerate(sizes.items())
    ]
    (tmp_path / "pd12m").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pd12m" / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    site.requests.clear()
    words = ("--engine", "local", "--workers", 0, "--set", "sources.pd12m.http.private=true")
    code, _, errors = uhr(
        "curate", "run", "pd12m-4k.yaml", "--out", "out", *words, "--set", "rules.flatness=null"
    )
    assert code == 0, errors
    assert "the list states sizes" not in errors
    found = {
        row["uri"].rpartition("/")[2]: row for row in Manifest.open(tmp_path / "out").table().to_pylist()
    }
    # what the list says nothing of is fetched, and judged by its header
    reasons = {file: row["reason"] for file, row in found.items()}
    assert reasons == {"a.jpg": None, "b.jpg": "stated", "small.jpg": "resolution"}
    assert {path for path in site.requests if path != "/robots.txt"} == {"/a.jpg", "/small.jpg"}
    assert (found["a.jpg"]["caption"], found["a.jpg"]["license"]) == ("a lake", rows[0]["license"])
    # without the rule everything is fetched, and the run says what would have spared it
    code, _, errors = uhr(
        "curate", "run", "pd12m-4k.yaml", "--out", "all", *words, "--set", "rules.stated=null", "--dry-run",
        "--measure", 0,
    )  # fmt: skip
    assert code == 0, errors
    assert errors.count("the list states sizes, and a rule over them rejects before a byte is fetched") == 1
    named = errors.partition("--set '")[2].partition("'")[0].replace("PIXELS", "8294400")
    code, _, errors = uhr(
        "curate", "show", "pd12m-4k.yaml", "--set", "rules.stated=null", "--set", named, "--json"
    )
    assert code == 0, errors


def test_patches_and_encoding_read_the_stored_bytes(site, tmp_path, uhr, tiny_flux):
    """Of a list of URLs each image is requested once, for however many passes and later steps."""
    (tmp_path / "list.csv").write_text(
        "url,caption\n" + "".join(f"{site.address}/{name}.jpg,an image\n" for name in "ab")
    )
    web = tmp_path / "web.yaml"
    patches = "{stage: patches, size: 128, count: 2, flat: 1.0, stages: [header, entropy]}"
    stages = f"[header, decode, {patches}]"
    web.write_text(f"""
        stages: {stages}
        sources: {{web: {{kind: urls, path: {tmp_path / "list.csv"}, http: {{private: true}}}}}}
    """)
    site.requests.clear()
    words = ("--engine", "local", "--workers", 0, "--out")
    code, _, errors = uhr("curate", "run", web, *words, tmp_path / "one")
    assert code == 0, errors
    rows = Manifest.open(tmp_path / "one").table().to_pylist()
    assert sum(row["parent_id"] is not None for row in rows) == 4, "cut in a second pass"
    assert dict(site.requests) == {"/robots.txt": 1, "/a.jpg": 1, "/b.jpg": 1}
    site.requests.clear()
    again, whole = tmp_path / "again.yaml", tmp_path / "whole"
    again.write_text(f"stages: {stages.replace('count: 2', 'count: 3')}\n")
    code, _, errors = uhr("curate", "run", again, "--source", f"manifest:{tmp_path / 'one'}", *words, whole)
    assert code == 1
    assert "has 4 patches, and a source has whole images: slice it first, `uhr manifest slice" in errors
    cut = ("manifest", "slice", tmp_path / "one", "--where", "parent_id IS NULL", "--out", whole)
    assert uhr(*cut)[0] == 0
    code, _, errors = uhr("curate", "run", again, "--source", f"manifest:{whole}", *words, tmp_path / "two")
    assert code == 0, errors
    assert Manifest.open(tmp_path / "two").info.counts["kept"] == 8
    encoded = tmp_path / "encoded"
    code, _, errors = uhr("train", "encode", whole, "--model", tiny_flux, "--out", encoded, "--workers", 0)
    assert code == 0, errors
    assert json.loads((encoded / "manifest.json").read_text())["counts"]["kept"] == 2
    assert not site.requests
