"""Export a LoRA as one file, as other programs expect it: their keys, one name, and what they show of it.

Metadata keys: `modelspec.*` of Stability AI's ModelSpec 1.0.0 (lists of models show title, trigger phrase,
thumbnail and usage hint), and the `ss_*` keys of kohya's scripts (`ss_tag_frequency` has the trigger word for
programs that read only that).
"""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.console import counted, shown
from uhr.base.errors import UserError
from uhr.base.files import saving
from uhr.models.adapters.formats import reading, writing
from uhr.models.adapters.formats.keys import LAYOUTS
from uhr.models.adapters.formats.usage import Usage
from uhr.models.adapters.formats.writing import Format
from uhr.models.publish.card import CardFacts

if TYPE_CHECKING:
    from PIL.Image import Image

    from uhr.models.adapters.low_rank import Lora

THUMBNAIL = 256
"""The longest side in px of the preview in a file's metadata."""

TOLERANCE = 1e-5
"""The largest difference of the written LoRA to what was trained, relative to the largest value."""

_PROBES = 4

PROGRAMS = {
    Format.COMFYUI: "ComfyUI; also SwarmUI and other programs on it",
    Format.KOHYA: "kohya's sd-scripts, Forge, ComfyUI and diffusers",
    Format.DIFFUSERS: "diffusers (load_lora_weights), ComfyUI and others that read its keys",
}
"""The programs that load a form of files."""

_ARCHITECTURES = {
    "flux1-dev": "flux-1-dev",
    "flux1-schnell": "flux-1-schnell",
    "flux2-klein-4b": "Flux.2-klein-4b",
    "flux2-klein-9b": "Flux.2-klein-9b",
    "flux2-klein-base-4b": "Flux.2-klein-4b",
    "flux2-klein-base-9b": "Flux.2-klein-9b",
}
"""Names of architectures as kohya's scripts (FLUX.1) and musubi-tuner (FLUX.2) write them."""

_FAMILIES = {"flux1": "flux-1", "flux2": "Flux.2"}
_CODE = {
    "flux1": "https://github.com/black-forest-labs/flux",
    "flux2": "https://github.com/black-forest-labs/flux2",
}


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA's file says besides its matrices: trigger word, preview, and the facts of its training.

    resolution: px, at which the last steps were trained.
    """

    name: str
    form: Format
    facts: CardFacts
    resolution: int
    trigger: str | None = None
    preview: Image | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """How it is sampled, as JSON."""
        facts, spec = self.facts, self.facts.spec
        return {
            "sampler": facts.sampler,
            "guidance": spec.guidance_scale if facts.sample_guidance is None else facts.sample_guidance,
            "options": dict(facts.sample_options),
            "steps": spec.steps,
            "shift": spec.shift.value,
        }

    @property
    def usage_hint(self) -> str:
        """How it is sampled, for people, in the terms of all programs."""
        facts, spec = self.facts, self.facts.spec
        guidance = spec.guidance_scale if facts.sample_guidance is None else facts.sample_guidance
        cfg = f"CFG {guidance:g}" if spec.guidance == "cfg" else "CFG 1"
        parts = [f"trigger: {self.trigger}"] if self.trigger else []
        parts += ["strength 1", "Euler", f"{spec.steps} steps"]
        if spec.guidance == "embedded":
            parts.append(f"guidance {guidance:g}")
        parts += [cfg, f"the model's own schedule ({spec.shift.value} shift)"]
        if facts.sampler != "euler" or facts.sample_arguments:
            call = " ".join((facts.sampler, *facts.sample_arguments))
            parts.append(f"made for: uhr sample {call}")
        return ", ".join(parts)

    def metadata(self, usage: Usage) -> dict[str, str]:
        """Return the entries of the file's metadata."""
        facts, spec = self.facts, self.facts.spec
        licence = spec.licence
        found = {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{_ARCHITECTURES.get(spec.name, _FAMILIES[spec.family])}/lora",
            "modelspec.implementation": _CODE[spec.family],
            "modelspec.title": self.name,
            "modelspec.description": f"{facts.trained}, {facts.steps} steps, recipe {facts.recipe}",
            "modelspec.license": licence.name if licence.id == "other" else licence.id,
            "modelspec.resolution": f"{self.resolution}x{self.resolution}",
            "modelspec.usage_hint": self.usage_hint,
            "ss_output_name": self.name,
            "ss_sd_model_name": facts.base_model,
            "ss_steps": str(facts.steps),
            "ss_num_train_images": str(facts.trained_on),
            **usage.metadata(),
        }
        if self.trigger:
            found["modelspec.trigger_phrase"] = self.trigger
            found["ss_tag_frequency"] = json.dumps({self.name: {self.trigger: max(facts.trained_on, 1)}})
        if self.preview is not None:
            found["modelspec.thumbnail"] = thumbnail(self.preview)
        return found

    def write(self, lora: Lora, path: Path, usage: Usage) -> float:
        """Write the file and return the largest relative difference of what it contains to `lora`.

        It is read back in the program's keys, and both are applied to random vectors. Raises UserError if the
        file exists, if a value is not finite, if the disk is full, and if the difference is above
        `TOLERANCE`; then nothing is left.
        """
        if path.exists():
            raise UserError(f"{path} already exists", "give another --name or --out, or remove it")
        _check_finite(lora)
        layout = LAYOUTS[self.facts.spec.transformer_class]
        with saving(path, "free space and export again, or name another place"):
            path.parent.mkdir(parents=True, exist_ok=True)
            writing.save(lora, path, self.form, layout, self.metadata(usage))
        try:
            state, metadata = reading.read_file(path)
            found = difference(reading.read_state(state, metadata, layout, str(path)).backbone, lora)
            if found > TOLERANCE:
                what = f"{path} differs from what was trained by {found:.1e} of its largest value"
                raise UserError(what, "this is a fault of uhr: report it")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return found


