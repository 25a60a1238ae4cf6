"""An experiment trains, generates and scores its arms by the commands that it prints, and resumes."""

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
import yaml

BRIGHTNESS = [{"metric": "own_metrics:Brightness"}, {"metric": "random-frechet", "label": "absent"}]


@pytest.fixture
def file(protocol, small_set, tiny_flux, fast):
    """`file(key=value, ...)`: an experiment of one arm as it is and one that is trained, with two seeds."""
    Path("two.txt").write_text("a lake\na tower\n")
    name = protocol(
        size="64x64", metrics=BRIGHTNESS, references={"kind": "none"}, prompts={"file": "two.txt"}
    )
    changes = [*fast, "phases.main.steps=1", "phases.main.lr=0.5", "runtime.checkpoint_every=1"]
    tree = {
        "name": "tried",
        "protocol": str(name),
        "allow_missing": True,
        "seeds": [3, 4],
        "arms": {
            "plain": {"model": str(tiny_flux), "sampler": "euler", "steps": 1},
            "trained": {
                "model": str(tiny_flux),
                "recipe": "lora",
                "data": [str(small_set.folder)],
                "set": changes,
                "steps": 2,
            },
        },
    }

    def make(arm=None, **keys):
        changed = {**tree, **keys}
        if arm is not None:
            changed["arms"] = {**tree["arms"], "trained": {**tree["arms"]["trained"], **arm}}
        Path("experiment.yaml").write_text(yaml.safe_dump(changed))
        return "experiment.yaml"

    return make


def given(file, *more):
    return ("eval", "experiment", file, "--out", "out", "--device", "cpu", "--workers", 0, *more)


def test_arms_are_trained_scored_and_compared_and_nothing_is_done_twice(file, uhr):
    code, out, err = uhr(*given(file(), "--plan", "--json"))
    assert code == 0, err
    plan = json.loads(out)
    assert not Path("out").exists()
    assert [(step["arm"], step["seed"], step["done"]) for step in plan["steps"]] == [
        *[("plain", None, False)] * 2,
        *[("trained", 3, False)] * 2,
        *[("trained", 4, False)] * 2,
    ]
    assert [plan["arms"][arm]["calls"] for arm in ("plain", "trained")] == [1, 2]
    assert set(plan["unequal"]) >= {"trainable parameters", "images seen", "calls per image"}

    code, out, err = uhr(*given(file(), "--json"))
    assert code == 0, err
    facts = json.loads(out)
    for step in plan["steps"]:
        assert f"$ {step['command']}" in err
    plain, trained = facts["arms"]["plain"], facts["arms"]["trained"]
    assert (plain["seeds"], trained["seeds"]) == ([], [3, 4])
    assert plain["budget"]["trainable_parameters"] == plain["budget"]["images_seen"] == 0
    assert trained["budget"]["trainable_parameters"] > 0
    assert trained["budget"]["training_hours"] > 0
    assert trained["budget"]["calls"] == 2
    assert plain["budget"]["memory"] > 1e6
    seen = json.loads(Path("out/arms/trained/seed-3/run/log.jsonl").read_text().splitlines()[0])["samples"]
    assert trained["budget"]["images_seen"] == seen
    assert trained["overlap"] is not None

    # every number from the results of the arms
    each = [json.loads((Path(place) / "result.json").read_text()) for place in trained["results"]]
    values = [result["metrics"][0]["columns"][0]["value"] for result in each]
    assert values[0] != values[1]
    found = facts["columns"][0]["arms"]
    assert found["trained"]["each"] == values
    assert found["trained"]["value"] == pytest.approx(statistics.fmean(values))
    assert found["trained"]["low"] < found["trained"]["value"] < found["trained"]["high"]
    assert "difference" not in found["plain"]
    apart = found["trained"]["value"] - found["plain"]["value"]
    assert found["trained"]["difference"]["value"] == pytest.approx(apart)

    # nothing is done again, and a person reads the same
    code, out, err = uhr(*given(file()))
    assert code == 0, err
    assert "\n$ uhr" not in out
    assert "# done" in out
    assert "≠ unequal budgets: the arms differ in trainable parameters, images seen, calls per image" in out
    assert "each seed" in out
    code, out, _ = uhr(*given(file(), "--to", "csv"))
    rows = list(csv.DictReader(io.StringIO(out)))
    (row,) = [row for row in rows if (row["arm"], row["value"]) == ("trained", "brightness")]
    assert float(row["mean"]) == found["trained"]["value"]
    assert float(row["low"]) == found["trained"]["low"]
    code, out, _ = uhr(*given(file(), "--to", "latex"))
    assert code == 0
    assert r"calls per image $\neq$" in out
    code, out, _ = uhr(*given(file(), "--to", "md"))
    assert out.startswith("| arm | ")

    # the arm that was there is not taken for another one
    code, _, err = uhr(*given(file(arm={"steps": 3})))
    assert (code, "contains another arm 'trained'" in err) == (1, True), err
    code, _, err = uhr(*given(file(first=1)))
    assert (code, "with another protocol, other prompts, references or weights" in err) == (1, True), err


def test_mistakes_are_one_line_before_anything_runs(file, uhr):
    trained = {"recipe": "lora", "model": "m", "data": ["d"]}
    for made, says in (
        (lambda: file(arms={}), "arms is empty"),
        (lambda: file(arms={"a/b": trained}), "names a folder"),
        (lambda: file(arms={"a": {"model": "m"}}), "needs a sampler"),
        (lambda: file(arms={"a": {"model": "m", "recipe": "lora"}}), "a recipe needs data"),
        (lambda: file(arms={"a": {**trained, "set": ["seed=1"]}}), "one of the experiment's seeds"),
        (lambda: file(arms={"a": {**trained, "guidance": 2}}), "sampling.guidance"),
        (lambda: file(arms={"a": {**trained, "recpe": 1}}), "recpe"),
        (lambda: file(seeds=[1, 1]), "different whole numbers"),
        (lambda: file(arm={"sampler": "eular"}), "eular"),
        (lambda: file(arm={"recipe": "lara"}), "lara"),
        (lambda: file(arm={"data": ["nowhere"]}), "nowhere"),
        (lambda: file(protocol="uhr-defalt"), "uhr-defalt"),
        (lambda: file(allow_missing=False), "1 metric of 2 cannot be computed"),
        (lambda: "nowhere.yaml", "does not exist"),
    ):
        code, _, err = uhr(*given(made()))
        last = err.splitlines()[-1]
        assert (code, says in last) == (1, True), err
        assert "Traceback" not in err
        assert not Path("out").exists()
    code, _, err = uhr(*given(file(), "--to", "word"))
    assert (code, "unknown form" in err) == (1, True), err


def test_a_command_that_fails_ends_the_experiment_which_then_resumes(file, uhr):
    name = file(arms={"plain": yaml.safe_load(Path(file()).read_text())["arms"]["plain"]})
    assert uhr(*given(name))[0] == 0
    Path("out/results.json").unlink()
    Path("out/arms/plain/result/result.json").unlink()
    Path("out/arms/plain/result/foreign.txt").write_text("mine")
    code, _, err = uhr(*given(name))
    assert code == 1
    assert "already contains something else (foreign.txt)" in err
    Path("out/arms/plain/result/foreign.txt").unlink()
    code, out, err = uhr(*given(name))
    assert code == 0, err
    (again,) = (line for line in out.splitlines() if line.startswith("$"))
    assert again.startswith("$ uhr eval run")
    assert Path("out/results.json").is_file()
