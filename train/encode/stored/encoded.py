"""`encoded.json`: the description of a folder of encoded data, written last.

Beside it are the manifest of the encoded rows (`manifest.json`, `samples/`), and the tensors in `latents/`
(or `pixels/`) and `texts/`. Folders of version 1 have no manifest, and one caption per image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from uhr.base.config import Config, parse_versioned, read_versioned
from uhr.base.console import command, say, shown, table
from uhr.base.errors import UserError
from uhr.base.files import or_half_written
from uhr.base.locks.run_lock import NAME as LOCK
from uhr.base.paths import in_store, or_similar
from uhr.base.run_folder import FolderLayout
from uhr.base.store import ObjectStore
from uhr.manifests.info import FILE as MANIFEST
from uhr.manifests.info import Part
from uhr.manifests.parts import LAYOUT as MANIFEST_LAYOUT
from uhr.manifests.parts import REPORT, SAMPLES
from uhr.runtime import units
from uhr.train.encode.config import EncodeConfig

if TYPE_CHECKING:
    from uhr.models.ops.latents import Normalisation, PatchNormalisation

FILE = "encoded.json"
SCHEMA_VERSION = 2
NOT_STATED = "not stated"
"""The licence of rows that state none."""

LATENTS, PIXELS, TEXTS, UNITS = "latents", "pixels", "texts", "units"
LEFT_OUT = "left_out.parquet"
"""In version 1, the rows that were not encoded."""

MANIFEST_PART = MANIFEST_LAYOUT.inside[SAMPLES]
_PART = or_half_written(r"(texts|\d+x\d+)-\d{5}(-[0-9a-f]{16})?\.parquet")
_UNIT = or_half_written(units.FILES)

LAYOUT = FolderLayout(
    "encoded data",
    (FILE, LEFT_OUT, LATENTS, PIXELS, TEXTS, UNITS, MANIFEST, SAMPLES, REPORT),
    (FILE, UNITS),
    {
        LATENTS: _PART,
        PIXELS: _PART,
        TEXTS: _PART,
        SAMPLES: MANIFEST_PART,
        UNITS: re.compile(LOCK),
        f"{UNITS}/{LATENTS}": _UNIT,
        f"{UNITS}/{TEXTS}": _UNIT,
    },
)


class BucketInfo(Config):
    """All images of one size in px.

    group_rows: rows per Parquet row group; the last of a part may have fewer.
    """

    height: int
    width: int
    rows: int
    group_rows: int
    parts: list[Part]


class Geometry(Config):
    """The shapes of stored tensors, and the VAE's normalisation.

    Stored latents are raw. Model latents are (raw - shift) * scale, or (patch - patch_mean) / patch_std over
    the 4C channels of the 2x2 patches of raw latents (`latents.pack`): a family has one pair of keys or the
    other. Each further key is the name of a text tensor, and its value the shape without the batch; the
    sequence comes first. Pixels have no text tensors.
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
        return self

    @model_serializer(mode="wrap")
    def _without_the_other_pair(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in fields(self).items() if value is not None}

    @property
    def text_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each text tensor by its name, without the batch."""
        return self.__pydantic_extra__ or {}

    @property
    def normalisation(self) -> Normalisation | PatchNormalisation:
        """Converts between stored raw latents and model latents."""
        import torch

        from uhr.models.ops.latents import Normalisation, PatchNormalisation

        if self.patch_mean is not None and self.patch_std is not None:
            return PatchNormalisation(torch.tensor(self.patch_mean), torch.tensor(self.patch_std))
        assert self.shift is not None
        assert self.scale is not None
        return Normalisation(self.shift, self.scale)

    @property
    def formula(self) -> str:
        """The formula from stored to model latents, for people."""
        if self.patch_mean is None:
            return f"(raw - {self.shift}) * {self.scale}"
        return "(patch - patch_mean) / patch_std by channel of the 2x2 patches, numbers in encoded.json"


def normalisation_fields(normalisation: Normalisation | PatchNormalisation) -> dict[str, Any]:
    """The fields of `Geometry` that store a normalisation exactly."""
    from uhr.models.ops.latents import Normalisation

    if isinstance(normalisation, Normalisation):
        return {"shift": normalisation.shift, "scale": normalisation.scale}
    return {"patch_mean": normalisation.mean.tolist(), "patch_std": normalisation.std.tolist()}


class ModelInfo(Config):
    """The model that encoded the data.

    hashes: of weights and configuration, by component. base: where text encoders and VAE were, if `path` is a
    lone backbone.
    """

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
    """Rows that were not encoded: `reasons` counts them. They are the failed rows of the manifest in the
    folder; in version 1, `part` lists them by uri (sample_id, uri, reason, error).
    """

    part: Part | None = None
    reasons: list[LeftOutReason]


class TextInfo(Config):
    """The encoded captions.

    truncated: the number of captions (not samples) that are longer than an encoder reads, by encoder.
    empty_key: the key of the empty caption; empty for pixels, which have no texts.
    """

    rows: int
    truncated: dict[str, int]
    empty_key: str
    parts: list[Part]


class EncodedInfo(Config):
    """The content of `encoded.json`.

    id: that of the manifest in the folder, a hash of configuration, model, slice, rows and tensors; not of
        paths or times.
    manifest: the slice that was encoded. samples: the parts of the manifest in the folder; none in version 1.
    counts: rows that are selected, encoded, left_out, without_caption; reused: rows and captions that were
        copied from other folders.
    licences: encoded rows per licence; `NOT_STATED` counts rows without one.
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
    samples: list[Part] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_texts(self) -> EncodedInfo:
        if not self.config.pixels and not self.geometry.text_shapes:
            raise ValueError("geometry names no text tensor")
        return self

    @property
    def resolution(self) -> int:
        """The resolution in px, which is never None in encoded data."""
        assert self.config.resolution is not None
        return self.config.resolution

    @property
    def parts(self) -> list[Part]:
        """All Parquet files that `encoded.json` lists."""
        latents = (part for bucket in self.buckets for part in bucket.parts)
        left_out = [] if self.left_out.part is None else [self.left_out.part]
        return [*self.texts.parts, *latents, *self.samples, *left_out]

    def describe_encoding(self) -> str:
        """What of the encoding changes the images of a model that is trained on it: the VAE's tiling, and the
        lengths of the texts, which FLUX.1 reads without a mask of their padding.
        """
        if self.config.pixels:
            return "pixels"
        tiling = "exact tiling" if self.config.tiling == "exact" else "no tiling"
        texts = ", ".join(f"{name} {count}" for name, count in self.model.text_lengths.items())
        return f"{tiling}, text tokens: {texts}"

    def latent_shape(self, bucket: BucketInfo) -> tuple[int, int, int]:
        """[C, H, W] of the bucket's latents."""
        factor = self.geometry.vae_factor
        return self.geometry.latent_channels, bucket.height // factor, bucket.width // factor

    def guide_shape(self, bucket: BucketInfo) -> tuple[int, int, int]:
        """[C, H, W] of the latents of the bucket's guides, which the configuration must have."""
        assert self.config.guide is not None
        channels, height, width = self.latent_shape(bucket)
        return channels, height // self.config.guide, width // self.config.guide


