"""A family beside FLUX.1, from encoded files to an adapter, by what the family itself states."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models.ops.latents import normalisation
from uhr.models.vae.codec import encode_moments
from uhr.models.zoo import load_transformer, load_vae
from uhr.train.encode.stored.encoded import EncodedInfo, Geometry, read_encoded
from uhr.train.objectives.draws import Draws
from uhr.train.recipes import resolve
from uhr.train.run.job import start
from uhr.train.run.trainer import Trainer

FLUX2 = ["family=flux2", "guidance={kind: none, scale: null}"]


@pytest.fixture
def job2(small_set2, tiny_flux2, fast, tmp_path):
    def make(*sets):
        recipe = resolve("lora", None, [*fast, *FLUX2, *sets])
        return start(recipe, str(tiny_flux2), [small_set2.folder], tmp_path / "run")

    return make


def columns(encoded):
    (part,) = encoded.info.texts.parts
    return pq.read_schema(encoded.folder / part.path)


def test_columns_and_keys_of_encoded_data_are_the_familys_names(small_set, small_set2, short_texts):
    names = columns(small_set).names
    assert names == ["text_key", "caption", "t5_tokens", "clip_tokens", "t5", "pooled"]
    assert columns(small_set).metadata == {b"t5, pooled": b"bfloat16"}
    assert columns(small_set2).names == ["text_key", "caption", "qwen3_tokens", "qwen3"]
    one, two = (
        json.loads((each.folder / "encoded.json").read_text())["geometry"] for each in (small_set, small_set2)
    )
    assert one == {
        "latent_channels": 16, "vae_factor": 8, "shift": 0.1159, "scale": 0.3611,
        "t5": [short_texts.LENGTH, 32], "pooled": [32],
    }  # fmt: skip
    assert list(two) == ["latent_channels", "vae_factor", "patch_mean", "patch_std", "qwen3"]
    assert two["qwen3"] == [short_texts.LENGTH, 96]
    assert small_set2.info.texts.truncated == {"qwen3": 0}
    assert read_encoded(small_set2.folder) == small_set2.info


def test_geometry_of_neither_or_both_normalisations_or_without_texts_is_invalid(small_set2):
    whole = {"latent_channels": 16, "vae_factor": 8, "shift": 0.1, "scale": 0.3, "t5": (4, 2)}
    patches = {"patch_mean": (0.0,) * 64, "patch_std": (1.0,) * 64}
    Geometry(**whole)
    for wrong, message in (
        ({**whole, "shift": None}, "shift and scale, or"),
        ({**whole, **patches}, "shift and scale, or"),
        ({**whole, "t5": "long"}, "t5"),
    ):
        with pytest.raises(ValueError, match=message):
            Geometry(**wrong)
    tree = small_set2.info.model_dump(mode="json")
    del tree["geometry"]["qwen3"]
    with pytest.raises(ValueError, match="names no text tensor"):
        EncodedInfo.model_validate(tree)


def test_latents_of_flux2_reach_the_model_as_in_sampling(job2, small_set2, tiny_flux2):
    phase = Trainer(job2("latents=mean")).phase(0).uses[0]
    rows = phase.data.read(0, [0])
    vae = load_vae(tiny_flux2)
    expected = normalisation(vae)
    for name in ("mean", "std"):
        assert torch.equal(getattr(phase.data.info.geometry.normalisation, name), getattr(expected, name))
    assert torch.equal(phase.batch(rows, Draws(0, 0, [0])).data, expected.to_model(rows.mean.float()))
    assert rows.mean.shape == encode_moments(vae, torch.zeros(1, 128, 128, 3, dtype=torch.uint8))[0].shape


def test_dropout_takes_the_empty_captions_tensors_on_flux2_too(job2):
    phase = Trainer(job2("caption_dropout=1")).phase(0).uses[0]
    rows = phase.data.read(0, [0])
    assert rows.captions[0]
    texts = phase.batch(rows, Draws(0, 0, [0])).condition.texts
    assert texts.keys() == {"qwen3"}
    assert torch.equal(texts["qwen3"], phase.data.empty_texts()["qwen3"])
    assert not torch.equal(texts["qwen3"], rows.texts["qwen3"])


def test_the_commands_train_and_export_an_adapter_of_flux2(
    small_set2, tiny_flux2, fast, short_texts, tmp_path, capsys
):
    run, adapter = tmp_path / "run", tmp_path / "adapter"
    where = ["--model", str(tiny_flux2), "--data", str(small_set2.folder), "--out", str(run)]
    arguments = ["train", "encode", str(small_set2.manifest.path), "--model", str(tiny_flux2)]
    arguments += ["--out", str(small_set2.folder), "--set", 'aspects=["1/1","3/2"]']
    assert main(arguments) == 0
    hint = "--out RUN --set family=flux2 --set 'guidance={kind: none, scale: null}'"
    assert hint in capsys.readouterr().out

    assert main(["train", "run", "lora", *where]) == 1
    fix = "change the recipe: --set family=flux2 --set 'guidance={kind: none, scale: null}'"
    assert fix in capsys.readouterr().err

    quick = [*FLUX2, *fast, "phases.main.steps=2", "phases.main.lr=0.01", "runtime.device=cpu"]
    sets = [word for change in quick for word in ("--set", change)]
    assert main(["train", "plan", "lora", *where[:4], *sets, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["storage"]["text_per_caption"] == 2 * short_texts.LENGTH * 96
    text_tokens = {bucket["tokens"] - bucket["image_tokens"] for bucket in plan["phases"][0]["buckets"]}
    assert text_tokens == {short_texts.LENGTH}
    assert main(["train", "run", "lora", *where, *sets]) == 0
    assert main(["train", "export", str(run), "--out", str(adapter)]) == 0

    transformer = load_transformer(tiny_flux2)
    (file,) = adapter.glob("*.safetensors")
    transformer.load_lora_adapter(adapter, weight_name=file.name)
    trained = [weight for name, weight in transformer.named_parameters() if "lora_B" in name]
    assert trained
    assert all(weight.any() for weight in trained)


def test_data_of_another_family_is_refused(small_set, tiny_flux2, fast, tmp_path):
    recipe = resolve("lora", None, [*fast, *FLUX2])
    with pytest.raises(UserError, match=r"has family flux1 \(encoded for tiny-flux1\), tiny-flux2 flux2"):
        start(recipe, str(tiny_flux2), [small_set.folder], tmp_path / "run")
