"""One file for another program: its keys, the exact function, what it says of itself, how it is sampled."""

import base64
import io
import json
import os
import stat
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from uhr.base.errors import UserError
from uhr.models.adapters import files as adapters
from uhr.models.adapters.formats.keys import FLUX1
from uhr.models.adapters.formats.usage import ORDINARY
from uhr.models.adapters.formats.writing import Format
from uhr.train.recipes import resolve
from uhr.train.run.exports.export import _last_image, export, export_file
from uhr.train.run.job import reopen, start
from uhr.train.run.trainer import train

SETS = ["phases.main.steps=2", "phases.main.lr=0.05"]
MINOR = "trainable={kind: singular-components, rank: 4, targets: attention}"
KEYS = {
    "comfyui": "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
    "kohya": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "diffusers": "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
}


@pytest.fixture(scope="module")
def run(small_set, tiny_flux, fast, tmp_path_factory):
    """A LoRA of two steps that is meant for guidance 1, with an image as its last validation."""
    out = tmp_path_factory.mktemp("export file") / "run"
    sets = [*fast, *SETS, "trainable.alpha=2", "sampling.guidance=1"]
    train(start(resolve("lora", None, sets), str(tiny_flux), [small_set.folder], out))
    for step, colour in ((1, (0, 0, 255)), (2, (200, 30, 10)), (9, (0, 255, 0))):
        (out / "validation" / f"step-{step:08d}").mkdir(parents=True)
        Image.new("RGB", (600, 300), colour).save(out / "validation" / f"step-{step:08d}" / "000.png")
    return out


def tensors_and_metadata(path):
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def deltas(path):
    return {name: part.delta() for name, part in adapters.read(path, FLUX1).lora.items()}


def same(one, two):
    assert one.keys() == two.keys()
    for name, tensor in two.items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-4, atol=1e-6)
    assert max(float(tensor.abs().max()) for tensor in two.values()) > 1e-3


@pytest.mark.parametrize("form", list(KEYS))
def test_the_file_has_the_programs_keys_and_is_the_same_function(run, form, tmp_path, uhr):
    code, out, err = uhr(
        "train", "export", run, "--to", form, "--name", "My Style", "--out", tmp_path, "--json"
    )
    assert code == 0, err
    answer, file = json.loads(out), tmp_path / "My Style.safetensors"
    assert answer["file"] == str(file)
    assert answer["largest_difference"] < 1e-6
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    state, metadata = tensors_and_metadata(file)
    assert KEYS[form] in state
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "My Style"
    folder, _ = export(run, tmp_path / form)
    same(deltas(file), deltas(folder))


