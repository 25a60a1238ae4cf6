"""Captions by a vision-language model, and their translation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from uhr.curate.stages.models.base import SERVER_RESOURCES, ModelStage, Outage, Server, texts
from uhr.curate.stages.models.vision_language import COLUMN_NAME, VisionLanguageStage
from uhr.manifests.schema import Column


class CaptionStage(VisionLanguageStage):
    """A caption by a local model or a server. An answer that is empty, cut, refused or outside the schema is
    no caption; `<column>_error` says why. For several kinds of captions, use the stage several times, each
    with a `name` and a `column` of its own.
    """

    name = "caption"
    hashed_name = "uhr.curate.stages.caption:CaptionStage"

    class Params(VisionLanguageStage.Params):
        """json_schema: a file with a schema of the answer. tokens: the longest answer. keep: a column whose
        text is taken where it has one, so that only the other images are captioned. t5_tokenizer,
        clip_tokenizer: folders, to count the caption's tokens. The rest as of all vision-language stages.
        """

        column: str = Field("caption_en", pattern=COLUMN_NAME)
        json_schema: str | None = None
        tokens: int = Field(512, ge=1)
        keep: str | None = None
        t5_tokenizer: str | None = None
        clip_tokenizer: str | None = None

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        p = self.params
        self.needs = () if p.keep is None else (p.keep,)
        self._tokenizers = {
            kind: folder
            for kind, folder in (("t5", p.t5_tokenizer), ("clip", p.clip_tokenizer))
            if folder is not None
        }
        self.adds = (
            Column(p.column, pa.string(), "caption by the model that `manifest.json` names", stage=self.name),
            Column(f"{p.column}_error", pa.string(), "why the model gave no caption", stage=self.name),
            *(
                Column(
                    f"{p.column}_{kind}_tokens",
                    pa.int64(),
                    f"tokens of `{p.column}` by the {kind.upper()} tokenizer, special tokens included",
                    "1",
                    ">= 0",
                    stage=self.name,
                )
                for kind in self._tokenizers
            ),
        )

    def weights(self) -> Mapping[str, str]:
        return {
            **super().weights(),
            **{f"{kind}_tokenizer": folder for kind, folder in self._tokenizers.items()},
        }

    def contents(self) -> Mapping[str, str]:
        return {"prompt": self._prompt().hash}

    def _prompt(self) -> Any:
        from uhr.models.scores.captions import CaptionPrompt

        return CaptionPrompt.of_files(self.params.prompt, self.params.json_schema, self.params.tokens)

    def open(self, device: str) -> None:
        from uhr.models.scores.captions import LocalCaptioner, ServerCaptioner, TokenCounter

        server, prompt, view = self.params.server, self._prompt(), self.views["image"]
        self._counters = {kind: TokenCounter.load(folder) for kind, folder in self._tokenizers.items()}
        self._captioner: Any = (
            LocalCaptioner(self.load(device), prompt, view)
            if server is None
            else ServerCaptioner(server.open(), prompt, view, server.concurrency)
        )

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        p = self.params
        found: list[Any] = [row.get(p.keep) or None if p.keep is not None else None for row in rows]
        places = [place for place, text in enumerate(found) if text is None]
        if places:
            images = [views["image"][place] for place in places]
            answers = self._outage.call(lambda: self._captioner.captions(images))
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        captions, why = texts(found)
        columns: dict[str, list[Any]] = {p.column: captions, f"{p.column}_error": why}
        for kind, counter in self._counters.items():
            counts = counter.count([caption or "" for caption in captions]).tolist()
            columns[f"{p.column}_{kind}_tokens"] = [
                None if caption is None else count for caption, count in zip(captions, counts, strict=True)
            ]
        return columns


class TranslateStage(ModelStage):
    """A translation of a caption by a language model behind a server; a row without a caption has none."""

    name = "translate"
    hashed_name = "uhr.curate.stages.caption:TranslateStage"
    resources = SERVER_RESOURCES

    class Params(ModelStage.Params):
        """of: the column with the text. column: where the translation goes. target, source: languages."""

        server: Server | None = None
        of: str = "caption_en"
        column: str = Field("caption_zh", pattern=COLUMN_NAME)
        target: str = "Simplified Chinese"
        source: str = "English"
        tokens: int = Field(2048, ge=1)

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        p = self.params
        self.needs = (p.of,)
        self.adds = (
            Column(p.column, pa.string(), f"`{p.of}` in {p.target}", stage=self.name),
            Column(f"{p.column}_error", pa.string(), "why there is no translation", stage=self.name),
        )

    def unnamed(self) -> Mapping[str, str]:
        return {"server": "{url: URL, model: NAME}"} if self.params.server is None else {}

    def contents(self) -> Mapping[str, str]:
        from uhr.models.llm.translate import INSTRUCTION

        return {"instruction": INSTRUCTION}

    def open(self, device: str) -> None:
        from uhr.models.llm.translate import Translator

        p = self.params
        self._outage = Outage()
        self._translator = Translator(p.server.open(), p.target, p.source, p.server.concurrency, p.tokens)

    def score(
        self, rows: Sequence[Mapping[str, Any]], views: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, Sequence[Any]]:
        p = self.params
        places = [place for place, row in enumerate(rows) if row.get(p.of)]
        answers: list[Any] = [None] * len(rows)
        given = [rows[place][p.of] for place in places]
        for place, answer in zip(
            places, self._outage.call(lambda: self._translator.translate(given)), strict=True
        ):
            answers[place] = answer
        found, why = texts(answers)
        # a row without a caption has no translation, and nothing failed
        reasons = [None if answer is None else reason for answer, reason in zip(answers, why, strict=True)]
        return {p.column: found, f"{p.column}_error": reasons}
