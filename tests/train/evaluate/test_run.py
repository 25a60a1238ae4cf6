"""Scores: equal to the metrics called directly, resumed, and refused where they would mean nothing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from uhr.base.errors import UserError
from uhr.models.metrics.base import Sample
from uhr.models.metrics.features import Features
from uhr.models.metrics.registry import metric
from uhr.pixels.decode import png
from uhr.train.evaluate import choice
from uhr.train.evaluate.protocol import EvalProtocol, MetricUse

from .conftest import picture

OWN = [{"metric": "own_metrics:Brightness"}]


def values(result):
    return {column["name"]: column for each in result["metrics"] for column in each["columns"]}


def pixels(folder, number):
    from uhr.pixels.decode import decode

    return decode((folder / f"{number:04d}.png").read_bytes()).rgb()


def test_a_result_has_what_the_metrics_give_directly(protocol, folder, score):
    images, references = folder("images", blur=3), folder("references", range(10, 18))
    code, result, _ = score(protocol(), images, "out", "--references", references)
    assert code == 0
    found = values(result)
    glcm, frechet = metric("glcm"), metric("random-frechet")
    direct = [glcm.score([Sample(pixels(images, n), n)])[0]["glcm_diffusion_4k"] for n in range(6)]
    rows = pq.read_table("out/scores.parquet").to_pylist()
    assert [row["glcm_diffusion_4k"] for row in rows] == direct
    assert [row["file"] for row in rows] == [f"{n:04d}.png" for n in range(6)]
    column = found["glcm_diffusion_4k"]
    assert column["value"] == pytest.approx(np.mean(direct))
    assert column["low"] < column["value"] < column["high"]
    parts = [
        Features.merge([frechet.extractor.features(pixels(each, n), n) for n in range(count)])
        for each, count in ((images, 6), (references, 8))
    ]
    (direct_value,) = frechet.compare(parts[1], parts[0]).values()
    (name,) = [name for name in found if name.startswith("random_frechet")]
    assert found[name]["value"] == pytest.approx(direct_value.value, rel=1e-9)
    assert (found[name]["n"], result["n"], result["references"]["count"]) == (6, 6, 8)
    assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert result["protocol"]["complete"]
    assert result["overlap"] is None


def test_a_stopped_run_is_resumed_and_gives_the_same_scores(protocol, folder, score):
    images = folder("images")
    file = protocol(metrics=OWN)
    Path("stop").write_text("4")
    code, _, err = score(file, images, "out")
    assert (code, "0004.png: stopped" in err) == (1, True)
    assert not Path("out/result.json").exists()
    Path("stop").unlink()
    Path("scored").unlink()
    code, resumed, _ = score(file, images, "out")
    assert code == 0
    assert Path("scored").read_text().split() == ["4", "5"]
    _, whole, _ = score(file, images, "other")
    assert resumed["scores"] == whole["scores"]
    # a finished result is not computed again
    Path("scored").unlink()
    assert score(file, images, "out")[1] == resumed
    assert not Path("scored").exists()


def test_worker_processes_give_the_same_scores(protocol, folder, score, warm_workers):
    images, references = folder("images"), folder("references", range(10, 18))
    Path("1.bin").write_text("1")
    metrics = [
        {"metric": "random-frechet"},
        {"metric": "glcm"},
        {"metric": "own_metrics:Model", "label": "model"},
    ]
    options = ("--references", references, "--weights", "model=1.bin")
    here = score(protocol(metrics=metrics), images, "here", *options)[1]
    there = score(protocol(metrics=metrics), images, "there", *options, "--workers", 2)[1]
    assert here["metrics"] == there["metrics"]
    assert here["scores"] == there["scores"]


def test_missing_metrics_are_named_and_left_out_only_on_request(protocol, folder, score):
    images = folder("images")
    weighted = {"metric": "own_metrics:Weighted", "label": "weighted"}
    file = protocol(metrics=[weighted, {"metric": "random-frechet"}, {"metric": "glcm"}])
    code, _, err = score(file, images, "out")
    assert code == 1
    assert (
        "2 metrics of 3 cannot be computed: weighted: its weights are not named "
        "(--weights METRIC=PATH: a file of weights, from nowhere); random-frechet: there" in err
    )
    assert "random-frechet: there are no references (--references)" in err
    assert not Path("out").exists()
    code, result, err = score(file, images, "out", "--allow-missing")
    assert code == 0
    assert [each["metric"] for each in result["missing"]] == ["weighted", "random-frechet"]
    assert "left out: weighted: its weights" in err
    Path("weights.bin").write_bytes(b"x")
    code, result, _ = score(file, images, "more", "--weights", "weighted=weights.bin", "--allow-missing")
    assert [each["metric"] for each in result["missing"]] == ["random-frechet"]
    for given, says in (
        ("weighted=nothing.bin", "the weights 'nothing.bin' do not exist"),
        ("wieghted=weights.bin", "did you mean weighted"),
        ("glcm=weights.bin", "has 0 options for weights"),
        ("weighted.scale=2", "unknown option for weights 'scale'"),
        ("weighted", "write METRIC=PATH"),
    ):
        assert says in score(file, images, "again", "--weights", given, "--allow-missing")[2]


def test_weights_without_an_option_are_the_one_of_that_name():
    names = ("image-reward", "artimuse", "dpg-bench", "laion-aesthetics", "fid", "pyiqa", "lpips")
    metrics = [{"metric": name} for name in names]
    tree = {"name": "mini", "about": "x", "size": "96x80", "prompts": {"file": "p.txt"}, "metrics": metrics}
    protocol = EvalProtocol.model_validate(tree)
    given = ["image-reward=a.pt", "image-reward.tokenizer=b", "artimuse,dpg-bench,fid=c", "pyiqa=d"]
    assert choice.parse_weights(protocol, given) == {
        "image-reward": {"weights": "a.pt", "tokenizer": "b"},
        "artimuse": {"weights": "c"},
        "dpg-bench": {"weights": "c"},
        "fid": {"weights": "c"},
        "pyiqa": {"files": "d"},
    }
    with pytest.raises(UserError, match=r"lpips has 2 options for weights: lpips\.network_file, lpips"):
        choice.parse_weights(protocol, ["lpips=x.pth"])
    # the fix names each option as it is given
    for name, says in (
        ("artimuse", r"\(--weights METRIC=PATH: .*; --weights METRIC\.prompt=PATH: "),
        ("dpg-bench", r"\(--weights METRIC\.questions=PATH"),
        ("fid", r"\(--weights METRIC=PATH"),
    ):
        assert re.search(says, choice._reason(MetricUse(metric=name), {}, "set")), name


def test_weights_may_be_named_by_a_hub_id():
    """Nothing is downloaded when metrics are chosen."""
    use = MetricUse(metric="pick-score")
    assert choice._reason(use, {"weights": "org/name@main"}, None) is None
    with pytest.raises(UserError, match=r"--weights pick-score: the weights '\./no/name' do not exist"):
        choice._reason(use, {"weights": "./no/name"}, None)


def broken(folder, kind):
    file = folder / "0003.png"
    if kind == "missing":
        file.unlink()
    elif kind == "no image":
        file.write_bytes(b"nothing")
    elif kind == "damaged":
        file.write_bytes(file.read_bytes()[:-2000])
    elif kind == "another size":
        file.write_bytes(png(np.zeros((40, 40, 3), np.uint8)))
    elif kind == "twice":
        shutil.copy(file, folder / "3.png")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "has no image for 1 of 6 prompts: 0003 ('three cats')"),
        ("no image", "0003.png cannot be used"),
        ("damaged", "0003.png cannot be used"),
        ("another size", "0003.png is 40x40 px, not 96x80"),
        ("twice", "images of one prompt"),
    ],
)
def test_images_that_cannot_be_scored_are_one_line(protocol, folder, score, kind, says):
    images = folder("images")
    broken(images, kind)
    code, _, err = score(protocol(metrics=OWN), images, "out")
    assert code == 1
    assert says in err
    assert sum(line.startswith("uhr: ") for line in err.splitlines()) == 1
    # before a model is loaded
    assert not Path("out").exists()


def test_files_that_are_cut_off_are_found_before_anything_is_scored(protocol, folder, score):
    import cv2

    images, references = folder("images"), folder("references", range(10, 16))
    file, before = references / "0002.png", (references / "0002.png").read_bytes()
    file.write_bytes(before[:-5])
    code, _, err = score(protocol(metrics=OWN), images, "out", "--references", references)
    assert (code, "0002.png cannot be used (truncated" in err, Path("out").exists()) == (1, True, False), err
    file.write_bytes(before)
    # a JPEG; one with bytes behind its image is whole
    (images / "0003.png").unlink()
    jpeg = cv2.imencode(".jpg", picture(3))[1].tobytes()
    (images / "0003.jpg").write_bytes(jpeg[:-400])
    code, _, err = score(protocol(metrics=OWN), images, "out", "--references", references)
    assert (code, "0003.jpg cannot be used" in err, Path("out").exists()) == (1, True, False), err
    (images / "0003.jpg").write_bytes(jpeg + b"more")
    code, _, err = score(protocol(metrics=OWN), images, "out", "--references", references)
    assert code == 0, err


def test_features_that_do_not_tell_images_apart_are_a_warning(protocol, folder, score):
    file = protocol(metrics=[{"metric": "random-frechet"}, {"metric": "random-kernel"}])
    folder("images"), folder("copies", [7] * 6)
    says = "warning: random-frechet, random-kernel: features of the {} hardly differ"
    for images, references, whose in (
        ("images", "images", None),
        ("copies", "images", "generated images"),
        ("images", "copies", "references"),
    ):
        code, _, err = score(file, images, f"{images}-{references}", "--references", references)
        assert code == 0
        warned = [line for line in err.splitlines() if "hardly differ" in line]
        assert [line.partition(", so")[0] for line in warned] == ([says.format(whose)] if whose else [])


def test_the_first_prompts_alone_are_marked_as_incomplete(protocol, folder, score):
    images = folder("images", range(3))
    code, result, _ = score(protocol(metrics=OWN), images, "out", "--first", 3)
    assert (code, result["n"], result["protocol"]["complete"]) == (0, 3, False)
    assert score(protocol(metrics=OWN), folder("none", []), "o", "--first", 2)[0] == 1


def test_a_score_that_is_no_number_and_another_request_are_refused(protocol, folder, score):
    images = folder("images")
    code, _, err = score(protocol(metrics=[{"metric": "own_metrics:NotFinite"}]), images, "out")
    assert (code, "0000.png: brightness/1 gives nan as brightness" in err) == (1, True)
    code, _, err = score(protocol(metrics=OWN), images, "out")
    assert (code, "contains another evaluation: other protocol" in err) == (1, True)
    Path("theirs").mkdir()
    Path("theirs/file.txt").write_text("x")
    assert "already contains something else" in score(protocol(metrics=OWN), images, "theirs")[2]


def test_images_of_other_generators_are_matched_by_metadata(protocol, folder, score):
    images = folder("images", range(6))
    prompts = Path("prompts.txt").read_text().splitlines()
    order = [3, 1, 0, 5, 4, 2]
    rows = [{"file_name": f"{n:04d}.png", "text": prompts[at]} for n, at in enumerate(order)]
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score(protocol(metrics=OWN), images, "out")[0] == 0
    files = pq.read_table("out/scores.parquet")["file"].to_pylist()
    assert files == [f"{order.index(at):04d}.png" for at in range(6)]
    rows[0] = {"file_name": "0000.png", "index": 1}
    rows[1] = {"file_name": "0001.png", "index": 1}
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "a second image of item 1" in score(protocol(metrics=OWN), images, "o")[2]


def test_a_line_of_metadata_whose_index_and_prompt_disagree_is_refused(protocol, folder, score):
    images = folder("images", range(6))
    prompts = Path("prompts.txt").read_text().splitlines()
    rows = [{"file_name": f"{n:04d}.png", "index": n, "prompt": prompts[n]} for n in range(6)]
    rows[0]["text"] = "the same in other words"
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score(protocol(metrics=OWN), images, "out")[0] == 0
    rows[2]["index"], rows[3]["index"] = 3, 2
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = score(protocol(metrics=OWN), images, "o")
    says = "line 3 is of 0003 ('three cats'), and its text is 'two dogs': correct its index or name"
    assert (code, says in err) == (1, True), err


def test_a_metric_named_as_a_fact_of_the_image_does_not_replace_it(protocol, folder, score):
    own = {"metric": "function", "label": "mine"}
    own["options"] = {"function": "own_metrics:seed", "name": "mine", "columns": {"seed": None}}
    code, result, err = score(protocol(metrics=[own]), folder("images"), "out")
    assert code == 0, err
    assert list(values(result)) == ["seed_mine"]
    rows = pq.read_table("out/scores.parquet")
    assert (rows["seed"].to_pylist(), rows["seed_mine"].to_pylist()) == ([0] * 6, [7.0] * 6)


def test_paired_references_are_those_of_the_prompts_wherever_they_are(protocol, folder, score):
    images, references = folder("images"), folder("references", [5, 4, 3, 2, 1, 0])
    paired = [{"metric": "own_metrics:Paired"}]
    file = protocol(metrics=paired, references={"kind": "paired"})
    result = score(file, images, "out", "--references", references)[1]
    direct = [np.abs(pixels(images, n).astype(float) - pixels(images, 5 - n)).mean() for n in range(6)]
    assert values(result)["brightness"]["value"] == pytest.approx(np.mean(direct))
    (references / "0002.png").unlink()
    assert "has no reference for 1 of 6 prompts" in score(file, images, "o", "--references", references)[2]
    file = protocol(metrics=paired)
    assert "the references are not paired" in score(file, images, "o", "--references", references)[2]


def test_the_references_of_a_published_set_are_beside_its_prompts_or_where_the_user_says(
    protocol, folder, score
):
    images, published, others = (
        folder("images"),
        folder("published", range(5, 11)),
        folder("others", range(6)),
    )
    rows = [{"file_name": f"{n:04d}.png", "text": f"caption {n}"} for n in range(6)]
    (published / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = protocol(
        metrics=[{"metric": "own_metrics:Paired"}],
        prompts={"layout": "imagefolder"},
        references={"kind": "paired", "in_prompts": True},
    )
    beside = score(file, images, "a", "--prompts", published)[1]
    by_file = score(file, images, "b", "--prompts", published / "metadata.jsonl")[1]
    assert values(beside) == values(by_file)
    assert values(beside)["brightness"]["value"] > 0
    same = score(file, images, "c", "--prompts", published, "--references", others)[1]
    assert values(same)["brightness"]["value"] == 0
    (published / "0003.png").unlink()
    assert "0003.png does not exist" in score(file, images, "d", "--prompts", published)[2]


def test_overlap_with_the_training_data_is_in_the_result(protocol, folder, score, uhr):
    images, references = folder("images"), folder("references", range(10, 16))
    # trained on two references, one of them saved anew, and on a prompt in other spelling
    trained = folder("trained", [])
    shutil.copy(references / "0001.png", trained / "same.png")
    import cv2

    cv2.imwrite(
        str(trained / "similar.jpg"), pixels(references, 2)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97]
    )
    (trained / "similar.txt").write_text("  A Red  LAKE ")
    Path("p.yaml").write_text("name: p\nstages: [header, decode, phash]\nrules: {}\n")
    assert uhr("curate", "run", "p.yaml", "--source", trained, "--out", "set", "--workers", 0)[0] == 0
    options = ("--references", references, "--trained-on", "set")
    code, result, _ = score(protocol(), images, "out", *options)
    assert code == 0
    overlap = result["overlap"]
    assert overlap["prompts"] == {"count": 1, "names": ["0000"]}
    assert [name.rpartition("/")[2] for name in overlap["references_exact"]["names"]] == ["0001.png"]
    assert [name.rpartition("/")[2] for name in overlap["references_similar"]["names"]] == ["0002.png"]
    assert (
        "not a manifest"
        in score(protocol(), images, "o", "--references", references, "--trained-on", images)[2]
    )


def test_references_may_be_a_slice_of_a_manifest(protocol, folder, score, uhr):
    images, references = folder("images"), folder("references", range(10, 20))
    Path("p.yaml").write_text("name: p\nstages: [header, decode]\nrules: {}\n")
    assert uhr("curate", "run", "p.yaml", "--source", references, "--out", "set", "--workers", 0)[0] == 0
    sliced = uhr("manifest", "slice", "set", "--where", "uri < '0008'", "--out", "slice")
    assert sliced[0] == 0
    from_slice = score(protocol(), images, "a", "--references", "slice")[1]
    for number in (8, 9):
        (references / f"{number:04d}.png").unlink()
    from_folder = score(protocol(), images, "b", "--references", references)[1]
    assert from_slice["metrics"] == from_folder["metrics"]


def test_a_set_of_uhr_is_generated_and_matched_by_name(protocol, uhr, tiny_flux, score):
    file = protocol(size="64x64", metrics=OWN, seeds=[3], seed_rule="index")
    given = (
        "eval",
        "generate",
        file,
        "--sampler",
        "euler",
        "--model",
        tiny_flux,
        "--steps",
        1,
        "--out",
        "set",
    )
    code, out, _ = uhr(*given, "--device", "cpu", "--workers", 0, "--first", 2, "--json")
    assert (code, json.loads(out)["counts"]["made"]) == (0, 2)
    code, result, _ = score(file, "set", "out", "--first", 2)
    assert code == 0
    assert result["made"]["request"]["sampler"] == "euler"
    assert [row["seed"] for row in pq.read_table("out/scores.parquet").to_pylist()] == [3, 4]
    other = protocol("other.yaml", size="64x64", metrics=OWN, seeds=[4], seed_rule="index")
    assert "has another seed than the protocol" in score(other, "set", "o", "--first", 2)[2]


def test_stored_images_of_a_manifest_are_references_when_their_files_are_gone(protocol, folder, score, uhr):
    images, references = folder("images"), folder("references", range(10, 14))
    Path("p.yaml").write_text("stages: [header, decode]\nrules: {}\npixels: kept\n")
    assert uhr("curate", "run", "p.yaml", "--source", references, "--out", "set", "--workers", 0)[0] == 0
    file = protocol(metrics=[{"metric": "random-frechet"}], references={"kind": "set"})
    there = score(file, images, "there", "--references", references)[1]
    shutil.rmtree(references)
    code, gone, err = score(file, images, "gone", "--references", "set")
    assert code == 0, err
    assert (gone["references"]["id"], gone["metrics"]) == (there["references"]["id"], there["metrics"])


def test_a_link_to_nothing_among_the_references_is_named(protocol, folder, score):
    images, references = folder("images"), folder("references")
    (references / "gone.png").symlink_to(references / "nothing.png")
    file = protocol(metrics=[{"metric": "random-frechet"}], references={"kind": "set"})
    error = score(file, images, "out", "--references", references)[2]
    assert "gone.png does not exist: restore it, or remove what names it (a link" in error


def test_the_seeds_of_a_prompt_share_one_reference_of_the_set(protocol, folder, score):
    """Twice in the set, it would make the unbiased kernel distance of equal sets positive."""
    twice = folder("twice", [])
    for number in range(6):
        for seed in (0, 1):
            image = picture(20 + number + 100 * seed)
            (twice / f"{number:04d}-s{seed}.png").write_bytes(png(image))
    metrics = [{"metric": "random-kernel"}, {"metric": "random-frechet"}]
    file = protocol(metrics=metrics, references={"kind": "paired"}, seeds=[0, 1])
    shared = folder("shared", range(6))
    rows = [
        {"file_name": f"{number:04d}.png", "name": f"{number:04d}-s{seed}"}
        for number in range(6)
        for seed in (0, 1)
    ]
    (shared / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, result, err = score(file, twice, "out", "--references", shared)
    assert code == 0, err
    assert result["references"]["count"] == 6
    as_set = protocol("set.yaml", metrics=metrics, seeds=[0, 1])
    plain = score(as_set, twice, "plain", "--references", folder("alone", range(6)))[1]
    for name, column in values(result).items():
        assert column["value"] == values(plain)[name]["value"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"file_name": "../0000.png", "index": 0}', "leaves the folder"),
        (b'{"file_name": "/etc/0000.png", "index": 0}', "leaves the folder"),
        (b'{"file_name": 3}', "line 1 has no file_name"),
        (b'["0000.png"]', "line 1 has no file_name"),
        (b'{"file_name": "0000.png", "name": ["a"]}', "has no image for 6 of 6 prompts"),
        (b'{"file_name": "0000.png", "index": true}', "has no image for 6 of 6 prompts"),
        (b"\xff", "is not UTF-8"),
        (b"{", "line 1 is not JSON"),
    ],
)
def test_lines_of_metadata_that_say_nothing_are_refused(protocol, folder, score, line, says):
    images = folder("images")
    (images / "metadata.jsonl").write_bytes(line)
    code, _, err = score(protocol(metrics=OWN), images, "out")
    assert (code, says in err) == (1, True), err


def test_a_finished_result_takes_the_training_data_that_are_named_later(protocol, folder, score, uhr):
    images, trained = folder("images"), folder("trained", range(10, 12))
    (trained / "0000.txt").write_text("a red lake")
    Path("p.yaml").write_text("name: p\nstages: [header, decode]\nrules: {}\n")
    assert uhr("curate", "run", "p.yaml", "--source", trained, "--out", "set", "--workers", 0)[0] == 0
    first = score(protocol(metrics=OWN), images, "out")[1]
    again = score(protocol(metrics=OWN), images, "out", "--trained-on", "set")[1]
    assert (first["overlap"], again["overlap"]["prompts"]["count"]) == (None, 1)
    assert {**again, "overlap": None} == first
    assert score(protocol(metrics=OWN), images, "out")[1] == again


def test_features_of_the_same_references_are_taken_from_another_result(protocol, folder, score):
    file, references = protocol(), folder("references", range(10, 18))
    options = ("--references", references)
    first = score(file, folder("a"), "first", *options)[1]
    images = folder("b", blur=5)
    plain = score(file, images, "plain", *options)[1]
    reused = score(file, images, "reused", *options, "--reuse", "first")[1]
    assert reused["metrics"] == plain["metrics"] != first["metrics"]
    names = sorted(each.name for each in Path("first/reference-features").iterdir())
    assert sorted(each.name for each in Path("reused/reference-features").iterdir()) == names
    assert all(Path("first/reference-features", name).stat().st_nlink == 2 for name in names)
    (references / "0000.png").unlink()
    code, _, err = score(file, images, "other", *options, "--reuse", "first")
    assert (code, "--reuse first has other references" in err) == (1, True)
    assert not Path("other").exists()
    assert "does not exist" in score(file, images, "other", *options, "--reuse", "nothing")[2]


def test_the_id_of_a_protocol_does_not_depend_on_where_weights_are(protocol):
    from uhr.train.evaluate import protocol as protocols

    def id_of(**options):
        file = protocol(metrics=[{"metric": "own_metrics:Weighted", "options": options}])
        return protocols.load(str(file)).protocol.id

    assert id_of() == id_of(file="/here/weights.bin") == id_of(file="/there/weights.bin")
    assert id_of(scale=2) != id_of()
