"""Decoding of one image file of any kind to pixels; its content is not trusted."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from flowgen.core import InputError, note

__all__ = [
    "SUFFIXES",
    "Broken",
    "Form",
    "Misfit",
    "Shape",
    "common_form",
    "decode",
    "first_line",
    "inspect",
    "over_white",
    "quiet",
    "read_bytes",
    "read_image",
    "unlike",
]

SUFFIXES_OF = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    **({"AVIF": (".avif",)} if features.check("avif") else {}),  # not in every Pillow
}
FORMATS = tuple(SUFFIXES_OF)
"""What an image file may be, whatever it is called."""
SUFFIXES = tuple(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
"""What an image file is called, in either case."""
MAX_PIXELS, MAX_BYTES = 2**26, 2**28
"""No image of more pixels, and no file of more bytes, is decoded."""
MAX_SIZE = 4096
"""No image is resized to more."""

GREY, WIDE_GREY = ("1", "L", "LA", "La"), ("I", "F")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation."""
ORIENTATION = 0x0112
DEPTHS = (8, 10, 12, 14, 16)
"""Bits of cameras and scanners, whose files have 16."""
WHITE = 2**16 - 1
"""The value of white in 16 bits."""
RESIZE = "--image-size N makes all NxN"
COLOUR = "--set images.channels=3 takes both"
DEPTH = "--set images.bits=16 takes all"


class Broken(Exception):
    """An image that cannot be read; its text says why."""


class Misfit(Exception):
    """A valid image that is not like the others; its text says how, and `advice` what to do."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(text)
        self.advice = advice


class Shape(NamedTuple):
    """The size and mode of an image in its upright orientation.

    top: the largest value of whole numbers of more than 8 bits; None of other images.
    coarse: only the upper 8 bits of those are read.
    """

    width: int
    height: int
    grey: bool
    top: int | None = None
    coarse: bool = False

    def __str__(self) -> str:
        return f"{self.width}x{self.height} in {'grey' if self.grey else 'colour'}"


class Form(NamedTuple):
    """The common form of the images of a set: `(channels, height, width)` uint8.

    resize: takes the centre square of any image and resizes it; else every image must have this size.
    convert: makes a colour image grey where there is one channel; else it is a misfit.
    white: the value of white in images of more than 8 bits; above it they are misfits.
    """

    channels: int
    height: int
    width: int
    resize: bool = False
    convert: bool = True
    white: int = WHITE

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def read_bytes(path: Path | str) -> bytes:
    """Return the bytes of the file at `path`.

    Raises:
        Broken: if it is empty, larger than MAX_BYTES, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise Broken(f"the file has {size:,} bytes; {MAX_BYTES:,} is the limit")
            data = file.read(size)
    except OSError as error:
        raise Broken(error.strerror or "it cannot be read") from error
    if not data:
        raise Broken("the file is empty")
    return data


def decode(data: bytes, form: Form) -> np.ndarray:
    """Return the pixels of an encoded image, `(channels, height, width)` uint8.

    Orientation of EXIF is undone; transparency shows white; 16-bit grey is scaled and rounded to 8 bits; of an
    animation, the first frame. Colour profiles are not applied.

    Raises:
        Broken: if the image is damaged, of none of FORMATS, or of more than MAX_PIXELS.
        Misfit: if it does not have the form, and the form does not resize or convert.
    """
    with _opened(io.BytesIO(data)) as image:
        if form.resize:
            # a JPEG decodes faster at 1/2, 1/4 or 1/8 of its size; twice the size is left for a good filter
            image.draft(None, (2 * form.width, 2 * form.height))
        flat = _upright(image, form.white)
    if form.resize:
        flat = _centre_square(flat).resize((form.width, form.height), Image.Resampling.BICUBIC)
    if flat.size != (form.width, form.height):
        raise Misfit(f"{flat.width}x{flat.height}", RESIZE)
    if form.channels == 1 and flat.mode != "L" and not form.convert:
        raise Misfit("in colour", COLOUR)
    pixels = np.asarray(flat.convert("L" if form.channels == 1 else "RGB"))
    return pixels.reshape(form.height, form.width, form.channels).transpose(2, 0, 1)


