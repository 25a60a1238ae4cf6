"""`uhr train encode`: encodes a manifest's kept rows to latents and text embeddings, in units."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from uhr.base.config import fingerprint
from uhr.base.console import command, progress
from uhr.base.errors import UserError, unknown
from uhr.base.run_folder import RunFolder
from uhr.manifests.manifest import Manifest
from uhr.models.zoo import Model, ModelName
from uhr.runtime.pool import InlineRunner, Pool
from uhr.runtime.threads import threads_given
from uhr.runtime.units import Limits, Runner, UnitPlan, run_units
from uhr.train.encode.buckets import buckets
from uhr.train.encode.commit import EncodeRequest, commit
from uhr.train.encode.config import ENCODE_VERSION, EncodeConfig
from uhr.train.encode.encoded import (
    FILE,
    LATENTS,
    LAYOUT,
    TEXTS,
    UNITS,
    EncodedInfo,
    ModelInfo,
    read_encoded,
)
from uhr.train.encode.hashing import component_hash
from uhr.train.encode.items import caption_items, image_items
from uhr.train.encode.work import ImageWork, TextWork

IMAGES_PER_UNIT, TEXTS_PER_UNIT = 16, 64
LIMITS = Limits(seconds=600, memory=64 << 30)
"""Limits of worker processes: a 4K image in a float32 VAE on a CPU takes minutes and tens of gigabytes."""


def encode(
    manifest: Path,
    model: str | ModelName,
    out: Path,
    config: EncodeConfig,
    device: str = "auto",
    workers: int = 0,
) -> tuple[EncodedInfo, bool]:
    """Encode into `out`. Returns its description, and whether it was finished before.

    workers: number of processes for the images; 0 is this process. Text encoders and VAE are never in memory
    together. Raises UserError if `out` contains something else, if another run works in it, or if no row can
    be encoded.
    """
    found = Manifest.open(manifest)
    opened = ModelName.of(model).open(components=("vae",))
    opened = opened.fetched(("vae", *opened.spec.text_components))
    folder = RunFolder(out, LAYOUT)
    request = _request(found, opened, folder, config)
    if (out / FILE).is_file() and not (out / UNITS).exists():
        return _existing(request), True
    with folder.lock(UNITS):
        if (out / FILE).is_file():
            existing = _existing(request)
            folder.clear(UNITS)
            return existing, True
        texts = _run_texts(request, device)
        images = _run_images(request, texts, device, workers)
        return commit(request, texts, images), False


def _existing(request: EncodeRequest) -> EncodedInfo:
    """The encoded data in the folder. Raises UserError if they belong to another request."""
    existing = read_encoded(request.out)
    _check_same(request.out, existing, request)
    return existing


def _request(manifest: Manifest, model: Model, folder: RunFolder, config: EncodeConfig) -> EncodeRequest:
    resolution = config.resolution or model.spec.native_size
    split = config.split or ("train" if "split" in manifest.schema.names else None)
    config = config.model_copy(update={"resolution": resolution, "split": split})
    rows = select(manifest, config)
    folder.claim()  # before the weights are hashed, which takes a while
    identity = ModelInfo(
        path=model.source.text if model.backbone is None else str(model.backbone),
        base=None if model.backbone is None else model.source.text,
        spec=model.spec.name,
        family=model.spec.family,
        text_lengths=dict(model.spec.text_lengths),
        hashes={name: component_hash(model, name) for name in ("vae", *model.spec.text_components)},
    )
    sizes = buckets(resolution, config.aspects, model.spec.pixel_multiple)
    return EncodeRequest(folder.path, manifest, model, identity, config, sizes, rows)


def select(manifest: Manifest, config: EncodeConfig) -> pa.Table:
    """The kept rows of the split to encode, in the manifest's order; `config` has no None values."""
    names = manifest.schema.names
    if config.caption not in names:
        raise unknown("caption column", config.caption, names, str(manifest.path))
    where = "status = 'kept'"
    if config.split is not None:
        if "split" not in names:
            raise UserError(
                f"{manifest.path} has no column 'split'",
                "make a slice with `uhr manifest slice --split train=0.9,val=0.1`",
            )
        where += " AND split = '{}'".format(config.split.replace("'", "''"))
    columns = ["sample_id", "uri", "box", "content_hash", "license", config.caption]
    columns += [name for name in ("width", "height") if name in names]
    rows = manifest.table(list(dict.fromkeys(columns)), where=where)
    if not rows.num_rows:
        of = f" of split '{config.split}'" if config.split is not None else ""
        raise UserError(
            f"{manifest.path} has no kept row{of}", f"see `{command('manifest', 'show', manifest.path)}`"
        )
    return rows


def _check_same(out: Path, existing: EncodedInfo, request: EncodeRequest) -> None:
    pairs = {
        "manifest": (existing.manifest.id, request.manifest.id),
        "model": (existing.model.hashes, request.identity.hashes),
        "spec": (existing.model.spec, request.identity.spec),
    }
    for name in EncodeConfig.model_fields:
        pairs[name] = (getattr(existing.config, name), getattr(request.config, name))
    differs = [name for name, (one, two) in pairs.items() if one != two]
    if differs:
        what = f"{out} already contains encoded data of another {', another '.join(differs)}"
        raise UserError(what, "name another folder with --out")


def _run_texts(request: EncodeRequest, device: str) -> UnitPlan:
    encoders = fingerprint([request.identity.hashes[name] for name in request.model.spec.text_components])
    items = caption_items(
        request.rows[request.config.caption], request.config, encoders, request.identity.text_lengths
    )
    # a caption's key is a hash of how it is encoded, so the items need no other fingerprint
    plan = UnitPlan.create(request.out / UNITS / TEXTS, items, TEXTS_PER_UNIT, "captions")
    work = TextWork(request.model, request.config, device)
    _run("encode captions", "captions", plan, work, InlineRunner())
    return plan


def _run_images(request: EncodeRequest, texts: UnitPlan, device: str, workers: int) -> UnitPlan:
    vae_hash = request.identity.hashes["vae"]
    mark = fingerprint([ENCODE_VERSION, request.config.model_dump(mode="json"), vae_hash])
    captions = pa.concat_tables([texts.items(unit) for unit in range(texts.count)])
    items = image_items(request.rows, request.config.caption, captions, request.buckets)
    plan = UnitPlan.create(request.out / UNITS / LATENTS, items, IMAGES_PER_UNIT, mark)
    work = ImageWork(request.model, request.config, request.buckets, vae_hash, request.manifest.root, device)
    # one thread by default, so that the last bits of latents do not depend on the number of cores or workers
    runner = Pool("local", workers).runner(LIMITS, threads_given() or 1)
    _run("encode images", "images", plan, work, runner)
    return plan


def _run(description: str, unit: str, plan: UnitPlan, work: TextWork | ImageWork, runner: Runner) -> None:
    try:
        with progress(description, plan.rows, unit) as advance:
            run_units(plan, work, runner, advance)
    finally:
        work.close()
