"""One table for all parts, written down row by row: a run that is killed keeps what it measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from uhr.base.console import say
from uhr.base.errors import UserError
from uhr.base.files import atomic, write_json


@dataclass(frozen=True)
class Row:
    """One measurement: `seconds` is the time of `what`, and `how` says how it was measured. If it was not,
    `seconds` is None, and `how` says why."""

    part: str
    what: str
    size: str
    variant: str
    seconds: float | None
    how: str
    times: float | None = None
    """How many times faster than the dense variant of the same computation."""

    tflops: float | None = None
    """10^12 operations per second, counted from shapes, without the pairs that a mask excludes."""

    peak: float | None = None
    """Most memory allocated, in GiB."""

    failed: bool = False
    error: float | None = None
    """Largest relative difference from another variant of the same computation."""

    extrapolated: bool = False
    """Whether `seconds` is extrapolated from a few calls. All else in the row is measured."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What was measured."""
        return self.part, self.what, self.size, self.variant


HEAD = ("part", "what", "size", "variant", "seconds", "times", "TFLOP/s", "peak GiB", "how")
_WIDTHS = (9, 14, 4, 32, 9, 6, 7, 8)


def cells(row: Row) -> list[str]:
    """The row as it is shown."""
    numbers = [_number(value) for value in (row.seconds, row.times, row.tflops, row.peak)]
    return [row.part, row.what, row.size, row.variant, *numbers, row.how]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@dataclass
class Table:
    """The rows measured so far: each is printed and, if files are named, written at once.

    facts: the lines above the table. out: a Markdown file. numbers: a JSON file.
    """

    facts: dict[str, str]
    out: Path | None = None
    numbers: Path | None = None
    rows: list[Row] = field(default_factory=list)
    ending: Callable[[Table], list[str]] = lambda table: []
    """Makes the lines below the table from the rows so far."""

    def begin(self) -> None:
        for name, value in self.facts.items():
            say(f"{name}: {value}")
        say()
        say(_line(HEAD))

    def resume(self) -> None:
        """Read the rows of the JSON file, to add to them. Raises UserError if there is none, or if its model,
        device or versions are others."""
        if self.numbers is None or not self.numbers.exists():
            raise UserError("--append needs an existing JSON file", "name it with --json")
        tree = json.loads(self.numbers.read_text(encoding="utf-8"))
        for name in ("model", "device", "versions"):
            if tree["facts"][name] != self.facts[name]:
                what = (
                    f"{self.numbers} is of {name} '{tree['facts'][name]}', and this is '{self.facts[name]}'"
                )
                raise UserError(what, "write another file, without --append")
        self.facts["command"] = f"{tree['facts']['command']}; {self.facts['command']}"
        self.rows = [Row(**row) for row in tree["rows"]]

    def add(self, row: Row) -> None:
        """Add a row; it replaces an older one with the same key."""
        self.rows = [other for other in self.rows if other.key != row.key] + [row]
        say(_line(cells(row)))
        self.write()

    def write(self) -> None:
        if self.out is not None:
            with atomic(self.out) as temporary:
                temporary.write_text(self.markdown(), encoding="utf-8")
        if self.numbers is not None:
            write_json(self.numbers, {"facts": self.facts, "rows": [asdict(row) for row in self.rows]})

    def markdown(self) -> str:
        """The whole report, as `results/` keeps it."""
        lines = ["# Windows and samplers on a GPU", "", "`python -m benchmarks.gpu`, random weights.", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", *(_markdown(row) for row in [HEAD, ["--"] * len(HEAD), *map(cells, self.rows)])]
        return "\n".join([*lines, "", *(f"- {line}" for line in self.ending(self))]) + "\n"

    def find(self, **values: str) -> list[Row]:
        """The rows whose columns have these values, those that failed or were left out as well."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in values.items())]


def _line(parts: Sequence[str]) -> str:
    *columns, how = parts
    shown = [
        part.rjust(width) if i >= 4 else part.ljust(width)
        for i, (part, width) in enumerate(zip(columns, _WIDTHS, strict=True))
    ]
    return "  ".join([*shown, how]).rstrip()


def _markdown(parts: Iterable[str]) -> str:
    return "| " + " | ".join(parts) + " |"


def facts(shape: Any, command: str) -> dict[str, str]:
    """Return what the numbers were measured with, by name: command, model, device, versions."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "model": f"{shape.spec.name}'s shape in {str(shape.dtype).removeprefix('torch.')}",
        "device": f"{platform.machine()} CPU",
        "versions": ", ".join(_versions()),
    }
    if shape.device.type == "cuda":
        properties = torch.cuda.get_device_properties(shape.device)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        found["device"] = f"{properties.name}, {memory}, {properties.multi_processor_count} multiprocessors"
        found["driver"] = f"{_driver()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return found


def _versions() -> Iterable[str]:
    yield f"Python {platform.python_version()}"
    yield f"torch {torch.__version__}"
    for name in ("diffusers", "triton"):
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"no {name}"


def _driver() -> str:
    """The driver's version, as reported by its kernel module."""
    try:
        fields = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError as error:
        return f"driver unknown ({error.strerror})"
    return "driver " + next((word for word in fields if word[:1].isdigit() and "." in word), "unknown")
