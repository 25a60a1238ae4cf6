"""What is known of a run only while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uhr.models.families.text import TokenCount, notes_of
from uhr.models.samplers.core.plan import SamplingPlan, SamplingStage

if TYPE_CHECKING:
    from uhr.models.ops.patches import Box
    from uhr.models.surgery.base import Surgery


@dataclass
class RunRecord:
    """One run of a plan: what was run so far, with every value that its image's record needs."""

    plan: SamplingPlan
    settings: Any
    """The options with every value filled in."""

    stages: list[SamplingStage] = field(default_factory=list)
    """Those that were begun."""

    surgeries: list[dict[str, Any]] = field(default_factory=list)
    """What was on the models, as JSON."""

    notes: list[str] = field(default_factory=list)
    """What a reader of the image must know of how the sampler made it."""

    schedule_notes: list[str] = field(default_factory=list)
    """Which of the scheduler's settings did not act."""

    token_counts: tuple[TokenCount, ...] = ()
    """How much of the prompts was read; empty for embeddings that were given."""

    sigmas: tuple[float, ...] = ()
    """Noise levels of the last stage that was begun."""

    model_calls: int = 0
    """Calls of the backbone; parts of an image that share a batch count each."""

    @classmethod
    def of(cls, plan: SamplingPlan) -> RunRecord:
        """The record of a run that begins."""
        facts = plan.facts
        notes = facts.scheduler.notes(facts.family, plan.stages, facts.multiple)
        return cls(plan, plan.options, schedule_notes=notes)

    def begin(self, stage: SamplingStage) -> None:
        """Note that a stage has begun; its later rounds change nothing."""
        if not self.stages or self.stages[-1] is not stage:
            self.stages.append(stage)

    @property
    def stage_name(self) -> str | None:
        """Of the stage that was begun last."""
        return self.stages[-1].name if self.stages else None

    @property
    def pieces(self) -> Sequence[Box]:
        """Windows or patches, in px, that the result was put together from; none where it was made whole."""
        return self.stages[-1].boxes if self.stages else ()

    def add_surgeries(self, surgeries: Iterable[Surgery]) -> None:
        """Note what is on a model, once each."""
        for described in (each.describe() for each in surgeries):
            if described not in self.surgeries:
                self.surgeries.append(described)

    def details(self) -> dict[str, Any]:
        """JSON for the image's record."""
        return {
            "stages": [stage.describe() for stage in self.stages],
            "surgeries": list(self.surgeries),
            "text_tokens": [count.describe() for count in self.token_counts],
            "notes": [*self.notes, *self.schedule_notes, *notes_of(self.token_counts)],
            "settings": self.settings.model_dump(mode="json"),
        }
