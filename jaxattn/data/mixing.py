"""Mixup and CutMix on the device: two images of a batch become one that has both labels."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Mixing:
    """What to mix images by; once for each batch, with λ drawn from Beta(α, α).

    Attributes:
        mixup: α of mixup, ``λ x + (1 - λ) x'`` (Zhang et al. 2018, section 2); 0 for none.
        cutmix: α of CutMix, which puts a box of ``1 - λ`` of the area of x' into x (Yun et al.
            2019, equations 1 and 2), less where it crosses the border; 0 for none. With both, each
            batch takes one or the other, equally often.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "B *NC h w 3"], batch: Batch
    ) -> tuple[Float[Array, "B *NC h w 3"], Batch]:
        """Mixes each image with that of another place in the batch, and its mask alike.

        Args:
            key: Random key of this step.
            images: The network's input.
            batch: ``label`` and ``row``; where masks are used, ``mask`` and ``has_mask``.

        Returns:
            The mixed images; and the batch with ``other_label`` and ``other_row`` of the second
            images, and ``share``, float ``(B,)``, λ or what the box left of the first ones, the
            same for all. A mixed image has a mask if both had one.
        """
        if not (self.mixup or self.cutmix):
            return images, batch
        of_choice, of_share, of_box, of_order = jax.random.split(key, 4)
        both = self.mixup and self.cutmix
        cut = jax.random.bernoulli(of_choice) if both else jnp.array(self.cutmix > 0)
        alpha = jnp.where(cut, self.cutmix, self.mixup)
        # As jax.random.beta, which compiles the gamma distribution twice.
        share = jax.nn.sigmoid(jnp.subtract(*jax.random.loggamma(of_share, alpha, (2,))))
        own = jnp.where(cut, _outside(of_box, share, *images.shape[-3:-1]), share)
        order = jax.random.permutation(of_order, len(images))
        mixed = {
            **batch,
            "other_label": batch["label"][order],
            "other_row": batch["row"][order],
            "share": jnp.full(len(images), own.mean()),
        }
        own = lax.broadcast_to_rank(own, images.ndim - 1)
        if "mask" in batch:
            mixed["mask"] = own * batch["mask"] + (1 - own) * batch["mask"][order]
            mixed["has_mask"] = batch["has_mask"] & batch["has_mask"][order]
        own = own[..., None]
        return own * images + (1 - own) * images[order], mixed


def _outside(
    key: Key[Array, ""], share: Float[Array, ""], height: int, width: int
) -> Float[Array, "{height} {width}"]:
    """0 in a box around a random pixel, as wide and as high as the image times √(1 - λ); else 1."""

    def inside(key: Key[Array, ""], length: int) -> Array:
        half = jnp.floor(length * jnp.sqrt(1 - share)) // 2
        place = (jnp.arange(length) - jax.random.randint(key, (), 0, length)).astype(half.dtype)
        return (place >= -half) & (place < half)

    down, across = jax.random.split(key)
    box = inside(down, height)[:, None] & inside(across, width)[None]
    return 1.0 - box.astype(jnp.float32)


def mean_of_labels(measure: Callable[[Batch], Any], batch: Batch) -> Any:
    """Of a mixed batch, ``λ f(y) + (1 - λ) f(y')`` of every number that a function returns.

    So each label keeps its class weight, smoothing and focal factor, and each row its own weight.

    Args:
        measure: Of a batch with ``label`` and ``row``.
        batch: Mixed by `Mixing`, or not.
    """
    if "share" not in batch:
        return measure(batch)
    other = {**batch, "label": batch["other_label"], "row": batch["other_row"]}
    share = batch["share"][0]
    return jax.tree.map(
        lambda own, of_other: share * own + (1 - share) * of_other, measure(batch), measure(other)
    )
