"""OUT in an object store: the rows of a folder, resumed on another machine, held by one run at a time."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest

from uhr.base.errors import UserError
from uhr.base.locks import lease
from uhr.base.store import ObjectStore, StoreError
from uhr.curate.run import job
from uhr.manifests.manifest import Manifest
from uhr.runtime.mirror import Mirror
from uhr.runtime.units import UnitPlan


@pytest.fixture
def source(s3, images) -> str:
    """Six of the images, in the bucket."""
    client = boto3.client("s3")
    for name in ("1.jpg", "3.jpg", "5.jpg", "5.txt", "trip/0.png", "truncated.jpg", "flat.png"):
        client.upload_file(str(images / name), s3.bucket, f"images/{name}")
    return f"s3://{s3.bucket}/images"


@pytest.fixture
def curate(uhr, source, s3) -> Any:
    """Curate them in this process, units of two: exit code and what is printed."""
    words = ("curate", "run", "quickstart", "--source", source, "--set", "unit=2")

    def call(out: object = None, *more: object) -> tuple[int, str, str]:
        out = f"s3://{s3.bucket}/out" if out is None else out
        return uhr(*words, "--out", out, "--engine", "local", "--workers", 0, *more)

    return call


def keys(s3: Any, prefix: str = "out/") -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=s3.bucket, Prefix=prefix).get("Contents", [])
    return sorted(entry["Key"].removeprefix(prefix) for entry in found)


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What this machine remembers is gone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def test_a_run_stopped_on_one_machine_goes_on_on_another_and_its_manifest_is_that_of_a_folder(
    curate, s3, uhr, tmp_path, monkeypatch
):
    out = f"s3://{s3.bucket}/out"
    with monkeypatch.context() as patch:
        patch.setattr(job, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert curate()[0] == 130
    units = [name for name in keys(s3) if name.startswith("units/unit-")]
    assert len(units) == 3
    assert keys(s3) == ["units/items.arrow", "units/plan.json", "units/run.json", *units]

    another_machine(monkeypatch, tmp_path / "third")
    status = json.loads(uhr("curate", "status", out, "--json")[1])
    assert (status["state"], status["rows_done"], status["units_done"]) == ("stopped", 6, 3)
    assert status["faults"] == {"truncated": 1}
    assert status["segments"][0]["tasks"] == 3

    code, printed, errors = uhr("manifest", "report", out)
    assert (code, printed.strip()) == (0, f"{out}/report.html"), errors
    page = boto3.client("s3").get_object(Bucket=s3.bucket, Key="out/report.html")["Body"].read()
    assert b"6 rows so far of 6 files" in page
    code, _, errors = uhr("manifest", "show", out)
    assert (code, errors) == (
        1,
        f"uhr: {out} contains an unfinished run: repeat the same command: it resumes\n",
    )
    code, _, errors = curate(None, "--set", "limits.seconds=90")
    assert code == 1
    assert errors.splitlines()[-1].startswith(f"uhr: the run in {out} was begun with another pipeline: ")

    another_machine(monkeypatch, tmp_path / "other")
    s3.requests.clear()
    code, printed, errors = curate()
    assert code == 0, errors
    page = boto3.client("s3").get_object(Bucket=s3.bucket, Key="out/report.html")["Body"].read()
    assert b"rows so far" not in page
    assert not s3.puts("/units/unit-"), "a unit was measured again"
    assert f"manifest  {out}" in printed
    assert {name.partition("/")[0] for name in keys(s3)} == {
        *("manifest.json", "report.html", "samples", "previews")
    }
    assert curate(tmp_path / "here")[0] == 0
    there, here = Manifest.open(out), Manifest.open(tmp_path / "here")
    assert there.id == here.id
    assert there.table().to_pylist() == here.table().to_pylist()
    assert there.name == out

    another_machine(monkeypatch, tmp_path / "fourth")
    code, printed, _ = curate()
    assert code == 0
    assert f"{out} is already finished" in printed
    assert json.loads(uhr("curate", "status", out, "--json")[1])["state"] == "finished"
    code, _, errors = curate(None, "--set", "rules.entropy=entropy > 5")
    assert code == 1
    assert f"--reuse {out} --out {out}-2" in errors
    code, printed, errors = curate(f"{out}-2", "--set", "rules.entropy=entropy > 5", "--reuse", out, "--json")
    assert code == 0, errors
    assert json.loads(printed)["reused"]["header"] == 6
    assert "truncated.jpg" in uhr("curate", "explain", out, "truncated.jpg")[1]


def test_no_credential_is_in_what_a_run_writes_or_says(curate, s3, monkeypatch, tmp_path):
    secret = "secret-4711"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, secret)
    printed = []
    with monkeypatch.context() as patch:
        patch.setattr(job, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        printed.append(curate())
        assert any(name.startswith("units/") for name in keys(s3))
    client = boto3.client("s3")

    def written() -> list[bytes]:
        names = [f"out/{name}" for name in keys(s3)]
        stored = [client.get_object(Bucket=s3.bucket, Key=name)["Body"].read() for name in names]
        return stored + [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]

    unfinished = written()
    printed.append(curate())
    s3.fault = lambda method, path: 403
    printed.append(curate())
    s3.fault = lambda method, path: None
    assert [code for code, _, _ in printed] == [130, 0, 1]
    assert "access is denied" in printed[2][2]
    files = [*unfinished, *written()]
    assert len(files) > 20
    assert not [data for data in files if secret.encode() in data]
    assert secret not in "".join(out + errors for _, out, errors in printed)


def test_a_run_killed_after_its_commit_only_clears_up(curate, s3, monkeypatch, tmp_path):
    from uhr.curate.in_store import RunInStore

    with monkeypatch.context() as patch:
        patch.setattr(RunInStore, "_clear", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert curate()[0] == 130
    assert "manifest.json" in keys(s3)
    assert "units/plan.json" in keys(s3)
    another_machine(monkeypatch, tmp_path / "other")
    s3.requests.clear()
    code, _, errors = curate()
    assert code == 0, errors
    assert not s3.puts("/samples/")
    assert not any(name.startswith("units") for name in keys(s3))


def test_a_store_that_answers_503_costs_requests_and_no_content(curate, s3, tmp_path):
    seen: Counter[tuple[str, str]] = Counter()

    def twice(method: str, path: str) -> int | None:
        seen[method, path] += 1
        return 503 if seen[method, path] <= 2 else None

    assert curate(tmp_path / "calm")[0] == 0
    calm = Manifest.open(tmp_path / "calm")
    s3.fault = twice
    code, _, errors = curate()
    assert code == 0, errors
    refused = sum(min(2, times) for times in seen.values())
    print(f"{refused} of {seen.total()} requests were answered by 503")
    assert refused > 50
    made = Manifest.open(f"s3://{s3.bucket}/out")
    assert made.id == calm.id

    # it is down from the second unit on, longer than any request is repeated
    out = f"s3://{s3.bucket}/down"
    s3.requests.clear()
    s3.fault = lambda method, path: 503 if s3.puts("/down/units/unit-")[1:] else None
    code, _, errors = curate(out)
    assert code == 1
    assert errors.splitlines()[-1].startswith(f"uhr: {out}/units/unit-")
    assert errors.splitlines()[-1].endswith("the same command resumes the run")
    s3.fault = lambda method, path: None
    (done,) = [name for name in keys(s3, "down/") if name.startswith("units/unit-")]
    s3.requests.clear()
    (dead,) = [name for name in keys(s3, "down/") if name == lease.NAME]
    ObjectStore(out).delete(dead)  # in place of the minutes until it ends
    code, _, errors = curate(out)
    assert code == 0, errors
    again = s3.puts("/down/units/unit-")
    print(f"1 of {1 + len(again)} units was kept")
    assert len(again) == 2
    assert not any(path.endswith(done) for path in again)
    assert Manifest.open(out).id == calm.id


def test_images_that_a_store_did_not_give_are_read_by_the_run_that_reuses_the_others(curate, s3, tmp_path):
    assert curate(tmp_path / "calm")[0] == 0
    down = ("images/1.jpg", "trip/0.png", "5.txt")
    s3.fault = lambda method, path: 503 if path.endswith(down) else None
    first, second = tmp_path / "first", tmp_path / "second"
    code, printed, errors = curate(first, "--json")
    assert code == 0, errors
    assert json.loads(printed)["counts"]["reasons"]["unavailable"] == 3
    rows = {row["uri"]: row for row in Manifest.open(first).table().to_pylist()}
    assert rows["5.jpg"]["error"].startswith("sidecars: 5.txt: "), "kept, it would have lost its caption"
    s3.fault = lambda method, path: None
    s3.requests.clear()
    code, printed, errors = curate(second, "--reuse", first, "--json")
    assert code == 0, errors
    assert json.loads(printed)["reused"]["header"] == 3
    read = {path.rpartition("/")[2] for method, path in s3.requests if method == "GET" and "/images/" in path}
    assert read == {"1.jpg", "0.png", "5.txt", "5.jpg"}
    one, other = Manifest.open(second), Manifest.open(tmp_path / "calm")
    assert one.table().to_pylist() == other.table().to_pylist()


@pytest.mark.parametrize("kind", ["alone", "beside a list of URLs", "of a manifest"])
def test_a_key_that_expires_during_a_run_pauses_its_bucket(uhr, source, s3, tmp_path, kind):
    pipeline, named = tmp_path / "p.yaml", ("--source", source)
    tree: dict[str, Any] = {"preset": "quickstart", "unit": 2}
    if kind == "beside a list of URLs":
        (tmp_path / "list.txt").write_text("http://127.0.0.1:9/gone.jpg")  # nobody listens
        web = {"kind": "urls", "path": str(tmp_path / "list.txt"), "http": {"private": True, "retries": 0}}
        tree["sources"], named = {"bucket": source, "web": web}, ()
    pipeline.write_text(json.dumps(tree))

    def curate(out: Path, *more: object) -> tuple[int, str, str]:
        run = ("--out", out, "--engine", "local", "--workers", 0, *more)
        return uhr("curate", "run", pipeline, *named, *run)

    if kind == "of a manifest":
        assert curate(tmp_path / "first")[0] == 0
        named = ("--source", f"manifest:{tmp_path / 'first'}")
    assert curate(tmp_path / "calm")[0] == 0
    s3.requests.clear()
    s3.fault = lambda method, path: 403 if "/images/" in path else None
    out = tmp_path / "out"
    code, _, errors = curate(out, "--set", "pause=3")
    assert code == 75, errors
    assert errors.count(f"bucket {s3.bucket} is paused") == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"uhr: the run in {out} is unfinished: ")
    assert f"when bucket {s3.bucket} can be used, the same command goes on" in last
    assert len([path for _, path in s3.requests if "/images/" in path]) == 3, "no refusal is repeated"
    s3.fault = lambda method, path: None
    code, _, errors = curate(out, "--set", "pause=3")
    assert code == 0, errors
    rows = [Manifest.open(each).table().to_pylist() for each in (out, tmp_path / "calm")]
    for row in (*rows[0], *rows[1]):
        row.pop("fetch_time", None)
    assert rows[0] == rows[1]


def test_one_run_at_a_time_and_a_dead_one_holds_out_only_until_its_lease_ends(curate, s3, uhr):
    out = f"s3://{s3.bucket}/out"
    store = ObjectStore(out)
    with lease.held(store, 60):
        code, _, errors = curate()
        assert code == 1
        claim = lease.claim_at(store)
        assert f"uhr: {out} is in use by {claim.holder} until {claim.time}: wait for it" in errors
        assert errors.splitlines()[-1].startswith("uhr: ")
        status = json.loads(uhr("curate", "status", out, "--json")[1])
        assert (status["state"], status["holder"], status["until"]) == ("listing", claim.holder, claim.time)
    assert lease.claim_at(store) is None
    dead = lease.Claim("somebody@elsewhere (process 7)", time.time() - 1, "dead")
    store.write(lease.NAME, json.dumps(vars(dead)).encode())
    code, _, errors = curate()
    assert code == 0, errors
    assert lease.NAME not in keys(s3)


def test_a_lease_is_renewed_while_its_run_works_and_taken_over_only_when_it_ended(s3):
    store = ObjectStore(f"s3://{s3.bucket}/out")
    with lease.held(store, 3):  # long enough for a slow machine to renew it in time
        first = lease.claim_at(store)
        while (now := lease.claim_at(store)).until == first.until:
            time.sleep(0.02)
        assert now.token == first.token
        assert now.until > first.until
        with pytest.raises(UserError, match="is in use by"), lease.held(store, 60):
            pass


class Times:
    """In place of the event that ends the renewal: it ends after so many times, without waiting."""

    def __init__(self, left: int) -> None:
        self.left = left

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        return self.left < 0

    def set(self) -> None:
        pass


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_lease_is_renewed_after_an_answer_was_lost_and_the_next_request_failed(s3, monkeypatch, rounds):
    store = ObjectStore(f"s3://{s3.bucket}/out")
    replace, version = ObjectStore.replace, ObjectStore.version
    lost, failed = [], []

    def unanswered(self: ObjectStore, *written: Any) -> str | None:
        made = replace(self, *written)
        return made if lost else lost.append(made)

    def failing(self: ObjectStore, name: str) -> str:
        if not failed:
            failed.append(name)
            raise StoreError(f"{name}: the store failed", "wait")
        return version(self, name)

    monkeypatch.setattr(ObjectStore, "replace", unanswered)
    monkeypatch.setattr(ObjectStore, "version", failing)
    one = lease._Lease(store, 60, lease.NAME, None)
    monkeypatch.setattr(one, "_over", Times(rounds))
    one.take()
    one._thread.join()
    assert (len(lost), failed, one.lost) == (1, [lease.NAME], None)
    assert one._version == version(store, lease.NAME)
    assert (one._version != lost[0]) == (rounds == 3)
    assert one._until == lease.claim_at(store).until, "it does not count on more than it has"
    one.release()
    assert lease.claim_at(store) is None


def test_a_run_whose_lease_was_taken_over_stops_with_one_line(s3):
    store = ObjectStore(f"s3://{s3.bucket}/out")
    other = lease.Claim("somebody@elsewhere (process 7)", time.time() + 60, "other")
    taken = json.dumps(vars(other)).encode()

    def work() -> None:
        with lease.held(store, 0.3):
            store.write(lease.NAME, taken)
            time.sleep(30)

    with pytest.raises(UserError, match="could not be renewed in time, which somebody@elsewhere"):
        work()
    assert lease.claim_at(store) == other


def test_a_lease_that_is_lost_when_the_work_is_done_does_not_interrupt_it(s3, monkeypatch):
    other = lease.Claim("somebody@elsewhere (process 7)", time.time() + 600, "other")
    requested, done = threading.Event(), threading.Event()
    over: list[threading.Event] = []
    release = lease._Lease.release

    class Late(ObjectStore):
        """A store that answers a renewal when the work is done, and then another run has the lease."""

        def replace(self, *_: Any) -> None:
            requested.set()
            done.wait()
            over[0].wait()
            self.write(lease.NAME, json.dumps(vars(other)).encode())

    def ending(self: lease._Lease) -> None:
        over.append(self._over)
        done.set()
        release(self)

    monkeypatch.setattr(lease._Lease, "release", ending)
    store = Late(f"s3://{s3.bucket}/out")
    with lease.held(store, 0.03):
        requested.wait()
    assert lease.claim_at(store) == other


class TakenOver(ObjectStore):
    """A store in which another run takes the lease while this one asks for its version."""

    other = lease.Claim("somebody@elsewhere (process 7)", time.time() + 600, "other")

    def version(self, name: str) -> str:
        self.write(name, json.dumps(vars(self.other)).encode())
        return super().version(name)


def test_a_lease_that_is_taken_over_while_a_lost_answer_is_looked_up_is_left_to_its_holder(s3):
    store = TakenOver(f"s3://{s3.bucket}/out")

    def work() -> None:
        with lease.held(store, 0.6):
            claim = lease.claim_at(store)
            # as by a request of this run whose answer did not arrive
            written = lease.Claim(claim.holder, claim.until + 0.001, claim.token)
            store.write(lease.NAME, json.dumps(vars(written)).encode())
            time.sleep(30)

    with pytest.raises(UserError, match="could not be renewed in time, which somebody@elsewhere"):
        work()
    assert lease.claim_at(store) == store.other


def test_a_part_that_is_discarded_is_gone_on_every_machine(s3, tmp_path):
    address = f"s3://{s3.bucket}/out/units"
    Mirror.begin(tmp_path / "here", address)
    plan = UnitPlan.create(tmp_path / "here", pa.table({"x": [1, 2]}), 1, "work")
    for unit in (0, 1):
        plan.write(unit, plan.items(unit))
    other = Mirror.begin(tmp_path / "there", address)
    assert UnitPlan.open(tmp_path / "there").finished() == {0, 1}
    plan.discard(0)
    assert not plan.part(0).exists()
    other.pull()
    there = UnitPlan.open(tmp_path / "there")
    assert there.finished() == {1}
    there.part(1).unlink()
    assert there.part(1).exists(), "it is fetched again"
    plan.remove()
    assert keys(s3) == []


def test_out_and_source_may_not_overlap(curate, s3, source):
    code, _, errors = curate(f"{source}/out")
    assert code == 1
    assert f"--out {source}/out and the source {source} overlap: name another prefix" in errors
