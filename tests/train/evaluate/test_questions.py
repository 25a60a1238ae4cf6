"""DPG-Bench and GenEval 2 from the command line: their files are prompts and questions."""

import csv
import json
from pathlib import Path

import numpy as np

from uhr.pixels.decode import decode
from uhr.train.evaluate import protocol as protocols
from uhr.train.evaluate.prompts import read_items

from .own_metrics import answer

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")

KINDS = ("entity - whole", "attribute - color", "relation - spatial", "global - style", "other - count")


def benchmark() -> dict[str, list[tuple[int, list[int], str, str]]]:
    """Write dpg_bench.csv with six prompts, and return their questions: id, parents, category, text."""
    rng = np.random.default_rng(3)
    found, rows = {}, []
    for item in range(6):
        questions = []
        for number in range(1, 4 + item):
            parents = rng.choice(np.arange(1, number), min(number - 1, 1), False).tolist()
            kind = KINDS[(item + number) % (3 if item < 3 else 5)]
            questions.append((number, parents, kind, f"Is {item}-{number} {'maybe ' * (number == 3)}there?"))
        found[f"item-{item}"] = questions
        for number, parents, kind, text in questions:
            depends = ",".join(map(str, parents)) or "0"
            rows.append((f"item-{item}", f"prompt {item}", number, depends, f"{kind} (x)", text))
    with Path("dpg_bench.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return found


def expected(folder: Path, questions) -> dict[str, float]:
    """The published script's arithmetic: zeroed children, the mean over images, and pooled bare answers."""
    means, pooled = [], {}
    for item, listed in questions.items():
        image = decode((folder / f"{item}.png").read_bytes()).rgb()
        yes = {number: answer(image, text).startswith("Yes") for number, _, _, text in listed}
        zeroed = dict(yes)
        for number, parents, kind, _ in listed:
            pooled.setdefault(kind.split("-")[0].strip(), []).append(yes[number])
            if not all(zeroed[parent] for parent in parents):
                zeroed[number] = False
        means.append(sum(zeroed.values()) / len(zeroed))
    return {"": 100 * np.mean(means)} | {f"_{kind}": 100 * np.mean(all_) for kind, all_ in pooled.items()}


def test_dpg_bench_end_to_end(folder, score, uhr):
    questions = benchmark()
    results = []
    for name, seeds in (("a", range(6)), ("b", range(6, 12))):
        images = folder(name, seeds)
        for number, item in enumerate(questions):
            (images / f"{number:04d}.png").rename(images / f"{item}.png")
        code, result, err = score(
            "dpg-bench", images, f"out-{name}", "--prompts", "dpg_bench.csv", "--set", "size=96x80",
            "--set", "seeds=[0]", "--weights", "dpg-bench.questions=dpg_bench.csv",
            "--weights", "dpg-bench.function=own_metrics:answer",
        )  # fmt: skip
        assert code == 0, err
        columns = {column["name"]: column for column in result["metrics"][0]["columns"]}
        start = "dpg_bench_by_function_answer_x100"
        right = expected(images, questions)
        for end, value in right.items():
            assert abs(columns[start + end]["value"] - value) < 1e-9, end
        # a number of questions is not a result; each category says how many images have it
        assert set(columns) == {start + end for end in right} | {f"{start}_unclear"}
        having = [
            kind for listed in questions.values() for kind in {q[2] for q in listed} if "global" in kind
        ]
        assert columns[f"{start}_global"]["n"] == len(having) < 6
        assert 0 < columns[f"{start}_unclear"]["value"] < 100
        results.append((columns, right))
    code, out, err = uhr("eval", "compare", "out-a", "out-b", "--json")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)["columns"]}
    for end in ("", "_entity", "_global"):
        change = rows["dpg_bench_by_function_answer_x100" + end]["differences"][1]
        assert abs(change["value"] - (results[1][1][end] - results[0][1][end])) < 1e-9
    assert uhr("eval", "compare", "out-a", "out-b", "--out", "page.html")[0] == 0
    # the first prompt has no question of the kinds global and other: they have no value, and no difference
    for name in "ab":
        code, result, err = score(
            "dpg-bench", name, f"first-{name}", "--prompts", "dpg_bench.csv", "--set", "size=96x80",
            "--set", "seeds=[0]", "--weights", "dpg-bench.questions=dpg_bench.csv", "--first", "1",
            "--weights", "dpg-bench.function=own_metrics:answer",
        )  # fmt: skip
        assert code == 0, err
        (value,) = [c for c in result["metrics"][0]["columns"] if c["name"].endswith("_global")]
        assert (value["value"], value["n"]) == (None, 0)
    code, out, err = uhr("eval", "compare", "first-a", "first-b")
    assert code == 0, err


def test_both_protocols_take_their_benchmarks_files_as_prompts():
    benchmark()
    items = read_items(protocols.load("dpg-bench"), Path("dpg_bench.csv"))
    assert [(item.name, item.prompt, item.seed) for item in items[:5]] == [
        ("item-0-s0", "prompt 0", 0),
        ("item-0-s1", "prompt 0", 1),
        ("item-0-s2", "prompt 0", 2),
        ("item-0-s3", "prompt 0", 3),
        ("item-1-s0", "prompt 1", 0),
    ]
    line = {
        "prompt": "a cow",
        "atom_count": 1,
        "vqa_list": [["Are there cows?", "Yes"]],
        "skills": ["object"],
    }
    Path("geneval2_data.jsonl").write_text(json.dumps(line))
    (item,) = read_items(protocols.load("geneval2"), Path("geneval2_data.jsonl"))
    assert (item.name, item.prompt, item.size) == ("0000", "a cow", (1024, 1024))


def test_what_the_benchmarks_need_is_named(folder, score):
    benchmark()
    common = ("--prompts", "dpg_bench.csv", "--set", "size=96x80", "--set", "seeds=[0]")
    code, _, err = score("dpg-bench", folder("a"), "out", *common)
    assert code == 1
    assert "dpg-bench: its weights are not named" in err
    code, _, err = score("dpg-bench", "a", "out", *common, "--weights", "dpg-bench.questions=dpg_bench.csv")
    assert code == 1
    assert "one model that answers, and none is named" in err
