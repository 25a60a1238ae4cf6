"""How an image was fetched over a network: the evidence that stays with its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field

from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage
from uhr.manifests.schema import COLUMNS, Column

FETCH = (
    Column("fetch_time", pa.string(), "when the image was fetched, ISO 8601 in UTC", stage="fetch"),
    Column("final_url", pa.string(), "the URL that answered, after redirects", stage="fetch"),
    Column(
        "http_status",
        pa.int16(),
        "status of the last answer; null where there was none",
        range="100..599",
        stage="fetch",
    ),
    Column("etag", pa.string(), "ETag of the answer", stage="fetch"),
    Column(
        "opt_out",
        pa.string(),
        "the reservation of the site because of which the image was not taken: robots.txt, X-Robots-Tag or "
        "tdm-reservation; null where there is none",
        stage="fetch",
    ),
    Column(
        "opt_out_headers",
        pa.string(),
        "the headers X-Robots-Tag, tdm-reservation and tdm-policy of the answer, obeyed or not",
        stage="fetch",
    ),
)


class FetchStage(FrameStage):
    """Time, final URL, status, ETag and reservation of the answer. All are null for an image that was not
    fetched.

    Added to every pipeline whose source fetches (`config.fetching`). It never fails: an image that could not
    be fetched fails in the first stage that reads it.
    """

    name = "fetch"
    hashed_name = "uhr.curate.stages.fetch:FetchStage"
    version = 2
    reads = "header"
    inherited = True

    class Params(FrameStage.Params):
        """hash: whether to add `content_hash`, where no stage decodes. obey: whether the source obeys
        reservations: what was fetched in spite of them is no result for a run that obeys.
        """

        hash: bool = False
        # as if it were not there, so that earlier results are still found
        obey: bool = Field(True, exclude_if=lambda obey: obey)

    def __init__(self, params: Params | None = None) -> None:
        super().__init__(params)
        self.adds = (*FETCH, *((COLUMNS["content_hash"],) if self.params.hash else ()))

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        facts = frame.blob.facts
        return {column.name: facts.get(column.name) for column in self.adds}