def read_encoded(place: Path | str) -> EncodedInfo:
    """Read the `encoded.json` of a folder, or at an address in an object store. Raises UserError if it is
    missing or of a newer version, or if parts are missing.
    """
    return read_in_store(place)[0] if in_store(place) else _read_folder(Path(place))


def read_in_store(address: str) -> tuple[EncodedInfo, dict[str, str]]:
    """Read encoded data in an object store, as `read_encoded` does. Returns also `SIZE-ETAG` of every object
    below the address, by name.
    """
    store = ObjectStore(address)
    data, versions = store.read(FILE), store.versions()
    if data is None:
        if any(name.startswith(f"{UNITS}/") for name in versions):
            raise UserError(f"{address} is not fully encoded", "run the same `uhr train encode` again")
        if MANIFEST in versions:
            fix = command("train", "encode", address, "--model", "M", "--out", "ENCODED")
            raise UserError(f"{address} is a manifest that is not encoded", f"`{fix}`, then name ENCODED")
        raise UserError(f"{address} contains no encoded data", "name the prefix of `uhr train encode --out`")
    info = parse_versioned(EncodedInfo, data, store.place(FILE), SCHEMA_VERSION, _ENCODE_AGAIN)
    for part in info.parts:
        if (found := versions.get(part.path)) is None or found.partition("-")[0] != str(part.bytes):
            state = "is missing" if found is None else "does not have the size with which it was written"
            raise UserError(
                f"{store.place(part.path)} {state}", f"copy the set there again, or {_ENCODE_AGAIN}"
            )
    return info, versions


