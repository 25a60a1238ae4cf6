"""Adapters as trainable parts: LoRA, singular components, and a LoRA on guide tokens alone."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from uhr.base.errors import UserError, unknown
from uhr.base.formatting import numbered_names
from uhr.models.specs.spec import ModelSpec
from uhr.train.trainable.base import PartFile, Trainable

if TYPE_CHECKING:
    import torch

    from uhr.models.adapters.files import AdapterFile
    from uhr.models.adapters.formats.usage import IntendedSampling, Usage
    from uhr.models.adapters.low_rank import LowRank
    from uhr.models.adapters.plain import LoraSpec
    from uhr.models.adapters.surgeries import AdapterSurgery
    from uhr.models.loading.opening import ModelName
    from uhr.models.publish.card import CardFacts


FUSED = "--set init.use=fuse"
"""The fix for an adapter that cannot be trained further: add it to the frozen weights instead."""


class Adapter(Trainable):
    """An adapter of rank `rank` on each target, in float32 whatever the model's dtype.

    targets: the name of a target set of the spec, or suffixes of module names.
    """

    file: ClassVar[str] = "adapter"

    rank: int = Field(gt=0)
    targets: str | tuple[str, ...]

    def suffixes(self, spec: ModelSpec) -> tuple[str, ...]:
        """Suffixes of the names of the modules that get an adapter."""
        return spec.lora_target_sets[self.targets] if isinstance(self.targets, str) else self.targets

    def check(self, spec: ModelSpec) -> None:
        if isinstance(self.targets, str) and self.targets not in spec.lora_target_sets:
            raise unknown("set of targets", self.targets, spec.lora_target_sets, "trainable part")

    @abstractmethod
    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        """The surgery that adds the adapter."""

    @property
    @abstractmethod
    def strength(self) -> float:
        """Alpha: the adapter's product is scaled by alpha / rank."""

    def usage(self, over: Mapping[str, str]) -> Usage:
        """How the adapter is used, which its export says; `over` as in `export`."""
        from uhr.models.adapters.formats.usage import Usage

        return Usage(over=dict(over))

    def lora(self, spec: ModelSpec) -> LoraSpec:
        """Rank, alpha and modules."""
        from uhr.models.adapters.plain import LoraSpec

        return LoraSpec(self.rank, self.suffixes(spec), self.strength)

    def prepare(self, model: Any, spec: ModelSpec, seed: int) -> None:
        model.requires_grad_(False)
        self.surgery(spec, seed).apply(model)

    def parameters(self, model: Any) -> dict[str, torch.nn.Parameter]:
        from uhr.models.adapters.plain import ADAPTER

        return {
            name.replace(f".{ADAPTER}.", "."): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def read(self, path: Path, model: Any, spec: ModelSpec) -> Mapping[str, torch.Tensor]:
        from uhr.models.adapters.files import read
        from uhr.models.adapters.formats.keys import layout_of

        file = read(path, layout_of(model))
        if file.clip:
            raise UserError(f"adapter {path} also changes CLIP, which is not trained", FUSED)
        own_tokens = self.usage({}).tokens
        if file.usage.tokens != own_tokens:
            tokens = {"all": "every token", "guide": "guide tokens alone"}
            what = f"adapter {path} acts on {tokens[file.usage.tokens]}"
            raise UserError(
                f"{what}, and the recipe's on {tokens[own_tokens]}",
                "take a recipe of the same trainable part",
            )
        self.check_same(file, spec)
        found = self.tensors_of(file)
        own = {**self.parameters(model), **self.constants(model)}
        differs = sorted(set(found) ^ set(own))
        if differs:
            module = differs[0].partition(".lora_")[0]
            has, lacks = (
                ("the adapter", "the recipe") if differs[0] in found else ("the recipe", "the adapter")
            )
            fix = self._targets_fix(set(file.lora), model, spec)
            raise UserError(f"adapter {path}: {has} adapts {module}, and {lacks} does not", fix)
        for name, tensor in found.items():
            assert tensor.shape == own[name].shape, name
        return found

    @abstractmethod
    def check_same(self, file: AdapterFile, spec: ModelSpec) -> None:
        """Raise UserError if a file's adapter is of another kind, rank or strength."""

    @abstractmethod
    def tensors_of(self, file: AdapterFile) -> dict[str, torch.Tensor]:
        """The tensors of a file's adapter, by the names of this one's."""

    def _targets_fix(self, adapted: set[str], model: Any, spec: ModelSpec) -> str:
        """The fix for other modules: the set of targets that has them, if there is one."""
        paths = [path for path, _ in model.named_modules() if not path.endswith(".base_layer")]
        for name, suffixes in spec.lora_target_sets.items():
            endings = tuple(f".{suffix}" for suffix in suffixes)
            if adapted == {path for path in paths if path.endswith(endings)}:
                return f"--set trainable.targets={name}, or {FUSED}"
        return FUSED

    def off(self, model: Any) -> AbstractContextManager[None]:
        from uhr.models.adapters import peft_layers
        from uhr.models.adapters.plain import ADAPTER

        return peft_layers.disabled(model, ADAPTER)

    def metadata(self, model: Any, over: Mapping[str, str], sampling: IntendedSampling) -> dict[str, str]:
        """Rank and alpha as diffusers writes them, so that the file is loaded at the right strength; and how
        it is sampled, as `uhr sample --adapter RUN@STEP` takes the checkpoint's file.
        """
        from uhr.models.adapters.formats.alphas import DIFFUSERS_METADATA

        lora = {"transformer.r": self.rank, "transformer.lora_alpha": self.strength}
        usage = self.usage(over).sampled(sampling)
        return {DIFFUSERS_METADATA: json.dumps(lora, sort_keys=True), **usage.metadata()}

    def export(self, part: PartFile, spec: ModelSpec, out: Path, facts: CardFacts) -> Path:
        from uhr.models.adapters.formats.usage import Usage
        from uhr.models.publish.export import export_lora

        over = Usage.of(part.metadata, (), "of the checkpoint").over
        usage = self.usage(over).sampled(facts.intended)
        return export_lora(part.tensors, self.lora(spec), out, facts, usage)

    def plain_lora(self, part: PartFile, spec: ModelSpec) -> dict[str, LowRank]:
        from uhr.models.adapters.conversion import lora_of_state

        return lora_of_state({key: tensor.float() for key, tensor in part.tensors.items()}, self.strength)

    def sample_options(self, folder: Path, model: ModelName) -> list[str]:
        return [*model.options(), "--adapter", str(folder)]


class Lora(Adapter):
    """A LoRA (Hu et al. 2106.09685): (alpha / rank) B A; A is Gaussian and B zero at the start."""

    quantised_base: ClassVar[bool] = True

    kind: str = "lora"
    alpha: float = Field(gt=0)

    @property
    def strength(self) -> float:
        return self.alpha

    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        from uhr.models.adapters.surgeries import PlainLora

        return PlainLora(rank=self.rank, alpha=self.alpha, targets=self.suffixes(spec), seed=seed)

    def check_same(self, file: AdapterFile, spec: ModelSpec) -> None:
        if file.starts or file.factors:
            what = f"adapter {file.path} has singular components, and the recipe trains a LoRA"
            raise UserError(what, f"take a recipe that trains these, or {FUSED}")
        alphas = {part.alpha for part in file.lora.values()}
        if file.ranks == (self.rank,) and alphas == {self.alpha}:
            return
        if len(file.ranks) == len(alphas) == 1:
            rank, alpha = file.ranks[0], alphas.pop()
            what = f"adapter {file.path} has rank {rank} and alpha {alpha:g}"
            what += f", the recipe rank {self.rank} and alpha {self.alpha:g}"
            raise UserError(what, f"--set trainable.rank={rank} --set trainable.alpha={alpha:g}, or {FUSED}")
        raise UserError(f"adapter {file.path} has another rank or alpha from linear to linear", FUSED)

    def tensors_of(self, file: AdapterFile) -> dict[str, torch.Tensor]:
        halves = (("A", "a"), ("B", "b"))
        return {
            f"{path}.lora_{name}.weight": getattr(part, half)
            for path, part in file.lora.items()
            for name, half in halves
        }

    def describe(self, spec: ModelSpec) -> str:
        return f"LoRA of rank {self.rank} on {numbered_names(self.suffixes(spec))}"


class GuideLora(Lora):
    """UltraGen's LoRA (2510.16325, section 3): it acts on guide tokens and on no others."""

    needs_guide: ClassVar[bool] = True

    quantised_base: ClassVar[bool] = False

    kind: str = "token-masked-lora"

    def usage(self, over: Mapping[str, str]) -> Usage:
        return super().usage(over).model_copy(update={"tokens": "guide"})

    def plain_lora(self, part: PartFile, spec: ModelSpec) -> dict[str, LowRank]:
        what = (
            f"{self.describe(spec)}: other programs apply a LoRA to every token, for which it was not trained"
        )
        raise UserError(what, "export it as a folder, without --to, for `uhr sample ultragen`")

    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        from uhr.models.adapters.surgeries import TokenMaskedLora

        return TokenMaskedLora(rank=self.rank, alpha=self.alpha, targets=self.suffixes(spec), seed=seed)

    def describe(self, spec: ModelSpec) -> str:
        return f"{super().describe(spec)}, guide tokens alone"


class Components(Adapter):
    """URAE's singular components of each weight (2503.16322, section 2.3), in difference form.

    components: "minor" trains the smallest, "major" the largest. See `models/adapters/minor.py`. Those of a
    quantised weight are the components of its values, dequantised.
    """

    quantised_base: ClassVar[bool] = True

    kind: str = "singular-components"
    components: Literal["minor", "major"] = "minor"

    @property
    def strength(self) -> float:
        # the components are trained at scale 1
        return float(self.rank)

    def surgery(self, spec: ModelSpec, seed: int) -> AdapterSurgery:
        from uhr.base.files import user_cache
        from uhr.models.adapters.surgeries import SingularComponents

        return SingularComponents(
            rank=self.rank,
            targets=self.suffixes(spec),
            components=self.components,
            cache=user_cache("components"),
        )

    def prepare(self, model: Any, spec: ModelSpec, seed: int) -> None:
        from uhr.models.adapters import peft_layers

        # adapters that could not be fused with a quantised weight count as part of it
        over = tuple(peft_layers.active(model))
        model.requires_grad_(False)
        self.surgery(spec, seed).model_copy(update={"over": over}).apply(model)

    def check_same(self, file: AdapterFile, spec: ModelSpec) -> None:
        if not file.starts:
            what = f"adapter {file.path} does not have the components that training began with"
            raise UserError(what, f"name the run that trained it, or {FUSED}")
        # as read, both halves are one LoRA
        if file.ranks != (2 * self.rank,):
            ranks = ", ".join(str(rank // 2) for rank in file.ranks)
            what = f"adapter {file.path} has rank {ranks}, the recipe {self.rank}"
            raise UserError(what, f"--set trainable.rank={ranks}, or {FUSED}")

    def tensors_of(self, file: AdapterFile) -> dict[str, torch.Tensor]:
        from uhr.models.adapters.formats.reading import read_file

        state, _ = read_file(file.path)
        return {name.removeprefix("transformer."): tensor for name, tensor in state.items()}

    def constants(self, model: Any) -> dict[str, torch.Tensor]:
        from uhr.models.adapters.minor import START
        from uhr.models.adapters.plain import ADAPTER

        return {
            name.replace(f".{ADAPTER}.", "."): buffer
            for name, buffer in model.named_buffers()
            if name.endswith(f".{ADAPTER}.{START}")
        }

    def describe(self, spec: ModelSpec) -> str:
        return f"{self.rank} {self.components} singular components of {numbered_names(self.suffixes(spec))}"
