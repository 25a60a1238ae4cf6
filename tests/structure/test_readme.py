"""README.md and docs/ are true: tables are current, named files exist, the stage and the pipeline work."""

import json
import re
import shlex
from pathlib import Path

import pytest

from uhr.base.config import parse_yaml
from uhr.manifests.schema import GROUPS

ROOT = Path(__file__).parents[2]
STAGE, PIPELINE = "mypkg/stages.py", "portraits-4k.yaml"


def test_the_schema_table_names_every_column(documents):
    rows = {
        title: re.findall(r"`(\w+)`", columns)
        for title, columns in re.findall(r"\| (.*?) \| (.*?) \|\n", documents.table("schema"))
    }
    assert {title: [c.name for c in columns] for title, columns in GROUPS.items()} == {
        title: names for title, names in rows.items() if names
    }


def test_the_table_of_gpus_is_what_plans_say(documents):
    from uhr.models.estimate.table import table

    assert documents.table("gpus") == table()


def test_every_row_of_the_table_is_what_its_command_plans_and_nothing_that_fits_is_faster(documents, capsys):
    from uhr.cli import main
    from uhr.models.estimate.cost import placements
    from uhr.models.estimate.plan import plan
    from uhr.models.estimate.table import ROWS, command
    from uhr.models.generate.request import Item, Request, parse_size

    def planned(arguments, *options):
        assert main([*arguments, "--plan", "--on", gpu, *options]) == 0
        return capsys.readouterr().out

    lines = [line for line in documents.table("gpus").splitlines() if "| `uhr sample " in line]
    for (gpu, call), line in zip(ROWS, lines, strict=True):
        arguments = shlex.split(command(gpu, call))[1:]
        assert f"| `{command(gpu, call)}` |" in line
        memory, host, time = line.rstrip(" |").split(" | ")[-3:]
        shown = planned(arguments)
        assert f"at most {memory}, at" in shown
        assert f"takes some {time}" in shown
        assert (f"; {host} of weights in the host's memory" in shown) == (host != "-")
        found = json.loads(planned(arguments, "--json"))
        assert found["memory"]["fits"], call
        sampler, _, size = call.partition(" --size ")
        planned_call = plan(
            Request(sampler=sampler, model="flux1-dev", size=parse_size(size)), Item(prompt="x"), gpu
        )
        others = [estimate.total for estimate in map(planned_call.estimate, placements()) if estimate.fits]
        assert found["seconds"]["total"] == pytest.approx(min(others)), call


def test_the_table_of_gpus_has_the_sizes_that_people_have():
    from uhr.models.estimate.devices import device
    from uhr.models.estimate.table import ROWS

    assert {device(gpu).sold for gpu, _ in ROWS} == {12, 24, 48, 80}


def test_the_plan_that_is_shown_is_what_its_command_prints(documents, capsys):
    from uhr.cli import main

    (command,) = documents.block("bash", "uhr sample ultragen --model flux1-dev").text.splitlines()
    (shown,) = [block for block in documents.blocks("text") if block.name == "plan"]
    assert main(shlex.split(command)[1:]) == 0
    # the width of the terminal decides where lines are broken
    assert capsys.readouterr().out.split() == shown.text.split()


def in_tree(documents) -> list[Path]:
    """Every path that the annotated tree names."""
    folder, named = "", []
    for line in documents.block("text", "manifests/        the format").text.splitlines():
        # names come first, one space apart; two or more spaces end them
        names = re.split(r" {2,}", line.strip())[0].split(" ")
        names = [name for name in names if re.fullmatch(r"[\w/]+(\.py|/)", name)]
        if not line.startswith(" "):
            folder = names[0]
        named += [ROOT / folder / name if line.startswith(" ") else ROOT / name for name in names]
    return named


def test_every_file_that_the_tree_names_exists(documents):
    named = in_tree(documents)
    assert len(named) > 50
    assert not [str(path) for path in named if not path.exists()]


def test_the_tree_names_every_package(documents):
    packages = {
        file.parent
        for top in ("curate", "manifests", "models", "train", "uhr")
        for file in (ROOT / top).rglob("__init__.py")
        if top != "uhr" or not any(part.is_symlink() for part in file.parents)
    }
    assert len(packages) > 30
    assert packages - set(in_tree(documents)) == set()


def test_the_tables_have_every_recipe_and_sampler(documents):
    from uhr.models.samplers import SAMPLERS
    from uhr.train.recipes import NAMES

    readme = documents.text("README.md")

    def first_column(header: str) -> list[str]:
        rows = readme.split(f"| {header} |")[1].split("\n\n")[0]
        return re.findall(r"^\| `([\w@-]+)`", rows, re.MULTILINE)

    assert first_column("recipe") == list(NAMES)
    assert set(first_column("sampler")) == set(SAMPLERS)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_a_heading(documents):
    broken, count = [], 0
    for document in (*documents.DOCUMENTS, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*/*.md")):
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            count += 1
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                broken.append(f"{document.name}: {link}")
    assert count > 20
    assert not broken


def test_decisions_are_numbered_from_one_and_each_number_once():
    files = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [file.name[:4] for file in files] == [f"{number:04d}" for number in range(1, len(files) + 1)]
    for file in files:
        assert file.read_text(encoding="utf-8").startswith(f"# {file.name[:4]}. "), file.name


def test_the_glossary_is_in_order(documents):
    terms = re.findall(r"^\| ([^|]+) \|", documents.text("docs/glossary.md"), re.MULTILINE)[1:]
    terms = [term.strip("`").lower() for term in terms if not term.startswith("--")]
    assert len(terms) > 40
    assert terms == sorted(terms)


def test_the_stage_in_the_docs_works(documents):
    import numpy as np

    space: dict = {}
    exec(compile(documents.block("python", "class Colourfulness").text, STAGE, "exec"), space)

    class Gray:
        rgb = np.full((4, 4, 3), 128, np.uint8)

    class Red:
        rgb = np.dstack([np.full((4, 4), 255, np.uint8), np.zeros((4, 4, 2), np.uint8)])

    stage = space["Colourfulness"]()
    assert stage.annotate(Gray()) == {"colourfulness": 0.0}
    assert stage.annotate(Red())["colourfulness"] == pytest.approx(0.3 * (255**2 + 127.5**2) ** 0.5)


def test_the_pipeline_in_the_docs_is_checked_as_a_user_would(documents, tmp_path, monkeypatch):
    from uhr.curate.config import load
    from uhr.curate.planning.plan import CurationPlan

    assert {PIPELINE, STAGE} <= {str(file.relative_to(tmp_path)) for file in documents.write_files(tmp_path)}
    assert parse_yaml((tmp_path / PIPELINE).read_text(), PIPELINE)["name"] == "portraits-4k"
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = CurationPlan.of(load(str(tmp_path / PIPELINE)))
    assert [rule.name for rule in plan.rules] == ["resolution", "tall", "flatness", "entropy", "native"]
    assert "colourfulness" in plan.schema.names
