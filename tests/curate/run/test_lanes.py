"""A host or a stage that mostly fails is paused: its rows wait for another attempt, and the rest is done."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest

from uhr.curate.run.lanes import Lanes
from uhr.curate.run.status import status_of
from uhr.manifests.manifest import Manifest

STAGES = '''
import os
import pyarrow as pa
from uhr.base.config import Config
from uhr.curate.stage import BatchStage, FrameStage, Resources
from uhr.manifests.schema import Column
from uhr.models.scores.images import View

class Params(Config):
    down: str

class ServerIsDown(Exception):
    transient = True

class Asks(BatchStage):
    """Is answered by a server that is down while a file exists."""

    name = "asks"
    needs = ("width",)
    adds = (Column("answered", pa.string(), "the answer"),)
    resources = Resources(num_gpus=0, batch_size=4)
    Params = Params

    def score(self, rows, views):
        with open(self.params.down + ".calls", "a") as file:
            print(len(rows), file=file)
        if os.path.exists(self.params.down):
            raise ServerIsDown("503")
        return {"answered": ["yes"] * len(rows)}

class Sees(BatchStage):
    """Looks at views."""

    name = "sees"
    adds = (Column("blue", pa.float64(), "mean of blue"),)
    views = {"image": View(shortest=8)}
    resources = Resources(num_gpus=0)

    def score(self, rows, views):
        return {"blue": [float(each[..., 2].float().mean()) for each in views["image"]]}

class Broken(FrameStage):
    """Has a fault that its user can fix."""

    name = "broken"
    reads = "header"
    adds = (Column("whole", pa.bool_(), "whether it is"),)
    Params = Params

    def annotate(self, frame):
        if os.path.exists(self.params.down):
            raise OSError("no such device")
        return {"whole": True}
'''


@pytest.fixture(scope="module")
def site(forge, http_site):
    server = http_site.Site()
    yield server
    server.stop()


@pytest.fixture
def run(uhr, tmp_path, monkeypatch) -> Any:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "lane_stages.py").write_text(STAGES)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "lane_stages", raising=False)
    monkeypatch.setattr("uhr.manifests.report.write_report", lambda manifest, out: out.touch() or out)

    def call(tree: str, *arguments: object, workers: int = 0) -> tuple[int, str, str]:
        file = tmp_path / "pipeline.yaml"
        file.write_text(tree)
        fixed = ("--out", tmp_path / "out", "--engine", "local", "--workers", workers)
        return uhr("curate", "run", file, *fixed, *arguments)

    return call


@pytest.fixture
def pictures(tmp_path, forge) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    data = forge.encode(forge.image(16, 12), "PNG")
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(data)
    return folder


def test_a_stage_whose_server_is_down_leaves_its_rows_undone(run, pictures, tmp_path):
    down = tmp_path / "down"
    down.touch()
    tree = f"stages: [header, {{stage: 'lane_stages:Asks', name: asks, down: {down}}}]\nunit: 4\npause: 5"
    arguments = ("--source", pictures)
    code, _, errors = run(tree, *arguments)
    assert code == 75, errors
    assert errors.count("stage asks is paused") == 1
    assert errors.splitlines()[-1].startswith(
        f"uhr: the run in {tmp_path}/out is unfinished: 7 rows are left"
    )
    assert "unavailable, ServerIsDown: 503" in errors
    status = status_of(tmp_path / "out")
    assert (status["state"], status["failed"], status["undone"]) == ("stopped", 5, 7)
    calls = Path(f"{down}.calls")
    # two batches of four, then their rows, until five of them have failed
    assert Counter(calls.read_text().split()) == {"4": 2, "1": 5}
    down.unlink()
    calls.unlink()
    code, _, errors = run(tree, *arguments)
    assert code == 0, errors
    assert Counter(calls.read_text().split()) == {"4": 3}
    rows = Manifest.open(tmp_path / "out").table().to_pylist()
    assert {(row["status"], row["answered"]) for row in rows} == {("kept", "yes")}
    assert Manifest.open(tmp_path / "out").info.parents == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stage_that_fails_is_paused_until_it_is_fixed(run, pictures, tmp_path, workers):
    down = tmp_path / "down"
    down.touch()
    tree = f"stages: [header, {{stage: 'lane_stages:Broken', name: broken, down: {down}}}]\nunit: 3\npause: 4"
    code, _, errors = run(tree, "--source", pictures, workers=workers)
    assert code == 75, errors
    assert "paused: stage broken" in errors
    down.unlink()
    # what failed says something of the images, as far as is known: it is measured again on request
    code, _, errors = run(tree, "--source", pictures, "--retry", "stage error", workers=workers)
    assert code == 0, errors
    assert Manifest.open(tmp_path / "out").info.counts["kept"] == 12


def test_without_pause_every_row_fails(run, pictures, tmp_path):
    (tmp_path / "down").touch()
    stage = f"{{stage: 'lane_stages:Asks', name: asks, down: {tmp_path}/down}}"
    code, _, errors = run(f"stages: [header, {stage}]\npause: 0", "--source", pictures)
    assert code == 0, errors
    assert Manifest.open(tmp_path / "out").info.counts["reasons"] == {"unavailable": 12}
    # such a fault is no result: another run asks again
    (tmp_path / "down").unlink()
    code, _, errors = run(
        f"stages: [header, {stage}]",
        "--source",
        pictures,
        "--out",
        tmp_path / "2",
        "--reuse",
        tmp_path / "out",
    )
    assert code == 0, errors
    assert Manifest.open(tmp_path / "2").info.counts["kept"] == 12
    assert Manifest.open(tmp_path / "2").info.operation["reused"] == {"header": 12}


def test_a_host_that_refuses_is_paused_and_others_go_on(run, site, tmp_path, forge):
    site.reset()
    data = forge.encode(forge.image(480, 320), "JPEG", quality=60)
    other = site.address.replace("127.0.0.1", "localhost")
    urls = [f"{other}/{n}.jpg" for n in range(4)] + [f"{site.address}/refused/{n}.jpg" for n in range(12)]
    for url in urls:
        site.images[url.partition("://")[2].partition("/")[2].join(["/", ""])] = data
    refused = {path for path in site.images if path.startswith("/refused")}
    site.answers |= dict.fromkeys(refused, (403, {}))
    (tmp_path / "list.txt").write_text("\n".join(urls))
    http = "{private: true, retries: 3, pause: 0.01, concurrency: 1}"
    tree = f"""
