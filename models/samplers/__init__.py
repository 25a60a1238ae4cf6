"""The samplers by name. A new one is a file here, its options in `options.py`, and an entry in `SAMPLERS`; a
user's own goes by import path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError, load_object, unknown


@dataclass(frozen=True)
class SamplerInfo:
    """A sampler before its code is imported: its pipeline class on each family of backbones, and what it
    needs."""

    name: str
    """Of its classes, before `Options` and `Pipeline`."""

    paths: Mapping[str, str]
    summary: str
    weights: str


def _on_both(module: str, name: str) -> Mapping[str, str]:
    """A sampler's pipelines on FLUX.1 and FLUX.2, by its file here and its name in them."""
    path = f"{__name__}.{module}"
    return {"flux1": f"{path}:{name}Pipeline", "flux2": f"{path}:Flux2{name}Pipeline"}


SAMPLERS: Mapping[str, SamplerInfo] = {
    "euler": SamplerInfo(
        "Euler",
        _on_both("euler", "Euler"),
        "plain Euler steps, as FLUX was published",
        "any FLUX checkpoint; takes any LoRA of its family, URAE's (github.com/Huage001/URAE) among them",
    ),
    "sdedit": SamplerInfo(
        "SDEdit",
        _on_both("sdedit", "SDEdit"),
        "a base picture or yours, enlarged, noised part of the way and painted on",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "multidiffusion": SamplerInfo(
        "MultiDiffusion",
        _on_both("multidiffusion", "MultiDiffusion"),
        "overlapping windows of the native size, averaged at every step",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "demofusion": SamplerInfo(
        "DemoFusion",
        _on_both("demofusion", "DemoFusion"),
        "stages of windows, tied by skip residuals and by sub-grids of the whole picture",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "imax": SamplerInfo(
        "IMax",
        _on_both("imax", "IMax"),
        "from noise at full size, drawn towards an enlarged base picture",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "hiflow": SamplerInfo(
        "HiFlow",
        _on_both("hiflow", "HiFlow"),
        "a cascade in which each stage follows the path of the one below",
        "any FLUX checkpoint; takes any LoRA of its family",
    ),
    "ultragen": SamplerInfo(
        "UltraGen",
        _on_both("ultragen", "UltraGen"),
        "a base picture or yours guides local windows of attention: 4K, 8K and beyond",
        "UltraGen's LoRA (github.com/PeterYYZhang/Scale-DiT links it), or one trained on guide tokens; "
        "unadapted without",
    ),
    "patch-cascade": SamplerInfo(
        "PatchCascade",
        _on_both("patch_cascade", "PatchCascade"),
        "a base picture or yours, enlarged and painted anew in overlapping patches",
        "any FLUX checkpoint, unadapted; better with an adapter for patches, none of which is published",
    ),
    "ultraflux": SamplerInfo(
        "UltraFlux",
        _on_both("ultraflux", "UltraFlux"),
        "native 4K in one pass, with an F16 VAE and Resonance positions",
        "Owen777/UltraFlux-v1, its transformer from Owen777/UltraFlux-v1-1-Transformer",
    ),
}


def check_name(name: str) -> None:
    """UserError with the nearest names, unless it is a sampler's name or an import path."""
    if name not in SAMPLERS and ":" not in name:
        raise unknown("sampler", name, SAMPLERS)


def options_class(name: str) -> Any:
    """The options of a sampler, by name without importing its code, or by import path."""
    check_name(name)
    if name not in SAMPLERS:
        return load_object(name, "sampler").Options
    return load_object(f"{__name__}.options:{SAMPLERS[name].name}Options", "sampler")


def names_for(family: str) -> list[str]:
    """The samplers that run on a family of backbones."""
    return [name for name, info in SAMPLERS.items() if family in info.paths]


def sampler_class(name: str, family: str) -> Any:
    """The pipeline class of a sampler on a family of backbones, by name or by import path
    `package.module:Class`; UserError for a family that it does not run on."""
    check_name(name)
    if name not in SAMPLERS:
        cls = load_object(name, "sampler")
        own = getattr(getattr(cls, "backbone", None), "name", None)
        if own != family:
            what = f"sampler '{name}' is for {own} backbones" if own else f"'{name}' is no sampler's pipeline"
            fix = "derive it from a SamplerPipeline and a class of uhr.models.samplers.families"
            raise UserError(f"{what}, and this one is of family {family}", fix)
        return cls
    paths = SAMPLERS[name].paths
    if family not in paths:
        what = f"sampler '{name}' does not run on {family} backbones"
        raise UserError(
            what, f"it runs on {', '.join(paths)}; on {family} run {', '.join(names_for(family))}"
        )
    return load_object(paths[family], "sampler")


def check_takes_picture(name: str, family: str) -> None:
    """UserError, with those that do, for a sampler in which no picture takes the place of a base pass."""
    if sampler_class(name, family).takes_picture:
        return
    those = [other for other in names_for(family) if sampler_class(other, family).takes_picture]
    raise UserError(f"sampler '{name}' takes no picture", f"these do: {', '.join(those)}")
