"""The user's input as plain values: a request says how images are generated, an item which image.

Both survive JSON unchanged, so that a call can be recorded, sent to a worker, and repeated.
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
"""Width and height in px."""


class Adapter(Config):
    """An adapter as the user named it, and its strength: 1 is as it was trained."""

    name: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Adapter:
        """Parse `PATH` or `PATH=0.8`. Raises UserError if the scale is not a finite number."""
        path, equals, number = text.rpartition("=")
        if not equals or user_path(text).exists():
            return cls(name=text)
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise UserError(f"adapter '{text}': '{number}' is not a number", "write PATH or PATH=0.8")
        return cls(name=path, scale=scale)

    @property
    def file(self) -> Path:
        """Its safetensors file. Raises UserError if there is none."""
        return lora_file(self.name)


class Request(Config):
    """How images are generated. None is the sampler's default for the model (size, steps, guidance); dtype
    "auto" is bfloat16 on a GPU and float32 on a CPU.

    `model` may be a backbone's lone file; `base` is then the model that provides the other components.
    `options` are the sampler's own, by name. `size` applies to items without one. `scale` is the side of the
    result over that of an input image.
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
        """Weights outside the model's folder, by component: a folder or a single file."""
        named = {"transformer": self.transformer, "vae": self.vae}
        return {name: user_path(path) for name, path in named.items() if path is not None}


class Original(Config):
    """A prompt before a language model rewrote it, the model's name, and the SHA-256 of its instruction."""

    prompt: str
    model: str
    instruction: str


class Item(Config):
    """One image to generate. `name` is its file's name without the suffix; `image` is an input image that
    replaces the base pass; `original` is the prompt before it was rewritten."""

    prompt: Text
    name: str = ""
    negative: Text | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    size: Pixels | None = None
    image: Path | None = None
    original: Original | None = None


def parse_size(text: str) -> Pixels:
    """Parse `WxH` in px as (width, height). Raises UserError for any other text."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise UserError(f"size '{text}' is invalid", "write it as WIDTHxHEIGHT, such as 1024x1024")
    return int(width), int(height)
