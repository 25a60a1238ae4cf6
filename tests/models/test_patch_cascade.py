"""RealUHR's patch cascade: what it paints, what the backbone is told, and what it leaves alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from uhr.base.errors import UserError
from uhr.models import flow, latents, zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.plain import LoraSpec, add_lora
from uhr.models.adapters.scales import set_scales
from uhr.models.filters import bicubic
from uhr.models.patch_plan import PatchCascadeOptions
from uhr.models.patches import Canvas, feather
from uhr.models.samplers.patch_cascade import Flux2PatchCascadePipeline, PatchCascadePipeline
from uhr.models.seams import seam_strength

CALL = {
    "height": 256,
    "width": 256,
    "num_inference_steps": 2,
    "guidance_scale": 3.5,
    "max_sequence_length": 16,
    "base_steps": 2,
}


@pytest.fixture(scope="module")
def cascade(tiny_flux):
    pipeline = PatchCascadePipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def sample(cascade):
    """A short call, seed 0; keywords change it. With a picture nothing is said of sizes."""

    def call(prompt="a red house", pipeline=cascade, **more):
        arguments = {**CALL, "generator": seeded(), **more}
        if "image" in more and "height" not in more:
            arguments.pop("height"), arguments.pop("width")
        return pipeline(prompt, **arguments)

    return call


@pytest.fixture
def told(cascade, monkeypatch):
    """What the transformer is told, call by call."""
    seen = []
    forward = cascade.transformer.forward
    monkeypatch.setattr(
        cascade.transformer, "forward", lambda **kwargs: seen.append(kwargs) or forward(**kwargs)
    )
    return seen


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height=128, width=128, seed=2):
    """A smooth picture [1, 3, H, W] in [0, 1]."""
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=seeded(seed))
    return bicubic(coarse, height, width).clamp(0, 1)


def lead(cascade, monkeypatch, targets):
    """Give the pipeline the straight field to targets(box) [1, 16, h, w] on every patch."""
    count = 0

    def velocity(tokens, label, condition, branch="cond"):
        nonlocal count
        stage = cascade.stages[-1]
        box = stage.boxes[count // stage.steps]
        sigma = stage.sigmas[count % stage.steps]
        assert label == stage.labels[count % stage.steps]
        count += 1
        return (tokens - latents.pack(targets(box))) / sigma

    monkeypatch.setattr(cascade, "velocity", velocity)


@pytest.mark.parametrize("schedule", ["warped-labels", "warped-grid", "uniform", "logarithmic", "cosine"])
@pytest.mark.parametrize("shared_noise", [True, False])
def test_with_a_straight_field_the_target_comes_back_through_the_blending(
    cascade, sample, monkeypatch, schedule, shared_noise
):
    target = torch.randn(1, 16, 32, 40, generator=seeded(5))

    def decode(z):
        # a decoder that knows no neighbours: cuts of the target decode to cuts of its picture
        return z[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)

    monkeypatch.setattr(cascade, "decode", decode)
    lead(
        cascade,
        monkeypatch,
        lambda box: target[..., box.top // 8 : box.bottom // 8, box.left // 8 : box.right // 8],
    )
    found = sample(
        image=picture(128, 160), scale=2, schedule=schedule, shared_noise=shared_noise, gamma=0.6,
        num_inference_steps=4, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(found, (decode(target) / 2 + 0.5).clamp(0, 1), atol=2e-5, rtol=0)


def test_a_picture_comes_back_as_its_vae_has_it_where_the_field_leads_to_it(cascade, sample, monkeypatch):
    """At the same size, gamma 0.8: artifact suppression that finds nothing to mend."""
    given = picture(192, 256)
    encoded = {}

    def encode(pictures, generator=None, encode=cascade.encode):
        encoded[len(encoded)] = encode(pictures, generator)
        return encoded[len(encoded) - 1]

    monkeypatch.setattr(cascade, "encode", encode)
    lead(cascade, monkeypatch, lambda box: encoded[cascade.stages[-1].boxes.index(box)])
    found = sample(image=given, scale=1, gamma=0.8, output_type="pt").images
    torch.testing.assert_close(found, through_vae(cascade, 2 * given - 1), atol=2e-5, rtol=0)


def through_vae(cascade, enlarged):
    """Every patch encoded and decoded, and blended at once, in [0, 1]."""
    stage, (height, width) = cascade.stages[-1], enlarged.shape[-2:]
    canvas = Canvas(1, 3, height, width)
    for box in stage.boxes:
        patch = latents.decode(
            cascade.vae,
            latents.normalisation(cascade.vae).to_model(latents.moments(cascade.vae, box.crop(enlarged))[0]),
        )
        canvas.add(box, patch, feather(box, height, width, stage.overlap))
    return (canvas.result() / 2 + 0.5).clamp(0, 1)


def test_as_gamma_goes_to_zero_the_anchor_is_left(cascade, sample):
    given = picture(128, 128)
    faithful = sample(image=given, scale=2, gamma=1e-5, output_type="pt").images
    expected = through_vae(cascade, bicubic(2 * given - 1, 256, 256))
    torch.testing.assert_close(faithful, expected, atol=2e-4, rtol=0)
    distances = [
        (sample(image=given, scale=2, gamma=gamma, output_type="pt").images - expected).abs().mean()
        for gamma in (0.3, 0.8)
    ]
    assert 1e-3 < distances[0] < distances[1]


@pytest.mark.parametrize(
    ("gamma", "labels", "sigmas"),
    [
        (1.0, [1, 0.7688, 0.5, 0.1938], [1, 0.75, 0.5, 0.25]),
        (0.6, [0.6543, 0.3695, 0.2313, 0.1237], [0.6, 0.45, 0.3, 0.15]),
        (0.4, [0.3186, 0.2313, 0.1585, 0.0871], [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_the_backbone_is_told_the_warped_time_and_steps_go_by_the_true_one(
    sample, told, gamma, labels, sigmas
):
    """Algorithm 1 for alpha 0.15 and p 2, worked out by hand."""
    times = []
    sample(
        image=picture(128, 128), scale=1, gamma=gamma, num_inference_steps=4, output_type="pt",
        callback_on_step_end=lambda p, step, time, tensors: times.append(float(time) / 1000) or {},
    )  # fmt: skip
    assert [float(call["timestep"]) for call in told] == pytest.approx(labels, abs=6e-5)
    assert times == pytest.approx(sigmas, abs=1e-6)


def test_the_warped_grid_steps_by_the_warped_time_as_well(cascade, sample, told):
    sample(image=picture(), scale=1, gamma=0.6, num_inference_steps=4, schedule="warped-grid")
    warped = [0.6543, 0.3695, 0.2313, 0.1237]
    assert [float(call["timestep"]) for call in told] == pytest.approx(warped, abs=6e-5)
    assert cascade.sigmas == pytest.approx([*warped, 0], abs=6e-5)


@pytest.mark.parametrize("schedule", ["warped-labels", "warped-grid"])
def test_a_patch_begins_between_its_anchor_and_its_cut_of_the_noise_at_the_first_level(
    cascade, sample, told, schedule
):
    """Equation 5; on the warped grid the first level is the warped one, and gamma what it is warped from."""
    given = picture()
    sample(image=given, scale=2, gamma=0.6, schedule=schedule)
    stage = cascade.stages[-1]
    assert (stage.sigmas[0] == pytest.approx(0.6)) == (schedule == "warped-labels")
    enlarged, noise = bicubic(2 * given - 1, 256, 256), torch.randn(1, 16, 32, 32, generator=seeded())
    for box, call in zip(stage.boxes, told[::2], strict=True):
        cut = noise[..., box.top // 8 : box.bottom // 8, box.left // 8 : box.right // 8]
        start = flow.interpolate(cascade.encode(box.crop(enlarged)), cut, stage.sigmas[0])
        torch.testing.assert_close(call["hidden_states"], latents.pack(start), atol=1e-4, rtol=0)


def test_patches_are_told_guidance_1_and_positions_of_their_own_from_0(sample, told):
    sample(prompt=["a", "b"], width=320, batch=5)
    base, patches = told[:2], told[2:]
    assert {call["guidance"].unique().item() for call in base} == {3.5}
    assert {call["guidance"].unique().item() for call in patches} == {1.0}
    assert all(torch.equal(call["img_ids"], latents.image_ids(8, 8)) for call in patches)
    # 12 patches of two pictures, five at a time
    assert [call["hidden_states"].shape[0] for call in patches] == [10, 10, 10, 10, 4, 4]
    told.clear()
    sample(patch_guidance=2.0)
    assert told[-1]["guidance"].item() == 2.0


@pytest.mark.parametrize(
    ("more", "patches", "branches", "base"),
    [
        ({}, 9, 1, 2),
        ({"batch": 4}, 9, 1, 2),
        ({"overlap": 0}, 4, 1, 2),
        ({"patch": 64, "overlap": 0.5}, 49, 1, 2),
        ({"negative_prompt": "", "true_cfg_scale": 3.0, "batch": 2}, 9, 2, 2),
        ({"image": picture(), "scale": 2}, 9, 1, 0),
    ],
)
def test_calls_are_patches_times_steps_times_branches_beside_the_base(
    cascade, sample, monkeypatch, told, more, patches, branches, base
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
        "uhr.models.pipelines.DiffusionPipeline.progress_bar", lambda self, _=None, total=None: Bar(total)
    )
    sample(**more, output_type="pt")
    calls = base + patches * 2 * branches
    assert cascade.model_calls == calls
    assert [(bar.total, bar.done) for bar in bars] == [(calls, calls)]
    assert sum(len(call["hidden_states"]) for call in told) == calls
    if more.get("batch") == 4:
        assert len(told) == 2 + 3 * 2


def test_how_many_patches_share_a_pass_changes_no_more_than_rounding(sample):
    alone, together = (sample(output_type="pt", batch=batch).images for batch in (1, 4))
    torch.testing.assert_close(alone, together, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((97, 130), 1.37, (133, 178)),
        ((131, 129), 1, (131, 129)),
        ((150, 40), 1.5, (225, 60)),
        ((33, 70), 4, (132, 280)),
    ],
)
def test_a_picture_of_any_size_comes_back_at_exactly_its_size_times_the_scale(
    cascade, sample, monkeypatch, size, scale, expected
):
    given = picture(*size)
    (small,) = sample(image=given, scale=scale, num_inference_steps=1).images
    assert small.size == expected[::-1]
    # a codec that keeps what it is given, and a field that moves nothing: the enlargement itself
    kept = []

    def encode(pictures, generator=None):
        kept.append(pictures)
        return torch.zeros(len(pictures), 16, pictures.shape[-2] // 8, pictures.shape[-1] // 8)

    monkeypatch.setattr(cascade, "encode", encode)
    monkeypatch.setattr(cascade, "decode", lambda z: kept[-1])
    found = sample(image=given, scale=scale, num_inference_steps=1, output_type="pt").images
    torch.testing.assert_close(found, bicubic(given, *expected).clamp(0, 1), atol=1e-5, rtol=0)


def test_a_size_may_stand_in_for_the_scale_and_4_is_the_scale_if_nothing_is_said(sample):
    assert sample(image=picture(100, 128), height=201, width=257, num_inference_steps=1).images[0].size == (
        257,
        201,
    )
    assert sample(image=picture(40, 48), num_inference_steps=1).images[0].size == (192, 160)


def raw_seams(cascade, sample, monkeypatch, **more):
    """(seams of the patches laid edge to edge in the middle of their overlaps, those of the picture)."""
    patches = []
    paint = cascade._paint
    with monkeypatch.context() as patched:
        patched.setattr(cascade, "_paint", lambda *a: patches.append(paint(*a)) or patches[-1])
        found = sample(image=picture(), scale=2, num_inference_steps=4, output_type="pt", **more).images
    boxes = cascade.stages[-1].boxes
    middles = {b.top + b.height // 2: b for b in boxes}, {b.left + b.width // 2: b for b in boxes}
    rows, columns = (torch.tensor(sorted(m)) for m in middles)
    owner = [(torch.arange(256)[:, None] - places).abs().argmin(dim=1) for places in (rows, columns)]
    laid, cells = torch.zeros(1, 3, 256, 256), []
    for box, patch in zip(boxes, patches, strict=True):
        down = (rows[owner[0]] == box.top + box.height // 2).nonzero().flatten()
        across = (columns[owner[1]] == box.left + box.width // 2).nonzero().flatten()
        cell = type(box)(int(down[0]), int(across[0]), len(down), len(across))
        cell.crop(laid).copy_(
            type(box)(cell.top - box.top, cell.left - box.left, cell.height, cell.width).crop(patch)
        )
        cells.append(cell)
    return seam_strength(laid, cells), seam_strength(found, cells)


@pytest.mark.parametrize("gamma", [0.4, 0.8])
def test_one_noise_for_all_patches_makes_seams_weaker_and_the_feather_hides_what_is_left(
    cascade, sample, monkeypatch, gamma
):
    """Gradients across the borders over those beside them; 1 is no seam."""
    shared, blended = raw_seams(cascade, sample, monkeypatch, gamma=gamma)
    own, _ = raw_seams(cascade, sample, monkeypatch, gamma=gamma, shared_noise=False)
    assert own > 1.4
    assert abs(shared - 1) < 0.4 * (own - 1)
    assert 0.75 < blended < 1.1


def test_the_base_is_eulers_picture_at_the_native_area(cascade, sample, tiny_flux):
    from uhr.models.samplers.euler import EulerPipeline

    euler = EulerPipeline(**cascade.components)
    euler.set_progress_bar_config(disable=True)
    output = sample(return_stages=True, height=192, width=384)
    size = output.stages[0][0].size
    assert size[0] * size[1] <= 128 * 128
    arguments = {k: v for k, v in CALL.items() if k not in ("base_steps", "num_inference_steps")}
    plain = euler(
        "a red house",
        **{**arguments, "height": size[1], "width": size[0]},
        num_inference_steps=2,
        generator=seeded(),
    ).images[0]
    assert np.array_equal(np.asarray(plain), np.asarray(output.stages[0][0]))
    assert sample().stages is None


@pytest.fixture
def adapted(tiny_flux):
    """A pipeline of its own with two adapters that have something to say, at scales 1 and 0.5."""
    pipeline = PatchCascadePipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    targets = zoo.get("tiny-flux1").lora_targets
    for seed, name in enumerate(("gca", "style")):
        with peft_layers.several_adapters():
            own = add_lora(pipeline.transformer, LoraSpec(4, targets), seed, name)
        with torch.no_grad():
            for parameter in own:
                parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(seed))
    set_scales(pipeline.transformer, {"gca": 1.0, "style": 0.5})
    return pipeline


def test_adapters_are_for_the_patches_unless_it_is_said_otherwise(adapted, sample):
    def run(**more):
        output = sample(pipeline=adapted, return_stages=True, output_type="pt", **more)
        return output.stages[0], output.images

    bare_base, bare = (
        x.clone() for x in (lambda o: (o.stages[0], o.images))(sample(return_stages=True, output_type="pt"))
    )
    base, found = run()
    assert torch.equal(base, bare_base)
    assert not torch.allclose(found, bare, atol=1e-3)
    assert adapted.notes == ()
    styled, _ = run(base_adapters=["style"])
    both, _ = run(base_adapters="all")
    differ = [(a - b).abs().max() > 1e-3 for a, b in ((styled, base), (both, base), (both, styled))]
    assert all(differ)
    assert peft_layers.active(adapted.transformer) == ["gca", "style"]
    _, same = run()
    assert torch.equal(same, found)
    with pytest.raises(UserError, match="adapter 'styl'"):
        run(base_adapters=["styl"])


def test_what_changes_the_text_encoder_is_silent_in_the_base_pass_too(tiny_flux, sample):
    from peft import LoraConfig

    pipeline = PatchCascadePipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    plain = sample(pipeline=pipeline, return_stages=True, output_type="pt")
    pipeline.text_encoder.add_adapter(
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    changed = sample(pipeline=pipeline, return_stages=True, output_type="pt")
    assert torch.equal(plain.stages[0], changed.stages[0])
    assert not torch.allclose(plain.images, changed.images, atol=1e-5)
    everywhere = sample(pipeline=pipeline, return_stages=True, output_type="pt", base_adapters="all")
    assert not torch.allclose(plain.stages[0], everywhere.stages[0], atol=1e-5)


def test_merged_adapters_cannot_be_silenced_and_it_says_so(adapted, sample):
    from uhr.models.adapters.merging import merge

    merged = merge(adapted.transformer)
    with pytest.raises(UserError, match="merged"):
        sample(pipeline=adapted)
    assert sample(pipeline=adapted, image=picture(), scale=1).images
    merged.unmerge()


def test_without_an_adapter_it_says_that_it_is_unadapted(cascade, sample):
    sample()
    assert [note.partition(":")[0] for note in cascade.notes] == ["unadapted"]


def test_guidance_by_two_passes_changes_the_patches_and_leaves_the_base(sample):
    plain = sample(return_stages=True, output_type="pt")
    guided = sample(return_stages=True, output_type="pt", negative_prompt="", true_cfg_scale=3.5)
    assert torch.equal(plain.stages[0], guided.stages[0])
    assert not torch.allclose(plain.images, guided.images, atol=1e-3)


def test_the_callback_counts_on_from_the_base_through_the_patches(cascade, sample):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, round(float(timestep), 3), tuple(tensors["latents"].shape)))
        return {}

    sample(callback_on_step_end=callback, batch=4)
    base, patches = cascade.stages
    levels = [*base.sigmas[:2], *(3 * patches.sigmas[:2])]
    assert [entry[:2] for entry in seen] == [(i, round(1000 * level, 3)) for i, level in enumerate(levels)]
    assert [shape for *_, shape in seen] == [(1, 64, 64)] * 2 + [(4, 64, 64)] * 4 + [(1, 64, 64)] * 2


def test_an_interrupted_call_leaves_the_enlargement_where_nothing_is_painted(cascade, sample):
    given = picture()

    def after(step):
        def callback(pipeline, at, timestep, tensors):
            pipeline._interrupt = at >= step
            return {}

        return callback

    whole = sample(image=given, scale=2, output_type="pt").images
    enlarged = bicubic(given, 256, 256).clamp(0, 1)
    begun = sample(image=given, scale=2, output_type="pt", callback_on_step_end=after(0)).images
    torch.testing.assert_close(begun, enlarged, atol=1e-5, rtol=0)
    assert cascade.model_calls == 1
    one_row = sample(image=given, scale=2, output_type="pt", callback_on_step_end=after(5)).images
    assert torch.equal(one_row[..., :64, :], whole[..., :64, :])
    torch.testing.assert_close(one_row[..., -64:, :], enlarged[..., -64:, :], atol=1e-5, rtol=0)


def test_every_output_type_comes_out(cascade, sample):
    levels = torch.from_numpy(np.asarray(sample().images[0]).copy())
    (array,) = sample(output_type="np", return_dict=False)
    tensor = sample(output_type="pt").images
    assert (array.shape, tuple(tensor.shape)) == ((1, 256, 256, 3), (1, 3, 256, 256))
    assert torch.equal((tensor[0] * 255).round().byte().movedim(0, -1), levels)
    assert np.allclose(array[0], tensor[0].movedim(0, -1))


def test_latents_are_those_of_the_finished_picture(cascade, sample, monkeypatch):
    seen = []
    encode = cascade.encode
    monkeypatch.setattr(cascade, "encode", lambda x: seen.append(x) or encode(x))
    output = sample(output_type="latent", return_stages=True)
    assert (output.images.shape, output.stages[0].shape) == ((1, 256, 64), (1, 64, 64))
    assert torch.equal(output.images, cascade.pack(encode(seen[-1])))
    monkeypatch.undo()
    finished = sample(output_type="pt").images
    assert torch.equal((seen[-1] / 2 + 0.5).clamp(0, 1), finished)
    with pytest.raises(UserError, match="nearest"):
        sample(image=picture(100, 90), scale=2, output_type="latent")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"width": 200}, "200x256 cannot be made: multiples of 16; nearest 192x256 or 208x256"),
        (
            {"height": 64, "width": 64},
            "a picture of 64x64 is smaller than one patch of 128 px: .* set patch=64",
        ),
        ({"patch": 100}, "patches of 100 px: give a multiple of 16: 96, say"),
        ({"schedule": "warped"}, "patch schedule 'warped'.*warped-grid"),
        ({"alpha": 0.49}, "not monotone for alpha 0.49 and p 2: below 0.4878 it is"),
        ({"gamma": 0.0}, "gamma"),
        ({"overlap": 1.0}, "overlap"),
        ({"gama": 0.3}, "unknown key 'gama'.*gamma"),
        ({"scale": 2}, "scale 2 is given without a picture"),
        ({"image": picture(), "scale": 0.5}, "would shrink to 64x64"),
        ({"image": picture(), "scale": 2, "height": 256, "width": 256}, "both a scale and a size"),
        ({"image": picture(), "height": 256, "width": None}, "only one of height and width"),
        ({"image": picture(), "height": 256, "width": 512}, "a picture of 128x128 does not fit 512x256"),
        ({"image": torch.rand(2, 3, 128, 128), "scale": 1}, "2 pictures for 1 prompts"),
        ({"true_cfg_scale": 3.0}, "wants a negative prompt"),
        ({"guidance_scale": None}, "wants a guidance scale"),
        (
            {"image": picture(), "scale": 1, "shared_noise": False, "latents": torch.zeros(1, 64, 64)},
            "every patch draws its own noise: set shared_noise",
        ),
    ],
)
def test_what_cannot_be_is_one_clear_line(sample, more, message):
    with pytest.raises(UserError, match=message):
        sample(**more)


def test_a_4k_picture_takes_36_patches_of_flux_and_49_at_half_overlap():
    spec = zoo.get("flux1-dev")
    for overlap, size, count in ((0.375, 4096, 36), (0.5, 4096, 49), (0.375, 2048, 9), (0.5, 2048, 9)):
        stages = PatchCascadePipeline.planned(spec, PatchCascadeOptions(overlap=overlap), size, size, 4)
        assert [(stage.name, stage.calls, stage.steps) for stage in stages] == [
            ("base", 1, 28),
            ("patches", count, 4),
        ]
        assert stages[0].size == stages[1].patch == (1024, 1024)


@pytest.fixture(scope="module")
def flux2(tiny_flux2):
    pipeline = Flux2PatchCascadePipeline.from_pretrained(tiny_flux2, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_runs_on_flux2_distilled_and_undistilled(flux2, sample):
    """Where guidance is two passes, the base is guided and the patches are not, unless they are told to."""
    distilled = sample(pipeline=flux2, guidance_scale=None, max_sequence_length=64, output_type="pt").images
    assert flux2.model_calls == 2 + 9 * 2
    base = Flux2PatchCascadePipeline(**flux2.components, is_distilled=False)
    base.set_progress_bar_config(disable=True)
    arguments, found = {"max_sequence_length": 64, "native_size": 128}, []
    for more, calls in (({}, 4 + 18), ({"true_cfg_scale": 3.0}, 4 + 36), ({"guidance_scale": 1.0}, 2 + 18)):
        found.append(
            sample(
                pipeline=base,
                **{"guidance_scale": 4.0, **arguments, "output_type": "pt", **more},
            ).images
        )
        assert base.model_calls == calls
    assert all((one - distilled).abs().max() > 1e-3 for one in found[:2])
    torch.testing.assert_close(found[2], distilled)
    sample(pipeline=base, image=picture(), scale=1, guidance_scale=None, **arguments)
    assert base.model_calls == 2
    sample(pipeline=base, image=picture(), scale=1, guidance_scale=None, true_cfg_scale=2.0, **arguments)
    assert base.model_calls == 4


def test_the_command_paints_says_that_it_is_unadapted_and_writes_all_of_it_down(tiny_flux, tmp_path, capsys):
    from uhr.cli import main
    from uhr.models.sampling.record import read_record

    out = tmp_path / "picture.png"
    command = ["sample", "patch-cascade", "--model", str(tiny_flux), "--prompt", "a house", "--out", str(out)]
    assert main([*command, "--set", "base_steps=2", "--set", "gamma=0.3", "--set", "overlap=0"]) == 0
    assert "note: unadapted: no adapter acts on the patches" in capsys.readouterr().out
    record = read_record(out)
    assert Image.open(out).size == (record["width"], record["height"]) == (256, 256)
    assert (record["steps"], record["guidance"], record["model_calls"]) == (4, 3.5, 2 + 4 * 4)
    assert record["options"]["gamma"] == record["details"]["settings"]["gamma"] == 0.3
    base, patches = record["details"]["stages"]
    assert (base["name"], patches["calls_per_step"], patches["patch"]) == ("base", 4, [128, 128])
    assert patches["labels"] == pytest.approx([0.2313, 0.176, 0.1237, 0.0674], abs=6e-5)
    assert record["details"]["notes"][0].startswith("unadapted")
    assert main([*command, "--size", "250x256"]) == 1
    assert "nearest 240x256 or 256x256" in capsys.readouterr().err
