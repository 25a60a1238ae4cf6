"""What a metric is: samples, score columns, values of sets, and the two kinds of metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from uhr.base.config import Config, fingerprint, installed_versions
from uhr.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from uhr.models.metrics.features import Features

Better = Literal["higher", "lower"]

Need = Literal["prompt", "reference"]


@dataclass(frozen=True)
class Sample:
    """One generated image, and what metrics may need beside it.

    image, reference: uint8 RGB [H, W, 3], decoded by `uhr.pixels`. index: the number of the image in its
    set, which the reference with the same number shares: it seeds the positions of crops. path: the file
    that the image was decoded from, for programs that read files.
    """

    image: np.ndarray
    index: int = 0
    prompt: str | None = None
    reference: np.ndarray | None = None
    path: Path | None = None


@dataclass(frozen=True)
class ScoreColumn:
    """A number that a metric gives: its column's name, direction, meaning and range.

    mean: how the values of a set are averaged. weight: the column whose values weight this mean: of how many
    answers, say, an image's value is the mean. An image of weight 0 has no value of its own.
    """

    name: str
    better: Better | None
    meaning: str
    range: str = ""
    mean: Literal["arithmetic", "harmonic"] = "arithmetic"
    weight: str | None = None


@dataclass(frozen=True)
class Value:
    """A number that describes a set.

    spread: a standard deviation or standard error; `spread_of` says of what. n: rows of the smaller set.
    """

    value: float
    n: int
    spread: float | None = None
    spread_of: Literal["subsets", "splits", "jackknife"] | None = None


@dataclass(frozen=True)
class About:
    """What `metrics list` says about a metric.

    weights: each option without which there are no weights, with what they are and where they are published.
    optional: the same for options that may be left out.
    """

    measures: str
    licence: str
    source: str
    weights: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Minimum:
    """What a metric needs at least of the images, as far as its options alone tell.

    images, references: how many. side: px of the shorter side of each image. references_side: the same of
    each reference. same_size: whether each image must have the size of its reference.
    """

    images: int = 1
    references: int = 0
    side: int = 1
    references_side: int = 1
    same_size: bool = False


class MetricClass(Protocol):
    """What the registry needs of a class of metrics.

    A class may also have `minimum(options)`, which returns a `Minimum`: what is too little is then reported
    before anything is loaded.
    """

    about: ClassVar[About]
    Options: ClassVar[type[Config]]

    @classmethod
    def load(cls, options: Any, device: str) -> Any:
        """Make the metric from its `Options`. Raises UserError if weights or packages are missing."""
        ...


class Metric(Protocol):
    """What metrics of images and of sets have.

    name: the full name, with what papers leave unsaid: backbone, scale, resize rule. It does not depend on
    where weights are: their hash is in the identity. needs: what each sample must have. columns: of its
    values.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def columns(self) -> tuple[ScoreColumn, ...]: ...

    def identity(self) -> dict[str, Any]:
        """Return what the values depend on: options, SHA-256 of weights, versions of libraries, and for a
        metric of sets the identity of its extractor."""
        ...


@runtime_checkable
class ImageMetric(Metric, Protocol):
    """A metric of single images."""

    def score(self, samples: Sequence[Sample]) -> list[dict[str, float | None]]:
        """Return the value of each column for each sample, None where an image has nothing that could be
        measured: it is left out of the mean. Raises UserError for a sample that it cannot score."""
        ...


class Extractor(Protocol):
    """Turns an image into rows of features: one for the whole image, or one for each crop."""

    name: str

    def identity(self) -> dict[str, Any]:
        """Return what the features depend on. Features of another identity cannot be compared with these."""
        ...

    def features(self, image: np.ndarray, index: int) -> Features:
        """Return the features of one image, uint8 RGB [H, W, 3], with this number in its set."""
        ...


@runtime_checkable
class SetMetric(Metric, Protocol):
    """A metric of a set of images, from the features that its extractor gives for each of them.

    Metrics whose extractors have the same `key` share features: each image is seen once.
    """

    @property
    def extractor(self) -> Extractor: ...

    def compare(self, reference: Features | None, generated: Features, seed: int = 0) -> dict[str, Value]:
        """Return the value of each column. `reference` is None if `needs` has no "reference".

        Raises UserError for features of another extractor, too few rows, or values that are not finite.
        """
        ...


def key(made: ImageMetric | SetMetric | Extractor) -> str:
    """Return the SHA-256 (64 hex digits) of an identity."""
    return fingerprint(made.identity())


def column_name(name: str) -> str:
    """Return a name that SQL takes without quotes: `fid/inception-v3/clean` becomes
    `fid_inception_v3_clean`."""
    return re.sub(r"\W+", "_", name.replace("+", "_plus")).strip("_").lower()


def check_image(image: Any, what: str = "an image") -> np.ndarray:
    """Return the image as an array if it is uint8 [H, W, 3]. Raises ValueError for anything else."""
    import numpy as np

    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"{what} is uint8 [H, W, 3], and this is {pixels.dtype} {list(pixels.shape)}")
    return pixels


def check_samples(metric: ImageMetric, samples: Sequence[Sample]) -> None:
    """Raise UserError for the first sample that lacks what the metric needs."""
    for sample in samples:
        check_image(sample.image)
        if "prompt" in metric.needs and not (sample.prompt or "").strip():
            raise UserError(
                f"image {sample.index} has no prompt, which {metric.name} needs", "give each image its prompt"
            )
        if "reference" in metric.needs:
            if sample.reference is None:
                raise UserError(
                    f"image {sample.index} has no reference, which {metric.name} needs",
                    "give each image its reference",
                )
            check_image(sample.reference, "a reference")


def check_same_size(sample: Sample, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return image and reference. Raises UserError if they differ in size."""
    assert sample.reference is not None
    image, reference = check_image(sample.image), check_image(sample.reference)
    if image.shape != reference.shape:
        what, that = (f"{each.shape[1]}x{each.shape[0]}" for each in (image, reference))
        text = f"image {sample.index} has {what} px and its reference {that}, and {name} compares pixels"
        raise UserError(text, "give both the same size")
    return image, reference


def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package, for an identity; "unknown" if it is not found."""
    return installed_versions(*packages, absent="unknown")
