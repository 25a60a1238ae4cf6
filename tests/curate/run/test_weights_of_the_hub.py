"""Weights named by hub id: a run uses one commit, and a machine fetches it once, before its workers start."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from uhr.base.errors import UserError
from uhr.base.hub import pinned, snapshot
from uhr.curate.config import load
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run import job
from uhr.curate.run.earlier.files import keys_of
from uhr.curate.run.work import CurateWork
from uhr.manifests.manifest import Manifest
from uhr.manifests.sources.folder import Folder
from uhr.models.scores.weights import Weights
from uhr.runtime.units import UnitPlan

STAGE = """

class Tasted(FrameStage):
    name = "tasted"
    adds = (Column("taste", pa.string(), "what the weights say"),)

    class Params(Config):
        model: str

    def weights(self):
        return {"model": self.params.model}

    def open(self):
        from uhr.models.scores.weights import Weights

        self.taste = (Weights.parse(self.params.model).fetch() / "model.safetensors").read_text()

    def annotate(self, frame):
        return {"taste": self.taste}
"""


@pytest.fixture
def machine(hub, tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Go to the machine of this name, which has a hub's cache of its own, and return that."""
    hub.repositories = {"org/name": {"config.json": b"{}", "model.safetensors": b"sweet"}}
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    own = template.replace(huggingface_hub.constants.ENDPOINT, hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", own)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def go(name: str) -> Path:
        cache = tmp_path / "caches" / name
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        # of worker processes
        monkeypatch.setenv("HF_HUB_CACHE", str(cache))
        return cache

    go("first")
    snapshot("org/name", None, ["*"])
    return go


@pytest.fixture
def pipeline(outside, tmp_path) -> Path:
    module = tmp_path / "elsewhere" / outside / "__init__.py"
    module.write_text(module.read_text() + STAGE)
    file = tmp_path / "taste.yaml"
    file.write_text(f"stages: [header, {{stage: '{outside}:Tasted', model: org/name}}]\nrules: {{}}\n")
    return file


@pytest.fixture
def checked(pipeline, images, tmp_path) -> Callable[[], None]:
    """Check a machine, as it is done before its workers start."""
    source = Folder(path=str(images))
    plan = CurationPlan.of(load(str(pipeline), []))
    units = UnitPlan.create(tmp_path / "units", source.list().items, 8, "work")
    work = CurateWork(plan, source, 0, keys_of(plan))
    facts, sent = work.facts(units), pickle.dumps(work)
    assert work.check_seconds > 3600, "so much time to fetch"

    def check() -> None:
        # what the process of the run has pinned is not known elsewhere
        with pinned({}):
            there: CurateWork = pickle.loads(sent)
            there.check(facts)
            there.open()

    return check


def test_a_machine_fetches_the_commit_of_the_run_once_and_its_workers_ask_nobody(hub, machine, checked):
    assert hub.downloads("model.safetensors") == 1
    hub.requests.clear()
    machine("second")
    checked()
    assert hub.downloads("model.safetensors") == 1
    hub.requests.clear()
    hub.commit, hub.repositories["org/name"]["model.safetensors"] = "d" * 40, b"sour"
    checked()
    assert not hub.requests, "the commit is in the machine's cache"


def test_machines_have_time_to_fetch_weights_of_a_store_too(machine, pipeline, images, tmp_path):
    def seconds(model: str) -> float:
        file = tmp_path / "other.yaml"
        file.write_text(pipeline.read_text().replace("org/name", model))
        return CurateWork(CurationPlan.of(load(str(file), [])), Folder(path=str(images)), 0, {}).check_seconds

    (tmp_path / "local").mkdir()
    assert seconds("s3://bucket/weights") == seconds("org/name") > 3600 > seconds(str(tmp_path / "local"))


def test_workers_that_ask_at_the_same_time_fetch_once(hub, machine):
    machine("second")
    hub.requests.clear()
    with pinned({"org/name": hub.commit}):
        threads = [threading.Thread(target=Weights.parse("org/name").fetch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert hub.downloads("model.safetensors") == 1


def test_what_keeps_a_machine_from_fetching_is_one_line(hub, machine, checked, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)

    def said() -> str:
        with pytest.raises(UserError) as error:
            checked()
        before, _, after = str(error.value).partition("stage 'outside_stages:Tasted' cannot run: ")
        assert not before
        assert "\n" not in after
        return after

    machine("second")
    name = "org/name@" + hub.commit
    hub.status = 401
    assert said().startswith(f"the hub refuses '{name}' (HTTP 401): check the name; for a private")
    hub.status, hub.commit = None, "d" * 40
    assert said().startswith(f"the hub's 'org/name' has no revision {'c' * 40}: name a branch, a tag")
    with socket.create_server(("127.0.0.1", 0)) as server:
        huggingface_hub.constants.ENDPOINT = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert said().startswith(f"'{name}' is neither a folder here nor in the hub's cache, and the hub cannot")


def test_a_branch_that_moves_during_a_run_changes_nothing(
    hub, machine, pipeline, images, uhr, tmp_path, monkeypatch
):
    begin, end = job.passes_run, job.commit

    def move() -> None:
        hub.commit, hub.repositories["org/name"]["model.safetensors"] = "d" * 40, b"sour"

    def moved_before(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (move(), call(*arguments))[1]

    words = ("curate", "run", pipeline, "--source", images, "--limit", 3, "--engine", "local", "--workers", 1)
    hashes = []
    for place, taste in (("workers", "sweet"), ("commit", "sweet"), ("after", "sour")):
        hub.commit, hub.repositories["org/name"]["model.safetensors"] = "c" * 40, b"sweet"
        with monkeypatch.context() as patch:
            if place == "workers":
                patch.setattr(job, "passes_run", moved_before(begin))
            elif place == "commit":
                patch.setattr(job, "commit", moved_before(end))
            else:
                move()
            assert uhr(*words, "--out", tmp_path / place)[0] == 0
        found = Manifest.open(tmp_path / place)
        assert {row["taste"] for row in found.table().to_pylist()} == {taste}
        hashes += found.info.weights.values()
    assert hashes[0] == hashes[1] != hashes[2]
