"""Licences as SPDX expressions, and a policy that says which of them are accepted."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

import pydantic
from pydantic import Field

from uhr.base.config import Config, build, read_yaml

Choice = Literal["reject", "keep"]

_CC = {
    "attribution": "by",
    "noncommercial": "nc",
    "non-commercial": "nc",
    "noderivatives": "nd",
    "noderivs": "nd",
    "no-derivatives": "nd",
    "no-derivs": "nd",
    "sharealike": "sa",
    "share-alike": "sa",
}
"""Words of the names of Creative Commons licences, and the letters for them."""

_CC_URL = re.compile(
    r"creativecommons\.org/(?:licenses/([a-z-]+)/([0-9.]+)(?:/(?!deed|legalcode)([a-z-]+))?"
    r"|publicdomain/(zero|mark)/1\.0)"
)
"""Licence, version and the country of a port, or a dedication to the public domain."""

_CC_NAME = re.compile(
    r"(?:cc|creative commons)[ -]((?:by|nc|nd|sa)(?:[ -](?:nc|nd|sa))*)[ -](?:v\.? ?)?([0-9]\.[0-9])"
    r"(?:[ -](?:international|unported|generic))?(?: licen[cs]e)?"
)
_CC0 = ("cc0", "cc-0", "cc 0", "cc zero", "cc-zero", "cc0 1.0", "cc0 1.0 universal", "creative commons zero")
_PDM = ("public domain mark", "public domain mark 1.0", "pdm", "pdm 1.0", "pdm-1.0")


def spdx(text: str, aliases: dict[str, str] | None = None) -> str | None:
    """Return a licence as an SPDX expression in its canonical form; None if it is none.

    Understands SPDX identifiers and expressions in any case, the URLs and names of Creative Commons licences
    with their version, and `aliases`: texts or URLs, compared without case, scheme and the slash at the end.
    """
    plain = _plain(text)
    named = {_plain(alias): licence for alias, licence in (aliases or {}).items()}
    if plain in named:
        return named[plain]
    if (match := _CC_URL.search(plain)) is not None:
        return _of_url(*match.groups())
    spoken = re.sub(r"[(), ]+", " ", plain).strip()
    if spoken.removesuffix(" licence").removesuffix(" license") in _CC0:
        return "CC0-1.0"
    if plain in _PDM:
        return "CC-PDM-1.0"
    if (match := _CC_NAME.fullmatch(_letters(spoken))) is not None:
        return _canonical(f"CC-{match[1].replace(' ', '-')}-{match[2]}")
    return _canonical(text.strip())


def _plain(text: str) -> str:
    plain = re.sub(r"\s+", " ", text).strip().casefold()
    return re.sub(r"^https?://(www\.)?", "", plain).rstrip("/")


def _letters(text: str) -> str:
    """The words of a Creative Commons licence as its letters: `attribution sharealike` is `by-sa`."""
    words = text
    for word, letters in _CC.items():
        words = words.replace(word, letters)
    return re.sub(r"\s+", " ", words).strip()


def _of_url(kind: str | None, version: str | None, ported: str | None, public: str | None) -> str | None:
    if public is not None:
        return "CC0-1.0" if public == "zero" else "CC-PDM-1.0"
    place = f"-{ported}" if ported else ""
    return _canonical(f"CC-{kind}-{version}{place}")


def _canonical(text: str) -> str | None:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return canonicalize_license_expression(text)
    except (InvalidLicenseExpression, RecursionError):
        return None


def accepts(licence: str, allow: Collection[str]) -> bool:
    """Whether these licences permit what an SPDX expression in its canonical form requires: one side of
    `OR`, both of `AND`. A licence with an exception must be named with it: `ID WITH EXCEPTION`.
    """
    words = re.findall(r"[()]|[^()\s]+(?: WITH [^()\s]+)?", licence)
    return _any_side(words, allow)


def _any_side(words: list[str], allow: Collection[str]) -> bool:
    """Take an expression from the front of `words`, to its end or a closing bracket."""
    found = _both_sides(words, allow)
    while words and words[0] == "OR":
        del words[0]
        # the second operand is taken also where the first decides
        found = _both_sides(words, allow) or found
    return found


def _both_sides(words: list[str], allow: Collection[str]) -> bool:
    found = _operand(words, allow)
    while words and words[0] == "AND":
        del words[0]
        found = _operand(words, allow) and found
    return found


def _operand(words: list[str], allow: Collection[str]) -> bool:
    word = words.pop(0)
    if word != "(":
        return word in allow
    found = _any_side(words, allow)
    # the closing bracket
    del words[0]
    return found


class LicencePolicy(Config):
    """Which licences are accepted.

    allow: SPDX identifiers; every licence that is understood if it is empty. aliases: SPDX identifiers by the
    text or URL that sources have for them; `LicenseRef-NAME` for a licence that SPDX has not. missing,
    unknown, conflict: what becomes of an image without a licence, with one that is not understood, and with
    two that differ.
    """

    allow: list[str] = Field(default_factory=list)
    aliases: dict[str, str] = Field(default_factory=dict)
    missing: Choice = "reject"
    unknown: Choice = "reject"
    conflict: Choice = "reject"

    @pydantic.field_validator("allow")
    @classmethod
    def _known(cls, allow: list[str]) -> list[str]:
        return [_valid(each) for each in allow]

    @pydantic.field_validator("aliases")
    @classmethod
    def _known_values(cls, aliases: dict[str, str]) -> dict[str, str]:
        return {alias: _valid(licence) for alias, licence in aliases.items()}

    @classmethod
    def read(cls, file: str) -> LicencePolicy:
        """Read a policy from a YAML file. Raises UserError if it is missing or invalid."""
        return build(cls, read_yaml(Path(file)), file)

    def judge(self, stated: str | None, embedded: str | None) -> LicenceVerdict:
        """Judge the licence that the source states and the one that the file contains.

        An embedded text that is not understood does not count beside a stated licence: it is often the
        address of a page about rights.
        """
        found = [None if text is None else spdx(text, self.aliases) for text in (stated, embedded)]
        licence = found[0] or found[1]
        if found[0] and found[1] and found[0] != found[1]:
            what = f"conflict: {found[0]} is stated, and {found[1]} embedded"
            return LicenceVerdict(licence, what if self.conflict == "reject" else None)
        if licence is None and (text := stated or embedded):
            return LicenceVerdict(None, f"unknown: {text}" if self.unknown == "reject" else None)
        if licence is None:
            return LicenceVerdict(None, "missing" if self.missing == "reject" else None)
        if self.allow and not accepts(licence, self.allow):
            return LicenceVerdict(licence, f"not allowed: {licence}")
        return LicenceVerdict(licence, None)


class LicenceVerdict(NamedTuple):
    """The licence of an image as SPDX expression, and why a policy rejects it; None if it does not."""

    spdx: str | None
    problem: str | None


LENIENT = LicencePolicy(missing="keep", unknown="keep", conflict="keep")
"""The policy where none is named."""


def _valid(text: str) -> str:
    found = _canonical(text)
    if found is None:
        raise ValueError(f"'{text}' is no SPDX identifier; write LicenseRef-NAME for a licence without one")
    return found
