"""Tokens of a prompt that are not read are counted per encoder and reported in one line."""

import copy
from dataclasses import replace

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models.families.conditions import Prompt
from uhr.models.families.text import TokenCount, notes_of
from uhr.models.samplers.euler import EulerPipeline, Flux2EulerPipeline

LONG = "word " * 300
CALL = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}


@pytest.fixture(scope="module")
def euler(stock):
    return pipeline_of(EulerPipeline, stock)


@pytest.fixture(scope="module")
def euler2(stock2):
    return pipeline_of(Flux2EulerPipeline, stock2)


def pipeline_of(cls, stock):
    pipeline = cls.from_pipe(stock)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def lines(logged, capfd):
    """Every line that is logged or printed, whichever library it comes from; those of before are dropped."""

    def found():
        own = [record.getMessage() for record in logged if record.name.startswith("uhr.")]
        printed = [line for text in capfd.readouterr() for line in text.splitlines()]
        logged.clear()
        return own, [line for line in printed if line.strip() and line not in own]

    found()
    return found


@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_encode_prompt_is_bitwise_the_stock_pipelines_and_says_what_is_cut_in_one_line(
    family, request, lines
):
    ours, theirs = (
        request.getfixturevalue(name)
        for name in {"flux1": ("euler", "stock"), "flux2": ("euler2", "stock2")}[family]
    )
    for prompts in (["a lake", ""], [LONG, "a lake"]):
        arguments = {"num_images_per_prompt": 2, "max_sequence_length": 512}
        with torch.no_grad():
            expected = theirs.encode_prompt(prompts, **arguments)
            lines()
            found = ours.encode_prompt(prompts, **arguments)
        own, printed = lines()
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other.to(one.dtype))
            assert one.shape == other.shape
        assert len(own) == (1 if LONG in prompts else 0)
        assert printed == []


@pytest.mark.parametrize(("family", "encoder"), [("flux1", "t5"), ("flux2", "qwen3")])
def test_a_call_logs_one_line_for_a_prompt_that_is_cut_and_its_details_have_the_counts(
    family, encoder, request, lines
):
    pipeline = request.getfixturevalue("euler" if family == "flux1" else "euler2")
    pipeline(LONG, **CALL)
    count = next(each for each in pipeline.token_counts if each.encoder == encoder)
    (note,) = notes_of(pipeline.token_counts)
    assert note == f"the prompt has {count.tokens[0]:,} tokens, {encoder} reads 512: its end is not read"
    assert count.tokens[0] > 512
    assert lines() == ([note], [])
    details = pipeline.details()
    assert details["notes"] == [note]
    assert {**count.describe(), "cut": 1} in details["text_tokens"]
    pipeline("a lake", **CALL)
    assert lines() == ([], [])
    assert pipeline.details()["notes"] == []
    assert all(each["cut"] == 0 for each in pipeline.details()["text_tokens"])


def test_one_line_is_for_a_whole_batch_and_for_the_negative_prompt_too(euler2, euler, lines):
    euler2(["a lake", LONG, LONG + "more"], **CALL)
    (line,), printed = lines()
    longest = max(euler2.token_counts[0].tokens)
    assert line == (
        "2 of 3 prompts have more tokens than the 512 that qwen3 reads "
        f"(the longest {longest:,}): their ends are not read"
    )
    euler(LONG, negative_prompt=LONG, true_cfg_scale=2.0, guidance_scale=3.5, **CALL)
    (line,), more = lines()
    assert line.count("its end is not read") == 2
    assert "the negative prompt has" in line
    assert printed == more == []


def test_length_that_the_caller_gives_is_the_one_that_cuts(euler, lines):
    euler("one two three four five six seven", max_sequence_length=4, **CALL)
    (line,), _ = lines()
    assert line.endswith("t5 reads 4: its end is not read")


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_without_a_token_is_invalid_and_is_not_the_trained_one(euler, length):
    with pytest.raises(UserError, match=f"max_sequence_length {length} is invalid: give at least 1, or None"):
        euler("a lake", max_sequence_length=length, **CALL)


def test_clips_limit_counts_where_t5_does_not_read_the_prompt(euler, lines):
    """T5 reads what is beyond CLIP's limit; only a prompt for CLIP alone is cut."""
    middle = "word " * 60
    euler(middle, **CALL)
    clip = next(each for each in euler.token_counts if each.encoder == "clip")
    assert 77 < clip.tokens[0] < 512
    assert lines() == ([], [])
    euler(middle, prompt_2="a lake", **CALL)
    assert lines()[0] == [f"the prompt has {clip.tokens[0]} tokens, clip reads 77: its end is not read"]
    euler("a lake", prompt_2=LONG, **CALL)
    (line,), _ = lines()
    assert line.startswith("the second prompt has")


def test_embeddings_that_are_given_have_no_count(euler, lines):
    text, pooled, _ = euler.encode_prompt("a lake", max_sequence_length=16)
    euler(prompt_embeds=text, pooled_prompt_embeds=pooled, **CALL)
    assert euler.token_counts == ()
    assert lines() == ([], [])


def test_tokens_of_textual_inversion_are_written_out_for_the_encoder_that_has_them(euler):
    """By diffusers' own function, as the stock pipeline reads a prompt with each of its tokenizers."""
    encoders = euler.family.encoders(euler, 512)
    plain = [count.tokens for count in euler.family.count(encoders, ["a <cat>", "a lake"])]
    clip = copy.deepcopy(euler.tokenizer)
    clip.add_tokens(["<cat>", "<cat>_1", "<cat>_2"])
    t5, (learned, lake) = (
        count.tokens for count in euler.family.count(replace(encoders, tokenizer=clip), ["a <cat>", "a lake"])
    )
    assert learned == len(clip(euler.maybe_convert_prompt("a <cat>", clip)).input_ids)
    assert learned == len(clip("a ").input_ids) + 3
    # T5 has no such token and reads the prompt as it is
    assert (t5, lake) == (plain[0], plain[1][1])


def test_tokenizers_alone_count_what_is_counted_when_prompts_are_encoded(
    tiny_flux, tiny_flux2, euler, euler2
):
    from uhr.models.loading.model import load_tokenizers, open_model

    prompts = ["a lake", LONG, ""]
    for folder, pipeline in ((tiny_flux, euler), (tiny_flux2, euler2)):
        family, encoders = pipeline.family, load_tokenizers(open_model(folder))
        embedded = family.embed(family.encoders(pipeline, 512), Prompt(prompts))
        assert family.count(encoders, prompts) == embedded.counts


def test_a_text_as_long_as_the_encoder_reads_is_whole():
    assert notes_of([TokenCount("prompt", "t5", (512,), 512)]) == []
    assert notes_of([TokenCount("prompt", "t5", (513,), 512)]) != []
