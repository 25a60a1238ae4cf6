"""Guidance that was distilled into a model: reverse distillation recovers the field without it, and
fine-tuning at the distilled guidance unlearns it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch

from benchmarks.study.field import NULL, PlaneDenoiser, PlaneField, PlaneNetwork, Points, one_hot
from benchmarks.study.training import BatchDraws, fit, rms
from uhr.train.objectives.base import Objective
from uhr.train.objectives.distillation import ReverseDistillation
from uhr.train.objectives.flow import Flow

BATCH = 512
EMPTY = 0.1
"""Share of the student's training samples without a class."""

HELD_OUT = 20_000
BAKED = 3.5
"""The guidance input at which FLUX.1-dev is used."""


@dataclass(frozen=True)
class Recovery:
    """RMS errors against the known fields.

    student, recovered: of the conditional field, read at guidance input 1. student_null: the student's on the
    empty prompt, over the guidance inputs that it was trained with (where each should give the same).
    recovered_null: of the unconditional field.
    """

    student: float
    recovered: float
    student_null: float
    recovered_null: float

    @property
    def ratio(self) -> float:
        """How many times smaller the recovered field's error is."""
        return self.student / self.recovered


@dataclass(frozen=True)
class Drift:
    """RMS errors of the guided field at guidance input `BAKED`: of the student, and after flow matching at
    that guidance input and at 1.
    """

    student: float
    tuned_at_baked: float
    tuned_at_one: float


def student(field: PlaneField, low: float, high: float, steps: int, seed: int) -> PlaneNetwork:
    """Train a network into which guidance was distilled: inputs w = 1 + g with g ~ U(low, high)."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = PlaneNetwork()

    def loss() -> torch.Tensor:
        points = Points.draw(field, BATCH, generator)
        guidance = 1 + low + (high - low) * torch.rand(BATCH, generator=generator)
        empty = torch.rand(BATCH, generator=generator) < EMPTY
        labels = points.labels.masked_fill(empty, NULL)
        target = field.guided(points.noisy, points.sigma, labels, guidance)
        found = network(points.noisy, points.sigma, one_hot(labels), guidance)
        return (found - target).square().mean()

    fit("train a student", network.parameters(), loss, steps, lr=2e-3)
    return network


def trained(
    field: PlaneField,
    teacher: PlaneNetwork,
    objective: Objective,
    guidance: float,
    steps: int,
    lr: float,
    seed: int,
) -> PlaneNetwork:
    """Continue a network by an objective of `uhr.train`, at a guidance input."""
    generator = torch.Generator().manual_seed(seed + 1)
    network = copy.deepcopy(teacher)
    denoiser = PlaneDenoiser(network, teacher)

    def loss() -> torch.Tensor:
        batch = Points.draw(field, BATCH, generator).batch(guidance)
        return objective(denoiser, batch, BatchDraws(BATCH, generator)).per_sample().mean()

    fit(f"train by {objective.kind}", network.parameters(), loss, steps, lr)
    return network


@torch.no_grad()
def recovery(steps: int, seed: int) -> Recovery:
    """Distil g in [1, 4] into a student, so that it never saw the guidance input 1, and recover the field."""
    field = PlaneField()
    with torch.enable_grad():
        teacher = student(field, 1, 4, steps, seed)
        objective = ReverseDistillation(g_min=1, g_max=4)
        found = trained(field, teacher, objective, objective.embedded, steps, 1e-3, seed)
    points = Points.draw(field, HELD_OUT, torch.Generator().manual_seed(10_000 + seed))
    null = torch.full_like(points.labels, NULL)
    truth, unconditional = (
        field.velocity(points.noisy, points.sigma, each) for each in (points.labels, null)
    )

    def error(network: PlaneNetwork, labels: torch.Tensor, guidance: float, target: torch.Tensor) -> float:
        inputs = torch.full((HELD_OUT,), guidance)
        return rms(network(points.noisy, points.sigma, one_hot(labels), inputs) - target)

    return Recovery(
        error(teacher, points.labels, 1, truth),
        error(found, points.labels, 1, truth),
        math.sqrt(sum(error(teacher, null, guidance, unconditional) ** 2 for guidance in (2, 3, 4, 5)) / 4),
        error(found, null, 1, unconditional),
    )


@torch.no_grad()
def drift(steps: int, seed: int) -> Drift:
    """Distil g in [0, 4] into a student, and fine-tune it by flow matching at `BAKED` and at 1."""
    field = PlaneField()
    with torch.enable_grad():
        teacher = student(field, 0, 4, steps, seed)
        # a rate as low as fine-tuning has, so that what drifts is what the targets ask for and not noise
        tuned = [
            trained(field, teacher, Flow(), guidance, steps // 2, 1e-4, seed) for guidance in (BAKED, 1.0)
        ]
    points = Points.draw(field, HELD_OUT, torch.Generator().manual_seed(10_000 + seed))
    inputs = torch.full((HELD_OUT,), BAKED)
    target = field.guided(points.noisy, points.sigma, points.labels, inputs)
    errors = [
        rms(network(points.noisy, points.sigma, one_hot(points.labels), inputs) - target)
        for network in (teacher, *tuned)
    ]
    return Drift(*errors)
