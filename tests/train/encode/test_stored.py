"""What is stored of an image besides its latents, and how the VAE is called."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import uhr.train.encode.work.images as images_module
from uhr.base.errors import UserError
from uhr.manifests.manifest import Manifest
from uhr.models.ops.latents import to_images
from uhr.models.vae.codec import moments
from uhr.models.zoo import load_vae, open_model
from uhr.runtime.units import CRASH, UnitFault, Watch
from uhr.train.data.reader import EncodedData
from uhr.train.encode.buckets import TABLES, Bucket, bucket_table, parse_size, place, table_side
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.work.images import IMAGE_ITEMS, ImageTask, ImageWork
from uhr.train.encode.work.source import cut

TABLE_9 = (
    "5440x3072", "5184x3264", "4992x3328", "4736x3520", "5824x2880", "6272x2688", "5568x3008", "6336x2624",
    "5632x3008", "4608x3648", "3072x5440", "3648x4608", "3520x4736", "3328x4992", "4096x4096",
)  # fmt: skip
"""UltraFlux (2511.18050), Table 9."""


def rgb_of(manifest, uri):
    return cv2.imread(str(manifest.root / uri), cv2.IMREAD_COLOR_RGB)


def test_the_table_of_ultraflux_has_exactly_its_fifteen_sizes():
    found = bucket_table("ultraflux-4k", 4096, ("1/1",), 32)
    assert {str(bucket) for bucket in found} == set(TABLE_9)
    assert len(TABLES["ultraflux-4k"]) == len(found) == 15
    assert table_side("ultraflux-4k") == 4096


def test_buckets_are_one_square_or_a_list_or_an_error_that_says_what_is_wrong():
    assert bucket_table("square", 1024, ("3/2",), 16) == (Bucket(1024, 1024),)
    assert bucket_table(("320x192", "128x256"), 64, (), 64) == (Bucket(256, 128), Bucket(192, 320))
    assert table_side(("320x192", "128x256")) == 247
    with pytest.raises(UserError, match=r"bucket 320x200: its sides must be multiples of 16"):
        bucket_table(("320x200",), 64, (), 16)
    with pytest.raises(UserError, match="unknown bucket table 'sqare': did you mean square"):
        bucket_table("sqare", 64, (), 16)
    for text in ("320", "320x", "0x32", "axb"):
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            parse_size(text)
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            EncodeConfig(buckets=(text,))


@pytest.fixture(scope="module")
def masked(tmp_path_factory, manifest_of, with_columns, tiny_flux):
    """Images with guides and masks in files: (manifest, encoded data)."""
    folder = tmp_path_factory.mktemp("masked")
    plain = manifest_of(
        folder,
        [
            {"name": "a.png", "height": 150, "width": 200, "caption": "a"},
            {"name": "b.png", "height": 128, "width": 128, "caption": "b"},
            {"name": "c.png", "height": 128, "width": 128, "box": (0, 0, 128, 128)},
            {"name": "d.png", "height": 128, "width": 128},
            {"name": "e.png", "height": 128, "width": 128},
            {"name": "f.png", "height": 128, "width": 128},
        ],
    )
    rng = np.random.default_rng(0)
    masks = {"a": (150, 200), "b": (128, 128), "c": (128, 128), "wrong": (64, 64)}
    for name, size in masks.items():
        coarse = (rng.random((5, 5)) > 0.5).astype(np.uint8) * 255
        mask = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
        assert cv2.imwrite(str(plain.root / f"{name}-mask.png"), mask)
    names = ["a-mask.png", "b-mask.png", "c-mask.png", "wrong-mask.png", None, "gone.png"]
    manifest = with_columns(plain, folder / "with masks", region=names)
    config = EncodeConfig(
        buckets=("128x128", "192x128"), guide=2, mask="region", dtype="float32", captions="caption"
    )
    encode(manifest.path, str(tiny_flux), folder / "encoded", config, "cpu")
    return manifest, EncodedData.open(folder / "encoded")


def test_a_guide_is_the_bicubic_quarter_of_the_crop_through_the_vae(masked, tiny_flux):
    manifest, data = masked
    vae = load_vae(tiny_flux)
    for bucket, info in enumerate(data.buckets):
        rows = data.read(bucket, range(info.rows))
        assert rows.guide is not None
        assert rows.guide[0].shape == (info.rows, 16, info.height // 16, info.width // 16)
        for i, uri in enumerate(rows.uris):
            crop = cut(rgb_of(manifest, uri), Bucket(info.height, info.width))
            unit = torch.tensor(np.ascontiguousarray(crop)).permute(2, 0, 1)[None] / 255
            size = (info.height // 2, info.width // 2)
            small = F.interpolate(unit, size=size, mode="bicubic", align_corners=False)
            expected = moments(vae, small * 2 - 1)
            for found, value in zip(rows.guide, expected, strict=True):
                torch.testing.assert_close(found[i], value[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rows.mean[i], moments(vae, to_images(crop[None].copy()))[0][0])


def test_a_mask_is_cropped_as_its_image_and_averaged_over_each_latent(masked):
    manifest, data = masked
    for bucket, info in enumerate(data.buckets):
        rows = data.read(bucket, range(info.rows))
        assert rows.mask is not None
        assert rows.mask.dtype == torch.uint8
        for i, uri in enumerate(rows.uris):
            mask = cv2.imread(str(manifest.root / uri.replace(".png", "-mask.png")), cv2.IMREAD_GRAYSCALE)
            at = place(*mask.shape, Bucket(info.height, info.width))
            mask = cv2.resize(mask, (at.width, at.height), interpolation=cv2.INTER_AREA)
            mask = mask[at.top : at.top + info.height, at.left : at.left + info.width].astype(np.float64)
            cells = mask.reshape(info.height // 8, 8, info.width // 8, 8).mean(axis=(1, 3))
            assert np.abs(rows.mask[i].numpy() - cells).max() <= 0.5 + 1e-6
            assert 0 < (rows.mask[i] > 127).float().mean() < 1


def test_pixels_have_the_mask_of_each_pixel(masked, tiny_flux, tmp_path):
    manifest, _ = masked
    config = EncodeConfig(buckets=("128x128", "192x128"), pixels=True, mask="region")
    encode(manifest.path, str(tiny_flux), tmp_path / "pixels", config, "cpu")
    data = EncodedData.open(tmp_path / "pixels")
    assert sum(info.rows for info in data.buckets) == 3
    for bucket, info in enumerate(data.buckets):
        rows = data.read_pixels(bucket, range(info.rows))
        assert rows.mask is not None
        assert (rows.mask.dtype, rows.mask.shape[1:]) == (torch.uint8, (info.height, info.width))
        for uri, found in zip(rows.uris, rows.mask, strict=True):
            mask = cv2.imread(str(manifest.root / uri.replace(".png", "-mask.png")), cv2.IMREAD_GRAYSCALE)
            at = place(*mask.shape, Bucket(info.height, info.width))
            mask = cv2.resize(mask, (at.width, at.height), interpolation=cv2.INTER_AREA)
            mask = mask[at.top : at.top + info.height, at.left : at.left + info.width]
            assert np.abs(found.numpy().astype(int) - mask).max() <= 1
            assert 0 < (found > 127).float().mean() < 1


def test_a_row_without_a_fitting_mask_fails(masked):
    _, data = masked
    failed = Manifest.open(data.path).table(["uri", "reason", "error"], where="status = 'failed'")
    assert failed.to_pylist() == [
        {"uri": "d.png", "reason": "mask", "error": "wrong-mask.png is 64x64 px, and its image 128x128 px"},
        {"uri": "e.png", "reason": "mask", "error": "the row has no mask"},
        {"uri": "f.png", "reason": "mask", "error": failed["error"][2].as_py()},
    ]
    assert failed["error"][2].as_py().startswith("gone.png: ")


def test_a_mask_may_be_the_images_own_alpha(tmp_path, manifest_of, tiny_flux, blobs):
    alpha = np.zeros((128, 144), np.uint8)
    alpha[:, 8 : 8 + 64] = 255
    (tmp_path / "pictures").mkdir()
    bgra = np.dstack([blobs(128, 144, 1), alpha])
    assert cv2.imwrite(str(tmp_path / "pictures" / "a.png"), bgra)
    images = [
        {"name": "a.png", "height": 128, "width": 144},
        {"name": "b.png", "height": 128, "width": 128},
    ]
    manifest = manifest_of(tmp_path, images)
    encode(manifest.path, str(tiny_flux), tmp_path / "e", EncodeConfig(mask="alpha", buckets="square"), "cpu")
    rows = EncodedData.open(tmp_path / "e").read(0, [0, 1])
    assert rows.mask is not None
    # the crop begins at column 8: its left half is opaque
    assert rows.mask[0, :, :8].unique().tolist() == [255]
    assert rows.mask[0, :, 8:].unique().tolist() == [0]
    assert rows.mask[1].unique().tolist() == [255]


def test_an_unknown_mask_column_is_an_error(small_set, tiny_flux, tmp_path):
    with pytest.raises(UserError, match="unknown mask column 'licence': did you mean license"):
        encode(small_set.manifest.path, str(tiny_flux), tmp_path / "e", EncodeConfig(mask="licence"), "cpu")


def test_pixels_are_stored_as_they_are_with_neither_vae_nor_texts(
    small_set, tiny_flux, tmp_path, monkeypatch
):
    def must_not_run(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("uhr.models.zoo.load_vae", must_not_run)
    monkeypatch.setattr("uhr.models.zoo.load_text_encoders", must_not_run)
    config = EncodeConfig(pixels=True, aspects=("1/1", "3/2"))
    info, _ = encode(small_set.manifest.path, str(tiny_flux), tmp_path / "e", config, "cpu")
    assert info.counts["encoded"] == 9
    assert not (tmp_path / "e" / "texts").exists()
    data = EncodedData.open(tmp_path / "e")
    for bucket, shape in enumerate(data.buckets):
        rows = data.read_pixels(bucket, range(shape.rows))
        for i, uri in enumerate(rows.uris):
            crop = cut(rgb_of(small_set.manifest, uri), Bucket(shape.height, shape.width))
            assert np.array_equal(rows.pixels[i].permute(1, 2, 0).numpy(), crop)
    assert sum(map(len, data.select("license = 'CC0'"))) == 6
    with pytest.raises(UserError, match="has pixels and no latents"):
        data.read(0, [0])
    with pytest.raises(UserError, match="has latents and no pixels"):
        EncodedData.open(small_set.folder).read_pixels(0, [0])
    with pytest.raises(ValueError, match="without guide"):
        EncodeConfig(pixels=True, guide=4)


@pytest.fixture
def work_of(tmp_path, manifest_of, tiny_flux):
    """`work_of(**config)`: the work on four images of one bucket, and their items."""
    manifest = manifest_of(
        tmp_path, [{"name": f"{i}.png", "height": 128 + i, "width": 128, "caption": "a"} for i in range(4)]
    )

    def make(**config):
        settings = EncodeConfig(resolution=128, buckets="square", dtype="float32", **config)
        model = open_model(tiny_flux)
        work = ImageWork(ImageTask(model, settings, (Bucket(128, 128),), 8, "v", manifest.source, "cpu"))
        work.open()
        items = manifest.table(["sample_id", "uri", "box", "content_hash", "width", "height"])
        for name in ("mask", "text_keys"):
            items = items.append_column(name, [[None] * 4])
        return work, items.cast(IMAGE_ITEMS)

    return make


def tensors(table):
    return [np.frombuffer(cell, np.float32) for name in ("mean", "std") for cell in table[name].to_pylist()]


def test_what_is_stored_does_not_depend_on_the_images_that_share_a_call(work_of, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr("uhr.models.ops.latents.to_images", lambda x: calls.append(len(x)) or to_images(x))
    work, items = work_of()
    found = {}
    for most in (1, 2, 3, 4):
        monkeypatch.setattr(images_module, "images_together", lambda *_, most=most: most)
        work._together.clear()
        found[most] = work.run(items, Watch())
    assert calls == [1, 1, 1, 1, 2, 2, 3, 1, 4]
    for most in (2, 3, 4):
        assert found[most].drop_columns(["mean", "std"]).equals(found[1].drop_columns(["mean", "std"]))
        for one, two in zip(tensors(found[1]), tensors(found[most]), strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_images_that_do_not_fit_together_are_encoded_alone(work_of, monkeypatch):
    work, items = work_of()
    alone = work.run(items, Watch())
    real, calls = moments, []

    def full(vae, batch):
        calls.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(vae, batch)

    monkeypatch.setattr("uhr.models.vae.codec.moments", full)
    found = work.run(items, Watch())
    assert calls == [4, 1, 1, 1, 1]
    assert found["reason"].null_count == 4
    for one, two in zip(tensors(alone), tensors(found), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "failed"),
    [(images_module.DECODE, [2]), (images_module.TOGETHER, []), (images_module.ALONE, [2])],
)
def test_a_crash_costs_the_image_that_crashed_and_a_shared_call_costs_none(work_of, step, failed):
    """After a crash in a call of several images, each is encoded alone: whose fault it was is not known."""
    work, items = work_of()
    index = 0 if step == images_module.TOGETHER else 2
    faults = {index: UnitFault(CRASH, "crashed (SIGSEGV)", step)}
    if step == images_module.ALONE:
        faults[0] = UnitFault(CRASH, "crashed (SIGSEGV)", images_module.TOGETHER)
    found = work.run(items, Watch(faults)).to_pylist()
    assert [i for i, row in enumerate(found) if row["reason"]] == failed
    for i in failed:
        assert (found[i]["reason"], found[i]["error"]) == (CRASH, "crashed (SIGSEGV)")
        assert found[i]["mean"] is found[i]["latent_key"] is None


def test_an_image_is_decoded_once_for_all_its_patches(tmp_path, manifest_of, tiny_flux, monkeypatch):
    import uhr.pixels.decode

    whole = {"name": "b.png", "height": 300, "width": 420, "caption": "b"}
    boxes = [(0, 0, 128, 128), (10, 20, 250, 130), (100, 100, 130, 200), (150, 50, 128, 128)]
    others = [{"name": name, "height": 150, "width": size} for name, size in (("a.png", 150), ("c.png", 230))]
    manifest = manifest_of(tmp_path, [whole, *({**whole, "box": box} for box in boxes), *others])
    decoded, real = [], uhr.pixels.decode.decode
    monkeypatch.setattr(
        uhr.pixels.decode, "decode", lambda data, **o: decoded.append(data) or real(data, **o)
    )
    monkeypatch.setattr("uhr.train.encode.run.IMAGES_PER_UNIT", 2)
    info, _ = encode(manifest.path, str(tiny_flux), tmp_path / "e", EncodeConfig(), "cpu")
    assert info.counts["encoded"] == 7
    assert len(info.buckets) > 2
    assert len(decoded) == len(set(decoded)) == 3
