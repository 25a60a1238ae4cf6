"""`uhr train encode --budget`: bytes and hours before any weight is loaded."""

import functools
import json

import pytest

from uhr.cli import main
from uhr.train.encode import budget as budget_module
from uhr.train.encode.budget import budget
from uhr.train.encode.config import EncodeConfig

ASPECTS = ("1/1", "3/2")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    def must_not_load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("uhr.models.loading.model.load_component", must_not_load)


@pytest.fixture
def fixed_rates(monkeypatch):
    """The rates are not measured, which takes seconds on a busy machine."""
    monkeypatch.setattr(budget_module, "measured_rates", lambda *_: (1e9, 1e9))


@pytest.mark.usefixtures("fixed_rates")
def test_the_bytes_are_those_that_the_encode_stores(small_set, tiny_flux):
    found = budget(small_set.manifest.path, str(tiny_flux), EncodeConfig(aspects=ASPECTS), "cpu")
    assert found["images"] == {"selected": 10, "too_small": 1, "unknown_size": 0}
    assert found["buckets"] == {"112x160": 2, "128x128": 5, "160x112": 2}
    assert found["captions"] == small_set.info.texts.rows
    stored = {
        "latents": sum(part.bytes for bucket in small_set.info.buckets for part in bucket.parts),
        "texts": sum(part.bytes for part in small_set.info.texts.parts),
    }
    for name, size in stored.items():
        # ids and keys, and the files' own headers, come on top
        assert found["bytes"][name] < size < found["bytes"][name] * 1.3


@pytest.mark.usefixtures("fixed_rates")
def test_guides_masks_and_pixels_are_counted(small_set, tiny_flux):
    def bytes_of(**config):
        settings = EncodeConfig(buckets=("128x128",), **config)
        return budget(small_set.manifest.path, str(tiny_flux), settings, "cpu")["bytes"]

    more = bytes_of(guide=2, mask="alpha", dtype="float32", captions=("caption", "license"))
    plain = bytes_of(dtype="float32")
    assert plain["latents"] == more["latents"] == 9 * 2 * 16 * 16 * 16 * 4
    assert more["guides"] == more["latents"] // 4
    assert more["masks"] == 9 * 16 * 16
    assert more["texts"] // plain["texts"] == 1
    assert more["texts"] > plain["texts"]
    assert bytes_of(pixels=True) == {"pixels": 9 * 128 * 128 * 3}


@pytest.mark.usefixtures("fixed_rates")
def test_hours_fall_with_workers_and_rise_with_the_area(small_set, tiny_flux):
    def hours(workers=1, **config):
        settings = EncodeConfig(enlarge=True, tiling="none", **config)
        return budget(small_set.manifest.path, str(tiny_flux), settings, "cpu", workers)["hours"]["vae"]

    assert hours(2, buckets=("128x128",)) == hours(buckets=("128x128",)) / 2
    # the attention's share grows with the square of the area
    assert 4 < hours(buckets=("256x256",)) / hours(buckets=("128x128",)) < 6
    assert hours(buckets=("128x128",), guide=2) / hours(buckets=("128x128",)) == pytest.approx(1.25, rel=0.05)


@pytest.mark.usefixtures("fixed_rates")
def test_images_of_unknown_size_count_as_the_largest_bucket(tmp_path, manifest_of, tiny_flux):
    images = [{"name": f"{i}.png", "height": 150, "width": 150, "known_size": i > 0} for i in range(3)]
    manifest = manifest_of(tmp_path, images)
    found = budget(manifest.path, str(tiny_flux), EncodeConfig(buckets=("128x128", "256x128")), "cpu")
    assert found["images"]["unknown_size"] == 1
    assert found["buckets"] == {"128x128": 2, "256x128": 1}


def test_the_command_prints_it_and_writes_nothing(small_set, tiny_flux, tmp_path, capsys, monkeypatch):
    measured_once = functools.cache(budget_module.measured_rates)
    monkeypatch.setattr(budget_module, "measured_rates", measured_once)
    arguments = ["train", "encode", str(small_set.manifest.path), "--model", str(tiny_flux)]
    arguments += ["--out", str(tmp_path / "x"), "--device", "cpu", "--budget"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "10 images, 8 captions" in shown
    assert "too small: 1" in shown
    assert "rate measured on this machine's cpu" in shown
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["images"]["selected"] == 10
    assert all(value >= 0 for value in answer["hours"].values())
    assert answer["hours"]["vae"] > 0
    assert not (tmp_path / "x").exists()
