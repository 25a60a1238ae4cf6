"""The whole backbone as the trained part: float32 values, resume, teacher and export."""

import json

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models.publish.component import export_component
from uhr.models.zoo import load_transformer
from uhr.train.recipes import resolve
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.checkpoints.masters import Masters
from uhr.train.run.exports.export import export
from uhr.train.run.job import reopen, start
from uhr.train.run.trainer import Trainer, train

SETS = ["trainable={kind: backbone}", "runtime.precision=bfloat16", "batch.micro=1"]


@pytest.fixture
def backbone_job(small_set, tiny_flux, tmp_path):
    def make(*sets, out=None):
        recipe = resolve("lora", None, ["batch.size=2", *SETS, *sets])
        return start(recipe, str(tiny_flux), [small_set.folder], out or tmp_path / "run")

    return make


def test_a_learning_rate_of_1e_6_moves_float32_values_that_bfloat16_would_not_show(backbone_job):
    trainer = Trainer(backbone_job("phases.main.lr=1e-6", "optimiser.weight_decay=0"))
    before = {name: value.detach().clone() for name, value in trainer.state.parameters.items()}
    assert trainer.model.module.dtype == torch.bfloat16
    for _ in range(3):
        trainer.step()
    moved = hidden = 0
    live = dict(trainer.model.module.named_parameters())
    for name, value in trainer.state.parameters.items():
        assert value.dtype == torch.float32
        assert live[name].dtype == torch.bfloat16
        changed = value != before[name]
        moved += changed.sum().item()
        hidden += (changed & (live[name] == before[name].bfloat16())).sum().item()
        assert torch.equal(live[name], value.detach().bfloat16())
    assert moved > 0.9 * sum(value.numel() for value in before.values())
    # nearly none of the movement would have survived in bfloat16
    assert hidden > 0.95 * moved


def test_gradients_of_micro_batches_are_summed_in_float32():
    live = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    masters = Masters({"a": live})
    for factor in (256.0, 0.5, 0.5):
        (live * factor).sum().backward()
    # in bfloat16, 256 + 0.5 is 256
    assert masters.parameters["a"].grad.item() == 257
    assert live.grad is None


def test_a_parameter_that_is_float32_is_its_own_master():
    live = torch.nn.Parameter(torch.ones(1))
    assert Masters({"a": live}).parameters["a"] is live


def test_it_resumes_bit_for_bit(backbone_job, tmp_path):
    sets = ["phases.main.steps=4", "ema=0.9", "phases.main.lr=0.001", "runtime.keep_checkpoints=9"]
    train(backbone_job(*sets, out=tmp_path / "straight"))
    for stops in ([3], [1, 2]):
        run = tmp_path / f"broken {stops}"
        trainer = Trainer(backbone_job(*sets, out=run))
        for stop in stops:
            while trainer.state.step < stop:
                trainer.step()
            trainer.save({})
            trainer = Trainer(reopen(run))
        trainer.run()
        one, two = (
            checkpoint.read_info(checkpoint.folder_of(each, 4)) for each in (tmp_path / "straight", run)
        )
        assert one.files == two.files
        assert set(one.files) == {"backbone.safetensors", "ema.safetensors", "optimiser.safetensors",
                                  "generators-00000.json"}  # fmt: skip


def test_the_teacher_is_a_second_model_where_an_objective_needs_one_and_there_alone(backbone_job, tmp_path):
    plain = Trainer(backbone_job(out=tmp_path / "plain"))
    assert plain.model.network.frozen is None
    with pytest.raises(UserError, match="set `uses_teacher = True`"):
        plain.model.network.teacher(None, None, None)
    uses = "[{weight: 1}, {weight: 1, objective: distillation}]"
    trainer = Trainer(backbone_job(f"phases.main.data={uses}", "phases.main.lr=0.01", out=tmp_path / "two"))
    frozen = {name: value.clone() for name, value in trainer.model.network.frozen.state_dict().items()}
    losses = [entry["loss"] for entry in (trainer.step(), trainer.step())]
    # flow matching first; then the distance to the teacher, which the first step made
    assert losses[0] > 0
    assert losses[1] > 0
    assert all(
        torch.equal(value, frozen[name]) for name, value in trainer.model.network.frozen.state_dict().items()
    )
    assert not any(value.requires_grad for value in trainer.model.network.frozen.parameters())
    # a teacher that was saved with nobody would be lost on resume: it is loaded from the model again
    trainer.save({})
    again = Trainer(reopen(tmp_path / "two"))
    assert all(
        torch.equal(value, frozen[name]) for name, value in again.model.network.frozen.state_dict().items()
    )


