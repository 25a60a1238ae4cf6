"""Comparisons: paired differences, tables for papers, and what is refused."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from uhr.train.evaluate.bootstrap import difference
from uhr.train.evaluate.compare.comparison import open_arms
from uhr.train.evaluate.experiments.values import columns

OWN = [{"metric": "own_metrics:Brightness"}, {"metric": "random-frechet"}]


@pytest.fixture
def two(protocol, folder, score):
    """Results `a` and `b` of one protocol over the same references."""
    file, references = protocol(metrics=OWN), folder("references", range(10, 16))
    for name, blur in (("a", 0), ("b", 5)):
        code, _, err = score(file, folder(f"images-{name}", blur=blur), name, "--references", references)
        assert code == 0, err
    return file, references


def test_differences_are_paired_over_prompts(two, uhr):
    code, out, _ = uhr("eval", "compare", "a", "ours=b", "--json")
    assert code == 0
    found = json.loads(out)
    assert [arm["name"] for arm in found["arms"]] == ["a", "ours"]
    a, b = (pq.read_table(f"{name}/scores.parquet") for name in "ab")
    assert a["sha256"] != b["sha256"]
    direct = difference(np.array(a["brightness"]), np.array(b["brightness"]), np.arange(6))
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["brightness"]["differences"] == [None, direct._asdict()]
    (of_sets,) = [column for column in found["columns"] if column["kind"] == "set"]
    values = [value["value"] for value in of_sets["values"]]
    found = of_sets["differences"][1]
    assert found["value"] == pytest.approx(values[1] - values[0])
    assert found["low"] < found["value"] < found["high"]
    assert found["wins"] is None
    same = json.loads(uhr("eval", "compare", "a", "again=a", "--json")[1])
    (of_sets,) = [column for column in same["columns"] if column["kind"] == "set"]
    assert of_sets["differences"][1] == {"value": 0, "low": 0, "high": 0, "wins": None, "prompts": 6}


def test_the_table_is_printed_for_people_and_for_papers(two, uhr):
    code, out, _ = uhr("eval", "compare", "a", "b")
    assert code == 0
    assert "paired differences from a over the same prompts" in out
    rows = list(csv.DictReader(io.StringIO(uhr("eval", "compare", "a", "b", "--to", "csv")[1])))
    means = [float(row["mean"]) for row in rows if row["value"] == "brightness"]
    assert means == [np.mean(pq.read_table(f"{name}/scores.parquet")["brightness"]) for name in "ab"]
    # each number is below its heading, those of differences too
    (b,) = [row for row in rows if (row["method"], row["value"]) == ("b", "brightness")]
    found = json.loads(uhr("eval", "compare", "a", "b", "--json")[1])["columns"][0]["differences"][1]
    names = ("difference", "difference_low", "difference_high", "wins", "prompts")
    assert [float(b[name]) for name in names] == list(found.values())
    assert (None in b, b["prompts_in_training_data"]) == (False, "not known")
    md = uhr("eval", "compare", "a", "b", "--to", "md")[1]
    assert md.startswith("| method | brightness/1 ↑ |")
    assert len({line.count("|") for line in md.splitlines()[:4]}) == 1
    latex = uhr("eval", "compare", "a", "50%_x=b", "--to", "latex")[1]
    assert "50\\%\\_x & " in latex
    assert latex.count("\\\\\n") == 3


def test_the_numbers_of_one_metric_have_headings_of_their_own(protocol, folder, score, uhr):
    own = {"function": "own_metrics:seed", "name": "own", "columns": {"noise": None, "seed": "lower"}}
    metrics = [{"metric": "function", "label": "own", "options": own}, OWN[0]]
    assert score(protocol(metrics=metrics), folder("images"), "a")[0] == 0
    md = uhr("eval", "compare", "a", "again=a", "--to", "md")[1]
    assert md.startswith("| method | noise_own | seed_own ↓ | brightness/1 ↑ |")
    latex = uhr("eval", "compare", "a", "again=a", "--to", "latex")[1]
    assert r"Method & noise\_own & seed\_own $\downarrow$ & brightness/1 $\uparrow$" in latex


def test_a_value_without_a_better_direction_is_neither_better_nor_worse(protocol, folder, score, uhr):
    directions = {"more": "higher", "less": "lower", "either": None}
    own = {"function": "own_metrics:three_directions", "name": "own", "columns": directions}
    file = protocol(metrics=[{"metric": "function", "label": "own", "options": own}])
    for name, blur in (("a", 0), ("b", 5)):
        assert score(file, folder(f"images-{name}", blur=blur), name)[0] == 0
    assert uhr("eval", "compare", "a", "b", "--out", "page.html")[0] == 0
    table = Path("page.html").read_text().partition('<table id="differences">')[2].partition("</table>")[0]
    # b varies less on every prompt
    found = {}
    for row in table.split("<tr>")[2:]:
        name = next(name for name in directions if f">{name}" in row)
        verdicts = [each for each in ("better", "worse", "<svg") if each in row]
        found[name] = (verdicts, "100 %" in row, "0 %" in row)
    assert found == {
        "more": (["worse", "<svg"], False, True),
        "less": (["better", "<svg"], True, True),
        "either": ([], False, False),
    }
    rows = csv.DictReader(io.StringIO(uhr("eval", "compare", "a", "b", "--to", "csv")[1]))
    wins = {row["value"]: row["wins"] for row in rows if row["method"] == "b"}
    assert wins == {"more": "0.0", "less": "1.0", "either": ""}


def test_results_that_cannot_be_compared_are_refused_with_what_differs(two, protocol, folder, score, uhr):
    file, references = two
    changed = [{"metric": "own_metrics:Brightness", "options": {"scale": 2}}, {"metric": "random-frechet"}]
    for name, options in (
        ("size", (protocol("size.yaml", metrics=OWN, size="64x64"), folder("small", size=(64, 64)))),
        ("metrics", (protocol("metrics.yaml", metrics=changed), "images-a")),
        ("prompts", (file, "images-a", "--first", 4)),
    ):
        given = (*options[:2], name, "--references", references, *options[2:])
        assert score(*given)[0] == 0
        code, _, err = uhr("eval", "compare", "a", name)
        assert code == 1
        assert f"a and {name} have different" in err
        assert name in err.partition("have different")[2]
    (references / "0000.png").unlink()
    assert score(file, "images-b", "c", "--references", references)[0] == 0
    assert "different references (6 images" in uhr("eval", "compare", "a", "c")[2]


def test_other_weights_of_a_metric_are_refused(protocol, folder, score, uhr):
    file = protocol(metrics=[{"metric": "own_metrics:Hashed"}])
    images = folder("images")
    for name in "ab":
        Path(f"{name}.bin").write_text(name)
        assert score(file, images, name, "--weights", f"own_metrics:Hashed={name}.bin")[0] == 0
    assert "a and b have different weights of hashed" in uhr("eval", "compare", "a", "b")[2]


def test_what_is_no_result_or_has_a_taken_name_is_one_line(two, uhr):
    for given, says in (
        (("a",), "one result cannot be compared"),
        (("a", "a"), "two results are called 'a'"),
        (("a", "nothing"), "nothing does not exist"),
        (("a", "images-a"), "contains no finished result"),
        (("a", "b", "--to", "pdf"), "one of latex, csv, md"),
    ):
        code, _, err = uhr("eval", "compare", *given)
        assert (code, says in err, err.count("\n")) == (1, True, 1), err
    scores = Path("b/scores.parquet")
    scores.write_bytes(scores.read_bytes() + b"x")
    assert "has changed since the evaluation" in uhr("eval", "compare", "a", "b")[2]


def test_every_published_method_and_metric_has_an_entry():
    from uhr.models.metrics.registry import NAMES
    from uhr.models.samplers import SAMPLERS
    from uhr.train.evaluate import protocol
    from uhr.train.evaluate.compare import citations
    from uhr.train.recipes import NAMES as recipes

    tables = (citations.METRICS, citations.SAMPLERS, citations.RECIPES, citations.PROTOCOLS)
    keys = {key for table in tables for entry in table.values() for key in entry}
    assert keys <= citations._entries().keys()
    # of this project, of the user, or without a paper
    own = {"random-frechet", "random-kernel", "grid", "seams", "speckle", "repetition", "command", "function"}
    assert set(NAMES) - set(citations.METRICS) == own | {"psnr"}
    assert set(SAMPLERS) == set(citations.SAMPLERS)
    begins = tuple(citations.RECIPES)
    assert [name for name in recipes if not name.startswith(begins)] == []
    assert [name for name in protocol.names() if not name.startswith(tuple(citations.PROTOCOLS))] == [
        "uhr-default"
    ]


def test_an_image_that_a_metric_cannot_measure_is_left_out_of_its_means_which_say_so(protocol, score, uhr):
    from uhr.pixels.decode import png

    rng = np.random.default_rng(0)
    for name, unmeasurable in (("a", 2), ("b", 4)):
        Path(f"images-{name}").mkdir()
        for number in range(6):
            pixels = np.full((80, 96, 3), 100, np.uint8)
            pixels[40, 40 : 40 + 8 * number : 8] = 200
            if number == unmeasurable:
                pixels = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
            Path(f"images-{name}/{number:04d}.png").write_bytes(png(pixels))
        code, result, err = score(protocol(metrics=[{"metric": "speckle"}]), f"images-{name}", name)
        assert code == 0, err
        scores = pq.read_table(f"{name}/scores.parquet")["speckle_density"].to_pylist()
        assert [number for number, value in enumerate(scores) if value is None] == [unmeasurable]
        (density, *_) = result["metrics"][0]["columns"]
        measured = [value for value in scores if value is not None]
        assert (density["n"], density["value"]) == (5, pytest.approx(np.mean(measured)))
    (column, *_) = json.loads(uhr("eval", "compare", "a", "b", "--json")[1])["columns"]
    assert (column["differences"][1]["value"], column["differences"][1]["prompts"]) == (0, 4)
    for said in (uhr("eval", "compare", "a", "b")[1], uhr("eval", "compare", "a", "b", "--to", "md")[1]):
        assert said.count("(n = 5)") == 4
    assert "(4 prompts)" in uhr("eval", "compare", "a", "b")[1]
    assert uhr("eval", "compare", "a", "b", "--out", "page.html")[0] == 0
    page = Path("page.html").read_text()
    assert page.count("(n = 5)") == 4
    assert page.count("(4 prompts)</td>") == 2
    said = uhr("eval", "artifacts", "images-a/0002.png", "--metric", "speckle")[1]
    assert said.split()[-3:-1] == ["–", "–"]
    # arms of an experiment
    one, other = open_arms(["a", "b"])
    (density, *_) = columns({"a": [one], "b": [other]}, {"a": False, "b": False})
    arms = density.arms
    assert (arms["a"].prompt_count, arms["b"].difference_prompts, arms["b"].difference.value) == (5, 4, 0)
    assert arms["a"].value == one.info.columns()["speckle_density"][1].value
