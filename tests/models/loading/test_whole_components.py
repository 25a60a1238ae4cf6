"""A component that its folder does not give whole is an error, whichever way it is loaded."""

import json
import logging
import shutil
import threading

import pytest
import torch
import transformers
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPVisionConfig, T5Config, T5EncoderModel
from transformers import T5ForConditionalGeneration as WholeT5

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models import zoo
from uhr.models.loading import quantize
from uhr.models.loading.checks import check_report, checked_loading, load_whole
from uhr.models.samplers import SAMPLERS, sampler_class
from uhr.models.samplers.euler import EulerPipeline, Flux2EulerPipeline
from uhr.models.samplers.patch_cascade import PatchCascadePipeline

PIPELINES = {"tiny_flux": EulerPipeline, "tiny_flux2": Flux2EulerPipeline}
PARTS = {
    "tiny_flux": {
        "text_encoder": "encoder.layers.1.mlp.fc1.weight",
        "text_encoder_2": "encoder.block.0.layer.0.SelfAttention.q.weight",
        "transformer": "single_transformer_blocks.0.attn.to_q.weight",
        "vae": "decoder.mid_block.resnets.0.conv1.bias",
    },
    "tiny_flux2": {
        "text_encoder": "model.layers.5.self_attn.q_proj.weight",
        "transformer": "transformer_blocks.0.attn.to_q.weight",
        "vae": "bn.running_var",
    },
}
EVERY = [(model, part) for model, parts in PARTS.items() for part in parts]


@pytest.fixture
def copy(request, tmp_path):
    """A maker of a model's own copy; by the name of the fixture that has it."""

    def make(model):
        return shutil.copytree(request.getfixturevalue(model), tmp_path / "model")

    return make


def edit(folder, change):
    """Change the tensors of a component's only file in place."""
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def configure(folder, name="config.json", **values):
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(folder, model, part, message):
    """By our own loader, by the sampler's own pipeline, each in one line, and nothing on the log."""
    for load in (
        lambda: zoo.load_component(folder, part),
        lambda: PIPELINES[model].from_pretrained(folder),
        lambda: PIPELINES[model].from_pretrained(folder, low_cpu_mem_usage=False),
        lambda: PIPELINES[model].from_pretrained(folder, torch_dtype=torch.bfloat16),
    ):
        with pytest.raises(UserError, match=message) as raised:
            load()
        assert f"{part} of {folder}" in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("model", "part"), EVERY)
def test_a_missing_weight_is_named(copy, model, part, logged):
    folder, name = copy(model), PARTS[model][part]
    edit(folder / part, lambda state: state.pop(name))
    refused(folder, model, part, rf"lacks {name}: download it again")
    edit(folder / part, lambda state: state.pop(sorted(state)[-1]))
    with pytest.raises(UserError, match=r"lacks .* \(and 1 more\): download"):
        zoo.load_component(folder, part)
    assert not [record for record in logged if "LOAD REPORT" in record.getMessage()]


@pytest.mark.parametrize(("model", "part"), EVERY)
def test_a_weight_of_another_shape_is_named(copy, model, part):
    folder, name = copy(model), PARTS[model][part]

    def double(state):
        state[name] = torch.cat([state[name], state[name]])

    edit(folder / part, double)
    with pytest.raises(UserError, match=rf"{part} of .*{name}.*: (download it again|check its files)"):
        zoo.load_component(folder, part)
    with pytest.raises((UserError, ValueError), match=name):
        PIPELINES[model].from_pretrained(folder)


@pytest.mark.parametrize(("model", "part"), EVERY)
def test_scales_beside_weights_are_not_passed_over(copy, model, part):
    """Add the scales of files of 8-bit weights."""
    folder, name = copy(model), PARTS[model][part]
    scale = name.rpartition(".")[0] + ".scale_weight"
    edit(folder / part, lambda state: state.update({scale: torch.ones(1)}))
    refused(folder, model, part, rf"is quantised by ComfyUI, with separate scales \({scale}\)")


LAYERS = {
    "text_encoder": {"num_hidden_layers": 1},
    "text_encoder_2": {"num_layers": 1},
    "transformer": {"num_layers": 1},
}


@pytest.mark.parametrize("part", LAYERS)
def test_a_configuration_that_leaves_layers_out_is_not_half_a_model(copy, part):
    folder = copy("tiny_flux")
    configure(folder / part, **LAYERS[part])
    with pytest.raises(
        UserError, match=rf"{part} of .* contains .* more\), for which its config.json has no place"
    ):
        EulerPipeline.from_pretrained(folder)


