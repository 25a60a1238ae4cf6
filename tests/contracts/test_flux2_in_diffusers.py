"""The parts of FLUX.2 in diffusers and its loaders that this project uses, name by name."""

import inspect

import diffusers
import torch


def parameters(function):
    return set(inspect.signature(function).parameters)


def test_the_stock_pipeline_takes_and_keeps_what_ours_hands_it():
    pipeline = diffusers.Flux2KleinPipeline
    assert {"scheduler", "vae", "text_encoder", "tokenizer", "transformer", "is_distilled"} <= parameters(
        pipeline.__init__
    )
    assert {"prompt", "device", "prompt_embeds", "max_sequence_length"} <= parameters(pipeline.encode_prompt)
    assert pipeline._callback_tensor_inputs == ["latents", "prompt_embeds"]
    assert parameters(pipeline.encode_prompt) >= {"text_encoder_out_layers"}
    layers = inspect.signature(pipeline.encode_prompt).parameters["text_encoder_out_layers"].default
    from uhr.models.families.flux2 import TEXT_LAYERS

    assert layers == TEXT_LAYERS


def test_the_transformer_is_called_by_these_names_and_casts_sigma_itself():
    forward = diffusers.Flux2Transformer2DModel.forward
    assert {
        "hidden_states", "encoder_hidden_states", "timestep", "img_ids", "txt_ids", "guidance",
        "joint_attention_kwargs", "return_dict",
    } <= parameters(forward)  # fmt: skip
    source = inspect.getsource(inspect.unwrap(forward))
    assert "timestep.to(hidden_states.dtype) * 1000" in source


def test_klein_without_a_guidance_embedding_has_no_such_weights():
    with torch.device("meta"):
        model = diffusers.Flux2Transformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=False)
    assert not [name for name, _ in model.named_parameters() if "guidance_embedder" in name]


def test_the_vae_keeps_its_statistics_in_an_affine_free_batch_norm():
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",), latent_channels=2,
    )  # fmt: skip
    assert vae.bn.running_mean.shape == vae.bn.running_var.shape == (8,)
    assert not vae.bn.affine
    assert vae.config.batch_norm_eps == vae.bn.eps


def test_a_modules_own_word_on_where_it_computes_sees_through_offloading():
    from accelerate import cpu_offload
    from diffusers.utils.torch_utils import get_module_execution_device

    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    cpu_offload(module, torch.device("cpu"))
    assert module[0].weight.device == torch.device("meta")
    assert get_module_execution_device(module) == torch.device("cpu")


def test_loras_of_flux2_are_read_with_their_metadata():
    assert "return_lora_metadata" in inspect.getsource(diffusers.Flux2KleinPipeline.lora_state_dict)


def test_the_converters_of_single_files_are_where_ours_looks_them_up():
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    for name in ("FluxTransformer2DModel", "Flux2Transformer2DModel", "AutoencoderKL"):
        convert = SINGLE_FILE_LOADABLE_CLASSES[name]["checkpoint_mapping_fn"]
        assert "checkpoint" in parameters(convert)
    assert "AutoencoderKLFlux2" not in SINGLE_FILE_LOADABLE_CLASSES


def test_quantisation_and_offload_have_these_names():
    import transformers

    for library in (diffusers, transformers):
        assert {
            "load_in_4bit",
            "load_in_8bit",
            "bnb_4bit_quant_type",
            "bnb_4bit_compute_dtype",
        } <= parameters(library.BitsAndBytesConfig)
        assert parameters(library.TorchAoConfig) >= {"quant_type"}
    assert "compute_dtype" in parameters(diffusers.GGUFQuantizationConfig)
    pipeline = diffusers.DiffusionPipeline
    assert "device" in parameters(pipeline.enable_model_cpu_offload)
    assert "device" in parameters(pipeline.enable_sequential_cpu_offload)
    assert {"onload_device", "offload_type", "use_stream"} <= parameters(pipeline.enable_group_offload)
