"""Images of the stages before the last, and the progress that is reported."""

import json

import numpy as np
import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models.generate import record
from uhr.models.generate.request import Item, Request
from uhr.models.generate.session import Session
from uhr.models.generate.setup import Setup
from uhr.models.samplers import SAMPLERS, find_sampler

pytestmark = pytest.mark.usefixtures("short_prompts")

SETS = {
    "sdedit": {"strength": 0.5},
    "multidiffusion": {"strength": 0.5},
    "patch-cascade": {"base_steps": 2},
    "ultragen": {"base_steps": 2},
    "hiflow": {"cascade": [1.5, 2]},
}
STAGED = [name for name in SAMPLERS if name not in ("euler", "ultraflux")]


def request(sampler, model, **more):
    options = SETS.get(sampler, {})
    return Request(sampler=sampler, model=str(model), steps=2, device="cpu", options=options, **more)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_earlier_stage_is_returned_and_every_call_reported(sampler, tiny_flux):
    setup = Setup.of(request(sampler, tiny_flux, size=(256, 256)))
    call = setup.call(Item(prompt="a lake"))
    planned = call.plan.stages
    session = Session(setup)
    heard = []
    generated = session.generate(call, lambda n=1, note=None, total=None: heard.append((n, note, total)))
    check_reports(call, generated, heard)
    assert generated.stages == []
    if sampler not in STAGED:
        return
    with_stages = session.generate(call, stages=True)
    assert [name for name, _ in with_stages.stages] == setup.preview_names(call)
    assert [image.size for _, image in with_stages.stages] == [s.size[::-1] for s in planned[:-1]]
    # previews change nothing, and neither does what was generated before
    assert np.array_equal(np.asarray(generated.image), np.asarray(with_stages.image))
    assert generated.record == with_stages.record


def check_reports(call, generated, heard):
    (total,) = {total for _, _, total in heard if total is not None}
    planned = call.plan.stages
    assert total == sum(n for n, _, _ in heard) == generated.record["model_calls"] == call.plan.model_calls
    notes = [note for n, note, _ in heard if n and note]
    assert list(dict.fromkeys(notes)) == [stage.name for stage in planned]
    # patches are decoded one by one
    assert heard[-2][1] == "decoding"
    assert heard[-1] == (0, "", None)


def test_two_passes_a_step_are_counted_too(tiny_flux):
    guided = request("euler", tiny_flux).model_copy(update={"options": {"true_cfg_scale": 2}})
    setup = Setup.of(guided)
    heard = []
    generated = Session(setup).generate(
        setup.call(Item(prompt="a lake", negative="ugly", size=(64, 64))),
        lambda n=1, note=None, total=None: heard.append((n, total)),
    )
    assert generated.record["model_calls"] == 4
    assert sum(n for n, _ in heard) == next(total for _, total in heard if total)


def test_the_command_writes_them_next_to_no_record(tiny_flux, tmp_path, capsys):
    arguments = [
        "sample",
        "hiflow",
        "--model",
        str(tiny_flux),
        "--prompt",
        "x",
        "--out",
        f"{tmp_path}/lake.png",
    ]
    sets = ["--steps", "2", "--size", "256x256", "--set", "cascade=[1.5, 2]"]
    assert main([*arguments, *sets, "--previews", f"{tmp_path}/new/folder"]) == 0, capsys.readouterr().err
    found = {path.name: Image.open(path) for path in (tmp_path / "new" / "folder").iterdir()}
    assert {name: image.size for name, image in found.items()} == {
        "lake-1-base.png": (128, 128),
        "lake-2-192x192.png": (192, 192),
    }
    assert all("uhr" not in image.text for image in found.values())
    assert json.loads((tmp_path / "lake.json").read_text())["width"] == 256


def test_they_replace_earlier_ones_and_nothing_else(tiny_flux, tmp_path, capsys, monkeypatch):
    from uhr.models.loading import model as loading

    previews, out = tmp_path / "previews", tmp_path / "lake.png"
    arguments = ["sample", "sdedit", "--model", str(tiny_flux), "--prompt", "x", "--steps", "4", "--size"]
    arguments += ["128x128", "--device", "cpu", "--out", str(out), "--previews", str(previews)]
    assert main(arguments) == 0
    (file,) = previews.iterdir()
    before = file.read_bytes()
    assert main(arguments) == 0
    assert file.read_bytes() == before
    monkeypatch.setattr(loading, "load_component", None)
    record.check_stages([file, previews / "none.png"], given=out)
    with pytest.raises(UserError, match="a preview would replace it"):
        record.check_stages([file], given=file)
    Image.new("RGB", (8, 8)).save(file)
    assert main(arguments) == 1
    assert f"{file} already exists, and a preview would replace it" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["euler", "ultraflux"])
def test_of_one_stage_there_are_none_which_is_reported_before_anything_is_loaded(
    sampler, tiny_flux, tmp_path, capsys, monkeypatch
):
    from uhr.models.loading import model as loading

    monkeypatch.setattr(loading, "load_component", None)
    arguments = [
        "sample",
        sampler,
        "--model",
        str(tiny_flux),
        "--prompt",
        "x",
        "--out",
        f"{tmp_path}/lake.png",
    ]
    assert main([*arguments, "--previews", f"{tmp_path}/previews"]) == 1
    assert f"{sampler} generates this image in one stage" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_sampler_that_generates_in_stages_is_tested_here():
    for name in SAMPLERS:
        assert find_sampler(name).takes_image == (name in STAGED), name
