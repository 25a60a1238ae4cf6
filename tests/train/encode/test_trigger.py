"""Captions that the configuration completes: a trigger word, and a text for images without a caption."""

import pytest

from uhr.manifests.manifest import Manifest
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.request import select

IMAGES = [
    {"name": "a.png", "height": 64, "width": 64, "caption": "sks, a lake"},
    {"name": "b.png", "height": 64, "width": 64, "caption": "a boat of [trigger] and [trigger]"},
    {"name": "c.png", "height": 64, "width": 64, "caption": "sksa and SKS"},
    {"name": "d.png", "height": 64, "width": 64, "caption": ""},
    {"name": "e.png", "height": 64, "width": 64, "caption": None},
]


@pytest.fixture(scope="module")
def five(manifest_of, tmp_path_factory) -> Manifest:
    return manifest_of(tmp_path_factory.mktemp("five"), IMAGES)


@pytest.mark.parametrize(
    ("config", "captions"),
    [
        ({}, [image["caption"] for image in IMAGES]),
        (
            {"trigger": "sks"},
            ["sks, a lake", "a boat of sks and sks", "sks, sksa and SKS", "sks", "sks"],
        ),
        (
            {"missing": "a photo"},
            ["sks, a lake", "a boat of [trigger] and [trigger]", "sksa and SKS", "a photo", "a photo"],
        ),
        (
            {"trigger": "sks", "missing": "a photo"},
            ["sks, a lake", "a boat of sks and sks", "sks, sksa and SKS", "sks, a photo", "sks, a photo"],
        ),
    ],
)
def test_every_caption_has_the_trigger_once_and_no_image_lacks_one(five, config, captions):
    rows = select(five, EncodeConfig(**config))
    assert rows.sort_by("uri")["caption"].to_pylist() == captions


def test_a_second_column_is_completed_only_where_it_has_a_caption():
    config = EncodeConfig(captions=("caption", "caption_en"), trigger="sks", missing="a photo")
    assert config.captions_of(["ein See", None]) == ["sks, ein See", None]
    assert config.captions_of([None, "a lake"]) == [None, "sks, a lake"]
    assert config.captions_of([None, ""]) == ["sks, a photo", None]
