"""Apply rewritten prompts (`models/llm/`) to items."""

from __future__ import annotations

from uhr.base.errors import UserError, one_line
from uhr.models.generate.request import Item, Original
from uhr.models.llm.chat import NoAnswer
from uhr.models.llm.refine import Refinement, Refiner


def with_prompt(item: Item, prompt: str, refiner: Refiner) -> Item:
    """Return the item with the prompt rewritten by `refiner`; its own prompt is kept as `original`."""
    original = Original(prompt=item.prompt, model=refiner.server.model, instruction=refiner.instruction_hash)
    return item.model_copy(update={"prompt": prompt, "original": original})


def refine_one(item: Item, refinement: Refinement) -> Item:
    """Have the server rewrite the prompt of one item. Raises UserError if its model gives no usable
    answer."""
    refiner = refinement.open()
    try:
        return with_prompt(item, refiner.rewrite(item.prompt), refiner)
    except NoAnswer as error:
        raise UserError(
            f"{refiner.server.model} did not rewrite '{item.prompt[:60]}' ({one_line(error)})",
            "change the prompt, or leave --refine out",
        ) from None
