"""CLIP score, PickScore, HPS v2.1 and ImageReward give the values of the programs that published them.

Where a program needs packages that are not part of the environment, its values on the same files are written
here: torchmetrics 1.9.0, hpsv2 1.2.0 and image-reward 1.5, with torch 2.15 on a CPU.
"""

import json

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.metrics.base import Sample, key
from uhr.models.metrics.registry import metric
from uhr.models.metrics.text_image import backbone

from ..scores import checkpoints
from . import tiny

PROMPTS = ("a lake", "a very long prompt " * 20)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny.transformers_clip(tmp_path_factory.mktemp("metrics") / "clip")


def scored(made, *pairs) -> list[float]:
    samples = [Sample(image, prompt=prompt) for image, prompt in pairs]
    return [value for row in made.score(samples) for value in row.values()]


def test_clip_scores_follow_their_convention(noise, squares, clip):
    pairs = list(zip((noise, squares), ("a lake", "a very long prompt " * 40), strict=True))
    found = {
        convention: scored(metric("clip-score", weights=str(clip), convention=convention), *pairs)
        for convention in ("cosine", "x100", "torchmetrics", "w2.5")
    }
    assert found["cosine"][0] < 0 < found["cosine"][1]
    assert found["x100"] == pytest.approx([max(100 * cosine, 0) for cosine in found["cosine"]])
    # by torchmetrics, which cuts off the end token of the long prompt
    assert found["torchmetrics"] == pytest.approx([0, 8.5011568069458], rel=1e-4)
    (prefixed,) = scored(
        metric("clip-score", weights=str(clip), convention="cosine"), (noise, "A photo depicts a lake")
    )
    assert found["w2.5"][0] == pytest.approx(2.5 * prefixed)


def test_clip_score_by_open_clip_is_that_of_curation(noise, tmp_path):
    from uhr.models.scores.clip import ClipModel

    folder = checkpoints.open_clip(tmp_path / "oc")
    model = ClipModel.load(folder)
    expected = model.fit(model.embed([noise]).numpy(), ["a lake"])
    made = metric("clip-score", weights=str(folder))
    assert scored(made, (noise, "a lake")) == pytest.approx(expected.tolist())
    assert made.name == "clip-score/vit-64-8/x100"
    with pytest.raises(UserError, match="'torchmetrics' is that of transformers"):
        metric("clip-score", weights=str(folder), convention="torchmetrics")


def test_the_name_of_a_metric_does_not_depend_on_where_its_weights_are(clip, tmp_path):
    """Their hash decides what can be compared; the name says which backbone it is."""
    import shutil

    shutil.copytree(clip, tmp_path / "elsewhere")
    other = tiny.transformers_clip(tmp_path / "other", seed=8)
    for name in ("clip-score", "pick-score"):
        here, there, changed = (metric(name, weights=str(w)) for w in (clip, tmp_path / "elsewhere", other))
        assert here.name == there.name == changed.name
        assert key(here) == key(there) != key(changed)
    for vision, expected in (
        ({"width": 768, "patch_size": 16}, "vit-b-16"),
        ({"width": 1024, "patch_size": 14}, "vit-l-14"),
        ({}, "vit-b-16"),
        ({"layers": [3, 4, 6, 3], "width": 64}, "resnet-64"),
        ({"timm_model_name": "vit_base_patch16_siglip_224"}, "vit_base_patch16_siglip_224"),
    ):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": vision}}))
        assert backbone(str(tmp_path)) == expected


def test_pick_score_is_the_code_of_its_model_card(noise, squares, clip):
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    made = metric("pick-score", weights=str(clip))
    for image, prompt in zip((noise, squares), PROMPTS, strict=True):
        options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        inputs = processor(images=Image.fromarray(image), text=prompt, **options)
        with torch.no_grad():
            expected = model(**inputs).logits_per_image.item()
        assert scored(made, (image, prompt)) == pytest.approx([expected], rel=1e-5)
        assert abs(expected) > 0.1


def test_hps_resizes_the_longer_side_and_pads(noise, tmp_path):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    from uhr.models.scores.preference.hps import HpsModel

    folder = checkpoints.open_clip(tmp_path / "hps")
    made, model = metric("hps-v2.1", weights=str(folder)), HpsModel.load(folder)
    for image in (noise[:, :40], noise[:33], noise[:32, :20]):
        planes = transforms.to_tensor(image)
        height, width = image.shape[:2]
        scale = 32 / max(height, width)
        size = [round(height * scale), round(width * scale)]
        planes = transforms.resize(planes, size, InterpolationMode.BICUBIC, antialias=True)
        down, right = 32 - size[0], 32 - size[1]
        planes = transforms.pad(planes, [right // 2, down // 2, right - right // 2, down - down // 2])
        planes = transforms.normalize(planes, model._mean, model._std)[None]
        with torch.no_grad():
            embedding = model._model.encode_image(planes, normalize=True)
        expected = 100 * (embedding @ model.embed_texts(["a lake"]).T).item()
        assert scored(made, (image, "a lake")) == pytest.approx([expected], rel=1e-4)
    assert made.name == "hps-v2.1/x100"


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory):
    return tiny.image_reward(tmp_path_factory.mktemp("ir"))


def test_image_reward_is_that_of_its_authors(noise, squares, image_reward, said):
    weights, tokenizer = image_reward
    with said() as lines:
        made = metric("image-reward", weights=str(weights), tokenizer=str(tokenizer))
    assert lines == []
    found = scored(made, *((image, prompt) for image in (noise, squares) for prompt in PROMPTS))
    # by the authors' classes on these files
    theirs = [0.12580831348896027, 0.15368618071079254, -0.3476940989494324, 0.00843639113008976]
    assert found == pytest.approx(theirs, abs=1e-5)
    assert len(made.identity()["weights"]["weights"]) == 64


def test_files_of_other_models_and_missing_prompts_are_one_line(noise, clip, image_reward, tmp_path):
    weights, tokenizer = image_reward
    state = torch.load(weights)
    for change, what in (
        ({"mlp.layers.7.bias": None}, r"lacks the tensor for layer7\.bias"),
        ({"other.weight": torch.zeros(1)}, r"has other\.weight, which ImageReward does not have"),
        (
            {"blip.visual_encoder.norm.bias": torch.zeros(3)},
            r"\.bias of shape \(3,\), not \(64,\)",
        ),
        ({"blip.visual_encoder.blocks.0.odd": torch.zeros(1)}, "BlipVisionModel has no place"),
        ({"blip.visual_encoder.pos_embed": None}, r"lacks blip\.visual_encoder\.pos_embed"),
    ):
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        torch.save(changed, tmp_path / "changed.pt")
        with pytest.raises(UserError, match=what):
            metric("image-reward", weights=str(tmp_path / "changed.pt"), tokenizer=str(tokenizer))
    with pytest.raises(UserError, match="is a 'None': name a checkpoint of transformers' CLIPModel"):
        metric("pick-score", weights=str(tokenizer))
    with pytest.raises(UserError, match="image 2 has no prompt, which clip-score/vit-32-8/x100 needs"):
        metric("clip-score", weights=str(clip)).score([Sample(noise, 1, "a"), Sample(noise, 2, " ")])
    with pytest.raises(UserError, match=r"weights are not named: name huggingface\.co/openai"):
        metric("clip-score")
