"""From prompts to an adapter: a set is generated on Ray, curated with captions, encoded, and trained on."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from uhr.manifests.manifest import Manifest
from uhr.train.encode.stored.encoded import read_encoded

PROMPTS = ["a lake at dawn", "three foxes", "a mill on a hill", "fog over a river"]

PIPELINE = """
preset: quickstart
name: generated
rules: {resolution: width >= 128, flatness: null, entropy: null}
"""

ROAD = [
    "models make-tiny model",
    "sample euler --model model --prompts prompts.txt --size 160x128 --steps 2 --workers 2 --out set",
    "curate run generated.yaml --source set/pictures --out manifest --engine local --workers 1",
    """manifest slice manifest --where "caption like 'a %'" --out slice""",
    "train encode slice --model model --out encoded",
    "train run lora --model model --data encoded --out run --set phases.0.steps=3 "
    "--set runtime.precision=float32",
    "train export run --out adapter",
    "sample euler --model model --prompt 'a lake' --size 128x128 --steps 1 --adapter adapter --out after.png",
]


@pytest.mark.ray
@pytest.mark.usefixtures("warm_workers")
def test_from_prompts_to_an_adapter_by_command(tmp_path, monkeypatch, capfd):
    from uhr.cli import main

    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    Path("generated.yaml").write_text(PIPELINE)
    for command in ROAD:
        assert main(shlex.split(command)) == 0, f"{command}\n{capfd.readouterr().err}"

    facts = json.loads(Path("set/set.json").read_text())
    assert facts["counts"] == {"items": 4, "made": 4, "failed": 0, "truncated": 0}
    rows = (
        Manifest.open(Path("manifest"))
        .table(["uri", "caption", "license", "status", "source_meta"])
        .to_pylist()
    )
    assert [(row["uri"], row["caption"], row["status"]) for row in rows] == [
        (f"{number:04d}.png", prompt, "kept") for number, prompt in enumerate(PROMPTS)
    ]
    assert {row["license"] for row in rows} == {"Apache-2.0"}
    # how each was made travels with it
    assert [json.loads(row["source_meta"])["seed"] for row in rows] == [0, 1, 2, 3]
    counts = Manifest.open(Path("manifest")).info.counts
    assert (counts["rows"], counts["failed"]) == (4, 0), "nothing of a set but its images is curated"

    encoded = read_encoded(Path("encoded"))
    assert encoded.counts["encoded"] == 2
    assert encoded.licences == {"Apache-2.0": 2}
    assert len(Path("run/log.jsonl").read_text().splitlines()) == 3
    assert Image.open("after.png").size == (128, 128)
