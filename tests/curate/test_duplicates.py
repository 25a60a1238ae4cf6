"""Duplicates by embedding, and images that another manifest has already."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.curate.measures.hamming import leaders
from uhr.curate.stage import Workspace
from uhr.curate.stages.sets.overlap import OverlapStage
from uhr.curate.stages.sets.semantic_duplicates import SemanticDuplicatesStage
from uhr.manifests.manifest import Manifest

SMALL = '''
"""An embedding without a model: the image at 8 x 8 px."""

import cv2
import pyarrow as pa

from uhr.curate.stage import FrameStage
from uhr.manifests.schema import Column


class Small(FrameStage):
    name = "small"

    class Params(FrameStage.Params):
        model: str | None = None

    def weights(self):
        return {} if self.params.model is None else {"clip": self.params.model}

    adds = (Column("clip_embedding", pa.list_(pa.field("element", pa.float32())), "8 x 8 px"),)

    def annotate(self, frame):
        small = cv2.resize(frame.gray, (8, 8), interpolation=cv2.INTER_AREA).astype("float32")
        return {"clip_embedding": (small - small.mean()).ravel().tolist()}
'''


def scene(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)).resize(
        (240, 180)
    )


@pytest.fixture
def folders(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A set of images, and a folder of new ones: one the same, one resized, one cropped, one brighter."""
    (tmp_path / "small_stage.py").write_text(SMALL)
    monkeypatch.syspath_prepend(str(tmp_path))
    held, new = tmp_path / "held", tmp_path / "new"
    held.mkdir()
    new.mkdir()
    for seed in range(4):
        scene(seed).save(held / f"{seed}.png")
    (new / "same.png").write_bytes((held / "0.png").read_bytes())
    scene(1).resize((120, 90)).save(new / "resized.jpg", quality=70)
    scene(2).crop((12, 9, 228, 171)).save(new / "cropped.png")
    scene(9).save(new / "other.png")
    return held, new


def curate(uhr, source, out, stages: list, rules: dict | None = None, code: int = 0) -> str:
    sets = ("--set", f"stages={json.dumps(stages)}", "--set", f"rules={json.dumps(rules or {})}")
    arguments = (
        "--source",
        source,
        "--out",
        out,
        "--engine",
        "local",
        "--workers",
        0,
        *sets,
        "--set",
        "preview=0",
    )
    found, _, errors = uhr("curate", "run", "quickstart", *arguments)
    assert found == code, errors
    return errors


MEASURES = ["header", "decode", "phash", "small_stage:Small"]


def test_no_image_of_another_manifest_gets_into_the_set(uhr, folders, tmp_path):
    held, new = folders
    curate(uhr, held, tmp_path / "eval", MEASURES, {"some": "uri <> '3.png'"})
    scene(3).save(new / "of a rejected one.png", compress_level=1)
    overlap = {"stage": "overlap", "against": str(tmp_path / "eval"), "radius": 6, "similarity": 0.5}
    overlap["by"] = ["content_hash", "phash", "clip_embedding"]
    curate(uhr, new, tmp_path / "out", [*MEASURES, overlap], {"held_out": "overlap IS NULL"})
    eval_ids = {row["uri"]: row["sample_id"] for row in Manifest.open(tmp_path / "eval").table().to_pylist()}
    manifest = Manifest.open(tmp_path / "out")
    rows = {row["uri"]: row for row in manifest.table().to_pylist()}
    assert {name: (row["overlap"], row["overlap_by"]) for name, row in rows.items()} == {
        "same.png": (eval_ids["0.png"], "content_hash"),
        "resized.jpg": (eval_ids["1.png"], "phash"),
        "cropped.png": (eval_ids["2.png"], "clip_embedding"),
        "other.png": (None, None),
        "of a rejected one.png": (None, None),
    }
    assert {name for name, row in rows.items() if row["reason"] == "held_out"} == {
        "same.png",
        "resized.jpg",
        "cropped.png",
    }
    assert manifest.info.files == {"overlap/against": Manifest.open(tmp_path / "eval").id}
    # a column that the other manifest lacks is named before anything runs
    curate(uhr, held, tmp_path / "plain", ["header", "decode"])
    overlap["against"] = str(tmp_path / "plain")
    errors = curate(uhr, new, tmp_path / "no", [*MEASURES, overlap], code=1)
    assert "has no column phash" in errors
    assert not (tmp_path / "no").exists()
    errors = curate(uhr, new, tmp_path / "no", [*MEASURES, {**overlap, "against": "nowhere"}], code=1)
    assert "no manifest at nowhere" in errors


