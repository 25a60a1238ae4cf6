"""ArtiMuse (arXiv 2507.14533): its checkpoint for transformers' own class, and its rating.

The published checkpoint is an InternVLChatModel, a class that transformers does not have. Its weights fit
`InternVLForConditionalGeneration` under other names, with query, key and value apart. Its score is the
expected value over 101 pairs of letters, 0 to 100.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError, one_line
from uhr.base.files import user_cache, write_json
from uhr.models.scores.weights import EVERYTHING, Weights, hash_of_files

WORDS: Mapping[str, float] = {
    f"{first}{chr(ord('a') + number)}": float(start + number)
    for first, start, count in (("a", 0, 26), ("c", 26, 25), ("d", 51, 25), ("e", 76, 25))
    for number in range(count)
}
"""The pair of letters of each score: aa to az are 0 to 25, then ca to cy, da to dy, and ea to ey for 100."""

OPTIONS: Mapping[str, Any] = {"crop_to_patches": False}
"""The image is one patch, squeezed to a square (448 px)."""

_VISION = (
    (r"^vision_model\.", "model.vision_tower."),
    (r"\.encoder\.layers\.", ".encoder.layer."),
    (r"\.class_embedding$", ".cls_token"),
    (r"\.position_embedding$", ".position_embeddings"),
    (r"\.patch_embedding\.", ".patch_embeddings.projection."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)

_OTHERS = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "mlp1.0.": "model.multi_modal_projector.layer_norm.",
    "mlp1.1.": "model.multi_modal_projector.linear_1.",
    "mlp1.3.": "model.multi_modal_projector.linear_2.",
}

_SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}

_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The conversation that the checkpoint was trained with (`internvl2_5`)."""


def new_names(name: str) -> tuple[str, ...]:
    """Return the names of a tensor in transformers' class: one, or three for query, key and value together.

    Raises UserError for a tensor that an InternVLChatModel does not have.
    """
    if name.startswith("vision_model."):
        for pattern, replacement in _VISION:
            name = re.sub(pattern, replacement, name)
        if ".attention.qkv." in name:
            return tuple(name.replace(".qkv.", f".{part}_proj.") for part in "qkv")
        return (name,)
    for old, new in _OTHERS.items():
        if name.startswith(old):
            return (new + name.removeprefix(old),)
    raise UserError(f"the tensor {name} belongs to no InternVLChatModel", "name the checkpoint of ArtiMuse")


def convert(source: Path, out: Path) -> Path:
    """Write the checkpoint in `source` to the new folder `out` for transformers' class, shard by shard.

    Raises UserError if `source` is another model, or `out` exists already.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if out.exists():
        raise UserError(f"{out} exists already", "name a new folder")
    try:
        tree = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source / 'config.json'} cannot be read ({one_line(error)})", "check it") from error
    _check(tree, source)
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise UserError(f"{source} contains no safetensors files", "download them")
    out.mkdir(parents=True)
    names: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(shards, 1):
        file = (
            "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        tensors = {}
        with safe_open(shard, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (a handle, not a mapping)
                targets = new_names(name)
                # query, key and value are the thirds of one matrix, in this order
                parts = stored.get_tensor(name).chunk(len(targets))
                tensors |= {new: part.contiguous() for new, part in zip(targets, parts, strict=True)}
        save_file(tensors, out / file, {"format": "pt"})
        names |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        write_json(
            out / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": names}
        )
    _write_processor(tree, source, out)
    return out


def converted(weights: str | Path) -> Path:
    """Return a folder for transformers' class: the weights themselves if they are converted already, else
    their conversion in the user's cache, which is made once.
    """
    source = Weights.parse(weights).fetch(EVERYTHING)
    try:
        tree = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source / 'config.json'} cannot be read ({one_line(error)})", "check it") from error
    if "llm_config" not in tree:
        return source
    out = user_cache("converted") / hash_of_files(source)[:32]
    if not out.is_dir():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".part-") as part:
            folder = convert(source, Path(part) / "model")
            # another process may have finished the same conversion meanwhile
            with contextlib.suppress(OSError):
                folder.rename(out)
    return out


def _check(tree: Mapping[str, Any], source: Path) -> None:
    kinds = tree.get("llm_config", {}).get("architectures") or ["none"]
    if kinds[0] not in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        raise UserError(
            f"the language model of {source} is {kinds[0]}", "name a checkpoint with Qwen2 or Qwen3"
        )
    for key, expected in (("select_layer", -1), ("ps_version", "v2")):
        if tree.get(key, expected) != expected:
            raise UserError(
                f"{key} of {source} is {tree[key]!r}, not {expected!r}", "name another checkpoint"
            )


def _write_processor(tree: Mapping[str, Any], source: Path, out: Path) -> None:
    """Write configuration, tokenizer and preprocessing."""
    from transformers import (
        AutoTokenizer,
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    vision, text = dict(tree["vision_config"]), dict(tree["llm_config"])
    side = tree.get("force_image_size") or vision["image_size"]
    ratio = tree.get("downsample_ratio", 0.5)
    tokens = int((side // vision["patch_size"]) ** 2 * ratio**2)
    tokenizer: Any = AutoTokenizer.from_pretrained(
        source, local_files_only=True, extra_special_tokens=_SPECIAL
    )
    keep = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    config = InternVLConfig(
        vision_config={
            **{key: vision[key] for key in (*keep, "patch_size")},
            "image_size": side,
            "norm_type": vision.get("norm_type", "layer_norm"),
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
            "attention_bias": vision.get("qkv_bias", True),
            "use_qk_norm": vision.get("qk_normalization", False),
        },
        text_config={**text, "model_type": text.get("model_type") or _model_type(text)},
        image_token_id=tokenizer.convert_tokens_to_ids(_SPECIAL["context_image_token"]),
        image_seq_length=tokens,
        downsample_ratio=ratio,
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
        architectures=["InternVLForConditionalGeneration"],
        dtype=tree.get("torch_dtype", "bfloat16"),
    )
    config.save_pretrained(out)
    size = {"height": side, "width": side}
    InternVLProcessor(
        GotOcr2ImageProcessor(
            size=size,
            crop_to_patches=False,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=tokens,
        chat_template=_TEMPLATE,
    ).save_pretrained(out)


def _model_type(text: Mapping[str, Any]) -> str:
    return text["architectures"][0].removesuffix("ForCausalLM").lower()
