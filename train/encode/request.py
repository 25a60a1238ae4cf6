"""What to encode: the slice, the model, the resolved configuration, and the selected rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from uhr.base.console import command
from uhr.base.errors import UserError, unknown
from uhr.manifests.manifest import Manifest
from uhr.models.zoo import Model
from uhr.train.encode.buckets import Bucket, bucket_table, table_side
from uhr.train.encode.config import ALPHA, EncodeConfig
from uhr.train.encode.hashing import component_hash
from uhr.train.encode.stored.encoded import ModelInfo


@dataclass(frozen=True)
class EncodeRequest:
    """What to encode, with which model and configuration.

    config: with a resolution, and with a split if the manifest has any. factor: px per latent of the model's
    VAE. rows: the selected rows of the manifest.
    """

    out: Path
    manifest: Manifest
    model: Model
    identity: ModelInfo
    config: EncodeConfig
    buckets: tuple[Bucket, ...]
    rows: pa.Table

    @property
    def factor(self) -> int:
        return self.model.spec.vae_factor

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        """[C, H, W] of the bucket's latents."""
        return self.model.spec.latent_channels, bucket.height // self.factor, bucket.width // self.factor


def resolved(config: EncodeConfig, manifest: Manifest, model: Model) -> EncodeConfig:
    """The configuration with a resolution, and with a split if the manifest has any."""
    resolution = config.resolution or table_side(config.buckets) or model.spec.native_size
    split = config.split or ("train" if "split" in manifest.schema.names else None)
    return config.model_copy(update={"resolution": resolution, "split": split})


def sizes(config: EncodeConfig, model: Model) -> tuple[Bucket, ...]:
    """The buckets of a resolved configuration. Raises UserError if they do not fit the model."""
    assert config.resolution is not None
    multiple = model.spec.pixel_multiple * (config.guide or 1)
    return bucket_table(config.buckets, config.resolution, config.aspects, multiple)


def identity_of(model: Model, pixels: bool) -> ModelInfo:
    """The model's description, with hashes of what encodes: the VAE and the text encoders; nothing for
    pixels, which depend on no weights.
    """
    components = () if pixels else ("vae", *model.spec.text_components)
    hashes = {name: component_hash(model, name) for name in components}
    return identity_without_hashes(model).model_copy(update={"hashes": hashes})


def identity_without_hashes(model: Model) -> ModelInfo:
    """The model's description, for an estimate: no weights are read."""
    return ModelInfo(
        path=model.source.text if model.backbone is None else str(model.backbone),
        base=None if model.backbone is None else model.source.text,
        spec=model.spec.name,
        family=model.spec.family,
        text_lengths=dict(model.spec.text_lengths),
        hashes={},
    )


def select(manifest: Manifest, config: EncodeConfig) -> pa.Table:
    """The kept rows of the split to encode, in the manifest's order; `config` is resolved."""
    names = manifest.schema.names
    for caption in () if config.pixels else config.captions:
        if caption not in names:
            raise unknown("caption column", caption, names, manifest.name)
    mask = [] if config.mask in (None, ALPHA) else [config.mask]
    if mask and mask[0] not in names:
        raise unknown("mask column", mask[0], names, manifest.name)
    where = "status = 'kept'"
    if config.split is not None:
        if "split" not in names:
            raise UserError(
                f"{manifest.name} has no column 'split'",
                "make a slice with `uhr manifest slice --split train=0.9,val=0.1`",
            )
        where += " AND split = '{}'".format(config.split.replace("'", "''"))
    columns = ["sample_id", "uri", "box", "content_hash", "license", *mask]
    columns += [] if config.pixels else config.captions
    columns += [name for name in ("width", "height", "source_name") if name in names]
    rows = manifest.table(list(dict.fromkeys(columns)), where=where)
    if not rows.num_rows:
        see = f"see `{command('manifest', 'show', manifest.name)}`"
        if config.split is None:
            raise UserError(f"{manifest.name} has no kept row", see)
        splits = manifest.table(["split"], where="status = 'kept' AND split IS NOT NULL")["split"].unique()
        known = ", ".join(sorted(splits.to_pylist()))
        fix = f"its splits are {known}: --set split=NAME" if known else see
        raise UserError(f"{manifest.name} has no kept row of split '{config.split}'", fix)
    return _with_captions(rows, config)


def _with_captions(rows: pa.Table, config: EncodeConfig) -> pa.Table:
    """The rows with the captions that are encoded, which the configuration may complete."""
    if config.pixels or (config.missing is None and config.trigger is None):
        return rows
    columns = (rows[name].to_pylist() for name in config.captions)
    found = [config.captions_of(row) for row in zip(*columns, strict=True)]
    for name, texts in zip(config.captions, zip(*found, strict=True), strict=True):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(texts, pa.string()))
    return rows
