import contextlib
import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import uhr.train.encode.run as encode_module
from uhr.base.errors import UserError
from uhr.manifests.manifest import Manifest
from uhr.models.families.flux1 import Flux1
from uhr.models.vae.codec import encode_moments
from uhr.models.zoo import Prompt, load_text_encoders, load_vae
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.stored.encoded import read_encoded
from uhr.train.encode.stored.tensors import stacked
from uhr.train.encode.work.images import ImageWork
from uhr.train.encode.work.source import cut
from uhr.train.encode.work.texts import TextWork


def rows_of(folder, kind):
    return [
        row for file in sorted((folder / kind).glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def left_out_of(folder):
    rows = Manifest.open(folder).table(["uri", "sample_id", "reason", "error"], where="status = 'failed'")
    return rows.sort_by([("uri", "ascending"), ("sample_id", "ascending")]).to_pylist()


def test_every_kept_image_is_encoded_or_left_out_with_a_reason(small_set):
    info = small_set.info
    assert info.counts == {
        "selected": 10,
        "encoded": 9,
        "left_out": 1,
        "without_caption": 1,
        "reused": 0,
        "reused_captions": 0,
    }
    (left,) = left_out_of(small_set.folder)
    assert (left["uri"], left["reason"]) == ("j-small.png", "too small")
    assert "60x60" in left["error"]
    assert "128x128" in left["error"]
    (reason,) = info.left_out.reasons
    assert (reason.reason, reason.rows) == ("too small", 1)
    assert [(example.uri, example.error) for example in reason.examples] == [(left["uri"], left["error"])]
    assert info.licences == {"CC0": 6, "CC-BY": 2, "not stated": 1}
    assert info.manifest.id == small_set.manifest.id
    assert read_encoded(small_set.folder) == info


def test_a_part_holds_one_bucket_in_small_row_groups(small_set):
    assert [(b.height, b.width, b.rows) for b in small_set.info.buckets] == [
        (160, 112, 2), (128, 128, 5), (112, 160, 2),
    ]  # fmt: skip
    for bucket in small_set.info.buckets:
        for part in bucket.parts:
            file = pq.ParquetFile(small_set.folder / part.path)
            assert part.path.startswith(f"latents/{bucket.width}x{bucket.height}-")
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            assert max(groups) <= bucket.group_rows <= 64
            assert sum(groups) == part.rows


def test_every_row_has_its_own_latents_and_its_own_caption(small_set, tiny_flux):
    # the oracle: each image and caption encoded alone, straight from the manifest
    vae = load_vae(tiny_flux)
    encoders = load_text_encoders(tiny_flux, "bfloat16")
    texts = {row["text_key"]: row for row in rows_of(small_set.folder, "texts")}
    found = rows_of(small_set.folder, "latents")
    assert len(found) == 9
    for row in found:
        source = small_set.manifest.row(row["sample_id"])
        assert source["uri"] == row["uri"]
        rgb = _pixels(small_set.manifest.root / row["uri"])
        (bucket,) = (b for b in small_set.info.buckets if _holds(small_set, b, row))
        mean, std = encode_moments(
            vae, np.ascontiguousarray(cut(rgb, Bucket(bucket.height, bucket.width)))[None]
        )
        shape = small_set.info.latent_shape(bucket)
        assert torch.equal(stacked([row["mean"]], shape, "bfloat16")[0], mean[0].bfloat16())
        assert torch.equal(stacked([row["std"]], shape, "bfloat16")[0], std[0].bfloat16())
        caption = source["caption"] or ""
        (key,) = row["text_keys"]
        assert (key is None) == (not caption)
        text = texts[key or small_set.info.texts.empty_key]
        assert text["caption"] == caption
        for name, tensor in Flux1().embed(encoders, Prompt(caption)).texts.items():
            shape = small_set.info.geometry.text_shapes[name]
            assert torch.equal(stacked([text[name]], shape, "bfloat16")[0], tensor[0])


def _pixels(path):
    import cv2

    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def _holds(small_set, bucket, row):
    return any(
        row["sample_id"]
        in pq.read_table(small_set.folder / part.path, columns=["sample_id"])["sample_id"].to_pylist()
        for part in bucket.parts
    )


def test_captions_are_encoded_once_and_the_empty_one_always(small_set):
    captions = [row["caption"] for row in rows_of(small_set.folder, "texts")]
    assert len(captions) == len(set(captions)) == small_set.info.texts.rows == 8
    assert captions[0] == ""
    assert rows_of(small_set.folder, "texts")[0]["text_key"] == small_set.info.texts.empty_key


def test_truncated_captions_are_counted(small_set):
    # only the 600 letters are more than T5's 512 tokens; the tiny CLIP spends one token per letter
    assert small_set.info.texts.truncated == {"t5": 1, "clip": 1}


def test_an_image_of_its_buckets_size_keeps_every_pixel():
    checkerboard = np.indices((128, 160)).sum(0)[..., None].repeat(3, -1).astype(np.uint8) % 2 * 255
    assert np.array_equal(cut(checkerboard, Bucket(128, 160)), checkerboard)
    wider = np.pad(checkerboard, ((0, 0), (6, 6), (0, 0)))
    assert np.array_equal(cut(wider, Bucket(128, 160)), checkerboard)


def test_encoding_again_says_so_and_runs_no_model(small_set, tiny_flux, monkeypatch):
    monkeypatch.setattr(ImageWork, "open", _must_not_run)
    monkeypatch.setattr(TextWork, "open", _must_not_run)
    config = EncodeConfig(aspects=("1/1", "3/2"))
    info, stood = encode(small_set.manifest.path, str(tiny_flux), small_set.folder, config)
    assert stood
    assert info == small_set.info


def _must_not_run(self):
    raise AssertionError("a model was loaded")


def test_another_configuration_is_refused_where_encoded_data_exists(small_set, tiny_flux):
    with pytest.raises(UserError, match=r"another aspects, another dtype: name another folder with --out"):
        encode(small_set.manifest.path, str(tiny_flux), small_set.folder, EncodeConfig(dtype="float32"))


def test_an_interrupted_encode_goes_on_and_ends_with_the_same_bytes(
    small_set, tiny_flux, tmp_path, monkeypatch
):
    monkeypatch.setattr(encode_module, "IMAGES_PER_UNIT", 3)
    runs = []
    straight = ImageWork.run

    def interrupted(self, items, watch):
        runs.append(items["uri"].to_pylist())
        if len(runs) == 3:
            raise KeyboardInterrupt
        return straight(self, items, watch)

    monkeypatch.setattr(ImageWork, "run", interrupted)
    arguments = (
        small_set.manifest.path,
        str(tiny_flux),
        tmp_path / "encoded",
        EncodeConfig(aspects=("1/1", "3/2")),
    )
    with pytest.raises(KeyboardInterrupt):
        encode(*arguments, device="cpu")
    with pytest.raises(UserError, match="not fully encoded"):
        read_encoded(tmp_path / "encoded")
    monkeypatch.setattr(TextWork, "open", _must_not_run)
    info, _ = encode(*arguments, device="cpu")
    assert len(runs) == 3 + 2  # of four units two were finished
    assert runs[2] == runs[3]
    assert info.id == small_set.info.id
    assert not (tmp_path / "encoded" / "units").exists()


@pytest.fixture
def four(tmp_path, manifest_of):
    """Three images and a patch of one; `tmp_path/encoded` is free."""
    return manifest_of(
        tmp_path,
        [
            {"name": "a.png", "height": 150, "width": 150, "caption": "a"},
            {"name": "b.png", "height": 60, "width": 70, "caption": "b", "known_size": False},
            {"name": "c.png", "height": 300, "width": 400, "caption": "c"},
            {"name": "c.png", "height": 300, "width": 400, "caption": "c", "box": (100, 20, 130, 128)},
        ],
    )


def test_enlarge_takes_what_is_too_small(four, tiny_flux, tmp_path):
    info, _ = encode(four.path, str(tiny_flux), tmp_path / "encoded", EncodeConfig(enlarge=True), "cpu")
    assert info.counts["encoded"] == 4


def test_a_patch_is_encoded_from_its_box(four, tiny_flux, tmp_path):
    config = EncodeConfig(aspects=("1/1",), dtype="float32")
    encode(four.path, str(tiny_flux), tmp_path / "encoded", config, "cpu")
    patches = [row for row in rows_of(tmp_path / "encoded", "latents") if four.row(row["sample_id"])["box"]]
    (patch,) = patches
    crop = _pixels(four.root / "c.png")[20:148, 101:229]  # 130 px wide: one off at each side
    mean, _ = encode_moments(load_vae(tiny_flux), np.ascontiguousarray(crop)[None])
    assert torch.equal(stacked([patch["mean"]], (16, 16, 16), "float32")[0], mean[0])


def test_an_image_that_changed_or_vanished_or_broke_is_left_out(four, tiny_flux, tmp_path):
    (four.root / "a.png").write_bytes((four.root / "a.png").read_bytes() + b"more")
    (four.root / "b.png").unlink()
    encode(four.path, str(tiny_flux), tmp_path / "encoded", EncodeConfig(), "cpu")
    found = left_out_of(tmp_path / "encoded")
    assert [(left["uri"], left["reason"]) for left in found] == [
        ("a.png", "changed"),
        ("b.png", "unreadable"),
    ]


def test_an_image_of_another_size_than_its_row_says_is_left_out_where_no_hash_is_known(
    tmp_path, manifest_of, tiny_flux, blobs, save
):
    images = [
        {"name": f"{name}.png", "height": 150, "width": 150, "caption": name, "known_hash": False}
        for name in ("a", "b")
    ]
    manifest = manifest_of(tmp_path, images)
    save(manifest.root / "a.png", blobs(200, 260, 7))
    info, _ = encode(manifest.path, str(tiny_flux), tmp_path / "encoded", EncodeConfig(), "cpu")
    assert info.counts["encoded"] == 1
    ((reason, error),) = [(left["reason"], left["error"]) for left in left_out_of(tmp_path / "encoded")]
    assert reason == "changed"
    assert error.endswith("260x200 px, and the manifest says 150x150")


def test_an_image_that_is_written_while_it_is_read_is_left_out(tmp_path, manifest_of, tiny_flux, monkeypatch):
    import uhr.pixels.decode

    image = {"name": "a.png", "height": 150, "width": 150, "caption": "a", "known_hash": False}
    manifest = manifest_of(tmp_path, [image, {**image, "name": "b.png"}])
    check = uhr.pixels.decode.check_bytes

    def written_meanwhile(size, limits):
        file = manifest.root / "a.png"
        if size == file.stat().st_size:
            file.write_bytes(file.read_bytes() + b"more")
        check(size, limits)

    monkeypatch.setattr(uhr.pixels.decode, "check_bytes", written_meanwhile)
    encode(manifest.path, str(tiny_flux), tmp_path / "encoded", EncodeConfig(), "cpu")
    (left,) = left_out_of(tmp_path / "encoded")
    assert (left["uri"], left["reason"]) == ("a.png", "changed")
    assert "when reading began" in left["error"]


def test_a_box_outside_its_image_costs_its_row(tmp_path, manifest_of, tiny_flux):
    image = {"name": "a.png", "height": 150, "width": 150, "caption": "a", "known_hash": False}
    manifest = manifest_of(tmp_path, [image, {**image, "box": (30, 0, 128, 128)}])
    info, _ = encode(manifest.path, str(tiny_flux), tmp_path / "encoded", EncodeConfig(), "cpu")
    assert info.counts["encoded"] == 1
    assert [(left["reason"], left["error"]) for left in left_out_of(tmp_path / "encoded")] == [
        ("changed", "its box [30, 0, 128, 128] is not inside 150x150 px")
    ]


def test_latents_that_are_not_finite_are_left_out_by_name(four, tiny_flux, tmp_path):
    broken = tmp_path / "broken model"
    shutil.copytree(tiny_flux, broken)
    (file,) = (broken / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["encoder.conv_out.bias"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"none of the 4 images can be encoded \(3 not finite, 1 too small\); a.png"
    ):
        encode(four.path, str(broken), tmp_path / "encoded", EncodeConfig(), "cpu")


@pytest.mark.parametrize(
    ("part", "weight"),
    [
        ("text_encoder", "encoder.layers.0.mlp.fc1.weight"),
        ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("vae", "encoder.conv_in.weight"),
    ],
)
def test_nothing_is_encoded_by_a_model_that_lacks_weights(four, tiny_flux, tmp_path, part, weight):
    model, out = shutil.copytree(tiny_flux, tmp_path / "model"), tmp_path / "encoded"
    (file,) = (model / part).glob("*.safetensors")
    state = load_file(file)
    del state[weight]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{part} of .* lacks {re.escape(weight)}: download it again"):
        encode(four.path, str(model), out, EncodeConfig(), "cpu")
    assert not (out / "encoded.json").exists()


def test_values_beyond_the_stored_dtype_are_left_out(four, tiny_flux, tmp_path):
    loud = tmp_path / "loud model"
    shutil.copytree(tiny_flux, loud)
    (file,) = (loud / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["encoder.conv_out.bias"][0] = 1e5
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"3 not finite.*beyond the range of float16"):
        encode(four.path, str(loud), tmp_path / "encoded", EncodeConfig(dtype="float16"), "cpu")
    info, _ = encode(four.path, str(loud), tmp_path / "other", EncodeConfig(dtype="bfloat16"), "cpu")
    assert info.counts["encoded"] == 3


def test_only_rows_of_the_split_are_encoded(tmp_path, manifest_of, tiny_flux):
    from uhr.cli import main

    names = [f"{i:02d}.png" for i in range(8)]
    manifest = manifest_of(tmp_path, [{"name": n, "height": 130, "width": 130, "caption": n} for n in names])
    code = main(
        [
            "manifest",
            "slice",
            str(manifest.path),
            "--split",
            "train=0.5,val=0.5",
            "--out",
            str(tmp_path / "s"),
        ]
    )
    assert code == 0
    encode(tmp_path / "s", str(tiny_flux), tmp_path / "train", EncodeConfig(), "cpu")
    encode(tmp_path / "s", str(tiny_flux), tmp_path / "val", EncodeConfig(split="val"), "cpu")
    seen = [{row["uri"] for row in rows_of(tmp_path / part, "latents")} for part in ("train", "val")]
    assert seen[0] | seen[1] == set(names)
    assert not seen[0] & seen[1]
    with pytest.raises(UserError, match="no kept row of split 'test': its splits are train, val"):
        encode(tmp_path / "s", str(tiny_flux), tmp_path / "test", EncodeConfig(split="test"), "cpu")


def test_a_split_that_the_manifest_does_not_have_is_an_error(four, tiny_flux, tmp_path):
    with pytest.raises(UserError, match="has no column 'split'"):
        encode(four.path, str(tiny_flux), tmp_path / "encoded", EncodeConfig(split="val"), "cpu")


def test_an_unknown_caption_column_names_the_nearest(four, tiny_flux, tmp_path):
    with pytest.raises(UserError, match="unknown caption column 'captoin': did you mean caption"):
        encode(four.path, str(tiny_flux), tmp_path / "encoded", EncodeConfig(captions=("captoin",)))


def test_half_written_damaged_and_newer_folders_are_refused(small_set, tmp_path):
    with pytest.raises(UserError, match="contains no encoded data"):
        read_encoded(tmp_path)
    # the manifest is what has to be encoded, not where to
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "manifest.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"plain is a manifest that is not encoded: `uhr train encode .*plain"
    ):
        read_encoded(tmp_path / "plain")
    copy = tmp_path / "copy"
    shutil.copytree(small_set.folder, copy)
    file = copy / small_set.info.buckets[0].parts[0].path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="does not have the size"):
        read_encoded(copy)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        read_encoded(copy)
    tree = json.loads((copy / "encoded.json").read_text())
    (copy / "encoded.json").write_text(json.dumps({**tree, "schema_version": 3}))
    with pytest.raises(UserError, match="install a newer uhr"):
        read_encoded(copy)


def test_each_image_is_shown_as_it_is_done(manifest_of, tiny_flux, tmp_path, monkeypatch):
    heard: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def progress(description, total, unit=""):
        yield lambda n=1, note=None, total=None: heard.setdefault(description, []).append(n)

    monkeypatch.setattr("uhr.train.encode.run.progress", progress)
    # one unit of images of three sizes, of which no two go through the VAE together
    images = [{"name": f"{side}.png", "height": 64, "width": side} for side in (64, 96, 128)]
    config = EncodeConfig(buckets=("64x64", "96x64", "128x64"))
    encode(manifest_of(tmp_path, images).path, str(tiny_flux), tmp_path / "out", config, device="cpu")
    assert [n for n in heard["encode images"] if n] == [1, 1, 1]
