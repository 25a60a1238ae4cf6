"""Loaded tiny models, and parts of a sampler's call by themselves, for all tests of models."""

import pytest

from uhr.cli import main

ABOUT_LOADING = ("families", "loading", "scores", "vae")
"""Folders of tests for which each load is one from the disk."""


@pytest.fixture(autouse=True)
def _models_are_copied(request):
    if request.path.parent.name not in ABOUT_LOADING:
        request.getfixturevalue("copied_models")


@pytest.fixture(scope="session")
def stock(tiny_flux):
    """diffusers' own FluxPipeline on the tiny checkpoint. Shared: a test leaves it as it found it."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def stock2(tiny_flux2):
    """diffusers' own Flux2KleinPipeline on the tiny checkpoint. Shared: a test leaves it as it found it."""
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline.from_pretrained(tiny_flux2, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def cascade(tiny_flux):
    """RealUHR's patch cascade on the tiny checkpoint. Shared: a test leaves it as it found it."""
    from uhr.models.samplers.patch_cascade import PatchCascadePipeline

    pipeline = PatchCascadePipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def transformer(tiny_flux):
    """A tiny transformer of the test's own."""
    from uhr.models.zoo import load_transformer

    return load_transformer(tiny_flux)


@pytest.fixture(scope="session")
def inputs(stock):
    """Arguments of one call of the tiny transformer: 64 image tokens, 16 text tokens, two samples."""
    import torch

    from uhr.models.ops import latents

    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 64, 64, generator=draw),
        "encoder_hidden_states": torch.randn(2, 16, 32, generator=draw),
        "pooled_projections": torch.randn(2, 32, generator=draw),
        "timestep": torch.tensor([0.9, 0.3]),
        "guidance": torch.tensor([1.0, 1.0]),
        "img_ids": latents.image_ids(8, 8),
        "txt_ids": latents.text_ids(16),
        "return_dict": False,
    }


@pytest.fixture(scope="session")
def inputs2():
    """The same of the tiny FLUX.2 transformer."""
    import torch

    from uhr.models.families.flux2 import Flux2

    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 64, 128, generator=draw),
        "encoder_hidden_states": torch.randn(2, 16, 96, generator=draw),
        "timestep": torch.tensor([0.9, 0.3]),
        "img_ids": Flux2().image_ids(8, 8),
        "txt_ids": Flux2().text_ids(16),
        "return_dict": False,
    }


@pytest.fixture(scope="session")
def trained():
    """A maker of a checkpoint's transformer with a LoRA on it that says something, and of its state."""
    import torch

    from uhr.models import zoo
    from uhr.models.adapters.plain import add_lora, lora_state

    def make(folder, lora, seed=1):
        model = zoo.load_transformer(folder)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in add_lora(model, lora, seed=0):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
        return model, lora_state(model)

    return make


@pytest.fixture(scope="session")
def facts():
    """A maker of what training would say of an adapter; keywords change single facts."""
    from uhr.models import zoo
    from uhr.models.publish.card import CardFacts

    values = {
        "name": "lakes",
        "spec": zoo.get("tiny-flux1"),
        "base_model": "tiny-flux1",
        "base_weights": "ab" * 32,
        "recipe": "lora",
        "steps": 60,
        "resolution": "256x256",
        "guidance": 1.0,
        "manifest_id": "f00d",
        "trained_on": 12,
        "licences": {"CC0-1.0": 7, None: 5},
        "surgeries": (),
        "metrics": {"loss": 0.25},
        "versions": {"torch": "2.15.0"},
    }
    return lambda **changes: CardFacts(**{**values, **changes})


