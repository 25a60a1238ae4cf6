"""Which metrics of a protocol can be computed with what the user has named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from uhr.base.console import counted, progress, warn
from uhr.base.errors import UserError, unknown
from uhr.base.files import user_path
from uhr.models.metrics.base import About
from uhr.models.scores.weights import Weights
from uhr.train.evaluate.images import ImageRef, References
from uhr.train.evaluate.prompts import EvalItem
from uhr.train.evaluate.protocol import EvalProtocol, MetricUse
from uhr.train.evaluate.result import MissingMetric
from uhr.train.evaluate.scoring.work import ChosenMetric

FEWEST = 50
"""With fewer images than this, distances of distributions are dominated by the size of the sample."""

MOST_REASONS = 3
"""Reasons that an error states."""

Options = Mapping[str, Mapping[str, Any]]
"""By the name of a metric in the protocol: options that the user gave, which name weights."""


def parse_weights(protocol: EvalProtocol, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse `METRIC=PATH` or `METRIC.OPTION=VALUE` of a command; METRIC may be several names with commas, and
    alone is its option `weights`, or its only one that names weights.

    Raises UserError if the protocol has no such metric, if the metric names no weights by such an option, or
    if a path does not exist. Other options are part of the protocol: `--set` changes them, and its id.
    """
    from uhr.models.metrics.registry import metric_class

    uses = {use.name: use for use in protocol.metrics}
    found: dict[str, dict[str, Any]] = {}
    for text, left, value in _single(texts):
        name = left if left in uses else left.rpartition(".")[0]
        option = None if left in uses else left.rpartition(".")[2]
        if name not in uses:
            raise unknown("metric", left.partition(".")[0], uses, f"--weights {text}")
        about = metric_class(uses[name].metric).about
        allowed = [*about.weights, *about.optional]
        if option is None and (option := _main_option(about)) is None:
            names = ", ".join(f"{name}.{each}" for each in allowed) or "none"
            raise UserError(f"--weights {text}: {name} has {len(allowed)} options for weights", names)
        if option not in allowed:
            raise unknown("option for weights", option, allowed, f"--weights {text}")
        found.setdefault(name, {})[option] = _value(value)
    return found


def _main_option(about: About) -> str | None:
    """The option that `--weights METRIC=PATH` is: `weights`, or the only one that names weights; None if
    there is none, or if there are several.
    """
    options = [*about.weights, *about.optional]
    if "weights" in options:
        return "weights"
    options = list(about.weights or about.optional)
    return options[0] if len(options) == 1 else None


