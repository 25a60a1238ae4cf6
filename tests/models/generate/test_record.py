"""The record of an image: in the PNG and next to it, whole or absent, never replacing a foreign file."""

import json
import math
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from uhr.base.errors import UserError
from uhr.models.generate import encoding, record, repeat

RECORD = {
    "uhr": "0",
    "sampler": "euler",
    "model": {"name": "m"},
    "prompt": "un lac, 湖, \u200b 🏔",
    "n": [0.1, None],
}


def image(colour=0):
    return Image.new("RGB", (8, 8), (colour, 0, 0))


def test_what_is_written_is_read_from_the_png_and_from_the_json(tmp_path):
    out = tmp_path / "new" / "lake.v2.png"
    record.write(out, image(), RECORD)
    assert {path.name for path in out.parent.iterdir()} == {"lake.v2.png", "lake.v2.json"}
    assert record.read_record(out) == RECORD
    assert json.loads(record.json_path(out).read_text(encoding="utf-8")) == RECORD
    assert record.read_record(record.json_path(out)) == RECORD
    # an editor that drops the chunk
    image(9).save(out)
    assert record.read_record(out) == RECORD


def test_the_json_comes_last_and_none_is_left_next_to_another_image(tmp_path, monkeypatch):
    out = tmp_path / "lake.png"
    record.write(out, image(), RECORD)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        record.write(out, image(1), RECORD | {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["lake.png"]
    assert record.read_record(out)["seed"] == 1


def test_only_pngs_of_ours_say_how_they_were_made(tmp_path):
    image().save(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"no png")
    (tmp_path / "z.json").write_text('{"caption": "a lake"}')
    for name in ("x.png", "z.json", "none.json"):
        with pytest.raises(UserError, match="has no record of how it was made"):
            record.read_record(tmp_path / name)
    for name in ("y.png", "none.png"):
        with pytest.raises(UserError, match="cannot be read"):
            record.read_record(tmp_path / name)


@pytest.mark.parametrize("content", ['{"caption": "a lake"}', "[1]", "no json", "[" * 100_000])
def test_a_json_of_somebody_elses_is_not_written_over(tmp_path, content):
    (tmp_path / "lake.json").write_text(content)
    with pytest.raises(UserError, match=r"lake\.json was not written by uhr"):
        record.check_out(tmp_path / "lake.png")
    record.check_out(tmp_path / "hill.png")
    record.write(tmp_path / "hill.png", image(), RECORD)
    record.check_out(tmp_path / "hill.png")


def test_out_is_the_name_of_an_image(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("a.gif", "a", ".png", "folder.png"):
        with pytest.raises(UserError, match="--out"):
            record.check_out(Path(tmp_path / name))


def test_a_number_that_is_not_finite_is_not_written_and_what_is_there_stays(tmp_path):
    out = tmp_path / "lake.png"
    record.write(out, image(), RECORD)
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.write(out, image(1), RECORD | {"guidance": math.nan})
    assert record.read_record(out) == json.loads(record.json_path(out).read_text()) == RECORD


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


TEXT = chunk(b"tEXt", record.CHUNK.encode() + b"\0" + json.dumps(RECORD).encode())


def test_a_record_behind_the_pixels_is_found_in_an_image_that_is_no_bomb(tmp_path, monkeypatch):
    file = tmp_path / "edited.png"
    image().save(file)
    data = file.read_bytes()
    file.write_bytes(data[:-12] + TEXT + data[-12:])
    assert record.read_record(file) == RECORD
    monkeypatch.setattr(encoding, "SEARCHED", 63)
    with pytest.raises(UserError, match="has no record of how it was made"):
        record.read_record(file)


def bomb(path, side=20_000, text=TEXT):
    """A PNG of ours, by its header, that declares `side`^2 px; reading them is an error."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    parts = [header, text, chunk(b"IDAT", b"boom"), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_a_large_image_is_not_decoded_to_be_read_or_compared(tmp_path):
    file, guard = bomb(tmp_path / "bomb.png"), Image.MAX_IMAGE_PIXELS
    assert record.read_record(file) == RECORD
    with pytest.raises(UserError, match="has no record of how it was made"):
        record.read_record(bomb(tmp_path / "silent.png", text=b""))
    found = repeat.compare(file, image())
    assert str(found) == "not comparable: the first has 20000x20000 px"
    with encoding.open_written(file) as opened:
        assert opened.size == (20_000, 20_000)
        assert guard == Image.MAX_IMAGE_PIXELS, "Pillow's own guard is left as it was"
    with pytest.raises(UserError, match="is damaged and cannot be compared"):
        repeat.compare(bomb(tmp_path / "damaged.png", side=8), image())
