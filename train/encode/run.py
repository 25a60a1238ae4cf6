"""`uhr train encode`: encodes a manifest's kept rows to latents and text embeddings, in units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from uhr.base.config import fingerprint
from uhr.base.console import progress
from uhr.base.errors import UserError
from uhr.base.run_folder import RunFolder
from uhr.manifests.manifest import Manifest
from uhr.models.zoo import ModelName, pick_device
from uhr.runtime.pool import InlineRunner, Pool, visible_gpus
from uhr.runtime.threads import threads_given
from uhr.runtime.units import Limits, Runner, UnitPlan, run_units
from uhr.train.encode.commit import NothingEncoded, Plans, commit
from uhr.train.encode.config import ENCODE_VERSION, EncodeConfig
from uhr.train.encode.request import EncodeRequest, identity_of, resolved, select, sizes
from uhr.train.encode.stored.encoded import FILE, LATENTS, LAYOUT, TEXTS, UNITS, EncodedInfo, read_encoded
from uhr.train.encode.stored.parts import Put, keep
from uhr.train.encode.work.images import ImageTask, ImageWork
from uhr.train.encode.work.items import caption_items, image_items
from uhr.train.encode.work.memory import text_device
from uhr.train.encode.work.texts import TEXT_ITEMS, TextWork

IMAGES_PER_UNIT, TEXTS_PER_UNIT = 16, 64
LIMITS = Limits(seconds=600, memory=64 << 30)
"""Limits of worker processes: a 4K image in a float32 VAE on a CPU takes minutes and tens of gigabytes."""


def encode(
    manifest: Path | str,
    model: str | ModelName,
    out: Path,
    config: EncodeConfig,
    device: str = "auto",
    workers: int | Pool = 0,
    reuse: Sequence[Path] = (),
) -> tuple[EncodedInfo, bool]:
    """Encode into `out`. Returns its description, and whether it was finished before.

    manifest: a folder, or an address in an object store, as `Manifest.open` takes them.
    workers: the processes for the images (on GPUs, also for the captions), or their number on this machine; 0
    is this process. Text encoders and VAE are never in memory together. reuse: encoded folders from which
    rows with the same key are copied. Raises UserError if `out` contains something else, if another run works
    in it, or if no row can be encoded.
    """
    folder = RunFolder(out, LAYOUT)
    job = EncodeJob.of(manifest, model, out, config, folder.claim, device, workers, reuse)
    if (out / FILE).is_file() and not (out / UNITS).exists():
        return job.existing(out), True
    with folder.lock(UNITS):
        if (out / FILE).is_file():
            existing = job.existing(out)
            folder.clear(UNITS)
            return existing, True
        try:
            info = job.encode()
        except NothingEncoded:
            folder.clear(UNITS)
            raise
        folder.clear(UNITS)
        return info, False


def pool_of(engine: str, workers: int | None, address: str | None, device: str) -> Pool:
    """The processes of a command's options.

    By default the work is done in this process, but by a worker per GPU if there are several, and by as many
    as a cluster can run. Raises UserError for options that do not go together.
    """
    pool = Pool.of(engine, workers, address)
    if workers is None and address is None and (device != "cuda" or len(visible_gpus()) < 2):
        return Pool("local", 0)
    return pool


def device_of(device: str, address: str | None) -> str:
    """The device of the workers: what "auto" is on this machine, or the CPU on a cluster.

    Raises UserError for a GPU that is required here and not available.
    """
    if address is not None:
        return "cpu" if device == "auto" else device
    return str(pick_device(device))


def _request(
    manifest: Path | str,
    model: str | ModelName,
    out: Path,
    config: EncodeConfig,
    claim: Callable[[], None],
) -> EncodeRequest:
    found = Manifest.open(manifest)
    opened = ModelName.of(model).open(components=("vae",))
    opened = opened.fetched(("vae", *(() if config.pixels else opened.spec.text_components)))
    config = resolved(config, found, opened)
    buckets = sizes(config, opened)
    rows = select(found, config)
    claim()  # before the weights are hashed, which takes a while
    identity = identity_of(opened, config.pixels)
    return EncodeRequest(out, found, opened, identity, config, buckets, rows)


def _check_same(out: Path | str, existing: EncodedInfo, request: EncodeRequest) -> None:
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
        kind = "folder" if isinstance(out, Path) else "prefix"
        raise UserError(what, f"name another {kind} with --out")


class EncodeJob:
    """The units of a request, in its folder `out`."""

    def __init__(self, request: EncodeRequest, device: str, pool: Pool, reuse: tuple[Path, ...]) -> None:
        self.request, self.device, self.pool, self.reuse = request, device, pool, reuse

    @classmethod
    def of(
        cls,
        manifest: Path | str,
        model: str | ModelName,
        out: Path,
        config: EncodeConfig,
        claim: Callable[[], None],
        device: str,
        workers: int | Pool,
        reuse: Sequence[Path],
    ) -> EncodeJob:
        """The job of what `encode` takes. `claim` is called when the request is known to be valid, and before
        anything is computed: it raises UserError if the place of the result cannot be used.
        """
        pool = workers if isinstance(workers, Pool) else Pool("local", workers)
        device = device_of(device, pool.address)
        request = _request(manifest, model, out, config, claim)
        return cls(request, device, pool, tuple(path.absolute() for path in reuse))

    def existing(self, out: Path | str) -> EncodedInfo:
        """The encoded data in a folder, or at an address. Raises UserError if they are of another request."""
        existing = read_encoded(out)
        _check_same(out, existing, self.request)
        return existing

    def encode(self, put: Put = keep) -> EncodedInfo:
        """Do the units that are not done, and commit; `put` as for `commit`. The units are left."""
        for path in self.reuse:
            read_encoded(path)
        texts = None if self.request.config.pixels else self.texts()
        return commit(self.request, Plans(texts, self.images(texts)), put)

    def _runner(self) -> Runner:
        # one thread by default, so that the last bits of latents do not depend on the number of cores or
        # workers
        return self.pool.runner(LIMITS, threads_given() or 1, self.device)

    def texts(self) -> UnitPlan:
        """Encode the captions."""
        request = self.request
        components = request.model.spec.text_components
        encoders = fingerprint([request.identity.hashes[name] for name in components])
        items = caption_items(request.rows, request.config, encoders, request.identity.text_lengths)
        # a caption's key is a hash of how it is encoded, so the items need no other fingerprint
        plan = UnitPlan.create(request.out / UNITS / TEXTS, items, TEXTS_PER_UNIT, "captions")
        device = self.device
        if self.pool.address is None:
            device = text_device(request.model, request.config.text_dtype, device)
        work = TextWork(request.model, request.config, device, self.reuse)
        # on CPUs one process: every worker would hold the text encoders in memory
        runner = self._runner() if device == "cuda" else InlineRunner()
        _run("encode captions", "captions", plan, work, runner)
        return plan

    def images(self, texts: UnitPlan | None) -> UnitPlan:
        """Encode the images."""
        request = self.request
        vae_hash = request.identity.hashes.get("vae", "")
        mark = fingerprint([ENCODE_VERSION, request.config.model_dump(mode="json"), vae_hash])
        captions = TEXT_ITEMS.empty_table()
        if texts is not None:
            captions = pa.concat_tables([texts.items(unit) for unit in range(texts.count)])
        items = image_items(request.rows, request.config, captions, request.buckets)
        plan = UnitPlan.create(request.out / UNITS / LATENTS, items, IMAGES_PER_UNIT, mark, "uri")
        task = ImageTask(
            model=request.model,
            config=request.config,
            buckets=request.buckets,
            factor=request.factor,
            vae_hash=vae_hash,
            source=request.manifest.source,
            device=self.device,
            reuse=self.reuse,
        )
        _run("encode images", "images", plan, ImageWork(task), self._runner())
        return plan


def _run(description: str, unit: str, plan: UnitPlan, work: TextWork | ImageWork, runner: Runner) -> None:
    try:
        with progress(description, plan.rows, unit) as advance:
            # the first unit takes the longest: what computes it is loaded in it
            advance(0, "loading")
            advance(0, "")
            run_units(plan, work, runner, advance)
    finally:
        work.close()
