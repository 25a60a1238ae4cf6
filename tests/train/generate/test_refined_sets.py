"""Sets whose prompts a server rewrites: both prompts are kept, and no request is sent twice."""

import json
from pathlib import Path

import pytest
from PIL import Image

from uhr.models.generate.record import read_record
from uhr.models.llm.chat import ChatServer

PROMPTS = ["a lake", {"prompt": "a hill", "seed": 7}, "a lake", "fog"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("uhr.models.llm.chat.ATTEMPTS", 2)
    monkeypatch.setattr("uhr.models.llm.chat.random.uniform", lambda a, b: 0.0)


def test_both_prompts_are_in_the_record_and_the_index_and_the_rewritten_one_is_generated(make, chat):
    made = make(PROMPTS, "--refine", chat.url)
    assert made.code == 0, made.err
    assert [(row["prompt"], row["original_prompt"]) for row in made.rows] == [
        (f"{prompt}, refined", prompt) for prompt in ("a lake", "a hill", "a lake", "fog")
    ]
    assert sorted(chat.questions) == ["a hill", "a lake", "fog"], "each different one once"
    record = read_record(made.folder / "pictures/0001.png")
    assert record["prompt"] == record["caption"] == "a hill, refined"
    assert record["original"]["prompt"] == "a hill"
    assert record["original"]["model"] == "expander"
    plain = make(["a lake, refined"], out="plain")
    assert read_record(plain.folder / "pictures/0000.png")["seed"] == 0
    one, other = (folder / "pictures/0000.png" for folder in (made.folder, plain.folder))
    assert Image.open(one).tobytes() == Image.open(other).tobytes()


def test_a_resumed_run_requests_nothing_that_was_answered(make, chat):
    chat.reply = lambda body, n: 503 if body["messages"][1]["content"] == "fog" else "yes"
    failed = make(PROMPTS, "--refine", chat.url)
    assert failed.code == 1
    assert "failed 2 times: 503" in failed.error
    assert not Path("out/pictures").exists(), "prompts come first"
    answered = len(list(Path("out/refined").iterdir()))
    chat.requests.clear()
    chat.reply = lambda body, n: "yes"
    assert make(PROMPTS, "--refine", chat.url).code == 0
    assert len(chat.questions) == 3 - answered
    chat.requests.clear()
    Path("out/pictures/0000.png").unlink()
    assert make(PROMPTS, "--refine", chat.url).code == 0
    assert chat.questions == []


def test_a_finished_set_needs_no_server(make, chat):
    make(["a lake"], "--refine", chat.url)
    chat.requests.clear()
    chat.headers.clear()
    assert "is finished" in make(["a lake"], "--refine", chat.url).out
    assert chat.headers == []


def test_a_prompt_without_an_answer_costs_its_images_and_no_others(make, chat):
    chat.reply = lambda body, n: 400 if body["messages"][1]["content"] == "a lake" else "yes"
    made = make(PROMPTS, "--refine", chat.url)
    assert made.code == 1
    assert (
        "2 of 4 images failed; 0000: expander does not rewrite its prompt (the server answers 400"
        in made.error
    )
    assert [row["status"] for row in made.rows] == ["failed", "made", "failed", "made"]
    assert made.rows[0]["prompt"] == "a lake"
    chat.reply = lambda body, n: "yes"
    assert make(PROMPTS, "--refine", chat.url).code == 0


def test_a_server_without_any_answer_and_one_that_is_not_there_end_the_run_in_one_line(
    make, chat, monkeypatch
):
    chat.reply = lambda body, n: "  "
    assert "the answer is empty" in make(PROMPTS, "--refine", chat.url).error
    refused = make(PROMPTS, "--refine", "http://127.0.0.1:9/v1", "--refine-model", "x", out="other")
    assert "http://127.0.0.1:9/v1 failed 2 times" in refused.error
    assert "\n" not in refused.error


def test_a_server_that_refuses_everything_does_not_get_a_thousand_requests(make, chat):
    chat.reply = lambda body, n: 400
    made = make([f"hill {n}" for n in range(60)], "--refine", chat.url)
    assert "does not rewrite its prompt (the server answers 400" in made.error
    assert len(chat.requests) < 30


def test_another_model_on_the_server_does_not_go_on_with_the_set(make, chat):
    assert make(["a lake", "fog"], "--refine", chat.url).code == 0
    Path("out/pictures/0001.json").unlink()
    chat.models = ["other"]
    made = make(["a lake", "fog"], "--refine", chat.url)
    assert "prompts of out were rewritten by expander, and the server has other" in made.error
    chat.models = ["expander"]
    assert make(["a lake", "fog"], "--refine", chat.url).code == 0


def test_an_image_of_another_models_prompt_is_found_at_the_end(make, chat):
    assert make(["a lake", "fog"], "--refine", chat.url).code == 0
    Path("out/set.json").unlink()
    file = Path("out/pictures/0001.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "original": {**record["original"], "model": "other"}}))
    made = make(["a lake", "fog"], "--refine", chat.url)
    assert "0001.json is of an image with other rewriting than the first: remove one of them" in made.error


def test_prompts_as_they_are_and_another_instruction_are_other_sets(make, chat):
    make(["a lake"], "--refine", chat.url)
    assert "other refine" in make(["a lake"]).error
    Path("own.txt").write_text("write like Basho")
    assert "other refine" in make(["a lake"], "--refine", chat.url, "--refine-instruction", "own.txt").error
    own = make(["a lake"], "--refine", chat.url, "--refine-instruction", "own.txt", out="own")
    assert own.code == 0
    assert chat.requests[-1]["messages"][0]["content"] == "write like Basho"


def test_the_key_is_written_nowhere(make, chat, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    made = make(["a lake"], "--refine", chat.url)
    assert made.code == 0
    assert chat.headers[-1]["Authorization"] == "Bearer secret-key"
    assert not [name for name, data in made.files.items() if b"secret-key" in data]
    assert "secret-key" not in made.out + made.err


def test_a_single_image_is_refined_too(chat, capfd):
    from uhr.cli import main

    arguments = ["sample", "euler", "--model", "tiny", "--size", "64x64", "--steps", "1", "--device", "cpu"]
    assert main([*arguments, "--prompt", "a lake", "--refine", chat.url, "--out", "one.png"]) == 0
    record = json.loads(Path("one.json").read_text())
    assert (record["prompt"], record["original"]["prompt"]) == ("a lake, refined", "a lake")
    capfd.readouterr()
    # repeated from its record, without the server
    before = len(chat.requests)
    assert main(["sample", "--repeat", "one.png", "--out", "again.png"]) == 0
    assert "identical" in capfd.readouterr().out
    assert len(chat.requests) == before
    assert read_record(Path("again.png"))["original"]["prompt"] == "a lake"


def test_what_cannot_be_made_is_an_error_before_any_request(make, chat, capfd):
    from uhr.cli import main

    assert make([{"prompt": "a lake", "width": 60, "height": 64}], "--refine", chat.url).code == 1
    arguments = ["sample", "euler", "--model", "tiny", "--prompt", "x", "--out", "one.png", "--size", "60x64"]
    assert main([*arguments, "--refine", chat.url]) == 1
    assert chat.headers == []


def test_the_server_here_speaks_as_the_client_expects(chat):
    assert ChatServer(chat.url).answer("x", "a lake") == "a lake, refined"
