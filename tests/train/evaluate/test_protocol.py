"""Protocols and their prompts: ids, layouts, and what is refused."""

import json
from pathlib import Path

import pytest

from uhr.base.errors import UserError
from uhr.models.metrics.registry import metric_class
from uhr.train.evaluate import protocol as protocols
from uhr.train.evaluate.prompts import digest, read_items

SHIPPED = protocols.names()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_protocol_has_metrics_that_exist_with_valid_options(name):
    found = protocols.load(name).protocol
    assert found.name == name
    for use in found.metrics:
        made = metric_class(use.metric)
        made.Options.model_validate(use.options)
        if use.name in ("fid", "kid", "patch-fid", "patch-kid"):
            assert found.references.kind != "none"


def test_the_list_and_each_protocol_are_shown(uhr):
    code, out, _ = uhr("eval", "protocols", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["name"] for row in rows] == SHIPPED
    assert {"aesthetic-eval-2048", "aesthetic-eval-4096", "hiflow-1k", "urae-hpd", "ultrahr-eval4k"} < set(
        SHIPPED
    )
    code, out, _ = uhr("eval", "show", "aesthetic-eval-4096")
    assert code == 0
    assert "Their values, not computed here: RealUHR" in out
    assert "139.29" in out


def test_a_protocol_with_its_own_prompts_shows_these_and_no_number_or_values_of_the_other(uhr, tmp_path):
    own, same = tmp_path / "own.yaml", tmp_path / "same.yaml"
    own.write_text("extends: aesthetic-eval-4096\nname: own\nprompts: {layout: file, file: mine.txt}\n")
    same.write_text("extends: uhr-default\nname: same\n")
    code, out, _ = uhr("eval", "show", str(own))
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["images", "not", "stated"] in lines
    assert ["prompts", "layout", "'file':", str(tmp_path / "mine.txt")] in lines
    assert "Their values" not in out
    for name in (str(same), "uhr-default"):
        out = uhr("eval", "show", name)[1]
        assert "they come with uhr" in out
        assert ["images", "64"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"about": "other words"}, True),
        ({"sources": ["elsewhere"]}, True),
        ({"paper": [{"source": "x", "columns": ["FID"], "rows": {"ours": [1.0]}}]}, True),
        ({"size": "96x96"}, False),
        ({"seeds": [1]}, False),
        ({"seed_rule": "index"}, False),
        ({"references": {"kind": "none"}}, False),
        ({"metrics": [{"metric": "glcm"}]}, False),
        ({"metrics": [{"metric": "random-frechet", "options": {"crops": 2}}]}, False),
    ],
)
def test_the_id_changes_with_what_decides_numbers_and_with_nothing_else(protocol, changes, same):
    before = protocols.load(str(protocol())).protocol.id
    assert before.startswith("mini@")
    assert (protocols.load(str(protocol(**changes))).protocol.id == before) is same


def test_a_file_extends_a_protocol_and_finds_its_prompts():
    Path("mine.yaml").write_text("extends: uhr-default\nname: mine\nsize: 1024x512\n")
    found = protocols.load("mine.yaml")
    items = read_items(found)
    assert found.protocol.size == (1024, 512)
    assert len(items) == found.protocol.prompts.count == 64
    assert digest(items) != digest(read_items(protocols.load("uhr-default")))
    # what the other is about is not said of this one
    assert found.protocol.about == "uhr-default with other size"
    Path("mine.yaml").write_text("extends: uhr-default\nname: mine\nabout: my own\nsize: 1024x512\n")
    assert protocols.load("mine.yaml").protocol.about == "my own"


def test_each_prompt_has_an_item_per_seed(protocol):
    same = read_items(protocols.load(str(protocol(seeds=[0, 7]))))
    assert [(item.name, item.prompt_index, item.seed) for item in same[:4]] == [
        ("0000-s0", 0, 0), ("0000-s7", 0, 7), ("0001-s0", 1, 0), ("0001-s7", 1, 7),
    ]  # fmt: skip
    assert [item.index for item in same] == list(range(12))
    counted = read_items(protocols.load(str(protocol(seeds=[5], seed_rule="index"))), first=3)
    assert [item.seed for item in counted] == [5, 6, 7]


def test_published_layouts_are_read():
    Path("folder").mkdir()
    rows = [{"file_name": f"{n}.png", "text": f"caption {n}"} for n in range(3)]
    Path("folder/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items(protocols.load("aesthetic-eval-4096"), Path("folder"))
    assert [(item.prompt, item.seed, item.reference) for item in items] == [
        (f"caption {n}", 0, Path(f"folder/{n}.png")) for n in range(3)
    ]
    Path("lists").mkdir()
    Path("lists/photo.json").write_text(json.dumps(["p0", "p1"]))
    Path("lists/anime.json").write_text(json.dumps(["a0"]))
    assert [item.prompt for item in read_items(protocols.load("urae-hpd"), Path("lists"))] == [
        "a0",
        "p0",
        "p1",
    ]
    Path("texts").mkdir()
    for name in ("b", "a"):
        Path(f"texts/{name}.txt").write_text(f"text of\n{name}\n")
    found = protocols.load("hiflow-1k", ["prompts.layout=text-files"])
    assert [(i.name, i.prompt) for i in read_items(found, Path("texts"))] == [
        ("a", "text of a"),
        ("b", "text of b"),
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": [{"metric": "glcm"}, {"metric": "glcm"}]}, "occurs twice"),
        ({"size": "big"}, "size 'big' is invalid"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"sise": 1}, "unknown key 'sise'"),
        ({"paper": [{"source": "x", "columns": ["a", "b"], "rows": {"m": [1]}}]}, "1 values for 2 columns"),
    ],
)
def test_a_mistake_in_a_protocol_is_one_line(protocol, uhr, changes, says):
    code, _, err = uhr("eval", "show", protocol(**changes))
    assert code == 1
    assert says in err
    assert len(err.splitlines()) == 1


def test_unknown_protocols_missing_prompts_and_circles_are_named(uhr):
    assert "did you mean uhr-default" in uhr("eval", "show", "uhr-defualt")[2]
    code, _, err = uhr("eval", "run", "hiflow-1k", "--images", ".", "--out", "o")
    assert (code, "give --prompts PATH (not published" in err) == (1, True)
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("extends: a.yaml\n")
    assert "leads back" in uhr("eval", "show", "a.yaml")[2]
    with pytest.raises(UserError, match="nowhere cannot be read"):
        read_items(protocols.load("aesthetic-eval-4096"), Path("nowhere"))
