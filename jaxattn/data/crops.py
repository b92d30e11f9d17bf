"""Crops: what a network sees of an image (Gessert et al. 2019, section II-D).

Crops are cut on the device, inside the jitted step, from the whole augmented image: no pixel is
decoded or sent twice, however many crops show it.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxattn.data.dataset import height_width
from jaxattn.errors import invalid, unknown

STRATEGIES = ("none", "downsampling", "single", "random", "multi", "ordered")
COUNTS = (1, 4, 5, 9, 16)

#: Side in pixels of the square that one value covers in the maps of `Crops.on_image`.
CELL = 8

# torchvision's RandomResizedCrop: range of width / height, and draws until a part fits the image.
_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Crops:
    """How an image becomes the network's input.

    Attributes:
        strategy: ``none``: the whole image. ``downsampling``: the whole image, resized.
            ``single``: a random part, resized (torchvision's ``RandomResizedCrop``); in evaluation
            the centre, resized. ``random``: a random crop; in evaluation the crop in the centre.
            ``multi``: a random crop; in evaluation the ordered crops, each classified by itself.
            ``ordered``: always the ordered crops, seen together by a model that takes
            ``(B, NC, H, W, 3)``.
        size: Height and width of the network's input in pixels: one number or a pair.
        count: Number NC of ordered crops, one of ``COUNTS``.
        dropout: ``ordered``: probability p_d that training blackens a crop.
        vote: ``multi``: whether crops vote for a class instead of averaging their probabilities.
        least_area: ``single``: smallest part to draw, a share of the image's area.
        centre: ``single``: height and width of the centre, a share of the image's (Gessert et al.
            2019 say 0.85), or from 2 on the side of a square in pixels (their code takes 336).

    Raises:
        InputError: A field is wrong.
    """

    strategy: str = "none"
    size: int | tuple[int, int] = 224
    count: int = 9
    dropout: float = 0.1
    vote: bool = False
    least_area: float = 0.08
    centre: float = 0.85

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise unknown("crops.strategy", self.strategy, STRATEGIES)
        if self.count not in COUNTS:
            raise invalid("crops.count", f"one of {COUNTS}", self.count)
        for field, low in (("dropout", 0.0), ("least_area", 0.001)):
            value = getattr(self, field)
            if not low <= value <= 1:
                raise invalid(f"crops.{field}", f"a number in [{low}, 1]", value)
        if not (0.1 <= self.centre <= 1 or self.centre >= 2):
            raise invalid("crops.centre", "a share in [0.1, 1], or 2 or more pixels", self.centre)
        height_width(self.size, "crops.size")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the network's input, or of one crop in it."""
        return height_width(self.size, "crops.size")

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of the network's input for one image of ``height`` x ``width`` pixels.

        Raises:
            InputError: The crops are larger than the image.
        """
        if self.strategy == "none":
            return height, width, 3
        if self.strategy in ("random", "multi", "ordered"):
            corners(self.count, (height, width), self.shape)
        return (*((self.count,) if self.strategy == "ordered" else ()), *self.shape, 3)

    def training(
        self,
        key: Key[Array, ""],
        pixels: Float[Array, "B H W C"],
        masks: Float[Array, "B H W"] | None = None,
    ) -> tuple[Float[Array, "B *NC h w C"], Float[Array, "B *NC h w"] | None]:
        """The network's input in training, drawn for each image, and its masks, cut alike.

        Args:
            key: Random key of this step.
            pixels: Images in [0, 1].
            masks: Masks in [0, 1], or None.
        """
        if masks is None:
            return self._training(key, pixels), None
        both = jnp.concatenate([pixels, masks[..., None]], axis=-1)  # to be cut at once
        both = self._training(key, both)
        return both[..., :-1], both[..., -1]

    def _training(
        self, key: Key[Array, ""], arrays: Float[Array, "B H W C"]
    ) -> Float[Array, "B *NC h w C"]:
        if self.strategy == "single":
            return self._resized(arrays, *self._draw_parts(key, *arrays.shape[:3]))
        if self.strategy in ("random", "multi"):
            return self._draw_crops(key, arrays)
        if self.strategy == "ordered":
            kept = jax.random.bernoulli(key, 1 - self.dropout, (len(arrays), self.count))
            return self._ordered(arrays) * kept[..., None, None, None].astype(arrays.dtype)
        return self.evaluation(arrays)

    def evaluation(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "inputs *NC h w C"]:
        """The network's input in evaluation; with ``multi``, NC consecutive inputs per image."""
        if self.strategy == "ordered":
            return self._ordered(pixels)
        if self.strategy == "multi":
            return self._ordered(pixels).reshape(-1, *self.shape, pixels.shape[-1])
        if self.strategy == "none":
            return pixels
        part = pixels[:, *self.field(*pixels.shape[1:3])]
        return jax.image.resize(part, (pixels.shape[0], *self.shape, pixels.shape[-1]), "linear")

    def field(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of an image that evaluation sees and attention maps cover."""
        share = self.centre if self.strategy == "single" else 1.0
        lengths = int(share * height), int(share * width)
        if share >= 2:
            lengths = min(int(share), height), min(int(share), width)
        if self.strategy == "random":
            lengths = self.shape
        top, left = (height - lengths[0]) // 2, (width - lengths[1]) // 2
        return slice(top, top + lengths[0]), slice(left, left + lengths[1])

    def combine(self, probabilities: Float[Array, "inputs C"]) -> Float[Array, "B C"]:
        """Probabilities per image; ``multi`` averages over its crops, or counts their votes."""
        if self.strategy != "multi":
            return probabilities
        classes = probabilities.shape[-1]
        if self.vote:
            probabilities = jax.nn.one_hot(probabilities.argmax(-1), classes)
        return probabilities.reshape(-1, self.count, classes).mean(1)

    def on_image(
        self, maps: Float[Array, "inputs K h w"], height: int, width: int
    ) -> Float[Array, "B heads rows columns"]:
        """Places the attention maps of crops in the image.

        Args:
            maps: ``multi``: K maps per crop. ``ordered``: one map per crop, K = NC. Otherwise maps
                of the image's `field`, returned unchanged.
            height: Height of the image in pixels.
            width: Width of the image in pixels.

        Returns:
            One value per ``CELL`` x ``CELL`` pixels of the image: the mean over the crops that show
            them, 0 where none does.
        """
        if self.strategy not in ("multi", "ordered"):
            return maps
        heads = maps.shape[1] if self.strategy == "multi" else 1
        per_crop = maps.reshape(-1, self.count, heads, *maps.shape[2:])
        centres = [np.arange(CELL // 2, side, CELL) for side in (height, width)]
        total, shown = jnp.zeros(()), np.zeros([len(c) for c in centres])
        for i, corner in enumerate(corners(self.count, (height, width), self.shape)):
            (rows, y), (columns, x) = (
                _cells(at - start, side, cells)
                for at, start, side, cells in zip(
                    centres, corner, self.shape, maps.shape[2:], strict=True
                )
            )
            inside = np.outer(rows, columns).astype(np.float32)
            values = per_crop[:, i, :, y[:, None], x[None, :]].transpose(2, 3, 0, 1)
            total = total + values * inside[None, None]
            shown += inside
        return total / np.maximum(shown, 1)[None, None]

    def _ordered(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B NC h w C"]:
        height, width = self.shape
        places = corners(self.count, pixels.shape[1:3], self.shape).tolist()
        return jnp.stack([pixels[:, y : y + height, x : x + width] for y, x in places], axis=1)

    def _draw_crops(
        self, key: Key[Array, ""], arrays: Float[Array, "B H W C"]
    ) -> Float[Array, "B h w C"]:
        room = jnp.array(arrays.shape[1:3]) - jnp.array(self.shape) + 1
        places = jax.random.randint(key, (len(arrays), 2), 0, room[None])
        size = (*self.shape, arrays.shape[-1])
        return jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (*at, 0), size))(arrays, places)

    def _draw_parts(
        self, key: Key[Array, ""], count: int, height: int, width: int
    ) -> tuple[Float[Array, "B 2"], Float[Array, "B 2"]]:
        """Top left corner and size, in whole pixels, of a random part of each image."""
        of_area, of_ratio, of_corner = jax.random.split(key, 3)
        draws = (count, _ATTEMPTS)
        area = height * width * jax.random.uniform(of_area, draws, minval=self.least_area)
        low, high = map(math.log, _RATIOS)
        ratio = jnp.exp(jax.random.uniform(of_ratio, draws, minval=low, maxval=high))
        sizes = jnp.round(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)], -1))
        whole = jnp.array([[height, width]], jnp.float32)
        fits = ((sizes >= 1) & (sizes <= whole[None])).all(-1)
        first = jnp.take_along_axis(sizes, fits.argmax(1)[:, None, None], axis=1)[:, 0]
        size = jnp.where(fits.any(1)[:, None], first, whole)
        room = whole - size + 1
        corner = jnp.floor(room * jax.random.uniform(of_corner, (count, 2)))
        return jnp.minimum(corner, room - 1), size

    def _resized(
        self,
        pixels: Float[Array, "B H W C"],
        corner: Float[Array, "B 2"],
        size: Float[Array, "B 2"],
    ) -> Float[Array, "B h w C"]:
        """Resizes parts of images, antialiased bilinear."""

        def one(image: Array, corner: Array, size: Array) -> Array:
            scale = jnp.array(self.shape, jnp.float32) / size
            shape = (*self.shape, image.shape[-1])
            return jax.image.scale_and_translate(
                image, shape, (0, 1), scale, -corner * scale, method="linear"
            )

        return jax.vmap(one)(pixels, corner, size)


def corners(count: int, image: tuple[int, ...], crop: tuple[int, ...]) -> Int[np.ndarray, "NC 2"]:
    """Row and column of the top left pixel of each ordered crop.

    The centres of 1, 4, 9 or 16 crops form an even square grid, in row-major order, from half a
    crop inside one border to half a crop inside the other, rounded down to whole pixels (a single
    crop is centred). 5 crops are those 4 and the central one.

    Args:
        count: One of ``COUNTS``.
        image: Height and width in pixels.
        crop: Height and width in pixels, at most the image's.

    Raises:
        InputError: The crop is larger than the image.
    """
    if any(c > side for c, side in zip(crop, image, strict=True)):
        raise invalid("crops.size", f"at most {image[0]}x{image[1]}", f"{crop[0]}x{crop[1]}")
    if count == 5:
        return np.concatenate([corners(4, image, crop), corners(1, image, crop)])
    steps = math.isqrt(count) - 1
    along = []
    for c, side in zip(crop, image, strict=True):
        if steps:  # in integers: a rounding error must not cut 338 down to 337
            centres = [(c * steps + 2 * i * (side - c)) // (2 * steps) for i in range(steps + 1)]
        else:
            centres = [side // 2]
        along.append(np.array(centres) - c // 2)
    return np.stack(np.meshgrid(*along, indexing="ij"), -1).reshape(-1, 2)


def _cells(
    places: Int[np.ndarray, " n"], side: int, cells: int
) -> tuple[Bool[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Whether places lie in a crop of this length, and in which of its cells, 0 outside."""
    inside = (places >= 0) & (places < side)
    return inside, np.where(inside, places * cells // side, 0)
