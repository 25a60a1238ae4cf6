"""URAE at 4K: the 2K LoRA fused, the minor components of each adapted weight taken out, and trained ones in
their place, which the official attention processors add."""

from __future__ import annotations

from benchmarks.certify.official import urae_2k
from benchmarks.certify.official.harness import dtype_of, imported

RANK = 16


def load(job):
    """The pipeline of the official repository with its 4K processors."""
    import torch
    from safetensors.torch import load_file

    # components are taken out of float32 weights, as in the official script
    pipe = urae_2k.load(job, torch.float32)
    pipe.fuse_lora()
    # the processors take the place of those that call the LoRA's layers: its weights are fused already
    pipe.unload_lora_weights()
    transformer = pipe.transformer
    processor = imported("attention_processor", "FluxAttnAdaptationProcessor2_0")
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    transformer.set_attn_processor(
        {
            name: processor(rank=RANK, dim=width, to_out="single" not in name)
            for name in transformer.attn_processors
        }
    )
    for block in transformer.transformer_blocks:
        for linear in (block.attn.to_q, block.attn.to_k, block.attn.to_v, block.attn.to_out[0]):
            without_minor(linear, job["device"])
    for block in transformer.single_transformer_blocks:
        for linear in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
            without_minor(linear, job["device"])
    transformer.to(dtype_of(job))
    _, unexpected = transformer.load_state_dict(load_file(job["adapters"][1]), strict=False)
    if unexpected:
        raise RuntimeError(f"the 4K adapter has keys that the official model lacks, such as {unexpected[0]}")
    return pipe


def without_minor(linear, device):
    """Take the singular components of the smallest values out of a weight."""
    import torch

    weight = linear.weight.data
    left, values, right = torch.linalg.svd(weight.to(device, torch.float32), full_matrices=False)
    kept = (left[:, :-RANK] * values[:-RANK]) @ right[:-RANK]
    linear.weight.data = kept.to(weight.device, weight.dtype)


generate = urae_2k.generate
