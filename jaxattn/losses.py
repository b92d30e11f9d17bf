"""Losses: per example, then one mean."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxattn.errors import InputError, suggestion

REDUCTIONS = ("mean", "weighted_mean")


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


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy with class weights.

    Attributes:
        weights: Weight of each class, ``(classes,)``.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        reduction: ``mean``: the weighted losses' sum over the number of examples, as Keras'
            ``class_weight``; ``weighted_mean``: over the sum of their weights, as PyTorch's
            ``CrossEntropyLoss(weight)``.
    """

    weights: Float[np.ndarray, " classes"]
    label_smoothing: float = 0.0
    reduction: str = "mean"

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise InputError(
                f"loss.reduction: {self.reduction!r} given{suggestion(self.reduction, REDUCTIONS)}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"loss.label_smoothing: {self.label_smoothing} given, 0 to 1 wanted")

    def __call__(
        self, logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
    ) -> Float[Array, ""]:
        """The mean loss of a batch, float32 (equation 2 of Datta et al. 2021 when unweighted)."""
        targets = jnp.eye(len(self.weights), dtype=jnp.float32)[labels]
        losses = optax.losses.softmax_cross_entropy(
            logits, optax.smooth_labels(targets, self.label_smoothing)
        )
        weights = jnp.asarray(self.weights)[labels]
        total = weights.sum() if self.reduction == "weighted_mean" else len(labels)
        return (losses * weights).sum() / total
