"""`--plan` of a set: the plan of an image of each kind, times their number."""

import json

import pytest
from PIL import Image

from uhr.cli import main

ARGUMENTS = ["--model", "flux1-dev", "--plan", "--on", "h200"]


@pytest.fixture
def planned(capsys):
    def run(*arguments):
        assert main(["sample", *arguments, *ARGUMENTS, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_set_of_prompts_takes_what_its_images_take_one_by_one(planned, capsys, tmp_path):
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "width": 512, "height": 1024}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["euler", "--size", "1024x1024", "--prompts", str(file)]
    found = planned(*arguments)
    alone = {size: planned("euler", "--size", size) for size in ("1024x1024", "512x1024")}
    groups = {f"{group['width']}x{group['height']}": group for group in found["kinds"]}
    assert {size: group["pictures"] for size, group in groups.items()} == {"1024x1024": 2, "512x1024": 1}
    for size, group in groups.items():
        # prompts are counted over the whole set
        one = {key: value for key, value in alone[size].items() if key not in ("notes", "text_tokens")}
        assert {**one, "pictures": group["pictures"]} == group
    one, two = alone["1024x1024"]["seconds"]["total"], alone["512x1024"]["seconds"]["total"]
    assert found["seconds"] == pytest.approx(2 * one + two)
    assert found["pictures"] == 3
    assert main(["sample", *arguments, *ARGUMENTS]) == 0
    shown = capsys.readouterr().out
    assert "that is one image of the largest group; the set:" in shown
    assert "3 images: some" in shown
    assert "on one GPU, an image after another; loading the model comes on top" in shown
    assert main(["sample", *arguments, *ARGUMENTS[:-2], "--device", "cpu"]) == 0
    assert "on one GPU" not in capsys.readouterr().out


def test_a_folder_of_images_can_be_planned_and_a_broken_one_is_warned_of(capsys, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (512, 512)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"none")
    arguments = ["sample", "patch-cascade", "--image", str(tmp_path), "--scale", "2", *ARGUMENTS]
    assert main([*arguments, "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert [(group["pictures"], group["width"]) for group in found["kinds"]] == [(2, 1024)]
    (line,) = [line for line in output.err.splitlines() if line.startswith("warning: ")]
    assert f"{tmp_path}/c.png" in line
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").unlink()
    assert main(arguments) == 1
    assert "none of the 1 images can be used" in capsys.readouterr().err


def test_a_line_that_cannot_be_made_is_an_error_that_names_it(capsys, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "width": 1001, "height": 1000}')
    assert main(["sample", "euler", "--prompts", str(file), *ARGUMENTS]) == 1
    assert f"{file} line 1: " in capsys.readouterr().err
