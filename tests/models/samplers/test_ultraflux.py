"""UltraFlux: an F16 VAE and Resonance positions around plain Euler steps, put on for the call alone."""

import copy
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.loading.offload import tiling_memory
from uhr.models.ops import flow, latents
from uhr.models.ops.rope import ResonancePosEmbed
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.samplers.ultraflux import UltraFlux, UltraFluxOptions, UltraFluxPipeline
from uhr.models.surgery import base as surgery
from uhr.models.surgery.rope import RopeNtk, RopeResonance
from uhr.models.vae import codec
from uhr.models.vae.f16 import F16
from uhr.models.vae.tiled import ExactTiling

CALL = {"num_inference_steps": 3, "guidance_scale": 4.0, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def ultraflux(tiny_flux):
    return quiet(UltraFluxPipeline.from_pretrained(tiny_flux, local_files_only=True))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def sample(ultraflux):
    def call(prompt="a red house", pipeline=ultraflux, **more):
        return pipeline(prompt, **{**CALL, "generator": seeded(), **more})

    return call


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_is_plain_euler_at_shift_3_on_a_model_with_both_surgeries(ultraflux, sample, tiny_flux):
    """By hand, on a model that is operated on for good."""
    model = zoo.load_pipeline(tiny_flux)
    F16().apply(model.vae)
    RopeResonance(window=8).apply(model.transformer)
    text, pooled, text_ids = model.encode_prompt("a red house", None, max_sequence_length=16)
    x = torch.randn(1, 16, 16, 32, generator=seeded())
    sigmas = [1.0, 6 / 7, 0.6, 0.0]

    def velocity(z, sigma, step):
        tokens = model.transformer(
            hidden_states=latents.pack(z), timestep=torch.tensor([sigma]), guidance=torch.tensor([4.0]),
            pooled_projections=pooled, encoder_hidden_states=text, txt_ids=text_ids,
            img_ids=latents.image_ids(8, 16), return_dict=False,
        )[0]  # fmt: skip
        return latents.unpack(tokens, 16, 32)

    with torch.no_grad():
        expected = codec.decode(model.vae, flow.euler(velocity, x, sigmas))
    found = sample(height=256, width=512, output_type="pt").images
    assert ultraflux.sigmas == pytest.approx(sigmas)
    assert ultraflux.model_calls == 3
    torch.testing.assert_close(found, (expected / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_the_native_size_is_four_times_the_backbones_with_as_many_tokens_as_f8_has_at_twice(
    ultraflux, sample
):
    seen = []
    embed = ResonancePosEmbed.forward

    def spy(self, ids):
        seen.append((self, embed(self, ids)))
        return seen[-1][1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ResonancePosEmbed, "forward", spy)
        image = sample().images[0]
    assert image.size == (512, 512)
    module, (cos, sin) = seen[0]
    assert module.window == 8
    assert cos.shape == (16 + 16 * 16, 32)
    # a text token, at position 0: cos is YaRN's magnitude at scale 2 on both spatial axes, 1 on the first
    assert torch.equal(cos[0, :4], torch.ones(4))
    torch.testing.assert_close(cos[0, 4:], torch.full((28,), 1.069315), atol=1e-6, rtol=0)
    assert not sin[0].any()


def test_flux_dev_at_4k_is_16384_tokens_50_steps_guidance_4_and_a_window_of_64():
    plan = plan_of_spec(UltraFlux(), zoo.get("flux1-dev"), UltraFluxOptions(), (4096, 4096))
    (stage,) = plan.stages
    assert (stage.steps, stage.size, plan.facts.grid(stage.size)) == (50, (4096, 4096), (128, 128))
    assert plan.guidance == stage.guidance == 4.0
    assert stage.surgeries == (RopeResonance(window=64),)
    # static shift 3: nothing in diffusers reads the script's time_shift of 4
    assert stage.sigmas[:3] == pytest.approx([1, 3 * 0.98 / (1 + 2 * 0.98), 3 * 0.96 / (1 + 2 * 0.96)])


def test_within_the_window_positions_are_plain_and_beyond_it_each_kind_is_another_image(sample):
    def made(positions, **size):
        return sample(positions=positions, output_type="latent", num_inference_steps=1, **size).images

    kinds = ("resonance", "yarn", "plain")
    small = [made(kind, height=256, width=256) for kind in kinds]
    assert torch.equal(small[0], small[1])
    torch.testing.assert_close(small[0], small[2], atol=1e-6, rtol=0)
    wide = [made(kind, height=256, width=512) for kind in kinds]
    assert all(
        (a - b).abs().max() > 1e-3 for a, b in ((wide[0], wide[1]), (wide[0], wide[2]), (wide[1], wide[2]))
    )


@pytest.mark.parametrize("size", [(64, 320), (512, 96), (416, 224)])
def test_images_come_in_any_shape_of_32_px(ultraflux, sample, size):
    height, width = size
    assert sample(height=height, width=width, num_inference_steps=1).images[0].size == (width, height)
    tokens = sample(height=height, width=width, num_inference_steps=1, output_type="latent").images
    assert tokens.shape == (1, height * width // 1024, 64)


def test_surgeries_are_listed_and_taken_off_bitwise_even_after_a_failure(ultraflux, sample):
    config, positions = dict(ultraflux.vae.config), ultraflux.transformer.pos_embed
    weights = copy.deepcopy(ultraflux.vae.state_dict())

    def untouched():
        kept = ultraflux.vae.state_dict()
        return (
            surgery.applied(ultraflux.vae) == surgery.applied(ultraflux.transformer) == []
            and dict(ultraflux.vae.config) == config
            and ultraflux.transformer.pos_embed is positions
            and all(torch.equal(kept[name], value) for name, value in weights.items())
        )

    sample(num_inference_steps=1)
    assert [each["surgery"] for each in ultraflux.last_run.surgeries] == [
        "vae-f16",
        "exact-tiling",
        "rope-resonance",
    ]
    assert surgery.from_record(ultraflux.last_run.surgeries) == [
        F16(),
        ExactTiling(memory=tiling_memory(ultraflux, torch.device("cpu"))),
        RopeResonance(window=8),
    ]
    assert untouched()

    def fails(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample(callback_on_step_end=fails)
    assert untouched()
    sample(num_inference_steps=1, positions="plain")
    assert [each["surgery"] for each in ultraflux.last_run.surgeries] == ["vae-f16", "exact-tiling"]


@pytest.fixture(scope="module")
def published(tiny_flux, tmp_path_factory):
    """Owen777/UltraFlux-v1's layout at the tiny size: a diffusers folder whose VAE says stride 2, and whose
    configurations hold the keys that the official classes add."""
    folder = shutil.copytree(tiny_flux, tmp_path_factory.mktemp("published") / "UltraFlux-v1")
    for name, more in (("transformer", {"method": "yarn", "enable_gqa": None}), ("vae", {"stride": 2})):
        path = folder / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def test_the_published_layout_loads_as_the_f16_model_that_it_is(published, sample, ultraflux):
    loaded = quiet(zoo.load_pipeline(published, pipeline_class=UltraFluxPipeline))
    assert surgery.applied(loaded.vae) == [F16()]
    made = sample(height=256, width=256)
    again = sample(height=256, width=256, pipeline=loaded)
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(again.images[0]))
    assert surgery.applied(loaded.vae) == [F16()]
    # it is the surgery without training that a reader must know of
    assert [note.partition(":")[0] for note in ultraflux.last_run.notes] == ["unadapted"]
    assert loaded.last_run.notes == []
    assert {each["surgery"] for each in loaded.last_run.surgeries} == {
        "vae-f16",
        "exact-tiling",
        "rope-resonance",
    }


def test_diffusers_own_loader_forgets_the_stride_and_it_is_made_up_for(published, sample, ultraflux):
    loaded = quiet(UltraFluxPipeline.from_pretrained(published, local_files_only=True))
    assert surgery.applied(loaded.vae) == []
    made = sample(height=256, width=256, pipeline=loaded, output_type="pt").images
    assert torch.equal(made, sample(height=256, width=256, output_type="pt").images)
    assert loaded.last_run.notes == []


def test_the_transformer_of_v1_1_goes_in_the_place_of_v1s(published, sample, tmp_path):
    other = zoo.make_tiny("tiny-flux1", tmp_path / "other", seed=1)
    bare = shutil.copytree(other / "transformer", tmp_path / "UltraFlux-v1-1-Transformer")
    pipeline = quiet(
        zoo.load_pipeline(published, pipeline_class=UltraFluxPipeline, weights={"transformer": bare})
    )
    expected = zoo.load_transformer(other).state_dict()
    found = pipeline.transformer.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert surgery.applied(pipeline.vae) == [F16()]
    size = {"height": 256, "width": 256, "output_type": "pt"}
    assert (sample(pipeline=pipeline, **size).images - sample(**size).images).abs().max() > 1e-3


def linear(name, out, width, bias=True):
    return {f"{name}.weight": (out, width)} | ({f"{name}.bias": (out,)} if bias else {})


def published_transformer():
    """Keys and shapes of the official transformer class at its published size, read off its source."""
    width, found = 3072, {}
    for name, given in (("timestep_embedder", 256), ("guidance_embedder", 256), ("text_embedder", 768)):
        found |= linear(f"time_text_embed.{name}.linear_1", width, given)
        found |= linear(f"time_text_embed.{name}.linear_2", width, width)
    found |= linear("context_embedder", width, 4096) | linear("x_embedder", width, 64)
    for i in range(19):
        block = f"transformer_blocks.{i}"
        found |= linear(f"{block}.norm1.linear", 6 * width, width)
        found |= linear(f"{block}.norm1_context.linear", 6 * width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            found[f"{block}.attn.{name}.weight"] = (128,)
        for name in (
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "add_q_proj",
            "add_k_proj",
            "add_v_proj",
            "to_add_out",
        ):
            found |= linear(f"{block}.attn.{name}", width, width)
        for name in ("ff", "ff_context"):
            found |= linear(f"{block}.{name}.net.0.proj", 4 * width, width)
            found |= linear(f"{block}.{name}.net.2", width, 4 * width)
    for i in range(38):
        block = f"single_transformer_blocks.{i}"
        found |= linear(f"{block}.norm.linear", 3 * width, width)
        found |= linear(f"{block}.proj_mlp", 4 * width, width) | linear(f"{block}.proj_out", width, 5 * width)
        for name in ("norm_q", "norm_k"):
            found[f"{block}.attn.{name}.weight"] = (128,)
        for name in ("to_q", "to_k", "to_v"):
            found |= linear(f"{block}.attn.{name}", width, width)
    return found | linear("norm_out.linear", 2 * width, width) | linear("proj_out", 64, width)


def test_every_published_key_of_the_transformer_meets_a_weight_under_the_surgery():
    from diffusers import FluxTransformer2DModel

    # what the official class registers besides diffusers' own keys
    config = {"guidance_embeds": True, "method": "yarn", "enable_gqa": None}
    with torch.device("meta"):
        model: Any = FluxTransformer2DModel.from_config(config)
    RopeResonance(window=64).apply(model)
    shapes = published_transformer()
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes
    zeros = {name: torch.zeros(1, dtype=torch.bfloat16).expand(shape) for name, shape in shapes.items()}
    model.load_state_dict(zeros, assign=True)
    spec = zoo.get("flux1-dev")
    assert all(model.config[key] == value for key, value in spec.transformer_config.items())


def test_surgeries_that_are_on_the_model_already_stay_and_rivals_are_rejected(tiny_flux, sample):
    pipeline = quiet(UltraFluxPipeline.from_pretrained(tiny_flux, local_files_only=True))
    RopeResonance(window=8).apply(pipeline.transformer)
    sample(pipeline=pipeline, num_inference_steps=1)
    assert surgery.applied(pipeline.transformer) == [RopeResonance(window=8)]
    RopeResonance(window=8).revert(pipeline.transformer)
    RopeNtk().apply(pipeline.transformer)
    with pytest.raises(UserError, match="both replace transformer"):
        sample(pipeline=pipeline)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"height": 272, "width": 256},
            "256x272 cannot be generated: use multiples of 32; nearest 256x256 or 256x288",
        ),
        ({"image": torch.rand(3, 512, 512)}, "no base pass.*sdedit or patch-cascade"),
        ({"positions": "ntk"}, "positions"),
        ({"toolkit": {}}, "unknown key 'toolkit'"),
    ],
)
def test_what_cannot_be_is_one_clear_line(sample, more, message):
    with pytest.raises(UserError, match=message):
        sample(**more)


def test_preflight_requires_32_px_before_any_weights_are_loaded():
    spec = zoo.get("flux1-dev")
    plan_of_spec(UltraFlux(), spec, UltraFluxOptions(), (2880, 5120), 50)
    with pytest.raises(
        UserError, match="1920x1072 cannot be generated: use multiples of 32; nearest 1920x1056 or 1920x1088"
    ):
        plan_of_spec(UltraFlux(), spec, UltraFluxOptions(), (1072, 1920), 50)
    with pytest.raises(UserError, match="negative prompt"):
        plan_of_spec(UltraFlux(), spec, UltraFluxOptions(true_cfg_scale=3), (4096, 4096), 50)


@pytest.mark.usefixtures("short_prompts")
def test_the_command_generates_at_the_published_defaults(tiny_flux, tmp_path, capsys):
    from PIL import Image

    from uhr.cli import main
    from uhr.models.generate.record import read_record

    out = tmp_path / "image.png"
    command = ["sample", "ultraflux", "--model", str(tiny_flux), "--prompt", "a house", "--out", str(out)]
    assert main(command) == 0
    assert "note: unadapted: the F8 VAE was made F16" in capsys.readouterr().out
    record = read_record(out)
    assert Image.open(out).size == (record["width"], record["height"]) == (512, 512)
    assert (record["steps"], record["guidance"], record["model_calls"]) == (50, 4.0, 50)
    applied = [each["surgery"] for each in record["details"]["surgeries"]]
    assert applied == ["vae-f16", "exact-tiling", "rope-resonance"]
    assert main([*command, "--size", "240x256"]) == 1
    assert "multiples of 32; nearest 224x256 or 256x256" in capsys.readouterr().err


def test_an_adapter_acts_at_its_scale(tiny_flux, sample, adapter):
    from uhr.models.adapters.files import load_adapter
    from uhr.models.adapters.scales import set_scales

    pipeline = quiet(UltraFluxPipeline.from_pretrained(tiny_flux, local_files_only=True))
    size = {"height": 256, "width": 256, "output_type": "latent"}
    plain = sample(pipeline=pipeline, **size).images
    load_adapter(pipeline, adapter, "style")
    found = []
    for scale in (0.0, 1.0):
        set_scales(pipeline, {"style": scale})
        found.append(sample(pipeline=pipeline, **size).images)
    torch.testing.assert_close(found[0], plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[1], plain, atol=1e-4)
