"""Noise levels of a checkpoint's scheduler equal those of the stock pipelines, or are rejected."""

import inspect
import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.models import zoo
from uhr.models.families.flux1 import Flux1
from uhr.models.families.flux2 import Flux2
from uhr.models.generate.record import read_record
from uhr.models.generate.request import Request
from uhr.models.generate.setup import Setup
from uhr.models.loading import scheduler_config
from uhr.models.loading.model import open_model
from uhr.models.loading.scheduler_config import SchedulerConfig
from uhr.models.ops import latents
from uhr.models.ops.choices import ShiftPolicy
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.euler import EulerPipeline, Flux2EulerPipeline
from uhr.models.samplers.patch_cascade import PatchCascadePipeline
from uhr.models.samplers.sdedit import SDEditPipeline
from uhr.models.samplers.ultraflux import UltraFluxPipeline

pytestmark = pytest.mark.usefixtures("short_prompts")

SPACINGS = [
    {},
    {"use_beta_sigmas": True},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"shift_terminal": 0.1},
    {"time_shift_type": "linear"},
    {"use_dynamic_shifting": False},
    {"use_dynamic_shifting": False, "shift": 6.0, "use_karras_sigmas": True},
    {"base_shift": 0.2, "max_shift": 1.5, "base_image_seq_len": 64, "max_image_seq_len": 1024},
    {"time_shift_type": "linear", "shift_terminal": 0.05, "use_beta_sigmas": True},
]
IDS = [", ".join(f"{key}={value}" for key, value in each.items()) or "as published" for each in SPACINGS]
CALL = {
    "height": 64,
    "width": 96,
    "num_inference_steps": 5,
    "max_sequence_length": 32,
    "output_type": "latent",
}
GUIDANCE = {"flux1": 3.5, "flux2": 1.0}


@pytest.fixture
def scheduled(tiny_flux, tiny_flux2, tmp_path):
    """A maker of a tiny checkpoint whose scheduler_config.json has these values."""

    def make(family="flux1", **values):
        folder = tmp_path / family
        if not folder.exists():
            shutil.copytree({"flux1": tiny_flux, "flux2": tiny_flux2}[family], folder)
        source = {"flux1": tiny_flux, "flux2": tiny_flux2}[family]
        plain = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**plain, **values}))
        return folder

    return make


@pytest.fixture(scope="module")
def components(tiny_flux, tiny_flux2):
    """The components of each family's tiny model, loaded once."""
    folders = {"flux1": tiny_flux, "flux2": tiny_flux2}
    return {family: zoo.load_pipeline(folder).components for family, folder in folders.items()}


def both(folder, family, components, **call):
    """A call of our pipeline and of the stock one, by the same weights and the same scheduler settings."""
    parts = {
        **components[family],
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    }
    config = zoo.get(f"tiny-{family}").pipeline_config
    ours = {"flux1": EulerPipeline, "flux2": Flux2EulerPipeline}[family](**parts, **config)
    theirs = ours.stock()(**parts, **config)
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    given = {**CALL, **call}
    draw = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    stock = theirs(prompt="a lake", guidance_scale=GUIDANCE[family], generator=draw(), **given).images
    own = {"guidance_scale": 3.5} if family == "flux1" else {}
    found = ours(prompt="a lake", generator=draw(), **own, **given).images
    if family == "flux2":
        # the stock pipeline hands out raw latents on the VAE's grid
        found = latents.normalisation(ours.vae).to_raw(latents.unpack(found, 8, 12))
    return ours, found, theirs, stock


@pytest.mark.parametrize("values", SPACINGS, ids=IDS)
@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_euler_uses_exactly_the_noise_levels_of_the_stock_pipeline(scheduled, components, family, values):
    ours, found, theirs, expected = both(scheduled(family, **values), family, components)
    assert list(ours.sigmas) == theirs.scheduler.sigmas.tolist()
    assert ours.details()["notes"] == []
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_settings_do_change_the_levels(scheduled):
    levels = set()
    for values in SPACINGS:
        spec = open_model(scheduled(**values)).spec
        facts = ModelFacts.of_spec(spec)
        levels.add(tuple(facts.schedule(5, 64)))
    assert len(levels) == len(SPACINGS)


