"""What an image costs from a thousand images to a million: header-only curation, by step of the run.

    python -m benchmarks.growth [MOST]

Images are hard links to a few small files, so that each is a row of its own and the disk plays no part.
Every size runs in a process of its own, on two local workers, and costs are CPU seconds. The claim is about
the images that a size adds to the one before: each costs at most a tenth more than those added before it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.claims import conclude
from benchmarks.curation.engines import hard_links, header_plan, small_images
from uhr.base.console import say, table

SIZES = (1_000, 10_000, 100_000, 1_000_000)
WORKERS = 2
MOST_GROWTH = 1.1

STEPS = {
    "list": ("uhr.curate.run.job", "list_source"),
    "units": ("uhr.curate.run.execution", "run_tasks"),
    "commit": ("uhr.curate.run.job", "commit"),
    "report": ("uhr.manifests.report", "write_report"),
}
"""Functions that the driver calls, by the step that each is."""


def measured(source: Path, out: Path) -> dict[str, Any]:
    """Curate a folder in this process and its workers. Returns CPU seconds of the driver by step, and of the
    workers; wall seconds; the peak memory of the driver and of a worker in MiB.
    """
    from uhr.curate.run.job import CurationRequest, run
    from uhr.manifests.sources.folder import Folder
    from uhr.runtime.pool import Pool

    seconds = dict.fromkeys(STEPS, 0.0)
    for step, (module, name) in STEPS.items():
        owner = importlib.import_module(module)
        setattr(owner, name, _timed(getattr(owner, name), step, seconds))
    start, begun = time.perf_counter(), time.process_time()
    with contextlib.redirect_stderr(io.StringIO()):
        run(CurationRequest(header_plan(), Folder.at(source), out, Pool("local", WORKERS)), command_for=str)
    driver = time.process_time() - begun
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        **seconds,
        "other": driver - sum(seconds.values()),
        "workers": workers.ru_utime + workers.ru_stime,
        "wall": time.perf_counter() - start,
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker MiB": workers.ru_maxrss / 1024,
    }


def _timed(function: Callable[..., Any], step: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            seconds[step] += time.process_time() - start

    return call


def _in_a_process(source: Path, out: Path) -> dict[str, Any]:
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.growth import measured; "
        "print(json.dumps(measured(Path(sys.argv[1]), Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, str(source), str(out)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _row(size: int, found: dict[str, Any], total: float, added: float | None) -> list[Any]:
    steps = [f"{found[name]:.2f}" for name in (*STEPS, "other", "workers")]
    each = "" if added is None else f"{added * 1e6:.1f}"
    return [f"{size:,}", *steps, f"{total:.2f}", each, round(found["MiB"]), round(found["worker MiB"])]


def main(arguments: list[str] | None = None) -> None:
    """Print what each size costs; exit code 1 if the cost of an image grows."""
    most = int(arguments[0]) if arguments else SIZES[-1]
    rows, costs = [], []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        originals = small_images(scratch / "originals")
        for size in (size for size in SIZES if size <= most):
            source = hard_links(scratch / str(size), originals, size)
            found = _in_a_process(source, scratch / f"out{size}")
            total = sum(found[name] for name in (*STEPS, "other", "workers"))
            added = None if not costs else (total - costs[-1][1]) / (size - costs[-1][0])
            costs.append((size, total))
            rows.append((size, found, total, added))
            say(json.dumps({"images": size, **{name: round(value, 3) for name, value in found.items()}}))
    head = ["images", *(f"{name} s" for name in STEPS), "other s", "workers s", "CPU s", "us per added image"]
    table([*head, "driver MiB", "worker MiB"], [_row(*row) for row in rows])
    each = [added for *_, added in rows if added is not None]
    growth = max((later / before for before, later in itertools.pairwise(each)), default=1.0)
    text = f"an added image costs at most {MOST_GROWTH:g} of those before"
    conclude({f"{text}: {growth:.2f}": growth <= MOST_GROWTH})


if __name__ == "__main__":
    main(sys.argv[1:])
