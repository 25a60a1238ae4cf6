"""From a curated slice to an image of the trained VAE, through the command line."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from uhr.cli import main
from uhr.models.vae.f16 import restore, vae_factor
from uhr.train.run.checkpoints.checkpoint import folder_of, steps


def sets(values) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def chain(curated, tiny_flux, fast_vae, tmp_path_factory):
    """A slice of the less flat crops, its pixels, a run of twelve steps and the export: their folders."""
    folder = tmp_path_factory.mktemp("vae chain")
    part, pixels, run, vae = (folder / name for name in ("slice", "pixels", "run", "vae"))
    assert (
        main(["manifest", "slice", str(curated.path), "--where", "uri <> 'e.png'", "--out", str(part)]) == 0
    )
    square = sets(["buckets=square", "resolution=64"])
    encode = ["train", "encode", str(part), "--model", str(tiny_flux), "--out", str(pixels), "--pixels"]
    assert main([*encode, "--engine", "local", "--device", "cpu", *square]) == 0
    held_out = [
        "phases.main.steps=12",
        "phases.main.lr=0.0005",
        "validation.loss={where: \"uri = 'a.png'\", every: 6}",
        "phases.main.data.0.where=uri <> 'a.png'",
    ]
    train = ["train", "run", "vae-f16", "--model", str(tiny_flux), "--data", str(pixels), "--out", str(run)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*train, *sets([*fast_vae, *held_out])]) == 0
    assert main(["train", "export", str(run), "--out", str(vae)]) == 0
    return {"pixels": pixels, "run": run, "vae": vae, "printed": printed.getvalue()}


def test_the_held_out_loss_falls_and_the_psnr_rises(chain):
    lines = [json.loads(line) for line in (chain["run"] / "log.jsonl").read_text().splitlines()]
    measured = [line["held_out"] for line in lines if "held_out" in line]
    assert len(measured) == 3
    assert measured[-1]["loss"] < measured[0]["loss"]
    assert measured[-1]["psnr"] > measured[0]["psnr"]
    first, last = measured[0]["loss"], measured[-1]["loss"]
    assert "12 steps done, mean loss " in chain["printed"]
    assert f", held-out loss {last:.4f} (first {first:.4f}); " in chain["printed"]


def test_stock_diffusers_loads_the_export_and_it_is_what_was_trained(chain, tiny_flux):
    from diffusers import AutoencoderKL, FluxPipeline

    loaded = AutoencoderKL.from_pretrained(chain["vae"])
    run = chain["run"]
    state = load_file(folder_of(run, steps(run)[-1]) / "vae.safetensors")
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())
    assert loaded.config["stride"] == 2
    assert vae_factor(restore(loaded)) == 16
    # the rest of the configuration is the base's
    base = AutoencoderKL.load_config(tiny_flux / "vae")
    own = AutoencoderKL.load_config(chain["vae"])
    drop = {"stride", "_name_or_path", "_diffusers_version"}
    assert {k: v for k, v in own.items() if k not in drop} == {k: v for k, v in base.items() if k not in drop}
    assert FluxPipeline.from_pretrained(tiny_flux, vae=loaded).vae is loaded


def test_ultraflux_samples_with_it_and_it_is_no_longer_unadapted(chain, tiny_flux, tmp_path, capsys):
    def sample(name, *more):
        out = tmp_path / f"{name}.png"
        arguments = ["sample", "ultraflux", "--model", str(tiny_flux), "--prompt", "a lake", "--steps", "1"]
        assert main([*arguments, "--size", "256x256", "--out", str(out), *more]) == 0
        return out.read_bytes(), json.loads(out.with_suffix(".json").read_text())

    trained, record = sample("trained", "--vae", str(chain["vae"]))
    assert f"on tiny-flux1, VAE {chain['vae']}, 1 step" in capsys.readouterr().out
    untrained, other = sample("untrained")
    assert "VAE" not in capsys.readouterr().out.partition("note:")[0]
    assert "unadapted" not in json.dumps(record)
    assert "unadapted" in json.dumps(other)
    assert trained != untrained


def test_in_the_place_of_a_models_vae_it_makes_an_f16_model(chain, tiny_flux, tmp_path):
    from uhr.models.zoo import load_vae, open_model

    model = shutil.copytree(tiny_flux, tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    shutil.copytree(chain["vae"], model / "vae")
    opened = open_model(model)
    assert (opened.spec.vae_factor, opened.spec.native_size) == (16, 256)
    assert vae_factor(load_vae(opened)) == 16


def test_the_export_says_how_to_sample_and_its_card_how_to_load(chain, tiny_flux, tmp_path, capsys):
    assert main(["train", "export", str(chain["run"]), "--out", str(tmp_path / "again")]) == 0
    printed = capsys.readouterr().out
    assert "the VAE's decoder, after step 12" in printed
    assert f"uhr sample ultraflux --model '{tiny_flux}' --vae {tmp_path / 'again'}" in printed
    card = (chain["vae"] / "README.md").read_text()
    assert "pipeline_tag: image-to-image" in card
    assert "from uhr.models.vae.f16 import restore" in card
    assert "lowest 0.5 by flat_fraction" in card
    assert "PSNR (dB)" in card
    assert "CC0" in card
    record = json.loads((chain["vae"] / "uhr.json").read_text())
    assert record["kind"] == "vae"
    # no path of this machine
    perceptual = record["values"]["phases"][0]["objective"]["perceptual"]
    assert (perceptual["network_file"], len(perceptual["sha256"])) == ("net.pth", 2)
    assert str(chain["run"].parent) not in card


def test_the_python_of_the_card_runs(chain):
    card = (chain["vae"] / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    found: dict = {}
    exec(code.replace("path/to/this/folder", str(chain["vae"])), found)
    assert vae_factor(found["vae"]) == 16


def test_a_run_begins_with_the_export_or_with_the_run(chain, tiny_flux, fast_vae, tmp_path):
    from uhr.train.recipes import resolve
    from uhr.train.run.job import start
    from uhr.train.run.trainer import Trainer

    expected = load_file(chain["vae"] / "diffusion_pytorch_model.safetensors")
    recipe = resolve("vae-f16", None, fast_vae)
    for number, begin in enumerate((chain["run"], chain["vae"])):
        job = start(recipe, str(tiny_flux), [chain["pixels"]], tmp_path / str(number), [begin])
        (ref,) = job.info.init
        assert (ref.use, ref.recipe, ref.step) == ("continue", "vae-f16", 12)
        state = Trainer(job).model.module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_another_file_is_no_vae(chain, tiny_flux, fast_vae, tmp_path, capsys):
    arguments = ["train", "run", "vae-f16", "--model", str(tiny_flux), "--data", str(chain["pixels"])]
    arguments += [*sets(fast_vae), "--out", str(tmp_path / "run")]
    wrong = tiny_flux / "transformer"
    assert main([*arguments, "--init", str(wrong)]) == 1
    assert "is not a VAE of tiny-flux1" in capsys.readouterr().err
    assert main([*arguments, "--init", str(tmp_path / "nothing")]) == 1
    assert "name a run, or the folder or file of a VAE" in capsys.readouterr().err


def test_encode_suggests_the_recipe_for_what_it_stored(
    chain, curated, tiny_flux, manifest_of, tmp_path, capsys
):
    arguments = ["train", "encode", "--model", str(tiny_flux), "--pixels", "--device", "cpu"]
    square = sets(["buckets=square", "resolution=64"])
    assert main([*arguments, str(curated.path), "--out", str(tmp_path / "one"), *square]) == 0
    where = "phases.main.objective.perceptual"
    expected = f"next: uhr train run vae-f16 --model '{tiny_flux}' --data {tmp_path / 'one'} --out RUN"
    expected += f" --set phases.main.resolution=64 --set {where}.network_file=VGG16.pth"
    assert f"{expected} --set {where}.heads_file=LPIPS.pth\n" in capsys.readouterr().out
    plain = manifest_of(tmp_path / "plain", [{"name": "a.png", "height": 64, "width": 64}])
    assert main([*arguments, str(plain.path), "--out", str(tmp_path / "two"), *square]) == 0
    # without the column there is no less flat half
    assert "--set 'phases.main.data.0.lowest={}'" in capsys.readouterr().out


def test_without_files_of_lpips_a_run_is_refused_unless_the_term_is_turned_off(
    chain, tiny_flux, tmp_path, capsys
):
    plain = ["phases.main.resolution=64", "batch.size=2", "batch.micro=2", "phases.main.steps=1"]
    plan = ["train", "plan", "vae-f16", "--model", str(tiny_flux), "--data", str(chain["pixels"])]
    assert main([*plan, *sets(plain)]) == 0
    assert "needs files of LPIPS (vgg16), which this plan does not: fetch" in capsys.readouterr().out
    off = sets([*plain, "phases.main.objective.perceptual.weight=0"])
    assert main([*plan, *off]) == 0
    note = "the perceptual term of the loss is off: its weight was set to 0"
    assert note in capsys.readouterr().out
    run = ["train", "run", "vae-f16", "--model", str(tiny_flux), "--data", str(chain["pixels"])]
    assert main([*run, "--out", str(tmp_path / "run"), *sets(plain)]) == 1
    assert "needs files of LPIPS (vgg16): fetch https://" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*run, "--out", str(tmp_path / "run"), *off]) == 0
    assert note in capsys.readouterr().err
