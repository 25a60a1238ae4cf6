"""A loaded pipeline that paints one call after another."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from uhr.base.console import Advance
from uhr.models.offload import Offload, offload
from uhr.models.sampling.record import record_of
from uhr.models.sampling.setup import Call, Setup


@dataclass(frozen=True)
class Painting:
    """A finished picture (PIL), those of the stages before it by name if they were asked for, and its record
    as JSON."""

    picture: Any
    record: dict[str, Any]
    stages: list[tuple[str, Any]] = field(default_factory=list)


class Session:
    """The pipeline of a setup, in memory with its adapters: loaded once, for as many pictures as are
    wanted."""

    def __init__(self, setup: Setup) -> None:
        import torch

        from uhr.models.adapters.components import user_cache
        from uhr.models.adapters.files import load_adapters, read_all
        from uhr.models.loading import load_pipeline

        self.setup = setup
        request = setup.request
        self.pipeline = load_pipeline(
            setup.model,
            setup.dtype,
            "cpu" if request.offload and not request.quantize else setup.device,
            setup.method.pipeline_class,
            quantize=request.quantize,
            weights=request.weights,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        files = read_all([adapter.file for adapter in request.adapters], self.pipeline)
        scales = dict(zip(files, (adapter.scale for adapter in request.adapters), strict=True))
        load_adapters(self.pipeline, files, scales, user_cache())
        if request.offload is not None:
            # after the adapters: their weights are offloaded with the rest
            offload(self.pipeline, Offload(request.offload), torch.device(setup.device))

    def paint(self, call: Call, advance: Advance | None = None) -> Painting:
        """One picture. `advance(n, note, total)` hears how many calls of the backbone there will be, of each
        that is done, and of which stage it was."""
        import torch

        item = call.item
        with self._watched(advance):
            found = self.pipeline(
                prompt=item.prompt,
                negative_prompt=item.negative,
                height=call.height,
                width=call.width,
                num_inference_steps=call.steps,
                guidance_scale=call.guidance,
                # the CPU's generator: the same noise on every device
                generator=torch.Generator("cpu").manual_seed(item.seed),
                **self.setup.method.options.model_dump(),
            )
        return Painting(found.images[0], record_of(self.setup, call, self.pipeline))

    @contextlib.contextmanager
    def _watched(self, advance: Advance | None) -> Generator[None]:
        """`advance` in place of diffusers' progress bar."""
        self.pipeline.watch = advance
        try:
            yield
        finally:
            self.pipeline.watch = None
