"""An encode whose OUT is a prefix of an object store (`s3://bucket/prefix`).

It works in a folder of the user's cache, as an encode into a folder does. Its units are mirrored below
`OUT/units`, so that another machine can go on with it, and workers of other machines put theirs there. At the
end each part is written here, put there and removed here, so that the disk holds the units and one part;
`encoded.json` is put last, on the condition that there is none. A lease lets one run at a time work on it.

The objects in OUT show its state, as in a folder: `units/` and perhaps parts; `encoded.json` and `units/`
(only clearing up is left); `encoded.json` without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from uhr.base.errors import UserError
from uhr.base.files import json_bytes
from uhr.base.locks import lease
from uhr.base.run_folder import RunFolder
from uhr.base.store import ObjectStore
from uhr.manifests.info import Part, read_info
from uhr.manifests.places import check_outside
from uhr.models.zoo import ModelName
from uhr.runtime.mirror import Mirror
from uhr.runtime.pool import Pool
from uhr.runtime.units import PlanMismatch
from uhr.train.encode.commit import NothingEncoded
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import EncodeJob
from uhr.train.encode.stored.encoded import (
    FILE,
    LATENTS,
    LAYOUT,
    MANIFEST,
    PIXELS,
    SAMPLES,
    TEXTS,
    UNITS,
    EncodedInfo,
)


def encode_in_store(
    manifest: Path | str,
    model: str | ModelName,
    address: str,
    config: EncodeConfig,
    device: str = "auto",
    workers: int | Pool = 0,
    reuse: Sequence[Path] = (),
    seconds: float = lease.SECONDS,
) -> tuple[EncodedInfo, bool]:
    """Encode into the prefix `address`, or resume, as `run.encode` does into a folder.

    seconds: how long the lease lasts without being renewed. Raises UserError as `run.encode` does, and if
    another run holds the lease.
    """
    store, folder = ObjectStore(address), work_folder(address)
    job = EncodeJob.of(manifest, model, folder, config, lambda: _claim(store), device, workers, reuse)
    if store.exists(FILE) and not _below(store, UNITS):
        return job.existing(address), True
    folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder, LAYOUT).lock(where=address), lease.held(store, seconds, work=folder):
        was_finished = store.exists(FILE)
        if not was_finished:
            _work(job, store, folder)
        info = job.existing(address)
        _clear(store, info)
        shutil.rmtree(folder)
    return info, was_finished


def work_folder(address: str) -> Path:
    """Return the folder of this machine in which an encode into a prefix works."""
    return ObjectStore(address).work_folder() / "encode"


def _claim(store: ObjectStore) -> None:
    """Raise UserError if a prefix contains anything but encoded data or a run, or cannot be written."""
    tops = {name.partition("/")[0] for name in store.names()} - {lease.NAME}
    # another run that begins may be probing the prefix, under a hidden name
    LAYOUT.check_names(store.text, [name for name in tops if not name.startswith(".")])
    check_outside(store.text)
    store.probe()


def _work(job: EncodeJob, store: ObjectStore, folder: Path) -> None:
    for kind in (TEXTS, LATENTS):
        Mirror.begin(folder / UNITS / kind, f"{store.text}/{UNITS}/{kind}")

    def put(file: Path, part: Part) -> Part:
        # with its hash, so that a part of a commit that was killed is known, and never another one
        name = f"{part.path.removesuffix('.parquet')}-{part.sha256[:16]}.parquet"
        if not store.exists(name):
            store.upload(file, name)
        file.unlink()
        return part.model_copy(update={"path": name})

    try:
        info = job.encode(put)
    except NothingEncoded:
        _remove(store, _below(store, UNITS))
        raise
    except PlanMismatch:
        what = f"{store.text} contains an unfinished encode of another manifest, model or configuration"
        raise UserError(what, "repeat its command, or name another prefix with --out") from None
    manifest = read_info(folder)
    samples = [put(folder / part.path, part) for part in manifest.parts]
    manifest = manifest.model_copy(update={"parts": samples})
    info = info.model_copy(update={"samples": samples})
    store.write(MANIFEST, json_bytes(manifest.model_dump(mode="json")))
    if not store.create(FILE, json_bytes(info.model_dump(mode="json"))):
        what = f"another command has written encoded data to {store.text} meanwhile"
        raise UserError(what, "name another prefix with --out")


def _clear(store: ObjectStore, info: EncodedInfo) -> None:
    """Remove parts that a killed commit has left, then the units: without them the run counts as finished."""
    known = {part.path for part in info.parts}
    _remove(store, _below(store, LATENTS, TEXTS, PIXELS, SAMPLES) - known)
    _remove(store, _below(store, UNITS))


def _below(store: ObjectStore, *folders: str) -> set[str]:
    return {name for name in store.names() if name.partition("/")[0] in folders}


def _remove(store: ObjectStore, names: set[str]) -> None:
    for name in sorted(names):
        store.delete(name)
