"""UltraFlux: its own transformer, VAE and pipeline classes."""

from __future__ import annotations

from benchmarks.certify.official.harness import dtype_of, imported, one_image


def load(job):
    """The official pipeline with the transformer that came after its positions were corrected."""
    dtype, kinds = dtype_of(job), "FluxTransformer2DModel"
    vae = imported("ultraflux.autoencoder_kl", "AutoencoderKL").from_pretrained(
        job["model"], subfolder="vae", torch_dtype=dtype
    )
    transformer = imported("ultraflux.transformer_flux_visionyarn", kinds).from_pretrained(
        job["transformer"], torch_dtype=dtype
    )
    pipe = imported("ultraflux.pipeline_flux", "FluxPipeline").from_pretrained(
        job["model"], vae=vae, transformer=transformer, torch_dtype=dtype
    )
    pipe.scheduler.config.use_dynamic_shifting = False
    return pipe


def generate(pipe, job, callback):
    """One image. The plain decoder: that in partitions, the default, is shifted by a pixel."""
    return one_image(pipe, job, callback, partitioned=False)
