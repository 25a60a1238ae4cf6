"""Each stage gives the columns that it declares, with the numbers that their definitions say."""

import hashlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.config import build
from uhr.base.errors import UserError
from uhr.curate.frame import Frame
from uhr.curate.stage import FrameStage, SetStage
from uhr.curate.stages import NAMES, stage_class
from uhr.curate.stages.frames.geometry import LANDSCAPES, aspect_bucket
from uhr.manifests.sources.blobs import LocalBlob
from uhr.pixels.decode import PixelLimits
from uhr.pixels.types import PixelFault

FRAME_STAGES = [name for name in NAMES if issubclass(stage_class(name), FrameStage)]


@pytest.fixture
def photo(forge, tmp_path) -> Frame:
    path = tmp_path / "photo.jpg"
    path.write_bytes(forge.encode(forge.image(600, 500), "JPEG", 6, quality=90))
    return Frame("photo.jpg", LocalBlob(str(path)), {})


def annotate(name: str, frame: Frame, **params):
    cls = stage_class(name)
    stage = cls(build(cls.Params, params, name))
    stage.open()
    return stage.annotate(frame)


@pytest.mark.parametrize("name", FRAME_STAGES)
def test_a_stage_gives_exactly_its_columns_as_plain_values(photo, name) -> None:
    values = annotate(name, photo)
    stage = stage_class(name)()
    assert set(values) == {column.name for column in stage.adds}
    for column in stage.adds:
        assert column.stage == name
        if column.name != "notes" and name not in ("fetch", "rights", "licence", "blocklist"):
            # those are null where there is nothing to say
            assert type(values[column.name]) in (int, float, str), "numpy's numbers do not travel"


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_is_known_by_the_name_that_it_bears(name) -> None:
    assert stage_class(name).name == name


def test_header_and_geometry_speak_of_the_upright_image(photo) -> None:
    header = annotate("header", photo)
    assert (header["width"], header["height"], header["orientation"]) == (500, 600, 6)
    assert (header["format"], header["mode"], header["bit_depth"]) == ("JPEG", "RGB", 8)
    assert header["file_size"] == len(photo.data)
    geometry = annotate("geometry", photo)
    assert geometry == {"megapixels": 0.3, "aspect_ratio": 500 / 600, "aspect_bucket": "4:5"}


def test_stages_that_read_headers_find_no_fault_behind_them(forge, tmp_path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(forge.encode(forge.image(600, 500), "JPEG")[:3000])
    for name in FRAME_STAGES:
        if stage_class(name).reads == "header":
            annotate(name, Frame("cut.jpg", LocalBlob(str(path)), {}))
        elif name not in ("blocklist", "rights"):  # they read the file's bytes, and no pixels
            with pytest.raises(PixelFault):
                annotate(name, Frame("cut.jpg", LocalBlob(str(path)), {}))


def test_content_hash_is_the_files_sha256(photo) -> None:
    digest = hashlib.sha256(photo.data).hexdigest()
    assert annotate("decode", photo) == {"content_hash": digest, "notes": None}


def test_guards_look_at_the_stored_grid_whatever_the_orientation(forge, tmp_path) -> None:
    image = forge.image(500, 260)
    values = []
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.png"
        path.write_bytes(forge.encode(image, "PNG", orientation))
        frame = Frame(path.name, LocalBlob(str(path)), {})
        values.append([annotate(name, frame) for name in ("flatness", "entropy", "exposure", "sharpness")])
    assert all(value == values[0] for value in values)


def test_flatness_takes_its_patch_and_threshold_from_the_pipeline(photo) -> None:
    gray = photo.gray
    variances = []
    for y in range(0, gray.shape[0] - 99, 100):
        for x in range(0, gray.shape[1] - 99, 100):
            piece = gray[y : y + 100, x : x + 100]
            across, down = (cv2.Sobel(piece, cv2.CV_64F, *d, ksize=3) for d in ((1, 0), (0, 1)))
            variances.append(np.var(np.sqrt(across**2 + down**2)))
    middle = float(np.median(variances)) + 1e-3
    expected = np.mean(np.array(variances) < middle)
    assert 0 < expected < 1
    assert annotate("flatness", photo, patch=100, variance=middle) == {"flat_fraction": expected}


def test_flatness_of_another_patch_changes_the_fingerprint() -> None:
    cls = stage_class("flatness")
    assert cls(cls.Params(patch=100)).fingerprint() != cls().fingerprint()


@pytest.mark.parametrize("patch", [7, 1025])
def test_a_patch_out_of_range_is_a_users_error(patch) -> None:
    with pytest.raises(UserError, match="patch"):
        build(stage_class("flatness").Params, {"patch": patch}, "stages.flatness")


def test_the_pass_over_gray_runs_once_for_all_stages(photo, monkeypatch) -> None:
    from uhr.curate.measures import gray_pass

    calls = []
    measure = gray_pass.measure
    monkeypatch.setattr(gray_pass, "measure", lambda *a: calls.append(a) or measure(*a))
    for name in ("flatness", "entropy", "exposure", "sharpness"):
        annotate(name, photo)
    assert sum(call[0] is photo.gray for call in calls) == 1


def test_exposure_of_known_grays(forge, tmp_path) -> None:
    gray = np.repeat(np.array([0, 15, 16, 255], np.uint8), 100).reshape(1, 400).repeat(10, axis=0)
    path = tmp_path / "bars.png"
    cv2.imwrite(str(path), gray)
    values = annotate("exposure", Frame("bars.png", LocalBlob(str(path)), {}))
    assert values == {"luma_mean": 71.5, "dark_fraction": 0.5, "clipped_fraction": 0.5}


def test_limits_reach_the_decode(photo) -> None:
    small = Frame(photo.uri, photo.blob, {}, PixelLimits(pixels=1000))
    annotate("header", small)
    with pytest.raises(PixelFault, match="more than the limit"):
        annotate("decode", small)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_the_aspect_label_is_the_nearest_and_turns_with_the_image(width, height) -> None:
    label = aspect_bucket(width, height)
    a, b = map(int, label.split(":"))
    labels = {f"{w}:{h}": w / h for w, h in (*LANDSCAPES, *((h, w) for w, h in LANDSCAPES))}
    nearest = min(abs(np.log(width / height / ratio)) for ratio in labels.values())
    assert abs(np.log(width / height / (a / b))) == pytest.approx(nearest, abs=1e-12)
    assert aspect_bucket(height, width) == f"{b}:{a}"


@pytest.mark.parametrize(
    ("size", "label"),
    [
        ((3840, 2160), "16:9"),
        ((2160, 3840), "9:16"),
        ((4096, 4096), "1:1"),
        ((6000, 4000), "3:2"),
        ((2560, 1600), "16:10"),
    ],
)
def test_common_sizes_have_their_common_label(size, label) -> None:
    assert aspect_bucket(*size) == label


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean flatness"):
        stage_class("flatnes")


@pytest.mark.parametrize("path", ["uhr.curate.frame:Frame", "json:dumps"])
def test_what_is_no_stage_is_refused(path) -> None:
    with pytest.raises(UserError, match="is not a stage"):
        stage_class(path)


def test_a_stage_of_the_users_own_is_named_by_import_path() -> None:
    assert stage_class(NAMES["entropy"]) is stage_class("entropy")
    assert issubclass(stage_class("uhr.curate.stages.sets.rank:RankStage"), SetStage)
