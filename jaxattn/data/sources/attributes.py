"""Dermoscopic features that experts marked in an image: one mask, a bit for each feature.

ISIC 2017 (Codella et al., arXiv:1710.05006, Part 2) marks superpixels: a PNG that colours each
pixel with the number of its superpixel, and a JSON with 0 or 1 for each superpixel and feature.
ISIC 2018 (Codella et al., arXiv:1902.03368, Task 2) has a binary mask for each feature.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from jaxattn.data import images
from jaxattn.errors import InputError

#: The features; bit i of a mask is the i-th.
NAMES = ("pigment_network", "negative_network", "milia_like_cyst", "streaks", "globules")
#: How the files of ISIC 2017 Part 2 are called in a row, beside the features' names.
SUPERPIXELS, MARKS = "superpixels", "features"


def encode(
    files: Mapping[str, Path],
    image_path: Path,
    image_size: tuple[int, int],
    size: tuple[int, int],
) -> bytes:
    """Reads what was marked in an image and writes it as one PNG.

    Args:
        files: Masks by the name of their feature, or the two files of ISIC 2017 as ``superpixels``
            and ``features``.
        image_path: The image's file, to be named in errors.
        image_size: ``(width, height)`` of the image's file, whose aspect ratio masks must have.
        size: ``(width, height)`` to write.

    Returns:
        PNG bytes, uint8 with bit i set where feature i of ``NAMES`` is.

    Raises:
        InputError: A file cannot be read, is of another aspect ratio than its image, or the two
            files of ISIC 2017 do not belong together.
    """
    if SUPERPIXELS in files:
        index = read_superpixels(files[SUPERPIXELS])
        images.check_aspect(index, files[SUPERPIXELS], image_path, image_size)
        bits = _marked(files[MARKS], files[SUPERPIXELS], int(index.max()) + 1)
        return images.encode_values(bits[index], size)
    resized = []
    for name, path in files.items():
        mask = images.read_mask(path)
        images.check_aspect(mask, path, image_path, image_size)
        bit = np.uint8(1 << NAMES.index(name))
        resized.append(images.resize_values(np.where(mask, bit, np.uint8(0)), size))
    return images.encode_values(np.bitwise_or.reduce(resized), size)


def read_superpixels(path: Path) -> Int[np.ndarray, "H W"]:
    """Reads the number of each pixel's superpixel: R + 256 G + 65536 B.

    Raises:
        InputError: The file cannot be decoded completely.
    """
    try:
        with Image.open(path, formats=("PNG",)) as file:
            colours = np.asarray(file.convert("RGB"))
    except images.DECODE_ERRORS as error:
        raise InputError(f"{path}: cannot be decoded ({error}), wanted a whole PNG") from error
    red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
    return red | green << 8 | blue << 16


def _marked(path: Path, superpixels: Path, count: int) -> UInt8[np.ndarray, " superpixels"]:
    """The bits of each superpixel."""
    try:
        marks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}), wanted a JSON object") from error
    known = marks.keys() & set(NAMES) if isinstance(marks, dict) else ()
    if not known:
        raise InputError(f"{path}: wanted a JSON object with some of {', '.join(NAMES)}")
    bits = np.zeros(count, np.uint8)
    for name in known:
        values = marks[name]
        if not isinstance(values, list) or any(value not in (0, 1) for value in values):
            raise InputError(f"{path}, {name}: wanted 0 or 1 for each superpixel")
        if len(values) < count:
            raise InputError(
                f"{path}, {name}: given {len(values)} values, wanted one for each of the {count} "
                f"superpixels of {superpixels}"
            )
        bits |= np.array(values[:count], np.uint8) << NAMES.index(name)
    return bits
