"""`uhr sample`, in process: what people and machines get, and one line for each mistake."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.cli import main
from uhr.models.generate.record import read_record
from uhr.models.loading.hashes import config_hash, hash_of

pytestmark = pytest.mark.usefixtures("short_prompts")


def test_the_samplers_are_listed_with_the_weights_that_they_take(run):
    rows = json.loads(run("sample", "list", "--json").out)
    assert "euler" in {row["name"] for row in rows}
    assert "euler" in run("sample", "list").out


def sample(model, out, *more, sampler="euler"):
    return (
        "sample", sampler, "--model", model, "--prompt", "a lake", "--out", out,
        "--size", "64x96", "--steps", "2", "--device", "cpu", *more,
    )  # fmt: skip


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_levels_that_are_given_are_the_steps_and_take_no_number_next_to_them(run, fails, tiny_flux, tmp_path):
    out = tmp_path / "lake.png"
    arguments = ("--model", tiny_flux, "--prompt", "x", "--size", "64x64", "--set", "sigmas=[1, 0.5, 0.2]")
    run("sample", "euler", *arguments, "--out", out)
    record = read_record(out)
    assert (record["steps"], record["model_calls"], record["sigmas"]) == (3, 3, [1, 0.5, 0.2, 0])
    output = fails("sample", "euler", *arguments, "--steps", 5, "--out", tmp_path / "other.png")
    assert "both 5 steps and sigmas" in output
    assert not (tmp_path / "other.png").exists()


def test_weights_that_are_replaced_while_they_are_loaded_are_in_no_record(
    run, fails, tiny_flux, tmp_path, monkeypatch
):
    """Their hash would be that of the new file, and the image that of the old one."""
    from uhr.models.loading import model as loading

    model = tmp_path / "model"
    shutil.copytree(tiny_flux, model)
    (file,) = (model / "vae").glob("*.safetensors")
    load = loading.load_pipeline

    def then_replaced(*given, **named):
        pipeline = load(*given, **named)
        file.chmod(0o600)
        shutil.copy(file, tmp_path / "new")
        if replace:
            (tmp_path / "new").replace(file)
        return pipeline

    monkeypatch.setattr(loading, "load_pipeline", then_replaced)
    replace = False
    run(*sample(model, tmp_path / "a.png"))
    replace = True
    error = fails(*sample(model, tmp_path / "b.png"))
    assert f"{file} changed after it was checked: run the command again" in error
    assert not (tmp_path / "b.png").exists()


def test_an_image_is_made_and_says_in_itself_how(run, tiny_flux, tmp_path):
    out = tmp_path / "new folder" / "lake.png"
    output = run(*sample(tiny_flux, out, "--seed", 7)).out
    assert Image.open(out).size == (64, 96)
    record = read_record(out)
    assert (record["sampler"], record["prompt"], record["seed"]) == ("euler", "a lake", 7)
    assert (record["width"], record["height"], record["steps"], record["model_calls"]) == (64, 96, 2, 2)
    assert (record["model"]["spec"], record["dtype"], record["device"]) == ("tiny-flux1", "float32", "cpu")
    assert record["sigmas"][0] == 1
    # the card's guidance was filled in, and both the terminal and the file say so
    assert record["guidance"] == 3.5
    assert "guidance 3.5" in output
    assert Image.open(out).text.keys() == {"uhr"}


@pytest.mark.parametrize(("family", "encoder"), [("flux1", "t5"), ("flux2", "qwen3")])
def test_a_prompt_that_is_cut_is_reported_in_one_line_and_in_the_record(
    run, request, tmp_path, family, encoder, monkeypatch
):
    monkeypatch.undo()  # prompts of 512 tokens
    model, out = request.getfixturevalue(f"tiny_{family}".removesuffix("1")), tmp_path / "lake.png"
    arguments = ("sample", "euler", "--model", model, "--size", "64x64", "--steps", 1, "--device", "cpu")
    prompt = "a lake " * 200
    output, err = run(*arguments, "--prompt", prompt, "--out", out)
    for record in (read_record(out), json.loads(out.with_suffix(".json").read_text())):
        (note,) = record["details"]["notes"]
        found = next(each for each in record["details"]["text_tokens"] if each["encoder"] == encoder)
        assert found["tokens"][0] > found["reads"] == 512
        assert (
            note == f"the prompt has {found['tokens'][0]:,} tokens, {encoder} reads 512: its end is not read"
        )
    assert (output + err).count(note) == 1
    assert prompt[-50:] not in output + err
    assert "indexing errors" not in err
    # a plan knows it too, by the tokenizers
    planned, _ = run(*arguments, "--prompt", prompt, "--plan")
    assert planned.endswith(f"note: {note}\n")
    described = json.loads(run(*arguments, "--prompt", prompt, "--plan", "--json").out)
    assert described["notes"] == [note]
    short = json.loads(run(*arguments, "--prompt", "a lake", "--plan", "--json").out)
    assert short["notes"] == []


def test_the_same_call_writes_the_same_bytes(run, tiny_flux, tmp_path):
    one, two, other = (tmp_path / f"{n}.png" for n in range(3))
    run(*sample(tiny_flux, one))
    run(*sample(tiny_flux, two))
    run(*sample(tiny_flux, other, "--seed", 1))
    assert one.read_bytes() == two.read_bytes()
    assert (pixels(one) != pixels(other)).mean() > 0.5


def test_json_is_the_record_and_nothing_else_on_stdout(run, tiny_flux, tmp_path):
    out = tmp_path / "a.png"
    value = json.loads(run(*sample(tiny_flux, out, "--json")).out)
    assert value.pop("out") == str(out)
    assert value == read_record(out)
    assert value == json.loads(out.with_suffix(".json").read_text())


def test_the_record_holds_the_hash_of_every_component_that_took_part(run, tiny_flux, tmp_path):
    out = tmp_path / "a.png"
    run(*sample(tiny_flux, out))
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
    files = ("scheduler", "tokenizer", "tokenizer_2")
    assert read_record(out)["weights"] == {
        name: {
            "path": None,
            "sha256": hash_of(tiny_flux / name),
            "config": config_hash(tiny_flux / name),
        }
        for name in (*parts, *files)
    }
    assert all(config_hash(tiny_flux / name) for name in parts)
    assert config_hash(tiny_flux / "scheduler") is None


def test_size_is_the_models_own_unless_given(run, tiny_flux, tmp_path):
    out = tmp_path / "a.png"
    run("sample", "euler", "--model", tiny_flux, "--prompt", "x", "--out", out, "--steps", 1)
    assert Image.open(out).size == (128, 128)


def test_adapters_change_the_image_by_their_scale_and_are_in_the_record(run, tiny_flux, tmp_path, adapter):
    names = ("without", "zero", "full", "half", "twice")
    without, zero, full, half, twice = (tmp_path / f"{name}.png" for name in names)
    run(*sample(tiny_flux, without))
    run(*sample(tiny_flux, zero, "--adapter", f"{adapter}=0"))
    run(*sample(tiny_flux, full, "--adapter", adapter))
    run(*sample(tiny_flux, half, "--adapter", f"{adapter}=0.5"))
    run(*sample(tiny_flux, twice, "--adapter", f"{adapter}=0.5", "--adapter", f"{adapter}=0.5"))
    assert np.array_equal(pixels(without), pixels(zero))
    assert (pixels(without) != pixels(full)).mean() > 0.2
    assert not np.array_equal(pixels(half), pixels(full))
    # two halves of one adapter are the whole of it
    assert np.abs(pixels(twice) - pixels(full)).max() <= 1
    (entry,) = read_record(half)["adapters"]
    assert entry["scale"] == 0.5
    assert len(entry["sha256"]) == 64


def test_a_negative_prompt_takes_two_passes_a_step(run, tiny_flux, tmp_path):
    out = tmp_path / "a.png"
    run(*sample(tiny_flux, out, "--negative", "", "--set", "true_cfg_scale=3"))
    assert read_record(out)["model_calls"] == 4


def test_a_sampler_of_the_users_own_goes_by_import_path(run, tiny_flux, tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text(
        "from uhr.models.samplers.euler import EulerPipeline\n"
        "class Half(EulerPipeline):\n"
        "    class Options(EulerPipeline.Options):\n"
        "        strength: float = 1.0\n"
        "    def __call__(self, *a, strength=1.0, **k):\n"
        "        return super().__call__(*a, **{**k, 'sigmas': [strength, strength / 2]})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "a.png"
    run(*sample(tiny_flux, out, "--set", "strength=0.5", sampler="halfway:Half"))
    record = read_record(out)
    assert (record["sampler"], record["sigmas"]) == ("halfway:Half", [0.5, 0.25, 0.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model", "nowhere"), "model 'nowhere' is not there"),
        (("--size", "100x100"), "multiples of 16; nearest 96x96 or 112x112"),
        (("--size", "big"), "write it as WIDTHxHEIGHT"),
        (("--size", "2048x2048"), "take a static one: set shift=static"),
        (("--adapter", "nowhere=0.5"), "adapter nowhere is not there"),
        (("--steps", "0"), "--steps 0"),
        (("--guidance", "nan"), "'guidance' should be a finite number (got nan)"),
        (("--guidance", "inf"), "'guidance' should be a finite number (got inf)"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--device", "abacus"), "'abacus' is not a device"),
        (("--out", "x.gif"), "name a file that ends in .png"),
        (("--set", "shfit=static"), "unknown key 'shfit': did you mean shift"),
        (("--set", "shift=sideways"), "'shift'"),
        (("--negative", "ugly"), "set true_cfg_scale"),
    ],
    ids=lambda value: value[0] + value[1] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_made_is_rejected_in_one_line_before_any_weights_are_loaded(
    fails, tiny_flux, tmp_path, monkeypatch, change, message
):
    from uhr.models.loading import model as loading

    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(loading, "load_component", refuse)
    monkeypatch.chdir(tmp_path)
    assert message in fails(*sample(tiny_flux, "a.png", *change))
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_backbone_is_rejected_before_any_weights_are_loaded(
    fails, tiny_flux, tmp_path, monkeypatch
):
    from safetensors.torch import save_file

    from uhr.models.loading import model as loading

    key = "transformer.transformer_blocks.18.attn.to_q.lora_"
    save_file(
        {f"{key}A.weight": torch.zeros(2, 64), f"{key}B.weight": torch.zeros(64, 2)},
        tmp_path / "l.safetensors",
    )
    monkeypatch.setattr(loading, "load_component", None)
    error = fails(*sample(tiny_flux, tmp_path / "a.png", "--adapter", tmp_path / "l.safetensors"))
    assert "it was made for another backbone" in error


def test_an_adapter_that_is_not_of_numbers_makes_no_black_image(capsys, tiny_flux, tmp_path):
    from safetensors.torch import save_file

    key = "transformer.transformer_blocks.0.attn.to_q.lora_"
    broken = {f"{key}A.weight": torch.ones(2, 64), f"{key}B.weight": torch.full((64, 2), torch.nan)}
    save_file(broken, tmp_path / "l.safetensors")
    assert (
        main([*map(str, sample(tiny_flux, tmp_path / "a.png", "--adapter", tmp_path / "l.safetensors"))]) == 1
    )
    assert "stage 64x96: its latents are not finite numbers" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["l.safetensors"]


def test_an_unknown_sampler_is_named_with_the_nearest(fails, tiny_flux, tmp_path):
    assert "unknown sampler 'eular': did you mean euler?" in fails(
        *sample(tiny_flux, tmp_path / "a.png", sampler="eular")
    )
