"""`uhr fetch`: what presets and recipes name, brought into a folder from a hub and an S3 on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import boto3
import pytest

from uhr.base.store import ObjectStore
from uhr.models.scores.weights import hash_of_files

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "README.md": b"not fetched",
    "pytorch_model.bin": b"not fetched: there are safetensors",
}
OLD = {
    "config.json": b"{}",
    "pytorch_model-00001-of-00002.bin": b"one",
    "pytorch_model-00002-of-00002.bin": b"two",
    "pytorch_model.bin.index.json": b"{}",
    "optimizer.bin": b"not fetched",
    "pytorch_model.fp16.bin": b"not fetched",
}


@pytest.fixture
def pipeline(s3, tmp_path) -> Path:
    """Stages whose weights are in the hub, in a bucket, here, not named, and misnamed."""
    boto3.client("s3").put_object(Bucket=s3.bucket, Key="heads/laion.pth", Body=b"head")
    (tmp_path / "clip").mkdir()
    file = tmp_path / "mine.yaml"
    file.write_text(f"""
stages:
  - header
  - decode
  - {{stage: embedding, weights: {tmp_path / "clip"}}}
  - {{stage: laion_aesthetic, weights: "s3://{s3.bucket}/heads"}}
  - {{stage: q_align, weights: org/name@main}}
  - {{stage: safety, nsfw: {{weights: org/old, labels: [nsfw]}}}}
  - {{stage: people, weights: ./no/such/file.pt}}
  - caption
rules: {{}}
""")
    return file


def test_weights_are_fetched_with_licence_and_hash_and_what_cannot_be_says_how(hub, pipeline, s3, tmp_path):
    hub.repositories = {"org/name": FILES, "org/old": OLD}
    requests = hub.requests
    to = tmp_path / "weights"
    words = [sys.executable, "-m", "uhr", "fetch", pipeline, "--to", to, "--json"]
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        env.pop(name, None)
    done = subprocess.run(list(map(str, words)), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    head, model, old = facts["weights"]
    assert (head["by"], head["path"]) == ("stage laion_aesthetic", f"{s3.bucket}--heads")
    assert head["licence"] is None
    assert (to / head["path"] / "laion.pth").read_bytes() == b"head"
    assert (model["by"], model["weights"], model["path"]) == (
        *("stage q_align", "org/name@main", "org--name@main"),
    )
    assert (model["revision"], model["licence"]) == (hub.commit, "apache-2.0")
    folder = to / model["path"]
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert model["sha256"] == hash_of_files(folder)
    assert model["bytes"] == 702
    assert model["option"] == f"stages.q_align.weights={folder}"
    assert json.loads((to / "weights.json").read_text())["weights"] == facts["weights"]
    how = {each["by"]: each["how"] for each in facts["other"]}
    assert how["stage embedding"] == "is on this machine"
    assert how["stage people"].startswith("the weights './no/such/file.pt' do not exist: name a path")
    assert how["stage caption"].startswith("names no model; set weights=FOLDER or server=")
    assert requests[f"/org/name/resolve/{hub.commit}/model.safetensors"] == 1
    # pickled weights only where a model has no others, and it is said
    assert {path.name for path in (to / old["path"]).iterdir() if path.is_file()} == {
        *("config.json", "pytorch_model.bin.index.json"),
        *("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
    }
    assert done.stderr.count("pickled") == 1
    old_at = f"'org/old@{hub.commit}'"
    said = f"{old_at} has no safetensors for pytorch_model-00001-of-00002.bin and 1 more: the pickled"
    assert said in done.stderr
    assert not [path for path in requests if path.endswith("pytorch_model.bin")]


def test_a_dry_run_needs_no_network_and_writes_nothing(uhr, tmp_path):
    to = tmp_path / "weights"
    code, printed, _ = uhr("fetch", "multiaspect-4k", "--to", to, "--dry-run", "--json")
    assert code == 0
    facts = json.loads(printed)
    assert facts["fetch"] == [
        {
            "by": "stage q_align",
            "name": "one-align",
            "weights": "q-future/one-align",
            "into": str(to / "q-future--one-align"),
        }
    ]
    assert {each["by"] for each in facts["other"]} >= {"stage safety", "stage caption", "stage translate"}
    code, printed, _ = uhr("fetch", "urae-4k@code", "--to", to, "--dry-run")
    assert "black-forest-labs/FLUX.1-dev" in printed
    assert not to.exists()


def test_a_recipe_that_fits_several_models_asks_which(uhr, tmp_path):
    words = ("fetch", "lora-flux2", "--to", tmp_path / "weights", "--dry-run")
    code, _, errors = uhr(*words)
    assert code == 1
    assert (
        "recipe lora-flux2 fits flux2-klein-base-9b, flux2-klein-base-4b: choose one with --model" in errors
    )
    code, printed, _ = uhr(*words, "--model", "flux2-klein-base-4b")
    assert code == 0
    assert "FLUX.2-klein-base-4B" in printed
    code, _, errors = uhr("fetch", "lora", "--to", tmp_path / "w", "--model", "flux2-klein-4b")
    assert "known" in errors
    code, _, errors = uhr("fetch", "loar", "--to", tmp_path / "w")
    assert "unknown preset or recipe 'loar': did you mean 'lora'" in errors or "lora" in errors


def test_several_processes_of_a_machine_copy_weights_from_a_store_once(s3):
    client = boto3.client("s3")
    for name in ("a", "b"):
        client.put_object(Bucket=s3.bucket, Key=f"model/{name}", Body=b"x" * 1000)
    s3.requests.clear()
    found: list[Path] = []
    # each opens the lock's file anew, as processes do
    threads = [
        threading.Thread(
            target=lambda: found.append(ObjectStore(f"s3://{s3.bucket}/model").download("weights"))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    read = Counter(path for method, path in s3.requests if method == "GET" and "/model/" in path)
    assert sorted(read.values()) == [1, 1]
