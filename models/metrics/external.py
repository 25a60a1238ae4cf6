"""Metrics of the user's own: a program that reads and writes JSON lines, or a function in Python."""

from __future__ import annotations

import contextlib
import inspect
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import Field

from uhr.base.config import Config
from uhr.base.errors import UserError, load_object, one_line
from uhr.base.files import sha256_file, user_path
from uhr.models.metrics.base import About, Better, Need, Sample, ScoreColumn
from uhr.models.metrics.per_image import PerImage
from uhr.pixels.decode import png

_NAME = r"[A-Za-z][A-Za-z0-9_.-]*"


class _OwnOptions(Config):
    """name: of the metric in results. columns: each number that it gives, with higher, lower or null for
    what is better. needs: what each image must have beside it.
    """

    name: str = Field(pattern=f"^{_NAME}$")
    columns: dict[str, Better | None] = Field(min_length=1)
    needs: tuple[Need, ...] = ()


class Own(PerImage):
    """Base of both: the columns are the user's."""

    def __init__(self, kind: str, options: _OwnOptions, depends_on: Mapping[str, Any]) -> None:
        super().__init__(f"{kind}/{options.name}", weights=depends_on)
        self.needs = frozenset(options.needs)
        self.columns = tuple(
            ScoreColumn(name, better, f"{name} of the metric {options.name}")
            for name, better in options.columns.items()
        )

    def numbers(self, sample: Sample, found: Any) -> list[float]:
        """Return the columns' numbers in what the user's code gave. Raises UserError if one is missing."""
        for column in self.columns:
            value = found.get(column.name) if isinstance(found, Mapping) else None
            if isinstance(value, bool) or not isinstance(value, Real):
                given = one_line(json.dumps(found, default=str))[:120]
                what = f"{self.name} gave for image {sample.index} {given}"
                raise UserError(what, f"it must give a number for {column.name}")
        return [float(found[column.name]) for column in self.columns]


class Command(Own):
    """A program that stays open: it reads one JSON object per line from its standard input, and answers
    each with one line on its standard output.

    It is given {"index": 3, "image": "/path.png", "prompt": "...", "reference": "/path.png"} (prompt and
    reference may be null) and answers {"scores": {"COLUMN": 1.5}} or {"error": "..."}. An image that is not
    a file is written as a PNG.
    """

    about = About("whatever a program of the user's own measures", "the program's", "JSON lines")

    class Options(_OwnOptions):
        """command: the program with its arguments; no shell is involved. seconds: the longest time for one
        image.
        """

        command: tuple[str, ...] = Field(min_length=1)
        seconds: float = Field(600.0, gt=0)

    def __init__(self, options: Options) -> None:
        super().__init__("command", options, {"command": [_part(part) for part in options.command]})
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> Command:
        return cls(options)

    def values(self, sample: Sample) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="uhr-metric-") as folder:
            reference = None
            if sample.reference is not None:
                reference = str(_written(sample.reference, Path(folder) / "reference.png"))
            image = sample.path or _written(sample.image, Path(folder) / "image.png")
            request = {
                "index": sample.index,
                "image": str(Path(image).absolute()),
                "prompt": sample.prompt,
                "reference": reference,
            }
            answer = self._ask(json.dumps(request))
        try:
            tree = json.loads(answer)
        except ValueError:
            raise UserError(
                f"{self.name} answered {one_line(answer)[:120]!r}", "it must write one JSON object per line"
            ) from None
        if isinstance(tree, dict) and "error" in tree:
            raise UserError(
                f"{self.name} failed for image {sample.index}: {one_line(tree['error'])[:300]}",
                "see the program",
            )
        return self.numbers(sample, tree.get("scores") if isinstance(tree, dict) else tree)

    def _ask(self, line: str) -> str:
        process = self._running()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: the lines say so
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        try:
            answer = self._lines.get(timeout=self._options.seconds)
        except queue.Empty:
            self.close()
            what = f"{self.name} gave no answer within {self._options.seconds:g} s"
            raise UserError(what, "give it more seconds, and let it flush after each line") from None
        if not answer:
            code = process.wait()
            self.close()
            raise UserError(f"{self.name} ended with code {code}", "see what it wrote to standard error")
        return answer

    def _running(self) -> subprocess.Popen[str]:
        """The program, which is started with the first image."""
        if self._process is None:
            try:
                self._process = subprocess.Popen(
                    self._options.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    # what is not UTF-8 is then no JSON, which is reported
                    errors="replace",
                )
            except OSError as error:
                what = f"{self._options.command[0]} cannot be started ({one_line(error)})"
                raise UserError(what, "name a program") from error
            self._lines = queue.Queue()
            threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        return self._process

    def close(self) -> None:
        """End the program. It is started again for the next image."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()


def _part(text: str) -> str | dict[str, str]:
    """A part of a command for an identity: a file is what it contains, wherever it is."""
    path = user_path(text)
    return {"file": path.name, "sha256": sha256_file(path)} if path.is_file() else text


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Put every line of a program into `lines`, and an empty text at its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.strip():
                lines.put(line)
    lines.put("")


def _written(pixels: Any, path: Path) -> Path:
    path.write_bytes(png(pixels))
    return path


class Function(Own):
    """A function in Python: it is called with image [h, w, 3] uint8, prompt and reference (both may be None),
    and returns a mapping of column -> number.
    """

    about = About("whatever a function of the user's own measures", "the function's", "import path")

    class Options(_OwnOptions):
        """function: its import path, `package.module:name`; it takes (image, prompt, reference)."""

        function: str

    def __init__(self, options: Options) -> None:
        self._function = load_object(options.function, "function")
        if not callable(self._function):
            raise UserError(f"{options.function} is not a function", "name one as package.module:name")
        _check_parameters(self._function, options.function)
        super().__init__("function", options, {"function": options.function, **source_hash(self._function)})

    @classmethod
    def load(cls, options: Options, device: str = "cpu") -> Function:
        return cls(options)

    def values(self, sample: Sample) -> list[float]:
        try:
            found = self._function(sample.image, sample.prompt, sample.reference)
        except UserError:
            raise
        except Exception as error:
            # whatever the user's code raises
            what = f"{self.name} failed for image {sample.index}"
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            raise UserError(f"{what} ({reason})", "see the function") from error
        return self.numbers(sample, found)


def _check_parameters(function: Callable[..., Any], name: str) -> None:
    """Raise UserError if a function cannot be called with an image, a prompt and a reference."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        # some functions that are written in C
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        fix = "a metric's function takes (image, prompt, reference), by position"
        raise UserError(f"{name} has the parameters {signature}", fix) from None


def source_hash(function: Any) -> dict[str, str]:
    """Return the SHA-256 of a function's source under `file`; nothing if it has none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        file = None
    return {} if file is None else {"file": sha256_file(Path(file))}
