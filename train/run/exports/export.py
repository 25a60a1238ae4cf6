"""Exports the trained part of a checkpoint in a form that other programs load, with a model card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uhr.base.console import command
from uhr.base.errors import UserError
from uhr.models.adapters import files as adapters
from uhr.models.adapters.formats.keys import LAYOUTS
from uhr.models.adapters.formats.usage import ORDINARY
from uhr.models.adapters.formats.writing import Format
from uhr.models.adapters.low_rank import total
from uhr.models.files.run_steps import step_name, steps_in
from uhr.models.generate.input_images import open_image
from uhr.models.publish.card import CardFacts
from uhr.models.publish.lora_file import PROGRAMS, LoraFile, file_name
from uhr.models.zoo import get
from uhr.train.encode.stored.encoded import NOT_STATED
from uhr.train.recipes import NAMES, read_recipe, sets_between
from uhr.train.recipes import recipe as known_recipe
from uhr.train.recipes.core.base import DataUse, DataUseBase, Phase, PhaseBase, Recipe, RecipeBase
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run import init
from uhr.train.run.checkpoints import average, checkpoint, kept
from uhr.train.run.checkpoints.checkpoint import CheckpointInfo
from uhr.train.run.job import read_run
from uhr.train.run.monitoring import validation_images
from uhr.train.timesteps import Timesteps
from uhr.train.trainable.base import PartFile


def export(
    run: Path, out: Path, step: int | None = None, weights: Literal["trained", "ema"] = "trained"
) -> tuple[Path, CheckpointInfo]:
    """Write the trained part of a checkpoint (the newest complete one, or that of `step`) into a folder.

    weights: the trained ones, or their moving average if the recipe keeps one (`average.decay_at`).
    """
    recipe, info, part = _read(run, step, weights)
    facts = _facts(out.resolve().name, recipe, info, weights)
    return recipe.trainable.export(part, get(info.model.spec), out, facts), info


@dataclass(frozen=True)
class ExportedFile:
    """One file of an adapter. `rank` is the largest of its modules, `includes` the adapters that the run was
    trained on top of, `difference` the largest of the file to what was trained (`LoraFile.write`)."""

    path: Path
    info: CheckpointInfo
    content: LoraFile
    rank: int
    includes: tuple[str, ...]
    difference: float

    def describe(self) -> dict[str, Any]:
        """Return the file as JSON."""
        facts = self.content.facts
        return {
            "file": str(self.path),
            "to": self.content.form.value,
            "step": self.info.step,
            "trained": facts.trained,
            "rank": self.rank,
            "includes": list(self.includes),
            "trigger": self.content.trigger,
            "preview": self.content.preview is not None,
            "programs": PROGRAMS[self.content.form],
            "sampling": self.content.sampling,
            "largest_difference": self.difference,
        }


def export_file(
    run: Path,
    form: Format,
    name: str,
    out: Path | None = None,
    step: int | None = None,
    weights: Literal["trained", "ema"] = "trained",
    trigger: str | None = None,
    preview: Path | None = None,
) -> ExportedFile:
    """Write the trained adapter of a checkpoint as one file for other programs, which works by itself.

    Adapters that the run was trained on top of are added to it, exactly: ranks add up.

    Args:
        name: of the file and in it; "" is that of the file `out`.
        out: the file, or a folder for `name`.safetensors; the run's folder if None.
        trigger: the word of its captions; None is the one that the data were encoded with.
        preview: an image; None is the run's last validation image up to that step, if it has any.

    Raises:
        UserError: if the trained part is no plain LoRA, and if the file exists.
    """
    place = out or run
    path = place if place.suffix == ".safetensors" else place / file_name(name)
    if name and path.name != file_name(name):
        raise UserError(
            f"--name {name} and --out {path} name two files", "leave --name out, or name a folder"
        )
    recipe, info, part = _read(run, step, weights)
    spec = get(info.model.spec)
    lora = recipe.trainable.plain_lora(part, spec)
    needed = needed_files(run, info)
    layout = LAYOUTS[spec.transformer_class]
    parts = [lora, *(adapters.read(file, layout).lora for file in needed.values())]
    whole = {
        module: total([each[module] for each in parts if module in each])
        for module in dict.fromkeys(module for each in parts for module in each)
    }
    words = list(dict.fromkeys(ref.trigger for ref in info.data if ref.trigger))
    shown_image = preview or _last_image(run, info.step)
    content = LoraFile(
        name=path.stem,
        form=form,
        facts=_facts(path.stem, recipe, info, weights),
        resolution=_sizes(recipe, info)[-1],
        trigger=trigger or ", ".join(words) or None,
        preview=None if shown_image is None else open_image(shown_image).rgb,
    )
    apart = content.write(whole, path, ORDINARY.sampled(recipe.sampling.intended))
    rank = max(each.rank for each in whole.values())
    return ExportedFile(path, info, content, rank, tuple(needed), apart)


def _last_image(run: Path, step: int) -> Path | None:
    """The first image of the last validation after training began, up to a step; None if there is none."""
    folder = run / validation_images.FOLDER
    # those of step 0 are the images before training
    files = [folder / step_name(each) / "000.png" for each in steps_in(folder) if 0 < each <= step]
    return next((file for file in reversed(files) if file.is_file()), None)


def _read(run: Path, step: int | None, weights: str) -> tuple[RecipeBase, CheckpointInfo, PartFile]:
    """The recipe, the facts and the trained part of a checkpoint."""
    read_run(run)
    folder, info = _choose(run, step)
    recipe = read_recipe(info.recipe)
    if isinstance(recipe, VaeRecipe):
        recipe = recipe.published()
        info = info.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    if weights == "ema" and recipe.ema is None:
        raise UserError(
            f"{run} has no average", "leave --weights out, or train with `uhr train run --set ema=0.999`"
        )
    tensors, metadata = checkpoint.read_part(folder, info)
    if weights == "ema":
        # an average has no constants of the part: they are in its own file
        tensors |= checkpoint.read_average(folder, info)
    return recipe, info, PartFile(tensors, metadata)


def _choose(run: Path, step: int | None) -> tuple[Path, CheckpointInfo]:
    if step is not None:
        return kept.find(run, step)
    found = checkpoint.newest(run)
    if found is None:
        raise UserError(
            f"{run} has no checkpoint yet", f"`{command('train', 'resume', run)}` continues the run"
        )
    return found[0], found[1]


def _facts(name: str, recipe: RecipeBase, info: CheckpointInfo, weights: str) -> CardFacts:
    licences: Counter[str | None] = Counter()
    for data in info.data:
        for licence, count in data.licences.items():
            licences[None if licence == NOT_STATED else licence] += count
    used = recipe.done_by_phase(info.step)
    native = _native(info)
    return CardFacts(
        name=name,
        spec=get(info.model.spec),
        base_model=info.model.name,
        base_weights=info.model.weights,
        recipe=recipe.name + (_average(recipe, info.step) if weights == "ema" else ""),
        steps=info.step,
        resolution=", then ".join(f"{size} px" for size in _sizes(recipe, info)),
        guidance=recipe.guidance.scale if isinstance(recipe, Recipe) else None,
        sampler=recipe.sampling.sampler,
        sample_arguments=tuple(recipe.sampling.arguments),
        sample_guidance=recipe.sampling.guidance,
        sample_options=recipe.sampling.options,
        manifest_id=", ".join(dict.fromkeys(ref.manifest_id for ref in info.data)),
        trained_on=sum(data.rows for data in info.data),
        licences=licences,
        surgeries=tuple(entry["surgery"] for entry in recipe.surgeries),
        trained=recipe.trainable.describe(get(info.model.spec)),
        phases=tuple(_phase(p, steps, native) for p, steps in zip(recipe.phases, used, strict=True) if steps),
        command=_command(recipe, info),
        run=info.run,
        init=tuple(ref.lineage() for ref in info.init),
        data=tuple(
            ref.model_dump(include={"name", "rows", "id", "manifest_id", "encoding"}) for ref in info.data
        ),
        values=info.recipe,
        metrics=info.metrics,
        versions=info.versions,
    )


def _native(info: CheckpointInfo) -> int:
    return info.model.native_size or get(info.model.spec).native_size


def _sizes(recipe: RecipeBase, info: CheckpointInfo) -> list[int]:
    """The resolution in px of each phase that was reached, in their order."""
    done = zip(recipe.phases, recipe.done_by_phase(info.step), strict=True)
    return [phase.resolution or _native(info) for phase, steps in done if steps]


def _phase(phase: PhaseBase, steps: int, native: int) -> str:
    """One phase in a line: steps, size, what is mixed, loss and noise levels."""
    objective = phase.objective.model_dump(mode="json")
    kind = objective.pop("kind")
    values = ", ".join(f"{name} {value}" for name, value in objective.items())
    loss = kind + (f" ({values})" if values else "")
    parts = [_use(use) for use in phase.data]
    where = f"{steps:,} steps at {phase.resolution or native} px on {', '.join(parts)}"
    levels = f"; {_noise(phase.timesteps)}" if isinstance(phase, Phase) else ""
    return f"{phase.name}: {where}; loss {loss}{levels}; lr {phase.lr:g}"


def _noise(levels: Timesteps) -> str:
    density = levels.density + (
        f"({levels.mean:g}, {levels.std:g})" if levels.density == "logit_normal" else ""
    )
    noise = f"sigma {density}, shift {levels.shift:g}"
    if levels.band is not None:
        noise += f", in [{levels.band[0]:g}, {levels.band[1]:g}]"
    return noise


def _use(use: DataUseBase) -> str:
    limits = [f"weight {use.weight:g}"] if use.weight is not None else []
    limits += [f"where {use.where}"] if use.where is not None else []
    limits += [f"lowest {share:g} by {column}" for column, share in use.lowest.items()]
    if isinstance(use, DataUse):
        limits += [f"sigma in [{use.band[0]:g}, {use.band[1]:g}]"] if use.band is not None else []
        limits += [f"loss {use.objective.kind}"] if use.objective is not None else []
    return use.data + (f" ({', '.join(limits)})" if limits else "")


def _command(recipe: RecipeBase, info: CheckpointInfo) -> str:
    """The command that trains it again; folders of this machine are left to the reader."""
    known = recipe.name in NAMES
    sets = sets_between(known_recipe(recipe.name).model_dump(mode="json"), info.recipe) if known else []
    name = recipe.name if known else "PACKAGE.MODULE:RECIPE"
    model = info.model.name if "/" in info.model.name else "MODEL"
    several = len({ref.name for ref in info.data}) > 1
    data = [(f"{ref.name}=" if several else "") + f"ENCODED-{ref.id[:12]}" for ref in info.data]
    begin = [f"{ref.name}-{ref.sha256[:12]}" for ref in info.init]
    arguments = [("--data", each) for each in data] + [("--init", each) for each in begin]
    arguments += [("--set", each) for each in sets]
    flat = [part for pair in arguments for part in pair]
    return command("train", "run", name, "--model", model, *flat, "--out", "RUN")


def needed_files(run: Path, info: CheckpointInfo) -> dict[str, Path]:
    """The adapters that must be loaded together with the export of a run: name -> the copy in its folder.

    A whole backbone contains them.
    """
    if not read_recipe(info.recipe).trainable.removable:
        return {}
    return {Path(ref.stored).stem: run / init.FOLDER / ref.stored for ref in info.init if ref.stored}


def _average(recipe: RecipeBase, step: int) -> str:
    assert recipe.ema is not None
    return f", averaged over steps ({average.describe_average(recipe.ema, step)})"
