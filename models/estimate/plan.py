"""What a call will take, worked out from shapes alone: stages, tokens, calls, operations, memory, time.

No weights are read; a bare spec's name is enough. Times are counts of operations over what a GPU's data sheet
says it can do, at the shares of `costs/devices.py`: an estimate, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from uhr.base.errors import unknown
from uhr.models.estimate import operations
from uhr.models.estimate.devices import DEFAULT, Device, here
from uhr.models.estimate.devices import device as find_device
from uhr.models.estimate.model import cost_of
from uhr.models.estimate.operations import Operations, of_calls
from uhr.models.estimate.price import Price, Way, ways
from uhr.models.estimate.shapes import bare
from uhr.models.generate.request import Item, Request
from uhr.models.generate.setup import Call, Method
from uhr.models.loading.model import DTYPES, pick_dtype
from uhr.models.loading.offload import Offload
from uhr.models.loading.opening import Model, open_model
from uhr.models.loading.quantize import KINDS
from uhr.models.samplers import check_name
from uhr.models.samplers.core.plan import SamplingStage
from uhr.models.specs.registry import get
from uhr.models.specs.spec import ModelSpec


@dataclass(frozen=True)
class StagePlan:
    """One stage, and the `backbone`'s work in all of its calls."""

    stage: SamplingStage
    backbone: Operations


def plan(request: Request, item: Item, on: str | None = None) -> Plan:
    """What the image will take on the GPU of that name: this machine's if None, or else an H200.

    The model may be the bare name of a spec, or a spec's hub id, of which nothing is fetched. UserError for
    what cannot be made.
    """
    check_name(request.sampler)
    if request.dtype not in ("auto", *DTYPES):
        raise unknown("dtype", request.dtype, ("auto", *DTYPES), "--dtype")
    if request.offload is not None and request.offload not in list(Offload):
        raise unknown("offload", request.offload, list(Offload))
    if request.quantize is not None and request.quantize not in KINDS:
        raise unknown("quantisation", request.quantize, KINDS)
    device = None
    if on is not None:
        device = find_device(on)
    elif request.device != "cpu":
        device = here()
    assumed = on is None and request.device != "cpu" and device is None
    if assumed:
        device = find_device(DEFAULT)
    dtype = request.dtype
    if dtype == "auto":
        dtype = "float32" if device is None else "bfloat16"
    model = _model(request)
    method = Method.of(request, model if isinstance(model, ModelSpec) else model.spec)
    return Plan(method, method.call(item), model, device, dtype, assumed)


def _model(request: Request) -> Model | ModelSpec:
    known = bare(request.model)
    if known is not None and request.base is None:
        return known if request.spec is None else get(request.spec)
    model = open_model(request.model, request.spec, base=request.base)
    backbone = request.weights.get("transformer")
    if backbone is None or not backbone.exists():
        return model
    return model.with_backbone(backbone, spec_given=request.spec is not None)


class Plan:
    """A call of a method on a model that is not loaded, on a device (None: a CPU, of which no time is said),
    which is `assumed` where nobody named it and no GPU is here."""

    def __init__(
        self,
        method: Method,
        call: Call,
        model: Model | ModelSpec,
        device: Device | None,
        dtype: str,
        assumed: bool = False,
    ) -> None:
        self.model, self.assumed = model, assumed
        self.method, self.call, self.device, self.dtype = method, call, device, dtype
        self._prices: dict[Way, Price] = {}
        facts, request = method.facts, method.request
        elsewhere = {} if isinstance(model, ModelSpec) else model.weights
        self.cost = cost_of(
            model,
            facts.family,
            pick_dtype(dtype),
            facts.vae_factor,
            files={**elsewhere, **request.weights},
            adapters=sum(adapter.file.stat().st_size for adapter in request.adapters),
        )
        self.stages = [StagePlan(stage, self._operations(stage)) for stage in call.plan.stages]

    def _operations(self, stage: SamplingStage) -> Operations:
        """The backbone's, of all calls of a stage."""
        one = operations.total(of_calls(each, self.cost.backbone) for each in stage.calls)
        return one.times(stage.branches)

    @property
    def model_calls(self) -> int:
        """Calls of the backbone, of all stages and branches."""
        return self.call.plan.model_calls

    @property
    def text(self) -> Operations:
        """Encoding the prompt, and the negative one where there is one."""
        return self.cost.text.times(max(each.stage.branches for each in self.stages))

    @property
    def asked(self) -> Price:
        """In the way that was asked for."""
        return self.priced(Way(self.method.request.offload, self.method.request.quantize))

    def priced(self, way: Way) -> Price:
        if way not in self._prices:
            self._prices[way] = Price(self, way)
        return self._prices[way]

    def fastest(self) -> Price | None:
        """Of all ways that fit the device the one that takes least time, the one asked for before its
        equals."""
        prices = [self.asked, *map(self.priced, ways())]
        return min((price for price in prices if price.fits), key=lambda price: price.total, default=None)
