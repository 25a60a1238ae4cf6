"""Items whose prompts a language model has rewritten (`models/llm/`)."""

from __future__ import annotations

from uhr.base.errors import UserError
from uhr.models.generate.request import Item, Original
from uhr.models.llm.chat import NoAnswer
from uhr.models.llm.refine import Refinement, Refiner


def with_prompt(item: Item, prompt: str, refiner: Refiner) -> Item:
    """The item with the prompt that `refiner` made of its own, which stays with it as `original`."""
    original = Original(prompt=item.prompt, model=refiner.server.model, instruction=refiner.instruction_hash)
    return item.model_copy(update={"prompt": prompt, "original": original})


def refine_one(item: Item, refinement: Refinement) -> Item:
    """Ask the server to rewrite the prompt of one item. Raises UserError where its model gives no answer."""
    refiner = refinement.open()
    try:
        return with_prompt(item, refiner.ask(item.prompt), refiner)
    except NoAnswer as none:
        raise UserError(
            f"{refiner.server.model} does not rewrite '{item.prompt[:60]}' ({none})",
            "change the prompt, or leave --refine out",
        ) from None
