"""The registry of samplers.

A new sampler is a file here and an entry in `SAMPLERS`; a user's own is named by its import path
(docs/extending-samplers.md). Importing this module, or a sampler's options, does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError, load_object, unknown
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.specs.registry import FAMILY_SPECS


@dataclass(frozen=True)
class SamplerInfo:
    """A sampler before its code is imported: its class, a summary, and the weights that it takes."""

    path: str
    """`package.module:Class` of a `Sampler`."""

    summary: str
    weights: str

    @property
    def families(self) -> tuple[str, ...]:
        """The families of backbones that it runs on."""
        return tuple(FAMILY_SPECS)


SAMPLERS: Mapping[str, SamplerInfo] = {
    "euler": SamplerInfo(
        f"{__name__}.euler:Euler",
        "plain Euler steps, as FLUX was published",
        "any FLUX checkpoint; takes any LoRA of its family, URAE's (github.com/Huage001/URAE) among them",
    ),
    "sdedit": SamplerInfo(
        f"{__name__}.sdedit:SDEdit",
        "a base image or yours, enlarged, noised part of the way and denoised from there",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "multidiffusion": SamplerInfo(
        f"{__name__}.multidiffusion:MultiDiffusion",
        "overlapping windows of the native size, averaged at every step",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "demofusion": SamplerInfo(
        f"{__name__}.demofusion:DemoFusion",
        "stages of windows, tied by skip residuals and by sub-grids of the whole image",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "imax": SamplerInfo(
        f"{__name__}.imax:IMax",
        "from noise at full size, drawn towards an enlarged base image",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "hiflow": SamplerInfo(
        f"{__name__}.hiflow:HiFlow",
        "a cascade in which each stage follows the path of the one below",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "ultragen": SamplerInfo(
        f"{__name__}.ultragen:UltraGen",
        "a base image or yours guides local windows of attention: 4K, 8K and beyond",
        "UltraGen's LoRA (github.com/PeterYYZhang/Scale-DiT links it), or one trained on guide tokens; "
        "unadapted without",
    ),
    "patch-cascade": SamplerInfo(
        f"{__name__}.patch_cascade:PatchCascade",
        "a base image or yours, enlarged and generated anew in overlapping patches",
        "any FLUX checkpoint, unadapted; better with an adapter for patches, none of which is published",
    ),
    "ultraflux": SamplerInfo(
        f"{__name__}.ultraflux:UltraFlux",
        "native 4K in one pass, with an F16 VAE and Resonance positions",
        "Owen777/UltraFlux-v1 (transformer and F16 VAE), its transformer from "
        "Owen777/UltraFlux-v1-1-Transformer; an F16 VAE of recipe vae-f16 goes with any FLUX.1 (--vae)",
    ),
}


def check_name(name: str) -> None:
    """Raise UserError, with the nearest names, unless it is a sampler's name or an import path."""
    if name not in SAMPLERS and ":" not in name:
        raise unknown("sampler", name, SAMPLERS)


def find_sampler(name: str) -> Sampler:
    """Return the sampler of a name, or of an import path `package.module:Class` of a `Sampler` or of a
    pipeline derived from a `SamplerPipeline`."""
    return _loaded(name)()


def options_class(name: str) -> Any:
    """Return the options class of a sampler, or of a pipeline, which may have more options than its
    sampler."""
    _loaded(name)
    return _object(name).Options


def names_for(family: str) -> list[str]:
    """Return the names of the samplers that run on a family of backbones."""
    return [name for name, info in SAMPLERS.items() if family in info.families]


def sampler_class(name: str, family: str) -> Any:
    """Return the pipeline class of a sampler on a family of backbones, by name or by import path
    `package.module:Class`. Raises UserError for a family that it does not run on."""
    check_name(name)
    loaded = _object(name)
    own = getattr(getattr(loaded, "family", None), "name", None)
    if own is not None and own != family:
        what = f"sampler '{name}' is for {own} backbones, and this one is of family {family}"
        raise UserError(what, "name the sampler's own class, which has a pipeline for each family")
    if family not in FAMILY_SPECS:
        what = f"sampler '{name}' does not run on {family} backbones"
        raise UserError(what, f"it runs on {', '.join(FAMILY_SPECS)}")
    if own is not None:
        return loaded
    from uhr.models.samplers.core.pipelines.families import pipeline_class

    return pipeline_class(_loaded(name), family)


def check_takes_image(name: str) -> None:
    """Raise UserError, naming the samplers that do, if a sampler does not take an input image."""
    if find_sampler(name).takes_image:
        return
    those = [other for other in SAMPLERS if find_sampler(other).takes_image]
    raise UserError(f"sampler '{name}' takes no image", f"these do: {', '.join(those)}")


def _object(name: str) -> Any:
    check_name(name)
    return load_object(SAMPLERS[name].path if name in SAMPLERS else name, "sampler")


def _loaded(name: str) -> type[Sampler]:
    """The class of a sampler; for a pipeline that of its sampler."""
    found = _object(name)
    found = getattr(found, "sampler", found)
    found = type(found) if isinstance(found, Sampler) else found
    if not (isinstance(found, type) and issubclass(found, Sampler)):
        fix = "derive it from uhr.models.samplers.core.sampler.Sampler"
        raise UserError(f"'{name}' is not a sampler", fix)
    return found
