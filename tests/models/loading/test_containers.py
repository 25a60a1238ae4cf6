"""Every file that people have as weights is read, or named for what it is with the way out, in one line."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models import zoo
from uhr.models.files.adapter import lora_file
from uhr.models.files.containers import stored_tensors
from uhr.models.files.kinds import kind_of
from uhr.models.loading.hashes import hash_of

FILE = "diffusion_pytorch_model.safetensors"


def torch_zip():
    file = io.BytesIO()
    torch.save({"img_in.weight": torch.zeros(2, 2)}, file)
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("flux.safetensors", b"x")
    return file.getvalue()


def gguf_bytes(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "w", "flux")
    writer.add_tensor("img_in.weight", np.zeros((4, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return (tmp_path / "w").read_bytes()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23802932552\n"
OTHERS = {
    "empty": ("flux.safetensors", lambda _: b"", r"is empty \(0 bytes\): download it again"),
    "git-lfs": ("flux.safetensors", lambda _: LFS, "is a git-lfs pointer, not the weights: run `git"),
    "web page": ("flux.safetensors", lambda _: b"\n<!DOCTYPE html><html>", "is a web page: download"),
    "XML": ("flux.safetensors", lambda _: b'<?xml version="1.0"?><Error>', "is a web page"),
    "refusal": ("flux.safetensors", lambda _: b"Invalid username or password.", r"is text, .*\(Invalid user"),
    "JSON": ("flux.safetensors", lambda _: b'{"error": "gated"}', "is JSON, not weights, such as a server"),
    "index": ("model.safetensors.index.json", lambda _: b'{"weight_map": {}}', "is the index of sharded"),
    "model index": ("model_index.json", lambda _: b'{"_class_name": "X"}', "is the index of a whole model"),
    "config": ("config.json", lambda _: b'{"_class_name": "X"}', "is a configuration, not weights"),
    "zeros": ("flux.safetensors", lambda _: bytes(4096), "begins with zeros, as a download that is"),
    "torch": ("flux.pt", lambda _: torch_zip(), "is a PyTorch pickle: it can run code, so it is never"),
    "torch, renamed": ("flux.safetensors", lambda _: torch_zip(), "is a PyTorch pickle"),
    "torch, cut": ("flux.bin", lambda _: torch_zip()[:200], "is a PyTorch pickle"),
    "pickle": ("flux.ckpt", lambda _: pickle.dumps({"a": 1}), "is a pickle: it can run code"),
    "zip": ("flux.safetensors", lambda _: zipped(), "is a zip archive: unpack it"),
    "gzip": ("flux.safetensors", lambda _: b"\x1f\x8b\x08" + b"\x01" * 99, "is a gzip archive: unpack it"),
    "7z": ("flux.7z", lambda _: b"7z\xbc\xaf\x27\x1c" + b"\x01" * 99, "is a 7z archive"),
    "HDF5": ("flux.h5", lambda _: b"\x89HDF\r\n\x1a\n" + b"\x01" * 99, "is an HDF5 file"),
    "ONNX": ("flux.onnx", lambda _: b"\x08\x08\x12\x07pytorch" + b"\x01" * 99, "is an ONNX model"),
    "TensorRT": ("flux.engine", lambda _: b"\x01\x02" * 99, "is a TensorRT engine, built for one GPU"),
    "TensorRT, by its bytes": ("flux", lambda _: b"ftrt" + b"\x01" * 99, "is a TensorRT engine"),
    "Flax": ("flux.msgpack", lambda _: b"\x81\xa6params" + b"\x01" * 99, "is a Flax file"),
    "numpy": ("flux.npy", lambda _: b"\x93NUMPY\x01\x00" + b"\x01" * 99, "is a NumPy array"),
    "part": ("flux.safetensors.part", lambda _: b"\x01\x02" * 99, "is a download that is not finished"),
    "gguf, renamed": ("flux.safetensors", gguf_bytes, "is a GGUF file by its content: rename it"),
    "gguf, cut": ("flux.gguf", lambda p: gguf_bytes(p)[:60], "is damaged or truncated"),
    "gguf, a stub": ("flux.gguf", lambda _: b"GGUF", "is damaged or truncated"),
    "unknown": ("flux.safetensors", lambda _: b"\x01\x02" * 99, r"begins with 01 02 01 02"),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_file_of_weights_is_named_for_what_it_is(other, tmp_path):
    name, content, message = OTHERS[other]
    file = tmp_path / name
    file.write_bytes(content(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        stored_tensors(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    # by each option that takes weights
    for read in (zoo.open_model, lora_file):
        with pytest.raises(UserError, match=r"flux|json") as caught:
            read(file)
        assert str(file) in str(caught.value)


@pytest.fixture
def whole(tmp_path):
    file = tmp_path / "whole.safetensors"
    save_file({"img_in.weight": torch.zeros(8, 4), "a": torch.zeros(3)}, file)
    return file


def test_a_file_that_is_cut_anywhere_says_how_much_of_it_is_there(whole, tmp_path):
    data = whole.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    cut = tmp_path / "cut.safetensors"
    for size in (9, header - 5, header, header + 1, len(data) - 1):
        cut.write_bytes(data[:size])
        of = "" if size < header else f" of {len(data):,}"
        with pytest.raises(UserError, match=rf"is truncated: it has {size:,}{of} bytes: download it again"):
            stored_tensors(cut)
    cut.write_bytes(data + b"more")
    with pytest.raises(UserError, match="has a header that does not fit"):
        stored_tensors(cut)
    for text in (
        b"{not json",
        b'{"a": 1}',
        b'{"a": {"shape": [1], "dtype": "F32"}}',
        b'{"a": {"data_offsets": [0]}}',
    ):
        cut.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(UserError, match="has a damaged header"):
            stored_tensors(cut)
    assert {name: (t.shape, t.dtype) for name, t in stored_tensors(whole).items()} == {
        "img_in.weight": ((8, 4), "F32"), "a": ((3,), "F32"),
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".gguf"])
def test_one_shard_of_several_says_of_how_many_and_a_shard_of_one_is_whole(whole, suffix, tmp_path):
    shard = shutil.copy(whole, tmp_path / f"model-00002-of-00007{suffix}")
    with pytest.raises(UserError, match="is one shard of 7: name the folder with all of them"):
        stored_tensors(tmp_path / shard.name)
    assert stored_tensors(shutil.copy(whole, tmp_path / "model-00001-of-00001.sft"))


QUANTISED = {
    "bitsandbytes to NF4": {"img_in.weight.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8)},
    "bitsandbytes to FP4": {"img_in.weight.quant_state.bitsandbytes__fp4": torch.zeros(8, dtype=torch.uint8)},
    "bitsandbytes to 4 bits": {"img_in.weight.absmax": torch.zeros(8)},
    "bitsandbytes to 8 bits": {"img_in.SCB": torch.zeros(8)},
    r"SVDQuant \(nunchaku\)": {"img_in.qweight": torch.zeros(2, 2), "img_in.wscales": torch.zeros(2, 2)},
    "GPTQ or AWQ": {"img_in.qweight": torch.zeros(2, 2), "img_in.qzeros": torch.zeros(2)},
    "ComfyUI, with separate scales": {"img_in.scale_weight": torch.zeros(1)},
    "ComfyUI, with": {"scaled_fp8": torch.zeros(1)},
    "compressed-tensors": {"img_in.weight_packed": torch.zeros(2, 2), "img_in.weight_scale": torch.zeros(2)},
    "NVIDIA's ModelOpt": {"img_in.weight_scale": torch.zeros(2), "img_in.weight_scale_2": torch.zeros(1)},
    "quanto": {"img_in.weight._data": torch.zeros(2, 2), "img_in.weight._scale": torch.zeros(2)},
    "torchao": {"img_in._weight_qdata": torch.zeros(2, 2)},
    "HQQ": {"img_in.W_q": torch.zeros(2, 2)},
    "blocks to 8-bit floats": {"img_in.weight_scale_inv": torch.zeros(2, 2)},
}  # fmt: skip


@pytest.fixture
def backbone(tiny_flux):
    """The tiny backbone's weights by diffusers' names."""
    return load_file(tiny_flux / "transformer" / FILE)


@pytest.mark.parametrize("maker", QUANTISED)
def test_weights_that_were_stored_quantised_name_their_maker_wherever_they_are_given(
    maker, backbone, tiny_flux, tmp_path
):
    for prefix in ("", "model.diffusion_model."):
        file = tmp_path / "flux.safetensors"
        tensors = {**backbone, **QUANTISED[maker]}
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, file)
        for read in (zoo.open_model, lambda path: zoo.load_component(tiny_flux, "transformer", weights=path)):
            with pytest.raises(UserError, match=f"is quantised by {maker}.*: use a GGUF file, or plain"):
                read(file)
    folder = shutil.copytree(tiny_flux / "transformer", tmp_path / "transformer")
    save_file(tensors, folder / FILE)
    with pytest.raises(UserError, match=f"is quantised by {maker}"):
        zoo.load_component(tiny_flux, "transformer", weights=folder)


def test_integers_in_place_of_weights_are_never_cast_to_numbers(backbone, tiny_flux, tmp_path):
    file = tmp_path / "flux.safetensors"
    name = "transformer_blocks.0.attn.to_q.weight"
    save_file({**backbone, name: backbone[name].to(torch.int8)}, file)
    for read in (zoo.open_model, lambda path: zoo.load_component(tiny_flux, "transformer", weights=path)):
        with pytest.raises(UserError, match=f"has {name} as I8, which is not a plain floating-point weight"):
            read(file)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
@pytest.mark.parametrize("name", ["flux.safetensors", "flux.sft", "flux"])
def test_plain_floats_of_any_width_are_read_as_they_are_under_any_name(
    dtype, name, backbone, tiny_flux, tmp_path
):
    small = {key: tensor.to(dtype) for key, tensor in backbone.items()}
    save_file(small, tmp_path / name)
    found = zoo.load_transformer(zoo.open_model(tmp_path / name, base=tiny_flux)).state_dict()
    assert all(torch.equal(found[key], small[key].float()) for key in small)


KINDS = {
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder",
    "enc.blk.3.attn_q.weight": "a T5 text encoder",
    "text_model.encoder.layers.0.self_attn.q_proj.weight": "a CLIP",
    "model.layers.0.self_attn.q_proj.weight": "a language model",
    "decoder.conv_in.weight": "a VAE",
    "model.diffusion_model.input_blocks.1.0.emb_layers.1.weight": "a UNet of Stable Diffusion",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "a Stable Diffusion 3",
    "controlnet_blocks.0.weight": "a ControlNet",
    "ip_adapter_proj_model.norm.weight": "an IP-Adapter",
    "transformer_blocks.0.attn.to_q.weight.exp_avg": "the state of an optimiser",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "an adapter",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "an adapter",
    "double_blocks.0.processor.qkv_lora1.down.weight": "an adapter",
    "transformer_blocks.0.attn.processor.to_q_a.weight": "an adapter",
    "lora_unet_double_blocks_0_img_mlp_0.lokr_w1": "an adapter",
}


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_something_else_are_named_where_a_model_or_an_adapter_is_wanted(name, tmp_path):
    file, kind = tmp_path / "x.safetensors", KINDS[name]
    save_file({name: torch.zeros(2, 2)}, file)
    says = "is an adapter, not a model" if kind == "an adapter" else f"has no FLUX backbone but {kind}"
    with pytest.raises(UserError, match=says):
        zoo.open_model(file)
    if kind == "an adapter":
        assert lora_file(file) == file
    else:
        with pytest.raises(UserError, match=f"is {kind}, not an adapter: give"):
            lora_file(file)


def test_what_is_built_of_a_backbone_and_more_is_no_backbone(backbone, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({**backbone, "controlnet_x_embedder.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match="has no FLUX backbone but a ControlNet"):
        zoo.open_model(file)
    assert kind_of(stored_tensors(file)) == "a ControlNet"


def test_a_model_is_no_adapter_be_it_a_file_or_a_folder(backbone, tiny_flux, tmp_path):
    save_file(backbone, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is a whole backbone, not an adapter"):
        lora_file(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is a whole model, not an adapter"):
        lora_file(tiny_flux)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_lora_weights.bin").write_bytes(torch_zip())
    with pytest.raises(UserError, match=r"is stored as pytorch_lora_weights.bin, a pickle"):
        lora_file(tmp_path / "old")


@pytest.mark.parametrize(
    ("component", "kind"), [("vae", "AutoencoderKL"), ("text_encoder_2", "T5EncoderModel")]
)
def test_a_folder_of_another_component_is_no_model(component, kind, tiny_flux):
    with pytest.raises(
        UserError, match=f"is the folder of a {kind} alone, not of a model: name the folder of the"
    ):
        zoo.open_model(tiny_flux / component, base=tiny_flux)


def test_a_whole_checkpoint_gives_backbone_and_vae(backbone, tiny_flux, tmp_path):
    """ComfyUI's all-in-one: each part under its prefix; its text encoders are ignored."""
    vae = load_file(tiny_flux / "vae" / FILE)
    clip = {"text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2)}
    save_file(
        {f"model.diffusion_model.{name}": tensor for name, tensor in backbone.items()}
        | {f"vae.{name}": tensor for name, tensor in vae.items()} | clip,
        tmp_path / "all.safetensors",
    )  # fmt: skip
    for name, expected in (("transformer", backbone), ("vae", vae)):
        found = zoo.load_component(tiny_flux, name, weights=tmp_path / "all.safetensors").state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("component", "usual"), [("vae", FILE), ("text_encoder_2", "model.safetensors")])
