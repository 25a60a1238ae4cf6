"""Which module may import which: each rule of `import_rules.py` holds for this repository, and each finds a
violation that is planted in a small tree.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RULES = (
    "wrong_directions",
    "bare_names",
    "heavy_at_module_level",
    "heavy_at_start",
    "wrong_rungs",
    "module_cycles",
    "package_cycles",
)


@pytest.mark.parametrize("rule", RULES)
def test_this_repository_keeps_the_rule(rule, rules):
    assert getattr(rules, rule)(ROOT) == []


PLANTED = {
    "curate imports train, inside a function": (
        "wrong_directions",
        {"curate/a.py": "def f():\n    from uhr.train import b\n", "train/b.py": ""},
        ["uhr.curate.a:2 imports uhr.train.b"],
    ),
    "base imports pixels": (
        "wrong_directions",
        {
            "uhr/base/a.py": "import uhr.pixels.b",
            "uhr/pixels/b.py": "from uhr.base import c",
            "uhr/base/c.py": "",
        },
        ["uhr.base.a:1 imports uhr.pixels.b"],
    ),
    "pixels imports the runtime, relatively": (
        "wrong_directions",
        {"uhr/pixels/a.py": "from ..runtime.b import c", "uhr/runtime/b.py": ""},
        ["uhr.pixels.a:1 imports uhr.runtime.b"],
    ),
    "models imports manifests by a string": (
        "wrong_directions",
        {"models/samplers/__init__.py": "A = 'uhr.manifests.b:B'", "manifests/b.py": ""},
        ["uhr.models.samplers:1 imports uhr.manifests.b"],
    ),
    "a package imports the command": (
        "wrong_directions",
        {"train/a.py": "from uhr import cli", "uhr/cli.py": "import uhr.train.a"},
        ["uhr.train.a:1 imports uhr.cli"],
    ),
    "a module with no place": (
        "wrong_directions",
        {"uhr/new/a.py": ""},
        ["uhr.new.a belongs to no package of MAY_IMPORT"],
    ),
    "bare names, in every folder and its folders": (
        "bare_names",
        {
            "models/ops/a.py": "from models.ops import b",
            "uhr/demo/a.py": "import uhr.train",
            "uhr/base/a.py": "def f():\n    import curate",
            "tests/train/a.py": "import numpy, train",
            "benchmarks/gpu/a.py": "import importlib\nimportlib.import_module('manifests.sql')",
        },
        [
            "models/ops/a.py:1 imports models.ops.b",
            "uhr/base/a.py:2 imports curate",
            "tests/train/a.py:1 imports train",
            "benchmarks/gpu/a.py:2 imports manifests.sql",
        ],
    ),
    "a heavy package in a top-level try, if, with or class, not in a function or for type checkers": (
        "heavy_at_module_level",
        {
            "manifests/a.py": "try:\n    import PIL.Image\nexcept ImportError:\n    import cv2",
            "manifests/b.py": "if TYPE_CHECKING:\n    import ray\nelse:\n    import torch",
            "manifests/c.py": "if typing.TYPE_CHECKING:\n    import ray\ndef f():\n    import ray",
            "manifests/d.py": "with quiet():\n    from transformers import CLIPTextModel",
            "manifests/e.py": "class A:\n    import numba",
            "manifests/f.py": "import importlib\nray = importlib.import_module('ray')",
        },
        [
            "uhr.manifests.a:2 imports PIL.Image",
            "uhr.manifests.a:4 imports cv2",
            "uhr.manifests.b:4 imports torch",
            "uhr.manifests.d:2 imports transformers.CLIPTextModel",
            "uhr.manifests.e:2 imports numba",
            "uhr.manifests.f:2 imports ray",
        ],
    ),
    "diffusers where only torch may be imported": (
        "heavy_at_module_level",
        {"models/vae/a.py": "import torch\nimport diffusers"},
        ["uhr.models.vae.a:2 imports diffusers"],
    ),
    "the command imports numpy and torch on its way": (
        "heavy_at_start",
        {
            "uhr/cli.py": "from uhr.train.cli import app",
            "train/cli.py": "from uhr.models.ops import a\ndef f():\n    import uhr.train.late",
            "train/late.py": "import torch",
            "train/__init__.py": "if True:\n    import numpy",
            "models/ops/a.py": "from torch import nn",
        },
        ["uhr.models.ops.a:1 imports torch.nn", "uhr.train:2 imports numpy"],
    ),
    "a lower rung imports a higher one, inside a function": (
        "wrong_rungs",
        {
            "models/ops/a.py": "def f():\n    import uhr.models.vae.b",
            "models/vae/b.py": "import uhr.models.ops.a",
        },
        ["uhr.models.ops.a:2 imports uhr.models.vae.b"],
    ),
    "a lower module names a higher one in a string, and is no registry": (
        "wrong_rungs",
        {
            "curate/stage.py": "A = f'{__name__}.x'\nB = 'uhr.curate.stages.b:B'",
            "curate/stages/__init__.py": "HERE = 'uhr.curate'\nA = f'{HERE}.run:Run'",
            "curate/stages/b.py": "",
            "curate/run.py": "",
        },
        ["uhr.curate.stage:2 imports uhr.curate.stages.b"],
    ),
    "the front of a package imports a part of it": (
        "wrong_rungs",
        {"train/__init__.py": "from uhr.train import run", "train/run/__init__.py": ""},
        ["uhr.train:1 imports uhr.train.run"],
    ),
    "the scorers import what is below them and not theirs": (
        "wrong_rungs",
        {
            "models/scores/a.py": "from uhr.models.loading.b import c\nfrom uhr.models.vae.b import c",
            "models/loading/b.py": "",
            "models/vae/b.py": "",
        },
        ["uhr.models.scores.a:2 imports uhr.models.vae.b"],
    ),
    "a package without a rung": (
        "wrong_rungs",
        {"train/evaluation/a.py": ""},
        ["uhr.train.evaluation.a has no place in LADDERS"],
    ),
    "two modules import each other, one inside a function": (
        "module_cycles",
        {
            "manifests/a.py": "from uhr.manifests.b import x",
            "manifests/b.py": "def f():\n    from uhr.manifests import a",
            "manifests/c.py": "import uhr.manifests.a",
        },
        ["uhr.manifests.a and uhr.manifests.b"],
    ),
    "three modules in a circle, one by a string": (
        "module_cycles",
        {
            "uhr/runtime/a.py": "import uhr.runtime.b",
            "uhr/runtime/b.py": "import uhr.runtime.c",
            "uhr/runtime/c.py": "WORKER = 'uhr.runtime.a'",
            "train/recipes/__init__.py": "A = f'{__name__}.lora:RECIPE'",
            "train/recipes/lora.py": "import uhr.train.recipes",
        },
        ["uhr.runtime.a and uhr.runtime.b and uhr.runtime.c"],
    ),
    "two packages import each other's modules": (
        "package_cycles",
        {
            "models/vae/a.py": "import uhr.models.vae.inner.d",
            "models/vae/inner/d.py": "import uhr.models.vae.c",
            "models/vae/b.py": "import uhr.models.ops.e",
            "models/vae/c.py": "",
            "models/ops/e.py": "",
            "models/ops/f.py": "import uhr.models.vae.c",
        },
        ["uhr.models.ops and uhr.models.vae"],
    ),
}
"""What is planted -> the rule that finds it, the files, and what it reports."""


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_violation_is_found(planted, tmp_path, rules):
    rule, files, expected = PLANTED[planted]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "uhr").mkdir(exist_ok=True)
    for name in rules.LINKED:
        (tmp_path / "uhr" / name).symlink_to(f"../{name}")
    assert getattr(rules, rule)(tmp_path) == expected


def test_every_rule_is_tested_on_both():
    assert {rule for rule, _, _ in PLANTED.values()} == set(RULES)


def test_the_tables_name_only_what_exists_and_is_needed(rules):
    ours = rules.modules(ROOT)
    ladders = {f"{package}.{name}" for package, names in rules.LADDERS.items() for name in names.split()}
    assert ours.keys() >= {*rules.MAY_IMPORT, *rules.COMMANDS, *rules.HEAVY_AT_MODULE_LEVEL, *ladders}
    assert {edge.source for edge in rules.edges(ROOT) if edge.found.by_string} >= set(rules.REGISTRIES)
    for package, may in rules.HEAVY_AT_MODULE_LEVEL.items():
        found = {
            each.name.split(".")[0]
            for module, path in ours.items()
            if rules.longest(module, rules.HEAVY_AT_MODULE_LEVEL) == package
            for each in rules.imports_of(path, module)
            if each.at_start
        }
        assert found >= may, package


def test_the_command_starts_without_any_heavy_package(rules):
    """As `heavy_at_start`, with what other people's packages import counted in."""
    code = f"import sys, uhr.cli; print(sorted(set(sys.modules) & {rules.NOT_AT_START!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_four_packages_are_relative_links_to_the_top_level(rules):
    for name in rules.LINKED:
        assert os.readlink(ROOT / "uhr" / name) == f"../{name}"
