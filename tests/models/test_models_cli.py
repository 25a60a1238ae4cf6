"""`uhr models`, in process: what people and machines get, and one line for each mistake."""

import json
import re
import shlex
import shutil

import pytest

from uhr.models import zoo
from uhr.models.loading.hashes import hash_of
from uhr.models.samplers import SAMPLERS
from uhr.models.specs.registry import SPECS
from uhr.train.recipes import resolve


def test_list_names_every_backbone_and_its_commercial_use(run):
    rows = json.loads(run("models", "list", "--json").out)["models"]
    assert {row["name"]: row["commercial_use"] for row in rows} == {
        name: zoo.get(name).licence.commercial for name in zoo.names()
    }
    text = run("models", "list").out
    assert all(name in text for name in zoo.names())


def test_list_says_per_sampler_which_weights_exist(run):
    rows = json.loads(run("models", "list", "--json").out)["samplers"]
    assert {row["name"]: row["weights"] for row in rows} == {
        name: info.weights for name, info in SAMPLERS.items()
    }
    text = " ".join(run("models", "list").out.split())
    assert "Owen777/UltraFlux-v1" in text


def test_show_prints_tokens_guidance_and_licence_of_a_spec_and_of_a_folder(run, tiny_flux):
    value = json.loads(run("models", "show", "flux1-dev", "--json").out)
    assert value["tokens"]["4096x4096"] == 65536
    assert (value["guidance"], value["licence"]["commercial"]) == ("embedded", False)
    printed = run("models", "show", "flux1-dev").out
    for text in (
        "commercial use forbidden",
        "65,536",
        "uhr sample euler --model black-forest-labs/FLUX.1-dev",
    ):
        assert text in printed
    found = json.loads(run("models", "show", tiny_flux, "--json").out)
    assert found["name"] == "tiny-flux1"
    assert found["bytes"]["transformer"] > 1_000_000
    assert "on disk" in run("models", "show", tiny_flux).out


def test_show_knows_a_backbones_lone_file(run, tiny_flux):
    (file,) = (tiny_flux / "transformer").glob("*.safetensors")
    found = json.loads(run("models", "show", file, "--json").out)
    assert (found["name"], found["bytes"]) == ("tiny-flux1", {"transformer": file.stat().st_size})
    text = run("models", "show", file).out
    assert f"uhr sample euler --model {shlex.quote(str(file))} --base DIR" in text
    assert f"uhr train encode SLICE --model {shlex.quote(str(file))} --base DIR" in text


@pytest.mark.parametrize("name", SPECS)
def test_the_training_command_that_show_prints_fits_the_model(run, name):
    (line,) = [line for line in run("models", "show", name).out.splitlines() if "uhr train run" in line]
    words = shlex.split(line.partition("uhr train run ")[2])
    assert words[1::2] == ["--set"] * (len(words) // 2)
    resolve(words[0], sets=words[2::2]).check(SPECS[name])


def test_show_knows_a_transformers_own_folder_and_one_of_fewer_blocks(run, tiny_flux, tmp_path):
    folder = shutil.copytree(tiny_flux / "transformer", tmp_path / "alone")
    found = json.loads(run("models", "show", folder, "--json").out)
    assert (found["name"], found["file"]) == ("tiny-flux1", str(folder))
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 1}))
    error = run("models", "show", folder, code=1).err
    assert error.strip().endswith("name it: --spec NAME")
    assert "tiny-flux1" in run("models", "show", folder, "--spec", "tiny-flux1").out


def test_each_tiny_model_is_named_with_the_command_that_makes_it(run, tmp_path):
    rows = run("models", "list").out.splitlines()
    for name in ("tiny-flux1", "tiny-flux2", "tiny-flux2-base"):
        (row,) = (row for row in rows if row.startswith(f"{name} "))
        assert row.endswith(f"make it: uhr models make-tiny DIR --spec {name}")


def test_wrong_usage_is_reported_with_the_right_one(fails, tmp_path):
    line = fails("models", "make-tiny", "tiny-flux1", "--out", tmp_path / "t1", code=2)
    assert "No such option: --out" in line
    assert re.search(r"\(Usage: uhr models make-tiny \[OPTIONS\] .?DIR.?\)$", line)


def test_make_tiny_makes_what_the_zoo_makes(run, fails, tiny_flux, tmp_path):
    run("models", "make-tiny", tmp_path / "m", "--seed", 0)
    assert hash_of(tmp_path / "m" / "transformer") == hash_of(tiny_flux / "transformer")
    assert "already contains something else" in fails("models", "make-tiny", tmp_path / "m")
