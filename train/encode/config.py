"""The configuration of `encode`, and the cache keys of its results."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uhr.base.config import Config, fingerprint
from uhr.train.encode.buckets import Bucket

ENCODE_VERSION = 1
"""Increased whenever the code computes other values from the same inputs."""


class EncodeConfig(Config):
    """How images and captions are encoded. All fields are part of the keys, unless excluded below.

    resolution: px; the area of a bucket is about its square. None: the model's native size.
    aspects: aspect ratios (width/height) of the buckets. The transpose of each is added.
    enlarge: whether images smaller than their bucket are enlarged; they are left out otherwise.
    dtype: of the stored latents (mean and standard deviation); the VAE itself runs in float32.
    text_dtype: of the stored embeddings, and of the text encoders while they run.
    caption: column of the manifest that holds the caption; a row without one gets the empty caption.
    split: encode only rows with this value in the manifest's column `split`. None: "train" if there is such
        a column, otherwise all rows.
    """

    resolution: int | None = Field(None, gt=0)
    aspects: tuple[str, ...] = Field(("1/1", "5/4", "4/3", "3/2", "16/9", "2/1"), min_length=1)
    enlarge: bool = False
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    text_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    caption: str = "caption"
    split: str | None = None


SELECTION = {"caption", "split"}
"""Fields that choose which rows and texts are encoded, not how."""

TEXT_ONLY = {"text_dtype"}
IMAGE_ONLY = {"resolution", "aspects", "enlarge", "dtype"}
"""Fields that only text keys, or only image keys, contain. A field in no list here is in both keys: a
forgotten one re-encodes too much, never too little."""


def latent_key(
    config: EncodeConfig,
    vae_hash: str,
    content_hash: str,
    box: tuple[int, int, int, int] | None,
    bucket: Bucket,
) -> str:
    """The cache key (64 hex digits) of an image's latents: a hash of the image's bytes, box and bucket, of
    the VAE, and of the configuration.
    """
    return fingerprint(
        {
            "version": ENCODE_VERSION,
            "config": config.model_dump(mode="json", exclude=SELECTION | TEXT_ONLY),
            "vae": vae_hash,
            "content": content_hash,
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
            "config": config.model_dump(mode="json", exclude=SELECTION | IMAGE_ONLY),
            "encoders": text_hash,
            "lengths": lengths,
            "caption": caption,
        }
    )