@pytest.fixture(scope="session")
def adapter(tiny_flux, trained, facts, tmp_path_factory):
    """The folder of an exported LoRA that says something; its path has a space and an equals sign."""
    from uhr.models import zoo
    from uhr.models.adapters.plain import LoraSpec
    from uhr.models.publish.export import export_lora

    lora = LoraSpec(4, zoo.get("tiny-flux1").lora_target_sets["attention"], alpha=2)
    _, state = trained(tiny_flux, lora)
    return export_lora(state, lora, tmp_path_factory.mktemp("lora") / "a = b", facts())


@pytest.fixture(scope="session")
def _flux_devs(copier):
    import torch
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return copier(FluxTransformer2DModel(guidance_embeds=True))


@pytest.fixture
def flux_dev(_flux_devs):
    """FLUX.1-dev's transformer at its real shape on the meta device: every key, no memory."""
    return _flux_devs()


@pytest.fixture(scope="session")
def seeded():
    """A generator of its own for each seed."""
    import torch

    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def engine_of():
    """A maker of an engine over a pipeline's models without a call: for noise and the VAE by themselves."""
    from types import SimpleNamespace

    import torch

    from uhr.models.samplers.core.engine import Engine, Models, Noise
    from uhr.models.samplers.core.progress import Progress, Steps
    from uhr.models.samplers.core.run_record import RunRecord

    def make(pipeline, generator=None):
        plan = SimpleNamespace(facts=pipeline.facts, options=None, vae_surgeries=(), stages=[])
        prompts = SimpleNamespace(positive=SimpleNamespace(text=torch.zeros(1)), counts=())
        models = Models(
            pipeline.family, pipeline.transformer, pipeline.vae, None, torch.device("cpu"), lambda: prompts
        )
        noise = Noise(models, plan.facts, generator, None)
        return Engine(models, plan, noise, Progress(RunRecord.of(plan)), Steps(pipeline))

    return make


@pytest.fixture
def backbone(monkeypatch):
    """Puts a function in the place of every call of a backbone: `f(tokens, sigma, condition, branch)`."""
    from uhr.models.samplers.core.engine import Engine

    def replace(function):
        def call(engine, tokens, sigma, condition, branch):
            engine.progress.calls(tokens.shape[0] // engine.batch)
            return function(tokens, sigma, condition, branch)

        monkeypatch.setattr(Engine, "call", call)

    return replace


@pytest.fixture
def backbone_calls(monkeypatch):
    """The conditions of every call of a backbone, which works as ever."""
    from uhr.models.samplers.core.engine import Engine

    found, call = [], Engine.call

    def spy(engine, tokens, sigma, condition, branch):
        found.append(condition)
        return call(engine, tokens, sigma, condition, branch)

    monkeypatch.setattr(Engine, "call", spy)
    return found


@pytest.fixture
def short_prompts(monkeypatch):
    """Prompts of 64 tokens, not the 512 that are most of a tiny model's work: for what does not depend on
    their number."""
    from dataclasses import replace

    from uhr.models.samplers.core.facts import ModelFacts

    for name in ("of_spec", "of_pipeline"):
        whole = getattr(ModelFacts, name)
        monkeypatch.setattr(
            ModelFacts, name, lambda *a, whole=whole, **k: replace(whole(*a, **k), text_length=64)
        )


@pytest.fixture
def uhr(capsys):
    """Runs `uhr sample`; (stdout, stderr)."""

    def run(*arguments, code=0):
        found = main(["sample", *(str(argument) for argument in arguments)])
        printed = capsys.readouterr()
        assert found == code, printed.err
        return printed

    return run


@pytest.fixture
def run(capsys):
    """`run("models", "list", code=0)`: a command in this process; what it printed."""

    def call(*arguments, code=0):
        assert main([str(a) for a in arguments]) == code, capsys.readouterr()
        return capsys.readouterr()

    return call


@pytest.fixture
def fails(run):
    """The error of a command, which must be one line and the only output."""

    def call(*arguments, code=1):
        out, err = run(*arguments, code=code)
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("uhr: ")]
        assert len(lines) == 1
        assert "Traceback" not in err
        return lines[0]

    return call
