"""The requests that a run accepts, and those that it refuses."""

import json
import shutil

import pytest

from uhr.base.errors import UserError
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.objectives.wavelet import Wavelet
from uhr.train.recipes import recipe
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.checkpoints.checkpoint import folder_of, newest, steps
from uhr.train.run.job import reopen, start
from uhr.train.run.trainer import Trainer, train


def adapter_of(run):
    return json.loads((folder_of(run, steps(run)[-1]) / "checkpoint.json").read_text())["files"][
        "adapter.safetensors"
    ]


def test_a_checkpoint_says_what_it_is_of(job_of, small_set):
    job = job_of("phases.main.steps=5")
    outcome = train(job)
    info = checkpoint.read_info(outcome.checkpoint)
    # nine images in three buckets, three to a batch: four batches to an epoch
    assert (info.step, info.phase, info.epoch, info.batch) == (5, 0, 1, 1)
    assert info.recipe == job.recipe.model_dump(mode="json")
    assert [(ref.id, ref.manifest_id) for ref in info.data] == [(small_set.info.id, small_set.manifest.id)]
    assert info.model.spec == "tiny-flux1"
    assert len(info.model.transformer) == 64
    assert [entry["surgery"] for entry in info.surgeries] == ["lora"]
    assert info.metrics["mean loss of 5 steps"] == outcome.loss
    assert {"uhr", "torch", "diffusers", "peft"} <= info.versions.keys()
    assert set(info.files) == {"adapter.safetensors", "optimiser.safetensors", "generators-00000.json"}


def test_only_the_newest_checkpoints_are_kept(job_of):
    job = job_of("phases.main.steps=7", "runtime.checkpoint_every=2", "runtime.keep_checkpoints=3")
    train(job)
    assert steps(job.out) == [4, 6, 7]


def test_a_run_made_longer_equals_one_that_was_long_from_the_start(job_of, tmp_path):
    short = job_of("phases.main.steps=3", out=tmp_path / "short")
    train(short)
    train(reopen(short.out, ["phases.main.steps=6", "runtime.checkpoint_every=2"]))
    long = job_of("phases.main.steps=6", out=tmp_path / "long")
    train(long)
    assert adapter_of(short.out) == adapter_of(long.out)


def test_phases_follow_each_other_also_when_stopped_at_their_border(job_of, tmp_path, small_set, tiny_flux):
    first = recipe("lora").phases[0]
    phases = [
        first.model_copy(update={"name": "one", "steps": 3}),
        first.model_copy(update={"name": "two", "steps": 3, "lr": 1e-3, "objective": Wavelet()}),
    ]
    two = "phases=" + json.dumps([phase.model_dump(mode="json") for phase in phases])
    straight, broken = (job_of(two, "runtime.checkpoint_every=3", out=tmp_path / name) for name in "ab")
    train(straight)
    trainer = Trainer(broken)
    for _ in range(3):
        trainer.step()
    trainer.save({})
    assert reopen(broken.out).done == 3
    train(reopen(broken.out))
    assert adapter_of(broken.out) == adapter_of(straight.out)
    lines = [json.loads(line) for line in (straight.out / "log.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"], line["lr"]) for line in lines] == [("one", 0, 1e-4)] * 3 + [
        ("two", 0, 1e-3)
    ] * 3
    with pytest.raises(UserError, match=r"phase 'one' is over, with 3 steps: --set phases.one.steps=3"):
        reopen(straight.out, ["phases.one.steps=4"])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("phases.main.lr=1", r"phases\.0\.lr \(0\.0001 -> 1\.0\)"),
        ("seed=5", r"seed \(0 -> 5\)"),
        ("trainable.rank=8", r"trainable\.rank \(4 -> 8\)"),
        ("ema=0.9", r"ema \(null -> 0\.9\)"),
        ("optimiser=prodigy", r'optimiser\.bias_correction \(null -> true\).* \("adamw" -> "prodigy"\).*'),
    ],
)
def test_what_would_change_a_step_is_refused_on_resume(job_of, change, name):
    job = job_of("phases.main.steps=1")
    train(job)
    with pytest.raises(UserError, match=f"the run so far had another {name}: only steps, device"):
        reopen(job.out, ["phases.main.steps=2", change])


def test_fewer_steps_than_are_done_are_refused(job_of):
    job = job_of("phases.main.steps=3")
    train(job)
    with pytest.raises(UserError, match="the run is already at step 3"):
        reopen(job.out, ["phases.main.steps=2"])


