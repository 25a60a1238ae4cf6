"""The parts of transformers that this project uses: tokenizers from a vocabulary, and an encoder's
vectors."""

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    T5TokenizerFast,
)


def test_t5s_fast_tokenizer_is_what_saved_pipelines_name():
    assert T5TokenizerFast.__name__ in ("T5TokenizerFast", "T5Tokenizer")


def test_tokenizers_are_made_from_a_vocabulary_and_pad_and_cut():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    t5 = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=8)
    ids = t5(["a a"], padding="max_length", max_length=8, truncation=True, return_tensors="pt").input_ids
    assert ids.tolist() == [[3, 4, 3, 4, 1, 0, 0, 0]]
    clip = CLIPTokenizer(
        {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}, merges=[], model_max_length=6
    )
    ids = clip(["a"], padding="max_length", max_length=6, truncation=True, return_tensors="pt").input_ids
    assert ids.tolist() == [[2, 1, 3, 3, 3, 3]]


def test_clip_pools_at_the_first_end_token():
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=6, eos_token_id=7, pad_token_id=7,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        out = model(torch.tensor([[6, 1, 7, 7, 7, 7]]))
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 2])


def test_t5s_encoder_gives_its_sequence_first():
    model = T5EncoderModel(
        T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).eval()
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]]))[0].shape == (1, 3, 8)
