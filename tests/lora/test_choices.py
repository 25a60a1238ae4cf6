"""Steps by the number of images, captions, validation prompts, and the form of a recipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.config import apply_sets, change
from uhr.base.errors import UserError
from uhr.lora import choices
from uhr.lora.captions import NEUTRAL, complete, validation_prompts, without_word
from uhr.lora.images import Image, scan
from uhr.models.specs.registry import get
from uhr.train.encode.config import has_word
from uhr.train.recipes import resolve


@pytest.mark.parametrize(
    ("images", "batch", "steps"),
    [(30, 4, 750), (5, 4, 250), (10, 1, 1000), (80, 4, 2000), (5000, 4, 2000), (30, 1, 3000), (33, 8, 413)],
)
def test_each_image_is_seen_a_hundred_times_within_bounds(images, batch, steps):
    assert choices.steps_for(images, batch) == steps


@given(st.integers(1, 10_000), st.sampled_from([1, 2, 4, 8]))
def test_more_images_never_mean_fewer_steps(images, batch):
    steps = choices.steps_for(images, batch)
    assert steps <= choices.steps_for(images + 1, batch)
    assert choices.LEAST <= steps * batch < choices.MOST + batch


def image(uri, caption=None):
    return Image(uri, 160, 160, caption)


def test_images_without_a_caption_get_the_trigger_or_the_prompt_of_their_folder(tmp_path):
    found = complete(tmp_path, [image("10_a cat/a.png"), image("10_a cat/b.png", "a black cat")], None)
    assert (found.trigger, found.missing, found.texts) == (None, "a cat", ("a cat", "a black cat"))
    assert "repeats in the names of folders are not used: every image counts alike" in found.lines
    found = complete(tmp_path / "10_a cat", [image("a.png")], "ohwx")
    assert (found.missing, found.texts) == (None, ("ohwx",))
    found = complete(tmp_path, [image("a.png", "a dog")], None)
    assert (found.missing, found.texts) == (None, ("a dog",))
    placeholder = [image("a.png", "a [trigger] cat"), image("b.png", "a cat")]
    assert any("1 contain [trigger]" in line for line in complete(tmp_path, placeholder, None).lines)
    assert complete(tmp_path, placeholder, "ohwx").texts == ("a ohwx cat", "ohwx, a cat")
    with pytest.raises(UserError, match=r"2 of 2 images of .* have no caption"):
        complete(tmp_path, [image("a.png"), image("10_a cat/b.png")], None)


def test_prompts_have_the_trigger_and_others_do_not():
    texts = [f"ohwx, a thing of {n}" for n in range(9)]
    assert validation_prompts(texts, "ohwx") == (texts[0], texts[4], "a thing of 0", NEUTRAL)
    assert validation_prompts(["ohwx"] * 9, "ohwx") == ("ohwx", f"ohwx, {NEUTRAL}", NEUTRAL)
    assert validation_prompts(["a", "b", "a"], None) == ("a", "b", NEUTRAL)


@given(st.lists(st.sampled_from(["ohwx", "a cat", "ohwxy", " on, ohwx grass"]), min_size=1, max_size=6))
def test_a_word_that_is_taken_out_is_not_there(parts):
    text = without_word(", ".join(parts), "ohwx")
    assert not has_word(text, "ohwx")
    assert text == text.strip(" ,")
    assert ("ohwxy" in text) == any("ohwxy" in part for part in parts)


def test_the_recipe_that_is_written_is_the_one_that_was_planned(tmp_path):
    spec, settings = get("flux2-klein-base-4b"), ["runtime.offload=blocks", "batch.micro=2"]
    sets = ["phases.0.lr=2e-4", "trainable.rank=32", "validation.images.every=7"]
    changed = choices.changes(spec, 30, 512, ["o: a 'b' \"c\"", "#d\ne"], settings, sets)
    choices.write_recipe(tmp_path / "recipe.yaml", spec, "x", changed)
    planned, read = choices.resolved(spec, changed), resolve(None, tmp_path / "recipe.yaml")
    assert read == planned
    assert (planned.name, planned.steps, planned.phases[0].lr) == ("lora-flux2", 750, 2e-4)
    assert planned.validation.images.prompts == ("o: a 'b' \"c\"", "#d\ne")
    assert (planned.validation.images.every, planned.validation.images.size) == (7, (512, 512))
    assert (planned.phases[0].resolution, planned.runtime.checkpoint_every) == (512, 188)
    assert choices.kept(["runtime.quantize=nf4", "batch={size: 1}", "seed=1"]) == [
        "runtime.quantize",
        "batch.micro",
    ]


def test_validation_can_be_left_out():
    spec = get("flux1-dev")
    changed = choices.changes(spec, 30, 1024, ["a"], (), ["validation.images=null"])
    assert choices.resolved(spec, changed).validation.images is None


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12))
def test_a_trigger_is_read_as_it_was_given(text):
    assert apply_sets({}, [change("trigger", text)]) == {"trigger": text}


def test_the_folder_is_read_as_curation_reads_it(photos):
    found = scan(photos)
    assert [(each.uri, each.height, each.width, each.caption) for each in found.images][:3] == [
        ("0.png", 160, 160, None), ("1.png", 170, 250, "a thing number 1"), ("2.png", 260, 170, None)
    ]  # fmt: skip
    assert (found.broken, found.others) == (("broken.jpg",), 1)
