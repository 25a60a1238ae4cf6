"""Image classifiers of transformers: the probability of some of their labels (NSFW, watermark, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, unknown
from uhr.models.loading.checks import load_whole
from uhr.models.scores.images import View, as_pil
from uhr.models.scores.offline import no_downloads
from uhr.models.scores.weights import EVERYTHING, Weights, hash_of_files

if TYPE_CHECKING:
    import numpy as np


class ImageClassifier:
    """The summed softmax probability of `labels`, in [0, 1], under the name `column`.

    The view is twice the size of the model's input, because most processors squeeze an image to a square.
    """

    def __init__(
        self, model: Any, processor: Any, labels: Sequence[str], column: str, weights_hash: str
    ) -> None:
        self._model, self._processor = model, processor
        self.column = column
        self.weights_hash = weights_hash
        known = {str(name).casefold(): int(number) for number, name in model.config.id2label.items()}
        for label in labels:
            if label.casefold() not in known:
                raise unknown("label of the classifier", label, model.config.id2label.values())
        self._classes = [known[label.casefold()] for label in labels]
        self.view = view_of(getattr(processor, "size", None) or {})

    @classmethod
    def load(
        cls,
        weights: str | Path,
        labels: Sequence[str],
        column: str,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> ImageClassifier:
        """Load a checkpoint of any class of `AutoModelForImageClassification`.

        Raises UserError if its files do not fit, or it has none of the labels.
        """
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        folder = Weights.parse(weights).fetch(EVERYTHING)
        if not folder.is_dir():
            raise UserError(f"the weights of the classifier are a file: {folder}", "name its folder")
        where = f"the image classifier in {folder}"
        with no_downloads():
            model = load_whole(
                AutoModelForImageClassification, folder, where, {"dtype": getattr(torch, dtype)}
            )
            processor = load_whole(AutoImageProcessor, folder, where)
        return cls(model.to(device).eval(), processor, labels, column, hash_of_files(folder))

    def score(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the probability of each image under `column`, float64 in [0, 1]."""
        import torch

        inputs = self._processor(images=as_pil(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            logits = self._model(pixel_values=pixels).logits
        found = logits.double().softmax(dim=-1)[:, self._classes].sum(dim=-1)
        return {self.column: found.cpu().numpy()}


def view_of(size: Mapping[str, Any]) -> View:
    """Return the view for the `size` of a preprocessor: twice its longer side.

    Raises UserError if it names no side.
    """
    sides = [value for value in dict(size).values() if isinstance(value, int)]
    if not sides:
        raise UserError(f"the classifier's preprocessor has the size {dict(size)}", "check its configuration")
    return View(shortest=2 * max(sides))
