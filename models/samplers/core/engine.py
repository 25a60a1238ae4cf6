"""The engine of a run: it has the models of a call, and the operations of samplers that need them.

Shapes: z [B, C, H, W] are model latents on the VAE's grid, tokens [B, N, 4C] are these latents packed by 2 x
2 patches, images [B, 3, H, W] are in [-1, 1]. Latents between steps and position ids are float32, whatever
the backbone's dtype is.

A sampler can wrap two functions:

    Call(tokens, sigma, condition, branch)       one call of the backbone, below guidance
    Velocity(z, sigma, step, conditions)         the guided velocity (noise - data), above it
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from pydantic import ByteSize

from uhr.base.errors import UserError
from uhr.models.families.base import Backbone
from uhr.models.families.conditions import Condition
from uhr.models.ops import flow
from uhr.models.ops import latents as latent
from uhr.models.ops.filters import ENLARGEMENTS, sharpen
from uhr.models.ops.sizes import Size, check_sides
from uhr.models.samplers.core.conditioning import Conditions
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.plan import SamplingPlan, SamplingStage
from uhr.models.samplers.core.progress import Progress, Steps
from uhr.models.surgery import base as surgery
from uhr.models.surgery.base import Surgery
from uhr.models.vae import codec
from uhr.models.vae.f16 import vae_factor
from uhr.models.vae.tiled import ExactTiling

Call = Callable[[torch.Tensor, float, Condition, str], torch.Tensor]
"""`call(tokens, sigma, condition, branch)`: float32, of the tokens' shape. `branch` is "cond" or "uncond"."""

Velocity = Callable[[torch.Tensor, float, int, Conditions], torch.Tensor]
"""`velocity(z, sigma, step, conditions)` at z of noise level sigma: of z's shape."""

POSITIONS = "transformer.pos_embed"
"""The place (`Surgery.edits`) that is edited by every surgery that scales positions."""


@dataclass(frozen=True)
class Strip:
    """Finished rows of the result from row `top` on: float32 [B, 3, h, W] in [-1, 1], on the CPU."""

    top: int
    rows: torch.Tensor


@dataclass(frozen=True)
class Models:
    """The models of a call. `encode_prompts` encodes its prompts each time it is called; `attention` are the
    user's arguments for the attention processors."""

    family: Backbone
    transformer: Any
    vae: Any
    text_encoder: Any
    device: torch.device
    encode_prompts: Callable[[], Conditions]
    attention: dict[str, Any] | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    """Objects that samplers keep between the calls of one pipeline, by name, such as masks that are slow to
    build."""


