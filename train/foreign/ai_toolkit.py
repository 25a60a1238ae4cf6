"""ai-toolkit: the YAML of a job, with its first process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.config import read_yaml
from uhr.base.errors import UserError
from uhr.train.foreign.settings import (
    CACHED,
    NOT_AUGMENTED,
    OPTIMISERS,
    SCHEDULES,
    Foreign,
    Key,
    absent,
    one_of,
    real,
    steps,
    timesteps,
    truth,
    whole,
)

PROGRAM = "ai-toolkit"


PROCESS_KEYS: Mapping[str, Key] = {
    "type": Key("uhr train run"),
    "training_folder": absent("--out"),
    "device": Key("--set runtime.device"),
    "performance_log_every": absent("log.jsonl has a line per step"),
    "trigger_word": Key("--set trigger=WORD of uhr train encode"),
    "network.type": Key("trainable.kind", one_of(lora="lora")),
    "network.linear": Key("trainable.rank", whole),
    "network.linear_alpha": Key("trainable.alpha", real),
    "network.conv": absent("FLUX has no convolutions"),
    "network.conv_alpha": absent("FLUX has no convolutions"),
    "network.network_kwargs.only_if_contains": absent("trainable.targets: a list of ends of module names"),
    "save.dtype": absent("exports are float32, as trained"),
    "save.save_every": Key("runtime.checkpoint_every", whole),
    "save.max_step_saves_to_keep": Key("runtime.keep_checkpoints", whole),
    "save.push_to_hub": absent("nothing is uploaded"),
    "train.batch_size": Key("batch.micro", whole),
    "train.steps": Key("phases.main.steps", whole),
    "train.gradient_accumulation_steps": Key("batch.size: times batch_size"),
    "train.gradient_accumulation": Key("batch.size: times batch_size"),
    "train.train_unet": absent("the backbone is always what is trained"),
    "train.train_text_encoder": absent("text encoders are not trained here"),
    "train.gradient_checkpointing": Key("runtime.gradient_checkpointing", truth),
    "train.noise_scheduler": absent("always flow matching"),
    "train.timestep_type": Key(
        "phases.main.timesteps", one_of(sigmoid=timesteps("logit_normal"), linear=timesteps("uniform"))
    ),
    "train.content_or_style": absent("phases.main.timesteps"),
    "train.optimizer": Key("optimiser.kind", one_of(**OPTIMISERS)),
    "train.optimizer_params.weight_decay": Key("optimiser.weight_decay", real),
    "train.lr": Key("phases.main.lr", real),
    "train.lr_scheduler": Key("phases.main.schedule", one_of(**SCHEDULES)),
    "train.linear_timesteps": absent("phases.main.timesteps.density"),
    "train.skip_first_sample": absent("validation images are also made before training"),
    "train.disable_sampling": absent("validation.images: leave it out"),
    "train.ema_config.use_ema": Key("ema"),
    "train.ema_config.ema_decay": Key("ema: if use_ema"),
    "train.dtype": Key("runtime.precision", one_of(bf16="bfloat16", fp32="float32", float32="float32")),
    "train.bypass_guidance_embedding": absent("guidance.scale is the input; it is 1 by default"),
    "model.name_or_path": Key("--model"),
    "model.arch": absent("recognised by the model's own configuration"),
    "model.is_flux": absent("recognised by the model's own configuration"),
    "model.quantize": Key("runtime.quantize: float8wo"),
    "model.quantize_te": absent("text encoders are not in memory while training"),
    "model.qtype": absent("runtime.quantize: nf4, int8, int8wo or float8wo"),
    "model.low_vram": absent("--set runtime.offload=blocks"),
    "model.assistant_lora_path": absent("there is no assistant adapter for schnell: train on dev"),
    "sample.sampler": absent("validation.images.sampler"),
    "sample.sample_every": Key("validation.images.every", whole),
    "sample.width": Key("validation.images.size"),
    "sample.height": Key("validation.images.size"),
    "sample.prompts": Key("validation.images.prompts"),
    "sample.samples": Key("validation.images.prompts"),
    "sample.neg": absent("validation images have no negative prompt"),
    "sample.seed": Key("validation.images.seed", steps),
    "sample.walk_seed": absent("each prompt has the next seed"),
    "sample.guidance_scale": Key("validation.images.guidance", real),
    "sample.sample_steps": Key("validation.images.steps", whole),
}

DATASET_KEYS: Mapping[str, Key] = {
    "folder_path": Key("a source of the pipeline"),
    "caption_ext": Key(".txt and .caption are read"),
    "default_caption": Key("caption of the source, for images without one"),
    "caption_dropout_rate": Key("caption_dropout", real),
    "resolution": Key("--set resolution of uhr train encode"),
    "num_repeats": Key("phases.main.data, repeats"),
    "is_reg": absent("there are no regularisation images; a data set of its own with objective distillation"),
    "shuffle_tokens": absent("captions are encoded once, as they are"),
    "token_dropout_rate": absent("captions are encoded once, as they are"),
    "cache_latents_to_disk": CACHED,
    "cache_latents": CACHED,
    "cache_text_embeddings": CACHED,
    "flip_x": NOT_AUGMENTED,
    "flip_y": NOT_AUGMENTED,
    "random_crop": NOT_AUGMENTED,
    "mask_path": absent("--set mask=COLUMN of uhr train encode"),
    "control_path": absent("models for editing are not trained here"),
    "buckets": Key("buckets are always used"),
    "network_weight": absent("loss_weight of a data set in phases.main.data"),
}


def read(file: Path) -> Foreign:
    """Read a job's configuration. Raises UserError if it is not one."""
    tree = read_yaml(file)
    config = tree.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    if not isinstance(processes, list) or not processes or not isinstance(processes[0], dict):
        raise UserError(f"{file} is not a job of ai-toolkit (config.process)", "name its YAML file")
    process = dict(processes[0])
    found = Foreign(PROGRAM)
    if len(processes) > 1:
        found.unread.append(f"config.process has {len(processes)}: only the first is read")
    datasets = process.pop("datasets", None)
    for entry in datasets if isinstance(datasets, list) else []:
        if isinstance(entry, dict):
            _dataset(entry, file, found)
    found.take(process, PROCESS_KEYS)
    _combined(process, found)
    return found


