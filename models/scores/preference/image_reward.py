"""ImageReward (arXiv 2304.05977): its checkpoint for transformers' own BLIP, and its score.

The published checkpoint is of the authors' own classes. Its weights fit transformers' BlipVisionModel and
BlipTextModel under other names; a small network on the first token's state gives the reward.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.models.loading.checks import load_whole
from uhr.models.scores.images import as_pil
from uhr.models.scores.offline import no_downloads
from uhr.models.scores.weights import EVERYTHING, Weights, combined_hash, hash_of_files, read_tensors

if TYPE_CHECKING:
    import torch

MEAN, STD = 0.16717363830052426, 1.0333394966054072
"""Of the rewards in training: a score is how many standard deviations a reward is above their mean."""

TOKENS = 35
"""Tokens of the prompt that are read; a longer one is cut."""

HEAD_WIDTH = 64
"""Width of an attention head of both towers, in the published checkpoint and in BERT and ViT."""

PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_VISION = (
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)

_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|position_ids$")
"""Parts of BLIP that the score does not read."""

_AGAIN = "name ImageReward.pt of huggingface.co/THUDM/ImageReward"


class ImageReward:
    """The reward of an image for its prompt, normalised: about 0 on average, higher is preferred."""

    def __init__(self, vision: Any, text: Any, reward: Any, tokenizer: Any, weights_hash: str) -> None:
        self._vision, self._text, self._reward, self._tokenizer = vision, text, reward, tokenizer
        self.weights_hash = weights_hash

    @classmethod
    def load(cls, weights: str | Path, tokenizer: str | Path, device: str = "cpu") -> ImageReward:
        """Load the published checkpoint in float32.

        Args:
            weights: the file `ImageReward.pt` or its tensors as safetensors.
            tokenizer: a folder or hub id of BERT's tokenizer (`google-bert/bert-base-uncased`).
            device: a torch device.

        Raises:
            UserError: if a file cannot be read, or has other tensors.
        """
        from transformers import AutoTokenizer

        path = Weights.parse(weights).fetch()
        if not path.is_file():
            raise UserError(f"the weights of ImageReward are a folder: {path}", "name the file in it")
        folder = Weights.parse(tokenizer).fetch(EVERYTHING)
        tensors = read_tensors(path)
        vision = _load(_vision(tensors, path), _part(tensors, "blip.visual_encoder.", _VISION), path)
        text = _load(_text(tensors, path), _part(tensors, "blip.text_encoder."), path)
        reward = _load(_linear_chain(tensors, path), _part(tensors, "mlp.layers.", (("", "layer"),)), path)
        strange = [
            name
            for name in tensors
            if not name.startswith(("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."))
            and not _UNUSED.search(name)
        ]
        if strange:
            raise UserError(f"{path} has {sorted(strange)[0]}, which ImageReward does not have", _AGAIN)
        with no_downloads():
            words = load_whole(AutoTokenizer, folder, f"the tokenizer in {folder}")
        found = combined_hash([hash_of_files(path), hash_of_files(folder)])
        parts = [part.to(device).eval() for part in (vision, text, reward)]
        return cls(*parts, words, found)

    def score(self, image: Any, prompt: str) -> float:
        """Return the score of one image, uint8 [H, W, 3] of any size."""
        import torch

        tokens = self._tokenizer(
            prompt, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        device = self._vision.device
        with torch.inference_mode():
            states = self._vision(self._pixels(image).to(device)).last_hidden_state
            output = self._text(
                input_ids=tokens["input_ids"].to(device),
                attention_mask=tokens["attention_mask"].to(device),
                encoder_hidden_states=states,
                is_decoder=False,
            )
            reward = self._reward(output.last_hidden_state[:, 0])
        return (float(reward) - MEAN) / STD

    def _pixels(self, image: Any) -> torch.Tensor:
        """The model's input, float32 [1, 3, side, side]: the shorter side resized by Pillow's bicubic
        filter, and of that the centre.
        """
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional

        side = self._vision.config.image_size
        (whole,) = as_pil([image])
        resized = functional.resize(whole, [side], interpolation=v2.InterpolationMode.BICUBIC)
        square = functional.pil_to_tensor(functional.center_crop(resized, [side]))
        return functional.normalize(square.float() / 255, list(PIXEL_MEAN), list(PIXEL_STD))[None]


def _part(tensors: Mapping[str, Any], prefix: str, names: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """The tensors of one part under the names of transformers' class."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix) and not _UNUSED.search(name):
            new = name.removeprefix(prefix)
            for old, other in names:
                new = f"{other}{new}" if not old else new.replace(old, other)
            # the last norm of timm's ViT
            new = re.sub(r"^norm\.", "post_layernorm.", new) if prefix.endswith("visual_encoder.") else new
            found[new] = tensor.float()
    return found


