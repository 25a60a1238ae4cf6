"""The matrix adapter x sampler x family: every kind of adapter's file, through every sampler's real pipeline.

Cells come from the registry, so that it contains new samplers: every kind with every sampler, every sampler
and every kind on every family. What does not fit together is an error before weights are loaded.
"""

import copy
import functools
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models import zoo
from uhr.models.adapters import files, peft_layers
from uhr.models.adapters.conversion import lora_of
from uhr.models.adapters.formats import writing
from uhr.models.adapters.formats.keys import layout_of
from uhr.models.adapters.formats.usage import ORDINARY, Usage
from uhr.models.adapters.minor import MinorSpec, add_minor
from uhr.models.adapters.plain import LoraSpec, add_lora, lora_state
from uhr.models.adapters.scales import set_scales
from uhr.models.generate import setup
from uhr.models.generate.record import read_record
from uhr.models.generate.request import Adapter, Request
from uhr.models.publish.export import export_lora
from uhr.models.samplers import SAMPLERS, find_sampler, names_for, sampler_class
from uhr.models.samplers.core.sampler import plan_of_spec

FAMILIES = {"flux1": "tiny-flux1", "flux2": "tiny-flux2"}
CELLS = [(family, name) for family in FAMILIES for name in names_for(family)]
KINDS = {
    "plain": {"plain": 1.0},
    "style from a kohya file": {"style": 1.0},
    "minor": {"minor": 1.0},
    "major": {"major": 1.0},
    "on guide tokens": {"guide": 1.0},
    "style and minor": {"style": 0.7, "minor": 0.5},
    "URAE's 4K factors over its 2K LoRA": {"urae-2k": 1.0, "urae-4k": 0.8},
}
"""Files that act together, and how strongly."""

NATIVE = 64
"""Side in px of the square in place of the native one: 16 tokens."""

SIDE = 96
"""Side in px of the images, or the next that a sampler takes: 36 tokens, four patches."""

RANK = 2


class Family:
    """A tiny model of a family, adapter files for it, and its samplers."""

    def __init__(self, name, folder, files):
        self.spec, self.folder, self.files = zoo.get(FAMILIES[name]), folder, files
        self.first = sampler_class("euler", name).from_pretrained(folder, local_files_only=True)
        self.generate = functools.cache(self._generate)

    @functools.cache  # noqa: B019 (as long as the session)
    def pipeline(self, name):
        """A sampler on components of its own."""
        pipeline = sampler_class(name, self.spec.family).from_pipe(copy.deepcopy(self.first))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def request(self, name, adapters=()):
        """The quickest call of a sampler."""
        sampler, options = find_sampler(name), {"native_size": NATIVE, "base_steps": 1}
        options = {key: value for key, value in options.items() if key in sampler.Options.model_fields}
        chosen = sampler.Options(**options)
        rule = sampler.sizes(sampler.facts_of(self.spec, chosen), chosen)
        height, width = rule.smallest((SIDE, SIDE))
        steps = self._steps(sampler, chosen, (height, width))
        return Request(
            sampler=name, model=str(self.folder), size=(width, height), steps=steps,
            device="cpu", options=options, adapters=adapters,
        )  # fmt: skip

    def _steps(self, sampler, options, size):
        """The fewest that the sampler takes."""
        for steps in range(1, 6):
            try:
                plan_of_spec(sampler, self.spec, options, size, steps)
            except UserError:
                continue
            return steps
        pytest.fail(f"{type(sampler).__name__} needs more than 5 steps")

    def sample(self, name):
        """Latents of the quickest call with the adapters that are on the sampler now."""
        pipeline, request = self.pipeline(name), self.request(name)
        return pipeline(
            "x",
            width=request.size[0],
            height=request.size[1],
            num_inference_steps=request.steps,
            generator=torch.Generator().manual_seed(0),
            max_sequence_length=16,
            output_type="latent",
            **request.options,
        ).images

    def _generate(self, name):
        """The same without any adapter, once."""
        assert peft_layers.names(self.pipeline(name).transformer) == []
        return self.sample(name)