@pytest.mark.parametrize("values", SPACINGS, ids=IDS)
@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_what_is_planned_without_weights_is_what_runs(scheduled, components, family, values):
    folder = scheduled(family, **values)
    loaded = {"flux1": EulerPipeline, "flux2": Flux2EulerPipeline}[family](
        **{**components[family], "scheduler": zoo.load_component(folder, "scheduler")},
        **zoo.get(f"tiny-{family}").pipeline_config,
    )
    facts = ModelFacts.of_spec(open_model(folder).spec)
    assert facts.schedule(7, 64) == loaded.facts.schedule(7, 64)


def test_of_a_bare_spec_the_published_shift_is_all_that_is_known():
    config = SchedulerConfig.usual(ShiftPolicy.STATIC)
    assert config.schedule(Flux1(), 28, 4096)[10] == pytest.approx(0.84375)
    assert SchedulerConfig.usual(ShiftPolicy.NONE).schedule(Flux1(), 4, 4096) == [1, 0.75, 0.5, 0.25, 0]
    dynamic = SchedulerConfig.usual(ShiftPolicy.DYNAMIC).schedule(Flux2(), 4, 1024)
    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    stock.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=compute_empirical_mu(1024, 4))
    assert dynamic == stock.sigmas.tolist()


def test_a_shift_that_is_named_is_that_of_the_linear_grid_alone(scheduled):
    spec = open_model(scheduled(use_beta_sigmas=True, shift_terminal=0.1)).spec
    facts = ModelFacts.of_spec(spec)
    assert facts.schedule(4, 64, "none") == [1, 0.75, 0.5, 0.25, 0]
    assert facts.schedule(4, 64, "static", 3.0) == pytest.approx([1, 0.9, 0.75, 0.5, 0])


