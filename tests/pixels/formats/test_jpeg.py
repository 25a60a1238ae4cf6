"""JPEG files with oddities: what changes no pixel is a note, and never hides damage behind it."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from uhr.pixels.decode import PixelLimits, decode
from uhr.pixels.formats import header_walks
from uhr.pixels.formats.jpeg import JpegFile
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data)
    return caught.value


def half_zero(data: bytes) -> bytes:
    """The second half is zeros, up to the EOI marker."""
    middle = len(data) // 2
    return data[:middle] + bytes(len(data) - middle - 2) + b"\xff\xd9"


def stray(data: bytes) -> bytes:
    return data.replace(b"\xff\xdb", b"\xff\0" + bytes(9) + b"\xff\xdb", 1)


def webcam_sos(data: bytes) -> bytes:
    start = data.find(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[: end - 2] + b"\0\0" + data[end:]


def jfif_2(data: bytes) -> bytes:
    at = data.find(b"JFIF\0") + 5
    return data[:at] + b"\2" + data[at + 1 :]


def adobe(data: bytes, transform: int, with_jfif: bool = False) -> bytes:
    """An Adobe segment in place of the JFIF segment, or behind it."""
    jfif_end = 4 + int.from_bytes(data[4:6], "big")
    segment = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, transform)
    return data[: jfif_end if with_jfif else 2] + segment + data[jfif_end:]


ODD = {
    "stray bytes at the start": (lambda data: data[:2] + bytes(7) + data[2:], "7 stray bytes"),
    "stray bytes": (stray, "11 stray bytes between segments"),
    "spectral parameters": (webcam_sos, "spectral parameters"),
    "JFIF version": (jfif_2, "JFIF version 2"),
    "Adobe transform": (lambda data: adobe(data, 7), "Adobe colour transform 7"),
    "all of them": (lambda data: stray(webcam_sos(jfif_2(data))), "stray bytes"),
}


@pytest.fixture
def whole(forge) -> bytes:
    return forge.encode(forge.image(320, 240), "JPEG", quality=90)


@pytest.mark.parametrize("name", ODD)
def test_an_oddity_in_the_header_is_a_note_and_changes_no_pixel(name, whole, forge) -> None:
    make, note = ODD[name]
    decoded = decode(make(whole))
    assert np.array_equal(decoded.rgb(), decode(whole).rgb())
    assert any(note in one for one in decoded.notes)
    assert decode(whole).notes == []


@pytest.mark.parametrize("name", ODD)
def test_an_oddity_in_the_header_does_not_hide_damage_behind_it(name, whole, capfd) -> None:
    fault = fault_of(half_zero(ODD[name][0](whole)))
    assert fault.kind == "corrupt"
    assert "premature end" in fault.message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_of_the_repaired_copy_are_those_of_the_file(progressive, forge) -> None:
    whole = forge.encode(forge.image(80, 60), "JPEG", progressive=progressive)
    for make, _ in ODD.values():
        data = make(whole) if not progressive or make is not webcam_sos else whole
        # OpenCV knows a JPEG by three bytes
        data = whole if data[2] == 0 else data
        copy = JpegFile(data).decodable
        one, two = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in (data, copy))
        assert np.array_equal(one, two)


def test_a_file_without_oddities_is_not_copied(whole) -> None:
    assert JpegFile(whole).decodable is whole


def test_adobe_transforms_that_libjpeg_knows_are_left_alone(whole) -> None:
    for data in (adobe(whole, 0), adobe(whole, 1), adobe(whole, 7, with_jfif=True)):
        assert decode(data).notes == []
        assert JpegFile(data).decodable is data


@pytest.mark.parametrize("padding", [b"\0", b"\0\0", b"\xff\0", b"\xff", b"\xff\xff\xff"])
def test_padding_before_the_end_is_harmless(padding, forge) -> None:
    notes = set()
    for width in range(20, 60):
        data = forge.encode(forge.image(width, 30), "JPEG")
        decoded = decode(data[:-2] + padding + data[-2:])
        assert np.array_equal(decoded.rgb(), decode(data).rgb())
        notes.update(decoded.notes)
    # libjpeg says nothing of bytes that its bit buffer holds already; FF fills are part of the marker
    assert bool(notes) == (0 in padding)


@pytest.mark.parametrize("left", [b"\x12\x34", b"\0\0\0", bytes(range(1, 200))])
def test_bytes_left_over_behind_the_scan_are_damage(left, forge) -> None:
    # flat, so that the decoder holds no bits that hide them
    data = forge.encode(Image.new("RGB", (64, 64), "red"), "JPEG")
    assert fault_of(data[:-2] + left * 10 + data[-2:]).kind == "corrupt"


def test_bytes_left_over_before_a_restart_or_the_next_scan_are_damage(forge) -> None:
    restarts = forge.encode(forge.image(64, 64), "JPEG", restart_marker_rows=1)
    at = restarts.find(b"\xff\xd0", JpegFile(restarts)._scan_end(0))
    assert fault_of(restarts[:at] + bytes(range(1, 40)) + restarts[at:]).kind == "corrupt"
    progressive = forge.encode(forge.image(64, 64), "JPEG", progressive=True)
    at = progressive.rfind(b"\xff\xc4")
    assert fault_of(progressive[:at] + bytes(range(1, 40)) + progressive[at:]).kind == "corrupt"


def scans_of(data: bytes) -> list[int]:
    """Offsets of the DHT or SOS segments that begin each scan of a progressive JPEG but the first."""
    file, starts = JpegFile(data), []
    position = data.find(b"\xff\xda")
    while data[position + 1] != 0xD9:
        if data[position + 1] == 0xDA:
            position = file._scan_end(position + 2 + int.from_bytes(data[position + 2 : position + 4], "big"))
            starts.append(position)
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return starts[:-1]


def test_a_progressive_jpeg_that_lacks_scans_is_truncated_although_libjpeg_is_silent(forge, capfd) -> None:
    data = forge.encode(forge.image(120, 90), "JPEG", progressive=True)
    starts = scans_of(data)
    assert len(starts) > 5
    for start in starts:
        short = data[:start] + b"\xff\xd9"
        capfd.readouterr()
        assert cv2.imdecode(np.frombuffer(short, np.uint8), cv2.IMREAD_COLOR) is not None
        assert capfd.readouterr().err == ""
        assert fault_of(short).kind == "truncated"
        assert fault_of(data[:start]).kind == "truncated"


def test_a_sequential_jpeg_that_lacks_the_scan_of_a_component_is_truncated(forge) -> None:
    gray = forge.encode(forge.image(64, 48, "L"), "JPEG")
    at = gray.find(b"\xff\xc0")
    frame = gray[at + 4 : at + 9] + b"\3" + b"\1\x11\0" + b"\2\x11\0" + b"\3\x11\0"
    colour = gray[:at] + b"\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + gray[at + 13 :]
    assert cv2.imdecode(np.frombuffer(colour, np.uint8), cv2.IMREAD_COLOR) is not None
    fault = fault_of(colour)
    assert fault.kind == "truncated"
    assert "component 2" in fault.message


def test_a_sequential_jpeg_of_one_scan_per_component_is_clean(forge, capfd) -> None:
    planes = [forge.encode(forge.image(64, 48, "L", seed), "JPEG") for seed in range(3)]
    at = planes[0].find(b"\xff\xc0")
    frame = planes[0][at + 4 : at + 9] + b"\3" + b"\1\x11\0" + b"\2\x11\0" + b"\3\x11\0"
    data = planes[0][:at] + b"\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame
    data += planes[0][at + 13 : planes[0].find(b"\xff\xda")]
    for component, plane in enumerate(planes, 1):
        scan = bytearray(plane[plane.find(b"\xff\xda") : -2])
        scan[5] = component
        data += bytes(scan)
    decoded = decode(data + b"\xff\xd9")
    assert decoded.notes == []
    assert np.array_equal(decoded.rgb(), np.asarray(Image.open(io.BytesIO(data + b"\xff\xd9"))))
    # unusual spectral parameters in the second scan hide no damage in it
    second = data.find(b"\xff\xda", data.find(b"\xff\xda") + 2)
    odd = data[: second + 7] + b"\0\0" + data[second + 9 :]
    assert np.array_equal(decode(odd + b"\xff\xd9").rgb(), decoded.rgb())
    damaged = odd[: second + 100] + bytes(400) + odd[second + 500 :] + b"\xff\xd9"
    assert fault_of(damaged).kind == "corrupt"


def test_megabytes_of_stray_bytes_in_the_header_are_passed_over_at_once(whole, tmp_path) -> None:
    path = tmp_path / "zeros.jpg"
    path.write_bytes(whole[:20] + bytes(60_000_000) + whole[20:])
    assert read_header(path) == read_header(whole)
    assert np.array_equal(decode(path.read_bytes()).rgb(), decode(whole).rgb())
    path.write_bytes(whole[:20] + bytes(60_000_000))
    with pytest.raises(PixelFault) as caught:
        read_header(path)
    assert caught.value.kind == "truncated"


def test_what_follows_the_image_does_not_matter(whole, forge) -> None:
    right = decode(whole).rgb()
    second = forge.encode(forge.image(50, 40, seed=3), "JPEG")
    for behind in (second, half_zero(second), bytes(100_000), b"\xff\xda\xff\xd8 a video \xff" * 999):
        decoded = decode(whole + behind)
        assert np.array_equal(decoded.rgb(), right)
        assert decoded.notes == []
    buffer = io.BytesIO()
    Image.open(io.BytesIO(whole)).save(
        buffer, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(second))]
    )
    decoded = decode(buffer.getvalue())
    assert (decoded.header.format, decoded.notes) == ("JPEG", [])
    assert np.array_equal(decoded.rgb(), np.asarray(Image.open(buffer).convert("RGB")))


def test_a_truncated_image_before_other_data_is_truncated_or_corrupt(whole, forge) -> None:
    cut = whole[: len(whole) // 2]
    assert fault_of(cut + bytes(5000)).kind == "truncated"
    assert fault_of(cut + forge.encode(forge.image(50, 40), "JPEG")).kind in ("truncated", "corrupt")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_metadata_of_any_size_decides_nothing(mode, forge, damage) -> None:
    whole = forge.encode(forge.image(64, 48, mode), "JPEG", 6)
    right = decode(whole)
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08" + bytes(65_000)
    segments = {
        "EXIF": damage.jpeg_segment(0xE1, exif) * 3,
        "XMP": damage.jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 65_000) * 200,
        "unknown": damage.jpeg_segment(0xE9, bytes(65_533)) * 200,
        "comments": damage.jpeg_segment(0xFE, b"c" * 65_533) * 200,
        "many": damage.jpeg_segment(0xED, b"Photoshop 3.0\0") * 150_000,
        "an MPF index that leads nowhere": damage.jpeg_segment(0xE2, b"MPF\0II*\0" + b"\xff" * 60),
    }
    # behind the first EXIF segment, which gives the orientation
    at = whole.find(b"\xff\xe1")
    at += 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
    for name, metadata in segments.items():
        data = whole[:at] + metadata + whole[at:]
        decoded = decode(data)
        assert np.array_equal(decoded.rgb(), right.rgb()), name
        assert decoded.header == right.header, name
        assert decoded.notes == [], name
        assert len(JpegFile(data).without_metadata()) < len(whole)


def test_too_many_segments_are_unsupported_with_the_limit_named(whole, damage, monkeypatch) -> None:
    monkeypatch.setattr(header_walks, "MOST_PARTS", 50)
    with pytest.raises(PixelFault, match="a JPEG of more than 50 segments") as caught:
        read_header(whole[:2] + damage.jpeg_segment(0xE9, b"") * 50 + whole[2:])
    assert caught.value.kind == "unsupported"


def test_a_profile_of_many_pieces_is_put_together_whatever_their_order(forge, damage) -> None:
    profile = forge.wide_gamut_profile() + bytes(150_000)
    plain = forge.encode(forge.image(40, 30), "JPEG")
    pieces = [profile[at : at + 40_000] for at in range(0, len(profile), 40_000)]
    segments = [
        damage.jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([number, len(pieces)]) + piece)
        for number, piece in enumerate(pieces, 1)
    ]
    right = decode(forge.encode(forge.image(40, 30), "JPEG", icc_profile=forge.wide_gamut_profile())).rgb()
    for order in (segments, segments[::-1]):
        decoded = decode(plain[:2] + b"".join(order) + plain[2:])
        assert np.array_equal(decoded.rgb(), right)
        assert decoded.notes == []
    decoded = decode(plain[:2] + b"".join(segments[:-1]) + plain[2:])
    assert decoded.notes == [f"ICC profile ignored: {len(pieces) - 1} of its {len(pieces)} pieces are there"]
    assert np.array_equal(decoded.rgb(), decode(plain).rgb())


def test_variants_that_libjpeg_does_not_decode_are_unsupported_by_name(whole, damage) -> None:
    frame = whole.find(b"\xff\xc0")
    twelve = bytearray(whole)
    twelve[frame + 1], twelve[frame + 4] = 0xC1, 12
    variants = {
        "12 bits per channel": bytes(twelve),
        "JPEG-LS": whole[:frame] + b"\xff\xf7" + whole[frame + 2 :],
        "SOF5": whole[:frame] + b"\xff\xc5" + whole[frame + 2 :],
        "SOF11": whole[:frame] + b"\xff\xcb" + whole[frame + 2 :],
        "DNL": damage.with_size(whole, "JPEG", 320, 0),
        "65,500": damage.with_size(whole, "JPEG", 65_501, 8),
    }
    for name, data in variants.items():
        fault = fault_of(data)
        assert (fault.kind, name in fault.message) == ("unsupported", True), fault


def test_a_damaged_image_is_too_large_only_by_its_header(whole, damage) -> None:
    with pytest.raises(PixelFault) as caught:
        decode(damage.with_size(whole, "JPEG", 60_000, 60_000), PixelLimits())
    assert caught.value.kind == "too large"
