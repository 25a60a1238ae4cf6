"""Refusals, structured answers, bounded concurrency and translation."""

import json
import threading
import time

import pytest

from uhr.base.errors import UserError
from uhr.models.llm.answers import check_refusal, check_schema, structured, without_thoughts
from uhr.models.llm.chat import KEY, ChatServer, NoAnswer, ServerError, complete_text
from uhr.models.llm.pool import answers
from uhr.models.llm.translate import Translator

SCHEMA = {
    "type": "object",
    "properties": {
        "medium": {"enum": ["photograph", "painting"]},
        "subjects": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        "people": {"type": "integer"},
    },
    "required": ["medium", "subjects"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but I can't help with that.", "I’m sorry", "I am sorry, I am unable to", "I apologize, but",
     "Sorry, I cannot do that.", "I can't assist with this image.", "I cannot identify people.",
     "I'm unable to describe this image.", "As an AI language model", "Unfortunately, I cannot",
     "抱歉，我无法提供帮助。", "对不起"],
)  # fmt: skip
def test_a_refusal_is_recognised(text):
    with pytest.raises(NoAnswer, match="the model refused"):
        check_refusal(text)


@pytest.mark.parametrize(
    "text",
    ["A sorry-looking dog in the rain", "I-beams cross a bridge", "As an aircraft lands, dust rises",
     "A sign reads \"I'm sorry\"", "Can of soup on a table", "Iris petals in close-up", "一只狗在雨中"],
)  # fmt: skip
def test_a_caption_is_no_refusal(text):
    assert check_refusal(text) == text


def test_thoughts_before_an_answer_are_removed():
    assert without_thoughts("<think>hm</think>\n a lake ") == "a lake"
    assert without_thoughts(" a lake") == "a lake"


def test_structured_answers_are_checked_and_made_canonical():
    answer = '```json\n{"subjects": ["dog"], "medium": "photograph"}\n```'
    assert structured(answer, SCHEMA) == '{"medium": "photograph", "subjects": ["dog"]}'
    check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a dog", "not JSON"),
        ("[]", "not of type object"),
        ('{"medium": "photograph"}', "lacks 'subjects'"),
        ('{"medium": "film", "subjects": ["a"]}', "not one of"),
        ('{"medium": "photograph", "subjects": []}', "has 0 items"),
        ('{"medium": "photograph", "subjects": [1]}', r"subjects\[0\] is 1, not of type string"),
        (
            '{"medium": "photograph", "subjects": ["a"], "people": true}',
            "people is true, not of type integer",
        ),
        ('{"medium": "photograph", "subjects": ["a"], "mood": "calm"}', "has 'mood'"),
    ],
)
def test_what_the_schema_does_not_allow_is_no_answer(answer, message):
    with pytest.raises(NoAnswer, match=message):
        structured(answer, SCHEMA)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_no_answer(number):
    with pytest.raises(NoAnswer, match="is not JSON"):
        structured(f'{{"a": {number}}}', {"type": "object"})


def test_half_of_a_character_is_no_answer():
    with pytest.raises(NoAnswer, match="half of a character"):
        structured('{"a": "\\ud83d"}', {"type": "object"})
    with pytest.raises(NoAnswer, match="half of a character"):
        complete_text({"message": {"content": "a lake \ud83d"}}, 10)
    assert complete_text({"message": {"content": "a lake \U0001f600 "}}, 10) == "a lake \U0001f600"


@pytest.mark.parametrize(
    ("schema", "message"),
    [([], "not an object"), ({"oneOf": []}, "has 'oneOf'"), ({"type": "text"}, "the type 'text'"),
     ({"properties": {"a": {"pattern": "x"}}}, r"the schema\.a has 'pattern'"),
     ({"items": {"type": ["string"]}}, r"the schema\[\] has the type \['string'\]")],
)  # fmt: skip
def test_a_schema_that_would_not_be_checked_is_an_error(schema, message):
    with pytest.raises(UserError, match=message):
        check_schema(schema)


def test_no_more_requests_than_allowed_are_open_and_answers_keep_their_order():
    running, most, lock = 0, 0, threading.Lock()

    def ask(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 if item % 2 else 0.04)
        with lock:
            running -= 1
        if item == 3:
            raise NoAnswer("three")
        return item

    found = answers(ask, range(8), 3)
    assert [str(each) for each in found] == ["0", "1", "2", "three", "4", "5", "6", "7"]
    assert most == 3


def test_a_server_that_fails_ends_the_call_before_every_item_is_sent():
    called = []

    def ask(item):
        called.append(item)
        time.sleep(0.01)
        raise ServerError("down")

    with pytest.raises(ServerError, match="down"):
        answers(ask, range(100), 2)
    assert len(called) <= 2


def test_a_translation_keeps_its_order_and_says_why_there_is_none(chat):
    replies = {
        "a lake": "湖",
        "a dog": "I'm sorry, I can't help with that.",
        "a cat": "a cat",
        "a tree": "<think>x</think>树",
    }
    chat.reply = lambda body, n: replies[body["messages"][1]["content"]]
    translator = Translator(ChatServer(chat.url), concurrency=2)
    found = translator.translate(list(replies))
    assert found[0] == "湖"
    assert found[3] == "树"
    assert "refused" in str(found[1])
    assert "as it was" in str(found[2])
    assert "from English to Simplified Chinese" in chat.requests[0]["messages"][0]["content"]
    german = Translator(translator.server, target="German")
    assert "to German" in german.instruction
    assert german.hash != translator.hash


def test_a_key_that_the_server_repeats_is_not_in_the_error(chat, monkeypatch):
    monkeypatch.setenv(KEY, "secret-key-123")

    def reply(body, number):
        return lambda handler: handler.send({"error": {"message": "wrong key secret-key-123"}}, 401)

    chat.reply = reply
    with pytest.raises(ServerError) as error:
        ChatServer(chat.url, "expander").answer("x", "y")
    assert "secret-key-123" not in str(error.value)
    assert "wrong key ***" in str(error.value)
    assert "secret" not in json.dumps(chat.requests)
