"""Each kind of adapter with each other, all with a scale: together they are the sum of each alone."""

import itertools

import pytest
import torch
from diffusers import Flux2Transformer2DModel

from uhr.models import zoo
from uhr.models.adapters import peft_layers
from uhr.models.adapters.conversion import lora_of
from uhr.models.adapters.files import load_adapter
from uhr.models.adapters.formats import writing
from uhr.models.adapters.formats.keys import layout_of
from uhr.models.adapters.formats.writing import Format
from uhr.models.adapters.masked import TokenMask, mask_adapter
from uhr.models.adapters.merging import merge
from uhr.models.adapters.minor import MinorSpec, add_minor
from uhr.models.adapters.plain import LoraSpec, add_lora
from uhr.models.adapters.scales import set_scales

TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "to_out.0", "x_embedder", "ff.net.2", "ff.linear_out")
GUIDE = 6
SCALES = {"style": 0.8, "light": -0.5, "minor": 1.0, "major": 0.6, "guide": 1.5}
PLAIN = ("style", "light", "minor", "major")


def flux1(tiny_flux):
    return zoo.load_transformer(tiny_flux)


def flux2(tiny_flux):
    torch.manual_seed(0)
    return Flux2Transformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4), timestep_guidance_channels=32,
    ).eval()  # fmt: skip


FAMILIES = {"flux1": flux1, "flux2": flux2}


def bare(model, tiny_flux):
    """A backbone of the same weights without adapters."""
    return (flux2 if isinstance(model, Flux2Transformer2DModel) else flux1)(tiny_flux)


def targets_of(model):
    paths = [path for path, _ in model.named_modules()]
    return tuple(t for t in TARGETS if any(f".{path}".endswith(f".{t}") for path in paths))


def put(model, name):
    """Add an adapter of that kind, with something to say; those on the model go on acting."""
    acting, targets = peft_layers.active(model), targets_of(model)
    with peft_layers.several_adapters():
        if name in ("minor", "major"):
            own = add_minor(model, MinorSpec(3, targets, name), None, name=name)
        else:
            own = add_lora(model, LoraSpec(4, targets, alpha=6.0), seed=0, name=name)
    draw = torch.Generator().manual_seed(sorted(SCALES).index(name))
    with torch.no_grad():
        for parameter in own:
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    if name == "guide":
        mask = TokenMask()
        mask_adapter(model, name, mask)
        rows = torch.arange(16 + 64) >= 16 + 64 - GUIDE
        mask.choose(image=rows[16:], joint=rows)
    peft_layers.activate(model, [*acting, name])


def act(model, names):
    set_scales(model, {name: SCALES[name] for name in names})


def given(model, inputs):
    if not isinstance(model, Flux2Transformer2DModel):
        return inputs
    ids = {key: torch.nn.functional.pad(inputs[key], (0, 1)) for key in ("img_ids", "txt_ids")}
    return {key: value for key, value in (inputs | ids).items() if key != "pooled_projections"}


def call(model, inputs):
    with torch.no_grad():
        return model(**given(model, inputs))[0]


@pytest.fixture(params=FAMILIES)
def crowded(request, tiny_flux):
    """A model with all five adapters on it."""
    model = FAMILIES[request.param](tiny_flux)
    for name in SCALES:
        put(model, name)
    return model


def rows_of(path, x):
    """Tokens that the guide's adapter acts on in this linear."""
    return (torch.arange(x.shape[1]) >= x.shape[1] - GUIDE).float()[:, None]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_in_every_linear_several_adapters_with_scales_are_the_sum_of_each_alone(crowded, inputs, count):
    seen = {}
    layers = peft_layers.layers_of(crowded, "style")
    hooks = [
        layer.register_forward_hook(lambda m, args, out, path=path: seen.update({path: (args[0], out)}))
        for path, layer in layers.items()
    ]
    for names in itertools.combinations(SCALES, count):
        act(crowded, names)
        call(crowded, inputs)
        for path, (x, out) in list(seen.items()):
            layer = layers[path]
            expected = layer.get_base_layer()(x)
            for name in names:
                if name != "guide":
                    expected = expected + x @ peft_layers.delta_weight(layer, name).T
                else:
                    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                    expected = expected + rows_of(path, x) * (x @ a.T @ b.T) * 1.5 * SCALES[name]
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4, msg=f"{names} at {path}")
    for hook in hooks:
        hook.remove()


def test_the_order_in_which_adapters_act_changes_nothing_but_rounding(crowded, inputs):
    act(crowded, SCALES)
    one = call(crowded, inputs)
    act(crowded, reversed(list(SCALES)))
    torch.testing.assert_close(call(crowded, inputs), one, rtol=1e-4, atol=1e-4)


def test_every_adapter_matters(crowded, inputs):
    act(crowded, SCALES)
    everything = call(crowded, inputs)
    for name in SCALES:
        act(crowded, [other for other in SCALES if other != name])
        assert (call(crowded, inputs) - everything).abs().max() > 1e-3, name


def test_merged_into_the_weights_they_are_what_they_are_beside_them(crowded, inputs):
    act(crowded, PLAIN)
    unmerged = call(crowded, inputs)
    merged = merge(crowded)
    torch.testing.assert_close(call(crowded, inputs), unmerged, rtol=1e-3, atol=1e-3)
    merged.unmerge()
    assert torch.equal(call(crowded, inputs), unmerged)


def test_as_one_plain_lora_of_the_summed_rank_they_are_the_same_function(tiny_flux, inputs, crowded):
    model = bare(crowded, tiny_flux)
    act(crowded, PLAIN)
    lora = lora_of(crowded)
    assert {part.rank for part in lora.values()} == {4 + 4 + 6 + 6}
    peft_layers.put(model, lora, "all", "here")
    torch.testing.assert_close(call(model, inputs), call(crowded, inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", list(Format))
def test_through_a_file_of_any_form_they_are_the_same_function(tmp_path, tiny_flux, inputs, crowded, form):
    model = bare(crowded, tiny_flux)
    act(crowded, PLAIN)
    file = writing.save(lora_of(crowded), tmp_path / "all.safetensors", form, layout_of(model))
    load_adapter(model, file, "all")
    torch.testing.assert_close(call(model, inputs), call(crowded, inputs), rtol=1e-3, atol=1e-3)


def test_taking_one_off_leaves_the_others_as_they_were(crowded, inputs):
    rest = [name for name in SCALES if name != "minor"]
    act(crowded, rest)
    before = call(crowded, inputs)
    peft_layers.remove(crowded, "minor")
    assert peft_layers.active(crowded) == rest
    assert torch.equal(call(crowded, inputs), before)


def test_taking_all_off_in_any_order_gives_the_plain_model_back(crowded, tiny_flux, inputs):
    plain = bare(crowded, tiny_flux)
    for name in sorted(SCALES):
        peft_layers.remove(crowded, name)
    assert crowded.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(call(crowded, inputs), call(plain, inputs))