def _dataset(entry: Mapping[str, Any], file: Path, found: Foreign) -> None:
    found.take(entry, DATASET_KEYS, "datasets: ")
    if entry.get("is_reg"):
        return
    if str(entry.get("caption_ext", "txt")).lstrip(".") not in ("txt", "caption"):
        found.unread.append(f"datasets: caption_ext {entry['caption_ext']}: rename the captions to .txt")
    repeats = entry.get("num_repeats", 1)
    path = entry.get("folder_path")
    default = entry.get("default_caption")
    sizes = entry.get("resolution", [])
    sides = dict.fromkeys(whole(side) for side in (sizes if isinstance(sizes, list) else [sizes]))
    caption = str(default) if default else None
    name = Path(str(path)).name
    found.add(name, path, file.parent, caption=caption, repeats=whole(repeats), resolutions=tuple(sides))


def _combined(process: Mapping[str, Any], found: Foreign) -> None:
    """What several settings say together."""
    train, sample, model = ({**(process.get(name) or {})} for name in ("train", "sample", "model"))
    micro = found.recipe.setdefault("batch.micro", 1)
    passes = train.get("gradient_accumulation_steps") or train.get("gradient_accumulation") or 1
    found.recipe["batch.size"] = micro * whole(passes)
    average = train.get("ema_config") or {}
    if average.get("use_ema"):
        found.recipe["ema"] = real(average.get("ema_decay", 0.99))
    if model.get("quantize"):
        found.recipe["runtime.quantize"] = "float8wo"
    found.model = model.get("name_or_path")
    word = process.get("trigger_word")
    found.trigger = str(word) if word else None
    prompts = [each.get("prompt") if isinstance(each, dict) else each for each in sample.get("samples", [])]
    prompts = [text for text in (*(sample.get("prompts") or []), *prompts) if text]
    if not prompts:
        for path in [path for path in found.recipe if path.startswith("validation.images.")]:
            del found.recipe[path]
        return
    texts = [str(text).replace("[trigger]", found.trigger or "") for text in prompts]
    found.recipe["validation.images.prompts"] = texts
    found.recipe.setdefault("validation.images.every", 250)
    if "width" in sample and "height" in sample:
        found.recipe["validation.images.size"] = [whole(sample["width"]), whole(sample["height"])]
