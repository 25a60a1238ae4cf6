"""Patches of images, and images that look alike."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from uhr.curate.config import load
from uhr.curate.frame import Frame
from uhr.curate.measures.detail import TILE, tiles, windows
from uhr.curate.patch_frame import PatchFrame
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.stage import FrameStage, Workspace
from uhr.curate.stages.patches import PatchesStage
from uhr.curate.stages.sets.near_duplicates import NearDuplicatesStage
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import Column
from uhr.manifests.sources.blobs import MemoryBlob
from uhr.pixels.phash import phash


def textured(*boxes: tuple[int, int, int, int], width: int = 640, height: int = 384) -> np.ndarray:
    """A gray image, uint8 [H, W, 3], with noise inside of these boxes (x, y, width, height)."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, (h, w, 1))
    return pixels


def frame_of(pixels: np.ndarray, orientation: int = 1) -> Frame:
    exif, data = Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(data, "PNG", exif=exif)
    return Frame("a.png", MemoryBlob(data.getvalue()), {})


def boxes_of(frame: Frame, **params: Any) -> list[tuple[int, ...]]:
    stage = PatchesStage(PatchesStage.Params(**params))
    return [child.box for child in stage.expand(frame)]


def test_patches_are_cut_where_the_detail_is_and_do_not_overlap():
    frame = frame_of(textured((64, 64, 128, 128), (448, 192, 128, 128)))
    assert boxes_of(frame, size=128, count=2) == [(64, 64, 128, 128), (448, 192, 128, 128)]
    many = boxes_of(frame, size=128, count=None, flat=1.0)
    for number, (x, y, w, h) in enumerate(many):
        for other_x, other_y, *_ in many[:number]:
            assert abs(x - other_x) >= w or abs(y - other_y) >= h
    assert len(boxes_of(frame, size=128, count=None, overlap=0.5)) > 2


def test_a_flat_image_has_no_patches_and_a_small_one_none():
    assert boxes_of(frame_of(textured()), size=128) == []
    assert boxes_of(frame_of(textured((0, 0, 640, 384))), size=512) == []


