"""Exact encoding and decoding of images of any size in bounded memory.

The result is the untiled VAE's up to rounding (2e-5 in float32): convolutions run in bands of rows and keep
the edge rows for the next band, GroupNorm uses the statistics of the whole image, attention sees every token.
diffusers' `enable_tiling` gives each tile its own statistics and attention and blends: other images, with
seams.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import nn

from uhr.base.errors import UserError
from uhr.models.surgery.base import Surgery, applied
from uhr.models.vae.attention import VaeAttention, attend, keys_and_values
from uhr.models.vae.bands import Moments, StoredBands, WholeInput
from uhr.models.vae.plan import (
    Task,
    TiledSegment,
    TilingPlan,
    largest_tensor,
    least_memory,
    make_plan,
    untiled_bytes,
    untiled_flops,
)
from uhr.models.vae.program import Layer, Unit, decoder_units, encoder_units
from uhr.models.vae.stream import Join, Norm, Pass, Shape, Split

Part = Literal["encode", "decode"]


def _no_report(share: float) -> None:
    pass


_REPORT: ContextVar[Callable[[float], None]] = ContextVar("report", default=_no_report)


@contextlib.contextmanager
def reporting(report: Callable[[float], None]) -> Generator[None]:
    """Call `report` with the share of each call of a tiled VAE that is done, in [0, 1], while the block runs.

    The share is that of the rows of all segments, whose times differ. A call that is not tiled reports only
    its end.
    """
    token = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(token)


class ExactTiling(Surgery):
    """Run `vae.encode` and `vae.decode` in at most `memory` bytes, weights not counted.

    memory: bytes, or text such as "8GiB". The default lets a card of 24 GB decode 8192 x 8192 in float32.
    dtype: "float32" computes in float32 whatever the weights have (each is cast where it is used, so that no
        second copy of the VAE is made) and returns float32; None computes in the dtype of the weights.
    hold: where activations are stored between passes: "device", or "cpu", which saves GPU memory and repeated
        passes at the cost of host memory.

    An image whose untiled run fits into `memory` is run untiled. There are no gradients: revert it for
    training. `enable_tiling` is ignored while it is applied.
    """

    name: ClassVar[str] = "exact-tiling"
    edits: ClassVar[frozenset[str]] = frozenset({"vae._encode", "vae._decode"})

    memory: pydantic.ByteSize = pydantic.Field(default=pydantic.ByteSize(20 << 30), gt=0)
    dtype: Literal["float32"] | None = None
    hold: Literal["device", "cpu"] = "device"

    def perform(self, model: Any) -> None:
        if not (hasattr(model, "_encode") and hasattr(model, "_decode") and hasattr(model, "encoder")):
            raise UserError(
                f"{type(model).__name__} is not a VAE of diffusers", "apply it to an AutoencoderKL"
            )
        encoder_units(model), decoder_units(model)  # raise now for what cannot be streamed
        _check_weights(model)
        model._encode = types.MethodType(_encode, model)
        model._decode = types.MethodType(_decode, model)

    def undo(self, model: Any, kept: None) -> None:
        del model._encode, model._decode

    def plan(self, vae: Any, part: Part, height: int, width: int, samples: int = 1) -> TilingPlan:
        """Plan the encoding of pixels [samples, 3, height, width], or the decoding of latents of that
        size."""
        channels = vae.config.in_channels if part == "encode" else vae.config.latent_channels
        return make_plan(_task(self, vae, part, Shape(channels, height, width), samples), int(self.memory))

    def untiled_samples(self, vae: Any, height: int, width: int, most: int) -> int:
        """Return how many images of [3, height, width] are encoded untiled in one call: at least 1, where one
        may be tiled, and at most `most`."""
        whole = Shape(vae.config.in_channels, height, width)
        fitting = 1
        while fitting < most and _fits_whole(
            self, vae, _task(self, vae, "encode", whole, fitting + 1), fitting + 1
        ):
            fitting += 1
        return fitting

    def peak_and_flops(self, vae: Any, part: Part, height: int, width: int) -> tuple[int, int]:
        """Return the peak bytes (weights not counted) and the operations for one sample, untiled if that
        fits.

        If `memory` is not enough, they are those of the least memory that is.
        """
        channels = vae.config.in_channels if part == "encode" else vae.config.latent_channels
        task = _task(self, vae, part, Shape(channels, height, width), 1)
        if _fits_whole(self, vae, task, 1):
            return untiled_bytes(task), untiled_flops(task)
        plan = make_plan(task, max(int(self.memory), least_memory(task)))
        return plan.peak, plan.flops


def compute_dtype(vae: Any) -> torch.dtype:
    """Return the dtype that `encode` and `decode` of this VAE compute in: that of their inputs."""
    options = [surgery for surgery in applied(vae) if isinstance(surgery, ExactTiling)]
    return _compute_dtype(options[0], vae) if options else vae.dtype


def _compute_dtype(options: ExactTiling, vae: Any) -> torch.dtype:
    return torch.float32 if options.dtype == "float32" else vae.dtype


def _encode(vae: Any, x: torch.Tensor) -> torch.Tensor:
    return _run(vae, "encode", x)


def _decode(vae: Any, z: torch.Tensor, return_dict: bool = True) -> Any:
    from diffusers.models.autoencoders.vae import DecoderOutput

    sample = _run(vae, "decode", z)
    return DecoderOutput(sample=sample) if return_dict else (sample,)


def _check_weights(vae: Any) -> None:
    """Raise for weights on the meta device: a run reads the weights without calling their modules, so hooks
    that would load them do not run."""
    if any(parameter.is_meta for parameter in vae.parameters()):
        raise UserError(
            "exact tiling found weights on the meta device", "use model offload, not sequential offload"
        )


def _run(vae: Any, part: Part, x: torch.Tensor) -> torch.Tensor:
    (options,) = (surgery for surgery in applied(vae) if isinstance(surgery, ExactTiling))
    _check_weights(vae)
    if x.requires_grad and torch.is_grad_enabled():
        raise UserError("exact tiling has no gradient, and its input requires one", "revert it for training")
    task = _task(options, vae, part, Shape(*x.shape[1:]), len(x))
    with torch.no_grad():
        report = _REPORT.get()
        if _fits_whole(options, vae, task, len(x)):
            whole = _whole(vae, part, x)
            report(1.0)
            return whole
        plan, dtype = make_plan(task, int(options.memory)), _compute_dtype(options, vae)
        last = task.shapes[-1]
        out = x.new_empty(len(x), last.channels, last.height, last.width, dtype=dtype)
        storage = torch.device("cpu") if options.hold == "cpu" else None
        for number, (sample, place) in enumerate(zip(x.split(1), out.split(1), strict=True)):

            def done(share: float, before: int = number) -> None:
                report((before + share) / len(x))

            execute(task, plan, sample, place, storage, done)
    return out


def _task(options: ExactTiling, vae: Any, part: Part, input_shape: Shape, samples: int) -> Task:
    units = encoder_units(vae) if part == "encode" else decoder_units(vae)
    itemsize = _compute_dtype(options, vae).itemsize
    task = Task(units, input_shape, itemsize, options.hold == "cpu", fixed=0)
    fixed = samples * (input_shape.size(itemsize) + task.shapes[-1].size(itemsize))
    return Task(units, input_shape, itemsize, task.stored_on_cpu, fixed)


def _fits_whole(options: ExactTiling, vae: Any, task: Task, samples: int) -> bool:
    """Whether `samples` samples are run untiled, together."""
    alive = samples * (untiled_bytes(task) - task.fixed) + task.fixed
    # with more values, GPU kernels of convolution and interpolation fail or are slow
    indexed = samples * largest_tensor(task) < 2**31
    # `vae.dtype` visits all modules, so it is read last
    own = options.dtype != "float32" or vae.dtype == torch.float32
    return own and alive <= int(options.memory) and indexed


def _whole(vae: Any, part: Part, x: torch.Tensor) -> torch.Tensor:
    """Encode or decode as the VAE's own class does, without its tiling."""
    if part == "encode":
        moments = vae.encoder(x)
        return moments if vae.quant_conv is None else vae.quant_conv(moments)
    return vae.decoder(x if vae.post_quant_conv is None else vae.post_quant_conv(x))


