"""What `encode` is told, and the keys under which its results are known."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uhr.base.config import Config, fingerprint
from uhr.train.encode.buckets import Bucket

ENCODE_VERSION = 1
"""Raised whenever the code turns the same inputs into other values."""


class EncodeConfig(Config):
    """How images and captions are encoded. Everything here is part of the keys, unless excluded by name
    below.

    resolution: px; buckets have about its square as area. None: the model's native size.
    aspects: aspect ratios (width/height) of the buckets; each transpose is one too.
    enlarge: take images that are smaller than their bucket; they are left out otherwise.
    dtype: of the stored latents (mean and standard deviation); the VAE itself runs in float32.
    text_dtype: of the stored embeddings, and of the text encoders while they run.
    caption: column of the manifest that holds the caption; a row without one gets the empty caption.
    split: only rows with this value in the manifest's column `split`. None: "train" where there is that
        column, all rows where there is none.
    """

    resolution: int | None = Field(None, gt=0)
    aspects: tuple[str, ...] = Field(("1/1", "5/4", "4/3", "3/2", "16/9", "2/1"), min_length=1)
    enlarge: bool = False
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    text_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    caption: str = "caption"
    split: str | None = None


SELECTION = {"caption", "split"}
"""Which rows and which texts are encoded, never how."""

TEXT_ONLY = {"text_dtype"}
IMAGE_ONLY = {"resolution", "aspects", "enlarge", "dtype"}
"""What the other kind of key leaves out. A field that is in no list here is in both keys: forgetting one
re-encodes too much, never too little."""


def latent_key(
    config: EncodeConfig,
    vae_hash: str,
    content_hash: str,
    box: tuple[int, int, int, int] | None,
    bucket: Bucket,
) -> str:
    """Key (64 hex digits) of an image's latents: its bytes, its box, its bucket, the VAE, and how it is
    encoded.
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
    """Key (64 hex digits) of a caption's embeddings: the words, encoders and tokenizers, lengths, and how."""
    return fingerprint(
        {
            "version": ENCODE_VERSION,
            "config": config.model_dump(mode="json", exclude=SELECTION | IMAGE_ONLY),
            "encoders": text_hash,
            "lengths": lengths,
            "caption": caption,
        }
    )
