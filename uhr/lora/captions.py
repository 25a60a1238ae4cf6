"""Which caption each image gets, and the prompts of the validation images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uhr.base.console import counted, shown
from uhr.base.errors import UserError, one_line
from uhr.base.paths import unescaped
from uhr.lora.images import Image
from uhr.train.encode.config import PLACEHOLDER, EncodeConfig

NEUTRAL = "a house by a lake"
"""A prompt that has nothing to do with the images: it shows whether the adapter acts without the trigger."""

_REPEATS = re.compile(r"(\d+)_(.+)")
"""A folder's name in kohya's sd-scripts: how often its images are repeated, and their instance prompt."""


@dataclass(frozen=True)
class Captions:
    """How captions are completed: the values of `EncodeConfig`, and what is said of them."""

    trigger: str | None
    missing: str | None
    texts: tuple[str, ...]
    lines: tuple[str, ...]


def complete(folder: Path, images: Sequence[Image], trigger: str | None) -> Captions:
    """Decide how the captions of the images are completed.

    An image without a caption gets the trigger word; without a trigger, the instance prompt in its folder's
    name (`10_a red bicycle`). Raises UserError if there is neither, and for an empty trigger.
    """
    if trigger is not None and not trigger.strip():
        raise UserError("--trigger is empty", "give a word, or leave it out")
    without = [image for image in images if image.caption is None]
    missing = None
    lines = [f"{len(images) - len(without)} of {counted(len(images), 'image')} have a caption beside them"]
    if without and trigger is None:
        missing = _instance_prompt(folder, without, len(images))
    if without:
        text = trigger if missing is None else missing
        lines.append(f"the other {len(without)} get '{shown(text)}'")
    config = EncodeConfig(trigger=trigger, missing=missing)
    texts = [config.captions_of([image.caption])[0] or "" for image in images]
    given = [(image.caption, text) for image, text in zip(images, texts, strict=True) if image.caption]
    changed = sum(before != after for before, after in given)
    if changed:
        lines.append(f"{changed} without '{shown(trigger)}' begin with it")
    unnamed = sum(trigger is None and PLACEHOLDER in text for text in texts)
    if unnamed:
        lines.append(f"{unnamed} contain {PLACEHOLDER}, which stays as it is without --trigger WORD")
    if any(_REPEATS.fullmatch(name) for name in _folders(folder, images)):
        lines.append("repeats in the names of folders are not used: every image counts alike")
    return Captions(trigger, missing, tuple(texts), tuple(lines))


def _instance_prompt(folder: Path, without: Sequence[Image], count: int) -> str:
    found = {match[2] if match else None for match in map(_REPEATS.fullmatch, _folders(folder, without))}
    prompts = sorted(filter(None, found))
    if None not in found and len(prompts) == 1:
        return prompts[0]
    what = f"{len(without)} of {counted(count, 'image')} of {folder} have no caption"
    if len(prompts) > 1:
        what += f", and its folders name {len(prompts)} instance prompts"
    fix = "give --trigger WORD, write captions beside them (NAME.txt), or name the folder 1_WORDS"
    raise UserError(what, fix)


def _folders(folder: Path, images: Sequence[Image]) -> set[str]:
    """The names of the folders that the images are in."""
    paths = (Path(folder).absolute() / unescaped(image.uri) for image in images)
    return {path.parent.name for path in paths}


def validation_prompts(texts: Sequence[str], trigger: str | None) -> tuple[str, ...]:
    """Four prompts or fewer: two captions as they are trained on, and two without the trigger.

    Without a trigger, three captions and a neutral prompt. The captions are distinct, and evenly spread.
    """
    different = list(dict.fromkeys(filter(None, texts)))
    count = min(len(different), 3 if trigger is None else 2)
    own = [different[place * len(different) // count] for place in range(count)]
    if trigger is None:
        return tuple(dict.fromkeys([*own, NEUTRAL]))
    if len(own) < 2:
        own.append(f"{trigger}, {NEUTRAL}")
    bare = [text for text in (without_word(text, trigger) for text in own) if text]
    return tuple(dict.fromkeys([*own, *bare[:1], NEUTRAL]))


def without_word(text: str, word: str) -> str:
    """A text without a word, and without the commas and spaces that it leaves at the ends or doubled."""
    left = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "", text)
    parts = map(one_line, left.split(","))
    return ", ".join(part for part in parts if part)
