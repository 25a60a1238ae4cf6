"""The fingerprints of stages and presets, as earlier versions wrote them.

A run is continued, and the parts of earlier runs are reused, where the fingerprint is equal. It must change
with the numbers of a stage, and with nothing else: not when its class moves to another module. A value here
changes only together with a stage's `version` or parameters, with a preset, or with
the order of its stages in a plan.
"""

import pytest

from uhr.curate.config import load
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.stage import BaseStage
from uhr.curate.stages import NAMES, stage_class
from uhr.curate.stages.frames.entropy import EntropyStage
from uhr.curate.stages.sets.overlap import OverlapStage

STAGES = {
    "fetch": "bb91dc806142c9aa",
    "blocklist": "57364e52501a25bf",
    "rights": "10059b7e217bf4f5",
    "licence": "415805ff898a5269",
    "header": "d55b6b6dc22b11ad",
    "decode": "7f01d61151cb1854",
    "geometry": "bfe434fc5a452f78",
    "flatness": "091e677fbf437c3e",
    "entropy": "0452933a7ac262ce",
    "exposure": "4701e776350e33be",
    "sharpness": "0ee77d0da25dab3f",
    "native_resolution": "fe75f31529a6feee",
    "exact_duplicates": "dc5bbd950255f7a1",
    "rank": "badf8182eca059b5",
    "phash": "a6bc1b379b1d0926",
    "near_duplicates": "aea0f4014f58cdb6",
    "semantic_duplicates": "273a8fc5bab87a75",
    "overlap": "bb1586ed1594a179",
    "patches": "2c260d803fea8bc9",
    "pyiqa": "3d2268b70241de71",
    "q_align": "243d68d729661b37",
    "embedding": "46ec64f8b4140fb1",
    "laion_aesthetic": "bd901c80a39b41de",
    "clip_score": "989dc3de4ac8a2c0",
    "safety": "4e3f9d2bf25ab051",
    "rating": "2b2b7ee99372dae5",
    "artimuse": "0575545f154cf064",
    "people": "d6a5ff5cfe26e1af",
    "caption": "5942af9cc74136c6",
    "translate": "f73743e7182ef7d1",
}
"""Stage -> the start of its fingerprint, with PARAMS and without weights."""

RATING = {"prompt": "prompt.txt", "words": {"bad": 0.0, "good": 1.0}}

PARAMS = {"rank": {"of": "sharpness"}, "rating": RATING, "artimuse": RATING, "overlap": {"against": "EVAL"}}
"""The parameters of the stages that have none by default."""

PRESETS = {
    "quickstart": "23f0e294e71f0e40",
    "as-is": "695c6094ea8c2ba8",
    "gca-patches": "b28636301c9f815b",
}
"""Preset -> the start of its fingerprint, with version 1 of the schema and without weights."""


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(BaseStage, "weight_hashes", lambda self: {})
    monkeypatch.setattr(OverlapStage, "contents", lambda self: {})  # the id of a manifest


def test_the_fingerprint_of_every_stage_is_that_of_earlier_versions(no_weights, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("How good is it?")
    monkeypatch.chdir(tmp_path)
    found = {}
    for name in NAMES:
        cls = stage_class(name)
        found[name] = cls(cls.Params(**PARAMS.get(name, {}))).fingerprint()[:16]
    assert found == STAGES


@pytest.mark.parametrize("name", PRESETS)
def test_the_fingerprint_of_every_preset_is_that_of_earlier_versions(no_weights, monkeypatch, name):
    # a higher version of the schema changes every fingerprint, as it should
    monkeypatch.setattr("uhr.curate.planning.plan.SCHEMA_VERSION", 1)
    assert CurationPlan.of(load(name)).fingerprint.startswith(PRESETS[name])


def test_a_stage_derived_from_a_built_in_one_has_a_fingerprint_of_its_own():
    class Derived(EntropyStage):
        pass

    class Moved(EntropyStage):
        hashed_name = EntropyStage.hashed_name

    assert Derived().fingerprint() != EntropyStage().fingerprint() == Moved().fingerprint()
