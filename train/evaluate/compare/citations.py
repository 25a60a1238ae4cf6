"""BibTeX of what a comparison uses: protocol, metrics, samplers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from uhr.train.evaluate.compare.comparison import Comparison

FILE = Path(__file__).parent / "citations.bib"

METRICS: Mapping[str, tuple[str, ...]] = {
    "fid": ("heusel2017fid",),
    "patch-fid": ("heusel2017fid",),
    "kid": ("binkowski2018kid",),
    "patch-kid": ("binkowski2018kid",),
    "inception-score": ("salimans2016is",),
    "patch-inception-score": ("salimans2016is",),
    "glcm": ("zhang2025diffusion4k",),
    "compression-ratio": ("zhang2025diffusion4k",),
    "clip-score": ("hessel2021clipscore",),
    "lpips": ("zhang2018lpips",),
    "pick-score": ("kirstain2023pickscore",),
    "hps-v2.1": ("wu2023hpsv2",),
    "image-reward": ("xu2023imagereward",),
    "q-align": ("wu2024qalign",),
    "pyiqa": ("chen2022pyiqa",),
    "artimuse": ("cao2025artimuse",),
    "laion-aesthetics": ("schuhmann2022laion",),
    "ssim": ("wang2004ssim",),
    "dpg-bench": ("hu2024ella",),
    "geneval2": ("kamath2025geneval2",),
}
"""By the name of a metric in the registry."""

SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "euler": ("blackforestlabs2024flux",),
    "sdedit": ("meng2022sdedit",),
    "multidiffusion": ("bartal2023multidiffusion",),
    "demofusion": ("du2024demofusion",),
    "imax": ("du2024imax",),
    "hiflow": ("bu2025hiflow",),
    "patch-cascade": ("yu2026realuhr",),
    "ultraflux": ("ye2026ultraflux",),
    "ultragen": ("zhang2025ultragen",),
}

RECIPES: Mapping[str, tuple[str, ...]] = {
    "gca": ("yu2026realuhr",),
    "urae": ("yu2025urae",),
    "ultragen": ("zhang2025ultragen",),
    "ultraflux": ("ye2026ultraflux",),
    "vae-f16": ("ye2026ultraflux",),
    "lora": ("hu2022lora",),
}
"""By the beginning of a recipe's name."""

PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    "aesthetic-eval": ("zhang2025diffusion4k",),
    "ultraflux": ("ye2026ultraflux", "zhang2025diffusion4k"),
    "hiflow": ("bu2025hiflow",),
    "urae": ("yu2025urae", "wu2023hpsv2"),
    "ultrahr": ("zhao2025ultrahr",),
    "dpg-bench": ("hu2024ella",),
    "geneval2": ("kamath2025geneval2",),
}
"""By the beginning of a protocol's name."""


def bibtex(found: Comparison, recipes: Iterable[str] = ()) -> str:
    """Return the entries of what a comparison uses, each once, sorted by key.

    recipes: names of those that trained its methods.
    """
    entries = _entries()
    keys = {*_keys(found), *(key for name in recipes for key in _of_beginning(RECIPES, name))}
    return "\n".join(entries[key] for key in sorted(keys & entries.keys()))


def _of_beginning(table: Mapping[str, tuple[str, ...]], name: str) -> Iterator[str]:
    for beginning, keys in table.items():
        if name.startswith(beginning):
            yield from keys


def _keys(found: Comparison) -> Iterator[str]:
    yield from _of_beginning(PROTOCOLS, found.arms[0].info.protocol.name)
    uses = {use.name: use for use in found.protocol.metrics}
    for arm in found.arms:
        for metric in arm.info.metrics:
            use = uses[metric.metric]
            yield from METRICS.get(use.metric, ())
            if use.options.get("resize") == "clean":
                yield "parmar2022cleanfid"
        if arm.info.made is not None:
            yield from SAMPLERS.get(arm.info.made["request"]["sampler"], ())


@cache
def _entries() -> dict[str, str]:
    """The entries of `citations.bib` by key, one a line."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return {re.split(r"[{,]", line)[1]: line for line in lines if line.startswith("@")}
