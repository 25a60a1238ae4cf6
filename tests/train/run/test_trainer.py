import json
import shutil
import sys

import pytest
import torch
from diffusers.training_utils import EMAModel

from uhr.base.errors import UserError
from uhr.train.data.names import NamedPath
from uhr.train.objectives.draws import Draws
from uhr.train.recipes import recipe, resolve
from uhr.train.recipes.core.base import DataUse, leaves
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.feed import Phases, load_batch
from uhr.train.run.job import reopen, start
from uhr.train.run.trainer import Trainer, train

CHANGED = {
    "guidance.scale": "guidance.scale=3.5",
    "trainable.rank": "trainable.rank=5",
    "trainable.alpha": "trainable.alpha=8",
    "trainable.targets": "trainable.targets=all-linear",
    "phases.0.timesteps.density": "phases.main.timesteps.density=uniform",
    "phases.0.timesteps.mean": "phases.main.timesteps.mean=1",
    "phases.0.timesteps.std": "phases.main.timesteps.std=2",
    "phases.0.timesteps.shift": "phases.main.timesteps.shift=1",
    "phases.0.timesteps.band": "phases.main.timesteps.band=[0.5, 1]",
    "phases.0.timesteps.weighting": "phases.main.timesteps.weighting=cosmap",
    "phases.0.lr": "phases.main.lr=0.01",
    "phases.0.warmup": "phases.main.warmup=9",
    "phases.0.schedule": "phases.main.schedule=cosine",
    "optimiser.betas": "optimiser.betas=[0.8, 0.99]",
    "optimiser.eps": "optimiser.eps=0.1",
    "optimiser.weight_decay": "optimiser.weight_decay=0.5",
    "clip": "clip=0.01",
    "batch.size": "batch.size=2",
    "batch.remainder": "batch.remainder=drop",
    "latents": "latents=mean",
    "caption_dropout": "caption_dropout=1",
    "seed": "seed=1",
    "runtime.precision": "runtime.precision=bfloat16",
}
ELSEWHERE = {
    # test_init.py
    "init.use",
    "init.after",
    # checked against the model or the data, or by tests of their own
    "name", "about", "family", "surgeries", "windows", "proportional", "trainable.kind",
    "phases.0.timesteps.scale", "validation.loss", "validation.images",
    "sampling.sampler", "sampling.options", "sampling.guidance",
    "guidance.kind", "phases.0.name", "phases.0.resolution", "captions",
    "phases.0.objective.kind", "phases.0.steps", "on_nonfinite",
    "optimiser.kind", "batch.micro", "ema", "runtime.device", "runtime.shard",
    "runtime.log", "runtime.compile", "runtime.restarts",
    "runtime.quantize", "runtime.offload", "runtime.gradient_checkpointing", "runtime.checkpoint_every",
    "runtime.keep_checkpoints", "runtime.data_cache",
}  # fmt: skip
BASE = ["batch.size=2", "batch.micro=2", "phases.main.lr=0.005"]


def after(job, steps=3) -> torch.Tensor:
    trainer = Trainer(job)
    for _ in range(steps):
        trainer.step()
    return torch.cat([p.detach().flatten() for p in trainer.state.parameters.values()])


@pytest.fixture
def weights(job_of, tmp_path):
    """The adapter after three steps, with some values changed."""
    number = iter(range(1000))
    return lambda *sets, steps=3: after(job_of(*BASE, *sets, out=tmp_path / f"run {next(number)}"), steps)


def test_every_value_of_the_recipe_is_tested_for_what_it_changes():
    paths = {path for path, _ in leaves(recipe("lora").model_dump(mode="json"))}
    of_data = {f"phases.0.data.0.{name}" for name in DataUse.model_fields}  # see the test of a mixture
    assert paths == CHANGED.keys() | ELSEWHERE | of_data


def test_every_value_changes_what_is_learned_and_the_same_values_learn_the_same(weights):
    plain = {steps: weights(steps=steps) for steps in (3, 5)}
    assert torch.equal(plain[3], weights())
    for path, change in CHANGED.items():
        change = "batch.size=3" if path == "batch.size" else change
        # the first batch that is not full is the fifth
        steps = 5 if path == "batch.remainder" else 3
        changed, before = weights(change, steps=steps), plain[steps]
        assert changed.shape != before.shape or not torch.equal(changed, before), path


def test_gradient_checkpointing_and_micro_batches_change_nothing_but_rounding(weights):
    plain = weights(steps=1)
    for change in ("runtime.gradient_checkpointing=true", "batch.micro=1"):
        torch.testing.assert_close(weights(change, steps=1), plain, rtol=1e-4, atol=1e-5)


