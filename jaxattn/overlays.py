"""Draws attention maps over images and selects the images to show."""

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from jaxattn.errors import invalid, unknown

#: A map whose values differ from their mean by less than this share of it is flat to the eye.
FLAT_SHARE = 0.05

# A range below this fraction of the largest value is rounding, not attention.
_FLAT = 1e-5


def aggregate(maps: Float[np.ndarray, "K h w"]) -> Float[np.ndarray, "h w"]:
    """Sums K attention heads into one map (Datta et al. 2021, Figure 7).

    Raises:
        InputError: The maps are not ``(K, h, w)`` or not finite.
    """
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or not maps.size:
        raise invalid("attention maps", "shape (K, h, w)", maps.shape)
    bad = int(np.sum(~np.isfinite(maps)))
    if bad:
        raise invalid(
            "attention maps", "finite numbers", f"NaN or infinity at {bad} of {maps.size} positions"
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
    """Upsamples attention to the resolution of an image.

    Heads are summed, rescaled, upsampled with Pillow's bicubic filter (a = -0.5, borders
    renormalised; the paper's figure used OpenCV's, a = -0.75, borders repeated) and rescaled again,
    because bicubic interpolation overshoots.

    Args:
        maps: K attention heads.
        height: Rows of the result.
        width: Columns of the result.
        bilinear: Upsample bilinearly, with half-pixel centres, as in Yan et al. 2019.

    Returns:
        float32 in [0, 1]; 0 everywhere for a constant map.

    Raises:
        InputError: The maps are not ``(K, h, w)`` or not finite.
    """
    # Rescaling first keeps a constant map constant: the filter rounds, and rescaling amplifies.
    coarse = Image.fromarray(rescale(aggregate(maps)))
    filters = Image.Resampling
    sized = coarse.resize((width, height), filters.BILINEAR if bilinear else filters.BICUBIC)
    return rescale(np.asarray(sized))


def colour(
    single_map: Float[np.ndarray, "h w"], colormap: str = "jet"
) -> UInt8[np.ndarray, "h w 3"]:
    """Colours values in [0, 1] with one of matplotlib's colour maps.

    Raises:
        InputError: There is no such colour map.
    """
    import matplotlib

    if colormap not in matplotlib.colormaps:
        raise unknown("evaluation.overlay.colormap", colormap, matplotlib.colormaps)
    return matplotlib.colormaps[colormap](single_map, bytes=True)[..., :3]


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    maps: Float[np.ndarray, "K h w"],
    alpha: float = 0.5,
    bilinear: bool = False,
    colormap: str = "jet",
) -> UInt8[np.ndarray, "H W 3"]:
    """Blends attention, coloured, over an image (Datta et al. 2021, Figure 7).

    Args:
        image: The image as the model saw it; map and image cover the same field.
        maps: K attention heads. Their sum is rescaled to [0, 1], so colours compare positions
            within an image, not strengths between images.
        alpha: Weight of the colours in [0, 1]; 0.5 in the paper's figure, 0.4 in Yan et al. 2019.
        bilinear: See `heatmap`.
        colormap: ``jet`` as in the papers' figures: dark blue is 0, dark red 1. A perceptually
            uniform one, such as ``viridis``, shows no edges that the map does not have.

    Returns:
        alpha × colours + (1 - alpha) × image, rounded.

    Raises:
        InputError: The maps are not ``(K, h, w)`` or not finite.
    """
    height, width = image.shape[:2]
    colours = colour(heatmap(maps, height, width, bilinear), colormap).astype(np.float32)
    return np.rint(alpha * colours + (1 - alpha) * image).astype(np.uint8)


def peak(maps: Float[np.ndarray, "K h w"]) -> float:
    """Largest value of the summed heads over their mean; 1 for a uniform map.

    The rescaling of `overlay` hides this. NaN for maps whose mean is 0.

    Raises:
        InputError: The maps are not ``(K, h, w)`` or not finite.
    """
    single = aggregate(maps)
    return float(single.max() / single.mean()) if single.mean() else float("nan")


def is_flat(maps: Float[np.ndarray, "K h w"]) -> bool:
    """Whether no position of the summed heads stands out, so that rescaling would show noise."""
    single = aggregate(maps)
    mean = float(single.mean())
    return bool(np.abs(single - mean).max() <= FLAT_SHARE * abs(mean))


def outline(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Shaped[np.ndarray, "H W"],
    rgb: tuple[int, int, int] = (255, 255, 255),
    width: int = 2,
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a copy of an image with the border of its lesion mask drawn in.

    Args:
        image: The image.
        mask: Nonzero inside the lesion.
        rgb: Colour of the line.
        width: Width of the line in pixels, drawn inside the mask.
    """
    from scipy.ndimage import binary_erosion

    inside = np.asarray(mask) != 0
    core = binary_erosion(inside, iterations=width, border_value=1)
    drawn = image.copy()
    drawn[inside & ~core] = rgb
    return drawn


def select_cases(
    labels: Int[np.ndarray, " N"],
    probabilities: Float[np.ndarray, "N C"],
    predictions: Int[np.ndarray, " N"],
    per_group: int = 2,
) -> Int[np.ndarray, " M"]:
    """Selects the examples to show: for each class the most confident hits and misses.

    A group is a true class together with whether the prediction is right, so that the commonest
    class does not fill the page. A group is ranked by the probability of the predicted class, ties
    by index: the same predictions always give the same selection.

    Args:
        labels: True class indices in [0, C).
        probabilities: Predicted probabilities.
        predictions: Predicted class indices.
        per_group: At most this many examples of each group.

    Returns:
        Indices: hits in class order, then misses in class order, each group most confident first.
    """
    confidence = np.take_along_axis(probabilities, predictions[:, None], axis=1)[:, 0]
    order = np.argsort(-confidence, kind="stable")
    hit = labels == predictions
    chosen = [
        order[(labels == c)[order] & (hit == wanted)[order]][:per_group]
        for wanted in (True, False)
        for c in range(probabilities.shape[1])
    ]
    return np.concatenate(chosen)