def test_stock_diffusers_loads_the_file_by_its_name(run, tiny_flux, tmp_path):
    from diffusers import FluxPipeline

    written = export_file(run, Format.DIFFUSERS, "style", tmp_path)
    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    before = {name: p.clone() for name, p in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(tmp_path, weight_name="style.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    expected = deltas(written.path)
    for name, weight in pipeline.transformer.state_dict().items():
        delta = expected.get(name.removesuffix(".weight"), torch.zeros(()))
        torch.testing.assert_close(weight, before[name] + delta, rtol=1e-5, atol=1e-6)


def test_trigger_preview_and_sampling_are_in_the_metadata(run, tmp_path):
    before = run / "validation" / "step-00000000"
    before.mkdir(exist_ok=True)
    Image.new("RGB", (600, 300), (1, 1, 1)).save(before / "000.png")
    assert _last_image(run, 0) is None, "the images of step 0 are not the adapter's"
    written = export_file(run, Format.KOHYA, "style", tmp_path, trigger="zxq")
    _, metadata = tensors_and_metadata(written.path)
    assert metadata["modelspec.trigger_phrase"] == "zxq"
    assert json.loads(metadata["ss_tag_frequency"]) == {"style": {"zxq": 9}}
    head, _, data = metadata["modelspec.thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.format, image.size) == ("JPEG", (256, 128))
    # the last validation that the checkpoint had seen
    assert all(abs(a - b) < 4 for a, b in zip(image.getpixel((5, 5)), (200, 30, 10), strict=True))
    assert "guidance 1, CFG 1" in metadata["modelspec.usage_hint"]
    assert json.loads(metadata["uhr_adapter"])["sampling"] == {"guidance": 1.0}
    assert (written.content.facts.resolution, metadata["modelspec.resolution"]) == ("128 px", "128x128")
    small = replace(written.content, resolution=64)
    assert small.metadata(ORDINARY)["modelspec.resolution"] == "64x64", "that of the data, not the model's"
    other = tmp_path / "own.png"
    Image.new("L", (32, 32), 255).save(other)
    _, own = tensors_and_metadata(export_file(run, Format.KOHYA, "b", tmp_path, preview=other).path)
    assert own["modelspec.thumbnail"] != metadata["modelspec.thumbnail"]


def test_values_that_are_not_finite_are_never_written_or_called_equal(run, tmp_path):
    from uhr.models.adapters.low_rank import LowRank
    from uhr.models.publish.lora_file import difference

    written = export_file(run, Format.DIFFUSERS, "style", tmp_path)
    good = dict(adapters.read(written.path, FLUX1).lora)
    path, part = next(iter(good.items()))
    for value in (float("nan"), float("inf")):
        bad = good | {path: LowRank(part.a, torch.full_like(part.b, value), part.alpha)}
        assert difference(bad, good) == difference(good, bad) == difference(bad, bad) == float("inf")
        with pytest.raises(UserError, match=rf"not finite in 1 module, such as {path}"):
            written.content.write(bad, tmp_path / "bad.safetensors", ORDINARY)
    assert not (tmp_path / "bad.safetensors").exists()


def test_the_trigger_of_the_data_is_the_default(small_set, tiny_flux, fast, tmp_path):
    from uhr.train.encode.config import EncodeConfig
    from uhr.train.encode.run import encode

    config = EncodeConfig.model_validate({**small_set.info.config.model_dump(), "trigger": "zxq"})
    encode(small_set.manifest.path, str(tiny_flux), tmp_path / "data", config, device="cpu")
    job = start(resolve("lora", None, [*fast, *SETS]), str(tiny_flux), [tmp_path / "data"], tmp_path / "run")
    train(job)
    written = export_file(tmp_path / "run", Format.COMFYUI, "style")
    assert written.path == tmp_path / "run" / "style.safetensors"
    assert written.content.trigger == "zxq"
    _, metadata = tensors_and_metadata(written.path)
    assert "modelspec.thumbnail" not in metadata
    assert "uhr_adapter" not in metadata, "a plain LoRA is sampled like any other"


def test_components_become_the_exact_difference_and_include_what_they_build_on(
    run, small_set, tiny_flux, fast, tmp_path, uhr
):
    sets = [*(value for value in fast if "trainable" not in value), *SETS, MINOR, "init.use=fuse"]
    job = start(resolve("lora", None, sets), str(tiny_flux), [small_set.folder], tmp_path / "minor", [run])
    train(job)
    code, out, err = uhr("train", "export", job.out, "--to", "comfyui", "--name", "both", "--out", tmp_path)
    assert code == 0, err
    assert "plain LoRA of rank 12, exactly the change of each weight" in out
    assert "includes lora, which it was trained on top of" in out
    minor, _ = export(job.out, tmp_path / "folder")
    base, own, both = (
        deltas(job.out / "init" / "lora.safetensors"),
        deltas(minor),
        deltas(tmp_path / "both.safetensors"),
    )
    same(both, {name: base[name] + own[name] for name in base})
    # the weights of the model that was trained, without its adapters' code
    from uhr.models.zoo import load_transformer
    from uhr.train.run.trainer import Trainer

    trained = Trainer(reopen(job.out)).model.network.transformer
    x = torch.randn(2, trained.config.num_attention_heads * trained.config.attention_head_dim)
    path = "transformer_blocks.0.attn.to_q"
    with torch.no_grad():
        stock = load_transformer(tiny_flux, "float32").get_submodule(path)
        expected = trained.get_submodule(path)(x)
    torch.testing.assert_close(stock(x) + x @ both[path].T, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("trainable={kind: backbone}", "no LoRA is the same function: export it as a folder, without --to"),
        (
            "trainable={kind: token-masked-lora, rank: 4, alpha: 4, targets: attention}",
            "other programs apply a LoRA to every token",
        ),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(part, message, small_set, tiny_flux, fast):
    from uhr.models.specs.registry import get
    from uhr.train.trainable.base import PartFile

    sets = [*(value for value in fast if "trainable" not in value), part]
    trainable = resolve("lora", None, sets).trainable
    with pytest.raises(UserError, match=message):
        trainable.plain_lora(PartFile({}, {}), get("tiny-flux1"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "comfyui"), "--name is missing"),
        (("--to", "a1111", "--name", "x"), "unknown program 'a1111'"),
        (("--to", "kohya", "--name", "a/b"), "--name a/b is not a file's name"),
        (("--to", "kohya", "--name", "taken", "--out", "HERE"), "taken.safetensors already exists"),
        (("--to", "kohya", "--name", "a", "--out", "b.safetensors"), "name two files: leave --name out"),
        (("--name", "x"), "--name x without --to"),
        ((), "--out is missing"),
    ],
)
def test_mistakes_are_one_line(arguments, message, run, tmp_path, uhr):
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    here = [str(tmp_path) if each == "HERE" else each for each in arguments]
    code, out, err = uhr("train", "export", run, *here)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.safetensors"]
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"


def test_sampling_takes_what_the_adapter_says_and_names_what_overrides_it(run, tiny_flux, tmp_path, uhr):
    file = export_file(run, Format.COMFYUI, "style", tmp_path).path
    call = ("--model", tiny_flux, "--adapter", file, "--prompt", "x", "--size", "64x64", "--steps", 1)
    out = ("--device", "cpu", "--json")
    code, text, err = uhr("sample", "euler", *call, *out, "--out", tmp_path / "a.png")
    assert code == 0, err
    assert json.loads(text)["guidance"] == 1.0
    assert f"note: guidance 1, as {file} was trained; --guidance changes it" in err
    code, text, err = uhr("sample", "euler", *call, *out, "--out", tmp_path / "b.png", "--guidance", 3.5)
    assert json.loads(text)["guidance"] == 3.5
    assert f"warning: {file} was trained to be sampled at guidance 1, and --guidance is 3.5" in err
    # the folder with a card says the same
    folder, _ = export(run, tmp_path / "folder")
    code, text, err = uhr(
        "sample", "euler", "--model", tiny_flux, "--adapter", folder, *call[4:], "--plan", "--json"
    )
    assert code == 0, err
    assert "note: guidance 1" in err
