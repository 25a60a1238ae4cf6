"""Quality and aesthetics of single images by models, the same that score in curation
(`uhr.models.scores`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.metrics.base import About, Minimum, Sample, column_name
from uhr.models.metrics.per_image import PerImage
from uhr.models.metrics.resizing import crops
from uhr.models.scores.images import View


class PyiqaQuality(PerImage):
    """Any no-reference metric of pyiqa, in two columns: of the whole image, reduced by a named rule, and
    the mean over native crops. The first judges composition and large structures, the second what is seen
    at 100 %.
    """

    about = About(
        "image quality by a no-reference metric of pyiqa",
        "pyiqa: PolyForm-Noncommercial-1.0.0; weights: see each metric",
        "pyiqa",
        optional={"files": "huggingface.co/chaofengc/IQA-PyTorch-Weights (piqe and entropy need none)"},
    )

    class Options(Config):
        """metric: a name of `pyiqa.list_models("NR")`. files: a folder with pyiqa's files or the hub
        repository; null: what pyiqa has downloaded before. short: px of the shorter side that larger images
        are reduced to; null: the image's own size, whatever memory that takes. crops, side: how many native
        crops, and their px; 0 crops leave the second column out.
        """

        metric: str = "musiq"
        files: str | None = None
        short: int | None = Field(1024, ge=32)
        crops: int = Field(10, ge=0, le=1000)
        side: int = Field(512, ge=32)

    @classmethod
    def minimum(cls, options: Options) -> Minimum:
        return Minimum(side=options.side if options.crops else 1)

    def __init__(self, scorer: Any, options: Options) -> None:
        self._scorer, self._options = scorer, options
        self.better = "lower" if scorer.lower_better else "higher"
        whole = "native" if options.short is None else f"bicubic-short-{options.short}"
        cut = f"native-{options.crops}x{options.side}"
        columns = {column_name(f"{scorer.name}_{whole}"): f", of the whole image ({whole})"}
        if options.crops:
            columns[column_name(f"{scorer.name}_{cut}")] = f", mean over crops ({cut})"
        super().__init__(
            "/".join((scorer.name, whole, *([cut] if options.crops else ()))),
            scorer.range or "",
            columns,
            {"weights": scorer.weights_hash},
            ("torch", "pyiqa"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> PyiqaQuality:
        """Make the metric. Raises UserError if pyiqa has none of that name, or a file is lacking."""
        from uhr.models.scores.pyiqa_metrics import PyiqaMetric

        return cls(PyiqaMetric.load(options.metric, options.files, device), options)

    def values(self, sample: Sample) -> list[float]:
        options = self._options
        whole = sample.image if options.short is None else View(shortest=options.short).of(sample.image)
        found = [self._mean([whole])]
        if options.crops:
            cut = crops(sample.image, sample.index, options.crops, options.side, self.name)
            found.append(self._mean(list(cut)))
        return found

    def _mean(self, images: Sequence[Any]) -> float:
        (values,) = self._scorer.score(images).values()
        return float(values.mean())


class QAlignScore(PerImage):
    """Q-Align: quality and aesthetics from 1 to 5, of the whole image as pyiqa gives it to the model."""

    about = About(
        "quality and aesthetics by a vision-language model",
        "pyiqa: PolyForm-Noncommercial-1.0.0; weights: see their model card",
        "arXiv 2312.17090, through pyiqa",
        {"weights": "huggingface.co/q-future/one-align"},
    )

    class Options(Config):
        """weights: a folder, hub id or s3:// of q-future/one-align. tasks: quality, aesthetic or both."""

        weights: str = "q-future/one-align"
        tasks: tuple[Literal["quality", "aesthetic"], ...] = Field(("quality", "aesthetic"), min_length=1)

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        super().__init__(
            "q-align",
            "[1, 5]",
            {f"q_align_{task}": f": {task}" for task in scorer.tasks},
            {"weights": scorer.weights_hash},
            ("torch", "transformers", "pyiqa"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> QAlignScore:
        from uhr.models.scores.q_align import QAlign

        scorer = QAlign.load(options.weights, device, options.tasks, native=True)
        return cls(scorer)

    def values(self, sample: Sample) -> list[float]:
        return [float(values[0]) for values in self._scorer.score([sample.image]).values()]


class Artimuse(PerImage):
    """ArtiMuse: the expected value over its 101 scores, 0 to 100, of the image at 896 px on its longer
    side.
    """

    about = About(
        "aesthetics by a vision-language model",
        "weights: see their model card",
        "arXiv 2507.14533",
        {
            "weights": "huggingface.co/Thunderbolt215215/ArtiMuse",
            "prompt": "a file with the question of `InternVLChatModel.score` in ArtiMuse's code",
        },
        {"system": "a file with the system message of its conversation `internvl2_5`"},
    )

    class Options(Config):
        """weights: the published checkpoint or the converted one. prompt, system: files with the question
        and the system message that it was trained with.
        """

        weights: str | None = None
        prompt: str | None = None
        system: str | None = None
        longest: int = Field(896, ge=32)

    def __init__(self, judge: Any, dtype: str) -> None:
        self._judge = judge
        super().__init__(
            f"artimuse/longest-{judge.view.longest}",
            judge.rating.range,
            weights={"weights": judge.weights_hash, "rating": judge.rating.hash, "dtype": dtype},
            packages=("torch", "transformers"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> Artimuse:
        """Load the checkpoint. Raises UserError if it or a text is not named."""
        from uhr.models.scores.artimuse import OPTIONS, WORDS, converted
        from uhr.models.scores.captions import read_text
        from uhr.models.scores.rating import LocalJudge, Rating

        if options.weights is None or options.prompt is None:
            option = "weights" if options.weights is None else "prompt"
            raise UserError(f"ArtiMuse needs {option}", f"name {cls.about.weights[option]}")
        system = None if options.system is None else read_text(options.system)
        rating = Rating(read_text(options.prompt), WORDS, system)
        dtype = "float32" if device == "cpu" else "bfloat16"
        view = View(longest=options.longest)
        judge = LocalJudge.load(converted(options.weights), rating, "artimuse", view, device, dtype, OPTIONS)
        return cls(judge, dtype)

    def values(self, sample: Sample) -> tuple[float]:
        (found,) = self._judge.score([self._judge.view.of(sample.image)])["artimuse"]
        return (float(found),)


class LaionAesthetics(PerImage):
    """LAION's aesthetic score: a linear head over a CLIP ViT-L/14's embedding, about 1 to 10."""

    about = About(
        "aesthetics by a head over CLIP embeddings",
        "head: Apache-2.0; CLIP: MIT",
        "github.com/christophschuhmann/improved-aesthetic-predictor",
        {
            "weights": "sac+logos+ava1-l14-linearMSE.pth of "
            "github.com/christophschuhmann/improved-aesthetic-predictor",
            "clip": "OpenAI's CLIP ViT-L/14: huggingface.co/openai/clip-vit-large-patch14, or of open_clip",
        },
    )

    class Options(Config):
        """weights: the file of the head. clip: a folder or hub id of the CLIP model, or a file with
        architecture.
        """

        weights: str | None = None
        clip: str = "openai/clip-vit-large-patch14"
        architecture: str | None = None

    def __init__(self, head: Any, clip: Any) -> None:
        self._head, self._clip = head, clip
        super().__init__(
            "laion-aesthetics",
            weights={"weights": head.weights_hash, "clip": clip.weights_hash},
            packages=("torch", "transformers", "pillow"),
        )

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> LaionAesthetics:
        from uhr.models.metrics.text_image import load_clip
        from uhr.models.scores.heads import Head

        if options.weights is None:
            raise UserError("LAION's aesthetic score needs weights", f"name {cls.about.weights['weights']}")
        head = Head.load("laion-aesthetic", options.weights, device)
        return cls(head, load_clip(options.clip, options.architecture, device))

    def values(self, sample: Sample) -> tuple[float]:
        embedding = self._clip.embed([sample.image])
        return (float(self._head.score(embedding.cpu().numpy())[0]),)
