import pytest

from uhr.train.encode import config as config_module
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.config import (
    IMAGE_ONLY,
    SELECTION,
    SIZES,
    TEXT_ONLY,
    EncodeConfig,
    latent_key,
    text_key,
)

OTHER = {
    "resolution": 256,
    "aspects": ("1/1",),
    "enlarge": True,
    "dtype": "float32",
    "text_dtype": "float32",
    "buckets": "square",
    "captions": ("caption_en",),
    "missing": "a cat",
    "trigger": "sks",
    "guide": 4,
    "mask": "alpha",
    "pixels": True,
    "tiling": "none",
    "split": "val",
}


def image(config=None, vae="v", content=("c",), box=None, bucket=None):
    return latent_key(config or EncodeConfig(), vae, content, box, bucket or Bucket(1024, 1024))


def text(config=None, encoders="t", lengths=None, caption="a cat"):
    return text_key(config or EncodeConfig(), encoders, lengths or {"t5": 512, "clip": 77}, caption)


@pytest.mark.parametrize("name", EncodeConfig.model_fields)
def test_every_field_of_the_configuration_changes_each_key_it_can_affect(name):
    changed = EncodeConfig(**{name: OTHER[name]})
    assert getattr(changed, name) != getattr(EncodeConfig(), name)
    assert (image(changed) != image()) == (name not in SELECTION | SIZES | TEXT_ONLY)
    assert (text(changed) != text()) == (name not in SELECTION | SIZES | IMAGE_ONLY)


def test_every_other_input_changes_the_key():
    images = [
        image(), image(vae="w"), image(content=("d",)), image(content=("c", "m")), image(box=(0, 0, 64, 64)),
        image(box=(0, 0, 64, 65)), image(bucket=Bucket(1024, 768)), image(bucket=Bucket(768, 1024)),
    ]  # fmt: skip
    texts = [
        text(),
        text(encoders="u"),
        text(lengths={"t5": 256, "clip": 77}),
        text(caption="a dog"),
        text(caption=""),
    ]
    assert len({*images, *texts}) == len(images) + len(texts)


def test_a_new_encode_version_changes_all_keys(monkeypatch):
    before = image(), text()
    monkeypatch.setattr(config_module, "ENCODE_VERSION", config_module.ENCODE_VERSION + 1)
    assert image() != before[0]
    assert text() != before[1]