def embedded(vectors: np.ndarray, weights: list | None = None) -> pa.Table:
    count = len(vectors)
    lists = pa.array([None if weights and weights[i] is None else v.tolist() for i, v in enumerate(vectors)])
    return pa.table(
        {
            "sample_id": [f"s{i}" for i in range(count)],
            "uri": [f"{(7 * i) % 31:02d}/{i}.jpg" for i in range(count)],
            "megapixels": [float((3 * i) % 5) for i in range(count)],
            "clip_embedding": lists.cast(pa.list_(pa.float32())),
        }
    )


def semantic(live: pa.Table, tmp_path, **params) -> dict[str, dict]:
    stage = SemanticDuplicatesStage(SemanticDuplicatesStage.Params(**params))
    with duckdb.connect() as connection:
        connection.register("live", live)
        found = stage.compute(connection.table("live"), Workspace(tmp_path, "semantic"))
    assert found.column_names == ["sample_id", *(column.name for column in stage.adds)]
    return {row.pop("sample_id"): row for row in found.to_pylist()}


@pytest.mark.parametrize("exact", [100_000, 1])
def test_the_best_by_the_declared_order_is_kept_in_any_order_of_rows(exact, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 12))[rng.integers(0, 6, 60)] + 0.1 * rng.normal(size=(60, 12))
    live = embedded(vectors, [None if i == 5 else 1 for i in range(60)])
    found = semantic(live, tmp_path, similarity=0.9, exact=exact)
    assert found == semantic(live.take(pa.array(range(60)[::-1])), tmp_path, similarity=0.9, exact=exact)
    rows = [row for row in live.to_pylist() if row["clip_embedding"] is not None]
    rows.sort(key=lambda row: (-row["megapixels"], row["uri"]))
    matrix = np.array([row["clip_embedding"] for row in rows])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    lead = leaders(len(rows), np.argwhere(np.triu(matrix @ matrix.T >= 0.9, 1)))
    agree = []
    for row, leader in zip(rows, lead.tolist(), strict=True):
        best = rows[leader]["sample_id"]
        wanted = None if best == row["sample_id"] else best
        agree.append(found[row["sample_id"]]["semantic_dup_of"] == wanted)
    assert np.mean(agree) >= (1 if exact > len(rows) else 0.9), "an index may miss a few pairs"
    assert "s5" not in found, "an image without an embedding is not compared"


def test_an_index_is_announced_with_its_cost_and_its_measured_recall(tmp_path, capsys):
    vectors = np.random.default_rng(1).normal(size=(300, 8))
    semantic(embedded(vectors), tmp_path, similarity=0.9, exact=100)
    printed = capsys.readouterr().out
    assert "builds an index of 300 embeddings: about" in printed
    assert "% of the pairs of 1,000 rows; search: about" in printed


def test_embeddings_of_several_lengths_are_named(tmp_path):
    live = embedded(np.ones((3, 4)))
    lists = pa.array([[1.0, 2.0], [1.0], [3.0]], pa.list_(pa.float32()))
    with pytest.raises(UserError, match="several lengths"):
        semantic(live.set_column(3, "clip_embedding", lists), tmp_path)


def test_embeddings_of_another_model_are_refused_before_anything_runs(uhr, folders, tmp_path):
    held, new = folders
    stages = {}
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        small = {"stage": "small_stage:Small", "name": "embedding", "model": str(tmp_path / name)}
        stages[name] = ["header", "decode", small]
    curate(uhr, held, tmp_path / "eval", stages["one"])
    overlap = {"stage": "overlap", "against": str(tmp_path / "eval"), "by": ["clip_embedding"]}
    errors = curate(uhr, new, tmp_path / "out", [*stages["two"], overlap], code=1)
    assert errors.splitlines()[-1] == (
        f"uhr: stage 'overlap': {tmp_path / 'eval'} has embeddings of another model: make both by the same "
        "weights, or leave clip_embedding out of by"
    )
    assert not (tmp_path / "out").exists()
    curate(uhr, new, tmp_path / "out", [*stages["one"], overlap])
    assert "same.png" in {
        row["uri"] for row in Manifest.open(tmp_path / "out").table(where="overlap IS NOT NULL").to_pylist()
    }


def test_embeddings_of_another_length_are_refused(uhr, folders, tmp_path):
    held, _ = folders
    curate(uhr, held, tmp_path / "eval", MEASURES)
    stage = OverlapStage(OverlapStage.Params(against=str(tmp_path / "eval"), by=["clip_embedding"]))
    with duckdb.connect() as connection:
        connection.register("live", embedded(np.ones((3, 9))))
        with pytest.raises(UserError, match="embeddings of another model"):
            stage.compute(connection.table("live"), Workspace(tmp_path, "overlap"))
