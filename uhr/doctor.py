"""`uhr doctor`: reports installed and missing packages; with --deep, whether they work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
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
from uhr.base.errors import install, one_line
from uhr.base.formatting import human_bytes


@dataclass(frozen=True)
class Requirement:
    """A package, the module to import as a test, the extra that installs it, and what needs it."""

    package: str
    module: str
    extra: str
    purpose: str
    licence: str = ""


REQUIREMENTS = (
    Requirement("pyarrow", "pyarrow.parquet", "", "manifests"),
    Requirement("duckdb", "duckdb", "", "rules and slices"),
    Requirement("opencv-python-headless", "cv2", "images", "decoding"),
    Requirement("pillow", "PIL.Image", "images", "decoding"),
    Requirement("numba", "numba", "images", "flatness, entropy, exposure, sharpness"),
    Requirement("ray", "ray.data", "curate", "the ray engine"),
    Requirement("jinja2", "jinja2", "curate", "reports"),
    Requirement("torch", "torch", "models", "models and training"),
    Requirement("diffusers", "diffusers", "models", "models and training"),
    Requirement("transformers", "transformers", "models", "text encoders"),
    Requirement("peft", "peft", "models", "adapters"),
    Requirement("gguf", "gguf", "quantize", "backbones in GGUF files"),
    Requirement("bitsandbytes", "bitsandbytes", "quantize", "quantised weights: nf4, int8"),
    Requirement("torchao", "torchao.quantization", "quantize", "quantised weights: int8wo, float8wo"),
    Requirement("s3fs", "s3fs", "s3", "sources, manifests and sets in object stores"),
    Requirement("datasets", "datasets", "all", "Hugging Face datasets"),
    Requirement("open_clip_torch", "open_clip", "clip", "embeddings and CLIP scores"),
    Requirement("pyiqa", "pyiqa", "quality", "quality: pyiqa, q_align", "PolyForm-Noncommercial-1.0.0"),
    Requirement(
        "ultralytics",
        "ultralytics",
        "people",
        "boxes of people; two photographs of the demo",
        "AGPL-3.0",
    ),
)

# importing ultralytics may write settings and install packages, and others may contact hubs: prevent that
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
"""A script that imports modules one after the other and prints each with its error."""

TORCH_PROBE = """
import json, warnings
found = {"device": "none", "name": "", "memory_bytes": 0, "fault": ""}
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    try:
        import torch
        found["device"] = "cpu"
        if torch.cuda.is_available():
            found["device"] = "cuda"
            found["name"] = torch.cuda.get_device_name()
            found["memory_bytes"] = torch.cuda.mem_get_info()[1]
            torch.ones(2, device="cuda").sum().item()
    except Exception as error:
        found["fault"] = f"{type(error).__name__}: {error}"
