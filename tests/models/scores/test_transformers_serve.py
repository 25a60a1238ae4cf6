"""Captions and judge against a real server process, `transformers serve`, with a tiny random model."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.models.llm.chat import ChatServer, NoAnswer
from uhr.models.scores import artimuse
from uhr.models.scores.captions import CaptionPrompt, ServerCaptioner
from uhr.models.scores.images import View

from . import checkpoints

TOKENS = 12
START = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("served")
    return Path(artimuse.convert(checkpoints.artimuse(made / "published"), made / "converted"))


def generated(folder: Path, image: np.ndarray, prompt: str) -> list[int]:
    """Ids that transformers generates for one image."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[Image.fromarray(image)], text=[text], return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return found[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def ending(folder, images, tmp_path_factory) -> Path:
    """The model, whose answers end with what it generates as the 6th token for the first flat image."""
    made = shutil.copytree(folder, tmp_path_factory.mktemp("ending") / "model")
    end = generated(folder, images[1], "What is it?")[5]
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": end}))
    return made


@pytest.fixture(scope="module")
def served(ending):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        START,
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None, "the server has ended"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def test_captions_of_a_real_server_are_those_that_transformers_generates(served, ending, images):
    from transformers import AutoTokenizer

    flat = images[1]
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() == 0, "JPEG keeps an image of one colour"
    sent = _as_sent(flat)
    ids = generated(ending, sent, "What is it?")
    end = json.loads((ending / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(ending)
    # the token that ends the answer is none of the tokenizer's special ones, and is part of the text
    assert end in ids
    text = tokenizer.decode(ids[: ids.index(end) + 1], skip_special_tokens=True).strip()
    assert text
    server = ChatServer(served, str(ending), seconds=600)
    server.check_reachable()
    captioner = ServerCaptioner(server, CaptionPrompt("What is it?", tokens=TOKENS), View(), concurrency=2)
    found = captioner.captions([torch.from_numpy(flat), torch.from_numpy(flat)])
    assert found == [text, text]
    # an answer that is cut is no caption
    short = ServerCaptioner(server, CaptionPrompt("What is it?", tokens=2), View())
    (cut,) = short.captions([torch.from_numpy(flat)])
    assert isinstance(cut, NoAnswer)
    assert "longer than 2 tokens" in str(cut)


def test_a_judge_that_answers_at_random_has_no_opinion(served, ending, tmp_path, monkeypatch, capfd):
    """Random tokens name neither image: no answer is counted, as a tie or otherwise."""
    from uhr.cli import main
    from uhr.train.evaluate.judges import model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model, "TOKENS", TOKENS)
    Path("prompts.txt").write_text("a lake\na tower\n")
    tree = {"name": "two", "about": "two", "prompts": {"file": "prompts.txt"}, "size": "64x64"}
    Path("two.yaml").write_text(json.dumps({**tree, "metrics": [{"metric": "compression-ratio"}]}))
    for name, first in (("a", 0), ("b", 10)):
        Path(name).mkdir()
        for number in range(2):
            noise = np.random.default_rng(first + number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(f"{name}/{number}.png")
        assert main(["eval", "run", "two.yaml", "--images", name, "--out", f"result-{name}"]) == 0
    answered = []

    def choice(server, messages, tokens, real=ChatServer.choice):
        answered.append(real(server, messages, tokens))
        return answered[-1]

    monkeypatch.setattr(ChatServer, "choice", choice)
    capfd.readouterr()
    given = ["eval", "judge", "result-a", "result-b", "--server", served, "--model", str(ending)]
    code = main([*given, "--rows", "2", "--at-once", "2", "--out", "judged", "--json"])
    out, err = capfd.readouterr()
    # the server has answered each of 2 prompts x 3 questions x 2 orders
    assert len(answered) == 12, err
    assert all(each["message"]["content"] for each in answered)
    assert (code, "no question was answered" in err, out) == (1, True, ""), err
    assert not list(Path("judged").rglob("*-*-*.json"))
    assert not Path("judged/judge.json").exists()


def _as_sent(image: np.ndarray) -> np.ndarray:
    import io

    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=95)
    return np.asarray(Image.open(data))
