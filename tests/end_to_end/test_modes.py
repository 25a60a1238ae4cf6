"""Every file that a command writes has the mode that the umask gives, so that a group can share a disk."""

import stat


def test_the_whole_workflow_writes_files_of_the_umasks_mode(small, small_umask):
    names, wrong = [], {}
    for path in small.rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~small_umask
        names.append(path.name)
        if stat.S_IMODE(path.stat().st_mode) != expected:
            wrong[str(path.relative_to(small))] = oct(path.stat().st_mode)
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
