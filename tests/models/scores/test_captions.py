"""Captions by a tiny model: what transformers itself generates, local and behind a server."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models.llm.chat import ChatServer, NoAnswer, ServerError
from uhr.models.scores import artimuse
from uhr.models.scores.captions import PROMPT, CaptionPrompt, LocalCaptioner, ServerCaptioner, TokenCounter
from uhr.models.scores.images import View
from uhr.models.scores.vlm import VisionLanguageModel

from . import checkpoints

SCHEMA = {"type": "object", "properties": {"subject": {"type": "string"}}, "required": ["subject"]}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    converted = artimuse.convert(checkpoints.artimuse(folder / "published"), folder / "converted")
    return VisionLanguageModel.load(converted, dtype="float32", options=artimuse.OPTIONS)


def generated(model, image, prompt, tokens):
    """Ids that transformers generates for one image."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = model.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = model.processor(
        images=[Image.fromarray(image)], text=[text], return_tensors="pt", **artimuse.OPTIONS
    )
    with torch.no_grad():
        found = model.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return found[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture
def ending(model, images):
    """The model ends an answer with what it generates as the 6th token for the first image."""
    before = model.model.generation_config.eos_token_id
    model.model.generation_config.eos_token_id = generated(model, images[0], "What is it?", 6)[-1]
    yield model
    model.model.generation_config.eos_token_id = before


def test_a_caption_is_what_transformers_generates_alone(ending, images):
    captioner = LocalCaptioner(ending, CaptionPrompt("What is it?", tokens=12), View(longest=512))
    found = captioner.captions(images)
    decode = ending.processor.tokenizer.decode
    end = ending.model.generation_config.eos_token_id
    texts = set()
    for image, caption in zip(images, found, strict=True):
        ids = generated(ending, image, "What is it?", 12)
        text = decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True).strip()
        if end in ids and text:
            texts.add(text)
            assert caption == text
        else:
            assert isinstance(caption, NoAnswer)
    assert texts


def test_an_answer_without_an_end_is_no_caption(model, images):
    (found,) = LocalCaptioner(model, CaptionPrompt("What is it?", tokens=3), View()).captions(images[:1])
    assert isinstance(found, NoAnswer)
    assert "longer than 3 tokens" in str(found)


@pytest.fixture
def serving(chat, ending):
    """The test's own server with the tiny model behind it."""

    def reply(body, number):
        image, text = body["messages"][-1]["content"]
        pixels = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
        )
        ((answer, complete),) = ending.generate([pixels], text["text"], None, body["max_tokens"])
        finish = "stop" if complete else "length"
        return {"choices": [{"index": 0, "message": {"content": answer}, "finish_reason": finish}]}

    chat.reply = reply
    return chat


def test_a_server_gives_the_local_captions(serving, ending, images):
    flat = [image for image in images if np.ptp(image.reshape(-1, 3), axis=0).max() == 0]
    assert flat, "JPEG keeps an image of one colour"
    prompt = CaptionPrompt("What is it?", tokens=12)
    remote = ServerCaptioner(ChatServer(serving.url), prompt, View()).captions(flat)
    local = LocalCaptioner(ending, prompt, View()).captions([_as_sent(image) for image in flat])
    assert [str(caption) for caption in remote] == [str(caption) for caption in local]


def _as_sent(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=95)
    return np.asarray(Image.open(data))


def test_the_request_has_the_image_the_schema_and_the_limit(chat, images):
    chat.reply = lambda body, n: '{"subject": "noise"}'
    prompt = CaptionPrompt("Describe it.", tokens=77, schema=SCHEMA, system="Be brief.")
    captioner = ServerCaptioner(ChatServer(chat.url), prompt, View(longest=40))
    assert captioner.captions([captioner.view.of(images[2])]) == ['{"subject": "noise"}']
    (body,) = chat.requests
    assert (body["max_tokens"], body["temperature"]) == (77, 0)
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    image, text = user["content"]
    assert text == {"type": "text", "text": "Describe it."}
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 30)


def test_what_is_wrong_with_an_answer_costs_its_image_only(chat, images):
    cut = {"choices": [{"message": {"content": "A lake with"}, "finish_reason": "length"}]}
    refused = {
        "choices": [{"message": {"content": None, "refusal": "not this one"}, "finish_reason": "stop"}]
    }
    replies = [cut, refused, "I'm sorry, I can't help with that.", 400, "A lake."]
    chat.reply = lambda body, n: replies[n - 1]
    captioner = ServerCaptioner(ChatServer(chat.url), CaptionPrompt(tokens=9), View(), concurrency=1)
    found = captioner.captions(images)
    assert found[-1] == "A lake."
    messages = ["longer than 9 tokens", "refused: not this one", "refused: I'm sorry", "answers 400"]
    for caption, message in zip(found, messages, strict=False):
        assert isinstance(caption, NoAnswer)
        assert message in str(caption)
    chat.reply = lambda body, n: 403
    with pytest.raises(ServerError, match="answers 403"):
        captioner.captions(images[:1])


def test_a_structured_caption_outside_its_schema_is_none(chat, images):
    chat.reply = lambda body, n: '{"object": "noise"}'
    prompt = CaptionPrompt("Describe it.", schema=SCHEMA)
    (found,) = ServerCaptioner(ChatServer(chat.url), prompt, View()).captions(images[:1])
    assert "lacks 'subject'" in str(found)


def test_prompts_come_from_files_and_everything_in_them_is_in_the_hash(tmp_path):
    (tmp_path / "prompt.txt").write_text("Name the animal.", encoding="utf-8-sig")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    prompt = CaptionPrompt.of_files(tmp_path / "prompt.txt", tmp_path / "schema.json", tokens=50)
    assert prompt == CaptionPrompt("Name the animal.", 50, SCHEMA)
    assert CaptionPrompt.of_files().text == PROMPT
    variants = [prompt, CaptionPrompt("Name it.", 50, SCHEMA), CaptionPrompt("Name the animal.", 51, SCHEMA)]
    variants += [CaptionPrompt("Name the animal.", 50), CaptionPrompt("Name the animal.", 50, SCHEMA, "s")]
    assert len({variant.hash for variant in variants}) == 5
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="is empty"):
        CaptionPrompt.of_files(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="is not JSON"):
        CaptionPrompt.of_files(None, tmp_path / "broken.json")
    with pytest.raises(UserError, match="cannot be read"):
        CaptionPrompt.of_files(tmp_path / "nothing.txt")


def test_tokens_are_counted_as_the_text_encoders_see_them(tiny_flux):
    from transformers import CLIPTokenizer, T5Tokenizer

    texts = ["a lake", "", "a lake at dawn, " * 60]
    for folder, cls in (("tokenizer", CLIPTokenizer), ("tokenizer_2", T5Tokenizer)):
        counter = TokenCounter.load(tiny_flux / folder)
        tokenizer = cls.from_pretrained(tiny_flux / folder)
        assert counter.count(texts).tolist() == [len(tokenizer.encode(text)) for text in texts]
        assert counter.count(texts)[2] > 77
