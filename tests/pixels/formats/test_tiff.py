"""All that a TIFF's tags describe of its samples is applied, or the variant is named as unsupported."""

import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uhr.pixels.decode import decode
from uhr.pixels.formats.tiff import segments as tiff_segments
from uhr.pixels.headers import read_header
from uhr.pixels.types import PixelFault

COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}
WIDTH, HEIGHT = 37, 29


def samples_of(bits: int, count: int, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (*size, count))


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """The upper eight bits of more, all levels of fewer."""
    return values >> bits - 8 if bits > 8 else np.round(values * 255 / ((1 << bits) - 1)).astype(int)


def expected_rgb(samples: np.ndarray, bits: int, photometric: int, colour_map=None) -> np.ndarray:
    """By the definition of each photometric interpretation."""
    colours = samples[..., : COLOURS[photometric]]
    if photometric == 3:
        return colour_map[samples[..., 0]] >> 8
    if photometric == 5:
        inks = eight_bits(colours, bits).astype(np.uint8)
        return np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")).astype(int)
    values = eight_bits(colours, bits)
    values = 255 - values if photometric == 0 else values
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def fault_of(data: bytes) -> PixelFault:
    with pytest.raises(PixelFault) as caught:
        decode(data)
    return caught.value


@st.composite
def layouts(draw: st.DrawFn, files) -> tuple:
    """A layout that is legal, and the number of its samples."""
    photometric = draw(st.sampled_from(sorted(COLOURS)))
    bits = draw(st.sampled_from((1, 2, 4, 8) if photometric == 3 else (1, 2, 3, 4, 8, 10, 12, 14, 16)))
    extra = draw(st.sampled_from(((), (2,), (0,)) if photometric != 5 else ((), (0,), (2,))))
    compression = draw(st.sampled_from((files.NONE, files.DEFLATE, files.LZW, files.PACKBITS)))
    can_predict = compression in (files.DEFLATE, files.LZW) and bits in (8, 16)
    count = COLOURS[photometric] + len(extra)
    layout = files.Layout(
        bits,
        photometric,
        compression,
        draw(st.booleans()) and count > 1,
        draw(st.sampled_from("<>")),
        draw(st.booleans()),
        2 if can_predict and draw(st.booleans()) else 1,
        draw(st.sampled_from((1 << 30, 1, 5, HEIGHT))),
        draw(st.sampled_from((None, None, 16, 64))),
        draw(st.booleans()),
        extra,
    )
    return layout, count


@given(data=st.data())
def test_every_layout_gives_its_samples(data, tiff_files) -> None:
    layout, count = data.draw(layouts(tiff_files))
    samples = samples_of(layout.bits, count, data.draw(st.integers(0, 3)))
    entries, colour_map = {}, None
    if layout.photometric == 3:
        colour_map = samples_of(16, 3, 9, (1 << layout.bits, 1))[:, 0]
        entries = {320: (3, list(colour_map.T.ravel()))}
    decoded = decode(tiff_files.write(samples, layout, entries))
    expected = expected_rgb(samples, layout.bits, layout.photometric, colour_map)
    assert np.array_equal(decoded.bgr[..., ::-1], expected)
    assert decoded.header.bit_depth == layout.bits
    alpha = decoded.planes.alpha
    assert decoded.header.has_alpha == (2 in layout.extra)
    if 2 in layout.extra:
        given = eight_bits(samples[..., -1], layout.bits)
        assert (alpha is None and given.min() == 255) or np.array_equal(alpha, given)


