"""Settings for one consumer GPU: what fits by the account, what is refused, and that numbers are the same."""

import dataclasses
import json

import pytest
import torch
from torch._dynamo.utils import counters

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models.adapters import peft_layers
from uhr.models.estimate.devices import device
from uhr.models.zoo import get
from uhr.train.recipes import resolve
from uhr.train.run import backbone as backbone_module
from uhr.train.run.estimate.estimate import estimate
from uhr.train.run.trainer import Trainer

LORA_1K = ["phases.main.resolution=1024", "batch.micro=1"]


def plan(*sets, model="flux1-dev", on="rtx-4080"):
    return estimate(resolve("lora", None, [*LORA_1K, *sets]), model, [], on)


@pytest.mark.parametrize("setting", ["runtime.quantize=nf4", "runtime.offload=blocks"])
def test_a_lora_on_flux1_dev_at_1k_fits_in_16_gib_with_either_setting_and_not_without(setting):
    assert 15 << 30 < device("rtx-4080").memory < 16 << 30
    assert not plan()["gpu"]["fits"]
    found = plan(setting)
    assert found["gpu"]["fits"]
    assert found["memory"]["total"] < 11 << 30


def test_quantised_and_streamed_weights_are_counted_as_they_are_stored():
    plain, four = plan(), plan("runtime.quantize=nf4")
    # 4 bits and a float32 scale for 64 weights, in place of 16 bits
    assert four["memory"]["weights"] / plain["memory"]["weights"] == pytest.approx(4.5 / 16, rel=0.02)
    # the largest linear layer in bfloat16: 12,288 + 3,072 inputs of a single block
    assert four["memory"]["dequantised"] == 2 * 3072 * 18432
    streamed = plan("runtime.offload=blocks")["memory"]
    assert streamed["weights"] + streamed["host"] > plain["memory"]["weights"]
    assert streamed["weights"] < 2 << 30
    # two blocks stay: the rest is on the host
    assert streamed["host"] > 0.97 * plain["memory"]["weights"]


def test_the_optimisers_state_is_counted_by_its_kind():
    sizes = {
        kind: plan(f"optimiser={{kind: '{kind}', betas: [0.9, 0.99], eps: 1.0e-8, weight_decay: 0}}")[
            "memory"
        ]
        for kind in ("adamw", "adamw-8bit", "prodigy", "torch.optim:NAdam")
    }
    parameters = 18_677_760
    found = {kind: size["optimiser"] / parameters for kind, size in sizes.items()}
    assert found == pytest.approx(
        {"adamw": 8, "adamw-8bit": 2, "prodigy": 16, "torch.optim:NAdam": 8}, abs=0.2
    )


