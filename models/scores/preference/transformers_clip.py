"""CLIP models of transformers: embeddings for PickScore and for the CLIP score of torchmetrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.models.loading.checks import load_whole
from uhr.models.scores.images import as_pil
from uhr.models.scores.offline import no_downloads
from uhr.models.scores.weights import EVERYTHING, Weights, combined_hash, hash_of_files

if TYPE_CHECKING:
    import torch


class TransformersClip:
    """An image and a text tower; embeddings are float32 of length 1.

    logit_scale: the factor of the cosine that the model was trained with, 100 in most.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, weights_hash: str) -> None:
        self._model, self._processor, self._tokenizer = model, processor, tokenizer
        self._context: int = model.config.text_config.max_position_embeddings
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.weights_hash = weights_hash

    @classmethod
    def load(
        cls,
        weights: str | Path,
        processor: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> TransformersClip:
        """Load a checkpoint of transformers' CLIPModel.

        Args:
            weights: its folder, hub id or object store.
            processor: those of the tokenizer and the preprocessing, if they are published elsewhere.
            device: a torch device.
            dtype: the precision of the towers.

        Raises:
            UserError: if the files do not fit, or are of another model.
        """
        import torch
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        folder = Weights.parse(weights).fetch(EVERYTHING)
        other = folder if processor is None else Weights.parse(processor).fetch(EVERYTHING)
        for each in (folder, other):
            if not each.is_dir():
                raise UserError(f"the weights of the CLIP model are a file: {each}", "name its folder")
        where = f"the CLIP model in {folder}"
        if model_type(folder) != "clip":
            raise UserError(
                f"{where} is a '{model_type(folder)}'", "name a checkpoint of transformers' CLIPModel"
            )
        with no_downloads():
            model = load_whole(CLIPModel, folder, where, {"dtype": getattr(torch, dtype)})
            images = load_whole(AutoImageProcessor, other, f"the image processor in {other}")
            tokenizer = load_whole(AutoTokenizer, other, f"the tokenizer in {other}")
        hashes = [hash_of_files(each) for each in dict.fromkeys((folder, other))]
        found = hashes[0] if len(hashes) == 1 else combined_hash(hashes)
        return cls(model.to(device).eval(), images, tokenizer, found)

    def embed(self, images: Sequence[Any]) -> torch.Tensor:
        """Return the embeddings of images, uint8 [H, W, 3] of any size, float32 [N, D]."""
        inputs = self._processor(images=as_pil(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device, self._model.dtype)
        return self._normalised(self._model.get_image_features, pixel_values=pixels)

    def embed_texts(self, texts: Sequence[str], keep_end: bool = True) -> torch.Tensor:
        """Return the embeddings of texts, float32 [N, D].

        A text beyond the context (77 tokens) is cut. With `keep_end` its end-of-text token, whose place the
        model reads, is kept, as PickScore does; otherwise it is cut off, as torchmetrics does.
        """
        # one token more, which is then cut off: the end token
        most = self._context if keep_end else self._context + 1
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        ids, mask = (tokens[name][:, : self._context] for name in ("input_ids", "attention_mask"))
        device = self._model.device
        return self._normalised(
            self._model.get_text_features, input_ids=ids.to(device), attention_mask=mask.to(device)
        )

    def _normalised(self, tower: Any, **inputs: Any) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            found = tower(**inputs)
            # transformers 5 returns the tower's output, in which the projected embedding is the pooled one
            found = found if isinstance(found, torch.Tensor) else found.pooler_output
            return torch.nn.functional.normalize(found.float(), dim=-1)


def model_type(folder: Path) -> str | None:
    """Return the `model_type` of a folder of transformers; None if there is no readable `config.json`."""
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree.get("model_type") if isinstance(tree, dict) else None
