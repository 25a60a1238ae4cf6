"""Killed sets, and sets in an object store: finished images are kept, and the bytes are the same."""

import json
from pathlib import Path

import pytest

from uhr.base.store import open_store

PROMPTS = ["a lake", "a hill", "three foxes", "fog", "a mill"]
SLOW = [f"slow {n}" for n in range(10)]


def test_a_killed_run_of_several_workers_goes_on_and_ends_with_the_same_bytes(make, killed, stamps):
    whole = make(SLOW, sampler="moody:Moody", out="whole")
    killed("local", 2, "out", lambda: any(Path("out").glob("pictures/*.json")))
    done = stamps("out/pictures")
    finished = {path for path in done if path.suffix == ".json"}
    assert 0 < len(finished) < 10
    # what a worker leaves that is killed during a write
    Path("out/pictures", f".slow.png.{'0' * 32}.tmp").write_bytes(b"half")
    assert not Path("out/set.json").exists()
    again = make(SLOW, sampler="moody:Moody")
    assert again.code == 0, again.err
    assert again.files == whole.files
    assert all(stamps("out")[path] == done[path] for path in finished), "generated twice"


@pytest.mark.ray
def test_a_killed_run_into_an_object_store_goes_on_and_generates_no_image_twice(make, killed, s3):
    """On Ray; afterwards with another engine, as it may be on another machine."""
    whole = make(SLOW, sampler="moody:Moody", out="whole")
    url = f"s3://{s3.bucket}/some/set"
    killed("ray", 1, url, lambda: any(path.endswith(".json") for path in s3.puts("/pictures/")))
    store = open_store(url)
    finished = {name for name in store.names() if name.startswith("pictures/") and name.endswith(".json")}
    assert 0 < len(finished) < 10
    assert "set.json" not in store.names()
    # one thread, as in this process: a sum that is split among another number of threads has other last bits
    assert {json.loads(store.read(name))["machine"]["threads"] for name in finished} == {1}
    s3.requests.clear()
    again = make(SLOW, sampler="moody:Moody", out=url)
    assert again.code == 0, again.err
    assert {name: store.read(name) for name in store.names()} == whole.files
    written = [path.partition("/pictures/")[2] for path in s3.puts("/pictures/")]
    assert len(written) == len(set(written)) == 2 * (10 - len(finished))
    assert not {f"pictures/{name}" for name in written} & finished
    assert not list(Path("cache").rglob("*.arrow")), "notes are left behind"


def test_a_store_that_fails_now_and_then_gets_its_set(make, s3):
    met = set()

    def first_time(method, path):
        known = (method, path) in met
        met.add((method, path))
        return None if known else 500

    s3.fault = first_time
    made = make(PROMPTS, out=f"s3://{s3.bucket}/set")
    assert made.code == 0, made.err
    store = open_store(f"s3://{s3.bucket}/set")
    whole = make(PROMPTS, out="whole").files
    assert {name: store.read(name) for name in store.names()} == whole


def test_a_store_that_goes_on_failing_ends_the_run_in_one_line_and_keeps_what_is_done(make, s3, monkeypatch):
    monkeypatch.setattr("uhr.base.store.ATTEMPTS", 2)
    s3.fault = lambda method, path: 503 if method == "PUT" and "0003" in path else None
    url = f"s3://{s3.bucket}/set"
    made = make(PROMPTS, out=url)
    assert made.code == 1
    assert f"{url}/pictures/0003.png: the store failed" in made.error
    assert not any(name.startswith("failed/") for name in open_store(url).names())
    s3.fault = lambda method, path: None
    s3.requests.clear()
    assert make(PROMPTS, out=url).code == 0
    assert {path.partition("/pictures/")[2] for path in s3.puts("/pictures/")} == {
        f"{name}.{suffix}" for name in ("0003", "0004") for suffix in ("png", "json")
    }


def test_an_object_store_refuses_other_sets_and_other_files_as_a_folder_does(make, s3):
    url = f"s3://{s3.bucket}/set"
    make(PROMPTS, out=url)
    assert "is finished" in make(PROMPTS, out=url).out
    refused = make(PROMPTS, "--seed", 3, out=url)
    assert "contains another set: other seeds: " in refused.error
    assert f"{url}-2" in refused.error
    open_store(f"s3://{s3.bucket}/home").write("thesis.doc", b"mine")
    assert "already contains something else" in make(PROMPTS, out=f"s3://{s3.bucket}/home").error
    assert "there is no such bucket" in make(PROMPTS, out=f"s3://{s3.bucket}-nowhere/set").error
