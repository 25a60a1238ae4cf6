"""Each kept checkpoint of a run is sampled and scored, and its values are drawn against steps."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from uhr.train.evaluate.checkpoints.page import write_page
from uhr.train.recipes import resolve
from uhr.train.run.job import start
from uhr.train.run.trainer import train

OWN = [{"metric": "own_metrics:Brightness"}, {"metric": "random-frechet", "label": "missing"}]


@pytest.fixture(scope="module")
def run(small_set, tiny_flux, fast, tmp_path_factory):
    """A LoRA with checkpoints of steps 2 and 3, and the adapter of step 1."""
    out = tmp_path_factory.mktemp("a run") / "run"
    sets = [*fast, "phases.main.steps=3", "phases.main.lr=0.5", "runtime.checkpoint_every=1"]
    sets += ["runtime.keep_checkpoints=2", "sampling.guidance=1"]
    train(start(resolve("lora", None, sets), str(tiny_flux), [small_set.folder], out))
    return out


@pytest.fixture
def file(protocol, small_set):
    """A protocol with a caption of the training data among its prompts."""
    captions = pq.read_table(small_set.folder / "samples")["caption"].to_pylist()
    Path("prompts.txt").write_text(f"{next(filter(None, captions))}\na tower\n")
    return protocol(size="64x64", metrics=OWN, references={"kind": "none"}, prompts={"file": "prompts.txt"})


def pixels(file):
    with Image.open(file) as image:
        return image.tobytes()


def test_all_checkpoints_are_scored_and_drawn(run, file, folder, tiny_flux, uhr, browser, tmp_path):
    given = ("eval", "run", run, "--checkpoints", "all", "--protocol", file, "--steps", 1, "--out", "out")
    code, out, err = uhr(*given, "--device", "cpu", "--allow-missing", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert [each["step"] for each in facts["steps"]] == [1, 2, 3]
    values = [each["values"]["brightness"]["value"] for each in facts["steps"]]
    assert len(set(values)) == 3
    assert facts["overlap"]["prompts"] == {"count": 1, "names": ["0000"]}
    made = json.loads(Path("out/steps/00000002/result/result.json").read_text())["made"]["request"]
    assert (made["sampler"], made["steps"], made["guidance"]) == ("euler", 1, 1.0)
    assert [Path(each["name"]).parts[-2] for each in made["adapters"]] == ["00000002"]
    with browser.page() as page:
        page.open((tmp_path / "out" / "checkpoints.html").as_uri())
        assert page.run("document.querySelectorAll('circle').length") == 3
        page.resize(390, 844)
        assert not page.is_wider_than_its_window()
        heights = page.run(
            "[...document.querySelectorAll('circle')].map((one) => Number(one.getAttribute('cy')))"
        )
        assert sorted(range(3), key=lambda at: -heights[at]) == sorted(range(3), key=lambda at: values[at])
        assert "1 of 2 prompts" in page.text()
        assert page.faults == []
    # the adapter of a step says by itself how it is sampled, and its image is the same
    made = ("--model", tiny_flux, "--adapter", f"{run}@3", "--steps", 1, "--device", "cpu", "--workers", 0)
    code, out, err = uhr("eval", "generate", file, "--sampler", "euler", *made, "--out", "alone", "--json")
    assert code == 0, err
    assert "guidance 1, as" in err
    name = "pictures/0001.png"
    assert pixels(Path("alone", name)) == pixels(Path("out/steps/00000003/images", name))
    # nothing is generated or scored again; training data that are named later are added to the run's own
    Path("scored").unlink()
    trained = folder("trained", [1])
    (trained / "0000.txt").write_text("a tower")
    Path("p.yaml").write_text("name: p\nstages: [header]\nrules: {}\n")
    assert uhr("curate", "run", "p.yaml", "--source", trained, "--out", "set", "--workers", 0)[0] == 0
    again = (*given, "--device", "cpu", "--allow-missing", "--trained-on", "set", "--json")
    code, out, err = uhr(*again)
    assert code == 0, err
    assert json.loads(out)["overlap"]["prompts"] == {"count": 2, "names": ["0000", "0001"]}
    assert not Path("scored").exists()


def test_a_category_without_images_has_no_chart_and_a_point_where_it_has_a_value(tmp_path):
    """The mean of a category has no value where no image has a question of it."""

    def value(number):
        n = 0 if number is None else 4
        return {"metric": "m", "better": "higher", "meaning": "m", "value": number, "n": n}

    numbers = {"color": (None, None, None), "count": (0.25, None, 0.75)}
    facts = {
        "run": "run", "protocol": "p", "complete": False, "n": 4, "level": 0.95,
        "missing": [], "overlap": None,
        "steps": [
            {"step": step, "values": {name: value(each[at]) for name, each in numbers.items()}}
            for at, step in enumerate((100, 200, 300))
        ],
    }  # fmt: skip
    write_page(facts, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert (text.count("<svg"), text.count("<circle")) == (1, 2)
    assert ("step 100: 0.25" in text, "step 300: 0.75" in text, "step 200:" in text) == (True, True, False)
    # the table has a heading for each of its columns, also for the one without a chart
    head, *rows = (re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", text))
    assert [re.sub("<.*?>", "", each) for each in head] == ["step", "m color ↑", "m count ↑"]
    assert rows == [["100", "– (n = 0)", "0.25"], ["200", *["– (n = 0)"] * 2], ["300", "– (n = 0)", "0.75"]]


def test_mistakes_are_one_line(run, file, uhr):
    for given, says in (
        ((run, "--checkpoints", "5", "--protocol", file), "has no checkpoint of step 5: it has: 1, 2, 3"),
        ((run, "--checkpoints", "some", "--protocol", file), "write all, or steps such as 100,200"),
        ((run, "--checkpoints", "all"), "--protocol is missing"),
        ((run, "--checkpoints", "all", "--protocol", file, "--images", "."), "give one of them"),
        ((file, "--protocol", file, "--images", "."), "--protocol is an option of --checkpoints"),
        ((file,), "--images is missing"),
        (("nowhere", "--checkpoints", "all", "--protocol", file), "nowhere"),
        (
            (run, "--checkpoints", "all", "--protocol", file),
            "missing: there are no references (--references)",
        ),
        (
            (run, "--checkpoints", "all", "--protocol", file, "--clip", "no/where/at/all", "--allow-missing"),
            "do not exist",
        ),
    ):
        code, _, err = uhr("eval", "run", *given, "--out", "o")
        assert (code, says in err) == (1, True), err
        assert sum(line.startswith("uhr: ") for line in err.splitlines()) == 1
        # nothing was generated
        assert not Path("o").exists()
