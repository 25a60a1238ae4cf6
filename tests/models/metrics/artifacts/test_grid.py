"""Grids and seams are found where they were planted, and not where there are none."""

import cv2
import numpy as np
import pytest

from benchmarks.artifacts import crops, first, offset_tiles
from uhr.base.errors import UserError
from uhr.models.metrics.artifacts.lines import Lines, differences, log_tail, score_of
from uhr.models.metrics.base import Sample
from uhr.models.metrics.registry import metric


@pytest.mark.parametrize(("period", "apart"), [(2, True), (3, False), (4, True), (7, False), (20, False)])
def test_the_score_of_lines_that_are_like_any_others_is_standard_normal(period, apart):
    # with neighbours in common the scores of near lines are not independent
    rng = np.random.default_rng(period)
    found = []
    for _ in range(400):
        lines = Lines.of(rng.random((16, 121)).astype(np.float32), 1, period if apart else None)
        found.append(lines.z(range(period, 121, period)))
    assert np.mean(found) == pytest.approx(0, abs=0.2)
    assert np.std(found) == pytest.approx(1, abs=0.15)


def test_combs_are_the_scores_of_their_lines():
    lines = Lines.of(np.random.default_rng(0).random((16, 200)).astype(np.float32), 1)
    z, count = lines.combs(12)
    for phase in range(12):
        places = range(phase or 12, 200, 12)
        assert count[phase] == len(places)
        assert z[phase] == pytest.approx(lines.z(places), rel=0.05)


def test_a_differences_kind_is_the_mean_of_what_it_says():
    gray = np.random.default_rng(0).integers(0, 256, (130, 90), dtype=np.uint8)
    step = np.diff(gray.astype(int), axis=1)
    for kind, expected in (
        ("gradients", [np.abs(step[top : top + 64]).mean(axis=0) for top in (0, 64)]),
        ("offsets", [np.abs(step[top : top + 64].mean(axis=0)) for top in (0, 64)]),
    ):
        found = differences(gray, kind)
        assert found[:, 0].tolist() == [0, 0]
        np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-5)


@pytest.mark.parametrize("z", [0.1, 1.0, 3.0, 19.9, 20.1, 60.0])
def test_a_standard_score_is_found_from_its_probability(z):
    assert score_of(log_tail(z)) == pytest.approx(z, rel=1e-4)


def test_no_probability_of_more_than_half_has_a_score():
    assert score_of(log_tail(-1.0)) == 0.0


def test_photographs_have_no_grid(photos):
    grid = metric("grid")
    assert all(first(grid, image) < 2 for image in photos.values())
    assert sum(first(grid, image) > 2 for image in crops(photos, 60, np.random.default_rng(0), 320)) <= 3


def test_a_grid_scores_higher_the_stronger_it_is_and_is_found_at_its_period(discs):
    grid = metric("grid")
    values = [first(grid, discs)]
    for levels in (4, 8, 16):
        image = offset_tiles(discs, levels, np.random.default_rng(3))
        found = grid.find(image)
        values.append(found.z)
        if levels >= 8:
            assert found.period == 128
            assert found.phases == (0, 0)
    assert values == sorted(values)
    assert values[0] < 1
    assert values[-1] > 4


def test_a_grid_that_begins_elsewhere_has_its_phase(discs):
    image = offset_tiles(discs, 16, np.random.default_rng(3))[48:, 80:]
    found = metric("grid", periods=[128]).find(image)
    assert found.z > 4
    assert found.phases == (48, 80)
    # other periods do not fit its lines
    assert first(metric("grid", periods=[144]), image) < 2


def test_lines_in_one_direction_are_a_grid_too(discs):
    image = discs.copy()
    image[:, ::64] = np.clip(image[:, ::64].astype(int) + 6, 0, 255)
    found = metric("grid").find(image)
    assert (found.period, found.phases) == (64, (0, None))
    assert found.z > 4


def test_the_token_grid_is_found_and_the_blocks_of_a_jpeg_are_not(discs):
    noise = np.random.default_rng(0).normal(128, 6, (512, 512, 1)).repeat(3, 2)
    tokens = noise + 2 * (np.arange(512) % 16 == 0)[:, None, None]
    assert metric("grid").find(tokens.astype(np.uint8)).period == 16
    assert first(metric("grid"), tokens.astype(np.uint8)) > 4
    data = cv2.imencode(".jpg", discs, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    blocks = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert first(metric("grid"), blocks) < 2
    assert metric("grid", multiple=1).find(blocks).period % 8 == 0
    assert first(metric("grid", multiple=1), blocks) > 4


def test_seams_are_measured_at_the_borders_of_patches(discs):
    seams = metric("seams", patch=384, overlap=64)
    # 0, 320 and 640 to 384, 704 and 1024
    image = discs.astype(int)
    image[:, 320:] += 6
    image[704:] -= 6
    image = np.clip(image, 0, 255).astype(np.uint8)
    found = seams.score([Sample(image)])[0]
    assert found["seam_worst_z"] > 2
    assert found["seam_step"] > 0
    clean = seams.score([Sample(discs)])[0]
    assert max(clean["seam_z"], clean["seam_worst_z"]) < 2
    elsewhere = metric("seams", x=[512], y=[512]).score([Sample(image)])[0]
    assert elsewhere["seam_z"] < 2
    there = metric("seams", x=[320], y=[704]).score([Sample(image)])[0]
    assert there["seam_z"] > found["seam_z"]


def test_heat_maps_show_the_lines(discs):
    image = offset_tiles(discs, 24, np.random.default_rng(3), tile=256)
    heat = metric("grid", periods=[256]).heat(image)
    assert heat.shape == (64, 64)
    on_lines = np.zeros((64, 64), bool)
    on_lines[16::16] = on_lines[:, 16::16] = True
    assert heat[on_lines].max() > 0.9
    assert heat[~on_lines].max() == 0
    assert metric("grid").heat(discs).max() == 0
    seam = np.clip(discs.astype(int) + 24 * (np.arange(1024) >= 512)[None, :, None], 0, 255).astype(np.uint8)
    assert np.flatnonzero(metric("seams", x=[512], y=[512]).heat(seam).mean(axis=0) > 0.3).tolist() == [32]


@pytest.mark.parametrize(
    ("name", "options", "side", "message"),
    [
        ("grid", {}, 200, "image 3 has 200x200 px, and grid/any/multiples-of-16 needs 256 px"),
        ("grid", {"periods": [512]}, 600, "no period of grid/512/multiples-of-16 fits 3 times into image 3"),
        ("grid", {"periods": [100]}, 600, "periods: 100 is not a multiple of 16 px"),
        ("seams", {}, 600, "'seams' does not know the borders"),
        ("seams", {"patch": 512, "x": [8]}, 600, "'seams' does not know the borders"),
        ("seams", {"patch": 1024}, 600, "has no border in image 3"),
        ("seams", {"x": [100]}, 600, "the border at 100 px of image 3 is not a multiple of 16 px"),
        ("speckle", {}, 40, "image 3 has 40x40 px"),
        ("repetition", {}, 200, "image 3 has 200x200 px"),
    ],
)
def test_what_cannot_be_measured_is_an_error(name, options, side, message):
    image = np.zeros((side, side, 3), np.uint8)
    with pytest.raises(UserError, match=message):
        metric(name, **options).score([Sample(image, index=3)])