def test_the_command_says_whether_it_fits(capsys):
    arguments = ["train", "plan", "lora", "--model", "flux1-dev", "--on"]
    assert main([*arguments, "rtx-4080"]) == 0
    assert "fits: no; GeForce RTX 4080 has 15.7 GiB, of which 14.7 GiB usable" in capsys.readouterr().out
    assert main([*arguments, "h200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu"]["fits"] is True
    assert main([*arguments, "rtx-4081"]) == 1
    assert "did you mean rtx-4080" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["runtime.quantize=nf5"], "runtime.quantize"),
        (["runtime.quantize=nf4", "runtime.offload=blocks"], "offload streams plain weights"),
        (["runtime.compile=true", "runtime.offload=blocks"], "offload streams plain weights"),
        (
            ["runtime.offload=blocks", "runtime.gradient_checkpointing=false"],
            "requires gradient_checkpointing",
        ),
        (["runtime.quantize=nf4", "trainable={kind: backbone}"], "'backbone' needs the weights themselves"),
        (["runtime.offload=blocks", "trainable={kind: backbone}"], "all weights are trained"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(sets, message):
    with pytest.raises(UserError, match=message):
        resolve("lora", None, sets).check(get("flux1-dev"))


def test_on_a_cpu_it_is_said_what_requires_a_gpu(job_of, tmp_path):
    with pytest.raises(UserError, match="keeps weights off a GPU, and the device is cpu"):
        Trainer(job_of("runtime.offload=blocks", "runtime.gradient_checkpointing=true", "runtime.device=cpu"))
    with pytest.raises(UserError, match="quantisation 'nf4' requires a GPU"):
        Trainer(job_of("runtime.quantize=nf4", "runtime.device=cpu", out=tmp_path / "other"))


def test_singular_components_of_a_quantised_base_are_those_of_its_values(job_of, monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    part = "trainable={kind: singular-components, rank: 2, targets: [to_q]}"
    chosen = resolve("lora", None, ["runtime.quantize=nf4", part])
    chosen.check(get("flux1-dev"))
    real = backbone_module.load_component

    def quantised(*args, quantize, **kwargs):
        """What diffusers' quantiser does, which requires a GPU."""
        model = real(*args, **kwargs)
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            linear = bitsandbytes.nn.Linear4bit(
                *block.attn.to_q.weight.shape, compute_dtype=torch.float32, quant_type=quantize
            )
            linear.load_state_dict(block.attn.to_q.state_dict())
            block.attn.to_q = linear.to("cpu")
        return model

    monkeypatch.setattr(backbone_module, "load_component", quantised)
    job = job_of("runtime.quantize=nf4", "runtime.device=cpu", "phases.main.lr=0.01")
    recipe = job.recipe.model_copy(update={"trainable": chosen.trainable})
    trainer = Trainer(dataclasses.replace(job, recipe=recipe))
    layer = peft_layers.all_layers(trainer.model.module)[0][1]
    assert not layer.get_base_layer().weight.is_floating_point()
    smallest = torch.linalg.svdvals(peft_layers.base_weight(layer).double())[-2:]
    a, b = layer.lora_A["default"].start, layer.lora_B["default"].start
    torch.testing.assert_close((b @ a).double().norm(), smallest.norm(), rtol=1e-3, atol=1e-5)
    x = torch.randn(3, layer.in_features)
    assert torch.equal(layer(x), layer.get_base_layer()(x))
    before = layer.lora_B["default"].weight.detach().clone()
    assert torch.isfinite(torch.tensor([trainer.step()["loss"], trainer.step()["loss"]])).all()
    assert not torch.equal(before, layer.lora_B["default"].weight)
    assert torch.equal(layer.lora_B["default"].start, b)
    trainer.close()


def test_streamed_blocks_train_the_same_weights(job_of, monkeypatch, tmp_path):
    monkeypatch.setattr(backbone_module, "check_device", lambda device: None)
    results = []
    for offload in ("null", "blocks"):
        sets = [f"runtime.offload={offload}", "runtime.gradient_checkpointing=true", "phases.main.steps=3"]
        made = Trainer(job_of(*sets, out=tmp_path / offload))
        losses = [made.step()["loss"] for _ in range(3)]
        made.close()
        results.append((losses, {n: p.detach().clone() for n, p in made.state.parameters.items()}))
    (one, first), (two, second) = results
    assert one == two
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_blocks_are_compiled_once_for_all_buckets_and_train_the_same_weights_up_to_rounding(
    job_of, monkeypatch, tmp_path
):
    torch._dynamo.reset()
    compiled = []
    real = torch.nn.Module.compile

    def compile(self, *args, **kwargs):
        compiled.append(type(self).__name__)
        # the same graphs without a C++ compiler
        return real(self, *args, backend="eager", **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    values, sizes = [], set()
    for on in ("false", "true"):
        counters.clear()
        made = Trainer(job_of(f"runtime.compile={on}", "phases.main.steps=4", out=tmp_path / on))
        for _ in range(4):
            done = made.step()
            sizes.add((done["bucket"], done["samples"]))
        made.close()
        values.append(torch.cat([p.detach().flatten() for p in made.state.parameters.values()]))
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-6)
    # an epoch: three buckets, of 64 and 70 image tokens, and batches of two and of three images
    assert len(sizes) == 4
    # of each kind of block one graph for the first, whose input has no gradient, and one for the others
    assert counters["stats"]["unique_graphs"] == 4
    assert compiled.count("FluxTransformerBlock") == compiled.count("FluxSingleTransformerBlock") == 2
