"""The model card of an adapter or a backbone: summary, usage, training, data and licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uhr.base.console import shown
from uhr.models.adapters.formats.usage import Usage
from uhr.models.specs.spec import ModelSpec

MODEL = "path/to/the/model"
ALPHA_IN_METADATA = """

Alpha is in the file's metadata, which diffusers reads. A program that does not read it assumes alpha = rank,
and the adapter then has another strength: set it to alpha / rank there."""


@dataclass(frozen=True)
class CardFacts:
    """The facts of a training run that a model card states.

    `base_model` is the model as the user named it (a hub id, or a folder's name). `trained_on` is the number
    of distinct samples, and `licences` counts them by their licence in the manifest (None: it has none).
    `guidance` is the value fed to the backbone while training, None for a backbone that takes none. `trained`
    says what was trained.
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
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "spec"}
        counts = {name or "none recorded": count for name, count in self.licences.items()}
        plain = {"spec": self.spec.name, "licences": counts, "surgeries": list(self.surgeries)}
        return {**values, **plain, "metrics": dict(self.metrics), "versions": dict(self.versions)}


def lora_card(facts: CardFacts, rank: int, alpha: float, targets: tuple[str, ...], usage: Usage) -> str:
    """Return an adapter's card as Markdown, with the YAML front matter that the hub reads."""
    what = f"A LoRA for {facts.spec.summary}, rank {rank}, alpha {alpha:g}, on {', '.join(targets)}."
    use = _guide_usage(facts) if usage.tokens == "guide" else _usage(facts, alpha == rank)
    return _card(facts, "adapter", "lora", [what + _limits(usage), use])


def backbone_card(facts: CardFacts) -> str:
    """Return the card of a trained backbone, as `lora_card`."""
    what = f"The transformer of {facts.spec.summary}, all weights trained, in float32."
    what += " Text encoders and VAE are those of the base."
    return _card(facts, "finetune", "transformer", [what, _backbone_usage(facts)])


def _card(facts: CardFacts, relation: str, tag: str, first: list[str]) -> str:
    import yaml

    head = yaml.safe_dump(_front_matter(facts, relation, tag), sort_keys=False, allow_unicode=True)
    what = "adapter" if relation == "adapter" else "transformer"
    sections = [f"# {shown(facts.name)}", *first, _training(facts), _data(facts), _licence(facts, what)]
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts, relation: str, tag: str) -> dict[str, Any]:
    licence = facts.spec.licence
    head: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if "/" in facts.base_model:
        head |= {"base_model": facts.base_model.partition("@")[0], "base_model_relation": relation}
    head["license"] = licence.id
    if licence.id == "other":
        head |= {"license_name": licence.name, "license_link": licence.url}
    head["tags"] = ["text-to-image", tag, "diffusers", facts.spec.family, "uhr"]
    return head


def _limits(usage: Usage) -> str:
    guide = " It acts only on the tokens of UltraGen's guide." if usage.tokens == "guide" else ""
    over = "".join(f" It acts on top of `{name}` (SHA-256 `{sha}`)." for name, sha in usage.over.items())
    return guide + over


def _guide_usage(facts: CardFacts) -> str:
    """The section for an adapter that only a sampler with guide tokens can use."""
    return f"""## Use

```bash
uhr sample ultragen --model {facts.base_model if "/" in facts.base_model else MODEL} \\
    --adapter path/to/this/folder --prompt "a prompt" --out image.png
```

Programs that load it as an ordinary LoRA apply it to every token, for which it was not trained."""


def _usage(facts: CardFacts, alpha_is_rank: bool) -> str:
    named, pinned, model = _base(facts)
    remark = "" if alpha_is_rank else ALPHA_IN_METADATA
    scale = "" if facts.spec.guidance_scale is None else f", guidance_scale={facts.spec.guidance_scale:g}"
    return f"""## Use

```python
import torch
from diffusers import {facts.spec.pipeline_class}

pipe = {facts.spec.pipeline_class}.from_pretrained("{named}"{pinned}, torch_dtype=torch.bfloat16)
pipe.load_lora_weights("path/to/this/folder")
pipe(prompt="a prompt", num_inference_steps={facts.spec.steps}{scale}).images[0].save("image.png")
```

```bash
uhr sample euler --model {model} --adapter path/to/this/folder \\
    --prompt "a prompt" --out image.png
```{remark}"""


def _base(facts: CardFacts) -> tuple[str, str, str]:
    """The base as `from_pretrained` takes it, with its revision as an argument, and as `--model` takes it."""
    hub_id, at, revision = facts.base_model.partition("@")
    # a folder's name does not exist on the reader's machine
    if "/" not in facts.base_model:
        return MODEL, "", MODEL
    return hub_id, f', revision="{revision}"' if at else "", facts.base_model


def _backbone_usage(facts: CardFacts) -> str:
    named, pinned, model = _base(facts)
    scale = "" if facts.spec.guidance_scale is None else f", guidance_scale={facts.spec.guidance_scale:g}"
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
uhr sample euler --model path/to/this/folder --base {model} \\
    --prompt "a prompt" --out image.png
```"""


def _training(facts: CardFacts) -> str:
    guidance = "none" if facts.guidance is None else f"embedded {facts.guidance:g}"
    rows = {
        "recipe": facts.recipe,
        "trained": facts.trained,
        "steps": facts.steps,
        "resolution": facts.resolution,
        "guidance while training": guidance,
        "base weights (SHA-256)": facts.base_weights,
        "surgeries of the backbone": ", ".join(facts.surgeries) or "none",
        **{name: f"{value:.6g}" for name, value in facts.metrics.items()},
        **{f"{name} version": value for name, value in facts.versions.items()},
    }
    return "## Training\n\n" + _table(("what", "value"), rows)


def _data(facts: CardFacts) -> str:
    known = sorted((name, count) for name, count in facts.licences.items() if name is not None)
    silent = facts.licences.get(None, 0)
    text = f"## Data\n\n{facts.trained_on:,} images of the manifest `{facts.manifest_id}`."
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
    lines = [f"| {head[0]} | {head[1]} |", "|--|--|"]
    return "\n".join(lines + [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()])


def _cell(value: Any) -> str:
    """A value in a Markdown table, escaped because licences come from outside and may contain anything."""
    return shown(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
