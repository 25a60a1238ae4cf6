"""Which metrics of a protocol can be computed with what the user has named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from uhr.base.console import counted, warn
from uhr.base.errors import UserError, unknown
from uhr.base.files import user_path
from uhr.models.scores.weights import Weights
from uhr.train.evaluate.protocol import EvalProtocol, MetricUse
from uhr.train.evaluate.result import MissingMetric
from uhr.train.evaluate.scoring import ChosenMetric

Options = Mapping[str, Mapping[str, Any]]
"""By the name of a metric in the protocol: options that the user gave, which name weights."""


def parse_weights(protocol: EvalProtocol, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse `METRIC=PATH` or `METRIC.OPTION=VALUE` of a command; METRIC may be several names with commas.

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
        options = list(about.weights or about.optional)
        allowed = [*about.weights, *about.optional]
        if option is None:
            if len(options) != 1:
                names = ", ".join(f"{name}.{each}" for each in options) or "none"
                raise UserError(f"--weights {text}: {name} has {len(options)} options for weights", names)
            option = options[0]
        elif option not in allowed:
            raise unknown("option for weights", option, allowed, f"--weights {text}")
        found.setdefault(name, {})[option] = _value(value)
    return found


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
    if left and not allow_missing:
        reasons = "; ".join(f"{each.metric}: {each.reason}" for each in left[:3])
        more = f"; and {len(left) - 3} more" if len(left) > 3 else ""
        what = (
            f"{counted(len(left), 'metric')} of {len(protocol.metrics)} cannot be computed: {reasons}{more}"
        )
        raise UserError(what, "name what they need, or leave them out with --allow-missing")
    if not chosen:
        what = f"no metric of {protocol.name} can be computed: {left[0].metric}: {left[0].reason}"
        raise UserError(what, "name what one of them needs")
    for each in grouped(left):
        warn(f"left out: {each}")
    return chosen, left


def grouped(missing: Sequence[MissingMetric]) -> list[str]:
    """A line per reason: `fid, kid: there are no references`."""
    names: dict[str, list[str]] = {}
    for each in missing:
        names.setdefault(each.reason, []).append(each.metric)
    return [f"{', '.join(found)}: {reason}" for reason, found in names.items()]


def _reason(use: MetricUse, options: Mapping[str, Any], references: str | None) -> str | None:
    """Why a metric cannot be computed; None if it can."""
    from uhr.models.metrics.registry import metric_class

    made: Any = metric_class(use.metric)
    for option in made.about.weights:
        field = made.Options.model_fields[option]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if options.get(option, default) is None:
            given = f"METRIC.{option}=PATH" if len(made.about.weights) > 1 else "METRIC=PATH"
            return f"its weights are not named (--weights {given}; `uhr eval metrics` says which)"
        if isinstance(value := options.get(option), str) and _names_a_file(value):
            try:
                Weights.parse(value)
            except UserError as error:
                raise UserError(f"--weights {use.name}: {error.what}", error.fix) from None
    if "reference" not in made.needs:
        return None
    if references is None:
        return "there are no references (--references)"
    if references != "paired" and not hasattr(made, "compare"):
        return "it compares each image with a reference of its own, and the references are not paired"
    return None


def _names_a_file(value: str) -> bool:
    """Whether a value is a path or a hub id, and not the name of a backbone."""
    return "/" in value or Path(value).suffix != ""
