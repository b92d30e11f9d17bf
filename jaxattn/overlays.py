"""Attention maps drawn over the images they belong to, and which images to draw them for."""

import matplotlib
import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from jaxattn.errors import InputError

# A range below this fraction of the largest value is rounding, not attention.
_FLAT = 1e-5


def aggregate(maps: Float[np.ndarray, "K h w"]) -> Float[np.ndarray, "h w"]:
    """Sums K attention heads into one map, as Datta et al. 2021 do for their Figure 7.

    Raises:
      InputError: the maps are not ``(K, h, w)`` or not finite.
    """
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or not maps.size:
        raise InputError(f"attention maps have shape {maps.shape}; wanted (K, h, w).")
    bad = int(np.sum(~np.isfinite(maps)))
    if bad:
        raise InputError(
            f"attention maps hold NaN or infinity at {bad} of {maps.size} positions; "
            "wanted finite numbers."
        )
    return maps.sum(axis=0)


def rescale(single_map: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Maps the smallest value to 0 and the largest to 1; a constant map becomes 0 everywhere."""
    low, high = single_map.min(), single_map.max()
    if high - low <= _FLAT * max(abs(low), abs(high)):
        return np.zeros_like(single_map)
    return (single_map - low) / (high - low)


def heatmap(
    maps: Float[np.ndarray, "K h w"], height: int, width: int, bilinear: bool = False
) -> Float[np.ndarray, "H W"]:
    """Brings attention to the resolution of an image.

    Heads are summed, then rescaled, upsampled with Pillow's bicubic filter (a = -0.5, borders
    renormalised; the paper's figure used OpenCV's, a = -0.75, borders repeated) and rescaled again,
    as bicubic interpolation overshoots.

    Args:
      maps: K attention heads.
      height: rows of the result.
      width: columns of the result.
      bilinear: whether to upsample bilinearly, with half-pixel centres, as Yan et al. 2019.

    Returns:
      float32 in [0, 1], 0 everywhere for a constant map.

    Raises:
      InputError: the maps are not ``(K, h, w)`` or not finite.
    """
    # Rescaling first keeps rounding in the filter from being blown up where a map is constant.
    coarse = Image.fromarray(rescale(aggregate(maps)))
    filters = Image.Resampling
    sized = coarse.resize((width, height), filters.BILINEAR if bilinear else filters.BICUBIC)
    return rescale(np.asarray(sized))


def colour(single_map: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colours values in [0, 1] with matplotlib's jet: dark blue at 0, dark red at 1."""
    return matplotlib.colormaps["jet"](single_map, bytes=True)[..., :3]


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    maps: Float[np.ndarray, "K h w"],
    alpha: float = 0.5,
    bilinear: bool = False,
) -> UInt8[np.ndarray, "H W 3"]:
    """Blends attention, coloured with jet, over an image (Datta et al. 2021, Figure 7).

    Args:
      image: the image as the model saw it, so that map and image cover the same field.
      maps: K attention heads; their sum is rescaled to [0, 1], so that colours of two overlays
        compare positions within an image, not strengths between images.
      alpha: weight of the colours in [0, 1]; the paper's figure has 0.5, that of Yan et al. 2019
        has 0.4.
      bilinear: see `heatmap`.

    Returns:
      alpha × colours + (1 - alpha) × image, rounded.

    Raises:
      InputError: the maps are not ``(K, h, w)`` or not finite.
    """
    height, width = image.shape[:2]
    colours = colour(heatmap(maps, height, width, bilinear)).astype(np.float32)
    return np.rint(alpha * colours + (1 - alpha) * image).astype(np.uint8)


def peak(maps: Float[np.ndarray, "K h w"]) -> float:
    """Returns the largest value of the summed heads over their mean: 1 for no preference at all.

    The rescaling of `overlay` hides this. It is NaN for maps whose mean is 0.

    Raises:
      InputError: the maps are not ``(K, h, w)`` or not finite.
    """
    single = aggregate(maps)
    return float(single.max() / single.mean()) if single.mean() else float("nan")


def outline(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Shaped[np.ndarray, "H W"],
    rgb: tuple[int, int, int] = (255, 255, 255),
    width: int = 2,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws the border of a lesion mask into a copy of an image.

    Args:
      image: the image.
      mask: nonzero inside the lesion.
      rgb: colour of the line.
      width: width of the line in pixels, drawn inside the mask.
    """
    inside = np.asarray(mask) != 0
    core = scipy.ndimage.binary_erosion(inside, iterations=width, border_value=1)
    drawn = image.copy()
    drawn[inside & ~core] = rgb
    return drawn


def select_cases(
    labels: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N C"],
    predictions: Int[np.ndarray, " N"],
    per_group: int = 2,
) -> Int[np.ndarray, " M"]:
    """Chooses the examples to show: for each class the surest hits and the surest misses.

    A group is a true class together with whether the predicted class is right. Within a group
    examples are ranked by the probability of the predicted class, ties by index, so that the same
    predictions always give the same choice. Grouping by true class keeps the commonest class from
    filling the page.

    Args:
      labels: true class indices in [0, C).
      probabilities: predicted probabilities.
      predictions: predicted class indices.
      per_group: most examples to take of a group.

    Returns:
      Indices of examples: hits in class order, then misses in class order, each group surest first.
    """
    sureness = np.take_along_axis(probabilities, predictions[:, None], axis=1)[:, 0]
    order = np.argsort(-sureness, kind="stable")
    hit = labels == predictions
    chosen = [
        order[(labels == c)[order] & (hit == wanted)[order]][:per_group]
        for wanted in (True, False)
        for c in range(probabilities.shape[1])
    ]
    return np.concatenate(chosen)
