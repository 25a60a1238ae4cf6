"""The option that an error names exists in every command that can print the error."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from uhr.cli import app
from uhr.train.cli import IN_RECIPE

ROOT = Path(__file__).parents[2]

SAMPLE = ("sample euler",)
MODEL = (*SAMPLE, "train encode", "train run", "train plan", "models show")
UNITS = ("curate run", "train encode", *SAMPLE)
MANIFEST = ("manifest show", "manifest slice", "manifest verify", "manifest lineage", "manifest report")
TRAIN = ("train run", "train resume")

PRINTED_BY = {
    "uhr/fetch.py": ("fetch",),
    "curate/": ("curate run",),
    "manifests/writer.py": ("curate run", "manifest slice"),
    "manifests/parts.py": ("curate run", "manifest slice"),
    "manifests/cli.py": ("manifest slice",),
    "manifests/sources/": ("curate run",),
    "manifests/report/": ("manifest report",),
    "uhr/runtime/": UNITS,
    "manifests/browse/": ("manifest browse",),
    "manifests/compare/history.py": ("manifest history",),
    "manifests/export/": ("manifest export",),
    "manifests/info.py": ("manifest slice", "manifest export"),
    "manifests/selection/embeddings.py": ("manifest slice",),
    "manifests/selection/options.py": ("manifest slice",),
    "manifests/selection/select.py": ("manifest slice",),
    "manifests/selection/slicing.py": ("manifest slice",),
    "manifests/selection/reference.py": ("manifest slice",),
    "manifests/selection/sets.py": ("manifest union",),
    "manifests/forget/": ("manifest forget",),
    "manifests/verify/audit.py": ("manifest audit",),
    "manifests/places.py": ("manifest slice", "manifest union", "manifest difference"),
    "models/": SAMPLE,
    "models/loading/file_spec.py": MODEL,
    "models/publish/lora_file.py": ("train export",),
    "uhr/base/hub.py": ("sample",),  # only a repeat may not fetch
    "models/loading/model.py": (*SAMPLE, "train encode", *TRAIN),
    "models/loading/opening.py": MODEL,
    "models/loading/comfyui/": (*SAMPLE, "train encode", "train run", "train plan"),
    "models/cli.py": (*SAMPLE, "train encode", "train run", "train plan"),
    "models/specs/registry.py": MODEL,
    "models/generate/repeat.py": ("sample",),
    "train/run/estimate/estimate.py": ("train plan",),
    "train/evaluate/": ("eval run",),
    "train/evaluate/artifacts.py": ("eval artifacts",),
    "train/evaluate/compare/": ("eval compare",),
    "train/evaluate/checkpoints/": ("eval run",),
    "train/evaluate/generate.py": ("eval generate",),
    "train/evaluate/experiments/": ("eval experiment",),
    "train/evaluate/reconstruction/": ("eval vae",),
    "train/evaluate/judges/model.py": ("eval judge",),
    "train/evaluate/judges/study.py": ("eval study",),
    "train/encode/run.py": ("train encode",),
    "train/encode/": ("train encode",),
    "train/foreign/": ("train import",),
    "train/foreign/job.py": ("train run",),  # the commands that follow
    "train/run/exports/": ("train export",),
    "train/run/exports/text.py": SAMPLE,  # the command that uses the file
    "train/generate/run.py": SAMPLE,
    "train/generate/": SAMPLE,
    "train/run/": TRAIN,
    "train/run/job.py": TRAIN,
    "train/run/init.py": ("train run",),
    "train/run/trainer.py": TRAIN,
    "train/run/launch.py": TRAIN,
    "train/run/on_ray.py": TRAIN,
    "train/run/processes/parallel.py": TRAIN,
    "train/run/processes/shard.py": TRAIN,
    "train/data/": (*TRAIN, "train plan"),
    "train/objectives/": (*TRAIN, "train plan"),
    "train/trainable/": (*TRAIN, "train plan"),
    "train/recipes/core/base.py": (*TRAIN, "train plan"),
    "train/recipes/": ("train run", "train plan", "train show"),
    "uhr/base/config.py": ("curate run", "train run", "train encode", *SAMPLE),
    "uhr/base/paths.py": SAMPLE,  # it says that it is a sampler's
    "uhr/base/run_folder.py": (
        *("curate run", "manifest slice", "train encode", "train run", "train export", "demo"),
        *SAMPLE,
    ),
    "uhr/base/store.py": ("manifest report", "manifest audit", *SAMPLE),
    "uhr/demo/run.py": ("demo",),
    "uhr/sample/image_set.py": SAMPLE,
}
"""By the longest path that begins a module's: the commands that print what it says."""