def test_an_accumulated_gradient_is_that_of_the_whole_batch(job_of, tmp_path):
    gradients = []
    for micro in (1, 2, 3):
        job = job_of("batch.size=3", f"batch.micro={micro}", out=tmp_path / str(micro))
        trainer, phases = Trainer(job), Phases(job, torch.device("cpu"))
        batches = (load_batch(job, phases, step) for step in range(4))
        trainer._accumulate(next(loaded for loaded in batches if len(loaded.uris) == 3))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.state.parameters.values()]))
    assert gradients[0].abs().max() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-6)


def test_the_loss_goes_down_on_a_few_images(job_of):
    trainer = Trainer(
        job_of("phases.main.lr=0.04", "trainable.rank=16", "trainable.alpha=16", "caption_dropout=0")
    )
    phase = trainer.phase(0)
    turn = max(map(phase.mixture.at, range(4)), key=lambda turn: len(turn.rows))
    use = phase.uses[0]
    rows = use.data.read(turn.bucket, turn.rows)

    def loss() -> float:
        draws = [Draws(99, step, range(len(turn.rows))) for step in range(4)]
        with torch.no_grad():
            found = [use.loss(trainer.model.network, use.batch(rows, d), d)[0].mean() for d in draws]
        return torch.stack(found).mean().item()

    before = loss()
    for _ in range(20):
        trainer.step()
    assert loss() < 0.9 * before


def test_latents_reach_the_model_shifted_and_scaled(job_of, tmp_path):
    phase = Trainer(job_of("latents=mean", out=tmp_path / "mean")).phase(0).uses[0]
    rows = phase.data.read(1, [0, 1, 2])
    latents = phase.batch(rows, Draws(0, 0, range(3))).data
    # FLUX.1's VAE: shift 0.1159, scale 0.3611
    torch.testing.assert_close(latents, (rows.mean.float() - 0.1159) * 0.3611)

    sampled = Trainer(job_of("latents=sample", out=tmp_path / "sample")).phase(0).uses[0]
    draws = [sampled.batch(rows, Draws(0, step, range(3))).data for step in range(200)]
    spread = torch.stack(draws).std(dim=0) / 0.3611
    torch.testing.assert_close(spread, rows.std.float(), rtol=0.35, atol=0)
    torch.testing.assert_close(spread.mean(), rows.std.float().mean(), rtol=0.01, atol=0)


def test_captions_are_dropped_to_the_empty_one_at_their_rate_in_every_tensor(job_of):
    phase = Trainer(job_of("caption_dropout=0.3")).phase(0).uses[0]
    rows, empty = phase.data.read(1, [0, 1, 2]), phase.data.empty_texts()
    dropped = 0
    for step in range(300):
        texts = phase.batch(rows, Draws(0, step, range(3))).condition.texts
        assert texts.keys() == rows.texts.keys() == {"t5", "pooled"}
        for i in range(3):
            gone = torch.equal(texts["t5"][i], empty["t5"][0])
            for name in texts:
                assert torch.equal(texts[name][i], empty[name][0] if gone else rows.texts[name][i])
            dropped += gone
    # 270 of 900 expected, standard deviation 14
    assert abs(dropped - 270) < 70


def test_adapters_and_their_optimiser_are_float32_on_a_bfloat16_backbone(job_of):
    trainer = Trainer(job_of("runtime.precision=bfloat16", "ema=0.9"))
    trainer.step()
    for tensors in trainer.state.tensors().values():
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert trainer.model.network.transformer.dtype == torch.bfloat16


def test_the_average_follows_the_weights_by_its_decay(job_of):
    """By diffusers' own."""
    trainer = Trainer(job_of("ema=0.2", "phases.main.lr=0.01"))
    names, parameters = zip(*trainer.state.parameters.items(), strict=True)
    theirs = EMAModel(parameters, decay=0.2)
    for _ in range(4):
        trainer.step()
        theirs.step(parameters)
    assert theirs.cur_decay_value == 0.2
    expected = dict(zip(names, theirs.shadow_params, strict=True))
    for name, average in trainer.state.ema.items():
        torch.testing.assert_close(average, expected[name], rtol=1e-5, atol=1e-7)


def test_training_needs_no_text_encoder_no_tokenizer_and_no_vae(job_of, tiny_flux, tmp_path):
    lean = tmp_path / "lean model"
    lean.mkdir()
    shutil.copy(tiny_flux / "model_index.json", lean)
    shutil.copytree(tiny_flux / "transformer", lean / "transformer")
    assert train(job_of("phases.main.steps=1", model=lean)).step == 1


