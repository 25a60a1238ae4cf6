"""Small networks over CLIP embeddings: LAION's aesthetic score, the probability of NSFW or a watermark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uhr.base.errors import UserError
from uhr.models.scores.weights import Weights, hash_of_files, read_tensors

if TYPE_CHECKING:
    import numpy as np
    import torch

Kind = Literal["laion-aesthetic", "clip-nsfw-l14", "clip-nsfw-h14", "probability"]


@dataclass(frozen=True)
class _Layout:
    """`relu_except` is the number of steps between linear layers, counted from the end, that have no ReLU;
    None if none has one. `output` is what the last layer's value goes through.
    """

    relu_except: int | None
    output: Literal["identity", "sigmoid", "clip"]


LAYOUTS: Mapping[str, _Layout] = {
    # sac+logos+ava1-l14-linearMSE (github.com/christophschuhmann/improved-aesthetic-predictor)
    "laion-aesthetic": _Layout(None, "identity"),
    # clip_autokeras_binary_nsfw in PyTorch, over ViT-L/14 (github.com/LAION-AI/CLIP-based-NSFW-Detector)
    "clip-nsfw-l14": _Layout(0, "sigmoid"),
    # h14_nsfw over ViT-H/14, from the same repository: trained on 0 and 1 without a sigmoid
    "clip-nsfw-h14": _Layout(1, "clip"),
    "probability": _Layout(0, "sigmoid"),
}
"""`probability` is any other chain of linear layers with ReLU between them and a sigmoid at the end."""


class Head:
    """Linear layers over embeddings of length 1, in float32. Dropout, which is idle here, has no weights."""

    def __init__(
        self, kind: Kind, layers: list[tuple[Any, Any]], norm: tuple[Any, Any] | None, weights_hash: str
    ) -> None:
        self.kind = kind
        self._layers, self._norm = layers, norm
        self.width: int = layers[0][0].shape[1]
        self.weights_hash = weights_hash

    @classmethod
    def load(cls, kind: Kind, weights: str | Path, device: str = "cpu") -> Head:
        """Load a head from a safetensors or PyTorch file.

        Raises UserError if the file has other layers than a chain from an embedding to one number.
        """
        path = Weights.parse(weights).fetch()
        if not path.is_file():
            raise UserError(f"the weights of the head {kind} are a folder: {path}", "name the file in it")
        tensors = {name: tensor.float().to(device) for name, tensor in read_tensors(path).items()}
        return cls(kind, *_layers(tensors, path), hash_of_files(path))

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return one value for each embedding [N, D] of length 1, float32 [N]."""
        import torch

        if embeddings.shape[-1] != self.width:
            what = f"the head {self.kind} takes embeddings of {self.width} numbers, and these have "
            raise UserError(f"{what}{embeddings.shape[-1]}", "name the head of this CLIP model")
        layout, values = LAYOUTS[self.kind], embeddings
        if self._norm is not None:
            values = (values - self._norm[0]) / self._norm[1].sqrt()
        for number, (weight, bias) in enumerate(self._layers):
            values = torch.nn.functional.linear(values, weight, bias)
            left = len(self._layers) - 1 - number
            if layout.relu_except is not None and left > layout.relu_except:
                values = values.relu()
        values = values[:, 0]
        if layout.output == "sigmoid":
            return values.sigmoid()
        return values.clamp(0, 1) if layout.output == "clip" else values

    def score(self, embeddings: Any) -> np.ndarray:
        """Return the same for an array or rows of numbers: float64 [N]."""
        import numpy as np
        import torch

        values = torch.as_tensor(np.asarray(embeddings, dtype=np.float32)).to(self._layers[0][0].device)
        with torch.inference_mode():
            return self(values).double().cpu().numpy()


def _layers(tensors: Mapping[str, Any], path: Path) -> tuple[list[tuple[Any, Any]], tuple[Any, Any] | None]:
    """Return the linear layers in their order, and mean and variance of the input if the file has them."""
    left = dict(tensors)
    mean = next((name for name in left if name.endswith("mean")), None)
    norm = None
    if mean is not None and f"{mean[:-4]}variance" in left:
        norm = (left.pop(mean), left.pop(f"{mean[:-4]}variance"))
    names = sorted((name for name in left if name.endswith(".weight")), key=_natural)
    layers = [(left.pop(name), left.pop(f"{name[:-6]}bias", None)) for name in names]
    widths = [layers[0][0].shape[-1]] if layers else []
    for weight, bias in layers:
        fits = weight.ndim == 2 and weight.shape[1] == widths[-1]
        if not fits or bias is None or bias.shape != weight.shape[:1]:
            raise UserError(f"{path} is no chain of linear layers", "name the weights of a head")
        widths.append(weight.shape[0])
    if left or not layers or widths[-1] != 1 or (norm and norm[0].shape[-1] != widths[0]):
        raise UserError(f"{path} is no chain of linear layers to one number", "name the weights of a head")
    return layers, norm


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
