"""Ratings by a vision-language model, local and behind a server, and the conversion of ArtiMuse."""

import base64
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from uhr.base.errors import UserError
from uhr.models.llm.chat import ChatServer, NoAnswer, ServerError
from uhr.models.scores import artimuse
from uhr.models.scores.images import View
from uhr.models.scores.rating import LocalJudge, Rating, ServerJudge
from uhr.models.scores.vlm import VisionLanguageModel

from . import checkpoints

RATING = Rating("How beautiful is this image?", artimuse.WORDS, system="You are a judge.")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    return checkpoints.artimuse(tmp_path_factory.mktemp("artimuse") / "ArtiMuse")


@pytest.fixture(scope="session")
def converted(published, tmp_path_factory):
    return artimuse.convert(published, tmp_path_factory.mktemp("converted") / "artimuse")


@pytest.fixture(scope="session")
def model(converted):
    return VisionLanguageModel.load(converted, dtype="float32", options=artimuse.OPTIONS)


@pytest.fixture(scope="session")
def judge(model):
    return LocalJudge(model, RATING, "artimuse", View(longest=896))


def test_the_letters_of_a_score():
    assert len(artimuse.WORDS) == 101
    assert list(artimuse.WORDS.values()) == list(map(float, range(101)))
    words = artimuse.WORDS
    assert [words[w] for w in ("aa", "az", "ca", "cy", "da", "dy", "ea", "ey")] == [
        0,
        25,
        26,
        50,
        51,
        75,
        76,
        100,
    ]


