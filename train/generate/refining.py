"""Rewrites the prompts of a set by a server: each distinct prompt once, with all answers kept in the set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from uhr.base.console import Advance
from uhr.base.errors import UserError, one_line
from uhr.base.files import json_bytes
from uhr.base.store import Store
from uhr.models.generate.refining import with_prompt
from uhr.models.generate.request import Item
from uhr.models.llm.chat import NoAnswer
from uhr.models.llm.refine import Refiner

ANSWERS = "refined"
AT_ONCE = 4
"""Number of simultaneous requests to the server."""

GIVE_UP = 8
"""Number of prompts without an answer after which the run ends, if no prompt has one."""


def refine_all(
    items: Sequence[Item], refiner: Refiner, store: Store, known: set[str], advance: Advance
) -> tuple[list[Item], dict[str, str]]:
    """Rewrite the prompts of items.

    known: the names in the store. Returns the items with new prompts, and by prompt the error if the server
    gave no answer; items with such a prompt are left out. Raises UserError if the server cannot be reached,
    if it answers no prompt at all, or if another model rewrote the prompts before.
    """
    _check_model(refiner.server.model, store, known)
    prompts = list(dict.fromkeys(item.prompt for item in items))
    answers: dict[str, str] = {}
    unanswered: dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pending = {pool.submit(_refined, prompt, refiner, store, known): prompt for prompt in prompts}
        try:
            for done in as_completed(pending):
                prompt = pending[done]
                try:
                    answers[prompt] = done.result()
                except NoAnswer as error:
                    unanswered[prompt] = (
                        f"{refiner.server.model} does not rewrite its prompt ({one_line(error)})"
                    )
                    if not answers and len(unanswered) >= GIVE_UP:
                        raise _no_answer(unanswered) from None
                advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if prompts and not answers:
        raise _no_answer(unanswered)
    refined = [with_prompt(item, answers[item.prompt], refiner) for item in items if item.prompt in answers]
    return refined, unanswered


def _no_answer(unanswered: dict[str, str]) -> UserError:
    return UserError(next(iter(unanswered.values())), "check the server, or leave --refine out")


def _check_model(model: str, store: Store, known: set[str]) -> None:
    """Raise UserError if another model rewrote earlier prompts of the set. A request that names no model
    takes the server's only one, which may have changed.
    """
    first = min((name for name in known if name.startswith(f"{ANSWERS}/")), default=None)
    data = None if first is None else store.read(first)
    before = model if data is None else json.loads(data)["model"]
    if before != model:
        what = f"prompts of {store.text} were rewritten by {before}, and the server has {model}"
        raise UserError(what, f"serve {before} again, or name another --out")


def _refined(prompt: str, refiner: Refiner, store: Store, known: set[str]) -> str:
    """The rewritten prompt from the store, or from the server, and then written to the store."""
    name = f"{ANSWERS}/{refiner.key(prompt)[:32]}.json"
    if name in known:
        data = store.read(name)
        if data is not None:
            return json.loads(data)["refined"]
    refined = refiner.rewrite(prompt)
    tree = {"prompt": prompt, "refined": refined, "model": refiner.server.model}
    store.write(name, json_bytes(tree))
    return refined
