"""RealUHR's patch cascade: a base picture, enlarged, and painted anew patch by patch in a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uhr.base.errors import UserError
from uhr.models.costs.work import Calls, Coding
from uhr.models.fitting import target_size
from uhr.models.patch_plan import USUAL_SCALE, PatchCascadeOptions, PatchStage, patch_stage
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.passes import Job
from uhr.models.samplers.patch_pass import PatchPass
from uhr.models.sizes import Size, up_to
from uhr.models.spec import GuidanceKind, ModelSpec
from uhr.models.stages import Ask, Stage


class PatchCascade(PatchPass):
    """RealUHR's inference (figure 3, Algorithm 1): text to image, creative up-sampling of any picture by
    `gamma`, and, at scale 1, suppression of artifacts.

    The base is made by the model without its adapters at its native area, enlarged in pixels (bicubic), cut
    into overlapping patches of the native size, and each of them encoded (the posterior's mode), noised to
    level gamma (eq. 5), painted in 4 Euler steps at positions of its own from 0, decoded, and blended into
    its neighbours by a Gaussian ramp. Published for FLUX.1-dev: base at guidance 3.5. Calls: the base's
    (28), and patches x steps (36 x 4 at 4K), twice that where the patches are guided.

    Differences to the paper: the enlarged picture is cut, not each cut enlarged, so that no cut has borders
    of its own; patches share one noise. Memory does not grow with the picture but by the picture itself (1
    byte a value for PIL, else 4), the noise, and one row of patches. A fully fine-tuned patch model would
    make its own base, too: make that by `euler` with the original, and give it as `image`.

    A given picture may have any size, and the result has exactly `scale` times its sides, rounded (4 as in
    figure 7 if nothing is said); it needs no guidance. Steps are those of each patch. "pt" lies on the CPU,
    "latent" is the finished picture encoded again, since patches are blended in pixels. The callback is shown
    the latents of the patches at hand, [patches * batch, N, 4C]. If interrupted, places that are not painted
    yet stay as the enlargement shows them.
    """

    Options = PatchCascadeOptions
    published_steps = 4
    fits_pictures = True

    @classmethod
    def default_scale(cls) -> float:
        return USUAL_SCALE

    @classmethod
    def patch(cls, spec: ModelSpec, options: Any) -> int:
        return options.patch or super().patch(spec, options)

    @classmethod
    def guidance_option(cls, kind: GuidanceKind, options: Any, index: int = 0) -> tuple[str, Any] | None:
        """Of the patches: 1, which is no guidance, is as good as unsaid."""
        name = "patch_guidance" if kind == "embedded" else "true_cfg_scale"
        number = getattr(options, name)
        return None if number == 1 or kind == "none" else (name, number)

    @classmethod
    def guidance_above(cls, kind: GuidanceKind, options: Any, index: int) -> float | None:
        return None if kind == "none" else 1.0

    @classmethod
    def check_options(cls, options: Any, kind: GuidanceKind) -> None:
        if options.patch_guidance != 1 and kind != "embedded":
            what = f"patch_guidance {options.patch_guidance:g} is given, and this backbone embeds no guidance"
            raise UserError(what, "leave it out; true_cfg_scale guides the patches")

    @classmethod
    def check_passes(
        cls, kind: GuidanceKind, true_cfg: float, told: Sequence[float | None], negative: bool
    ) -> None:
        """Here true_cfg_scale is of the patches, whatever the backbone."""
        super().check_passes(kind, 1.0 if kind == "cfg" else true_cfg, told, negative)

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        if not isinstance(stage, PatchStage):
            return super().calls(ask, options, stage, text)
        height, width = stage.patch
        count, tokens = stage.steps * stage.calls, height * width // ask.multiple**2
        return (Calls(count, tokens, text, together=min(options.batch, stage.calls)),)

    @classmethod
    def codings(cls, ask: Ask, options: Any, plan: Sequence[Stage]) -> list[tuple[Coding, ...]]:
        *base, patches = plan
        assert isinstance(patches, PatchStage)
        of_patches = tuple(Coding(part, *patches.patch, patches.calls) for part in ("encode", "decode"))
        return [*((Coding("decode", *stage.size),) for stage in base), of_patches]

    @classmethod
    def branches(
        cls, kind: GuidanceKind, options: Any, guidance: float | None, negative: bool, stage: Stage
    ) -> int:
        if kind == "cfg":
            return super().branches(kind, options, guidance, negative, stage)
        return 2 if isinstance(stage, PatchStage) and options.true_cfg_scale != 1 else 1

    @classmethod
    def enough(cls, ask: Ask, options: Any) -> bool:
        return max(ask.size) >= (options.patch or ask.native)

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        patches = patch_stage(ask, options)
        return [patches] if ask.picture else [ask.published_base(options.base_steps), patches]

    def target(self, given: Size, scale: float | None, size: Size | None) -> Size:
        return target_size(given, scale, size, self.default_scale())

    def painted_size(self, target: Size) -> Size:
        """In whole tokens: a picture is continued by reflection, and the result cut back."""
        return up_to(target[0], self.pixel_multiple), up_to(target[1], self.pixel_multiple)

    def make(self, job: Job, output_type: str) -> Any:
        if output_type == "latent":
            self.grid(*job.target)
        picture = job.picture
        for z in self.reached(job):
            picture = self.decode(z)
        assert picture is not None
        return self.painted(job, picture, output_type)


class PatchCascadePipeline(PatchCascade, OnFlux1):
    """RealUHR's patch cascade on FLUX.1."""


class Flux2PatchCascadePipeline(PatchCascade, OnFlux2):
    """RealUHR's patch cascade on FLUX.2 [klein]."""