GRAY_ONLY, COLOUR_ONLY = {"photometric": "miniswhite"}, {"planarconfig": "separate"}
BY_TIFFFILE = (
    {},
    {"compression": "zlib", "predictor": True},
    {"tile": (16, 16)},
    {"byteorder": ">", "rowsperstrip": 7},
    {"bigtiff": True},
)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize(
    ("shape", "settings_of"),
    [
        *(((40, 30), settings_of) for settings_of in (*BY_TIFFFILE, GRAY_ONLY)),
        *(((40, 30, 3), settings_of) for settings_of in (*BY_TIFFFILE, COLOUR_ONLY)),
        *(((40, 30, 4), settings_of) for settings_of in (*BY_TIFFFILE, COLOUR_ONLY)),
    ],
)
def test_files_of_tifffile_are_read(shape, dtype, settings_of) -> None:
    colour = len(shape) == 3
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    settings_of = {"photometric": "rgb" if colour else "minisblack", **settings_of}
    if shape[-1] == 4:
        settings_of["extrasamples"] = ["unassalpha"]
    if colour and settings_of.get("planarconfig") == "separate":
        stored = np.moveaxis(pixels, -1, 0)
    else:
        stored = pixels
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, **settings_of)
    decoded = decode(buffer.getvalue())
    expected = pixels >> (8 * (pixels.itemsize - 1))
    if settings_of["photometric"] == "miniswhite":
        expected = 255 - expected
    expected = expected if colour else np.repeat(expected[..., None], 3, 2)
    assert np.array_equal(decoded.bgr[..., ::-1], expected[..., :3])
    if shape[-1] == 4:
        assert np.array_equal(decoded.planes.alpha, expected[..., 3])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"])
def test_files_of_pillow_are_read_as_pillow_reads_them(forge, mode, compression) -> None:
    settings_of = {} if compression is None else {"compression": compression}
    data = forge.encode(forge.image(50, 40, mode), "TIFF", **settings_of)
    image = Image.open(io.BytesIO(data))
    if mode == "I;16":
        expected = np.repeat((np.asarray(image) >> 8)[..., None], 3, 2)
    else:
        expected = np.asarray(image.convert("RGB"))
    decoded = decode(data)
    assert np.array_equal(decoded.bgr[..., ::-1], expected)
    if mode in ("LA", "RGBA"):
        assert np.array_equal(decoded.planes.alpha, np.asarray(image.getchannel("A")))


@pytest.mark.parametrize("name", ["lzma", "zstd"])
def test_a_compression_that_libtiff_may_lack_is_read_or_named(forge, monkeypatch, name) -> None:
    image = forge.image(50, 40)
    try:
        data = forge.encode(image, "TIFF", compression=name)
    except OSError:
        pytest.skip(f"Pillow's libtiff is built without {name}, which writes the file")
    assert np.array_equal(decode(data).rgb(), np.asarray(image))
    monkeypatch.setattr(tiff_segments, "_libtiff_has", lambda compression: False)
    fault = fault_of(data)
    assert (fault.kind, name in fault.message) == ("unsupported", True)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_fax_is_read(forge, compression, white_is_zero) -> None:
    image = forge.image(75, 40, "1")
    data = forge.encode(image, "TIFF", compression=compression, tiffinfo={262: 0 if white_is_zero else 1})
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data).rgb(), expected)
    assert read_header(data).bit_depth == 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_in_a_tiff_is_read_as_libtiff_reads_it(forge, mode) -> None:
    data = forge.encode(forge.image(80, 48, mode), "TIFF", compression="jpeg", quality=90)
    image = Image.open(io.BytesIO(data))
    assert image.tag_v2[259] == 7
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(data).bgr[..., ::-1], expected)


@pytest.mark.parametrize(("photometric", "settings_of"), [(6, {}), (2, {"keep_rgb": True})])
def test_the_tiff_says_what_the_components_of_its_jpegs_are(
    forge, tiff_files, photometric, settings_of
) -> None:
    stream = forge.encode(forge.image(80, 48), "JPEG", quality=95, **settings_of)
    expected = decode(stream).rgb()
    # no marker of a file's own says whether these are RGB or YCbCr
    marker = stream.find(b"\xff\xdb")
    tags = {256: 80, 257: 48, 258: (3, [8, 8, 8]), 259: (3, [7]), 262: (3, [photometric]), 277: (3, [3])}
    data = tiff_files.assemble([b"\xff\xd8" + stream[marker:]], {**tags, 278: 48}, tiff_files.Layout())
    assert np.array_equal(decode(data).rgb(), expected)


