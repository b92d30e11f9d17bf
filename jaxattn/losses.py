"""Losses: of the logits, per example, then one mean; and of attention maps against masks."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxattn.errors import InputError, suggestion

REDUCTIONS = ("mean", "weighted_mean")
#: How much an example of a class that is easily told counts, by how its truth was found out.
DIAGNOSIS_FACTORS = {"consensus": 1.0, "follow_up": 2.0, "confocal": 3.0, "histo": 4.0}
TARGETS = ("lesion", "dermo", "background")


def class_weights(
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
    *,
    exponent: float = 0.0,
    factors: Mapping[str, float] | None = None,
) -> Float[np.ndarray, " classes"]:
    """Weights by class: ``(N / N_i) ** exponent``, of mean 1 over the images, times a factor.

    Args:
        labels: Classes of the training images.
        class_names: Name of each class.
        exponent: 0: none; 1: inverse frequency ("balanced"); between: milder.
        factors: Further factor of a class by name, as ``{"mel": 5.0}`` of Datta et al. 2021.

    Returns:
        Float32 ``(classes,)``; a class without images gets its factor alone.

    Raises:
        InputError: A factor names no class or is negative.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    weights = np.ones(len(class_names))
    present = counts > 0
    weights[present] = (len(labels) / counts[present]) ** exponent
    weights[present] *= len(labels) / (weights * counts).sum()
    for name, factor in (factors or {}).items():
        if name not in class_names:
            raise InputError(
                f"loss.class_weights: class {name!r} given{suggestion(name, class_names)}"
            )
        if factor < 0:
            raise InputError(f"loss.class_weights.{name}: {factor} given, 0 or more wanted")
        weights[list(class_names).index(name)] *= factor
    return weights.astype(np.float32)


def diagnosis_factors(
    labels: Int[np.ndarray, " n"],
    dx_types: Shaped[np.ndarray, " n"],
    class_names: Sequence[str],
    guided: Sequence[str],
) -> Float[np.ndarray, " n"]:
    """Weights by image: diagnosis-guided weighting (Gessert et al. 2019, II-F).

    Args:
        labels: Class of each image.
        dx_types: How it was found out, a key of ``DIAGNOSIS_FACTORS``, or '' where unknown.
        class_names: Name of each class.
        guided: Classes to which it applies: the benign ones in the paper, nevi alone in its code.

    Returns:
        Float32 ``(n,)``: the factor of the images of these classes, 1 for all others and where
        nothing is known.

    Raises:
        InputError: There is no such class, or nothing is known of any of its images.
    """
    factors = np.ones(len(labels), np.float32)
    for name in guided:
        if name not in class_names:
            raise InputError(
                f"loss.diagnosis_guided: class {name!r} given{suggestion(name, class_names)}"
            )
        own = np.flatnonzero(labels == list(class_names).index(name))
        found = [DIAGNOSIS_FACTORS.get(dx_type, 0.0) for dx_type in dx_types[own].tolist()]
        if not any(found):
            raise InputError(
                f"loss.diagnosis_guided: {name!r} given, of none of whose images dx_type is known, "
                f"one of {', '.join(DIAGNOSIS_FACTORS)} wanted"
            )
        factors[own] = np.where(found, found, 1.0)
    return factors


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy with weights by class and by image, or the focal loss.

    Attributes:
        weights: Weight of each class, ``(classes,)``.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        reduction: ``mean``: the weighted losses' sum over the number of examples, as Keras'
            ``class_weight``; ``weighted_mean``: over the sum of their weights, as PyTorch's
            ``CrossEntropyLoss(weight)``.
        focal_gamma: γ of the focal loss (Lin et al. 2017, equation 4): each loss is multiplied by
            ``(1 - p) ** γ``, p being the probability of the true class; 0 for none.
        row_factors: What the weight of each image of the data set is multiplied by, ``(n,)``.
    """

    weights: Float[np.ndarray, " classes"]
    label_smoothing: float = 0.0
    reduction: str = "mean"
    focal_gamma: float = 0.0
    row_factors: Float[np.ndarray, " n"] | None = None

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise InputError(
                f"loss.reduction: {self.reduction!r} given{suggestion(self.reduction, REDUCTIONS)}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"loss.label_smoothing: {self.label_smoothing} given, 0 to 1 wanted")
        if not self.focal_gamma >= 0:
            raise InputError(f"loss.focal_gamma: {self.focal_gamma} given, 0 or more wanted")

    def __call__(
        self,
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        rows: Int[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The mean loss of a batch, float32 (equation 2 of Datta et al. 2021 when unweighted).

        Args:
            logits: Of the batch.
            labels: True classes.
            rows: Rows of the data set, wanted where there are ``row_factors``.
        """
        targets = jnp.eye(len(self.weights), dtype=jnp.float32)[labels]
        losses = optax.losses.softmax_cross_entropy(
            logits, optax.smooth_labels(targets, self.label_smoothing)
        )
        if self.focal_gamma:
            likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
            # 1 - p, whose powers below 1 have no derivative at 0.
            losses *= jnp.maximum(-jnp.expm1(likelihood), 1e-7) ** self.focal_gamma
        weights = jnp.asarray(self.weights)[labels]
        if self.row_factors is not None:
            weights *= jnp.asarray(self.row_factors)[rows]
        total = weights.sum() if self.reduction == "weighted_mean" else len(labels)
        return (losses * weights).sum() / total


