"""README.md says what is so: its tables are current, its tree exists, its stage and its pipeline work."""

import json
import re
import shlex
from pathlib import Path

import pytest

from uhr.base.config import parse_yaml
from uhr.manifests.schema import GROUPS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def test_the_schema_table_names_every_column():
    table = README.split("<!-- schema")[1].split("<!-- /schema")[0]
    rows = {
        title: re.findall(r"`(\w+)`", columns)
        for title, columns in re.findall(r"\| (.*?) \| (.*?) \|\n", table)
    }
    assert {title: [c.name for c in columns] for title, columns in GROUPS.items()} == {
        title: names for title, names in rows.items() if names
    }


def test_the_table_of_gpus_is_what_plans_say():
    from uhr.models.estimate.table import table

    assert README.split("<!-- gpus")[1].split("-->\n")[1].split("<!-- /gpus")[0] == table()


def test_every_row_of_the_table_is_what_its_command_plans_and_nothing_that_fits_is_faster(capsys):
    from uhr.cli import main
    from uhr.models.estimate.plan import plan
    from uhr.models.estimate.price import ways
    from uhr.models.estimate.table import ROWS, command
    from uhr.models.generate.request import Item, Request, parse_size

    def planned(words, *options):
        assert main([*words, "--plan", "--on", gpu, *options]) == 0
        return capsys.readouterr().out

    lines = [line for line in README.splitlines() if "| `uhr sample " in line]
    for (gpu, call), line in zip(ROWS, lines, strict=True):
        words = shlex.split(command(gpu, call))[1:]
        assert f"| `{command(gpu, call)}` |" in line
        memory, host, time = line.rstrip(" |").split(" | ")[-3:]
        shown = planned(words)
        assert f"at most {memory}, at" in shown
        assert f"takes some {time}" in shown
        assert (f"; {host} of weights in the host's memory" in shown) == (host != "-")
        found = json.loads(planned(words, "--json"))
        assert found["memory"]["fits"], call
        sampler, _, size = call.partition(" --size ")
        asked = plan(
            Request(sampler=sampler, model="flux1-dev", size=parse_size(size)), Item(prompt="x"), gpu
        )
        others = [price.total for price in map(asked.priced, ways()) if price.fits]
        assert found["seconds"]["total"] == pytest.approx(min(others)), call


def test_the_table_of_gpus_has_the_sizes_that_people_have():
    from uhr.models.estimate.devices import device
    from uhr.models.estimate.table import ROWS

    assert {device(gpu).memory >> 30 for gpu, _ in ROWS} == {12, 24, 48, 80}


def test_every_file_that_the_tree_names_is_there():
    folder, named = "", []
    for line in block("text", "manifests/        the contract").splitlines():
        # names stand at the beginning, one space apart; two or more spaces end them
        names = re.split(r" {2,}", line.strip())[0].split(" ")
        names = [name for name in names if re.fullmatch(r"\w+(\.py|/)", name)]
        if not line.startswith(" "):
            folder = names[0]
        named += [ROOT / folder / name if line.startswith(" ") else ROOT / name for name in names]
    assert len(named) > 30
    assert not [str(path) for path in named if not path.exists()]


def test_the_stage_in_the_readme_works(tmp_path, monkeypatch):
    import numpy as np

    code = block("python", "class Colourfulness")
    space: dict = {}
    exec(compile(code, "README.md", "exec"), space)

    class Gray:
        rgb = np.full((4, 4, 3), 128, np.uint8)

    class Red:
        rgb = np.dstack([np.full((4, 4), 255, np.uint8), np.zeros((4, 4, 2), np.uint8)])

    stage = space["Colourfulness"]()
    assert stage.annotate(Gray()) == {"colourfulness": 0.0}
    assert stage.annotate(Red())["colourfulness"] == pytest.approx(0.3 * (255**2 + 127.5**2) ** 0.5)


def test_the_pipeline_in_the_readme_is_checked_as_a_user_would(tmp_path, monkeypatch):
    from uhr.curate.config import load
    from uhr.curate.planning.plan import Plan

    text = block("yaml", "preset: multiaspect-4k")
    assert parse_yaml(text, "README.md")["name"] == "portraits-4k"
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "stages.py").write_text(
        block("python", "class Colourfulness").replace("Colourfulness", "Faces")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pipeline.yaml").write_text(text)
    plan = Plan.of(load(str(tmp_path / "pipeline.yaml")))
    assert [rule.name for rule in plan.rules] == ["resolution", "tall", "flatness", "entropy", "native"]
    assert "colourfulness" in plan.schema.names
