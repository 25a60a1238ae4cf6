"""The loss of images that are not trained on, on fixed draws, per range of sigma."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch

from uhr.base.errors import UserError
from uhr.models.specs.spec import ModelSpec
from uhr.train.data.reader import EncodedData
from uhr.train.data.sets import NamedData, data_for, rows_of
from uhr.train.objectives.base import Denoiser
from uhr.train.objectives.draws import Draws
from uhr.train.recipes.core.base import DataUseBase, PhaseBase, Recipe, RecipeBase
from uhr.train.recipes.core.validation import MeasuredRows
from uhr.train.run.checkpoints.state import generators, set_generators
from uhr.train.run.monitoring.log import held_out_losses
from uhr.train.run.phase import UseRun
from uhr.train.timesteps import Timesteps


@contextlib.contextmanager
def apart_from_training(model: Any) -> Generator[None]:
    """Run a block without gradients and in evaluation mode, and restore the process-wide generators."""
    kept, training = generators(), model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        set_generators(kept)


def held_out_rows(config: MeasuredRows, data: EncodedData) -> list[tuple[int, int]]:
    """The (bucket, row) of the measured images: at most `config.rows`, evenly spread, in rising order.

    Raises UserError if no row meets the condition.
    """
    chosen = [(bucket, int(row)) for bucket, rows in enumerate(data.select(config.where)) for row in rows]
    if not chosen:
        raise UserError(
            f"{data.path}: no row of it has {config.where}", "change the condition, `where` in validation"
        )
    places = np.linspace(0, len(chosen) - 1, min(config.rows, len(chosen))).round().astype(int)
    return [chosen[place] for place in dict.fromkeys(places.tolist())]


def check_held_out(recipe: RecipeBase, spec: ModelSpec, sets: Sequence[NamedData]) -> None:
    """Raise UserError if the held-out data of a phase are missing, or are trained on in any phase."""
    config = recipe.validation.loss
    if config is None:
        return
    measured: dict[int, set[tuple[int, int]]] = {}
    for index in range(len(recipe.phases)):
        data = held_out_data(config, recipe.phases[index], spec, sets)
        measured[id(data)] = set(held_out_rows(config, data))
    for phase in recipe.phases:
        for use in phase.data:
            data = data_for(use, phase, spec, sets)
            if id(data) not in measured:
                continue
            trained = {(b, int(row)) for b, rows in enumerate(rows_of(use, data)) for row in rows}
            both = len(trained & measured[id(data)])
            if both:
                what = f"{both} of the images for the held-out loss are trained on in phase '{phase.name}'"
                fix = "name another data set as validation.loss.data, or give both a `where`, such as "
                raise UserError(what, f"{fix}split = 'validation' and split = 'train'")


def held_out_data(
    config: MeasuredRows, phase: PhaseBase, spec: ModelSpec, sets: Sequence[NamedData]
) -> EncodedData:
    """The data set of the measured rows. Raises UserError if it is not among those given."""
    return data_for(DataUseBase(data=config.data, resolution=config.resolution), phase, spec, sets)


class HeldOut:
    """Measures the held-out loss of one phase's objective."""

    def __init__(
        self, recipe: Recipe, phase: int, spec: ModelSpec, sets: Sequence[NamedData], device: torch.device
    ) -> None:
        config = recipe.validation.loss
        assert config is not None
        self.config, self._micro = config, recipe.batch.micro
        self._data = held_out_data(config, recipe.phases[phase], spec, sets)
        self._rows = held_out_rows(config, self._data)
        plain = recipe.model_copy(update={"latents": "mean", "caption_dropout": 0.0, "captions": {}})
        objective = recipe.phases[phase].objective
        self._bins = [
            UseRun(plain, self._data, objective, Timesteps(density="uniform", band=band), 1.0, device)
            for band in self.bands
        ]
        # other numbers than any training step's
        self._seed = int.from_bytes(hashlib.sha256(f"{recipe.seed}/held-out".encode()).digest()[:8], "little")

    @property
    def bands(self) -> list[tuple[float, float]]:
        """The ranges of sigma."""
        edges = [index / self.config.bins for index in range(self.config.bins + 1)]
        return list(pairwise(edges))

    def measure(self, network: Denoiser) -> dict[str, Any]:
        """Return the mean loss, and that of each range of sigma: {"loss": float, "bins": [...]}."""
        means = [self._mean(use, number, network) for number, use in enumerate(self._bins)]
        bins = [{"sigma": list(band), "loss": mean} for band, mean in zip(self.bands, means, strict=True)]
        return {"loss": sum(means) / len(means), "images": len(self._rows), "bins": bins}

    def _mean(self, use: UseRun, number: int, denoiser: Denoiser) -> float:
        losses = []
        for bucket in dict.fromkeys(bucket for bucket, _ in self._rows):
            # a place is a number among all measured images, so that draws depend on nothing else
            of_bucket = [(place, row) for place, (b, row) in enumerate(self._rows) if b == bucket]
            for start in range(0, len(of_bucket), self._micro):
                places, rows = zip(*of_bucket[start : start + self._micro], strict=True)
                draws = Draws(self._seed, number, places)
                loss, _ = use.loss(denoiser, use.batch(self._data.read(bucket, rows), draws), draws)
                losses += loss.tolist()
        return sum(losses) / len(losses)


class Measure(Protocol):
    """Measures a held-out loss of a model, as its objectives call it."""

    def measure(self, network: Any) -> dict[str, Any]:
        """Return means over the images, "loss" among them."""
        ...


class HeldOutLosses:
    """The held-out losses of a run, each of which has one meaning from the first step to the last.

    Phases with one objective and one resolution share one. Each of the others has its own, and all are
    measured together: a number can be followed through phases that train by something else.
    """

    def __init__(self, recipe: RecipeBase, spec: ModelSpec, measure_of: Callable[[int], Measure]) -> None:
        """`measure_of` makes the measure of a phase's objective, by the number of the phase."""
        config = recipe.validation.loss
        assert config is not None
        names: dict[str, list[str]] = {}
        first: dict[str, int] = {}
        for index, phase in enumerate(recipe.phases):
            resolution = config.resolution or phase.resolution or spec.native_size
            meaning = f"{resolution} {phase.objective.model_dump_json()}"
            names.setdefault(meaning, []).append(phase.name)
            first.setdefault(meaning, index)
        self._losses = {", ".join(names[meaning]): measure_of(index) for meaning, index in first.items()}

    def measure(self, network: Any) -> dict[str, Any]:
        """Return the values of a line of the log: `held_out`, or `held_out_by_phase`."""
        found = {name: each.measure(network) for name, each in self._losses.items()}
        return {"held_out": next(iter(found.values()))} if len(found) == 1 else {"held_out_by_phase": found}


def metrics(entry: dict[str, Any]) -> dict[str, float]:
    """The held-out losses of a line of the log as metrics of a checkpoint."""
    found: dict[str, float] = {}
    for name, measured in held_out_losses(entry).items():
        found[name] = measured["loss"]
        if "psnr" in measured:
            found[f"{name}: PSNR (dB)"] = measured["psnr"]
        for each in measured.get("bins", ()):
            low, high = each["sigma"]
            found[f"{name}, sigma {low:g} to {high:g}"] = each["loss"]
    return found
