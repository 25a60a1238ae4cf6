"""The loss of images that are not trained on: fixed, apart from the training, in log and checkpoints."""

import json

import pytest
import torch

from uhr.base.errors import UserError
from uhr.train.data.names import NamedPath
from uhr.train.data.reader import EncodedData
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.objectives.base import Batch
from uhr.train.recipes import resolve
from uhr.train.recipes.core.validation import HeldOutLoss
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.job import reopen, start
from uhr.train.run.monitoring.held_out import held_out_rows
from uhr.train.run.trainer import Trainer, train

TIMING = ("seconds", "wait", "samples_per_second", "tokens_per_second", "peak_memory")
LOSS = "validation.loss={data: held-out, every: 2, rows: 2, bins: 3}"
SETS = ["phases.main.steps=6", "phases.main.lr=0.01", "runtime.checkpoint_every=4", "caption_dropout=0.5"]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, tiny_flux, manifest_of):
    """Three images of one bucket that are in no other set."""
    folder = tmp_path_factory.mktemp("held out")
    images = [
        {"name": f"z{i}.png", "height": 140 + i, "width": 140, "caption": f"thing {i}"} for i in range(3)
    ]
    config = EncodeConfig(aspects=("1/1",))
    encode(manifest_of(folder, images).path, str(tiny_flux), folder / "encoded", config, device="cpu")
    return folder / "encoded"


@pytest.fixture
def measured_job(small_set, held_out, tiny_flux, fast, tmp_path):
    def make(*sets, out=None, phases=None):
        data = [NamedPath("main", small_set.folder), NamedPath("held-out", held_out)]
        own = SETS if phases is None else [f"phases={phases}", *SETS[2:]]
        recipe = resolve("lora", None, [*fast, *own, *sets])
        return start(recipe, str(tiny_flux), data, out or tmp_path / "run")

    return make


