"""The alpha of each module of a LoRA, from every place where files store it.

In this order: the module's own alpha tensor; peft's settings in `adapter_config.json` or in diffusers'
metadata; a plain number in the file's metadata (`lora_alpha`, `network_alpha`, `alpha`; kohya's
`ss_network_alpha` for kohya's own keys). Two that disagree are an error. If no place has an alpha, it is the
rank, as in all other readers, and a note is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.models.adapters.formats.settings import PeftSettings
from uhr.models.adapters.formats.usage import json_object

DIFFUSERS_METADATA = "lora_adapter_metadata"
"""The key in a file's metadata under which diffusers stores peft's settings as JSON."""

PEFT_CONFIG = "adapter_config.json"
"""peft's file of settings, next to the file of the matrices."""

PEFT_WEIGHTS = "adapter_model.safetensors"
"""peft's own name of that file."""

TEXT_PREFIXES = ("text_encoder", "lora_te")
"""Prefixes of the modules of text encoders."""

_KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_", "lora_te")
_PEFT_PREFIX = "base_model.model."
_PREFIXES = (_PEFT_PREFIX, "transformer.", "text_encoder.", "diffusion_model.")
_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
_RANKS = ("r", "lora_rank", "network_dim", "rank")
_KOHYA_ALPHA, _KOHYA_RANK = "ss_network_alpha", "ss_network_dim"
_NO_NUMBERS = ("", "none", "dynamic")
"""Values that kohya's scripts write if there is no single number."""


def settings_of(file: Path, keys: Collection[str]) -> PeftSettings | None:
    """Read the `adapter_config.json` next to an adapter file; None if there is none or it is another file's.

    It belongs to the file if the file has peft's name or keys, or if it is the only safetensors file in the
    folder and has keys with `lora_A` and `lora_B`. Raises UserError for a configuration that cannot be read
    or is not of a plain LoRA.
    """
    config = file.with_name(PEFT_CONFIG)
    if not config.is_file():
        return None
    named = file.name == PEFT_WEIGHTS or any(key.startswith(_PEFT_PREFIX) for key in keys)
    alone = len(list(file.parent.glob("*.safetensors"))) == 1
    if not named and not (alone and all(".lora_A." in key or ".lora_B." in key for key in keys)):
        return None
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{config} cannot be read ({one_line(error)})", "download it again") from error
    return PeftSettings.of(json_object(text, str(config)), str(config))


class Alphas:
    """The alpha of each module of one file, which `where` names in errors.

    Call `of` for every module, then `finish`.
    """

    def __init__(self, metadata: Mapping[str, str], settings: PeftSettings | None, where: str) -> None:
        self._where, self._metadata, self._from_config = where, metadata, settings
        self._packed = _packed(metadata, where)
        self._header = _Header(metadata, where)
        self._with_tensor: set[bool] = set()
        self._without_alpha: list[str] = []
        self._kohyas: set[float] = set()

    def of(self, name: str, rank: int, own: float | None) -> float:
        """Return the alpha of the module that the file calls `name`; `own` is the value of its alpha tensor.

        Raises UserError if two places disagree, or if the settings are for another rank than `rank`.
        """
        path = name
        for prefix in _PREFIXES:
            path = path.removeprefix(prefix)
        settings = [each for each in (self._from_config, self._packed[_of_text(name)]) if each is not None]
        values = {each.where: each.scale(path) * rank for each in settings}
        if own is not None:
            self._with_tensor.add(_of_text(name))
            values = {f"adapter {self._where}: its tensor": _finite(own, name, self._where), **values}
        else:
            for each in settings:
                each.check_rank(path, rank)
            values |= self._header.alphas(name, rank, otherwise=not values)
        if not values:
            self._without_alpha.append(name)
            return float(rank)
        (first, alpha), *rest = values.items()
        for place, other in rest:
            # an alpha tensor may have been rounded to half precision
            if not math.isclose(alpha, other, rel_tol=1e-2):
                what = f"{first} has alpha {alpha:g} for '{name}', and {place} has {other:g}"
                raise UserError(what, "remove the one that is wrong")
        if own is None and _is_kohyas(name) and not settings:
            self._kohyas.add(alpha)
        return alpha

    def finish(self) -> tuple[str, ...]:
        """Return notes for the user about the adapter's strength.

        Raises UserError if some modules of a model have an alpha tensor and others have no alpha at all: the
        file is incomplete.
        """
        lacking = [name for name in self._without_alpha if _of_text(name) in self._with_tensor]
        if lacking:
            what = f"adapter {self._where}: '{lacking[0]}' has no alpha, and other modules have one"
            raise UserError(what, "download or export it again")
        found = []
        if self._kohyas:
            numbers = ", ".join(f"{alpha:g}" for alpha in sorted(self._kohyas))
            found.append(f"adapter {self._where}: it has no alpha tensors; its metadata has alpha {numbers}")
        # XLabs' trainer has no alpha at all
        if any(".processor." not in name for name in self._without_alpha):
            stray = self._metadata.get(_KOHYA_ALPHA, "").lower()
            kohya = (
                ""
                if stray in _NO_NUMBERS
                else f" (its {_KOHYA_ALPHA} {stray} is for kohya's keys, whose converters multiply it in)"
            )
            what = "it has no alpha, so that its alpha is its rank"
            found.append(f"adapter {self._where}: {what}{kohya}; FILE=SCALE sets another strength")
        return tuple(found)


