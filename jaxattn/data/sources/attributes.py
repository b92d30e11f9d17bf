"""Dermoscopic attributes that experts annotated: one mask per image, one bit per attribute.

ISIC 2017 (Codella et al., arXiv:1710.05006, Part 2) annotates superpixels: a PNG whose colours
number the superpixel of each pixel, and a JSON with 0 or 1 for each superpixel and attribute.
ISIC 2018 (Codella et al., arXiv:1902.03368, Task 2) has one binary mask per attribute.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from jaxattn.data import images
from jaxattn.errors import invalid

#: The attributes; bit i of a mask is the i-th.
NAMES = ("pigment_network", "negative_network", "milia_like_cyst", "streaks", "globules")
#: Keys of the two files of ISIC 2017 Part 2, in place of attribute names.
SUPERPIXELS, ANNOTATIONS = "superpixels", "annotations"


def encode(
    files: Mapping[str, Path],
    image_path: Path,
    image_size: tuple[int, int],
    size: tuple[int, int],
) -> bytes:
    """Reads the attributes of an image and writes them as one PNG.

    Args:
        files: Masks by the name of their attribute, or the two files of ISIC 2017 as
            ``superpixels`` and ``annotations``.
        image_path: The image's file, for errors.
        image_size: ``(width, height)`` of the image's file; masks must have its aspect ratio.
        size: ``(width, height)`` to write.

    Returns:
        PNG bytes, uint8 with bit i set where attribute i of ``NAMES`` is.

    Raises:
        InputError: A file cannot be read, has another aspect ratio than its image, or the two
            files of ISIC 2017 do not match.
    """
    if SUPERPIXELS in files:
        numbers = read_superpixels(files[SUPERPIXELS])
        images.check_aspect(numbers, files[SUPERPIXELS], image_path, image_size)
        bits = _read_annotations(files[ANNOTATIONS], files[SUPERPIXELS], int(numbers.max()) + 1)
        return images.encode_values(bits[numbers], size)
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
        with images.opened(path.read_bytes(), ("PNG",)) as image:
            colours = np.asarray(image.convert("RGB"))
    except images.DECODE_ERRORS as error:
        raise images.undecodable(path, "PNG", error) from error
    red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
    return red | green << 8 | blue << 16


def _read_annotations(
    path: Path, superpixels: Path, count: int
) -> UInt8[np.ndarray, " superpixels"]:
    """The bits of each of ``count`` superpixels."""
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        given = f"a file that cannot be read ({error})"
        raise invalid(str(path), "a JSON object", given) from error
    present = annotations.keys() & set(NAMES) if isinstance(annotations, dict) else ()
    if not present:
        raise invalid(str(path), f"a JSON object with some of {', '.join(NAMES)}", "none of them")
    bits = np.zeros(count, np.uint8)
    for name in present:
        values = annotations[name]
        if not isinstance(values, list) or any(value not in (0, 1) for value in values):
            raise invalid(f"{path}, {name}", "0 or 1 for each superpixel", "something else")
        if len(values) < count:
            expected = f"{count} values, one for each superpixel of {superpixels}"
            raise invalid(f"{path}, {name}", expected, len(values))
        bits |= np.array(values[:count], np.uint8) << NAMES.index(name)
    return bits