def by_hand(published, image, text):
    """Logits of InternVLChatModel's arithmetic on the published tensors: InternViT, pixel shuffle v2 and the
    projection by hand, the language model by Qwen2ForCausalLM itself."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    t = load_file(published / "a.safetensors")
    tree = json.loads((published / "config.json").read_text())
    f = torch.nn.functional
    squeezed = Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC)
    pixels = torch.as_tensor(np.array(squeezed)).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    v = "vision_model.embeddings."
    x = f.conv2d(pixels, t[f"{v}patch_embedding.weight"], t[f"{v}patch_embedding.bias"], stride=7)
    x = torch.cat([t[f"{v}class_embedding"], x.flatten(2).transpose(1, 2)], 1) + t[f"{v}position_embedding"]
    for number in range(2):
        p = f"vision_model.encoder.layers.{number}."

        def linear(value, name, p=p):
            return f.linear(value, t[f"{p}{name}.weight"], t[f"{p}{name}.bias"])

        def norm(value, name, p=p):
            return f.layer_norm(value, (24,), t[f"{p}{name}.weight"], t[f"{p}{name}.bias"], 1e-6)

        q, k, w = linear(norm(x, "norm1"), "attn.qkv").reshape(1, 17, 3, 2, 12).permute(2, 0, 3, 1, 4)
        attended = f.scaled_dot_product_attention(q, k, w).transpose(1, 2).reshape(1, 17, 24)
        x = x + linear(attended, "attn.proj") * t[f"{p}ls1"]
        x = x + linear(f.gelu(linear(norm(x, "norm2"), "mlp.fc1")), "mlp.fc2") * t[f"{p}ls2"]
    x = x[:, 1:].reshape(1, 4, 4, 24)
    x = x.view(1, 4, 2, 48).permute(0, 2, 1, 3).contiguous().view(1, 2, 2, 96).permute(0, 2, 1, 3)
    x = f.layer_norm(x.reshape(1, 4, 96), (96,), t["mlp1.0.weight"], t["mlp1.0.bias"], 1e-5)
    x = f.linear(x, t["mlp1.1.weight"], t["mlp1.1.bias"])
    x = f.linear(f.gelu(x), t["mlp1.3.weight"], t["mlp1.3.bias"])
    language = Qwen2ForCausalLM(Qwen2Config(**tree["llm_config"])).eval()
    prefix = "language_model."
    language.load_state_dict(
        {k.removeprefix(prefix): v for k, v in load_file(published / "b.safetensors").items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(published)
    ids = tokenizer(text.replace("<image>", f"<img>{'<IMG_CONTEXT>' * 4}</img>"), return_tensors="pt")[
        "input_ids"
    ]
    embedded = language.get_input_embeddings()(ids).clone()
    embedded[ids == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")] = x[0]
    words = [tokenizer.convert_tokens_to_ids(word) for word in artimuse.WORDS]
    with torch.no_grad():
        return language(inputs_embeds=embedded).logits[0, -1, words]


def test_a_converted_artimuse_scores_as_the_original_arithmetic(published, judge, images):
    text = (
        "<|im_start|>system\nYou are a judge.<|im_end|>\n<|im_start|>user\n<image>\n"
        "How beautiful is this image?<|im_end|>\n<|im_start|>assistant\n"
    )
    found = judge.score(images)["artimuse"]
    for image, score in zip(images, found, strict=True):
        logits = by_hand(published, image, text)
        expected = float(logits.double().softmax(-1) @ torch.arange(101).double())
        assert score == pytest.approx(expected, abs=0.1)
    assert np.ptp(found) > 1
    assert ((found >= 0) & (found <= 100)).all()


def test_a_batch_is_scored_as_one_by_one(judge, images):
    alone = np.concatenate([judge.score([image])["artimuse"] for image in images])
    assert np.abs(judge.score(images)["artimuse"] - alone).max() < 1e-3


def test_the_score_is_the_expected_value_over_the_words_alone(model, judge, images):
    inputs = model.inputs(images[:2], RATING.prompt, RATING.system, "")
    with torch.no_grad():
        logits = model.model(**inputs).logits[:, -1]
    ids = [model.processor.tokenizer.convert_tokens_to_ids(word) for word in artimuse.WORDS]
    expected = logits[:, ids].double().softmax(-1) @ torch.arange(101).double()
    assert np.abs(judge.score(images[:2])["artimuse"] - expected.numpy()).max() < 1e-4


def test_a_rating_needs_words_that_are_one_token_each(model):
    assert Rating("p", {"a": 1, "b": 5}).expected([[0, 0], [100, 0]]).tolist() == [3, 1]
    assert Rating("p", {"a": 1, "b": 5}).range == "[1, 5]"
    assert len({r.hash for r in (RATING, Rating("p", artimuse.WORDS), Rating("p", {"a": 1, "b": 2}))}) == 3
    with pytest.raises(UserError, match="two or more"):
        Rating("p", {"a": 1})
    with pytest.raises(UserError, match="the rating 'excellent' is 6 tokens"):
        LocalJudge(model, Rating("p", {"excellent": 5, "b": 1}), "c", View())


def test_another_checkpoint_is_not_converted(published, tmp_path):
    import shutil

    with pytest.raises(UserError, match="exists already"):
        artimuse.convert(published, published)
    for change, message in (
        ({"llm_config": {"architectures": ["InternLM2ForCausalLM"]}}, "is InternLM2ForCausalLM"),
        ({"ps_version": "v1"}, "ps_version"),
    ):
        other = shutil.copytree(published, tmp_path / message[:4])
        tree = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**tree, **change}))
        with pytest.raises(UserError, match=message):
            artimuse.convert(other, tmp_path / "out")
    with pytest.raises(UserError, match="belongs to no InternVLChatModel"):
        artimuse.new_names("transformer.blocks.0.weight")


@pytest.fixture
def tiny_server(chat, model):
    """The test's own chat server with the tiny model behind it; it returns the 200 likeliest tokens."""

    def reply(body, number):
        messages = {message["role"]: message["content"] for message in body["messages"]}
        image, text = messages["user"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        logits = model.next_logits([pixels], text["text"], messages.get("system"))[0]
        values, ids = logits.log_softmax(-1).topk(min(body["top_logprobs"], chat.most, logits.numel()))
        top = [
            {"token": model.processor.tokenizer.decode([token]), "logprob": value}
            for token, value in zip(ids.tolist(), values.tolist(), strict=True)
        ]
        content = [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]
        choice = {
            "message": {"content": top[0]["token"]},
            "finish_reason": "length",
            "logprobs": {"content": content},
        }
        return {"choices": [{"index": 0, **choice}]}

    chat.most = 10_000
    chat.reply = reply
    return chat


def test_a_server_gives_the_local_score(tiny_server, judge, images):
    remote = ServerJudge(ChatServer(tiny_server.url), RATING, "artimuse", View(), top=10_000)
    found = remote.score(images)["artimuse"]
    assert found == pytest.approx(judge.score(images)["artimuse"].tolist(), abs=1e-3)
    assert all(body["max_tokens"] == 1 and body["logprobs"] is True for body in tiny_server.requests)


def test_a_server_that_does_not_return_all_words_gives_no_score(tiny_server, images):
    tiny_server.most = 20
    few = Rating("How is it?", dict(list(artimuse.WORDS.items())[:20]))
    (found, *_) = ServerJudge(ChatServer(tiny_server.url), few, "r", View()).score(images[:1])["r"]
    assert isinstance(found, NoAnswer)
    assert "of the rating's 20 words, not of" in str(found)
    with pytest.raises(UserError, match="the rating has 101 words, and the server returns 20"):
        ServerJudge(ChatServer(tiny_server.url), RATING, "r", View())
    tiny_server.reply = lambda body, n: "good"
    (found, *_) = ServerJudge(ChatServer(tiny_server.url), few, "r", View()).score(images[:1])["r"]
    assert "returns no log-probabilities" in str(found)


def test_one_image_that_the_server_refuses_costs_one_score(tiny_server, images):
    reply = tiny_server.reply
    tiny_server.reply = lambda body, n: 400 if n == 2 else reply(body, n)
    remote = ServerJudge(ChatServer(tiny_server.url), RATING, "r", View(), top=10_000, concurrency=1)
    found = remote.score(images[:3])["r"]
    assert [isinstance(value, NoAnswer) for value in found] == [False, True, False]
    tiny_server.reply = lambda body, n: 401
    with pytest.raises(ServerError, match="answers 401"):
        remote.score(images[:2])
    assert all(math.isfinite(value) for value in found if isinstance(value, float))
