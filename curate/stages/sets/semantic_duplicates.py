"""Duplicates by embedding: images of the same content, whatever their bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from pydantic import Field

from uhr.base.console import progress, say
from uhr.curate.measures import cosine
from uhr.curate.stage import SetStage, Workspace
from uhr.curate.stages.sets.order import Order, order_by, terms
from uhr.curate.stages.sets.vectors import vectors_of
from uhr.manifests.schema import Column
from uhr.manifests.sql import quoted

if TYPE_CHECKING:
    import numpy as np

LONG = 5.0
"""Seconds above which the time is printed first."""


class SemanticDuplicatesStage(SetStage):
    """Groups kept rows around the best of them by `order`, as `near_duplicates` does, by the cosine of their
    embeddings.

    All pairs are compared of up to `exact` rows. Of more an index is searched, which misses some pairs: how
    many it finds is measured on 1,000 rows and printed.
    """

    name = "semantic_duplicates"

    class Params(SetStage.Params):
        of: str = Field("clip_embedding", description="the column of the embedding")
        similarity: float = Field(0.95, gt=0, le=1, description="smallest cosine of a duplicate")
        order: Order = Field(["megapixels desc"])
        exact: int = Field(cosine.EXACT, ge=1, description="most rows of which all pairs are compared")

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.needs = (self.params.of, *(term.column for term in terms(self.params.order)))
        self.adds = (
            Column(
                "semantic_group",
                pa.string(),
                f"`sample_id` of the best of the images with a like `{self.params.of}`; null where there is "
                "only one",
                stage=self.name,
            ),
            Column(
                "semantic_dup_of",
                pa.string(),
                f"`sample_id` of the better image with a like `{self.params.of}`; null for the best one",
                stage=self.name,
            ),
        )

    def compute(self, live: duckdb.DuckDBPyRelation, workspace: Workspace) -> pa.Table:
        import numpy as np

        of = quoted(self.params.of)
        rows = live.filter(f"{of} IS NOT NULL").order(order_by(self.params.order)).select(f"sample_id, {of}")
        table = rows.to_arrow_table()
        ids = table["sample_id"].to_pylist()
        lead = self._leaders(vectors_of(table[self.params.of], workspace.label), workspace.label)
        grouped = set(lead[lead != np.arange(len(ids))].tolist())
        found: dict[str, list[str | None]] = {"sample_id": ids, "semantic_group": [], "semantic_dup_of": []}
        for place, leader in enumerate(lead.tolist()):
            alone = leader == place and place not in grouped
            found["semantic_group"].append(None if alone else ids[leader])
            found["semantic_dup_of"].append(None if leader == place else ids[leader])
        return pa.table(found, schema=pa.schema([(name, pa.string()) for name in found]))

    def _leaders(self, vectors: np.ndarray, label: str) -> np.ndarray:
        count, least = len(vectors), self.params.similarity
        if count > self.params.exact:
            return self._by_index(vectors, label)
        seconds = cosine.seconds_of(count, count, vectors.shape[1]) / 2 if count else 0.0
        if seconds < LONG:
            return cosine.leaders_within(vectors, least)
        say(f"stage '{label}' compares all pairs of {count:,} embeddings: at most about {seconds:,.0f} s")
        with progress(label, count, "embeddings") as advance:
            return cosine.leaders_within(vectors, least, advance)

    def _by_index(self, vectors: np.ndarray, label: str) -> np.ndarray:
        count, least = len(vectors), self.params.similarity
        seconds = cosine.seconds_of(count, round(count**0.5), vectors.shape[1])
        say(f"stage '{label}' builds an index of {count:,} embeddings: about {seconds:,.0f} s")
        index = cosine.CellIndex.build(vectors, least)
        probes = index.cells.shape[1]
        seconds = cosine.seconds_of(count, probes * round(count**0.5), vectors.shape[1])
        say(f"  it finds {index.recall:.1%} of the pairs of 1,000 rows; search: about {seconds:,.0f} s")
        with progress(label, count, "embeddings") as advance:
            return index.leaders(vectors, least, advance)
