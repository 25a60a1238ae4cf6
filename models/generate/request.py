"""What a user asks for, as plain values: a request says how images are made, an item what is made.

Both go through JSON and back unchanged, so that a call can be written down, sent to a worker, and repeated.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field

from uhr.base.config import Config, Text
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.models.files.adapter import lora_file

Pixels = tuple[int, int]
"""Width and height in px, in the order in which people say them."""


class Adapter(Config):
    """An adapter as the user named it, and how strong it acts: 1 is as it was trained."""

    name: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Adapter:
        """`PATH` or `PATH=0.8`."""
        path, equals, number = text.rpartition("=")
        if not equals or user_path(text).exists():
            return cls(name=text)
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise UserError(f"adapter '{text}': '{number}' is no number", "write PATH or PATH=0.8")
        return cls(name=path, scale=scale)

    @property
    def file(self) -> Path:
        """Its safetensors file; UserError where there is none."""
        return lora_file(self.name)


class Request(Config):
    """How images are made. None is the sampler's default for the model (size, steps, guidance); dtype
    "auto" is bfloat16 on a GPU and float32 on the CPU.

    `model` may be a backbone's lone file, and `base` is then the model that gives the rest. `options` are the
    sampler's own, by name; `size` is that of every item that names none; `scale` is how
    many times a given image's sides the result has.
    """

    sampler: str
    model: str
    base: str | None = None
    spec: str | None = None
    size: Pixels | None = None
    scale: float | None = None
    steps: int | None = None
    guidance: float | None = None
    adapters: tuple[Adapter, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    offload: str | None = None
    quantize: str | None = None
    transformer: Path | None = None
    vae: Path | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Path]:
        """Components whose weights are elsewhere: a folder of their own, or a single file."""
        named = {"transformer": self.transformer, "vae": self.vae}
        return {name: user_path(path) for name, path in named.items() if path is not None}


class Original(Config):
    """A prompt as the user wrote it, where a language model rewrote it: which one, and the SHA-256 of what it
    was told."""

    prompt: str
    model: str
    instruction: str


class Item(Config):
    """What is made: one image. `name` is its file's name without the suffix; `image` an image in place of
    the base pass; `original` what `prompt` was before it was rewritten."""

    prompt: Text
    name: str = ""
    negative: Text | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    size: Pixels | None = None
    image: Path | None = None
    original: Original | None = None


def parse_size(text: str) -> Pixels:
    """`WxH` in px -> (width, height)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise UserError(f"size '{text}'", "write it as WIDTHxHEIGHT, 1024x1024 say")
    return int(width), int(height)
