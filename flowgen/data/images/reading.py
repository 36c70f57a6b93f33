"""Read images of any kind: digits, arrays, idx files, the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from flowgen.core import InputError
from flowgen.data.images.arrays import HUB, Images, make_images, prepared, read_array, read_digits, read_idx_folder
from flowgen.data.images.hub import read_hub

__all__ = ["read_images"]


def read_images(
    name: Path | str, size: int | None = None, channels: int | None = None, bits: int | None = None
) -> Images:
    """Read all images of that name into memory.

    - `digits`: the 1797 digits of scikit-learn, 8x8, float32 in [0, 1].
    - `FILE-images-idx3-ubyte`, `FILE.idx3-ubyte`, either with `.gz`; labels from the idx1 file beside it. Of a folder
      that holds `train-images*`, the training set, and `t10k-images*` or `test-images*` as the held-out rows.
    - `FILE.npy`, `FILE.npz`: `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`; the last axis is that of the channels where
      its length is 1, 3 or 4. Four uint8 channels are RGBA, and transparency shows white. In an `.npz` the array is
      `x`, `images`, `arr_0` or the only one, and whole numbers or names `y`, `labels` or `arr_1` are labels.
    - `hub:NAME`, see `flowgen.data.images.hub.read_hub`.

    Labels are numbered anew in their order, without gaps. An array of such a name that holds none is left out, and
    `no_labels` says why.

    Args:
        size: each image becomes its centre square, resized to size x size, antialiased.
        channels: 1 or 3; by default as many as the images have.
        bits: of image files from the hub that are stored in 16, see `open_folder`.

    Raises:
        InputError: for a file that is missing, damaged, of a wrong shape or type, or larger than MAX_BYTES; for NaN or
            infinite values; for labels that are negative, above a million, or of another number than the images.
    """
    text = str(name)
    if text.startswith(HUB):
        return read_hub(text, size, channels, bits)
    if bits is not None:
        raise InputError(f"{text}: images.bits is of image files, and these are arrays: leave it out")
    path = Path(name)
    if text != "digits" and path.is_dir():
        return read_idx_folder(path, size, channels)
    pixels, labels = read_digits() if text == "digits" else read_array(path)
    return make_images(prepared(pixels, text, size, channels), labels, name=text)
