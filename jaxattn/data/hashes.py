"""Hashes of what an image shows, to find the same photograph under two names.

`pixels` finds copies of the same pixels. `perceptual` finds near-duplicates: the same photograph
re-encoded, resized, made brighter, mirrored or turned. Measured on HAM10000 at 256×256 (400 images;
50 million pairs of different lesions): copies at JPEG quality 30, at half the size, at another
aspect ratio, turned, or 15 % brighter lie within ``NEAR`` in 95 to 100 % of cases, cropped by 2 %
in less than half; one pair of two lesions does, and it shows one photograph in two colour balances.

ImageHash's pHash compares with a median, so that the hash of a mirrored image is another one; signs
of the cosine transform change in a known way.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt64
from PIL import Image

#: Bits that differ between near-duplicates, at most, of 255: in the whole hash and in the 63 of its
#: lowest frequencies.
NEAR = 20
_NEAR_LOW = 12
_SIDE, _LOW = 16, 8


class Pairs(NamedTuple):
    """Pairs of images, one of each of two sets.

    Attributes:
        first: Positions in the first set, int64 ``(n,)``.
        second: Positions in the second set, int64 ``(n,)``.
    """

    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]


def pixels(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """SHA-256 of an image's size and RGB values, 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def perceptual(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """The signs of the 16×16 lowest frequencies of the grey image, 64 hexadecimal digits.

    The first 64 bits are the 8×8 lowest ones; the first bit, of the mean, is 0.
    """
    from scipy.fft import dctn  # imports slowly

    size = 4 * _SIDE, 4 * _SIDE
    grey = Image.fromarray(image).convert("L")
    small = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    frequencies = dctn(np.asarray(small, np.float32), norm="ortho")[:_SIDE, :_SIDE]
    positive = frequencies > 0
    positive[0, 0] = False
    return np.packbits(positive.ravel()[_order()]).tobytes().hex()


def same(first: np.ndarray, second: np.ndarray) -> Pairs:
    """Pairs of equal hashes that are not empty.

    Args:
        first: Hashes of one set, ``(N,)`` of text.
        second: Hashes of the other.
    """
    order = np.argsort(second, kind="stable")
    start = np.searchsorted(second, first, "left", sorter=order)
    count = np.searchsorted(second, first, "right", sorter=order) - start
    count[first == ""] = 0
    rows = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    return Pairs(rows, order[np.repeat(start, count) + within])


def near(first: np.ndarray, second: np.ndarray) -> Pairs:
    """Pairs of images that are near-duplicates, also mirrored or turned by quarters.

    Args:
        first: Perceptual hashes of one set, ``(N,)`` of text; '' is like no other.
        second: Perceptual hashes of the other.
    """
    if len(first) > len(second):  # the moves are made of the smaller set
        return Pairs(*reversed(near(second, first)))
    (rows, words), (others, theirs) = _known(first), _known(second)
    found: set[tuple[int, int]] = set()
    for moved in _moves(words):
        for start in range(0, len(moved), 256):
            part = moved[start : start + 256]
            low = np.bitwise_count(part[:, None, 0] ^ theirs[None, :, 0])
            i, j = np.nonzero(low <= _NEAR_LOW)
            distance = np.bitwise_count(part[i] ^ theirs[j]).sum(axis=1)
            close = distance <= NEAR
            found.update(zip((i[close] + start).tolist(), j[close].tolist(), strict=True))
    pairs = np.array(sorted(found), np.int64).reshape(-1, 2)
    return Pairs(rows[pairs[:, 0]], others[pairs[:, 1]])


def _known(hashes: np.ndarray) -> tuple[Int[np.ndarray, " n"], UInt64[np.ndarray, "n 4"]]:
    """The positions of hashes that are not empty, and those hashes as four words."""
    rows = np.flatnonzero(hashes != "")
    words = np.frombuffer(bytes.fromhex("".join(hashes[rows].tolist())), np.uint64)
    return rows, words.reshape(-1, 4)


def _moves(words: UInt64[np.ndarray, "n 4"]) -> Iterator[UInt64[np.ndarray, "n 4"]]:
    """The hashes of the images in the eight ways of mirroring and turning them.

    Mirroring changes the sign of the odd frequencies, transposing swaps the two directions.
    """
    order, back = _order(), np.argsort(_order())
    square = np.unpackbits(words.view(np.uint8), axis=1)[:, back].reshape(-1, _SIDE, _SIDE)
    odd = (np.arange(_SIDE) % 2).astype(np.uint8)
    for turned in (square, square.swapaxes(1, 2)):
        for down in (odd[:, None] * 0, odd[:, None]):
            for across in (odd * 0, odd):
                bits = (turned ^ down ^ across).reshape(len(words), _SIDE**2)[:, order]
                yield np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)


@functools.cache
def _order() -> np.ndarray:
    """The frequencies, flat, with the lowest 8×8 first."""
    low = np.zeros((_SIDE, _SIDE), bool)
    low[:_LOW, :_LOW] = True
    return np.argsort(~low.ravel(), kind="stable")
