"""The parts of diffusers' FLUX.1 classes that this project uses: a test per symbol, so that an upgrade shows
what breaks."""

import inspect

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor


@pytest.fixture(scope="module")
def transformer():
    model = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(4, 14, 14),
    )  # fmt: skip
    return model.eval()


def parameters(function):
    return set(inspect.signature(function).parameters)


def test_the_transformer_takes_the_arguments_that_we_pass(transformer):
    assert {
        "hidden_states", "timestep", "guidance", "pooled_projections", "encoder_hidden_states",
        "txt_ids", "img_ids", "joint_attention_kwargs", "return_dict",
    } <= parameters(transformer.forward)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transformer_multiplies_sigma_and_guidance_by_1000_after_casting_to_its_dtype(transformer, dtype):
    seen = {}
    embed = transformer.time_text_embed.forward

    def spy(timestep, guidance, pooled):
        seen.update(timestep=timestep, guidance=guidance)
        return embed(timestep, guidance, pooled)

    transformer.to(dtype).time_text_embed.forward = spy
    try:
        with torch.no_grad():
            transformer(
                hidden_states=torch.zeros(1, 4, 64, dtype=dtype),
                encoder_hidden_states=torch.zeros(1, 3, 8, dtype=dtype),
                pooled_projections=torch.zeros(1, 8, dtype=dtype),
                timestep=torch.tensor([0.7]),
                guidance=torch.tensor([3.5]),
                img_ids=torch.zeros(4, 3),
                txt_ids=torch.zeros(3, 3),
            )
    finally:
        transformer.to(torch.float32).time_text_embed.forward = embed
    assert seen["timestep"].item() == (torch.tensor([0.7]).to(dtype) * 1000).item()
    assert seen["guidance"].item() == {torch.float32: 3500, torch.bfloat16: 3504}[dtype]


def test_adapter_targets_have_these_names_in_double_and_single_blocks(transformer):
    names = {name for name, _ in transformer.named_modules()}
    double = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    assert {f"transformer_blocks.0.attn.{name}" for name in double} <= names
    assert {
        f"transformer_blocks.0.{ff}.net.{i}" for ff in ("ff", "ff_context") for i in ("0.proj", "2")
    } <= names
    assert {f"single_transformer_blocks.0.attn.{name}" for name in double[:3]} <= names
    assert "single_transformer_blocks.0.attn.to_out.0" not in names


def test_position_embedding_takes_ids_and_gives_cos_and_sin_and_has_no_state(transformer):
    embed = transformer.pos_embed
    assert type(embed) is FluxPosEmbed
    assert (embed.theta, tuple(embed.axes_dim)) == (10000, (4, 14, 14))
    assert not embed.state_dict()
    cos, sin = embed(torch.tensor([[0.0, 3.0, 5.0]]))
    assert cos.shape == sin.shape == (1, 32)
    assert cos.dtype == torch.float32
    # channels in adjacent pairs, each pair one angle
    assert torch.equal(cos[:, 0::2], cos[:, 1::2])


def test_a_step_cache_has_a_state_for_each_branch_that_is_named():
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=2, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(4, 14, 14),
    ).eval()  # fmt: skip

    def call(seed: int, branch: str) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad(), model.cache_context(branch):
            return model(
                hidden_states=torch.randn(1, 4, 64, generator=draw),
                encoder_hidden_states=torch.randn(1, 3, 8, generator=draw),
                pooled_projections=torch.randn(1, 8, generator=draw),
                timestep=torch.tensor([0.7]), guidance=torch.tensor([3.5]),
                img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(3, 3),
            ).sample  # fmt: skip

    def second(*first: tuple[int, str]) -> torch.Tensor:
        """The branch "cond" at seed 3 after other calls, from which all blocks but the first are taken."""
        model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
        for seed, branch in first:
            call(seed, branch)
        found = call(3, "cond")
        model.disable_cache()
        return found

    alone = second((1, "cond"))
    assert torch.equal(second((1, "cond"), (2, "uncond")), alone)
    assert not torch.equal(second((2, "cond")), alone)
    assert not torch.equal(second(), alone)


