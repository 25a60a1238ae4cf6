"""Sets of images: an item is one image whoever generates it, nothing is generated twice, a bad one costs
itself."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.base.locks.run_lock import only_run
from uhr.base.store import open_store
from uhr.curate.sidecars import DEFAULT_KEYS, read_sidecars
from uhr.manifests.sources.blobs import LocalBlob
from uhr.models.generate.record import read_record
from uhr.models.generate.request import Item, Request
from uhr.models.generate.setup import Setup
from uhr.runtime.units import CRASH, UnitFault, Watch
from uhr.train.generate import identity
from uhr.train.generate.work import GenerateWork, items_table

PROMPTS = ["a lake", {"prompt": "a hill", "name": "hills/green", "seed": 7}, "three foxes", "fog", "a mill"]


def test_a_set_is_an_image_and_a_record_per_prompt_an_index_and_set_json(make):
    made = make(PROMPTS, "--seed", 100)
    assert made.code == 0
    assert [(row["name"], row["prompt"], row["seed"]) for row in made.rows] == [
        ("0000", "a lake", 100), ("hills/green", "a hill", 7), ("0002", "three foxes", 102),
        ("0003", "fog", 103), ("0004", "a mill", 104),
    ]  # fmt: skip
    for row in made.rows:
        file = made.folder / row["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        assert Image.open(file).size == (row["width"], row["height"]) == (64, 64)
        record = read_record(file)
        beside = json.loads(file.with_suffix(".json").read_text())
        assert beside == {**record, "png": {"bytes": row["bytes"], "sha256": row["sha256"]}}
        assert (record["prompt"], record["seed"]) == (row["prompt"], row["seed"])
    assert made.facts["counts"] == {"items": 5, "made": 5, "failed": 0, "truncated": 0}
    assert made.facts["index"]["sha256"] == hashlib.sha256(made.files["set.parquet"]).hexdigest()
    assert made.facts["weights"]["transformer"]["sha256"]
    assert not (made.folder / "work").exists()


@pytest.mark.usefixtures("full_texts")
def test_prompts_that_are_cut_are_counted_and_can_be_found(make):
    long = "a lake " * 200
    prompts = ["a lake", long, {"prompt": "a hill", "negative": long}, {"prompt": "a tree", "negative": "x"}]
    first = make(prompts, "--set", "true_cfg_scale=2", "--negative", "n")
    assert first.code == 0, first.err
    assert [row["truncated"] for row in first.rows] == [False, True, True, False]
    tokens = [(row["prompt_tokens"] > 512, row["negative_tokens"] > 512) for row in first.rows]
    assert tokens == [(False, False), (True, False), (False, True), (False, False)]
    assert first.facts["counts"] == {"items": 4, "made": 4, "failed": 0, "truncated": 2}
    line = "the prompts of 2 images are longer than the encoder reads: `truncated` in set.parquet"
    assert first.out.count(line) == 1
    assert long.strip() not in first.out + first.err
    again = make(prompts, "--set", "true_cfg_scale=2", "--negative", "n")
    assert again.out.count(line) == 1
    planned = make(prompts, "--set", "true_cfg_scale=2", "--negative", "n", "--plan")
    assert "note: 1 of 4 prompts have more tokens than the 512 that t5 reads" in planned.out
    assert "note: 1 of 4 negative prompts have more tokens" in planned.out


def test_rows_of_a_manifest_without_a_caption_are_counted_and_recorded(make, manifest_of, tmp_path):
    captions = {"a.png": "a lake", "b.png": None, "c.png": " "}
    rows = [{"name": name, "height": 20, "width": 20, "caption": each} for name, each in captions.items()]
    manifest = manifest_of(tmp_path / "source", rows).path
    made = make(None, "--prompts", manifest)
    assert made.code == 0, made.err
    assert made.err.count(f"2 of 3 kept rows of {manifest} have no caption, and so are not generated") == 1
    assert made.facts["left_out"] == {"without_caption": 2}
    assert made.facts["counts"]["items"] == 1


def test_a_record_that_counted_no_tokens_leaves_them_open(make):
    """As one of an earlier version."""
    first = make(["a lake", "a hill"])
    file = Path("out/pictures/0000.json")
    record = json.loads(file.read_text())
    for name in ("text_tokens", "notes"):
        del record["details"][name]
    file.write_text(json.dumps(record))
    Path("out/set.json").unlink()
    again = make(["a lake", "a hill"])
    assert (first.code, again.code) == (0, 0), again.err
    assert [row["truncated"] for row in again.rows] == [None, False]
    assert [row["prompt_tokens"] for row in again.rows] == [None, first.rows[1]["prompt_tokens"]]


def test_the_record_is_a_sidecar_that_gives_curation_caption_and_licence(make):
    made = make(["a lake"])
    values = read_sidecars(
        [("0000.json", LocalBlob(str(made.folder / "pictures" / "0000.json")))], DEFAULT_KEYS
    ).values
    assert (values["caption"], values["license"]) == ("a lake", "Apache-2.0")


def test_an_image_of_a_set_is_the_one_that_is_made_alone(make, capfd):
    from uhr.cli import main

    made = make(PROMPTS)
    command = (
        "sample euler --model tiny --size 64x64 --steps 1 --device cpu --seed 2 --out alone.png --prompt"
    )
    assert main([*command.split(), "three foxes"]) == 0
    assert np.array_equal(Image.open("alone.png"), Image.open(made.folder / "pictures" / "0002.png"))


def test_the_same_command_again_says_so_and_touches_nothing(make, stamps):
    first = make(PROMPTS)
    before = stamps("out")
    again = make(PROMPTS)
    assert (again.code, stamps("out")) == (0, before)
    assert "out is finished" in again.out
    assert first.out != again.out


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (PROMPTS, ["--seed", 1], "another set: other seeds: "),
        (PROMPTS[:3], [], "another set: other number of prompts: "),
        ([*PROMPTS[:4], "a fox"], ["--seed", 1], "another set: other prompts, seeds: "),
        (PROMPTS, ["--steps", 2], "other steps"),
        (PROMPTS, ["--guidance", 2], "other guidance"),
    ],
)
def test_another_request_is_refused_with_a_free_name_for_a_new_folder(
    make, prompts, options, message, stamps
):
    make(PROMPTS)
    before = stamps("out")
    Path("out-2").mkdir()
    (Path("out-2") / "x").touch()
    refused = make(prompts, *options)
    assert refused.code == 1
    assert message in refused.error
    assert refused.error.endswith(": use --out out-3")
    assert stamps("out") == before


def test_another_model_under_the_same_name_is_another_request(make, tiny_flux):
    from uhr.models.zoo import make_tiny

    make(["a lake"])
    Path("tiny").unlink()
    make_tiny("tiny-flux1", Path("tiny"), seed=1)
    assert "other weights" in make(["a lake"]).error


@pytest.mark.parametrize(
    ("file", "key"),
    [
        # a scheduler's keys must be known
        ("scheduler/scheduler_config.json", "_diffusers_version"),
        ("vae/config.json", "edited"),
        ("tokenizer/tokenizer_config.json", "edited"),
    ],
)
def test_a_model_that_was_edited_is_another_request(make, tiny_flux, file, key):
    Path("tiny").unlink()
    shutil.copytree(tiny_flux, "tiny")
    assert make(["a lake", "fog"]).code == 0
    Path("out/pictures/0001.json").unlink()
    tree = json.loads((Path("tiny") / file).read_text())
    (Path("tiny") / file).write_text(json.dumps({**tree, key: "0.1"}))
    assert "other weights" in make(["a lake", "fog"]).error


def test_a_set_is_of_one_dtype_and_kind_of_device(make, tiny_flux):
    """What the same request would be on a machine with a GPU is another set."""
    items = [Item(prompt="a lake")]
    request = Request(sampler="euler", model=str(tiny_flux), size=(64, 64), steps=1)
    here = Setup.of(request.model_copy(update={"device": "cpu"}))
    there = replace(here, device="cuda")
    one, other = (
        identity.identify(identity.settled(request, setup), setup, 4, items, None) for setup in (here, there)
    )
    assert (one.request.dtype, one.computes, one.threads) == ("float32", "cpu", 4)
    assert (other.request.dtype, other.computes, other.threads) == ("bfloat16", "cuda", None)
    assert one.id != other.id
    store = open_store("set")
    identity.begin_or_resume(store, one, "x")
    with pytest.raises(UserError, match="another set: other dtype, kind of device"):
        identity.begin_or_resume(store, other, "x")
    # by its number the same kind of device
    first = other.request.model_copy(update={"device": "cuda:1"})
    assert identity.identify(first, there, 4, items, None).id == other.id


def test_the_run_that_begins_a_set_says_how_many_threads_each_worker_has(make, monkeypatch):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr("uhr.train.generate.run.threads_of", lambda runner: 3)
    first = make(PROMPTS)
    assert first.code == 0
    assert json.loads(first.files["request.json"])["threads"] == 3
    Path("out/pictures/0002.json").unlink()
    monkeypatch.setattr("uhr.train.generate.run.threads_of", lambda runner: 2)
    again = make(PROMPTS)
    assert again.code == 0, again.err
    assert "warning: out was begun with 3 threads for each worker and keeps that number" in again.err
    assert again.files == first.files
    assert read_record(Path("out/pictures/0002.png"))["machine"]["threads"] == 3
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("warm_workers", "full_texts")
def test_a_worker_generates_with_the_threads_that_it_is_given_and_as_this_process_does(make, monkeypatch):
    """Bit for bit: a sum that is split among another number of threads has other last bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = make(["a lake"], "--workers", "0", out="here")
    there = make(["a lake"], "--engine", "local", "--workers", "1", out="there")
    assert (here.code, there.code) == (0, 0), there.err
    for made in (here, there):
        assert json.loads(made.files["request.json"])["threads"] == 1
        assert read_record(made.folder / "pictures" / "0000.png")["machine"]["threads"] == 1
    assert there.files["pictures/0000.png"] == here.files["pictures/0000.png"]


