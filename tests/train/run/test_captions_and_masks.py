"""Which caption of an image a step trains on, and which of its latents count."""

from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from uhr.base.errors import UserError
from uhr.train.data.mixture import Turn
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.objectives.draws import Draws
from uhr.train.recipes import resolve
from uhr.train.run.job import start
from uhr.train.run.phase import _drawn
from uhr.train.run.trainer import Trainer

SIZE = {"height": 128, "width": 128, "license": "CC0"}


@pytest.fixture(scope="module")
def masked(tmp_path_factory, tiny_flux, manifest_of, with_columns):
    """Two images, of which the second has no caption; the right half of each is outside its mask."""
    folder = tmp_path_factory.mktemp("masked")
    plain = manifest_of(folder, [{"name": "a.png", **SIZE, "caption": "one"}, {"name": "b.png", **SIZE}])
    mask = np.zeros((128, 128), np.uint8)
    mask[:, :64] = 255
    cv2.imwrite(str(folder / "pictures" / "mask.png"), mask)
    made = with_columns(plain, folder / "two", brief=["short", "short"], mask=["mask.png"] * 2)
    config = EncodeConfig(aspects=("1/1",), captions=("caption", "brief"), mask="mask")
    encode(made.path, str(tiny_flux), folder / "encoded", config, device="cpu")
    return folder / "encoded"


@pytest.fixture
def use_of(masked, tiny_flux, fast, tmp_path):
    number = iter(range(99))

    def make(*sets):
        recipe = resolve("lora", None, [*fast, "batch.size=2", *sets])
        trainer = Trainer(start(recipe, str(tiny_flux), [masked], tmp_path / f"run {next(number)}"))
        return trainer, trainer.phase(0).uses[0]

    return make


BOTH = Turn(0, 0, 0, 0, (0, 1))


def test_without_shares_every_image_has_its_first_caption(use_of):
    _, use = use_of()
    assert use.read(BOTH, Draws(0, 0, range(2))).captions == ("one", "short")


def test_captions_are_drawn_by_their_shares_from_those_that_an_image_has(use_of):
    _, use = use_of("captions={caption: 0.2, brief: 0.8}")
    found = [use.read(BOTH, Draws(0, step, range(2))).captions for step in range(400)]
    assert {second for _, second in found} == {"short"}
    counts = Counter(first for first, _ in found)
    # 80 of 400 expected, standard deviation 8
    assert abs(counts["one"] - 80) < 32
    assert [use.read(BOTH, Draws(0, step, range(2))).captions for step in range(5)] == found[:5]


def test_an_image_with_none_of_the_captions_gets_its_first_one(use_of):
    _, use = use_of("captions={caption: 1}")
    assert use.read(BOTH, Draws(0, 0, range(2))).captions == ("one", "short")


@pytest.mark.parametrize(
    ("available", "weights", "levels", "expected"),
    [
        ((0, 1, 2), (1, 1, 2), (0.1, 0.3, 0.6, 0.99), (0, 1, 2, 2)),
        ((1, 2), (1, 1, 3), (0.2, 0.26), (1, 2)),
        ((0, 1), (0, 1), (1e-12, 0.5), (1, 1)),
        ((0,), (0, 1), (0.5,), (None,)),
        ((), (1, 1), (0.5,), (None,)),
    ],
)
def test_a_column_is_chosen_by_its_share_of_those_available(available, weights, levels, expected):
    assert tuple(_drawn(available, weights, level) for level in levels) == expected


def test_captions_that_the_data_lack_are_an_error(use_of):
    with pytest.raises(UserError, match=r"draws captions from long, and .* has caption, brief"):
        use_of("captions={long: 1}")
    with pytest.raises(UserError, match="shares are not negative"):
        use_of("captions={caption: -1}")


def test_latents_outside_the_mask_have_no_gradient(use_of):
    """Errors there change neither the loss nor its gradient."""
    trainer, use = use_of("latents=mean")
    draws = Draws(0, 0, range(2))
    batch = use.batch(use.read(BOTH, draws), draws)
    assert batch.mask.shape == (2, 1, 16, 16)
    assert torch.equal(batch.mask[..., :8], torch.ones(2, 1, 16, 8))
    assert torch.equal(batch.mask[..., 8:], torch.zeros(2, 1, 16, 8))
    losses = []
    for change in (0.0, 5.0):
        error = torch.zeros_like(batch.data)
        error[..., 8:] = change

        class Shifted:
            def velocity(self, noisy, sigma, condition, error=error):
                return trainer.model.network.velocity(noisy, sigma, condition) + error

        losses.append(use.loss(Shifted(), batch, draws)[0])
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0].min() > 0