def adapter_files(spec, folder, out, facts):
    """A file of every kind."""

    def make(name, components=None, usage=ORDINARY):
        model, lora = (
            zoo.load_transformer(folder),
            LoraSpec(RANK, spec.lora_target_sets["attention"], alpha=3.0),
        )
        if components:
            own = add_minor(model, MinorSpec(RANK, spec.lora_target_sets["attention"], components), None)
        else:
            own = add_lora(model, lora, seed=0)
        draw = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in own:
                parameter += 0.5 * torch.randn(parameter.shape, generator=draw)
        return model, export_lora(lora_state(model), lora, out / name, facts(spec=spec), usage)

    found = {name: make(name, components)[1] for name, components in
             {"plain": None, "minor": "minor", "major": "major"}.items()}  # fmt: skip
    found["guide"] = make("guide", usage=Usage(tokens="guide"))[1]
    model, _ = make("other style")
    kohya = writing.Format.KOHYA
    found["style"] = writing.save(lora_of(model), out / "style.safetensors", kohya, layout_of(model))
    double = {path: part for path, part in lora_of(model).items() if path.startswith("transformer_blocks")}
    found["urae-2k"] = writing.save(
        double, out / "2k.safetensors", writing.Format.DIFFUSERS, layout_of(model)
    )
    found["urae-4k"] = factors(double, out / "4k.safetensors")
    return found


def factors(lora, file):
    """These updates as URAE's processors hold theirs."""
    state = {}
    for path, part in lora.items():
        block, _, linear = path.removesuffix(".0").rpartition(".")
        state |= {f"{block}.processor.{linear}_a.weight": part.a.clone()}
        state |= {f"{block}.processor.{linear}_b.weight": part.b.clone()}
    save_file(state, file)
    return file


@pytest.fixture(scope="session")
def families(tiny_flux, tiny_flux2, facts, tmp_path_factory):
    made = {}
    for name, folder in {"flux1": tiny_flux, "flux2": tiny_flux2}.items():
        out = tmp_path_factory.mktemp(f"adapters-{name}")
        made[name] = Family(name, folder, adapter_files(zoo.get(FAMILIES[name]), folder, out, facts))
    return made


def kinds_of(family, name):
    """The kinds that a sampler is tested with on a family: every second one, and the others on the other
    family. Guide tokens, which each family passes to its blocks in its own way, on both."""
    own = [each for each, sampler in CELLS if sampler == name]
    first = list(SAMPLERS).index(name) + own.index(family)
    return [
        kind
        for place, kind in enumerate(KINDS)
        if len(own) == 1
        or (place + first) % 2 == 0
        or ("guide" in KINDS[kind] and find_sampler(name).guide_tokens)
    ]


TESTED = [(*cell, kind) for cell in CELLS for kind in kinds_of(*cell)]


def test_every_pair_of_sampler_kind_and_family_is_in_the_matrix():
    assert {name for _, name in CELLS} == SAMPLERS.keys()
    assert len(CELLS) == sum(len(info.families) for info in SAMPLERS.values())
    assert {(family, name) for family, name, _ in TESTED} == set(CELLS)
    assert {(name, kind) for _, name, kind in TESTED} == {(name, kind) for name in SAMPLERS for kind in KINDS}
    pairs = {(family, kind) for family in FAMILIES for kind in KINDS}
    assert {(family, kind) for family, _, kind in TESTED} == pairs


def at_scale_0(family, name):
    """The kind whose scale is set to 0 in a cell: every kind, and every sampler on every family."""
    kinds = [
        kind
        for kind in kinds_of(family, name)
        if "guide" not in KINDS[kind] or find_sampler(name).guide_tokens
    ]
    return kinds[list(SAMPLERS).index(name) % len(kinds)]


def test_every_kind_is_set_to_scale_0_on_some_sampler():
    assert {at_scale_0(*cell) for cell in CELLS} >= KINDS.keys() - {"on guide tokens"}