def test_a_grid_is_in_the_middle_and_leaves_out_flat_cells():
    frame = frame_of(textured((0, 0, 640, 384)))
    expected = [(x, y, 128, 128) for y in (0, 128, 256) for x in range(0, 640, 128)]
    assert boxes_of(frame, size=128, place="grid", count=None) == expected
    wide = frame_of(textured((0, 0, 700, 400), width=700, height=400))
    assert boxes_of(wide, size=128, place="grid", count=None)[0] == (30, 8, 128, 128)
    half = frame_of(textured((0, 0, 256, 384)))
    assert boxes_of(half, size=128, place="grid", count=None) == [
        (x, y, 128, 128) for y in (0, 128, 256) for x in (0, 128)
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_patch_has_the_pixels_of_its_box_in_the_upright_image(orientation):
    frame = frame_of(textured((64, 0, 192, 128), width=384, height=192), orientation)
    (box, *_) = boxes_of(frame, size=128)
    x, y, w, h = box
    patch = PatchFrame(frame, box, {})
    assert np.array_equal(patch.rgb, frame.rgb[y : y + h, x : x + w])
    assert (patch.header.width, patch.header.height) == (w, h)
    assert np.array_equal(patch.gray, cv2.cvtColor(patch.rgb, cv2.COLOR_RGB2GRAY))
    assert patch.gray.std() > 50, "it was cut where the noise is"


def test_the_detail_of_a_window_is_the_mean_of_its_tiles():
    rng = np.random.default_rng(1)
    gray = rng.integers(0, 256, (200, 300), dtype=np.uint8)
    detail, flat = tiles(gray)
    assert detail.shape == flat.shape == (3, 4)
    across, down = (cv2.Sobel(gray.astype(np.float64), cv2.CV_64F, *a, ksize=3) for a in ((1, 0), (0, 1)))
    texture = np.hypot(across, down)[TILE : 2 * TILE, :TILE].var()
    sharp = cv2.Laplacian(gray.astype(np.float64), cv2.CV_64F)[TILE : 2 * TILE, :TILE].var()
    assert detail[1, 0] == pytest.approx(np.log1p(texture) + np.log1p(sharp), rel=1e-5)
    found = {(window.x, window.y): window.detail for window in windows(gray, 128)}
    assert len(found) == 6
    assert found[64, 64] == pytest.approx(detail[1:3, 1:3].mean())


def test_the_preset_keeps_patches_with_detail_and_none_of_the_images(uhr, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    noise = textured((64, 64, 320, 256))
    smooth = cv2.GaussianBlur(textured((0, 0, 640, 384)), (0, 0), 2)
    for name, pixels in {"a": noise, "b": noise // 4, "c": smooth, "copy of a": noise}.items():
        Image.fromarray(pixels).save(source / f"{name}.png")
    pipeline = tmp_path / "small.yaml"
    pipeline.write_text(
        "preset: gca-patches\n"
        "stages: {patches: {size: 128, count: 3}, near_duplicates: {radius: 0}}\n"
        "rules: {size: 'least(width, height) >= 128', native: null}\n"
    )
    arguments = ("--source", source, "--out", tmp_path / "out", "--engine", "local", "--workers", 0)
    code, printed, errors = uhr("curate", "run", pipeline, *arguments)
    assert code == 0, errors
    rows = Manifest.open(tmp_path / "out").table().to_pylist()
    reasons = {row["uri"]: row["reason"] for row in rows if row["parent_id"] is None}
    assert reasons == {
        "a.png": "whole_image",
        "b.png": "whole_image",
        "c.png": "whole_image",
        "copy of a.png": "near_duplicate",
    }
    patches = [row for row in rows if row["parent_id"] is not None]
    assert {row["status"] for row in patches if row["uri"] == "a.png"} == {"kept"}
    assert {row["reason"] for row in patches if row["uri"] == "b.png"} == {"dark"}
    assert {row["reason"] for row in patches if row["uri"] == "c.png"} <= {"blurred", "texture"}
    assert {(row["width"], row["height"]) for row in patches} == {(128, 128)}
    assert "not evaluated       watermark" in printed
    assert (tmp_path / "out" / "report.html").exists()
    code, text, errors = uhr("curate", "explain", tmp_path / "out", patches[0]["sample_id"])
    assert code == 0, errors
    assert "whole_image" not in text, "a rule of images says nothing of patches"
    code, _, errors = uhr("manifest", "verify", tmp_path / "out", "--rules")
    assert code == 0, errors


def test_the_passes_of_the_preset():
    plan = CurationPlan.of(load("gca-patches"))
    assert [[planned.label for planned in each.stages] for each in plan.passes] == [
        ["header", "geometry", "decode", "native_resolution", "phash", "near_duplicates"],
        ["patches", "header", "flatness", "exposure", "sharpness", "entropy"],
    ]
    assert [each.of_patches for each in plan.passes] == [False, True]


def variants(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The same image resized, recompressed and brightened."""
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])
    return {
        "half": cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "jpeg": cv2.imdecode(jpeg, cv2.IMREAD_COLOR),
        "bright": np.clip(pixels.astype(int) + 12, 0, 255).astype(np.uint8),
    }


def scene(seed: int) -> np.ndarray:
    """Smooth shapes of random places and colours, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (480, 360), interpolation=cv2.INTER_CUBIC)


def test_variants_of_an_image_have_near_hashes_and_other_images_far_ones():
    gray = {seed: cv2.cvtColor(scene(seed), cv2.COLOR_BGR2GRAY) for seed in range(30)}
    hashes = {seed: phash(each) for seed, each in gray.items()}
    distances = []
    for seed in range(30):
        for pixels in variants(scene(seed)).values():
            other = phash(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))
            distances.append((hashes[seed] ^ other).bit_count())
    assert np.mean(np.array(distances) <= 4) > 0.95
    apart = [(hashes[a] ^ hashes[b]).bit_count() for a in range(30) for b in range(a)]
    assert min(apart) > 8


def test_of_images_that_look_alike_the_best_by_the_order_is_kept(tmp_path):
    import duckdb

    stage = NearDuplicatesStage(NearDuplicatesStage.Params(radius=4, order=["megapixels desc"]))
    assert stage.needs == ("phash", "megapixels")
    rows = [
        *[("s0", "b", 2.0, 0b0000), ("s1", "a", 9.0, 0b0111), ("s2", "c", 9.0, 0b1111)],
        *[("s3", "d", 1.0, 0xFFFF_0000), ("s4", "e", 1.0, None)],
    ]
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE live (sample_id VARCHAR, uri VARCHAR, megapixels DOUBLE, phash VARCHAR)"
        )
        hashed = [(*row[:3], None if row[3] is None else f"{row[3]:016x}") for row in rows]
        connection.executemany("INSERT INTO live VALUES (?, ?, ?, ?)", hashed)
        found = stage.compute(connection.table("live"), Workspace(tmp_path, "near"))
    assert {row["sample_id"]: (row["near_group"], row["dup_of"]) for row in found.to_pylist()} == {
        "s1": ("s1", None),
        "s2": ("s1", "s1"),
        "s0": ("s1", "s1"),
        "s3": (None, None),
    }


@pytest.fixture
def measured(uhr, tmp_path):
    """Run a pipeline over two noisy images, or over a manifest; returns the rows by uri and box."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("a", "b")):
        pixels = textured((0, 0, 128, 64), width=128, height=64) // (number + 1)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")

    def run(name: str, text: str, source: object = None) -> list[dict[str, Any]]:
        (tmp_path / f"{name}.yaml").write_text(f"name: t\n{text}")
        arguments = ("--out", tmp_path / name, "--engine", "local", "--workers", 0)
        arguments += () if source is None else ("--source", source)
        code, _, errors = uhr("curate", "run", tmp_path / f"{name}.yaml", *arguments)
        assert code == 0, errors
        assert uhr("manifest", "verify", tmp_path / name, "--rules")[0] == 0
        return Manifest.open(tmp_path / name).table().to_pylist()

    return run


def test_patches_of_a_manifest_have_values_of_their_own(measured, tmp_path):
    stages = "stages: [header, geometry, decode, exposure, entropy]\n"
    images = {row["uri"]: row for row in measured("images-out", stages, tmp_path / "images")}
    patches = "{stage: patches, size: 64, flat: 1, stages: [header, exposure], rules: {lit: luma_mean > 1}}"
    rows = measured("out", f"stages: [header, decode, {patches}]\n", f"manifest:{tmp_path / 'images-out'}")
    assert sum(row["parent_id"] is not None for row in rows) == 4
    for row in rows:
        image = images[row["uri"]]
        if row["parent_id"] is None:
            assert (row["luma_mean"], row["entropy"]) == (image["luma_mean"], image["entropy"])
        else:
            assert row["luma_mean"] not in (None, image["luma_mean"])
            assert (row["entropy"], row["megapixels"]) == (None, None), "they are of the whole image"


def test_patches_have_the_rights_of_their_image_and_are_not_shown_where_it_is_not(measured, tmp_path):
    rights = {"a": {"license": "CC0", "author": "Ada"}, "b": {"license": "CC BY 4.0"}}
    for name, stated in rights.items():
        (tmp_path / "images" / f"{name}.json").write_text(json.dumps(stated))
    listed = tmp_path / "listed.txt"
    listed.write_text(hashlib.sha256((tmp_path / "images" / "b.png").read_bytes()).hexdigest())
    patches = (
        "{stage: patches, size: 64, flat: 1, stages: [header, exposure], "
        "rules: {free: license_spdx = 'CC0-1.0', unlisted: {where: blocklist_match IS NULL}}}"
    )
    stages = f"header, {{stage: blocklist, files: ['{listed}']}}, rights, licence, decode"
    sources = f"sources: {{one: {{path: '{tmp_path / 'images'}', contract: C-7}}}}\n"
    text = f"pixels: all\nstages: [{stages}, {patches}]\n{sources}"
    rows = measured("out", text)
    whole = {row["sample_id"]: row for row in rows if row["parent_id"] is None}
    cut = [row for row in rows if row["parent_id"] is not None]
    assert len(cut) == 4
    own = ("license", "author", "contract", "source_name", "license_spdx", "license_problem", "c2pa")
    for row in cut:
        image = whole[row["parent_id"]]
        assert [row[name] for name in own] == [image[name] for name in own]
        assert row["blocklist_match"] == image["blocklist_match"]
        assert row["c2pa"] is False
        assert row["reason"] == (None if row["uri"] == "a.png" else "free")
    manifest = Manifest.open(tmp_path / "out")
    shown = manifest.previews({row["sample_id"] for row in rows})
    assert {row["uri"] for row in rows if row["sample_id"] in shown} == {"a.png"}
    assert sum(part.rows for part in manifest.info.attachments) == 1, "the listed image is not stored"

    # patches of a manifest whose run measured the rights
    measured("images-out", f"stages: [{stages}]\n{sources}")
    later = measured(
        "of-manifest", f"stages: [header, decode, {patches}]\n", f"manifest:{tmp_path / 'images-out'}"
    )
    of_later = {(row["uri"], str(row["box"])): row for row in later if row["parent_id"] is not None}
    assert len(of_later) == 4
    for row in cut:
        again = of_later[row["uri"], str(row["box"])]
        assert [again[name] for name in own] == [row[name] for name in own]
        assert again["blocklist_match"] == row["blocklist_match"]


def test_images_keep_a_column_that_a_later_pass_measures_of_patches(measured, tmp_path):
    late = f"{{stage: '{__name__}:Late'}}"
    inner = f"[header, geometry, phash, near_duplicates, {late}]"
    patches = f"{{stage: patches, size: 64, flat: 1, stages: {inner}}}"
    outer = "header, geometry, decode, phash, near_duplicates"
    rows = measured("out", f"stages: [{outer}, {late}, {patches}]\n", tmp_path / "images")
    assert {row["parent_id"] is None for row in rows} == {True, False}
    assert all(row["late"] == f"{row['width']} px" for row in rows)


def test_a_rule_of_images_after_the_patches_sees_columns_that_patches_have_too(measured, tmp_path):
    patches = "{stage: patches, size: 64, flat: 1, stages: [header, exposure]}"
    rules = "rules: {counted: child_count * 64 = width AND luma_mean > 1}\n"
    text = f"stages: [header, decode, exposure, {patches}]\n{rules}"
    rows = measured("out", text, tmp_path / "images")
    assert [row["status"] for row in rows] == ["kept"] * 6


def test_named_sources_with_equal_uris_are_in_one_order(measured, tmp_path):
    patches = "{stage: patches, size: 64, flat: 1, stages: [header]}"
    sources = f"sources: {{z: {tmp_path / 'images'}, y: {tmp_path / 'images'}}}\n"
    rows = measured("out", f"stages: [header, decode, {patches}]\n{sources}")
    order = [(row["uri"], row["source_name"], row["parent_id"] is not None) for row in rows]
    assert order == sorted(order)
    assert len(order) == 12


class Late(FrameStage):
    """Says how wide an image is, once it is known whether it is a duplicate."""

    name = "late"
    reads = "header"
    needs = ("width", "dup_of")
    adds = (Column("late", pa.string(), "the width"),)

    def annotate(self, frame: Frame) -> dict[str, str]:
        return {"late": f"{frame.row['width']} px"}
