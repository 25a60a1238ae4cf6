"""What every machine of a cluster must have, checked here without one."""

from __future__ import annotations

import dataclasses
import os
import pickle
import socket
from typing import Any

import pytest

from uhr.base.errors import UserError
from uhr.curate.config import load
from uhr.curate.planning import machine
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.run.earlier.files import keys_of
from uhr.curate.run.work import CurateWork
from uhr.manifests.sources.base import FetchedFiles
from uhr.manifests.sources.fetching.urls import Urls
from uhr.manifests.sources.folder import Folder
from uhr.manifests.sources.named import Named
from uhr.runtime.cluster import preflight
from uhr.runtime.units import UnitPlan


@pytest.fixture
def task(images, tmp_path) -> tuple[CurateWork, UnitPlan]:
    """The work of `quickstart` over the images, and its units."""
    source = Folder(path=str(images))
    plan = CurationPlan.of(load("quickstart", []))
    units = UnitPlan.create(tmp_path / "units", source.list().items, 8, "work")
    return CurateWork(plan, source, 0, keys_of(plan)), units


def expected(work: CurateWork, units: UnitPlan) -> tuple[preflight.Task, preflight.Expected]:
    facts = work.facts(units)
    versions = preflight.versions(preflight.LIBRARIES)
    code = preflight.code_hash()
    wanted = preflight.Expected(versions, code, units.mark(), None, [], os.getcwd())
    return preflight.Task(pickle.dumps(work), facts, 1, 0, None), wanted


def test_each_thing_that_a_machine_lacks_is_one_line(task, images, tmp_path, monkeypatch):
    work, units = task
    one, wanted = expected(work, units)
    assert preflight._fault([one], wanted) is None

    def fault(**changes: Any) -> str:
        found = preflight._fault([one], dataclasses.replace(wanted, **changes))
        assert found is not None
        assert "\n" not in found[0]
        return found[0]

    assert "python is 3." in fault(versions={**wanted.versions, "python": "2.7"})
    assert "has other code than where the run was started" in fault(code="0" * 64)
    assert "is not the folder that the run writes" in fault(plan=(str(tmp_path), "plan.json", b""))
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "FREE_BYTES", 2**60)
        assert ", for the run, has " in fault()
        assert "for temporary files (TMPDIR), has" in fault(plan=None)
    images.rename(tmp_path / "unmounted")
    assert "does not exist" in fault()
    images.mkdir()
    assert f"of the source {images} cannot be read (" in fault()


def test_a_machine_that_reaches_no_host_of_a_list_is_one_line_and_one_request_finds_out(
    images, tmp_path, http_site, monkeypatch
):
    monkeypatch.setattr("uhr.manifests.sources.fetching.spool.CONTACT_TIMEOUT", 60.0)  # on a slow machine too
    site = http_site.Site()
    dead = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    hosts = [f"http://127.0.0.1:{one.getsockname()[1]}" for one in dead]
    for one in dead:
        one.close()  # nobody listens
    listed = tmp_path / "list.txt"

    def work(*addresses: str) -> tuple[CurateWork, UnitPlan]:
        listed.write_text("\n".join(f"{address}/{n}.jpg" for address in addresses for n in range(9)))
        web = Urls.model_validate({"path": str(listed), "http": {"private": True}})
        source = Named(sources={"web": web, "disk": Folder(path=str(images))})
        plan = CurationPlan.of(load("quickstart", []), given=source.columns)
        units = UnitPlan.create(tmp_path / "units" / str(len(addresses)), source.list().items, 4, "work")
        spooled = source.spooled(FetchedFiles(folder=str(tmp_path / "fetched")))
        return CurateWork(plan, spooled, 0, keys_of(plan)), units

    site.robots = 503
    one, wanted = expected(*work(*hosts, site.address))
    # the folder among the sources is read as ever
    assert [item["source_name"] for item in one.facts.items] == ["disk"]
    assert len(one.facts.hosts) == 3
    assert preflight._fault([one], wanted) is None, "it answers, whatever it says"
    site.robots = "User-agent: *"
    assert preflight._fault([one], wanted) is None
    assert preflight._fault([one], wanted) is None, "what it may fetch is known by now"
    assert site.requests == {"/robots.txt": 2}
    one, wanted = expected(*work(*hosts))
    what, fix = preflight._fault([one], wanted)
    assert what.startswith(
        f"nothing can be fetched for the source {listed}: none of 2 hosts answers (host 127."
    )
    assert what.endswith("the connection failed ([Errno 111] Connection refused))")
    assert fix == "let this machine reach the hosts of the list"
    assert site.requests == {"/robots.txt": 2}
    site.stop()


def test_a_key_that_is_set_here_must_be_set_on_every_machine(monkeypatch, tmp_path, chat):
    monkeypatch.setenv(machine.KEY, "a secret")
    pipeline = tmp_path / "caption.yaml"
    entry = f"{{stage: caption, server: {{url: '{chat.url}', model: m}}}}"
    pipeline.write_text(f"stages: [header, decode, {entry}]\nrules: {{}}\n")
    stages = CurationPlan.of(load(str(pipeline), [])).passes[-1].batches
    facts = machine.facts_of(stages)
    assert facts.secrets == (machine.KEY,)
    assert "a secret" not in repr(facts)
    machine.check(stages, facts)
    monkeypatch.delenv(machine.KEY)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set, which is where the run was started"):
        machine.check(stages, facts)


def test_a_server_that_a_machine_cannot_reach_is_one_line(tmp_path, chat):
    def stages(url: str) -> Any:
        pipeline = tmp_path / "caption.yaml"
        entry = f"{{stage: caption, name: words, server: {{url: '{url}', model: m}}}}"
        pipeline.write_text(f"stages: [header, decode, {entry}]\nrules: {{}}\n")
        return CurationPlan.of(load(str(pipeline), [])).passes[-1].batches

    there = stages(chat.url)
    machine.check(there, machine.facts_of(there))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        gone = stages(url)
        with pytest.raises(UserError) as error:
            machine.check(gone, machine.facts_of(gone))
    said = str(error.value)
    assert said.startswith(f"stage 'words': {url} cannot be reached (")
    assert said.endswith("Connection refused): start it, or let this machine reach it")


def test_a_machine_is_checked_only_for_the_segments_that_it_can_run():
    task = preflight.Task(b"", None, 1, 0.5, "H100")
    assert task.fits({"CPU": 4, "GPU": 1, "accelerator_type:H100": 1})
    assert not task.fits({"CPU": 4, "GPU": 1, "accelerator_type:A100": 1})
    assert not task.fits({"CPU": 4, "GPU": 0})
    assert not task.fits({"CPU": 0.5, "GPU": 8, "accelerator_type:H100": 1})