# torch only warns about a driver that it cannot use, and computes on the CPU
found["fault"] = found["fault"] or "; ".join(str(w.message) for w in warned if "CUDA" in str(w.message))
print(json.dumps(found))
"""
"""A script that prints the device torch computes on, and its error about a GPU that it cannot use."""


def examine(deep: bool = False) -> dict[str, Any]:
    """Describe this machine and its packages, as plain data.

    With `deep`, packages are imported and torch's accelerator is tested, in other processes, which takes up
    to half a minute. Without it, `works` of a package is None unless it is missing, and `accelerator` is
    None.
    """
    packages = [_package(requirement) for requirement in REQUIREMENTS]
    if deep:
        faults = _import_faults([row["module"] for row in packages if not row["fault"]])
        for row in packages:
            row["fault"] = row["fault"] or faults[row["module"]]
            row["works"] = not row["fault"]
    return {"machine": _machine(), "packages": packages, "accelerator": _accelerator() if deep else None}


def _machine() -> dict[str, Any]:
    import psutil

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def _package(requirement: Requirement) -> dict[str, Any]:
    """Find a package and its version without importing it; `fault` is set if it is missing."""
    version, fault = None, ""
    try:
        version = importlib.metadata.version(requirement.package)
    except importlib.metadata.PackageNotFoundError:
        fault = "not installed"
    top = requirement.module.partition(".")[0]
    if not fault and importlib.util.find_spec(top) is None:
        fault = f"installed, but its module {top} is missing"
    return {**asdict(requirement), "version": version, "works": False if fault else None, "fault": fault}


def _import_faults(modules: list[str]) -> dict[str, str]:
    """Import the modules in other processes, since an import may crash; return the fault of each."""
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
                    faults[module] = one_line(fault)
                    advance(note=module)
            code = probe.wait()
            # the first module without a line ended the process, with whatever exit code; a process that
            # crashes after its last line has tested all of them
            crashed = next((module for module in left if module not in faults), None)
            if crashed is not None:
                faults[crashed] = f"the import ended the process (exit code {code})"
                advance(note=crashed)
    return faults


def _accelerator() -> dict[str, Any]:
    """Find the device torch computes on, and its fault, in another process."""
    done = subprocess.run(
        [sys.executable, "-c", TORCH_PROBE],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
        env={**os.environ, **QUIET},
    )
    if done.returncode:
        fault = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"device": "none", "name": "", "memory_bytes": 0, "fault": f"torch crashed: {fault}"}
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "fault": one_line(found["fault"])}


def doctor(
    preset: Annotated[
        str | None, typer.Option(help="Also list which stages of this preset can run, and whether it does.")
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Import every package and compute on the GPU, to test that they work."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report which packages are installed, which are missing and how to install them; with --deep, test them.

    The exit code is 1 if a required package is missing or broken, or if the preset does not run here.
    """
    found = examine(deep)
    if preset is not None:
        from uhr.curate.estimate import preset_fault
        from uhr.curate.planning.catalogue import resolve_preset_stages

        found["preset"], found["preset_fault"] = resolve_preset_stages(preset), preset_fault(preset)
    emit(found, as_json, _print)
    if found.get("preset_fault") or any(row["fault"] for row in found["packages"] if not row["extra"]):
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    machine, accelerator = found["machine"], found["accelerator"]
    say(f"Python {machine['python']} on {machine['system']}")
    memory, disk = human_bytes(machine["memory_bytes"]), human_bytes(machine["free_disk_bytes"])
    say(f"{machine['cores']} cores, {memory} memory, {disk} free here")
    if accelerator is None:
        say("Nothing was imported: --deep tries each package, and the GPU")
    else:
        name, size = accelerator["name"], human_bytes(accelerator["memory_bytes"])
        say(f"torch computes on: {accelerator['device']}{f' {name}, {size}' if name else ''}")
        if accelerator["fault"]:
            say(f"torch says: {accelerator['fault']}")
    say()
    rows = [
        [
            _state(row),
            row["package"],
            row["version"],
            row["purpose"],
            row["licence"] or None,
            _fix(row) if row["fault"] else "",
        ]
        for row in found["packages"]
    ]
    table(["", "package", "version", "for", "licence", ""], rows)
    for stage in found.get("preset", []):
        state = "ok" if stage["runs"] else "MISSING" if stage["needed"] else "SKIPPED"
        why = stage["why"].removeprefix(_CANNOT.format(stage["stage"]))
        say(f"{state:8} {stage['stage']:20} {why}".rstrip())
    if fault := found.get("preset_fault"):
        say(f"The preset does not run: {fault}")


_CANNOT = "stage '{}' cannot run: "
"""How the reason of a missing stage begins: its line names the stage already."""


def _state(row: dict[str, Any]) -> str:
    if row["fault"]:
        return "MISSING" if row["version"] is None else "BROKEN"
    return "ok" if row["works"] else "found"


def _fix(row: dict[str, Any]) -> str:
    if row["version"] is None:
        return install(row["extra"] or "all")
    return row["fault"]
