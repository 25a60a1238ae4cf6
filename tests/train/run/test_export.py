import json

import pytest
import torch
from safetensors.torch import load_file

from uhr.base.errors import UserError
from uhr.train.run.checkpoints.checkpoint import folder_of, steps
from uhr.train.run.exports.export import export
from uhr.train.run.trainer import train


@pytest.fixture
def run(job_of):
    """Four steps, two checkpoints, an average; alpha is half the rank."""
    sets = [
        "phases.main.steps=4",
        "phases.main.lr=0.02",
        "ema=0.5",
        "trainable.alpha=2",
        "runtime.checkpoint_every=2",
    ]
    job = job_of(*sets)
    train(job)
    return job.out


def scaled(state: dict, alpha: float, rank: int) -> dict[str, torch.Tensor]:
    """alpha / rank * B A of every module."""
    modules = {key.removesuffix(".lora_A.weight") for key in state if key.endswith("lora_A.weight")}
    return {m: alpha / rank * state[f"{m}.lora_B.weight"] @ state[f"{m}.lora_A.weight"] for m in modules}


def test_stock_diffusers_loads_it_and_merges_the_same_weights(run, tiny_flux, tmp_path):
    from diffusers import FluxPipeline

    folder, info = export(run, tmp_path / "adapter")
    assert info.step == 4
    pipeline = FluxPipeline.from_pretrained(tiny_flux)
    before = {name: p.clone() for name, p in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    merged = pipeline.transformer.state_dict()
    deltas = scaled(load_file(folder_of(run, 4) / "adapter.safetensors"), alpha=2, rank=4)
    assert len(deltas) == 2 * 4 + 2 * 3
    for name, weight in merged.items():
        module = name.removesuffix(".weight")
        expected = before[name] + deltas[module] if module in deltas else before[name]
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    assert max(delta.abs().max() for delta in deltas.values()) > 1e-3


def test_a_checkpoint_and_the_average_can_be_chosen(run, tmp_path):
    assert steps(run) == [2, 4]
    for step, weights, file in [(2, "trained", "adapter"), (4, "ema", "ema")]:
        folder, info = export(run, tmp_path / f"{step} {weights}", step, weights)
        assert info.step == step
        exported = load_file(folder / "pytorch_lora_weights.safetensors")
        stored = load_file(folder_of(run, step) / f"{file}.safetensors")
        assert exported.keys() == {f"transformer.{key}" for key in stored}
        assert all(torch.equal(exported[f"transformer.{key}"], tensor) for key, tensor in stored.items())


def test_the_card_says_what_it_was_made_from(run, small_set, tiny_flux, tmp_path):
    folder, _ = export(run, tmp_path / "adapter")
    card = (folder / "README.md").read_text()
    record = json.loads((folder / "uhr.json").read_text())
    assert small_set.manifest.id in card
    # both change images: the length of the text even where the text is shorter
    lengths = ", ".join(f"{name} {count}" for name, count in small_set.info.model.text_lengths.items())
    assert f"| exact tiling, text tokens: {lengths} |" in card
    assert "| CC0 | 6 |" in card
    assert "| CC-BY | 2 |" in card
    assert "records no licence for 1" in card
    assert str(tiny_flux.parent) not in card
    assert record["trained_on"] == 9
    assert record["guidance"] == 1.0
    assert record["lora"] == {"rank": 4, "alpha": 2, "targets": ["to_q", "to_k", "to_v", "to_out.0"]}
    assert record["steps"] == 4


def test_what_is_not_there_is_an_error(run, job_of, tmp_path):
    with pytest.raises(UserError, match="has no checkpoint of step 3: it has: 2, 4"):
        export(run, tmp_path / "a", 3)
    with pytest.raises(UserError, match="is not a run"):
        export(tmp_path, tmp_path / "a")
    fresh = job_of(out=tmp_path / "fresh")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export(fresh.out, tmp_path / "a")
    plain = job_of("phases.main.steps=1", out=tmp_path / "plain")
    train(plain)
    with pytest.raises(UserError, match="has no average"):
        export(plain.out, tmp_path / "a", weights="ema")
    export(plain.out, tmp_path / "a")
    with pytest.raises(UserError, match="already contains an adapter"):
        export(plain.out, tmp_path / "a")
