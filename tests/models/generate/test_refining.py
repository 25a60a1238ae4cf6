"""Items whose prompts a language model has rewritten, against a server of our own."""

import hashlib

import pytest

from uhr.base.errors import UserError
from uhr.models.generate.refining import refine_one
from uhr.models.generate.request import Item, Original
from uhr.models.llm.refine import INSTRUCTION, Refinement


def test_an_item_keeps_what_its_prompt_was_and_who_rewrote_it(chat, tmp_path):
    item = Item(prompt="a lake", name="x", seed=3)
    refined = refine_one(item, Refinement(chat.url))
    instruction_hash = hashlib.sha256(INSTRUCTION.encode()).hexdigest()
    original = Original(prompt="a lake", model="expander", instruction=instruction_hash)
    assert refined == Item(prompt="a lake, refined", name="x", seed=3, original=original)
    assert chat.requests[0]["messages"][0]["content"] == INSTRUCTION

    (tmp_path / "own.txt").write_text("write like Basho")
    own = refine_one(item, Refinement(chat.url, "expander", tmp_path / "own.txt"))
    assert chat.requests[1]["messages"][0]["content"] == "write like Basho"
    assert own.original.instruction != instruction_hash


def test_one_prompt_that_gets_no_answer_is_one_line(chat):
    chat.reply = lambda body, n: " "
    with pytest.raises(UserError, match=r"expander did not rewrite 'a lake' \(the answer is empty\)"):
        refine_one(Item(prompt="a lake"), Refinement(chat.url))
