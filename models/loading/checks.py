"""Whether a component's folder gave everything that the component needs, checked after every
`from_pretrained`.

transformers fills missing weights with random numbers and diffusers leaves them without data; a tokenizer
without its files has an empty vocabulary; unknown keys of a configuration are dropped. All of them say so in
a log at best. Here each is a UserError of one line.
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
from uhr.models.files.containers import check_folder, check_pointers
from uhr.models.loading.scheduler_config import SchedulerConfig

WITHOUT_EFFECT = ("num_batches_tracked", "position_ids", "inv_freq")
"""Ends of the names of buffers that are counted for training, or computed anew: files have them or have
not."""

PUBLISHED_KEYS: Mapping[str, frozenset[str]] = {
    "FluxTransformer2DModel": frozenset({"method", "enable_gqa"}),
    "AutoencoderKL": frozenset({"stride"}),
}
"""Keys that published configurations have and diffusers' class has not: those of UltraFlux, whose sampler
sets its positions itself, and whose VAE `vae.f16.restore` understands."""

IGNORED_BY_STOCK: Mapping[str, frozenset[str]] = {
    "AutoencoderKL": frozenset({"latents_mean", "latents_std"}),
}
"""Keys that diffusers' class keeps and the stock pipelines of these families never read: a checkpoint that
sets them was normalised otherwise than by shift_factor and scaling_factor."""

REQUIRED: Mapping[str, tuple[str, ...]] = {"AutoencoderKL": ("scaling_factor", "shift_factor")}
"""Keys without which diffusers' class takes the value of another model: Stable Diffusion's 0.18215 for
FLUX.1's 0.3611."""

_OFF = (None, False, [], {}, "")
"""Values at which a key of a newer diffusers is not in use."""

_AGAIN = "download it again"


def load_whole(cls: Any, folder: Path, where: str, options: Mapping[str, Any] | None = None) -> Any:
    """`cls.from_pretrained` of a local folder, of a model, tokenizer or scheduler; `where` names it in
    errors.

    Raises UserError where it cannot be loaded, or something is missing, of another shape, or left over.
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
        words = one_line(error).partition(" If you want to instead overwrite")[0]
        raise UserError(f"{where} cannot be loaded ({words})", "check its files") from error


_here: contextvars.ContextVar[bool] = contextvars.ContextVar("_here", default=False)
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def checked_loading() -> Generator[None]:
    """Within it every `from_pretrained` of diffusers' and transformers' models and tokenizers that this
    thread calls is checked as in `load_whole`: what a pipeline's own loader leaves to a log is an error.

    The libraries offer no other place: their pipelines ask for no loading report. Other threads' calls pass
    through unchanged, but for a second one in here, which waits.
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
    if not hasattr(cls, "parameters"):
        if hasattr(cls, "vocab_files_names"):
            check_tokenizer_files(cls, folder, where)
        elif hasattr(cls, "load_config"):
            # a scheduler drops keys that it does not know
            SchedulerConfig.of(cls.load_config(folder, local_files_only=True), where)
        return load(folder, **options)
    check_folder(folder, where)
    check_shards(folder, where, options.get("variant"))
    if _is_diffusers(cls):
        check_config(cls, folder, where)
        try:
            part, report = load(folder, output_loading_info=True, **options)
        except NotImplementedError as error:
            # placed on a device while it loads (quantised, or by a device map): no report is made
            lacking = _lacking(cls, folder)
            if lacking:
                raise UserError(f"{where} lacks {_first(lacking)}", _AGAIN) from error
            raise
    else:
        # mismatched shapes come with the report then, by name
        part, report = load(
            folder, **{"ignore_mismatched_sizes": True, **options, "output_loading_info": True}
        )
    check_report(part, report, where)
    return part


def check_report(part: Any, report: Mapping[str, Any], where: str) -> None:
    """UserError for weights that a loading report calls missing, of another shape, or unexpected.

    Tied weights are not missing, unless what they are tied to is. Of transformers' models a file may hold
    parts that the class has not (T5's decoder, CLIP's image half); any other leftover means that the
    configuration is of another model than the weights, or that the weights are stored in a form (scales
    beside them, say) that was not understood.
    """
    for message in report.get("error_msgs") or ():
        raise UserError(f"{where} cannot be loaded ({one_line(message)})", _AGAIN)
    tied = getattr(part, "all_tied_weights_keys", None) or {}
    missing = _read({str(key) for key in report["missing_keys"]} - set(tied))
    if missing:
        raise UserError(f"{where} lacks {_first(missing)}", _AGAIN)
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        what = f"{where} has {name} of shape {tuple(stored)}, and its config.json makes it {tuple(wanted)}"
        raise UserError(what, _AGAIN)
    strange = _read(str(key) for key in report["unexpected_keys"])
    if getattr(part, "hf_quantizer", None) is not None:
        # scales and the like, which the quantiser takes in by itself
        return
    if not _is_diffusers(type(part)):
        own = {name for name, _ in part.named_children()}
        strange = [key for key in strange if key.partition(".")[0] in own]
    if strange:
        what = f"{where} holds {_first(strange)}, for which its config.json has no place"
        raise UserError(what, f"{_AGAIN}, configuration and weights together")


def check_shards(folder: Path, where: str, variant: str | None = None) -> None:
    """UserError where an index names a safetensors file that is not there, or a weight that its file has not:
    diffusers takes the index's word for it."""
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
        for name, wanted in sorted(files.items()):
            try:
                with safe_open(folder / name, framework="pt") as file:
                    lacking = _read(wanted - set(file.keys()))
            except FileNotFoundError:
                what = f"{where} lacks the file {name}, which {index.name} names"
                raise UserError(what, _AGAIN) from None
            except (OSError, SafetensorError) as error:
                raise UserError(f"{folder / name} cannot be read ({error})", _AGAIN) from error
            if lacking:
                raise UserError(f"{where} lacks {_first(lacking)} in {name}", _AGAIN)


def _lacking(cls: Any, folder: Path) -> list[str]:
    """Weights of a diffusers class that none of a folder's safetensors files has, by their headers."""
    import torch
    from safetensors import safe_open

    stored: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= set(file.keys())
    with torch.device("meta"):
        wanted = cls.from_config(cls.load_config(folder, local_files_only=True)).state_dict()
    return _read(wanted.keys() - stored)


def check_config(cls: Any, folder: Path, where: str) -> None:
    """UserError for keys of a diffusers model's `config.json` that its class does not know and that are in
    use: diffusers drops them."""
    config = cls.load_config(folder, local_files_only=True)
    for key in REQUIRED.get(cls.__name__, ()):
        if key not in config:
            raise UserError(f"config.json of {where} lacks {key}", _AGAIN)
    known = {*inspect.signature(cls.__init__).parameters, "quantization_config"}
    known |= PUBLISHED_KEYS.get(cls.__name__, frozenset())
    ignored = IGNORED_BY_STOCK.get(cls.__name__, frozenset())
    for key in sorted(config.keys() - known | ignored):
        if not key.startswith("_") and config.get(key) not in _OFF:
            why = "the stock pipeline never reads" if key in ignored else f"{cls.__name__} does not know"
            what = f"config.json of {where} has {key} {config[key]!r}, which {why}"
            raise UserError(what, "update diffusers, or remove the key if the weights do not need it")


def check_tokenizer_files(cls: Any, folder: Path, where: str) -> None:
    """UserError where a tokenizer's folder lacks its vocabulary: transformers makes an empty one of it, and
    every prompt becomes the same."""
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
    """Without those that change nothing, in order."""
    return sorted(name for name in names if not name.endswith(WITHOUT_EFFECT))


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
