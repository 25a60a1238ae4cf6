"""Runs both sides of a row, each in a process of its own, and measures how far they are apart."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.certify.compare import Deviation, compare
from benchmarks.certify.rows import Row, check_commit
from uhr.base.console import say
from uhr.base.errors import UserError, one_line
from uhr.base.files import write_json

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Call:
    """What the user chose for all rows. None is the row's own value.

    weights, official: folders of weights and clones. work: folder for images, latents and logs. commit: of
    the official code, in place of the row's.
    """

    weights: Path
    official: Path
    work: Path
    prompt: str
    seed: int = 0
    size: tuple[int, int] | None = None
    steps: int | None = None
    dtype: str = "bfloat16"
    device: str = "cuda"
    offload: bool = False
    python: Path | None = None
    commit: str | None = None


def certify(row: Row, call: Call) -> dict[str, Any]:
    """Run a row, and return it as the results keep it. Raises UserError for a clone at another commit, a side
    that fails, and sizes that differ."""
    clone = (call.official / row.clone).resolve()
    commit = check_commit(clone, call.commit or row.commit)
    job = _job(row, call)
    found: dict[str, dict[str, Any]] = {}
    folders = {side: call.work / row.name / side for side in ("ours", "official")}
    for side in folders:
        say(f"{row.name}: {'our code' if side == 'ours' else f'the official code at {commit[:7]}'}")
        folder = _emptied(folders[side])
        noise = folders["ours"] / "noise.safetensors"
        own = {"out": str(folder), "repository": str(clone), "noise": str(noise)}
        if side == "ours":
            command = [sys.executable, "-m", "benchmarks.certify.ours"]
        else:
            command = [str(_python(call, clone)), "-m", "benchmarks.certify.official"]
        found[side] = _run(row, side, command, {**job, **own})
    deviation = compare(folders["ours"], folders["official"], found)
    return _result(row, job, commit, found, deviation)


def _job(row: Row, call: Call) -> dict[str, Any]:
    from uhr.models.loading.opening import open_model

    model = row.model.path(call.weights).resolve()
    native = open_model(str(model), fetch=False).spec.native_size
    width, height = call.size or row.sides(native)
    steps, options = call.steps or row.steps, dict(row.options)
    if "base_steps" in options:
        # the official code has one number for all stages
        options["base_steps"] = steps
    transformer = None if row.transformer is None else row.transformer.path(call.weights).resolve()
    return {
        "row": row.name,
        "driver": row.driver,
        "sampler": row.sampler,
        "options": options,
        "model": str(model),
        "adapters": [str(each.path(call.weights).resolve()) for each in row.adapters],
        "transformer": None if transformer is None else str(transformer),
        "official_files": [str(each.path(call.weights).resolve()) for each in row.official_files],
        "native": native,
        "prompt": call.prompt,
        "seed": call.seed,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance": row.guidance,
        "dtype": call.dtype,
        "device": call.device,
        "offload": call.offload,
        "vae_tiling": row.vae_tiling,
    }


def _emptied(folder: Path) -> Path:
    """The folder without what an earlier run has left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*folder.glob("*.safetensors"), *folder.glob("rounded/*.safetensors"), folder / "image.png"]:
        file.unlink(missing_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    return folder.resolve()


def _python(call: Call, clone: Path) -> Path:
    """The interpreter of the official side: the user's, that of an environment in the clone, or this one."""
    own = clone / ".venv" / "bin" / "python"
    return call.python or (own if own.exists() else Path(sys.executable))


def _run(row: Row, side: str, command: Sequence[str], job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one side and return its result.json. Its output is in log.txt beside it."""
    folder = Path(job["out"])
    file, log = folder / "job.json", folder / "log.txt"
    write_json(file, job)
    # for `benchmarks`, from any working folder; the official side puts the official code before it
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_inherited()])}
    code = start([*command, str(file)], env, log)
    if code != 0 or not (folder / "result.json").exists():
        lines = [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        said = one_line(lines[-1]) if lines else "it printed nothing"
        name = "our code" if side == "ours" else "the official code"
        raise UserError(
            f"{row.name}: {name} failed with exit code {code} ({said})", f"its output is in {log}"
        )
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def start(command: Sequence[str], env: Mapping[str, str], log: Path) -> int:
    """Run a command with its output in a file; return its exit code. Raises UserError if there is no such
    program."""
    with log.open("wb") as file:
        try:
            done = subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, check=False)
        except OSError as error:
            what = f"{command[0]} cannot be run ({one_line(error.strerror)})"
            raise UserError(what, "name an interpreter with --python") from error
    return done.returncode


def _inherited() -> list[str]:
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def _result(
    row: Row, job: Mapping[str, Any], commit: str, found: Mapping[str, dict[str, Any]], deviation: Deviation
) -> dict[str, Any]:
    kept = ("prompt", "seed", "width", "height", "steps", "guidance", "dtype", "offload", "options")
    sides = {
        side: {name: each[name] for name in ("seconds", "peak", "steps", "calls", "device", "versions")}
        for side, each in found.items()
    }
    return {
        "row": row.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "verdict": deviation.verdict(row.tolerance),
        "limit": deviation.limit(row.tolerance),
        "tolerance": row.tolerance,
        "repository": row.repository,
        "commit": commit,
        "spec": found["ours"]["spec"],
        "weights": found["ours"]["weights"],
        "adapters": found["ours"]["adapters"],
        "call": {name: job[name] for name in kept},
        **asdict(deviation),
        **sides,
    }
