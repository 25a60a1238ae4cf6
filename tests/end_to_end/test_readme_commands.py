"""Each `uhr` command that README.md shows, as it stands there, in its order, after the demo."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("uhr ")]


def test_every_command_of_the_readme_works(walked, monkeypatch, capsys):
    from uhr.cli import main

    monkeypatch.chdir(walked.folder)
    shown = commands()
    assert shown[0] == "uhr demo"  # the fixture has done it
    assert len(shown) > 20
    for command in shown[1:]:
        code = main(shlex.split(command)[1:])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"


def test_the_python_of_the_readme_paints(walked, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (block,) = (block for block in blocks if "from_pretrained" in block)
    monkeypatch.chdir(walked.folder)
    found = {}
    exec(block, found)
    assert (found["picture"].size, found["larger"].size) == ((256, 256), (384, 384))


OWN_PROCESS = [
    "doctor --json",
    "curate run quickstart --source demo/pictures/photographs --out own/set --engine local --workers 1",
    "curate status own/set --json",
    "curate explain own/set bus.jpg --json",
    "curate show quickstart",
    "curate stages --json",
    "manifest show own/set --json",
    "manifest slice own/set --where 'width > 256' --sample 3 --out own/slice --json",
    "manifest lineage own/slice --json",
    "manifest verify own/slice --json",
    "manifest report own/slice",
    "models list --json",
    "models show tiny-flux1 --json",
    "models make-tiny own/model",
    "sample list --json",
    "sample euler --model own/model --prompt x --size 128x128 --steps 2 --out own/x.png",
    "train recipes --json",
    "train show lora --json",
    "train plan lora --model own/model --json",
    "train encode own/slice --model own/model --out own/encoded",
    "train run lora --model own/model --data own/encoded --out own/run --set phases.0.steps=2",
    "train resume own/run",
    "train export own/run --out own/adapter",
]
"""Each command once as a user starts it, in an order in which one finds what another left."""


def test_every_command_works_as_a_process_of_its_own(walked):
    for command in OWN_PROCESS:
        done = subprocess.run(
            [sys.executable, "-m", "uhr", *shlex.split(command)],
            cwd=walked.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command
        if command.endswith("--json"):
            json.loads(done.stdout)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("curate run quikstart --source demo/pictures --out x", "did you mean quickstart"),
        ("curate run quickstart --source demo/nowhere --out x", "nowhere"),
        (
            "curate run quickstart --source demo/pictures --out x --set rules.bad='entropi > 3'",
            "did you mean entropy",
        ),
        ("curate run quickstart --source demo/pictures --out x --set rules.bad='entropy >'", "rule 'bad'"),
        ("curate run quickstart --source demo/pictures --out x --set limts.seconds=3", "did you mean limits"),
        ("manifest slice demo/manifest --where 'widht > 3' --out x", "did you mean width"),
        ("manifest show demo/pictures", "manifest"),
        ("train run lora --model demo/tiny-flux1 --data demo/slice --out x", "encode"),
        ("train resume demo/nowhere", "nowhere"),
        ("sample eular --model demo/tiny-flux1 --prompt x --out x.png", "did you mean euler"),
        ("sample euler --model demo/tiny-flux1 --prompt x --size 100x100 --out x.png", "96x96 or 112x112"),
        ("models show flux1-dave", "uhr models list"),
        ("curate", None),
        ("no-such-command", "no-such-command"),
    ],
)
def test_a_mistake_is_one_line_with_the_fix_and_not_exit_code_0(walked, command, words, monkeypatch, capsys):
    from uhr.cli import main

    monkeypatch.chdir(walked.folder)
    assert main(shlex.split(command)) != 0
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    if words is not None:
        assert len(error.splitlines()) == 1, error
        assert words in error
    assert not (walked.folder / "x").exists()
    assert not (walked.folder / "x.png").exists()
