"""Check after every `from_pretrained` that a component's folder contained all that the component needs.

transformers fills missing weights with random numbers and diffusers leaves them without data; a tokenizer
without its files has an empty vocabulary; unknown keys of a configuration are dropped. At best they log it.
Here each raises a UserError of one line.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import inspect
import json
import os
import threading
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.base.quiet import quiet_loading, quiet_reports
from uhr.models.files.folders import check_folder, check_pointers
from uhr.models.loading.scheduler_config import SchedulerConfig

WITHOUT_EFFECT = ("num_batches_tracked", "position_ids", "inv_freq")
"""Suffixes of buffers that may be missing in files: counters of training, and values that are recomputed."""

PUBLISHED_KEYS: Mapping[str, frozenset[str]] = {
    "FluxTransformer2DModel": frozenset({"method", "enable_gqa"}),
    "AutoencoderKL": frozenset({"stride"}),
}
"""Keys of published configurations that diffusers' class lacks: those of UltraFlux, whose sampler sets its
positions itself, and whose VAE is handled by `vae.f16.restore`."""

IGNORED_BY_STOCK: Mapping[str, frozenset[str]] = {
    "AutoencoderKL": frozenset({"latents_mean", "latents_std"}),
}
"""Keys that diffusers' class keeps and the stock pipelines of these families never read: the latents of a
checkpoint with them are not normalised by shift_factor and scaling_factor."""

REQUIRED: Mapping[str, tuple[str, ...]] = {"AutoencoderKL": ("scaling_factor", "shift_factor")}
"""Keys without which diffusers' class takes the value of another model: Stable Diffusion's 0.18215 for
FLUX.1's 0.3611."""

_OFF = (None, False, [], {}, "")
"""Values at which a key of a newer diffusers is not in use."""

_AGAIN = "download it again"


def load_whole(cls: Any, folder: Path, where: str, options: Mapping[str, Any] | None = None) -> Any:
    """Call `cls.from_pretrained` for the local folder of a model, tokenizer or scheduler.

    Raises UserError, in which `where` names the component, if it cannot be loaded, or if something is
    missing, of another shape, or left over.
    """
    try:
        with quiet_loading(), quiet_reports():
            return _checked(
                cls, cls.from_pretrained, folder, where, {"local_files_only": True, **(options or {})}
            )
    except UserError:
        raise
    except Exception as error:
        # tokenizers' own errors are of no narrower class; diffusers' advice would load random weights
        text = one_line(error).partition(" If you want to instead overwrite")[0]
        raise UserError(f"{where} cannot be loaded ({text})", "check its files") from error


_here: contextvars.ContextVar[bool] = contextvars.ContextVar("_here", default=False)
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def checked_loading() -> Generator[None]:
    """Check every `from_pretrained` of diffusers' and transformers' models and tokenizers in a `with` block.

    Calls of this thread are checked as in `load_whole`, so that what a pipeline's own loader only logs is an
    error. The libraries offer no other place for it: their pipelines do not request a loading report. Calls
    of other threads are unchanged; a second block in another thread waits.
    """
    from diffusers import ModelMixin, SchedulerMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    bases = (ModelMixin, SchedulerMixin, PreTrainedModel, PreTrainedTokenizerBase)
    with _one_at_a_time, quiet_reports():
        originals = [base.__dict__["from_pretrained"] for base in bases]
        for base, original in zip(bases, originals, strict=True):
            base.from_pretrained = _checking(original.__func__)
        token = _here.set(True)
        try:
            yield
        finally:
            _here.reset(token)
            for base, original in zip(bases, originals, strict=True):
                base.from_pretrained = original


