"""From texts to tensors, against the stock pipelines."""

import pytest
import torch

from uhr.models import zoo
from uhr.models.families.flux1 import Flux1
from uhr.models.families.flux2 import Flux2
from uhr.models.families.registry import FAMILIES
from uhr.models.zoo import Prompt

PROMPTS = ["a lake at dawn", "", "Ein Schloß, 雪 — snow!", "word " * 300]


@pytest.fixture(scope="module")
def encoders(tiny_flux):
    return zoo.load_text_encoders(tiny_flux)


@pytest.fixture(scope="module")
def chat(tiny_flux2):
    return zoo.load_text_encoders(tiny_flux2)


def test_embeddings_are_bitwise_those_of_the_stock_pipeline(encoders, stock):
    ours = Flux1().embed(encoders, Prompt(PROMPTS))
    with torch.no_grad():
        sequence, pooled, _ = stock.encode_prompt(PROMPTS, max_sequence_length=512)
    assert torch.equal(ours.texts["t5"], sequence)
    assert torch.equal(ours.texts["pooled"], pooled)
    assert ours.texts["t5"].shape == (4, 512, 32)
    assert ours.texts["pooled"].shape == (4, 32)


def test_prompts_that_are_cut_are_found_by_their_token_counts(encoders):
    t5, clip = Flux1().embed(encoders, Prompt(PROMPTS)).counts
    assert [count > 512 for count in t5.tokens] == [False, False, False, True]
    assert [count > 77 for count in clip.tokens] == [False, False, False, True]
    assert t5.tokens[1] == 1
    assert clip.tokens[1] == 2


def test_no_gradient_is_kept(encoders):
    assert not any(each.requires_grad for each in Flux1().embed(encoders, Prompt("x")).texts.values())


def test_what_is_beyond_the_length_does_not_count(encoders):
    longer = Prompt(["word " * 300 + "tail", "word " * 300 + "another end"])
    sequence = Flux1().embed(encoders, longer).texts["t5"]
    assert torch.equal(sequence[0], sequence[1])


def test_flux2s_embeddings_are_bitwise_those_of_the_stock_pipeline(chat, stock2):
    ours = Flux2().embed(chat, Prompt(PROMPTS)).texts["qwen3"]
    with torch.no_grad():
        theirs, _ = stock2.encode_prompt(PROMPTS, max_sequence_length=512)
    assert torch.equal(ours, theirs)
    assert ours.shape == (4, 512, 96)
    assert not ours.requires_grad


def test_flux2s_token_counts_take_in_the_turns_around_a_prompt(chat):
    (count,) = Flux2().embed(chat, Prompt(PROMPTS)).counts
    assert [tokens > 512 for tokens in count.tokens] == [False, False, False, True]
    assert count.tokens[0] - count.tokens[1] == len(PROMPTS[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_have_the_names_and_shapes_that_the_family_states(name, request):
    """The sequence is called as its encoder, and comes first."""
    family, folder = (
        FAMILIES[name],
        request.getfixturevalue({"flux1": "tiny_flux", "flux2": "tiny_flux2"}[name]),
    )
    encoders, model = zoo.load_text_encoders(folder), zoo.open_model(folder)
    embedded = family.embed(encoders, Prompt(["a", "b"]))
    shapes = family.text_shapes(zoo.load_transformer(model).config, model.spec.text_lengths[family.sequence])
    assert tuple(embedded.texts) == family.text_tensors == tuple(shapes)
    assert {key: tuple(tensor.shape[1:]) for key, tensor in embedded.texts.items()} == shapes
    assert [count.encoder for count in embedded.counts] == list(model.spec.text_lengths)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_condition_has_every_text_in_the_dtype_of_the_backbone_and_ids_in_float32(name):
    family = FAMILIES[name]
    shapes = family.text_shapes({"joint_attention_dim": 6, "pooled_projection_dim": 5}, 4)
    texts = {key: torch.randn(2, *shape) for key, shape in shapes.items()}
    guidance, ids = torch.tensor([1.0, 3.5]), family.image_ids(2, 3)
    condition = family.condition(texts, ids, guidance, torch.bfloat16)
    assert torch.equal(condition.text, texts[family.sequence].bfloat16())
    assert family.pooled == (condition.pooled is not None)
    if family.pooled:
        assert torch.equal(condition.pooled, texts["pooled"].bfloat16())
    assert torch.equal(condition.text_ids, family.text_ids(4))
    assert condition.image_ids is ids
    assert condition.guidance is guidance
    assert condition.text_ids.dtype == torch.float32


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_that_are_given_stay_as_they_are(name):
    text, pooled = torch.randn(1, 4, 6), torch.randn(1, 5)
    family = FAMILIES[name]
    given = Prompt(embeds=text, pooled=pooled if family.pooled else None)
    embedded = family.embed(zoo.TextEncoders(None, None, {}), given)
    assert embedded.texts[family.sequence] is text
    assert list(embedded.texts.values()) == ([text, pooled] if family.pooled else [text])
    assert embedded.counts == ()
