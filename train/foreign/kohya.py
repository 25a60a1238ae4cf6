"""kohya's sd-scripts: folders `10_name class/`, and the TOML of `--dataset_config` or `--config_file`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.train.foreign.settings import (
    CACHED,
    NOT_AUGMENTED,
    OPTIMISERS,
    SCHEDULES,
    Foreign,
    Key,
    UnsupportedValue,
    absent,
    one_of,
    real,
    steps,
    timesteps,
    truth,
    whole,
)

PROGRAM = "kohya"

FOLDER = re.compile(r"(\d+)_(.+)")
"""A subfolder of `--train_data_dir`: repeats and class tokens."""

_CAPTIONS = absent("captions are encoded once, as they are")

SUBSET_KEYS: Mapping[str, Key] = {
    "image_dir": Key("a source of the pipeline"),
    "num_repeats": Key("phases.main.data, repeats"),
    "class_tokens": Key("caption of the source, for images without one"),
    "caption_extension": Key(".txt and .caption are read"),
    "is_reg": absent("there are no regularisation images; a data set of its own with objective distillation"),
    "metadata_file": absent("give it as metadata.jsonl with file_name and caption in the folder"),
    "conditioning_data_dir": absent("ControlNets are not trained here"),
    "keep_tokens": _CAPTIONS,
    "shuffle_caption": _CAPTIONS,
    "caption_prefix": absent("use --set trigger=WORD of uhr train encode"),
    "caption_suffix": _CAPTIONS,
    "caption_dropout_rate": Key("caption_dropout", real),
    "caption_dropout_every_n_epochs": absent("caption_dropout is a share of all samples"),
    "caption_tag_dropout_rate": _CAPTIONS,
    "flip_aug": NOT_AUGMENTED,
    "color_aug": NOT_AUGMENTED,
    "random_crop": NOT_AUGMENTED,
    "face_crop_aug_range": NOT_AUGMENTED,
    "alpha_mask": absent("--set mask=alpha of uhr train encode"),
}
"""Keys of subsets; those of `[general]` and `[[datasets]]` too, which are their defaults."""

DATASET_KEYS: Mapping[str, Key] = {
    "resolution": Key("--set resolution of uhr train encode"),
    "batch_size": Key("batch.micro", whole),
    "enable_bucket": Key("buckets are always used"),
    "min_bucket_reso": absent("--set buckets and aspects of uhr train encode"),
    "max_bucket_reso": absent("--set buckets and aspects of uhr train encode"),
    "bucket_reso_steps": absent("--set buckets and aspects of uhr train encode"),
    "bucket_no_upscale": Key("the default; --set enlarge=true changes it"),
}

TRAINING_KEYS: Mapping[str, Key] = {
    "pretrained_model_name_or_path": Key("--model"),
    "train_data_dir": Key("a source for each of its folders"),
    "dataset_config": Key("read with it"),
    "network_module": absent("the kind of adapter is trainable.kind"),
    "network_dim": Key("trainable.rank", whole),
    "network_alpha": Key("trainable.alpha", real),
    "learning_rate": Key("phases.main.lr", real),
    "unet_lr": Key("phases.main.lr", real),
    "text_encoder_lr": absent("text encoders are not trained here"),
    "max_train_steps": Key("phases.main.steps", whole),
    "max_train_epochs": absent("training is counted in steps: --set phases.main.steps=N"),
    "optimizer_type": Key("optimiser.kind", one_of(**OPTIMISERS)),
    "lr_scheduler": Key("phases.main.schedule", one_of(**SCHEDULES)),
    "lr_warmup_steps": Key("phases.main.warmup", steps),
    "train_batch_size": Key("batch.micro", whole),
    "gradient_accumulation_steps": Key("batch.size: times train_batch_size"),
    "gradient_checkpointing": Key("runtime.gradient_checkpointing", truth),
    "mixed_precision": Key("runtime.precision", one_of(bf16="bfloat16", no="float32")),
    "max_grad_norm": Key("clip", real),
    "seed": Key("seed", steps),
    "save_every_n_steps": Key("runtime.checkpoint_every", whole),
    "guidance_scale": Key("guidance.scale", real),
    "timestep_sampling": Key("phases.main.timesteps"),
    "discrete_flow_shift": Key("phases.main.timesteps.shift, unless timestep_sampling makes no use of it"),
    "sigmoid_scale": Key("phases.main.timesteps.std"),
    "weighting_scheme": Key("phases.main.timesteps.weighting", one_of(none="none")),
    "model_prediction_type": absent("velocity, without scaling (kohya's raw)"),
    "loss_type": absent("the objective is mean squared error"),
    "fp8_base": absent("--set runtime.quantize=float8wo"),
    "blocks_to_swap": absent("--set runtime.offload=blocks"),
    "cache_latents": CACHED,
    "cache_latents_to_disk": CACHED,
    "cache_text_encoder_outputs": CACHED,
    "cache_text_encoder_outputs_to_disk": CACHED,
    "clip_l": absent("--model is a whole model, or --comfyui"),
    "t5xxl": absent("--model is a whole model, or --comfyui"),
    "ae": absent("--model is a whole model, or --comfyui"),
    "output_dir": absent("--out"),
    "output_name": absent("--name of uhr train export"),
    "save_model_as": absent("safetensors always"),
    "save_precision": absent("exports are float32, as trained"),
    "sample_prompts": absent("--set validation.images"),
    "sample_every_n_steps": absent("--set validation.images.every=N"),
    "sdpa": absent("always"),
    "highvram": absent("--set runtime.offload"),
    "persistent_data_loader_workers": absent("encoded data need no workers"),
    "max_data_loader_n_workers": absent("encoded data need no workers"),
    "enable_bucket": Key("buckets are always used"),
    "resolution": Key("--set resolution of uhr train encode"),
    "caption_extension": Key(".txt and .caption are read"),
}


def read_folder(folder: Path) -> Foreign | None:
    """Read a `--train_data_dir`; None if it has no subfolder `REPEATS_NAME`."""
    found = Foreign(PROGRAM)
    for path in sorted(folder.iterdir()):
        match = FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            repeats, tokens = int(match[1]), match[2].strip()
            if repeats < 1:
                found.unread.append(f"{path.name}: 0 repeats, so that it is not used")
                continue
            found.add(tokens, path.name, folder, caption=tokens, repeats=repeats)
    return found if found.sources or found.unread else None


def read_toml(file: Path) -> Foreign:
    """Read a data set's TOML, or that of a training, with the data that it names."""
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", "it must be TOML") from error
    if "datasets" in tree:
        return _datasets(tree, file, Foreign(PROGRAM))
    # a configuration may be in groups, whose names have no meaning
    values = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    for group in tree.values():
        values |= group if isinstance(group, dict) else {}
    return _training(values, file)


