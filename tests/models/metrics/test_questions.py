"""DPG-Bench and GenEval 2: their files, dependencies and means, and the models that answer."""

import csv
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.metrics.base import Sample
from uhr.models.metrics.questions.dpg_bench import counted_answers
from uhr.models.metrics.questions.files import DPG_COLUMNS, Question, read_dpg_bench, read_geneval2
from uhr.models.metrics.questions.geneval2 import geometric_mean
from uhr.models.metrics.registry import describe, metric
from uhr.models.scores import artimuse

from ..scores import checkpoints

LAKE = "a red lake, and two boats"

ROWS = [
    ("0", LAKE, "1", "0", "entity - whole (lake)", "Is there a lake?"),
    ("0", LAKE, "2", "1", "attribute - color (lake, red)", "Is the lake red?"),
    ("0", LAKE, "3", "0", "entity - whole (boats)", "Are there boats?"),
    ("0", LAKE, "4", "1, 3", "relation - spatial (boats, lake, on)", "Are the boats on the lake?"),
    ("x", "a tower", "1", "0", "entity - whole (tower)", "Is there a tower?"),
    ("x", "a tower", "2", "1", "global - style (photo)", "Is it a photo?"),
]

LINES = [
    {
        "prompt": "four white bicycles",
        "atom_count": 3,
        "vqa_list": [["How many bicycles?", "four"], ["Are they white?", "Yes"], ["Any bicycles?", "Yes"]],
        "skills": ["count", "attribute", "object"],
    },
    {
        "prompt": "a cow and ten dogs",
        "atom_count": 4,
        "vqa_list": [["How many dogs?", "ten"], ["Are there cows?", "Yes"]],
        "skills": ["count", "object"],
    },
]


def dpg_file(folder: Path, rows=ROWS, columns=DPG_COLUMNS) -> Path:
    path = folder / "dpg_bench.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def geneval2_file(folder: Path, lines=LINES) -> Path:
    path = folder / "geneval2_data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_question_counts_only_if_all_that_it_rests_on_was_answered_yes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        parents = [tuple(rng.choice(n, min(n, int(rng.integers(0, 3))), False).tolist()) for n in range(9)]
        questions = [Question(n, "q", "yes", "c", each) for n, each in enumerate(parents)]
        yes = {n: bool(rng.random() < 0.8) for n in range(9)}

        def whole(n, yes=yes, parents=parents):
            return yes[n] and all(whole(parent, yes, parents) for parent in parents[n])

        assert counted_answers(questions, yes) == [float(whole(n)) for n in range(9)]
    # a parent that comes after its child and has no yes of its own right: as in the published script
    turned = [
        Question(2, "q", "yes", "c", (1,)),
        Question(1, "q", "yes", "c", (3,)),
        Question(3, "q", "yes", "c"),
    ]
    assert counted_answers(turned, {1: True, 2: True, 3: False}) == [1, 0, 0]


def yes_where(*texts):
    """A function that answers yes to these questions, and no to all others; `??` is neither."""
    return lambda image, question: "??" if "photo" in question else ("yes" if question in texts else "No")


def dpg(folder, monkeypatch, answers, **options):
    import sys
    import types

    module = types.ModuleType("answers_of_the_test")
    module.answer = answers
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return metric(
        "dpg-bench", questions=str(dpg_file(folder)), function="answers_of_the_test:answer", **options
    )


def test_dpg_bench_by_hand(tmp_path, monkeypatch, noise):
    made = dpg(tmp_path, monkeypatch, yes_where("Is the lake red?", "Are there boats?", "Is there a tower?"))
    lake, tower = made.score([Sample(noise, 0, LAKE), Sample(noise, 1, " a  tower\n")])
    name = "dpg_bench_by_function_answer_x100"
    assert made.name == "dpg-bench/by-function-answer/x100"
    # the colour has a yes and does not count, since there is no lake; in its category it is a yes
    assert lake == {
        name: 25.0,
        f"{name}_unclear": 0.0,
        f"{name}_attribute": 100.0,
        f"{name}_attribute_n": 1.0,
        f"{name}_entity": 50.0,
        f"{name}_entity_n": 2.0,
        f"{name}_global": 0.0,
        f"{name}_global_n": 0.0,
        f"{name}_relation": 0.0,
        f"{name}_relation_n": 1.0,
    }
    assert (tower[name], tower[f"{name}_unclear"], tower[f"{name}_global_n"]) == (50.0, 50.0, 1.0)
    assert {column.weight for column in made.columns if column.name.endswith("entity")} == {
        f"{name}_entity_n"
    }
    detailed = dpg(tmp_path, monkeypatch, yes_where("Are there boats?"), categories="detailed")
    (found,) = detailed.score([Sample(noise, 0, LAKE)])
    assert found["dpg_bench_by_function_answer_detailed_x100_attribute_color_n"] == 1


