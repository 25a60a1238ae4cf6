"""Seconds and bytes: CUDA events and the allocator's marks on a GPU, the wall clock on a CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


class Clock:
    """Times work on one device. Every figure is of finished work: nothing is left in the stream's queue."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def finish(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def mark(self) -> Any:
        """Mark a moment in the device's stream; `between` two of them, after `finish`, are seconds."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Return the seconds between two marks."""
        return first.elapsed_time(last) / 1000 if self.cuda else last - first

    def seconds(self, run: Callable[[], object]) -> float:
        """Time one run, from an idle device until the device is idle again."""
        self.finish()
        first = self.mark()
        result = run()
        last = self.mark()
        self.finish()
        del result
        return self.between(first, last)

    def best(self, runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """The best of several rounds of each run, one after the other in every round."""
        found: dict[str, float] = {}
        for _ in range(rounds):
            for name, run in runs.items():
                found[name] = min(self.seconds(run), found.get(name, float("inf")))
        return found

    def clear(self) -> None:
        """Free memory of the GPU that is no longer used, and count its peaks from here."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """Most GiB that were allocated at once since `clear`, weights and inputs included; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None


class Budget:
    """Seconds that are left of what a run, or a part of it, may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()
