"""Metrics are scored in groups, of which one is loaded at a time, and everything is checked before."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from uhr.base.errors import UserError
from uhr.train.evaluate.choice import sufficient
from uhr.train.evaluate.images import ImageRef, References, find_references
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.evaluate.scoring.groups import divide
from uhr.train.evaluate.scoring.work import ChosenMetric

MODELS = [
    {"metric": "own_metrics:Model", "label": "one", "options": {"scale": 1}},
    {"metric": "own_metrics:Model", "label": "two", "options": {"scale": 2}},
]
WEIGHTS = ("--weights", "one=1.bin", "--weights", "two=2.bin")
MIXED = [MODELS[0], {"metric": "glcm"}, {"metric": "random-frechet"}, MODELS[1]]


@pytest.fixture
def weights():
    for number in (1, 2):
        Path(f"{number}.bin").write_text(str(number))


def loads():
    found = Path("loads")
    return [Path(each).name for each in found.read_text().split()] if found.exists() else []


def test_models_are_loaded_one_at_a_time_and_results_do_not_depend_on_it(protocol, folder, score, weights):
    file, images = protocol(metrics=MIXED), folder("images")
    options = (*WEIGHTS, "--references", folder("references", range(10, 18)))
    Path("alone").touch()
    code, alone, err = score(file, images, "alone-out", *options, "--together", 1)
    assert code == 0, err
    Path("alone").unlink()
    # small models are in memory together
    for name, more in (("together", ("--together", 2)), ("default", ())):
        together = score(file, images, name, *options, *more)[1]
        assert (alone["metrics"], alone["scores"]) == (together["metrics"], together["scores"])
    # each once to check it, the first one last: it is in memory then
    assert loads() == ["2.bin", "1.bin", "2.bin", "1.bin", "2.bin", "1.bin", "2.bin"]
    assert [each["metric"] for each in alone["metrics"]] == ["one", "glcm", "random-frechet", "two"]
    assert sorted(path.name for path in Path("together").iterdir()) == sorted(
        ["request.json", "features", "reference-features", "scores.parquet", "result.json"]
    )


def test_metrics_of_sets_share_the_model_of_their_weights():
    inception = [
        ChosenMetric(name, name, {"weights": weights})
        for name, weights in (("fid", "a.pt"), ("kid", "a.pt"), ("patch-fid", "b.pt"))
    ]
    glcm = ChosenMetric("glcm", "glcm", {})
    clips = [ChosenMetric(f"c{n}", "clip-score", {"weights": "clip"}) for n in range(2)]
    program = ChosenMetric("own", "command", {"name": "own", "columns": {"x": None}, "command": ["x"]})
    found = divide([clips[0], *inception, glcm, clips[1], program], 1)
    names = [[each.name for each in group.chosen] for group in found]
    assert names == [["c0", "glcm"], ["fid", "kid"], ["patch-fid"], ["c1"], ["own"]]
    names = [[each.name for each in group.chosen] for group in divide([*clips, *inception, glcm], 3)]
    assert names == [["c0", "c1", "fid", "kid", "glcm"], ["patch-fid"]]
    assert len({group.number for group in found}) == len(found)


def test_models_share_a_group_as_far_as_their_files_fit():
    for name, size in (("a.pt", 40), ("b.pt", 50), ("c.pt", 30), ("clip/x.bin", 60), ("large.pt", 500)):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(bytes(size))
    inception = [ChosenMetric(f[0], "fid", {"weights": f}) for f in ("a.pt", "b.pt", "c.pt", "large.pt")]
    clip, hub = (ChosenMetric(at, "clip-score", {"weights": at}) for at in ("clip", "org/clip"))
    chosen = [*inception[:3], clip, hub, inception[3]]

    def names(memory):
        return [[each.name for each in group.chosen] for group in divide(chosen, memory=memory)]

    assert names(100) == [["a", "b"], ["c", "clip"], ["org/clip"], ["l"]]
    assert names(180) == [["a", "b", "c", "clip"], ["org/clip"], ["l"]]
    assert names(0) == [[each.name] for each in chosen]


def test_two_models_of_one_architecture_have_columns_of_their_own(protocol, folder, score, uhr, weights):
    file, images = protocol(metrics=MODELS), folder("images")
    code, result, err = score(file, images, "out", *WEIGHTS)
    assert code == 0, err
    names = [(each["name"], each["columns"][0]["name"]) for each in result["metrics"]]
    assert names == [("model/one", "brightness_one"), ("model/two", "brightness_two")]
    rows = pq.read_table("out/scores.parquet")
    assert np.allclose(rows["brightness_two"], 2 * np.array(rows["brightness_one"]))
    compared = json.loads(uhr("eval", "compare", "out", "again=out", "--json")[1])
    assert [each["name"] for each in compared["columns"]] == ["brightness_one", "brightness_two"]
    assert all(each["differences"][1] for each in compared["columns"])


def test_a_model_that_cannot_be_loaded_is_known_before_anything_is_scored(protocol, folder, score, weights):
    Path("2.bin").write_text("damaged")
    file, images = protocol(metrics=MODELS), folder("images")
    code, _, err = score(file, images, "out", *WEIGHTS)
    assert (code, "two: 2.bin is damaged" in err) == (1, True), err
    assert not Path("scored").exists()
    # left out only if the user did not name its weights
    assert score(file, images, "out", *WEIGHTS, "--allow-missing")[0] == 1
    given = {**MODELS[1], "options": {"scale": 2, "file": "2.bin"}}
    code, result, err = score(
        protocol(metrics=[MODELS[0], given]), images, "other", *WEIGHTS[:2], "--allow-missing"
    )
    assert code == 0, err
    assert result["missing"] == [{"metric": "two", "reason": "2.bin is damaged: download it again"}]
    assert [each["metric"] for each in result["metrics"]] == ["one"]


def test_a_finished_group_or_result_loads_nothing(protocol, folder, score, weights):
    file, images = protocol(metrics=MODELS), folder("images")
    # the second model fails at the fourth image
    score_all = (file, images, "out", *WEIGHTS, "--together", 1)
    Path("stop-two").write_text("3")
    assert score(*score_all)[0] == 1
    assert loads() == ["2.bin", "1.bin", "2.bin"]
    Path("stop-two").unlink()
    code, first, err = score(*score_all)
    assert code == 0, err
    assert loads()[3:] == ["2.bin"]
    assert score(*score_all)[1] == first
    assert len(loads()) == 4
    # other weights under the same name are another evaluation
    Path("2.bin").write_text("other weights")
    code, _, err = score(*score_all)
    assert (code, "contains another evaluation: other metrics" in err) == (1, True)


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ({"metric": "inception-score"}, "it needs 10 images or more, and there are 6"),
        ({"metric": "patch-fid"}, "it needs 299 px on each side, and 0000 has 96x80 px"),
        ({"metric": "pyiqa"}, "it needs 512 px on each side, and 0000 has 96x80 px"),
        ({"metric": "grid"}, "it needs 256 px on each side, and 0000 has 96x80 px"),
        ({"metric": "kid", "options": {"subsets": 3}}, "unknown key 'subsets'"),
    ],
)
def test_too_few_or_too_small_images_are_reported_before_anything_is_loaded(
    protocol, folder, score, weights, metric, says
):
    file, images = protocol(metrics=[MODELS[0], metric]), folder("images")
    options = ("--weights", "one=1.bin", "--references", folder("references", range(10, 18)))
    if metric["metric"] not in ("grid", "pyiqa"):
        options = (*options, "--weights", f"{metric['metric']}=1.bin")
    code, _, err = score(file, images, "out", *options)
    assert (code, says in err) == (1, True), err
    assert (loads(), Path("out").exists()) == ([], False)
    if "needs" in says:
        code, result, err = score(file, images, "out", *options, "--allow-missing")
        assert code == 0, err
        assert result["missing"] == [{"metric": metric["metric"], "reason": says}]


def test_references_that_are_too_few_or_of_another_size_are_reported_before_loading(
    protocol, folder, score, weights
):
    images, one = folder("images"), folder("one", [1])
    file = protocol(metrics=[MODELS[0], {"metric": "random-kernel"}])
    options = ("--weights", "one=1.bin", "--references")
    code, _, err = score(file, images, "out", *options, one)
    assert (code, "it needs 2 references or more, and there are 1" in err) == (1, True), err
    file = protocol(metrics=[MODELS[0], {"metric": "psnr"}], references={"kind": "paired"})
    code, _, err = score(file, images, "out", *options, folder("small", size=(40, 48)))
    says = "psnr: it compares pixels, and 0000 has 96x80 px and its reference 40x48 px"
    assert (code, says in err) == (1, True), err
    broken = folder("broken", range(6))
    (broken / "0004.png").write_bytes(b"nothing")
    code, _, err = score(file, images, "out", *options, broken)
    assert (code, "0004.png cannot be used" in err) == (1, True), err
    assert (loads(), Path("out").exists()) == ([], False)


def test_patches_of_one_image_have_sizes_of_their_own(folder):
    """All of them are named by the image; each is compared with its own size."""
    large = folder("large", [1]) / "0000.png"
    small = folder("small", [2], size=(40, 48)) / "0000.png"
    refs = [ImageRef("photo.png", str(file.absolute())) for file in (large, small)]
    references = References(Path("set"), "paired", refs, "0" * 64)
    items = [EvalItem(at, f"{at}", "photo.png", at, 0, size) for at, size in enumerate([(96, 80), (40, 48)])]
    psnr, fid = ChosenMetric("psnr", "psnr", {}), ChosenMetric("fid", "fid", {"weights": "fid.pt"})
    assert sufficient([psnr, fid], items, references, False) == ([psnr, fid], [])
    swapped = [items[0]._replace(size=(40, 48)), items[1]._replace(size=(96, 80))]
    with pytest.raises(UserError, match="0 has 40x48 px and its reference 96x80 px"):
        sufficient([psnr], swapped, references, False)


def test_a_manifest_and_a_folder_of_the_same_images_are_the_same_references(folder, uhr):
    references = folder("references", range(10, 18))
    Path("references/a").mkdir()
    Path("references/0003.png").rename("references/a/x.png")
    Path("references/0004.png").rename("references/a.png")
    for name, stages in (("hashed", "header, decode"), ("plain", "header")):
        Path("p.yaml").write_text(f"name: p\nstages: [{stages}]\nrules: {{}}\n")
        given = ("curate", "run", "p.yaml", "--source", references, "--out", name, "--workers", 0)
        assert uhr(*given)[0] == 0
    found = [find_references(Path(place), "set", []) for place in ("references", "hashed", "plain")]
    assert len({each.id for each in found}) == 1
    # in one order: the positions of crops depend on the number of an image
    pixels = [[ref.pixels()[1] for ref in each.refs] for each in found]
    assert pixels[0] == pixels[1] == pixels[2]
    Path("references/a.png").write_bytes(Path("references/0005.png").read_bytes())
    assert find_references(references, "set", []).id != found[0].id


def test_a_program_of_the_users_own_is_a_metric_of_a_protocol(protocol, folder, score):
    Path("score.py").write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    given = json.loads(line)\n"
        "    value = len(given['prompt']) + (given['reference'] is not None)\n"
        "    print(json.dumps({'scores': {'hpsv3': value}}), flush=True)\n"
    )
    options = {
        "name": "hpsv3",
        "command": [sys.executable, "score.py"],
        "columns": {"hpsv3": "higher"},
        "needs": ["prompt"],
    }
    use = {"metric": "command", "label": "hpsv3", "options": options}
    images = folder("images")
    code, result, err = score(protocol(metrics=[use]), images, "out")
    assert code == 0, err
    prompts = Path("prompts.txt").read_text().splitlines()
    (column,) = result["metrics"][0]["columns"]
    assert (column["name"], column["better"]) == ("hpsv3", "higher")
    assert column["value"] == pytest.approx(np.mean([len(each) for each in prompts]))
    use["options"] = {**options, "needs": ["prompt", "reference"]}
    file = protocol(metrics=[use], references={"kind": "paired"})
    code, _, err = score(file, images, "other")
    assert (code, "hpsv3: there are no references (--references)" in err) == (1, True), err
    code, _, err = score(file, images, "other", "--references", folder("references", range(10, 16)))
    assert code == 0, err
