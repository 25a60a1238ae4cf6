"""Every file that a command writes has the mode that the umask gives, so that a group can share a disk."""

import os
import stat

import pytest


@pytest.mark.parametrize("umask", [0o022, 0o002], ids=oct)
def test_the_whole_workflow_writes_files_of_the_umasks_mode(umask, run_small, tmp_path):
    before = os.umask(umask)
    try:
        run_small(tmp_path / "flow")
    finally:
        os.umask(before)
    names, wrong = [], {}
    for path in (tmp_path / "flow").rglob("*"):
        usual = (0o777 if path.is_dir() else 0o666) & ~umask
        names.append(path.name)
        if stat.S_IMODE(path.stat().st_mode) != usual:
            wrong[str(path.relative_to(tmp_path))] = oct(path.stat().st_mode)
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
