"""Tiny checkpoints with random numbers for the metrics, in the layouts in which the real ones are published.

The numbers are NumPy's: other programs computed values from the same files (`test_text_image.py`).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch


def transformers_clip(folder: Path, seed: int = 7) -> Path:
    """A CLIPModel of transformers with images of 32 px, whose tokens are letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    start, end = len(vocab) - 2, len(vocab) - 1
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    model = CLIPModel(
        CLIPConfig(
            text_config={**tower, **ids, "vocab_size": len(vocab)},
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            projection_dim=24,
        )
    )
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("class_embedding"):
                parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape) / 5))
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def image_reward(folder: Path) -> tuple[Path, Path]:
    """(the file, the tokenizer's folder) of an ImageReward with images of 32 px and one head per layer."""
    from transformers import BertTokenizer

    rng = np.random.default_rng(0)
    width, inner = 64, 96
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        values = rng.normal(size=shape) * (0.2 if len(shape) > 1 else 0.1)
        # norms are near 1
        state[name] = torch.from_numpy(values + ("norm" in name.lower() and name.endswith("weight"))).float()

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    vision = "blip.visual_encoder."
    add(f"{vision}cls_token", 1, 1, width)
    add(f"{vision}pos_embed", 1, 17, width)
    add(f"{vision}patch_embed.proj.weight", width, 3, 8, 8)
    add(f"{vision}patch_embed.proj.bias", width)
    for number in range(2):
        block = f"{vision}blocks.{number}."
        norm(f"{block}norm1")
        linear(f"{block}attn.qkv", 3 * width, width)
        linear(f"{block}attn.proj", width, width)
        norm(f"{block}norm2")
        linear(f"{block}mlp.fc1", inner, width)
        linear(f"{block}mlp.fc2", width, inner)
    norm(f"{vision}norm")
    text = "blip.text_encoder."
    add(f"{text}embeddings.word_embeddings.weight", 12, width)
    add(f"{text}embeddings.position_embeddings.weight", 40, width)
    norm(f"{text}embeddings.LayerNorm")
    for number in range(2):
        layer = f"{text}encoder.layer.{number}."
        for attention in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                linear(f"{layer}{attention}.self.{part}", width, width)
            linear(f"{layer}{attention}.output.dense", width, width)
            norm(f"{layer}{attention}.output.LayerNorm")
        linear(f"{layer}intermediate.dense", inner, width)
        linear(f"{layer}output.dense", width, inner)
        norm(f"{layer}output.LayerNorm")
    widths = (width, 32, 16, 8, 4, 1)
    for number, (inputs, outputs) in zip((0, 2, 4, 6, 7), itertools.pairwise(widths), strict=True):
        linear(f"mlp.layers.{number}", outputs, inputs)
    # BLIP's own parts, which a reward does not need
    add("blip.vision_proj.weight", 4, width)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "lake", "very", "long", "prompt", "the", "of"]
    vocab = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocab, model_max_length=512).save_pretrained(folder / "bert")
    return folder / "ImageReward.pt", folder / "bert"
