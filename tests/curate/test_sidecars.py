"""Sidecars: what they say goes into the image's row, and nothing that is wrong with them can fail it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.curate.sidecars import DEFAULT_KEYS, read_sidecars
from uhr.manifests.sources.blobs import LocalBlob

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMED = {key for keys in DEFAULT_KEYS.values() for key in keys}


def read(folder, **files):
    paths = []
    for name, content in files.items():
        paths.append(folder / name.replace("_", "."))
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_sidecars([(path.name, LocalBlob(str(path))) for path in paths], DEFAULT_KEYS)


@given(tree=st.dictionaries(st.text(), JSON))
def test_what_has_no_column_of_its_own_is_kept_as_one_json_object(tmp_path_factory, tree):
    tree = {key: value for key, value in tree.items() if key not in NAMED}
    values, fault = read(tmp_path_factory.mktemp("s"), a_json=json.dumps(tree))
    assert fault is None
    assert json.loads(values.get("source_meta", "{}")) == json.loads(json.dumps(tree))


@given(content=st.binary(max_size=60))
def test_no_bytes_make_a_sidecar_fail(tmp_path_factory, content):
    values, fault = read(tmp_path_factory.mktemp("s"), a_json=content, a_txt=content)
    for value in values.values():
        value.encode()
    if fault is not None:
        assert json.loads(values["source_meta"])["sidecar_fault"] == fault


def test_named_keys_fill_columns_and_the_first_that_is_there_wins(tmp_path):
    tree = {"url": "u", "image_url": "i", "photographer": " Ada ", "licence": "CC0", "iso": 100, "author": ""}
    values, _ = read(tmp_path, a_json=json.dumps(tree))
    assert values == {
        "source_url": "i",
        "author": "Ada",
        "license": "CC0",
        "source_meta": '{"author": "", "iso": 100, "url": "u"}',
    }


def test_a_caption_file_goes_before_a_caption_in_json_which_is_not_lost(tmp_path):
    values, _ = read(tmp_path, a_json='{"caption": "machine"}', a_txt="\ufeff human words \n")
    assert values == {"caption": "human words", "source_meta": '{"caption": "machine"}'}
    assert read(tmp_path, a_json='{"caption": "machine"}', a_txt=" \n").values == {"caption": "machine"}


def test_the_more_particular_of_two_captions_wins(tmp_path):
    assert read(tmp_path, a_txt="of both", a_jpg_txt="of the jpeg").values == {"caption": "of the jpeg"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not UTF-16"),
        (b"caf\xe9", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[1]", "holds a JSON list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x": 1e999}', "1e999 is not a JSON number"),
        (b" " * (17 * 2**20), "longer than 16 MiB"),
    ],
)
def test_a_broken_sidecar_is_named_with_its_fault(tmp_path, content, message):
    values, fault = read(tmp_path, a_json=content, a_txt="still a caption")
    assert fault is not None
    assert fault.startswith("a.json: ")
    assert message in fault
    assert values["caption"] == "still a caption"


def test_what_json_may_hold_and_utf_8_may_not_is_replaced(tmp_path):
    values, fault = read(tmp_path, a_json='{"caption": "\\ud800!", "x": "\\udfff"}')
    assert fault is None
    assert values == {"caption": "?!", "source_meta": '{"x": "?"}'}


def test_a_sidecar_that_vanished_is_a_fault_not_an_error(tmp_path):
    values, fault = read_sidecars([("gone.txt", LocalBlob(str(tmp_path / "gone.txt")))], DEFAULT_KEYS)
    assert fault is not None
    assert "No such file" in fault
    assert "sidecar_fault" in values["source_meta"]


@pytest.mark.parametrize("odd", ["NaN", "-Infinity", "1e999", "-1e999", "7" * 5000])
@pytest.mark.parametrize("where", ['"x": {}', '"deep": {{"x": [1, {}]}}'])
def test_an_odd_number_costs_itself_and_not_the_sidecar(tmp_path, odd, where):
    text = '{"caption": "a lake", "license": "CC0", "iso": 100, ' + where.format(odd) + "}"
    values, fault = read(tmp_path, a_json=text)
    assert (values["caption"], values["license"]) == ("a lake", "CC0")
    assert fault is not None
    assert fault.startswith(f"a.json: {odd[:20]}")
    assert fault.endswith("is not a JSON number")
    meta = json.loads(values["source_meta"])
    assert meta["iso"] == 100
    assert meta["x"] is None if "x" in meta else meta["deep"] == {"x": [1, None]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_believed(tmp_path, encoding):
    tree = json.dumps({"caption": "ein See bei Tagesanbruch: ä"})
    assert read(tmp_path, a_json=tree.encode(encoding)).values["caption"] == "ein See bei Tagesanbruch: ä"
    assert read(tmp_path, a_txt="ä lake".encode(encoding)) == ({"caption": "ä lake"}, None)


@pytest.mark.parametrize("key", ["caption", "text", "TEXT", "prompt", "en_caption"])
def test_the_keys_of_common_tools_are_captions(tmp_path, key):
    assert read(tmp_path, a_json=json.dumps({key: "a lake"})).values == {"caption": "a lake"}


def test_the_first_of_several_captions_is_taken_and_the_others_are_not_lost(tmp_path):
    values, fault = read(tmp_path, a_json=json.dumps({"caption": ["a lake", "water"]}))
    assert values == {"caption": "a lake", "source_meta": '{"caption": ["a lake", "water"]}'}
    assert fault is None


def test_a_caption_file_of_kohya_is_a_caption(tmp_path):
    assert read(tmp_path, a_caption="a lake\n").values == {"caption": "a lake"}
