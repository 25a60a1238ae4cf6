"""RealUHR's patch cascade: a base image is enlarged, and generated again patch by patch in a few steps.

No code of RealUHR was published; `PatchCascadeOptions` marks what the paper leaves open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from uhr.base.errors import UserError
from uhr.models.ops.patches.grid import Box, grid
from uhr.models.ops.sizes import Size
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import UpperGuidance, guided_plan
from uhr.models.samplers.core.options import SamplerOptions
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import (
    BackboneCalls,
    SamplingPlan,
    SamplingRequest,
    SamplingStage,
    VaeCall,
    with_vae_calls,
)
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.size_rule import SizeRule
from uhr.models.samplers.core.stages import model_base, text_tokens

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.conditioning import Conditions
    from uhr.models.samplers.core.engine import Engine, Strip, Velocity

UNADAPTED = (
    "unadapted: no adapter acts on the patches, which the unchanged checkpoint generates. RealUHR's weights "
    "were never published; give an adapter that was trained for patches with --adapter"
)


class PatchCascadeOptions(SamplerOptions):
    """Options of patch-cascade.

    gamma:          noise level at which patches begin: at 0.3 the result stays close to the base, at 0.8 much
                    of it is new (figure 7). The paper gives no default for text to image; 0.4 is ours. 1
                    starts from pure noise, the ablation "w/o Patch Init" (table 3)
    schedule:       schedule of the patches (`schedules.patch_schedule`): warped-labels is Algorithm 1,
                    warped-grid the paper's prose; uniform, logarithmic, cosine are its ablation (table 2)
    alpha, p:       parameters of the time warp (eq. 6); the paper's best
    overlap:        smallest overlap of neighbouring patches, as a share of a patch's side. It is also the
                    width of the feather. The paper does not give it; its times of 38 s at 2K and 108 s at
                    4K (table 1), as a constant and a time per patch, allow 37 to 50 %. Ours is 0.375, which
                    makes 9 and 36 patches; 0.5 makes 9 and 49
    patch:          side of a patch in px; None is the native size
    batch:          patches in one pass of the backbone; it changes nothing but rounding
    shared_noise:   patches are cut from one noise image, so that neighbours agree where they overlap. Not in
                    the paper; without it every patch draws its own
    true_cfg_scale: guidance scale w of the patches. Above 1 it needs a negative prompt ("" is the null
                    condition) and doubles their calls; at 1 there is one pass. The paper does not say
                    whether inference is guided
    patch_guidance: guidance of the patches on a backbone that embeds it. 1.0 is no guidance: our adapters
                    are trained with it (the paper only says that theta does not depend on it). If an image
                    is given, the guidance of the call applies to the patches instead
    base_adapters:  adapters that also act on the base pass: names, or "all". By default the original model
                    generates it, and adapters are for the patches
    base_steps:     steps of the base pass; None is the number of the model's card
    """

    gamma: float = Field(default=0.4, gt=0, le=1)
    schedule: str = "warped-labels"
    alpha: float = 0.15
    p: float = 2.0
    overlap: float = Field(default=0.375, ge=0, lt=1)
    patch: int | None = Field(default=None, gt=0)
    batch: int = Field(default=1, gt=0)
    shared_noise: bool = True
    patch_guidance: float = 1.0
    base_adapters: tuple[str, ...] | Literal["all"] = ()
    base_steps: int | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class PatchStage(SamplingStage):
    """A stage that takes every patch through the same steps.

    `sigmas` are the true noise levels, `labels` [steps] those shown to the backbone. `boxes` are in px, all
    of one size, ordered by their top, and neighbours overlap by at least `overlap` px; `batch` of them share
    a pass.
    """

    overlap: int = 0
    batch: int = 1

    @property
    def rounds(self) -> int:
        return -(-len(self.boxes) // self.batch)

    @property
    def patch(self) -> Size:
        return self.boxes[0].height, self.boxes[0].width

    def describe(self) -> dict[str, Any]:
        more = {"labels": list(self.labels), "patch": list(self.patch), "overlap": self.overlap}
        return {**super().describe(), **more}


class PatchCascade(Sampler):
    """RealUHR's inference (figure 3, Algorithm 1): text to image, creative up-sampling of any image by
    `gamma`, and, at scale 1, suppression of artifacts.

    The model without its adapters generates a base at its native area. It is enlarged in pixels (bicubic) and
    cut into overlapping patches of the native size. Each patch is encoded (the posterior's mode), noised to
    level gamma (eq. 5), denoised in 4 Euler steps with its own positions from 0, decoded, and blended into
    its neighbours by a Gaussian ramp. Published for FLUX.1-dev: base at guidance 3.5. Calls: the base's (28),
    and patches x steps (36 x 4 at 4K), twice that if the patches are guided.

    Differences to the paper: the enlarged image is cut, instead of enlarging each cut, so that no cut has
    borders of its own; patches share one noise image. Memory grows only by the image itself (1 byte per value
    for PIL, else 4), the noise, and one row of patches. A fully fine-tuned patch model would also generate
    the base: instead generate it by `euler` with the original, and give it as `image`.

    An input image may have any size, and the result has exactly `scale` times its sides, rounded (4 by
    default, as in figure 7); it needs no guidance. Steps are those of each patch. "pt" is on the CPU,
    "latent" is the finished image encoded again, since patches are blended in pixels. The callback gets the
    latents of the current patches, [patches * batch, N, 4C]. If interrupted, positions without a finished
    patch show the enlargement.
    """

    Options = PatchCascadeOptions
    published_steps = 4
    fits_images = True
    image_scale = 4.0
    runs_on_when_interrupted = True

    def sizes(self, facts: ModelFacts, options: Any) -> SizeRule:
        return SizeRule.multiples(facts.multiple, least=options.patch or facts.native)

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        patches, kind = patch_stage(facts, request, options), facts.guidance
        stages = [patches] if request.image else [model_base(facts, request, options.base_steps), patches]
        coded = [(VaeCall("decode", *stage.size),) for stage in stages[:-1]]
        count = len(patches.boxes)
        parts = (VaeCall("encode", *patches.patch, count), VaeCall("decode", *patches.patch, count))
        plan = guided_plan(
            facts,
            request,
            options,
            with_vae_calls(stages, [*coded, parts]),
            _guidance(facts, options),
            # here true_cfg_scale applies to the patches on every backbone
            true_cfg=1.0 if kind == "cfg" else options.true_cfg_scale,
        )
        if not plan.has_base or kind == "cfg":
            return plan
        base, last = plan.stages
        return replace(plan, stages=(replace(base, branches=1), last))

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor | Strip]:
        from uhr.models.samplers.core.passes import base_pass

        image, options = engine.image, plan.options
        engine.record.notes = [] if plan.facts.adapters else [UNADAPTED]
        if image is None:
            with _original(engine, options) as changes_text:
                prompts = engine.models.encode_prompts() if changes_text else None
                z = base_pass(engine, plan.stages[0], prompts=prompts)
            yield z
            image = engine.decode(z)
        assert isinstance(plan.last, PatchStage)
        yield from _patches(engine, plan, plan.last, image)


def patch_stage(facts: ModelFacts, request: SamplingRequest, options: PatchCascadeOptions) -> PatchStage:
    """Return the patches of an image of the requested size. Along a side shorter than a patch, patches are as
    short. Raises UserError if both sides are shorter, or the patch is not a multiple of the tokens' size."""
    from uhr.models.ops import schedules

    patch, multiple, (height, width) = options.patch or facts.native, facts.multiple, request.size
    if patch % multiple:
        near = max(multiple, patch // multiple * multiple)
        raise UserError(f"patches of {patch} px", f"give a multiple of {multiple}, such as {near}")
    if max(height, width) < patch:
        fix = f"use a larger size, or set patch={max(height, width)}"
        raise UserError(f"an image of {width}x{height} is smaller than one patch of {patch} px", fix)
    overlap = round(options.overlap * patch / multiple) * multiple
    boxes = grid(height, width, patch, overlap, multiple)
    levels = schedules.patch_schedule(
        options.schedule, request.steps, options.gamma, options.alpha, options.p
    )
    size = boxes[0].height, boxes[0].width
    calls = BackboneCalls(
        request.steps * len(boxes),
        facts.tokens(size),
        text_tokens(facts, request),
        together=min(options.batch, len(boxes)),
    )
    return PatchStage(
        "patches",
        height,
        width,
        tuple(levels.sigmas.tolist()),
        calls=(calls,),
        labels=tuple(levels.labels.tolist()),
        boxes=tuple(boxes),
        overlap=overlap,
        batch=options.batch,
    )


def _guidance(facts: ModelFacts, options: PatchCascadeOptions) -> UpperGuidance:
    """The guidance of the patches; 1, which is no guidance, counts as not given."""
    if options.patch_guidance != 1 and facts.guidance != "embedded":
        what = f"patch_guidance {options.patch_guidance:g} is given, and this backbone embeds no guidance"
        raise UserError(what, "leave it out; true_cfg_scale guides the patches")
    if facts.guidance == "none":
        return UpperGuidance()
    name = "patch_guidance" if facts.guidance == "embedded" else "true_cfg_scale"
    number = getattr(options, name)
    return UpperGuidance(name, () if number == 1 else (number,), published=(1.0,))


@contextlib.contextmanager
def _original(engine: Engine, options: PatchCascadeOptions) -> Generator[bool]:
    """Turn off the adapters that are only for the patches, for a block; yields whether that changes the
    embeddings of the text encoder."""
    from uhr.models.adapters import peft_layers
    from uhr.models.adapters.silence import only

    kept, encoder = options.base_adapters, engine.models.text_encoder
    if kept == "all":
        yield False
        return
    models = [engine.models.transformer] if encoder is None else [engine.models.transformer, encoder]
    changes_text = encoder is not None and not set(peft_layers.active(encoder)) <= set(kept)
    with only(models, kept):
        yield changes_text


def _patches(engine: Engine, plan: SamplingPlan, stage: PatchStage, image: torch.Tensor) -> Generator[Strip]:
    """Yield strips of the finished image, from the base image [B, 3, h, w] in [-1, 1]."""
    import torch

    from uhr.models.ops.patches.grid import feather
    from uhr.models.ops.patches.strips import StripCanvas
    from uhr.models.samplers.core.engine import Strip

    shared_noise, target = plan.options.shared_noise, plan.request.target
    if engine.noise.given is not None and not shared_noise:
        raise UserError("latents are given, and every patch draws its own noise", "set shared_noise=True")
    engine.record.begin(stage)
    shared, finished = engine.draw_noise(stage) if shared_noise else None, []
    canvas = StripCanvas(engine.batch, 3, stage.width, lambda top, rows: finished.append(Strip(top, rows)))
    with engine.network(stage) as velocity:
        for first in range(0, len(stage.boxes), stage.batch):
            boxes = stage.boxes[first : first + stage.batch]
            anchors = torch.cat([_anchor(image, target, stage.size, box) for box in boxes])
            patches = anchors
            if not engine.interrupted:
                patches = _denoised(engine, stage, velocity, boxes, anchors, shared)
            for box, patch in zip(boxes, patches.chunk(len(boxes)), strict=True):
                canvas.add(box, patch, feather(box, *stage.size, stage.overlap))
            yield from finished
            finished.clear()
    canvas.finish()
    yield from finished


def _denoised(
    engine: Engine,
    stage: PatchStage,
    velocity: Velocity,
    boxes: Sequence[Box],
    anchors: torch.Tensor,
    shared: torch.Tensor | None,
) -> torch.Tensor:
    """Return generated patches [patches * B, 3, h, w] for those of the enlarged image, or these if
    interrupted."""
    import torch

    from uhr.models.ops import flow
    from uhr.models.samplers.core.conditioning import tiled_batch

    noise = torch.cat([_noise_of(engine, box, shared) for box in boxes])
    z = flow.interpolate(engine.encode(anchors), noise, stage.sigmas[0])
    steps = 0

    def counted(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return velocity(z, sigma, step, conditions)

    z = engine.integrate(stage, z, counted, tiled_batch(engine.conditions(stage), len(boxes)))
    return anchors if steps < stage.steps else engine.decode(z)


def _noise_of(engine: Engine, box: Box, shared: torch.Tensor | None) -> torch.Tensor:
    if shared is None:
        return engine.noise.draw(engine.batch, (box.height, box.width))
    factor = engine.facts.vae_factor
    return Box(*(side // factor for side in (box.top, box.left, box.height, box.width))).crop(shared)


def _anchor(image: torch.Tensor, target: Size, padded: Size, box: Box) -> torch.Tensor:
    """The part in `box` of an image [B, 3, h, w] that is enlarged to `target` and padded to `padded`."""
    from uhr.models.ops.enlarge import bicubic_at, reflected

    rows = reflected(target[0], padded[0])[box.top : box.bottom]
    columns = reflected(target[1], padded[1])[box.left : box.right]
    return bicubic_at(image, target, rows, columns)


__getattr__ = pipelines_of(PatchCascade)
