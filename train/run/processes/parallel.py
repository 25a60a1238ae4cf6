"""The processes of a run: which samples of a global batch each computes, and what they exchange.

Data order and random numbers are functions of the global batch, never of a process. Each of `world` processes
computes some places of the same batch and sums its gradients with those of the others; the loss of a sample
is divided by the size of the global batch, so that any number of processes takes the same step to within
rounding.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from uhr.base.errors import UserError

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others. Rank 0 may hash a large checkpoint in that time."""

BUCKET_BYTES = 64 * 2**20
"""Bytes of gradients that are summed in one message."""

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""The environment that `torchrun` gives its processes, and with it MASTER_ADDR and MASTER_PORT."""

T = TypeVar("T")


class OthersLost(UserError):
    """Another process of the run does not answer any more."""


class EveryRank(UserError):
    """An error that every process of a run raises at the same point; one of them prints it."""


@dataclass(frozen=True)
class Share:
    """The part of a global batch of `count` samples that a process computes.

    places: the places in the batch. A process without a sample of its own computes place 0, which does not
        count.
    counted: number of places that count: all or none.
    passes: for each forward pass the first and last (exclusive) of `places`, and whether it counts. All
        processes do the same number of passes, since divided weights are gathered in every one of them.
    """

    count: int
    places: tuple[int, ...]
    counted: int
    passes: tuple[tuple[int, int, bool], ...]


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    rank, world: its number, from 0, of how many. local_rank, local_world: the same on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes, logs and prints."""
        return self.rank == 0

    def seed(self, seed: int, step: int) -> int:
        """A seed for the process-wide generators of this process at a step of a run."""
        digest = hashlib.sha256(f"{seed}/{self.rank}/{step}".encode()).digest()
        return int.from_bytes(digest[:4], "little")

    def share(self, count: int, micro: int) -> Share:
        """The part of a batch of `count` samples that is computed here, `micro` samples at once.

        Rank r has the places from floor(r count / world) to floor((r + 1) count / world): no two processes
        differ by more than one sample.
        """
        assert count > 0
        own = tuple(range(self.rank * count // self.world, (self.rank + 1) * count // self.world))
        most = -(-count // self.world)
        passes = [(start, min(start + micro, len(own)), True) for start in range(0, len(own), micro)]
        passes += [(0, 1, False)] * (-(-most // micro) - len(passes))
        return Share(count, own or (0,), len(own), tuple(passes))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        if self.world == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def agree(self, error: UserError | None) -> None:
        """Raise `EveryRank` in every process if any has an error: that of the lowest rank."""
        if not self.any(error is not None):
            return
        if self.world == 1:
            assert error is not None
            raise error
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, None if error is None else (error.what, error.fix, error.give))
        raise EveryRank(*next(each for each in found if each is not None))

    @contextlib.contextmanager
    def together(self) -> Generator[None]:
        """Raise a UserError of the block in every process. The block exchanges nothing."""
        error = None
        try:
            yield
        except UserError as raised:
            if self.world == 1:
                raise
            error = raised
        self.agree(error)

    def from_first(self, compute: Callable[[], T]) -> T:
        """What `compute` returns in rank 0, in every process. Raises its UserError in every process."""
        if self.world == 1:
            return compute()
        found: list[Any] = [None]
        with self.together():
            if self.first:
                found = [compute()]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def objects(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def assemble(self, values: torch.Tensor, share: Share) -> torch.Tensor:
        """Values [K, B] of this process's places as those of the global batch, float32 [K, count] on the CPU.

        Bit for bit: each place is summed with zeros.
        """
        whole = torch.zeros(len(values), share.count)
        if share.counted:
            whole[:, list(share.places)] = values.detach().to("cpu", torch.float32)
        if self.world > 1:
            # NaN + 0 stays NaN, infinity stays infinity
            dist.all_reduce(whole)
        return whole

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients of parameters that every process has whole. FSDP has summed all others.

        A parameter without a gradient in every process stays without one: optimisers leave it as it is.
        """
        if self.world == 1:
            return
        own = [parameter for parameter in parameters if not is_divided(parameter)]
        if not own:
            return
        present = torch.tensor([int(parameter.grad is not None) for parameter in own])
        dist.all_reduce(present, op=dist.ReduceOp.MAX)
        chosen = [p for p, some in zip(own, present.tolist(), strict=True) if some]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets(chosen):
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            pieces = flat.split([gradient.numel() for gradient in gradients])
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def equalise(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy rank 0's values of tensors that every process has whole to all of them."""
        if self.world > 1:
            for tensor in tensors.values():
                if not is_divided(tensor):
                    dist.broadcast(tensor.detach(), src=0)


ALONE = Ranks()
"""The only process of its run."""


def is_divided(tensor: torch.Tensor) -> bool:
    """Whether this process has only a part of the tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be divided. Every process must call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_as(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """A whole tensor that every process has, on the device of `target`, and divided as that is if it is.

    A tensor of another shape stays whole; one that is divided already is returned.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(source, DTensor) or not isinstance(target, DTensor) or source.shape != target.shape:
        return source.to(target.device)
    source = source.to(target.to_local().device)
    # every process has the values: nothing is sent
    return distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)


def started() -> bool:
    """Whether `torchrun`, or something that gives the same environment, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def from_environment() -> Ranks:
    """This process by the environment. Raises UserError if that is incomplete or invalid."""
    world = os.environ.get("WORLD_SIZE", "")
    texts = [os.environ.get(name, world if name == "LOCAL_WORLD_SIZE" else "") for name in VARIABLES]
    if not all(text.isdecimal() for text in texts):
        stated = ", ".join(f"{name}={text}" for name, text in zip(VARIABLES, texts, strict=True))
        raise UserError(
            f"this process cannot tell its number ({stated})", "start it with torchrun, or unset RANK"
        )
    rank, world, local_rank, local_world = map(int, texts)
    if not (rank < world and local_rank < local_world <= world):
        raise UserError(f"process {rank} of {world} does not exist", "start it with torchrun, or unset RANK")
    return Ranks(rank, world, local_rank, local_world)


def device_of(device: torch.device, ranks: Ranks) -> torch.device:
    """The device of this process where the recipe's is `device`: each process of a machine has its own GPU.

    Raises UserError if the machine has fewer GPUs than processes, or if one GPU is named for several.
    """
    if device.type != "cuda" or ranks.world == 1:
        return device
    if device.index is not None and ranks.local_world > 1:
        raise UserError(f"{ranks.local_world} processes cannot share {device}", give={"device": "cuda"})
    count = torch.cuda.device_count()
    if ranks.local_world > count:
        what = f"{ranks.local_world} processes need as many GPUs, and this machine has {count}"
        raise UserError(what, give={"workers": str(count)})
    return torch.device("cuda", ranks.local_rank)


@contextlib.contextmanager
def joined(ranks: Ranks, device: torch.device) -> Generator[None]:
    """Be connected to the other processes of the run, also if something else has made the connection.

    Raises UserError if they cannot be reached, and in the block if one of them is gone.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mine = not dist.is_initialized()
    if mine:
        try:
            # exchanges of CPU tensors and objects use gloo on any device
            dist.init_process_group(
                backend_of(device),
                store=_store_of_restart(),
                rank=ranks.rank,
                world_size=ranks.world,
                timeout=TIMEOUT,
            )
        except (ValueError, RuntimeError) as error:
            what = f"the other processes are not reached ({_reason(error)})"
            raise UserError(what, "check MASTER_ADDR and MASTER_PORT, or start it with torchrun") from error
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        what = f"the other processes are lost ({_reason(error)})"
        raise OthersLost(what, "one of them has ended: its own error says why") from error
    finally:
        if mine:
            dist.destroy_process_group()


def _store_of_restart() -> dist.Store | None:
    """Where processes that torchrun has started again exchange their addresses; None is torch's own choice.

    torchrun keeps its store, which still has the addresses of the processes before.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0":
        return None
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    return dist.PrefixStore(f"restart {restart}", store)


def backend_of(device: torch.device) -> str:
    """The back end of the process group: NCCL between GPUs, and gloo for tensors on the CPU."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process of the group does not answer."""
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or "gloo" in str(error)


def _reason(error: BaseException) -> str:
    """The last sentence of a message of gloo or NCCL, without the place in its source."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.rpartition("] ")[2].split(". This ")[0].rstrip(".")


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters in groups of one dtype and device, of at least one and at most `BUCKET_BYTES`."""
    buckets: list[list[torch.nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        added = parameter.numel() * parameter.element_size()
        same = buckets and (buckets[-1][-1].dtype, buckets[-1][-1].device) == (
            parameter.dtype,
            parameter.device,
        )
        if not same or size + added > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += added
    return buckets
