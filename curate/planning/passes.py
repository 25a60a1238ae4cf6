"""Cut the stages of a pipeline into passes.

A pass decodes each of its images at most once: first come the stages that read only a header, then those that
need pixels, then models, then stages over the whole set. What needs the result of a stage over the set, and a
model that is listed after one, belongs to the next pass, whose images are those that are still kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uhr.base.errors import UserError, nearest
from uhr.curate.planning.placement import Candidate, Skipped
from uhr.curate.stages import stage_adding


def cut(
    found: Sequence[Candidate], skipped: Sequence[Skipped], have: set[str]
) -> tuple[list[list[Candidate]], list[Skipped]]:
    """Return the stages of each pass in the order in which they run, and the skipped stages.

    Within each kind the order of the pipeline is kept. A header stage that needs a column of a pixel stage
    runs among the pixel stages, after that one. A stage that needs a column of a skipped stage is skipped too
    if it has `if_missing: skip`.

    have: the columns that every row has before the first stage.

    Raises UserError if a stage needs a column that no earlier stage adds.
    """
    return _Cut(found, skipped, have).passes()


class _Cut:
    def __init__(self, found: Sequence[Candidate], skipped: Sequence[Skipped], have: set[str]) -> None:
        self._found = list(found)
        self._waiting = list(found)
        self._have = set(have)
        self._skipped = list(skipped)

    def passes(self) -> tuple[list[list[Candidate]], list[Skipped]]:
        passes = []
        while self._waiting:
            placed = self._one_pass()
            if not placed and self._waiting:
                first = self._waiting[0]
                raise self._unmet(first, self._lacking(first)[0])
            if placed:
                passes.append(placed)
        return passes, self._skipped

    def _one_pass(self) -> list[Candidate]:
        placed: list[Candidate] = []
        for kind in ("header", "pixel", "batch", "set"):
            for candidate in [each for each in self._waiting if each.kind == kind]:
                lacking = self._lacking(candidate)
                if not lacking and not (kind in ("batch", "set") and self._must_wait(candidate)):
                    placed.append(candidate)
                    self._have |= candidate.adds
                    self._waiting.remove(candidate)
                elif lacking and not self._comes_later(candidate, lacking):
                    self._settle(candidate, lacking)
        return placed

    def _lacking(self, candidate: Candidate) -> list[str]:
        return [need for need in candidate.stage.needs if need not in self._have]

    def _must_wait(self, candidate: Candidate) -> bool:
        """Whether a stage over the set that is listed before this stage has not been placed yet; for a stage
        over the set also a model: what it sees depends on the rules before it."""
        before = self._waiting[: self._waiting.index(candidate)]
        kinds = ("set",) if candidate.kind == "batch" else ("batch", "set")
        return any(other.kind in kinds for other in before)

    def _comes_later(self, candidate: Candidate, lacking: Sequence[str]) -> bool:
        """Whether what is lacking will be added by waiting models or stages over the set, listed before this
        stage."""
        place = self._waiting.index(candidate)
        for need in lacking:
            owners = [(at, other) for at, other in enumerate(self._waiting) if need in other.adds]
            if not any(other.kind in ("batch", "set") and at < place for at, other in owners):
                return False
        return True

    def _settle(self, candidate: Candidate, lacking: Sequence[str]) -> None:
        """Turn a header stage into a pixel stage, or skip a stage, if that meets its needs."""
        pixels = [other for other in self._found if other.kind == "pixel"]
        if candidate.kind == "header" and any(other.adds.intersection(lacking) for other in pixels):
            # it reads only the header but needs a column of a pixel stage: it runs with those
            # in its place of the pipeline, but after the pixel stages whose columns it needs
            place = self._waiting.index(candidate)
            after = [
                at
                for at, other in enumerate(self._waiting)
                if other.kind == "pixel" and other.adds.intersection(lacking)
            ]
            self._waiting.insert(max([place, *after]) + 1, replace(candidate, kind="pixel"))
            self._waiting.remove(candidate)
        elif candidate.entry.if_missing == "skip" and (gone := _owner(lacking, self._skipped)):
            why = f"it needs {lacking[0]} of the skipped stage '{gone.label}'"
            self._skipped.append(Skipped(candidate.label, tuple(sorted(candidate.adds)), why))
            self._waiting.remove(candidate)
            self._found.remove(candidate)
        else:
            raise self._unmet(candidate, lacking[0])

    def _unmet(self, candidate: Candidate, need: str) -> UserError:
        what = f"stage '{candidate.label}' needs column '{need}'"
        for other in self._found:
            if need in other.adds:
                return UserError(
                    f"{what}, which stage '{other.label}' adds only after it", f"put '{other.label}' first"
                )
        gone = _owner([need], self._skipped)
        if gone is not None:
            fix = f"give '{candidate.label}' if_missing: skip too"
            return UserError(f"{what} of the skipped stage '{gone.label}'", fix)
        if (stage := stage_adding(need)) is not None:
            return UserError(f"{what}, which no stage adds", f"put stage '{stage}' before it")
        close = nearest(need, self._have)
        return UserError(
            f"{what}, which no stage adds", f"did you mean {' or '.join(close)}?" if close else None
        )


def _owner(columns: Sequence[str], skipped: Sequence[Skipped]) -> Skipped | None:
    return next((stage for stage in skipped for column in columns if column in stage.adds), None)
