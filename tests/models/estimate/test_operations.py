"""Operations counted from shapes are those that torch counts while the real classes run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from uhr.models import zoo
from uhr.models.estimate import operations
from uhr.models.estimate.activations import vae_call_cost
from uhr.models.estimate.devices import device
from uhr.models.estimate.operations import BackboneCost, Operations
from uhr.models.estimate.shapes import empty_component
from uhr.models.families.conditions import Condition
from uhr.models.families.flux1 import Flux1
from uhr.models.families.flux2 import Flux2
from uhr.models.samplers.core.plan import VaeCall
from uhr.models.vae.f16 import F16
from uhr.models.vae.tiled import ExactTiling


def counted(run) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(params=[("tiny-flux1", Flux1()), ("tiny-flux2", Flux2())], ids=lambda pair: pair[0])
def family(request, tiny_flux, tiny_flux2):
    name, backbone = request.param
    return {"tiny-flux1": tiny_flux, "tiny-flux2": tiny_flux2}[name], backbone


@pytest.mark.parametrize(("grid", "text"), [((8, 8), 16), ((4, 12), 512), ((1, 1), 1)])
def test_a_dense_call_exactly(family, grid, text):
    folder, backbone = family
    transformer = zoo.load_transformer(folder)
    config, image = transformer.config, grid[0] * grid[1]
    pooled = config.get("pooled_projection_dim")
    conditioning = Condition(
        torch.randn(1, text, config.joint_attention_dim),
        None if pooled is None else torch.randn(1, pooled),
        backbone.text_ids(text),
        backbone.image_ids(*grid),
        torch.ones(1) if config.guidance_embeds else None,
    )
    tokens = torch.randn(1, image, config.in_channels)
    real = counted(lambda: backbone.call(transformer, tokens, torch.ones(1), conditioning))
    assert BackboneCost.of(transformer).call(image, text).total == real


def test_text_encoders_exactly_but_for_what_a_library_adds_to_attention(family):
    folder, _ = family
    encoders = zoo.load_text_encoders(folder)
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(encoders, name, None)
        if encoder is None:
            continue
        ids, mask = torch.zeros(1, 48, dtype=torch.long), torch.ones(1, 48, dtype=torch.long)
        real = counted(
            lambda encoder=encoder, ids=ids, mask=mask: encoder(input_ids=ids, attention_mask=mask)
        )
        assert operations.encode_text(encoder, 48).total == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("part", ["encode", "decode"])
@pytest.mark.parametrize("f16", [False, True])
def test_a_vae_exactly_where_it_runs_untiled(tiny_flux, part, f16):
    vae = zoo.load_vae(tiny_flux)
    if f16:
        F16().apply(vae)
    factor = 16 if f16 else 8
    x = torch.randn(1, 3, 96, 64) if part == "encode" else torch.randn(1, 16, 96 // factor, 64 // factor)
    real = counted(lambda: getattr(vae, part)(x))
    _, found = vae_call_cost(vae, VaeCall(part, 96, 64), ExactTiling())
    assert found == Operations(convolution=found.total)
    assert found.total == pytest.approx(real, rel=1e-3)


def test_a_vae_in_little_memory_works_more_and_holds_less():
    vae = empty_component(zoo.get("flux1-dev"), "vae")
    call = VaeCall("decode", 4096, 4096)
    (much, once), (little, more) = (
        vae_call_cost(vae, call, ExactTiling(memory=memory)) for memory in ("500GiB", "8GiB")
    )
    assert little <= 8 << 30 < much
    assert more.total > once.total


def test_the_published_backbones_have_their_published_number_of_weights():
    # counted by others, from the weights themselves
    found = {
        name: {
            part: sum(p.numel() for p in empty_component(zoo.get(name), part).parameters())
            for part in zoo.get(name).components
            if "tokenizer" not in part and part != "scheduler"
        }
        for name in ("flux1-dev", "flux2-klein-4b")
    }
    assert found["flux1-dev"] == {
        "transformer": 11_901_408_320,
        "text_encoder_2": 4_762_310_656,
        "text_encoder": 123_060_480,
        "vae": 83_819_683,
    }
    # Qwen3-4B is 4.0 billion with its embedding counted once
    assert found["flux2-klein-4b"]["text_encoder"] == 4_022_468_096
    assert found["flux2-klein-4b"]["transformer"] == pytest.approx(4e9, rel=0.05)


def test_dense_flux_at_4k_takes_an_h200_some_190_seconds_by_count_of_operations():
    backbone = BackboneCost.of(empty_component(zoo.get("flux1-dev"), "transformer"))
    call = backbone.call(65536, 512)
    # 12 layers' worth of width^2 a token in each of 57 blocks, and pairs of 66,048 tokens
    assert call.linear == pytest.approx(2 * 12 * 3072**2 * (19 * 65536 + 19 * 512 + 38 * 66048), rel=0.001)
    assert call.attention == 4 * 3072 * 57 * 66048**2
    assert device("h200").seconds(call.times(28)) == pytest.approx(190, rel=0.03)
