"""The plan of one call, computed from shapes alone: stages, tokens, calls, operations, memory and time.

No weights are read; a bare spec's name is enough. Times are counted operations divided by the peak rate of a
GPU's data sheet, at the shares of `estimate/devices.py`: an estimate, not a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from uhr.models.estimate import operations
from uhr.models.estimate.cost import CostEstimate, WeightPlacement, placements
from uhr.models.estimate.devices import DEFAULT, Device, local_device
from uhr.models.estimate.devices import device as find_device
from uhr.models.estimate.model import cost_of
from uhr.models.estimate.operations import Operations, of_calls
from uhr.models.estimate.shapes import spec_named
from uhr.models.generate.request import Item, Request
from uhr.models.generate.setup import CheckedCall, SamplerChoice, check_names
from uhr.models.loading.model import pick_dtype
from uhr.models.loading.opening import Model, open_model
from uhr.models.samplers.core.plan import SamplingStage
from uhr.models.specs.registry import get
from uhr.models.specs.spec import ModelSpec


@dataclass(frozen=True)
class StagePlan:
    """One stage, and the operations of the `backbone` in all of its calls."""

    stage: SamplingStage
    backbone: Operations


def plan(request: Request, item: Item, on: str | None = None) -> CallPlan:
    """Plan one image on the GPU named `on`; None is this machine's, or an H200 where there is none.

    The model may also be the name of a spec, or a spec's hub id, from which nothing is fetched. Raises
    UserError for an invalid request.
    """
    check_names(request)
    device = None
    if on is not None:
        device = find_device(on)
    elif request.device != "cpu":
        device = local_device()
    assumed = on is None and request.device != "cpu" and device is None
    if assumed:
        device = find_device(DEFAULT)
    dtype = request.dtype
    if dtype == "auto":
        dtype = "float32" if device is None else "bfloat16"
    model = _model(request)
    choice = SamplerChoice.of(request, model if isinstance(model, ModelSpec) else model.spec)
    return CallPlan(choice, choice.call(item), model, device, dtype, assumed)


def _model(request: Request) -> Model | ModelSpec:
    known = spec_named(request.model)
    if known is not None and request.base is None:
        return known if request.spec is None else get(request.spec)
    model = open_model(request.model, request.spec, base=request.base)
    model = model.with_vae(request.weights.get("vae"))
    backbone = request.weights.get("transformer")
    if backbone is None or not backbone.exists():
        return model
    return model.with_backbone(backbone, spec_given=request.spec is not None)


class CallPlan:
    """One image with a sampler and a model that is not loaded, on a device.

    `device` is None for a CPU, for which no time is estimated; it is `assumed` where none was named and this
    machine has no GPU.
    """

    def __init__(
        self,
        choice: SamplerChoice,
        call: CheckedCall,
        model: Model | ModelSpec,
        device: Device | None,
        dtype: str,
        assumed: bool = False,
    ) -> None:
        self.model, self.assumed = model, assumed
        self.choice, self.call, self.device, self.dtype = choice, call, device, dtype
        self._estimates: dict[WeightPlacement, CostEstimate] = {}
        facts, request = choice.facts, choice.request
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
        """Operations of the backbone in all calls of a stage."""
        one = operations.total(of_calls(each, self.cost.backbone) for each in stage.calls)
        return one.times(stage.branches)

    @property
    def model_calls(self) -> int:
        """Calls of the backbone, of all stages and branches."""
        return self.call.plan.model_calls

    @property
    def text(self) -> Operations:
        """Operations of encoding the prompt, and the negative prompt if there is one."""
        return self.cost.text.times(max(each.stage.branches for each in self.stages))

    @property
    def requested(self) -> CostEstimate:
        """The estimate under the placement that was requested."""
        return self.estimate(WeightPlacement(self.choice.request.offload, self.choice.request.quantize))

    def estimate(self, placement: WeightPlacement) -> CostEstimate:
        if placement not in self._estimates:
            self._estimates[placement] = CostEstimate(self, placement)
        return self._estimates[placement]

    def fastest(self) -> CostEstimate | None:
        """Return the fastest estimate that fits the device, or None. Ties go to the requested placement."""
        estimates = [self.requested, *map(self.estimate, placements())]
        return min(
            (estimate for estimate in estimates if estimate.fits),
            key=lambda estimate: estimate.total,
            default=None,
        )
