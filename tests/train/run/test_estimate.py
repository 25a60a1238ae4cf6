import dataclasses
import json
import subprocess
import sys

import pytest

from uhr.base.errors import UserError
from uhr.models.estimate.devices import DEVICES
from uhr.models.specs.registry import SPECS
from uhr.train.recipes import NAMES, resolve
from uhr.train.recipes.core.base import Recipe, leaves
from uhr.train.run.estimate import counts, published, stored
from uhr.train.run.estimate.estimate import estimate
from uhr.train.run.estimate.memory import Processes
from uhr.train.run.estimate.plan_text import print_estimate
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
    rank = "trainable.rank=8"
    first = plan_of("lora", rank, on="h100")
    assert plan_of("lora", rank, "phases.main.steps=7", on="h100")["memory"] == first["memory"]
    assert plan_of("lora", rank, on="h100") == first
    # plain, and with both kinds of quantised weights, for the other settings
    assert made == ["flux1-dev"] * 3
    plan_of("lora", "trainable.rank=4")
    assert len(made) == 4
    for file in (tmp_path / "uhr/counts").iterdir():
        file.write_text("{}")
    assert plan_of("lora", rank, on="h100") == first
    assert len(made) == 7
    monkeypatch.setattr(stored, "_code", lambda: "changed")
    assert plan_of("lora", rank, on="h100") == first
    assert len(made) == 10
    # that of the recipe itself comes with the package
    plan_of("lora", on="h100")
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


def test_every_recipe_is_planned_on_every_spec_that_it_trains_without_torch():
    plans = [
        [name, spec.name, recipe.changes_for(spec) if isinstance(recipe, Recipe) else []]
        for spec in SPECS.values()
        for name in NAMES
        if not spec.tiny and _trains(recipe := resolve(name), spec)
    ]
    assert {name for name, *_ in plans} == set(NAMES)
    assert {model for _, model, _ in plans} == {spec.name for spec in SPECS.values() if not spec.tiny}
    # the smallest GPU of the table: whatever does not fit says what would
    arguments = [
        [
            "train",
            "plan",
            name,
            "--model",
            model,
            "--on",
            "rtx-3060",
            "--json",
            *(p for c in sets for p in ("--set", c)),
        ]
        for name, model, sets in plans
    ]
    code = (
        "import sys; sys.modules.update(torch=None, diffusers=None, peft=None); "
        f"from uhr.cli import main; sys.exit(max(map(main, {arguments})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = list(_objects(done.stdout))
    assert len(found) == len(plans)
    for (name, model, _), plan in zip(plans, found, strict=True):
        assert (plan["recipe"], plan["model"]) == (name, model)
        assert plan["time"]["run"] > 0
        parts = [size for part, size in plan["memory"].items() if part not in ("total", "host")]
        assert sum(parts) == plan["memory"]["total"]
        assert plan["gpu"]["fits"] == (plan["memory"]["total"] <= plan["gpu"]["usable"])
        for choice in plan["other_gpus"]:
            assert choice["memory"] <= DEVICES[choice["gpu"]].usable
        assert plan["gpu"]["fits"] or plan["other_gpus"], (name, model)


def _trains(recipe, spec):
    try:
        sets = recipe.changes_for(spec) if isinstance(recipe, Recipe) else []
        resolve(recipe.name, None, sets).check(spec)
    except UserError:
        return False
    return True


def _objects(text):
    """The JSON objects that follow each other in a text."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].strip()


def test_the_numbers_of_the_package_are_those_that_counting_gives():
    kept = json.loads(stored.PUBLISHED.read_text())
    names, counted = set(), set()
    for recipe, spec in published.planned():
        name, count = published.entry(recipe, spec)
        names.add(name)
        # each part once, and each spec by what counts fastest, a whole backbone
        plain = recipe.name == "lora" or recipe.runtime.quantize is None
        chosen = recipe.trainable.kind == "backbone" or (spec.name == "flux1-dev" and plain)
        if name not in counted and chosen:
            counted.add(name)
            found, stated = _numbers(dataclasses.asdict(count())), _numbers(kept[name])
            # what is alive at a VAE's peak depends a little on when Python frees it
            near = {"rel": 0.1} if recipe.trainable.component == "vae" else {"rel": 0}
            assert stated == pytest.approx(found, **near), (recipe.name, spec.name)
    assert names == kept.keys()
    assert len(counted) >= 12


def _numbers(tree):
    return dict(leaves(tree))


@pytest.mark.parametrize(
    ("name", "gpu", "choices"),
    [
        ("lora", "rtx-4090", [(("runtime.shard=full",), "rtx-4090", 2), ((), "rtx-5090", 1)]),
        ("urae-4k@paper", "rtx-4090", [((), "a100", 1)]),
        ("ultraflux", "rtx-4090", [(("runtime.shard=full",), "a100", 8)]),
        ("vae-f16", "rtx-4090", [((), "a100-40", 1)]),
    ],
)
def test_other_gpus_fit_what_this_one_does_not(name, gpu, choices, capsys):
    plan = plan_of(name, on=gpu)
    assert not plan["gpu"]["fits"]
    found = [(tuple(each["changes"]), each["gpu"], each["workers"]) for each in plan["other_gpus"]]
    assert found == choices
    for each in plan["other_gpus"]:
        again = plan_of(name, *each["changes"], workers=each["workers"], on=each["gpu"])
        assert again["gpu"]["fits"]
        assert (again["memory"]["total"], again["time"]["run"]) == (each["memory"], each["seconds"])
    print_estimate(plan)
    text = capsys.readouterr().out
    assert f"fits: no; {plan['gpu']['title']} has 23.5 GiB, of which 22.5 GiB usable" in text
    assert "other GPUs that it fits:" in text
    fits = plan_of(name, *choices[-1][0], workers=choices[-1][2], on=choices[-1][1])
    assert fits["other_gpus"] == []
    print_estimate(fits)
    assert "fits: yes; " in capsys.readouterr().out


def test_a_vae_has_settings_too():
    plan = plan_of("vae-f16", on="rtx-4090")
    first = plan["settings"][0]
    assert (first["fits"], first["changes"]) == (True, ("batch.micro=1",))
    again = plan_of("vae-f16", *first["changes"], on="rtx-4090")
    assert (again["memory"]["total"], again["gpu"]["fits"]) == (first["total"], True)


def test_a_plan_says_how_processes_share_the_batch(capsys):
    plan = plan_of("lora", "batch.size=12", "batch.micro=4", workers=2)
    shared = {name: plan["batch"][name] for name in ("size", "workers", "samples", "passes", "micro")}
    assert shared == {"size": 12, "workers": 2, "samples": 6, "passes": 2, "micro": 4}
    print_estimate(plan)
    assert "batch: 12 = 2 processes x 6, in 2 passes of at most 4" in capsys.readouterr().out
    few = plan_of("lora", "batch.size=12", "batch.micro=4", workers=6)["batch"]
    assert few["text"] == "batch: 12 = 6 processes x 2, in 1 pass of 2"
    with pytest.raises(
        UserError,
        match=r"batch.size is 12 in all, and 5 processes cannot share it equally: take 4 or 6 processes, "
        r"or --set batch.size=10 or 15",
    ):
        plan_of("lora", "batch.size=12", workers=5)
    with pytest.raises(UserError, match=r"take 1 process, or --set batch\.size=2"):
        plan_of("lora", "batch.size=1", "batch.micro=1", workers=2)
