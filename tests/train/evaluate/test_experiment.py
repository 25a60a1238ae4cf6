"""An experiment trains, generates and scores its arms by the commands that it prints, and resumes."""

import csv
import io
import json
import os
import statistics
import subprocess
import types
from pathlib import Path

import pytest
import yaml

from uhr.base.errors import UserError
from uhr.train.evaluate.experiments import lanes
from uhr.train.evaluate.experiments.commands import ArmRun, Step

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


def test_arms_are_trained_scored_and_compared_and_nothing_is_done_twice(
    file, uhr, browser, warm, monkeypatch
):
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
    assert trained["budget"]["images_seen"] == seen == plan["arms"]["trained"]["images_seen"]
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

    # the page has the same numbers, and the images of the first seed
    with browser.page() as page:
        page.open(Path("out/page.html").absolute().as_uri())
        assert page.texts("h2")[:4] == [
            "Values",
            "Differences from plain",
            "Training seeds and prompts apart",
            "Budgets",
        ]
        assert f"{found['trained']['value']:.4g}"[:4] in page.text("#values")
        assert "prompts in training data" in page.text("#values")
        (dot,) = page.run(
            "[...document.querySelectorAll('#differences circle')].map((o) => o.classList.value)"
        )
        assert ("hollow" in dot.split()) != found["trained"]["difference"]["clear"]
        marked = page.texts("#budgets .unequal th")
        assert {"trainable parameters ≠", "images seen ≠", "calls per image ≠"} <= set(marked)
        page.click(".open", 1)
        page.until("[...document.querySelectorAll('.pane img')].every((one) => one.naturalWidth)")
        assert page.text("#pane-right .label").startswith("trained, seed 3")
        assert "hu2022lora" in page.run("document.getElementById('bibtex').textContent")
        assert page.faults == []
        assert not page.is_wider_than_its_window()

    # the arm that was there is not taken for another one
    code, _, err = uhr(*given(file(arm={"steps": 3})))
    assert (code, "contains another arm 'trained'" in err) == (1, True), err
    code, _, err = uhr(*given(file(first=1)))
    assert (code, "with another protocol, other prompts, references or weights" in err) == (1, True), err


def begin_together(monkeypatch, warm):
    """Have the processes of lanes start warm."""

    def popen(command, *, stdout, stderr, env, stdin, start_new_session):
        return warm.start(command[1:], stdout=stdout, stderr=stderr, env=env, new_session=start_new_session)

    own = types.SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(lanes, "subprocess", own)


class Scripts:
    """Arms whose commands are scripts of Python, in this folder."""

    def __init__(self, monkeypatch, **scripts):
        def popen(command, **options):
            assert command[1:4] == ["-P", "-m", "uhr"]
            return subprocess.Popen([command[0], "-c", *command[4:]], **options)

        own = types.SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
        monkeypatch.setattr(lanes, "subprocess", own)
        self.scripts = scripts
        self.runs = [ArmRun(name, None, None, Path(name).absolute(), None) for name in scripts]

    def steps_of(self, run, device):
        steps = enumerate(self.scripts[run.name])
        return [Step((text, device), lambda file=run.out / f"done-{at}": file.exists()) for at, text in steps]


def test_two_processes_at_a_time_give_the_same_numbers(file, uhr, warm, monkeypatch):
    plain = yaml.safe_load(Path(file()).read_text())["arms"]["plain"]
    name = file(arms={"one": plain, "two": {**plain, "steps": 2}})
    # a process of its own, in which no fixture shortens texts
    alone = warm.uhr(*given(name, "--json"), env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)})
    assert alone.returncode == 0, alone.stderr
    begin_together(monkeypatch, warm)
    given_ = ("eval", "experiment", name, "--out", "at-once", "--devices", "cpu,cpu", "--workers", 0)
    code, again, err = uhr(*given_, "--json")
    assert code == 0, err
    assert "two on cpu: done in" in err
    facts, again = json.loads(alone.stdout), json.loads(again)
    assert again["columns"] == facts["columns"]
    assert (facts["shared_devices"], again["shared_devices"]) == ([], ["cpu"])
    assert "$ uhr eval generate" in Path("at-once/arms/two/output.txt").read_text()
    assert "several processes shared cpu: times are longer than alone" in uhr(*given_)[1]


WAIT = """
import os, pathlib, sys, time
own, other = pathlib.Path({own!r}), pathlib.Path({other!r})
own.mkdir(exist_ok=True)
(own / "began").write_text(sys.argv[1] + os.environ.get("CUDA_VISIBLE_DEVICES", ""))
for _ in range(6000):
    if (other / "began").exists():
        break
    time.sleep(0.01)
else:
    sys.exit("the other one has not begun")
(own / "done-0").write_text("")
"""


