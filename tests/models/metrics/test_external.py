"""A program or a function of the user's own is a metric like any other."""

import sys

import numpy as np
import pytest

from uhr.base.errors import UserError
from uhr.models.metrics.base import Sample, key
from uhr.models.metrics.registry import describe, metric, metric_class

PROGRAM = """
import json, sys
count = 0
for line in sys.stdin:
    task = json.loads(line)
    count += 1
    from pathlib import Path
    data = Path(task["image"]).read_bytes()
    if task["prompt"] == "stop": sys.exit(3)
    if task["prompt"] == "fail": answer = {"error": "no\\nfaces"}
    elif task["prompt"] == "text": print("loading model", flush=True); continue
    elif task["prompt"] == "none": answer = {"scores": {"other": 1}}
    else: answer = {"scores": {"png": data[:4] == b"\\x89PNG", "bytes": len(data), "count": count}}
    if "png" in answer.get("scores", {}): answer["scores"]["png"] = float(answer["scores"]["png"])
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    made = metric(
        "command",
        name="mine",
        command=[sys.executable, str(tmp_path / "program.py")],
        columns={"bytes": "lower", "png": None, "count": None},
        needs=["prompt"],
    )
    yield made
    made.close()


def test_one_program_scores_image_after_image(program, noise, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"12345")
    found = program.score([Sample(noise, 0, "a"), Sample(noise, 1, "a", path=tmp_path / "x.bin")])
    assert found[1] == {"bytes": 5, "png": 0, "count": 2}
    assert (found[0]["png"], found[0]["count"]) == (1, 1)
    assert found[0]["bytes"] > noise.size / 2
    assert [column.better for column in program.columns] == ["lower", None, None]


def test_the_identity_follows_the_program(program, tmp_path):
    before = key(program)
    (tmp_path / "program.py").write_text(PROGRAM + "# changed\n")
    options = {"name": "mine", "command": [sys.executable, str(tmp_path / "program.py")], "needs": ["prompt"]}
    again = metric("command", columns={"bytes": "lower", "png": None, "count": None}, **options)
    assert key(again) != before


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("stop", "command/mine ended with code 3"),
        ("fail", "failed for image 5: no faces"),
        ("text", "answered 'loading model': it must write one JSON object per line"),
        ("none", r'gave for image 5 .*"other": 1.*must give a number for bytes'),
    ],
)
def test_what_a_program_does_wrong_is_one_line_and_it_is_started_again(program, noise, prompt, what):
    with pytest.raises(UserError, match=what):
        program.score([Sample(noise, 5, prompt)])
    assert program.score([Sample(noise, 6, "a")])[0]["png"] == 1


def test_a_program_that_does_not_exist_or_is_silent_is_one_line(noise):
    options = {"name": "x", "columns": {"a": None}}
    with pytest.raises(UserError, match="cannot be started"):
        metric("command", command=["/no/such/program"], **options).score([Sample(noise)])
    silent = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with pytest.raises(UserError, match=r"no answer within 0\.1 s"):
        metric("command", command=silent, seconds=0.1, **options).score([Sample(noise)])


def brightness(image: np.ndarray, prompt: str | None, reference: np.ndarray | None) -> dict[str, float]:
    if prompt == "fail":
        raise ValueError("no such\nprompt")
    return {"mean": float(image.mean())} if prompt else {}


def of_a_sample(sample: Sample) -> dict[str, float]:
    return {"mean": 0.0}


def test_a_function_with_other_parameters_is_refused_before_anything_is_scored(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_metrics", sys.modules[__name__])
    options = {"name": "bright", "columns": {"mean": "higher"}}
    with pytest.raises(
        UserError, match=r"of_a_sample has the parameters \(sample.*\(image, prompt, reference\)"
    ):
        metric("function", function="own_metrics:of_a_sample", **options)


def test_a_function_is_called_with_image_and_prompt(noise, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_metrics", sys.modules[__name__])
    options = {"name": "bright", "columns": {"mean": "higher"}}
    made = metric("function", function="own_metrics:brightness", **options)
    assert made.score([Sample(noise, prompt="a")]) == [{"mean": noise.mean()}]
    with pytest.raises(UserError, match=r"image 0 \(ValueError: no such prompt\)"):
        made.score([Sample(noise, prompt="fail")])
    with pytest.raises(UserError, match="must give a number for mean"):
        made.score([Sample(noise)])
    with pytest.raises(UserError, match="did you mean brightness"):
        metric("function", function="own_metrics:brightnes", **options)


def test_every_metric_says_what_it_is_and_how_to_get_its_weights():
    from uhr.models.metrics.registry import NAMES

    for name in NAMES:
        found = describe(name)
        assert found["measures"]
        assert found["licence"]
        assert found["kind"] == ("set" if hasattr(metric_class(name), "compare") else "image")
        assert found["weights"].keys() | found["optional"].keys() <= found["options"].keys(), name
        assert all(found["options"][option] is None for option in found["optional"]), name
        assert set(found["needs"]) <= {"prompt", "reference"}
    with pytest.raises(UserError, match="is not a metric"):
        metric("uhr.models.metrics.registry:NAMES")
