"""The presets of published sets, in whole runs with tiny checkpoints of the real classes.

`as-is` measures the images; what the others keep follows from these numbers and their published rules.
"""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from uhr.manifests.manifest import Manifest

from .conftest import photograph

SPEC = importlib.util.spec_from_file_location(
    "checkpoints", Path(__file__).parents[1] / "models/scores/checkpoints.py"
)
checkpoints = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(checkpoints)

SIDE = 100
"""The images have 0.01 to 0.02 megapixels; the rule of 4K is made smaller by a factor of 500."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    """`--set` for each model of the presets, with a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints.image_classifier(folder / "classifier")
    checkpoints.q_align(folder / "one-align")
    checkpoints.artimuse(folder / "ArtiMuse")
    checkpoints.yoloe(folder)
    (folder / "question.txt").write_text("How beautiful is this image?")
    (folder / "system.txt").write_text("You are a judge.")
    return [
        f"stages.safety.nsfw={{weights: {folder}/classifier, labels: [nsfw]}}",
        f"stages.q_align.weights={folder}/one-align",
        f"stages.artimuse.weights={folder}/ArtiMuse",
        f"stages.artimuse.prompt={folder}/question.txt",
        f"stages.artimuse.system={folder}/system.txt",
        f"stages.people.weights={folder}/promptable.pt",
        f"stages.people.text_encoder={folder}/mobileclip_blt.ts",
        "stages.people.size=160",
        "stages.people.min_confidence=0.3",
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two folders of images: one is too small, one flat, one a copy, one smaller and alike."""
    folder = tmp_path_factory.mktemp("images")
    for name, seeds in (("stock", range(1, 8)), ("portraits", range(8, 13))):
        (folder / name).mkdir()
        for seed in seeds:
            Image.fromarray(photograph(seed, 160, SIDE)).save(folder / name / f"{seed}.png")
    Image.fromarray(photograph(20, 80, 60)).save(folder / "stock" / "small.png")
    Image.new("RGB", (250, 250), (90, 120, 200)).save(folder / "stock" / "flat.png")
    (folder / "stock" / "copy of 3.png").write_bytes((folder / "stock" / "3.png").read_bytes())
    (folder / "stock" / "1.txt").write_text("waves")
    scene = Image.fromarray(np.random.default_rng(3).integers(0, 255, (9, 12, 3), np.uint8)).resize(
        (200, 150)
    )
    scene.save(folder / "stock" / "scene.png")
    scene.resize((180, 135)).save(folder / "stock" / "scene, smaller.jpg")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A user's cache of this module's own: ArtiMuse is converted into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def curate(pipeline, out: Path, *arguments: object) -> dict[str, dict]:
    from uhr.cli import main

    command = ["curate", "run", pipeline, "--out", out, "--engine", "local", "--workers", 0, *arguments]
    assert main([str(each) for each in [*command, "--set", "preview=0"]]) == 0
    return {row["uri"]: row for row in Manifest.open(out).table().to_pylist()}


def sets(settings: list[str], *stages: str) -> list[str]:
    """The settings of these stages as arguments."""
    chosen = [each for each in settings if each.split(".")[1] in stages]
    return [argument for each in chosen for argument in ("--set", each)]


@pytest.fixture(scope="module")
def measured(images, settings, tmp_path_factory) -> dict[str, dict]:
    """The rows of `as-is` over both folders, by their uri in one of them."""
    models = sets(settings, "safety", "q_align", "artimuse", "people")
    rows = curate("as-is", tmp_path_factory.mktemp("as-is") / "out", "--source", images, *models)
    return {uri.partition("/")[2]: row for uri, row in rows.items() if not uri.endswith(".txt")}


def test_as_is_measures_everything_and_rejects_nothing(measured):
    assert {row["status"] for row in measured.values()} == {"kept"}
    for row in measured.values():
        for column in ("entropy", "upscale_ratio", "phash", "dup_rank", "nsfw_prob", "q_align", "artimuse"):
            assert row[column] is not None
        assert row["character"] is not None
    assert measured["copy of 3.png"]["dup_group"] == measured["3.png"]["content_hash"]
    assert measured["scene, smaller.jpg"]["dup_of"] == measured["scene.png"]["sample_id"]


def median(rows, column: str) -> float:
    return statistics.median(row[column] for row in rows)


def test_multiaspect_4k_keeps_what_the_published_rules_keep(measured, images, settings, chat, tmp_path):
    chat.reply = lambda body, number: (
        "一个词" if isinstance(body["messages"][-1]["content"], str) else "A word."
    )
    limits = {
        "nsfw": max(row["nsfw_prob"] for row in measured.values()),
        "q_align": median(measured.values(), "q_align"),
    }
    server = {"url": chat.url, "model": "expander"}
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text(
        yaml.safe_dump(
            {
                "preset": "multiaspect-4k",
                "sources": {
                    "stock": {"kind": "folder", "path": str(images / "stock")},
                    "portraits": {"kind": "folder", "path": str(images / "portraits"), "channel": "people"},
                },
                "stages": {"caption": {"server": server}, "translate": {"server": server}},
                "rules": {
                    "nsfw": {"where": f"nsfw_prob < {limits['nsfw']!r}", "required": True},
                    "resolution": "megapixels >= 0.015",
                },
                "channels": {
                    "general": {
                        "flatness": "flat_fraction <= 0.5 OR flat_fraction IS NULL",
                        "entropy": "entropy >= 7.0",
                        "quality": f"q_align >= {limits['q_align']!r}",
                        "aesthetics": "artimuse_rank < 0.3",
                    },
                    "people": {
                        "people": {"where": "character", "required": True},
                        "aesthetics_of_people": "artimuse_rank_of_people < 0.5",
                    },
                },
            }
        )
    )
    models = sets(settings, "safety", "q_align", "artimuse", "people")
    rows = curate(pipeline, tmp_path / "out", *models)

    common = {
        name
        for name, row in measured.items()
        if row["nsfw_prob"] < limits["nsfw"] and row["megapixels"] >= 0.015
    }
    stock = {path.name for path in (images / "stock").glob("*.*g")}
    general = [
        name
        for name in common & stock
        if measured[name]["entropy"] >= 7 and measured[name]["q_align"] >= limits["q_align"]
    ]
    general = [name for name in general if not name.startswith("copy") or "3.png" not in general]
    general = sorted(general, key=lambda name: (-measured[name]["artimuse"], name))
    people = [name for name in common - stock if measured[name]["character"]]
    people = sorted(people, key=lambda name: (-measured[name]["artimuse"], name))
    assert 2 <= len(general) < len(common & stock)
    assert len(people) >= 2
    wanted = {name: ["general"] for i, name in enumerate(general) if i / len(general) < 0.3}
    wanted |= {name: ["people"] for i, name in enumerate(people) if i / len(people) < 0.5}
    kept = {name: row for name, row in rows.items() if row["status"] == "kept"}
    assert {name: row["channels"] for name, row in kept.items()} == wanted
    assert all(row["character"] for row in kept.values() if row["channels"] == ["people"])
    assert {(row["caption_en"], row["caption_zh"]) for row in kept.values()} == {("A word.", "一个词")}
    assert rows["small.png"]["reason"] == "resolution"
    captioned = [row for row in rows.values() if row["caption_en"] is not None]
    assert len(captioned) == len(kept), "captions are made only of what everything else keeps"
    stages = {stage.name for stage in Manifest.open(tmp_path / "out").info.stages if stage.state == "ran"}
    assert {"safety", "people", "artimuse", "rank_of_people"} <= stages


def test_urae_4k_keeps_large_images_once_with_both_captions(measured, images, settings, chat, tmp_path):
    chat.reply = lambda body, number: "A word."
    most = max(row["nsfw_prob"] for row in measured.values())
    arguments = [
        *("--source", images / "stock", *sets(settings, "safety")),
        *("--set", f"stages.caption.server={{url: {chat.url}, model: expander}}"),
        *("--set", "rules.resolution=megapixels >= 0.015"),
        *("--set", f"rules.nsfw={{where: nsfw_prob < {most!r}, required: true}}"),
    ]
    rows = {n: r for n, r in curate("urae-4k", tmp_path / "out", *arguments).items() if not n.endswith("txt")}
    reasons = {name: row["reason"] for name, row in rows.items() if row["reason"] is not None}
    unsafe = {name: "nsfw" for name in rows if measured[name]["nsfw_prob"] >= most}
    assert reasons == {
        "copy of 3.png": "duplicates",
        "scene, smaller.jpg": "near_duplicate",
        **unsafe,
        "small.png": "resolution",
    }
    kept = [row for row in rows.values() if row["status"] == "kept"]
    assert {row["caption_en"] for row in kept} == {"A word."}
    assert rows["1.png"]["caption"] == "waves"
