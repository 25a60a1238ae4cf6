"""Images that are on a list of those that must not be in a set: opt-outs, takedowns, illegal images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field

from uhr.base.files import sha256_file
from uhr.base.paths import text_path
from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage, examples
from uhr.manifests.schema import Column

MATCH = Column(
    "blocklist_match",
    pa.string(),
    "the list that the image is on, and by which hash; null where it is on none",
    stage="blocklist",
)


class BlocklistStage(FrameStage):
    """Compares the hashes of the file's bytes, and the perceptual hash where a list has such, with lists.

    Neither a preview nor the bytes of an image that is on a list are stored.
    """

    name = "blocklist"
    adds = (MATCH,)
    hides = MATCH.name
    inherited = True

    class Params(FrameStage.Params):
        """files: the lists (`Blocklist.read`). radius: largest number of different bits of 64 of a perceptual
        hash.
        """

        files: list[str] = Field(default_factory=list)
        radius: int = Field(4, ge=0, le=16)

    def unnamed(self) -> Mapping[str, str]:
        return {} if self.params.files else {"files": "[FILE]"}

    def missing(self) -> str | None:
        if lack := self.unnamed():
            return f"no list is named; set {examples(lack)}"
        return super().missing()

    def contents(self) -> Mapping[str, str]:
        from uhr.curate.measures.blocklists import Blocklist

        if self.params.files:
            Blocklist.read(self.params.files)
        return {file: sha256_file(text_path(file)) for file in self.params.files}

    def open(self) -> None:
        from uhr.curate.measures.blocklists import Blocklist

        self._list = Blocklist.read(self.params.files)

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        def perceptual() -> int:
            from uhr.curate.stages.frames.phash import phash_of

            return phash_of(frame)

        found = self._list.match(lambda: frame.data, frame.content_hash, perceptual, self.params.radius)
        return {MATCH.name: found}
