"""Encoded data are a manifest: every selected row with its curated columns and its place."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from uhr.base.errors import UserError
from uhr.cli import main
from uhr.manifests.lineage import lineage
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection.options import SliceOptions
from uhr.manifests.selection.slicing import slice_manifest
from uhr.manifests.verify.verification import verify
from uhr.train.data.reader import EncodedData
from uhr.train.encode.buckets import Bucket, place
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.run import encode
from uhr.train.encode.stored.samples import ADDED

IMAGE = {"height": 150, "width": 150}


def test_the_folder_is_a_sound_manifest_of_the_selected_rows_whose_parent_is_the_slice(small_set, capsys):
    result = verify(small_set.folder)
    assert result.faults == []
    assert result.notes == []
    made = Manifest.open(small_set.folder)
    assert made.info.counts == {
        "rows": 10, "kept": 9, "rejected": 0, "failed": 1, "reasons": {"too small": 1},
    }  # fmt: skip
    assert made.id == small_set.info.id
    chain = lineage(small_set.folder)
    assert [(link["role"], link["id"]) for link in chain] == [
        ("", made.id), ("encoded from", small_set.manifest.id),
    ]  # fmt: skip
    for command in ("show", "lineage", "verify"):
        assert main(["manifest", command, str(small_set.folder)]) == 0
    assert "encode: tiny-flux1, 128 px" in capsys.readouterr().out


def test_every_curated_column_is_kept_and_the_place_of_each_image_is_added(small_set):
    made = {row["sample_id"]: row for row in Manifest.open(small_set.folder).table().to_pylist()}
    data = EncodedData.open(small_set.folder)
    for row in small_set.manifest.table(where="status = 'kept'").to_pylist():
        found = made.pop(row["sample_id"])
        if row["uri"] == "j-small.png":
            assert (found["status"], found["reason"]) == ("failed", "too small")
            assert all(found[name] is None for name in ADDED)
            continue
        assert {name: found[name] for name in row} == row
        number = [str(Bucket(b.height, b.width)) for b in data.buckets].index(found["bucket"])
        stored = data.read(number, [found["bucket_row"]])
        assert stored.sample_ids == (row["sample_id"],)
        bucket = Bucket(data.buckets[number].height, data.buckets[number].width)
        expected = place(row["height"], row["width"], bucket)
        assert (found["resized_height"], found["resized_width"]) == expected[:2]
        assert (found["crop_top"], found["crop_left"]) == expected[2:]
    assert made == {}


def test_a_changed_tensor_file_is_found_by_verify(small_set, tmp_path):
    copy = shutil.copytree(small_set.folder, tmp_path / "copy")
    part = small_set.info.buckets[0].parts[0].path
    data = bytearray((copy / part).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / part).write_bytes(data)
    assert [(fault.check, fault.where) for fault in verify(copy).faults] == [("parts", part)]


def test_rows_are_selected_by_a_condition_on_curated_columns(small_set):
    data = EncodedData.open(small_set.folder)
    everything = data.select()
    assert [rows.tolist() for rows in everything] == [list(range(bucket.rows)) for bucket in data.buckets]
    wide = data.select("license = 'CC-BY' AND width > 140")
    found = [(bucket, row) for bucket, rows in enumerate(wide) for row in rows.tolist()]
    assert [data.read(bucket, [row]).uris for bucket, row in found] == [("d-wide.png",)]
    # a null condition selects nothing: e-wide.png has no licence
    without = data.select("license <> 'CC0'")
    assert sum(map(len, without)) == 2
    assert all(rows.dtype == np.int64 for rows in without)
    assert sum(map(len, data.select("true"))) == 9


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("licence = 'CC0'", "unknown column 'licence'"),
        ("width > 3) OR (true", "not an SQL condition"),
        ("width", "not true or false"),
        ("(SELECT true)", "a subquery"),
    ],
)
def test_an_invalid_condition_is_an_error(small_set, where, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        EncodedData.open(small_set.folder).select(where)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, manifest_of, with_columns, tiny_flux):
    """Four images with up to three captions each, encoded."""
    folder = tmp_path_factory.mktemp("captioned")
    captions = ["one", None, "", "shared"]
    plain = manifest_of(
        folder, [{"name": f"{i}.png", **IMAGE, "caption": text} for i, text in enumerate(captions)]
    )
    manifest = with_columns(
        plain, folder / "more", short=["shared", "two", None, "shared"], long=[None, "long two", "", "one"]
    )
    config = EncodeConfig(captions=("caption", "short", "long"), aspects=("1/1",))
    encode(manifest.path, str(tiny_flux), folder / "encoded", config, "cpu")
    return EncodedData.open(folder / "encoded")


def test_every_caption_of_a_row_is_encoded_and_a_text_only_once(captioned):
    parts = captioned.info.texts.parts
    texts = [row for part in parts for row in pq.read_table(captioned.path / part.path).to_pylist()]
    assert [row["caption"] for row in texts] == ["", "one", "shared", "two", "long two"]
    assert captioned.info.counts["without_caption"] == 1
    assert captioned.caption_columns(0, [0, 1, 2, 3]) == ((0, 1), (1, 2), (), (0, 1, 2))


def test_the_caption_of_each_row_is_chosen_by_its_column(captioned):
    first = captioned.read(0, [0, 1, 2, 3])
    assert first.captions == ("one", "two", "", "shared")
    assert first.caption_columns == ((0, 1), (1, 2), (), (0, 1, 2))
    chosen = captioned.read(0, [3, 1, 0, 2], captions=[2, 2, None, None])
    assert chosen.captions == ("one", "long two", "one", "")
    # row 3's long caption is row 0's own: one embedding
    assert torch.equal(chosen.texts["t5"][0], first.texts["t5"][0])
    assert not torch.equal(chosen.texts["t5"][1], first.texts["t5"][1])
    assert torch.equal(first.texts["t5"][2], captioned.empty_texts()["t5"][0])
    with pytest.raises(ValueError, match="has no long"):
        captioned.read(0, [0], captions=[2])


def test_a_caption_column_may_be_given_as_one_name():
    assert EncodeConfig(caption="caption_en").captions == ("caption_en",)
    assert EncodeConfig(captions="caption_en").captions == ("caption_en",)
    with pytest.raises(ValueError, match="both given"):
        EncodeConfig(caption="a", captions=("b",))
    with pytest.raises(ValueError, match="twice"):
        EncodeConfig(captions=("a", "a"))


def test_a_slice_of_encoded_data_can_be_encoded_again(small_set, tiny_flux, tmp_path):
    options = SliceOptions(where="bucket = '128x128' AND license = 'CC0'")
    part = slice_manifest(Manifest.open(small_set.folder), tmp_path / "slice", options)
    info, _ = encode(part.path, str(tiny_flux), tmp_path / "again", EncodeConfig(), "cpu")
    assert info.counts["encoded"] == 4
    assert verify(tmp_path / "again").faults == []
    assert [link["id"] for link in lineage(tmp_path / "again")][1:] == [
        part.id, small_set.info.id, small_set.manifest.id,
    ]  # fmt: skip


def old_folder(small_set, folder):
    """The folder as version 1 wrote it: one `text_key` per row, no manifest, a file of what was left out."""
    shutil.copytree(small_set.folder, folder)
    shutil.rmtree(folder / "samples")
    (folder / "manifest.json").unlink()
    tree = json.loads((folder / "encoded.json").read_text())
    for bucket in tree["buckets"]:
        for part in bucket["parts"]:
            table = pq.read_table(folder / part["path"])
            keys = [key or tree["texts"]["empty_key"] for (key,) in table["text_keys"].to_pylist()]
            table = table.drop_columns("text_keys").append_column("text_key", pa.array(keys))
            pq.write_table(
                table, folder / part["path"], row_group_size=bucket["group_rows"], write_page_checksum=True
            )
            part["bytes"] = (folder / part["path"]).stat().st_size
    kept = ("resolution", "aspects", "enlarge", "dtype", "text_dtype", "split")
    tree["config"] = {name: tree["config"][name] for name in kept} | {"caption": "caption"}
    pq.write_table(pa.table({"sample_id": ["x"]}), folder / "left_out.parquet")
    size = (folder / "left_out.parquet").stat().st_size
    tree["left_out"]["part"] = {"path": "left_out.parquet", "rows": 1, "bytes": size, "sha256": ""}
    del tree["samples"]
    (folder / "encoded.json").write_text(json.dumps(tree | {"schema_version": 1}))
    return folder


def test_a_folder_of_version_1_is_still_read(small_set, tmp_path):
    old, new = EncodedData.open(old_folder(small_set, tmp_path / "old")), EncodedData.open(small_set.folder)
    for bucket, info in enumerate(new.buckets):
        one, two = (data.read(bucket, range(info.rows)) for data in (old, new))
        assert one.captions == two.captions
        assert one.caption_columns == two.caption_columns
        assert torch.equal(one.mean, two.mean)
        assert torch.equal(one.texts["t5"], two.texts["t5"])
    assert sum(map(len, old.select())) == 9
    with pytest.raises(UserError, match="without its curated columns: encode again"):
        old.select("width > 3")


def test_a_commit_that_was_killed_is_repeated_with_the_same_result(
    small_set, tiny_flux, tmp_path, monkeypatch
):
    import contextlib

    from uhr.train.encode import commit

    def killed(*_):
        raise KeyboardInterrupt

    arguments = (
        small_set.manifest.path,
        str(tiny_flux),
        tmp_path / "e",
        EncodeConfig(aspects=("1/1", "3/2")),
    )
    with monkeypatch.context() as patched:
        # a process that is killed cleans nothing up
        patched.setattr(commit, "all_or_nothing", lambda _: contextlib.nullcontext())
        patched.setattr(commit, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(*arguments, "cpu")
    assert {path.name for path in (tmp_path / "e").iterdir()} == {
        "latents", "texts", "samples", "manifest.json", "units",
    }  # fmt: skip
    with pytest.raises(UserError, match="not fully encoded"):
        EncodedData.open(tmp_path / "e")
    info, was_finished = encode(*arguments, "cpu")
    assert not was_finished
    assert info.id == small_set.info.id
    assert verify(tmp_path / "e").faults == []


def test_a_report_of_encoded_data_is_written_beside_them(small_set, tmp_path):
    copy = shutil.copytree(small_set.folder, tmp_path / "copy")
    assert main(["manifest", "report", str(copy)]) == 0
    assert "too small" in (copy / "report.html").read_text()
    assert EncodedData.open(copy).info == small_set.info
