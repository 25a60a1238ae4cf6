"""Every sampler of the registry on the tiny models, and quick calls of them."""

import functools

import pytest

from uhr.models.samplers import SAMPLERS, sampler_class

QUICK = {"base_steps": 1, "strength": 0.5, "skip": 1, "native_size": 96}
"""Options that make calls short, for the samplers that have them."""

FEWER_STEPS = ("demofusion", "patch-cascade")
"""Those whose steps are of many calls."""


@pytest.fixture(scope="session")
def call():
    """Arguments that suit every sampler on FLUX.1: 256 px, twice the tiny model's native size."""
    return {
        "height": 256,
        "width": 256,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 16,
    }


@pytest.fixture(scope="session")
def quick(call):
    """A maker of a sampler's arguments, by its name and its pipeline class: few steps, 128 px."""

    def arguments(name, cls):
        short = {key: value for key, value in QUICK.items() if key in cls.Options.model_fields}
        found = {**call, **short, "height": 128, "width": 128}
        found["num_inference_steps"] = 2 if name in FEWER_STEPS else 3
        if cls.family.name == "flux2":
            # its tiny model is distilled, and its prompts come with the turns of a chat
            found.update(guidance_scale=None, max_sequence_length=32)
        return found

    return arguments


@pytest.fixture(scope="session")
def made(tiny_flux, tiny_flux2):
    """A maker of one pipeline for each class; those of a family share the tiny model's components.

    Its backbone has one block of each kind, which is half of a call: no sampler knows how many there are.
    """
    from uhr.models import zoo

    folders, found = {"flux1": tiny_flux, "flux2": tiny_flux2}, {}

    def make(cls):
        if cls not in found:
            family = cls.family.name
            first = next((each for each in found.values() if each.family.name == family), None)
            if first is None:
                found[cls] = cls.from_pretrained(folders[family], local_files_only=True)
                transformer = found[cls].transformer
                del transformer.transformer_blocks[1:], transformer.single_transformer_blocks[1:]
            else:
                found[cls] = cls(**first.components, **zoo.get(f"tiny-{family}").pipeline_config)
            found[cls].set_progress_bar_config(disable=True)
        return found[cls]

    return make


@pytest.fixture
def straight(backbone):
    """Gives a pipeline the straight field to one value per channel of z, at any size; a maker of the tokens
    that it leads to, by their number."""
    import torch

    def lead(pipeline):
        channels = pipeline.transformer.config.in_channels // 4
        value = torch.randn(channels, generator=torch.Generator().manual_seed(5)).repeat_interleave(4)
        backbone(lambda tokens, sigma, condition, branch: (tokens - value) / sigma)
        return lambda count: value.expand(1, count, 4 * channels)

    return lead


@pytest.fixture(params=SAMPLERS)
def name(request):
    return request.param


@pytest.fixture
def family():
    return "flux1"


@pytest.fixture
def sampler(name, family, made):
    return made(sampler_class(name, family))


@pytest.fixture(scope="session")
def usual(made, quick, seeded):
    """`usual(name, family)`: the image of `sample()` of a sampler, [1, 3, H, W] in [0, 1], made once."""

    @functools.cache
    def make(name, family):
        cls = sampler_class(name, family)
        usual = {**quick(name, cls), "generator": seeded(), "output_type": "pt"}
        return made(cls)("a red house", **usual).images

    return make


@pytest.fixture
def sample(name, sampler, quick, seeded):
    """A short call of the sampler, seed 0; keywords change it."""
    usual = quick(name, type(sampler))
    return lambda prompt="a red house", **more: sampler(prompt, **{**usual, "generator": seeded(), **more})
