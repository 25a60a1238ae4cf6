"""Encoding and training with an F16 checkpoint: the factor is that of its VAE."""

import cv2
import pytest
import torch

from uhr.cli import main
from uhr.models.ops.latents import to_images
from uhr.models.vae.codec import moments
from uhr.models.vae.tiled import ExactTiling
from uhr.models.zoo import load_vae
from uhr.train.data.reader import EncodedData
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.work.memory import images_together, memory_for, tiled
from uhr.train.recipes import resolve
from uhr.train.run.estimate.estimate import estimate
from uhr.train.run.exports.export import export
from uhr.train.run.job import start
from uhr.train.run.trainer import Trainer


@pytest.fixture(scope="module")
def f16_set(tmp_path_factory, manifest_of, tiny_f16):
    """Four images of 256 x 256 px encoded with an F16 VAE: (manifest, folder)."""
    folder = tmp_path_factory.mktemp("f16 set")
    images = [{"name": f"{i}.png", "height": 256, "width": 256, "caption": str(i)} for i in range(4)]
    manifest = manifest_of(folder, images)
    config = EncodeConfig(buckets="square", dtype="float32")
    encode(manifest.path, str(tiny_f16), folder / "encoded", config, "cpu")
    return manifest, folder / "encoded"


def test_latents_have_a_sixteenth_of_the_side_and_the_default_size_as_many_tokens(f16_set, tiny_f16):
    manifest, folder = f16_set
    data = EncodedData.open(folder)
    assert data.info.geometry.vae_factor == 16
    assert data.info.resolution == 256
    rows = data.read(0, [0, 1, 2, 3])
    assert rows.mean.shape == (4, 16, 16, 16)
    image = cv2.imread(str(manifest.root / rows.uris[2]), cv2.IMREAD_COLOR_RGB)
    expected, _ = moments(load_vae(tiny_f16), to_images(image[None]))
    torch.testing.assert_close(rows.mean[2], expected[0], rtol=1e-4, atol=1e-5)


def test_f16_data_are_planned_and_trained_on(f16_set, tiny_f16, fast, tmp_path):
    _, folder = f16_set
    recipe = resolve("lora", None, [*fast, "phases.main.steps=2"])
    plan = estimate(recipe, str(tiny_f16), [folder])
    (bucket,) = plan["phases"][0]["buckets"]
    assert (bucket["size"], bucket["image_tokens"]) == ("256x256", 64)
    trainer = Trainer(start(recipe, str(tiny_f16), [folder], tmp_path / "run"))
    assert torch.isfinite(torch.tensor(trainer.step()["loss"]))
    trainer.save({})
    exported, _ = export(tmp_path / "run", tmp_path / "export")
    card = (exported / "README.md").read_text()
    assert "| resolution | 256 px |" in card
    assert "1 steps at 256 px" in card


def test_data_of_an_f8_vae_are_refused_by_a_model_with_f16(small_set, tiny_f16, tmp_path, capsys):
    arguments = [
        "train",
        "run",
        "lora",
        "--model",
        tiny_f16,
        "--data",
        small_set.folder,
        "--out",
        tmp_path / "r",
    ]
    arguments += ["--set", "phases.main.resolution=128"]
    assert main([str(argument) for argument in arguments]) == 1
    assert "has VAE factor 8 (encoded for tiny-flux1), tiny-flux1 16: encode again" in capsys.readouterr().err


def test_exact_tiling_bounds_the_memory_of_an_encode_at_4k():
    from uhr.models.estimate.shapes import empty_component
    from uhr.models.zoo import get

    vae = empty_component(get("flux1-dev"), "vae")
    whole = ExactTiling(memory=1 << 50).plan(vae, "encode", 4096, 4096)
    assert whole.peak > 0
    bounded = ExactTiling(memory=8 << 30).plan(vae, "encode", 4096, 4096)
    assert bounded.peak <= 8 << 30
    assert ExactTiling(memory=20 << 30).untiled_samples(vae, 4096, 4096, 8) == 1
    assert 1 < ExactTiling(memory=20 << 30).untiled_samples(vae, 1024, 1024, 8) <= 8


def test_the_vae_is_tiled_within_its_memory_and_takes_as_many_small_images_as_fit(tiny_flux, monkeypatch):
    vae = load_vae(tiny_flux)
    assert memory_for(vae) >= 1 << 30
    tiled(vae)
    assert images_together(vae, 128, 128) == 8
    monkeypatch.setattr("uhr.train.encode.work.memory.memory_for", lambda _: 16 << 20)
    assert images_together(vae, 512, 512) == 1
