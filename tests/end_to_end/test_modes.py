"""Every file that a command writes has the mode that the umask gives, so that a group can share a disk."""

import os
import stat
from pathlib import Path


def test_the_whole_workflow_writes_files_of_the_umasks_mode(small, run_small, tmp_path):
    usual = os.umask(0o022)
    os.umask(usual)
    check(small, usual)
    other = 0o002 if usual != 0o002 else 0o022
    os.umask(other)
    try:
        run_small(tmp_path / "flow")
    finally:
        os.umask(usual)
    check(tmp_path / "flow", other)


def check(folder: Path, umask: int) -> None:
    names, wrong = [], {}
    for path in folder.rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        names.append(path.name)
        if stat.S_IMODE(path.stat().st_mode) != expected:
            wrong[str(path.relative_to(folder))] = oct(path.stat().st_mode)
    # what libraries wrote through temporary files of their own is among them
    assert {
        "adapter.safetensors",
        "optimiser.safetensors",
        "ema.safetensors",
        "pytorch_lora_weights.safetensors",
        "diffusion_pytorch_model.safetensors",
        "tokenizer.json",
        "manifest.json",
        "encoded.json",
        "report.html",
        "set.parquet",
        "image.png",
    } <= set(names)
    assert not wrong
