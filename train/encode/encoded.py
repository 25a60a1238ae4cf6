"""`encoded.json`: what a folder of encoded data is, written last. Training refuses a folder without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from uhr.base.config import Config, read_versioned
from uhr.base.console import command, say, shown, table
from uhr.base.errors import UserError
from uhr.base.files import or_half_written
from uhr.base.lock import NAME as LOCK
from uhr.base.run_folder import Layout
from uhr.manifests.info import Part
from uhr.runtime import units
from uhr.train.encode.config import EncodeConfig

if TYPE_CHECKING:
    from uhr.models.ops.latents import Normalisation, PatchNormalisation

FILE = "encoded.json"
SCHEMA_VERSION = 1
NOT_STATED = "not stated"
"""Stands for the licence of rows that state none."""

LATENTS, TEXTS, UNITS = "latents", "texts", "units"
LEFT_OUT = "left_out.parquet"

_PART = or_half_written(r"(texts|\d+x\d+)-\d{5}\.parquet")
_UNIT = or_half_written(units.FILES)

LAYOUT = Layout(
    "encoded data",
    (FILE, LEFT_OUT, LATENTS, TEXTS, UNITS),
    (FILE, UNITS),
    {
        LATENTS: _PART,
        TEXTS: _PART,
        UNITS: re.compile(LOCK),
        f"{UNITS}/{LATENTS}": _UNIT,
        f"{UNITS}/{TEXTS}": _UNIT,
    },
)


class BucketInfo(Config):
    """All images of one size in px. `group_rows`: rows per Parquet row group, fewer in a part's last."""

    height: int
    width: int
    rows: int
    group_rows: int
    parts: list[Part]


class Geometry(Config):
    """What the cells hold, and what the trainer needs to know of the VAE that it never loads.

    Latents are raw. Model latents are (raw - shift) * scale, or (patch - patch_mean) / patch_std over the 4C
    channels of the 2x2 patches of raw latents (`latents.pack`): a family has one pair or the other, and the
    other's keys are not in the file. Each further key is the name of a text tensor, with its shape without
    the batch; the sequence comes first.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, tuple[int, ...]]  # ty: ignore[incompatible-mutable-override]

    latent_channels: int
    vae_factor: int
    shift: float | None = None
    scale: float | None = None
    patch_mean: tuple[float, ...] | None = None
    patch_std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Geometry:
        pairs = (self.shift, self.scale), (self.patch_mean, self.patch_std)
        if sorted(pair.count(None) for pair in pairs) != [0, 2]:
            raise ValueError("it needs shift and scale, or patch_mean and patch_std")
        if not self.text_shapes:
            raise ValueError("it names no text tensor")
        return self

    @model_serializer(mode="wrap")
    def _without_the_other_pair(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in fields(self).items() if value is not None}

    @property
    def text_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each text tensor by its name, without the batch."""
        return self.__pydantic_extra__ or {}

    @property
    def normalisation(self) -> Normalisation | PatchNormalisation:
        """Between the stored raw latents and those of the model."""
        import torch

        from uhr.models.ops.latents import Normalisation, PatchNormalisation

        if self.patch_mean is not None and self.patch_std is not None:
            return PatchNormalisation(torch.tensor(self.patch_mean), torch.tensor(self.patch_std))
        assert self.shift is not None
        assert self.scale is not None
        return Normalisation(self.shift, self.scale)

    @property
    def formula(self) -> str:
        """How model latents are made of the stored ones, for people."""
        if self.patch_mean is None:
            return f"(raw - {self.shift}) * {self.scale}"
        return "(patch - patch_mean) / patch_std by channel of the 2x2 patches, numbers in encoded.json"


def normalisation_fields(normalisation: Normalisation | PatchNormalisation) -> dict[str, Any]:
    """The fields of `Geometry` that hold it, exactly."""
    from uhr.models.ops.latents import Normalisation

    if isinstance(normalisation, Normalisation):
        return {"shift": normalisation.shift, "scale": normalisation.scale}
    return {"patch_mean": normalisation.mean.tolist(), "patch_std": normalisation.std.tolist()}


class ModelInfo(Config):
    """The model that encoded: `hashes` by component (weights and configuration). `base`: where text encoders
    and VAE were, for a backbone alone at `path`, of which nothing is read."""

    path: str
    base: str | None = None
    spec: str
    family: str
    text_lengths: dict[str, int]
    hashes: dict[str, str]


