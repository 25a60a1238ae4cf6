"""Sets of tiny images by command, in this process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path, tiny_flux) -> None:
    """In a folder of its own, with the tests' own sampler `moody:Moody` to be found, and `tiny` the model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    # prepended: other processes import the packages from where this one does
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    (tmp_path / "tiny").symlink_to(tiny_flux)


class Made:
    """What a command left: its exit code, what it printed, and the folder of the set."""

    def __init__(self, code: int, out: str, err: str, folder: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.folder = Path(folder)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / "set.parquet").to_pylist()

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "set.json").read_text())

    @property
    def files(self) -> dict[str, bytes]:
        """Every file of the set by its name."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    @property
    def error(self) -> str:
        """The one line on stderr that is an error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("uhr: ")]
        assert "Traceback" not in self.err
        return line


@pytest.fixture
def make(capfd):
    """`make(prompts, *options)`: `uhr sample euler --prompts ...` into ./out; of texts or objects."""
    from uhr.cli import main

    def run(prompts: list[Any] | None, *options: Any, out: Any = "out", sampler: str = "euler") -> Made:
        arguments = ["sample", sampler, "--model", "tiny", "--device", "cpu"]
        if "--size" not in options:
            arguments += ["--size", "64x64", "--steps", "1"]
        if prompts is not None:
            lines = [json.dumps({"prompt": p} if isinstance(p, str) else p) + "\n" for p in prompts]
            Path("prompts.jsonl").write_text("".join(lines))
            arguments += ["--prompts", "prompts.jsonl"]
        capfd.readouterr()
        if not any(str(option) in ("--engine", "--workers") for option in options):
            arguments += ["--workers", "0"]
        code = main([*arguments, "--out", str(out), *map(str, options)])
        return Made(code, *capfd.readouterr(), str(out))

    return run


GENERATE = """
import sys
from uhr.cli import main
from uhr.runtime import threads

workers = int(sys.argv[1])
threads.threads_here = lambda: workers  # one thread for each worker, on any machine: the same last bits
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def killed(warm, full_texts):
    """`killed(engine, workers, out, done)`: start the command, and send it SIGKILL as soon as `done()`.

    Its workers generate with the real text length, and so does the test.
    """

    def kill(engine: str, workers: int, out: str, done: Callable[[], bool]) -> None:
        command = ["sample", "moody:Moody", "--model", "tiny", "--size", "64x64", "--steps", "1"]
        command += ["--device", "cpu", "--prompts", "prompts.jsonl", "--engine", engine]
        command += ["--workers", str(workers), "--out", out]
        process = warm.start(["-c", GENERATE, workers, *command], warm_workers=True)
        while not done():
            assert process.poll() is None, process.stderr()
            time.sleep(0.02)
        process.kill()
        process.wait(20)
        time.sleep(0.5)  # its workers end with it, but not at the same moment

    return kill


@pytest.fixture
def stamps() -> Callable[[str], dict[Path, int]]:
    """`stamps(folder)`: when each file below it was written."""

    def found(folder: str) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}

    return found
