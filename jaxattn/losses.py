"""Losses: of the logits, and of attention maps against masks.

A loss of the logits is chosen by name (``loss.name``). To add one, register a function that takes
the training examples and returns ``(logits, batch) -> scalar``::

    @LOSSES.register("mine")
    def mine(config, examples):
        return lambda logits, batch: ...
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped
from ml_collections import ConfigDict

from jaxattn.errors import invalid, unknown
from jaxattn.registry import Registry

Batch = Mapping[str, Array]

REDUCTIONS = ("mean", "weighted_mean")
#: Weight of an image by how its diagnosis was confirmed (Gessert et al. 2019, section II-F).
DIAGNOSIS_FACTORS = {"consensus": 1.0, "follow_up": 2.0, "confocal": 3.0, "histo": 4.0}
TARGETS = ("lesion", "attributes", "background")


class Examples(NamedTuple):
    """What a loss may know of the data set before training.

    Attributes:
        labels: Classes of all images, int ``(N,)``; ``batch["row"]`` indexes them.
        dx_types: How each diagnosis was confirmed, str ``(N,)``; '' where unknown.
        train: Rows of the training part, int ``(n,)``.
        class_names: Name of each class.
    """

    labels: Int[np.ndarray, " N"]
    dx_types: Shaped[np.ndarray, " N"]
    train: Int[np.ndarray, " n"]
    class_names: Sequence[str]


#: Losses of the logits by name: ``(config.loss, examples) -> (logits, batch) -> scalar``.
LOSSES: Registry[
    Callable[[ConfigDict, Examples], Callable[[Float[Array, "batch classes"], Batch], Array]]
] = Registry("loss.name")


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a batch: of its logits and, where weights are given, of its attention maps.

    Attributes:
        of_logits: ``(logits, batch) -> scalar``.
        of_maps: Loss of attention maps against masks, or None.
    """

    of_logits: Callable[[Float[Array, "batch classes"], Batch], Float[Array, ""]]
    of_maps: "MapDice | None" = None

    @property
    def mask(self) -> str:
        """The masks that ``batch["mask"]`` must hold, a key of `jaxattn.data.dataset.MASKS`."""
        return self.of_maps.mask if self.of_maps else ""

    def __call__(
        self, logits: Float[Array, "batch classes"], maps: Mapping[str, Array], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The total loss, and the metrics ``loss`` and, with a loss of maps, ``map_loss``.

        Args:
            logits: Of the batch.
            maps: The model's attention maps by name, each ``(batch, heads, h, w)``.
            batch: ``label`` and ``row``, int ``(batch,)``; where masks are used, ``mask`` in
                [0, 1] of the network's input size and ``has_mask``, bool ``(batch,)``.
        """
        total = self.of_logits(logits, batch)
        if self.of_maps is None:
            return total, {"loss": total}
        map_loss = self.of_maps(maps, batch["mask"], batch["has_mask"])
        total += map_loss
        return total, {"loss": total, "map_loss": map_loss}


def make(config: ConfigDict, examples: Examples) -> Loss:
    """The loss of ``config.loss``.

    Raises:
        InputError: A field is wrong.
    """
    maps = config.maps.to_dict()
    return Loss(LOSSES[config.name](config, examples), MapDice(**maps) if maps["weights"] else None)


@LOSSES.register("cross_entropy")
def cross_entropy(config: ConfigDict, examples: Examples) -> Callable[[Array, Batch], Array]:
    """`CrossEntropy` with the class and image weights of ``config.loss``."""
    labels, guided = examples.labels, config.diagnosis_guided
    weights = class_weights(
        labels[examples.train],
        examples.class_names,
        exponent=config.class_weight_exponent,
        factors=config.class_weights.to_dict(),
    )
    loss = CrossEntropy(
        weights,
        config.label_smoothing,
        config.reduction,
        config.focal_gamma,
        diagnosis_factors(labels, examples.dx_types, examples.class_names, guided)
        if guided
        else None,
    )
    return lambda logits, batch: loss(logits, batch["label"], batch["row"])


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
            raise unknown("loss.class_weights", name, class_names)
        if factor < 0:
            raise invalid(f"loss.class_weights.{name}", "a number of at least 0", factor)
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
        dx_types: How each diagnosis was confirmed, a key of ``DIAGNOSIS_FACTORS``; '' if unknown.
        class_names: Name of each class.
        guided: Classes it applies to: the benign ones in the paper, nevi alone in a comment of its
            code, all classes in what that code executes.

    Returns:
        Float32 ``(n,)``: the factor for images of these classes, 1 for all others and where the
        confirmation is unknown.

    Raises:
        InputError: There is no such class, or no image of it has a known confirmation.
    """
    factors = np.ones(len(labels), np.float32)
    for name in guided:
        if name not in class_names:
            raise unknown("loss.diagnosis_guided", name, class_names)
        own = np.flatnonzero(labels == list(class_names).index(name))
        found = [DIAGNOSIS_FACTORS.get(dx_type, 0.0) for dx_type in dx_types[own].tolist()]
        if not any(found):
            raise invalid(
                "loss.diagnosis_guided",
                f"a class with images whose dx_type is one of {', '.join(DIAGNOSIS_FACTORS)}",
                repr(name),
            )
        factors[own] = np.where(found, found, 1.0)
    return factors


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy with weights by class and by image, or the focal loss.

    Attributes:
        weights: Weight of each class, ``(classes,)``.
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).
        reduction: ``mean``: the sum of weighted losses over the number of examples, as Keras'
            ``class_weight``; ``weighted_mean``: over the sum of the weights, as PyTorch's
            ``CrossEntropyLoss(weight)``.
        focal_gamma: γ of the focal loss (Lin et al. 2017, equation 4), which multiplies each loss
            by ``(1 - p) ** γ``, p the probability of the true class; 0 for cross-entropy.
        row_factors: Further weight of each image of the data set, ``(n,)``, or None.
    """

    weights: Float[np.ndarray, " classes"]
    label_smoothing: float = 0.0
    reduction: str = "mean"
    focal_gamma: float = 0.0
    row_factors: Float[np.ndarray, " n"] | None = None

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise unknown("loss.reduction", self.reduction, REDUCTIONS)
        if not 0 <= self.label_smoothing < 1:
            raise invalid("loss.label_smoothing", "a number in [0, 1)", self.label_smoothing)
        if not self.focal_gamma >= 0:
            raise invalid("loss.focal_gamma", "a number of at least 0", self.focal_gamma)

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
            rows: Rows of the data set; required with ``row_factors``.
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
    """Dice loss of attention maps against masks (Yan et al. 2019, section 2.2).

    Each map ``a`` adds its weight times ``1 - 2 Σ a ā / Σ (a + ā)`` (equation 4) to the loss. ``ā``
    is the mask, averaged down to the map's size; the sums run over all heads and positions of the
    batch, so that an empty mask does no harm. Images without a mask are left out of both sums; a
    batch without masks has a loss of 0.

    Attributes:
        weights: Weight λ of each map, by its name.
        target: ``lesion``: the lesion mask; ``attributes``: the mask of its dermoscopic attributes;
            ``background``: the complement of the lesion mask.
    """

    weights: Mapping[str, float]
    target: str = "lesion"

    def __post_init__(self):
        if self.target not in TARGETS:
            raise unknown("loss.maps.target", self.target, TARGETS)
        for name, weight in self.weights.items():
            if weight < 0:
                raise invalid(f"loss.maps.weights.{name}", "a number of at least 0", weight)

    @property
    def mask(self) -> str:
        """The masks it needs, a key of `jaxattn.data.dataset.MASKS`."""
        return "attributes" if self.target == "attributes" else "lesion"

    def __call__(
        self,
        maps: Mapping[str, Float[Array, "batch heads _ _"]],
        masks: Shaped[Array, "batch height width"],
        has_mask: Bool[Array, " batch"],
    ) -> Float[Array, ""]:
        """The weighted sum over the maps, float32 (the second and third term of equation 5).

        Args:
            maps: A model's attention maps, non-negative.
            masks: In [0, 1], of the images as the model sees them.
            has_mask: Whether an image has a mask; ``masks`` is ignored for the others.

        Raises:
            InputError: A weight names a map that the model does not return.
        """
        targets = masks.astype(jnp.float32)
        if self.target == "background":
            targets = 1.0 - targets
        total = jnp.zeros(())
        for name, weight in self.weights.items():
            if name not in maps:
                raise unknown("loss.maps.weights", name, maps)
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
    # Never divide by 0, so that the gradient of the branch not taken is finite.
    divisor = jnp.where(either > 0, either, 1.0)
    return jnp.where(either > 0, 1.0 - 2.0 * both / divisor, 0.0)


def average_pool(
    images: Float[Array, "batch H W"], height: int, width: int
) -> Float[Array, "batch {height} {width}"]:
    """Average-pools to any size, like PyTorch's ``adaptive_avg_pool2d``.

    The window of position i of n runs from pixel ``floor(i N / n)`` to before
    ``ceil((i + 1) N / n)``.
    """
    down, across = _windows(images.shape[1], height), _windows(images.shape[2], width)
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("hH,bHW,wW->bhw", down, images, across)


def _windows(length: int, count: int) -> Float[np.ndarray, "count length"]:
    """The matrix that averages over ``count`` windows."""
    at, window = np.arange(length), np.arange(count)[:, None]
    inside = (at >= window * length // count) & (at < -(-(window + 1) * length // count))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
