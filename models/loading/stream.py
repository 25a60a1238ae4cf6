"""Train with the frozen weights of a transformer's blocks on the host, streamed to the device block by block.

diffusers' group offloading moves a block's weights away when its forward pass ends, while its backward pass
still needs them. Here a block is recomputed in its backward pass (gradient checkpointing), and its weights
are on the device from the start of the recomputation to the end of the backward pass. The next block is
copied meanwhile, on a stream of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import torch

from uhr.base.errors import UserError


def check_device(device: torch.device) -> None:
    """Raise UserError if the device is the CPU, where there is nothing to keep off it."""
    if device.type == "cpu":
        what = "runtime.offload keeps weights off a GPU, and the device is cpu"
        raise UserError(what, "leave it out: --set runtime.offload=null")


class BlockStream:
    """The frozen weights of a list of blocks, which run in that order.

    Make it when the trainable part is in the model. A weight that is not on the device is empty, so that a
    use of it outside its block's call fails. Trained parameters stay on the device.

    resident: numbers of the blocks whose weights are on the device, or on their way to it.
    """

    def __init__(self, blocks: Sequence[torch.nn.Module], device: torch.device) -> None:
        self.device = device
        self.resident: dict[int, list[torch.Tensor]] = {}
        self._frozen = [[p for p in block.parameters() if not p.requires_grad] for block in blocks]
        self._numbers = {id(block): number for number, block in enumerate(blocks)}
        self._held: int | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        # the host's copies are in pinned memory, from which a GPU copies while it computes
        self._host = [[self._on_host(p) for p in own] for own in self._frozen]
        # of which an input must require a gradient, so that the first block has a backward pass
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        for number, block in enumerate(blocks):
            self._empty(number)
            block.register_forward_pre_hook(self._before)
            block.register_forward_hook(self._after)

    def _on_host(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        tensor = parameter.detach().to("cpu")
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _empty(self, number: int) -> None:
        for parameter in self._frozen[number]:
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=self.device)

    def _copy(self, number: int) -> None:
        """Start to copy a block's weights to the device."""
        if number in self.resident or not 0 <= number < len(self._host):
            return
        with contextlib.nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            self.resident[number] = [
                host.to(self.device, non_blocking=True, copy=True) for host in self._host[number]
            ]

    def _fetch(self, number: int, then: int) -> None:
        """Put a block's weights in place, and start to copy those of block `then`."""
        self._copy(number)
        tensors = self.resident[number]
        if self._copies is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(self._copies)
            for tensor in tensors:
                # their memory is not reused before what computes with them now has ended
                tensor.record_stream(now)
        for parameter, tensor in zip(self._frozen[number], tensors, strict=True):
            parameter.data = tensor
        # a block that was copied for the other direction is not needed now
        for other in [each for each in self.resident if each not in (number, then)]:
            del self.resident[other]
        self._copy(then)

    def _release(self, number: int) -> None:
        self._empty(number)
        self.resident.pop(number, None)

    def _before(self, block: torch.nn.Module, _: Any) -> None:
        number = self._numbers[id(block)]
        self._fetch(number, number - 1 if self._held == number else number + 1)

    def _after(self, block: torch.nn.Module, _: Any, __: Any) -> None:
        number = self._numbers[id(block)]
        if self._held != number:
            self._release(number)

    @contextlib.contextmanager
    def hold(self, block: torch.nn.Module) -> Generator[None]:
        """Keep the weights of a block in place after its call, until the `with` block ends."""
        number = self._numbers[id(block)]
        self._held = number
        try:
            yield
        finally:
            self._held = None
            self._release(number)

    def checkpoint(self, block: torch.nn.Module, *args: Any) -> Any:
        """Call a block and keep only its inputs for the backward pass, which calls it again: the argument of
        diffusers' `enable_gradient_checkpointing`."""
        return _Recomputed.apply(self, block, self._anchor, *args)


class _Recomputed(torch.autograd.Function):
    """A call of a block whose backward pass computes it again. The blocks have no random numbers."""

    @staticmethod
    def forward(ctx: Any, stream: BlockStream, block: Callable[..., Any], _: torch.Tensor, *args: Any) -> Any:
        ctx.stream, ctx.block = stream, block
        ctx.plain = [None if isinstance(each, torch.Tensor) else each for each in args]
        ctx.places = [place for place, each in enumerate(args) if isinstance(each, torch.Tensor)]
        ctx.save_for_backward(*(args[place] for place in ctx.places))
        return block(*args)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        args = list(ctx.plain)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            args[place] = tensor.detach().requires_grad_(tensor.requires_grad)
        with ctx.stream.hold(ctx.block), torch.enable_grad():
            found = ctx.block(*args)
            outputs = (found,) if isinstance(found, torch.Tensor) else found
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
            if pairs:
                torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        own = [each.grad if isinstance(each, torch.Tensor) else None for each in args]
        return (None, None, None, *own)


def blocks_of(transformer: Any, names: Iterable[str]) -> list[torch.nn.Module]:
    """The blocks of a transformer by the names of their classes, in the order in which they run."""
    wanted = set(names)
    return [module for module in transformer.modules() if type(module).__name__ in wanted]


def stream_blocks(transformer: Any, names: Iterable[str], device: torch.device) -> BlockStream:
    """Stream the frozen weights of a transformer's blocks, move all else to the device, and recompute blocks.

    The transformer is on the CPU, with its trainable part.
    """
    stream = BlockStream(blocks_of(transformer, names), device)
    for tensor in (*transformer.parameters(), *transformer.buffers()):
        tensor.data = tensor.data.to(device)
    transformer.enable_gradient_checkpointing(gradient_checkpointing_func=stream.checkpoint)
    return stream