def test_a_grid_is_the_mean_of_its_four_images(tmp_path, monkeypatch):
    def bright(image, question):
        return "yes" if len(question) * 5 < image.mean() else "no"

    single, grid = (dpg(tmp_path, monkeypatch, bright, grid=size) for size in (1, 2))
    images = [np.full((8, 6, 3), value, np.uint8) for value in (70, 82, 90, 250)]
    whole = np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])
    alone = [list(row.values()) for row in single.score([Sample(image, 0, LAKE) for image in images])]
    (found,) = grid.score([Sample(whole, 0, LAKE)])
    assert next(iter(found.values())) == pytest.approx(np.mean([row[0] for row in alone]))
    assert found["dpg_bench_by_function_answer_grid_2x2_x100_entity"] == pytest.approx(
        np.mean([row[4] for row in alone])
    )
    assert found["dpg_bench_by_function_answer_grid_2x2_x100_entity_n"] == 8
    assert len({row[0] for row in alone}) > 1
    with pytest.raises(UserError, match="has 6x7 px, and is no grid"):
        grid.score([Sample(whole[:7, :6], 0, LAKE)])


@pytest.fixture(scope="module")
def vqa(tmp_path_factory, noise, squares) -> Path:
    """A tiny InternVL of transformers that answers yes to some questions, and no to the others."""
    folder = tmp_path_factory.mktemp("vqa")
    words = ["yes", "no", "Yes", "four", "Four"]
    made = artimuse.convert(checkpoints.artimuse(folder / "published", words), folder / "tiny-vlm")
    texts = [f"{row[5]} Answer yes or no." for row in ROWS[:4]]
    hidden = torch.stack([run(made, image, text)[1] for image in (noise, squares) for text in texts])
    ids, (model, _) = tokenizer_of(made), loaded(made)
    # the logit of yes is that of no with the other sign, and over these questions its mean is 0
    direction = torch.linalg.svd(hidden - hidden.mean(0)).Vh[0]
    direction -= hidden.mean(0) * (direction @ hidden.mean(0)) / hidden.mean(0).square().sum()
    direction *= 2 / (hidden @ direction).std()
    shares = {"yes": 1, "no": -1, "Yes": 0.5, "four": 0.3, "4": -0.3, "Ġ": 0.2}
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for word, share in shares.items():
            model.lm_head.weight[ids(word)] = share * direction
    model.save_pretrained(made)
    loaded.cache_clear()
    return made


@lru_cache
def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids


@lru_cache
def loaded(folder: Path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder).float(), AutoProcessor.from_pretrained(folder)