def test_arms_run_at_the_same_time_each_on_a_gpu_of_its_own(monkeypatch):
    """Each command waits for the other one to begin: one after the other, the first would fail."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    scripts = {own: [WAIT.format(own=own, other=other)] for own, other in (("a", "b"), ("b", "a"))}
    made = Scripts(monkeypatch, **scripts)
    lanes_ = lanes.lanes_of("cuda:1,cuda:2")
    lanes.run_in_lanes(made.runs, made.steps_of, lanes_, quiet=True)
    assert [Path(name, "began").read_text() for name in ("a", "b")] == ["cuda7", "cuda9"]
    assert lanes.shared(lanes_) == []
    assert lanes.shared(lanes.lanes_of("cpu,cuda:0,cpu")) == ["cpu"]
    with pytest.raises(UserError, match="there are 3 GPUs here"):
        lanes.lanes_of("cuda:0,cuda:3")
    with pytest.raises(UserError, match="'auto'"):
        lanes.lanes_of("auto,cuda:0")


def test_an_arm_that_fails_ends_the_others_after_their_command(monkeypatch, capsys):
    done = "import pathlib, time\nwhile not pathlib.Path('a/failed').exists(): time.sleep(0.01)\n"
    done += "pathlib.Path('b/done-0').write_text('')"
    fail = "import pathlib, sys\npathlib.Path('a/failed').write_text('')\nsys.exit('uhr: no such model')"
    never = "import pathlib\npathlib.Path('never').write_text('')"
    made = Scripts(monkeypatch, a=[fail, never], b=[done, never], c=[never])
    with pytest.raises(UserError, match="a on cpu: no such model") as caught:
        lanes.run_in_lanes(made.runs, made.steps_of, lanes.lanes_of("cpu,cpu"), quiet=True)
    assert "output.txt; the same command resumes" in caught.value.fix
    assert (Path("b/done-0").exists(), Path("never").exists()) == (True, False)
    # what is done is not done again
    made.scripts["a"] = made.scripts["c"] = []
    made.scripts["b"] = [never.replace("never", "again"), "import pathlib; pathlib.Path('b/done-1').touch()"]
    lanes.run_in_lanes(made.runs, made.steps_of, lanes.lanes_of("cpu,cpu"), quiet=True)
    assert (Path("again").exists(), Path("b/done-1").exists()) == (False, True)


UNTIL_INTERRUPTED = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
def wait(file):
    for _ in range(6000):
        if pathlib.Path(file).exists():
            return
        time.sleep(0.01)
try:
    pathlib.Path({own!r}).mkdir(exist_ok=True)
    pathlib.Path({own!r}, "began").touch()
    wait("never")
except KeyboardInterrupt:
    pathlib.Path({own!r}, "interrupted").touch()
    wait("{other}/interrupted")
    pathlib.Path({own!r}, "together").touch()
"""


def test_no_process_is_left_when_an_arm_cannot_be_read(monkeypatch):
    """The processes are interrupted together: each waits until the other one was, too."""
    wait = "import pathlib, time\n"
    wait += "while not all(pathlib.Path(each, 'began').exists() for each in 'ab'): time.sleep(0.01)\n"
    scripts = {own: [UNTIL_INTERRUPTED.format(own=own, other=other)] for own, other in ("ab", "ba")}
    made = Scripts(monkeypatch, **scripts, c=[wait])

    def steps_of(run, device):
        def damaged():
            raise UserError("set.json is damaged", "remove it")

        more = [Step(("never", device), damaged)] if run.name == "c" else []
        return [*made.steps_of(run, device), *more]

    with pytest.raises(UserError, match=r"set\.json is damaged"):
        lanes.run_in_lanes(made.runs, steps_of, lanes.lanes_of("cpu,cpu,cpu"), quiet=True)
    assert [Path(name, "together").exists() for name in "ab"] == [True, True]


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
        (lambda: file(arm={"trained_on": ["d"]}), "leave trained_on out"),
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
    # a value that its recipe does not take, with file and arm
    code, _, err = uhr(*given(file(arm={"set": ["trainable.rnk=8"]})))
    assert code == 1
    assert err.splitlines()[-1].startswith("uhr: experiment.yaml, arm 'trained': ")
    assert "rnk" in err.splitlines()[-1]
    code, _, err = uhr(*given(file(), "--device", "cpu,tpu"))
    assert (code, "'tpu'" in err, Path("out").exists()) == (1, True, False), err
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