def _datasets(tree: Mapping[str, Any], file: Path, found: Foreign) -> Foreign:
    general = _table(tree.get("general", {}), file)
    for number, entry in enumerate(_tables(tree["datasets"], file), 1):
        values = {**general, **{key: value for key, value in entry.items() if key != "subsets"}}
        where = f"dataset {number}: "
        own = {key: value for key, value in values.items() if key in DATASET_KEYS}
        found.take(own, DATASET_KEYS, where)
        sides = _sizes(values.get("resolution"))
        inherited = {key: value for key, value in values.items() if key not in DATASET_KEYS}
        for subset in _tables(entry.get("subsets", []), file):
            _subset({**inherited, **subset}, sides, file, found, where)
    found.recipe.setdefault("batch.size", found.recipe.get("batch.micro", 1))
    return found


def _subset(
    values: Mapping[str, Any], sides: tuple[int, ...], file: Path, found: Foreign, where: str
) -> None:
    found.take(values, SUBSET_KEYS, where)
    if values.get("is_reg"):
        return
    path, tokens = values.get("image_dir"), values.get("class_tokens")
    name = Path(str(path)).name
    repeats = values.get("num_repeats", 1)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise UserError(f"{file}: num_repeats of {path} is {repeats!r}", "it must be at least 1")
    caption = str(tokens) if tokens else None
    found.add(name, path, file.parent, caption=caption, repeats=repeats, resolutions=sides)


def _training(values: Mapping[str, Any], file: Path) -> Foreign:
    found = Foreign(PROGRAM)
    places = {key: values.get(key) for key in ("dataset_config", "train_data_dir")}
    for key, place in places.items():
        if not isinstance(place, str):
            continue
        path = file.parent / Path(place).expanduser()
        data = read_folder(path) if key == "train_data_dir" and path.is_dir() else None
        if key == "dataset_config" and path.is_file():
            data = read_toml(path)
        if data is None:
            raise UserError(f"{file}: {key} {place} has no images for kohya", "correct its path")
        found = data
    found.take(values, TRAINING_KEYS)
    micro = found.recipe.get("batch.micro", 1)
    found.recipe["batch.micro"] = micro
    found.recipe["batch.size"] = micro * whole(values.get("gradient_accumulation_steps") or 1)
    (found.resolution,) = _sizes(values.get("resolution")) or (found.resolution,)
    _timesteps(values, found)
    model = values.get("pretrained_model_name_or_path")
    found.model = model if isinstance(model, str) else None
    return found


def _timesteps(values: Mapping[str, Any], found: Foreign) -> None:
    """How sigma is drawn, as in `get_noisy_model_input_and_timesteps` of kohya's flux_train_utils.py, with
    its defaults: sigma, shift 3.
    """
    shift, std = real(values.get("discrete_flow_shift", 3.0)), real(values.get("sigmoid_scale", 1.0))
    drawn = {
        "sigma": timesteps("uniform", shift),
        "uniform": timesteps("uniform"),
        "sigmoid": timesteps("logit_normal", std=std),
        "shift": timesteps("logit_normal", shift, std),
    }
    name = values.get("timestep_sampling", "sigma")
    try:
        found.recipe["phases.main.timesteps"] = one_of(**drawn)(name)
    except UnsupportedValue as error:
        found.unread.append(f"timestep_sampling: {name} ({one_line(error)})")


def _sizes(value: Any) -> tuple[int, ...]:
    """A side of about the same area: a number, `[width, height]`, or "1024,1024"."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    sides = [whole(part) for part in parts]
    return (round((sides[0] * sides[-1]) ** 0.5),)


def _table(value: Any, file: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a configuration of kohya ({value!r})", "name its --dataset_config")
    return value


def _tables(value: Any, file: Path) -> list[Mapping[str, Any]]:
    return [_table(each, file) for each in (value if isinstance(value, list) else [value])]
