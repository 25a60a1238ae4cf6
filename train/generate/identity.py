"""The identity of a set: written into OUT before anything is generated, and compared by every later run.

It does not contain the runner and the number of workers, because images do not depend on them. It does not
contain the machine either: another GPU or kind of CPU may round differently, which changes only the last
bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uhr
from uhr.base.config import Config, fingerprint, versioned_tree
from uhr.base.errors import UserError
from uhr.base.files import file_version, user_path
from uhr.base.store import Store
from uhr.models.generate.request import Item, Request
from uhr.models.generate.setup import Setup, adapter_id, usual_dtype
from uhr.models.llm.refine import Refinement
from uhr.models.loading.hashes import config_hash, shown_hash
from uhr.train.generate.work import REQUEST

PLACE = {"device", "offload"}
"""Fields of a request that say where it runs, not what it generates. Only the kind of device is compared."""
SCHEMA_VERSION = 1


class SetRequest(Config):
    """The content of `request.json`.

    request: without values that depend on machine or date (`settled`).
    computes: "cpu" or "cuda". threads: on a CPU, the threads of each worker, on which the last bits of sums
        depend. Both are taken from the run that began the set.
    weights: hashes of each component that was on disk before the set was begun (a hub's model is named by its
        revision).
    items: the hash of each field of all items, before any prompt was rewritten.
    refine: the model that rewrites prompts (None: the server's only one), and the hash of its instruction.
    """

    schema_version: int
    uhr: str
    request: Request
    spec: str
    computes: str
    threads: int | None
    revision: str | None
    weights: dict[str, dict[str, str | None]]
    adapters: list[str]
    count: int
    items: dict[str, str]
    refine: dict[str, str | None] | None

    @property
    def id(self) -> str:
        """A hash (64 hex digits). Equal hashes mean the same images, on machines of the same kind."""
        return fingerprint(self.model_dump(mode="json", exclude={"uhr": True, "request": PLACE}))


def settled(request: Request, setup: Setup) -> Request:
    """Replace "auto" values and a hub model's branch by what they mean now: device, dtype and commit."""
    model = setup.model.source.exact
    device = setup.device if request.device == "auto" else request.device
    known = {
        "model" if request.base is None else "base": model,
        "device": device,
        "dtype": usual_dtype(device) if request.dtype == "auto" else request.dtype,
    }
    return request.model_copy(update=known)


def identify(
    request: Request,
    setup: Setup,
    threads: int,
    items: Sequence[Item],
    refinement: Refinement | None,
    images: Mapping[Path, str] | None = None,
) -> SetRequest:
    """The identity of a settled request whose items are checked.

    images: the versions of the images that the check has opened, by path. Weights without a known hash are
    hashed.
    """
    if setup.model.source.repository:
        weights = {
            name: {"sha256": shown_hash(path, name), "config": config_hash(path)}
            for name, path in setup.elsewhere.items()
        }
    else:
        weights = {
            name: {"sha256": each["sha256"], "config": each["config"]} for name, each in setup.weights.items()
        }
    refine = None if refinement is None else {"model": refinement.model, "told": fingerprint(refinement.text)}
    return SetRequest(
        schema_version=SCHEMA_VERSION,
        uhr=uhr.__version__,
        request=request,
        spec=setup.spec.name,
        computes=kind_of(request.device),
        threads=threads if kind_of(request.device) == "cpu" else None,
        revision=setup.model.revision,
        weights=weights,
        adapters=[adapter_id(each) for each in setup.adapters],
        count=len(items),
        items=_hashes(items, images or {}),
        refine=refine,
    )


def begin_or_resume(store: Store, requested: SetRequest, fix: str) -> SetRequest:
    """Write the request into OUT, or compare it with the one that is there.

    Returns the request, with the threads of the run that began the set. Raises UserError with what differs if
    OUT belongs to another request.
    """
    data = store.read(REQUEST)
    if data is None:
        store.write(REQUEST, (requested.model_dump_json(indent=2) + "\n").encode())
        return requested
    # not parsed: also for unknown values, the error lists what differs
    existing = versioned_tree(data, store.place(REQUEST), SCHEMA_VERSION, f"remove it, or {fix}")
    begun = requested.model_copy(update={"threads": existing.get("threads")})
    differs = list(_differences(existing, json.loads(begun.model_dump_json())))
    if differs:
        raise UserError(f"{store.text} contains another set: other {', '.join(differs)}", fix)
    return begun


def kind_of(device: str) -> str:
    """The kind of a device: "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def _hashes(items: Sequence[Item], images: Mapping[Path, str]) -> dict[str, str]:
    """Hash each field over all items in their order; images by path, size and time."""
    trees = [item.model_dump(mode="json") for item in items]
    for item, tree in zip(items, trees, strict=True):
        if item.image is not None:
            version = images.get(item.image) or _version(item.image)
            size, _, time = version.partition("-")
            tree["image"] = [tree["image"], int(size), int(time)]
    return {name: fingerprint([tree[name] for tree in trees]) for name in Item.model_fields}


def _version(image: Path) -> str:
    """The version of an image that could not be opened, such as a broken link, whose item then fails."""
    try:
        return file_version(user_path(image).stat())
    except OSError:
        return "0-0"


def _differences(existing: dict[str, Any], requested: dict[str, Any]) -> Iterable[str]:
    """Names of what differs, with the fields of the request and of the items."""
    names = {
        "items": "prompts or images",
        "count": "number of prompts",
        "computes": "kind of device",
        "prompt": "prompts",
        "name": "names",
        "seed": "seeds",
        "image": "images",
    }
    for name, value in requested.items():
        before = existing.get(name)
        if before == value or name == "uhr":
            continue
        if name == "request" and isinstance(before, dict):
            yield from (key for key in value if key not in PLACE and before.get(key) != value[key])
        elif name == "items" and isinstance(before, dict):
            # with another number of items, all hashes differ
            if existing.get("count") == requested["count"]:
                yield from (names.get(key, key) for key in value if before.get(key) != value[key])
        else:
            yield names.get(name, name)
