"""HiFlow: a base image and two stages above it, with the values of the official script."""

from __future__ import annotations

import math

from benchmarks.certify.official.harness import dtype_of, imported

SHARES = (16 / 30, 10 / 30)
"""Steps of the stages above the base, of all steps: 16 and 10 of 30."""


def load(job):
    """The official pipeline and transformer."""
    transformer = imported("transformer_flux", "FluxTransformer2DModel").from_pretrained(
        job["model"], subfolder="transformer", torch_dtype=dtype_of(job)
    )
    pipe = imported("flux_pipeline_hiflow", "FluxPipeline").from_pretrained(
        job["model"], transformer=None, torch_dtype=dtype_of(job)
    )
    pipe.transformer = transformer
    # without effect, as in the official script: the shift stays dynamic
    pipe.scheduler.use_dynamic_shifting = False
    return pipe


def generate(pipe, job, callback):
    """One image. The sharpening's sigma is drawn at random by default, and here it is 1."""
    height, width = job["height"], job["width"]
    return pipe(
        prompt=job["prompt"],
        height=height // 4,
        width=width // 4,
        guidance_scale=job["guidance"],
        num_inference_steps=job["steps"],
        max_sequence_length=512,
        ntk_factor=[10.0, 10.0],
        proportional_attention=True,
        text_duplication=False,
        swin_pachify=job["options"].get("swin", True),
        target_heights=[height // 2, height],
        target_widths=[width // 2, width],
        num_inference_steps_highres=[math.ceil(job["steps"] * share - 1e-9) for share in SHARES],
        filter_ratio=[0.2, 0.2],
        guidance_scale_highres=[4.5, 6],
        structure_guidance="fft",
        alphas=[1.0, 0.25],
        betas=[0.5, 0.5],
        upsampling_choice="latent",
        flow_choice="v_theta",
        sharpening_sigma=(1.0, 1.0),
        callback_on_step_end=callback,
    )
