import json
import subprocess
import sys

import pytest

from uhr.base.errors import UserError
from uhr.models.estimate.devices import DEVICES
from uhr.train.recipes import resolve
from uhr.train.run.estimate import counts
from uhr.train.run.estimate.estimate import estimate, print_estimate
from uhr.train.run.estimate.memory import Processes
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
    everything = sum(p.numel() for p in trainer.model.network.transformer.parameters())
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
    with pytest.raises(UserError, match=r"resolution=4096` or with `--set buckets=ultraflux-4k`"):
        estimate(resolve("ultraflux-stage1"), str(tiny_flux), [small_set.folder])


def test_a_curated_column_that_is_missing_is_an_error_that_says_how_to_add_it(small_set, tiny_flux):
    sets = ["phases.0.resolution=128", "init.after=null"]
    with pytest.raises(UserError, match=r"unknown column 'artimuse_rank'.*stage rank \(of: artimuse\)"):
        estimate(resolve("ultraflux-stage2", None, sets), str(tiny_flux), [small_set.folder])
    vae = ["phases.0.resolution=128", "phases.0.data.0.lowest={}", "phases.0.data.0.where=entropy > 7"]
    with pytest.raises(UserError, match=r"unknown column 'entropy'.*curate with the stage that adds it"):
        estimate(resolve("vae-f16", None, vae), str(tiny_flux), [small_set.folder])


def test_data_that_the_windows_of_a_recipe_cannot_read_are_refused_as_by_a_run(small_set, tiny_flux):
    with pytest.raises(UserError, match="has no guide, and the recipe's windows read one of 1/4"):
        estimate(resolve("ultragen"), str(tiny_flux), [small_set.folder])


def plan_of(name, *sets, workers=1, machines=1, on=None):
    processes = Processes(workers, machines)
    return estimate(resolve(name, None, list(sets)), "flux1-dev", [], on, processes)


def test_memory_is_that_of_each_process_by_how_weights_are_divided():
    weights = 11_901_408_320
    lora, *others = (
        plan_of("lora", f"runtime.shard={shard}", "batch.size=16", "batch.micro=4", workers=8, machines=2)[
            "memory"
        ]
        for shard in ("replicate", "hybrid", "full")
    )
    assert (lora["weights"], lora["gathered"]) == (2 * weights, 0)
    for memory, parts in zip(others, (4, 8), strict=True):
        assert memory["weights"] == 2 * weights // parts
        # two blocks, and what is in none; an adapter stays whole
        assert 0 < memory["gathered"] < 2 * weights / 10
        for name in ("trained", "gradients", "optimiser"):
            assert memory[name] == lora[name]
        # two samples each, whatever a single process would take at once
        assert memory["activations"] == lora["activations"]
    alone = plan_of("lora", "batch.size=16", "batch.micro=4")["memory"]
    assert alone["activations"] == 2 * lora["activations"]
    whole = plan_of("ultraflux", "runtime.shard=full", workers=8)["memory"]
    assert [whole[name] for name in ("weights", "trained", "gradients", "optimiser")] == [
        0, 4 * weights // 8, 4 * weights // 8, 8 * weights // 8
    ]  # fmt: skip
    with pytest.raises(UserError, match="5 processes are not a multiple of 2 machines"):
        plan_of("lora", workers=5, machines=2)


def test_guide_tokens_count_in_tokens_memory_storage_and_time():
    plan = plan_of("ultragen", on="h100")
    (bucket,) = plan["phases"][0]["buckets"]
    assert (bucket["image_tokens"], bucket["guide_tokens"], bucket["tokens"]) == (4096, 256, 4096 + 256 + 512)
    assert plan["storage"]["guide_per_picture"] == plan["storage"]["latents_per_picture"] // 16
    wide = plan_of("ultragen", "windows.ratio=2", on="h100")
    assert wide["phases"][0]["buckets"][0]["guide_tokens"] == 1024
    assert wide["memory"]["activations"] / plan["memory"]["activations"] == pytest.approx(
        5632 / 4864, rel=1e-6
    )
    assert wide["time"]["run"] > plan["time"]["run"]


def test_time_is_that_of_the_passes_that_a_step_makes():
    gpu = DEVICES["h100"]

    def step(name, *sets, workers=1):
        sets = ("batch.size=8", "batch.micro=1", *sets)
        (seconds,) = plan_of(name, *sets, workers=workers, on="h100")["time"]["steps"].values()
        return seconds

    # 19 + 38 layers of 24 heads of 128 over 4608 tokens, 4 operations a pair; once more in the blocks
    attention = 3.5 * 4 * 57 * 3072 * 4608**2 / (0.55 * gpu.tensor)
    unchecked = step("lora", "runtime.gradient_checkpointing=false")
    linear = unchecked / 8 - attention
    # two operations for each weight and token, forward and backward, and less where a stream has its own
    assert 0.5 < linear / (2 * 2 * 11_901_408_320 * 4608 / (0.7 * gpu.tensor)) < 1
    assert step("lora") == pytest.approx(unchecked * 1.5, rel=0.15)
    assert step("lora", workers=8) == pytest.approx(step("lora") / 8, rel=0.01)
    distilled = step("lora", "phases.main.objective=distillation")
    assert distilled == pytest.approx(step("lora") * 4 / 3, rel=0.1)
    reverse = step("lora", "phases.main.objective=reverse-distillation")
    assert reverse == pytest.approx(2 * step("lora") + distilled - step("lora"), rel=0.01)


