"""FID, KID and Inception Score, of whole images and of native crops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from uhr.base.config import Config
from uhr.models.metrics.base import About, Extractor, Minimum, Need, ScoreColumn, Value, column_name
from uhr.models.metrics.features import Features
from uhr.models.metrics.resizing import SIDE, rule
from uhr.models.metrics.sets import distances, jackknife
from uhr.models.metrics.sets.inception import HOW, InceptionExtractor, load_network
from uhr.models.metrics.sets.random_features import RandomExtractor

if TYPE_CHECKING:
    import numpy as np

_REFERENCE: frozenset[Need] = frozenset({"reference"})

_INCEPTION_LICENCE = "weights: Apache-2.0 (TensorFlow)"

_CROPS = "; on native crops, never resized"


class ImageOptions(Config):
    """weights: a file of FID's Inception network. resize: the rule. side: px of the squares of
    `diffusion-4k`."""

    weights: str | None = None
    resize: Literal["clean", "bilinear", "diffusion-4k"] = "clean"
    side: int | None = Field(None, ge=299)


class CropOptions(Config):
    """weights: a file of FID's Inception network. crops: of each image; 10 at 2K and 40 at 4K."""

    weights: str | None = None
    crops: int = Field(10, ge=1, le=1000)


class RandomOptions(Config):
    """crops: native crops of 299 px of each image; 0 for the whole image."""

    crops: int = Field(0, ge=0, le=1000)


class _OfFeatures(ABC):
    """Base of the metrics of features: a statistic under a name, and what checks them."""

    kind: ClassVar[str]
    about: ClassVar[About]
    needs: frozenset[Need] = _REFERENCE
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    range: ClassVar[str] = ">= 0"
    fewest_rows: ClassVar[int] = 2
    array: ClassVar[str] = "features"

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.name = f"{self.kind}/{extractor.name}"
        column = ScoreColumn(column_name(self.name), self.better, self.about.measures, self.range)
        self.columns = (column,)

    def identity(self) -> dict[str, Any]:
        return {"metric": self.name, **self.extractor.identity()}

    def compare(self, reference: Features | None, generated: Features, seed: int = 0) -> dict[str, Value]:
        identity = self.extractor.identity()
        generated.check(identity, "the features of the generated images")
        if "reference" in self.needs:
            if reference is None:
                raise ValueError(f"{self.name} needs features of references")
            reference.check(identity, "the features of the references")
        return {self.columns[0].name: self.value(reference, generated, seed)}

    def without(
        self, reference: Features | None, generated: Features, groups: np.ndarray, seed: int = 0
    ) -> dict[str, np.ndarray | None]:
        """Return the value of each column without the images of each group, float64 [G], where groups, int
        [images], is the group of each image from 0 to G - 1; None where too few images are left.
        """
        import numpy as np

        rows = groups[np.unique(generated.numbers, return_inverse=True)[1]]
        return {self.columns[0].name: self.left_out(reference, generated, rows, seed)}

    def variation(self, features: Features) -> float:
        """Return how much what is compared differs between images (`distances.variation`)."""
        return distances.variation(features, self.array)

    @classmethod
    def minimum(cls, options: Any) -> Minimum:
        # rows of features: one of each image, or one of each crop
        each = max(1, getattr(options, "crops", 0))
        side = SIDE if getattr(options, "crops", 0) else 1
        count = -(-cls.fewest_rows // each)
        if "reference" not in cls.needs:
            return Minimum(images=count, side=side)
        return Minimum(count, count, side, side)

    @abstractmethod
    def value(self, reference: Features | None, generated: Features, seed: int) -> Value:
        """As `compare`, of the only column."""

    @abstractmethod
    def left_out(
        self, reference: Features | None, generated: Features, groups: np.ndarray, seed: int
    ) -> np.ndarray | None:
        """As `without`, of the only column; groups is the group of each row."""


class _Images:
    """With the Inception network on whole images."""

    Options = ImageOptions

    @classmethod
    def load(cls: Any, options: ImageOptions, device: str = "cpu") -> Any:
        named = rule(options.resize, options.side)
        return cls(InceptionExtractor(load_network(options.weights, device), named))


class _Crops:
    """With the Inception network on native crops."""

    Options = CropOptions

    @classmethod
    def load(cls: Any, options: CropOptions, device: str = "cpu") -> Any:
        return cls(InceptionExtractor(load_network(options.weights, device), None, options.crops))


class _Random:
    """With random features, which need no weights."""

    Options = RandomOptions

    @classmethod
    def load(cls: Any, options: RandomOptions, device: str = "cpu") -> Any:
        return cls(RandomExtractor(options.crops))


class _Frechet(_OfFeatures):
    def value(self, reference: Features | None, generated: Features, seed: int) -> Value:
        assert reference is not None
        return distances.frechet(reference, generated, "features")

    def left_out(
        self, reference: Features | None, generated: Features, groups: np.ndarray, seed: int
    ) -> np.ndarray | None:
        assert reference is not None
        return jackknife.frechet(reference, generated, "features", groups)


class _Kernel(_OfFeatures):
    # the estimator is unbiased
    range = ">= 0 on average, and below 0 by chance for sets of one distribution"

    def value(self, reference: Features | None, generated: Features, seed: int) -> Value:
        assert reference is not None
        return distances.kernel(reference, generated, "features", seed)

    def left_out(
        self, reference: Features | None, generated: Features, groups: np.ndarray, seed: int
    ) -> np.ndarray | None:
        assert reference is not None
        return jackknife.kernel(reference, generated, "features", groups)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "subsets": distances.SUBSETS, "subset": distances.SUBSET}


