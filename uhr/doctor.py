"""`uhr doctor`: what is installed, what works, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from uhr.base.console import emit, progress, say, table
from uhr.base.errors import install
from uhr.base.files import human_bytes


@dataclass(frozen=True)
class Requirement:
    """A package, the module that proves it works, the extra that brings it and what is lost without it."""

    package: str
    module: str
    extra: str
    purpose: str
    licence: str = ""


REQUIREMENTS = (
    Requirement("pyarrow", "pyarrow.parquet", "", "manifests"),
    Requirement("duckdb", "duckdb", "", "rules and slices"),
    Requirement("opencv-python-headless", "cv2", "pictures", "decoding"),
    Requirement("pillow", "PIL.Image", "pictures", "decoding"),
    Requirement("numba", "numba", "pictures", "exact guards"),
    Requirement("ray", "ray.data", "curate", "the ray engine"),
    Requirement("PyWavelets", "pywt", "curate", "wavelets"),
    Requirement("jinja2", "jinja2", "curate", "reports"),
    Requirement("torch", "torch", "models", "models and training"),
    Requirement("diffusers", "diffusers", "models", "models and training"),
    Requirement("transformers", "transformers", "models", "text encoders"),
    Requirement("peft", "peft", "models", "adapters"),
    Requirement("gguf", "gguf", "quantize", "backbones in GGUF files"),
    Requirement("bitsandbytes", "bitsandbytes", "quantize", "quantised weights: nf4, int8"),
    Requirement("torchao", "torchao.quantization", "quantize", "quantised weights: int8wo, float8wo"),
    Requirement("s3fs", "s3fs", "s3", "sets of pictures into an object store"),
    Requirement("datasets", "datasets", "all", "Hugging Face datasets"),
    Requirement("open_clip_torch", "open_clip", "clip", "CLIP scores"),
    Requirement("pyiqa", "pyiqa", "quality", "image quality scores", "PolyForm-Noncommercial-1.0.0"),
    Requirement("ultralytics", "ultralytics", "people", "person detection", "AGPL-3.0"),
)

# ultralytics writes settings and may install packages when it is imported; hubs may be asked. Neither here.
QUIET = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

PROBE = """
import importlib, json, sys
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
        fault = ""
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"
    print(json.dumps([module, fault]), flush=True)
"""


def examine() -> dict[str, Any]:
    """Everything that the doctor knows, as plain data."""
    return {"machine": _machine(), "packages": _packages(), "accelerator": _accelerator()}


def _machine() -> dict[str, Any]:
    import psutil

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def _packages() -> list[dict[str, Any]]:
    """Each package with its version and the fault of its import, if any: installed is not yet working."""
    faults = _import_faults([requirement.module for requirement in REQUIREMENTS])
    rows = []
    for requirement in REQUIREMENTS:
        try:
            version = importlib.metadata.version(requirement.package)
        except importlib.metadata.PackageNotFoundError:
            version = None
        fault = "not installed" if version is None else faults[requirement.module]
        rows.append({**asdict(requirement), "version": version, "works": not fault, "fault": fault})
    return rows


def _import_faults(modules: list[str]) -> dict[str, str]:
    """Import the modules in another process: a crash at import costs the doctor nothing."""
    faults: dict[str, str] = {}
    with progress("packages", total=len(modules)) as advance:
        while left := [module for module in modules if module not in faults]:
            probe = subprocess.Popen(
                [sys.executable, "-c", PROBE, json.dumps(left)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="backslashreplace",  # a package may print a path that is not UTF-8
                env={**os.environ, **QUIET},
            )
            assert probe.stdout is not None
            for line in probe.stdout:
                if line.startswith('["'):
                    module, fault = json.loads(line)
                    faults[module] = " ".join(fault.split())
                    advance(note=module)
            code = probe.wait()
            # a process may also crash while it ends, when every module has been imported
            crashed = next((module for module in left if module not in faults), None)
            if code and crashed is not None:
                faults[crashed] = f"the import crashed (exit code {code})"
                advance(note=crashed)
    return faults


def _accelerator() -> dict[str, Any]:
    """What torch would compute on, asked in a process of its own."""
    code = (
        "import json, torch; c = torch.cuda.is_available();"
        "print(json.dumps({'device': 'cuda' if c else 'cpu',"
        "'name': torch.cuda.get_device_name() if c else '',"
        "'memory_bytes': torch.cuda.mem_get_info()[1] if c else 0}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    if done.returncode:
        return {"device": "none", "name": "torch does not work", "memory_bytes": 0}
    return json.loads(done.stdout.splitlines()[-1])


def doctor(
    preset: Annotated[str | None, typer.Option(help="Also say which stages of this preset can run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What is installed, what works, what is missing and how to get it. Exit code 1 if the core is broken."""
    found = examine()
    if preset is not None:
        from uhr.curate.planning.placement import resolve_preset_stages

        found["preset"] = resolve_preset_stages(preset)
    emit(found, as_json, _print)
    if any(not row["works"] for row in found["packages"] if not row["extra"]):
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    machine, accelerator = found["machine"], found["accelerator"]
    say(f"Python {machine['python']} on {machine['system']}")
    memory, disk = human_bytes(machine["memory_bytes"]), human_bytes(machine["free_disk_bytes"])
    say(f"{machine['cores']} cores, {memory} memory, {disk} free here")
    name = f"{accelerator['name']}, {human_bytes(accelerator['memory_bytes'])}" if accelerator["name"] else ""
    say(f"torch computes on: {accelerator['device']} {name}".rstrip())
    say()
    rows = [
        [
            "ok" if row["works"] else "MISSING",
            row["package"],
            row["version"],
            row["purpose"],
            row["licence"] or None,
            "" if row["works"] else _remedy(row),
        ]
        for row in found["packages"]
    ]
    table(["", "package", "version", "for", "licence", ""], rows)
    for stage in found.get("preset", []):
        say(f"{'ok' if stage['runs'] else 'SKIPPED':8} {stage['stage']:20} {stage['why']}".rstrip())


def _remedy(row: dict[str, Any]) -> str:
    if row["version"] is None:
        return install(row["extra"] or "all")
    return row["fault"]
