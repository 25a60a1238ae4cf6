"""Stages with models, in whole runs with tiny checkpoints: their columns are what the scorers give."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from uhr.base.errors import UserError
from uhr.curate.config import load
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.stage import BatchStage
from uhr.curate.stages import NAMES, stage_class
from uhr.manifests.manifest import Manifest
from uhr.models.scores.images import View

SPEC = importlib.util.spec_from_file_location(
    "checkpoints", Path(__file__).parents[1] / "models/scores/checkpoints.py"
)
checkpoints = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(checkpoints)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a tiny checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints.open_clip(folder / "clip")
    checkpoints.image_classifier(folder / "classifier")
    checkpoints.q_align(folder / "one-align")
    checkpoints.artimuse(folder / "ArtiMuse")
    torch.manual_seed(0)
    layers = {}
    for number, (first, second) in enumerate(((48, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))):
        layers[f"layers.{number}.weight"] = torch.randn(second, first) / first**0.5
        layers[f"layers.{number}.bias"] = torch.randn(second)
    torch.save(layers, folder / "laion.pth")
    head = {
        "a.weight": torch.randn(8, 48),
        "a.bias": torch.zeros(8),
        "b.weight": torch.randn(1, 8),
        "b.bias": torch.zeros(1),
    }
    torch.save(head, folder / "watermark.pt")
    (folder / "question.txt").write_text("How beautiful is this image?")
    (folder / "system.txt").write_text("You are a judge.")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three images, one with a caption beside it."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:96, 0:128]
    waves = np.stack([127 + 120 * np.sin(x / 9 + c) * np.cos(y / 7) for c in range(3)], axis=2)
    pixels = {"a": rng.integers(0, 256, (64, 64, 3)), "b": waves, "c": np.repeat(waves[:, :64] // 2, 2, 0)}
    for name, array in pixels.items():
        Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("coloured noise")
    return folder


@pytest.fixture
def run(uhr, source, tmp_path):
    """Run these stages over the images, in this process; give the rows by name."""

    def call(*stages, **rules):
        pipeline, out = tmp_path / "mine.yaml", tmp_path / "out"
        pipeline.write_text(yaml.safe_dump({"stages": ["header", "decode", *stages], "rules": rules}))
        arguments = ("--source", source, "--out", out, "--engine", "local", "--workers", 0)
        code, _, errors = uhr("curate", "run", pipeline, *arguments)
        assert code == 0, errors
        manifest = Manifest.open(out)
        return {Path(row["uri"]).stem: row for row in manifest.table().to_pylist()}, manifest

    return call


def pixels(source, name):
    return np.asarray(Image.open(source / f"{name}.png").convert("RGB"))


def test_the_columns_of_clip_come_from_one_embedding(run, models, source):
    from uhr.models.scores.classifier import ImageClassifier
    from uhr.models.scores.clip import ClipModel
    from uhr.models.scores.heads import Head

    clip = {"weights": str(models / "clip")}
    rows, manifest = run(
        {"stage": "embedding", **clip},
        {"stage": "laion_aesthetic", "weights": str(models / "laion.pth")},
        {"stage": "clip_score", **clip},
        {
            "stage": "safety",
            "nsfw": {"weights": str(models / "classifier"), "labels": ["nsfw"]},
            "watermark": {"weights": str(models / "watermark.pt"), "kind": "probability"},
        },
    )
    model = ClipModel.load(models / "clip")
    for name, row in rows.items():
        image = pixels(source, name)
        embedding = model.score([model.view.of(image)])["clip_embedding"][0]
        assert row["clip_embedding"] == pytest.approx(embedding.tolist(), abs=1e-5)
        aesthetic = Head.load("laion-aesthetic", models / "laion.pth").score([embedding])[0]
        assert row["laion_aesthetic"] == pytest.approx(aesthetic, abs=1e-4)
        watermark = Head.load("probability", models / "watermark.pt").score([embedding])[0]
        assert row["watermark_prob"] == pytest.approx(watermark, abs=1e-4)
        classifier = ImageClassifier.load(models / "classifier", ["nsfw"], "nsfw_prob")
        assert row["nsfw_prob"] == pytest.approx(
            classifier.score([classifier.view.of(image)])["nsfw_prob"][0], abs=1e-5
        )
    assert rows["a"]["clip_score"] == pytest.approx(
        model.fit(np.array([rows["a"]["clip_embedding"]]), ["coloured noise"])[0], abs=1e-3
    )
    assert rows["b"]["clip_score"] is rows["c"]["clip_score"] is None
    assert len({row["laion_aesthetic"] for row in rows.values()}) == 3
    column = next(c for c in manifest.columns if c.name == "nsfw_prob")
    assert (column.unit, column.range, column.stage) == ("1", "[0, 1]", "safety")


def test_the_stages_of_one_backbone_load_it_once(run, models, monkeypatch):
    from uhr.curate.stages.models.base import clip_model
    from uhr.models.scores.clip import ClipModel

    clip_model.cache_clear()  # a test before this one may have loaded it in this process
    loads, real = [], ClipModel.load
    monkeypatch.setattr(ClipModel, "load", lambda *args, **kw: (loads.append(args), real(*args, **kw))[1])
    clip = {"weights": str(models / "clip")}
    rows, _ = run({"stage": "embedding", **clip}, {"stage": "clip_score", **clip})
    assert rows["a"]["clip_score"] is not None
    assert len(loads) == 1


def test_quality_is_pyiqas_own_value(run, models, source):
    from uhr.models.scores.pyiqa_metrics import PyiqaMetric
    from uhr.models.scores.q_align import QAlign

    rows, manifest = run(
        "pyiqa", {"stage": "q_align", "weights": str(models / "one-align"), "tasks": ["quality", "aesthetic"]}
    )
    q_align = QAlign.load(models / "one-align", tasks=("quality", "aesthetic"))
    for name, row in rows.items():
        image = pixels(source, name)
        assert row["piqe"] == PyiqaMetric.load("piqe").score([image])["piqe"][0]
        expected = q_align.score([q_align.view.of(image)])
        assert row["q_align"] == pytest.approx(expected["q_align"][0], abs=4e-3)
        assert row["q_align_aesthetic"] == pytest.approx(expected["q_align_aesthetic"][0], abs=4e-3)
    assert q_align.weights_hash in json.dumps(manifest.info.model_dump(mode="json"))


def test_artimuse_is_converted_once_and_scored(run, models, source, tmp_path, monkeypatch):
    from uhr.models.scores import artimuse
    from uhr.models.scores.rating import LocalJudge, Rating

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {"prompt": str(models / "question.txt"), "system": str(models / "system.txt")}
    rows, _ = run({"stage": "artimuse", "weights": str(models / "ArtiMuse"), **files})
    folder = artimuse.converted(models / "ArtiMuse")
    assert [path.parent.name for path in (tmp_path / "cache").rglob("config.json")] == [folder.name]
    rating = Rating("How beautiful is this image?", artimuse.WORDS, "You are a judge.")
    judge = LocalJudge.load(folder, rating, "artimuse", View(), dtype="float32", options=artimuse.OPTIONS)
    for name, row in rows.items():
        assert row["artimuse"] == pytest.approx(judge.score([pixels(source, name)])["artimuse"][0], abs=1e-3)


def test_captions_are_requested_only_where_they_are_missing_and_are_translated(run, chat, tiny_flux):
    def reply(body, number):
        question = body["messages"][-1]["content"]
        if isinstance(question, str):
            return {"coloured noise": "彩色噪声", "A wave.": "一个波浪"}[question]
        return "A wave." if len(chat.requests) == 1 else "I'm sorry, I can't help with that."

    chat.reply = reply
    server = {"url": chat.url, "model": "expander", "concurrency": 1}
    rows, _ = run(
        {
            "stage": "caption",
            "server": server,
            "keep": "caption",
            "t5_tokenizer": str(tiny_flux / "tokenizer_2"),
        },
        {"stage": "translate", "server": server},
    )
    assert len([body for body in chat.requests if isinstance(body["messages"][-1]["content"], list)]) == 2
    a, b, c = (rows[name] for name in "abc")
    assert (a["caption_en"], a["caption"], a["caption_zh"]) == (
        "coloured noise",
        "coloured noise",
        "彩色噪声",
    )
    assert (b["caption_en"], b["caption_zh"]) == ("A wave.", "一个波浪")
    assert (c["caption_en"], c["caption_zh"], c["caption_zh_error"]) == (None, None, None)
    assert "the model refused" in c["caption_en_error"]
    assert c["status"] == "kept"
    assert a["caption_en_t5_tokens"] > 0
    assert c["caption_en_t5_tokens"] is None


def test_a_finished_set_gets_the_captions_that_it_lacks(run, chat, uhr, source, tmp_path):
    """A later run over the manifest asks for those images alone that the first one got no caption of."""
    chat.reply = lambda body, n: (
        "A wave." if len(chat.requests) != 2 else "I'm sorry, I can't help with that."
    )
    server = {"url": chat.url, "model": "expander", "concurrency": 1}
    before, _ = run({"stage": "caption", "server": server})
    (lacking,) = [name for name, row in before.items() if row["caption_en"] is None]
    # the summary of a finished run is printed again by the same command
    same = ("curate", "run", tmp_path / "mine.yaml", "--source", source, "--out", tmp_path / "out")
    _, printed, _ = uhr(*same, "--engine", "local")
    assert f"no caption_en for  1 of {len(before)} kept   the model refused: I'm sorry" in printed
    chat.requests.clear()
    chat.reply = lambda body, n: "A lake."
    again = tmp_path / "again.yaml"
    entry = {"stage": "caption", "server": server, "column": "caption_2", "keep": "caption_en"}
    again.write_text(yaml.safe_dump({"stages": ["header", entry]}))
    words = ("--source", f"manifest:{tmp_path / 'out'}", "--out", tmp_path / "whole", "--engine", "local")
    code, _, errors = uhr("curate", "run", again, *words, "--workers", 0)
    assert code == 0, errors
    assert len(chat.requests) == 1
    rows = Manifest.open(tmp_path / "whole").table().to_pylist()
    found = {Path(row["uri"]).stem: row["caption_2"] for row in rows}
    assert found == {name: "A lake." if name == lacking else "A wave." for name in before}


def test_the_key_of_a_server_is_in_no_file_of_the_run(run, chat, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-123")
    chat.reply = lambda body, n: (
        lambda handler: handler.send({"error": {"message": "no secret-key-123"}}, 400)
    )
    rows, _ = run({"stage": "caption", "server": {"url": chat.url, "model": "expander"}})
    assert chat.headers[-1]["Authorization"] == "Bearer secret-key-123"
    assert all("answers 400" in row["caption_en_error"] for row in rows.values())
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or b"secret-key" not in file.read_bytes()


def test_a_server_that_cannot_be_used_is_not_called_again_for_each_row(run, chat):
    chat.reply = lambda body, n: 403
    rows, _ = run({"stage": "caption", "server": {"url": chat.url, "model": "expander", "concurrency": 1}})
    assert {row["status"] for row in rows.values()} == {"failed"}
    assert all("answers 403" in row["error"] for row in rows.values())
    assert len(chat.requests) == 1


def test_faces_are_counted_only_by_explicit_choice(run, source):
    from uhr.models.scores.people import FaceCascade

    rows, manifest = run({"stage": "people", "backend": "cascade"})
    expected = FaceCascade.load().score([pixels(source, name) for name in rows])["face_count"]
    assert [row["face_count"] for row in rows.values()] == expected.tolist()
    assert "person_count" not in {column.name for column in manifest.columns}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("embedding", "no model is named: --set stages.embedding.weights=FOLDER$"),
        ("artimuse", "weights=FOLDER or --set 'stages.artimuse.server={url: URL, model: NAME}'$"),
        ("safety", r"named: --set 'stages.safety.nsfw=\{weights: FOLDER, labels: \[nsfw\]\}' or --set"),
        ("people", "--set stages.people.weights=FILE"),
        ({"stage": "caption", "weights": "/no/model"}, "the weights '/no/model' do not exist"),
        (
            {"stage": "translate", "server": {"url": "ftp://x", "model": "m"}},
            "is not the address of a server",
        ),
        ({"stage": "rating", "weights": "."}, "--set stages.rating.prompt=FILE"),
        ({"stage": "rating", "weights": ".", "prompt": "/no/prompt"}, "--set 'stages.rating.words="),
        (
            {"stage": "rating", "weights": ".", "prompt": "/no/prompt", "words": {"a": 1, "b": 0}},
            "/no/prompt cannot be read",
        ),
        ({"stage": "pyiqa", "metric": "musik"}, "did you mean musiq"),
        (
            {"stage": "caption", "weights": ".", "server": {"url": "http://x", "model": "m"}},
            "has weights and a server",
        ),
    ],
)
def test_what_a_stage_lacks_is_named_before_the_run(stage, message, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"stages": ["header", "decode", stage]}))
    with pytest.raises(UserError, match=message):
        CurationPlan.of(load(str(path)))


def test_a_prompt_of_another_text_is_another_stage(models, tmp_path):
    def fingerprint(**params):
        cls = stage_class("rating")
        stage = cls(cls.Params(weights=str(models / "clip"), words={"a": 1, "b": 0}, **params))
        assert stage.missing() is None
        return stage.fingerprint()

    file = tmp_path / "prompt.txt"
    file.write_text("one")
    first = fingerprint(prompt=str(file))
    assert fingerprint(prompt=str(file)) == first
    file.write_text("two")
    assert fingerprint(prompt=str(file)) != first


def test_stages_say_which_licences_restrict_use():
    found = {p.name: p.licence for name in NAMES for p in stage_class(name).packages}
    assert found["pyiqa"] == "PolyForm-Noncommercial-1.0.0"
    assert found["ultralytics"] == "AGPL-3.0"


def test_models_of_a_stage_have_views_and_stages_over_columns_have_none():
    for name in NAMES:
        cls = stage_class(name)
        if issubclass(cls, BatchStage):
            stage = cls(cls.Params())
            assert bool(stage.views) == (name not in ("laion_aesthetic", "clip_score", "translate", "safety"))


@pytest.mark.parametrize("stage", ["caption", "translate"])
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://bob:secret@host/v1", "the address of host contains a password"),
        ("http://[", "not a valid URL"),
    ],
)
def test_an_address_that_cannot_be_stored_is_refused_and_not_skipped(tmp_path, stage, url, message):
    entry = {"stage": stage, "if_missing": "skip", "server": {"url": url, "model": "m"}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"stages": ["header", "decode", entry]}))
    with pytest.raises(UserError, match=message) as error:
        CurationPlan.of(load(str(tmp_path / "p.yaml")))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stage": "artimuse"}, "the rating has 101 words, and the server returns 20 log-probabilities: use"),
        ({"stage": "artimuse", "top_logprobs": 100}, "returns 100 log-probabilities"),
        ({"stage": "rating", "words": {"a": 1, "b": 0}, "begin": "It is"}, "beginning of the answer"),
    ],
)
def test_a_rating_that_no_server_can_give_is_refused_and_not_skipped(tmp_path, params, message):
    (tmp_path / "q.txt").write_text("How good?")
    entry = {
        **params, "prompt": str(tmp_path / "q.txt"), "if_missing": "skip",
        "server": {"url": "http://127.0.0.1:9/v1", "model": "m"},
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"stages": ["header", "decode", entry]}))
    with pytest.raises(UserError, match=message):
        CurationPlan.of(load(str(tmp_path / "p.yaml")))


def test_an_empty_name_of_weights_is_not_the_current_folder(tmp_path):
    (tmp_path / "p.yaml").write_text("stages: [header, decode, {stage: embedding, weights: ''}]")
    with pytest.raises(UserError, match="stage 'embedding' cannot run"):
        CurationPlan.of(load(str(tmp_path / "p.yaml")))


def test_gca_patches_rejects_what_its_models_find(uhr, models, tmp_path):
    """The preset with a watermark classifier and LAION's head: values are those of the scorers on the pixels
    of each patch, and a patch is rejected by exactly the rules that they break.
    """
    from uhr.models.scores.classifier import ImageClassifier
    from uhr.models.scores.clip import ClipModel
    from uhr.models.scores.heads import Head

    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).resize((512, 384), Image.BICUBIC)
    whole = np.clip(np.asarray(coarse) + rng.normal(0, 25, (384, 512, 1)), 0, 255).astype(np.uint8)
    whole[:, 256:, 0] //= 3
    Image.fromarray(whole).save(tmp_path / "images" / "a.png")
    pipeline = tmp_path / "patches.yaml"
    patches = {
        "size": 128, "count": 8,
        "stages": [
            "header", "flatness", "exposure", "sharpness", "entropy",
            {"stage": "safety", "name": "watermark",
             "watermark": {"weights": str(models / "classifier"), "labels": ["nsfw"]}},
            {"stage": "embedding", "weights": str(models / "clip")},
            {"stage": "laion_aesthetic", "weights": str(models / "laion.pth")},
        ],
    }  # fmt: skip

    def rows(out: str, **rules: str) -> list[dict]:
        own = {**load("gca-patches").stages[-1].rules, **rules}
        tree = {"preset": "gca-patches", "stages": {"patches": {**patches, "rules": own}}}
        outer = {"size": "least(width, height) >= 128", "native": None}
        pipeline.write_text(yaml.safe_dump({**tree, "rules": outer}))
        words = (
            "--source",
            tmp_path / "images",
            "--out",
            tmp_path / out,
            "--engine",
            "local",
            "--workers",
            0,
        )
        code, printed, errors = uhr("curate", "run", pipeline, *words)
        assert code == 0, errors
        assert "not evaluated" not in printed
        found = Manifest.open(tmp_path / out).table(where="parent_id IS NOT NULL").to_pylist()
        assert len(found) == 8
        return found

    clip, head = ClipModel.load(models / "clip"), Head.load("laion-aesthetic", models / "laion.pth")
    classifier = ImageClassifier.load(models / "classifier", ["nsfw"], "watermark_prob")
    wanted = {}
    for row in rows("measured", watermark="watermark_prob < 2", aesthetic="laion_aesthetic > -1e9"):
        assert row["status"] == "kept", row["reason"]
        x, y, width, height = row["box"]
        patch = whole[y : y + height, x : x + width]
        mark = classifier.score([classifier.view.of(patch)])["watermark_prob"][0]
        aesthetic = head.score(clip.score([clip.view.of(patch)])["clip_embedding"])[0]
        assert row["watermark_prob"] == pytest.approx(mark, abs=1e-5)
        assert row["laion_aesthetic"] == pytest.approx(aesthetic, abs=1e-3)
        wanted[row["sample_id"]] = row["watermark_prob"], row["laion_aesthetic"]
    marks, scores = (sorted(values) for values in zip(*wanted.values(), strict=True))
    assert len(set(marks)) == len(set(scores)) == 8
    # a quarter is watermarked, and of the rest some have a low score
    most, least = (marks[5] + marks[6]) / 2, (scores[3] + scores[4]) / 2
    found = rows("chosen", watermark=f"watermark_prob < {most}", aesthetic=f"laion_aesthetic >= {least}")
    for row in found:
        mark, score = wanted[row["sample_id"]]
        reason = "watermark" if mark >= most else "aesthetic" if score < least else None
        assert row["reason"] == reason
    assert {row["reason"] for row in found} == {None, "watermark", "aesthetic"}
