"""Lists of images that must not be in a set: exact hashes of files, and perceptual hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from uhr.base.errors import UserError
from uhr.base.paths import text_path
from uhr.manifests.info import FILE as MANIFEST
from uhr.manifests.info import read_info
from uhr.manifests.selection.tombstones import all_tombstones, tombstones_of
from uhr.manifests.sources import tables

DIGITS = {"sha256": 64, "md5": 32, "phash": 16}
"""The kinds of hash, and how many hexadecimal digits each has."""

_NAMES = {"content_hash": "sha256", "perceptual_hash": "phash"}
_ANY = ("hash", tables.LINE)
"""Columns whose values may be of any kind, which their lengths say."""

TOMBSTONE = "tombstone"
"""The kind of hash in the redactions of a manifest, which `uhr manifest forget` wrote."""

_HEX = frozenset("0123456789abcdef")


class Blocklist:
    """The hashes of some files. `hashes` has them by kind, each with the name of its file."""

    def __init__(self, hashes: Mapping[str, Mapping[str, str]]) -> None:
        self.hashes = hashes
        self._perceptual = list(hashes["phash"])
        self._values = np.array([int(text, 16) for text in self._perceptual], np.uint64)

    @classmethod
    def read(cls, files: Sequence[str]) -> Blocklist:
        """Read lists: a text with one hash a line (`#` begins a comment), or a table with the columns sha256,
        md5 or phash, or `hash`, whose kind its length says; or the `manifest.json` of a manifest from which
        samples were forgotten.

        Raises UserError if a file cannot be read, has no such column, or has a value that is no such hash.
        """
        found: dict[str, dict[str, str]] = {kind: {} for kind in (*DIGITS, TOMBSTONE)}
        for file in files:
            path = text_path(file)
            if path.name == MANIFEST:
                redactions = [read_info(path.parent).redactions]
                found[TOMBSTONE] |= dict.fromkeys(sorted(all_tombstones(redactions)), str(path))
                continue
            table = tables.read_table(path)
            columns = {
                name: _NAMES.get(name.casefold(), name.casefold())
                for name in table.schema.names
                if _NAMES.get(name.casefold(), name.casefold()) in (*DIGITS, *_ANY)
            }
            if not columns:
                what = f"the list {file} has no column sha256, md5, phash or hash"
                raise UserError(f"{what} ({', '.join(table.schema.names)})", "rename its column")
            for name, kind in columns.items():
                for number, value in enumerate(table[name].to_pylist(), 1):
                    text = _digits(value)
                    if text:
                        found[_kind(text, kind, f"{file}: row {number}")].setdefault(text, path.name)
        if files and not any(found.values()):
            raise UserError(f"the blocklist {', '.join(files)} has no hash", "name a list with hashes")
        return cls(found)

    def match(
        self, data: Callable[[], bytes], sha256: str, phash: Callable[[], int], radius: int
    ) -> str | None:
        """Say which entry an image is, exactly or within `radius` bits; None if it is none.

        data, phash: return the bytes of its file and its perceptual hash; called only if a list needs them.
        """
        for kind, digest in (("sha256", lambda: sha256), ("md5", lambda: _md5(data()))):
            listed = self.hashes[kind]
            if listed and (found := listed.get(digest())) is not None:
                return f"{found}: {kind}"
        listed = self.hashes[TOMBSTONE]
        for each in tombstones_of({"content_hash": sha256}) if listed else ():
            if each in listed:
                return f"{listed[each]}: forgotten"
        if not len(self._values):
            return None
        apart = np.bitwise_count(self._values ^ np.uint64(phash()))
        nearest = int(apart.argmin())
        if apart[nearest] > radius:
            return None
        listed_as = self._perceptual[nearest]
        return f"{self.hashes['phash'][listed_as]}: phash {listed_as}, {apart[nearest]} bits apart"


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _digits(value: Any) -> str:
    return "" if value is None else str(value).partition("#")[0].strip().lower()


def _kind(text: str, kind: str, where: str) -> str:
    """The kind of a hash, which its column or its length says. Raises UserError if it is none."""
    by_length = {digits: name for name, digits in DIGITS.items()}
    found = by_length.get(len(text)) if _HEX.issuperset(text) else None
    if found is None or (kind in DIGITS and found != kind):
        wanted = f"{DIGITS[kind]} digits of {kind}" if kind in DIGITS else "a sha256, md5 or phash"
        raise UserError(f"{where} is '{text[:70]}'", f"write {wanted}, in hexadecimal")
    return found