class ManifestRef(Config):
    id: str
    path: str
    counts: dict[str, Any]


class LeftOutExample(Config):
    uri: str
    error: str


class LeftOutReason(Config):
    """How many rows have no latents for one reason, and the first few of them."""

    reason: str
    rows: int
    examples: list[LeftOutExample]


class LeftOut(Config):
    """`part` has every row without latents (sample_id, uri, reason, error), by uri; `reasons` counts them."""

    part: Part
    reasons: list[LeftOutReason]


class TextInfo(Config):
    """`truncated`: captions (not samples) longer than an encoder reads, by encoder."""

    rows: int
    truncated: dict[str, int]
    empty_key: str
    parts: list[Part]


class EncodedInfo(Config):
    """`id` is a hash of the content: configuration, model, manifest, parts; never of paths or times.

    `counts`: selected rows of the manifest, encoded, left_out, without_caption.
    `licences`: encoded rows per licence; rows that state none stand under `NOT_STATED`.
    """

    schema_version: int
    id: str
    created: str
    uhr: str
    manifest: ManifestRef
    model: ModelInfo
    config: EncodeConfig
    geometry: Geometry
    buckets: list[BucketInfo]
    texts: TextInfo
    counts: dict[str, int]
    licences: dict[str, int]
    left_out: LeftOut

    @property
    def resolution(self) -> int:
        """px; always resolved in what was encoded."""
        assert self.config.resolution is not None
        return self.config.resolution

    @property
    def parts(self) -> list[Part]:
        """Every Parquet file that `encoded.json` vouches for."""
        latents = (part for bucket in self.buckets for part in bucket.parts)
        return [*self.texts.parts, *latents, self.left_out.part]

    def latent_shape(self, bucket: BucketInfo) -> tuple[int, int, int]:
        """[C, H, W] of the bucket's latents."""
        factor = self.geometry.vae_factor
        return self.geometry.latent_channels, bucket.height // factor, bucket.width // factor


def read_encoded(path: Path) -> EncodedInfo:
    """`encoded.json` of a folder. UserError where it is missing, half-written, or of a newer version."""
    file = path / FILE
    if not file.is_file():
        if (path / UNITS).is_dir():
            raise UserError(
                f"{path} is not encoded to its end", "run the same `uhr train encode` again: it goes on"
            )
        raise UserError(
            f"{path} holds no encoded data",
            f"`{command('train', 'encode', 'MANIFEST', '--model', 'M', '--out', path)}`",
        )
    info = read_versioned(EncodedInfo, file, SCHEMA_VERSION, "encode again into another folder")
    for part in info.parts:
        found = path / part.path
        if not found.is_file() or found.stat().st_size != part.bytes:
            state = "has another size than when it was written" if found.exists() else "is missing"
            raise UserError(f"{found} {state}", "copy the folder again, or encode again into another one")
    return info


def print_encoded(info: EncodedInfo) -> None:
    """What was encoded, for people; what was left out comes with its reason."""
    counts = info.counts
    say(f"{counts['encoded']:,} of {counts['selected']:,} images encoded at {info.resolution} px")
    table(["bucket", "images"], [[f"{b.width}x{b.height}", b.rows] for b in info.buckets])
    bare = counts["without_caption"]
    say(f"{info.texts.rows:,} captions; {bare:,} images have none and get the empty one")
    for name, count in info.texts.truncated.items():
        if count:
            sequence = next(iter(info.geometry.text_shapes))
            say(_truncated(name, count, info.model.text_lengths[name], sequence))
    say(shown("licences: " + ", ".join(f"{name} {count:,}" for name, count in info.licences.items())))
    for left in info.left_out.reasons:
        first = left.examples[0]
        say(shown(f"left out, {left.reason}: {left.rows:,} ({first.uri}: {first.error})"))
    if info.left_out.reasons:
        say(f"all that were left out stand in {LEFT_OUT}")


def _truncated(encoder: str, count: int, reads: int, sequence: str) -> str:
    """What it means that so many captions are longer than an encoder reads; `sequence` is the one that gives
    the text itself."""
    if encoder != sequence:
        # FLUX.1 takes one pooled vector of CLIP, and the text itself from T5
        where = f"which is no loss where {sequence} reads them"
        return f"{count:,} captions are longer than the {reads} tokens of {encoder}, {where}"
    which = f"{TEXTS}/*.parquet has the number of each in {encoder}_tokens"
    return f"{count:,} captions are cut: longer than {reads} tokens of {encoder}; {which}"