def test_a_backbone_without_its_guidance_input_is_not_taken_for_one_that_has_none(copy):
    folder = copy("tiny_flux")
    configure(folder / "transformer", guidance_embeds=False)
    with pytest.raises(UserError, match=r"contains time_text_embed\.guidance_embedder"):
        EulerPipeline.from_pretrained(folder)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_samplers_pipeline_checks(copy, sampler):
    folder = copy("tiny_flux")
    edit(folder / "text_encoder_2", lambda state: state.pop(PARTS["tiny_flux"]["text_encoder_2"]))
    with pytest.raises(UserError, match=r"text_encoder_2 of .* lacks"):
        sampler_class(sampler, "flux1").from_pretrained(folder)


def test_a_text_encoder_with_a_dtype_of_its_own_is_checked_as_well(copy):
    folder = copy("tiny_flux")
    edit(folder / "text_encoder", lambda state: state.pop(PARTS["tiny_flux"]["text_encoder"]))
    dtypes = {"default": torch.float32, "text_encoder": torch.bfloat16}
    with pytest.raises(UserError, match=r"text_encoder of .* lacks"):
        PatchCascadePipeline.from_pretrained(folder, torch_dtype=dtypes)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_device_map_under_which_diffusers_makes_no_report_is_no_way_around(copy, part):
    folder, name = copy("tiny_flux"), PARTS["tiny_flux"][part]
    EulerPipeline.from_pretrained(folder, device_map="cpu")
    edit(folder / part, lambda state: state.pop(name))
    with pytest.raises(UserError, match=rf"{part} of {folder} lacks {name}: download it again"):
        EulerPipeline.from_pretrained(folder, device_map="cpu")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(("model", "part"), [("tiny_flux", "text_encoder_2"), ("tiny_flux2", "text_encoder")])
def test_quantised_weights_are_checked_as_well(copy, model, part, kind):
    """bitsandbytes, which transformers lets run without a GPU."""
    folder, name = copy(model), PARTS[model][part]
    cls = getattr(transformers, zoo.recognise(folder).components[part].partition(":")[2])
    options = {"use_safetensors": True, "dtype": torch.float32}
    options |= quantize.options(kind, transformers, torch.float32, torch.device("cpu"))
    quantised = load_whole(cls, folder / part, part, options)
    quantize.check_quantised(quantised, kind)
    quantised.save_pretrained(folder / "stored")
    assert isinstance(load_whole(cls, folder / "stored", "stored", {"device_map": "cpu"}), cls)
    edit(folder / part, lambda state: state.pop(name))
    with pytest.raises(UserError, match=rf"{part} lacks {name}: download it again"):
        load_whole(cls, folder / part, part, options)


def test_tied_weights_are_not_missing(tiny_flux, tiny_flux2, tmp_path):
    """The files hold T5's embedding and Qwen's head once, under one of their names."""
    for folder, part, tied in (
        (tiny_flux, "text_encoder_2", ("shared.weight", "encoder.embed_tokens.weight")),
        (tiny_flux2, "text_encoder", ("model.embed_tokens.weight", "lm_head.weight")),
    ):
        state = load_file(folder / part / "model.safetensors")
        assert (tied[0] in state, tied[1] in state) == (True, False)
        one, two = (zoo.load_component(folder, part).state_dict()[name] for name in tied)
        assert torch.equal(one, two)
        both = shutil.copytree(folder, tmp_path / part)
        edit(both / part, lambda state, tied=tied: state.update({tied[1]: state[tied[0]].clone()}))
        assert torch.equal(zoo.load_component(both, part).state_dict()[tied[1]], one)


def test_a_lost_embedding_is_named_itself_and_not_what_is_tied_to_it(copy):
    folder = copy("tiny_flux2")
    edit(folder / "text_encoder", lambda state: state.pop("model.embed_tokens.weight"))
    refused(folder, "tiny_flux2", "text_encoder", r"lacks model\.embed_tokens\.weight: download")


def test_the_half_of_a_model_that_is_not_used_may_be_in_the_file(copy):
    """CLIP with its image half, T5 with its decoder: as transformers' own classes write them."""
    folder = copy("tiny_flux")
    t5 = T5Config.from_pretrained(folder / "text_encoder_2", is_encoder_decoder=True)
    WholeT5(t5).save_pretrained(folder / "text_encoder_2")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").config
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1
    )
    whole = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32)
    )
    state = {**whole.state_dict(), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(state, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    loaded = zoo.load_component(folder, "text_encoder")
    assert torch.equal(
        loaded.state_dict()["final_layer_norm.weight"], state["text_model.final_layer_norm.weight"]
    )
    assert isinstance(zoo.load_component(folder, "text_encoder_2"), T5EncoderModel)
    assert isinstance(EulerPipeline.from_pretrained(folder), EulerPipeline)


def test_a_counter_that_training_alone_reads_may_be_missing(copy):
    folder = copy("tiny_flux2")
    edit(folder / "vae", lambda state: state.pop("bn.num_batches_tracked"))
    zoo.load_component(folder, "vae")
    Flux2EulerPipeline.from_pretrained(folder)


SHARDED = {"text_encoder_2": "model", "transformer": "diffusion_pytorch_model"}


def shards(folder, stem):
    """The component's file in two, with an index."""
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    file.unlink()
    names, weights = sorted(state), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem}-0000{i}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / shard, metadata={"format": "pt"})
        weights |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weights}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return f"{stem}-00002-of-00002.safetensors"