REFUSED = [
    ({"stochastic_sampling": True}, r"stochastic_sampling True, and the samplers here take deterministic"),
    ({"invert_sigmas": True}, r"invert_sigmas True, and levels here fall"),
    ({"num_train_timesteps": 500}, r"num_train_timesteps 500, and the network's input is sigma"),
    (
        {"a_key_of_next_year": 2},
        r"a_key_of_next_year 2, which FlowMatchEulerDiscreteScheduler does not support",
    ),
    ({"use_flow_sigmas": True}, r"use_flow_sigmas True, which"),
    ({"sigma_min": 0.1}, r"sigma_min 0\.1, which"),
    ({"_class_name": "DPMSolverMultistepScheduler"}, r"is a DPMSolverMultistepScheduler, and the samplers"),
    ({"time_shift_type": "cubic"}, r"time_shift_type 'cubic': it must be exponential or linear"),
    ({"use_beta_sigmas": True, "use_karras_sigmas": True}, r"use_karras_sigmas, use_beta_sigmas: only one"),
    ({"shift": "3"}, r"shift '3': it must be a number"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_what_is_not_computed_is_refused_before_any_weights_are_loaded(scheduled, values, message, capsys):
    folder = scheduled(**values)
    request = Request(sampler="euler", model=str(folder))
    with pytest.raises(UserError, match=rf"scheduler of {folder} (has )?{message}"):
        Setup.of(request)
    with pytest.raises(UserError, match=message):
        zoo.load_component(folder, "scheduler")
    with pytest.raises(UserError, match=message):
        EulerPipeline.from_pretrained(folder)
    capsys.readouterr()
    command = ["sample", "euler", "--model", folder, "--prompt", "a", "--plan", "--size", "128x128"]
    assert main([str(arg) for arg in command]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_key_of_a_newer_diffusers_that_is_off_is_no_obstacle(scheduled):
    EulerPipeline.from_pretrained(scheduled(a_key_of_next_year=None, another=False))


@pytest.fixture
def euler(tiny_flux):
    return EulerPipeline.from_pretrained(tiny_flux)


def test_a_scheduler_that_a_pipeline_is_given_is_checked_at_its_call(euler, stock):
    """From `from_pipe`, or put into its place."""
    euler.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(UserError, match="the scheduler is a FlowMatchHeunDiscreteScheduler"):
        euler("a", height=64, width=64, num_inference_steps=1)
    euler.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(UserError, match="stochastic_sampling"):
        EulerPipeline.from_pipe(euler)("a", height=64, width=64, sigmas=[1.0, 0.5])
    euler.scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    euler("a", height=64, width=64, num_inference_steps=3, output_type="latent")
    euler.scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    assert list(euler.sigmas) == euler.scheduler.sigmas.tolist()


def test_what_is_set_on_a_loaded_scheduler_counts_as_in_the_stock_pipeline(euler):
    """Scripts set attributes of its frozen configuration, and `set_shift`."""
    euler.scheduler.config.use_dynamic_shifting = False
    euler.scheduler.set_shift(5.0)
    assert euler.facts.schedule(4, 64) == pytest.approx([1, 15 / 16, 5 / 6, 5 / 8, 0])


def test_levels_that_do_not_fall_are_refused(scheduled):
    spec = open_model(scheduled(shift_terminal=0.1)).spec
    facts = ModelFacts.of_spec(spec)
    with pytest.raises(
        UserError, match=r"noise levels nan, 0 of the scheduler \(.*shift_terminal 0\.1.*use more steps"
    ):
        facts.schedule(1, 64)


def test_beyond_its_calibration_the_dynamic_shift_is_refused_whatever_the_spacing(scheduled):
    spec = open_model(scheduled(use_beta_sigmas=True)).spec
    with pytest.raises(UserError, match="calibrated up to 4096"):
        ModelFacts.of_spec(spec).schedule(4, 5000)
    wide = open_model(scheduled(max_image_seq_len=16384, max_shift=2.0)).spec
    assert len(ModelFacts.of_spec(wide).schedule(4, 5000)) == 5


STEPS = {"num_inference_steps": 4, "guidance_scale": 3.5, "output_type": "latent"}


def test_a_sampler_whose_stages_have_levels_of_their_own_says_which(scheduled):
    folder = scheduled(use_beta_sigmas=True)
    base = SDEditPipeline.from_pretrained(folder)
    base.set_progress_bar_config(disable=True)
    base("a", height=256, width=256, base_steps=3, **STEPS)
    (note,) = base.details()["notes"]
    assert note == (
        "the scheduler's use_beta_sigmas true does not apply to stage 256x256: "
        "the sampler has its own noise levels"
    )
    assert base.last_run.stages[0].sigmas == tuple(base.facts.schedule(3, 64))
    patches = PatchCascadePipeline.from_pipe(base)
    patches("a", height=144, width=144, base_steps=1, **STEPS)
    assert any("does not apply to stage" in note for note in patches.details()["notes"])
    alone = UltraFluxPipeline.from_pipe(base)
    alone("a", height=128, width=128, **STEPS)
    assert any("does not apply to this call" in note for note in alone.details()["notes"])


def test_a_command_writes_the_stock_levels_into_the_record(scheduled, tmp_path):
    folder, out = scheduled(use_karras_sigmas=True), tmp_path / "a.png"
    argv = [
        "sample",
        "euler",
        "--model",
        folder,
        "--prompt",
        "a",
        "--size",
        "128x128",
        "--steps",
        4,
        "--out",
        out,
    ]
    assert main([str(arg) for arg in argv]) == 0
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    stock.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.5 + 0.65 * (64 - 256) / (4096 - 256))
    assert read_record(out)["sigmas"] == stock.sigmas.tolist()


def test_every_key_of_the_installed_class_is_in_one_list_with_its_default():
    """A key that fails this is new: decide in `models/loading/scheduler_config.py` what it means here."""
    parameters = dict(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters)
    del parameters["self"]
    known = [*scheduler_config.SHIFT, *scheduler_config.SPACING, *scheduler_config.REFUSED]
    assert sorted(known) == sorted(parameters)
    plain = {key: values[0] for key, values in scheduler_config.SPACING.items()}
    plain |= {key: values[0] for key, (values, _) in scheduler_config.REFUSED.items()}
    assert {key: parameters[key].default for key in plain} == plain
