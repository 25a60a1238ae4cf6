"""Parquet tables of images: bytes, structs of `datasets.Image`, and paths, read a row at a time."""

from __future__ import annotations

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uhr.base.errors import UserError
from uhr.manifests import sources
from uhr.manifests.sources import parquet_images
from uhr.pixels.types import PixelFault


@pytest.fixture(scope="module")
def images(forge) -> list[bytes]:
    return [forge.encode(forge.image(60 + n, 40, seed=n), "JPEG") for n in range(7)]


@pytest.fixture
def table(tmp_path, images):
    """A table of seven images in row groups of three, one of them null."""
    cells = [*images[:5], None, images[6]]
    path = tmp_path / "t" / "part.parquet"
    path.parent.mkdir()
    columns = {"image": cells, "text": [f"image {n}" for n in range(7)], "width": range(60, 67)}
    pq.write_table(pa.table({k: pa.array(list(v)) for k, v in columns.items()}), path, row_group_size=3)
    return path


@pytest.mark.parametrize("held", [1, 2**20])
def test_rows_are_opened_in_any_order(table, images, monkeypatch, held):
    monkeypatch.setattr(parquet_images, "HELD", held)
    source = sources.parse(f"parquet:{table}")
    items = source.list().items.to_pylist()
    assert [item["uri"] for item in items] == [f"part.parquet/{n:08d}" for n in range(7)]
    assert [item["stated_width"] for item in items] == list(range(60, 67))
    assert json.loads(items[2]["given"])["text"] == "image 2"
    for n in (0, 1, 6, 2, 4, 3, 6, 0):
        blob = source.open(items[n])
        assert blob.read() == images[n]
        assert blob.header().width == 60 + n
        assert source.open({"uri": items[n]["uri"]}).size == len(images[n])
    with pytest.raises(PixelFault, match="has no image in this row"):
        source.open(items[5]).read()
    again = pickle.loads(pickle.dumps(source))
    assert again.open(items[6]).read() == images[6]
    assert sources.build(source.origin, "manifest.json").open(items[1]).read() == images[1]


def test_a_set_that_datasets_wrote_is_read(tmp_path, images):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [
        {"image": {"bytes": data, "path": f"{n}.jpg"}, "caption": f"c{n}"} for n, data in enumerate(images)
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "train-00000.parquet"))
    source = sources.parse(f"parquet:{tmp_path}")
    items = source.list().items.to_pylist()
    assert [source.open(item).read() for item in items] == images
    assert json.loads(items[3]["given"]) == {"caption": "c3"}


def test_paths_are_relative_to_the_table_or_to_root(tmp_path, images):
    (tmp_path / "photos").mkdir()
    for n, data in enumerate(images[:2]):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes(data)
    names = ["0.jpg", "1.jpg", "gone.jpg", None, "0.jpg"]
    pq.write_table(pa.table({"path": names, "caption": list("abcde")}), tmp_path / "list.parquet")
    tree = {"kind": "parquet", "path": str(tmp_path / "list.parquet"), "root": str(tmp_path / "photos")}
    source = sources.build(tree, "p.yaml")
    rows = {row["uri"]: row for row in source.list().items.to_pylist()}
    assert {uri: row["fault"] for uri, row in rows.items()} == {
        "0.jpg": None,
        "0.jpg#2": None,
        "1.jpg": None,
        "gone.jpg": "unreadable",
        "list.parquet/00000003": "unreadable",
    }
    assert source.open(rows["1.jpg"]).read() == source.open({"uri": "1.jpg"}).read() == images[1]
    assert source.open(rows["0.jpg#2"]).read() == images[0]
    (tmp_path / "photos" / "1.jpg").write_bytes(b"another")
    with pytest.raises(PixelFault, match="the file changed"):
        source.open(rows["1.jpg"]).read()


