"""Embeddings, what is computed from them, and image classifiers: the numbers of the libraries themselves."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models.scores.classifier import ImageClassifier
from uhr.models.scores.clip import ClipModel
from uhr.models.scores.clip_package import clip_importable
from uhr.models.scores.heads import Head
from uhr.models.scores.images import View

from . import checkpoints


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return checkpoints.open_clip(tmp_path_factory.mktemp("clip") / "tiny clip")


@pytest.fixture(scope="session")
def clip(folder):
    return ClipModel.load(folder)


@pytest.fixture(scope="session")
def library(folder):
    """open_clip's own model, transform and tokenizer."""
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def normalised(values):
    return torch.nn.functional.normalize(values.float(), dim=-1)


def test_an_embedding_is_open_clips_own(images, clip, library):
    model, transform, _ = library
    with torch.no_grad():
        expected = [normalised(model.encode_image(transform(Image.fromarray(i))[None]))[0] for i in images]
    found = clip.score(images)["clip_embedding"]
    assert found.dtype == np.float32
    assert np.abs(found - torch.stack(expected).numpy()).max() < 1e-6
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    assert np.abs(found[0] - found[1]).max() > 0.05


def test_the_view_is_the_size_that_the_model_crops_from(images, clip, folder, tmp_path):
    assert clip.view == View(shortest=32)
    whole = np.repeat(np.repeat(images[2], 4, 0), 4, 1)
    found, expected = (clip._transform(Image.fromarray(np.asarray(i))) for i in (clip.view.of(whole), whole))
    assert (found - expected).abs().max() * 255 * 0.26 <= 1.1  # levels; the standard deviation is 0.26
    squash = checkpoints.open_clip(tmp_path / "squash", resize_mode="squash", interpolation="bilinear")
    assert ClipModel.load(squash).view == View(shortest=64, filter="bilinear")
    longest = checkpoints.open_clip(tmp_path / "longest", resize_mode="longest")
    assert ClipModel.load(longest).view == View(longest=32)


def test_half_precision_is_within_a_percent(images, clip, folder):
    half = ClipModel.load(folder, dtype="bfloat16").score(images)["clip_embedding"]
    full = clip.score(images)["clip_embedding"]
    assert half.dtype == np.float32
    assert (half * full).sum(axis=1).min() > 0.99
    assert np.abs(half - full).max() > 0


def test_the_clip_score_is_a_hundred_cosines(images, clip, library):
    model, _, tokenizer = library
    captions = ["a red wall", None, "waves on water, " * 40, "", "squares"]
    embeddings = clip.score(images)["clip_embedding"]
    found = clip.fit(embeddings, captions)
    assert np.isnan(found[[1, 3]]).all()
    for row in (0, 2, 4):
        with torch.no_grad():
            text = normalised(model.encode_text(tokenizer([captions[row]])))[0].numpy()
        assert found[row] == pytest.approx(max(0, 100 * float(embeddings[row] @ text)), abs=1e-3)
    assert np.isnan(clip.fit(embeddings, [None] * 5)).all()
    assert (
        clip.fit(-np.sign(found[0]) * embeddings[:1] if found[0] > 0 else embeddings[:1], captions[:1]) == 0
    )


def test_a_file_of_weights_needs_the_name_of_its_architecture(folder, tmp_path):
    file = shutil.copy(folder / "open_clip_model.safetensors", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="name its architecture"):
        ClipModel.load(file)
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipModel.load(file, architecture="ViT-B-32")


