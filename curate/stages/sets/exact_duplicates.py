"""Exact duplicates: files with the same bytes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from uhr.curate.stage import SetStage
from uhr.manifests.schema import Column


class ExactDuplicatesStage(SetStage):
    """Groups kept rows by `content_hash` and ranks each group by `uri` and `sample_id`; `dup_rank = 0` is the
    one to keep.

    An image whose bytes are unique has rank 0 and no group. An image without a hash has neither rank nor
    group.
    """

    name = "exact_duplicates"
    hashed_name = "uhr.curate.stages.exact_duplicates:ExactDuplicatesStage"
    needs = ("content_hash",)
    adds = (
        Column(
            "dup_group",
            pa.string(),
            "`content_hash` shared by all pictures with exactly these bytes; null where it is the only one",
            stage="exact_duplicates",
        ),
        Column(
            "dup_rank",
            pa.int32(),
            "place in its group by uri; 0 is the one to keep, and every picture without duplicates",
            "1",
            ">= 0",
            stage="exact_duplicates",
        ),
    )

    def compute(self, live: Any, workspace: Any) -> str:
        return """
            SELECT
                sample_id,
                CASE WHEN count(content_hash) OVER same > 1 THEN content_hash END AS dup_group,
                CASE WHEN content_hash IS NOT NULL
                    THEN CAST(row_number() OVER (
                        PARTITION BY content_hash ORDER BY uri, sample_id) - 1 AS INTEGER)
                END AS dup_rank
            FROM live
            WINDOW same AS (PARTITION BY content_hash)
        """
