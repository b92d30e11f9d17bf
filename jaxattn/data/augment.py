"""Augmentation and normalisation on the device, inside the jitted step.

One affine map per image combines everything that was drawn; image and mask are resampled once
through it. Flips, quarter turns and whole shifts alone move pixels without resampling. Every random
number is a pure function of the key.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8

from jaxattn.errors import invalid
from jaxattn.ops.tpu.warp import warp
from jaxattn.registry import Registry

#: Weights of red, green and blue in the grey image (ITU-R BT.601, as in torchvision).
GREY = (0.2989, 0.587, 0.114)


def _per_channel(values: tuple[float, ...], pixels: Float[Array | np.ndarray, "*dims 3"]) -> Array:
    return lax.broadcast_to_rank(jnp.array(values), pixels.ndim)


def _standardise(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Callable:
    return lambda pixels: (pixels - _per_channel(mean, pixels)) / _per_channel(deviation, pixels)


#: How pixels become the network's input: functions of RGB in [0, 1].
NORMALISATIONS: Registry[Callable[[Array], Array]] = Registry("normalisation")
NORMALISATIONS |= {
    # keras.applications' "tf" mode; Datta et al. 2021 released it for every network.
    "minus_one_one": lambda pixels: pixels * 2.0 - 1.0,
    # The papers of Datta et al. 2021 and Gessert et al. 2019.
    "unit": lambda pixels: pixels,
    # Köfler 2023: OpenCV's bytes.
    "bgr_255": lambda pixels: pixels[..., ::-1] * 255.0,
    # keras.applications' "caffe" mode: its VGG and ResNet.
    "caffe": lambda x: x[..., ::-1] * 255.0 - _per_channel((103.939, 116.779, 123.68), x),
    # keras.applications' "torch" mode: its DenseNet, and torchvision's networks.
    "imagenet": _standardise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Yan et al. 2019: mean and deviation of the training parts.
    "isic2016": _standardise((0.7012, 0.5517, 0.4875), (0.0942, 0.1331, 0.1521)),
    "isic2017": _standardise((0.6820, 0.5312, 0.4736), (0.0840, 0.1140, 0.1282)),
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges to draw from, uniformly and independently for each image; and what mixes images.

    Rotation, shift, shear and zoom are defined as in Keras' ``ImageDataGenerator``.

    Attributes:
        rotation: Largest angle to either side, degrees.
        shift: Largest shift, a fraction of the height and width: one number, or one down and one
            across. Whole pixels are drawn where rotation, shear and zoom are 0.
        shear: Largest shear angle to either side, degrees.
        zoom: Largest change of scale, drawn for height and width each: [1 - zoom, 1 + zoom].
        horizontal_flip: Whether half of the images are mirrored left to right.
        vertical_flip: Whether half of the images are mirrored top to bottom.
        quarter_turns: Whether images are turned by 0, 90, 180 or 270 degrees, equally often.
        brightness: Pixels are multiplied by a factor in [1 - brightness, 1 + brightness].
        contrast: The same for the distance of each pixel from the image's mean grey.
        saturation: The same for the distance of each pixel from its own grey.
        hue: Largest turn of the hue to either side, a share of the colour circle.
        gamma: Pixels are raised to a power in [1 - gamma, 1 + gamma].
        mixup: See `jaxattn.data.mixing.Mixing`, which mixes what the network sees.
        cutmix: Likewise.
    """

    rotation: float = 0.0
    shift: float | Sequence[Any] = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        for field in ("zoom", "brightness", "contrast", "saturation", "hue", "gamma"):
            _check_fraction(field, getattr(self, field))
        for field in ("zoom", "gamma"):
            if getattr(self, field) == 1:
                raise invalid(f"augment.{field}", "less than 1", 1.0)
        if self.hue > 0.5:
            raise invalid("augment.hue", "a number in [0, 0.5]", self.hue)
        if not abs(self.shear) < 90:
            raise invalid("augment.shear", "less than 90 degrees", self.shear)
        if len(self.shifts) != 2:
            raise invalid("augment.shift", "one number or a pair", self.shift)
        for shift in self.shifts:
            _check_fraction("shift", shift)

    @property
    def shifts(self) -> tuple[float, ...]:
        """The largest shift down and the largest across."""
        if isinstance(self.shift, int | float):
            return self.shift, self.shift
        return tuple(self.shift)

    def whole_shifts(self, height: int, width: int) -> tuple[int, int]:
        """The largest shifts in whole pixels."""
        down, across = self.shifts
        return round(down * height), round(across * width)

    @property
    def resamples(self) -> bool:
        """Whether images are interpolated."""
        return bool(self.rotation or self.shear or self.zoom)

    @property
    def stretch(self) -> float:
        """The most rows, or columns, between what two pixels a row or column apart can show.

        Of a pixel one row and one column further: the largest sum of a row of the affine map.
        """
        angle = math.radians(min(abs(self.rotation), 45.0))
        turned = math.cos(angle) + math.sin(angle)
        return turned * (1 + math.sin(math.radians(abs(self.shear)))) * (1 + self.zoom)

    @property
    def moves(self) -> bool:
        """Whether any pixel moves."""
        flips = self.horizontal_flip or self.vertical_flip or self.quarter_turns
        return bool(self.resamples or any(self.shifts) or flips)


