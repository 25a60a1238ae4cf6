"""What each sampler can be told with `--set`, or as keyword arguments of a call.

Apart from the samplers, so that they can be listed without torch, which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from uhr.base.config import Config
from uhr.models.attention.window_rules import WindowRules
from uhr.models.choices import Projection, Ring, StageShift
from uhr.models.hr_toolkit import Toolkit
from uhr.models.spec import ShiftPolicy


class SamplerOptions(Config):
    """What every sampler can be told with `--set`, or as keyword arguments of a call.

    true_cfg_scale: above 1 it wants a negative prompt and doubles the model calls:
                    v = v_negative + scale * (v_prompt - v_negative)
    native_size:    side in px of the backbone's training square; None is what its spec says
    """

    true_cfg_scale: float = 1.0
    native_size: int | None = Field(default=None, gt=0)


class StagedOptions(SamplerOptions):
    """guidance_high:   of the stages above the base; None is the sampler's published number where the
                     backbone embeds guidance, and the call's own elsewhere, as in a call with a picture
                     that names one
    shift:           of those stages, static or native; None is static on FLUX.1, native on FLUX.2
    shift_factor:    of the static shift
    """

    guidance_high: float | None = None
    shift: StageShift | None = None
    shift_factor: float = Field(default=3.0, gt=0)


class DenseOptions(StagedOptions):
    """toolkit: what lets the backbone work above its native size (`hr_toolkit.Toolkit`)"""

    toolkit: Toolkit = Toolkit()


def _floats(levels: Any) -> Any:
    """Levels of any sequence, an array's or a tensor's too; what is none is left to pydantic to refuse."""
    return tuple(float(each) for each in levels) if isinstance(levels, Iterable) else levels


Levels = Annotated[tuple[float, ...], BeforeValidator(_floats)]


class EulerOptions(SamplerOptions):
    """sigmas:       noise levels, falling; used as they are, unshifted. A final 0 may be left out
    shift:        none, static (by `shift_factor`) or dynamic (refused above the tokens that it was calibrated
                  for), of the linear grid; None is what the scheduler's configuration says, spacing included
                  (Karras, exponential, beta, a terminal level), and static with a toolkit
    shift_factor: of the static shift
    toolkit:      what lets the backbone work above its native size: `hr_toolkit.Toolkit`, or its fields ({}
                  has its defaults)
    """

    sigmas: Levels | None = None
    shift: ShiftPolicy | None = None
    shift_factor: float = 3.0
    toolkit: Toolkit | None = None


class SDEditOptions(DenseOptions):
    """strength:    share of the steps that are taken, in (0, 1): 0.7 is CLEAR's recipe for high resolutions
    base_steps:  of the base pass; None is what the model's card says
    enlargement: bicubic, as in CLEAR's script, or lanczos, by which diffusers' FluxImg2ImgPipeline resizes a
                 picture that does not fit
    """

    strength: float = Field(default=0.7, gt=0, lt=1)
    base_steps: int | None = Field(default=None, gt=0)
    enlargement: Literal["bicubic", "lanczos"] = "bicubic"


class MultiDiffusionOptions(StagedOptions):
    """overlap:    share of a window's side by which the next one overlaps it (paper: half, or more)
    strength:   1 begins at pure noise, as published; less begins at the enlarged base picture, as SDEdit does
                None is 1, and with a picture of one's own 0.7: ours, by sdedit's
    base_steps: of that base pass; None is what the model's card says
    """

    overlap: float = Field(default=0.5, ge=0, lt=1)
    strength: float | None = Field(default=None, gt=0, le=1)
    base_steps: int | None = Field(default=None, gt=0)


class DemoFusionOptions(StagedOptions):
    """Published for SDXL (2311.16973); defaults as in its code.

    residual_power, global_power, blur_power: 3, 1, 1: exponents of the cosine c by which the skip residual,
                the global path and the blur fade
    blur:       largest sigma of the blur in latents: 1 in the code, 0.8 in its README
    overlap:    share of a window's side by which the next one overlaps it
    jitter:     windows move at random by up to a quarter of the overlap, in whole tokens
    jitter_seed: where they move; apart from the generator, so that a batch is its pictures made one by one
    ring:       what windows find beyond the picture's border (`swin.Ring`; the code: zeros)
    """

    residual_power: float = Field(default=3.0, ge=0)
    global_power: float = Field(default=1.0, ge=0)
    blur_power: float = Field(default=1.0, ge=0)
    blur: float = Field(default=1.0, gt=0)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    jitter: bool = True
    jitter_seed: int = 0
    ring: Ring = Ring.NOISE


class IMaxOptions(DenseOptions):
    """projection:   how the pull fades (`projection.Projection`): cosine_decay is the official README's and
                  the default, cosine_shift the official function's; constant
    shift_factor: 6, as the README has it: it acted in diffusers up to 0.31, and later releases read past it
    toolkit:      as in the official function: repeated text, and NTK frequencies clipped from below
    swin, ring:   swin patchify on every other step, and what its ring holds (`swin.Ring`; the code: zeros)
    base_steps:   of the base pass; None is as many as above it (30 in the code)
    base_shift:   static factor of the base pass
    sample:       the reference is a sample of the VAE's posterior, as in the code, not its mean
    """

    shift_factor: float = Field(default=6.0, gt=0)
    toolkit: Toolkit = Toolkit(ntk_floor=True, text_duplication=True)
    projection: Projection = Projection.COSINE_DECAY
    swin: bool = True
    ring: Ring = Ring.NOISE
    base_steps: int | None = Field(default=None, gt=0)
    base_shift: float = Field(default=3.0, gt=0)
    sample: bool = True


PerStage = tuple[float, ...]
"""One value for each stage above the base; the last one serves all that follow."""


class HiFlowOptions(DenseOptions):
    """None is the preset's value.

    preset:       paper is HiFlow v2, code its repository
    cascade:      sides over the base's: 2, 3, 4 in the paper, 2, 4 in the code
    starts:       where the stages enter the schedule: 0.6, 0.3, 0.3 in the paper (its tau), the last 16 and
                  10 of 30 steps in the code
    starts_are:   levels: at the first that is at most this (paper); shares of the steps that are left (code)
    start_from:   reference: the enlarged clean estimate of that very step (eq. 7, paper); picture: the last
                  stage's picture, enlarged and sharpened in pixels (code)
    low_pass:     butterworth, at `cutoff`, or haar
    cutoff:       0.4 in the paper, 0.2 in the code; 1 is an axis' Nyquist frequency
    direction:    alpha at a stage's first step (1 in the paper, 1 and 0.25 in the code)
    acceleration: beta there (1 in the paper, 0.5 in the code)
    fade:         both fall as sigma / start (t / tau, paper) or linearly over the stage's steps (code)
    guidance:     of the stages, where the backbone embeds guidance: 4.5 and 6 in the code; the paper names
                  none: the call's own. guidance_high overrides it with one number
    reference:    estimates are enlarged as latents (the code's default) or in pixels, through the VAE
    sharpening:   sigma of the Gaussian for pictures that are enlarged in pixels. The code draws it from
                  (0.1, 2) at every call, so that no two of its runs agree
    swin, ring:   swin patchify on every other step (code; the paper is silent) and what its ring holds:
                  zeros in the code
    shift:        of all stages, base included. For the paper as elsewhere: static 3, whose level after 20 of
                  30 steps is its tau 0.6; for the code native (factor 3.158), where it means to be static but
                  tells the wrong object
    """

    preset: Literal["paper", "code"] = "paper"
    cascade: PerStage | None = None
    starts: PerStage | None = Field(default=None, min_length=1)
    starts_are: Literal["levels", "shares"] | None = None
    start_from: Literal["reference", "picture"] | None = None
    low_pass: Literal["butterworth", "haar"] = "butterworth"
    cutoff: float | None = Field(default=None, gt=0)
    direction: PerStage | None = Field(default=None, min_length=1)
    acceleration: PerStage | None = Field(default=None, min_length=1)
    fade: Literal["sigma", "linear"] | None = None
    guidance: PerStage | None = None
    reference: Literal["latents", "pixels"] = "latents"
    sharpening: float = Field(default=1.0, gt=0)
    swin: bool = True
    ring: Ring | None = None


class UltraGenOptions(StagedOptions):
    """What `--set` can change of ultragen, or keyword arguments of a call.

    skip:           steps of the schedule that the warm start skips; None is 10 of 28 in proportion (paper's
                    ablation), and none on few-step FLUX.2, which starts from pure noise (its configuration)
    warm_start:     pixels: the picture below, enlarged and sharpened (paper, eq. 1); latents: bicubic on its
                    latents, without decoding (code)
    sharpening:     sigma of the Gaussian of the unsharp mask; None sharpens not. The paper names no kernel
    guidance_high:  None is 4.5 where guidance is embedded and 8 where it takes two passes (code's
                    configurations for FLUX.1 and klein-base)
    ntk:            theta of the windowed stages times this, image and guide alike; None is 10 (paper and
                    code), and 1 on few-step FLUX.2 (its configuration)
    base_ntk:       the same of the base pass: 1 is stock; the code has 10 there too
    base_steps:     of the base pass; None is what the model's card says: 28 on FLUX.1-dev (code)
    ratio:          sides of image over guide (paper: 4)
    window:         side of a window in image tokens; None is a quarter of the native grid, the paper's 16 of
                    FLUX
    rules:          who attends to whom, the paper's mask unless told (`attention.rules.WindowRules`)
    guide:          False leaves the guide's tokens out: windows alone
    cached:         the guide's keys and values are computed at a stage's first step and kept (a flag of the
                    code). False runs the guide in every call, as in training: exact, and slower
    guide_adapters: names of the adapters that act on guide tokens alone, beside those whose file says so (an
                    export's `adapters.usage`, UltraGen's by its keys); None are those that were loaded
                    otherwise and have UltraGen's modules. All others act on every token. A command's are
                    called adapter_0, adapter_1 in their order
    projection:     off (paper); code: its hidden projected flow, whose weight rises again towards the end;
                    decay: the same with I-Max's falling cosine
    below:          sides of the stages below the last over its own, rising: (0.25,). None is the recursion:
                    a quarter each (`ratio`) down to about the native size; a given picture goes straight to
                    the target
    backend:        of the attention (`attention.call.Windows`)
    """

    skip: int | None = Field(default=None, ge=0)
    warm_start: Literal["pixels", "latents"] = "pixels"
    sharpening: float | None = Field(default=1.0, gt=0)
    ntk: float | None = Field(default=None, ge=1)
    base_ntk: float = Field(default=1.0, ge=1)
    base_steps: int | None = Field(default=None, gt=0)
    ratio: int = Field(default=4, ge=1)
    window: int | None = Field(default=None, ge=1)
    rules: WindowRules = WindowRules()
    guide: bool = True
    cached: bool = True
    guide_adapters: tuple[str, ...] | None = None
    projection: Literal["off", "code", "decay"] = "off"
    below: tuple[float, ...] | None = None
    backend: Literal["auto", "gathered", "flex"] = "auto"


class PatchCascadeOptions(SamplerOptions):
    """What `--set` can change of patch-cascade, or keyword arguments of a call.

    gamma:          noise level at which patches begin, the creativity: 0.3 stays faithful, 0.8 reinvents
                    (figure 7). The paper gives no default for text to image; 0.4 is ours, nearer to the
                    faithful end. 1 starts from pure noise, the ablation "w/o Patch Init" (table 3)
    schedule:       of the patches (`schedules.patch_schedule`): warped-labels is Algorithm 1, warped-grid the
                    paper's prose; uniform, logarithmic, cosine are its ablation (table 2)
    alpha, p:       of the time warp (eq. 6); the paper's best
    overlap:        of neighbouring patches, at least this share of a patch's side. Not given in the paper;
                    its times of 38 s at 2K and 108 s at 4K (table 1), as one share and one of each patch,
                    allow 37 to 50 %; 0.375, ours, is the cheaper end: 9 and 36 patches, where 0.5 makes 9
                    and 49. It is also the width of the feather
    patch:          side of a patch in px; None is the native size
    batch:          patches in one pass of the backbone; it changes no more than rounding
    shared_noise:   patches are cut from one noise, so that neighbours agree where they overlap. Not in the
                    paper; without it every patch draws its own
    true_cfg_scale: w of the patches: above 1 it wants a negative prompt ("" is the null condition) and
                    doubles their calls. The paper leaves open whether inference is guided; 1 is one pass
    patch_guidance: what a backbone with embedded guidance is told on the patches: 1.0 is no guidance, what
                    we train the adaptation with: the paper only says that theta does not depend on it.
                    With a picture a call's own guidance is that of the patches
    base_adapters:  adapters that act on the base pass as well: names, or "all". By default it is made by the
                    original model, and adapters are for the patches
    base_steps:     of the base pass; None is what the model's card says
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


class UltraFluxOptions(SamplerOptions):
    """What `--set` can change of ultraflux, or keyword arguments of a call.

    shift_factor:   of the static shift: 3 in the official script, whose time_shift of 4 nothing reads
    positions:      resonance is the code since 2025-12-17; yarn and plain for comparison. They act where an
                    axis is longer than the window only
    native_size:    of the backbone before UltraFlux. The positions' window is its tokens of F8: 64 for
                    FLUX.1, UltraFlux's 2048 px
    """

    shift_factor: float = Field(default=3.0, gt=0)
    positions: Literal["resonance", "yarn", "plain"] = "resonance"
