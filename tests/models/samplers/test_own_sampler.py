"""A sampler of the user's own: the example of docs/extending-samplers.md, as a user would run it."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uhr.cli import main
from uhr.models import zoo
from uhr.models.adapters.plain import LoraSpec
from uhr.models.generate.record import read_record
from uhr.models.publish.export import export_lora
from uhr.models.samplers import sampler_class

pytestmark = pytest.mark.usefixtures("short_prompts")

DOC = Path(__file__).parents[3] / "docs" / "extending-samplers.md"
NAME = "latent_upscale:LatentUpscale"
FAMILIES = {"flux1": "tiny-flux1", "flux2": "tiny-flux2"}


@pytest.fixture(scope="module")
def example():
    """The source of the example."""
    (found,) = re.findall(r"<!-- latent_upscale\.py:.*?-->\n```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    return found


@pytest.fixture
def here(example, tmp_path, monkeypatch):
    """The current folder, with the example in it and no trace of it before or after."""
    (tmp_path / "latent_upscale.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "latent_upscale", raising=False)
    yield tmp_path
    sys.modules.pop("latent_upscale", None)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tiny_flux, tiny_flux2):
    return {"flux1": tiny_flux, "flux2": tiny_flux2}[family]


@pytest.fixture
def adapter(family, folder, trained, facts, tmp_path):
    """The folder of an exported LoRA."""
    lora = LoraSpec(4, zoo.get(FAMILIES[family]).lora_target_sets["attention"], alpha=2)
    _, state = trained(folder, lora)
    return export_lora(state, lora, tmp_path / "lora", facts(spec=zoo.get(FAMILIES[family])))


def command(folder, *more):
    arguments = [
        "sample",
        NAME,
        "--model",
        folder,
        "--prompt",
        "a lake",
        "--steps",
        "4",
        "--device",
        "cpu",
        *more,
    ]
    return [str(argument) for argument in arguments]


def test_it_is_one_file_of_some_sixty_lines(example):
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 70


def test_by_command_it_runs_with_an_adapter_and_its_record_has_every_value(here, folder, adapter, capsys):
    size = ["--size", "192x256"]
    assert main(command(folder, *size, "--out", "plain.png")) == 0, capsys.readouterr().err
    more = ["--set", "detail=0.5", "--adapter", f"{adapter}=0.7", "--previews", "previews"]
    assert main(command(folder, *size, "--out", "a.png", *more)) == 0, capsys.readouterr().err
    record = read_record(Path("a.png"))
    assert (record["sampler"], record["width"], record["height"]) == (NAME, 192, 256)
    assert record["details"]["settings"]["detail"] == 0.5
    base, high = record["details"]["stages"]
    assert (base["name"], high["name"], len(high["sigmas"]) - 1) == ("base", "192x256", 3)
    assert record["model_calls"] == len(base["sigmas"]) - 1 + 3
    assert "rope-ntk" in [each["surgery"] for each in record["details"]["surgeries"]]
    assert Path("previews/a-1-base.png").exists()
    assert not np.array_equal(*(np.asarray(Image.open(name)) for name in ("plain.png", "a.png")))
    # a record may come from anybody: its code runs only where it is named
    again = ["sample", "--repeat", "a.png", "--out", "b.png"]
    assert main(again) == 1
    assert f"name it: --sampler {NAME}" in capsys.readouterr().err
    assert main([*again, "--sampler", NAME]) == 0, capsys.readouterr().err
    assert "identical" in capsys.readouterr().out


def test_an_image_of_any_size_is_enlarged(here, folder, capsys):
    Image.new("RGB", (97, 131), "teal").save("given.png")
    assert main(command(folder, "--image", "given.png", "--scale", "1.5", "--out", "a.png")) == 0
    assert Image.open("a.png").size == (146, 196)
    assert read_record(Path("a.png"))["model_calls"] == 3


def test_it_is_planned_without_weights(here, family, capsys):
    call = command(FAMILIES[family], "--size", "192x256", "--plan", "--json")
    assert main(call) == 0
    plan = json.loads(capsys.readouterr().out)
    base = zoo.get(FAMILIES[family]).steps
    assert [(stage["name"], stage["calls"]) for stage in plan["stages"]] == [("base", base), ("192x256", 3)]
    assert [stage["vae"] for stage in plan["stages"]] == [
        [],
        [{"part": "decode", "height": 256, "width": 192, "count": 1}],
    ]
    assert plan["model_calls"] == base + 3
    assert main(command(FAMILIES[family], "--size", "100x256", "--plan")) == 1
    assert "nearest 96x256 or 112x256" in capsys.readouterr().err


def test_its_options_are_listed_with_their_meanings(here, capsys):
    assert main(["sample", "options", NAME, "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["detail"]["meaning"].startswith("how much of the velocity's high frequencies")
    assert {"toolkit.ntk", "guidance_high", "strength", "native_size"} <= set(listed)


def test_it_is_a_diffusers_pipeline_of_each_family(here, family, folder):
    cls = sampler_class(NAME, family)
    assert cls is sampler_class(NAME, family)
    pipeline = cls.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    output = pipeline(
        "a lake", height=192, width=192, num_inference_steps=4, detail=0.2, return_stages=True,
        callback_on_step_end=lambda p, step, time, tensors: seen.append(step) or {}, output_type="pt",
    )  # fmt: skip
    assert output.images.shape == (1, 3, 192, 192)
    assert output.stages[0].shape == (1, 3, 128, 128)
    assert len(seen) == pipeline.model_calls == pipeline.last_run.plan.steps
    assert "detail:   how much" in cls.__doc__
