"""Agreement of attention maps and lesion masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from PIL import Image

from jaxattn import metrics, overlays
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import Dataset
from jaxattn.evaluation import uncertainty

MEASURES = ("jaccard", "pointing_game", "share_inside")


def of_map(maps: Float[np.ndarray, "K h w"], mask: Shaped[np.ndarray, "H W"]) -> dict[str, float]:
    """How far a map, its heads summed and upsampled bilinearly, lies on a lesion.

    Args:
        maps: Heads of the map.
        mask: Nonzero inside the lesion.

    Returns:
        - ``jaccard``: of the map, rescaled to [0, 1] and cut at 1/2, and the mask (Yan et al. 2019,
          section 3.3). It asks for a map that fills the lesion: a sharp peak within scores low.
        - ``pointing_game``: whether the map's maximum is inside (Zhang et al. 2018); of several
          maxima, the share that is.
        - ``share_inside``: the share of the map's sum that is inside; negative values count as 0.

        A flat map scores as chance does: no position counts for ``jaccard``, and the lesion's share
        of the image for the others.
    """
    height, width = mask.shape
    inside = np.asarray(mask) != 0
    heat = overlays.heatmap(maps, height, width, bilinear=True)
    total = np.maximum(overlays.aggregate(maps), 0)
    weight = np.asarray(
        Image.fromarray(total).resize((width, height), Image.Resampling.BILINEAR), np.float64
    )
    area = float(inside.mean())
    flat = not heat.any()
    return {
        "jaccard": metrics.jaccard(heat, mask),
        "pointing_game": area if flat else float(inside[heat == heat.max()].mean()),
        "share_inside": area
        if flat or not weight.sum()
        else float(weight[inside].sum() / weight.sum()),
    }


def measure(
    dataset: Dataset,
    crops: Crops,
    rows: Int[np.ndarray, " n"],
    maps: Mapping[str, np.ndarray],
    resamples: int = uncertainty.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Means of `of_map` over the images that have a mask.

    Args:
        dataset: The data set.
        crops: What the model saw of each image.
        rows: Rows of the data set.
        maps: Maps of these rows by name, each ``(n, K, h, w)``.
        resamples: Of the lesions, for intervals.
        seed: Of the bootstrap.

    Returns:
        ``images``: how many have a mask; ``lesion_area``, the mean share of the image that it
        covers, which is what chance scores in the pointing game and as share inside; ``maps``: by
        name the means of ``MEASURES``, and their ``intervals``. {} without maps or masks.
    """
    masked = np.flatnonzero(dataset.table["has_mask"][rows])
    if not maps or not len(masked):
        return {}
    columns: dict[tuple[str, str], list[float]] = {
        (name, measure): [] for name in maps for measure in MEASURES
    }
    areas = []
    for i in masked:
        mask = dataset.records[rows[i]]["mask"]
        mask = mask[crops.field(*mask.shape)]
        areas.append(float((mask != 0).mean()))
        for name, stack in maps.items():
            for measure, value in of_map(stack[i], mask).items():
                columns[name, measure].append(value)
    values = np.array(list(columns.values()))
    bounds = _intervals(values, dataset.table["lesion_id"][rows[masked]], resamples, seed)
    found: dict[str, Any] = {name: {"intervals": {}} for name in maps}
    for (name, measure), mean, bound in zip(columns, values.mean(axis=1), bounds, strict=True):
        found[name][measure] = float(mean)
        found[name]["intervals"][measure] = bound
    return {"images": len(masked), "lesion_area": float(np.mean(areas)), "maps": found}


def _intervals(
    values: Float[np.ndarray, "m n"],
    lesion_ids: Shaped[np.ndarray, " n"],
    resamples: int,
    seed: int,
) -> list[list[float] | None]:
    """Of the mean of each row of values."""
    lesions = np.unique(lesion_ids, return_inverse=True)[1]
    if lesions.max() < 1 or not resamples:
        return [None] * len(values)
    means = [
        weights @ values.T / weights.sum(axis=1, keepdims=True)
        for weights in uncertainty.draws(lesions, resamples, seed)
    ]
    return [uncertainty.interval(column) for column in np.concatenate(means).T]
