"""Loading beyond a plain folder: single files in foreign keys, quantised weights, offloading."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.base.files import sha256_file
from uhr.cli import main
from uhr.models import zoo
from uhr.models.adapters.formats.keys import FLUX1, FLUX2
from uhr.models.generate import request, session, setup
from uhr.models.generate.record import read_record
from uhr.models.loading import offload, quantize
from uhr.models.loading.hashes import hash_of
from uhr.models.loading.offload import Offload
from uhr.models.samplers.euler import EulerPipeline, Flux2EulerPipeline

pytestmark = pytest.mark.usefixtures("short_prompts")

CALL = {"prompt": "a", "height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
GUIDANCE = {"tiny_flux": 3.5, "tiny_flux2": None}


def _beside(name):
    """The module of that name in this folder."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


NAMES = _beside("foreign_names")
bfl_names, ldm_names = NAMES.bfl_names, NAMES.ldm_names


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."], ids=["bfl", "comfyui"])
def test_a_file_of_flux2_in_its_makers_keys_loads_bit_for_bit(tiny_flux2, tmp_path, prefix):
    model = zoo.load_transformer(tiny_flux2)
    state = {prefix + key: tensor for key, tensor in bfl_names(model, FLUX2).items()}
    if prefix:
        state["vae.decoder.conv_in.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "flux.safetensors")
    found = zoo.load_component(tiny_flux2, "transformer", weights=tmp_path / "flux.safetensors")
    assert same(found, model)
    assert not found.training


def test_weights_of_another_dtype_are_cast_to_the_requested_one(tiny_flux2, tmp_path):
    state = bfl_names(zoo.load_transformer(tiny_flux2), FLUX2)
    small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in state.items() if tensor.ndim == 2}
    save_file(state | small, tmp_path / "fp8.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        found = zoo.load_component(tiny_flux2, "transformer", dtype, weights=tmp_path / "fp8.safetensors")
        assert {parameter.dtype for parameter in found.parameters()} == {dtype}
        key = "img_in.weight"
        assert torch.equal(found.x_embedder.weight, small[key].to(dtype))


@pytest.mark.parametrize("name", ["flux1-dev", "flux1-schnell", "flux2-klein-9b", "flux2-klein-4b"])
def test_every_key_of_a_real_file_finds_its_place_and_shape(name):
    import diffusers
    from diffusers.loaders import single_file_utils

    spec = zoo.get(name)
    with torch.device("meta"):
        model = getattr(diffusers, spec.transformer_class)(**spec.transformer_config)
    convert = getattr(
        single_file_utils,
        f"convert_{spec.family.replace('flux1', 'flux')}_transformer_checkpoint_to_diffusers",
    )
    found = convert(bfl_names(model, {"flux1": FLUX1, "flux2": FLUX2}[spec.family]))
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in found.items()} == shapes


def test_a_file_in_diffusers_own_keys_loads_bit_for_bit(tiny_flux, tmp_path):
    model = zoo.load_transformer(tiny_flux)
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    assert same(zoo.load_component(tiny_flux, "transformer", weights=tmp_path / "t.safetensors"), model)


def test_the_makers_autoencoder_file_loads_bit_for_bit(tiny_flux, tmp_path):
    vae = zoo.load_vae(tiny_flux)
    save_file(ldm_names(vae), tmp_path / "ae.safetensors")
    assert same(zoo.load_component(tiny_flux, "vae", weights=tmp_path / "ae.safetensors"), vae)


def test_a_component_may_come_from_a_folder_of_its_own(tiny_flux, tmp_path):
    other = zoo.make_tiny("tiny-flux1", tmp_path / "other", seed=1)
    pipeline = zoo.load_pipeline(tiny_flux, weights={"transformer": other / "transformer"})
    assert same(pipeline.transformer, zoo.load_transformer(other))
    assert same(pipeline.vae, zoo.load_vae(tiny_flux))
    with pytest.raises(UserError, match="unknown component 'unet'"):
        zoo.load_pipeline(tiny_flux, weights={"unet": other})


