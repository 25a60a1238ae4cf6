"""The training loop: runs a job to its last step, or to the checkpoint at which it is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from uhr.base.console import Advance, command, progress, say, shown, warn
from uhr.base.files import saving
from uhr.models.zoo import peak_memory, pick_device
from uhr.train.data.prefetch import Prefetch
from uhr.train.recipes.core.base import Recipe
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run import init
from uhr.train.run.backbone import BackboneModel
from uhr.train.run.checkpoints import checkpoint, kept, optim
from uhr.train.run.checkpoints.average import decay_at, describe_average
from uhr.train.run.checkpoints.masters import Masters
from uhr.train.run.checkpoints.state import TrainState, copy_into, seed_everything
from uhr.train.run.feed import LoadedBatch, Phases, feed
from uhr.train.run.job import Job
from uhr.train.run.model import TrainedModel
from uhr.train.run.monitoring.held_out import apart_from_training
from uhr.train.run.monitoring.held_out import metrics as held_out_metrics
from uhr.train.run.monitoring.log import held_out_losses, progress_note, read_log, track
from uhr.train.run.monitoring.loggers import loggers
from uhr.train.run.phase import PhaseRun
from uhr.train.run.processes.mesh import divides
from uhr.train.run.processes.parallel import ALONE, EveryRank, Ranks, device_of, whole
from uhr.train.run.stop import stop_requests
from uhr.train.run.vae.model import VaeModel

RECENT = 50
"""Number of steps whose mean loss is written to a checkpoint; one step's loss is too noisy."""


PART = "part "
"""Prefix of the names of a loss's parts among the values of a step."""


