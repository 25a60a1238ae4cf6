"""A blind study: what voters see says nothing of the results, and their votes are counted."""

import json
import urllib.parse
from pathlib import Path

import pytest

OWN = [{"metric": "own_metrics:Brightness"}]


@pytest.fixture
def study(protocol, folder, score, uhr):
    """A study of results `ours` and `theirs`, in `study`; its key."""
    file = protocol(metrics=OWN)
    for name, blur in (("ours", 0), ("theirs", 7)):
        assert score(file, folder(f"images-{name}", blur=blur), name)[0] == 0
    code, out, err = uhr(
        "eval", "study", "ours", "theirs", "--out", "study", "--rows", 4, "--seed", 1, "--json"
    )
    assert code == 0, err
    return json.loads(out)


def test_votes_on_the_page_are_counted_for_the_right_result(study, browser, uhr, tmp_path):
    html = Path("study/page/index.html").read_text()
    assert "ours" not in html.split("<script")[1]
    assert "theirs" not in html
    assert {pair["first_is_left"] for pair in study["rows"]} == {True, False}
    with browser.page(1300, 800) as page:
        page.open((tmp_path / "study/page/index.html").as_uri())
        # for quality the first result, for aesthetics no difference, for alignment nothing
        for number, pair in enumerate(study["rows"]):
            page.until("[...document.images].every((one) => one.complete && one.naturalWidth)")
            assert page.text("#count") == f"{number + 1} of 4"
            side = "left" if pair["first_is_left"] else "right"
            page.click(f"[data-question=quality] [data-choice={side}]")
            page.click("[data-question=aesthetics] [data-choice=tie]")
            if number < 3:
                page.click("#next")
        assert "8 of 12 answered" in page.text("#said")
        transforms = "[...document.querySelectorAll('.pane img')].map((one) => one.style.transform)"
        before = page.run(transforms)
        page.fingers([(200, 200), (190, 200)], [(260, 200), (310, 200)])
        one, other = page.run(transforms)
        assert one == other != before[0]
        page.run("HTMLAnchorElement.prototype.click = function () { window.saved = this.href; }")
        page.click("#save")
        saved = page.run("window.saved")
        assert page.faults == []
    Path("votes.json").write_text(urllib.parse.unquote(saved.partition(",")[2]))
    code, out, _ = uhr("eval", "study", "votes.json", "--read", "study", "--json")
    assert code == 0
    found = json.loads(out)
    counts = {
        each["question"]: (each["first"], each["ties"], each["second"]) for each in found["preferences"]
    }
    assert counts == {"quality": (4, 0, 0), "aesthetics": (0, 4, 0)}
    assert (found["arms"], found["voters"], found["votes"]) == (["ours", "theirs"], 1, 8)
    assert "ours better" in uhr("eval", "study", "votes.json", "--read", "study")[1]


def test_each_result_is_on_the_left_in_half_of_the_pairs(study, uhr):
    seen = set()
    for seed in range(12):
        for count in (3, 4):
            options = ("--out", f"study-{count}-{seed}", "--rows", count, "--seed", seed, "--json")
            rows = json.loads(uhr("eval", "study", "ours", "theirs", *options)[1])["rows"]
            sides = tuple(row["first_is_left"] for row in rows)
            assert sum(sides) in ({2} if count == 4 else {1, 2})
            seen.add(sides)
    # all 6 orders of four pairs are possible, and all 6 of three
    assert len(seen) > 6
    assert {sum(sides) for sides in seen if len(sides) == 3} == {1, 2}


def test_several_voters_are_averaged_per_prompt(study, uhr):
    for voter, side in (("v1", "left"), ("v2", "left"), ("v3", "right")):
        votes = [{"pair": n, "question": "quality", "choice": side} for n in range(4)]
        tree = {"schema_version": 1, "study": study["id"], "voter": voter, "votes": votes}
        Path(f"{voter}.json").write_text(json.dumps(tree))
    found = json.loads(uhr("eval", "study", "v1.json", "v2.json", "v3.json", "--read", "study", "--json")[1])
    (quality,) = found["preferences"]
    lefts = sum(pair["first_is_left"] for pair in study["rows"])
    assert (quality["first"], quality["second"], quality["n"]) == (lefts, 4 - lefts, 4)
    assert quality["share"] == pytest.approx((lefts / 3 + (4 - lefts) * 2 / 3) / 4)
    assert quality["decided"] == (4 - lefts) / 4


def test_mistakes_are_one_line(study, uhr):
    good = {"schema_version": 1, "study": study["id"], "voter": "v", "votes": []}
    vote = {"pair": 0, "question": "quality", "choice": "left"}
    cases = {
        "other study": ({**good, "study": "abc"}, "votes of another study"),
        "no votes": (good, "contain no vote"),
        "no such pair": ({**good, "votes": [{**vote, "pair": 9}]}, "has a vote on"),
        "twice": ({**good, "votes": [vote, vote]}, "votes twice on pair 0, quality"),
        "bad choice": ({**good, "votes": [{**vote, "choice": "up"}]}, "choice"),
    }
    for name, (tree, says) in cases.items():
        Path("v.json").write_text(json.dumps(tree))
        code, _, err = uhr("eval", "study", "v.json", "--read", "study")
        assert (code, says in err, err.count("\n")) == (1, True, 1), (name, err)
    Path("v.json").write_text(json.dumps({**good, "votes": [vote]}))
    assert "are of one voter" in uhr("eval", "study", "v.json", "v.json", "--read", "study")[2]
    assert "contains no study" in uhr("eval", "study", "v.json", "--read", "ours")[2]
    assert "already contains a study" in uhr("eval", "study", "ours", "theirs", "--out", "study")[2]
    assert "--out or --read is missing" in uhr("eval", "study", "ours", "theirs")[2]
