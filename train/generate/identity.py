"""What a set is a set of: written into OUT before anything is painted, compared by every later run.

It names neither engine nor the number of workers, of which an image does not depend, nor the machine, of
which no more than last bits do: another GPU or another kind of CPU may round otherwise.
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
"""Parts of a request that say where it is done, not what; of the device its kind is compared."""
SCHEMA_VERSION = 1


class SetRequest(Config):
    """`request.json`.

    `request` leaves nothing open that another machine or a later day would fill in otherwise (`settled`).
    `computes` is what paints, "cpu" or "cuda", and `threads` how many threads each worker has on a CPU: a sum
    is cut among them, which moves its last bit. They are those of the run that began the set.

    `weights` holds the hashes of each component that was on the disk before the set was begun (a hub's model
    is named by its revision); `items` the hash of each of the items' fields, as they were asked for, before
    any prompt was rewritten; `refine` the model that rewrites (None: the server's only one) and the hash of
    what it is told.
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
        """64 hex digits: the same for the same images, on machines of the same kind."""
        return fingerprint(self.model_dump(mode="json", exclude={"uhr": True, "request": PLACE}))


def settled(request: Request, setup: Setup) -> Request:
    """The request with a hub's model at the commit that was found, its device, and its dtype."""
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
    """Of a settled request whose items are checked. `images` are the versions of the images that were opened
    for that, by path. Hashes weights that nothing has hashed yet.
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


def take(store: Store, asked: SetRequest, fix: str) -> SetRequest:
    """Make OUT that of this request, and return the request, with the threads of the run that began the set;
    a UserError that says what differs where OUT is another's already."""
    data = store.read(REQUEST)
    if data is None:
        store.write(REQUEST, (asked.model_dump_json(indent=2) + "\n").encode())
        return asked
    # as a tree: of a set of other values, whatever they are, is said which they are
    there = versioned_tree(data, store.place(REQUEST), SCHEMA_VERSION, f"remove it, or {fix}")
    begun = asked.model_copy(update={"threads": there.get("threads")})
    differs = list(_differences(there, json.loads(begun.model_dump_json())))
    if differs:
        raise UserError(f"{store.text} holds another set: other {', '.join(differs)}", fix)
    return begun


def kind_of(device: str) -> str:
    """Of "cuda:1" it is "cuda"."""
    return device.partition(":")[0]


def _hashes(items: Sequence[Item], images: Mapping[Path, str]) -> dict[str, str]:
    """Of each field, of all items in their order. Another image under the same name is another one."""
    trees = [item.model_dump(mode="json") for item in items]
    for item, tree in zip(items, trees, strict=True):
        if item.image is not None:
            version = images.get(item.image) or _version(item.image)
            size, _, time = version.partition("-")
            tree["image"] = [tree["image"], int(size), int(time)]
    return {name: fingerprint([tree[name] for tree in trees]) for name in Item.model_fields}


def _version(image: Path) -> str:
    """Of a file that could not be opened: a link that leads nowhere has none, and is an item that failed."""
    try:
        return file_version(user_path(image).stat())
    except OSError:
        return "0-0"


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> Iterable[str]:
    """Names of what is not the same, those of the request and of the items by themselves."""
    names = {
        "items": "prompts or images",
        "count": "number of prompts",
        "computes": "kind of device",
        "prompt": "prompts",
        "name": "names",
        "seed": "seeds",
        "image": "pictures",
    }
    for name, value in asked.items():
        before = there.get(name)
        if before == value or name == "uhr":
            continue
        if name == "request" and isinstance(before, dict):
            yield from (key for key in value if key not in PLACE and before.get(key) != value[key])
        elif name == "items" and isinstance(before, dict):
            # of another number of items nothing is the same
            if there.get("count") == asked["count"]:
                yield from (names.get(key, key) for key in value if before.get(key) != value[key])
        else:
            yield names.get(name, name)