ELSEWHERE = {
    # the commands that an experiment runs
    **{
        ("train/evaluate/experiments/commands.py", option): commands
        for commands, options in {
            ("train run",): "--config --data --init",
            ("eval generate",): "--sampler --adapter --guidance",
            (
                "eval generate",
                "eval run",
            ): "--set --steps --option --prompts --first --device --engine --workers",
            (
                "eval run",
            ): "--checkpoints --protocol --references --weights --allow-missing --images --trained-on --clip",
        }.items()
        for option in options.split()
    },
    ("train/evaluate/experiments/file.py", "--model"): ("train run", "eval generate"),
    ("train/evaluate/experiments/file.py", "--set"): ("train run",),
    ("train/evaluate/experiments/file.py", "--adapter"): ("eval generate",),
    ("manifests/browse/session.py", "--status"): ("manifest slice",),
    ("manifests/browse/session.py", "--where"): ("manifest slice",),
    ("train/data/reader.py", "--pixels"): ("train encode",),
    ("train/run/job.py", "--pixels"): ("train encode",),
    ("manifests/export/hf.py", "--split"): ("manifest slice",),
    ("manifests/export/plan.py", "--split"): ("manifest slice",),
    ("manifests/export/plan.py", "--where"): ("manifest slice",),
    ("uhr/runtime/ray.py", "--device"): SAMPLE,  # only there units have GPUs
    ("models/loading/opening.py", "--model"): (*SAMPLE, "train encode", "train run", "train plan"),
    ("models/loading/opening.py", "--base"): (
        *SAMPLE,
        "train encode",
        "train run",
        "train resume",
        "train plan",
    ),
    ("train/run/job.py", "--model"): ("train resume",),
    ("train/run/job.py", "--base"): ("train resume",),
    ("train/run/job.py", "--data"): ("train resume",),
    ("train/run/job.py", "--out"): ("train run",),
    ("uhr/demo/run.py", "--set"): ("train run",),
    ("uhr/demo/run.py", "--adapter"): SAMPLE,
    ("train/trainable/adapters.py", "--adapter"): SAMPLE,
    ("train/trainable/vae.py", "--vae"): SAMPLE,
    ("train/trainable/base.py", "--to"): ("train export",),
    ("train/run/exports/text.py", "--to"): ("train export",),
    ("train/trainable/adapters.py", "--to"): ("train export",),
    ("train/recipes/core/runtime.py", "--guidance"): SAMPLE,
    # the card's command that trains it again
    ("train/run/exports/export.py", "--data"): ("train run",),
    ("train/run/exports/export.py", "--init"): ("train run",),
    ("train/run/exports/export.py", "--set"): ("train run",),
    ("train/recipes/__init__.py", "--config"): ("train run", "train plan", "train show"),
}
"""Options of a module that fewer commands can print than the rest of it: `resume` finds its model by the run,
and `models show` recognises a backbone alone without a base."""

NO_ERRORS = (
    "/cli.py",
    "uhr/sample/command.py",
    "uhr/sample/options.py",
    "uhr/doctor.py",
    "models/publish/card.py",
    "train/foreign/kohya.py",
    "train/foreign/ai_toolkit.py",
    "train/foreign/simpletuner.py",
)
"""Definitions of commands and their help, a card that is read elsewhere, and tables of the settings of other
trainers, which name options of several commands."""

