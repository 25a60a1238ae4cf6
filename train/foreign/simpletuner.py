"""SimpleTuner: `multidatabackend.json`, the list of its data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.train.foreign.settings import Foreign, Key, absent, real, whole

PROGRAM = "SimpleTuner"

_MOST_CAPTION = 1 << 16
"""Bytes of a caption file that are looked at."""

STRATEGIES = {
    "textfile": None,
    "filename": "{stem}",
    "instanceprompt": "instance_prompt",
    "parquet": None,
    "csv": None,
}
"""Where captions come from, and the caption of the source: a file's name, or a text of the data set."""

_CACHE = absent("uhr train encode --out")

BACKEND_KEYS: Mapping[str, Key] = {
    "id": Key("the name of a source of the pipeline"),
    "type": Key("local; for aws a source s3://bucket/prefix"),
    "dataset_type": Key("image; text_embeds are what uhr train encode stores"),
    "disabled": Key("left out"),
    "disable": Key("left out"),
    "instance_data_dir": Key("a source of the pipeline"),
    "instance_data_root": Key("a source of the pipeline"),
    "caption_strategy": Key("captions beside the images, file names, or one caption"),
    "instance_prompt": Key("caption of the source"),
    "only_instance_prompt": Key("caption of the source"),
    "prepend_instance_prompt": Key("--set trigger of uhr train encode"),
    "repeats": Key("phases.main.data, repeats: one more"),
    "probability": Key("phases.main.data, weight, if several differ"),
    "resolution": Key("--set resolution of uhr train encode"),
    "resolution_type": Key("area in megapixels becomes a side in px"),
    "crop": absent("images are cut to the nearest bucket, at the centre"),
    "crop_style": absent("at the centre"),
    "crop_aspect": absent("--set buckets=square, or aspects"),
    "crop_aspect_buckets": absent("--set aspects of uhr train encode"),
    "minimum_image_size": absent("a rule of the pipeline: width >= N AND height >= N"),
    "maximum_image_size": absent("images are made smaller to their bucket once"),
    "target_downsample_size": absent("images are made smaller to their bucket once"),
    "minimum_aspect_ratio": absent("a rule of the pipeline: aspect_ratio >= N"),
    "maximum_aspect_ratio": absent("a rule of the pipeline: aspect_ratio <= N"),
    "metadata_backend": absent("the manifest has the sizes"),
    "parquet": absent("a column of the manifest: source parquet:FILE"),
    "cache_dir": _CACHE,
    "cache_dir_vae": _CACHE,
    "text_embeds": _CACHE,
    "image_embeds": _CACHE,
    "vae_cache_clear_each_epoch": absent("each image is encoded once"),
    "preserve_data_backend_cache": _CACHE,
    "skip_file_discovery": absent("files are listed in each run of curation"),
    "hash_filenames": _CACHE,
    "conditioning_data": absent("ControlNets are not trained here"),
    "is_regularisation_data": absent("a data set of its own with objective distillation"),
    "default": _CACHE,
    "write_batch_size": _CACHE,
}


def read(file: Path) -> Foreign:
    """Read a list of data sets. Raises UserError if it is not one."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)})", "it must be JSON") from error
    if not isinstance(tree, list) or not all(isinstance(each, dict) for each in tree):
        raise UserError(f"{file} is not a list of data sets of SimpleTuner", "name multidatabackend.json")
    found = Foreign(PROGRAM)
    images = [
        each
        for each in tree
        if each.get("dataset_type", "image") == "image" and not (each.get("disabled") or each.get("disable"))
    ]
    shares = [each.get("probability", 1) for each in images]
    weighted = len(set(shares)) > 1
    for entry in images:
        _backend(entry, file, found, weighted)
    return found


def _backend(entry: Mapping[str, Any], file: Path, found: Foreign, weighted: bool) -> None:
    name = str(entry.get("id", "images"))
    where = f"{name}: "
    found.take({key: value for key, value in entry.items() if key != "parquet"}, BACKEND_KEYS, where)
    if entry.get("is_regularisation_data"):
        return
    if entry.get("type", "local") != "local":
        what = f"{file}: '{name}' is of type {entry['type']}"
        raise UserError(what, "name it in the pipeline as a source yourself, such as s3://bucket/prefix")
    path = entry.get("instance_data_dir") or entry.get("instance_data_root")
    repeats = entry.get("repeats", 0)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 0:
        raise UserError(f"{file}: repeats of '{name}' is {repeats!r}", "it must be at least 0")
    weight = real(entry.get("probability", 1)) if weighted else None
    if weight is not None and repeats:
        found.unread.append(f"{where}repeats: its share of the batches is its probability")
    side = _side(entry)
    values = {
        "repeats": 1 if weight is not None else repeats + 1,
        "weight": weight,
        "resolutions": () if side is None else (side,),
    }
    found.add(name, path, file.parent, caption=_caption(entry, name, file, found), **values)


def _caption(entry: Mapping[str, Any], name: str, file: Path, found: Foreign) -> str | None:
    strategy, prompt = entry.get("caption_strategy", "filename"), entry.get("instance_prompt")
    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise UserError(f"{file}: caption_strategy of '{name}' is {strategy!r}", f"known here: {known}")
    if strategy == "parquet":
        found.unread.append(
            f"{name}: caption_strategy parquet: copy the table into the folder as metadata.parquet"
        )
    elif strategy == "csv":
        found.unread.append(f"{name}: caption_strategy csv: copy the table into the folder as metadata.csv")
    elif strategy == "textfile" and (several := _several(entry, file)):
        what = "its lines are several captions there, and one caption here"
        found.unread.append(f"{name}: caption_strategy textfile: {several}: {what}")
    if prompt and entry.get("prepend_instance_prompt"):
        found.trigger = str(prompt)
    if strategy == "instanceprompt" or entry.get("only_instance_prompt"):
        if not prompt:
            raise UserError(f"{file}: '{name}' has no instance_prompt", "add it")
        found.unread.append(f"{name}: .txt files beside the images win over instance_prompt: move them away")
        return str(prompt)
    return STRATEGIES[strategy]


def _several(entry: Mapping[str, Any], file: Path) -> str | None:
    """The name of the first caption file with several lines."""
    folder = file.parent / str(entry.get("instance_data_dir") or entry.get("instance_data_root"))
    for path in sorted(folder.rglob("*.txt")):
        with path.open("rb") as opened:
            if b"\n" in opened.read(_MOST_CAPTION).strip():
                return path.name
    return None


def _side(entry: Mapping[str, Any]) -> int | None:
    size = entry.get("resolution")
    if size is None:
        return None
    if entry.get("resolution_type", "pixel") == "area":
        return 64 * max(1, round(math.sqrt(real(size) * 1e6) / 64))
    return whole(size)