def test_paths_of_any_characters_are_opened(tmp_path, images):
    names = ["a#1.jpg", "a.jpg", "a.jpg#2", "a.jpg%232", "b?c.jpg", "50%.jpg", "#5/ü [1].jpg"]
    for name, data in zip(names, images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    pq.write_table(pa.table({"path": [*names, "a.jpg", "a.jpg#2"]}), tmp_path / "l#1?[2].parquet")
    source = sources.parse(f"parquet:{tmp_path / 'l#1?[2].parquet'}")
    read = {item["uri"]: source.open(item).read() for item in source.list().items.to_pylist()}
    uris = ["a#1.jpg", "a.jpg", "a.jpg%232", "a.jpg%25232", "b?c.jpg", "50%25.jpg", "#5/ü [1].jpg"]
    again = {"a.jpg#2": images[1], "a.jpg%232#2": images[2]}
    assert read == dict(zip(uris, images, strict=True)) | again


def test_a_table_that_was_replaced_after_the_listing_is_a_fault(table, images):
    source = sources.parse(f"parquet:{table}")
    item = source.list().items.to_pylist()[0]
    pq.write_table(pa.table({"image": [images[1]]}), table)
    with pytest.raises(PixelFault, match="the file changed during the run: its table is another one now"):
        source.open(item).read()
    assert source.open({"uri": item["uri"]}).read() == images[1]
    with pytest.raises(PixelFault, match="it has 1 rows"):
        source.open({"uri": "part.parquet/00000003"}).read()


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": ["x"]}, {}, "has no column file_name or"),
        ({"url": ["http://e.org"]}, {}, "a table of URLs is urls:"),
        ({"a": ["x"]}, {"image": "b"}, "unknown column 'b'"),
        ({"a": ["x"]}, {"image": "a"}, "column a of .* has no bytes"),
        ({"image": pa.array([], pa.binary())}, {}, "has no row"),
        ({"image": pa.array([[b"x"]], pa.list_(pa.binary()))}, {}, "has no column file_name or"),
        ({"image": pa.array([b"abcd"], pa.binary(4))}, {}, "has no column file_name or"),
    ],
)
def test_a_table_without_images_is_one_line(tmp_path, columns, options, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = sources.build({"kind": "parquet", "path": str(tmp_path / "t.parquet"), **options}, "p.yaml")
    with pytest.raises(UserError, match=message) as error:
        source.list()
    assert "\n" not in str(error.value)


def test_a_path_in_two_tables_is_two_rows(tmp_path, images):
    (tmp_path / "0.jpg").write_bytes(images[0])
    for name in ("a", "b"):
        pq.write_table(pa.table({"path": ["0.jpg"]}), tmp_path / f"{name}.parquet")
    assert sources.parse(f"parquet:{tmp_path}").list().items["uri"].to_pylist() == ["0.jpg", "0.jpg#2"]


@pytest.mark.parametrize(
    "kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_bytes_of_every_type_are_read_and_are_no_metadata(tmp_path, images, kind):
    others = pa.array([[b"12"]], pa.list_(pa.binary()))
    table = pa.table({"image": pa.array(images[:1], pa.binary()).cast(kind), "others": others})
    pq.write_table(table, tmp_path / "t.parquet")
    source = sources.parse(f"parquet:{tmp_path / 't.parquet'}")
    (row,) = source.list().items.to_pylist()
    assert (source.open(row).read(), row["given"]) == (images[0], None)


def test_two_columns_of_one_name_are_refused(tmp_path, images):
    columns = [pa.array(images[:1]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "c", "c"]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="it has two columns 'c'"):
        sources.parse(f"parquet:{tmp_path / 't.parquet'}").list()


@pytest.mark.parametrize("held", [1, 2**20])
def test_threads_read_the_rows_of_two_tables_at_the_same_time(tmp_path, images, monkeypatch, held):
    """As `manifest verify --pixels` and `manifest export` do."""
    monkeypatch.setattr(parquet_images, "HELD", held)
    for part in range(2):
        table = pa.table({"image": [b"%d" % part + data for data in images]})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=3)
    source = sources.parse(f"parquet:{tmp_path}")
    items = source.list().items.to_pylist()
    rows = [n * 5 % len(items) for n in range(40 * len(items))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda n: source.open(items[n]).read(), rows))
    finally:
        sys.setswitchinterval(interval)
    assert read == [b"%d" % (n // 7) + images[n % 7] for n in rows]
