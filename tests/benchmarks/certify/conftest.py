"""Substitutes for the official repositories, at commits of their own, and a folder of tiny weights."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.certify import __main__ as command
from benchmarks.certify import report, sides

SUBSTITUTES = Path(__file__).with_name("substitutes")

FILES = {
    "URAE": ["urae", "shared"],
    "HiFlow": ["hiflow", "shared"],
    "I-Max": ["imax", "shared"],
    "UltraFlux": ["ultraflux"],
    "Scale-DiT": ["scale_dit"],
}
"""The clone's name -> the folders of `substitutes` that it is made of."""


@pytest.fixture(scope="session")
def commit():
    """Make a commit of all files of a folder, and return its hash."""

    def make(folder):
        name = ["-c", "user.name=tests", "-c", "user.email=tests@example.org"]
        for arguments in (["init", "-q"], ["add", "-A"], [*name, "commit", "-q", "-m", "substitute"]):
            subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)
        head = ["git", "-C", folder, "rev-parse", "HEAD"]
        return subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()

    return make


@pytest.fixture(scope="session")
def clones(tmp_path_factory, commit):
    """The folder of the clones, and their commits by name."""
    folder = tmp_path_factory.mktemp("official")
    for name, parts in FILES.items():
        for part in parts:
            shutil.copytree(SUBSTITUTES / part, folder / name, dirs_exist_ok=True)
    return SimpleNamespace(folder=folder, commits={name: commit(folder / name) for name in FILES})


@pytest.fixture(scope="session")
def weights(tmp_path_factory, tiny_flux, tiny_f16):
    """The tiny model under the names of published weights, with random adapters in their formats."""
    import torch
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    (folder / "black-forest-labs--FLUX.1-dev").symlink_to(tiny_flux)
    (folder / "Owen777--UltraFlux-v1").symlink_to(tiny_f16)
    (folder / "Owen777--UltraFlux-v1-1-Transformer").symlink_to(tiny_flux / "transformer")
    model = FluxTransformer2DModel.from_pretrained(tiny_flux, subfolder="transformer")
    draw, lora, minor = torch.Generator().manual_seed(3), {}, {}
    for path, _ in model.named_modules():
        block, _, leaf = path.partition(".attn.")
        if leaf not in ("to_q", "to_k", "to_v", "to_out.0"):
            continue
        low, high = (torch.randn(*shape, generator=draw) * 0.1 for shape in ((16, 64), (64, 16)))
        lora[f"transformer.{path}.lora_A.weight"] = low
        lora[f"transformer.{path}.lora_B.weight"] = high
        short = leaf.removesuffix(".0")
        minor[f"{block}.attn.processor.{short}_a.weight"] = low.flip(0).contiguous()
        minor[f"{block}.attn.processor.{short}_b.weight"] = 0.5 * high
    from uhr.models.adapters.formats.published import BLOCK, ULTRAGEN

    wide = {
        path: module
        for path, module in model.named_modules()
        if BLOCK.sub(r"\g<kind>.", path) in ULTRAGEN["flux1"]
    }
    guided = {}
    for path, module in wide.items():
        for name, shape in (("A", (4, module.in_features)), ("B", (module.out_features, 4))):
            guided[f"transformer.{path}.lora_{name}.weight"] = 0.1 * torch.randn(*shape, generator=draw)
    (folder / "Scale-DiT").mkdir()
    torch.save(torch.ones(5, 10, dtype=torch.bool), folder / "Scale-DiT" / "attention_mask.pt")
    save_file(guided, folder / "Scale-DiT" / "pytorch_lora_weights.safetensors")
    urae = folder / "Huage001--URAE"
    urae.mkdir()
    save_file(lora, urae / "urae_2k_adapter.safetensors")
    save_file(minor, urae / "urae_4k_adapter.safetensors")
    return folder


@pytest.fixture
def certify(monkeypatch, capfd, clones, weights, warm, tmp_path):
    """Run the command on the substitutes: exit code, printed lines, results. Processes start warm."""

    def start(arguments, env, log):
        with log.open("wb") as file:
            done = warm.start(arguments[1:], env=env, stdout=file, stderr=file)
            return done.wait(300)

    monkeypatch.setattr(sides, "start", start)

    def run(row, *more, official=clones.folder):
        from benchmarks.certify.rows import row_named

        named = {
            "--weights": weights,
            "--official": official,
            "--work": tmp_path / "work",
            "--results": tmp_path / "results",
            "--dtype": "float32",
            "--device": "cpu",
            "--commit": clones.commits[row_named(row).clone],
        }
        arguments = [row, *(str(each) for pair in named.items() for each in pair), *map(str, more)]
        capfd.readouterr()
        code = command.main(arguments)
        captured = capfd.readouterr()
        results = report.read(tmp_path / "results")
        return SimpleNamespace(code=code, out=captured.out, err=captured.err, results=results)

    return run