def test_a_line_per_step_tells_how_it_went(job_of, short_texts):
    job = job_of("phases.main.steps=3", "phases.main.warmup=2", "phases.main.lr=0.001")
    train(job)
    lines = [json.loads(line) for line in (job.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["lr"] for line in lines] == [0.0005, 0.001, 0.001]
    for line in lines:
        assert line["loss"] > 0
        assert line["grad_norm"] > 0
        assert 0 <= line["sigma"]["min"] <= line["sigma"]["mean"] <= line["sigma"]["max"] <= 1
        assert line["samples"] in (2, 3)
        assert line["peak_memory"] > 1e6
        assert line["samples_per_second"] > 0
        assert 0 <= line["wait"] <= line["seconds"]
        width, height = map(int, line["bucket"].split("x"))
        tokens = line["samples"] * (width * height // 256 + short_texts.LENGTH)
        assert line["tokens_per_second"] == pytest.approx(tokens / line["seconds"], rel=0.02)


@pytest.fixture
def objectives(tmp_path, monkeypatch):
    """`my_objectives`: objectives of the user's own, by import path."""
    (tmp_path / "my_objectives.py").write_text(
        """
import torch
from uhr.train.objectives.flow import Flow

class NanForOne(Flow):
    def __call__(self, model, batch, draws):
        loss = super().__call__(model, batch, draws)
        if draws.step == 2:
            loss.map[1] = float("nan")
        return loss

class InfiniteSlope(Flow):
    def __call__(self, model, batch, draws):
        loss = super().__call__(model, batch, draws)
        # the value stays, the derivative of sqrt at 0 does not
        loss.map.add_((loss.map - loss.map.detach()).sqrt())
        return loss

class Restless(Flow):
    # draws from the process-wide generator, as foreign code does
    def __call__(self, model, batch, draws):
        loss = super().__call__(model, batch, draws)
        loss.map.mul_(torch.rand(len(loss.map), 1, 1, 1))
        return loss
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_objectives"
    sys.modules.pop("my_objectives", None)


def test_a_loss_that_is_not_finite_stops_with_step_and_sample_and_keeps_the_weights(job_of, objectives):
    job = job_of(f"phases.main.objective={objectives}:NanForOne", "runtime.checkpoint_every=1")
    with pytest.raises(
        UserError, match=r"step 3: the loss is not finite \(images [a-z-]+\.png\).*phases.main.lr"
    ) as e:
        train(job)
    trainer = Trainer(job)
    turn = trainer.phase(0).mixture.at(2)
    rows = trainer.phase(0).uses[0].data.read(turn.bucket, turn.rows)
    assert rows.uris[1] in str(e.value)
    assert rows.uris[0] not in str(e.value)
    assert len((job.out / "log.jsonl").read_text().splitlines()) == 2


def same(one, other):
    """Whether two states have equal weights, optimiser, average and step."""
    assert one.step == other.step
    mine, theirs = one.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    for name, tensors in mine.items():
        assert tensors.keys() == theirs[name].keys()
        assert all(torch.equal(value, theirs[name][key]) for key, value in tensors.items()), name
    return True


def test_a_step_that_is_not_finite_is_left_out_and_nothing_else_changes(job_of, objectives, tmp_path, capsys):
    sets = ["phases.main.steps=6", "phases.main.schedule=cosine", "ema=0.9"]
    nan = [*sets, f"phases.main.objective={objectives}:NanForOne"]
    skipping = [*nan, "on_nonfinite=skip:1"]
    job = job_of(*skipping, "runtime.checkpoint_every=3", out=tmp_path / "straight")
    result = train(job)
    # the same run without an objective that fails, which jumps over its third step
    jumping = Trainer(job_of(*sets, out=tmp_path / "jumping"))
    for _ in range(2):
        jumping.step()
    jumping.state.step = 3
    for _ in range(3):
        jumping.step()
    read = lambda: reopen(job.out)  # noqa: E731
    assert same(Trainer(read()).state, jumping.state)
    lines = [json.loads(line) for line in (job.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [("loss" in line, "skipped" in line) for line in lines] == [
        (line["step"] != 3, line["step"] == 3) for line in lines
    ]
    turn = jumping.phase(0).mixture.at(2)
    rows = jumping.phase(0).uses[0].data.read(turn.bucket, turn.rows)
    assert lines[2]["skipped"] == {"what": "loss", "images": [rows.uris[1]]}
    assert f"step 3 is skipped: the loss is not finite (images {rows.uris[1]})" in capsys.readouterr().err
    assert result.loss == pytest.approx(sum(line["loss"] for line in lines if "loss" in line) / 5)
    assert "1 skipped" in result.describe(lines)
    # the checkpoint after the skipped step continues bit for bit
    shutil.rmtree(checkpoint.folder_of(job.out, 6))
    assert (read().done, read().resume[1].skipped) == (3, 1)
    train(read())
    assert same(Trainer(read()).state, jumping.state)


def test_only_so_many_steps_in_a_row_are_skipped_also_over_a_resume(job_of, objectives, tmp_path):
    sets = ["phases.main.steps=4", f"phases.main.objective={objectives}:InfiniteSlope"]
    job = job_of(*sets, "on_nonfinite=skip:2", "runtime.checkpoint_every=1", out=tmp_path / "run")
    with pytest.raises(UserError, match=r"step 3: the gradient is not finite \(.*, and 2 steps before it"):
        train(job)
    assert checkpoint.steps(job.out) == [1, 2]
    first = Trainer(job_of(*sets, out=tmp_path / "untouched"))
    assert all(
        torch.equal(value, first.state.parameters[name])
        for name, value in Trainer(reopen(job.out)).state.parameters.items()
    )
    with pytest.raises(UserError, match=r"step 3: .*`uhr train resume .*run --set on_nonfinite=skip:12`"):
        train(reopen(job.out))
    # a stopped run may go on with more; none of its steps has a loss
    result = train(reopen(job.out, ["on_nonfinite=skip:12"]))
    assert (result.step, result.loss) == (4, None)
    assert "none has a loss over the last 4, 4 skipped" in result.describe(
        [json.loads(line) for line in (job.out / "log.jsonl").read_text().splitlines()]
    )


@pytest.mark.parametrize("value", ["skip", "skip:0", "skip:-1", "skip:two", "go on", "Stop"])
def test_what_becomes_of_a_step_that_is_not_finite_is_stop_or_a_number(value):
    with pytest.raises(UserError, match="on_nonfinite"):
        resolve("lora", None, [f"on_nonfinite={value}"])


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(job_of, objectives):
    trainer = Trainer(job_of(f"phases.main.objective={objectives}:InfiniteSlope"))
    before = [p.detach().clone() for p in trainer.state.parameters.values()]
    with pytest.raises(UserError, match="step 1: the gradient is not finite"):
        trainer.step()
    assert all(torch.equal(p, b) for p, b in zip(trainer.state.parameters.values(), before, strict=True))


def test_an_objective_that_draws_from_the_process_wide_generator_resumes_exactly(
    job_of, objectives, tmp_path
):
    sets = ["phases.main.steps=4", f"phases.main.objective={objectives}:Restless"]
    train(job_of(*sets, out=tmp_path / "straight"))
    broken = Trainer(job_of(*sets, out=tmp_path / "broken"))
    for _ in range(2):
        broken.step()
    broken.save({})
    torch.rand(3)  # what another process would have had in its generator
    train(reopen(tmp_path / "broken"))
    one, two = (
        checkpoint.read_info(checkpoint.folder_of(tmp_path / n, 4)).files for n in ("straight", "broken")
    )
    assert one == two


def test_a_phase_mixes_its_data_sets_by_weight_each_with_its_objective_band_and_factor(
    small_set, tiny_flux, fast, tmp_path
):
    values = (
        "[{data: real, weight: 3}, "
        "{data: kept, weight: 1, objective: distillation, band: [0.9, 1], loss_weight: 0.5}]"
    )
    recipe = resolve("lora", None, [*fast, f"phases.main.data={values}", "phases.main.steps=8"])
    data = [NamedPath("real", small_set.folder), NamedPath("kept", small_set.folder)]
    job = start(recipe, str(tiny_flux), data, tmp_path / "run")
    train(job)
    log = [json.loads(line) for line in (job.out / "log.jsonl").read_text().splitlines()]
    assert [line["data"] for line in log].count("kept") == 2
    for line in log:
        if line["data"] == "kept":
            assert line["sigma"]["min"] >= 0.9
    assert log[0]["data"] == "real"
    assert min(line["sigma"]["min"] for line in log) < 0.9
    # the adapter is the model before training until the first step: nothing to distil yet
    phase = Trainer(start(recipe, str(tiny_flux), data, tmp_path / "other")).phase(0)
    trainer = Trainer(start(recipe, str(tiny_flux), data, tmp_path / "third"))
    kept, draws = phase.uses[1], Draws(0, 0, range(2))
    rows = kept.data.read(1, [0, 1])
    loss, _ = kept.loss(trainer.model.network, kept.batch(rows, draws), draws)
    assert loss.tolist() == [0, 0]
    info = json.loads((job.out / "run.json").read_text())
    assert [ref["name"] for ref in info["data"]] == ["real", "kept"]
    again = reopen(job.out)
    assert [each.name for each in again.data] == ["real", "kept"]
