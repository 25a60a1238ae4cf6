"""A training step against diffusers' own LoRA step: time, memory, and wait for data.

python -m benchmarks.training_step

Both steps have the same model, batch, precision and adapter: LoRA by flow matching, AdamW, clipping. Theirs
is that of `examples/dreambooth/train_dreambooth_lora_flux.py` with latents and embeddings in memory; ours
reads Parquet in a second thread. They take turns in one process, one thread each. The claim about time is
about the seconds that the step's thread was on a core; the ratio on the clock is printed beside it.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from peft import LoraConfig

from benchmarks.claims import Claim
from benchmarks.reader import encoded, report
from uhr.base.console import say, table
from uhr.models.zoo import ModelName, make_tiny
from uhr.train.data.reader import EncodedData
from uhr.train.recipes import resolve
from uhr.train.run.job import start
from uhr.train.run.trainer import Trainer

RATIO = 1.05
"""The most that our step may take of the time and memory of theirs."""

WAIT = 0.02
"""The most of a step that waits for data."""

STEPS = 30
SIZE, IMAGES, BATCH = 256, 48, 2
SMALL = {"num_attention_heads": 8, "num_layers": 3, "num_single_layers": 6}
"""The larger model: 256 channels in place of 64."""


def enlarged(tiny: Path, folder: Path) -> Path:
    """A copy of the tiny model with a larger transformer."""
    import shutil

    shutil.copytree(tiny, folder)
    config = FluxTransformer2DModel.load_config(tiny / "transformer")
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(0)
    FluxTransformer2DModel.from_config({**config, **SMALL}).save_pretrained(folder / "transformer")
    return folder


class Theirs:
    """The step of diffusers' script, with its names."""

    def __init__(self, model: Path, data: EncodedData) -> None:
        self.transformer = FluxTransformer2DModel.from_pretrained(model / "transformer")
        self.transformer.requires_grad_(False)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        self.transformer.add_adapter(
            LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=targets)
        )
        self.transformer.train()
        self.parameters = [p for p in self.transformer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=1e-4)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler")
        rows = data.read(0, range(IMAGES))
        self.mean, self.std, self.texts = rows.mean.float(), rows.std.float(), rows.texts
        self.shift, self.scale = data.info.geometry.shift, data.info.geometry.scale
        self.number = 0

    def step(self) -> None:
        chosen = [(self.number * BATCH + i) % IMAGES for i in range(BATCH)]
        self.number += 1
        mean, std = self.mean[chosen], self.std[chosen]
        model_input = (mean + std * torch.randn_like(mean) - self.shift) * self.scale
        noise = torch.randn_like(model_input)
        u = compute_density_for_timestep_sampling("logit_normal", BATCH, 0.0, 1.0, 1.29)
        timesteps = self.scheduler.timesteps[(u * self.scheduler.config.num_train_timesteps).long()]
        indices = [(self.scheduler.timesteps == t).nonzero().item() for t in timesteps]
        sigmas = self.scheduler.sigmas[indices].view(-1, 1, 1, 1)
        noisy = (1 - sigmas) * model_input + sigmas * noise
        _, channels, height, width = model_input.shape
        packed = FluxPipeline._pack_latents(noisy, BATCH, channels, height, width)
        ids = FluxPipeline._prepare_latent_image_ids(BATCH, height // 2, width // 2, "cpu", torch.float32)
        text = self.texts["t5"][chosen].float()
        prediction = self.transformer(
            hidden_states=packed,
            timestep=timesteps / 1000,
            guidance=torch.full((BATCH,), 1.0),
            pooled_projections=self.texts["pooled"][chosen].float(),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3),
            img_ids=ids,
            return_dict=False,
        )[0]
        prediction = FluxPipeline._unpack_latents(prediction, height * 8, width * 8, 8)
        weighting = compute_loss_weighting_for_sd3("none", sigmas)
        error = weighting.float() * (prediction.float() - (noise - model_input).float()) ** 2
        loss = error.reshape(BATCH, -1).mean(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()


def ours(model: Path, data: Path, out: Path) -> Trainer:
    """A run of the recipe `lora` with the same settings."""
    sets = [
        "runtime.precision=float32", "runtime.gradient_checkpointing=false", f"batch.size={BATCH}",
        f"batch.micro={BATCH}", "phases.main.steps=100000", f"phases.main.resolution={SIZE}",
    ]  # fmt: skip
    return Trainer(start(resolve("lora", None, sets), ModelName(str(model), "tiny-flux1"), [data], out))


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes that tensors of a call add at once, by torch's own record of allocations."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    total = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def _clocks() -> tuple[float, float]:
    """Seconds on the clock, and of this thread on a core: other work on the machine changes the first."""
    return time.perf_counter(), time.thread_time()


def step_against_diffusers(name: str, model: Path, data: Path, out: Path) -> Iterable[Claim]:
    """Time and memory of a step, and its wait for data."""
    mine, theirs = ours(model, data, out), Theirs(model, EncodedData.open(data))
    waits: list[float] = []
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(3):
        mine.step()
        theirs.step()
    gc.disable()
    for number in range(STEPS):
        # neither is always the first of a pair
        for who in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            wall, core = _clocks()
            entry = mine.step() if who == "ours" else theirs.step()
            wall_after, core_after = _clocks()
            times[who].append((wall_after - wall, core_after - core))
            if entry is not None:
                waits.append(entry["wait"] / entry["seconds"])
    gc.enable()
    memory = {"ours": peak_bytes(mine.step), "theirs": peak_bytes(theirs.step)}
    mine.close()
    pairs = list(zip(times["ours"], times["theirs"], strict=True))
    wall, ratio = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
    share = memory["ours"] / memory["theirs"]
    table(
        ["model", "step", "median ms", "ms of CPU", "peak MiB of tensors"],
        [
            [name, who, *(f"{1000 * statistics.median(e[i] for e in each):.1f}" for i in (0, 1)),
             round(memory[who] / 2**20, 1)]
            for who, each in times.items()
        ],
    )  # fmt: skip
    say(f"{name}: median ratio of the time on the clock {wall:.3f}")
    yield Claim(f"{name}: time of a step at most {RATIO} of diffusers'", f"{ratio:.3f}", ratio <= RATIO)
    yield Claim(f"{name}: memory of a step at most {RATIO} of diffusers'", f"{share:.3f}", share <= RATIO)
    wait = statistics.median(waits)
    yield Claim(f"{name}: wait for data under {WAIT:.0%} of a step", f"{wait:.2%}", wait < WAIT)


def main() -> None:
    """Measure, print a table, and exit with 1 if a claim does not hold."""
    torch.set_num_threads(1)
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny = make_tiny("tiny-flux1", folder / "tiny", seed=0)
        data = encoded(folder / "data", tiny, SIZE, IMAGES)
        for name, model in (("tiny", tiny), ("small", enlarged(tiny, folder / "small"))):
            claims += step_against_diffusers(name, model, data, folder / f"run {name}")
    report(claims)


if __name__ == "__main__":
    main()
