"""A loaded pipeline that paints one call after another."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from uhr.base.console import Advance
from uhr.base.files import user_cache
from uhr.models.generate.record import record_of
from uhr.models.generate.setup import Call, Setup
from uhr.models.loading.offload import Offload, offload
from uhr.models.ops.fitting import Fit
from uhr.models.ops.seams import seams_of


@dataclass(frozen=True)
class Painting:
    """A finished image (PIL), those of the stages before it by name if they were asked for, and its record
    as JSON."""

    image: Any
    record: dict[str, Any]
    stages: list[tuple[str, Any]] = field(default_factory=list)


class Session:
    """The pipeline of a setup, in memory with its adapters: loaded once, for as many images as are
    wanted."""

    def __init__(self, setup: Setup, advance: Advance | None = None) -> None:
        """`advance(n, note, total)` hears of every component that is loaded."""
        import torch

        from uhr.models.adapters.files import load_adapters, read_all
        from uhr.models.loading.model import load_pipeline

        self.setup = setup
        request = setup.request
        self.pipeline = load_pipeline(
            setup.model,
            setup.dtype,
            "cpu" if request.offload and not request.quantize else setup.device,
            setup.method.pipeline_class,
            quantize=request.quantize,
            weights=request.weights,
            # adapters may have to compute with the weights that they are put on
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

    def paint(self, call: Call, advance: Advance | None = None, stages: bool = False) -> Painting:
        """One image, and with `stages` those of the stages before the last, which cost a decoding each.
        `advance(n, note, total)` hears how many calls of the backbone there will be, of each that is done,
        and of which stage it was."""
        import torch

        item, given, fit = call.item, call.given, call.fit
        height, width = (call.height, call.width) if fit is None else fit.made
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
                **({} if given is None or fit is None else {"image": given.hand(fit)}),
                # only staged samplers know it, and only of those is it asked
                **({"return_stages": True} if stages else {}),
                **self.setup.method.options.model_dump(),
            )
        (image,) = found.images
        self.setup.hash_weights()
        run = self.pipeline.last_run
        record = record_of(self.setup, call, run, seams_of(image, run.pieces))
        if given is not None and fit is not None:
            image = given.put_back(image, fit)
        return Painting(image, record, self._shown(found.stages, fit) if stages else [])

    def _shown(self, images: list[list[Any]], fit: Fit | None) -> list[tuple[str, Any]]:
        """The first image of every stage before the last, by the stage's name, without what a given image
        was continued by."""
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
