import pyarrow as pa

from uhr.train.encode.buckets import buckets, choose
from uhr.train.encode.config import EncodeConfig
from uhr.train.encode.work.items import caption_items, image_items

SIZES = buckets(1024, EncodeConfig().aspects, 16)
ROWS = [
    {"sample_id": "1", "uri": "b", "box": None, "width": 4000, "height": 3000, "caption": "one"},
    {"sample_id": "2", "uri": "a", "box": None, "width": None, "height": None, "caption": None},
    {"sample_id": "4", "uri": "c", "box": [0, 0, 3000, 4000], "width": 9, "height": 9, "caption": "two"},
    {"sample_id": "3", "uri": "c", "box": [0, 5, 4000, 3000], "width": 9, "height": 9, "caption": "one"},
    {"sample_id": "5", "uri": "a", "box": None, "width": 3000, "height": 4000, "caption": ""},
]


def table(rows):
    strings = [(name, pa.string()) for name in ("sample_id", "uri", "content_hash", "caption")]
    numbers = [("box", pa.list_(pa.int32(), 4)), ("width", pa.int32()), ("height", pa.int32())]
    return pa.Table.from_pylist(rows, pa.schema([*strings, *numbers]))


def expected(rows, with_sizes=True):
    def key(row):
        width, height = row["box"][2:] if row["box"] else (row["width"], row["height"])
        known = width and (with_sizes or row["box"])
        return SIZES.index(choose(height, width, SIZES)) if known else len(SIZES)

    first = {row["uri"]: min(key(other) for other in rows if other["uri"] == row["uri"]) for row in rows}
    order = sorted(rows, key=lambda row: (first[row["uri"]], row["uri"], key(row), row["sample_id"]))
    return [row["sample_id"] for row in order]


def test_images_go_by_bucket_then_address_with_all_of_an_address_together():
    for names in (None, ["sample_id", "uri", "content_hash", "caption", "box"]):
        rows = table(ROWS) if names is None else table(ROWS).select(names)
        rows = pa.concat_tables([rows.slice(0, 2), rows.slice(2)])  # in chunks, as a manifest comes
        texts = caption_items(rows, EncodeConfig(), "e", {"t5": 512})
        assert texts["caption"].to_pylist() == ["", "one", "two"]
        keys = dict(zip(texts["caption"].to_pylist(), texts["text_key"].to_pylist(), strict=True))
        items = image_items(rows, EncodeConfig(), texts, SIZES).to_pylist()
        assert [item["sample_id"] for item in items] == expected(ROWS, names is None)
        source = {row["sample_id"]: row for row in ROWS}
        for item in items:
            caption = source[item["sample_id"]]["caption"]
            assert item["text_keys"] == [keys[caption] if caption else None]
            assert item["box"] == source[item["sample_id"]]["box"]


def test_every_caption_column_has_its_key_and_a_text_in_two_columns_is_listed_once():
    rows = table(ROWS).append_column("long", pa.array(["two", "three", "", None, "one"]))
    config = EncodeConfig(captions=("long", "caption"))
    texts = caption_items(rows, config, "e", {"t5": 512})
    assert texts["caption"].to_pylist() == ["", "two", "three", "one"]
    caption_of = dict(zip(texts["text_key"].to_pylist(), texts["caption"].to_pylist(), strict=True))
    found = {
        item["sample_id"]: [caption_of.get(key) for key in item["text_keys"]]
        for item in image_items(rows, config, texts, SIZES).to_pylist()
    }
    assert found == {
        "1": ["two", "one"], "2": ["three", None], "4": [None, "two"], "3": [None, "one"], "5": ["one", None],
    }  # fmt: skip
