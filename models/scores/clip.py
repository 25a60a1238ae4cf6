"""Embeddings of images and texts by a CLIP model of open_clip, and how well a caption fits its image.

Whatever is computed from an embedding (`heads`) takes the embedding, so that the model runs once per image.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from uhr.base.errors import UserError, install, one_line
from uhr.models.scores.images import View, as_pil
from uhr.models.scores.offline import no_downloads
from uhr.models.scores.weights import Weights, hash_of_files

if TYPE_CHECKING:
    import numpy as np
    import torch

CONFIG = "open_clip_config.json"

Dtype = Literal["float32", "float16", "bfloat16"]

_PRECISION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class ClipModel:
    """An image and a text tower of open_clip; embeddings are float32 of length 1.

    `view` is the size to which the model's own preprocessing resizes: it then only crops. A model that
    squeezes images to a square gets a view of twice its size.
    """

    def __init__(self, model: Any, dtype: Any, preprocess: Any, tokenizer: Any, weights_hash: str) -> None:
        import open_clip

        self._model, self._dtype, self._tokenizer = model, dtype, tokenizer
        self._transform = open_clip.transform.image_transform_v2(preprocess, is_train=False)
        self._device = next(model.parameters()).device
        self._side = preprocess.size if isinstance(preprocess.size, int) else max(preprocess.size)
        self._mean, self._std = preprocess.mean, preprocess.std
        self.view = _view(preprocess.size, preprocess.resize_mode, preprocess.interpolation)
        self.weights_hash = weights_hash

    @classmethod
    def load(
        cls,
        weights: str | Path,
        device: str = "cpu",
        dtype: Dtype = "float32",
        architecture: str | None = None,
    ) -> Self:
        """Load a model from a folder as open_clip publishes them, or from a file of weights.

        Args:
            weights: a local folder with `open_clip_config.json`, a hub id, an object store; or a file of
                weights, with `architecture`.
            device: a torch device.
            dtype: the precision of the towers.
            architecture: open_clip's name of the model of a file, such as `ViT-L-14-quickgelu` for OpenAI's.

        Raises:
            UserError: if open_clip is not installed, or the files do not fit.
        """
        if importlib.util.find_spec("open_clip") is None:
            raise UserError("the package 'open_clip' is not installed", install("clip"))
        import open_clip
        import torch

        source = Weights.parse(weights)
        path = source.fetch(("*.json", "*.safetensors", "*.txt", "*.model"))
        name, pretrained = f"local-dir:{path}", None
        if path.is_file():
            if architecture is None:
                raise UserError(
                    f"the weights {path} are a file without configuration", "name its architecture as well"
                )
            name, pretrained = architecture, str(path)
        elif not (path / CONFIG).is_file():
            raise UserError(f"{path} lacks {CONFIG}", "name a folder that open_clip published")
        try:
            with no_downloads():
                model = open_clip.create_model(
                    name,
                    pretrained,
                    precision=_PRECISION[dtype],
                    device=device,
                    pretrained_text=False,
                    require_pretrained=True,
                )
                tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:
            # open_clip raises RuntimeError, ValueError, OSError and what its loaders raise
            what = f"the CLIP model in {path} cannot be loaded ({one_line(error)[:200]})"
            raise UserError(what, "check its files") from error
        settings = open_clip.model.get_model_preprocess_cfg(model)
        preprocess = open_clip.transform.PreprocessCfg(**settings)
        input_dtype = open_clip.get_input_dtype(_PRECISION[dtype]) or torch.float32
        return cls(model.eval(), input_dtype, preprocess, tokenizer, hash_of_files(path))

    def embed(self, images: Sequence[Any]) -> torch.Tensor:
        """Return the embeddings of images, float32 [N, D] on the model's device."""
        import torch

        pixels = torch.stack([self._transform(image) for image in as_pil(images)])
        return self._normalised(self._model.encode_image, pixels.to(self._device, self._dtype))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of texts, float32 [N, D]. A text beyond the context (77 tokens in most
        models) is cut, as open_clip's tokenizer does.
        """
        tokens = self._tokenizer(list(texts))
        return self._normalised(self._model.encode_text, tokens.to(self._device))

    def score(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return `clip_embedding`, float32 [N, D]."""
        return {"clip_embedding": self.embed(images).cpu().numpy()}

    def fit(self, embeddings: np.ndarray, captions: Sequence[str | None]) -> np.ndarray:
        """Return 100 x the cosine of each image's embedding and its caption's, float64 [N], at least 0; NaN
        where there is no caption. This is torchmetrics' CLIP score (arXiv 2104.08718 without its factor 2.5).
        """
        import numpy as np

        found = np.full(len(captions), np.nan)
        rows = [row for row, caption in enumerate(captions) if caption]
        if rows:
            texts = self.embed_texts([captions[row] or "" for row in rows]).double().cpu().numpy()
            cosine = (np.asarray(embeddings, dtype=np.float64)[rows] * texts).sum(axis=1)
            found[rows] = np.maximum(100 * cosine, 0)
        return found

    def _normalised(self, tower: Any, values: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return torch.nn.functional.normalize(tower(values).float(), dim=-1)


def view_of(config: Mapping[str, Any]) -> View:
    """Return the view of a model by its `open_clip_config.json`; 224 px where that says nothing."""
    size = config.get("model_cfg", {}).get("vision_cfg", {}).get("image_size", 224)
    preprocess = config.get("preprocess_cfg", {})
    return _view(size, preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation"))


def _view(size: int | Sequence[int], resize_mode: str, interpolation: str | None) -> View:
    side = size if isinstance(size, int) else max(size)
    name = "bilinear" if interpolation == "bilinear" else "bicubic"
    if resize_mode == "longest":
        return View(longest=side, filter=name)
    return View(shortest=side * 2 if resize_mode == "squash" else side, filter=name)


def embed_query(weights: str, query: Path | str) -> np.ndarray:
    """Return the embedding of one image file (a Path) or text, float32 [D]. Raises UserError as `load`, and
    if the image cannot be decoded.
    """
    from uhr.pixels.decode import decode, read_bytes
    from uhr.pixels.types import PixelFault

    model = ClipModel.load(weights)
    if isinstance(query, str):
        return model.embed_texts([query])[0].cpu().numpy()
    try:
        pixels = decode(read_bytes(query)).rgb()
    except PixelFault as fault:
        raise UserError(f"{query}: {fault.kind}: {fault.message}", "name another image") from None
    return model.embed([model.view.of(pixels)])[0].cpu().numpy()
