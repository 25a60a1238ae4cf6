"""I-Max: a base image, and a stage from pure noise that is projected towards it."""

from __future__ import annotations

from benchmarks.certify.official.harness import dtype_of, imported


def load(job):
    """The official pipeline and transformer. Raises RuntimeError if the installed scheduler ignores the shift
    that the pipeline sets between the stages."""
    transformer = imported("transformer_flux", "FluxTransformer2DModel").from_pretrained(
        job["model"], subfolder="transformer", torch_dtype=dtype_of(job)
    )
    pipe = imported("pipeline_flux_imax", "FluxPipeline").from_pretrained(
        job["model"], transformer=None, torch_dtype=dtype_of(job)
    )
    pipe.transformer = transformer
    pipe.scheduler.config.use_dynamic_shifting = False
    if levels(pipe.scheduler, 3) == levels(pipe.scheduler, 6):
        raise RuntimeError("this diffusers ignores the shift that I-Max sets: install diffusers<0.32")
    return pipe


def levels(scheduler, shift):
    """The noise levels at a shift that is set as the official pipeline sets it."""
    import numpy

    scheduler.config.shift = shift
    scheduler.set_timesteps(sigmas=numpy.array([1.0, 0.5]), device="cpu")
    return [float(sigma) for sigma in scheduler.sigmas]


def generate(pipe, job, callback):
    """One image, with the values of the official README."""
    return pipe(
        prompt=job["prompt"],
        num_inference_steps1=job["steps"],
        num_inference_steps2=job["steps"],
        guidance_scale1=job["guidance"],
        guidance_scale2=7,
        height=job["height"],
        width=job["width"],
        ntk_factor=10,
        time_shift_1=3,
        time_shift_2=6,
        proportional_attention=True,
        text_duplication=True,
        swin_pachify=job["options"].get("swin", True),
        guidance_schedule="cosine_decay",
        callback_on_step_end=callback,
    )
