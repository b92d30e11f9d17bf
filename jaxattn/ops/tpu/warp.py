"""Affine resampling of images for TPUs: matrix products instead of a gather per pixel.

A TPU reads each gathered pixel by a transfer of its own: four gathers of 256 images of 224×224
take several times as long as ResNet-50's whole step. Here the output is cut into tiles. What a tile
reads lies in a small window of its image, which products with zeros and ones cut out; a product
with the weights of each pixel's rows, and a sum with those of its columns, interpolates. As one
tile of all images follows the other, everything stays in the core's memory.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

#: Height and width of a tile. At 16 pixels, cutting windows out and interpolating cost the same.
TILE = 16

#: ``distance of a row or column from a place -> weight``.
Weights = Callable[[Array], Array]


def tent(distance: Array) -> Array:
    """Weights of linear interpolation."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def _count(length: int) -> Float[Array, "1 1 length"]:
    return jnp.arange(length, dtype=jnp.float32)[None, None]


def warp(
    images: UInt8[Array, "B H W C"],
    rows: Float[Array, "B H W"],
    columns: Float[Array, "B H W"],
    stretch: float,
    weights: Weights = tent,
) -> Float[Array, "B H W C"]:
    """Reads each image at places between its pixels.

    Args:
        images: Bytes.
        rows: Of the places, in [0, H - 1].
        columns: Of the places, in [0, W - 1].
        stretch: No two places of a tile are further apart in rows, or in columns, than this times
            ``TILE - 1``.
        weights: Of a row or column by its distance from a place; zero from one pixel on. Those of
            rows are rounded to bfloat16.

    Returns:
        The weighted sums of bytes, float32.
    """
    batch, height, width, channels = images.shape
    reach = math.ceil(stretch * (TILE - 1)) + 2
    window = min(height, reach), min(width, reach)
    planes = images.transpose(0, 3, 1, 2).astype(jnp.bfloat16)  # exact for bytes

    def tile(places: tuple[Array, Array]) -> Float[Array, "B C P"]:
        first = [
            jnp.minimum(jnp.floor(each.min(-1, keepdims=True)), side - length)
            for each, side, length in zip(places, (height, width), window, strict=True)
        ]
        cut_rows, cut_columns = (
            (start + _count(length)[0])[..., None] == _count(side)
            for start, length, side in zip(first, window, (height, width), strict=True)
        )
        cut = jnp.einsum("bih,bchw->bciw", cut_rows.astype(planes.dtype), planes)
        cut = jnp.einsum("bciw,bjw->bcij", cut, cut_columns.astype(planes.dtype))
        of_rows, of_columns = (
            weights((place - start)[..., None] - _count(length))
            for place, start, length in zip(places, first, window, strict=True)
        )
        between = jnp.einsum(
            *("bpi,bcij->bcpj", of_rows.astype(planes.dtype), cut),
            preferred_element_type=jnp.float32,
        )
        return (between * of_columns[:, None]).sum(-1)

    down, across = -(-height // TILE), -(-width // TILE)

    def tiles(places: Float[Array, "B H W"]) -> Float[Array, "tiles B P"]:
        missing = ((0, 0), (0, down * TILE - height), (0, across * TILE - width))
        padded = jnp.pad(places, missing, mode="edge").reshape(batch, down, TILE, across, TILE)
        return padded.transpose(1, 3, 0, 2, 4).reshape(down * across, batch, TILE**2)

    found = lax.map(tile, (tiles(rows), tiles(columns)))
    found = found.reshape(down, across, batch, channels, TILE, TILE).transpose(2, 0, 4, 1, 5, 3)
    return found.reshape(batch, down * TILE, across * TILE, channels)[:, :height, :width]