def test_subsampled_ycbcr_is_read(tiff_files) -> None:
    # units of 2 x 2 luma and one of each colour
    rng = np.random.default_rng(0)
    luma, colours = rng.integers(0, 256, (6, 2, 8, 2)), rng.integers(0, 256, (6, 8, 2))
    units = np.concatenate([luma.swapaxes(1, 2).reshape(6, 8, 4), colours], axis=2).astype(np.uint8)
    layout = tiff_files.Layout(photometric=6)
    tags = {256: 16, 257: 12, 258: (3, [8, 8, 8]), 259: (3, [1]), 262: (3, [6]), 277: (3, [3]), 278: 12}
    plain = tiff_files.assemble([units.tobytes()], tags, layout)
    whole = np.concatenate(
        [luma.reshape(12, 16)[..., None], colours.repeat(2, axis=0).repeat(2, axis=1)], axis=2
    ).astype(np.uint8)
    expected = np.asarray(Image.fromarray(whole, "YCbCr").convert("RGB"))
    assert np.array_equal(decode(plain).rgb(), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_premultiplied_colours_are_divided(tiff_files, bits) -> None:
    rng = np.random.default_rng(0)
    most = (1 << bits) - 1
    alpha = rng.integers(1, most + 1, (20, 30, 1))
    colours = rng.integers(0, most + 1, (20, 30, 3))
    stored = np.concatenate([np.round(colours * (alpha / most)).astype(int), alpha], axis=2)
    decoded = decode(tiff_files.write(stored, tiff_files.Layout(bits=bits, extra=(1,))))
    assert np.array_equal(decoded.planes.alpha, eight_bits(alpha[..., 0], bits))
    over_white = colours / most * (alpha / most) + (1 - alpha / most)
    assert np.abs(decoded.rgb() - over_white * 255).max() <= 2


def test_transparent_inks_show_white_paper(tiff_files, forge) -> None:
    inks = np.asarray(forge.image(40, 30, "CMYK")).astype(int)
    alpha = np.zeros((30, 40, 1), int)
    alpha[:, 20:] = 255
    samples = np.concatenate([inks, alpha], axis=2)
    layout = tiff_files.Layout(photometric=5, extra=(2,))
    profile = forge.cmyk_profile()
    plain = decode(tiff_files.write(inks, tiff_files.Layout(photometric=5), {34675: profile})).rgb()
    paper = decode(tiff_files.write(inks * 0, tiff_files.Layout(photometric=5), {34675: profile})).rgb()
    rgb = decode(tiff_files.write(samples, layout, {34675: profile})).rgb()
    assert np.array_equal(rgb[:, :20], paper[:, :20])
    assert np.array_equal(rgb[:, 20:], plain[:, 20:])
    assert paper.min() > 240


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("planar", [False, True])
def test_orientation_turns_the_image_and_not_the_stored_grid(tiff_files, orientation, planar) -> None:
    samples = samples_of(16, 3)
    data = tiff_files.write(samples, tiff_files.Layout(bits=16, planar=planar), {274: (3, [orientation])})
    decoded = decode(data)
    assert np.array_equal(decoded.bgr[..., ::-1], samples >> 8)
    upright = (samples >> 8).astype(np.uint8)
    steps = {2: "x", 3: "xy", 4: "y", 5: "t", 6: "tx", 7: "txy", 8: "ty"}.get(orientation, "")
    for step in steps:
        upright = {"x": upright[:, ::-1], "y": upright[::-1], "t": upright.swapaxes(0, 1)}[step]
    assert np.array_equal(decoded.rgb(), upright)


@pytest.mark.parametrize(
    ("bits", "count", "photometric", "tags", "message"),
    [
        (8, 3, 8, {}, "CIELab"),
        (8, 3, 9, {}, "ICCLab"),
        (8, 1, 4, {}, "transparency mask"),
        (8, 3, 2, {258: (3, [8, 8, 4])}, "differ in depth"),
        (16, 1, 1, {339: (3, [2])}, "16-bit signed integers"),
        (8, 1, 1, {339: (3, [2])}, "8-bit signed integers"),
        (16, 3, 2, {339: (3, [3])}, "16-bit floating-point"),
        (8, 4, 5, {332: (3, [2])}, "other inks"),
        (8, 6, 1, {}, "6 bands"),
        (8, 4, 5, {338: (3, [1]), 277: (3, [5]), 258: (3, [8] * 5)}, "premultiplied"),
        (16, 3, 6, {}, "YCbCr TIFF of 16 bits"),
        (8, 3, 6, {530: (3, [1, 1]), 529: (5, [(2126, 10000), (7152, 10000), (722, 10000)])}, "coefficients"),
        (8, 3, 2, {259: (3, [6])}, "old-style JPEG"),
        (8, 3, 2, {259: (3, [34887])}, "LERC"),
        (8, 3, 2, {259: (3, [8]), 317: (3, [3])}, "predictor 3"),
        (12, 3, 2, {259: (3, [8]), 317: (3, [2])}, "12 bits with predictor 2"),
    ],
)
def test_a_variant_that_is_not_read_is_named(tiff_files, bits, count, photometric, tags, message) -> None:
    data = tiff_files.write(
        samples_of(bits, count), tiff_files.Layout(bits=bits, photometric=photometric), tags
    )
    assert (read_header(data).raw_width, read_header(data).raw_height) == (WIDTH, HEIGHT)
    fault = fault_of(data)
    assert fault.kind == "unsupported"
    assert message in fault.message


@pytest.mark.parametrize("bits", [24, 32, 64])
def test_wide_integers_have_no_agreed_white(tiff_files, bits) -> None:
    samples = np.zeros((4, 4, 1), np.int64)
    data = tiff_files.write(samples, tiff_files.Layout(photometric=1), {258: (3, [bits])})
    assert "unsupported" in str(fault_of(data))
    assert read_header(data).bit_depth == bits


def test_premises_that_differ_between_samples_have_no_depth(tiff_files) -> None:
    data = tiff_files.write(samples_of(8, 3), tiff_files.Layout(), {258: (3, [5, 6, 5])})
    assert read_header(data).bit_depth is None


@pytest.mark.parametrize("raw", [32803, 34892])
def test_camera_raw_files_are_distinguished_from_images(forge, tiff_files, raw) -> None:
    layout = tiff_files.Layout(bits=16, photometric=raw)
    assert "camera raw" in str(fault_of(tiff_files.write(samples_of(16, 1), layout)))
    # a preview first, the raw values in a directory that tag 330 points to
    preview = tiff_files.write(samples_of(8, 3), tiff_files.Layout())
    (directory,) = struct.unpack_from("<I", preview, 4)
    (count,) = struct.unpack_from("<H", preview, directory)
    table = preview[directory + 2 : directory + 2 + 12 * count]
    inner = struct.pack("<HHHIHHI", 1, 262, 3, 1, raw, 0, 0)
    end = len(preview) + len(inner)
    entry = struct.pack("<HHII", 330, 4, 1, len(preview))
    outer = struct.pack("<H", count + 1) + table + entry + bytes(4)
    data = preview[:4] + struct.pack("<I", end) + preview[8:] + inner + outer
    assert "camera raw" in str(fault_of(data))


def test_chromaticities_in_a_tiff_are_colours(tiff_files, forge) -> None:
    samples = np.asarray(forge.image(40, 30)).astype(int)
    tags = {
        318: (5, [(3127, 10000), (3290, 10000)]),
        319: (5, [(64, 100), (33, 100), (21, 100), (71, 100), (15, 100), (6, 100)]),
    }
    decoded = decode(tiff_files.write(samples, tiff_files.Layout(), tags))
    assert np.array_equal(decoded.bgr[..., ::-1], samples)
    assert np.abs(decoded.rgb().astype(int) - samples).max() > 10
    plain = decode(tiff_files.write(samples, tiff_files.Layout(), {301: (3, [0] * 256)}))
    assert plain.notes == ["the TransferFunction is ignored"]
