"""Prompts rewritten by a chat server, against a real one on the loopback."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from uhr.base.errors import UserError
from uhr.models.llm.chat import ATTEMPTS, KEY, LONGEST_WAIT, ChatServer, NoAnswer, ServerError
from uhr.models.llm.refine import INSTRUCTION, Refinement, Refiner

SPEC = importlib.util.spec_from_file_location("chat_server", Path(__file__).parents[2] / "chat_server.py")
chat_server = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chat_server)


@pytest.fixture
def waits():
    return []


@pytest.fixture
def client(chat, waits):
    return ChatServer(chat.url, seconds=0.5, sleep=waits.append)


def test_a_question_is_sent_as_the_protocol_requires(chat, client):
    chat.reply = lambda body, n: "  a lake\nat dawn \n"
    assert client.answer("be brief", "a lake", seed=7, tokens=99) == "a lake\nat dawn"
    assert chat.requests == [
        {
            "model": "expander",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a lake"}],
            "temperature": 0,
            "seed": 7,
            "max_tokens": 99,
        }
    ]


def test_the_key_goes_into_the_header_and_nowhere_else(chat, monkeypatch, capfd):
    ChatServer(chat.url).answer("x", "y")
    assert all("Authorization" not in headers for headers in chat.headers)
    monkeypatch.setenv(KEY, "secret-key")
    ChatServer(chat.url).answer("x", "y")
    assert chat.headers[-1]["Authorization"] == "Bearer secret-key"
    assert "secret" not in json.dumps(chat.requests)
    for reply in (401, 500):
        chat.reply = lambda body, n, reply=reply: reply
        with pytest.raises(ServerError) as error:
            ChatServer(chat.url, "expander", sleep=lambda _: None).answer("x", "y")
        assert "secret" not in str(error.value)
    assert "secret" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "fault",
    [429, 500, 503, b"<html>busy</html>", b"", chat_server.hang_up, chat_server.half, chat_server.drip,
     chat_server.silence],
    ids=["429", "500", "503", "html", "empty", "hang up", "half", "drip", "silence"],
)  # fmt: skip
def test_what_passes_is_sent_again_with_growing_waits(chat, client, waits, fault):
    chat.reply = lambda body, n: fault if n < 4 else "done"
    assert client.answer("x", "y") == "done"
    assert len(chat.requests) == 4
    assert len(waits) == 3
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 <= waits[2] <= 4


def test_that_it_is_sent_again_and_why_is_reported(chat, client, waits, capsys):
    chat.reply = lambda body, n: 500 if n < 2 else "done"
    assert client.answer("x", "y") == "done"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {chat.url} failed: 500 (on request); next attempt in {waits[0]:.0f} s"


def test_the_server_says_how_long_to_wait_within_reason(chat, client, waits):
    replies = {
        1: (429, {"Retry-After": "7"}),
        2: (429, {"Retry-After": "86400"}),
        3: (503, {"Retry-After": "soon"}),
    }
    chat.reply = lambda body, n: replies.get(n, "done")
    assert client.answer("x", "y") == "done"
    assert waits[0] == 7
    assert waits[1] == LONGEST_WAIT
    assert waits[2] <= 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (500, "failed 6 times: 500 .on request."),
        (b"junk", "failed 6 times: the answer is not JSON: b'junk'"),
        (chat_server.silence, "no answer in time"),
    ],
    ids=["500", "junk", "silence"],
)
def test_a_server_that_goes_on_failing_is_one_line(chat, client, fault, message):
    chat.reply = lambda body, n: fault
    with pytest.raises(ServerError, match=message) as error:
        client.answer("x", "y")
    assert len(chat.requests) == ATTEMPTS
    assert error.value.fix
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "fix"), [(401, "set OPENAI_API_KEY"), (403, "set OPENAI_API_KEY"), (404, "ends in /v1")]
)
def test_a_refusal_is_reported_at_once_with_what_the_server_says(chat, client, status, fix):
    chat.reply = lambda body, n: status
    with pytest.raises(ServerError, match=rf"answers {status} \(on request\): .*{fix}"):
        client.answer("x", "y")
    assert len(chat.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(chat, client, monkeypatch, status):
    monkeypatch.setenv(KEY, "secret-key")
    elsewhere = chat_server.ChatServerHere()
    try:
        chat.reply = lambda body, n: (status, {"Location": f"{elsewhere.url}/models"})
        message = rf"{status} \(it is at {elsewhere.url}/models\): name that address"
        with pytest.raises(ServerError, match=message) as error:
            client.answer("x", "y")
        assert elsewhere.headers == []
        assert "secret" not in str(error.value)
    finally:
        elsewhere.stop()


REFUSALS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
}


def test_a_model_that_rejects_the_usual_parameters_is_sent_without_and_from_then_on(chat, client):
    def picky(body, n):
        for name, message in REFUSALS.items():
            if name in body:
                return lambda handler: handler.send({"error": {"message": message}}, 400)
        return "done"

    chat.reply = picky
    assert [client.answer("x", "y", tokens=9) for _ in range(2)] == ["done", "done"]
    assert len(chat.requests) == 3
    assert chat.requests[1] == chat.requests[2]
    assert chat.requests[1]["max_completion_tokens"] == 9


@pytest.mark.parametrize("message", REFUSALS.values())
def test_either_refusal_is_known(chat, client, message):
    refusal = {"error": {"message": message}}
    chat.reply = lambda body, n: "done" if n == 2 else lambda handler: handler.send(refusal, 400)
    assert client.answer("x", "y") == "done"


def test_a_question_that_is_too_long_is_sent_once(chat, client):
    long = "max_tokens is too large: 2048. This model's maximum context length is 4096 tokens"
    chat.reply = lambda body, n: lambda handler: handler.send({"error": {"message": long}}, 400)
    with pytest.raises(NoAnswer, match="too large"):
        client.answer("x", "y")
    assert len(chat.requests) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (400, "400"),
        (422, "422"),
        ({"choices": []}, "not a chat completion"),
        ({"choices": [{"message": "x"}]}, "not a chat completion"),
        ([], "not a chat completion"),
        ("   ", "empty"),
        (chat_server.completion(None), "empty"),
        (chat_server.completion("a lake and", "length"), "longer than"),
        (chat_server.completion("a lake and", "max_tokens"), "longer than"),
        (
            chat_server.completion("a lake and", "content_filter"),
            "stopped before the end of the answer .content_filter.",
        ),
        (chat_server.completion("a lake and", "abort"), "stopped before the end of the answer .abort."),
    ],
)
def test_an_answer_that_is_unusable_concerns_its_question_alone(chat, client, reply, message):
    chat.reply = lambda body, n: reply
    with pytest.raises(NoAnswer, match=message):
        client.answer("x", "y")
    assert len(chat.requests) == 1


def test_the_only_model_needs_no_name_and_several_do(chat):
    assert ChatServer(chat.url + "/").model == "expander"
    chat.models = ["a", "b"]
    with pytest.raises(UserError, match=r"serves 2 models \(a, b\): name one"):
        ChatServer(chat.url)
    assert ChatServer(chat.url, "b").model == "b"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://me:pw@host/v1"])
def test_an_address_that_is_invalid_is_reported_without_its_password(url):
    with pytest.raises(UserError) as error:
        ChatServer(url, "x")
    assert "pw" not in str(error.value)


def test_a_server_that_is_not_there_is_one_line(waits):
    with pytest.raises(ServerError, match="refused"):
        ChatServer("http://127.0.0.1:9/v1", "x", sleep=waits.append).answer("x", "y")
    assert len(waits) == ATTEMPTS - 1


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("a lake\n\nat dawn", "a lake at dawn"),
        ('"a lake at dawn"', "a lake at dawn"),
        ('"OPEN" on a door, "SHUT" on another "', '"OPEN" on a door, "SHUT" on another "'),
        ("<think>they want\na lake</think>\n\na lake at dawn", "a lake at dawn"),
        ("Sure! Here:\n\nA lake\nat dawn", "A lake at dawn"),
        ("**The prompt:**\n\nA lake", "A lake"),
        ("A lake of two parts:\nwater and fog", "A lake of two parts: water and fog"),
    ],
)
def test_an_answer_becomes_one_line_without_thoughts_and_outer_quotes(chat, client, answer, prompt):
    chat.reply = lambda body, n: answer
    assert Refiner(client).rewrite("a lake") == prompt


def test_nothing_but_thoughts_is_no_answer(chat, client):
    chat.reply = lambda body, n: "<think>hm</think>  "
    with pytest.raises(NoAnswer):
        Refiner(client).rewrite("a lake")


def test_what_an_answer_depends_on_is_in_its_key(chat):
    one, other = ChatServer(chat.url, "one"), ChatServer(chat.url, "other")
    keys = {r.key(p) for r in (Refiner(one), Refiner(other), Refiner(one, "brief")) for p in ("a", "b")}
    assert len(keys) == 6
    assert Refiner(one).key("a") == Refiner(ChatServer("http://elsewhere/v1", "one")).key("a")


@pytest.mark.parametrize("text", [None, " \n"])
def test_an_instruction_that_is_missing_or_empty_is_one_line(chat, tmp_path, text):
    if text is not None:
        (tmp_path / "own.txt").write_text(text)
    with pytest.raises(UserError, match=r"own\.txt"):
        Refinement(chat.url, "x", tmp_path / "own.txt").open()


def test_the_instruction_is_that_whose_hash_is_in_records_and_stored_answers():
    found = hashlib.sha256(INSTRUCTION.encode()).hexdigest()
    assert found == "1f633b7454931f56dbb5f3d35387f99dc9efced76c5e76f0ea0e5a28e9675c16"
