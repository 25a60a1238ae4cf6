"""Two processes take the steps of one: losses, adapters, backbones, checkpoints, stops and failures."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from uhr.base.errors import UserError
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.recipes import resolve
from uhr.train.run.checkpoints import checkpoint
from uhr.train.run.exports.export import export
from uhr.train.run.job import reopen, start
from uhr.train.run.processes.parallel import ALONE, whole
from uhr.train.run.trainer import Trainer, train

HERE = Path(__file__).parent
TIMING = ("seconds", "wait", "samples_per_second", "tokens_per_second", "megapixels_per_second",
          "peak_memory")  # fmt: skip


@pytest.fixture(scope="module")
def scenarios():
    folders = [str(HERE), str(HERE.parent)]
    sys.path[:0] = folders
    import two_ranks

    yield two_ranks
    for folder in folders:
        sys.path.remove(folder)
    for name in ("short_texts", "two_ranks", "two_ranks_objectives"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def guided(curated, tiny_flux, tmp_path_factory, short_texts) -> Path:
    """Encoded images of 64 x 64 px with their guides."""
    out = tmp_path_factory.mktemp("guided") / "encoded"
    config = EncodeConfig(buckets="square", resolution=64, guide=4)
    with short_texts.text_length():
        encode(curated.path, str(tiny_flux), out, config, device="cpu")
    return out


@pytest.fixture(scope="module")
def setting(tmp_path_factory, small_set, crops, guided, tiny_flux, fast):
    """The arguments of `two_ranks.main`, and of the same runs in one process."""

    def make(name: str) -> dict:
        work = tmp_path_factory.mktemp(name)
        data = {"data": str(small_set.folder), "crops": str(crops), "guided": str(guided)}
        return {"work": str(work), "model": str(tiny_flux), **data, "fast": fast}

    return make


@pytest.fixture(scope="module")
def alone(setting, scenarios):
    """`alone(name)`: the folder of a scenario's run in one process."""
    found, here = {}, setting("one")

    def get(name: str) -> Path:
        if name not in found:
            found[name] = Path(here["work"], name)
            scenarios.run(here, name, ALONE)
        return found[name]

    return get


@pytest.fixture(scope="module")
def two(setting, scenarios, warm) -> Path:
    """The work folder of two processes that did all scenarios."""
    here = setting("two")
    for name, scenario in (("lora-from-one", "lora"), ("whole-full-from-one", "whole-full")):
        trainer = Trainer(scenarios.job_of(here, name, scenarios.SCENARIOS[scenario], ALONE))
        trainer.step()
        trainer.step()
        trainer.save({})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in (0, 1):
        path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": path}  # fmt: skip
        env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        code = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import json, two_ranks; "
        code += "two_ranks.main(json.loads(sys.argv[1]))"
        processes.append(warm.start(["-c", code, json.dumps(here)], env=env))
    codes = [process.wait(240) for process in processes]
    assert codes == [0, 9], [process.stderr()[-3000:] for process in processes]
    return Path(here["work"])