class _Score(_OfFeatures):
    needs: frozenset[Need] = frozenset()
    better = "higher"
    range = ">= 1"
    array = "probabilities"
    fewest_rows = distances.SPLITS

    def value(self, reference: Features | None, generated: Features, seed: int) -> Value:
        return distances.inception_score(generated, "probabilities", seed)

    def left_out(
        self, reference: Features | None, generated: Features, groups: np.ndarray, seed: int
    ) -> np.ndarray | None:
        return jackknife.inception_score(generated, "probabilities", groups, seed)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "splits": distances.SPLITS}


def _about(measures: str, source: str) -> About:
    return About(measures, _INCEPTION_LICENCE, source, {"weights": HOW})


class Fid(_Images, _Frechet):
    """Fréchet Inception distance."""

    kind = "fid"
    about = _about("distance of the features' Gaussians from those of the references", "arXiv 1706.08500")


class Kid(_Images, _Kernel):
    """Kernel Inception distance; tables often give it multiplied by 1,000."""

    kind = "kid"
    about = _about("kernel distance of the features from those of the references", "arXiv 1801.01401")


class InceptionScore(_Images, _Score):
    """Inception Score."""

    kind = "inception-score"
    about = _about("how certain and how varied the predicted classes are", "arXiv 1606.03498")


class PatchFid(_Crops, _Frechet):
    """FID of native crops, as papers at 2K and 4K report it."""

    kind = "patch-fid"
    about = _about(Fid.about.measures + _CROPS, Fid.about.source)


class PatchKid(_Crops, _Kernel):
    """KID of native crops."""

    kind = "patch-kid"
    about = _about(Kid.about.measures + _CROPS, Kid.about.source)


class PatchInceptionScore(_Crops, _Score):
    """Inception Score of native crops."""

    kind = "patch-inception-score"
    about = _about(InceptionScore.about.measures + _CROPS, InceptionScore.about.source)


class RandomFrechet(_Random, _Frechet):
    """Fréchet distance of random features: needs no weights, and is no FID."""

    kind = "random-frechet"
    about = About(
        "distance of random features; for trying a protocol without weights, and no FID",
        "Apache-2.0",
        "this project",
    )


class RandomKernel(_Random, _Kernel):
    """Kernel distance of random features: needs no weights, and is no KID."""

    kind = "random-kernel"
    about = About(
        "kernel distance of random features; for trying a protocol without weights, and no KID",
        "Apache-2.0",
        "this project",
    )
