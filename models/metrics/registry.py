"""The registry of metrics. A new metric is one line in `NAMES`, and a class (`base.MetricClass`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uhr.base.config import build
from uhr.base.errors import UserError, load_object, unknown
from uhr.models.metrics.base import ImageMetric, MetricClass, Minimum, SetMetric

_HERE = "uhr.models.metrics"

NAMES: Mapping[str, str] = {
    "fid": f"{_HERE}.sets.distribution:Fid",
    "kid": f"{_HERE}.sets.distribution:Kid",
    "inception-score": f"{_HERE}.sets.distribution:InceptionScore",
    "patch-fid": f"{_HERE}.sets.distribution:PatchFid",
    "patch-kid": f"{_HERE}.sets.distribution:PatchKid",
    "patch-inception-score": f"{_HERE}.sets.distribution:PatchInceptionScore",
    "random-frechet": f"{_HERE}.sets.distribution:RandomFrechet",
    "random-kernel": f"{_HERE}.sets.distribution:RandomKernel",
    "clip-score": f"{_HERE}.text_image:ClipScore",
    "pick-score": f"{_HERE}.text_image:PickScore",
    "hps-v2.1": f"{_HERE}.text_image:HpsV21",
    "image-reward": f"{_HERE}.text_image:ImageRewardScore",
    "pyiqa": f"{_HERE}.no_reference:PyiqaQuality",
    "q-align": f"{_HERE}.no_reference:QAlignScore",
    "artimuse": f"{_HERE}.no_reference:Artimuse",
    "laion-aesthetics": f"{_HERE}.no_reference:LaionAesthetics",
    "dpg-bench": f"{_HERE}.questions.dpg_bench:DpgBench",
    "geneval2": f"{_HERE}.questions.geneval2:GenEval2",
    "psnr": f"{_HERE}.reconstruction:Psnr",
    "ssim": f"{_HERE}.reconstruction:Ssim",
    "lpips": f"{_HERE}.reconstruction:Lpips",
    "glcm": f"{_HERE}.texture:GlcmScore",
    "compression-ratio": f"{_HERE}.texture:CompressionRatio",
    "grid": f"{_HERE}.artifacts.grid:GridMetric",
    "seams": f"{_HERE}.artifacts.seams:SeamMetric",
    "speckle": f"{_HERE}.artifacts.speckle:SpeckleMetric",
    "repetition": f"{_HERE}.artifacts.repetition:RepetitionMetric",
    "command": f"{_HERE}.external:Command",
    "function": f"{_HERE}.external:Function",
}
"""Name in a protocol -> import path. A metric is imported when it is first used."""


def metric(name: str, /, device: str = "cpu", **options: Any) -> ImageMetric | SetMetric:
    """Make a metric.

    Args:
        name: one of `NAMES`, or the import path `package.module:Class` of a metric of the user's own.
        device: a torch device.
        options: those of its class's `Options`.

    Raises:
        UserError: for an unknown name or option (with the nearest ones), or if weights or a package are
        missing.
    """
    cls = metric_class(name)
    return cls.load(build(cls.Options, options, f"metric '{name}'"), device)


def minimum(name: str, options: Mapping[str, Any]) -> Minimum:
    """Return what a metric with these options needs at least. Nothing is loaded.

    Raises UserError as `metric` does for an unknown name or option.
    """
    cls: Any = metric_class(name)
    built = build(cls.Options, dict(options), f"metric '{name}'")
    return cls.minimum(built) if hasattr(cls, "minimum") else Minimum()


def metric_class(name: str) -> type[MetricClass]:
    """Return the class of a metric. Raises UserError if there is none of this name."""
    if ":" in name:
        found = load_object(name, "metric")
    elif name in NAMES:
        found = load_object(NAMES[name], "metric")
    else:
        raise unknown("metric", name, NAMES)
    if not all(hasattr(found, part) for part in ("about", "Options", "load")):
        raise UserError(
            f"'{name}' is not a metric", "give its class about, Options and load (uhr.models.metrics.base)"
        )
    return found


def describe(name: str) -> dict[str, Any]:
    """Return what a metric measures, needs and costs to get, for lists: `kind` is image or set, `weights`
    names each option with where its weights are published, `options` has every option with its default.
    """
    cls: Any = metric_class(name)
    return {
        "name": name,
        "kind": "set" if hasattr(cls, "compare") else "image",
        "measures": cls.about.measures,
        "needs": sorted(cls.needs),
        "licence": cls.about.licence,
        "source": cls.about.source,
        "weights": dict(cls.about.weights),
        "optional": dict(cls.about.optional),
        "options": {
            key: None if field.is_required() else field.get_default(call_default_factory=True)
            for key, field in cls.Options.model_fields.items()
        },
    }
