"""`uhr eval artifacts` measures images of any origin, and draws where their artifacts are."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from uhr.models.metrics.base import Sample
from uhr.models.metrics.registry import metric
from uhr.pixels.decode import decode, png


@pytest.fixture
def images(at_home) -> Path:
    rng = np.random.default_rng(0)
    noise = rng.normal(120, 4, (400, 512, 3))
    (at_home / "images" / "more").mkdir(parents=True)
    (at_home / "images" / "plain.png").write_bytes(png(noise.astype(np.uint8)))
    lines = noise + 6 * (np.arange(512) % 64 == 0)[None, :, None]
    (at_home / "images" / "more" / "lines.png").write_bytes(png(lines.astype(np.uint8)))
    return at_home / "images"


def test_values_are_those_of_the_metrics_and_maps_show_where(uhr, images):
    code, printed, _ = uhr("eval", "artifacts", images, "--heatmaps", "maps", "--json")
    assert code == 0
    found = json.loads(printed)
    assert [Path(row["file"]).name for row in found] == ["lines.png", "plain.png"]
    for row in found:
        pixels = decode(Path(row["file"]).read_bytes()).rgb()
        for name in ("grid", "speckle", "repetition"):
            values = metric(name).score([Sample(pixels)])[0]
            assert {key: row[key] for key in values} == pytest.approx(values)
            drawn = cv2.imread(row["heatmaps"][name])
            assert drawn.shape == (400, 512, 3)
            # only the lines have colour
            coloured = (drawn.max(axis=2) > drawn.min(axis=2) + 20).any(axis=0)
            expected = row["grid_z"] > 4 and name == "grid"
            assert coloured.any() == expected
            if expected:
                assert {int(x) // 16 * 16 for x in np.flatnonzero(coloured)} == {64 * i for i in range(1, 8)}
    assert Path("maps/more/lines.png.grid.png").is_file()


def test_seams_are_measured_where_patches_are(uhr, images):
    command = ("eval", "artifacts", images / "plain.png", "--metric", "seams", "--set", "seams.patch=256")
    (row,) = json.loads(uhr(*command, "--json")[1])
    assert row["seam_z"] < 3
    assert "seam_worst_z" in uhr(*command)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("images", "--heatmaps", "maps"), "maps/more/lines.png.grid.png exists: name another --heatmaps"),
        (("images", "--metric", "fid"), "'fid' is not a metric of artifacts"),
        (("images", "--set", "seams.patch=256"), "--set seams: this metric is not measured"),
        (("images", "images/plain.png", "--heatmaps", "other"), "have one name"),
        (("empty",), "empty contains no image"),
        (("absent.png",), "absent.png does not exist"),
        (("prompts.txt",), "prompts.txt cannot be used"),
        (("small.png",), "small.png: image 0 has 100x100 px, and grid"),
    ],
)
def test_what_cannot_be_measured_is_one_line(uhr, images, arguments, message):
    Path("empty").mkdir()
    Path("small.png").write_bytes(png(np.zeros((100, 100, 3), np.uint8)))
    Path("maps/more").mkdir(parents=True)
    Path("maps/more/lines.png.grid.png").write_bytes(b"")
    code, _, errors = uhr("eval", "artifacts", *arguments)
    assert code == 1
    assert message in errors
    assert "Traceback" not in errors
    assert not Path("other").exists()