GROUPS = ("models", "train", "sample", "manifest", "curate", "eval")

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@functools.cache
def options_of(command: str) -> set[str]:
    """Every option of a command by its names, and those that are valid anywhere."""
    here, names = typer.main.get_command(app), command.split()
    for name in names:
        here = here.get_command(None, name.replace("SAMPLER", "euler"))
        assert here is not None, command
    return {option for each in here.params for option in each.opts} | {"--debug", "--help"}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a module that is no docstring; what is filled in reads `{}`, and the
    arguments of a command in a call or a tuple read as one command line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [getattr(node, "body", None) for node in ast.walk(tree)]
    skipped = {
        id(each.value)
        for body in bodies
        if isinstance(body, list)
        for each in body
        if isinstance(each, ast.Expr)
    }
    for node in ast.walk(tree):
        nodes = node.args if isinstance(node, ast.Call) else getattr(node, "elts", ())
        known = [
            word.value for word in nodes if isinstance(word, ast.Constant) and isinstance(word.value, str)
        ]
        if len(known) > 1 and known[0] in GROUPS:
            skipped |= {id(word) for word in nodes}
            yield node.lineno, f"`uhr {' '.join(known)}`"
        elif isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def arguments(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every argument that a fix says to give (`UserError.give`), where it is written out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "give" and isinstance(node.value, ast.Dict):
            for key in node.value.keys:
                yield node.value.lineno, key.value if isinstance(key, ast.Constant) else ""


def modules() -> list[Path]:
    found = [
        path
        for package in ("manifests", "models", "curate", "train")
        for path in (ROOT / package).rglob("*.py")
    ]
    found += [
        *(ROOT / "uhr").glob("*.py"),
        *(ROOT / "uhr" / "base").glob("*.py"),
        *(ROOT / "uhr" / "pixels").glob("*.py"),
    ]
    return sorted(path for path in found if not str(path).endswith(NO_ERRORS))


def printed_by(name: str, option: str) -> tuple[str, ...]:
    if (name, option) in ELSEWHERE:
        return ELSEWHERE[name, option]
    prefix = max((prefix for prefix in PRINTED_BY if name.startswith(prefix)), key=len, default=None)
    assert prefix is not None, f"{name} names {option}: say in PRINTED_BY which commands print it"
    return PRINTED_BY[prefix]


def commands_in(text: str) -> tuple[str, list[tuple[str, str]]]:
    """(the text without the command lines in it, [(command, option) in those])."""
    found, text = [], text.replace("\\\n", " ")
    for quoted in re.findall(rf"`uhr [^`]*`|uhr (?:{'|'.join(GROUPS)}) .*", text):
        line = quoted.strip("`")
        parts = line.split()[1:]
        names = parts[: 1 + (parts[0] in GROUPS)]
        for part in re.split(r"\bthen uhr\b", line):
            found += [(" ".join(names), option) for option in OPTION.findall(part)]
        text = text.replace(quoted, "")
    return text, found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_that_a_module_names_exists_in_the_commands_that_print_it(path):
    name = str(path.relative_to(ROOT))
    wrong = []
    for line, text in strings(path):
        rest, named = commands_in(text)
        for option in OPTION.findall(rest):
            named += [(command, option) for command in printed_by(name, option)]
        wrong += [
            (line, *pair) for pair in named if pair[1] not in options_of(pair[0].replace("{}", "euler"))
        ]
    for line, argument in arguments(path):
        option = f"--{argument.replace('_', '-')}"
        commands = printed_by(name, option)
        missing = {command for command in commands if argument and option not in options_of(command)}
        # these word it as a value of the recipe
        missing -= set(TRAIN) if argument in IN_RECIPE else set()
        wrong += [(line, command, option) for command in sorted(missing)]
    assert not wrong


def test_options_that_do_not_exist_would_be_found(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""--not-read"""\nraise UserError(f"{a} is no b", "give --cde", give={"fgh": "i"})\n')
    assert list(strings(file)) == [(2, "{} is no b"), (2, "give --cde"), (2, "fgh"), (2, "i")]
    assert list(arguments(file)) == [(2, "fgh")]
    assert commands_in("or `uhr train run --nope 1` --other")[1] == [("train run", "--nope")]
    assert "--cde" not in options_of("train run")
    assert "--model" in options_of("sample SAMPLER")


def test_commands_that_name_a_model_name_it_alike():
    """A fix that says how to name a model can be followed wherever one is named."""
    for command in (*SAMPLE, "train encode", "train run", "train plan"):
        assert {"--model", "--base", "--spec"} <= options_of(command), command
