import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uhr.base.errors import UserError
from uhr.models.samplers.core.pipelines import images

ARRAY = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def given_as(kind):
    tensor = torch.from_numpy(ARRAY).movedim(-1, 0)
    return {
        "pil": Image.fromarray(ARRAY),
        "array": ARRAY,
        "float array": ARRAY / 255,
        "arrays": ARRAY[None],
        "tensor": tensor / 255,
        "bytes": tensor,
        "tensors": tensor[None].double() / 255,
        "list": [Image.fromarray(ARRAY)],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["pil", "array", "float array", "arrays", "tensor", "bytes", "tensors", "list"]
)
def test_an_image_is_the_same_pixels_however_it_is_given(kind):
    found = images.pixels(given_as(kind))
    expected = torch.from_numpy(ARRAY).movedim(-1, 0)[None].float() / 127.5 - 1
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_grey_images_become_rgb_and_lists_a_batch():
    grey = Image.fromarray(ARRAY[..., 0])
    assert images.pixels([grey, Image.fromarray(ARRAY)]).shape == (2, 3, 6, 10)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ARRAY.astype(np.int32), "an image has dtype torch.int32"),
        (ARRAY[..., 0], "give RGB"),
        (torch.zeros(4, 6, 10), "give RGB"),
        ([ARRAY, ARRAY[:4]], "differ in size"),
    ],
)
def test_what_is_no_rgb_image_is_one_clear_line(image, message):
    with pytest.raises(UserError, match=message):
        images.pixels(image)


@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(1, 8))
def test_the_size_that_is_offered_in_place_of_one_that_does_not_fit_fits(tall, wide, scale):
    with pytest.raises(UserError, match=r"or use \d+x\d+") as caught:
        images.check_aspect((tall, wide), (16 * 400, 16), 16)
    width, height = map(int, caught.value.fix.rpartition(" ")[2].split("x"))
    images.check_aspect((tall, wide), (height, width), 16)


@given(st.integers(64, 3000), st.integers(64, 3000), st.floats(1, 8))
def test_an_image_fits_its_own_size_times_a_scale_rounded_to_tokens(tall, wide, scale):
    target = tuple(max(1, round(side * scale / 16)) * 16 for side in (tall, wide))
    images.check_aspect((tall, wide), target, 16)