def _shape(tensors: Mapping[str, Any], name: str, path: Path) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(f"{path} lacks {name}", _AGAIN)
    return tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    """The number of layers whose numbers a pattern finds in the names."""
    found = {int(match[1]) for name in tensors if (match := re.match(pattern, name))}
    return len(found)


def _vision(tensors: Mapping[str, Any], path: Path) -> Any:
    from transformers import BlipVisionConfig, BlipVisionModel

    prefix = "blip.visual_encoder."
    width, _, patch, _ = _shape(tensors, f"{prefix}patch_embed.proj.weight", path)
    _, positions, _ = _shape(tensors, f"{prefix}pos_embed", path)
    return BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=_shape(tensors, f"{prefix}blocks.0.mlp.fc1.weight", path)[0],
            num_hidden_layers=_count(tensors, rf"{re.escape(prefix)}blocks\.(\d+)\."),
            num_attention_heads=width // HEAD_WIDTH,
            image_size=patch * round((positions - 1) ** 0.5),
            patch_size=patch,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
        )
    )


def _text(tensors: Mapping[str, Any], path: Path) -> Any:
    from transformers import BlipTextConfig, BlipTextModel

    prefix = "blip.text_encoder."
    vocabulary, width = _shape(tensors, f"{prefix}embeddings.word_embeddings.weight", path)
    positions, _ = _shape(tensors, f"{prefix}embeddings.position_embeddings.weight", path)
    return BlipTextModel(
        BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            encoder_hidden_size=_shape(
                tensors, f"{prefix}encoder.layer.0.crossattention.self.key.weight", path
            )[1],
            intermediate_size=_shape(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight", path)[0],
            num_hidden_layers=_count(tensors, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\."),
            num_attention_heads=width // HEAD_WIDTH,
            max_position_embeddings=positions,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            # only a decoder has cross-attention; the call says that its own attention is not causal
            is_decoder=True,
            # of tokens that only a decoder's generation reads; the defaults may be outside of the vocabulary
            bos_token_id=None,
            sep_token_id=None,
        ),
        add_pooling_layer=False,
    )


def _linear_chain(tensors: Mapping[str, Any], path: Path) -> Any:
    """Linear layers one after the other; the dropout between them is idle."""
    import torch

    numbers = sorted(
        int(match[1]) for name in tensors if (match := re.fullmatch(r"mlp\.layers\.(\d+)\.weight", name))
    )
    if not numbers:
        raise UserError(f"{path} lacks mlp.layers.0.weight", _AGAIN)
    chain = torch.nn.Sequential()
    for number in numbers:
        outputs, inputs = _shape(tensors, f"mlp.layers.{number}.weight", path)
        chain.add_module(f"layer{number}", torch.nn.Linear(inputs, outputs))
    return chain


def _load(module: Any, state: Mapping[str, Any], path: Path) -> Any:
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise UserError(f"{path} lacks the tensor for {name} of {type(module).__name__}", _AGAIN)
        if state[name].shape != tensor.shape:
            what = f"{path} has {name} of shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise UserError(what, _AGAIN)
    if extra := sorted(state.keys() - own.keys()):
        raise UserError(f"{path} has {extra[0]}, for which {type(module).__name__} has no place", _AGAIN)
    module.load_state_dict(dict(state))
    return module
