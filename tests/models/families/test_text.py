import pytest
import torch

from uhr.models import zoo


@pytest.fixture(scope="module")
def encoders(tiny_flux):
    return zoo.load_text_encoders(tiny_flux)


PROMPTS = ["a lake at dawn", "", "Ein Schloß, 雪 — snow!", "word " * 300]


def test_embeddings_are_bitwise_those_of_the_stock_pipeline(encoders, stock):
    ours = zoo.encode_prompts(encoders, PROMPTS)
    with torch.no_grad():
        sequence, pooled, _ = stock.encode_prompt(PROMPTS, max_sequence_length=512)
    assert torch.equal(ours.t5, sequence)
    assert torch.equal(ours.pooled, pooled)
    assert ours.t5.shape == (4, 512, 32)
    assert ours.pooled.shape == (4, 32)


def test_prompts_that_are_cut_are_told_by_their_token_counts(encoders):
    embeds = zoo.encode_prompts(encoders, PROMPTS)
    assert [count > 512 for count in embeds.t5_tokens] == [False, False, False, True]
    assert [count > 77 for count in embeds.clip_tokens] == [False, False, False, True]
    assert embeds.t5_tokens[1] == 1
    assert embeds.clip_tokens[1] == 2


def test_no_gradient_is_kept(encoders):
    assert not zoo.encode_prompts(encoders, ["x"]).t5.requires_grad


def test_what_is_beyond_the_length_does_not_count(encoders):
    longer = zoo.encode_prompts(encoders, ["word " * 300 + "tail", "word " * 300 + "another end"])
    assert torch.equal(longer.t5[0], longer.t5[1])


@pytest.fixture(scope="module")
def chat(tiny_flux2):
    return zoo.load_text_encoders(tiny_flux2)


def test_flux2s_embeddings_are_bitwise_those_of_the_stock_pipeline(chat, stock2):
    ours = zoo.encode_chat(chat, PROMPTS)
    with torch.no_grad():
        theirs, _ = stock2.encode_prompt(PROMPTS, max_sequence_length=512)
    assert torch.equal(ours.text, theirs)
    assert ours.text.shape == (4, 512, 96)
    assert not ours.text.requires_grad


def test_flux2s_token_counts_take_in_the_turns_around_a_prompt(chat):
    embeds = zoo.encode_chat(chat, PROMPTS)
    assert [count > 512 for count in embeds.tokens] == [False, False, False, True]
    assert embeds.tokens[0] - embeds.tokens[1] == len(PROMPTS[0])
