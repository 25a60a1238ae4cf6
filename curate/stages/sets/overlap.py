"""Images that are in another manifest already, so that no training image is in an evaluation set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import duckdb
import pyarrow as pa
from pydantic import Field

from uhr.base.console import say
from uhr.base.errors import UserError
from uhr.curate.measures import cosine
from uhr.curate.stage import SetStage, Workspace
from uhr.curate.stages.sets.vectors import vectors_of
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import KEPT, Column

LONG = 5.0
"""Seconds above which the time is printed first."""

Measure = Literal["content_hash", "phash", "clip_embedding"]


class OverlapStage(SetStage):
    """Finds each kept row among the kept rows of the manifest `against`: by its bytes, by its perceptual hash
    within `radius` bits, or by the cosine of the embeddings. The first of `by` that finds one decides.

    Exact: of two images that are both near, the nearer one is named, and of those the first by `uri`.
    """

    name = "overlap"

    class Params(SetStage.Params):
        against: str = Field(description="the folder of the other manifest")
        by: list[Measure] = Field(["content_hash", "phash"], min_length=1)
        radius: int = Field(4, ge=0, le=20, description="largest number of different bits of 64")
        similarity: float = Field(0.95, gt=0, le=1, description="smallest cosine of a duplicate")

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.needs = tuple(self.params.by)
        self.adds = (
            Column(
                "overlap",
                pa.string(),
                "`sample_id` of the same image in the other manifest; null where it is not there",
                stage=self.name,
            ),
            Column(
                "overlap_by",
                pa.string(),
                "the column by which the image was found in the other manifest",
                range="content_hash, phash, clip_embedding",
                stage=self.name,
            ),
        )

    def contents(self) -> Mapping[str, str]:
        other = Manifest.open(self.params.against)
        for name in self.params.by:
            if name not in other.schema.names:
                known = ", ".join(each for each in Measure.__args__ if each in other.schema.names) or "none"
                what = f"stage '{self.name}': the manifest {self.params.against} has no column {name}"
                raise UserError(what, f"set by to what it has ({known}), or curate it with that stage")
        return {"against": other.id}

    def check_models(self, label: str, weights: Mapping[str, str]) -> None:
        if "clip_embedding" not in self.params.by:
            return
        theirs = Manifest.open(self.params.against).info.weights
        models = [{found for key, found in w.items() if key.endswith("/clip")} for w in (weights, theirs)]
        # a manifest may have embeddings of its source, of whose model nothing is known
        if all(models) and not models[0] & models[1]:
            raise self._other_model(label)

    def _other_model(self, label: str) -> UserError:
        what = f"stage '{label}': {self.params.against} has embeddings of another model"
        return UserError(what, "make both by the same weights, or leave clip_embedding out of by")

    def compute(self, live: duckdb.DuckDBPyRelation, workspace: Workspace) -> pa.Table:
        other = Manifest.open(self.params.against)
        found: dict[str, tuple[str, str]] = {}
        for name in self.params.by:
            own = live.filter(f"{name} IS NOT NULL").select(f"sample_id, {name}").to_arrow_table()
            theirs = other.table(["sample_id", name], f"status = '{KEPT}' AND {name} IS NOT NULL")
            if own.num_rows and theirs.num_rows:
                for sample, twin in self._matches(name, own, theirs, workspace):
                    found.setdefault(sample, (twin, name))
        ids = [row[0] for row in live.select("sample_id").fetchall()]
        columns = {
            "sample_id": ids,
            "overlap": [found[each][0] if each in found else None for each in ids],
            "overlap_by": [found[each][1] if each in found else None for each in ids],
        }
        return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))

    def _matches(
        self, name: str, own: pa.Table, theirs: pa.Table, workspace: Workspace
    ) -> list[tuple[str, str]]:
        ids, twins = own["sample_id"].to_pylist(), theirs["sample_id"].to_pylist()
        if name == "content_hash":
            first: dict[str, str] = {}
            for twin, value in zip(twins, theirs[name].to_pylist(), strict=True):
                first.setdefault(value, twin)
            values = own[name].to_pylist()
            return [(i, first[value]) for i, value in zip(ids, values, strict=True) if value in first]
        places = self._by_hash(own, theirs) if name == "phash" else self._by_vector(own, theirs, workspace)
        return [(ids[at], twins[place]) for at, place in enumerate(places) if place >= 0]

    def _by_hash(self, own: pa.Table, theirs: pa.Table) -> list[int]:
        import numpy as np

        from uhr.curate.measures.hamming import nearest_within

        mine, others = (
            np.array([int(text, 16) for text in table["phash"].to_pylist()], np.uint64)
            for table in (own, theirs)
        )
        return nearest_within(mine, others, self.params.radius)[0].tolist()

    def _by_vector(self, own: pa.Table, theirs: pa.Table, workspace: Workspace) -> list[int]:
        mine, others = (vectors_of(each["clip_embedding"], workspace.label) for each in (own, theirs))
        if mine.shape[1] != others.shape[1]:
            raise self._other_model(workspace.label)
        seconds = cosine.seconds_of(len(mine), len(others), mine.shape[1])
        if seconds > LONG:
            size = f"{len(mine):,} x {len(others):,} embeddings"
            say(f"stage '{workspace.label}' compares {size}: about {seconds:,.0f} s")
        return cosine.nearest_within(mine, others, self.params.similarity)[0].tolist()
