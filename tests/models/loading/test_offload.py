"""Offloading leaves the VAE weights that exact tiling can read, and memory to work in."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uhr.models import zoo
from uhr.models.loading import model as loading
from uhr.models.loading import offload
from uhr.models.loading.offload import Offload, tiling_memory
from uhr.models.samplers.core.engine import Engine
from uhr.models.samplers.sdedit import SDEditPipeline
from uhr.models.vae.budget import device_budget, host_budget

GIB = 1 << 30


@pytest.fixture
def sampler(tiny_flux):
    found = zoo.load_pipeline(tiny_flux, pipeline_class=SDEditPipeline)
    found.set_progress_bar_config(disable=True)
    return found


def test_sequential_offload_leaves_the_vae_where_exact_tiling_reads_it(sampler, monkeypatch):
    from accelerate import cpu_offload

    def generated():
        call = {"height": 192, "width": 192, "num_inference_steps": 4, "guidance_scale": 3.5}
        draw = torch.Generator().manual_seed(0)
        return np.asarray(sampler("a lake", **call, generator=draw, max_sequence_length=16).images[0])

    def put(device):
        """As diffusers does, on a CPU."""
        for name, part in sampler.components.items():
            if isinstance(part, torch.nn.Module) and name not in sampler._exclude_from_cpu_offload:
                cpu_offload(part, device, offload_buffers=False)

    expected = generated()
    monkeypatch.setattr(sampler, "enable_sequential_cpu_offload", put)
    offload.offload(sampler, Offload.SEQUENTIAL, torch.device("cpu"))
    assert sampler.transformer.device == torch.device("meta")
    assert sampler.vae.device == torch.device("cpu")
    np.testing.assert_array_equal(generated(), expected)
    assert type(sampler)._exclude_from_cpu_offload == []


def test_the_vae_is_given_what_the_device_has_for_it_whatever_is_free_at_the_moment(sampler, monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert tiling_memory(sampler, cpu) == host_budget()
    card = SimpleNamespace(total_memory=12 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    weights = sum(
        p.numel() * p.element_size()
        for part in sampler.components.values()
        if isinstance(part, torch.nn.Module)
        for p in part.parameters()
    )
    assert tiling_memory(sampler, cuda) == device_budget(12 * GIB, weights) < device_budget(12 * GIB, 0)
    sampler.offloaded = Offload.MODEL
    assert tiling_memory(sampler, cuda) == device_budget(12 * GIB, 0)


@pytest.mark.parametrize(("park", "kind"), [(False, "nf4"), (True, "nf4"), (True, "int8")])
def test_what_is_quantised_leaves_the_gpu_before_the_next_comes_where_it_is_parked(
    tiny_flux, monkeypatch, park, kind
):
    log = []

    class Part(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def to(self, device):
            log.append((self.name, "moved", device))
            return self

    def load(model, name, dtype, device, **_):
        log.append((name, "loaded", device))
        return Part(name)

    monkeypatch.setattr(loading, "load_component", load)
    monkeypatch.setattr(loading, "pick_device", torch.device)
    loading.load_pipeline(tiny_flux, "bfloat16", "cuda", lambda **parts: parts, quantize=kind, park=park)
    large = [entry for entry in log if entry[0] in ("transformer", "text_encoder_2")]
    if park and kind == "nf4":
        assert [entry[1:] for entry in large] == 2 * [("loaded", "cuda"), ("moved", "cpu")]
    else:
        assert [entry[1:] for entry in large] == 2 * [("loaded", "cuda")]
    small = {entry[1:] for entry in log if entry[0] in ("vae", "text_encoder")}
    assert small == {("loaded", "cpu" if park else "cuda")}


def test_text_encoders_are_gone_before_a_vae_that_works_first(sampler, monkeypatch):
    """A given image is encoded before the backbone's first call would drive them out."""
    log = []
    for place, name in ((sampler.family, "embed"), (Engine, "encode")):
        run = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, name=name, run=run, **k: log.append(name) or run(*a, **k))
    monkeypatch.setattr(
        sampler, "_all_hooks", [SimpleNamespace(offload=lambda: log.append("sent back"))], raising=False
    )
    monkeypatch.setattr(sampler, "maybe_free_model_hooks", lambda: None)
    sampler(
        "a lake",
        image=torch.rand(1, 3, 128, 128),
        height=192,
        width=192,
        num_inference_steps=4,
        guidance_scale=3.5,
        max_sequence_length=16,
    )
    assert log == ["embed", "sent back", "encode"]


def test_a_cached_guide_outlives_weights_that_come_layer_by_layer(tiny_flux, monkeypatch):
    from accelerate import cpu_offload

    from uhr.models.attention import guide
    from uhr.models.samplers.ultragen import UltraGenPipeline

    pipeline = zoo.load_pipeline(tiny_flux, pipeline_class=UltraGenPipeline)
    pipeline.set_progress_bar_config(disable=True)
    made = []
    for family in guide.GuideStream.__subclasses__():
        embed = family.embed
        monkeypatch.setattr(family, "embed", lambda self, embed=embed: made.append(1) or embed(self))

    def generated():
        call = {"height": 256, "width": 256, "num_inference_steps": 4, "guidance_scale": 3.5}
        draw = torch.Generator().manual_seed(0)
        return np.asarray(pipeline("a lake", **call, generator=draw, max_sequence_length=16).images[0])

    expected = generated()
    assert len(made) == 1
    cpu_offload(pipeline.transformer, torch.device("cpu"), offload_buffers=False)
    np.testing.assert_array_equal(generated(), expected)
    assert len(made) == 2