def test_a_set_of_a_hubs_model_is_generated_at_one_commit(make, tiny_flux, tmp_path, monkeypatch):
    """The branch moves on while the set is begun."""
    revisions = []

    def hub(repository, *, revision, **_):
        revisions.append(revision)
        folder = tmp_path / (revision or ("a" if len(revisions) == 1 else "b") * 40)
        if not folder.exists():
            folder.symlink_to(tiny_flux)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    made = make(["a lake", "fog"], "--model", "org/model")
    assert made.code == 0, made.err
    assert revisions[0] is None
    assert set(revisions[1:]) == {"a" * 40}
    record = read_record(made.folder / "pictures/0000.png")
    assert record["model"]["revision"] == made.facts["request"]["revision"] == "a" * 40


def test_what_is_missing_is_generated_again_and_nothing_else(make, stamps):
    whole = make(PROMPTS).files
    Path("out/pictures/0002.png").unlink()
    Path("out/pictures/hills/green.json").unlink()
    Path("out/set.json").unlink()
    before = stamps("out")
    again = make(PROMPTS)
    assert again.files == whole
    generated = {path.name for path, stamp in stamps("out/pictures").items() if before.get(path) != stamp}
    assert generated == {"0002.png", "0002.json", "green.png", "green.json"}


def test_an_item_that_fails_costs_itself_and_is_tried_again(make, stamps):
    prompts = ["a lake", "refuse this", "a mill"]
    made = make(prompts, sampler="moody:Moody")
    assert made.code == 1
    assert "1 of 3 images failed; 0001: no such image: ask for another" in made.error
    assert [row["status"] for row in made.rows] == ["made", "failed", "made"]
    assert made.rows[1]["error"] == "no such image: ask for another"
    assert made.facts["counts"] == {"items": 3, "made": 2, "failed": 1, "truncated": 0}
    assert json.loads(made.files["failed/0001.json"])["prompt"] == "refuse this"
    before = stamps("out/pictures")
    assert make(prompts, sampler="moody:Moody").code == 1
    assert stamps("out/pictures") == before