def execute(
    task: Task,
    plan: TilingPlan,
    sample: torch.Tensor,
    out: torch.Tensor,
    storage: torch.device | None,
    report: Callable[[float], None],
) -> None:
    """Run one sample [1, C, H, W] through the plan's segments, into `out`, and `report` the share that is
    done.
    """
    run = Pass(out.dtype, {})
    source: WholeInput | StoredBands = WholeInput(sample)
    for i, segment in enumerate(plan.segments):
        if segment.last == len(task.units):
            sink: StoredBands | _WholeOutput = _WholeOutput(out)
        else:
            rows = min(segment.stored_rows, plan.segments[i + 1].rows)
            sink = StoredBands(task.shapes[segment.last], rows, storage)
        following = task.units[segment.last] if segment.last < len(task.units) else ()
        height, count = task.shapes[segment.last].height, len(plan.segments)

        def written(rows: int, before: int = i, height: int = height, count: int = count) -> None:
            report((before + rows / height) / count)

        _segment(task, segment, source, sink, following, run, written)
        assert isinstance(sink, StoredBands) or i + 1 == len(plan.segments)
        source = sink if isinstance(sink, StoredBands) else source


class _WholeOutput:
    """Writes rows into a whole tensor."""

    def __init__(self, whole: torch.Tensor) -> None:
        self._whole, self._written = whole, 0

    def write(self, band: torch.Tensor) -> None:
        self._whole[:, :, self._written : self._written + band.shape[2]] = band
        self._written += band.shape[2]


