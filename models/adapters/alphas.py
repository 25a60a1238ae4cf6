"""How strong each module of a LoRA acts, from everything that a file has beside its matrices.

In this order: the module's own alpha tensor; peft's settings in `adapter_config.json` or in diffusers'
metadata; a plain number in the file's metadata (`lora_alpha`, `network_alpha`, `alpha`; kohya's
`ss_network_alpha` of kohya's own keys). Two that disagree are refused. Where nothing says alpha it is the
rank, as all readers take it, and a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.models.adapters.settings import PeftSettings
from uhr.models.adapters.usage import json_object

DIFFUSERS_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps peft's settings in a file's metadata: JSON."""

PEFT_CONFIG = "adapter_config.json"
"""Where peft keeps its settings, beside the file of the matrices."""

PEFT_WEIGHTS = "adapter_model.safetensors"
"""peft's own name of that file."""

TEXT_PREFIXES = ("text_encoder", "lora_te")
"""How the names of modules of text encoders begin."""

_KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_", "lora_te")
_PEFT_PREFIX = "base_model.model."
_PREFIXES = (_PEFT_PREFIX, "transformer.", "text_encoder.", "diffusion_model.")
_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
_RANKS = ("r", "lora_rank", "network_dim", "rank")
_KOHYA_ALPHA, _KOHYA_RANK = "ss_network_alpha", "ss_network_dim"
_NO_NUMBERS = ("", "none", "dynamic")
"""What kohya's scripts write where there is no one number."""


def settings_beside(file: Path, keys: Collection[str]) -> PeftSettings | None:
    """peft's settings of an adapter file: those of `adapter_config.json` in the same folder, if there is one
    and the file is peft's, by its keys or its name, or the only adapter there and in the same spelling.

    Raises UserError for a configuration that cannot be read or is not of a plain LoRA.
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
        raise UserError(f"{config} cannot be read ({error})", "download it again") from error
    return PeftSettings.of(json_object(text, str(config)), str(config))


class Alphas:
    """The alpha of each module of one file. `where` names the file in errors; after `of` was called for every
    module, `finish` gives what a user must know of the strength."""

    def __init__(self, metadata: Mapping[str, str], beside: PeftSettings | None, where: str) -> None:
        self._where, self._metadata, self._beside = where, metadata, beside
        self._packed = _packed(metadata, where)
        self._header = _Header(metadata, where)
        self._with_tensor: set[bool] = set()
        self._unsaid: list[str] = []
        self._kohyas: set[float] = set()

    def of(self, name: str, rank: int, own: float | None) -> float:
        """Alpha of the module that the file calls `name`, whose matrices have this rank; `own` is its alpha
        tensor. Raises UserError where two facts disagree, or the settings are of another rank."""
        path = name
        for prefix in _PREFIXES:
            path = path.removeprefix(prefix)
        settings = [each for each in (self._beside, self._packed[_of_text(name)]) if each is not None]
        said = {each.where: each.scale(path) * rank for each in settings}
        if own is not None:
            self._with_tensor.add(_of_text(name))
            said = {f"adapter {self._where}: its tensor": _finite(own, name, self._where), **said}
        else:
            for each in settings:
                each.check_rank(path, rank)
            said |= self._header.alphas(name, rank, otherwise=not said)
        if not said:
            self._unsaid.append(name)
            return float(rank)
        (first, alpha), *rest = said.items()
        for place, other in rest:
            # an alpha tensor may have been rounded to half precision
            if not math.isclose(alpha, other, rel_tol=1e-2):
                what = f"{first} says alpha {alpha:g} of '{name}', and {place} {other:g}"
                raise UserError(what, "remove the one that is wrong")
        if own is None and _is_kohyas(name) and not settings:
            self._kohyas.add(alpha)
        return alpha

    def finish(self) -> tuple[str, ...]:
        """Notes for people. UserError for a model of which some modules have an alpha tensor and others have
        nothing that says alpha: the file is not whole."""
        lacking = [name for name in self._unsaid if _of_text(name) in self._with_tensor]
        if lacking:
            what = f"adapter {self._where}: '{lacking[0]}' has no alpha, and other modules have one"
            raise UserError(what, "download or export it again")
        found = []
        if self._kohyas:
            numbers = ", ".join(f"{alpha:g}" for alpha in sorted(self._kohyas))
            found.append(f"adapter {self._where}: it has no alpha tensors; its metadata says alpha {numbers}")
        # XLabs' trainer has no alpha at all
        if any(".processor." not in name for name in self._unsaid):
            stray = self._metadata.get(_KOHYA_ALPHA, "").lower()
            kohya = (
                ""
                if stray in _NO_NUMBERS
                else f" (its {_KOHYA_ALPHA} {stray} is of kohya's keys, whose converters multiply it in)"
            )
            what = "nothing says its alpha, which is taken for the rank"
            found.append(f"adapter {self._where}: {what}{kohya}; FILE=SCALE sets another strength")
        return tuple(found)


class _Header:
    """What the plain entries of a file's metadata say of all modules."""

    def __init__(self, metadata: Mapping[str, str], where: str) -> None:
        bare = {key.removeprefix("transformer."): value for key, value in metadata.items()}
        self._where = where
        self._alpha = self._number(bare, _ALPHAS)
        self._rank = self._number(bare, _RANKS)
        self._kohya_alpha = self._number(bare, (_KOHYA_ALPHA,))
        self._kohya_rank = self._number(bare, (_KOHYA_RANK,))
        if bare.get("use_rslora", "false").lower() not in ("false", "0", *_NO_NUMBERS):
            what = f"adapter {where}: its metadata says use_rslora {bare['use_rslora']}"
            raise UserError(
                what, f"only {PEFT_CONFIG} and {DIFFUSERS_METADATA} are read for that: save it so"
            )

    def alphas(self, name: str, rank: int, otherwise: bool) -> dict[str, float]:
        """Alpha by its place, of a module without an alpha tensor; kohya's for kohya's keys only, and
        `otherwise`, where no settings of peft's say it."""
        if self._alpha is not None:
            self._check(self._rank, rank, name)
            return {f"adapter {self._where}: its metadata": self._alpha}
        if otherwise and self._kohya_alpha is not None and _is_kohyas(name):
            self._check(self._kohya_rank, rank, name)
            return {f"adapter {self._where}: its {_KOHYA_ALPHA}": self._kohya_alpha}
        return {}

    def _check(self, said: float | None, rank: int, name: str) -> None:
        if said is not None and said != rank:
            what = f"adapter {self._where}: its metadata says rank {said:g}, and '{name}' has rank {rank}"
            raise UserError(what, "so that its alpha cannot be of this module: export it again")

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
                raise UserError(f"adapter {self._where}: its metadata has {key} '{text}'", "it is no number")
        if len(set(found.values())) > 1:
            said = " and ".join(f"{key} {value:g}" for key, value in found.items())
            raise UserError(f"adapter {self._where}: its metadata has {said}", "remove the one that is wrong")
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
    """diffusers' metadata: settings of the backbone (False) and of CLIP (True), or None."""
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