def lines(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def bare(run):
    drop = (*TIMING, "held_out")
    return [
        {key: value for key, value in line.items() if key not in drop} for line in lines(run) if line["step"]
    ]


def test_it_is_in_the_log_and_in_the_checkpoints_metrics_per_range_of_sigma(measured_job):
    job = measured_job(LOSS)
    train(job)
    found = {line["step"]: line["held_out"] for line in lines(job.out) if "held_out" in line}
    assert list(found) == [0, 2, 4, 6]
    for each in found.values():
        assert each["images"] == 2
        bands = [entry["sigma"] for entry in each["bins"]]
        assert bands == [[0, 1 / 3], [1 / 3, 2 / 3], [2 / 3, 1]]
        assert each["loss"] == pytest.approx(sum(entry["loss"] for entry in each["bins"]) / 3)
    metrics = checkpoint.read_info(checkpoint.folder_of(job.out, 6)).metrics
    assert metrics["held-out loss"] == found[6]["loss"]
    assert metrics["held-out loss, sigma 0 to 0.333333"] == found[6]["bins"][0]["loss"]


def test_it_is_measured_before_the_first_step_and_after_the_last_whatever_the_interval(
    measured_job, tmp_path
):
    job = measured_job(
        LOSS.replace("every: 2", "every: 4"), "phases.main.steps=5", "runtime.checkpoint_every=9"
    )
    untrained = Trainer(job).validate()
    train(job)
    found = {line["step"]: line["held_out"] for line in lines(job.out) if "held_out" in line}
    assert list(found) == [0, 4, 5]
    assert found[0] == untrained["held_out"]
    assert "loss" not in lines(job.out)[0]
    assert checkpoint.read_info(checkpoint.folder_of(job.out, 5)).metrics["held-out loss"] == found[5]["loss"]


def test_phases_with_other_objectives_have_losses_of_their_own_in_every_measurement(measured_job):
    one = {"name": "one", "steps": 2, "objective": {"kind": "flow"}}
    phases = [
        one,
        {**one, "name": "two", "objective": {"kind": "snr-huber-wavelet"}},
        {**one, "name": "three"},
    ]
    base = resolve("lora").model_dump(mode="json")["phases"][0]
    changed = json.dumps([{**base, "lr": 0.01, **phase} for phase in phases])
    job = measured_job(LOSS, phases=changed)
    train(job)
    measured = [line for line in lines(job.out) if line["step"] % 2 == 0]
    assert not any("held_out" in line for line in measured)
    assert [list(line["held_out_by_phase"]) for line in measured] == [["one, three", "two"]] * 4
    for name in ("one, three", "two"):
        first, *later = [line["held_out_by_phase"][name]["loss"] for line in measured]
        assert all(loss != first for loss in later)
    metrics = checkpoint.read_info(checkpoint.folder_of(job.out, 6)).metrics
    last = measured[-1]["held_out_by_phase"]
    assert metrics["held-out loss of phase two"] == last["two"]["loss"]
    assert (
        metrics["held-out loss of phase one, three, sigma 0 to 0.333333"]
        == last["one, three"]["bins"][0]["loss"]
    )
    assert "held-out loss" not in metrics


def test_it_changes_no_number_of_the_training(measured_job, job_of, tmp_path):
    train(measured_job(LOSS, out=tmp_path / "measured"))
    train(job_of(*SETS, out=tmp_path / "plain"))
    assert bare(tmp_path / "measured") == bare(tmp_path / "plain")
    one, two = (checkpoint.read_info(checkpoint.folder_of(tmp_path / n, 6)) for n in ("measured", "plain"))
    assert one.files == two.files


def test_equal_weights_have_equal_losses_and_a_run_that_stopped_measures_the_same(measured_job, tmp_path):
    straight = measured_job(LOSS, out=tmp_path / "straight")
    train(straight)
    trainer = Trainer(measured_job(LOSS, out=tmp_path / "broken"))
    for _ in range(4):
        trainer.step()
    torch.rand(5)
    one = trainer.validate()["held_out"]
    assert one == trainer.validate()["held_out"] == lines(straight.out)[4]["held_out"]
    trainer.step()
    assert trainer.validate() == {}
    trainer.step()
    assert trainer.validate()["held_out"] != one


def test_each_range_has_its_sigmas_and_nothing_is_dropped_or_drawn(measured_job, monkeypatch):
    trainer = Trainer(measured_job(LOSS, "captions={caption: 1}"))
    batches: list[Batch] = []
    kind = type(trainer.recipe.phases[0].objective)
    real = kind.__call__

    def watch(self, denoiser, batch, draws):
        assert not torch.is_grad_enabled()
        assert not denoiser.transformer.training
        batches.append(batch)
        return real(self, denoiser, batch, draws)

    monkeypatch.setattr(kind, "__call__", watch)
    trainer.state.step = 2
    trainer.validate()
    assert trainer.model.module.training
    (one, two, three) = batches
    for batch, (low, high) in zip(batches, ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)), strict=True):
        assert ((batch.sigma >= low) & (batch.sigma <= high)).all()
    assert torch.equal(one.data, three.data)
    assert not torch.equal(one.noise, two.noise)
    rows = EncodedData.open(trainer.job.data[1].data.path).read(0, [0, 2])
    for name, texts in rows.texts.items():
        assert torch.equal(one.condition.texts[name], texts)


def test_rows_are_spread_evenly_over_those_of_the_condition(held_out):
    data = EncodedData.open(held_out)

    def rows(**values):
        return held_out_rows(HeldOutLoss(every=1, **values), data)

    assert rows() == [(0, 0), (0, 1), (0, 2)]
    assert rows(rows=2) == [(0, 0), (0, 2)]
    assert rows(rows=1, where="height > 140") == [(0, 1)]
    with pytest.raises(UserError, match="no row of it has height > 900"):
        rows(where="height > 900")


def test_images_that_are_trained_on_and_data_that_are_missing_are_refused(measured_job, job_of):
    with pytest.raises(
        UserError, match="9 of the images for the held-out loss are trained on in phase 'main'"
    ):
        job_of("validation.loss={every: 1, rows: 100}")
    with pytest.raises(
        UserError, match="needs data set 'held-out' encoded at 64 px, and it is given at 128 px"
    ):
        measured_job("validation.loss={data: held-out, every: 1, resolution: 64}")
    # disjoint rows of one set
    job_of("validation.loss={every: 1, where: width > 240}", "phases.main.data=[{where: width <= 240}]")


def test_what_is_measured_may_change_on_resume(measured_job):
    job = measured_job(LOSS)
    train(job)
    change = "validation.loss={data: held-out, every: 1, rows: 1, bins: 2}"
    again = reopen(job.out, ["phases.main.steps=7", change])
    assert again.recipe.validation.loss.every == 1
