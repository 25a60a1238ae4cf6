"""The licence of an image as an SPDX expression, and whether a policy accepts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from uhr.base.files import sha256_file
from uhr.base.paths import text_path
from uhr.curate.frame import Frame
from uhr.curate.measures.licences import LENIENT, LicencePolicy
from uhr.curate.stage import FrameStage
from uhr.curate.stages.frames.rights import EMBEDDED_LICENSE
from uhr.manifests.schema import Column


class LicenceStage(FrameStage):
    """Normalises the licence that the source states and the one that the file contains.

    `policy` names a YAML file (`LicencePolicy`); without one no licence has a problem. `embedded: false`
    judges what the source states alone, before an image is read.
    """

    name = "licence"
    version = 2
    reads = "header"
    inherited = True
    adds = (
        Column(
            "license_spdx",
            pa.string(),
            "the licence as SPDX expression: the stated one, else the embedded one; null where neither is "
            "understood",
            range="CC0-1.0, CC-BY-4.0, LicenseRef-NAME, ...",
            stage="licence",
        ),
        Column(
            "license_problem",
            pa.string(),
            "why the policy of licences rejects the image; null where it does not",
            range="missing, unknown: ..., conflict: ..., not allowed: ...",
            stage="licence",
        ),
    )

    class Params(FrameStage.Params):
        """policy: the file of the policy. embedded: whether the stage `rights` is needed."""

        policy: str | None = None
        embedded: bool = True

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.needs = ("license", *((EMBEDDED_LICENSE.name,) if self.params.embedded else ()))

    def contents(self) -> Mapping[str, str]:
        if self.params.policy is None:
            return {}
        LicencePolicy.read(self.params.policy)
        return {"policy": sha256_file(text_path(self.params.policy))}

    def open(self) -> None:
        policy = self.params.policy
        self._policy = LENIENT if policy is None else LicencePolicy.read(policy)

    def annotate(self, frame: Frame) -> Mapping[str, Any]:
        row = frame.row
        found = self._policy.judge(row.get("license"), row.get(EMBEDDED_LICENSE.name))
        return {"license_spdx": found.spdx, "license_problem": found.problem}
