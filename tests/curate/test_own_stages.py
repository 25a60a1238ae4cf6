"""A stage of the user's own of each kind: the example of docs/extending-stages.md, on both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import patch_id, sample_id


@pytest.fixture
def package(documents, tmp_path, monkeypatch) -> Path:
    """The folder with the files of the documents, from which `mypkg.stages` is imported."""
    folder = tmp_path / "elsewhere"
    documents.write_files(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in __import__("sys").modules if name.split(".")[0] == "mypkg"]:
        monkeypatch.delitem(__import__("sys").modules, name)
    return folder


WEIGHT, BIAS = [0.01, -0.02, 0.01, 0.005, 0.0, 0.0], 0.25


def write_weights(file: Path) -> None:
    """Weights of the linear score, which all images of `source_of` pass."""
    from safetensors.torch import save_file

    tensors = {"weight": torch.tensor(WEIGHT, dtype=torch.float64)}
    save_file({**tensors, "bias": torch.tensor(BIAS, dtype=torch.float64)}, file)


def source_of(folder: Path) -> Path:
    """Five images of increasing colourfulness, one of which is flat at the right, and one that is damaged."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = np.clip(rng.normal(128, 40, (80, 120, 3)) + np.array([10 * number, 0, -10 * number]), 0, 255)
        if number == 3:
            pixels[:, 60:] = 128
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes((folder / "4.png").read_bytes()[:4000])
    return folder


def rows_of(manifest: Manifest) -> list[dict[str, Any]]:
    return manifest.table().to_pylist()


@pytest.mark.usefixtures("warm_curation_workers")
@pytest.mark.ray
def test_the_four_stages_of_the_docs_give_the_same_rows_on_both_engines(uhr, package, tmp_path, monkeypatch):
    source, ids = source_of(tmp_path / "source"), []
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "taste.safetensors")
    for engine in ("local", "ray"):
        out = tmp_path / engine
        arguments = ("--source", source, "--out", out, "--engine", engine, "--workers", 1)
        code, printed, errors = uhr("curate", "run", package / "own-stages.yaml", *arguments)
        assert code == 0, errors
        _check(rows_of(Manifest.open(out)), source)
        ids.append(Manifest.open(out).id)
        assert "26 files: 23 kept, 2 rejected, 1 failed" in printed
    assert ids[0] == ids[1]


def _check(rows: list[dict[str, Any]], source: Path) -> None:
    images = [row for row in rows if row["parent_id"] is None]
    patches = [row for row in rows if row["parent_id"] is not None]
    assert [row["uri"] for row in images] == [f"{number}.png" for number in range(6)]
    assert [row["status"] for row in images] == ["kept"] * 5 + ["failed"]
    by_colour = sorted(images[:5], key=lambda row: row["colourfulness"])
    assert [row["palette"] for row in by_colour] == ["pale", "pale", "medium", "medium", "vivid"]
    assert images[5]["palette"] is None
    for row in images[:5]:
        pixels = np.asarray(Image.open(source / row["uri"]), np.float64).reshape(-1, 3)
        facts = [*pixels.mean(0), *pixels.std(0, ddof=1)]
        assert row["taste"] == pytest.approx(np.dot(WEIGHT, facts) + BIAS, rel=1e-9)
    assert images[5]["taste"] is None
    assert [row["child_count"] for row in images] == [4] * 5 + [None]
    assert len(patches) == 20
    for number, row in enumerate(patches):
        parent = sample_id(f"{number // 4}.png")
        box = (number % 2 * 60, number % 4 // 2 * 40, 60, 40)
        assert (row["parent_id"], tuple(row["box"])) == (parent, box)
        assert row["sample_id"] == patch_id(parent, box)
        assert (row["width"], row["height"], row["quarter"]) == (60, 40, number % 4)
        flat = number // 4 == 3 and number % 2 == 1
        assert row["reason"] == ("busy" if flat else None), row
        assert row["palette"] is row["taste"] is None
    order = [row["uri"] for row in rows]
    assert order == sorted(order)