class _Header:
    """Alpha and rank from the plain entries of a file's metadata, which apply to all modules."""

    def __init__(self, metadata: Mapping[str, str], where: str) -> None:
        bare = {key.removeprefix("transformer."): value for key, value in metadata.items()}
        self._where = where
        self._alpha = self._number(bare, _ALPHAS)
        self._rank = self._number(bare, _RANKS)
        self._kohya_alpha = self._number(bare, (_KOHYA_ALPHA,))
        self._kohya_rank = self._number(bare, (_KOHYA_RANK,))
        if bare.get("use_rslora", "false").lower() not in ("false", "0", *_NO_NUMBERS):
            what = f"adapter {where}: its metadata has use_rslora {bare['use_rslora']}"
            raise UserError(
                what, f"save it with {PEFT_CONFIG} or {DIFFUSERS_METADATA}, which are read for that"
            )

    def alphas(self, name: str, rank: int, otherwise: bool) -> dict[str, float]:
        """Return the alpha of a module without an alpha tensor, by the place where it was found.

        Kohya's entry is used for kohya's keys only, and only with `otherwise`: if no settings have an alpha.
        """
        if self._alpha is not None:
            self._check(self._rank, rank, name)
            return {f"adapter {self._where}: its metadata": self._alpha}
        if otherwise and self._kohya_alpha is not None and _is_kohyas(name):
            self._check(self._kohya_rank, rank, name)
            return {f"adapter {self._where}: its {_KOHYA_ALPHA}": self._kohya_alpha}
        return {}

    def _check(self, expected: float | None, rank: int, name: str) -> None:
        if expected is not None and expected != rank:
            what = f"adapter {self._where}: its metadata has rank {expected:g}, and '{name}' has rank {rank}"
            raise UserError(what, "its alpha is not for this module: export the adapter again")

    def _number(self, bare: Mapping[str, str], keys: Collection[str]) -> float | None:
        found: dict[str, float] = {}
        for key in keys:
            text = bare.get(key, "")
            if text.lower() in _NO_NUMBERS:
                continue
            try:
                found[key] = float(text)
            except ValueError:
                found[key] = math.nan
            if not math.isfinite(found[key]):
                what = f"adapter {self._where}: its metadata has {key} '{text}'"
                raise UserError(what, "it must be a number")
        if len(set(found.values())) > 1:
            values = " and ".join(f"{key} {value:g}" for key, value in found.items())
            raise UserError(
                f"adapter {self._where}: its metadata has {values}", "remove the one that is wrong"
            )
        return next(iter(found.values()), None)


def _of_text(name: str) -> bool:
    return name.startswith(TEXT_PREFIXES)


def _is_kohyas(name: str) -> bool:
    return name.startswith(_KOHYA_PREFIXES)


def _finite(alpha: float, name: str, where: str) -> float:
    if not math.isfinite(alpha):
        raise UserError(f"adapter {where}: the alpha of '{name}' is {alpha}", "download it again")
    return alpha


def _packed(metadata: Mapping[str, str], where: str) -> dict[bool, PeftSettings | None]:
    """Read diffusers' metadata: settings of the backbone (False) and of CLIP (True), or None."""
    if DIFFUSERS_METADATA not in metadata:
        return {False: None, True: None}
    place = f"adapter {where}: its {DIFFUSERS_METADATA}"
    tree = json_object(metadata[DIFFUSERS_METADATA], place)
    return {text: _settings(tree, text, place) for text in (False, True)}


def _settings(tree: Mapping[str, Any], text: bool, place: str) -> PeftSettings | None:
    if text:
        mine = {key: value for key, value in tree.items() if key.startswith("text_encoder.")}
    else:
        # `save_lora_adapter` of a bare transformer writes no prefix
        mine = {key: value for key, value in tree.items() if not key.startswith(TEXT_PREFIXES[0])}
    prefix = "text_encoder." if text else "transformer."
    plain = {key.removeprefix(prefix): value for key, value in mine.items()}
    return PeftSettings.of(plain, place) if plain else None