def test_without_data_the_shares_of_the_recipe_are_shown_and_unknown_numbers_are_not(capsys):
    plan = plan_of("gca-stage2")
    assert [(each["name"], each["share"]) for each in plan["phases"][0]["data"]] == [
        ("patches", 0.5333), ("images", 0.4667)
    ]  # fmt: skip
    print_estimate(plan)
    text = capsys.readouterr().out
    assert "share of batches" in text
    assert "0.5333" in text
    assert "batches per epoch" not in text
    (alone,) = plan_of("lora")["phases"][0]["data"]
    assert alone["share"] == 1


def test_a_plan_says_that_the_model_lacks_the_vae_of_the_recipes_sampler(tiny_f16, tiny_flux, capsys):
    plan = plan_of("ultraflux")
    (note,) = plan["notes"]
    assert note.startswith(
        "recipe ultraflux is for sampler ultraflux and an F16 VAE, and flux1-dev has an F8 one"
    )
    assert "4 times as many tokens" in note
    print_estimate(plan)
    assert f"note: {note}" in capsys.readouterr().out
    assert plan_of("lora")["notes"] == plan_of("ultraflux", "sampling.sampler=euler")["notes"] == []
    assert estimate(resolve("ultraflux"), str(tiny_f16), [])["notes"] == []


def test_a_spec_is_counted_once_for_each_part_and_version(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    real = counts.empty_component
    monkeypatch.setattr(counts, "empty_component", lambda *args: made.append(args[0].name) or real(*args))
    first = plan_of("lora", on="h100")
    assert plan_of("lora", "phases.main.steps=7", on="h100")["memory"] == first["memory"]
    assert plan_of("lora", on="h100") == first
    # plain, and with both kinds of quantised weights, for the other settings
    assert made == ["flux1-dev"] * 3
    plan_of("lora", "trainable.rank=8")
    assert len(made) == 4
    for file in (tmp_path / "uhr/counts").iterdir():
        file.write_text("{}")
    assert plan_of("lora", on="h100") == first
    assert len(made) == 7
    monkeypatch.setattr(counts, "_code", lambda: "changed")
    assert plan_of("lora", on="h100") == first
    assert len(made) == 10


def test_a_part_of_the_users_is_counted_every_time(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kind = "uhr.train.trainable.adapters:Lora"
    plan_of("lora", f"trainable={{kind: '{kind}', rank: 4, alpha: 4, targets: attention}}")
    assert not (tmp_path / "uhr/counts").exists()


def test_memory_is_in_the_unit_of_the_gpu(capsys):
    plan = plan_of("lora")
    print_estimate(plan)
    (total,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("total")]
    assert total.split() == ["total", f"{plan['memory']['total'] / 2**30:.1f}", "GiB"]


def test_the_recipe_that_comes_first_is_named():
    (note,) = plan_of("urae-4k@code")["notes"]
    assert "begins with the result of urae-2k" in note
    assert "`uhr train run urae-4k@code --init" in note
    assert note.endswith("--set init.after=null")
    assert plan_of("urae-4k@code", "init.after=null")["notes"] == plan_of("urae-4k@paper")["notes"] == []


def test_blocks_of_one_kind_are_one_name():
    changes = ("family=flux2", "guidance={kind: cfg, scale: null}")
    plan = estimate(resolve("gca-stage2", sets=changes), "flux2-klein-base-4b", [])
    assert "single_transformer_blocks.{0-19}.attn.to_out" in plan["trained"]
    assert plan["trained"].count("single_transformer_blocks") == 1


def test_a_spec_that_was_counted_is_planned_without_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = plan_of("lora", on="h100")
    arguments = ["train", "plan", "lora", "--model", "flux1-dev", "--on", "h100"]
    blocked = "import sys; sys.modules.update(torch=None, diffusers=None, peft=None); "
    for more in ([], ["--json"]):
        code = f"{blocked}from uhr.cli import main; sys.exit(main({arguments + more}))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        if more:
            assert json.loads(found.stdout) == json.loads(json.dumps(plan))
        else:
            assert f"{plan['memory']['total'] / 2**30:.1f} GiB" in found.stdout
