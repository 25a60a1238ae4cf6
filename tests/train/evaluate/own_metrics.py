"""Metrics of a user's own, by import path."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import ClassVar

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.models.metrics.base import About, ScoreColumn


class Brightness:
    """The mean of all pixels. It fails at the image whose number is in the file `stop`, if there is one."""

    about = About("brightness", "Apache-2.0", "a test")
    needs = frozenset()

    class Options(Config):
        """scale: of the values."""

        scale: float = 1.0

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.name = f"brightness/{scale:g}"
        self.columns = (ScoreColumn("brightness", "higher", "brightness"),)

    @classmethod
    def load(cls, options, device="cpu"):
        return cls(options.scale)

    def identity(self):
        return {"metric": self.name}

    def score(self, samples):
        found = []
        for sample in samples:
            stop = Path("stop")
            if stop.exists() and int(stop.read_text()) == sample.index:
                raise UserError("stopped", "remove the file stop")
            with open("scored", "a") as file:
                file.write(f"{sample.index}\n")
            found.append({"brightness": self.scale * float(sample.image.mean())})
        return found


class Paired(Brightness):
    """The mean absolute difference from the reference."""

    needs = frozenset({"reference", "prompt"})

    def score(self, samples):
        return [
            {"brightness": float(abs(sample.image.astype(float) - sample.reference.astype(float)).mean())}
            for sample in samples
        ]


class NotFinite(Brightness):
    """No number."""

    def score(self, samples):
        return [{"brightness": float("nan")} for _ in samples]


class Weighted(Brightness):
    """Needs weights."""

    about = About("brightness", "Apache-2.0", "a test", {"file": "a file of weights, from nowhere"})

    class Options(Config):
        """file: of the weights."""

        file: str | None = None
        scale: float = 1.0


class Hashed(Weighted):
    """Its identity has the text of its file."""

    @classmethod
    def load(cls, options, device="cpu"):
        made = cls(options.scale)
        made.name, made.weights = "hashed", Path(options.file).read_text()
        return made

    def identity(self):
        return {"metric": self.name, "weights": self.weights}


def seed(image, *_):
    """A function of two numbers, one of which is called as a column of every result."""
    return {"seed": 7, "noise": 8}


def answer(image, question):
    """A function that answers questions: Yes or no by the image and the question, maybe for questions about
    maybes."""
    import zlib

    if "maybe" in question:
        return "maybe"
    return "No." if zlib.crc32(image.tobytes() + question.encode()) % 3 == 0 else "Yes, it is"


class Model(Weighted):
    """Brightness by a model: at most one is loaded at a time where the file `alone` exists, and the second
    one stops where `stop-two` does. All have one name and one column."""

    loaded: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    @classmethod
    def load(cls, options, device="cpu"):
        made = cls(options.scale)
        made.name, made.weights = "model", Path(options.file).read_text()
        if made.weights == "damaged":
            raise UserError(f"{Path(options.file).name} is damaged", "download it again")
        if Path("alone").exists():
            assert not cls.loaded, "another model is still loaded"
        cls.loaded.add(made)
        with open("loads", "a") as file:
            file.write(f"{options.file}\n")
        return made

    def identity(self):
        return {"metric": self.name, "weights": self.weights}

    def score(self, samples):
        if self.scale == 2 and Path("stop-two").exists() and samples[0].index == 3:
            raise UserError("stopped", "remove the file stop-two")
        return super().score(samples)


def three_directions(image, *_):
    """A function of three columns with one value, for which a protocol names three directions."""
    value = float(image.std())
    return {"more": value, "less": value, "either": value}
