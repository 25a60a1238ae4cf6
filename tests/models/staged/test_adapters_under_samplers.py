"""A style LoRA under every staged sampler."""

import pytest
import torch

from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.scales import set_scales
from uhr.models.samplers import sampler_class

SHORT = {
    "sdedit": {"strength": 0.5, "base_steps": 1},
    "multidiffusion": {"num_inference_steps": 1},
    "demofusion": {"num_inference_steps": 1},
    "imax": {"num_inference_steps": 1},
    "hiflow": {"num_inference_steps": 1},
}


@pytest.mark.parametrize("name", SHORT)
def test_a_lora_acts_at_its_scale_and_at_none_not_at_all(name, made, call, seeded, adapter):
    shared = made(sampler_class("euler", "flux1"))
    sampler = sampler_class(name, "flux1")(**shared.components)
    sampler.set_progress_bar_config(disable=True)

    def sample():
        more = {**call, "num_inference_steps": 2, **SHORT[name]}
        return sampler("x", **more, generator=seeded(), output_type="latent").images

    plain = sample()
    load_adapter(sampler, adapter, "style")
    try:
        found = {}
        for scale in (0.0, 0.5, 1.0):
            set_scales(sampler, {"style": scale})
            found[scale] = sample()
    finally:
        sampler.unload_lora_weights()
    torch.testing.assert_close(found[0.0], plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0.5], plain, atol=1e-4)
    assert not torch.allclose(found[1.0], found[0.5], atol=1e-4)
    assert torch.equal(sample(), plain)
