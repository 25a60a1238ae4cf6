"""The output of `uhr models`: backbones and samplers as plain values, and as text."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from uhr.base.console import say, shown, table
from uhr.base.files import user_path
from uhr.base.formatting import human_bytes, numbered_names
from uhr.models.ops.choices import ShiftPolicy
from uhr.models.samplers import SAMPLERS, names_for
from uhr.models.specs.registry import SPECS
from uhr.models.specs.spec import ModelSpec

SIZES = (1, 2, 4, 8)
"""Squares of these multiples of the native side are listed with their tokens."""


def overview() -> dict[str, list[dict[str, Any]]]:
    """Return the backbones, and the samplers with the weights that exist for them."""
    return {"models": models(), "samplers": samplers()}


def print_overview(value: dict[str, list[dict[str, Any]]]) -> None:
    print_models(value["models"])
    say("\nThe samplers, and which weights exist for them:\n")
    print_samplers(value["samplers"])


def samplers() -> list[dict[str, Any]]:
    """Return one entry per sampler, in the order of the registry."""
    return [
        {"name": name, "families": list(info.families), "summary": info.summary, "weights": info.weights}
        for name, info in SAMPLERS.items()
    ]


def print_samplers(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        say(f"{row['name']} ({', '.join(row['families'])})")
        say(f"    {row['summary']}")
        say(f"    weights: {row['weights']}")


def models() -> list[dict[str, Any]]:
    """Return one entry per spec, in the order of the registry."""
    return [
        {
            "name": spec.name,
            "summary": spec.summary,
            "native_size": spec.native_size,
            "guidance": spec.guidance,
            "licence": spec.licence.name,
            "commercial_use": spec.licence.commercial,
            "hub_id": spec.hub_id,
        }
        for spec in SPECS.values()
    ]


def print_models(rows: list[dict[str, Any]]) -> None:
    table(
        ["model", "what it is", "native", "guidance", "commercial use", "hub id"],
        [
            [
                row["name"],
                row["summary"],
                f"{row['native_size']} px",
                row["guidance"],
                "yes" if row["commercial_use"] else "no",
                row["hub_id"] or f"make it: {_make(row['name'])}",
            ]
            for row in rows
        ],
    )


def _make(name: str) -> str:
    """The command that makes a tiny model."""
    return f"uhr models make-tiny DIR --spec {name}"


def details(model: str, spec: str | None = None) -> dict[str, Any]:
    """Return everything known of a spec, or of a checkpoint in a folder or a backbone's lone file (then with
    the bytes of each component). `spec` overrides the one that a checkpoint is recognised as."""
    from uhr.models.loading.opening import backbone_specs, is_backbone, open_model

    if model in SPECS and not Path(model).is_dir():
        return _spec_details(SPECS[model])
    file = user_path(model)
    if is_backbone(file):
        where = {"file": str(file), "bytes": {"transformer": _size(file)}}
        return {**_spec_details(backbone_specs(file, spec)[0]), **where}
    opened = open_model(model, spec)
    found = {name: _size(opened.folder / name) for name in opened.spec.components}
    where = {"folder": str(opened.folder), "revision": opened.revision, "bytes": found}
    return {**_spec_details(opened.spec), **where}


def _size(place: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (place, *place.rglob("*")) if file.is_file())


def _spec_details(spec: ModelSpec) -> dict[str, Any]:
    sides = [spec.native_size * times for times in SIZES]
    return {
        "name": spec.name,
        "summary": spec.summary,
        "family": spec.family,
        "hub_id": spec.hub_id,
        "licence": vars(spec.licence),
        "components": dict(spec.components),
        "transformer": dict(spec.transformer_config),
        "native_size": spec.native_size,
        "pixel_multiple": spec.pixel_multiple,
        "vae_factor": spec.vae_factor,
        "patch": spec.patch,
        "latent_channels": spec.latent_channels,
        "tokens": {f"{side}x{side}": spec.tokens(side, side) for side in sides},
        "text_lengths": dict(spec.text_lengths),
        "guidance": spec.guidance,
        "sampling": {"steps": spec.steps, "guidance": spec.guidance_scale, "shift": str(spec.shift)},
        "lora_targets": {name: list(targets) for name, targets in spec.lora_target_sets.items()},
        "samplers": names_for(spec.family),
        "notes": list(spec.notes),
    }


_GUIDANCE = {
    "embedded": "an input of the backbone; training must name its value",
    "none": "none; the backbone takes no such input",
    "cfg": "two passes, with and without the prompt",
}


def print_details(value: dict[str, Any]) -> None:
    licence, sampling = value["licence"], value["sampling"]
    rows: dict[str, Any] = {
        "licence": f"{licence['name']}, commercial use {'allowed' if licence['commercial'] else 'forbidden'}",
        "weights": value.get("file")
        or value.get("folder")
        or value["hub_id"]
        or f"random: {_make(value['name'])}",
        "native size": f"{value['native_size']} px; sides are multiples of {value['pixel_multiple']} px",
        "latents": f"{value['latent_channels']} channels, 1/{value['vae_factor']} of the side, "
        f"packed {value['patch']}x{value['patch']}",
        "image tokens": ", ".join(f"{size}: {count:,}" for size, count in value["tokens"].items()),
        "text tokens": ", ".join(f"{name} {count}" for name, count in value["text_lengths"].items()),
        "guidance": _GUIDANCE[value["guidance"]],
        "sampling": _sampling(sampling),
        "LoRA targets": "; ".join(
            f"{name}: {numbered_names(t)}" for name, t in value["lora_targets"].items()
        ),
    }
    if "bytes" in value:
        rows["on disk"] = ", ".join(f"{name} {human_bytes(n)}" for name, n in value["bytes"].items() if n)
    model = quote(value.get("folder") or value["hub_id"] or "DIR")
    if "file" in value:
        model = f"{quote(value['file'])} --base {model}"
    say(f"{value['name']}: {value['summary']}\n")
    for name, value_text in rows.items():
        say(f"{name:13} {shown(value_text)}")
    for note in value["notes"]:
        say(f"{'note':13} {note}")
    say("\nWhat can be done with it:")
    for sampler in value["samplers"]:
        say(f'  uhr sample {sampler} --model {model} --prompt "..." --out image.png')
    train = "".join(f" --set {quote(change)}" for change in _recipe_changes(value))
    say(f"  uhr train encode SLICE --model {model} --out ENCODED, then uhr train run lora{train}")


def _recipe_changes(value: dict[str, Any]) -> list[str]:
    """The settings that a backbone needs in a recipe of FLUX.1 with guidance 1.0, as the recipe `lora` is."""
    changes = [] if value["family"] == "flux1" else [f"family={value['family']}"]
    if value["guidance"] != "embedded":
        changes.append(f"guidance={{kind: {value['guidance']}, scale: null}}")
    return changes


def _sampling(sampling: dict[str, Any]) -> str:
    guidance = "no guidance" if sampling["guidance"] is None else f"guidance {sampling['guidance']:g}"
    shift = {
        ShiftPolicy.NONE: "sigmas not shifted",
        ShiftPolicy.STATIC: "sigmas shifted by a fixed factor",
        ShiftPolicy.DYNAMIC: "sigmas shifted by the number of tokens, up to about 1024x1024 px",
    }[ShiftPolicy(sampling["shift"])]
    return f"{sampling['steps']} steps, {guidance}, {shift} (the model card's)"
