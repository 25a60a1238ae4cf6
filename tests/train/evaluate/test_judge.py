"""A judge on a real server: both orders, ties, contradictions, resumption."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

OWN = [{"metric": "own_metrics:Brightness"}]


@pytest.fixture
def two(protocol, folder, score):
    file = protocol(metrics=OWN)
    for name, blur in (("sharp", 0), ("blurred", 7)):
        assert score(file, folder(f"images-{name}", blur=blur), name)[0] == 0


def images(body):
    """The images of a question: whole and crop of the first, then of the second."""
    parts = [part for part in body["messages"][1]["content"] if part["type"] == "image_url"]
    data = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts]
    return [Image.open(io.BytesIO(each)) for each in data]


def detail(image):
    import numpy as np

    return float(np.abs(np.diff(np.asarray(image).astype(float), axis=1)).mean())


def sharper(body, number):
    """A judge that looks: the image with more detail, and a tie for aesthetics."""
    if "pleasing" in body["messages"][1]["content"][-1]["text"]:
        return "TIE"
    first, _, second, _ = images(body)
    return "<think>FIRST or SECOND?</think> **First**" if detail(first) > detail(second) else "SECOND."


def judge(uhr, chat, *options):
    code, out, err = uhr(
        "eval", "judge", "sharp", "blurred", "--server", chat.url, "--out", "j", "--json", *options
    )
    return code, json.loads(out) if code == 0 else None, err


def test_a_judge_that_looks_is_counted_in_both_orders_and_questioned_once(two, uhr, chat):
    chat.reply = sharper
    code, facts, err = judge(uhr, chat)
    assert code == 0, err
    found = {each["question"]: each for each in facts["preferences"]}
    assert (found["quality"]["first"], found["quality"]["second"], found["quality"]["ties"]) == (6, 0, 0)
    assert (found["quality"]["share"], found["quality"]["decided"], found["quality"]["low"]) == (0, 0, 0)
    # six of six are no proof that all would be
    assert 0.3 < found["quality"]["high"] < 0.5
    # ties do not decide, and have no interval
    ties = found["aesthetics"]
    assert (ties["ties"], ties["share"], ties["decided"], ties["low"]) == (6, 0.5, None, None)
    assert (facts["contradictions"], facts["first_share"], facts["unanswered"]) == (0, 0.5, 0)
    assert len(chat.requests) == 6 * 3 * 2
    assert [image.size for image in images(chat.requests[0])] == [(96, 80)] * 4
    assert judge(uhr, chat)[1] == facts
    said = uhr("eval", "judge", "sharp", "blurred", "--server", chat.url, "--out", "j")[1].splitlines()
    (quality,) = [line for line in said if line.startswith("quality")]
    (aesthetics,) = [line for line in said if line.startswith("aesthetics")]
    assert "0 % [0, 39]" in quality
    assert "no prompt decided" in aesthetics
    assert len(chat.requests) == 36


def test_a_judge_that_prefers_a_position_decides_nothing(two, uhr, chat):
    chat.reply = lambda body, n: "FIRST"
    _, facts, _ = judge(uhr, chat, "--rows", 3)
    assert (facts["contradictions"], facts["first_share"]) == (9, 1)
    assert [(each["ties"], each["share"], each["n"]) for each in facts["preferences"]] == [(3, 0.5, 3)] * 3


def test_unusable_answers_are_not_counted_and_tried_again(two, uhr, chat):
    chat.reply = lambda body, n: "I like both" if n % 4 == 0 else sharper(body, n)
    _, facts, _ = judge(uhr, chat, "--at-once", 1)
    assert facts["unanswered"] == 9
    assert all(each["n"] < 6 for each in facts["preferences"])
    chat.reply = sharper
    assert judge(uhr, chat)[1]["unanswered"] == 0
    assert len(chat.requests) == 36 + 9


def test_an_answer_that_was_cut_in_its_reasoning_is_none(two, uhr, chat):
    message = {"role": "assistant", "content": "<think>The FIRST image has more detail, but"}
    chat.reply = lambda body, n: {"choices": [{"finish_reason": "length", "message": message}]}
    code, _, err = judge(uhr, chat, "--rows", 2)
    assert (code, "no question was answered: the answer is longer than 2048 tokens" in err) == (1, True), err
    assert not Path("j/judge.json").exists()


def test_what_cannot_be_judged_is_one_line(two, uhr, chat, protocol, folder, score):
    chat.reply = lambda body, n: "neither nor"
    code, _, err = judge(uhr, chat)
    assert (code, "no question was answered: the answer is not FIRST, SECOND or TIE" in err) == (1, True)
    chat.reply = sharper
    assert judge(uhr, chat)[0] == 0
    chat.models = ["another"]
    assert "contains another judgement: other model" in judge(uhr, chat)[2]
    assert score(protocol("o.yaml", metrics=OWN, seeds=[3]), "images-sharp", "seed")[0] == 0
    code, _, err = uhr("eval", "judge", "sharp", "seed", "--server", chat.url, "--out", "k")
    assert (code, "different protocols" in err, Path("k").exists()) == (1, True, False)