@pytest.mark.parametrize("written", ["generators-00000.json", "checkpoint.json"])
def test_a_disk_that_is_full_in_a_save_leaves_the_checkpoint_before(job_of, monkeypatch, written):
    job = job_of("phases.main.steps=3", "runtime.checkpoint_every=2")
    real = checkpoint.write_json

    def write_json(path, value):
        if path.name == written and "00000003" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(path, value)

    monkeypatch.setattr(checkpoint, "write_json", write_json)
    with pytest.raises(UserError, match="No space left"):
        train(job)
    assert steps(job.out) == [2]
    monkeypatch.setattr(checkpoint, "write_json", real)
    again = reopen(job.out)
    assert again.done == 2
    train(again)
    assert sorted(path.name for path in folder_of(job.out, 3).parent.iterdir()) == [
        folder_of(job.out, step).name for step in (2, 3)
    ]


def test_a_torn_checkpoint_is_passed_over_and_named(job_of, capsys):
    job = job_of("phases.main.steps=6", "runtime.checkpoint_every=2", "runtime.keep_checkpoints=5")
    train(job)
    whole = adapter_of(job.out)
    file = folder_of(job.out, 6) / "optimiser.safetensors"
    contents = bytearray(file.read_bytes())
    contents[-5] ^= 1
    file.write_bytes(contents)
    (folder_of(job.out, 4) / "checkpoint.json").unlink()
    again = reopen(job.out)
    assert again.done == 2
    printed = capsys.readouterr().err
    assert "step-00000006/optimiser.safetensors is damaged: resuming from step 2" in printed
    assert "step-00000004 has no checkpoint.json: resuming from step 2" in printed
    train(again)
    assert adapter_of(job.out) == whole
    assert [json.loads(line)["step"] for line in (job.out / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "7", "{", "{}", '{"schema_version": "1"}', '{"schema_version": 99}', "[" * 100_000,
     '{"schema_version": 1, "step": 2}', b"\xff\xfe"],
)  # fmt: skip
def test_whatever_is_wrong_with_a_checkpoint_json_an_older_one_goes_on(tmp_path, text, job_of):
    job = job_of("phases.main.steps=1")
    train(job)
    torn = folder_of(job.out, 2)
    torn.mkdir()
    (torn / "checkpoint.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    folder, info, faults = newest(job.out)
    assert (folder, info.step, len(faults)) == (folder_of(job.out, 1), 1, 1)
    assert str(torn) in faults[0]


def test_a_checkpoint_that_lists_no_optimiser_is_torn(job_of):
    job = job_of("phases.main.steps=1")
    train(job)
    file = folder_of(job.out, 1) / "checkpoint.json"
    tree = json.loads(file.read_text())
    del tree["files"]["optimiser.safetensors"]
    file.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"does not list optimiser.safetensors"):
        newest(job.out)


def test_no_whole_checkpoint_is_an_error(job_of):
    job = job_of("phases.main.steps=1")
    train(job)
    (folder_of(job.out, 1) / "adapter.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"no checkpoint of .* is complete \(.*adapter.safetensors is missing\)"
    ):
        newest(job.out)


def test_a_run_that_died_before_its_first_checkpoint_starts_at_its_first_step(job_of):
    job = job_of("phases.main.steps=2")
    Trainer(job).step()
    again = reopen(job.out)
    assert again.resume is None
    assert train(again).step == 2


def test_another_run_in_the_same_folder_is_refused(job_of, tmp_path):
    train(job_of("seed=1", "phases.main.steps=1", out=tmp_path / "run"))
    with pytest.raises(
        UserError,
        match=r"another caption_dropout .*, another phases.0.steps .*, another seed .*: name another",
    ):
        job_of("seed=2", "caption_dropout=0.5", out=tmp_path / "run")
    with pytest.raises(
        UserError, match=r"\(1 -> 9\): continue it with that: `uhr train resume .*--set phases.0.steps=9`"
    ):
        job_of("seed=1", "phases.main.steps=9", out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="already contains something else"):
        job_of(out=tmp_path / "other")


