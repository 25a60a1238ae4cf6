"""docs/reproduce: every command runs on tiny models, and the counts of sources are those of the recipes."""

import re
import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from uhr.cli import main
from uhr.manifests.writer import Provenance, write_manifest
from uhr.models.samplers.hiflow import PRESETS
from uhr.train.recipes import describe, resolve, unused

PAGES = Path(__file__).parents[2] / "docs" / "reproduce"
RECIPES = {
    "realuhr": ["gca-stage1", "gca-stage2"],
    "urae": ["urae-2k", "urae-4k@paper", "urae-4k@code"],
    "ultragen": ["ultragen"],
    "ultraflux": ["vae-f16", "ultraflux-stage1", "ultraflux-stage2"],
}
KINDS = ("paper", "code", "ours", "not mentioned")

BESIDES = ("name", "about", "phases.name", "runtime", "validation", "sampling", "on_nonfinite", "init")
"""Values of a recipe that do not describe the method."""


def kind_of(recipe, path, source):
    """Where a value comes from; asserts that its source says so in a way that is known here."""
    if source.startswith("as stage 1"):
        before = resolve(recipe.init.after)
        return kind_of(before, path, before.source(path))
    if source.startswith("ours"):
        return "ours"
    if re.match(r"(none|off|constant)\b|by default|the model's native size|the paper's loss has no", source):
        return "not mentioned"
    assert re.match(r"(RealUHR|URAE|UltraGen|UltraFlux)\b", source), source
    first = source.split(";")[0]
    in_paper = re.search(r"\b(section|paper)\b", first)
    return "code" if not in_paper and re.search(r"\b(code|configuration|README)\b", first) else "paper"


def counted(name):
    """How many values of a recipe have each source."""
    recipe = resolve(name)
    counts = dict.fromkeys(KINDS, 0)
    for row in describe(recipe):
        path = ".".join(part for part in row["path"].split(".") if not part.isdigit())
        if row["path"] in unused(recipe) or any(path == p or path.startswith(f"{p}.") for p in BESIDES):
            continue
        counts[kind_of(recipe, row["path"], row["source"])] += 1
    return counts


def sources_of(page):
    """The table of a page."""
    if page == "hiflow":
        paper, code = PRESETS["paper"], PRESETS["code"]
        assert paper.keys() == code.keys()
        differ = sum(paper[name] != code[name] for name in paper)
        lines = ["| preset | values | differ from the other |", "|--|--|--|"]
        return [*lines, *(f"| `{name}` | {len(PRESETS[name])} | {differ} |" for name in ("paper", "code"))]
    lines = [f"| recipe | values | {' | '.join(KINDS)} |", "|--|--|--|--|--|--|"]
    for name in RECIPES[page]:
        found = counted(name)
        lines.append(f"| `{name}` | {sum(found.values())} | {' | '.join(map(str, found.values()))} |")
    return lines


def test_there_is_a_page_for_each_paper():
    assert {path.stem for path in PAGES.glob("*.md")} == {*RECIPES, "hiflow"}


@pytest.mark.parametrize("page", [*RECIPES, "hiflow"])
def test_the_counts_of_sources_are_those_of_the_recipes(page):
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- sources: .*? -->\n\n?(.*?)\n?<!-- /sources -->", text, re.DOTALL)
    assert table.splitlines() == sources_of(page)


@pytest.fixture(scope="module")
def curated(tmp_path_factory, manifest_of) -> Path:
    """Images with every column that the recipes read, as curation would add them; three are patches."""
    folder = tmp_path_factory.mktemp("curated for papers")
    images = [{"name": f"{n}.png", "height": 64, "width": 64, "caption": f"image {n}"} for n in range(6)]
    table = manifest_of(folder, images).table()
    columns = {
        "caption_en": pa.array([f"a picture of {n}" for n in range(6)]),
        "parent_id": pa.array([None, None, None, "a", "b", "c"], pa.string()),
        "artimuse_rank": pa.array([0.01, 0.02, 0.03, 0.2, 0.4, 0.9]),
        "flat_fraction": pa.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    }
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    provenance = Provenance(folder / "pictures", {"kind": "test"})
    return write_manifest(folder / "with columns", table.schema, table.to_batches(), provenance).path


SMALLER = (
    (r"resolution=\d+", "resolution=64"),
    (r"buckets=ultraflux-4k", "buckets=square --set resolution=64"),
    (r"(train encode .*--out \S+)$", r"\1 --set buckets=square --set resolution=64"),
    (r"(train encode .*)$", r"\1 --workers 0 --device cpu"),
    (r"--set \S+network_file=\S+ --set \S+heads_file=\S+", "--set phases.0.objective.perceptual.weight=0"),
    (
        r"(train run .*)$",
        r"\1 --set phases.0.steps=1 --set phases.0.resolution=64 --set batch.size=1 --set batch.micro=1 "
        "--set runtime.precision=float32 --set runtime.gradient_checkpointing=false",
    ),
    (r"width >= \d+ AND height >= \d+", "width >= 64 AND height >= 64"),
    (r"--sample \d+", "--sample 2"),
    (r"(^uhr sample (?:euler|ultraflux) .*)--size \S+", r"\1--size 128x128"),
    (r"(^uhr sample (?!options).*)--size \d{4}\S+", r"\1--size 256x256"),
    (r"(^uhr sample (?!options).*)$", r"\1 --steps 2"),
    (r"(^uhr sample .*--prompts .*)$", r"\1 --engine local --workers 0"),
    (r"eval (generate|run) \S+( --prompts \S+)?", r"eval \1 uhr-default --first 1 --set size=256x256"),
    (r"--references ULTRA", ""),
    (r"(eval generate .*)$", r"\1 --steps 2 --workers 0"),
)
"""What is smaller than the pages show it, as (pattern, replacement)."""


@pytest.mark.usefixtures("copied_models")
@pytest.mark.parametrize("page", [*RECIPES, "hiflow"])
def test_every_command_of_a_page_works_on_tiny_models(
    page, curated, tiny_flux, tiny_f16, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("PROMPTS.txt", "CAPTIONS.txt"):
        (tmp_path / name).write_text("a lake\n")
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) > 5
    for shown in commands:
        command = shown
        for pattern, smaller in SMALLER:
            command = re.sub(pattern, smaller, command)
        models = {"black-forest-labs/FLUX.1-dev": tiny_flux, "F16-MODEL": tiny_f16}
        parts = [str(models.get(part, part)) for part in shlex.split(command)[1:]]
        if parts[:2] == ["curate", "run"]:
            # curation of tiny images needs their models: the preset is read, and its result is given
            assert main(["curate", "show", parts[2]]) == 0
            out = Path(parts[parts.index("--out") + 1])
            shutil.copytree(curated, out)
            continue
        assert main(parts) == 0, f"{shown}\n{command}\n{capsys.readouterr().err}"
