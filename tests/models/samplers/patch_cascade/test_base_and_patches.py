"""The base pass of the patch cascade is the original model's; adapters and guidance are for the patches."""

import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.plain import LoraSpec, add_lora
from uhr.models.adapters.scales import set_scales
from uhr.models.samplers.patch_cascade import PatchCascadePipeline


def test_the_base_is_eulers_image_at_the_native_area(cascade, sample, tiny_flux, seeded):
    from uhr.models.samplers.euler import EulerPipeline

    euler = EulerPipeline(**cascade.components)
    euler.set_progress_bar_config(disable=True)
    output = sample(return_stages=True, height=192, width=384)
    size = output.stages[0][0].size
    assert size[0] * size[1] <= 128 * 128
    plain = euler(
        "a red house",
        width=size[0],
        height=size[1],
        num_inference_steps=2,
        guidance_scale=3.5,
        max_sequence_length=16,
        generator=seeded(),
    ).images[0]
    assert np.array_equal(np.asarray(plain), np.asarray(output.stages[0][0]))
    assert sample().stages is None


@pytest.fixture
def adapted(tiny_flux, seeded):
    """A pipeline of its own with two adapters that have something to say, at scales 1 and 0.5."""
    pipeline = PatchCascadePipeline.from_pretrained(tiny_flux, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    targets = zoo.get("tiny-flux1").lora_target_sets["attention"]
    for seed, name in enumerate(("gca", "style")):
        with peft_layers.several_adapters():
            own = add_lora(pipeline.transformer, LoraSpec(4, targets), seed, name)
        with torch.no_grad():
            for parameter in own:
                parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(seed))
    set_scales(pipeline.transformer, {"gca": 1.0, "style": 0.5})
    return pipeline


def test_adapters_are_for_the_patches_unless_set_otherwise(adapted, sample):
    def run(**more):
        output = sample(pipeline=adapted, return_stages=True, output_type="pt", **more)
        return output.stages[0], output.images

    bare_base, bare = (
        x.clone() for x in (lambda o: (o.stages[0], o.images))(sample(return_stages=True, output_type="pt"))
    )
    base, found = run()
    assert torch.equal(base, bare_base)
    assert not torch.allclose(found, bare, atol=1e-3)
    assert adapted.last_run.notes == []
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


def test_merged_adapters_cannot_be_silenced_and_it_says_so(adapted, sample, image):
    from uhr.models.adapters.merging import merge

    merged = merge(adapted.transformer)
    with pytest.raises(UserError, match="merged"):
        sample(pipeline=adapted)
    assert sample(pipeline=adapted, image=image(), scale=1).images
    merged.unmerge()


def test_without_an_adapter_it_says_that_it_is_unadapted(cascade, sample):
    sample()
    assert [note.partition(":")[0] for note in cascade.last_run.notes] == ["unadapted"]


def test_guidance_by_two_passes_changes_the_patches_and_leaves_the_base(sample):
    plain = sample(return_stages=True, output_type="pt")
    guided = sample(return_stages=True, output_type="pt", negative_prompt="", true_cfg_scale=3.5)
    assert torch.equal(plain.stages[0], guided.stages[0])
    assert not torch.allclose(plain.images, guided.images, atol=1e-3)
