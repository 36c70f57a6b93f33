"""Decoding: every kind of image gives the pixels that a person would see, and no file can do harm."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from flowgen.data.images.decoding import (
    MAX_BYTES,
    Broken,
    Form,
    Misfit,
    decode,
    inspect,
    quiet,
    read_bytes,
)

HEIGHT, WIDTH = 6, 9


def noise(*shape, top=256):
    """Whole numbers that are a function of their shape."""
    return np.random.default_rng(sum(shape)).integers(0, top, shape)


def pixels(channels):
    return noise(HEIGHT, WIDTH, channels).astype(np.uint8)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def shown(data, channels=3):
    """The decoded pixels, (H, W, C)."""
    form = Form(channels, HEIGHT, WIDTH)
    return decode(data, form).transpose(1, 2, 0).astype(int)


def palette_image(**options):
    index, colours = noise(HEIGHT, WIDTH, top=8).astype(np.uint8), noise(8, 3).astype(np.uint8)
    image = Image.frombytes("P", (WIDTH, HEIGHT), index.tobytes())
    image.putpalette(colours.tobytes())
    return encoded(image, **options), index, colours


# every kind


LOSSLESS = {
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
    "webp": ("WEBP", {"lossless": True}),
}


@pytest.mark.parametrize(("format", "options"), LOSSLESS.values(), ids=list(LOSSLESS))
def test_lossless_colour_comes_back(format, options):
    x = pixels(3)
    assert (shown(encoded(Image.fromarray(x), format, **options)) == x).all()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_comes_back_and_as_colour_is_thrice_the_same(format):
    x = pixels(1)
    data = encoded(Image.fromarray(x[..., 0]), format)
    assert (shown(data, 1) == x).all()
    assert (shown(data, 3) == x.repeat(3, 2)).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "BMP"])
def test_one_bit_is_black_and_white(format):
    x = noise(HEIGHT, WIDTH, top=2).astype(bool)
    assert (shown(encoded(Image.fromarray(x), format), 1)[..., 0] == 255 * x).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(format):
    x = noise(HEIGHT, WIDTH, top=65536).astype(np.uint16)
    x[0, :3] = 0, 65535, 257 * 77
    seen = shown(encoded(Image.fromarray(x), format), 1)[..., 0]
    assert (np.abs(seen - x / 257) <= 0.5).all()


def test_floats_from_0_to_1_are_scaled_and_others_are_refused():
    x = (noise(HEIGHT, WIDTH) / 255).astype(np.float32)
    assert (shown(encoded(Image.fromarray(x), "TIFF"), 1)[..., 0] == noise(HEIGHT, WIDTH)).all()
    for bad in (1.5, -0.1, np.nan):
        x[2, 3] = bad
        with pytest.raises(Broken, match="outside 0 to 1"):
            shown(encoded(Image.fromarray(x), "TIFF"), 1)


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_is_looked_up(format):
    data, index, colours = palette_image(format=format)
    assert (shown(data) == colours[index]).all()


def test_cyan_magenta_yellow_and_black_are_inks():
    x = pixels(4)
    ink = x.astype(float) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(shown(encoded(Image.fromarray(x, "CMYK"), "TIFF")) - expected).max() <= 1


def test_a_jpeg_is_nearly_itself():
    smooth = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).repeat(3, 2).astype(np.uint8)
    assert np.abs(shown(encoded(Image.fromarray(smooth), "JPEG", quality=95)) - smooth).max() < 8


def test_the_first_frame_of_an_animation_is_shown():
    first, second = (Image.fromarray(np.full((HEIGHT, WIDTH), level, np.uint8)) for level in (10, 200))
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(first, format, save_all=True, append_images=[second], **options)
        assert (shown(data, 1) == 10).all()


# transparency


def over_white(colour, alpha):
    """What is seen of a colour on white paper, in reals."""
    share = alpha.astype(float) / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_transparency_shows_white(format):
    x = pixels(4)
    x[0, :2, 3] = 0, 255
    seen = shown(encoded(Image.fromarray(x), format))
    assert np.abs(seen - over_white(x[..., :3], x[..., 3:])).max() <= 0.5
    assert (seen[0, 0] == 255).all()
    assert (seen[0, 1] == x[0, 1, :3]).all()


def test_grey_transparency_stays_grey():
    x = pixels(2)
    data = encoded(Image.fromarray(x))
    assert np.abs(shown(data, 1) - over_white(x[..., :1], x[..., 1:])).max() <= 0.5
    assert inspect(io.BytesIO(data)).grey


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_webp_and_png_agree_on_transparency(format):
    x = pixels(4)
    x[..., 3] = np.where(x[..., 3] < 128, 0, 255)
    data = encoded(Image.fromarray(x), format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert np.abs(shown(data) - over_white(x[..., :3], x[..., 3:])).max() <= 0.5


def test_a_palette_may_be_partly_transparent():
    alpha = np.array([0, 255, 128, 30, 255, 255, 200, 1], np.uint8)
    data, index, colours = palette_image(transparency=alpha.tobytes())
    assert np.abs(shown(data) - over_white(colours[index], alpha[index][..., None])).max() <= 0.5


def test_one_palette_colour_of_a_gif_may_be_transparent():
    data, index, colours = palette_image(format="GIF", transparency=3)
    expected = np.where(index[..., None] == 3, 255, colours[index])
    assert (shown(data) == expected).all()


def test_one_colour_or_grey_may_be_transparent():
    x = pixels(3)
    data = encoded(Image.fromarray(x), transparency=tuple(x[2, 2].tolist()))
    assert (shown(data) == np.where((x == x[2, 2]).all(2, keepdims=True), 255, x)).all()
    for top in (1, 257):  # eight bits, and sixteen
        grey = pixels(1)[..., 0] * (np.uint8(1) if top == 1 else np.uint16(257))
        data = encoded(Image.fromarray(grey), transparency=int(grey[1, 1]))
        assert (shown(data, 1)[..., 0] == np.where(grey == grey[1, 1], 255, grey // top)).all()


# orientation

SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
"""EXIF: on which visual side of the image its first stored row and its first stored column are."""


def stored(upright, orientation):
    """The rows and columns as a camera stores them, pixel by pixel."""
    row_side, column_side = SIDES[orientation]
    height, width = upright.shape[:2]
    swapped = row_side in ("left", "right")
    result = np.empty((width, height, 3) if swapped else upright.shape, np.uint8)
    for r, c in np.ndindex(result.shape[:2]):
        down, across = (c, r) if swapped else (r, c)
        y = height - 1 - down if "bottom" in (row_side, column_side) else down
        x = width - 1 - across if "right" in (row_side, column_side) else across
        result[r, c] = upright[y, x]
    return result


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_undone(format, orientation):
    upright = pixels(3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(stored(upright, orientation)), format, exif=exif, **options)
    assert (shown(data) == upright).all()
    assert inspect(io.BytesIO(data))[:2] == (WIDTH, HEIGHT)


@pytest.mark.costly
@pytest.mark.parametrize("orientation", SIDES)
def test_orientation_of_a_resized_jpeg_is_undone(orientation):
    side = 256
    y, x = np.mgrid[:side, :side] / (side - 1)
    upright = (255 * np.stack([x, y, x * y], 2)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored(upright, orientation)), "JPEG", quality=95, exif=exif)
    small = decode(data, Form(3, 32, 32, resize=True)).transpose(1, 2, 0).astype(int)
    assert np.abs(small - upright.reshape(32, 8, 32, 8, 3).mean((1, 3))).max() < 8


def test_damaged_metadata_do_not_damage_an_image():
    x = pixels(3)
    data = encoded(Image.fromarray(x), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    with quiet():
        assert (shown(data) == x).all()


# size and channels


def test_the_centre_square_is_kept():
    x = pixels(3)
    form = Form(3, HEIGHT, HEIGHT, resize=True)
    left = (WIDTH - HEIGHT) // 2
    assert (decode(encoded(Image.fromarray(x)), form).transpose(1, 2, 0) == x[:, left : left + HEIGHT]).all()
    tall = x.swapaxes(0, 1)
    assert (decode(encoded(Image.fromarray(tall)), form).transpose(1, 2, 0) == tall[left : left + HEIGHT]).all()


def test_what_is_too_fine_becomes_grey():
    """A board of single pixels has no detail at a quarter of its size: without a filter it would be black or white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode(encoded(Image.fromarray(board.astype(np.uint8))), Form(1, 16, 16, resize=True))
    assert np.abs(small.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [64, 512])