def _check_fraction(field: str, value: Any) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise invalid(f"augment.{field}", "a number in [0, 1]", value)


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
        masks: Small integers, or None.
        ranges: What to draw from.

    Returns:
        Float32 images in [0, 1] and the masks. Places outside the image show its nearest edge.
        Images are resampled bilinearly, masks by nearest neighbour, unless nothing that was drawn
        `resamples <Augmentation.resamples>`. On a TPU, weights are rounded to bfloat16: images
        differ by at most 1/255.

    Raises:
        InputError: Quarter turns of images that are not square.
    """
    place, colour = jax.random.split(key)
    count, height, width, _ = images.shape
    if ranges.quarter_turns and height != width:
        raise invalid("augment.quarter_turns", "square images", f"{height}x{width}")
    moves = draw(place, count, height, width, ranges)
    if not ranges.resamples:
        if ranges.moves:
            images = move_pixels(images, moves, ranges)
            masks = None if masks is None else move_pixels(masks, moves, ranges)
        return _colour(colour, images.astype(jnp.float32) / 255.0, ranges), masks
    rows, columns = _coordinates(affine(moves), height, width)
    pixels = lax.platform_dependent(
        *(images, rows, columns),
        tpu=lambda images, rows, columns: warp(images, rows, columns, ranges.stretch) / 255.0,
        default=lambda images, *places: bilinear(images.astype(jnp.float32) / 255.0, *places),
    )
    if masks is not None:
        masks = lax.platform_dependent(
            *(masks, rows, columns),
            tpu=functools.partial(_nearest_on_tpu, stretch=ranges.stretch),
            default=nearest,
        )
    return _colour(colour, pixels, ranges), masks


class Moves(NamedTuple):
    """What was drawn for each image, in the order in which it maps a place of the output.

    Pairs are (rows, columns).
    """

    flip: Bool[Array, "B 2"]
    turns: Int[Array, " B"]  # quarter turns, counter-clockwise, 0 to 3
    zoom: Float[Array, "B 2"]
    shear: Float[Array, " B"]  # radians
    shift: Float[Array, "B 2"]  # pixels
    angle: Float[Array, " B"]  # radians


def draw(key: Key[Array, ""], count: int, height: int, width: int, ranges: Augmentation) -> Moves:
    """Draws the moves of ``count`` images of ``height`` x ``width`` pixels."""
    keys = jax.random.split(key, 6)
    uniform = lambda key, *shape: jax.random.uniform(key, (count, *shape), minval=-1.0)  # noqa: E731
    if ranges.resamples:
        largest = jnp.array(ranges.shifts, jnp.float32) * jnp.array([height, width], jnp.float32)
        shift = largest[None] * uniform(keys[2], 2)
    else:
        whole = jnp.array([ranges.whole_shifts(height, width)])
        shift = jax.random.randint(keys[2], (count, 2), -whole, whole + 1).astype(jnp.float32)
    flips = jnp.array([ranges.vertical_flip, ranges.horizontal_flip])
    return Moves(
        flip=flips[None] & (uniform(keys[3], 2) < 0),
        turns=jax.random.randint(keys[5], (count,), 0, 4 if ranges.quarter_turns else 1),
        zoom=1.0 + ranges.zoom * uniform(keys[1], 2),
        shear=jnp.deg2rad(ranges.shear) * uniform(keys[4]),
        shift=shift,
        angle=jnp.deg2rad(ranges.rotation) * uniform(keys[0]),
    )


def move_pixels(
    arrays: Shaped[Array, "B H W *C"], moves: Moves, ranges: Augmentation
) -> Shaped[Array, "B H W *C"]:
    """Shifts, turns and flips arrays without changing their values.

    Args:
        arrays: Images or masks.
        moves: What was drawn; its shifts are whole numbers.
        ranges: What it was drawn from; moves that cannot happen cost nothing.
    """
    limits = ranges.whole_shifts(*arrays.shape[1:3])
    channels = (0,) * (arrays.ndim - 3)
    if any(limits):
        border = [(n, n) for n in (0, *limits, *channels)]
        cut = jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (*at, *channels), arrays.shape[1:]))
        start = moves.shift.astype(jnp.int32) + jnp.array([limits])
        arrays = cut(jnp.pad(arrays, border, mode="edge"), start)

    def where(chosen: Bool[Array, " B"], changed: Array) -> Array:
        return jnp.where(chosen.reshape(-1, 1, 1, *(1 for _ in channels)), changed, arrays)

    # A quarter turn is a transposition and a flip, half a turn is both flips.
    down = moves.flip[:, 0] ^ ((moves.turns == 1) | (moves.turns == 2))
    across = moves.flip[:, 1] ^ (moves.turns >= 2)
    if ranges.quarter_turns:
        arrays = where(moves.turns % 2 == 1, jnp.swapaxes(arrays, 1, 2))
    if ranges.vertical_flip or ranges.quarter_turns:
        arrays = where(down, arrays[:, ::-1])
    if ranges.horizontal_flip or ranges.quarter_turns:
        arrays = where(across, arrays[:, :, ::-1])
    return arrays


def affine(moves: Moves) -> Float[Array, "B 2 3"]:
    """The maps from (row, column, 1) of the output to (row, column) of the input.

    Rows and columns are pixels from the centre. The order is Keras':
    ``rotation @ shift @ shear @ zoom @ turns @ flip``.
    """
    zero, one = jnp.zeros_like(moves.angle), jnp.ones_like(moves.angle)
    shear = _matrix(jnp.cos(moves.shear), zero, -jnp.sin(moves.shear), one)
    turn = _rotation(jnp.deg2rad(90.0) * moves.turns.astype(jnp.float32))
    turn *= jnp.where(moves.flip, -1.0, 1.0)[:, None]
    # TF32, the default of some GPUs, would move corners by a tenth of a pixel.
    with jax.default_matmul_precision("highest"):
        linear = shear @ (moves.zoom[..., None] * turn)
        moved = jnp.concatenate([linear, moves.shift[..., None]], -1)
        return _rotation(moves.angle) @ moved


def _matrix(a: Array, b: Array, c: Array, d: Array) -> Float[Array, "B 2 2"]:
    return jnp.stack([jnp.stack([a, b], -1), jnp.stack([c, d], -1)], -2)


def _rotation(angle: Float[Array, " B"]) -> Float[Array, "B 2 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _matrix(cos, sin, -sin, cos)


def _coordinates(
    affine: Float[Array, "B 2 3"], height: int, width: int
) -> tuple[Float[Array, "B H W"], Float[Array, "B H W"]]:
    """The row and column of the input for each pixel of the output."""
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None] - centre[0]
    x = jnp.arange(width, dtype=jnp.float32)[None, None] - centre[1]
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
    """Reads each array at the pixel nearest to each place, all inside the array."""
    whole = lambda place: jnp.round(place).astype(jnp.int32)  # noqa: E731
    return _read(arrays, whole(rows), whole(columns))


def _nearest_on_tpu(
    masks: UInt8[Array, "B H W"],
    rows: Float[Array, "B H W"],
    columns: Float[Array, "B H W"],
    stretch: float,
) -> UInt8[Array, "B H W"]:
    # Rounded first, as between two pixels the distance does not tell which one `nearest` takes.
    exact = lambda distance: (distance == 0).astype(jnp.float32)  # noqa: E731
    found = warp(masks[..., None], jnp.round(rows), jnp.round(columns), stretch, exact)
    return found[..., 0].astype(masks.dtype)


def bilinear(
    arrays: Float[Array, "B H W C"], rows: Float[Array, "B h w"], columns: Float[Array, "B h w"]
) -> Float[Array, "B h w C"]:
    """Interpolates each array at places between four pixels, all inside the array."""
    top, left = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    bottom = jnp.minimum(top + 1, arrays.shape[1] - 1)
    right = jnp.minimum(left + 1, arrays.shape[2] - 1)
    down, across = (
        (place - first.astype(jnp.float32))[..., None]
        for place, first in ((rows, top), (columns, left))
    )
    upper = _read(arrays, top, left) * (1 - across) + _read(arrays, top, right) * across
    lower = _read(arrays, bottom, left) * (1 - across) + _read(arrays, bottom, right) * across
    return upper * (1 - down) + lower * down


def _colour(
    key: Key[Array, ""], pixels: Float[Array, "B H W 3"], ranges: Augmentation
) -> Float[Array, "B H W 3"]:
    """Brightness, contrast, saturation and hue, each like torchvision's ColorJitter; then gamma.

    The first four are those of Perez et al. 2018, gamma is that of Isensee et al. 2021.
    """
    keys = jax.random.split(key, 5)
    grey = lambda pixels: (pixels @ jnp.array(GREY))[..., None]  # noqa: E731

    def drawn(index: int, limit: float) -> Array:
        return limit * jax.random.uniform(keys[index], (len(pixels), 1, 1, 1), minval=-1.0)

    def blend(index: int, limit: float, pixels: Array, other: Any) -> Array:
        factor = 1.0 + drawn(index, limit)
        return jnp.clip(factor * pixels + (1.0 - factor) * other, 0.0, 1.0)

    if ranges.brightness:
        pixels = blend(0, ranges.brightness, pixels, 0.0)
    if ranges.contrast:
        pixels = blend(1, ranges.contrast, pixels, grey(pixels).mean((1, 2, 3), keepdims=True))
    if ranges.saturation:
        pixels = blend(2, ranges.saturation, pixels, grey(pixels))
    if ranges.hue:
        pixels = turn_hue(pixels, drawn(3, ranges.hue)[..., 0])
    if ranges.gamma:
        pixels = pixels ** (1.0 + drawn(4, ranges.gamma))
    return pixels


def turn_hue(
    pixels: Float[Array, "B H W 3"], turns: Float[Array, "B 1 1"]
) -> Float[Array, "B H W 3"]:
    """Turns the hue, and keeps value and saturation (Smith 1978, the HSV hexcone).

    Args:
        pixels: RGB in [0, 1].
        turns: Of each image, in turns of the colour circle.
    """
    red, green, blue = jnp.moveaxis(pixels, -1, 0)
    value = pixels.max(-1)
    chroma = value - pixels.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    hue = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    hue = (hue + 6.0 * turns)[..., None]
    place = jnp.mod(hue + _per_channel((5.0, 3.0, 1.0), pixels), 6.0)
    less = jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0)
    return value[..., None] - chroma[..., None] * less