def _checking(original: Any) -> Any:
    def from_pretrained(cls: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        plain = not args and not {"output_loading_info", "subfolder"} & kwargs.keys()
        if not _here.get() or not plain or not os.path.isdir(path):
            return original(cls, path, *args, **kwargs)
        folder = Path(path)
        where = f"{folder.name} of {folder.parent}"
        return _checked(cls, lambda path, **options: original(cls, path, **options), folder, where, kwargs)

    return classmethod(from_pretrained)


def _checked(cls: Any, load: Any, folder: Path, where: str, options: Mapping[str, Any]) -> Any:
    check_pointers(folder)
    # transformers' Auto classes of models have no parameters themselves
    if not hasattr(cls, "parameters") and not hasattr(cls, "_model_mapping"):
        if hasattr(cls, "vocab_files_names"):
            check_tokenizer_files(cls, folder, where)
        elif hasattr(cls, "load_config"):
            # a scheduler drops unknown keys
            SchedulerConfig.of(cls.load_config(folder, local_files_only=True), where)
        return load(folder, **options)
    check_folder(folder, where)
    check_shards(folder, where, options.get("variant"))
    if _is_diffusers(cls):
        check_config(cls, folder, where)
        try:
            part, report = load(folder, output_loading_info=True, **options)
        except NotImplementedError as error:
            # no report is made for a model that is placed on a device while it loads (quantised, device map)
            lacking = _lacking(cls, folder)
            if lacking:
                raise UserError(f"{where} lacks {_first(lacking)}", _AGAIN) from error
            raise
    else:
        # so that mismatched shapes are in the report, by name
        part, report = load(
            folder, **{"ignore_mismatched_sizes": True, **options, "output_loading_info": True}
        )
    check_report(part, report, where)
    return part


def check_report(part: Any, report: Mapping[str, Any], where: str) -> None:
    """Raise UserError for weights that a loading report calls missing, of another shape, or unexpected.

    Tied weights are not missing, unless the weight that they are tied to is. A file of a transformers model
    may contain parts that the class lacks (T5's decoder, CLIP's image half); any other unexpected weight
    means that the configuration is of another model, or that the weights are stored in a form that was not
    understood (with scales, for example).
    """
    for message in report.get("error_msgs") or ():
        raise UserError(f"{where} cannot be loaded ({one_line(message)})", _AGAIN)
    tied = getattr(part, "all_tied_weights_keys", None) or {}
    missing = _read({str(key) for key in report["missing_keys"]} - set(tied))
    if missing:
        raise UserError(f"{where} lacks {_first(missing)}", _AGAIN)
    for name, stored, expected in sorted(report["mismatched_keys"]):
        what = f"{where} has {name} of shape {tuple(stored)}, and its config.json makes it {tuple(expected)}"
        raise UserError(what, _AGAIN)
    strange = _read(str(key) for key in report["unexpected_keys"])
    if getattr(part, "hf_quantizer", None) is not None:
        # scales and the like, which the quantiser reads itself
        return
    if not _is_diffusers(type(part)):
        own = {name for name, _ in part.named_children()}
        strange = [key for key in strange if key.partition(".")[0] in own]
    if strange:
        what = f"{where} contains {_first(strange)}, for which its config.json has no place"
        raise UserError(what, f"{_AGAIN}, configuration and weights together")


def check_shards(folder: Path, where: str, variant: str | None = None) -> None:
    """Raise UserError if an index names a safetensors file that is missing, or a weight that its file lacks.

    diffusers does not check it.
    """
    from safetensors import SafetensorError, safe_open

    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.{f'{variant}.' if variant else ''}json"
        if not index.is_file() or (stem == "model" and (folder / "model.safetensors").is_file()):
            continue
        try:
            files: dict[str, set[str]] = {}
            for key, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
                files.setdefault(str(name), set()).add(key)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} cannot be read ({error!r})", _AGAIN) from error
        for name, needed in sorted(files.items()):
            try:
                with safe_open(folder / name, framework="pt") as file:
                    lacking = _read(needed - set(file.keys()))
            except FileNotFoundError:
                what = f"{where} lacks the file {name}, which {index.name} names"
                raise UserError(what, _AGAIN) from None
            except (OSError, SafetensorError) as error:
                raise UserError(f"{folder / name} cannot be read ({one_line(error)})", _AGAIN) from error
            if lacking:
                raise UserError(f"{where} lacks {_first(lacking)} in {name}", _AGAIN)


def _lacking(cls: Any, folder: Path) -> list[str]:
    """Return the weights of a diffusers class that no safetensors file of the folder has, by their
    headers."""
    import torch
    from safetensors import safe_open

    stored: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= set(file.keys())
    with torch.device("meta"):
        needed = cls.from_config(cls.load_config(folder, local_files_only=True)).state_dict()
    return _read(needed.keys() - stored)


def check_config(cls: Any, folder: Path, where: str) -> None:
    """Raise UserError for keys of a diffusers model's `config.json` that are in use and unknown to its class,
    which drops them."""
    config = cls.load_config(folder, local_files_only=True)
    for key in REQUIRED.get(cls.__name__, ()):
        if key not in config:
            raise UserError(f"config.json of {where} lacks {key}", _AGAIN)
    known = {*inspect.signature(cls.__init__).parameters, "quantization_config"}
    known |= PUBLISHED_KEYS.get(cls.__name__, frozenset())
    ignored = IGNORED_BY_STOCK.get(cls.__name__, frozenset())
    for key in sorted(config.keys() - known | ignored):
        if not key.startswith("_") and config.get(key) not in _OFF:
            why = "the stock pipeline never reads" if key in ignored else f"{cls.__name__} does not support"
            what = f"config.json of {where} has {key} {config[key]!r}, which {why}"
            raise UserError(what, "update diffusers, or remove the key if the weights do not need it")


def check_tokenizer_files(cls: Any, folder: Path, where: str) -> None:
    """Raise UserError if a tokenizer's folder lacks its vocabulary: transformers would use an empty one, so
    that all prompts were the same."""
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{where} lacks tokenizer_config.json", _AGAIN)
    files: dict[str, str] = dict(getattr(cls, "vocab_files_names", {}))
    whole = files.pop("tokenizer_file", None)
    if whole is not None and (folder / whole).is_file():
        return
    lacking = [name for name in files.values() if not (folder / name).is_file()]
    if lacking:
        also = "" if whole is None else f" or {whole}"
        raise UserError(f"{where} lacks {' and '.join(lacking)}{also}", _AGAIN)


def _is_diffusers(cls: Any) -> bool:
    return issubclass(cls, importlib.import_module("diffusers").ModelMixin)


def _read(names: Iterable[str]) -> list[str]:
    """Sort names, without those of `WITHOUT_EFFECT`."""
    return sorted(name for name in names if not name.endswith(WITHOUT_EFFECT))


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
