"""Each row whole, on tiny weights: commit, two processes, one noise, comparison, table.

The official side is a substitute: another implementation behind the official interface.
"""

import json
import shutil

import pytest

from benchmarks.certify import report
from benchmarks.certify.compare import FACTOR
from benchmarks.certify.rows import CLOSE, ROWS, row_named

CALLS = {
    "urae-2k": (["--steps", 2], 2),
    "urae-4k": (["--steps", 2, "--size", "256x256"], 2),
    "ultraflux": (["--steps", 2, "--size", "256x256"], 2),
    "scale-dit": (["--steps", 3], 3 + 2),
    "hiflow": (["--steps", 6], 6 + 4 + 2),
    "hiflow-no-swin": (["--steps", 2], 2 + 2 + 1),
    "imax": (["--steps", 2, "--size", "256x256"], 2 + 2),
    "imax-no-swin": (["--steps", 2, "--size", "256x256"], 2 + 2),
}
"""Arguments of a short call, and the calls of the transformer."""


def test_every_row_has_a_substitute():
    assert set(CALLS) == {row.name for row in ROWS}


@pytest.mark.parametrize("name", [name for name in CALLS if row_named(name).tolerance == CLOSE])
def test_the_two_sides_agree_to_rounding(certify, name):
    more, calls = CALLS[name]
    found = certify(name, *more)
    assert found.code == 0, found.err
    (result,) = found.results
    assert result["verdict"] == "certified"
    assert max(result["steps"]) < 1e-5
    assert len(result["steps"]) == calls
    assert [result[side]["calls"] for side in ("ours", "official")] == [calls, calls]
    assert result["pixel"] <= 1
    assert 0 < result["rounding"] < 1e-5
    # a substitute certifies nothing
    assert not report.is_published(row_named(name), result)
    assert report.status(row_named(name), found.results) == "not certified: never run"


@pytest.mark.parametrize("name", ["hiflow", "imax"])
def test_swin_differs_by_intent_above_the_base_and_within_the_tolerance_of_the_row(certify, name):
    more, calls = CALLS[name]
    (result,) = certify(name, *more).results
    steps = result["call"]["steps"]
    base, above = result["steps"][:steps], result["steps"][steps:]
    assert len(result["steps"]) == calls
    assert max(base) < 1e-5
    assert CLOSE < above[-1] <= row_named(name).tolerance
    assert result["verdict"] == "certified"
    assert result["tolerance"] == row_named(name).tolerance


@pytest.fixture
def changed(clones, commit, tmp_path):
    """Make a clone of the URAE substitute whose pipeline is changed, and return its folder and commit."""

    def make(old, new):
        folder = shutil.copytree(clones.folder / "URAE", tmp_path / "official" / "URAE")
        shutil.rmtree(folder / ".git")
        file = folder / "pipeline_flux.py"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        return tmp_path / "official", commit(folder)

    return make


CALL = "return super().__call__(*arguments, **named)"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (
            "named['num_inference_steps'] -= 1; " + CALL,
            "deviates; official 1 steps, ours 2; official 1 calls, ours 2",
        ),
        ("named['guidance_scale'] += 1; " + CALL, "deviates"),
    ],
    ids=["one step fewer", "another guidance"],
)
def test_a_change_on_the_official_side_is_not_certified(certify, changed, change, verdict):
    official, commit = changed(CALL, change)
    found = certify("urae-2k", "--steps", 2, "--commit", commit, official=official)
    assert found.code == 1
    (result,) = found.results
    assert report.cells(result)[2] == verdict
    assert result["steps"][-1] > result["limit"]


def test_noise_of_its_own_on_the_official_side_is_an_error(certify, changed):
    drawn = "import torch; named['latents'] = torch.randn(1, 256, 64); " + CALL
    official, commit = changed(CALL, drawn)
    found = certify("urae-2k", "--steps", 1, "--commit", commit, official=official)
    assert found.code == 1
    assert "the official code drew noise 0 times, ours 1 more" in found.err
    assert found.results == []


def test_in_bfloat16_the_sides_differ_by_what_rounding_does_and_the_answer_as_json_is_kept(certify, tmp_path):
    found = certify("urae-2k", "--steps", 8, "--dtype", "bfloat16", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out) == found.results
    result = found.results[0]
    assert CLOSE < result["steps"][-1] <= result["limit"] == FACTOR * result["rounding"]
    table = (tmp_path / "results" / report.TABLE).read_text()
    assert "| urae-2k |" in table
    assert found.results[0]["weights"].keys() >= {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert len(found.results[0]["adapters"]) == 1
