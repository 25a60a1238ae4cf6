"""Tiny random checkpoints of the real classes, written to disk as published ones are.

Weights are scaled up, so that two images get scores that differ by more than the rounding of float16.
"""

from __future__ import annotations

from pathlib import Path


def words_of(text: str) -> list[str]:
    """A text in SentencePiece's pieces of whole words: `▁` stands for the blank before a word."""
    return [f"▁{word}" for word in text.split()]


def llama_tokenizer(folder: Path, words: list[str], **options):
    """Save a tokenizer with each of these pieces, and all characters that they consist of, as one token."""
    from transformers import LlamaTokenizer

    vocab, merges = ["<unk>", "<s>", "</s>", "<0x0A>", "▁"], []
    for word in words:
        current = word[0]
        vocab.append(current)
        for character in word[1:]:
            merges.append((current, character))
            current += character
            vocab += [character, current]
    vocab, merges = list(dict.fromkeys(vocab)), list(dict.fromkeys(merges))
    tokenizer = LlamaTokenizer(vocab={piece: n for n, piece in enumerate(vocab)}, merges=merges, **options)
    tokenizer.save_pretrained(folder)
    return tokenizer


def q_align(folder: Path, seed: int = 0) -> Path:
    """A checkpoint of pyiqa's Q-Align with 0.1M parameters and images of 28 px."""
    import torch
    from pyiqa.archs.q_align import modeling_mplug_owl2 as owl
    from pyiqa.archs.q_align.configuration_mplug_owl2 import MPLUGOwl2Config
    from transformers import CLIPImageProcessor, LlamaTokenizer

    folder.mkdir(parents=True)
    pieces = words_of(
        "excellent good fair poor bad USER: How would you rate the quality aesthetic of this image?"
    )
    tokenizer = llama_tokenizer(folder, [*pieces, *words_of("ASSISTANT: The is"), ":", "?", "\n"])
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(folder)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MPLUGOwl2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        visual_config={
            "visual_model": {**vision, "image_size": 28, "patch_size": 14},
            "visual_abstractor": {
                **vision,
                "num_hidden_layers": 1,
                "num_learnable_queries": 4,
                "encoder_hidden_size": 32,
                "grid_size": 2,
            },
        },
    )

    # the class loads tokenizer and processor by a hub id when it is made
    class Here:
        def __init__(self, cls):
            self.from_pretrained = lambda name, **options: cls.from_pretrained(folder)

    originals = owl.LlamaTokenizer, owl.CLIPImageProcessor
    owl.LlamaTokenizer, owl.CLIPImageProcessor = Here(LlamaTokenizer), Here(CLIPImageProcessor)
    try:
        torch.manual_seed(seed)
        model = owl.MPLUGOwl2LlamaForCausalLM(config)
    finally:
        owl.LlamaTokenizer, owl.CLIPImageProcessor = originals
    enlarge(model, 6.0)
    for name, buffer in model.named_buffers():
        if name.endswith("pos_embed"):
            buffer.normal_()
    model.half().save_pretrained(folder)
    return folder


def enlarge(model, factor: float) -> None:
    """Multiply all matrices of a model."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)


CLIP_CONFIG = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def open_clip(folder: Path, **preprocess) -> Path:
    """A CLIP model of open_clip with images of 32 px, in the layout that `local-dir:` reads."""
    import json

    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = CLIP(**CLIP_CONFIG)
    enlarge(model.visual, 4.0)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def image_classifier(folder: Path) -> Path:
    """A ViT classifier with the labels normal, nsfw and drawing."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        id2label={0: "normal", 1: "nsfw", 2: "drawing"},
        label2id={"normal": 0, "nsfw": 1, "drawing": 2},
    )
    model = ViTForImageClassification(config)
    enlarge(model, 8.0)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
