"""The prompts of a set, rewritten: each different one asked once, every answer kept where the set is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.files import json_bytes
from uhr.base.store import Store
from uhr.models.generate.refining import with_prompt
from uhr.models.generate.request import Item
from uhr.models.llm.chat import NoAnswer
from uhr.models.llm.refine import Refiner

ANSWERS = "refined"
AT_ONCE = 4
"""Questions that are with the server at the same time."""

GIVE_UP = 8
"""Prompts without an answer, and none with one, after which no more are asked."""


def refine_all(
    items: Sequence[Item], refiner: Refiner, store: Store, known: set[str], advance: Advance
) -> tuple[list[Item], dict[str, str]]:
    """The items refined, and by prompt what is wrong where the server has no answer; the items of those are
    left out. `known`: the names that stand in the store.

    UserError where the server cannot be asked, where it answers nothing at all, and where its model is not
    the one that rewrote the prompts before.
    """
    _check_model(refiner.server.model, store, known)
    prompts = list(dict.fromkeys(item.prompt for item in items))
    answers: dict[str, str] = {}
    silent: dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {pool.submit(_answer, prompt, refiner, store, known): prompt for prompt in prompts}
        try:
            for done in as_completed(asked):
                prompt = asked[done]
                try:
                    answers[prompt] = done.result()
                except NoAnswer as none:
                    silent[prompt] = f"{refiner.server.model} does not rewrite its prompt ({none})"
                    if not answers and len(silent) >= GIVE_UP:
                        raise _nothing(silent) from None
                advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if prompts and not answers:
        raise _nothing(silent)
    refined = [with_prompt(item, answers[item.prompt], refiner) for item in items if item.prompt in answers]
    return refined, silent


def _nothing(silent: dict[str, str]) -> UserError:
    return UserError(next(iter(silent.values())), "check the server, or leave --refine out")


def _check_model(model: str, store: Store, known: set[str]) -> None:
    """A server's only model has no name in the request, and may be another one since."""
    first = min((name for name in known if name.startswith(f"{ANSWERS}/")), default=None)
    data = None if first is None else store.read(first)
    before = model if data is None else json.loads(data)["model"]
    if before != model:
        what = f"prompts of {store.text} were rewritten by {before}, and the server has {model}"
        raise UserError(what, f"serve {before} again, or name another --out")


def _answer(prompt: str, refiner: Refiner, store: Store, known: set[str]) -> str:
    """From the store, or from the server and then into the store."""
    name = f"{ANSWERS}/{refiner.key(prompt)[:32]}.json"
    if name in known:
        data = store.read(name)
        if data is not None:
            return json.loads(data)["refined"]
    refined = refiner.rewrite(prompt)
    tree = {"prompt": prompt, "refined": refined, "model": refiner.server.model}
    store.write(name, json_bytes(tree))
    return refined