@dataclass(frozen=True)
class NotFinite:
    """What of a step is not finite, and the images that it comes from, or all of its batch."""

    what: Literal["loss", "gradient"]
    images: list[str]


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    step: steps done. checkpoint: its folder. loss: mean of the last `RECENT` steps, without those that were
    skipped; None if all were. stopped: whether a signal stopped the run before its last step.
    """

    step: int
    checkpoint: Path
    loss: float | None
    stopped: bool

    def describe(self, log: Sequence[dict[str, Any]]) -> str:
        """Return one line: steps, loss, and each held-out loss of the log, the last beside the first."""
        mean = "none has a loss" if self.loss is None else f"mean loss {self.loss:.4f}"
        loss = f"{mean} over the last {min(self.step, RECENT)}"
        skipped = sum("skipped" in line for line in log)
        loss += f", {skipped} skipped" if skipped else ""
        measured: dict[str, list[float]] = {}
        for line in log:
            for name, found in held_out_losses(line).items():
                measured.setdefault(name, []).append(found["loss"])
        held_out = "".join(f", {name} {v[-1]:.4f} (first {v[0]:.4f})" for name, v in measured.items())
        return f"{self.step} steps done, {loss}{held_out}; {shown(self.checkpoint)}"


class Trainer:
    """A job with its model in memory.

    ranks: the processes that train together; each has a trainer of the same job.
    """

    def __init__(self, job: Job, ranks: Ranks = ALONE) -> None:
        recipe = job.recipe
        self.job, self.recipe, self.ranks = job, recipe, ranks
        self.device = device_of(pick_device(recipe.runtime.device), ranks)
        seed_everything(recipe.seed)
        self.model = load_model(job, ranks, self.device)
        module, spec, part = self.model.module, job.model.spec, recipe.trainable
        self.masters = Masters(part.parameters(module))
        parameters, constants = self.masters.parameters, part.constants(module)
        if job.resume is None and (begun := init.read(module, job.info.init, recipe, spec)):
            copy_into({**parameters, **constants}, begun)
            self.masters.publish()
        ranks.equalise({**parameters, **constants})
        average = (
            {name: p.detach().clone() for name, p in parameters.items()} if recipe.ema is not None else None
        )
        optimiser = recipe.optimiser.build(list(parameters.values()))
        if not ranks.first:
            # what draws from these generators, such as an objective of a user's, differs between processes
            seed_everything(ranks.seed(recipe.seed, job.done))
        self.state = TrainState(0, parameters, optimiser, average, constants, part.file)
        if job.resume is not None:
            checkpoint.load_checkpoint(*job.resume, self.state, ranks)
            self.masters.publish()
        self.skipped = job.resume[1].skipped if job.resume is not None else 0
        self._phases = Phases(job, self.device)
        self._feed: Prefetch[LoadedBatch] | None = None

    def run(self) -> TrainingResult:
        """Train from the current step to the recipe's last; at least one step must be left."""
        job, state, total = self.job, self.state, self.recipe.steps
        assert state.step < total
        before = [line for line in read_log(job.out) if line["step"] <= state.step]
        took: deque[float] = deque(maxlen=RECENT)
        recent = deque((line.get("loss") for line in before if line["step"]), RECENT)
        held_out = next((line for line in reversed(before) if held_out_losses(line)), {})
        with (
            saving(job.out, lambda: checkpoint.resume_hint(job.out)),
            self._written() as (write, advance),
            stop_requests(job.out, self.ranks.first) as stop,
            contextlib.closing(self),
        ):
            advance(state.step)
            # a sampler that fails does so before training
            if state.step == 0 and (entry := self.validate()):
                write({"step": 0, **entry})
            while True:
                entry = self.step()
                entry |= self.validate()
                write(entry)
                held_out = entry if held_out_losses(entry) else held_out
                recent.append(entry.get("loss"))
                took.append(entry["seconds"])
                advance(1, progress_note(entry, total, sum(took) / len(took), held_out))
                # read once: a request that comes while the checkpoint is written waits for the next step
                stopping = self.ranks.any(stop.requested) or state.step == total
                if stopping or state.step % self.recipe.runtime.checkpoint_every == 0:
                    losses = [loss for loss in recent if loss is not None]
                    mean = sum(losses) / len(losses) if losses else None
                    metrics = {"loss": entry.get("loss"), f"mean loss of {len(losses)} steps": mean}
                    known = {name: value for name, value in metrics.items() if value is not None}
                    folder = self.save(known | held_out_metrics(held_out))
                    if stopping:
                        return TrainingResult(state.step, folder, mean, stopped=state.step < total)

    @contextlib.contextmanager
    def _written(self) -> Generator[tuple[Callable[[dict[str, Any]], None], Advance]]:
        """Yield what writes a step's line, and what shows progress. Rank 0 alone does either."""
        if not self.ranks.first:
            yield (lambda _: None), (lambda *_: None)
            return
        job, step = self.job, self.state.step
        log = self.recipe.runtime.log
        with (
            track(job.out, step) as write,
            loggers(log, job.out, job.info.id, job.info.recipe, step) as copy_to,
            progress("train", self.recipe.steps, "steps") as advance,
        ):

            def both(entry: dict[str, Any]) -> None:
                write(entry)
                copy_to(entry)

            yield both, advance

    def step(self) -> dict[str, Any]:
        """Do one optimiser step on one global batch and return its line of the log."""
        start = time.perf_counter()
        index, inside = self.recipe.phase_of(self.state.step)
        config = self.recipe.phases[index]
        lr = config.lr_at(inside)
        optim.set_lr(self.state.optimiser, lr)
        if self._feed is None or self._feed.next != self.state.step:
            self.close()
            self._feed = feed(self.job, self.device, self.state.step, self.ranks)
        with self.ranks.together():
            loaded = self._feed.take(self.state.step)
        wait = time.perf_counter() - start
        values = self._accumulate(loaded)
        losses, levels = values.pop("loss"), values.pop("sigma", None)
        updated = self._update(loaded, losses)
        self.state.optimiser.zero_grad(set_to_none=True)
        self.state.step += 1
        if isinstance(updated, NotFinite):
            self.skipped += 1
            if self.ranks.first:
                warn(f"step {self.state.step} is skipped: {_described(updated)}")
            numbers: dict[str, Any] = {"skipped": dataclasses.asdict(updated)}
        else:
            self.skipped = 0
            if self.recipe.ema is not None:
                self.state.update_ema(self.recipe.ema)
            numbers = {
                "loss": losses.mean().item(),
                "parts": {name.removeprefix(PART): each.mean().item() for name, each in values.items()},
                "grad_norm": updated,
            }
        seconds = time.perf_counter() - start
        turn = loaded.turn
        bucket = loaded.use.data.buckets[turn.bucket]
        unit, amount = loaded.batch.amount
        logged = self.recipe.optimiser.log_values(self.state.optimiser)
        return {
            "step": self.state.step,
            "phase": config.name,
            "data": config.data[turn.use].data,
            "epoch": turn.epoch,
            "bucket": f"{bucket.width}x{bucket.height}",
            "samples": len(turn.rows),
            **numbers,
            **({} if levels is None else {"sigma": _range(levels)}),
            "lr": lr,
            **({"optimiser": logged} if logged else {}),
            "seconds": round(seconds, 4),
            "wait": round(wait, 4),
            "samples_per_second": round(len(turn.rows) / seconds, 3),
            f"{unit}_per_second": round(amount * len(turn.rows) / seconds, 3),
            "peak_memory": peak_memory(self.device),
        }

    def _update(self, loaded: LoadedBatch, losses: torch.Tensor) -> float | NotFinite:
        """Update the weights by the accumulated gradients, and return the gradient's norm; or leave weights
        and optimiser as they are, and return why.

        Raises UserError, in every process, if no more steps may be skipped.
        """
        finite, parameters = torch.isfinite(losses), list(self.state.parameters.values())
        if not finite.all():
            return self._skippable(NotFinite("loss", self._uris(loaded, (~finite).tolist())))
        self.ranks.sum_gradients(parameters)
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip))
        if not torch.isfinite(norm):
            everything = [True] * loaded.share.count
            return self._skippable(NotFinite("gradient", self._uris(loaded, everything)))
        self.state.optimiser.step()
        self.masters.publish()
        return norm.item()

    def close(self) -> None:
        """End the thread that reads ahead; `step` starts another."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def validate(self) -> dict[str, Any]:
        """Measure what the recipe's `validation` asks for after `state.step` steps, as values of the log."""
        if not (self.ranks.first or divides(self.recipe)):
            # rank 0 has all weights, and measures for all
            return {}
        images, config, step = self.recipe.validation.images, self.recipe.validation.loss, self.state.step
        if images is not None and (step % images.every == 0 or step == self.recipe.steps):
            with apart_from_training(self.model.module):
                self.model.write_images(step)
        if config is None or (step % config.every and step < self.recipe.steps):
            return {}
        with apart_from_training(self.model.module):
            return self.model.measure()

    def _accumulate(self, loaded: LoadedBatch) -> dict[str, torch.Tensor]:
        """Accumulate this process's part of the gradients of the global batch's mean loss.

        Returns values of the samples of the global batch, [B] each, on the CPU: "loss", "sigma" if they have
        noise levels, and the named parts of the loss after `PART`.
        """
        share = loaded.share
        found: list[dict[str, torch.Tensor]] = []
        for start, stop, counts in share.passes:
            batch, draws = loaded.batch.slice(start, stop), loaded.draws.slice(start, stop)
            loss, named = loaded.use.loss(self.model.network, batch, draws)
            ((loss.sum() if counts else loss.sum() * 0) / share.count).backward()
            if counts or not found:
                levels = {} if batch.noise_levels is None else {"sigma": batch.noise_levels}
                parts = {f"{PART}{name}": values for name, values in named.items()}
                found.append({"loss": loss.detach(), **levels, **parts})
        names = list(found[0])
        table = torch.stack([torch.cat([each[name].detach().float() for each in found]) for name in names])
        return dict(zip(names, self.ranks.assemble(table, share), strict=True))

    def _uris(self, loaded: LoadedBatch, chosen: Sequence[bool]) -> list[str]:
        """The images at the chosen places of the global batch. Every process must call it."""
        share = loaded.share
        own = dict(zip(share.places, loaded.uris, strict=True)) if share.counted else {}
        found = {place: uri for each in self.ranks.objects(own) for place, uri in each.items()}
        return [found[place] for place, taken in enumerate(chosen) if taken]

    def phase(self, index: int) -> PhaseRun:
        """The phase with this number; only one is open at a time."""
        return self._phases[index]

    def _skippable(self, fault: NotFinite) -> NotFinite:
        """The fault, if the step may be skipped. Raises UserError otherwise."""
        if self.skipped < self.recipe.may_skip:
            return fault
        phase = self.recipe.phases[self.recipe.phase_of(self.state.step)[0]]
        again = command("train", "resume", self.job.out, "--set", f"on_nonfinite=skip:{self.skipped + 10}")
        before = f", and {self.skipped} steps before it were skipped" if self.skipped else ""
        raise EveryRank(
            f"step {self.state.step + 1}: {_described(fault)}{before}",
            f"check those images, skip such steps, `{again}`, or start a new run: `uhr train run --set "
            f"phases.{phase.name}.lr=LOWER`",
        )

    def save(self, metrics: dict[str, float]) -> Path:
        """Write a checkpoint, and remove the oldest ones beyond `keep_checkpoints`."""
        step = self.state.step
        # at the end, this is where a longer last phase would continue
        phase, inside = self.recipe.phase_of(min(step, self.recipe.steps - 1))
        turn = self.phase(phase).mixture.at(inside + (step == self.recipe.steps))
        folder = checkpoint.write_checkpoint(
            self.job.out,
            self.state,
            {
                "phase": phase,
                "epoch": turn.epoch,
                "batch": turn.index,
                "recipe": self.recipe.model_dump(mode="json"),
                "model": self.job.info.model,
                "data": self.job.info.data,
                "run": self.job.info.id,
                "init": self.job.info.init,
                "skipped": self.skipped,
                "surgeries": self.model.surgeries,
                "metrics": metrics,
            },
            self.recipe.trainable.metadata(
                self.model.module, init.over(self.job.info.init), self.recipe.sampling.intended
            ),
            self.ranks,
        )
        if self.ranks.first:
            kept.keep_newest(self.job.out, self.recipe.runtime.keep_checkpoints)
        return folder


def load_model(job: Job, ranks: Ranks, device: torch.device) -> TrainedModel:
    """Load the component that the recipe trains, and make it what the recipe says."""
    if isinstance(job.recipe, VaeRecipe):
        return VaeModel(job, job.recipe, device)
    assert isinstance(job.recipe, Recipe)
    return BackboneModel(job, job.recipe, ranks, device)


def _described(fault: NotFinite) -> str:
    return f"the {fault.what} is not finite (images {', '.join(map(shown, fault.images))})"


def _range(values: torch.Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "min": values.min().item(), "max": values.max().item()}


def train(job: Job, ranks: Ranks = ALONE) -> TrainingResult:
    """Run a job to its last step, or until it is stopped; every process of the run calls it."""
    recipe = job.recipe
    if not ranks.first:
        return Trainer(job, ranks).run()
    if recipe.ema is not None and decay_at(recipe.steps, recipe.ema) < recipe.ema:
        say(f"averaged adapter: {describe_average(recipe.ema, recipe.steps)}")
    result = Trainer(job, ranks).run()
    if result.stopped:
        say(f"stopped after step {result.step} of {job.recipe.steps}; saved in {shown(result.checkpoint)}")
        say(f"go on with: {command('train', 'resume', job.out)}")
    return result
