"""What a set is a set of: written into OUT before anything is painted, compared by every later run.

It names neither machine nor engine nor the number of workers: of those a picture does not depend.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import uhr
from uhr.base.config import Config, fingerprint
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.base.store import Store
from uhr.models.hashes import shown_hash
from uhr.models.refine import Refinement
from uhr.models.sampling.request import Item, Request
from uhr.models.sampling.setup import Setup
from uhr.train.generating.work import REQUEST

PLACE = {"device", "offload"}
"""Parts of a request that say where it is done, not what; each picture's record names its device."""
SCHEMA_VERSION = 1


class SetRequest(Config):
    """`request.json`.

    `weights` holds the SHA-256 of each component whose weights were on the disk before the set was begun (a
    hub's model is named by its revision); `items` the hash of every item as it was asked for, before any
    prompt was rewritten; `refine` the model that rewrites (None: the server's only one) and the hash of what
    it is told.
    """

    schema_version: int
    uhr: str
    request: Request
    revision: str | None
    weights: dict[str, str]
    adapters: list[str]
    count: int
    items: str
    refine: dict[str, str | None] | None

    @property
    def id(self) -> str:
        """64 hex digits: the same for the same pictures."""
        return fingerprint(self.model_dump(mode="json", exclude={"uhr": True, "request": PLACE}))


def identify(setup: Setup, items: Sequence[Item], refinement: Refinement | None) -> SetRequest:
    """Of a request whose items are checked. Hashes weights that nothing has hashed yet."""
    if setup.model.source.repository:
        here = {**setup.model.weights, **setup.request.weights}
        weights = {name: shown_hash(path, name) for name, path in here.items()}
    else:
        weights = {name: each["sha256"] for name, each in setup.weights.items()}
    refine = None if refinement is None else {"model": refinement.model, "told": fingerprint(refinement.text)}
    return SetRequest(
        schema_version=SCHEMA_VERSION,
        uhr=uhr.__version__,
        request=setup.request,
        revision=setup.model.revision,
        weights=weights,
        adapters=[each["sha256"] for each in setup.adapters],
        count=len(items),
        items=fingerprint([_item(item) for item in items]),
        refine=refine,
    )


def take(store: Store, asked: SetRequest, fix: str) -> None:
    """Make OUT that of this request; a UserError that says what differs where it is another's already."""
    data = store.read(REQUEST)
    if data is None:
        store.write(REQUEST, (asked.model_dump_json(indent=2) + "\n").encode())
        return
    try:
        there = json.loads(data)
    except ValueError:
        raise UserError(f"{store.place(REQUEST)} is damaged", f"remove it, or {fix}") from None
    differs = list(_differences(there, json.loads(asked.model_dump_json())))
    if differs:
        raise UserError(f"{store.text} holds another set: other {', '.join(differs)}", fix)


def _item(item: Item) -> dict[str, Any]:
    """An item and the state of its picture: another one under the same name is another item."""
    tree = item.model_dump(mode="json")
    if item.image is not None:
        stat = user_path(item.image).stat()
        tree["image_state"] = [stat.st_size, stat.st_mtime_ns]
    return tree


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> Iterable[str]:
    """Names of what is not the same, those of the request by themselves."""
    names = {"items": "prompts or pictures", "count": "number of prompts", "uhr": ""}
    for name, value in asked.items():
        before = there.get(name)
        if before == value or name == "uhr":
            continue
        if name == "request" and isinstance(before, dict):
            yield from (key for key in value if key not in PLACE and before.get(key) != value[key])
        else:
            yield names.get(name, name)
