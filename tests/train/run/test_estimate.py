import pytest

from uhr.base.errors import UserError
from uhr.train.recipes import resolve
from uhr.train.run.estimate import estimate
from uhr.train.run.trainer import Trainer


def test_flux1_dev_has_the_published_numbers_without_any_weights():
    plan = estimate(resolve("lora"), "flux1-dev", [])
    # 190 linears at rank 16 (URAE's official code), 11.9 billion parameters, 64 x 64 tokens and 512 of text
    assert plan["parameters"] == {
        "base": 11_901_408_320, "total": 11_901_408_320 + 18_677_760, "trainable": 18_677_760, "linears": 190
    }  # fmt: skip
    assert plan["phases"][0]["buckets"][0]["tokens"] == 4096 + 512
    assert plan["memory"]["weights"] == 2 * 11_901_408_320


def test_storage_per_sample_at_4k_is_that_of_its_tensors():
    storage = estimate(resolve("lora", None, ["phases.main.resolution=4096"]), "flux1-dev", [])["storage"]
    # 16 channels of 512 x 512 in bfloat16 are 8 MiB, for mean and standard deviation each; T5 alone is 4 MiB
    assert storage["latents_per_picture"] == 16 << 20
    assert storage["text_per_caption"] == (4 << 20) + 2 * 768


def test_the_plan_counts_what_the_run_then_has(small_set, tiny_flux, job_of):
    sets = ["phases.main.steps=10", "ema=0.9"]
    job = job_of(*sets)
    plan = estimate(job.recipe, str(tiny_flux), [small_set.folder])
    trainer = Trainer(job)
    assert plan["parameters"]["trainable"] == sum(p.numel() for p in trainer.state.parameters.values())
    everything = sum(p.numel() for p in trainer.denoiser.transformer.parameters())
    assert plan["parameters"]["base"] == everything - plan["parameters"]["trainable"]
    (phase,) = plan["phases"]
    assert phase["batches_per_epoch"] == job.mixture_of(0).orders[0].plan.batches_per_epoch == 4
    assert [b["batches_per_epoch"] for b in phase["buckets"]] == list(
        job.mixture_of(0).orders[0].plan.batches_of_bucket
    )
    assert phase["epochs"] == 2.5
    trainer.step()
    stored = sum(file.stat().st_size for file in trainer.save({}).glob("*.safetensors"))
    # the files' own headers come on top
    assert plan["storage"]["checkpoint"] < stored < plan["storage"]["checkpoint"] * 1.3
    disk = sum(file.stat().st_size for file in small_set.folder.rglob("*.parquet"))
    assert plan["storage"]["encoded_data"] == disk


def test_gradient_checkpointing_saves_memory_in_the_estimate():
    with_, without = (
        estimate(resolve("lora", None, [f"runtime.gradient_checkpointing={on}"]), "flux1-dev", [])["memory"]
        for on in ("true", "false")
    )
    assert with_["activations"] < without["activations"] / 10


def test_a_whole_backbone_counts_master_copies_moments_and_a_teacher_where_one_is_needed():
    sets = ["trainable={kind: backbone}"]
    weights = 11_901_408_320
    plan = estimate(resolve("lora", None, sets), "flux1-dev", [])
    assert plan["parameters"] == {"base": weights, "total": weights, "trainable": weights, "linears": 0}
    assert (plan["memory"]["weights"], plan["memory"]["teacher"]) == (2 * weights, 0)
    assert [plan["memory"][name] for name in ("trained", "gradients", "optimiser")] == [
        4 * weights, 4 * weights, 8 * weights
    ]  # fmt: skip
    assert plan["storage"]["checkpoint"] == 12 * weights
    single = estimate(resolve("lora", None, [*sets, "runtime.precision=float32"]), "flux1-dev", [])
    # the model's own weights are the values
    assert single["memory"]["trained"] == 0
    taught = estimate(resolve("lora", None, [*sets, "phases.main.objective=distillation"]), "flux1-dev", [])
    assert taught["memory"]["teacher"] == 2 * weights
    removable = resolve("lora", None, ["phases.main.objective=distillation"])
    assert estimate(removable, "flux1-dev", [])["memory"]["teacher"] == 0


def test_a_tiny_spec_by_name_has_no_numbers():
    with pytest.raises(UserError, match="'tiny-flux1' has no published weights: `uhr models make-tiny DIR`"):
        estimate(resolve("lora"), "tiny-flux1", [])


def test_data_of_another_resolution_is_an_error(small_set, tiny_flux):
    with pytest.raises(
        UserError, match=r"phase 'main' needs data set 'main' encoded at 256 px, and it is given at 128 px"
    ):
        estimate(resolve("lora", None, ["phases.main.resolution=256"]), str(tiny_flux), [small_set.folder])


def test_data_that_the_windows_of_a_recipe_cannot_read_are_refused_as_by_a_run(small_set, tiny_flux):
    with pytest.raises(UserError, match="has no guide, and the recipe's windows read one of 1/4"):
        estimate(resolve("ultragen"), str(tiny_flux), [small_set.folder])