@dataclasses.dataclass(frozen=True)
class MapDice:
    """Makes attention maps look like masks (Yan et al. 2019, section 2.2).

    Each map ``a`` adds its weight times ``1 - 2 Σ a ā / Σ (a + ā)`` (equation 4) to the loss, where
    ``ā`` is the mask, averaged down to the map's size, and the sums are over all heads and
    positions of the whole batch. So an empty mask does no harm; an image without a mask is in
    neither sum, and a batch without any has a loss of 0.

    Attributes:
        weights: Weight λ of each map, by its name.
        target: ``lesion``: the lesion's mask; ``dermo``: that of its dermoscopic features;
            ``background``: what is not in the lesion's mask.
    """

    weights: Mapping[str, float]
    target: str = "lesion"

    def __post_init__(self):
        if self.target not in TARGETS:
            raise InputError(
                f"loss.maps.target: {self.target!r} given{suggestion(self.target, TARGETS)}"
            )
        for name, weight in self.weights.items():
            if weight < 0:
                raise InputError(f"loss.maps.weights.{name}: {weight} given, 0 or more wanted")

    @property
    def mask(self) -> str:
        """Which masks of the data set it wants: ``lesion`` or ``dermo``."""
        return "dermo" if self.target == "dermo" else "lesion"

    def __call__(
        self,
        maps: Mapping[str, Float[Array, "batch heads _ _"]],
        masks: Shaped[Array, "batch height width"],
        has_mask: Bool[Array, " batch"],
    ) -> Float[Array, ""]:
        """The weighted sum over the maps, float32 (the second and third term of equation 5).

        Args:
            maps: A model's attention maps, not negative.
            masks: In [0, 1], of the images as the model sees them.
            has_mask: Whether an image has one; what ``masks`` holds for the others is ignored.

        Raises:
            InputError: A weight is for a map that the model does not return.
        """
        targets = masks.astype(jnp.float32)
        if self.target == "background":
            targets = 1.0 - targets
        total = jnp.zeros(())
        for name, weight in self.weights.items():
            if name not in maps:
                raise InputError(f"loss.maps.weights: map {name!r} given{suggestion(name, maps)}")
            total += weight * dice_loss(maps[name], targets, has_mask)
        return total


def dice_loss(
    maps: Float[Array, "batch heads h w"],
    targets: Float[Array, "batch height width"],
    used: Bool[Array, " batch"],
) -> Float[Array, ""]:
    """``1 - 2 Σ a ā / Σ (a + ā)`` over the images of a batch that are ``used``; 0 without any."""
    reduced = average_pool(targets, *maps.shape[2:])[:, None]
    used = used[:, None, None, None]
    both = jnp.where(used, maps * reduced, 0.0).sum()
    either = jnp.where(used, maps + reduced, 0.0).sum()
    # Divided by what is never 0, so that the derivative of the case not taken is finite.
    divisor = jnp.where(either > 0, either, 1.0)
    return jnp.where(either > 0, 1.0 - 2.0 * both / divisor, 0.0)


def average_pool(
    images: Float[Array, "batch H W"], height: int, width: int
) -> Float[Array, "batch {height} {width}"]:
    """Averages down to any size, as PyTorch's ``adaptive_avg_pool2d``.

    The window of position i of n runs from pixel ``floor(i N / n)`` to before
    ``ceil((i + 1) N / n)``.
    """
    down, across = _windows(images.shape[1], height), _windows(images.shape[2], width)
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("hH,bHW,wW->bhw", down, images, across)


def _windows(length: int, count: int) -> Float[np.ndarray, "count length"]:
    """The averages of ``count`` windows as a matrix."""
    at, window = np.arange(length), np.arange(count)[:, None]
    inside = (at >= window * length // count) & (at < -(-(window + 1) * length // count))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