@pytest.mark.parametrize(
    "name", ["ae.sft", "diffusion_pytorch_model.fp16.safetensors", "weights.safetensors"]
)
def test_a_components_only_file_is_read_whatever_it_is_called(component, usual, name, tiny_flux, tmp_path):
    folder = shutil.copytree(tiny_flux, tmp_path / "m")
    (folder / component / usual).rename(folder / component / name)
    found = zoo.load_component(folder, component).state_dict()
    expected = zoo.load_component(tiny_flux, component).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert hash_of(folder / component)


@pytest.mark.parametrize(
    ("component", "usual"), [("transformer", FILE), ("text_encoder_2", "model.safetensors")]
)
def test_shards_of_one_variant_are_read(component, usual, tiny_flux, tmp_path):
    expected = zoo.load_component(tiny_flux, component)
    folder = shutil.copytree(tiny_flux, tmp_path / "m")
    (folder / component / usual).unlink()
    expected.save_pretrained(folder / component, max_shard_size="30KB", variant="fp16")
    assert (folder / component / f"{usual}.index.fp16.json").is_file()
    found = zoo.load_component(folder, component).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_weights_that_bitsandbytes_stored_want_a_gpu(component, tiny_flux, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_flux, tmp_path / "m")
    config = folder / component / "config.json"
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": quantised}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=rf"{component} of .* is stored quantised by bitsandbytes, which requires a GPU"
    ):
        zoo.load_component(folder, component)


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "tokenizer_2"])
def test_a_clone_without_git_lfs_names_the_file_to_fetch(component, tiny_flux, tmp_path):
    folder = shutil.copytree(tiny_flux, tmp_path / "m")
    file = next(path for path in (folder / component).iterdir() if path.name != "config.json")
    file.write_bytes(LFS)
    with pytest.raises(UserError, match=f"{file.name} is a git-lfs pointer"):
        zoo.load_component(folder, component)


