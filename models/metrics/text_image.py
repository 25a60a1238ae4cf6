"""How well an image fits its prompt, and how much people prefer it."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.metrics.base import About, Need, Sample
from uhr.models.metrics.per_image import PerImage
from uhr.models.scores.weights import EVERYTHING, Weights

Convention = Literal["x100", "torchmetrics", "w2.5", "cosine"]

CONVENTIONS: Mapping[Convention, str] = {
    "x100": "100 x cosine, at least 0; the end of a long prompt is cut, its end token is kept",
    "torchmetrics": "the same, but a prompt beyond the context loses its end token (Diffusion-4K's tables)",
    "w2.5": "2.5 x cosine, at least 0, of the prompt after 'A photo depicts ' (arXiv 2104.08718)",
    "cosine": "the cosine alone",
}
"""How the cosine of the two embeddings becomes a CLIP score: values of two conventions cannot be compared."""

PREFIX = "A photo depicts "

_LETTERS: Mapping[int, str] = {768: "b", 1024: "l", 1280: "h", 1408: "g", 1664: "bigg"}
"""The sizes of vision transformers by their width."""

_PACKAGES = ("torch", "transformers", "pillow")


class _OfPrompt(PerImage):
    """Base of metrics of an image and its prompt."""

    needs: frozenset[Need] = frozenset({"prompt"})

    def values(self, sample: Sample) -> tuple[float]:
        assert sample.prompt is not None
        return (self.fit(sample.image, sample.prompt),)

    @abstractmethod
    def fit(self, image: Any, prompt: str) -> float:
        """Return how well the image, uint8 RGB [H, W, 3], fits the prompt."""


class ClipScore(_OfPrompt):
    """CLIP score by any CLIP model of transformers or open_clip, in one of `CONVENTIONS`."""

    about = About(
        "fit of image and prompt by the cosine of their CLIP embeddings",
        "weights: MIT (OpenAI's)",
        "arXiv 2104.08718",
        {
            "weights": "huggingface.co/openai/clip-vit-base-patch16 (Diffusion-4K), or any folder of "
            "transformers' CLIPModel or of open_clip"
        },
    )

    class Options(Config):
        """weights: a folder or hub id; or a file of open_clip with its architecture. convention: of
        `CONVENTIONS`.
        """

        weights: str | None = None
        architecture: str | None = None
        convention: Convention = "x100"

    def __init__(self, model: Any, name: str, convention: Convention) -> None:
        self._model, self._convention = model, convention
        # which prefix a prompt has is part of the name, as are backbone and scale
        prefix = "/" + PREFIX.strip().lower().replace(" ", "-") if convention == "w2.5" else ""
        library = "open_clip_torch" if hasattr(model, "view") else "transformers"
        super().__init__(
            f"clip-score/{name}/{convention}{prefix}",
            "[-1, 1]" if convention == "cosine" else ">= 0",
            weights={"weights": model.weights_hash},
            packages=("torch", "pillow", library),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> ClipScore:
        """Load the model. Raises UserError if it is not named, or is no CLIP model."""
        if options.weights is None:
            raise UserError("the CLIP score's weights are not named", f"name {cls.about.weights['weights']}")
        model = load_clip(options.weights, options.architecture, device)
        if options.convention == "torchmetrics" and hasattr(model, "view"):
            raise UserError(
                "the convention 'torchmetrics' is that of transformers, and the weights are open_clip's",
                "name a folder of transformers, or use x100",
            )
        return cls(model, options.architecture or backbone(options.weights), options.convention)

    def fit(self, image: Any, prompt: str) -> float:
        text = PREFIX + prompt if self._convention == "w2.5" else prompt
        options = {"keep_end": False} if self._convention == "torchmetrics" else {}
        one, other = self._model.embed([image]), self._model.embed_texts([text], **options)
        cosine = float((one.double() * other.double()).sum())
        if self._convention == "cosine":
            return cosine
        return max((2.5 if self._convention == "w2.5" else 100) * cosine, 0.0)


def load_clip(weights: str, architecture: str | None, device: str) -> Any:
    """Load a CLIP model with the library that its files are of: transformers if `config.json` says so, else
    open_clip.
    """
    from uhr.models.scores.clip import ClipModel
    from uhr.models.scores.preference.transformers_clip import TransformersClip, model_type

    if architecture is None:
        folder = Weights.parse(weights).fetch(EVERYTHING)
        if folder.is_dir() and model_type(folder) == "clip":
            return TransformersClip.load(folder, device=device)
    return ClipModel.load(weights, device, architecture=architecture)


def backbone(weights: str) -> str:
    """Return the image tower of a folder of CLIP by its configuration: `vit-b-16`, or `vit-32-8` for a width
    that has no letter.
    """
    folder = Weights.parse(weights).fetch(EVERYTHING)
    open_clip = _tree(folder / "open_clip_config.json").get("model_cfg", {}).get("vision_cfg")
    vision = _tree(folder / "config.json").get("vision_config", {}) if open_clip is None else open_clip
    if isinstance(name := vision.get("timm_model_name"), str):
        return name
    if isinstance(vision.get("layers"), list):
        return f"resnet-{vision.get('width', 64)}"
    # the defaults of both libraries
    width = vision.get("hidden_size" if open_clip is None else "width", 768)
    patch = vision.get("patch_size", 32 if open_clip is None else 16)
    return f"vit-{_LETTERS.get(width, width)}-{patch}"


def _tree(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes()) if file.is_file() else {}


class PickScore(_OfPrompt):
    """PickScore: logit scale x cosine of a CLIP ViT-H/14 that was trained on people's choices, about 20 to
    23.
    """

    about = About(
        "preference by a CLIP model trained on people's choices",
        "weights: see their model card",
        "arXiv 2305.01569",
        {"weights": "huggingface.co/yuvalkirstain/PickScore_v1"},
        {"processor": "huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K, if those lack a tokenizer"},
    )

    class Options(Config):
        """weights: a folder or hub id. processor: of the tokenizer and preprocessing, if they are
        elsewhere.
        """

        weights: str = "yuvalkirstain/PickScore_v1"
        processor: str | None = None

    def __init__(self, model: Any) -> None:
        self._model = model
        super().__init__("pick-score", weights={"weights": model.weights_hash}, packages=_PACKAGES)

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> PickScore:
        from uhr.models.scores.preference.transformers_clip import TransformersClip

        model = TransformersClip.load(options.weights, options.processor, device)
        return cls(model)

    def fit(self, image: Any, prompt: str) -> float:
        one, other = self._model.embed([image]), self._model.embed_texts([prompt])
        return self._model.logit_scale * float((one.double() * other.double()).sum())


class HpsV21(_OfPrompt):
    """HPS v2.1: 100 x cosine, as tables give it; the package `hpsv2` prints it without the factor."""

    about = About(
        "preference by a CLIP model trained on people's choices",
        "weights: Apache-2.0",
        "arXiv 2306.09341",
        {"weights": "HPS_v2.1_compressed.pt of huggingface.co/xswu/HPSv2"},
    )

    class Options(Config):
        """weights: the file or `xswu/HPSv2:HPS_v2.1_compressed.pt`. architecture: open_clip's name of the
        model.
        """

        weights: str = "xswu/HPSv2:HPS_v2.1_compressed.pt"
        architecture: str = "ViT-H-14"

    def __init__(self, model: Any) -> None:
        self._model = model
        super().__init__(
            "hps-v2.1/x100",
            weights={"weights": model.weights_hash},
            packages=("torch", "open_clip_torch"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> HpsV21:
        from uhr.models.scores.preference.hps import HpsModel

        model = HpsModel.load(options.weights, device, architecture=options.architecture)
        return cls(model)

    def fit(self, image: Any, prompt: str) -> float:
        one, other = self._model.embed([image]), self._model.embed_texts([prompt])
        return 100 * float((one.double() * other.double()).sum())


class ImageRewardScore(_OfPrompt):
    """ImageReward: how many standard deviations above the mean of its training the reward is."""

    about = About(
        "preference by a BLIP model trained on people's rankings",
        "weights: Apache-2.0",
        "arXiv 2304.05977",
        {
            "weights": "ImageReward.pt of huggingface.co/THUDM/ImageReward",
            "tokenizer": "huggingface.co/google-bert/bert-base-uncased",
        },
    )

    class Options(Config):
        """weights: the file. tokenizer: a folder or hub id of BERT's."""

        weights: str = "THUDM/ImageReward:ImageReward.pt"
        tokenizer: str = "google-bert/bert-base-uncased"

    def __init__(self, model: Any) -> None:
        self._model = model
        super().__init__(
            "image-reward",
            weights={"weights": model.weights_hash},
            packages=(*_PACKAGES, "torchvision"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> ImageRewardScore:
        from uhr.models.scores.preference.image_reward import ImageReward

        return cls(ImageReward.load(options.weights, options.tokenizer, device))

    def fit(self, image: Any, prompt: str) -> float:
        return self._model.score(image, prompt)
