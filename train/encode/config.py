"""The configuration of `encode`, and the cache keys of its results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from uhr.base.config import Config, fingerprint
from uhr.train.encode.buckets import Bucket, parse_size

ENCODE_VERSION = 2
"""Increased whenever the code computes other values from the same inputs."""

Dtype = Literal["bfloat16", "float16", "float32"]

ALPHA = "alpha"
"""The value of `mask` for an image's own alpha channel."""


class EncodeConfig(Config):
    """How images and captions are encoded. All fields are part of the keys, unless excluded below.

    resolution: px; the area of a bucket is about its square. None: the model's native size.
    buckets: the table of sizes: "aspects" (one bucket per ratio of `aspects`), "square" (one), a published
        table ("ultraflux-4k"), or a list of sizes as WIDTHxHEIGHT. With a table or a list, `resolution` only
        says for which phases of a recipe the data are (`buckets.table_side` by default).
    aspects: aspect ratios (width/height) of the buckets. The transpose of each is added.
    enlarge: whether images smaller than their bucket are enlarged; they fail otherwise.
    dtype: of the stored latents (mean and standard deviation); the VAE itself runs in float32.
    text_dtype: of the stored embeddings, and of the text encoders while they run.
    captions: columns of the manifest that hold captions; every one of a row is encoded. `caption: NAME` is
        the same as one column. A row without any gets `missing`.
    missing: the caption of a row without any; None is the empty caption.
    trigger: a word that every caption is to have: `[trigger]` in a caption is replaced by it, and a caption
        without either begins with it and a comma. None: captions stay as they are.
    split: encode only rows with this value in the manifest's column `split`. None: "train" if there is such
        a column, otherwise all rows.
    guide: also store the latents of the image at 1/guide of its side (UltraGen trains with 4). None: do not.
    mask: also store, for each latent (or pixel), which share of it takes part in training: a column with the
        path of a gray image relative to the source (white takes part), or "alpha". None: no mask.
    pixels: store the cropped pixels (uint8 RGB) instead of latents and texts, to train a VAE.
    tiling: "exact" runs the VAE in bounded memory, as samplers do; "none" always runs it on whole images.
    """

    resolution: int | None = Field(None, gt=0)
    buckets: str | tuple[str, ...] = "aspects"
    aspects: tuple[str, ...] = Field(("1/1", "5/4", "4/3", "3/2", "16/9", "2/1"), min_length=1)
    enlarge: bool = False
    dtype: Dtype = "bfloat16"
    text_dtype: Dtype = "bfloat16"
    captions: tuple[str, ...] = Field(("caption",), min_length=1)
    missing: str | None = Field(None, min_length=1)
    trigger: str | None = Field(None, min_length=1)
    split: str | None = None
    guide: int | None = Field(None, ge=2, le=16)
    mask: str | None = None
    pixels: bool = False
    tiling: Literal["exact", "none"] = "exact"

    @model_validator(mode="before")
    @classmethod
    def _one_caption(cls, tree: Any) -> Any:
        """Read `caption: NAME`, which folders of version 1 have, as one column."""
        if not isinstance(tree, dict) or "caption" not in tree:
            return tree
        if "captions" in tree:
            raise ValueError("caption and captions are both given: give captions")
        rest = {name: value for name, value in tree.items() if name != "caption"}
        return {**rest, "captions": tree["caption"]}

    @field_validator("captions", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("captions")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a column twice")
        return value

    @model_validator(mode="after")
    def _pixels_alone(self) -> EncodeConfig:
        if self.pixels and self.guide is not None:
            raise ValueError("pixels are stored without guide: leave it out")
        return self

    def captions_of(self, captions: Sequence[str | None]) -> list[str | None]:
        """The captions of a row as they are encoded; null and empty ones are the row's lack of one."""
        given = [text or None for text in captions]
        if self.missing is not None and not any(given):
            given[0] = self.missing
        if self.trigger is None:
            return given
        if not any(given):
            given[0] = self.trigger
        return [text and with_trigger(text, self.trigger) for text in given]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors that every encoded image has."""
        mask = ("mask",) if self.mask is not None else ()
        if self.pixels:
            return ("pixels", *mask)
        guide = ("guide_mean", "guide_std") if self.guide is not None else ()
        return ("mean", "std", *guide, *mask)

    @field_validator("buckets")
    @classmethod
    def _sizes(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return value
        if not value:
            raise ValueError("is an empty list")
        for text in value:
            parse_size(text)
        return value


PLACEHOLDER = "[trigger]"
"""The trigger word in captions that are written for any word; ai-toolkit replaces it too."""


def with_trigger(text: str, trigger: str) -> str:
    """A caption with the trigger word in it (`EncodeConfig.trigger`)."""
    if PLACEHOLDER in text:
        return text.replace(PLACEHOLDER, trigger)
    return text if has_word(text, trigger) else f"{trigger}, {text}"


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word by itself, in the same case: text encoders read another case as another
    word.
    """
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


SELECTION = {"captions", "missing", "trigger", "split"}
"""Fields that choose which rows and texts are encoded, not how."""

SIZES = {"resolution", "buckets", "aspects", "enlarge"}
"""Fields that choose an image's bucket, which is in the key itself."""

TEXT_ONLY = {"text_dtype"}
IMAGE_ONLY = {"dtype", "guide", "mask", "pixels", "tiling"}
"""Fields that only text keys, or only latent keys, contain. A field in no list here is in both keys: a
forgotten one re-encodes too much, never too little."""


def latent_key(
    config: EncodeConfig,
    vae_hash: str,
    content: tuple[str, ...],
    box: tuple[int, int, int, int] | None,
    bucket: Bucket,
) -> str:
    """The cache key (64 hex digits) of an image's latents.

    It depends on the hashes of the image's bytes and of its mask's (`content`), box and bucket, the VAE, the
    configuration and the version of this code. The stored tensors of two rows with one key are equal.
    """
    return fingerprint(
        {
            "version": ENCODE_VERSION,
            "config": config.model_dump(mode="json", exclude=SELECTION | SIZES | TEXT_ONLY),
            "vae": vae_hash,
            "content": content,
            "box": box,
            "bucket": bucket,
        }
    )


def text_key(config: EncodeConfig, text_hash: str, lengths: dict[str, int], caption: str) -> str:
    """The cache key (64 hex digits) of a caption's embeddings: a hash of the text, the encoders, their
    lengths, and the configuration."""
    return fingerprint(
        {
            "version": ENCODE_VERSION,
            "config": config.model_dump(mode="json", exclude=SELECTION | SIZES | IMAGE_ONLY),
            "encoders": text_hash,
            "lengths": lengths,
            "caption": caption,
        }
    )
