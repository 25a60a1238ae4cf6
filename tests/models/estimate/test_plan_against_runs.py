"""What a plan says of a call is what the call then does: every pass of the backbone and of the VAE, and every
operation, on the real classes at tiny size."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import sdpa_flop_count

from uhr.models import zoo
from uhr.models.estimate.plan import plan
from uhr.models.generate.request import Item, Request
from uhr.models.samplers import sampler_class

SPECS = ("tiny-flux1", "tiny-flux2", "tiny-flux2-base")

CASES = [
    ("euler", 2, {}, 128),
    ("euler", 2, {"toolkit": {"text_duplication": True}}, 256),
    ("sdedit", 4, {"base_steps": 2}, 128),
    ("multidiffusion", 2, {}, 128),
    ("multidiffusion", 4, {"strength": 0.5, "base_steps": 1}, 96),
    ("demofusion", 1, {}, 192),
    ("imax", 3, {}, 128),
    ("imax", 2, {"swin": False, "base_steps": 1, "toolkit": {}}, 128),
    ("hiflow", 6, {}, 256),
    ("hiflow", 4, {"preset": "code"}, 128),
    ("hiflow", 4, {"preset": "code", "reference": "pixels"}, 128),
    ("ultragen", 3, {"base_steps": 1}, 256),
    ("ultragen", 3, {"base_steps": 1, "warm_start": "latents", "skip": 1}, 384),
    ("ultragen", 2, {"base_steps": 1, "cached": False, "skip": 0, "projection": "decay"}, 128),
    ("ultragen", 2, {"base_steps": 1, "guide": False, "skip": 1}, 128),
    ("patch-cascade", 2, {"base_steps": 1}, 128),
    ("patch-cascade", 1, {"base_steps": 1, "batch": 2}, 96),
    ("ultraflux", 2, {}, 256),
]
"""Sampler, steps, options, and the side in px: that of `WHOLE`, or twice the native one or more."""

WHOLE = ("euler", "ultraflux")
"""Samplers whose calls are of the model's own native size; those of the others of half of it."""


FIRST = [next(case for case in CASES if case[0] == name) for name in dict.fromkeys(c[0] for c in CASES)]
"""One of each sampler."""


@pytest.fixture(scope="module")
def folders(tiny_flux, tiny_flux2, tmp_path_factory):
    base = zoo.make_tiny("tiny-flux2-base", tmp_path_factory.mktemp("base") / "tiny base", seed=0)
    return dict(zip(SPECS, (tiny_flux, tiny_flux2, base), strict=True))


@pytest.fixture(scope="module")
def pipelines(folders):
    """A maker of pipelines by sampler and spec; those of a spec share its components."""
    loaded = {}

    def make(sampler, spec):
        cls = sampler_class(sampler, zoo.get(spec).family)
        if spec not in loaded:
            loaded[spec] = zoo.load_pipeline(folders[spec], pipeline_class=cls).components
        found = cls(**loaded[spec], **zoo.get(spec).pipeline_config)
        found.set_progress_bar_config(disable=True)
        return found

    return make


@pytest.fixture
def image(tmp_path):
    """An image of 64 x 64 px, as a file."""
    draw = np.random.default_rng(0)
    path = tmp_path / "given.png"
    Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(autouse=True)
def prompts(request):
    """Short ones, but for the calls of `WHOLE`."""
    case = getattr(request.node, "callspec", None)
    if case is not None and case.params["sampler"] not in WHOLE:
        request.getfixturevalue("short_prompts")


def small(sampler, options):
    return options if sampler in WHOLE else {"native_size": 64, **options}


PRODUCTS = (linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm)


def shapes(query, key, value, *rest, **more):
    return query.shape, key.shape, value.shape