_ENCODE_AGAIN = "encode again into another prefix"


def _read_folder(path: Path) -> EncodedInfo:
    file = path / FILE
    if not file.is_file():
        if (path / UNITS).is_dir():
            raise UserError(
                f"{path} is not fully encoded", "run the same `uhr train encode` again to continue"
            )
        if (path / MANIFEST).is_file():
            fix = command("train", "encode", path, "--model", "M", "--out", "ENCODED")
            raise UserError(f"{path} is a manifest that is not encoded", f"`{fix}`, then name ENCODED")
        raise UserError(
            f"{path} contains no encoded data",
            or_similar(path, f"`{command('train', 'encode', 'MANIFEST', '--model', 'M', '--out', path)}`"),
        )
    info = read_versioned(EncodedInfo, file, SCHEMA_VERSION, "encode again into another folder")
    for part in info.parts:
        found = path / part.path
        if not found.is_file() or found.stat().st_size != part.bytes:
            state = "does not have the size with which it was written" if found.exists() else "is missing"
            raise UserError(f"{found} {state}", "copy the folder again, or encode again into another one")
    return info


def print_encoded(info: EncodedInfo) -> None:
    """Print what was encoded, and what was left out with its reason."""
    counts = info.counts
    say(f"{counts['encoded']:,} of {counts['selected']:,} images encoded at {info.resolution} px")
    if counts.get("reused") or counts.get("reused_captions"):
        say(f"taken over: {counts['reused']:,} images and {counts['reused_captions']:,} captions")
    table(["bucket", "images"], [[f"{b.width}x{b.height}", b.rows] for b in info.buckets])
    if info.config.pixels:
        say("pixels are stored, to train a VAE; no texts")
    else:
        bare = counts["without_caption"]
        get = f"; {bare:,} images have no caption and get the empty one" if bare else ""
        say(f"embeddings of {info.texts.rows:,} texts, the empty one included{get}")
    for name, count in info.texts.truncated.items():
        if count:
            sequence = next(iter(info.geometry.text_shapes))
            say(_truncated(name, count, info.model.text_lengths[name], sequence))
    say(shown("licences: " + ", ".join(f"{name} {count:,}" for name, count in info.licences.items())))
    for left in info.left_out.reasons:
        first = left.examples[0]
        say(shown(f"left out, {left.reason}: {left.rows:,} ({first.uri}: {first.error})"))
    if info.left_out.part is not None:
        say(f"{LEFT_OUT} lists all that were left out")
    elif info.left_out.reasons:
        say("the manifest of the folder has them as failed rows, with their errors")


def _truncated(encoder: str, count: int, reads: int, sequence: str) -> str:
    """The message for captions that are longer than an encoder reads; `sequence` is the encoder that gives
    the text sequence.
    """
    if encoder != sequence:
        # FLUX.1 takes one pooled vector of CLIP, and the text itself from T5
        where = f"which is no loss where {sequence} reads them"
        return f"{count:,} captions are longer than the {reads} tokens of {encoder}, {where}"
    which = f"{TEXTS}/*.parquet has the number of each in {encoder}_tokens"
    return f"{count:,} captions are cut: longer than {reads} tokens of {encoder}; {which}"
