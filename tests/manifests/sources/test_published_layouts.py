"""Published sets are read in their own layout, as are the outputs of img2dataset and `datasets`."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.base.errors import UserError
from uhr.curate.sidecars import DEFAULT_KEYS, read_sidecars
from uhr.manifests import sources
from uhr.manifests.sources.blobs import MemoryBlob
from uhr.pixels.types import PixelFault


@pytest.fixture(scope="module")
def image(forge) -> bytes:
    return forge.encode(forge.image(64, 48), "JPEG")


def rows_of(source) -> list[dict]:
    """The items of a source, with the values that curation takes of their tables and sidecars."""
    found = []
    for row in source.list().items.to_pylist():
        files = [("given.json", MemoryBlob(row["given"].encode()))] if row.get("given") else []
        versions = (row["sidecar_versions"] or "").split(",")
        for uri, version in zip(row["sidecars"] or (), versions, strict=False):
            files.append((uri.rpartition("/")[2], source.open({"uri": uri, "source_version": version})))
        found.append({**row, **read_sidecars(files, DEFAULT_KEYS).values})
    return found


def test_pd12m(tmp_path):
    row = {
        "id": "1",
        "url": "https://e.org/1.jpg",
        "s3_key": "images/1.jpg",
        "caption": "a lake",
        "hash": "abc",
        "width": 5000,
        "height": 3333,
        "mime_type": "image/jpeg",
        "license": "https://creativecommons.org/publicdomain/zero/1.0/",
        "source": "a museum",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "part-0.parquet")
    (found,) = rows_of(sources.parse(f"urls:{tmp_path}"))
    assert (found["uri"], found["stated_width"], found["stated_height"]) == (row["url"], 5000, 3333)
    assert (found["caption"], found["license"]) == ("a lake", row["license"])
    assert json.loads(found["source_meta"])["s3_key"] == "images/1.jpg"


def test_multi_aspect_4k(tmp_path):
    for number in range(2):
        record = {
            "image_url": f"https://e.org/{number}.jpg",
            "en_caption": "a lake",
            "photographer": "Ada",
            "qalign_score": 4.5,
        }
        (tmp_path / f"{number}.json").write_text(json.dumps([record]))
    (tmp_path / "LICENSE.txt").write_text("no list of URLs")
    rows = rows_of(sources.parse(f"urls:{tmp_path}"))
    assert [row["uri"] for row in rows] == ["https://e.org/0.jpg", "https://e.org/1.jpg"]
    assert (rows[0]["caption"], rows[0]["author"]) == ("a lake", "Ada")
    assert json.loads(rows[0]["source_meta"]) == {"qalign_score": 4.5}


def test_aesthetic_4k(tmp_path, image):
    folder = tmp_path / "eval" / "size_4096"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(image)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.jpg", "text": "a lake"}))
    (row,) = rows_of(sources.parse(str(tmp_path)))
    assert (row["uri"], row["caption"]) == ("eval/size_4096/0.jpg", "a lake")


def test_img2dataset(tmp_path, image):
    facts = {"caption": "a lake", "url": "https://e.org/1.jpg", "key": "000000001", "status": "success"}
    files = {"jpg": image, "txt": b"a lake", "json": json.dumps(facts).encode()}
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for suffix, data in files.items():
            info = tarfile.TarInfo(f"000000001.{suffix}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    pq.write_table(pa.Table.from_pylist([facts]), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    (row,) = rows_of(sources.parse(f"webdataset:{tmp_path}"))
    assert (row["uri"], row["caption"]) == ("00000.tar/000000001.jpg", "a lake")
    assert row["source_url"] == "https://e.org/1.jpg"


@pytest.mark.parametrize("form", ["save_to_disk", "dict", "parquet", "imagefolder"])
def test_data_sets_of_hugging_face(tmp_path, image, monkeypatch, form):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "set"
    cells = {"image": [{"bytes": image, "path": None}, None], "text": ["a lake", "nothing"], "width": [64, 1]}
    features = {"image": datasets.Image(), "text": datasets.Value("string"), "width": datasets.Value("int32")}
    made = datasets.Dataset.from_dict(cells, features=datasets.Features(features))
    if form == "save_to_disk":
        made.save_to_disk(str(place))
    elif form == "dict":
        datasets.DatasetDict({"train": made}).save_to_disk(str(place))
    elif form == "parquet":
        (place / "data").mkdir(parents=True)
        made.to_parquet(str(place / "data" / "train-00000-of-00001.parquet"))
    else:
        (place / "train").mkdir(parents=True)
        (place / "train" / "0.jpg").write_bytes(image)
        (place / "train" / "metadata.jsonl").write_text(
            '{"file_name": "0.jpg", "text": "a lake", "width": 64}'
        )
    source = sources.parse(f"hf:{place}")
    rows = rows_of(source)
    assert (rows[0]["uri"], rows[0]["caption"], rows[0]["stated_width"]) == ("train/00000000", "a lake", 64)
    for opened in (source, pickle.loads(pickle.dumps(source)), sources.build(source.origin, "m.json")):
        assert opened.open({"uri": rows[0]["uri"]}).read() == image
    if form != "imagefolder":
        with pytest.raises(PixelFault, match="no image in this row"):
            source.open(rows[1]).read()
    with pytest.raises(PixelFault, match="has no row 00000009"):
        source.open({"uri": "train/00000009"}).read()


def test_a_data_set_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = datasets.Dataset.from_dict({"text": ["a"]})
    made.save_to_disk(str(tmp_path / "set"))
    for place, message in (
        (tmp_path / "set", "has 0 columns of images"),
        (tmp_path / "no", "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=message) as error:
            sources.parse(f"hf:{place}").list()
        assert "\n" not in str(error.value)


def test_columns_beside_the_image_of_a_data_set_are_plain_values(tmp_path, image):
    cell = {"bytes": image, "path": None}
    cells = {
        "image": [cell],
        "thumb": [cell],
        "original_width": [4000],
        "width": [64],
        "kind": [1],
        "size": [[2, 3]],
    }
    features = {
        "image": datasets.Image(), "thumb": datasets.Image(), "original_width": datasets.Value("int32"),
        "width": datasets.Value("int32"), "kind": datasets.ClassLabel(names=["a", "b"]),
        "size": datasets.Sequence(datasets.Value("int64")),
    }  # fmt: skip
    made = datasets.Dataset.from_dict(cells, features=datasets.Features(features))
    made.save_to_disk(str(tmp_path / "set"))
    made.to_parquet(str(tmp_path / "set.parquet"))
    tree = {"path": str(tmp_path / "set"), "image": "image"}
    for source in (
        sources.build({"kind": "hf", **tree}, "test"),
        sources.build({"kind": "parquet", **tree, "path": str(tmp_path / "set.parquet")}, "test"),
    ):
        items = source.list().items
        assert items["stated_width"].to_pylist() == [64], "of the image in the table, not of its original"
        given = json.loads(items["given"][0].as_py())
        assert given == {"original_width": 4000, "width": 64, "kind": 1, "size": [2, 3]}