def lacking(state):
    del state["single_blocks.1.linear2.weight"]
    return state


def scaled(state):
    return state | {"single_blocks.1.linear2.scale_weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking, r"lacks single_transformer_blocks.1.attn.to_out.weight: name a file of the same model as"),
        (lambda state: state | {"more.weight": torch.zeros(1)}, "contains more.weight"),
        (
            scaled,
            r"is quantised by ComfyUI, with separate scales \(single_blocks.1.linear2.scale_weight\)",
        ),
        (lambda state: {"a.b": torch.zeros(1)}, r"lacks .* \(and \d+ more\)"),
    ],
)
def test_a_file_that_is_not_the_whole_of_this_backbone_is_one_clear_line(
    tiny_flux2, tmp_path, change, message
):
    state = bfl_names(zoo.load_transformer(tiny_flux2), FLUX2)
    save_file(change(state), tmp_path / "flux.safetensors")
    with pytest.raises(UserError, match=message):
        zoo.load_component(tiny_flux2, "transformer", weights=tmp_path / "flux.safetensors")


def test_flux1s_converter_splits_by_the_real_width_and_says_so_at_any_other(tiny_flux, tmp_path):
    save_file(bfl_names(zoo.load_transformer(tiny_flux), FLUX1), tmp_path / "flux.safetensors")
    with pytest.raises(UserError, match=r"transformer file .* cannot be read"):
        zoo.load_component(tiny_flux, "transformer", weights=tmp_path / "flux.safetensors")