def _segment(
    task: Task,
    segment: TiledSegment,
    source: WholeInput | StoredBands,
    sink: StoredBands | _WholeOutput,
    following: Unit,
    run: Pass,
    written: Callable[[int], None],
) -> None:
    rows = 0
    layers = [layer for unit in task.units[segment.first : segment.last] for layer in unit]
    norm = _first_norm(following)
    moments = Moments(norm) if norm is not None else None

    def write(band: torch.Tensor) -> None:
        nonlocal rows
        sink.write(band)
        rows += band.shape[2]
        written(rows)
        if moments is not None:
            moments.write(band)

    if isinstance(layers[0], VaeAttention):
        shape = task.shapes[segment.first]
        both = keys_and_values(layers[0], source.bands(segment.rows, run.dtype), shape, run)
        for band, _ in source.bands(segment.rows, run.dtype, consume=True):
            write(attend(layers[0], band, both, run))
    else:
        for probed, before in _probes(layers, run):
            gathered = Moments(probed)
            _pour(source.bands(segment.rows, run.dtype), before, gathered.write, run)
            run.statistics[probed] = gathered.finish()
        _pour(source.bands(segment.rows, run.dtype, consume=True), layers, write, run)
    if norm is not None and moments is not None:
        run.statistics[norm] = moments.finish()


def _first_norm(unit: Unit) -> nn.GroupNorm | None:
    """Return the norm that reads the unit's own input, if there is one."""
    for layer in unit:
        if isinstance(layer, VaeAttention):
            return layer.norm.module
        if not isinstance(layer, Split):
            return layer.module if isinstance(layer, Norm) else None
    return None


def _probes(layers: list[Layer], run: Pass) -> Iterator[tuple[nn.GroupNorm, list[Layer]]]:
    """Yield each norm without statistics yet, with the layers before it, except branches not yet joined."""
    for i, layer in enumerate(layers):
        if isinstance(layer, Norm) and layer.module not in run.statistics:
            joined = {before.tag for before in layers[:i] if isinstance(before, Join)}
            yield layer.module, [b for b in layers[:i] if not isinstance(b, Split) or b.tag in joined]


def _pour(bands: Iterator[tuple[torch.Tensor, bool]], layers: list[Layer], write: Any, run: Pass) -> None:
    steps = [layer.start(run) for layer in layers if not isinstance(layer, VaeAttention)]
    for band, last in bands:
        for step in steps:
            band = step(band, last)
        write(band)
        del band
