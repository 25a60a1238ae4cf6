"""Scale-DiT (UltraGen) on FLUX.1: `generate` of the official repository on diffusers' own pipeline."""

from __future__ import annotations

from benchmarks.certify.official.harness import dtype_of, imported


def window(job):
    """Side of a window in tokens: 16 on FLUX.1, and at least the 4 that cover one token of the guide."""
    return max(4, 16 * job["native"] // 1024)


def load(job):
    """diffusers' pipeline with the LoRA, as the official module of training prepares it."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(job["model"], torch_dtype=dtype_of(job))
    pipe.load_lora_weights(job["adapters"][0], adapter_name="default")
    pipe.scheduler.config.use_dynamic_shifting = False
    give_mask(pipe.transformer, job)
    return pipe


def give_mask(transformer, job):
    """Put the mask, [query blocks, key blocks], where the official code keeps masks that it has read: it
    reads them from a path on its author's machine."""
    import torch

    mask = torch.load(job["official_files"][0], map_location="cpu", weights_only=True).bool()
    heads = transformer.config.num_attention_heads
    key = ("THL_128x64_mask", 1, heads, job["height"], job["width"])
    imported("src.flux.block", "_BLOCK_MASK_CACHE")[key] = mask.expand(1, heads, *mask.shape[-2:])


def generate(pipe, job, callback):
    """One image, with the values of the official configuration for FLUX.1 at 4096 px."""
    height, width = job["height"], job["width"]
    order = imported("src.flux.pipeline_tools", "window_permutation")
    inverse = imported("src.flux.pipeline_tools", "inverse_permutation")
    rows, columns = height // 16, width // 16
    side = window(job)
    unsorted = inverse(order(H=rows, W=columns, Wh=side, Ww=side))

    def after(pipeline, step, timestep, tensors):
        # the tokens of the large stage are ordered by windows
        latents = tensors["latents"]
        if latents.shape[1] == rows * columns:
            latents = latents[:, unsorted]
        return callback(pipeline, step, timestep, {"latents": latents})

    return imported("src.flux.generate", "generate")(
        pipe,
        prompt=job["prompt"],
        height=height,
        width=width,
        model_config=configuration(job),
        max_sequence_length=512,
        guidance_scale=job["guidance"],
        num_inference_steps=job["steps"],
        hr_inference_steps=job["steps"] - round(job["steps"] * 10 / 28),
        hr_guidance_scale=4.5,
        save_path=job["out"],
        callback_on_step_end=after,
    )


def configuration(job):
    """The official inference.yaml at this size."""
    height, width = job["height"], job["width"]
    return {
        "seed": 42,
        "patch_size": 16,
        "image_size": [height, width],
        "joint_denoise_size": [height // 4, width // 4],
        "text_seq_len": 512,
        "downsample_factor": 4,
        "window_size": [16 * window(job)] * 2,
        "use_flash_attention": False,
        "joint_denoise": True,
        "cache_low_res_guidance_proj": False,
        "low_res_guidance_as_condition": False,
        "cache_low_res_guidance_qkv": True,
        "scale_PE": True,
        "interpolation_init": True,
        "text_attend_scale": "limited",
        "hi_res_attend_scale": "all",
        "ntk_factor": 10.0,
        "theta": 10000.0,
        "freq_filtering": False,
        "use_sliding_window": True,
        "use_block_sparse_attention": False,
        "use_sage_blocksparse": True,
        "sage_blk_q": 64,
        "sage_blk_k": 64,
        "sage_kernel_blk_q": 128,
        "sage_kernel_blk_k": 64,
        "sage_smooth_k": True,
        "sage_pvthreshd": 10000000,
        "sage_attention_sink": False,
        "finetuned_vae": False,
        "guidance_schedule": "cosine_decay",
        "dwt_level": 1,
        "dwt_wavelet": "haar",
        "offload_vae_during_hr": job["device"] != "cpu",
    }