def test_a_folder_that_is_incomplete_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"lacks open_clip_config\.json"):
        ClipModel.load(tmp_path)
    without = shutil.copytree(folder, tmp_path / "without")
    (without / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipModel.load(without)
    wider = shutil.copytree(folder, tmp_path / "wider")
    tree = json.loads((wider / "open_clip_config.json").read_text())
    tree["model_cfg"]["embed_dim"] = 50
    (wider / "open_clip_config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="cannot be loaded"):
        ClipModel.load(wider)


def test_the_aesthetic_head_is_laions_network(clip, images, tmp_path):
    with clip_importable():
        from pyiqa.archs.laion_aes_arch import MLP

    torch.manual_seed(0)
    network = MLP(48).eval()
    checkpoints.enlarge(network, 3.0)
    torch.save(network.state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    head = Head.load("laion-aesthetic", tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    embeddings = clip.score(images)["clip_embedding"]
    with torch.no_grad():
        expected = network(torch.as_tensor(embeddings))[:, 0].numpy()
    found = head.score(embeddings)
    assert np.abs(found - expected).max() < 1e-6
    assert np.ptp(found) > 1e-3


class _NsfwL14(torch.nn.Module):
    """The published layers, with names as in its file."""

    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.Module()
        self.norm.register_buffer("mean", torch.randn(width) / 10)
        self.norm.register_buffer("variance", torch.rand(width) + 0.1)
        for number, (first, second) in enumerate(((width, 64), (64, 512), (512, 256), (256, 1)), 1):
            setattr(self, f"linear_{number}", torch.nn.Linear(first, second))

    def forward(self, x):
        x = (x - self.norm.mean) / self.norm.variance.sqrt()
        for number in (1, 2, 3):
            x = torch.relu(getattr(self, f"linear_{number}")(x))
        return torch.sigmoid(self.linear_4(x))


def _nsfw_h14(width):
    from torch.nn import Dropout, Linear, ReLU, Sequential

    layers, last = [], width
    for size in (1024, 2048, 1024, 256, 128):
        layers += [Linear(last, size), ReLU(), Dropout(0.2)]
        last = size
    network = torch.nn.Module()
    network.layers = Sequential(*layers, Linear(128, 16), Linear(16, 1))
    network.forward = network.layers.forward
    return network


@pytest.mark.parametrize(("kind", "make"), [("clip-nsfw-l14", _NsfwL14), ("clip-nsfw-h14", _nsfw_h14)])
def test_the_nsfw_heads_are_the_published_networks(kind, make, clip, images, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    network = make(48).eval()
    checkpoints.enlarge(network, 1.6)
    embeddings = clip.score(images)["clip_embedding"]
    with torch.no_grad():  # values around 0.5, where nothing is clipped
        last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
        if kind == "clip-nsfw-h14":
            last.bias += 0.5 - network(torch.as_tensor(embeddings)).mean()
    save_file(network.state_dict(), tmp_path / "nsfw.safetensors")
    head = Head.load(kind, tmp_path / "nsfw.safetensors")
    with torch.no_grad():
        expected = network(torch.as_tensor(embeddings))[:, 0].clamp(0, 1).numpy()
    found = head.score(embeddings)
    assert np.abs(found - expected).max() < 1e-5
    assert np.ptp(found) > 1e-3
    assert ((found >= 0) & (found <= 1)).all()


def test_a_head_of_another_model_is_refused(tmp_path):
    linear = {"a.weight": torch.ones(1, 4), "a.bias": torch.zeros(1)}
    torch.save(linear, tmp_path / "head.pt")
    head = Head.load("probability", tmp_path / "head.pt")
    assert head.score(np.zeros((2, 4))).tolist() == [0.5, 0.5]
    with pytest.raises(UserError, match="takes embeddings of 4 numbers, and these have 5"):
        head.score(np.zeros((2, 5)))
    for wrong in (
        {"a.weight": torch.ones(2, 4), "a.bias": torch.zeros(2)},
        {**linear, "b.weight": torch.ones(1, 3), "b.bias": torch.zeros(1)},
        {**linear, "extra": torch.ones(3)},
        {"a.weight": torch.ones(1, 4)},
        {"a.weight": torch.ones(1, 4, 3, 3), "a.bias": torch.zeros(1)},
    ):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match="no chain of linear layers"):
            Head.load("probability", tmp_path / "wrong.pt")
    with pytest.raises(UserError, match="are a folder"):
        Head.load("probability", tmp_path)


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    widths = [4, 3, 5, 2, 6, 3, 4, 2, 5, 3, 2, 1]
    tensors = {}
    for number, (first, second) in enumerate(itertools.pairwise(widths)):
        tensors |= {
            f"layers.{number}.weight": torch.ones(second, first),
            f"layers.{number}.bias": torch.ones(second),
        }
    torch.save(dict(sorted(tensors.items())), tmp_path / "deep.pt")
    assert Head.load("laion-aesthetic", tmp_path / "deep.pt").width == 4


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory):
    return checkpoints.image_classifier(tmp_path_factory.mktemp("vit") / "classifier")


def test_a_classifiers_probability_is_that_of_transformers(images, classifier_folder):
    from transformers import ViTForImageClassification, ViTImageProcessor

    ours = ImageClassifier.load(classifier_folder, ["NSFW", "drawing"], "nsfw_prob")
    model = ViTForImageClassification.from_pretrained(classifier_folder).eval()
    processor = ViTImageProcessor.from_pretrained(classifier_folder)
    with torch.no_grad():
        inputs = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        expected = model(**inputs).logits.softmax(dim=-1)[:, 1:].sum(dim=-1).numpy()
    found = ours.score(images)["nsfw_prob"]
    assert np.abs(found - expected).max() < 1e-6
    assert np.ptp(found) > 0.01
    assert ours.view == View(shortest=64)


def test_an_unknown_label_is_one_line_with_those_that_exist(classifier_folder):
    with pytest.raises(UserError, match="unknown label of the classifier 'porn'"):
        ImageClassifier.load(classifier_folder, ["porn"], "nsfw_prob")


def test_a_classifier_without_a_weight_is_refused(classifier_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    lacking = shutil.copytree(classifier_folder, tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks classifier\.weight"):
        ImageClassifier.load(lacking, ["nsfw"], "nsfw_prob")


def test_a_slice_by_a_text_or_an_image_is_that_of_its_embedding(images, folder, clip, tmp_path):
    """`uhr manifest slice --similar QUERY=K --clip WEIGHTS`."""
    import pyarrow as pa

    from uhr.cli import main
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.schema import BASE, sample_id, schema_of
    from uhr.manifests.writer import Provenance, write_manifest

    vectors = clip.embed(images).cpu().numpy()
    column = pa.field("clip_embedding", pa.list_(pa.float32(), vectors.shape[1]))
    schema = schema_of(BASE).append(column)
    rows = [
        {"uri": f"{n}.png", "sample_id": sample_id(f"{n}.png"), "status": "kept", "clip_embedding": vector}
        for n, vector in enumerate(vectors.tolist())
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=schema)
    set_ = write_manifest(tmp_path / "set", schema, [batch], Provenance(tmp_path, {"kind": "curate"}))
    Image.fromarray(images[2]).save(tmp_path / "query.png")
    text = clip.embed_texts(["a lake = water"]).cpu().numpy()[0]
    for query, expected in (("a lake = water", text), (str(tmp_path / "query.png"), vectors[2])):
        out = tmp_path / f"slice{query == 'a lake = water'}"
        command = ["manifest", "slice", str(set_.path), "--similar", f"{query}=2", "--clip", str(folder)]
        assert main([*command, "--out", str(out)]) == 0
        best = np.sort(np.argsort(-(vectors @ expected))[:2])
        assert Manifest.open(out).table(["uri"])["uri"].to_pylist() == [f"{n}.png" for n in best]
