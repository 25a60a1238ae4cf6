"""The model card of an adapter, a backbone or a VAE: summary, usage, training, data and licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uhr.base.console import shown
from uhr.models.adapters.formats.usage import IntendedSampling, Usage
from uhr.models.specs.spec import ModelSpec

MODEL = "path/to/the/model"
ALPHA_IN_METADATA = """

Alpha is in the file's metadata, which diffusers reads. A program that does not read it assumes alpha = rank,
and the adapter then has another strength: set it to alpha / rank there."""


_LISTS = ("surgeries", "sample_arguments", "phases", "init", "data")


@dataclass(frozen=True)
class CardFacts:
    """The facts of a training run that a model card states.

    name: the title. base_model: the model as the user named it (a hub id, or a folder's name). base_weights:
    SHA-256 of its weights. recipe: its name. steps: optimiser steps. resolution: the sizes trained at, as
    text. guidance: the value fed to the backbone while training, None for a backbone that takes none.
    manifest_id: of the encoded images. trained_on: number of distinct samples. licences: how many of them
    have each licence (None: none recorded). surgeries: edits of the model, by name. trained: the part that
    was trained. metrics, versions: values of the last checkpoint, and versions of packages, by name.

    sampler, sample_arguments: the sampler that it is for, and the options of `uhr sample` that it needs.
    sample_guidance: guidance of the stock pipeline; None is that of the model's card. sample_options: the
    sampler's options by name.
    phases: one line for each phase of the training. command: the command line that trains it again. run: the
    id of the run. init: the weights that it began with, as `run.json` lists them. data: the data sets by
    `name`, with `id`, `manifest_id`, `rows` and `encoding` (a text). values: the whole recipe.
    """

    name: str
    spec: ModelSpec
    base_model: str
    base_weights: str
    recipe: str
    steps: int
    resolution: str
    guidance: float | None
    manifest_id: str
    trained_on: int
    licences: Mapping[str | None, int]
    surgeries: tuple[str, ...] = ()
    trained: str = "a LoRA"
    sampler: str = "euler"
    sample_arguments: tuple[str, ...] = ()
    sample_guidance: float | None = None
    sample_options: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[str, ...] = ()
    command: str = ""
    run: str = ""
    init: tuple[Mapping[str, Any], ...] = ()
    data: tuple[Mapping[str, Any], ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def intended(self) -> IntendedSampling:
        """How it is sampled, as its file says it."""
        return IntendedSampling(
            sampler=self.sampler, guidance=self.sample_guidance, options=dict(self.sample_options)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "spec"}
        counts = {name or "none recorded": count for name, count in self.licences.items()}
        plain: dict[str, Any] = {"spec": self.spec.name, "licences": counts, "values": dict(self.values)}
        plain["sample_options"] = dict(self.sample_options)
        plain |= {name: list(getattr(self, name)) for name in _LISTS}
        return {**values, **plain, "metrics": dict(self.metrics), "versions": dict(self.versions)}


def lora_card(facts: CardFacts, rank: int, alpha: float, targets: tuple[str, ...], usage: Usage) -> str:
    """Return an adapter's card as Markdown, with the YAML front matter that the hub reads."""
    what = f"A LoRA for {facts.spec.summary}, rank {rank}, alpha {alpha:g}, on {', '.join(targets)}."
    guide = usage.tokens == "guide"
    use = _guide_usage(facts) if guide else _usage(facts, alpha == rank, tuple(usage.over))
    return _card(facts, "adapter", "lora", [what + _limits(usage), use])


def backbone_card(facts: CardFacts) -> str:
    """Return the card of a trained backbone, as `lora_card`."""
    what = f"The transformer of {facts.spec.summary}, all weights trained, in float32."
    what += " Text encoders and VAE are those of the base."
    return _card(facts, "finetune", "transformer", [what, _backbone_usage(facts)])


def vae_card(facts: CardFacts) -> str:
    """Return the card of a trained VAE, as `lora_card`."""
    what = f"The VAE of {facts.spec.summary} with {facts.trained} trained, in float32."
    what += " Weights that were not trained are those of the base."
    return _card(facts, "finetune", "vae", [what, _vae_usage(facts)])


def _card(facts: CardFacts, relation: str, tag: str, first: list[str]) -> str:
    import yaml

    head = yaml.safe_dump(_front_matter(facts, relation, tag), sort_keys=False, allow_unicode=True)
    what = {"lora": "adapter", "vae": "VAE"}.get(tag, tag)
    training = [_training(facts), _lineage(facts), _data(facts), _licence(facts, what)]
    sections = [f"# {shown(facts.name)}", *first, *training]
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts, relation: str, tag: str) -> dict[str, Any]:
    licence = facts.spec.licence
    task = "image-to-image" if tag == "vae" else "text-to-image"
    head: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": task}
    if "/" in facts.base_model:
        head |= {"base_model": facts.base_model.partition("@")[0], "base_model_relation": relation}
    head["license"] = licence.id
    if licence.id == "other":
        head |= {"license_name": licence.name, "license_link": licence.url}
    head["tags"] = [head["pipeline_tag"], tag, "diffusers", facts.spec.family, "uhr"]
    return head


