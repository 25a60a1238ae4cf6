"""peft's settings of a LoRA: every key of its `LoraConfig` is used, has no effect on a trained adapter, or is
rejected.

They are stored in the `adapter_config.json` of peft, and in the metadata of diffusers' files. The lists below
have the keys of peft's LoraConfig; a contract test compares them with the installed one, so that a new key is
classified before it can change a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError, one_line

COMPUTED = ("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora")
"""Keys that decide the strength of each module's update."""

DEFAULTS = {"r": 8, "lora_alpha": 8}
"""peft's values of the two numbers that a configuration may leave out."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "task_type": "names the kind of model",
    "auto_mapping": "names the model's class",
    "peft_version": "names the writer",
    "base_model_name_or_path": "names the base model; the shapes are compared instead",
    "revision": "names the base model",
    "inference_mode": "whether the weights get gradients",
    "target_modules": "which modules were adapted: those whose matrices are in the file",
    "exclude_modules": "as target_modules",
    "layers_to_transform": "as target_modules",
    "layers_pattern": "as target_modules",
    "lora_dropout": "acts while training only",
    "velora_config": "replaces the backward pass only",
    "megatron_core": "names a package, read only with megatron_config",
    "qalora_group_size": "read only with use_qalora",
    "loftq_config": "read only by init_lora_weights: loftq",
    "eva_config": "read only by init_lora_weights: eva, which leaves the base weights as they are",
    "corda_config": "read only by init_lora_weights: corda",
    "lora_ga_config": "read only by init_lora_weights: lora_ga",
    "runtime_config": "where matrices are kept while they are computed with",
}
"""Keys that change no number of a trained adapter, whatever their value, and why."""

PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "lora_bias": (False,),
    "alora_invocation_tokens": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "ensure_weight_tying": (False,),
}
"""Keys that have only one meaning for a plain LoRA, with the accepted values; peft's default is the first."""

INITIAL = "init_lora_weights"
"""The key for the initial values; some methods subtract these from the base weights (`_check_initial`)."""

_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations that do not change the base weights; neither do true and false."""

_OFF = (None, False, [], {}, "")
"""Values at which an unknown key of a newer peft is not in use."""

_MERGE = "merge it with peft (merge_and_unload) and give the merged transformer, or train a plain LoRA"


@dataclass(frozen=True)
class PeftSettings:
    """The settings that decide the strength of each module; `where` names their file in errors."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    stabilised: bool
    where: str

    @classmethod
    def of(cls, tree: Mapping[str, Any], where: str) -> PeftSettings:
        """Read settings from a mapping of LoraConfig's keys to plain JSON values.

        Raises UserError for a value under which the adapter is not a plain LoRA, for an unknown key that is
        in use, and for a value of the wrong type.
        """
        for key, value in tree.items():
            _check(key, value, where)
        return cls(
            rank=_rank(tree.get("r", DEFAULTS["r"]), "r", where),
            alpha=_number(tree.get("lora_alpha", DEFAULTS["lora_alpha"]), "lora_alpha", where),
            ranks={key: _rank(value, key, where) for key, value in _pattern(tree, "rank_pattern", where)},
            alphas={key: _number(value, key, where) for key, value in _pattern(tree, "alpha_pattern", where)},
            stabilised=_flag(tree.get("use_rslora", False), "use_rslora", where),
            where=where,
        )

    def scale(self, path: str) -> float:
        """Return the factor on B A of the module at `path`: alpha / r, or alpha / sqrt(r) for rank-stabilised
        LoRA (2312.03732), as in peft's `LoraLayer.update_layer`."""
        rank = self._matched(self.ranks, path, self.rank)
        alpha = self._matched(self.alphas, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)

    def check_rank(self, path: str, rank: int) -> None:
        """Raise UserError unless the settings have the rank of the matrices of the module at `path`."""
        expected = self._matched(self.ranks, path, self.rank)
        if expected != rank:
            what = f"{self.where} has rank {expected} for '{path}', whose matrices have rank {rank}"
            raise UserError(what, "the settings are of another adapter: use those that belong to the file")

    def _matched(self, pattern: Mapping[str, Any], path: str, otherwise: Any) -> Any:
        from peft.utils.other import get_pattern_key

        return pattern.get(get_pattern_key(list(pattern), path), otherwise)


def is_known(key: str) -> bool:
    """Whether a key is in one of the lists."""
    return key in (*COMPUTED, *WITHOUT_EFFECT, *PLAIN, INITIAL)


def _check(key: str, value: Any, where: str) -> None:
    if key == INITIAL:
        _check_initial(value, where)
    elif key in PLAIN and not _is_one_of(value, PLAIN[key]):
        raise UserError(f"{where} has {key} {value!r}: it is not a plain LoRA", _MERGE)
    elif not is_known(key) and not _is_one_of(value, _OFF):
        raise UserError(f"{where} has the unknown key {key} ({value!r})", "a newer peft wrote it: " + _MERGE)


def _is_one_of(value: Any, accepted: tuple[Any, ...]) -> bool:
    # types too: 0 == False
    return any(value == each and type(value) is type(each) for each in accepted)


def _check_initial(value: Any, where: str) -> None:
    """Raise UserError for an initialisation that changes the base weights (PiSSA, OLoRA, CorDA, LoRA-GA) or
    is for quantised ones (LoftQ): the adapter would be wrong on the published weights."""
    if isinstance(value, bool) or value is None or (isinstance(value, str) and value.lower() in _STARTS):
        return
    what = f"{where} has {INITIAL} {value!r}, which trains on base weights that were changed"
    fix = "have peft convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
    raise UserError(what, fix)


def _pattern(tree: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
    found = tree.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{where} has {key} {found!r}", "it must be an object: module -> number")
    for name in found:
        try:
            re.compile(name)
        except re.error as error:
            raise UserError(
                f"{where} has '{name}' in {key} ({one_line(error)})", "it must be a regular expression"
            ) from error
    return list(found.items())


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where} has {value!r} for {key}", "it must be a finite number")
    return float(value)


def _rank(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where} has {value!r} for {key}", "a rank must be a whole number of at least 1")
    return value


def _flag(value: Any, key: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where} has {value!r} for {key}", "it must be true or false")
    return value