def _single(texts: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The text, the metric and the value of each assignment: `fid,kid=PATH` are two."""
    for text in texts:
        left, equals, value = text.partition("=")
        if not equals or not value:
            raise UserError(f"--weights {text}", "write METRIC=PATH, or METRIC.OPTION=PATH")
        for each in left.split(","):
            yield text, each.strip(), value


def _value(text: str) -> Any:
    """A path as it is, where it exists; else what YAML reads, for lists."""
    if user_path(text).exists():
        return str(user_path(text).absolute())
    value = yaml.safe_load(text)
    return value if isinstance(value, list | dict) else text


def choose(
    protocol: EvalProtocol,
    weights: Options,
    references: str | None,
    allow_missing: bool,
) -> tuple[list[ChosenMetric], list[MissingMetric]]:
    """Divide the protocol's metrics into those that can be computed and those that cannot. Nothing is loaded.

    Args:
        references: how the references are known: "set", "paired", or None if there are none.

    Raises UserError with the reasons if some cannot be computed and `allow_missing` is false, if none can, or
    for an unknown metric or option.
    """
    chosen, left = [], []
    for use in protocol.metrics:
        options = {**use.options, **weights.get(use.name, {})}
        reason = _reason(use, options, references)
        if reason is None:
            chosen.append(ChosenMetric(use.name, use.metric, options, use.name in weights))
        else:
            left.append(MissingMetric(metric=use.name, reason=reason))
    _report(left, len(protocol.metrics), "name what they need", allow_missing)
    return chosen, left


def sufficient(
    chosen: Sequence[ChosenMetric],
    items: Sequence[EvalItem],
    references: References | None,
    allow_missing: bool,
) -> tuple[list[ChosenMetric], list[MissingMetric]]:
    """Divide metrics into those for which there are enough images, large enough ones, and the others. Nothing
    is loaded.

    Raises UserError with the reasons if there are others and `allow_missing` is false, if all are, or for an
    option that a metric does not take.
    """
    enough, left = [], []
    sizes = {} if references is None else _sizes(references)
    for each in chosen:
        reason = _too_little(each, items, references, sizes)
        if reason is None:
            enough.append(each)
        else:
            left.append(MissingMetric(metric=each.name, reason=reason))
    _report(left, len(chosen), "give more images, or larger ones", allow_missing)
    sets = [each.name for each in enough if each.metric.startswith(("fid", "kid", "inception"))]
    if len(items) < FEWEST and sets:
        warn(f"{len(items)} images are few for {', '.join(sets)}: compare only results of the same number")
    return enough, left


def _too_little(
    chosen: ChosenMetric,
    items: Sequence[EvalItem],
    references: References | None,
    sizes: Mapping[ImageRef, tuple[int, int]],
) -> str | None:
    """Why there are too few images for a metric, or too small ones; None if there are enough.

    sizes: width and height of the references in px.
    """
    from uhr.models.metrics.registry import minimum

    least = minimum(chosen.metric, chosen.options)
    if len(items) < least.images:
        return f"it needs {least.images} images or more, and there are {len(items)}"
    small = next((item for item in items if min(item.size) < least.side), None)
    if small is not None:
        return f"it needs {least.side} px on each side, and {small.name} has {_px(small.size)}"
    if references is None:
        return None
    count = len(references.distinct)
    if count < least.references:
        return f"it needs {least.references} references or more, and there are {count}"
    for ref, size in sizes.items():
        if min(size) < least.references_side:
            what = f"and the reference {ref.name} has {_px(size)}"
            return f"it needs {least.references_side} px on each side, {what}"
    if least.same_size and references.kind == "paired":
        for item, ref in zip(items, references.refs, strict=True):
            if sizes[ref] != item.size:
                of = f"{item.name} has {_px(item.size)} and its reference {_px(sizes[ref])}"
                return f"it compares pixels, and {of}"
    return None


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"


def _sizes(references: References) -> dict[ImageRef, tuple[int, int]]:
    """Width and height of each reference in px: the patches of an image have one name and several sizes.
    Raises UserError for a file that is no image, or cut off.
    """
    found = {}
    with progress("sizes", len(references.distinct), "references") as advance:
        for ref in references.distinct:
            found[ref] = ref.size()
            ref.check_end()
            advance()
    return found


def _report(left: Sequence[MissingMetric], count: int, fix: str, allow_missing: bool) -> None:
    """Warn of metrics that are left out. Raises UserError if that is not allowed, or if none is left."""
    if left and not allow_missing:
        lines = grouped(left)
        more = f"; and {len(lines) - MOST_REASONS} more" if len(lines) > MOST_REASONS else ""
        reasons = "; ".join(lines[:MOST_REASONS])
        what = f"{counted(len(left), 'metric')} of {count} cannot be computed: {reasons}{more}"
        raise UserError(what, f"{fix}, or leave them out with --allow-missing")
    if len(left) == count:
        what = f"no metric can be computed: {left[0].metric}: {left[0].reason}"
        raise UserError(what, fix)
    for each in grouped(left):
        warn(f"left out: {each}")


def grouped(missing: Sequence[MissingMetric]) -> list[str]:
    """A line per reason: `fid, kid: there are no references`."""
    names: dict[str, list[str]] = {}
    for each in missing:
        names.setdefault(each.reason, []).append(each.metric)
    return [f"{', '.join(found)}: {reason}" for reason, found in names.items()]


def _reason(use: MetricUse, options: Mapping[str, Any], references: str | None) -> str | None:
    """Everything for which a metric cannot be computed; None if it can."""
    from uhr.models.metrics.registry import metric_class

    made: Any = metric_class(use.metric)
    found = []
    for option, get in made.about.weights.items():
        field = made.Options.model_fields[option]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if options.get(option, default) is None:
            given = "METRIC=PATH" if option == _main_option(made.about) else f"METRIC.{option}=PATH"
            found.append(f"--weights {given}: {get}")
        elif isinstance(value := options.get(option), str) and _names_a_file(value):
            try:
                Weights.parse(value)
            except UserError as error:
                raise UserError(f"--weights {use.name}: {error.what}", error.fix) from None
    reasons = [f"its weights are not named ({'; '.join(found)})"] if found else []
    # what a program or function of the user's own needs is one of its options
    if "reference" in {*made.needs, *options.get("needs", ())}:
        if references is None:
            reasons.append("there are no references (--references)")
        elif references != "paired" and not hasattr(made, "compare"):
            of = "it compares each image with a reference of its own"
            reasons.append(f"{of}, and the references are not paired")
    return ", and ".join(reasons) or None


def _names_a_file(value: str) -> bool:
    """Whether a value is a path or a hub id, and not the name of a backbone."""
    return "/" in value or Path(value).suffix != ""
