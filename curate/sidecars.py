"""Sidecars: caption and metadata files next to an image. Their values are added to the image's row.

`uhr.manifests.sources.pairing` decides which files are sidecars of which image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from uhr.curate.faults import CHANGED, TRANSIENT
from uhr.manifests.sources.blobs import Blob
from uhr.manifests.sources.tables import decoded
from uhr.pixels.types import PixelFault

FIELDS = ("caption", "source_url", "author", "license")

LONGEST_BYTES = 16 * 2**20
"""Largest sidecar that is read."""

MOST_DIGITS = 1000
"""Longest integer that is read; Python itself rejects more than 4300 digits."""

DEFAULT_KEYS: dict[str, list[str]] = {
    "caption": ["caption", "text", "TEXT", "prompt", "en_caption"],
    "source_url": ["source_url", "image_url", "url", "URL"],
    "author": ["author", "photographer"],
    "license": ["license", "licence"],
}
"""The JSON keys that fill each column: the first that is found. All other keys go to `source_meta`."""


class Sidecar(NamedTuple):
    """The values that the sidecars of one image add to its row, and their fault (None if they are valid)."""

    values: dict[str, str]
    fault: str | None


def read_sidecars(files: Sequence[tuple[str, Blob]], keys: Mapping[str, Sequence[str]]) -> Sidecar:
    """Read the sidecars of one image, given as name and bytes. Later files override earlier ones, and a
    caption file overrides a caption in JSON.

    A broken sidecar does not fail its image: the fault is written to `source_meta` under `sidecar_fault`, and
    is returned. Raises PixelFault("changed") if a sidecar is not the listed version any more, or changes
    while it is read, and PixelFault("unavailable") if its store does not give it now.
    """
    caption: str | None = None
    tree: dict[str, Any] = {}
    faults: list[str] = []
    for name, blob in files:
        try:
            text = _read(blob)
            if name.lower().endswith((".txt", ".caption")):
                caption = text.strip() or caption
            else:
                read, invalid = _object(text)
                tree.update(read)
                faults += [f"{_clean(name)}: {message}" for message in invalid]
        except PixelFault as fault:
            if fault.kind == CHANGED or fault.kind in TRANSIENT:
                raise PixelFault(fault.kind, f"{_clean(name)}: {fault.message}") from None
            faults.append(f"{_clean(name)}: {fault.message}")
        except (ValueError, RecursionError) as error:
            faults.append(f"{_clean(name)}: {_message(error)}")
    values = {} if caption is None else {"caption": _clean(caption)}
    for column in FIELDS:
        for key in keys.get(column, ()):
            value = tree.get(key)
            if column in values:
                break
            if _is_scalar(value):
                values[column] = _clean(str(value).strip())
                del tree[key]
            elif column == "caption" and isinstance(value, list) and value and _is_scalar(value[0]):
                # the others stay in source_meta
                values[column] = _clean(str(value[0]).strip())
    fault = "; ".join(faults) or None
    if fault:
        tree["sidecar_fault"] = fault
    if tree:
        values["source_meta"] = _clean(json.dumps(tree, ensure_ascii=False, sort_keys=True))
    return Sidecar(values, fault)


def _read(blob: Blob) -> str:
    data = blob.head(LONGEST_BYTES + 1)
    if len(data) > LONGEST_BYTES:
        raise ValueError(f"longer than {LONGEST_BYTES // 2**20} MiB")
    return decoded(data)


def _object(text: str) -> tuple[dict[str, Any], list[str]]:
    """Parse a JSON object. Return it, and a message for each number that became null because other readers of
    JSON reject it: NaN, infinity, and very long ones."""
    invalid: list[str] = []

    def reject(number: str) -> None:
        invalid.append(f"{number if len(number) <= 20 else f'{number[:20]}...'} is not a JSON number")

    def whole(digits: str) -> int | None:
        return int(digits) if len(digits) <= MOST_DIGITS else reject(digits)

    def real(digits: str) -> float | None:
        value = float(digits)  # 1e999 reads as infinity
        return value if math.isfinite(value) else reject(digits)

    try:
        tree = json.loads(text, parse_constant=reject, parse_float=real, parse_int=whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(tree, dict):
        raise ValueError(f"holds a JSON {type(tree).__name__}, not an object")  # noqa: TRY004 - one kind for all
    return tree, invalid


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and bool(str(value).strip())


def _message(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _clean(text: str) -> str:
    """Replace lone surrogates, which come from JSON escapes and file names and cannot be encoded as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