def test_files_that_diffusers_does_not_read_are_one_clear_line(tiny_flux2, tmp_path, monkeypatch):
    junk = tmp_path / "x.safetensors"
    junk.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"is text, not weights \(junk\)"):
        zoo.load_component(tiny_flux2, "transformer", weights=junk)
    save_file({"encoder.down.0.block.0.conv1.weight": torch.zeros(8, 3, 3, 3)}, junk)
    with pytest.raises(UserError, match=r"lacks bn\."):
        zoo.load_component(tiny_flux2, "vae", weights=junk)
    without(monkeypatch, "gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"GGUF needs the package gguf: pip install -c .* '\.\[quantize\]'"):
        zoo.load_component(tiny_flux2, "transformer", weights=tmp_path / "x.gguf")


def without(monkeypatch, package):
    """Make a package look as if it were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))


def test_a_quantisation_that_cannot_be_is_one_clear_line_before_anything_is_loaded(tiny_flux, monkeypatch):
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="unknown quantisation 'int4'"):
        quantize.check("int4", cpu)
    with pytest.raises(UserError, match="'nf4' requires a GPU: on a CPU use one of int8wo, float8wo"):
        zoo.load_pipeline(tiny_flux, quantize="nf4")
    for kind, package in (("nf4", "bitsandbytes"), ("int8wo", "torchao")):
        without(monkeypatch, package)
        with pytest.raises(UserError, match=rf"needs the package {package}: pip .* -e '\.\[quantize\]'"):
            quantize.check(kind, torch.device("cuda"))


def test_weights_that_came_back_unquantised_are_an_error(tiny_flux):
    with pytest.raises(UserError, match="no weight of the FluxTransformer2DModel was quantised to int8"):
        quantize.check_quantised(zoo.load_transformer(tiny_flux), "int8")


def test_large_text_encoders_quantise_and_small_components_stay(tiny_flux, tiny_flux2):
    """bitsandbytes, which transformers (not diffusers) lets run without a GPU."""
    import transformers

    for folder, name in ((tiny_flux, "text_encoder_2"), (tiny_flux2, "text_encoder")):
        cls = getattr(transformers, zoo.recognise(folder).components[name].partition(":")[2])
        options = quantize.options("nf4", transformers, torch.float32, torch.device("cpu"))
        part = cls.from_pretrained(folder / name, local_files_only=True, **options)
        quantize.check_quantised(part, "nf4")
    assert {"AutoencoderKL", "AutoencoderKLFlux2", "CLIPTextModel"}.isdisjoint(quantize.LARGE)
    classes = {zoo.get(n).components[c].partition(":")[2] for n in zoo.names() for c in ("transformer",)}
    assert classes <= quantize.LARGE


@pytest.fixture(params=["tiny_flux", "tiny_flux2"])
def euler(request):
    """A fresh pipeline of either family, and a function that generates an image."""
    folder = request.getfixturevalue(request.param)
    cls = {"tiny_flux": EulerPipeline, "tiny_flux2": Flux2EulerPipeline}[request.param]
    pipeline = zoo.load_pipeline(folder, pipeline_class=cls)
    pipeline.set_progress_bar_config(disable=True)

    def run():
        draw = torch.Generator().manual_seed(0)
        arguments = {**CALL, "guidance_scale": GUIDANCE[request.param], "max_sequence_length": 32}
        return pipeline(**arguments, generator=draw).images[0]

    return pipeline, run


def test_group_offload_generates_the_same_image(euler):
    pipeline, run = euler
    expected = run()
    offload.offload(pipeline, Offload.GROUP, torch.device("cpu"))
    np.testing.assert_allclose(run(), expected, atol=1e-6)


def test_with_weights_that_are_nowhere_between_calls_the_image_is_the_same(euler, engine_of):
    """A sampler under sequential offload: weights on the meta device until their layer runs, all
    but the VAE's."""
    from accelerate import cpu_offload

    pipeline, run = euler
    expected = run()
    pipeline._exclude_from_cpu_offload = ["vae"]
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            cpu_offload(part, torch.device("cpu"), offload_buffers=False)
    assert pipeline.transformer.device == torch.device("meta")
    np.testing.assert_allclose(run(), expected, atol=1e-6)
    images = torch.zeros(1, 3, 64, 64)
    assert engine_of(pipeline).encode(images).isfinite().all()


def test_offload_needs_a_gpu_and_a_known_name(tiny_flux):
    with pytest.raises(UserError, match="offload 'model' keeps weights off a GPU, and the device is cpu"):
        zoo.load_pipeline(tiny_flux, offload="model")
    with pytest.raises(UserError, match="unknown offload 'disk'"):
        offload.check("disk", torch.device("cuda"))
    assert offload.check("sequential", torch.device("cuda")) is Offload.SEQUENTIAL


def test_adapters_are_on_before_their_weights_are_offloaded(tiny_flux, adapter, tmp_path, monkeypatch):
    """The command's order, on a device in place of a GPU."""
    seen = {}
    monkeypatch.setattr(setup.offload, "check", lambda kind, device: Offload(kind))

    def put(pipeline, kind, device):
        seen.update(kind=kind, adapters=pipeline.get_active_adapters())

    monkeypatch.setattr(session, "offload", put)
    requested = request.Request(
        sampler="euler", model=str(tiny_flux), size=(64, 64), steps=1, device="cpu", offload="group",
        adapters=(request.Adapter.parse(str(adapter)),),
    )  # fmt: skip
    session.Session(setup.Setup.of(requested))
    assert seen == {"kind": Offload.GROUP, "adapters": ["adapter_0"]}


def test_the_command_takes_a_backbone_in_a_file_and_records_it(tiny_flux2, tmp_path, capsys):
    other = zoo.make_tiny("tiny-flux2", tmp_path / "other", seed=3)
    file = tmp_path / "other.safetensors"
    save_file(bfl_names(zoo.load_transformer(other), FLUX2), file)
    common = [
        "sample",
        "euler",
        "--model",
        str(tiny_flux2),
        "--prompt",
        "a",
        "--size",
        "64x64",
        "--device",
        "cpu",
    ]
    images = {}
    for name, more in {
        "plain": [],
        "file": ["--transformer", str(file)],
        "folder": ["--transformer", str(other / "transformer")],
    }.items():
        out = tmp_path / f"{name}.png"
        assert main([*common, "--out", str(out), *more]) == 0, capsys.readouterr()
        images[name] = out
    records = {name: read_record(path) for name, path in images.items()}
    parts = {name: record["weights"] for name, record in records.items()}
    assert parts["plain"].keys() == {"transformer", "vae", "text_encoder", "scheduler", "tokenizer"}
    assert {name: part["transformer"]["path"] for name, part in parts.items()} == {
        "plain": None, "file": str(file), "folder": str(other / "transformer"),
    }  # fmt: skip
    assert len({part["transformer"]["sha256"] for part in parts.values()}) == 3
    assert len({part["vae"]["sha256"] for part in parts.values()}) == 1
    assert parts["folder"]["transformer"]["sha256"] == hash_of(other / "transformer")
    colours = {name: sampling_pixels(path) for name, path in images.items()}
    assert np.array_equal(colours["file"], colours["folder"])
    assert not np.array_equal(colours["file"], colours["plain"])
    for more, message in (
        (["--transformer", str(tmp_path / "none.gguf")], "does not exist"),
        (["--offload", "model"], "the device is cpu"),
        (["--quantize", "nf4"], "requires a GPU"),
    ):
        assert main([*common, "--out", str(tmp_path / "x.png"), *more]) == 1
        assert message in capsys.readouterr().err


def sampling_pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path))


