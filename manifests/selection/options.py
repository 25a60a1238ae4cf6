"""The options of a slice, and the texts in which the command line takes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from uhr.base.config import Config
from uhr.base.errors import UserError

Materialised = Literal["none", "rows", "pixels"]
MATERIALISED = get_args(Materialised)
"""What is written of the rows of a slice."""

_NAME = r"[A-Za-z_][\w.-]*"
_SPLIT = r"[A-Za-z][\w-]*"
"""The name of a split, which exports use as the name of a file or folder."""


class Top(Config):
    """The rows with the highest values of one column: `rows` of them, or the `share` of all in (0, 1].

    `per` names columns: the highest of each combination of their values, instead of the highest of all.
    """

    by: str
    rows: int | None = Field(None, ge=1)
    share: float | None = Field(None, gt=0, le=1)
    per: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_size(self) -> Top:
        if (self.rows is None) == (self.share is None):
            raise ValueError("give either rows or share")
        return self


class Similar(Config):
    """The `rows` rows whose embeddings are nearest to a query.

    `to` is a sample (an id or a uri), or a text or the name of a file where the query is given as a vector;
    `vector` is the SHA-256 of the vector's float32 bytes then (16 hex digits).
    """

    to: str
    rows: int = Field(ge=1)
    vector: str | None = None


class SliceOptions(Config):
    """The options of a slice, in the order in which they are applied (`select.py`).

    status: the verdict that rows must have. where: an SQL condition. similar: the rows nearest to a query.
    top: the highest values of columns, one after the other. diverse: a number of rows that cover the others.
    embedding: the column of vectors that `similar` and `diverse` compare. stratify: columns whose
    combinations keep their shares in the sample. balance: a column of whose values equally many rows are
    drawn. sample: a number of rows. split: shares by name, which add up to 1. seed: what is drawn depends on
    this and the sample ids alone. materialise: what is written: rows of all columns, also the original bytes
    of the images (pixels), or none, only ids and the parent.
    """

    status: Literal["kept", "rejected", "failed", "any"] = "kept"
    where: str | None = None
    similar: Similar | None = None
    top: tuple[Top, ...] | None = None
    diverse: int | None = Field(None, ge=1)
    embedding: str = "clip_embedding"
    stratify: tuple[str, ...] | None = None
    balance: str | None = None
    sample: int | None = None
    split: dict[str, float] | None = None
    seed: int = 0
    materialise: Materialised = "rows"

    @field_validator("split")
    @classmethod
    def _named(cls, split: dict[str, float] | None) -> dict[str, float] | None:
        for name, share in (split or {}).items():
            if re.fullmatch(_SPLIT, name) is None:
                raise ValueError(f"has the name '{name}': a name is a letter, then letters, digits, - or _")
            if not 0 < share <= 1:
                raise ValueError(f"has the share {share:g} of '{name}', which is not in (0, 1]")
        return split

    @property
    def draws(self) -> bool:
        """Whether the seed has an effect."""
        return not (self.sample is None and self.split is None and self.balance is None)

    def operation(self) -> dict[str, Any]:
        """Return the operation, which is part of the id. It has no seed if nothing is drawn."""
        unused = set() if self.draws else {"seed"}
        unused |= set() if self.similar or self.diverse else {"embedding"}
        unused |= {"materialise"} if self.materialise == "rows" else set()
        steps = self.model_dump(mode="json", exclude_none=True, exclude=unused)
        for top in steps.get("top", ()):
            if not top["per"]:
                del top["per"]
        return {"kind": "slice", **steps}

    def ranked(self) -> dict[str, str]:
        """Return the columns that `top` orders by, with the option that names each."""
        return {top.by: f"--top {top.by}" for top in self.top or ()}

    def grouped(self) -> dict[str, str]:
        """Return the columns whose values make groups, with the option that names each."""
        named = {name: "--per" for top in self.top or () for name in top.per}
        named |= dict.fromkeys(self.stratify or (), "--stratify")
        return named | ({} if self.balance is None else {self.balance: "--balance"})


def parse_top(texts: Sequence[str], per: str | None = None) -> tuple[Top, ...]:
    """Parse `artimuse=5%`, `artimuse=0.05` or `artimuse=1000`, each the highest of one column.

    `per` is a list of column names with commas between, for all of them. Raises UserError if a text is
    invalid.
    """
    groups = parse_columns(per, "--per") if per is not None else ()
    if groups and not texts:
        raise UserError("--per is a part of --top", "add --top COLUMN=5%")
    return tuple(_top(text, groups) for text in texts)


def _top(text: str, per: tuple[str, ...]) -> Top:
    fix = "write it as artimuse=5% (a share) or artimuse=1000 (rows)"
    match = re.fullmatch(rf"\s*({_NAME})\s*=\s*([0-9.eE+-]+)\s*(%?)\s*", text)
    if match is None:
        raise UserError(f"--top '{text}' is not a column and a size", fix)
    name, size, percent = match.groups()
    if size.isdigit() and not percent:
        if int(size) < 1:
            raise UserError(f"--top '{text}' takes no row", fix)
        return Top(by=name, rows=int(size), per=per)
    try:
        share = float(size) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError(f"--top '{text}': '{size}{percent}' is not a share in (0, 1]", fix)
    return Top(by=name, share=share, per=per)


def parse_similar(text: str) -> Similar:
    """Parse `QUERY=100`. The query may contain equals signs. Raises UserError if it is invalid."""
    to, _, rows = text.rpartition("=")
    if not to.strip() or not rows.isdecimal() or int(rows) < 1:
        raise UserError(f"--similar '{text}' is not a query and a number of rows", "write it as 'a lake=100'")
    return Similar(to=to.strip(), rows=int(rows))


def parse_columns(text: str, option: str) -> tuple[str, ...]:
    """Parse names of columns with commas between. Raises UserError, which names `option`, if one is empty or
    repeated.
    """
    names = tuple(name.strip() for name in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"{option} '{text}' has an empty or repeated name", f"write it as {option} width,height"
        )
    return names


def parse_split(text: str) -> dict[str, float]:
    """Parse `train=0.9,val=0.1` into shares by name. Raises UserError if it is invalid."""
    fix = "write it as train=0.9,val=0.1, adding up to 1"
    shares: dict[str, float] = {}
    for item in text.split(","):
        match = re.fullmatch(rf"\s*({_SPLIT})\s*=\s*([0-9.eE+-]+)\s*", item)
        try:
            name, share = (match[1], float(match[2])) if match else ("", 0.0)
        except ValueError:
            name, share = "", 0.0
        if not name or name in shares or not 0 < share <= 1:
            raise UserError(f"--split '{text}': '{item.strip()}' is not a share, or repeats a name", fix)
        shares[name] = share
    check_shares(shares, f"--split '{text}'")
    return shares


def check_shares(shares: Mapping[str, float], where: str) -> None:
    """Raise UserError unless the shares add up to 1."""
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(
            f"{where} adds up to {sum(shares.values()):g}", "write it as train=0.9,val=0.1, adding up to 1"
        )