@pytest.mark.parametrize(("family", "name", "kind"), TESTED)
def test_adapters_act_and_at_scale_0_not_at_all(families, family, name, kind):
    here, scales = families[family], list(KINDS[kind].values())
    paths = [here.files[each] for each in KINDS[kind]]
    adapters = tuple(Adapter(name=str(path), scale=scale) for path, scale in zip(paths, scales, strict=True))
    pipeline, before = here.pipeline(name), here.generate(name)
    if "guide" in KINDS[kind] and not pipeline.sampler.guide_tokens:
        # a setup loads nothing
        with pytest.raises(UserError, match="acts on a guide's tokens alone, and this sampler has none"):
            setup.Setup.of(here.request(name, adapters))
        return
    setup.Setup.of(here.request(name, adapters))
    found = files.read_all(paths, pipeline)
    files.load_adapters(pipeline, found, dict(zip(found, scales, strict=True)))
    try:
        adapted = here.sample(name)
        set_scales(pipeline, dict.fromkeys(found, 0.0))
        silent = here.sample(name) if kind == at_scale_0(family, name) else before
    finally:
        for each in found:
            peft_layers.remove(pipeline.transformer, each)
    assert before.isfinite().all()
    assert adapted.isfinite().all()
    assert (adapted - before).abs().max() > 1e-3 * before.abs().max()
    torch.testing.assert_close(silent, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("family", "name"), CELLS[::2])
def test_components_in_training_generate_what_their_export_generates(families, family, name):
    """The difference form on the model against the LoRA of twice the rank in the file."""
    here, pipeline = families[family], families[family].pipeline(name)
    transformer = pipeline.transformer
    own = add_minor(transformer, MinorSpec(RANK, here.spec.lora_target_sets["attention"]), None, name="minor")
    draw = torch.Generator().manual_seed(len("minor"))
    with torch.no_grad():
        for parameter in own:
            parameter += 0.5 * torch.randn(parameter.shape, generator=draw)
        trained = here.sample(name)
    peft_layers.remove(transformer, "minor")
    files.load_adapter(pipeline, here.files["minor"], "minor")
    exported = here.sample(name)
    peft_layers.remove(transformer, "minor")
    torch.testing.assert_close(exported, trained, rtol=1e-3, atol=1e-3)


COMMANDS = {
    "a style and singular components": ("flux1", "imax", {"style": 0.7, "minor": 0.5}),
    "a plain LoRA on FLUX.2": ("flux2", "sdedit", {"plain": 1.0}),
    "an adapter for guide tokens": ("flux1", "ultragen", {"guide": 1.0, "style": 0.5}),
    "major components": ("flux2", "patch-cascade", {"major": 1.0}),
    "URAE's": ("flux1", "hiflow", {"urae-2k": 1.0, "urae-4k": 0.8, "style": 0.5}),
}
REFUSED = {
    "a guide's tokens that are not there": ("flux2", "euler", ["guide"], "sample with ultragen"),
    "factors before what they depend on": (
        "flux1",
        "imax",
        ["urae-4k", "urae-2k"],
        "give that one before it",
    ),
}


def command(here, name, out, adapters):
    request = here.request(name)
    argv = ["sample", name, "--model", here.folder, "--prompt", "x", "--out", out, "--device", "cpu"]
    argv += ["--size", "{}x{}".format(*request.size), "--steps", request.steps]
    argv += [arg for key, value in request.options.items() for arg in ("--set", f"{key}={value}")]
    argv += [arg for each, scale in adapters.items() for arg in ("--adapter", f"{here.files[each]}={scale}")]
    return main([str(arg) for arg in argv])


@pytest.mark.usefixtures("short_prompts")
@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_puts_them_on_and_records_them(families, case, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    family, name, adapters = COMMANDS[case]
    here = families[family]
    assert command(here, name, tmp_path / "with.png", adapters) == 0, capsys.readouterr().err
    assert command(here, name, tmp_path / "without.png", {}) == 0, capsys.readouterr().err
    record = read_record(tmp_path / "with.png")
    assert [entry["scale"] for entry in record["adapters"]] == list(adapters.values())
    if "guide" in adapters:
        assert json.dumps(record["details"]["settings"]["guide_adapters"]) == '["adapter_0"]'
    kept = list((tmp_path / "cache").glob("uhr/components/*.safetensors"))
    assert len(kept) == (8 if "urae-4k" in adapters else 0)  # four linears in two blocks
    one, other = (Image.open(tmp_path / f"{each}.png") for each in ("with", "without"))
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_refuses_what_does_not_go_together_before_loading(
    families, case, tmp_path, capsys, monkeypatch
):
    family, name, adapters, message = REFUSED[case]
    monkeypatch.setattr("uhr.models.loading.model.load_pipeline", None)
    assert command(families[family], name, tmp_path / "a.png", dict.fromkeys(adapters, 1.0)) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
