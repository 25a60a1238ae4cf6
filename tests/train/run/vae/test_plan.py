"""The plan of a VAE's training, from shapes alone."""

import pytest
import torch

from uhr.models.estimate.live_bytes import LiveBytes
from uhr.train.objectives.draws import Draws
from uhr.train.recipes import resolve
from uhr.train.run.estimate.estimate import estimate
from uhr.train.run.estimate.memory import Processes
from uhr.train.run.trainer import Trainer

OFF = "phases.main.objective.perceptual.weight=0"


@pytest.fixture(scope="module")
def plan():
    return estimate(resolve("vae-f16"), "flux1-dev", [], "h100")


def test_flux1_dev_counts_its_decoder(plan):
    # 83.8 million parameters in all, as published
    assert plan["parameters"]["base"] == 83_819_683
    assert plan["parameters"]["trainable"] == 49_545_475
    assert plan["trained"] == "the VAE's decoder"
    assert plan["memory"]["weights"] == 4 * 83_819_683
    assert plan["memory"]["optimiser"] == 8 * 49_545_475
    assert plan["storage"] == {
        "pixels_per_picture": 3 * 512 * 512,
        "checkpoint": 4 * 83_819_683 + 8 * 49_545_475,
    }


def test_a_plan_needs_no_files_of_lpips_and_says_that_the_run_does(plan):
    (note,) = plan["notes"]
    assert note.startswith("the perceptual term of the loss needs files of LPIPS (vgg16), which this plan")
    assert "fetch https://" in note
    assert "--set phases.main.objective.perceptual.network_file=FILE" in note
    off = estimate(resolve("vae-f16", None, [OFF]), "flux1-dev", [], "h100")
    assert off["notes"] == ["the perceptual term of the loss is off: its weight was set to 0"]
    # the network's work is counted where its loss is
    assert plan["memory"]["activations"] > off["memory"]["activations"]
    assert plan["time"]["run"] > off["time"]["run"]


def test_time_and_memory_are_those_of_the_batch(plan):
    assert plan["gpu"]["fits"]
    assert plan["time"]["run"] == pytest.approx(4000 * plan["time"]["steps"]["main"])
    eighth = estimate(resolve("vae-f16"), "flux1-dev", [], "h100", Processes(8))
    assert eighth["time"]["run"] == pytest.approx(plan["time"]["run"] / 8)
    half = estimate(resolve("vae-f16", None, ["batch.micro=8"]), "flux1-dev", [])
    assert half["memory"]["activations"] == pytest.approx(plan["memory"]["activations"] / 2, rel=0.05)


def test_activations_are_the_tensors_that_a_pass_has_at_once(vae_job, tiny_flux, crops):
    job = vae_job("batch.micro=1")
    plan = estimate(job.recipe, str(tiny_flux), [crops])
    (bucket,) = plan["phases"][0]["buckets"]
    assert (bucket["size"], bucket["rows"], bucket["batches_per_epoch"]) == ("64x64", 3, 2)
    trainer = Trainer(job)
    assert plan["parameters"]["trainable"] == sum(p.numel() for p in trainer.state.parameters.values())
    use, autoencoder = trainer.phase(0).uses[0], trainer.model.network
    draws = Draws(0, 0, [0])
    batch = use.batch(use.read(trainer.phase(0).mixture.at(0), draws), draws).slice(0, 1)
    loss = job.recipe.phases[0].objective.open(torch.device("cpu"))
    with LiveBytes() as live:
        loss(batch.images, autoencoder.code(batch.images, draws)).loss.sum().backward()
    assert plan["memory"]["activations"] == pytest.approx(live.peak, rel=0.1)
    trainer.step()
    stored = sum(file.stat().st_size for file in trainer.save({}).glob("*.safetensors"))
    # the files' own headers come on top
    assert plan["storage"]["checkpoint"] < stored < plan["storage"]["checkpoint"] * 1.1
    assert plan["storage"]["encoded_data"] == sum(f.stat().st_size for f in crops.rglob("*.parquet"))
