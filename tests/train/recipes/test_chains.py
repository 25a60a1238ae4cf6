"""Every recipe from encoded data to an image through the command line, on the tiny model.

Trained values are larger steps than the recipes', so that few of them are enough; everything else is the
recipe's own.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from uhr.base.paths import text_path
from uhr.cli import main
from uhr.train.data.reader import EncodedData
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.objectives.draws import Draws
from uhr.train.recipes import NAMES, resolve
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.checkpoints.checkpoint import folder_of, newest
from uhr.train.run.feed import Phases, load_batch
from uhr.train.run.job import read_run, start
from uhr.train.run.trainer import Trainer

HELD_OUT = "f.png"
"""The image of `ranked` that `command_of` leaves out."""

PRODIGY = ("--set", "optimiser.d0=0.002")


def held_out(trainer: Trainer) -> float:
    """The mean loss of the last phase on the image that no phase trains on, for fixed draws."""
    use = trainer.phase(len(trainer.recipe.phases) - 1).uses[0]
    count = use.data.buckets[0].rows
    rows = use.data.read(0, range(count))
    (place,) = [number for number, uri in enumerate(rows.uris) if uri == HELD_OUT]
    chosen = use.data.read(0, [place] * 8)
    draws = Draws(seed=77, step=0, places=range(8))
    with torch.no_grad():
        loss, _ = use.loss(trainer.model.network, use.batch(chosen, draws), draws)
    return loss.mean().item()


def before_and_after(run, tmp_path) -> tuple[float, float]:
    """The held-out loss of the untrained and of the trained model of a run."""
    from uhr.train.data.names import NamedPath
    from uhr.train.run.job import reopen

    info = read_run(run)
    data = [NamedPath(ref.name, text_path(ref.path)) for ref in info.data]
    init = [run / "init" / ref.stored if ref.stored else text_path(ref.path) for ref in info.init]
    recipe, model = Recipe.model_validate(info.recipe), str(text_path(info.model.path))
    fresh = start(recipe, model, data, tmp_path / "fresh", init)
    return held_out(Trainer(fresh)), held_out(Trainer(reopen(run)))


def sample(model, out, sampler, *more):
    arguments = ["sample", sampler, "--model", str(model), "--prompt", "alt", "--size", "256x256"]
    assert main([*arguments, "--steps", "2", "--out", str(out), *more]) == 0
    return json.loads(out.with_suffix(".json").read_text())


def loads_in_diffusers(model, adapter) -> None:
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(model)
    before = pipeline.transformer.state_dict()
    pipeline.load_lora_weights(adapter)
    found = {name for name in pipeline.transformer.state_dict() if ".lora_A." in name}
    stored = load_file(adapter / "pytorch_lora_weights.safetensors")
    assert len(found) == len(stored) // 2
    assert before


@pytest.fixture(scope="module")
def stage1(chain_of):
    return chain_of("gca-stage1", 12, 0.01)


@pytest.fixture(scope="module")
def two_k(chain_of):
    return chain_of("urae-2k", 12, 1.0, *PRODIGY)


@pytest.fixture(scope="module")
def flux_stage1(chain_of):
    return chain_of("ultraflux-stage1", 12, 1e-3)


def test_lora(chain_of, tiny_flux, tmp_path):
    chain = chain_of("lora", 12, 0.01)
    before, after = before_and_after(chain.run, tmp_path)
    assert after < before
    loads_in_diffusers(tiny_flux, chain.adapter)
    sample(tiny_flux, tmp_path / "a.png", "euler", "--adapter", str(chain.adapter))


def test_lora_flux2(chain_of, klein_base, encoded2, tmp_path):
    on_klein = ["--model", str(klein_base), "--data", str(encoded2)]
    chain = chain_of("lora-flux2", 12, 0.01, on=on_klein)
    before, after = before_and_after(chain.run, tmp_path)
    assert after < before
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline.from_pretrained(klein_base)
    pipeline.load_lora_weights(chain.adapter)
    assert [name for name in pipeline.transformer.state_dict() if ".lora_A." in name]
    sample(klein_base, tmp_path / "a.png", "euler", "--adapter", str(chain.adapter))


def test_gca_recovers_and_adapts_then_samples_by_the_patch_cascade(chain_of, stage1, tiny_flux, tmp_path):
    before, after = before_and_after(stage1.run, tmp_path / "one")
    assert after < before
    chain = chain_of("gca-stage2", 12, 0.01, "--init", str(stage1.run))
    before, after = before_and_after(chain.run, tmp_path / "two")
    assert after < before
    (ref,) = read_run(chain.run).init
    assert (ref.use, ref.recipe, ref.run) == ("continue", "gca-stage1", read_run(stage1.run).id)
    # trained further, it needs nothing beside it
    assert "over" not in json.loads((chain.adapter / "uhr.json").read_text())["lora"]
    loads_in_diffusers(tiny_flux, chain.adapter)
    sample(tiny_flux, tmp_path / "a.png", "patch-cascade", "--adapter", str(chain.adapter))


def test_gca_stage2_draws_patches_and_images_by_their_weights(stage1):
    lines = [json.loads(line) for line in (stage1.run / "log.jsonl").read_text().splitlines()]
    shares = [line["data"] for line in lines]
    assert {name: shares.count(name) for name in set(shares)} == {"patches": 5, "images": 5, "generated": 2}


def test_urae_2k(two_k, tiny_flux, tmp_path):
    before, after = before_and_after(two_k.run, tmp_path)
    assert after < before
    loads_in_diffusers(tiny_flux, two_k.adapter)
    sample(tiny_flux, tmp_path / "a.png", "euler", "--adapter", str(two_k.adapter), "--set", "toolkit={}")


@pytest.mark.parametrize("version", ["paper", "code"])
def test_urae_4k_trains_minor_components_of_the_base_or_on_top_of_2k(
    version, chain_of, two_k, tiny_flux, tmp_path
):
    init = ["--init", str(two_k.adapter)] if version == "code" else []
    chain = chain_of(f"urae-4k@{version}", 12, 1.0, *PRODIGY, *init)
    before, after = before_and_after(chain.run, tmp_path)
    assert after < before
    loads_in_diffusers(tiny_flux, chain.adapter)
    assert json.loads((chain.adapter / "uhr.json").read_text())["lora"]["rank"] == 32
    below = ["--adapter", str(two_k.adapter)] if version == "code" else []
    both = [*below, "--adapter", str(chain.adapter), "--set", "toolkit={}"]
    sample(tiny_flux, tmp_path / "a.png", "euler", *both)


def test_ultragen(chain_of, tiny_flux, tmp_path):
    chain = chain_of("ultragen", 12, 1.0, *PRODIGY, "--set", "clip=1.0")
    before, after = before_and_after(chain.run, tmp_path)
    assert after < before
    record = sample(tiny_flux, tmp_path / "a.png", "ultragen", "--adapter", str(chain.adapter))
    assert "unadapted" not in json.dumps(record)


def test_ultragen_does_not_train_an_adapter_of_all_tokens_further(command_of, two_k, tmp_path, capsys):
    assert main(command_of("ultragen", tmp_path / "run", 1, 1.0, "--init", str(two_k.adapter))) == 1
    assert "acts on every token, and the recipe's on guide tokens alone" in capsys.readouterr().err


def test_ultraflux_in_two_runs_and_in_one(chain_of, flux_stage1, tiny_flux, tmp_path):
    before, after = before_and_after(flux_stage1.run, tmp_path / "one")
    assert after < before
    two = chain_of("ultraflux-stage2", 8, 1e-3, "--init", str(flux_stage1.run))
    before, after = before_and_after(two.run, tmp_path / "two")
    assert after < before
    both = chain_of("ultraflux", 8, 1e-3)
    before, after = before_and_after(both.run, tmp_path / "both")
    assert after < before
    lines = [json.loads(line) for line in (both.run / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["stage1"] * 8 + ["stage2"] * 8
    assert (
        min(line["sigma"]["min"] for line in lines[8:])
        >= 0.54
        > min(line["sigma"]["min"] for line in lines[:8])
    )
    from diffusers import FluxTransformer2DModel

    state = load_file(newest(two.run)[0] / "backbone.safetensors")
    loaded = FluxTransformer2DModel.from_pretrained(two.adapter).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    model = ["--base", str(tiny_flux), "--spec", "tiny-flux1"]
    sample(two.adapter, tmp_path / "a.png", "ultraflux", *model)


def test_ultraflux_on_the_latents_of_an_f16_vae(chain_of, ranked, tiny_f16, tmp_path):
    config = EncodeConfig(buckets=("128x128",), resolution=128, dtype="float32")
    encode(ranked.path, str(tiny_f16), tmp_path / "encoded", config, device="cpu")
    data = EncodedData.open(tmp_path / "encoded")
    assert data.read(0, [0]).mean.shape == (1, 16, 8, 8)
    size = [part for phase in (0, 1) for part in ("--set", f"phases.{phase}.resolution=128")]
    on_f16 = ["--model", str(tiny_f16), "--data", str(tmp_path / "encoded")]
    chain = chain_of("ultraflux", 8, 1e-3, *size, on=on_f16)
    before, after = before_and_after(chain.run, tmp_path)
    assert after < before
    on_base = ["--base", str(tiny_f16), "--spec", "tiny-flux1"]
    record = sample(chain.adapter, tmp_path / "a.png", "ultraflux", *on_base)
    assert "unadapted" not in json.dumps(record)


def test_the_second_phase_of_the_curriculum_sees_only_its_slice_and_its_noise_levels(
    encoded, tiny_flux, tmp_path
):
    sets = [change for n in (0, 1) for change in (f"phases.{n}.resolution=null", f"phases.{n}.steps=80")]
    recipe = resolve("ultraflux", None, [*sets, "batch.size=4", "batch.micro=4"])
    job = start(recipe, str(tiny_flux), [encoded], tmp_path / "run")
    phases = Phases(job, torch.device("cpu"))
    loaded = [load_batch(job, phases, step) for step in range(160)]
    first, second = loaded[:80], loaded[80:]
    assert {uri for each in first for uri in each.uris} == {f"{letter}.png" for letter in "abcdef"}
    # their ranks are 0.01, 0.049 and 0.04
    assert {uri for each in second for uri in each.uris} == {"a.png", "b.png", "f.png"}
    low, high = (torch.cat([each.batch.sigma for each in half]) for half in (first, second))
    assert low.min() < 0.1
    assert high.min() >= 0.54
    # all of the band is seen
    assert high.min() < 0.58
    assert high.max() > 0.96
    share = ((high > 0.54) & (high < 0.77)).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)


def test_the_second_phase_of_ultraflux_reads_only_the_top_twentieth(chain_of, flux_stage1, monkeypatch):
    from uhr.train.run.phase import UseRun

    seen = set()
    real = UseRun.batch
    monkeypatch.setattr(
        UseRun, "batch", lambda self, rows, draws: seen.update(rows.uris) or real(self, rows, draws)
    )
    chain_of("ultraflux-stage2", 4, 1e-3, "--init", str(flux_stage1.run))
    # f.png is in the top 5 % too, and is held out by the test
    assert seen == {"a.png", "b.png"}


def test_every_recipe_has_its_chain():
    tested = {"lora", "lora-flux2", "gca-stage1", "gca-stage2", "urae-2k", "urae-4k@paper", "urae-4k@code"}
    tested |= {"ultragen", "ultraflux-stage1", "ultraflux-stage2", "ultraflux"}
    # the chain of the VAE: run/vae/test_chain.py
    assert tested | {"vae-f16"} == set(NAMES)


def test_checkpoints_of_a_chain_are_found(two_k):
    assert folder_of(two_k.run, 12).is_dir()