def test_an_item_that_ends_its_process_twice_is_written_down_and_left_alone(tmp_path):
    request = Request(sampler="euler", model="tiny", size=(64, 64), steps=1, device="cpu")
    items = [Item(prompt=f"{n}", name=f"{n}") for n in range(3)]
    work = GenerateWork(request, str(tmp_path / "out"))
    with pytest.raises(UserError, match="name a folder that all machines share"):
        work.open()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/request.json").touch()
    work.open()
    rows = work.run(
        items_table(items, [False] * 3), Watch({1: UnitFault(CRASH, "crashed (SIGSEGV)")})
    ).to_pylist()
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "crashed (SIGSEGV)" in json.loads((tmp_path / "out/failed/1.json").read_text())["error"]
    names = {path.name for path in (tmp_path / "out/pictures").iterdir()}
    assert names == {"0.png", "0.json", "2.png", "2.json"}


def test_an_item_that_succeeds_at_last_leaves_no_failure_behind(make, monkeypatch):
    import moody

    prompts = ["a lake", "refuse this"]
    assert make(prompts, sampler="moody:Moody").code == 1
    monkeypatch.setattr(moody.Moody, "__call__", moody.EulerPipeline.__call__)
    made = make(prompts, sampler="moody:Moody")
    assert made.code == 0
    assert not any(name.startswith("failed/") for name in made.files)
    assert made.facts["counts"]["failed"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x", "width": 60, "height": 64}, "prompts.jsonl line 2: .*64"),
        ({"prompt": "x", "image": "nowhere.png"}, "prompts.jsonl line 2: "),
        ({"prompt": "x", "sede": 1}, "prompts.jsonl line 2: unknown key 'sede': did you mean seed"),
    ],
)
def test_an_invalid_line_is_reported_before_anything_is_written(make, line, message):
    import re

    refused = make(["a lake", line, "a mill"])
    assert refused.code == 1
    assert re.search(message, refused.error)
    assert not Path("out").exists()