class Flops(TorchFunctionMode):
    """Counts operations, function by function. torch's FlopCounterMode sees every operator inside of them,
    which takes most of a tiny model's time."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is scaled_dot_product_attention:
            self.total += sdpa_flop_count(*shapes(*args, **(kwargs or {})))
        elif func in PRODUCTS:
            self.total += 2 * found.numel() * args[0].shape[-1]
        return found


class Watched:
    """What a pipeline's models are called with: (samples, image tokens, text tokens) of the backbone, and
    (part, height, width in px) of the VAE."""

    def __init__(self, pipeline, monkeypatch):
        self.backbone, self.coded, self.flops = Counter(), Counter(), 0
        forward = pipeline.transformer.forward

        def watched(*args, **kwargs):
            image, text = kwargs["hidden_states"].shape, kwargs["encoder_hidden_states"].shape
            self.backbone[image[0], image[1], text[1]] += 1
            with Flops() as counter:
                found = forward(*args, **kwargs)
            self.flops += counter.total
            return found

        monkeypatch.setattr(pipeline.transformer, "forward", watched)
        for part in ("encode", "decode"):
            self._watch(pipeline, part, monkeypatch)

    def _watch(self, pipeline, part, monkeypatch):
        run = getattr(pipeline.vae, part)

        def watched(x, *args, **kwargs):
            factor = 1 if part == "encode" else pipeline.facts.vae_factor
            self.coded[part, factor * x.shape[-2], factor * x.shape[-1]] += len(x)
            return run(x, *args, **kwargs)

        monkeypatch.setattr(pipeline.vae, part, watched)


def planned(found):
    """The same of a plan. Patches that share a batch are one call there for each."""
    backbone, coded = Counter(), Counter()
    for stage in found.stages:
        for each in stage.stage.calls:
            backbone[each.image, each.text] += stage.stage.branches * each.count
        for call in stage.stage.vae_calls:
            coded[call.part, call.height, call.width] += call.count
    return backbone, coded


def check(pipeline, request, item, monkeypatch, image=None):
    found = plan(request, item)
    call = found.call
    watched = Watched(pipeline, monkeypatch)
    pipeline(
        item.prompt,
        negative_prompt=item.negative,
        height=call.planned[0],
        width=call.planned[1],
        num_inference_steps=call.steps,
        guidance_scale=call.guidance,
        generator=torch.Generator().manual_seed(0),
        **({} if image is None else {"image": image}),
        **found.choice.options.model_dump(),
    )
    backbone, coded = planned(found)
    assert pipeline.model_calls == found.model_calls
    seen = Counter()
    for (samples, tokens, text), times in watched.backbone.items():
        seen[tokens, text] += samples * times
    assert seen == backbone
    assert watched.coded == coded
    assert watched.flops == sum(stage.backbone.total for stage in found.stages)


@pytest.mark.parametrize(
    ("spec", "sampler", "steps", "options", "side"),
    [*(("tiny-flux1", *case) for case in CASES), *(("tiny-flux2", *case) for case in FIRST)],
)
def test_a_run_does_what_its_plan_says(spec, sampler, steps, options, side, pipelines, folders, monkeypatch):
    request = Request(
        sampler=sampler,
        model=str(folders[spec]),
        size=(side, side),
        steps=steps,
        options=small(sampler, options),
    )
    check(pipelines(sampler, spec), request, Item(prompt="a lake"), monkeypatch)


@pytest.mark.parametrize(
    ("sampler", "steps", "options"),
    [
        ("sdedit", 4, {}),
        ("multidiffusion", 4, {"strength": 0.5}),
        ("demofusion", 2, {}),
        ("imax", 2, {}),
        ("hiflow", 4, {}),
        ("hiflow", 4, {"preset": "code", "reference": "pixels"}),
        ("ultragen", 3, {}),
        ("ultragen", 3, {"warm_start": "latents"}),
        ("ultragen", 3, {"guide": False, "warm_start": "latents"}),
        ("patch-cascade", 2, {}),
    ],
)
def test_a_run_on_a_given_image_does_what_its_plan_says(
    sampler, steps, options, image, pipelines, folders, monkeypatch
):
    request = Request(
        sampler=sampler,
        model=str(folders["tiny-flux1"]),
        scale=2,
        steps=steps,
        options=small(sampler, options),
    )
    item = Item(prompt="a lake", image=image)
    check(pipelines(sampler, "tiny-flux1"), request, item, monkeypatch, Image.open(image))


@pytest.mark.parametrize(
    ("sampler", "options", "guidance", "negative", "spec"),
    [
        ("imax", {"true_cfg_scale": 2.0}, None, "dull", "tiny-flux1"),
        ("imax", {}, 1.0, None, "tiny-flux2-base"),
        ("demofusion", {}, None, None, "tiny-flux2-base"),
        # one pass for the base, two at the published 8
        ("ultragen", {"base_steps": 1}, 1.0, None, "tiny-flux2-base"),
        ("ultragen", {"base_steps": 1}, None, "dull", "tiny-flux2-base"),
        ("patch-cascade", {"base_steps": 1, "true_cfg_scale": 2.0}, None, "", "tiny-flux1"),
        ("patch-cascade", {"base_steps": 1, "true_cfg_scale": 2.0}, None, None, "tiny-flux2-base"),
        ("patch-cascade", {"base_steps": 1}, 1.0, None, "tiny-flux2-base"),
        ("patch-cascade", {"base_steps": 1, "true_cfg_scale": 2.0}, None, "", "tiny-flux2"),
    ],
)
def test_guidance_of_two_passes_is_planned_as_it_is_run(
    sampler, options, guidance, negative, spec, pipelines, folders, monkeypatch
):
    request = Request(
        sampler=sampler,
        model=str(folders[spec]),
        size=(128, 128),
        steps=1 if sampler in ("demofusion", "patch-cascade") else 2,
        guidance=guidance,
        options=small(sampler, options),
    )
    item = Item(prompt="a lake", negative=negative)
    check(pipelines(sampler, spec), request, item, monkeypatch)


def test_every_sampler_is_among_the_cases():
    from uhr.models.samplers import SAMPLERS

    assert {case[0] for case in CASES} == set(SAMPLERS)
