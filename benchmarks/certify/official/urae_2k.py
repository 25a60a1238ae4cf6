"""URAE at 2K: a LoRA on FLUX.1-dev, with NTK positions and proportional attention."""

from __future__ import annotations

from benchmarks.certify.official.harness import dtype_of, imported, one_image


def load(job, dtype=None):
    """The pipeline of the official repository with the 2K LoRA; `dtype` replaces that of the transformer."""
    transformer = imported("transformer_flux", "FluxTransformer2DModel").from_pretrained(
        job["model"], subfolder="transformer", torch_dtype=dtype or dtype_of(job)
    )
    pipe = imported("pipeline_flux", "FluxPipeline").from_pretrained(
        job["model"], transformer=transformer, torch_dtype=dtype_of(job)
    )
    pipe.scheduler.config.use_dynamic_shifting = False
    pipe.load_lora_weights(job["adapters"][0])
    return pipe


def generate(pipe, job, callback):
    """One image."""
    return one_image(pipe, job, callback, ntk_factor=10, proportional_attention=True)