def read_image(path: Path, form: tuple[int, int, int] | None = None) -> np.ndarray:
    """Return the pixels of one image file `(channels, height, width)` uint8: as it is, or in the form of other images,
    `(channels, height, width)`.

    Of another size than the form it becomes its centre square, resized, as in a folder that is trained on.

    Raises:
        InputError: if it cannot be read, or has another size than a form that is not square.
    """
    try:
        with quiet():
            shape = inspect(path)
        channels, height, width = form or (1 if shape.grey else 3, shape.height, shape.width)
        fits = (shape.height, shape.width) == (height, width)
        if not fits and height != width:
            raise InputError(f"{path} is {shape.width}x{shape.height}: resize it to {width}x{height}")
        into = Form(channels, height, width, not fits, white=_white({str(path): shape}, None))
        with quiet():
            return decode(read_bytes(path), into)
    except (Broken, Misfit) as error:  # Misfit: of an image that its own header has not described
        raise InputError(f"{path} cannot be read ({error})") from error


def inspect(source: Path | IO[bytes]) -> Shape:
    """Read the upright size of an image, and whether it is grey, from its header, as far as that tells; of more than 8
    bits, its largest value too.

    Raises:
        Broken: if the header is damaged, or as `decode`.
    """
    with _opened(source) as image:
        grey, depth = _is_grey(image), _depth(image)
        if image.format == "TIFF":  # decoding turns it
            return Shape(*_upright(image, WHITE).size, grey, *depth)
        # a PNG without orientation in its header is decoded in search of it
        turned = (image.format != "PNG" or "exif" in image.info) and _orientation(image) >= 5
        return Shape(*(image.size[::-1] if turned else image.size), grey, *depth)


def common_form(
    sources: Iterable[tuple[str, Path | IO[bytes]]],
    size: int | None,
    channels: int | None,
    strict: bool = False,
    bits: int | None = None,
) -> tuple[Form, str]:
    """Return the form of the images of some files, and the first of them with its size, for messages.

    Args:
        sources: names and files.
        size: each image becomes its centre square, resized to size x size; without it, all must be of one size.
        channels: 1 or 3; by default 1 if all are grey, else 3.
        strict: one broken image is an error; else only if all are.
        bits: of images of more than 8; by default the fewest of DEPTHS that hold their values, which is noted.

    Raises:
        InputError: for broken images, those of different sizes, and colours of which decoding would leave few bits.
    """
    _check_options(size, channels)
    shapes, broken = _inspected(sources)
    if broken and (strict or not shapes):
        name, reason = next(iter(broken.items()))
        raise InputError(f"{name} cannot be read ({reason}); {len(broken)} of {len(broken) + len(shapes)} are broken")
    (first, shape), *others = shapes.items()
    example = f"{first} is {shape}"
    for name, other in others:
        if size is None and other[:2] != shape[:2]:
            raise InputError(unlike(example, name, Misfit(str(other), RESIZE)))
    grey, white = all(shape.grey for shape in shapes.values()), _white(shapes, bits, f"; {DEPTH}")
    depth, height, width = channels or (1 if grey else 3), size or shape.height, size or shape.width
    return Form(depth, height, width, bool(size), bool(channels), white), example


def _white(shapes: Mapping[str, Shape], bits: int | None, advice: str = "") -> int:
    """Return the value of white in images of more than 8 bits: as given, or guessed with a note."""
    tops = {name: shape.top for name, shape in shapes.items() if shape.top}
    if not tops:
        return WHITE if bits is None else 2**bits - 1
    name, top = max(tops.items(), key=lambda item: item[1])
    taken = bits or next((bits for bits in DEPTHS if top < 2**bits), DEPTHS[-1])
    coarse = next((name for name in tops if shapes[name].coarse), None)
    if coarse and taken < DEPTHS[-1]:
        raise InputError(
            f"{coarse}: {taken} bits of 16, of which only the upper 8 are read: store these images in 8 bits"
        )
    if bits is None and taken < DEPTHS[-1]:
        white = f"with white at {2**taken - 1:,}"
        note(f"{name} has the largest value, {top:,}: taking images of 16 bits as of {taken}, {white}{advice}")
    return 2**taken - 1


