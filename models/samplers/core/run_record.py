"""The record of a run: facts that are known only while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uhr.models.families.text import TokenCount, notes_of
from uhr.models.samplers.core.plan import SamplingPlan, SamplingStage

if TYPE_CHECKING:
    from uhr.models.ops.patches.grid import Box
    from uhr.models.surgery.base import Surgery


@dataclass
class RunRecord:
    """The facts of a run so far, for the record of its image."""

    plan: SamplingPlan
    settings: Any
    """The options with every value filled in."""

    stages: list[SamplingStage] = field(default_factory=list)
    """The stages that have begun."""

    surgeries: list[dict[str, Any]] = field(default_factory=list)
    """Surgeries on the models, as JSON."""

    notes: list[str] = field(default_factory=list)
    """Notes of the sampler for users of the image."""

    schedule_notes: list[str] = field(default_factory=list)
    """Notes on settings of the scheduler that had no effect."""

    token_counts: tuple[TokenCount, ...] = ()
    """How many tokens of the prompts were read; empty for embeddings."""

    sigmas: tuple[float, ...] = ()
    """Noise levels of the last stage that has begun."""

    model_calls: int = 0
    """Calls of the backbone; parts of an image that share a batch count separately."""

    @classmethod
    def of(cls, plan: SamplingPlan) -> RunRecord:
        """Return the record of a run that has not begun."""
        facts = plan.facts
        notes = facts.scheduler.notes(facts.family, plan.stages, facts.multiple)
        return cls(plan, plan.options, schedule_notes=notes)

    def begin(self, stage: SamplingStage) -> None:
        """Add a stage that has begun. Beginning it again, for another part of the image, changes nothing."""
        if not self.stages or self.stages[-1] is not stage:
            self.stages.append(stage)

    @property
    def stage_name(self) -> str | None:
        """Name of the stage that has begun last."""
        return self.stages[-1].name if self.stages else None

    @property
    def pieces(self) -> Sequence[Box]:
        """Windows or patches, in px, from which the result was assembled; empty if it was generated whole."""
        return self.stages[-1].boxes if self.stages else ()

    def add_surgeries(self, surgeries: Iterable[Surgery]) -> None:
        """Add surgeries that are on a model, each once."""
        for described in (each.describe() for each in surgeries):
            if described not in self.surgeries:
                self.surgeries.append(described)

    def details(self) -> dict[str, Any]:
        """Return JSON for the image's record."""
        return {
            "stages": [stage.describe() for stage in self.stages],
            "surgeries": list(self.surgeries),
            "text_tokens": [count.describe() for count in self.token_counts],
            "notes": [*self.notes, *self.schedule_notes, *notes_of(self.token_counts)],
            "settings": self.settings.model_dump(mode="json"),
        }