@pytest.mark.parametrize(("part", "stem"), SHARDED.items())
def test_shards_are_read_and_one_that_is_not_there_or_not_whole_is_named(copy, part, stem):
    folder = copy("tiny_flux")
    second = folder / part / shards(folder / part, stem)
    whole = zoo.load_component(folder, part).state_dict()
    assert EulerPipeline.from_pretrained(folder).components[part].state_dict().keys() == whole.keys()
    state = load_file(second)
    lost = sorted(state)[0]
    kept = state.pop(lost)
    save_file(state, second, metadata={"format": "pt"})
    refused(folder, "tiny_flux", part, rf"lacks {lost} in {second.name}: download it again")
    save_file({**state, lost: kept}, second, metadata={"format": "pt"})
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(UserError, match=second.name):
        zoo.load_component(folder, part)
    second.unlink()
    refused(folder, "tiny_flux", part, rf"lacks the file {second.name}, which {stem}\.safetensors\.index")


@pytest.mark.parametrize(("model", "part"), EVERY)
def test_a_truncated_file_is_an_error_of_one_line(copy, model, part):
    folder = copy(model)
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    size = file.stat().st_size
    with pytest.raises(UserError, match=rf"{file} is truncated: it has {size:,} of {size + 10:,} bytes"):
        zoo.load_component(folder, part)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_pickles_are_not_opened(copy, part):
    folder = copy("tiny_flux")
    (file,) = (folder / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(file), folder / part / name)
    file.unlink()
    with pytest.raises(UserError, match=rf"{part} of .* is stored as {name}, a pickle: it can run code"):
        zoo.load_component(folder, part)
    with pytest.raises((UserError, OSError), match="safetensors"):
        EulerPipeline.from_pretrained(folder)


VOCABULARIES = [("tiny_flux", "tokenizer"), ("tiny_flux", "tokenizer_2"), ("tiny_flux2", "tokenizer")]


@pytest.mark.parametrize(("model", "part"), VOCABULARIES)
def test_a_tokenizer_without_its_vocabulary_is_not_an_empty_one(copy, model, part):
    folder = copy(model)
    kept = (folder / part / "tokenizer.json").read_text()
    (folder / part / "tokenizer.json").unlink()
    refused(folder, model, part, r"lacks (vocab\.json and merges\.txt|spiece\.model) or tokenizer\.json")
    (folder / part / "tokenizer.json").write_text(kept[: len(kept) // 2])
    with pytest.raises(UserError, match=rf"{part} of .* cannot be loaded"):
        zoo.load_component(folder, part)
    (folder / part / "tokenizer.json").write_text(kept)
    (folder / part / "tokenizer_config.json").unlink()
    refused(folder, model, part, r"lacks tokenizer_config\.json")


def test_merges_alone_are_no_vocabulary(copy):
    """The published CLIP tokenizer is vocab.json and merges.txt, without tokenizer.json."""
    folder = copy("tiny_flux")
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    expected = zoo.load_component(folder, "tokenizer")("a lake").input_ids
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    assert zoo.load_component(folder, "tokenizer")("a lake").input_ids == expected
    (folder / "tokenizer" / "merges.txt").unlink()
    refused(folder, "tiny_flux", "tokenizer", r"lacks merges\.txt or tokenizer\.json")


def test_a_chat_tokenizer_without_its_template_is_an_error_of_one_line(copy):
    folder = copy("tiny_flux2")
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"tokenizer of .* lacks chat_template\.jinja"):
        zoo.load_component(folder, "tokenizer")


@pytest.mark.parametrize(("model", "part"), [("tiny_flux", "vae"), ("tiny_flux2", "transformer")])
def test_a_key_of_a_configuration_that_its_class_does_not_know_is_not_dropped(copy, model, part):
    folder = copy(model)
    configure(folder / part, a_key_of_next_year=None, another=False)
    zoo.load_component(folder, part)
    configure(folder / part, a_key_of_next_year=2.5)
    refused(folder, model, part, r"has a_key_of_next_year 2\.5, which \w+ does not support")


def test_a_vae_that_was_normalised_by_a_mean_and_deviation_of_its_own_is_refused(copy):
    folder = copy("tiny_flux")
    configure(folder / "vae", latents_mean=[0.1] * 16, latents_std=[1.0] * 16)
    refused(folder, "tiny_flux", "vae", r"has latents_mean \[0\.1.*which the stock pipeline never reads")


@pytest.mark.parametrize("key", ["scaling_factor", "shift_factor"])
def test_a_vae_that_does_not_say_its_scale_has_not_that_of_another_model(copy, key):
    folder = copy("tiny_flux")
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))
    refused(folder, "tiny_flux", "vae", rf"lacks {key}: download it again")