def test_the_export_loads_in_stock_diffusers_with_the_float32_values(
    backbone_job, tiny_flux, tmp_path, capsys
):
    job = backbone_job("phases.main.steps=2", "phases.main.lr=0.001", "ema=0.5")
    train(job)
    for weights, file in (("trained", "backbone"), ("ema", "ema")):
        folder, _ = export(job.out, tmp_path / weights, weights=weights)
        loaded = FluxTransformer2DModel.from_pretrained(folder).state_dict()
        stored = load_file(checkpoint.folder_of(job.out, 2) / f"{file}.safetensors")
        assert loaded.keys() == stored.keys() == load_transformer(tiny_flux).state_dict().keys()
        assert all(torch.equal(loaded[name], value) for name, value in stored.items())
        assert {value.dtype for value in loaded.values()} == {torch.float32}
    card, record = (tmp_path / "ema" / "README.md").read_text(), tmp_path / "ema" / "uhr.json"
    assert "FluxTransformer2DModel.from_pretrained" in card
    assert "| trained | the whole backbone |" in card
    assert json.loads(record.read_text())["kind"] == "backbone"
    assert (
        str(tiny_flux.parent)
        not in card + record.read_text() + (tmp_path / "ema" / "config.json").read_text()
    )
    assert main(["train", "export", str(job.out), "--out", str(tmp_path / "cli")]) == 0
    assert f"--model {tmp_path / 'cli'} --base '{tiny_flux}' --prompt" in capsys.readouterr().out
    sample = ["sample", "euler", "--model", str(tmp_path / "cli"), "--base", str(tiny_flux), "--prompt", "a"]
    assert main([*sample, "--size", "64x64", "--steps", "1", "--out", str(tmp_path / "a.png")]) == 0
    with pytest.raises(UserError, match="already contains a model"):
        export(job.out, tmp_path / "cli")


def test_an_export_in_several_files_is_the_same_model(tiny_flux, facts_of_card, tmp_path):
    model = load_transformer(tiny_flux)
    config = json.loads(model.to_json_string())
    folder = export_component(
        "backbone", model.state_dict(), config, tmp_path / "shards", facts_of_card, 300_000
    )
    assert len(list(folder.glob("*-of-*.safetensors"))) > 2
    loaded = FluxTransformer2DModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="already contains something else"):
        export_component("backbone", model.state_dict(), config, tmp_path / "mine", facts_of_card)


@pytest.fixture
def facts_of_card():
    from uhr.models.publish.card import CardFacts
    from uhr.models.zoo import get

    return CardFacts(
        name="a", spec=get("tiny-flux1"), base_model="b", base_weights="c", recipe="d", steps=1,
        resolution="64 px", guidance=1.0, manifest_id="e", trained_on=2, licences={"CC0": 2},
    )  # fmt: skip


def test_flux2_is_trained_whole_too(small_set2, tiny_flux2, tmp_path):
    sets = [*SETS, "family=flux2", "guidance={kind: none, scale: null}", "phases.main.steps=1"]
    job = start(resolve("lora", None, sets), str(tiny_flux2), [small_set2.folder], tmp_path / "run")
    train(job)
    folder, _ = export(job.out, tmp_path / "export")
    from diffusers import Flux2Transformer2DModel

    assert Flux2Transformer2DModel.from_pretrained(folder).config.num_layers == 2