def test_weights_of_a_component_that_are_cut_short_are_named(tiny_flux, tmp_path):
    for component, name in (("transformer", FILE), ("text_encoder", "model.safetensors")):
        folder = shutil.copytree(tiny_flux, tmp_path / component)
        file = folder / component / name
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(UserError, match=rf"{name} is truncated: it has .* of .* bytes"):
            zoo.load_component(folder, component)


def test_the_commands_print_one_line_of_it(tiny_flux, tmp_path, capsys):
    call = ["sample", "euler", "--model", str(tiny_flux), "--prompt", "a", "--out", str(tmp_path / "x.png")]
    file = tmp_path / "x.safetensors"
    file.write_bytes(LFS)
    for option in ("--adapter", "--transformer", "--vae"):
        assert main([*call, option, str(file)]) == 1
        error = capsys.readouterr().err
        assert "is a git-lfs pointer" in error
        assert error.count("\n") == 1
    save_file({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2, 2)}, file)
    assert main([*call, "--vae", str(file)]) == 1
    assert "is not a VAE but a T5 text encoder" in capsys.readouterr().err
    (tmp_path / "note.json").write_text(json.dumps({}))
    assert main(["models", "show", str(tmp_path / "note.json")]) == 1
    assert "is a configuration, not weights" in capsys.readouterr().err