def test_a_pipeline_encodes_prompts_to_sequence_pooled_and_ids():
    assert {
        "prompt", "prompt_2", "device", "num_images_per_prompt", "prompt_embeds", "pooled_prompt_embeds",
        "max_sequence_length",
    } <= parameters(FluxPipeline.encode_prompt)  # fmt: skip


def test_a_pipeline_has_the_hooks_that_our_samplers_use():
    for name in (
        "progress_bar", "maybe_free_model_hooks", "from_pipe", "from_pretrained", "set_adapters",
        "load_lora_weights", "fuse_lora", "unload_lora_weights", "set_progress_bar_config",
    ):  # fmt: skip
        assert callable(getattr(FluxPipeline, name)), name
    assert isinstance(FluxPipeline.interrupt, property)
    assert isinstance(FluxPipeline._execution_device, property)
    assert isinstance(FluxPipeline.joint_attention_kwargs, property)
    assert FluxPipeline._callback_tensor_inputs == ["latents", "prompt_embeds"]
    assert FluxPipelineOutput(images=[1]).images == [1]


def test_a_lora_file_is_read_to_tensors_alphas_and_metadata(tmp_path):
    from safetensors.torch import save_file

    path = "transformer.transformer_blocks.0.attn.to_q.lora_"
    header = '{"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.target_modules": ["to_q"]}'
    file = tmp_path / "l.safetensors"
    tensors = {f"{path}A.weight": torch.ones(2, 4), f"{path}B.weight": torch.ones(4, 2)}
    save_file(tensors, file, metadata={"format": "pt", "lora_adapter_metadata": header})
    state, alphas, metadata = FluxPipeline.lora_state_dict(
        str(file), return_alphas=True, return_lora_metadata=True, local_files_only=True
    )
    assert set(state) == set(tensors)
    assert not alphas
    assert metadata["transformer.lora_alpha"] == 8


def test_the_key_of_lora_metadata_is_the_one_that_we_write():
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

    assert LORA_ADAPTER_METADATA_KEY == "lora_adapter_metadata"


def test_the_schedulers_configuration_says_how_the_weights_were_published():
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0).config
    assert config.use_dynamic_shifting
    for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        assert key in config
    assert FlowMatchEulerDiscreteScheduler(shift=2.5).shift == 2.5


def test_the_schedulers_step_is_ours():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[0.8, 0.3])
    x, v = torch.ones(3), torch.full((3,), 2.0)
    found = scheduler.step(v, scheduler.timesteps[0], x, return_dict=False)[0]
    torch.testing.assert_close(found, x + (0.3 - 0.8) * v)


def test_a_vae_gives_a_posterior_with_mean_and_std_and_says_its_shift_and_scale():
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, shift_factor=0.1, scaling_factor=0.3)
    posterior = vae.encode(torch.zeros(1, 3, 8, 8)).latent_dist
    assert posterior.mean.shape == posterior.std.shape
    assert (vae.config.shift_factor, vae.config.scaling_factor) == (0.1, 0.3)
    assert vae.decode(posterior.mean, return_dict=False)[0].shape == (1, 3, 8, 8)


def test_noise_of_a_cpu_generator_is_torchs_own():
    drawn = randn_tensor((2, 3), generator=torch.Generator().manual_seed(4), dtype=torch.float32)
    assert torch.equal(drawn, torch.randn(2, 3, generator=torch.Generator().manual_seed(4)))


def test_progress_bars_of_loading_can_be_switched_off_and_on_again():
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    for log in (ours, theirs):
        before = log.is_progress_bar_enabled()
        log.disable_progress_bar()
        assert not log.is_progress_bar_enabled()
        log.enable_progress_bar()
        assert log.is_progress_bar_enabled()
        if not before:
            log.disable_progress_bar()