def test_one_run_at_a_time(make):
    make(["a lake"])
    Path("out/set.json").unlink()
    with only_run(Path("out/work")):
        assert "another run is at work in out: wait for it" in make(["a lake"]).error


@pytest.mark.parametrize("name", ["thesis.doc", "pictures/mine.png", "set.json"])
def test_a_folder_that_holds_anything_else_is_refused_and_untouched(make, name, stamps):
    (Path("out") / name).parent.mkdir(parents=True)
    (Path("out") / name).write_text("mine")
    before = stamps("out")
    assert "already contains something else" in make(["a lake"]).error
    assert stamps("out") == before


@pytest.mark.parametrize("damage", [b'{"schema_version": 1, "id": ', b"", b"[]"])
def test_a_damaged_set_json_is_an_error_that_names_it_and_not_a_set_to_go_on_with(make, damage, stamps):
    make(["a lake"])
    Path("out/set.json").write_bytes(damage)
    before = stamps("out")
    printed = make(["a lake"]).error
    assert "out/set.json cannot be read" in printed
    assert "remove it; the same command writes it again" in printed
    assert stamps("out") == before
    Path("out/set.json").unlink()
    assert make(["a lake"]).code == 0


def test_what_a_stranger_put_in_the_place_of_a_record_is_found_at_the_end(make):
    make(PROMPTS)
    record = Path("out/pictures/0002.json")
    made = json.loads(record.read_text())
    Path("out/set.json").unlink()
    otherwise = [
        {"seed": 9},
        {"dtype": "bfloat16"},
        {"device": "cuda:1"},
        {"machine": {"threads": 99}},
        {"adapters": [{"sha256": "0" * 64}]},
        {"item": {**made["item"], "negative": "fog"}},
        {"item": {**made["item"], "size": [128, 128]}},
        {"item": {**made["item"], "image": "other.png"}},
        {"original": {"prompt": made["prompt"], "model": "x", "instruction": "y"}},
    ]
    for change in otherwise:
        record.write_text(json.dumps({**made, **change}))
        assert "0002.json is of an image of another request: remove it" in make(PROMPTS).error, change
    record.write_text(json.dumps({**made, "weights": {}}))
    assert "0002.json is of an image with other weights than the first: remove" in make(PROMPTS).error
    record.write_text("{}")
    assert "0002.json is not a record of an image of this set: remove it" in make(PROMPTS).error
    record.unlink()
    assert make(PROMPTS).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "p.txt", "--prompt", "x", "--out", "o"], "--prompt and --prompts"),
        (["--prompts", "p.txt"], "--out is missing"),
        (["--prompts", "p.txt", "--out", "o", "--engine", "spark"], "unknown engine 'spark'"),
        (["--prompts", "p.txt", "--out", "o", "--address", "x", "--workers", "0"], "names a Ray cluster"),
        (["--prompts", "p.txt", "--out", "p.txt"], "is a file"),
        (["--prompts", "p.txt", "--out", "o/x.png"], "--out o/x.png is a file, and this makes a set"),
        (["--image", "given", "--prompt", "x", "--out", "s3://b/x.PNG"], "name a folder or a prefix"),
        (["--prompts", "nowhere.txt", "--out", "o"], "nowhere.txt does not exist"),
        (["--image", "given", "--out", "o"], "--prompt TEXT is missing"),
        (["--image", "given", "--prompts", "p.txt", "--out", "o"], "--prompts and the folder given"),
        (["--prompt", "x", "--out", "o.png", "--workers", "2"], "--workers is an option for sets"),
        (["--prompt", "x", "--out", "o.png", "--refine-model", "m"], "--refine-model without --refine"),
    ],
)
def test_what_does_not_go_together_is_one_line(capfd, options, message):
    from uhr.cli import main

    Path("p.txt").write_text("a lake\n")
    Path("given").mkdir()
    assert main(["sample", "euler", "--model", "tiny", "--device", "cpu", *options]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("uhr: ")]
    assert message in line
    assert not Path("o").exists()
