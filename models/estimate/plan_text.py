"""Print a plan as JSON or as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uhr.base.console import counted, say, table
from uhr.base.formatting import duration, gibibytes
from uhr.models.estimate.devices import ATTENTION, CONVOLUTION, LINEAR, Device
from uhr.models.estimate.plan import CallPlan, StagePlan
from uhr.models.families.text import TokenCount, notes_of
from uhr.models.samplers.core import guidance as guidance_text


def describe(plan: CallPlan, counts: Sequence[TokenCount] | None = None) -> dict[str, Any]:
    """Return the plan as JSON: memory in bytes, sizes in px, times in seconds. `counts` are the tokens of its
    prompts; None leaves them out."""
    choice, call, device, estimate = plan.choice, plan.call, plan.device, plan.requested
    found: dict[str, Any] = {
        "sampler": choice.request.sampler,
        "model": choice.spec.name,
        "width": call.width,
        "height": call.height,
        "guidance": call.guidance,
        "dtype": plan.dtype,
        **vars(estimate.placement),
        "stages": [_stage(stage) for stage in plan.stages],
        "model_calls": plan.model_calls,
        "operations": estimate.operations._asdict(),
        **({} if counts is None else describe_counts(counts)),
        "memory": {
            "peak": estimate.peak.total,
            "at": estimate.peak.name,
            "largest": estimate.peak.largest,
            "host": estimate.host,
            "phases": [{"name": phase.name, **phase.held, "total": phase.total} for phase in estimate.phases],
        },
    }
    if device is None:
        return found
    found["on"] = {
        "name": device.name,
        "title": device.title,
        "memory": device.memory,
        "assumed": plan.assumed,
    }
    found["memory"]["fits"] = estimate.fits
    found["seconds"] = {**estimate.seconds, "total": estimate.total}
    found["shares_of_peak"] = {"linear": LINEAR, "attention": ATTENTION, "convolution": CONVOLUTION}
    if not estimate.fits:
        other = plan.fastest()
        found["instead"] = other and {
            **vars(other.placement),
            "peak": other.peak.total,
            "host": other.host,
            "seconds": other.total,
        }
    return found


def describe_counts(counts: Sequence[TokenCount]) -> dict[str, Any]:
    """Return the tokens of prompts as JSON, with a note for each kind of text that is cut. `counts` is empty
    where the tokenizers are not on this machine."""
    tokens = [
        {
            "text": each.text,
            "encoder": each.encoder,
            "texts": len(each.tokens),
            "longest": max(each.tokens),
            "reads": each.reads,
            "cut": each.cut,
        }
        for each in counts
    ]
    return {"text_tokens": tokens, "notes": notes_of(counts)}


def show_counts(counts: Sequence[TokenCount]) -> None:
    """Print which parts of the prompts will not be read."""
    for note in notes_of(counts):
        say(f"note: {note}")


def _stage(stage: StagePlan) -> dict[str, Any]:
    return {
        "name": stage.stage.name,
        "width": stage.stage.width,
        "height": stage.stage.height,
        "steps": stage.stage.steps * stage.stage.rounds,
        "calls": stage.stage.total_calls,
        "guidance": stage.stage.guidance,
        "branches": stage.stage.branches,
        "passes": [
            {
                "calls": stage.stage.branches * each.count,
                "image_tokens": each.image,
                "text_tokens": each.text,
                "guide_tokens": each.guide,
                "together": each.together,
                "pairs_per_layer": each.pairs,
            }
            for each in stage.stage.calls
        ],
        "vae": [vars(call) for call in stage.stage.vae_calls],
        "operations": stage.backbone._asdict(),
    }


def show(plan: CallPlan) -> None:
    """Print the plan as tables."""
    choice, call, device, placement = plan.choice, plan.call, plan.device, plan.requested.placement
    where = "" if device is None else f", on {device.title}"
    where += " (no GPU is here: --on NAME plans for another)" if plan.assumed else ""
    guidance = guidance_text.describe([each.stage.guidance for each in plan.stages])
    flags = "".join(
        f", {kind}"
        for kind in (placement.offload and f"offload {placement.offload}", placement.quantize)
        if kind
    )
    say(
        f"{choice.request.sampler} on {choice.spec.name}, {call.width}x{call.height}, {guidance}, "
        f"{plan.dtype}{flags}{where}: planned from shapes, nothing is loaded\n"
    )
    if call.planned != (call.height, call.width):
        height, width = call.planned
        say(f"generated as {width}x{height} and cut\n")
    _show_stages(plan)
    say()
    _show_memory(plan)
    if device is not None:
        say()
        _show_times(plan)


def _show_stages(plan: CallPlan) -> None:
    rows = []
    for each in plan.stages:
        seconds = [] if plan.device is None else [duration(plan.requested.seconds[each.stage.name])]
        rows.append(
            [
                each.stage.name,
                f"{each.stage.width}x{each.stage.height}",
                each.stage.steps,
                each.stage.total_calls,
                _span(call.image for call in each.stage.calls),
                _span(call.text for call in each.stage.calls),
                _span(call.guide for call in each.stage.calls),
                _span(call.pairs for call in each.stage.calls),
                count(each.backbone.total),
                *seconds,
            ]
        )
    head = ["stage", "size", "steps", "calls", "image tokens", "text", "guide", "pairs a layer", "operations"]
    table([*head, *(() if plan.device is None else ("time",))], rows)
    doubled = {each.stage.branches for each in plan.stages} - {1}
    twice = ", two for each step where two branches guide" if doubled else ""
    whole = count(plan.requested.operations.total)
    say(f"\n{counted(plan.model_calls, 'call')} of the backbone{twice}; {whole} operations in total")


def _show_memory(plan: CallPlan) -> None:
    estimate, device, peak = plan.requested, plan.device, plan.requested.peak
    rows = []
    for phase in estimate.phases:
        weights = sum(size for name, size in phase.held.items() if "weights" in name or "layer" in name)
        rest = phase.total - weights
        rows.append(
            [
                phase.name,
                gibibytes(weights),
                gibibytes(rest) if rest else None,
                gibibytes(phase.total),
            ]
        )
    table(["on the device", "weights", "activations", "total"], rows)
    largest = f"{peak.largest}, {gibibytes(peak.held[peak.largest])}"
    host = f"; {gibibytes(estimate.host)} of weights in the host's memory" if estimate.host else ""
    say(f"\nat most {gibibytes(peak.total)}, at '{peak.name}'; the largest item: {largest}{host}")
    if device is not None:
        _show_fit(plan, device)


def _show_fit(plan: CallPlan, device: Device) -> None:
    fits = "fits" if plan.requested.fits else "does not fit"
    say(f"{fits} {device.title}, which has {gibibytes(device.usable)} available")
    if plan.requested.fits:
        return
    other = plan.fastest()
    if other is None:
        say("no offload or quantisation makes it fit: take a smaller size, or patch-cascade")
    else:
        host = f" ({gibibytes(other.host)} of the host)" if other.host else ""
        # weights that stay on the device leave the VAE little memory: it works in more, smaller tiles
        faster = other.total < plan.requested.total and other.vae_memory > plan.requested.vae_memory
        why = ", faster since its VAE has more memory" if faster else ""
        takes = f"{gibibytes(other.peak.total)}{host}, some {duration(other.total)}{why}"
        say(f"fits with {other.placement.flags}: {takes}")


def _show_times(plan: CallPlan) -> None:
    times = plan.requested.seconds
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.items() if seconds >= 0.05)
    takes = "takes some" if plan.requested.fits else "would take, if it fitted, some"
    say(f"{takes} {duration(plan.requested.total)}" + (f": {parts}" if parts else ""))
    windows = any(call.windows for stage in plan.stages for call in stage.stage.calls)
    gathered = "; memory of windows is that of the gathered back end, and a GPU uses FlexAttention"
    say(
        f"estimated, not measured: operations at {LINEAR:.0%} (linear), {ATTENTION:.0%} (attention) and "
        f"{CONVOLUTION:.0%} (VAE) of what the data sheet says{gathered if windows else ''}"
    )


def _span(values: Any) -> str:
    found = sorted(set(values))
    texts = [f"{value:,}" if value < 10**6 else count(value) for value in found]
    return "-" if found == [0] else texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def count(number: float) -> str:
    """Format a number as `1.2 P`: three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g} {prefix}".strip()
        number /= 1000
    return f"{number:.3g} E"
