"""A frame computes what is needed, once, and nothing before."""

import io

import numpy as np
import pytest
from PIL import Image

from uhr.curate.frame import Frame
from uhr.manifests.sources.blobs import LocalBlob
from uhr.pixels.decode import fit
from uhr.pixels.types import PixelFault


@pytest.fixture
def path(forge, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(forge.encode(forge.image(900, 600), "JPEG", 8, quality=92))
    return path


def test_a_header_is_read_without_the_file(path, monkeypatch) -> None:
    monkeypatch.setattr("uhr.manifests.sources.blobs.read_bytes", lambda *_: pytest.fail("the file was read"))
    frame = Frame("a.jpg", LocalBlob(str(path)), {})
    assert (frame.header.width, frame.header.height) == (600, 900)
    assert frame.file_size == path.stat().st_size


def test_everything_is_computed_once(path, monkeypatch) -> None:
    frame = Frame("a.jpg", LocalBlob(str(path)), {})
    gray, rgb, measured = frame.gray, frame.rgb, frame.gray_measures()
    path.unlink()
    monkeypatch.setattr("uhr.curate.frame.decode", lambda *_: pytest.fail("decoded again"))
    assert frame.gray is gray
    assert frame.rgb is rgb
    assert frame.gray_measures() is measured is frame.gray_measures(240)
    assert frame.file_size == len(frame.data)
    assert frame.preview()[1:] == (213, 320)


def test_other_patches_are_measured_beside(path) -> None:
    frame = Frame("a.jpg", LocalBlob(str(path)), {})
    assert frame.gray_measures(100).variance.shape == (6, 9)
    assert frame.gray_measures(300).variance.shape == (2, 3)
    assert frame.gray_measures() is frame.gray_measures(100), "whoever needs no patch takes what is there"


def test_gray_is_stored_and_rgb_is_upright(path) -> None:
    frame = Frame("a.jpg", LocalBlob(str(path)), {})
    assert frame.gray.shape == (600, 900)
    assert frame.rgb.shape == (900, 600, 3)


def test_the_preview_shows_the_upright_image(path) -> None:
    frame = Frame("a.jpg", LocalBlob(str(path)), {})
    data, width, height = frame.preview(200)
    shown = np.asarray(Image.open(io.BytesIO(data)), int)
    expected = np.asarray(Image.fromarray(frame.rgb).resize((width, height), Image.Resampling.BOX), int)
    assert (width, height) == (133, 200)
    assert np.abs(shown - expected).mean() < 4


@pytest.mark.parametrize("of", ["a photograph", "turned", "gray", "with alpha", "in a wide gamut", "CMYK"])
def test_a_view_is_that_of_the_displayed_image_to_the_bit(of: str, forge, tmp_path) -> None:
    from uhr.models.scores.images import View

    image = forge.image(300, 200, "RGBA" if of == "with alpha" else "RGB", seed=3)
    image = image.convert({"gray": "L", "CMYK": "CMYK"}.get(of, image.mode))
    settings = {"icc_profile": forge.wide_gamut_profile()} if of == "in a wide gamut" else {}
    data = forge.encode(
        image, "PNG" if of == "with alpha" else "JPEG", 6 if of == "turned" else 1, **settings
    )
    (tmp_path / "a").write_bytes(data)
    for view in (View(shortest=64), View(longest=120, filter="bilinear"), View()):
        found = Frame("a", LocalBlob(str(tmp_path / "a")), {}).view(view)
        expected = view.of(Frame("a", LocalBlob(str(tmp_path / "a")), {}).rgb)
        assert found.is_contiguous()
        assert found.equal(expected)


@pytest.mark.parametrize(("width", "height", "most", "on_average"), [(960, 540, 2, 1), (1024, 540, 12, 2)])
def test_a_preview_of_many_pixels_is_close_to_their_area_average(
    width: int, height: int, most: int, on_average: int
) -> None:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shrunk = fit(pixels, 80)
    expected = cv2.resize(pixels, shrunk.shape[1::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(shrunk.astype(int) - expected)
    assert difference.max() <= most
    assert difference.mean() <= on_average


def test_a_fault_is_found_again(tmp_path) -> None:
    (tmp_path / "empty.jpg").touch()
    frame = Frame("empty.jpg", LocalBlob(str(tmp_path / "empty.jpg")), {})
    for _ in range(2):
        with pytest.raises(PixelFault):
            _ = frame.decoded
