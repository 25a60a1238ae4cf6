"""Our side, in a process of its own: `python -m benchmarks.certify.ours JOB`.

One image, whose noise is stored for the official side; and the same rounded otherwise, which says how much of
a deviation rounding alone explains: the noise is changed by about one rounding of the dtype, and timesteps
are rounded as diffusers' pipelines do it, as multiples of 1/1000 in the dtype.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.certify.official.harness import Recorder, measured, write_result
from uhr.base.errors import UserError, one_line

if TYPE_CHECKING:
    from uhr.models.generate.setup import Setup


def run(file: Path) -> None:
    """Run the job in a JSON file, and write noise, image, steps and result.json into its folder."""
    import torch

    from uhr.models.generate.request import Item
    from uhr.models.generate.session import Session

    job = json.loads(file.read_text(encoding="utf-8"))
    out, setup = Path(job["out"]), _setup(job)
    call = setup.call(Item(prompt=job["prompt"], seed=job["seed"]))
    session = Session(setup)
    _tile(session.pipeline.vae, job["vae_tiling"])

    def generate(recorder: Recorder) -> Any:
        return session.pipeline(
            prompt=job["prompt"],
            height=call.height,
            width=call.width,
            num_inference_steps=call.steps,
            guidance_scale=call.guidance,
            generator=torch.Generator("cpu").manual_seed(job["seed"]),
            callback_on_step_end=recorder.callback,
            **setup.choice.options.model_dump(),
        ).images[0]

    recorder = Recorder(out)
    drawn: dict[str, Any] = {}
    with _noise(drawn):
        image, seconds, peak = measured(torch.device(setup.device), lambda: generate(recorder))
    # the backbone's calls are counted as ours count them; a hook would also see parts of a batch
    recorder.calls = session.pipeline.model_calls
    _save(out / "noise.safetensors", drawn)
    image.save(out / "image.png")
    rounded = Recorder(_made(out / "rounded"))
    dtype = getattr(torch, setup.dtype)
    with _noise({}, torch.finfo(dtype).eps), _timesteps(dtype):
        generate(rounded)
    setup.hash_weights()
    weights = {name: found["sha256"] for name, found in setup.weights.items()}
    adapters = [found["sha256"] for found in setup.adapters]
    more = {"spec": setup.spec.name, "weights": weights, "adapters": adapters}
    write_result(out, job, recorder, seconds, peak, more)


def _setup(job: Mapping[str, Any]) -> Setup:
    """Our call of the row."""
    from uhr.models.generate.request import Adapter, Request
    from uhr.models.generate.setup import Setup

    request = Request(
        sampler=job["sampler"],
        model=job["model"],
        size=(job["width"], job["height"]),
        steps=job["steps"],
        guidance=job["guidance"],
        adapters=tuple(Adapter(name=name) for name in job["adapters"]),
        transformer=None if job["transformer"] is None else Path(job["transformer"]),
        dtype=job["dtype"],
        device=job["device"],
        offload="model" if job["offload"] else None,
        options=job["options"],
    )
    return Setup.of(request, fetch=False)


def _tile(vae: Any, when: str) -> None:
    """Have a VAE tile as that of the official code does (`Row.vae_tiling`)."""
    if when != "never":
        vae.enable_tiling()
    if when == "always":
        # also where an image is no larger than a tile
        vae._encode, vae._decode = vae._tiled_encode, vae.tiled_decode


@contextlib.contextmanager
def _noise(drawn: dict[str, Any], change: float = 0.0) -> Generator[None]:
    """Keep every noise that the engine draws, by its number, and multiply it by about 1 + `change`."""
    import torch

    from uhr.models.samplers.core import engine

    function, random = engine.randn_tensor, torch.Generator("cpu").manual_seed(1)

    def draw(*arguments: Any, **named: Any) -> Any:
        found = function(*arguments, **named)
        drawn[f"{len(drawn):04d}"] = found.cpu().contiguous()
        return found * (1 + change * torch.randn(found.shape, generator=random).to(found))

    engine.randn_tensor = draw
    try:
        yield
    finally:
        engine.randn_tensor = function


@contextlib.contextmanager
def _timesteps(dtype: Any) -> Generator[None]:
    """Round the noise level of each call: 1000 times the level in `dtype`, divided by 1000 in it. In bfloat16
    that moves it by up to 0.004."""
    import torch

    from uhr.models.samplers.core.engine import Engine

    call = Engine.call

    def rounded(self: Engine, tokens: Any, sigma: float, condition: Any, branch: str) -> Any:
        return call(self, tokens, float(torch.tensor(1000 * sigma).to(dtype) / 1000), condition, branch)

    Engine.call = rounded  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        Engine.call = call  # ty: ignore[invalid-assignment]


def _save(file: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(one_line(error.with_options()))
