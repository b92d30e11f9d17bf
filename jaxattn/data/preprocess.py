"""From uint8 images on the device to the network's input: augment, crop, normalise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from jaxattn.data.augment import NORMALISATIONS, Augmentation, augment
from jaxattn.data.crops import Crops


def make_training_preprocess(
    augmentation: Augmentation, crops: Crops, normalise: str
) -> Callable[
    [Key[Array, ""], UInt8[Array, "B H W 3"], UInt8[Array, "B H W"] | None],
    tuple[Float[Array, "B *NC h w 3"], Float[Array, "B h w"] | None],
]:
    """Makes ``(key, images, masks) -> (network input, masks)``; masks may be None.

    Masks are 0 or 1 and move with their images through augmentation and crops. The key is split
    into three; the second is left to the model's dropout, see `jaxattn.steps.dropout_key`.

    Args:
        augmentation: Ranges to draw from.
        crops: What the network sees of an augmented image.
        normalise: One of ``NORMALISATIONS``.
    """
    to_input = NORMALISATIONS[normalise]

    def preprocess(key, images, masks):
        augment_key, _, crop_key = jax.random.split(key, 3)
        pixels, masks = augment(augment_key, images, masks, augmentation)
        masks = None if masks is None else masks.astype(pixels.dtype)
        pixels, masks = crops.training(crop_key, pixels, masks)
        return to_input(pixels), masks

    return preprocess


def make_evaluation_preprocess(
    crops: Crops, normalise: str
) -> Callable[[UInt8[Array, "B H W 3"]], Float[Array, "inputs *NC h w 3"]]:
    """Makes ``images -> network input``, without anything random.

    Args:
        crops: What the network sees of an image.
        normalise: One of ``NORMALISATIONS``.
    """
    to_input = NORMALISATIONS[normalise]
    return lambda images: to_input(crops.evaluation(images.astype(jnp.float32) / 255.0))