@pytest.mark.parametrize("length", [64, 128])
def test_a_clip_tokenizer_of_another_length_than_training_pads_to_is_refused_there(copy, length):
    """Sampling pads to the tokenizer's own, as the stock pipeline does."""
    folder = copy("tiny_flux")
    configure(folder / "tokenizer", "tokenizer_config.json", model_max_length=length)
    with pytest.raises(
        UserError, match=rf"tokenizer of .* has model_max_length {length}, and tiny-flux1 reads 77"
    ):
        zoo.load_text_encoders(folder)
    assert EulerPipeline.from_pretrained(folder).tokenizer_max_length == length


def test_a_component_that_is_handed_over_is_the_callers_own(copy):
    folder = copy("tiny_flux")
    whole = T5EncoderModel.from_pretrained(folder / "text_encoder_2")
    edit(folder / "text_encoder_2", lambda state: state.pop(PARTS["tiny_flux"]["text_encoder_2"]))
    loaded = EulerPipeline.from_pretrained(folder, text_encoder_2=whole)
    assert loaded.text_encoder_2 is whole


def test_the_libraries_own_loaders_are_as_before_and_other_threads_never_see_a_change(copy):
    folder = copy("tiny_flux")
    edit(folder / "text_encoder_2", lambda state: state.pop(PARTS["tiny_flux"]["text_encoder_2"]))
    before = [
        cls.__dict__["from_pretrained"] for cls in T5EncoderModel.__mro__ if "from_pretrained" in vars(cls)
    ]
    found = []

    def other():
        logging.disable(logging.WARNING)
        found.append(T5EncoderModel.from_pretrained(folder / "text_encoder_2"))
        logging.disable(logging.NOTSET)

    with checked_loading():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(UserError, match="lacks"):
            T5EncoderModel.from_pretrained(folder / "text_encoder_2")
    assert isinstance(found[0], T5EncoderModel)
    assert isinstance(T5EncoderModel.from_pretrained(folder / "text_encoder_2"), T5EncoderModel)
    assert isinstance(FluxPipeline.from_pretrained(folder), FluxPipeline)
    after = [
        cls.__dict__["from_pretrained"] for cls in T5EncoderModel.__mro__ if "from_pretrained" in vars(cls)
    ]
    assert after == before


def test_errors_that_a_report_lists_are_raised():
    report = {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": (), "error_msgs": ["it\nbroke"]}
    with pytest.raises(UserError, match="here cannot be loaded \\(it broke\\)"):
        check_report(torch.nn.Linear(1, 1), report, "here")


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_a_command_refuses_in_one_line_and_writes_nothing(copy, part, tmp_path, capfd):
    folder, out = copy("tiny_flux"), tmp_path / "a.png"
    name = PARTS["tiny_flux"][part]
    edit(folder / part, lambda state: state.pop(name))
    argv = ["sample", "euler", "--model", folder, "--prompt", "a", "--size", "128x128", "--steps", 1]
    assert main([str(arg) for arg in (*argv, "--out", out)]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("load:")]
    assert lines == [f"uhr: {part} of {folder} lacks {name}: download it again"]
    assert not out.exists()


def test_weights_in_place_of_a_models_own_are_checked_as_well(copy, tiny_flux, tmp_path, capfd):
    folder, out = copy("tiny_flux"), tmp_path / "a.png"
    edit(folder / "transformer", lambda state: state.pop("proj_out.bias"))
    argv = [
        "sample",
        "euler",
        "--model",
        tiny_flux,
        "--transformer",
        folder / "transformer",
        "--prompt",
        "a",
    ]
    assert main([str(arg) for arg in (*argv, "--size", "128x128", "--steps", 1, "--out", out)]) == 1
    assert f"transformer in {folder / 'transformer'} lacks proj_out.bias: download" in capfd.readouterr().err
