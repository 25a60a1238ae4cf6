"""What all drivers share: the noise that is handed over, the record of steps, time, memory and versions.

Written for Python 3.9 and old versions of torch and diffusers, which official code may need.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path


def imported(module, name):
    """Import one name of the official code."""
    return getattr(importlib.import_module(module), name)


def dtype_of(job):
    """The torch dtype of a job."""
    import torch

    return getattr(torch, job["dtype"])


class Noise:
    """The noise of our side, float32 [B, C, H, W], in the order in which it was drawn."""

    def __init__(self, file):
        from safetensors.torch import load_file

        self.left = [tensor for _, tensor in sorted(load_file(file).items())]
        self.given = 0

    def take(self, shape, device=None, dtype=None):
        """Return the next noise in a shape: as it is, or as tokens of 2 x 2 latents [B, N, 4C]."""
        if not self.left:
            raise RuntimeError(f"the official code draws noise more often than ours, {self.given} times")
        drawn, self.given = self.left.pop(0), self.given + 1
        for form in (drawn, packed(drawn)):
            if tuple(form.shape) == tuple(shape):
                return form.to(device=device, dtype=dtype)
        what = f"noise {self.given} is {list(shape)} in the official code and {list(drawn.shape)} in ours"
        raise RuntimeError(what)


def packed(z):
    """Latents [B, C, H, W] as tokens [B, H/2 * W/2, 4C]; as it is where a side is odd."""
    batch, channels, height, width = z.shape
    if height % 2 or width % 2:
        return z
    blocks = z.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height * width // 4, 4 * channels)


@contextlib.contextmanager
def handed_over(noise):
    """Have everything that draws noise, in any module that is loaded, take it from `noise`."""
    import torch
    from diffusers.utils import torch_utils

    drawn, like = torch_utils.randn_tensor, torch.randn_like

    def randn_tensor(shape, generator=None, device=None, dtype=None, layout=None):
        return noise.take(shape, device, dtype)

    def randn_like(tensor, dtype=None, device=None, **_):
        return noise.take(tensor.shape, device or tensor.device, dtype or tensor.dtype)

    users = [module for module in list(sys.modules.values()) if vars_of(module).get("randn_tensor") is drawn]
    for module in users:
        module.randn_tensor = randn_tensor
    torch.randn_like = randn_like
    try:
        yield
    finally:
        for module in users:
            module.randn_tensor = drawn
        torch.randn_like = like


def vars_of(module):
    """The names of a module; none for what only looks like one."""
    found = getattr(module, "__dict__", None)
    return found if isinstance(found, dict) else {}


class Recorder:
    """Stores the latents after every step, and counts the calls of the transformer."""

    def __init__(self, folder):
        self.folder, self.steps, self.calls = Path(folder), 0, 0

    def step(self, latents):
        """Store tokens [B, N, 4C] of the next step. Raises RuntimeError if a value is not finite."""
        import torch
        from safetensors.torch import save_file

        tokens = latents.detach().float().cpu().contiguous()
        if not bool(torch.isfinite(tokens).all()):
            raise RuntimeError(f"the latents after step {self.steps + 1} are not finite")
        save_file({"latents": tokens}, str(self.folder / f"step-{self.steps:04d}.safetensors"))
        self.steps += 1

    def callback(self, pipeline, step, timestep, tensors):
        """diffusers' `callback_on_step_end`."""
        self.step(tensors["latents"])
        return {}

    def watch(self, transformer):
        """Count the calls: each passes the last layer once, also where forward is replaced."""

        def count(module, args, output):
            self.calls += 1

        transformer.proj_out.register_forward_hook(count)


def run(file):
    """Run the job in a JSON file, and write image, steps and result.json into its folder."""
    import torch

    job = json.loads(Path(file).read_text(encoding="utf-8"))
    out = Path(job["out"])
    # official code writes into the working folder
    os.chdir(out)
    sys.path.insert(0, job["repository"])
    driver = importlib.import_module(f"benchmarks.certify.official.{job['driver']}")
    pipe = driver.load(job)
    if job["offload"]:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to(job["device"])
    recorder = Recorder(out)
    recorder.watch(pipe.transformer)
    noise = Noise(job["noise"])
    found, seconds, peak = measured(
        torch.device(job["device"]), lambda: called(driver, pipe, job, recorder, noise)
    )
    if noise.left:
        raise RuntimeError(f"the official code drew noise {noise.given} times, ours {len(noise.left)} more")
    image = first_image(found)
    if image is None:
        raise RuntimeError(f"the official code returned no PIL image, but {type(found).__name__}")
    image.save(str(out / "image.png"))
    write_result(out, job, recorder, seconds, peak)


def called(driver, pipe, job, recorder, noise):
    """The official call, with the noise of ours."""
    import torch

    with torch.no_grad(), handed_over(noise):
        return driver.generate(pipe, job, recorder.callback)


def one_image(pipe, job, callback, **own):
    """Call a pipeline that takes what diffusers' own takes, with values of the job and some of its own."""
    return pipe(
        job["prompt"],
        height=job["height"],
        width=job["width"],
        guidance_scale=job["guidance"],
        num_inference_steps=job["steps"],
        max_sequence_length=512,
        callback_on_step_end=callback,
        **own,
    )


def measured(device, function):
    """Return what the function returns, its seconds, and the peak of memory in bytes: of the GPU during the
    call, of this process so far on a CPU."""
    import torch

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    found = function()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    if cuda:
        return found, seconds, torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return found, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def first_image(found):
    """The first PIL image in what a pipeline returns: an output, a tuple, a list, or lists of lists; None
    without one."""
    if hasattr(found, "save") and hasattr(found, "size"):
        return found
    inner = getattr(found, "images", found)
    for each in inner if isinstance(inner, (list, tuple)) else ():
        image = first_image(each)
        if image is not None:
            return image
    return None


def write_result(out, job, recorder, seconds, peak, more=None):
    """Write result.json: what was measured, and with what."""
    found = {
        "seconds": seconds,
        "peak": peak,
        "steps": recorder.steps,
        "calls": recorder.calls,
        "device": device_name(job["device"]),
        "versions": versions(),
    }
    found.update(more or {})
    (Path(out) / "result.json").write_text(json.dumps(found), encoding="utf-8")


def device_name(device):
    """Name of the GPU, or of the CPU's kind."""
    import torch

    place = torch.device(device)
    return torch.cuda.get_device_name(place) if place.type == "cuda" else f"{platform.machine()} CPU"


def versions():
    """Versions of Python and of what computes."""
    found = {"python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "peft"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
