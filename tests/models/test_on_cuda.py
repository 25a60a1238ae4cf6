"""Every sampler's pipeline on a GPU that is not there: tensors without values, on "cuda", in bfloat16.

What mixes devices or dtypes on a GPU raises here as it would there.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from uhr.models import registry
from uhr.models.attention import flex
from uhr.models.samplers import names_for, sampler_class
from uhr.models.vae import attention as vae_attention
from uhr.models.vae.tiled import ExactTiling

CUDA = torch.device("cuda", 0)
FEW = {
    "sdedit": {"num_inference_steps": 4, "base_steps": 1, "strength": 0.5},
    "hiflow": {"num_inference_steps": 4, "starts": (0.8,)},
    "ultragen": {"num_inference_steps": 3, "base_steps": 1, "cached": True},
    "patch-cascade": {"num_inference_steps": 1, "base_steps": 1},
    "euler": {"num_inference_steps": 1, "toolkit": {}},
}


def cases():
    """Every sampler on FLUX.1; on FLUX.2, whose blocks have processors of their own, one of each kind."""
    return [*((name, "flux1") for name in names_for("flux1")), ("ultragen", "flux2"), ("sdedit", "flux2")]


class WithoutValues(FakeTensorMode):
    """Fake tensors; what code asks of their values is true, or 1."""

    def dispatch(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten.equal.default:
            return True
        return super().dispatch(func, types, args, kwargs)


def to_cuda(module):
    """Weights without values on "cuda" in bfloat16. Call it under the mode."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, x in kept.items():
                if x is not None:
                    dtype = torch.bfloat16 if x.is_floating_point() else x.dtype
                    moved = torch.empty(x.shape, dtype=dtype, device=CUDA)
                    kept[name] = torch.nn.Parameter(moved, False) if kept is part._parameters else moved
    return module


@pytest.fixture
def parts(stock, stock2, monkeypatch):
    """Components of each family's pipeline on "cuda", text encoders left out, under the mode. What it cannot
    trace is replaced by what checks its arguments."""
    families = {"flux1": stock, "flux2": stock2}
    models = {
        family: {name: copy.deepcopy(getattr(pipeline, name)) for name in ("transformer", "vae")}
        for family, pipeline in families.items()
    }

    def kernel(query, key, value, mask):
        assert {x.device for x in (query, key, value, mask.kv_indices)} == {CUDA}
        assert {x.dtype for x in (query, key, value)} == {torch.bfloat16}
        assert mask.seq_lengths == (query.shape[2], key.shape[2])
        return torch.empty_like(query)

    def outside(function):
        """Plans are made of values: they are no business of the device's."""

        def call(*arguments, **named):
            with unset_fake_temporarily():
                return function(*arguments, **named)

        return call

    for cls in {sampler_class(*case) for case in cases()}:
        monkeypatch.setattr(cls, "checked_plan", staticmethod(outside(cls.checked_plan)))
        monkeypatch.setattr(cls, "schedule", outside(cls.schedule))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    monkeypatch.setattr(flex, "_kernel", kernel)
    monkeypatch.setattr(vae_attention, "_fused", lambda *_: None)
    with WithoutValues(), torch.no_grad():
        yield {
            family: {
                **dict.fromkeys(pipeline.components),
                "scheduler": pipeline.scheduler,
                **{name: to_cuda(model) for name, model in models[family].items()},
            }
            for family, pipeline in families.items()
        }


@pytest.mark.parametrize(("name", "family"), cases(), ids=lambda value: value)
def test_a_sampler_keeps_to_the_gpu(name, family, parts):
    ExactTiling(memory="4MiB").apply(parts[family]["vae"])
    config = registry.get(f"tiny-{family}").pipeline_config
    pipeline = sampler_class(name, family)(**parts[family], **config)
    pipeline.set_progress_bar_config(disable=True)
    # as a seed on the command line: noise is drawn on the CPU, and goes to where the backbone is
    asked = {**prompt(pipeline), **FEW.get(name, {"num_inference_steps": 1}), "generator": torch.Generator()}
    found = pipeline(**asked, height=256, width=256, output_type="pt")
    assert found.images.shape == (1, 3, 256, 256)
    assert pipeline.model_calls > 0


@pytest.mark.parametrize("name", ["ultragen", "patch-cascade"])
def test_a_given_picture_goes_to_the_gpu(name, parts):
    pipeline = sampler_class(name, "flux1")(**parts["flux1"])
    pipeline.set_progress_bar_config(disable=True)
    image = torch.empty(3, 128, 128, dtype=torch.uint8)
    asked = {**prompt(pipeline), "num_inference_steps": 3, "image": image, "height": 256, "width": 256}
    assert pipeline(**asked, output_type="pt").images.shape == (1, 3, 256, 256)


def prompt(pipeline):
    width = pipeline.transformer.config.joint_attention_dim
    given = {"prompt_embeds": torch.empty(1, 16, width, device=CUDA, dtype=torch.bfloat16)}
    if pipeline.pooled:
        given["pooled_prompt_embeds"] = torch.empty(1, 32, device=CUDA, dtype=torch.bfloat16)
        given["guidance_scale"] = 3.5
    return given
