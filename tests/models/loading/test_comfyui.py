"""Models from a made-up ComfyUI installation: tiny weights under the names of ComfyUI's files and tensors."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters.formats.keys import FLUX2
from uhr.models.loading.comfyui.assembly import assemble, scheduler_config
from uhr.models.loading.comfyui.installation import Installation
from uhr.models.specs import registry
from uhr.models.specs.registry import get

pytestmark = pytest.mark.usefixtures("short_prompts")

FLAT = ("--prompt", "a lake", "--size", "64x64", "--steps", 2, "--device", "cpu")


def _beside(name):
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


NAMES = _beside("foreign_names")


def put(root, name, state):
    path = root / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, path)
    return path


def prefixed(folder, component, prefix):
    """A text encoder as transformers before version 5 names it."""
    state = load_file(folder / component / "model.safetensors")
    return {key if key.startswith(prefix) else prefix + key: tensor for key, tensor in state.items()}


def clip_tokenizer(folder, to):
    """CLIP's tokenizer in the files of ComfyUI's code, with the length that it states there."""
    to.mkdir(parents=True)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (to / "vocab.json").write_text(json.dumps(model["vocab"]))
    (to / "merges.txt").write_text("#version: 0.2\n")
    added = {
        "__type": "AddedToken",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {name: {**added, "content": text} for name, text in tokens.items()}
    config |= {"model_max_length": 8192, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (to / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture
def comfy(tiny_flux, tmp_path, monkeypatch):
    """The installation, with the tiny FLUX.1; the cache is in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "ComfyUI"
    # diffusers converts BFL's names of FLUX.1 at its real width only; ComfyUI reads its own names too
    put(
        root,
        "diffusion_models/flux/tiny-dev.safetensors",
        load_file(*(tiny_flux / "transformer").glob("*.safetensors")),
    )
    put(root, "text_encoders/clip_l.safetensors", prefixed(tiny_flux, "text_encoder", "text_model."))
    put(root, "clip/t5xxl_fp16.safetensors", prefixed(tiny_flux, "text_encoder_2", ""))
    put(root, "vae/ae.safetensors", NAMES.ldm_names(zoo.load_vae(tiny_flux)))
    (root / "models" / "loras").mkdir()
    clip_tokenizer(tiny_flux / "tokenizer", root / "comfy" / "sd1_tokenizer")
    shutil.copytree(tiny_flux / "tokenizer_2", root / "comfy" / "text_encoders" / "t5_tokenizer")
    return root


@pytest.fixture
def published(tiny_flux, monkeypatch):
    """The tiny model's configurations take the place of published ones."""
    names = ("text_encoder", "text_encoder_2", "vae", "transformer")
    configs = {name: json.loads((tiny_flux / name / "config.json").read_text()) for name in names}
    for config in configs.values():
        config.pop("_class_name", None)
    spec = replace(get("tiny-flux1"), configs=configs)
    monkeypatch.setattr(registry, "SPECS", {**registry.SPECS, "tiny-flux1": spec})
    monkeypatch.setattr("uhr.models.loading.file_spec.SPECS", registry.SPECS)


def pixels(path):
    return np.asarray(Image.open(path))


def test_an_installation_is_a_model_without_anything_else(comfy, published, tiny_flux, uhr, tmp_path):
    found = uhr("euler", "--comfyui", comfy, *FLAT, "--out", tmp_path / "a.png")
    for name in ("tiny-dev", "clip_l", "t5xxl_fp16", "ae"):
        assert f"{name}.safetensors" in found.err
    uhr("euler", "--model", tiny_flux, *FLAT, "--out", tmp_path / "b.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    # it is made once, of links and of small files, and repeated from its record
    (folder,) = (tmp_path / "cache" / "uhr" / "comfyui").iterdir()
    assert (folder / "text_encoder_2" / "model.safetensors").is_symlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "identical: all" in uhr("--repeat", tmp_path / "a.png", "--out", tmp_path / "c.png").out
    uhr("euler", "--comfyui", comfy, *FLAT, "--out", tmp_path / "d.png")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_base_has_configurations_and_tokenizers(comfy, tiny_flux):
    shutil.rmtree(comfy / "comfy")
    found = assemble(comfy, "tiny-dev", base=str(tiny_flux))
    model = found.name.open()
    assert model.spec.name == "tiny-flux1"
    assert model.backbone == comfy / "models" / "diffusion_models" / "flux" / "tiny-dev.safetensors"
    stock, own = zoo.load_vae(tiny_flux).state_dict(), zoo.load_vae(model).state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in stock.items())
    with pytest.raises(UserError, match="no published configuration"):
        assemble(comfy, None)