class Noise:
    """The noise of a call: standard normal latents. The first stage takes the latents that the user gave, if
    any; all other noise is drawn.

    They are drawn in float32 and in the stock pipeline's order, so a seed gives the same noise in any dtype.
    """

    def __init__(self, models: Models, facts: ModelFacts, generator: Any, given: torch.Tensor | None) -> None:
        self._models, self._facts, self.generator, self.given = models, facts, generator, given

    def draw(self, batch: int, size: Size) -> torch.Tensor:
        """Draw z for `batch` images of `size` px: float32 [B, C, H/f, W/f], where f is the VAE's factor."""
        rows, columns = (side // self._facts.vae_factor for side in size)
        channels = self._models.transformer.config.in_channels // 4
        shape = self._models.family.noise_shape(channels, rows, columns)
        drawn = randn_tensor(
            (batch, *shape), generator=self.generator, device=self._models.device, dtype=torch.float32
        )
        if shape[1:] == (rows, columns):
            return drawn
        return latent.unpack(drawn.flatten(2).transpose(1, 2), rows, columns)

    def first(self, batch: int, size: Size) -> torch.Tensor:
        """Return z for the start of a stage: the given noise at the first call, drawn noise after that.
        Raises UserError if the given noise does not have the shape of the stage."""
        given, self.given = self.given, None
        if given is None:
            return self.draw(batch, size)
        rows, columns = self._facts.grid(size)
        if given.ndim != 3 or given.shape[:2] != (batch, rows * columns):
            shape = f"[{batch}, {rows * columns}, 4C]"
            what = f"latents of shape {list(given.shape)} do not fit"
            raise UserError(what, f"give packed noise of shape {shape}")
        return latent.unpack(given.to(self._models.device, torch.float32), 2 * rows, 2 * columns)


class Engine:
    """The models of one call, its prompts, noise and image, and the operations of samplers on them."""

    def __init__(
        self,
        models: Models,
        plan: SamplingPlan,
        noise: Noise,
        progress: Progress,
        steps: Steps,
        image: torch.Tensor | None = None,
    ) -> None:
        """`image` is [b, 3, h, w] in [-1, 1]: one for all prompts or one for each."""
        self.models, self.plan, self.facts = models, plan, plan.facts
        self.noise, self.progress, self.record = noise, progress, progress.record
        self._steps = steps
        self.prompts = models.encode_prompts()
        self.record.token_counts = self.prompts.counts
        self.batch = self.prompts.positive.text.shape[0]
        generator = noise.generator
        if isinstance(generator, list) and len(generator) != self.batch:
            what = f"{len(generator)} generators for {self.batch} images"
            raise UserError(what, "give one, or one for each")
        self.image = None if image is None else for_each(image, self.batch)

    @property
    def interrupted(self) -> bool:
        """Whether the user has interrupted the run by `pipeline._interrupt`."""
        return self._steps.interrupted()

    # latents

    def grid(self, size: Size) -> tuple[int, int]:
        """Return the rows and columns of image tokens of a size in px. Raises UserError unless they are whole
        numbers."""
        check_sides(self.facts.multiple, *size)
        return self.facts.grid(size)

    def latent_size(self, size: Size) -> Size:
        """Return the height and width of z for a size in px."""
        return size[0] // self.facts.vae_factor, size[1] // self.facts.vae_factor

    def draw_noise(self, stage: SamplingStage) -> torch.Tensor:
        """Return standard normal z for a stage: the noise that the user gave at the first call, drawn noise
        after that."""
        return self.noise.first(self.batch, stage.size)

    @torch.no_grad()
    def encode(self, images: torch.Tensor, generator: Any = None) -> torch.Tensor:
        """Encode images to z, float32: the posterior's mean, or with a generator a sample of it."""
        mean, std = codec.moments(self.models.vae, images)
        if generator is not None:
            draw = randn_tensor(mean.shape, generator=generator, device=mean.device, dtype=torch.float32)
            mean = latent.sample_moments(mean, std, draw)
        return latent.normalisation(self.models.vae).to_model(mean).to(self.models.device)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Decode z to images, float32, nominally in [-1, 1]. Raises UserError for values that are not
        finite."""
        self.progress.note("decoding")
        images = codec.decode(self.models.vae, z)
        flow.check_finite(images, "decoding: the pixels of the VAE")
        return images

    def enlarge(
        self,
        images: torch.Tensor,
        size: Size,
        sharpening: float | None = None,
        generator: Any = None,
        by: str = "bicubic",
    ) -> torch.Tensor:
        """Resize images to a size in px, sharpen and encode them; return z.

        Args:
            sharpening: sigma of the unsharp mask's Gaussian, in px; None does not sharpen.
            generator: None encodes to the posterior's mean, otherwise a sample of it is drawn.
            by: a name of `filters.ENLARGEMENTS`.
        """
        large = ENLARGEMENTS[by](images, *size)
        return self.encode(large if sharpening is None else sharpen(large, sharpening), generator)

    # the backbone

    def call(self, tokens: torch.Tensor, sigma: float, condition: Condition, branch: str) -> torch.Tensor:
        """Return the backbone's velocity at tokens of noise level sigma, and count the call. diffusers' step
        caches keep the calls of different `branch` names apart."""
        level = torch.full((tokens.shape[0],), sigma, dtype=torch.float32, device=tokens.device)
        with self.models.transformer.cache_context(branch):
            found = self.models.family.call(
                self.models.transformer, tokens, level, condition, self.models.attention
            )
        self.progress.calls(tokens.shape[0] // self.batch)
        return found

    @contextlib.contextmanager
    def network(
        self, stage: SamplingStage, call: Call | None = None, alone: str | None = None
    ) -> Generator[Velocity]:
        """Apply a stage's surgeries to the transformer for a block, and yield the guided velocity.

        The velocity takes z of any even size, with positions counted from 0.

        Args:
            call: replaces `self.call`, which it may wrap.
            alone: the options that turn the scaling of positions off, for the error if a surgery on the
                transformer scales them already; None does not check.
        """
        call = call or self.call
        if alone is not None:
            self._check_positions(stage.surgeries, alone)
        with self.surgeries(self.models.transformer, stage.surgeries):

            def velocity(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
                rows, columns = z.shape[-2] // 2, z.shape[-1] // 2
                ids = self.models.family.image_ids(rows, columns, device=self.models.device)
                shown = stage.label(step, sigma)
                tokens = guided(call, latent.pack(z), shown, conditions.at(ids))
                return latent.unpack(tokens, 2 * rows, 2 * columns)

            yield velocity

    @contextlib.contextmanager
    def surgeries(self, model: Any, needed: Sequence[Surgery], record_all: bool = False) -> Generator[None]:
        """Apply surgeries for a block, unless they are already on the model, and add them to the record. With
        `record_all`, add all surgeries that are on the model."""
        applied = surgery.applied(model)
        with surgery.temporarily(model, *(each for each in needed if each not in applied)):
            self.record.add_surgeries(surgery.applied(model) if record_all else needed)
            yield

    def _check_positions(self, needed: Sequence[Surgery], alone: str) -> None:
        """Raise UserError if another surgery scales positions already: the two would not add up."""
        scaling = [each for each in needed if POSITIONS in each.edits]
        applied = [each for each in surgery.applied(self.models.transformer) if POSITIONS in each.edits]
        if scaling and applied and applied[0] != scaling[0]:
            what = f"the positions are already scaled by '{applied[0].key}'"
            raise UserError(what, f"keep it and set {alone}, or revert it")

    def conditions(self, stage: SamplingStage, prompts: Conditions | None = None) -> Conditions:
        """Return the conditioning of a stage; `prompts` None are the call's."""
        grid = self.facts.grid(stage.size)
        return (prompts or self.prompts).of_stage(stage, self.facts.guidance, grid)

    # steps

    def integrate(
        self,
        stage: SamplingStage,
        z: torch.Tensor,
        velocity: Velocity,
        conditions: Conditions | None = None,
    ) -> torch.Tensor:
        """Integrate a stage from z over its noise levels by Euler steps, and return the last z.

        `conditions` None takes the conditioning of the stage. The step callback may replace the latents and
        the prompt embeddings, and the run may be interrupted. Raises UserError for latents that are not
        finite.
        """
        size = z.shape[-2], z.shape[-1]
        self.record.begin(stage)
        self.record.sigmas = stage.sigmas
        now = conditions or self.conditions(stage)

        def follow(tokens: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
            self._steps.begin(sigma)
            return latent.pack(velocity(latent.unpack(tokens, *size), sigma, step, now))

        def after(step: int, tokens: torch.Tensor) -> torch.Tensor:
            nonlocal now
            tensors = {"latents": tokens, "prompt_embeds": now.positive.text}
            changed = self._steps.end(step, stage.sigmas[step], tensors)
            text = changed.get("prompt_embeds", now.positive.text)
            now = replace(now, positive=replace(now.positive, text=text))
            return changed.get("latents", tokens)

        self._steps.start(stage.steps)
        tokens = flow.euler(follow, latent.pack(z), stage.sigmas, after, stop=self._steps.interrupted)
        flow.check_finite(tokens, f"stage {stage.name}: its latents")
        self._steps.finish(stage.steps)
        return latent.unpack(tokens, *size)

    # the whole call

    @contextlib.contextmanager
    def exact_vae(self, memory: int) -> Generator[None]:
        """Apply the plan's surgeries to the VAE for a block, and exact tiling in `memory` bytes, unless the
        VAE is already tiled or absent."""
        vae, needed = self.models.vae, self.plan.vae_surgeries
        if vae is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            if needed:
                stack.enter_context(self.surgeries(vae, needed, record_all=True))
                assert vae_factor(vae) == self.facts.vae_factor, vae_factor(vae)
            tiled = any("vae._encode" in each.edits for each in surgery.applied(vae))
            if not tiled and not getattr(vae, "use_tiling", False):
                tiling = ExactTiling(memory=ByteSize(memory))
                stack.enter_context(surgery.temporarily(vae, tiling))
                self.record.add_surgeries([tiling])
            yield


def guided(call: Call, tokens: torch.Tensor, sigma: float, conditions: Conditions) -> torch.Tensor:
    """Return the guided velocity. Without a negative prompt it is the result of one call; with one, of two
    calls: v_negative + scale * (v_positive - v_negative)."""
    positive = call(tokens, sigma, conditions.positive, "cond")
    if conditions.negative is None:
        return positive
    negative = call(tokens, sigma, conditions.negative, "uncond")
    return negative + conditions.scale * (positive - negative)


def for_each(images: torch.Tensor, batch: int) -> torch.Tensor:
    """Repeat images [b, 3, h, w] for `batch` prompts. Raises UserError unless b divides `batch`."""
    if batch % len(images):
        raise UserError(f"{len(images)} images for {batch} prompts", "give one, or one for each")
    return images.repeat_interleave(batch // len(images), dim=0)
