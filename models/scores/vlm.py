"""A local vision-language model of transformers: one prompt about each of several images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.models.loading.checks import load_whole
from uhr.models.scores.images import as_pil
from uhr.models.scores.offline import no_downloads
from uhr.models.scores.weights import EVERYTHING, Weights, hash_of_files

if TYPE_CHECKING:
    import torch


class VisionLanguageModel:
    """A model of `AutoModelForImageTextToText` with its processor.

    `processor_options` are passed to the processor with each call, such as `{"crop_to_patches": False}`.
    """

    def __init__(
        self, model: Any, processor: Any, weights_hash: str, options: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.processor = model, processor
        self.weights_hash = weights_hash
        self._options = dict(options or {})
        # all sequences end at the same place, so that the next token is predicted at the last position
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    @classmethod
    def load(
        cls,
        weights: str | Path,
        device: str = "cpu",
        dtype: str = "bfloat16",
        options: Mapping[str, Any] | None = None,
    ) -> VisionLanguageModel:
        """Load a checkpoint of a class of transformers; code of the checkpoint's own is never run.

        Raises UserError if its files do not fit, or it has no chat template.
        """
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = Weights.parse(weights).fetch(EVERYTHING)
        if not folder.is_dir():
            raise UserError(
                f"the weights of the vision-language model are a file: {folder}", "name its folder"
            )
        where = f"the vision-language model in {folder}"
        with no_downloads():
            model = load_whole(AutoModelForImageTextToText, folder, where, {"dtype": getattr(torch, dtype)})
            processor = load_whole(AutoProcessor, folder, where)
        if not getattr(processor, "chat_template", None):
            raise UserError(f"{where} has no chat template", "add its chat_template.jinja")
        return cls(model.to(device).eval(), processor, hash_of_files(folder), options)

    def inputs(self, images: Sequence[Any], prompt: str, system: str | None, begin: str) -> dict[str, Any]:
        """Return the model's inputs for one prompt about each image, padded on the left.

        `system` is the system message; `begin` is text with which the answer begins already.
        """
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        ]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        text = (
            self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + begin
        )
        found = self.processor(
            images=[[image] for image in as_pil(images)],
            text=[text] * len(images),
            padding=True,
            return_tensors="pt",
            **self._options,
        )
        return {name: self._moved(value) for name, value in found.items()}

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if value.is_floating_point() else None
        return value.to(self.model.device, dtype)

    def next_logits(
        self, images: Sequence[Any], prompt: str, system: str | None = None, begin: str = ""
    ) -> torch.Tensor:
        """Return the logits of the answer's next token, float32 [N, vocabulary]."""
        import torch

        with torch.inference_mode():
            inputs = self.inputs(images, prompt, system, begin)
            return self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()

    def generate(
        self, images: Sequence[Any], prompt: str, system: str | None, tokens: int
    ) -> list[tuple[str, bool]]:
        """Return the greedy answer about each image, without the token that ends it, and whether it ended
        within `tokens` tokens.
        """
        import torch

        inputs = self.inputs(images, prompt, system, "")
        with torch.inference_mode():
            found = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        new = found[:, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        answers = []
        for ids in new.tolist():
            length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            text = self.processor.decode(ids[:length], skip_special_tokens=True)
            answers.append((text, length < len(ids)))
        return answers

    def token_id(self, word: str) -> int:
        """Return the id of a text that is exactly one token. Raises UserError if it is more."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) == 1:
            return ids[0]
        known = tokenizer.get_vocab().get(word)
        if known is None:
            raise UserError(f"the rating '{word}' is {len(ids)} tokens", "name a word that is one token")
        return known