def run(folder: Path, image, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and hidden state of the next token by transformers itself, with its own chat template."""
    from PIL import Image

    model, processor = loaded(folder)
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    return found.logits[0, -1], found.hidden_states[-1][0, -1]


def next_probabilities(folder: Path, image, text: str) -> torch.Tensor:
    return run(folder, image, text)[0].double().softmax(-1)


def test_a_local_model_answers_as_transformers_has_it(vqa, tmp_path, noise, squares):
    made = metric("dpg-bench", questions=str(dpg_file(tmp_path)), weights=str(vqa))
    ids = tokenizer_of(vqa)
    seen = set()
    for image in (noise, squares, 255 - squares):
        (found,) = made.score([Sample(image, 0, LAKE)])
        yes = [
            bool(p[ids("yes")] > p[ids("no")])
            for p in (next_probabilities(vqa, image, f"{row[5]} Answer yes or no.") for row in ROWS[:4])
        ]
        counted = [yes[0], yes[0] and yes[1], yes[2], yes[0] and yes[2] and yes[3]]
        assert found[made.columns[0].name] == 25 * sum(counted)
        seen |= set(yes)
    assert seen == {True, False}
    assert len(made.identity()["weights"]["weights"]) == 64
    small = metric("dpg-bench", questions=str(tmp_path / "dpg_bench.csv"), weights=str(vqa), longest=64)
    size = f"{sum(each.numel() for each in loaded(vqa)[0].parameters()) / 1e6:.1f}m"
    assert small.name == f"dpg-bench/by-internvl-{size}/longest-64/x100"


def test_soft_tifa_is_the_probability_of_the_right_answers(vqa, tmp_path, noise, squares):
    made = metric("geneval2", questions=str(geneval2_file(tmp_path)), weights=str(vqa))
    encode = loaded(vqa)[1].tokenizer.encode
    four = sorted({encode(text)[0] for text in ("four", "Four", " four", " Four", "4", " 4")})
    yes = sorted({encode(text)[0] for text in ("Yes", "yes", " yes", " Yes")})
    # the blank before a word is a token of its own here
    assert (len(four), len(yes)) == (4, 3)
    for image in (noise, squares):
        (found,) = made.score([Sample(image, 0, LINES[0]["prompt"])])
        texts = [f"{text} Answer in one word." for text, _ in LINES[0]["vqa_list"]]
        right = [
            float(next_probabilities(vqa, image, text)[tokens].sum())
            for text, tokens in zip(texts, (four, yes, yes), strict=True)
        ]
        name = made.columns[0].name.removesuffix("_am")
        assert found[f"{name}_am"] == pytest.approx(100 * np.mean(right), rel=1e-4)
        assert found[f"{name}_gm"] == pytest.approx(100 * np.prod(right) ** (1 / 3), rel=1e-4)
        assert found[f"{name}_count"] == pytest.approx(100 * right[0], rel=1e-4)
        atoms = {key.rpartition("atoms_")[2]: value for key, value in found.items() if "atoms" in key}
        assert atoms == {"3": found[f"{name}_gm"], "3_n": 1, "4": 0, "4_n": 0}
        assert np.ptp(right) > 1e-3
    assert geometric_mean([0.25, 1]) == pytest.approx(0.5)
    assert geometric_mean([0.5, 0]) == 0


def test_a_server_answers(chat, tmp_path, noise):
    yes = {"Is there a lake?", "Is the lake red?"}
    chat.models = ["org/judge"]
    chat.reply = lambda body, number: (
        "<think>hm, no</think>\nYes."
        if body["messages"][0]["content"][1]["text"].removesuffix(" Answer yes or no.") in yes
        else "No"
    )
    made = metric("dpg-bench", questions=str(dpg_file(tmp_path)), server=chat.url)
    assert made.name == "dpg-bench/by-server-judge/x100"
    (found,) = made.score([Sample(noise, 0, LAKE)])
    assert found["dpg_bench_by_server_judge_x100"] == 50
    chat.reply = lambda body, number: 400
    with pytest.raises(UserError, match="has no answer to a question"):
        made.score([Sample(noise, 0, LAKE)])


def changed(at: int, column: int, value: str):
    rows = [list(row) for row in ROWS]
    rows[at][column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (changed(1, 2, "1"), "proposition_id 1 of '0' occurs twice"),
        (changed(1, 2, "2.5"), "line 3: proposition_id '2.5' is not a whole number"),
        (changed(1, 3, "9"), "question 2 of '0' depends on 9, which does not exist"),
        (changed(1, 3, ""), "line 3: dependency '' is not"),
        (changed(2, 5, " "), "line 4 has no item_id, tuple or question"),
        ([(*row[:1], "", *row[2:]) for row in ROWS], "the item '0' has no text"),
    ],
)
def test_a_broken_csv_is_one_line(tmp_path, rows, says):
    with pytest.raises(UserError, match=says):
        read_dpg_bench(dpg_file(tmp_path, rows))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"skills": ["count"]}, "line 1 has 1 skills for 3 questions"),
        (
            {"vqa_list": [["How many?", "many"]] * 3},
            "the answer to 'How many\\?' is 'many': it must be one to ten",
        ),
        ({"vqa_list": [["Is it?", "no"]] * 3}, "is 'no': it must be yes"),
        ({"vqa_list": "abc"}, "line 1 is not an object"),
        ({"atom_count": None}, "line 1 has no prompt"),
    ],
)
def test_broken_json_lines_are_one_line(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        read_geneval2(geneval2_file(tmp_path, [LINES[0] | changes]))


def test_what_is_not_named_or_does_not_fit_is_one_line(tmp_path, monkeypatch, noise):
    questions = str(dpg_file(tmp_path))
    for options, says in (
        ({}, "questions are not named"),
        ({"questions": questions}, "one model that answers, and none is named"),
        ({"questions": questions, "weights": "a", "server": "b"}, "weights and server is named"),
        ({"questions": questions, "weights": "a", "model": "b"}, "'b' is a server's"),
        ({"questions": str(tmp_path / "none.csv"), "function": "os:getcwd"}, "cannot be read"),
        ({"questions": str(geneval2_file(tmp_path)), "function": "os:getcwd"}, "has no column item_id"),
    ):
        with pytest.raises(UserError, match=says):
            metric("dpg-bench", **options)
    made = dpg(tmp_path, monkeypatch, lambda image, question: "Perhaps")
    with pytest.raises(UserError, match="answers no question about image 3 with yes or no"):
        made.score([Sample(noise, 3, LAKE)])
    with pytest.raises(UserError, match="no questions for the prompt 'a dog'"):
        made.score([Sample(noise, 3, "a dog")])
    with pytest.raises(UserError, match=r"failed \(ZeroDivisionError"):
        dpg(tmp_path, monkeypatch, lambda image, question: 1 / 0).score([Sample(noise, 3, LAKE)])
    with pytest.raises(UserError, match="returned None"):
        dpg(tmp_path, monkeypatch, lambda image, question: None).score([Sample(noise, 3, LAKE)])
    with pytest.raises(UserError, match="questions are not named"):
        metric("geneval2")
    assert set(describe("geneval2")["weights"]) == {"questions", "weights"}
