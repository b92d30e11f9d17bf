"""Augmentation and normalisation on the device, inside the jitted step.

One affine map per image holds rotation, zoom, shift and flips; image and mask are read once through
it. Every random number is a pure function of the key.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8

from jaxattn.errors import InputError, suggestion

#: Weights of red, green and blue in the grey image (ITU-R BT.601, as torchvision has them).
GREY = (0.2989, 0.587, 0.114)

#: How uint8 pixels become the network's input.
NORMALISATIONS: Mapping[str, Callable[[Array], Array]] = {
    # keras.applications' "tf" mode, which Datta et al. 2021 released for every network.
    "minus_one_one": lambda pixels: pixels * 2.0 - 1.0,
    # As the papers of Datta et al. 2021 and Gessert et al. 2019 have it.
    "unit": lambda pixels: pixels,
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges to draw from, uniformly and independently for each image.

    Attributes:
        rotation: Largest angle to either side, degrees.
        shift: Largest shift down and across, a fraction of the height and width.
        zoom: Largest change of scale, drawn for height and width each: [1 - zoom, 1 + zoom].
        horizontal_flip: Whether half of the images are mirrored left to right.
        vertical_flip: Whether half of the images are mirrored top to bottom.
        brightness: Pixels are multiplied by a factor in [1 - brightness, 1 + brightness].
        contrast: Likewise the distance of each pixel from the image's mean grey.
        saturation: Likewise the distance of each pixel from its own grey.
    """

    rotation: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        for field in ("shift", "zoom", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"augment.{field}: {getattr(self, field)} given, 0 to 1 wanted")
        if self.zoom == 1:
            raise InputError(f"augment.zoom: {self.zoom} given, less than 1 wanted")

    @property
    def moves(self) -> bool:
        """Whether any pixel changes its place."""
        return bool(
            self.rotation or self.shift or self.zoom or self.horizontal_flip or self.vertical_flip
        )


def normalisation(name: str) -> Callable[[Array], Array]:
    """The function of ``NORMALISATIONS`` that maps pixels in [0, 1] to the network's input range.

    Raises:
        InputError: Unknown name.
    """
    if name not in NORMALISATIONS:
        raise InputError(f"normalisation: {name!r} given{suggestion(name, NORMALISATIONS)}")
    return NORMALISATIONS[name]


def augment(
    key: Key[Array, ""],
    images: UInt8[Array, "B H W 3"],
    masks: UInt8[Array, "B H W"] | None,
    ranges: Augmentation,
) -> tuple[Float[Array, "B H W 3"], UInt8[Array, "B H W"] | None]:
    """Draws one augmentation per image and applies it to the image and its mask alike.

    Args:
        key: Random key of this step.
        images: RGB.
        masks: In {0, 1}, or None.
        ranges: What to draw from.

    Returns:
        Float32 images in [0, 1] and the masks. Places outside the image show its nearest edge;
        images are read bilinearly, masks at the nearest pixel.
    """
    place, colour = jax.random.split(key)
    pixels = images.astype(jnp.float32) / 255.0
    if ranges.moves:
        count, height, width, _ = images.shape
        rows, columns = _coordinates(
            draw_affine(place, count, height, width, ranges), height, width
        )
        pixels = bilinear(pixels, rows, columns)
        if masks is not None:
            masks = nearest(masks, rows, columns)
    return _colour(colour, pixels, ranges), masks


def draw_affine(
    key: Key[Array, ""], count: int, height: int, width: int, ranges: Augmentation
) -> Float[Array, "B 2 3"]:
    """Draws the maps from (row, column, 1) of the output to (row, column) of the input.

    Rows and columns are pixels from the centre. Rotation and zoom act about the centre.
    """
    keys = jax.random.split(key, 5)
    uniform = lambda key, *shape: jax.random.uniform(key, (count, *shape), minval=-1.0)  # noqa: E731
    angle = jnp.deg2rad(ranges.rotation) * uniform(keys[0])
    scale = 1.0 / (1.0 + ranges.zoom * uniform(keys[1], 2))
    shift = ranges.shift * jnp.array([height, width]) * uniform(keys[2], 2)
    flips = jnp.array([ranges.vertical_flip, ranges.horizontal_flip])
    sign = jnp.where(flips & (uniform(keys[3], 2) < 0), -1.0, 1.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    linear = turn * (scale * sign)[:, None, :]
    return jnp.concatenate([linear, shift[..., None]], -1)


def _coordinates(
    affine: Float[Array, "B 2 3"], height: int, width: int
) -> tuple[Float[Array, "B H W"], Float[Array, "B H W"]]:
    """Rows and columns of the input that each pixel of the output shows."""
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    y = jnp.arange(height)[:, None] - centre[0]
    x = jnp.arange(width)[None, :] - centre[1]
    a = affine[..., None, None]
    rows = a[:, 0, 0] * y + a[:, 0, 1] * x + a[:, 0, 2] + centre[0]
    columns = a[:, 1, 0] * y + a[:, 1, 1] * x + a[:, 1, 2] + centre[1]
    return jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)


def _read(
    arrays: Shaped[Array, "B H W *C"], rows: Int[Array, "B h w"], columns: Int[Array, "B h w"]
) -> Shaped[Array, "B h w *C"]:
    return jax.vmap(lambda array, y, x: array[y, x])(arrays, rows, columns)


def nearest(
    arrays: Shaped[Array, "B H W *C"], rows: Float[Array, "B h w"], columns: Float[Array, "B h w"]
) -> Shaped[Array, "B h w *C"]:
    """Reads each array at the pixel nearest to the given place, which lies inside it."""
    whole = lambda place: jnp.round(place).astype(jnp.int32)  # noqa: E731
    return _read(arrays, whole(rows), whole(columns))


def bilinear(
    arrays: Float[Array, "B H W C"], rows: Float[Array, "B h w"], columns: Float[Array, "B h w"]
) -> Float[Array, "B h w C"]:
    """Reads each array at a place between four pixels, which lies inside it."""
    top, left = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    bottom = jnp.minimum(top + 1, arrays.shape[1] - 1)
    right = jnp.minimum(left + 1, arrays.shape[2] - 1)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    upper = _read(arrays, top, left) * (1 - across) + _read(arrays, top, right) * across
    lower = _read(arrays, bottom, left) * (1 - across) + _read(arrays, bottom, right) * across
    return upper * (1 - down) + lower * down


def _colour(
    key: Key[Array, ""], pixels: Float[Array, "B H W 3"], ranges: Augmentation
) -> Float[Array, "B H W 3"]:
    """Brightness, then contrast, then saturation, each as torchvision's ColorJitter has it."""
    keys = jax.random.split(key, 3)
    grey = lambda pixels: (pixels @ jnp.array(GREY))[..., None]  # noqa: E731

    def blend(index: int, limit: float, pixels: Array, other: Any) -> Array:
        shape = (len(pixels), 1, 1, 1)
        factor = 1.0 + limit * jax.random.uniform(keys[index], shape, minval=-1.0)
        return jnp.clip(factor * pixels + (1.0 - factor) * other, 0.0, 1.0)

    if ranges.brightness:
        pixels = blend(0, ranges.brightness, pixels, 0.0)
    if ranges.contrast:
        pixels = blend(1, ranges.contrast, pixels, grey(pixels).mean((1, 2, 3), keepdims=True))
    if ranges.saturation:
        pixels = blend(2, ranges.saturation, pixels, grey(pixels))
    return pixels