def _limits(usage: Usage) -> str:
    guide = " It acts only on the tokens of UltraGen's guide." if usage.tokens == "guide" else ""
    over = "".join(
        f" It acts on top of `{name}` (SHA-256 `{sha}`), which must be loaded together with it."
        for name, sha in usage.over.items()
    )
    return guide + over


def _guide_usage(facts: CardFacts) -> str:
    """The section for an adapter that only a sampler with guide tokens can use."""
    return f"""## Use

```bash
{_command(facts, f"--model {_base(facts)[2]} --adapter path/to/this/folder")}
```

Programs that load it as an ordinary LoRA apply it to every token, for which it was not trained."""


def _usage(facts: CardFacts, alpha_is_rank: bool, over: tuple[str, ...]) -> str:
    named, pinned, model = _base(facts)
    remark = "" if alpha_is_rank else ALPHA_IN_METADATA
    load = 'pipe.load_lora_weights("path/to/this/folder")'
    if over:
        paths = [*((f"path/to/{name}.safetensors", name) for name in over), ("path/to/this/folder", "this")]
        lines = [f'pipe.load_lora_weights("{path}", adapter_name="{name}")' for path, name in paths]
        load = "\n".join([*lines, f"pipe.set_adapters({[name for _, name in paths]})"])
    below = "".join(f"--adapter path/to/{name}.safetensors " for name in over)
    scale = _scale(facts)
    return f"""## Use

```python
import torch
from diffusers import {facts.spec.pipeline_class}

pipe = {facts.spec.pipeline_class}.from_pretrained("{named}"{pinned}, torch_dtype=torch.bfloat16)
{load}
pipe(prompt="a prompt", num_inference_steps={facts.spec.steps}{scale}).images[0].save("image.png")
```

```bash
{_command(facts, f"--model {model} {below}--adapter path/to/this/folder")}
```{remark}{_positions(facts)}"""


def _scale(facts: CardFacts) -> str:
    """The guidance of the stock pipeline as an argument; nothing for a backbone that takes none."""
    card = facts.spec.guidance_scale
    if card is None:
        return ""
    return f", guidance_scale={card if facts.sample_guidance is None else facts.sample_guidance:g}"


def _command(facts: CardFacts, model: str) -> str:
    """The `uhr sample` command, in two lines."""
    further = "".join(f" {argument}" for argument in facts.sample_arguments)
    return f'uhr sample {facts.sampler} {model} \\\n    --prompt "a prompt"{further} --out image.png'


def _positions(facts: CardFacts) -> str:
    """A warning where the stock pipeline lacks what the backbone was trained with."""
    if not facts.surgeries:
        return ""
    names = ", ".join(facts.surgeries)
    return f"\n\nIt was trained with {names}, which the stock pipeline lacks and the command above has."


def _base(facts: CardFacts) -> tuple[str, str, str]:
    """The base as `from_pretrained` takes it, with its revision as an argument, and as `--model` takes it."""
    hub_id, at, revision = facts.base_model.partition("@")
    # a folder's name does not exist on the reader's machine
    if "/" not in facts.base_model:
        return MODEL, "", MODEL
    return hub_id, f', revision="{revision}"' if at else "", facts.base_model


def _backbone_usage(facts: CardFacts) -> str:
    named, pinned, model = _base(facts)
    scale = _scale(facts)
    transformer, pipeline = facts.spec.transformer_class, facts.spec.pipeline_class
    return f"""## Use

```python
import torch
from diffusers import {transformer}, {pipeline}

transformer = {transformer}.from_pretrained("path/to/this/folder", torch_dtype=torch.bfloat16)
pipe = {pipeline}.from_pretrained(
    "{named}"{pinned}, transformer=transformer, torch_dtype=torch.bfloat16
)
pipe(prompt="a prompt", num_inference_steps={facts.spec.steps}{scale}).images[0].save("image.png")
```

```bash
{_command(facts, f"--model path/to/this/folder --base {model}")}
```{_positions(facts)}"""