def test_training_takes_it_as_well(comfy, published, uhr_train, tmp_path):
    code, out, err = uhr_train("plan", "lora", "--comfyui", comfy, "--json")
    assert code == 0, err
    assert json.loads(out)
    code, out, err = uhr_train("plan", "lora")
    assert (code, out) == (1, "")
    assert "--model is missing: name one: --model DIR, a hub id, or --comfyui DIR" in err


@pytest.fixture
def uhr_train(capsys):
    from uhr.cli import main

    def call(*arguments):
        capsys.readouterr()
        code = main(["train", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def test_a_lora_there_is_found_by_its_name(comfy, published, tiny_flux, uhr, tmp_path):
    lora = {
        "diffusion_model.img_in.lora_A.weight": torch.ones(1, 64),
        "diffusion_model.img_in.lora_B.weight": torch.ones(64, 1),
        "diffusion_model.img_in.alpha": torch.tensor(1.0),
    }
    file = put(comfy, "loras/styles/My Style.safetensors", lora)
    call = ("euler", "--comfyui", comfy, *FLAT)
    record = json.loads(uhr(*call, "--adapter", "My Style=0.5", "--out", tmp_path / "a.png", "--json").out)
    assert [(each["file"], each["scale"]) for each in record["adapters"]] == [(str(file), 0.5)]
    error = uhr(*call, "--adapter", "my stile", "--out", tmp_path / "b.png", code=1).err
    assert "is neither a file nor a LoRA of" in error
    assert "did you mean My Style?" in error
    put(comfy, "loras/other/My Style.safetensors", lora)
    assert (
        "several files called My Style" in uhr(*call, "--adapter", "My Style", "--out", "b.png", code=1).err
    )


def test_extra_paths_are_read_as_comfyui_reads_them(comfy, published, tmp_path):
    elsewhere = tmp_path / "disk" / "models"
    elsewhere.mkdir(parents=True)
    shutil.move(comfy / "models" / "diffusion_models", elsewhere / "diffusion_models")
    shutil.move(comfy / "models" / "vae", elsewhere / "more vae")
    kinds = "  unet: |\n    diffusion_models\n    none\n  vae: more vae\n"
    text = f"disk:\n  base_path: {elsewhere}\n  is_default: true\n{kinds}"
    (comfy / "extra_model_paths.yaml").write_text(text + "other: null\n")
    found = assemble(comfy, None)
    assert found.name.model == str(elsewhere / "diffusion_models" / "flux" / "tiny-dev.safetensors")
    assert any(str(elsewhere / "more vae" / "ae.safetensors") in line for line in found.lines)
    # the folder itself, its models, and what contains it
    for place in (comfy / "models", comfy.parent):
        assert Installation.open(place).root == comfy
    (comfy / "extra_model_paths.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"extra_model_paths\.yaml cannot be read"):
        Installation.open(comfy)


def test_what_is_missing_is_listed_at_once(comfy, published):
    shutil.rmtree(comfy / "models" / "clip")
    shutil.rmtree(comfy / "comfy" / "text_encoders")
    (comfy / "models" / "vae" / "ae.safetensors").unlink()
    with pytest.raises(UserError) as error:
        assemble(comfy, None)
    text = str(error.value)
    for part in (
        "T5-XXL (t5xxl_fp16",
        "models/text_encoders",
        "the VAE (ae.safetensors) in models/vae",
        "t5_tokenizer",
    ):
        assert part in text


def test_what_is_ambiguous_is_decided_and_said_or_refused(comfy, published, tiny_flux):
    t5 = prefixed(tiny_flux, "text_encoder_2", "")
    put(
        comfy,
        "text_encoders/t5xxl_fp8_e4m3fn.safetensors",
        {k: v.to(torch.float8_e4m3fn) for k, v in t5.items()},
    )
    scaled = {**t5, "scaled_fp8": torch.zeros(1)}
    put(comfy, "text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors", scaled)
    other = NAMES.ldm_names(zoo.load_vae(tiny_flux))
    put(comfy, "vae/a_sd3_vae.safetensors", other)
    lines = "\n".join(assemble(comfy, None).lines)
    assert re.search(r"text_encoder_2: \S+t5xxl_fp16\.safetensors", lines)
    assert "text_encoder_2: t5xxl_fp8_e4m3fn.safetensors would fit as well" in lines
    assert re.search(r"vae: \S+/ae\.safetensors", lines)
    (comfy / "models" / "vae" / "ae.safetensors").rename(comfy / "models" / "vae" / "b.safetensors")
    with pytest.raises(UserError, match=r"several VAEs of 16 latent channels .*rename the right one"):
        assemble(comfy, None)
    (comfy / "models" / "vae" / "b.safetensors").unlink()
    put(
        comfy,
        "checkpoints/other.safetensors",
        load_file(comfy / "models/diffusion_models/flux/tiny-dev.safetensors"),
    )
    with pytest.raises(UserError, match=r"2 FLUX models \(.*\): name one: --model NAME"):
        assemble(comfy, None)
    with pytest.raises(UserError, match="no model called dev"):
        assemble(comfy, "dev")
    assert assemble(comfy, "other").name.model.endswith("other.safetensors")


def test_text_encoders_in_8_bit_floats_and_with_more_tensors_load(comfy, published, tiny_flux):
    t5 = prefixed(tiny_flux, "text_encoder_2", "")
    (comfy / "models" / "clip" / "t5xxl_fp16.safetensors").unlink()
    eight = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in t5.items()}
    put(comfy, "clip/t5xxl_fp8_e4m3fn.safetensors", eight)
    clip = prefixed(tiny_flux, "text_encoder", "text_model.")
    more = {**clip, "logit_scale": torch.ones(()), "text_projection.weight": torch.ones(32, 32)}
    put(comfy, "text_encoders/clip_l.safetensors", more)
    texts = zoo.load_text_encoders(assemble(comfy, None).name.open())
    own = texts.text_encoder_2.state_dict()
    assert torch.equal(own["shared.weight"], eight["shared.weight"].float())
    stock = zoo.load_text_encoders(tiny_flux).text_encoder.state_dict()
    assert all(torch.equal(texts.text_encoder.state_dict()[key], tensor) for key, tensor in stock.items())


def test_flux2_takes_its_tokenizer_from_a_base(tiny_flux2, tmp_path, monkeypatch, uhr):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "ComfyUI"
    transformer = zoo.load_transformer(tiny_flux2)
    put(root, "unet/klein.safetensors", NAMES.bfl_names(transformer, FLUX2))
    put(
        root,
        "text_encoders/qwen_3_4b.safetensors",
        load_file(tiny_flux2 / "text_encoder" / "model.safetensors"),
    )
    vae = NAMES.ldm_names(zoo.load_vae(tiny_flux2))
    inside = {"quant_conv.": "encoder.", "post_quant_conv.": "decoder."}
    moved = {next((p for n, p in inside.items() if key.startswith(n)), "") + key: t for key, t in vae.items()}
    put(root, "vae/flux2-vae.safetensors", moved)
    with pytest.raises(UserError, match=r"may be tiny-flux2 or tiny-flux2-base.*--spec tiny-flux2"):
        assemble(root, None, base=str(tiny_flux2))
    call = ("--comfyui", root, "--base", tiny_flux2, "--spec", "tiny-flux2", *FLAT)
    uhr("euler", *call, "--out", tmp_path / "a.png")
    uhr("euler", "--model", tiny_flux2, *FLAT, "--out", tmp_path / "b.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_the_published_configurations_have_as_many_parameters_as_the_published_weights():
    """Counts of black-forest-labs/FLUX.1-dev: CLIP-L, the encoder of T5-XXL, the VAE and the transformer."""
    import diffusers
    import transformers

    from uhr.models.loading.comfyui.assembly import _published

    spec = get("flux1-dev")
    with torch.device("meta"):
        counts = {}
        for name, cls in (
            ("text_encoder", transformers.CLIPTextModel),
            ("text_encoder_2", transformers.T5EncoderModel),
        ):
            config = cls.config_class.from_dict(_published(spec, name))
            counts[name] = sum(p.numel() for p in cls(config).parameters())
        for name, cls in (
            ("vae", diffusers.AutoencoderKL),
            ("transformer", diffusers.FluxTransformer2DModel),
        ):
            counts[name] = sum(p.numel() for p in cls.from_config(_published(spec, name)).parameters())
    assert counts == {
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
        "vae": 83_819_683,
        "transformer": 11_901_408_320,
    }
    assert scheduler_config(spec)["use_dynamic_shifting"] is True
    assert scheduler_config(get("flux1-schnell")) | {"base_shift": 0.5} == {
        **scheduler_config(spec), "shift": 1.0, "use_dynamic_shifting": False
    }  # fmt: skip
