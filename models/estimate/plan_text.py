"""A plan as JSON for machines and as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uhr.base.console import counted, say, table
from uhr.models.estimate.devices import ATTENTION, CONVOLUTION, LINEAR, Device
from uhr.models.estimate.plan import Plan, StagePlan
from uhr.models.families.text import TokenCount, notes_of
from uhr.models.samplers.core import guidance as guidance_text


def describe(plan: Plan, counts: Sequence[TokenCount] | None = None) -> dict[str, Any]:
    """Everything of it as JSON; sizes in bytes and px, times in seconds. `counts`: of its prompts, where they
    were counted."""
    method, call, device, price = plan.method, plan.call, plan.device, plan.asked
    told: dict[str, Any] = {
        "sampler": method.request.sampler,
        "model": method.spec.name,
        "width": call.width,
        "height": call.height,
        "guidance": call.guidance,
        "dtype": plan.dtype,
        **vars(price.way),
        "stages": [_stage(stage) for stage in plan.stages],
        "model_calls": plan.model_calls,
        "operations": price.operations._asdict(),
        **({} if counts is None else describe_counts(counts)),
        "memory": {
            "peak": price.peak.total,
            "at": price.peak.name,
            "largest": price.peak.largest,
            "host": price.host,
            "phases": [{"name": phase.name, **phase.held, "total": phase.total} for phase in price.phases],
        },
    }
    if device is None:
        return told
    told["on"] = {
        "name": device.name,
        "title": device.title,
        "memory": device.memory,
        "assumed": plan.assumed,
    }
    told["memory"]["fits"] = price.fits
    told["seconds"] = {**price.seconds, "total": price.total}
    told["shares_of_peak"] = {"linear": LINEAR, "attention": ATTENTION, "convolution": CONVOLUTION}
    if not price.fits:
        other = plan.fastest()
        told["instead"] = other and {
            **vars(other.way),
            "peak": other.peak.total,
            "host": other.host,
            "seconds": other.total,
        }
    return told


def describe_counts(counts: Sequence[TokenCount]) -> dict[str, Any]:
    """The tokens of prompts as JSON, with a note for each kind of text that is cut; no counts where the
    tokenizers are not on this machine."""
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
    """For people: what of the prompts will not be read."""
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
        "vae": [vars(coding) for coding in stage.stage.codings],
        "operations": stage.backbone._asdict(),
    }


def show(plan: Plan) -> None:
    """For people."""
    method, call, device, way = plan.method, plan.call, plan.device, plan.asked.way
    where = "" if device is None else f", on {device.title}"
    where += " (no GPU is here: --on NAME plans for another)" if plan.assumed else ""
    guidance = guidance_text.describe([each.stage.guidance for each in plan.stages])
    flags = "".join(f", {kind}" for kind in (way.offload and f"offload {way.offload}", way.quantize) if kind)
    say(
        f"{method.request.sampler} on {method.spec.name}, {call.width}x{call.height}, {guidance}, "
        f"{plan.dtype}{flags}{where}: planned from shapes, nothing is loaded\n"
    )
    if call.planned != (call.height, call.width):
        height, width = call.planned
        say(f"painted as {width}x{height} and cut\n")
    _show_stages(plan)
    say()
    _show_memory(plan)
    if device is not None:
        say()
        _show_times(plan)


def _show_stages(plan: Plan) -> None:
    rows = []
    for each in plan.stages:
        seconds = [] if plan.device is None else [duration(plan.asked.seconds[each.stage.name])]
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
    whole = count(plan.asked.operations.total)
    say(f"\n{counted(plan.model_calls, 'call')} of the backbone{twice}; {whole} operations in all")


def _show_memory(plan: Plan) -> None:
    price, device, peak = plan.asked, plan.device, plan.asked.peak
    rows = []
    for phase in price.phases:
        weights = sum(size for name, size in phase.held.items() if "weights" in name or "layer" in name)
        rest = phase.total - weights
        rows.append([phase.name, gib(weights), gib(rest) if rest else None, gib(phase.total)])
    table(["on the device", "weights", "at work", "in all"], rows)
    largest = f"{peak.largest}, {gib(peak.held[peak.largest])}"
    host = f"; {gib(price.host)} of weights in the host's memory" if price.host else ""
    say(f"\nat most {gib(peak.total)}, at '{peak.name}'; the largest item: {largest}{host}")
    if device is not None:
        _show_fit(plan, device)


def _show_fit(plan: Plan, device: Device) -> None:
    fits = "fits" if plan.asked.fits else "does not fit"
    say(f"{fits} {device.title}, which has {gib(device.usable)} to give")
    if plan.asked.fits:
        return
    other = plan.fastest()
    if other is None:
        say("nothing that can be told of its weights makes it fit: take a smaller size, or patch-cascade")
    else:
        host = f" ({gib(other.host)} of the host)" if other.host else ""
        # weights that stay leave the VAE little: it works in smaller tiles, and more of them
        faster = other.total < plan.asked.total and other.room > plan.asked.room
        why = ", faster since its VAE has more room" if faster else ""
        say(f"fits with {other.way.flags}: {gib(other.peak.total)}{host}, some {duration(other.total)}{why}")


def _show_times(plan: Plan) -> None:
    times = plan.asked.seconds
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in times.items() if seconds >= 0.05)
    takes = "takes some" if plan.asked.fits else "would take, if it fitted, some"
    say(f"{takes} {duration(plan.asked.total)}" + (f": {parts}" if parts else ""))
    windows = any(call.windows for stage in plan.stages for call in stage.stage.calls)
    gathered = "; memory of windows as by the gathered back end, where a GPU takes FlexAttention"
    say(
        f"estimated, not measured: operations at {LINEAR:.0%} (linear), {ATTENTION:.0%} (attention) and "
        f"{CONVOLUTION:.0%} (VAE) of what the data sheet says{gathered if windows else ''}"
    )


def _span(values: Any) -> str:
    found = sorted(set(values))
    words = [f"{value:,}" if value < 10**6 else count(value) for value in found]
    return "-" if found == [0] else words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"


def count(number: float) -> str:
    """`1.2 P`: three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g} {prefix}".strip()
        number /= 1000
    return f"{number:.3g} E"


def gib(size: float) -> str:
    """In GiB, as GPUs are sold and drivers count."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """`0.4 s`, `32 s`, `2 min 22 s`, `1 h 20 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