def test_a_large_jpeg_is_resized_as_if_decoded_whole(size):
    y, x = np.mgrid[:1024, :1024]
    wave = 127 + 60 * np.sin(x * size / 1600)[..., None] + 60 * np.cos(y * size / 2200)[..., None]
    data = encoded(Image.fromarray(wave.repeat(3, 2).astype(np.uint8)), "JPEG", quality=95)
    small = decode(data, Form(3, size, size, resize=True)).transpose(1, 2, 0)
    blocks = wave.reshape(size, 1024 // size, size, 1024 // size).mean((1, 3))
    assert np.abs(small[..., 0] - blocks)[2:-2, 2:-2].max() < 6


def test_another_size_is_a_misfit_that_says_so():
    with pytest.raises(Misfit, match="9x6") as caught:
        decode(encoded(Image.fromarray(pixels(3))), Form(3, 5, 5))
    assert "--image-size" in caught.value.advice


def test_colour_is_made_grey_only_where_that_was_asked_for():
    x = pixels(3)
    data = encoded(Image.fromarray(x))
    grey = x @ np.array([0.299, 0.587, 0.114])
    assert np.abs(shown(data, 1)[..., 0] - grey).max() <= 1
    with pytest.raises(Misfit, match="in colour"):
        decode(data, Form(1, HEIGHT, WIDTH, convert=False))


# harm


def png(width, height, body=b"", depth=1):
    """A PNG whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BOMBS = {
    "claims": png(50_000, 50_000),
    "warned-of": png(10_000, 10_000),
    "just-too-large": png(8193, 8193),
    "unpacks": png(20_000, 20_000, zlib.compress(bytes(20_000 * 2501), 9)),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0\0;",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=list(BOMBS))
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_a_bomb_is_refused_before_it_is_decoded(bomb, limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # what a program that holds us may have set
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with quiet():
        for read in (lambda: decode(bomb, Form(3, 32, 32, resize=True)), lambda: inspect(io.BytesIO(bomb))):
            with pytest.raises(Broken, match="pixels"):
                read()
    assert limit == Image.MAX_IMAGE_PIXELS


def test_an_image_at_the_limit_is_decoded():
    data = png(8192, 8192, zlib.compress(bytes(8192 * 1025)))
    assert decode(data, Form(1, 4, 4, resize=True)).max() == 0


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_truncated_image_is_broken(format):
    data = encoded(Image.fromarray(noise(64, 64, 3).astype(np.uint8)), format)
    for length in (3, len(data) // 3, len(data) * 9 // 10):
        with pytest.raises(Broken):
            decode(data[:length], Form(3, 64, 64))


@pytest.mark.parametrize("data", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", bytes(1000)])
def test_what_is_no_image_is_broken(data):
    with pytest.raises(Broken, match="known format"):
        decode(data, Form(3, 8, 8))


def test_only_the_listed_formats_are_tried():
    """Other decoders of Pillow are not reached: among them one that starts Ghostscript."""
    with pytest.raises(Broken, match="known format"):
        decode(encoded(Image.fromarray(pixels(3)), "ICO"), Form(3, 8, 8))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_damage_anywhere_is_nothing_but_a_broken_image(format):
    data = encoded(Image.fromarray(noise(16, 16, 3).astype(np.uint8)), format)
    rng, reasons = np.random.default_rng(0), []
    with quiet():
        for _ in range(200):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            try:
                assert decode(damaged.tobytes(), Form(3, 8, 8, resize=True)).shape == (3, 8, 8)
            except Broken as error:
                reasons.append(str(error))
    assert all(reason and "\n" not in reason for reason in reasons)


def test_a_file_is_read_if_it_is_there_and_not_too_large(tmp_path):
    for name, size, reason in (("empty", 0, "empty"), ("large", MAX_BYTES + 1, "limit")):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        with pytest.raises(Broken, match=reason):
            read_bytes(tmp_path / name)
    with pytest.raises(Broken, match="No such file"):
        read_bytes(tmp_path / "none")


def test_decoders_are_quiet_and_restore_warnings():
    before = list(warnings.filters)
    with quiet(), warnings.catch_warnings(record=True) as caught, pytest.raises(Broken):
        inspect(io.BytesIO(BOMBS["warned-of"]))
    assert not caught
    assert list(warnings.filters) == before
