"""Tiny random checkpoints of the real classes, written to disk as published ones are.

Weights are scaled up, so that two images get scores that differ by more than the rounding of float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def words_of(text: str) -> list[str]:
    """A text in SentencePiece's pieces of whole words: `▁` is the blank before a word."""
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


def byte_tokenizer(folder: Path, whole: list[str], special: list[str]):
    """Save Qwen2's tokenizer over bytes, in which each text of `whole` is one token."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    alphabet = sorted(ByteLevel.alphabet())
    vocab, merges = list(alphabet), []
    for text in whole:
        pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
        current = pieces[0]
        for character in pieces[1:]:
            merges.append((current, character))
            current += character
            vocab.append(current)
    vocab, merges = list(dict.fromkeys(vocab)), list(dict.fromkeys(merges))
    tokenizer = Qwen2Tokenizer(
        vocab={piece: n for n, piece in enumerate(vocab)},
        merges=merges,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *special],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def artimuse(folder: Path, words: Sequence[str] = ()) -> Path:
    """An InternVLChatModel checkpoint as ArtiMuse publishes it, in two shards: names and configuration of the
    original class, random numbers. `words` are single tokens besides those of its scores.
    """
    import json

    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from uhr.models.scores.artimuse import WORDS

    folder.mkdir(parents=True)
    special = ["<img>", "</img>", "<IMG_CONTEXT>"]
    tokenizer = byte_tokenizer(folder, [*WORDS, *words], special)
    text = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": len(tokenizer) + 5,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "hidden_act": "gelu",
        "image_size": 28,
        "patch_size": 7,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
    }
    config = {"llm_config": text, "vision_config": vision, "force_image_size": 28, "downsample_ratio": 0.5}
    config |= {"select_layer": -1, "ps_version": "v2", "template": "internvl2_5", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    tensors = {
        "vision_model.embeddings.class_embedding": torch.randn(1, 1, width),
        "vision_model.embeddings.patch_embedding.weight": torch.randn(width, 3, 7, 7) / 6,
        "vision_model.embeddings.patch_embedding.bias": torch.randn(width),
        "vision_model.embeddings.position_embedding": torch.randn(1, 17, width),
        "mlp1.0.weight": torch.rand(4 * width) + 0.5,
        "mlp1.0.bias": torch.randn(4 * width),
        "mlp1.1.weight": torch.randn(32, 4 * width) / 6,
        "mlp1.1.bias": torch.randn(32),
        "mlp1.3.weight": torch.randn(32, 32),
        "mlp1.3.bias": torch.randn(32),
    }
    for number in range(2):
        layer = f"vision_model.encoder.layers.{number}."
        shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        shapes |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, shape in shapes.items():
            tensors[f"{layer}{name}.weight"] = torch.randn(shape) / 3
            tensors[f"{layer}{name}.bias"] = torch.randn(shape[0])
        for name in ("norm1", "norm2"):
            tensors[f"{layer}{name}.weight"] = torch.rand(width) + 0.5
            tensors[f"{layer}{name}.bias"] = torch.randn(width)
        tensors |= {f"{layer}ls1": torch.rand(width), f"{layer}ls2": torch.rand(width)}
    language = Qwen2ForCausalLM(Qwen2Config(**text))
    enlarge(language, 20.0)
    save_file({f"language_model.{k}": v for k, v in language.state_dict().items()}, folder / "b.safetensors")
    save_file(tensors, folder / "a.safetensors")
    return folder


def yoloe(folder: Path) -> Path:
    """A YOLOE checkpoint that is sure of something everywhere, and a text encoder, which is as the published
    one: tokens [n, 77] to embeddings [n, 512].
    """
    import torch

    from uhr.models.scores.people import _ultralytics

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(49408, 512)

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.table(tokens).mean(1)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.encode_text(tokens)

    torch.manual_seed(0)
    model = _ultralytics().YOLOE("yoloe-11n-seg.yaml")
    # without this the features of a random model vanish on their way through its layers
    enlarge(model.model, 2.6)
    with torch.no_grad():
        for head in model.model.model[-1].cv4:
            head.bias.fill_(-1.0)
            head.logit_scale.fill_(-3.5)
    model.save(str(folder / "promptable.pt"))
    torch.manual_seed(1)
    torch.jit.save(torch.jit.script(Encoder()), str(folder / "mobileclip_blt.ts"))
    return folder