def _vae_usage(facts: CardFacts) -> str:
    model = _base(facts)[2]
    f16 = "vae-f16" in facts.surgeries
    restore, factor = "", ""
    if f16:
        restore = "\nvae = restore(vae)"
        factor = """

An image of H x W has latents of H/16 x W/16. Stock diffusers loads the weights and ignores `stride` in the
configuration: without `restore` it would run them as a VAE of factor 8."""
    imports = "from diffusers import AutoencoderKL"
    imports += "\nfrom uhr.models.vae.f16 import restore" if f16 else ""
    return f"""## Use

```python
{imports}

vae = AutoencoderKL.from_pretrained("path/to/this/folder"){restore}
```

```bash
{_command(facts, f"--model {model} --vae path/to/this/folder")}
```{factor}"""


def _training(facts: CardFacts) -> str:
    guidance = "none" if facts.guidance is None else f"embedded {facts.guidance:g}"
    rows = {
        "recipe": facts.recipe,
        "trained": facts.trained,
        "steps": facts.steps,
        "resolution": facts.resolution,
        "guidance while training": guidance,
        "base weights (SHA-256)": facts.base_weights,
        "surgeries": ", ".join(facts.surgeries) or "none",
        **{name: f"{value:.6g}" for name, value in facts.metrics.items()},
        **{f"{name} version": value for name, value in facts.versions.items()},
    }
    text = "## Training\n\n" + _table(("what", "value"), rows)
    if facts.phases:
        text += "\n\n" + "\n".join(f"- {shown(phase)}" for phase in facts.phases)
    if facts.command:
        text += f"\n\n```bash\n{shown(facts.command)}\n```\n\n`uhr.json` has every value of the recipe."
    return text


def _lineage(facts: CardFacts) -> str:
    lines = [f"- base weights: {shown(facts.base_model)} (SHA-256 `{facts.base_weights}`)"]
    if facts.run:
        lines.append(f"- run `{facts.run}`")
    return "## Lineage\n\n" + "\n".join(lines + _ancestors(facts.init, ""))


def _ancestors(init: Sequence[Mapping[str, Any]], indent: str) -> list[str]:
    """A line for each adapter that a run began with, and below it those that its own run began with."""
    lines = []
    for ref in init:
        how = "fused with the base" if ref["use"] == "fuse" else "trained further"
        known = [ref["recipe"] and f"recipe {ref['recipe']}", ref["run"] and f"run `{ref['run']}`"]
        known += [ref["step"] and f"{ref['step']} steps", f"SHA-256 `{ref['sha256']}`"]
        lines.append(f"{indent}- {how}: " + shown(", ".join(filter(None, known))))
        lines += _ancestors(ref["init"], indent + "  ")
    return lines


def _data(facts: CardFacts) -> str:
    known = sorted((name, count) for name, count in facts.licences.items() if name is not None)
    silent = facts.licences.get(None, 0)
    text = f"## Data\n\n{facts.trained_on:,} images of the manifest `{facts.manifest_id}`."
    if facts.data:
        heads = ("name", "images", "encoded data", "manifest", "encoding")
        keys = ("name", "rows", "id", "manifest_id", "encoding")
        rows = [[entry.get(key, "") for key in keys] for entry in facts.data]
        text += "\n\n" + _rows(heads, rows)
    if known:
        text += "\n\n" + _table(("licence of the images", "images"), dict(known))
    if silent:
        text += f"\n\nThe manifest records no licence for {silent:,} of them."
    return text


def _licence(facts: CardFacts, what: str) -> str:
    licence = facts.spec.licence
    allowed = (
        "It allows commercial use."
        if licence.commercial
        else f"**It forbids commercial use of the weights, and so of this {what}**."
    )
    text = f"## Licence\n\nThe base weights are under [{licence.name}]({licence.url}). {allowed}"
    if facts.spec.tiny:
        text += f"\n\nThe base has random weights: this {what} only shows that the workflow runs."
    return text


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    return _rows(head, list(rows.items()))


def _rows(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'--|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows])


def _cell(value: Any) -> str:
    """A value in a Markdown table, escaped because licences come from outside and may contain anything."""
    return shown(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