def test_moved_model_and_data_are_found_and_others_are_refused(job_of, small_set, tiny_flux, tmp_path):
    from uhr.models.zoo import make_tiny

    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(small_set.folder, data)
    shutil.copytree(tiny_flux, model)
    job = job_of("phases.main.steps=2", model=model, data=data)
    data.rename(tmp_path / "moved data")
    model.rename(tmp_path / "moved model")
    with pytest.raises(
        UserError, match=r"model, the model of .* does not exist: name its new path: model=PATH"
    ):
        reopen(job.out)
    with pytest.raises(UserError, match=r"data, the data of .* does not exist: name its new path: data=PATH"):
        reopen(job.out, model=str(tmp_path / "moved model"))
    other = make_tiny("tiny-flux1", tmp_path / "other model", seed=1)
    with pytest.raises(
        UserError,
        match=r"the model is not what .* was trained with: name the path of the original: model=PATH",
    ):
        reopen(job.out, model=str(other), data=[tmp_path / "moved data"])
    again = reopen(job.out, model=str(tmp_path / "moved model"), data=[tmp_path / "moved data"])
    assert train(again).step == 2


def test_data_must_have_the_resolution_of_a_phase(job_of, small_set, tiny_flux, tmp_path):
    with pytest.raises(
        UserError, match=r"encoded at 64 px, and it is given at 128 px: .*phases\.main\.resolution=128"
    ):
        job_of("phases.main.resolution=64")
    small, _ = encode(
        small_set.manifest.path, str(tiny_flux), tmp_path / "64", EncodeConfig(resolution=64), "cpu"
    )
    assert small.resolution == 64
    with pytest.raises(UserError, match=r"encoded at 128 px, and it is given at 64 px"):
        job_of(data=tmp_path / "64")
    with pytest.raises(UserError, match=r"was encoded at 64 px, and no phase of lora uses it as 'main'"):
        start(recipe("lora"), str(tiny_flux), [small_set.folder, tmp_path / "64"], tmp_path / "x")
    base = recipe("lora")
    phases = tuple(
        base.phases[0].model_copy(update={"name": str(px), "resolution": px, "steps": 1}) for px in (64, 128)
    )
    both = base.model_copy(update={"phases": phases})
    with pytest.raises(
        UserError, match=r"phase '64' needs data set 'main' encoded at 64 px, and it is given at 128 px"
    ):
        start(both, str(tiny_flux), [small_set.folder], tmp_path / "run")
    job = start(both, str(tiny_flux), [small_set.folder, tmp_path / "64"], tmp_path / "run")
    assert [job.mixture_of(i).orders[0].data.info.resolution for i in (0, 1)] == [64, 128]
    assert train(job).step == 2


def test_what_cannot_run_is_refused_before_anything_is_written(job_of, tmp_path):
    for change, message in [
        ("batch.remainder=drop", r"a bucket of 2 rows never fills a batch of 3: --set batch.remainder=short"),
        ("phases.main.objective=flwo", "unknown objective 'flwo': did you mean flow"),
        ("surgeries=[{surgery: vae}]", "unknown surgery 'vae'"),
        ("trainable.targets=atention", "unknown set of targets 'atention'"),
        ("family=flux2", "recipe lora is for flux2, and tiny-flux1 is of family flux1"),
    ]:
        with pytest.raises(UserError, match=message):
            job_of(change)
    assert not (tmp_path / "run").exists()


def test_options_that_the_recipes_sampler_does_not_take_are_refused_before_training(job_of, tmp_path):
    # they would be in the card and in the command after the export
    with pytest.raises(UserError, match=r"sampling\.options of euler: unknown key 'toolkit\.nkt'.*ntk"):
        job_of("sampling.options={toolkit.nkt: 10}", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("part", "key", "nearest"),
    [("runtime", "keep_checkpoint", "keep_checkpoints"), ("trainable", "rnk", "rank")],
)
def test_a_run_with_an_option_that_is_unknown_or_was_removed_is_refused(job_of, part, key, nearest):
    job = job_of()
    file = job.out / "run.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    tree["recipe"][part][key] = 1
    file.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(UserError, match=f"unknown key '.*{key}': did you mean .*{nearest}"):
        reopen(job.out)


def test_a_run_that_failed_before_its_first_step_leaves_its_folder_free(job_of):
    job = job_of("trainable.targets=[to_nothing]")
    with pytest.raises(UserError, match="'to_nothing' matches no module"):
        train(job)
    assert train(job_of("phases.main.steps=1")).step == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_phase_that_has_begun_keeps_its_steps_if_its_schedule_depends_on_them(job_of, schedule):
    job = job_of("phases.main.steps=4", f"phases.main.schedule={schedule}")
    train(job)
    with pytest.raises(
        UserError,
        match=rf"phase 'main' has begun, and its {schedule} schedule.*--set phases.main.steps=4, or",
    ):
        reopen(job.out, ["phases.main.steps=8"])