def test_a_lone_file_is_a_model_with_a_base_for_the_rest(tiny_flux2, tmp_path, capsys):
    other = zoo.make_tiny("tiny-flux2", tmp_path / "other", seed=3)
    file = tmp_path / "backbone.safetensors"
    state = bfl_names(zoo.load_transformer(other), FLUX2)
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, file)
    with pytest.raises(UserError, match=r"is the backbone of tiny-flux2 alone: say where the rest is: base="):
        zoo.open_model(file)
    opened = zoo.open_model(file, base=tiny_flux2)
    assert (opened.spec.name, opened.folder) == ("tiny-flux2", tiny_flux2)
    assert hash_of(opened.place("transformer")) == sha256_file(file)
    assert hash_of(opened.place("vae")) == hash_of(tiny_flux2 / "vae")
    expected = zoo.load_transformer(other).state_dict()
    found = zoo.load_transformer(opened).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(
        next(zoo.load_pipeline(opened).transformer.parameters()), next(iter(expected.values()))
    )


def test_a_base_must_be_of_the_files_model(tiny_flux, tiny_flux2, tmp_path):
    file = tmp_path / "backbone.safetensors"
    save_file(zoo.load_transformer(tiny_flux2).state_dict(), file)
    with pytest.raises(UserError, match=r"is a backbone of tiny-flux2, and the base .* is tiny-flux1"):
        zoo.open_model(file, base=tiny_flux)
    with pytest.raises(UserError, match="is a backbone too"):
        zoo.open_model(file, base=file)
    with pytest.raises(UserError, match="is of family flux1, and the spec tiny-flux2 of flux2"):
        zoo.open_model(tiny_flux, "tiny-flux2")
    with pytest.raises(UserError, match="which is not a backbone alone"):
        zoo.open_model(tiny_flux, base=tiny_flux)
    assert zoo.open_model(file, "tiny-flux2-base", base=tiny_flux2).spec.name == "tiny-flux2-base"


def test_whether_a_checkpoint_is_distilled_is_in_its_index_and_false_need_not_be(tiny_flux2, tmp_path):
    folder = shutil.copytree(tiny_flux2, tmp_path / "m")
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    assert zoo.recognise(folder).name == "tiny-flux2"
    for changed in (index | {"is_distilled": False}, {k: v for k, v in index.items() if k != "is_distilled"}):
        file.write_text(json.dumps(changed))
        assert zoo.recognise(folder).name == "tiny-flux2-base"
        assert not zoo.load_pipeline(folder).config.is_distilled
