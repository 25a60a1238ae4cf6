"""A loaded pipeline that generates one image after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from uhr.base.console import Advance
from uhr.base.files import user_cache
from uhr.models.generate.record import record_of
from uhr.models.generate.setup import CheckedCall, Setup
from uhr.models.loading.model import peak_memory
from uhr.models.loading.offload import Offload, offload
from uhr.models.ops.fitting import Fit
from uhr.models.ops.patches.seams import seams_of


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image (PIL) and its record as JSON; `stages` are previews by name, if they were
    requested. `seconds` are those of the call of the pipeline, decoding included, and `peak_memory` the bytes
    at its end (`peak_memory`). Neither is in the record: they differ each time."""

    image: Any
    record: dict[str, Any]
    seconds: float
    peak_memory: int
    stages: list[tuple[str, Any]] = field(default_factory=list)


class Session:
    """The pipeline of a setup, loaded with its adapters once for any number of images."""

    def __init__(self, setup: Setup, advance: Advance | None = None) -> None:
        """`advance(n, note, total)` is called for every component that is loaded."""
        import torch

        from uhr.models.adapters.files import load_adapters, read_all
        from uhr.models.loading.model import load_pipeline

        self.setup = setup
        request = setup.request
        self.pipeline = load_pipeline(
            setup.model,
            setup.dtype,
            "cpu" if request.offload and not request.quantize else setup.device,
            setup.choice.pipeline_class,
            quantize=request.quantize,
            weights=request.weights,
            # adapters may have to compute with the weights that they are applied to
            park=request.offload is not None and not request.adapters,
            advance=advance,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        # what is cut off a prompt is in the record
        self.pipeline.logs = False
        files = read_all([adapter.file for adapter in request.adapters], self.pipeline)
        scales = dict(zip(files, (adapter.scale for adapter in request.adapters), strict=True))
        load_adapters(self.pipeline, files, scales, user_cache("components"), setup.device)
        if request.offload is not None:
            # after the adapters: their weights are offloaded with the rest
            offload(self.pipeline, Offload(request.offload), torch.device(setup.device))

    def generate(
        self, call: CheckedCall, advance: Advance | None = None, stages: bool = False
    ) -> GeneratedImage:
        """Generate one image, and with `stages` previews of the stages before the last (one decoding each).

        `advance(n, note, total)` is called with the total number of backbone calls, and then for each call
        with its stage's name.
        """
        import torch

        item, given, fit = call.item, call.given, call.fit
        height, width = (call.height, call.width) if fit is None else fit.made
        start = time.perf_counter()
        with self._watched(advance):
            found = self.pipeline(
                prompt=item.prompt,
                negative_prompt=item.negative,
                height=height,
                width=width,
                num_inference_steps=call.steps,
                guidance_scale=call.guidance,
                # the CPU's generator: the same noise on every device
                generator=torch.Generator("cpu").manual_seed(item.seed),
                **({} if given is None or fit is None else {"image": given.padded(fit)}),
                # only passed to samplers that have stages: `Setup.preview_names` checks it
                **({"return_stages": True} if stages else {}),
                **self.setup.choice.options.model_dump(),
            )
        # the images are on the CPU: whatever the GPU was given is done
        seconds, memory = time.perf_counter() - start, peak_memory(torch.device(self.setup.device))
        (image,) = found.images
        self.setup.hash_weights()
        run = self.pipeline.last_run
        record = record_of(self.setup, call, run, seams_of(image, run.pieces))
        if given is not None and fit is not None:
            image = given.restore(image, fit)
        previews = self._shown(found.stages, fit) if stages else []
        return GeneratedImage(image, record, seconds, memory, previews)

    def _shown(self, images: list[list[Any]], fit: Fit | None) -> list[tuple[str, Any]]:
        """The first image of every stage before the last, by the stage's name, cut to the target."""
        names = [stage.name for stage in self.pipeline.last_run.stages[:-1]]
        shown = [(name, batch[0]) for name, batch in zip(names, images, strict=True)]
        return shown if fit is None else [(name, fit.cut(image)) for name, image in shown]

    @contextlib.contextmanager
    def _watched(self, advance: Advance | None) -> Generator[None]:
        """`advance` in place of diffusers' progress bar."""
        self.pipeline.watch = advance
        try:
            yield
        finally:
            self.pipeline.watch = None
        if advance is not None:
            advance(0, note="")
