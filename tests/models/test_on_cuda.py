"""Every sampler's pipeline on a pretended GPU (`pretend_gpu.py`), in bfloat16.

What mixes devices or dtypes on a GPU raises here as it would there.
"""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from uhr.models.samplers import names_for, sampler_class
from uhr.models.samplers.core.pipelines import base as pipelines
from uhr.models.specs import registry
from uhr.models.vae.tiled import ExactTiling

FEW = {
    "sdedit": {"num_inference_steps": 4, "base_steps": 1, "strength": 0.5},
    "hiflow": {"num_inference_steps": 4, "starts": (0.8,)},
    "ultragen": {"num_inference_steps": 3, "base_steps": 1, "skip": 2, "cached": True},
    "patch-cascade": {"num_inference_steps": 1, "base_steps": 1},
    "euler": {"num_inference_steps": 1, "toolkit": {}},
}


MEMORY = "2MiB"
"""So little that an image of 128 px is decoded in a few tiles."""


def cases():
    """Every sampler on FLUX.1; on FLUX.2, whose blocks have processors of their own, one of each kind."""
    return [*((name, "flux1") for name in names_for("flux1")), ("ultragen", "flux2"), ("sdedit", "flux2")]


@pytest.fixture
def parts(stock, stock2, gpu, monkeypatch):
    """`parts(family)`: components of its pipeline on "cuda", without text encoders; the GPU is pretended."""
    families = {"flux1": stock, "flux2": stock2}
    monkeypatch.setattr(pipelines, "make_plan", gpu.with_values(pipelines.make_plan))

    def make(family):
        pipeline = families[family]
        with unset_fake_temporarily():
            models = {name: copy.deepcopy(getattr(pipeline, name)) for name in ("transformer", "vae")}
        for blocks in ("transformer_blocks", "single_transformer_blocks"):
            # the blocks of a kind are alike
            del getattr(models["transformer"], blocks)[1:]
        moved = {name: gpu.to_cuda(model) for name, model in models.items()}
        return {**dict.fromkeys(pipeline.components), "scheduler": pipeline.scheduler, **moved}

    with gpu.pretended(monkeypatch):
        yield make


@pytest.mark.parametrize(("name", "family"), cases(), ids=lambda value: value)
def test_a_sampler_stays_on_the_gpu(name, family, parts, gpu):
    models, config = parts(family), registry.get(f"tiny-{family}").pipeline_config
    if name in ("euler", "patch-cascade"):
        # every sampler decodes by the same tiles; patch-cascade also writes strips of pixels
        ExactTiling(memory=MEMORY).apply(models["vae"])
    pipeline = sampler_class(name, family)(**models, **config)
    pipeline.set_progress_bar_config(disable=True)
    # as a seed on the command line: noise is drawn on the CPU, and goes to where the backbone is
    few = {**FEW.get(name, {"num_inference_steps": 1}), "generator": torch.Generator()}
    found = pipeline(**prompt(pipeline, gpu), **few, **small(pipeline), output_type="pt")
    assert found.images.shape == (1, 3, 128, 128)
    assert pipeline.model_calls > 0


@pytest.mark.parametrize(
    ("name", "options"), [("ultragen", {"backend": "gathered", "skip": 2}), ("patch-cascade", {"batch": 9})]
)
def test_an_image_is_moved_to_the_gpu(name, options, parts, gpu):
    pipeline = sampler_class(name, "flux1")(**parts("flux1"))
    pipeline.set_progress_bar_config(disable=True)
    image = torch.empty(3, 64, 64, dtype=torch.uint8)
    steps = 1 if name == "patch-cascade" else 3
    call = {**prompt(pipeline, gpu), "num_inference_steps": steps, "image": image, **options}
    assert pipeline(**call, **small(pipeline), output_type="pt").images.shape == (1, 3, 128, 128)


def small(pipeline):
    """Twice the native size, which is half of the tiny model's."""
    native = {"native_size": 64} if "native_size" in type(pipeline).Options.model_fields else {}
    return {"height": 128, "width": 128, **native}


def prompt(pipeline, gpu):
    place = {"device": gpu.CUDA, "dtype": torch.bfloat16}
    given = {"prompt_embeds": torch.empty(1, 16, pipeline.transformer.config.joint_attention_dim, **place)}
    if pipeline.family.pooled:
        given["pooled_prompt_embeds"] = torch.empty(1, 32, **place)
        given["guidance_scale"] = 3.5
    return given
