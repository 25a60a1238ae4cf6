"""All that decoders print becomes data of a row, without anything that depends on the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uhr.pixels.decode import decode
from uhr.pixels.decoder_noise import captured, stable_text
from uhr.pixels.types import PixelFault


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        (
            "[ WARN:0@0.322] global grfmt_png.cpp:834 read_chunk user chunk data is too large",
            "user chunk data is too large",
        ),
        (
            "[ERROR:12@3071.9] global /io/opencv/modules/imgcodecs/src/loadsave.cpp:75 decode it failed",
            "it failed",
        ),
        (
            "OpenCV(4.12.0) /io/opencv/loadsave.cpp:75: error: (-215:Assertion failed) pixels <= LIMIT",
            "pixels <= LIMIT",
        ),
        (
            "cannot identify <_io.BytesIO object at 0x7f6dc54944f0>",
            "cannot identify <_io.BytesIO object at 0x...>",
        ),
        ("Corrupt JPEG data: 113 extraneous bytes before marker 0xd9", None),
        ("Huffman table 0x01 was not defined", None),
        ("two\n lines\tand  blanks ", "two lines and blanks"),
    ],
)
def test_text_is_stripped_of_what_depends_on_the_run(printed, kept) -> None:
    assert stable_text(printed) == (printed if kept is None else kept)
    assert PixelFault("corrupt", printed).message == stable_text(printed)


WARNINGS = (
    "Corrupt JPEG data: bad Huffman code",
    "Premature end of JPEG file",
    "Invalid SOS parameters for sequential JPEG",
    "Inconsistent progression sequence for component 1 coefficient 5",
    "Unknown Adobe color transform code 5",
    "Warning: unknown JFIF revision number 2.01",
    "libpng warning: tRNS: invalid",
    "TIFFReadDirectory: Warning, Unknown field with tag 34031",
    "LZWDecode: Not enough data at scanline 12",
    "tempfile.tif: Using code not yet in table.",
)


def test_every_line_of_a_decoder_is_caught_and_others_are_passed_on(capfd) -> None:
    others = ("a JPEG was converted by somebody else", "loading [ 12 ] of 20")
    logged = ("[DEBUG:0@1.5] global a.cpp:1 f detail", "[ INFO:0@1.5] global a.cpp:1 f detail")
    with captured() as lines:
        for line in (*WARNINGS, *others, *logged, "[ WARN:0@1.5] global a.cpp:1 f odd"):
            os.write(2, f"{line}\n".encode())
    assert lines == [*WARNINGS, "OpenCV: odd"]
    assert capfd.readouterr().err.splitlines() == list(others)


def test_of_nested_blocks_the_inner_one_gets_the_lines(capfd) -> None:
    with captured() as outer:
        os.write(2, b"Premature end of JPEG file\n")
        with captured() as inner:
            os.write(2, b"Corrupt JPEG data: bad Huffman code\nanother line\n")
    assert (outer, inner) == ([WARNINGS[1]], [WARNINGS[0]])
    assert capfd.readouterr().err == "another line\n"


def test_damage_is_noticed_by_a_process_without_standard_error(forge, tmp_path) -> None:
    data = forge.encode(forge.image(300, 200), "JPEG")
    middle = len(data) // 2
    path = tmp_path / "damaged.jpg"
    path.write_bytes(data[:middle] + bytes(len(data) - middle - 2) + b"\xff\xd9")
    code = (
        "import os, sys; os.close(2); from uhr.pixels.decode import decode, read_bytes; "
        "decode(read_bytes(sys.argv[1])).rgb()"
    )
    wrapped = f"try:\n exec({code!r})\nexcept Exception as error:\n print(error)"
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", wrapped, str(path)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert "corrupt: Corrupt JPEG data: premature end of data segment" in run.stdout


def test_an_exception_of_several_lines_is_kept_off_the_terminal(capfd, forge) -> None:
    # shorter than OpenCV's own least size of a WebP
    with pytest.raises(PixelFault, match="truncated"):
        decode(forge.encode(forge.image(8, 8), "WEBP", quality=1)[:30])
    assert capfd.readouterr().err == ""