def _check_options(size: int | None, channels: int | None) -> None:
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise InputError(f"the image size must be from 1 to {MAX_SIZE}, not {size}")
    if channels not in (None, 1, 3):
        raise InputError(f"images have 1 or 3 channels, not {channels}")


def _inspected(sources: Iterable[tuple[str, Path | IO[bytes]]]) -> tuple[dict[str, Shape], dict[str, str]]:
    """Return the shapes of the images that can be read, and what is wrong with the others, by name."""
    shapes, broken = dict[str, Shape](), dict[str, str]()
    with quiet():
        for name, source in sources:
            try:
                shapes[name] = inspect(source)
            except Broken as error:
                broken[name] = str(error)
    return shapes, broken


def unlike(example: str, name: str, misfit: Misfit) -> str:
    """Return one line about an image that is not like the others."""
    return f"the images are not alike: {example}, and {name} is {misfit}; {misfit.advice}"


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Convert RGBA to RGB on the last axis, uint8: colour alpha + white (1 - alpha), rounded."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of decoders inside: what they warn of is decoded all the same, or is broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(source: Path | IO[bytes]) -> Iterator[ImageFile.ImageFile]:
    """Open an image and read only its header. Whatever is wrong with it, then or later, raises Broken."""
    try:
        with Image.open(source, formats=FORMATS) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise Broken(f"it has {image.width}x{image.height} pixels; {MAX_PIXELS:,} are the limit")
            yield image
    except UnidentifiedImageError as error:
        raise Broken(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except (Broken, Misfit):
        raise
    except Exception as error:  # on damaged data a decoder raises just anything
        raise Broken(getattr(error, "strerror", None) or first_line(error)) from error


def _upright(image: Image.Image, white: int) -> Image.Image:
    """Return the decoded image in mode L or RGB, rotated as its metadata say."""
    image.load()
    flat, turn = _flat(image, white), UPRIGHT.get(_orientation(image))
    return flat if turn is None else flat.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata of an image that was decoded
        return 1


def _is_grey(image: Image.Image) -> bool:
    return image.mode in (*GREY, *WIDE_GREY) or image.mode.startswith("I;16")


def _depth(image: ImageFile.ImageFile) -> tuple[int | None, bool]:
    """Return the `top` and `coarse` of the shape of an image that is not decoded yet."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return int(np.asarray(image).max()), False
    if not any(";16" in str(tile[3]) for tile in image.tile):
        return None, False
    colours = image.convert("L" if image.mode in GREY else "RGB")
    return 257 * int(np.asarray(colours).max()), True


def _flat(image: Image.Image, white: int) -> Image.Image:
    """Return an image in mode L or RGB, eight bits, without transparency."""
    grey = _is_grey(image)
    if grey and image.mode not in GREY:
        return Image.fromarray(_eight_bits(np.asarray(image), white, image.info.get("transparency")))
    if image.mode in ALPHA or "transparency" in image.info:
        image = Image.fromarray(over_white(np.asarray(image.convert("RGBA"))))
    return image.convert("L" if grey else "RGB")


def _eight_bits(grey: np.ndarray, white: int, transparent: object = None) -> np.ndarray:
    """Convert whole numbers up to `white`, or floats in [0, 1], to uint8; the value `transparent` becomes white."""
    top = 1.0 if grey.dtype.kind == "f" else float(white)
    if grey.dtype.kind != "f" and top < grey.max() <= WHITE:
        raise Misfit(f"of values up to {grey.max():,}, beyond white at {white:,}", DEPTH)
    if not (grey.min() >= 0 and grey.max() <= top):  # so written that NaN is refused too
        raise Broken(f"grey values outside 0 to {top:g}")
    level = np.rint(grey.astype(np.float64) * (255 / top)).astype(np.uint8)
    return np.where(grey == transparent, np.uint8(255), level) if isinstance(transparent, int) else level


def _centre_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
