"""A frame computes what is needed, once, and nothing before."""

import io

import numpy as np
import pytest
from PIL import Image

from uhr.curate.frame import Frame
from uhr.manifests.sources.blobs import LocalBlob
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


def test_a_fault_is_found_again(tmp_path) -> None:
    (tmp_path / "empty.jpg").touch()
    frame = Frame("empty.jpg", LocalBlob(str(tmp_path / "empty.jpg")), {})
    for _ in range(2):
        with pytest.raises(PixelFault):
            _ = frame.decoded
