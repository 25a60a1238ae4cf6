"""The calls of the backbone for patches: their inputs, their number, and the progress reported."""

import pytest
import torch

from uhr.models import zoo
from uhr.models.ops import latents
from uhr.models.ops.filters import bicubic
from uhr.models.samplers.core.sampler import plan_of_spec
from uhr.models.samplers.patch_cascade import Flux2PatchCascadePipeline, PatchCascade, PatchCascadeOptions

IMAGE = torch.zeros(1, 3, 128, 128)


@pytest.mark.parametrize(
    ("gamma", "labels", "sigmas"),
    [
        (1.0, [1, 0.7688, 0.5, 0.1938], [1, 0.75, 0.5, 0.25]),
        (0.6, [0.6543, 0.3695, 0.2313, 0.1237], [0.6, 0.45, 0.3, 0.15]),
        (0.4, [0.3186, 0.2313, 0.1585, 0.0871], [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_the_backbone_gets_the_warped_time_and_steps_go_by_the_true_one(
    sample, backbone_calls, gamma, labels, sigmas, image
):
    """Algorithm 1 for alpha 0.15 and p 2, worked out by hand."""
    times = []
    sample(
        image=image(128, 128), scale=1, gamma=gamma, num_inference_steps=4, output_type="pt",
        callback_on_step_end=lambda p, step, time, tensors: times.append(float(time) / 1000) or {},
    )  # fmt: skip
    assert [float(call["timestep"]) for call in backbone_calls] == pytest.approx(labels, abs=6e-5)
    assert times == pytest.approx(sigmas, abs=1e-6)


def test_the_warped_grid_steps_by_the_warped_time_as_well(cascade, sample, backbone_calls, image):
    sample(image=image(), scale=1, gamma=0.6, num_inference_steps=4, schedule="warped-grid")
    warped = [0.6543, 0.3695, 0.2313, 0.1237]
    assert [float(call["timestep"]) for call in backbone_calls] == pytest.approx(warped, abs=6e-5)
    assert cascade.sigmas == pytest.approx([*warped, 0], abs=6e-5)


def test_patches_get_guidance_1_and_positions_of_their_own_from_0(sample, backbone_calls):
    sample(prompt=["a", "b"], width=320, batch=5)  # 2 x 4 patches
    base, patches = backbone_calls[:2], backbone_calls[2:]
    assert {call["guidance"].unique().item() for call in base} == {3.5}
    assert {call["guidance"].unique().item() for call in patches} == {1.0}
    assert all(torch.equal(call["img_ids"], latents.image_ids(8, 8)) for call in patches)
    # 8 patches of two images, five at a time
    assert [call["hidden_states"].shape[0] for call in patches] == [10, 10, 6, 6]
    backbone_calls.clear()
    sample(patch_guidance=2.0)
    assert backbone_calls[-1]["guidance"].item() == 2.0


@pytest.mark.parametrize(
    ("more", "patches", "branches", "base"),
    [
        ({"height": 256, "width": 256}, 9, 1, 2),
        ({"batch": 3}, 4, 1, 2),
        ({"height": 256, "width": 256, "overlap": 0}, 4, 1, 2),
        ({"patch": 64, "overlap": 0.5}, 25, 1, 2),
        ({"negative_prompt": "", "true_cfg_scale": 3.0, "batch": 2}, 4, 2, 2),
        ({"image": IMAGE, "scale": 1.5}, 4, 1, 0),
    ],
)
def test_calls_are_patches_times_steps_times_branches_next_to_the_base(
    cascade, sample, monkeypatch, backbone_calls, more, patches, branches, base
):
    bars = []

    class Bar:
        def __init__(self, total):
            self.total, self.done = total, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n=1):
            self.done += n

    monkeypatch.setattr(
        "uhr.models.samplers.core.pipelines.base.DiffusionPipeline.progress_bar",
        lambda self, _=None, total=None: Bar(total),
    )
    sample(**more, output_type="pt")
    calls = base + patches * 2 * branches
    assert cascade.model_calls == calls
    assert [(bar.total, bar.done) for bar in bars] == [(calls, calls)]
    assert sum(len(call["hidden_states"]) for call in backbone_calls) == calls
    if more.get("batch") == 3:
        assert len(backbone_calls) == 2 + 2 * 2


def test_how_many_patches_share_a_pass_changes_no_more_than_rounding(sample):
    alone, together = (sample(output_type="pt", batch=batch).images for batch in (1, 3))
    torch.testing.assert_close(alone, together, atol=2e-4, rtol=0)


def test_the_callback_counts_on_from_the_base_through_the_patches(cascade, sample):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, round(float(timestep), 3), tuple(tensors["latents"].shape)))
        return {}

    sample(callback_on_step_end=callback, batch=3)
    base, patches = cascade.last_run.stages
    levels = [*base.sigmas[:2], *(2 * patches.sigmas[:2])]
    assert [entry[:2] for entry in seen] == [(i, round(1000 * level, 3)) for i, level in enumerate(levels)]
    assert [shape for *_, shape in seen] == [(1, 64, 64)] * 2 + [(3, 64, 64)] * 2 + [(1, 64, 64)] * 2


def test_an_interrupted_call_leaves_the_enlargement_where_nothing_is_generated(cascade, sample, image):
    given = image()

    def after(step):
        def callback(pipeline, at, timestep, tensors):
            pipeline._interrupt = at >= step
            return {}

        return callback

    whole = sample(image=given, scale=1.5, output_type="pt").images
    enlarged = bicubic(given, 192, 192).clamp(0, 1)
    begun = sample(image=given, scale=1.5, output_type="pt", callback_on_step_end=after(0)).images
    torch.testing.assert_close(begun, enlarged, atol=1e-5, rtol=0)
    assert cascade.model_calls == 1
    one_row = sample(image=given, scale=1.5, output_type="pt", callback_on_step_end=after(3)).images
    assert torch.equal(one_row[..., :64, :], whole[..., :64, :])
    torch.testing.assert_close(one_row[..., -64:, :], enlarged[..., -64:, :], atol=1e-5, rtol=0)


def test_a_4k_image_takes_36_patches_of_flux_and_49_at_half_overlap():
    spec = zoo.get("flux1-dev")
    for overlap, size, count in ((0.375, 4096, 36), (0.5, 4096, 49), (0.375, 2048, 9), (0.5, 2048, 9)):
        stages = plan_of_spec(
            PatchCascade(), spec, PatchCascadeOptions(overlap=overlap), (size, size), 4
        ).stages
        assert [(stage.name, stage.calls_per_step, stage.steps) for stage in stages] == [
            ("base", 1, 28),
            ("patches", count, 4),
        ]
        assert stages[0].size == stages[1].patch == (1024, 1024)


@pytest.fixture(scope="module")
def flux2(tiny_flux2):
    pipeline = Flux2PatchCascadePipeline.from_pretrained(tiny_flux2, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_runs_on_flux2_distilled_and_undistilled(flux2, sample, image):
    """Where guidance is two passes, the base is guided and the patches are not, unless the option is set."""
    distilled = sample(pipeline=flux2, guidance_scale=None, max_sequence_length=64, output_type="pt").images
    assert flux2.model_calls == 2 + 4 * 2
    base = Flux2PatchCascadePipeline(**flux2.components, is_distilled=False)
    base.set_progress_bar_config(disable=True)
    arguments, found = {"max_sequence_length": 64, "native_size": 128}, []
    for more, calls in (({}, 4 + 8), ({"true_cfg_scale": 3.0}, 4 + 16), ({"guidance_scale": 1.0}, 2 + 8)):
        found.append(
            sample(
                pipeline=base,
                **{"guidance_scale": 4.0, **arguments, "output_type": "pt", **more},
            ).images
        )
        assert base.model_calls == calls
    assert all((one - distilled).abs().max() > 1e-3 for one in found[:2])
    torch.testing.assert_close(found[2], distilled)
    sample(pipeline=base, image=image(), scale=1, guidance_scale=None, **arguments)
    assert base.model_calls == 2
    sample(pipeline=base, image=image(), scale=1, guidance_scale=None, true_cfg_scale=2.0, **arguments)
    assert base.model_calls == 4