def step_of(path: Path) -> int | None:
    """Return the step that a file of `LoraFile` was trained to; None if the file does not say it."""
    from uhr.models.files.containers import first_bytes, read_header

    header = read_header(path, first_bytes(path)) or {}
    text = str((header.get("__metadata__") or {}).get("ss_steps", ""))
    return int(text) if text.isdecimal() else None


def _check_finite(lora: Lora) -> None:
    """Raise UserError for an adapter that has NaN or infinite values."""
    import torch

    bad = [path for path, part in lora.items() if not all(torch.isfinite(t).all() for t in (part.a, part.b))]
    if bad:
        what = f"the adapter is not finite in {counted(len(bad), 'module')}, such as {bad[0]}"
        raise UserError(what, "export an earlier step: --step N")


def difference(one: Lora, two: Lora) -> float:
    """Return the largest difference of two adapters, applied to the same random vectors, relative to the
    largest value of a module. Infinite if they do not adapt the same modules, or if a value is not finite."""
    import torch

    if one.keys() != two.keys():
        return float("inf")
    generator, most = torch.Generator().manual_seed(0), 0.0
    for path, part in two.items():
        x = torch.randn(_PROBES, part.features[1], generator=generator)
        expected = part.applied(x)
        largest = float(expected.abs().max())
        apart = float((one[path].applied(x) - expected).abs().max())
        if not math.isfinite(apart):
            # a comparison with NaN is false: `max` would leave it out
            return float("inf")
        most = max(most, apart / largest if largest else apart)
    return most


def thumbnail(image: Image) -> str:
    """Return a PIL image as ModelSpec's thumbnail: a JPEG of at most `THUMBNAIL` px a side in a data URI."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def file_name(name: str) -> str:
    """Return the name of the file of a LoRA called `name`. Raises UserError for a name that is no file's."""
    stem = name.removesuffix(".safetensors")
    if not stem or stem.startswith(".") or set(stem) & set('/\\:*?"<>|') or shown(stem) != stem:
        raise UserError(f"--name {shown(name)} is not a file's name", "give a word without / or other signs")
    return f"{stem}.safetensors"
