"""Metrics by models are the scorers of curation, on the whole image and on native crops."""

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.metrics.base import Sample
from uhr.models.metrics.registry import metric
from uhr.models.metrics.resizing import crops
from uhr.models.scores.images import View

from ..scores import checkpoints
from . import tiny


@pytest.fixture(scope="module")
def waves() -> np.ndarray:
    y, x = np.mgrid[0:300, 0:400]
    rng = np.random.default_rng(0)
    planes = [127 + 100 * np.sin(x / 9 + c) * np.cos(y / 7) + rng.normal(0, x / 30) for c in range(3)]
    return np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)


def test_pyiqa_scores_the_reduced_image_and_the_native_crops(waves):
    import pyiqa

    theirs = pyiqa.create_metric("piqe", device="cpu")

    def piqe(image) -> float:
        return theirs(torch.as_tensor(image).permute(2, 0, 1)[None].float() / 255).item()

    made = metric("pyiqa", metric="piqe", short=150, crops=3, side=128)
    assert made.name == "piqe/bicubic-short-150/native-3x128"
    assert [column.name for column in made.columns] == ["piqe_bicubic_short_150", "piqe_native_3x128"]
    assert {column.better for column in made.columns} == {"lower"}
    (found,) = made.score([Sample(waves, index=4)])
    cut = crops(waves, 4, 3, 128, "piqe")
    assert found["piqe_native_3x128"] == pytest.approx(np.mean([piqe(each) for each in cut]))
    assert found["piqe_bicubic_short_150"] == pytest.approx(piqe(View(shortest=150).of(waves)))
    native = metric("pyiqa", metric="piqe", short=None, crops=0)
    assert native.score([Sample(waves)]) == [{"piqe_native": pytest.approx(piqe(waves))}]
    with pytest.raises(UserError, match=r"image 0 has 400x300 px, and piqe.* takes crops of 512 px"):
        metric("pyiqa", metric="piqe").score([Sample(waves)])


def test_a_value_that_is_no_number_names_its_image(waves):
    made = metric("pyiqa", metric="piqe", short=None, crops=0)
    made._scorer.score = lambda images: {"piqe": np.array([np.nan])}
    with pytest.raises(UserError, match="piqe/native of image 9 is not a number"):
        made.score([Sample(waves, index=9)])


def test_laions_head_reads_the_embedding_of_its_clip_model(waves, tmp_path):
    clip = tiny.transformers_clip(tmp_path / "clip")
    rng = np.random.default_rng(0)
    widths = (24, 16, 8, 1)
    layers = [rng.normal(size=shape) for shape in zip(widths[1:], widths, strict=False)]
    head = {f"layers.{2 * n}.weight": torch.from_numpy(layer).float() for n, layer in enumerate(layers)}
    head |= {f"layers.{2 * n}.bias": torch.zeros(len(layer)) for n, layer in enumerate(layers)}
    torch.save(head, tmp_path / "head.pth")
    from uhr.models.scores.preference.transformers_clip import TransformersClip

    embedding = TransformersClip.load(clip).embed([waves])[0].numpy()
    for layer in layers:
        embedding = layer @ embedding
    made = metric("laion-aesthetics", weights=str(tmp_path / "head.pth"), clip=str(clip))
    assert made.score([Sample(waves)]) == [{"laion_aesthetics": pytest.approx(embedding[0], rel=1e-4)}]
    with pytest.raises(UserError, match=r"needs weights: name sac\+logos"):
        metric("laion-aesthetics")


def test_artimuse_is_the_rating_of_curation(waves, tmp_path, monkeypatch):
    from uhr.models.scores.artimuse import OPTIONS, WORDS, converted
    from uhr.models.scores.rating import LocalJudge, Rating

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = checkpoints.artimuse(tmp_path / "artimuse")
    (tmp_path / "question.txt").write_text("Rate it.")
    view = View(longest=896)
    judge = LocalJudge.load(
        converted(weights), Rating("Rate it.", WORDS), "x", view, "cpu", "float32", OPTIONS
    )
    made = metric("artimuse", weights=str(weights), prompt=str(tmp_path / "question.txt"))
    (found,) = made.score([Sample(waves)])
    assert found == {"artimuse_longest_896": pytest.approx(judge.score([waves])["x"][0])}
    assert made.columns[0].range == "[0, 100]"
    with pytest.raises(UserError, match="ArtiMuse needs prompt: name a file with the question"):
        metric("artimuse", weights=str(weights))


def test_q_align_scores_both_tasks_of_the_whole_image(waves, tmp_path, said):
    from uhr.models.scores.q_align import QAlign

    weights = checkpoints.q_align(tmp_path / "one-align")
    with said() as lines:
        expected = QAlign.load(weights, tasks=("quality", "aesthetic"), native=True).score([waves])
    # that pyiqa's classes are older than transformers concerns no user
    assert lines == []
    (found,) = metric("q-align", weights=str(weights)).score([Sample(waves)])
    assert found == {
        "q_align_quality": expected["q_align"][0],
        "q_align_aesthetic": expected["q_align_aesthetic"][0],
    }