preset: quickstart
stages: {{phash: {{}}}}
rules: {{flatness: null, entropy: null, duplicates: null}}
unit: 8
pause: 5
sources: {{web: {{kind: urls, path: {tmp_path}/list.txt, http: {http}}}}}
"""
    code, _, errors = run(tree)
    assert code == 75, errors
    host = site.address.removeprefix("http://")
    assert errors.count(f"host {host} is paused") == 1
    # a refusal is not tried again at once
    assert sum(site.requests[path] for path in refused) == 5
    assert status_of(tmp_path / "out")["kept"] == 4
    site.answers.clear()
    site.requests.clear()
    code, _, errors = run(tree)
    assert code == 0, errors
    rows = Manifest.open(tmp_path / "out").table().to_pylist()
    assert {(row["status"], row["http_status"]) for row in rows} == {("kept", 200)}
    assert {path: n for path, n in site.requests.items() if path != "/robots.txt"} == dict.fromkeys(
        refused, 1
    )

    # the next run reads what is stored, and stores nothing twice
    site.requests.clear()
    changed = tree.replace("entropy: null", "entropy: entropy > 1")
    code, printed, errors = run(changed, "--out", tmp_path / "2", "--reuse", tmp_path / "out", "--json")
    assert code == 0, errors
    assert not site.requests
    assert json.loads(printed)["counts"]["kept"] == 16
    made = Manifest.open(tmp_path / "2")
    assert made.info.attachments == []
    for row in made.table().to_pylist():
        assert made.source.open(row).sha256() == row["content_hash"]
    assert not site.requests
    # a column that needs the pixels gets them from there too
    code, _, errors = run(
        tree.replace("{phash: {}}", "{phash: {}, native_resolution: {}, exposure: null}"),
        *("--out", tmp_path / "3", "--reuse", tmp_path / "2"),
    )
    assert code == 0, errors
    assert not site.requests


def test_a_lane_pauses_by_its_last_rows_only(tmp_path):
    one, other = Lanes(tmp_path, 10), Lanes(tmp_path, 10)
    for _ in range(7):
        one.failed("host a", "503")
    for _ in range(3):
        one.succeeded("host a")
        one.succeeded("host b")
    assert one.paused("host a") is None
    for _ in range(6):
        one.failed("host a", "503")
    assert one.paused("host a") is None
    one.end()
    # a unit that is repeated counts once
    other.failed("host a", "504")
    other.begin()
    other.succeeded("host a")
    other.failed("host a", "504")
    assert other.paused("host a") is None
    # another worker's rows count too, and it learns of the pause
    other.failed("host a", "504")
    assert other.paused("host a") == "host a is paused: 504"
    assert [tuple(each) for each in one.refresh()] == [("host a", "504")]
    assert one.paused("host b") is None
    one.clear()
    assert Lanes(tmp_path, 10).paused("host a") is None


def test_a_bucket_is_paused_while_nothing_but_views_is_made(run, pictures, s3, tmp_path, uhr):
    client = boto3.client("s3")
    for file in pictures.iterdir():
        client.upload_file(str(file), s3.bucket, f"images/{file.name}")
    first = tmp_path / "first"
    words = ("--source", f"s3://{s3.bucket}/images", "--out", first)
    assert run("stages: [header]", *words)[0] == 0
    s3.fault = lambda method, path: 403 if "/images/" in path else None
    tree = "stages: [{stage: 'lane_stages:Sees', name: sees}]\nunit: 4\npause: 5"
    words = ("--source", f"manifest:{first}")
    code, _, errors = run(tree, *words)
    assert code == 75, errors
    assert errors.splitlines()[-1].startswith(
        f"uhr: the run in {tmp_path}/out is unfinished: 7 rows are left"
    )
    s3.fault = lambda method, path: None
    code, _, errors = run(tree, *words)
    assert code == 0, errors
    assert Manifest.open(tmp_path / "out").info.counts["kept"] == 12


@pytest.mark.ray
def test_on_ray_a_paused_host_is_named_though_workers_share_no_folder(
    run, site, tmp_path, forge, s3, warm_curation_workers
):
    site.reset()
    data = forge.encode(forge.image(480, 320), "JPEG", quality=60)
    other = site.address.replace("127.0.0.1", "localhost")
    urls = [f"{other}/{n}.jpg" for n in range(4)] + [f"{site.address}/refused/{n}.jpg" for n in range(12)]
    for url in urls:
        site.images[url.partition("://")[2].partition("/")[2].join(["/", ""])] = data
    refused = {path for path in site.images if path.startswith("/refused")}
    site.answers |= dict.fromkeys(refused, (403, {}))
    (tmp_path / "list.txt").write_text("\n".join(urls))
    http = "{private: true, retries: 3, pause: 0.01, concurrency: 1}"
    tree = f"""
preset: quickstart
rules: {{flatness: null, entropy: null, duplicates: null}}
unit: 8
pause: 5
sources: {{web: {{kind: urls, path: {tmp_path}/list.txt, http: {http}}}}}
"""
    out = f"s3://{s3.bucket}/out"
    code, _, errors = run(tree, "--out", out, "--engine", "ray", workers=1)
    assert code == 75, errors
    host = site.address.removeprefix("http://")
    assert errors.count(f"host {host} was paused, its other rows are left undone") == 1
    assert errors.splitlines()[-1].endswith(
        f"(paused: host {host}): when host {host} can be used, the same command goes on; with --set pause=0 "
        "they fail"
    )
    assert sum(site.requests[path] for path in refused) == 5
    site.answers.clear()
    site.requests.clear()
    # the same command, with actors that have not seen the pause
    code, _, errors = run(tree, "--out", out, "--engine", "ray", workers=1)
    assert code == 0, errors
    rows = Manifest.open(out).table().to_pylist()
    assert {(row["status"], row["http_status"]) for row in rows} == {("kept", 200)}
    assert len(rows) == 16
    assert {path: n for path, n in site.requests.items() if path != "/robots.txt"} == dict.fromkeys(
        refused, 1
    )
