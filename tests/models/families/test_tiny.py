import hashlib

import pytest
import torch

from uhr.base.errors import UserError
from uhr.models import zoo
from uhr.models.loading.hashes import hash_of
from uhr.models.ops import latents
from uhr.models.vae import codec


def contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "made"), [("tiny-flux1", "tiny_flux"), ("tiny-flux2", "tiny_flux2")], ids=["flux1", "flux2"]
)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name, made, request, tmp_path):
    folder = request.getfixturevalue(made)
    again = zoo.make_tiny(name, tmp_path / "again", seed=0)
    other = zoo.make_tiny(name, tmp_path / "other", seed=1)
    assert contents(again) == contents(folder)
    for component in {"transformer", "vae", "text_encoder", "text_encoder_2"} & set(zoo.get(name).components):
        assert hash_of(other / component) != hash_of(folder / component)


def test_making_one_leaves_torchs_random_state_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    zoo.make_tiny("tiny-flux1", tmp_path / "m")
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_that_holds_anything_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already contains something else \(note\.txt\)"):
        zoo.make_tiny("tiny-flux1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_only_tiny_specs_can_be_made(tmp_path):
    with pytest.raises(UserError, match="tiny-flux1"):
        zoo.make_tiny("flux1-dev", tmp_path / "m")


def test_geometry_is_that_of_flux_in_small(stock):
    config = stock.transformer.config
    height, width = config.axes_dims_rope[1:]
    assert height == width
    assert height / sum(config.axes_dims_rope) == 56 / 128
    assert sum(config.axes_dims_rope) == config.attention_head_dim
    assert config.guidance_embeds
    assert stock.vae_scale_factor == 8
    assert stock.vae.config.latent_channels == 16
    assert (stock.vae.quant_conv, stock.vae.post_quant_conv) == (None, None)
    assert stock.scheduler.config.use_dynamic_shifting
    assert (stock.tokenizer.model_max_length, stock.tokenizer_2.model_max_length) == (77, 512)


def test_geometry_is_that_of_flux2_klein_in_small(stock2):
    config = stock2.transformer.config
    assert config.axes_dims_rope == [8, 8, 8, 8]
    assert not config.guidance_embeds
    assert config.rope_theta == 2000
    assert config.joint_attention_dim == 3 * stock2.text_encoder.config.hidden_size
    assert stock2.config.is_distilled
    assert stock2.vae_scale_factor == 8
    assert stock2.vae.config.latent_channels == 32
    assert stock2.vae.quant_conv is not None
    # every channel is normalised by numbers of its own, or a mistake in their order would not show
    assert (
        len(set(stock2.vae.bn.running_mean.tolist())) == len(set(stock2.vae.bn.running_var.tolist())) == 128
    )


def test_a_prompt_is_wrapped_in_the_turns_of_a_chat_without_thoughts(stock2):
    turns = [{"role": "user", "content": "a lake"}]
    text = stock2.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    answer = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert text == "<|im_start|>user\na lake<|im_end|>\n" + answer
    ids = stock2.tokenizer(text).input_ids
    # each mark is one token
    assert len(ids) == 5 + len("user\na lake\nassistant\n\n\n\n\n")
    assert stock2.tokenizer.decode(ids) == text


def generated(pipeline, prompt="a red house", seed=0, guidance=1.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.from_numpy(
        pipeline(
            prompt=prompt, height=128, width=128, num_inference_steps=4, guidance_scale=guidance,
            generator=draw, output_type="np", max_sequence_length=64,
        ).images[0]
    )  # fmt: skip


def test_flux2s_images_have_contrast_and_prompt_and_seed_each_change_them(stock2):
    first = generated(stock2)
    assert first.std() > 0.05
    assert ((first == 0) | (first == 1)).float().mean() < 0.1
    for other in (generated(stock2, prompt="the sea"), generated(stock2, seed=1)):
        assert (first - other).abs().mean() > 0.01


def test_images_have_contrast_and_prompt_guidance_and_seed_each_change_them(stock):
    first = generated(stock, guidance=3.5)
    assert first.std() > 0.05
    assert ((first == 0) | (first == 1)).float().mean() < 0.1
    for other in (
        generated(stock, prompt="the sea", guidance=3.5),
        generated(stock, guidance=1.0),
        generated(stock, seed=1, guidance=3.5),
    ):
        assert (first - other).abs().mean() > 0.01


@pytest.mark.parametrize("family", ["stock", "stock2"])
def test_latents_of_images_have_about_unit_variance_and_a_narrow_posterior(family, request):
    stock = request.getfixturevalue(family)
    draw = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (4, 16, 16, 3), generator=draw, dtype=torch.uint8)
    rgb = rgb.repeat_interleave(8, 1).repeat_interleave(8, 2)
    mean, std = codec.encode_moments(stock.vae, rgb)
    model = latents.normalisation(stock.vae).to_model(mean)
    assert 0.5 < model.std() < 2
    assert abs(model.mean()) < 0.5
    assert std.mean() < 0.2
    # two images differ in their latents: encoding distinguishes them
    assert (model[0] - model[1]).std() > 0.1
