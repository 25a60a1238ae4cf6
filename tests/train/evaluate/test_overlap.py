"""What prompts and references share with training data: by embedding, and through what a run began with."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from uhr.train.evaluate.overlap.compare import cells, describe

from .conftest import picture

BRIGHTNESS = [{"metric": "own_metrics:Brightness"}]

LONG = " ".join(f"word{number}" for number in range(90))
"""More than the 77 tokens that CLIP reads."""

SCORES = Path(__file__).parents[2] / "models" / "scores"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP of open_clip, which sees the middle of an image: 8 px at the sides of 96 are cut off."""
    spec = importlib.util.spec_from_file_location("checkpoints_of_scores", SCORES / "checkpoints.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.open_clip(tmp_path_factory.mktemp("clip") / "tiny")


def other_sides(seed):
    pixels = picture(seed)
    pixels[:, :6], pixels[:, -6:] = 0, 255
    return pixels


def names(found):
    return [name.rpartition("/")[2] for name in found["names"]]


def test_references_and_prompts_near_the_training_data_by_embedding(protocol, folder, score, uhr, clip):
    from uhr.models.scores.clip import ClipModel
    from uhr.pixels.decode import png
    from uhr.pixels.phash import phash

    Path("prompts.txt").write_text(f"a red lake\n{LONG} at night\na boat\n")
    images, references = folder("images", range(3)), folder("references", range(10, 14))
    trained = folder("trained", [])
    shutil.copy(references / "0001.png", trained / "same.png")
    (trained / "near.png").write_bytes(png(other_sides(12)))
    (trained / "another.png").write_bytes(png(picture(99)))
    (trained / "near.txt").write_text(f"{LONG} by day")
    stages = ["header", "decode", "phash", {"stage": "embedding", "weights": str(clip)}]
    Path("p.yaml").write_text(json.dumps({"name": "p", "stages": stages, "rules": {}}))
    assert uhr("curate", "run", "p.yaml", "--source", trained, "--out", "set", "--workers", 0)[0] == 0
    file = protocol(metrics=BRIGHTNESS, prompts={"file": "prompts.txt"})
    options = ("--references", references, "--trained-on", "set")
    code, result, err = score(file, images, "out", *options, "--clip", clip)
    assert code == 0, err
    overlap = result["overlap"]
    # what the model itself says of each reference and trained image
    model = ClipModel.load(clip)
    own, theirs = (
        model.embed([model.view.of(pixels) for pixels in each]).numpy()
        for each in ([picture(seed) for seed in range(10, 14)], [other_sides(12), picture(99)])
    )
    assert np.argwhere(own @ theirs.T >= 0.95).tolist() == [[2, 0]]
    gray = [pixels.mean(axis=2).astype(np.uint8) for pixels in (picture(12), other_sides(12))]
    assert (phash(gray[0]) ^ phash(gray[1])).bit_count() > 8
    assert names(overlap["references_exact"]) == ["0001.png"]
    assert names(overlap["references_similar"]) == []
    assert names(overlap["references_near"]) == ["0002.png"]
    assert overlap["prompts"]["count"] == 0
    assert overlap["prompts_near"]["names"] == ["0001"]
    assert overlap["clip"] == model.weights_hash
    assert [each["embedded"] for each in overlap["training"]] == [3]

    # a finished result says what is known without the model, and both say it in their tables
    code, plain, _ = score(file, images, "plain", *options)
    assert (plain["overlap"]["references_near"], plain["overlap"]["prompts_near"]) == (None, None)
    code, out, err = uhr("eval", "compare", "out", "plain")
    assert code == 0, err
    rows = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert "1 of 3" in rows["prompts in training data"]
    assert "2 of 4" in rows["references in training data"]
    assert "≥ 1 of 4" in rows["references in training data"]

    # another model is not taken for this one
    other = shutil.copytree(clip, Path("other"))
    config = json.loads((other / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (other / "open_clip_config.json").write_text(json.dumps(config))
    code, _, err = score(file, images, "o", *options, "--clip", other)
    assert (code, "--clip: set has embeddings of another model" in err, Path("o").exists()) == (
        1,
        True,
        False,
    )
    code, _, err = score(file, images, "o", "--clip", clip)
    assert (code, "--clip without --trained-on" in err) == (1, True)
    code, _, err = score(file, images, "o", *options, "--clip", "no/where/at/all")
    assert (code, "do not exist" in err, Path("o").exists()) == (1, True, False)


def test_trained_images_without_embeddings_are_embedded_and_else_not_called_free_of_overlap(
    protocol, folder, score, uhr, clip
):
    from uhr.pixels.decode import png

    images, references = folder("images"), folder("references", range(10, 12))
    Path("p.yaml").write_text("name: p\nstages: [header, decode, phash]\nrules: {}\n")
    source = folder("trained", range(20, 22))
    (source / "near.png").write_bytes(png(other_sides(11)))
    assert uhr("curate", "run", "p.yaml", "--source", source, "--out", "set", "--workers", 0)[0] == 0
    options = ("--references", references, "--trained-on", "set", "--clip", clip)
    code, result, err = score(protocol(metrics=BRIGHTNESS), images, "out", *options)
    assert code == 0, err
    assert names(result["overlap"]["references_near"]) == ["0001.png"]
    assert result["overlap"]["prompts_near"] == {"count": 0, "names": []}
    assert cells(result["overlap"])["references in training data"] == "1 of 2"
    # one that is gone
    (source / "0001.png").unlink()
    code, result, err = score(protocol(metrics=BRIGHTNESS), images, "less", *options)
    assert (code, "1 trained image cannot be opened" in err) == (0, True), err
    assert cells(result["overlap"])["references in training data"] == "≥ 1 of 2"
    # all of them
    shutil.rmtree(source)
    code, result, err = score(protocol(metrics=BRIGHTNESS), images, "none", *options)
    assert (code, result["overlap"]["references_near"]) == (0, None), err
    code, out, _ = uhr("eval", "run", "mini.yaml", "--images", images, "--out", "none", *options)
    assert "not compared by embedding: the data lack what is compared" in out


def test_an_experiment_with_another_clip_model_compares_again_and_scores_nothing_again(
    protocol, folder, uhr, clip, tiny_flux
):
    source = folder("trained", range(20, 22))
    (source / "0000.txt").write_text("two lakes")
    Path("p.yaml").write_text("name: p\nstages: [header, decode, phash]\nrules: {}\n")
    assert uhr("curate", "run", "p.yaml", "--source", source, "--out", "set", "--workers", 0)[0] == 0
    Path("one.txt").write_text("a lake\n")
    changes = {"size": "64x64", "references": {"kind": "none"}, "prompts": {"file": "one.txt"}}
    arm = {"model": str(tiny_flux), "sampler": "euler", "steps": 1, "trained_on": ["set"]}
    tree = {"name": "tried", "protocol": str(protocol(metrics=BRIGHTNESS, **changes)), "arms": {"plain": arm}}
    given = ("eval", "experiment", "e.yaml", "--out", "out", "--device", "cpu", "--workers", 0)

    def commands(**keys):
        Path("e.yaml").write_text(json.dumps(tree | keys))
        code, out, err = uhr(*given)
        assert code == 0, err
        overlap = json.loads(Path("out/results.json").read_text())["arms"]["plain"]["overlap"]
        return [line.split()[1:4] for line in out.splitlines() if line.startswith("$")], overlap["clip"]

    assert commands() == ([["uhr", "eval", "generate"], ["uhr", "eval", "run"]], None)
    scored = Path("scored").read_text()
    again, weights = commands(clip=str(clip))
    assert again == [["uhr", "eval", "run"]]
    assert weights is not None
    assert commands(clip=str(clip)) == ([], weights)
    assert commands() == ([["uhr", "eval", "run"]], None)
    assert Path("scored").read_text() == scored


def test_rows_of_the_data_without_hashes_are_not_called_free_of_overlap(protocol, folder, score, uhr):
    """One set was decoded, and of another only the headers were read."""
    sources = {"whole": folder("one", [10]), "headers": folder("two", [11, 12])}
    (sources["whole"] / "0000.txt").write_text("a red lake")
    for name, stages in (("whole", "header, decode, phash"), ("headers", "header")):
        Path("p.yaml").write_text(f"name: p\nstages: [{stages}]\nrules: {{}}\n")
        given = ("--source", sources[name], "--out", name, "--workers", 0)
        assert uhr("curate", "run", "p.yaml", *given)[0] == 0
    images, references = folder("images", [*range(6)] * 2), folder("references", range(10, 14))
    file = protocol(metrics=BRIGHTNESS, seeds=[0, 1])
    options = ("--references", references, "--trained-on", "whole")
    code, result, err = score(file, images, "out", *options, "--trained-on", "headers")
    assert code == 0, err
    counts = [(each["rows"], each["hashed"], each["phashed"]) for each in result["overlap"]["training"]]
    assert counts == [(1, 1, 1), (2, 0, 0)]
    # two seeds of a prompt are one prompt
    assert result["overlap"]["prompts"] == {"count": 1, "names": ["0000-s0"]}
    facts = {**result["overlap"], "references_near": {"count": 0, "names": []}}
    assert cells(facts)["references in training data"] == "≥ 1 of 4"
    says = "of 4 references (1 as the same file of the 1 of 3 rows that have it;"
    assert ("1 of 6 prompts" in describe(facts), says in describe(facts)) == (True, True), describe(facts)
    # each comparison that was not made has its reason
    lacking = describe({**facts, "references_similar": None, "references_near": None})
    assert "not compared by perceptual hash: the data lack what is compared; " in lacking
    assert lacking.count("not compared by embedding: --clip names the model") == 2
    # a result of an earlier version
    facts["training"] = [{"rows": each["rows"]} for each in facts["training"]]
    assert cells(facts)["references in training data"] == "1 of 4"


def test_data_of_the_runs_that_a_run_began_with_count_too(folder, protocol, score, uhr):
    """The lineage of training: the run's own data, and those of each run before it that is still there."""
    from uhr.manifests.manifest import Manifest
    from uhr.train.run.checkpoints.checkpoint import DataRef, InitRef, ModelRef
    from uhr.train.run.job import FILE, RunInfo

    Path("p.yaml").write_text("name: p\nstages: [header, decode]\nrules: {}\n")
    data = []
    for number, caption in enumerate(("a red lake", "a blue house", "a boat")):
        source = folder(f"source-{number}", [20 + number])
        (source / "0000.txt").write_text(caption)
        out = Path(f"data-{number}").absolute()
        assert uhr("curate", "run", "p.yaml", "--source", source, "--out", out, "--workers", 0)[0] == 0
        id_ = Manifest.open(out).id
        data.append(DataRef(path=str(out), id=id_, manifest_id=id_, rows=1, licences={}))

    def run(name, number, *before):
        """A run on one of the data sets; what another run that began with it records."""
        model = ModelRef(path="m", name="m", spec="flux1-dev")
        info = RunInfo(id=name, created="", recipe={}, model=model, data=[data[number]], init=before)
        Path(name).mkdir()
        (Path(name) / FILE).write_text(info.model_dump_json())
        file = Path(name).absolute() / "checkpoints" / "00000001" / "adapter.safetensors"
        return InitRef(use="fuse", path=str(file), sha256="0" * 64, recipe=name, run=name, init=before)

    last = run("last", 2, run("middle", 1, run("first", 0)))
    foreign = InitRef(use="fuse", path="/adapter.safetensors", sha256="1" * 64)
    run("foreign", 2, foreign, last)
    images, file = folder("images"), protocol(metrics=BRIGHTNESS)
    found = score(file, images, "a", "--trained-on", "last")[1]["overlap"]
    assert {each["id"] for each in found["training"]} == {each.id for each in data}
    assert (found["prompts"]["count"], found["unknown"]) == (3, [])
    code, result, err = score(file, images, "b", "--trained-on", "foreign")
    assert (code, result["overlap"]["unknown"]) == (0, ["adapter"])
    assert "the data of adapter, with which foreign began, are not compared" in err
    # another run in the place of one that is gone is not taken for it
    tree = json.loads(Path("first", FILE).read_text())
    Path("first", FILE).write_text(json.dumps({**tree, "id": "later"}))
    result = score(file, images, "c", "--trained-on", "last")[1]
    assert (result["overlap"]["prompts"]["count"], result["overlap"]["unknown"]) == (2, ["first"])
    code, out, _ = uhr("eval", "compare", "a", "b", "c", "--to", "md")
    assert "| ≥ 3 of 6 |" in out  # not compared by embedding
    assert "| ≥ 2 of 6 |" in out
