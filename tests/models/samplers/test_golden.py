"""Every sampler on both families gives what it gave before: the files of `golden/`, one for each kind of CPU.

A file holds, of a short call of each, the SHA-256 of the latents and of the image, some of their values, the
noise levels and the number of calls, and on which torch, CPU and number of threads they were made. Where
those are the same the values must be equal bit for bit. Elsewhere the last bits differ, and a random model
enlarges them: the values must be equal within 1e-5, or within three times the largest difference between the
files, and within one level of 255 in the image. The samplers of before and after their rewrite by composition
make the files of AMD bit for bit.

To renew a file after a change that is meant to change values, or to add one for another kind of CPU:
python tests/models/samplers/test_golden.py FOLDER FILE (FOLDER has the tiny models `tiny-flux1` and
`tiny-flux2`, made with seed 0), and say in the commit why they change.
"""

import functools
import hashlib
import itertools
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from uhr.models.samplers import SAMPLERS, sampler_class
from uhr.models.specs import registry

FILES = sorted(Path(__file__).with_name("golden").glob("*.npz"))
FAMILIES = ("flux1", "flux2")
CASES = [(name, family) for name in SAMPLERS for family in FAMILIES]
KEPT = 512
"""Values of the latents that are kept of each case, evenly spread; and pixels of the image."""

SHORT = {
    "sdedit": {"strength": 0.5, "base_steps": 2},
    "multidiffusion": {"strength": 0.5, "base_steps": 1},
    "imax": {"base_steps": 2},
    "ultragen": {"skip": 2, "base_steps": 2},
    "patch-cascade": {"base_steps": 2},
    "euler": {"toolkit": {}},
}
STEPS = {"demofusion": 2, "patch-cascade": 2}


def environment():
    """What the last bit of a value depends on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return {
        "torch": torch.__version__,
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {model}",
        "threads": torch.get_num_threads(),
    }


@functools.cache
def loaded(family, folder):
    """The components of a tiny model."""
    return sampler_class("euler", family).from_pretrained(folder, local_files_only=True).components


def made(name, family, folder):
    """Latents [1, N, 4C], image [H, W, 3] of 8 bits, levels of the last stage, calls of the backbone."""
    cls, config = sampler_class(name, family), registry.get(f"tiny-{family}").pipeline_config
    pipeline = cls(**loaded(family, folder), **config)
    pipeline.set_progress_bar_config(disable=True)
    call = {
        "height": 192,
        "width": 256,
        "num_inference_steps": STEPS.get(name, 4),
        "guidance_scale": 3.5 if family == "flux1" else None,
        "max_sequence_length": 32,
        **SHORT.get(name, {}),
    }
    latents = pipeline("a red house", **call, generator=seeded(), output_type="latent").images
    image = pipeline("a red house", **call, generator=seeded(), output_type="pil").images[0]
    return latents.numpy(), np.asarray(image), list(pipeline.sigmas), pipeline.model_calls


def seeded():
    return torch.Generator().manual_seed(0)


def sample(values):
    flat = values.reshape(-1)
    return flat[np.linspace(0, len(flat) - 1, KEPT).astype(int)]


def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def summary(name, family, folder):
    latents, image, sigmas, calls = made(name, family, folder)
    facts = {
        "latents": digest(latents),
        "image": digest(image),
        "shape": list(latents.shape),
        "sigmas": sigmas,
        "calls": calls,
    }
    return sample(latents), sample(image), facts


@pytest.fixture(scope="module")
def kept():
    """The content of each file: a dict of arrays, and `facts`, a dict."""
    files = []
    for file in FILES:
        with np.load(file) as opened:
            files.append({key: opened[key] for key in opened.files})
        files[-1]["facts"] = json.loads(str(files[-1]["facts"]))
    return files


def tolerance(case, kept):
    """The largest absolute difference of latents that another kind of CPU may cause."""
    latents = [file[f"{case}/latents"] for file in kept]
    return max([1e-5, *(3 * np.abs(a - b).max() for a, b in itertools.combinations(latents, 2))])


@pytest.mark.parametrize(("name", "family"), CASES)
def test_it_gives_what_it_gave_before(name, family, kept, tiny_flux, tiny_flux2):
    latents, image, facts = summary(name, family, {"flux1": tiny_flux, "flux2": tiny_flux2}[family])
    case, here = f"{name}/{family}", environment()
    same = [file for file in kept if file["facts"]["environment"] == here]
    golden = (same or kept)[0]
    before = golden["facts"]["cases"][case]
    assert (facts["shape"], facts["calls"]) == (before["shape"], before["calls"])
    assert facts["sigmas"] == pytest.approx(before["sigmas"], abs=1e-12)
    if same:
        assert (facts["latents"], facts["image"]) == (before["latents"], before["image"])
    np.testing.assert_allclose(latents, golden[f"{case}/latents"], atol=tolerance(case, kept), rtol=1e-5)
    apart = np.abs(image.astype(int) - golden[f"{case}/image"].astype(int))
    assert apart.max() <= 1


def test_files_of_other_kinds_of_cpu_differ_by_rounding_alone(kept):
    for name, family in CASES:
        assert tolerance(f"{name}/{family}", kept) < 1e-3


def write(folder, file):
    """Make a file anew from the tiny models in a folder."""
    arrays, cases = {}, {}
    for name, family in CASES:
        latents, image, facts = summary(name, family, Path(folder) / f"tiny-{family}")
        arrays |= {f"{name}/{family}/latents": latents, f"{name}/{family}/image": image}
        cases[f"{name}/{family}"] = facts
    facts = json.dumps({"environment": environment(), "cases": cases})
    np.savez_compressed(file, facts=np.array(facts), **arrays)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2])