def of_both(two: Path, name: str) -> list[dict]:
    return [json.loads((two / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def part_of(run: Path, step: int, weights: str = "part") -> dict[str, torch.Tensor]:
    folder = checkpoint.folder_of(run, step)
    info = checkpoint.read_info(folder)
    read = checkpoint.read_part(folder, info)[0] if weights == "part" else None
    return checkpoint.read_average(folder, info) if read is None else read


def files_of(run: Path) -> dict:
    return checkpoint.read_info(checkpoint.folder_of(run, checkpoint.steps(run)[-1])).files


def assert_same_training(run: Path, other: Path, step: int = 5) -> None:
    """The same weights and losses to within rounding, in every step that wrote a line."""
    two = log_of(other)
    one = log_of(run)[-len(two) :]
    assert [line["step"] for line in two] == list(range(step + 1 - len(two), step + 1))
    assert len(two) >= 2
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), (name, a["step"])
        for name in ("epoch", "bucket", "samples", "lr"):
            assert a[name] == b[name]
        assert a.keys() == b.keys()
        if "sigma" in a:
            assert a["sigma"] == pytest.approx(b["sigma"], rel=1e-6)
    first, second = part_of(run, step), part_of(other, step)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.shape == second[name].shape
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["lora", "lora-small-passes", "lora-on-divided", "whole-replicate", "whole-full", "whole-hybrid",
             "whole-prodigy", "vae"]
)  # fmt: skip
def test_losses_and_weights_are_those_of_one_process(alone, two, name):
    assert_same_training(alone(name), two / name)
    # three images: a process has one more than the other; one image: a process has none
    expected = {"lora-on-divided": {1}, "vae": {3}}.get(name, {2, 3})
    assert {line["samples"] for line in log_of(two / name)} == expected


@pytest.mark.parametrize(
    ("divided", "whole"),
    [
        ("whole-full", "whole-replicate"),
        ("whole-hybrid", "whole-replicate"),
        ("windows-on-divided", "windows"),
        ("teacher-on-divided", "teacher"),
        ("compiled-on-divided", "plain"),
        ("compiled-whole-full", "plain-whole"),
    ],
)
def test_a_divided_backbone_trains_as_a_whole_one(alone, two, divided, whole):
    assert_same_training(alone(whole), two / divided, 2 if divided.startswith("compiled") else 5)
    assert min(line["loss"] for line in log_of(two / divided)) > 1e-3


def test_what_was_to_be_compiled_was_compiled(two):
    for found in of_both(two, "compiled-on-divided") + of_both(two, "compiled-whole-full"):
        assert found["compiled"] == ["FluxSingleTransformerBlock"] * 2 + ["FluxTransformerBlock"] * 2


def test_what_is_divided_is_stored_in_parts_and_adapters_are_stored_whole(two):
    parts = {"divided/.metadata", "divided/__0_0.distcp", "divided/__1_0.distcp", "divided.json"}
    generators = {"generators-00000.json", "generators-00001.json"}
    for name in ("whole-full", "whole-prodigy"):
        assert set(files_of(two / name)) == parts | generators
    sizes = [files_of(two / "whole-full")[f"divided/__{rank}_0.distcp"].bytes for rank in (0, 1)]
    assert min(sizes) > 0.9 * max(sizes)
    for name in ("lora", "lora-on-divided"):
        assert {"adapter.safetensors", "optimiser.safetensors"} | generators <= set(files_of(two / name))


@pytest.mark.parametrize("name", ["lora", "whole-full"])
def test_exports_of_one_and_of_two_processes_are_the_same_files(alone, two, name, tmp_path):
    for weights in ("trained", "ema"):
        found = {}
        for run in (alone(name), two / name):
            folder, _ = export(run, tmp_path / f"{weights} {len(found)}", weights=weights)
            found[run] = {
                key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()
            }
        one, both = found.values()
        assert {n: (t.shape, t.dtype) for n, t in one.items()} == {
            n: (t.shape, t.dtype) for n, t in both.items()
        }
        for key, value in one.items():
            torch.testing.assert_close(both[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "whole-full", "restless"])
def test_two_processes_that_stop_twice_end_bit_for_bit_like_two_that_did_not(two, name):
    pieces = log_of(two / f"{name}-in-pieces")
    assert log_of(two / name)[-len(pieces) :] == pieces
    one, other = files_of(two / name), files_of(two / f"{name}-in-pieces")
    if name == "whole-full":
        # torch's own files name the moment at which they were written
        for weights in ("part", "ema"):
            a, b = (part_of(two / run, 5, weights) for run in (name, f"{name}-in-pieces"))
            assert a.keys() == b.keys()
            assert all(torch.equal(value, b[key]) for key, value in a.items())
        assert one["divided.json"] == other["divided.json"]
    else:
        assert one == other


def test_processes_draw_different_numbers_from_the_process_wide_generators(two):
    files = files_of(two / "restless")
    assert files["generators-00000.json"] != files["generators-00001.json"]


@pytest.mark.parametrize("name", ["lora", "whole-full"])
def test_a_run_of_one_process_is_continued_by_two_and_one_of_two_by_one(alone, two, name):
    assert_same_training(alone(name), two / f"{name}-from-one")
    # two processes stored step 2; one continues
    run = two / f"{name}-in-pieces"
    for step in checkpoint.steps(run):
        if step > 2:
            checkpoint.remove(checkpoint.folder_of(run, step))
    job = reopen(run)
    assert job.done == 2
    train(job)
    assert_same_training(alone(name), run)


def test_a_divided_run_continues_whole_and_a_whole_one_divided(alone, scenarios, two):
    for name, shard in (("whole-full-from-one", "replicate"), ("whole-replicate", "full")):
        run = two / name
        for step in checkpoint.steps(run):
            if step > 2:
                checkpoint.remove(checkpoint.folder_of(run, step))
        train(reopen(run, [f"runtime.shard={shard}"]))
        assert checkpoint.is_divided(checkpoint.read_info(checkpoint.folder_of(run, 5))) == (shard == "full")
        assert_same_training(alone("whole-full"), run)


@pytest.mark.parametrize("shard", ["replicate", "full"])
def test_a_run_begins_with_a_backbone_that_two_processes_saved_in_parts(
    two, scenarios, tiny_flux, small_set, fast, tmp_path, shard
):
    recipe = resolve("lora", None, [*fast, *scenarios.BASE, *scenarios.WHOLE, f"runtime.shard={shard}"])
    run = two / "whole-prodigy"
    job = start(recipe, str(tiny_flux), [small_set.folder], tmp_path / "run", [f"{run}@2"])
    trainer = Trainer(job)
    begun = {name: whole(parameter) for name, parameter in trainer.state.parameters.items()}
    stored = part_of(run, 2)
    assert begun.keys() == stored.keys()
    assert all(torch.equal(value, begun[name]) for name, value in stored.items())
    (ref,) = job.info.init
    assert (ref.use, ref.step, Path(ref.path).name) == ("continue", 2, "checkpoint.json")
    with open(checkpoint.folder_of(run, 2) / "divided.json", "a") as file:
        file.write(" ")
    with pytest.raises(UserError, match=r"divided.json is damaged: take another checkpoint"):
        Trainer(job)
    text = (checkpoint.folder_of(run, 2) / "divided.json").read_text()
    (checkpoint.folder_of(run, 2) / "divided.json").write_text(text.removesuffix(" "))


def test_gradients_are_summed_and_one_that_no_process_has_stays_absent(two):
    for rank, found in enumerate(of_both(two, "exchange")):
        assert found["both"] == [3, 3]
        assert found["one"] == [5, 5]
        assert found["none"] is True
        # places 0 to 2: the first process has one, the second two; of a batch of one, the second has it
        assert found["values"] == {"1": [[1]], "3": [[0, 11, 21]]}
        assert found["flag"] is True
        assert found["first"] == "rank 0", rank


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not-finite", r"step 3: the loss is not finite (images "),
        ("unreadable", "row 7 cannot be read: copy it again"),
        ("full-disk", "step 2 is saved; free space, then `uhr train resume"),
    ],
)
def test_a_failure_in_one_process_is_the_same_error_in_both(two, name, message):
    first, second = of_both(two, name)
    assert message in first["error"]
    assert first == second
    assert first["every rank"] is True
    assert checkpoint.steps(two / name) == [2]
    assert not list((two / name / "checkpoints").glob(".*"))


def test_two_processes_skip_a_step_that_is_not_finite_in_one_as_one_process_does(alone, two):
    one, both = (log_of(run) for run in (alone("skipping"), two / "skipping"))
    assert [line["step"] for line in one if "skipped" in line] == [3]
    assert one[2]["skipped"] == both[2]["skipped"]
    assert len(one[2]["skipped"]["images"]) == 1
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, both)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 4
    for weights in ("part", "ema"):
        first, second = (part_of(run, 5, weights) for run in (alone("skipping"), two / "skipping"))
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-5)


def test_ctrl_c_in_one_process_saves_once_after_the_step_and_stops_both(two):
    assert of_both(two, "interrupted") == [{"step": 3, "stopped": True, "compiled": []}] * 2
    assert checkpoint.steps(two / "interrupted") == [3]
    assert len(log_of(two / "interrupted")) == 3


def test_the_end_of_one_process_is_an_error_of_the_other(two):
    found = json.loads((two / "dies-0.json").read_text())
    assert found["error"].startswith("the other processes are lost (")
    assert "one of them has ended: its own error says why" in found["error"]
