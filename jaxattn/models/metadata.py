"""Late fusion of an image's features with metadata (Gessert et al. 2020, MethodsX 7:100864).

*Skin lesion classification using ensembles of multi-resolution EfficientNets with meta data*
(arXiv:1910.03910), which won task 2 of ISIC 2019. Two dense layers see the metadata; what they
return and the network's pooled features go through a third one, and then through the classifier's
``logits``. Each of the three has batch norm, a ReLU and dropout.

Sex and site are one-hot and the age is a number, as there. Missing values differ: theirs are zeros,
and an age of -5; here each field has an input of its own for them, whose weights in the first layer
are an embedding of "missing". As in their code, training hides each value with a small probability,
so that this embedding is learnt also where the training part has all values.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import invalid

#: The name of the layers among a model's parameters.
SCOPE = "metadata"


def encode(metadata: Float[Array, "B F"], sizes: tuple[int, ...]) -> Float[Array, "B inputs"]:
    """The inputs of the first layer.

    Args:
        metadata: See `jaxattn.data.metadata.Vocabulary.encode`; NaN is missing.
        sizes: The number of words of each field, 0 for a number.

    Returns:
        Of a number: its value, 0 where missing, and whether it is missing. Of a field of n words:
        which of them it is, and whether it is missing, n + 1 inputs.
    """
    inputs = []
    for i, size in enumerate(sizes):
        value, missing = metadata[:, i], jnp.isnan(metadata[:, i])
        if size:
            word = jnp.where(missing, size, value).astype(jnp.int32)
            inputs.append(jax.nn.one_hot(word, size + 1))
        else:
            inputs.append(jnp.stack([jnp.where(missing, 0.0, value), missing.astype(float)], 1))
    return jnp.concatenate(inputs, axis=1)


class Fusion(nn.Module):
    """What stands between a network's pooled features and its classifier.

    Attributes:
        sizes: See `encode`.
        hide: Probability that training hides a value.
        units: Of each of the two layers that see the metadata.
        joint_units: Of the layer that sees all features.
        dropout_rate: Share of each layer's activations dropped.
    """

    sizes: tuple[int, ...]
    hide: float = 0.1
    units: int = 256
    joint_units: int = 1024
    dropout_rate: float = 0.4

    @nn.compact
    def __call__(
        self, features: Float[Array, "N *dims C"], metadata: Float[Array, "B F"], train: bool
    ) -> Float[Array, "N *dims {self.joint_units}"]:
        """Joins them, float32.

        Args:
            features: Of the network; of an image with crops, those of each, or N / B in a row.
            metadata: Of each image, see `encode`.
            train: Whether batch norm uses the batch, values are hidden and activations dropped
                (random stream ``dropout``).
        """

        def layer(x: Array, name: str, units: int) -> Array:
            x = nn.Dense(units, use_bias=False, name=name)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name=f"{name}_norm")(x))
            return nn.Dropout(self.dropout_rate, deterministic=not train)(x)

        if train and self.hide:
            hidden = jax.random.bernoulli(self.make_rng("dropout"), self.hide, metadata.shape)
            metadata = jnp.where(hidden, jnp.nan, metadata)
        x = layer(layer(encode(metadata, self.sizes), "dense1", self.units), "dense2", self.units)
        x = jnp.repeat(x, features.shape[0] // x.shape[0], axis=0)
        x = x.reshape(x.shape[0], *(1,) * (features.ndim - 2), self.units)
        x = jnp.broadcast_to(x, (*features.shape[:-1], self.units))
        both = jnp.concatenate([features.astype(jnp.float32), x], axis=-1)
        return layer(both, "joint", self.joint_units)


class WithMetadata(nn.Module):
    """Any classifier whose last layer is dense and called ``logits``, with `Fusion` before it.

    Parameters have the names that they have in the classifier; those of `Fusion` are below
    ``metadata``.

    Attributes:
        classifier: The classifier of images.
        options: The attributes of `Fusion`.
    """

    classifier: nn.Module
    options: Any

    def setup(self) -> None:
        """Makes the layers, beside the classifier's."""
        nn.share_scope(self, self.classifier)
        self.fusion = Fusion(**self.options, name=SCOPE)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.classifier.num_classes

    def __call__(
        self,
        images: Float[Array, "N *NC H W 3"],
        metadata: Float[Array, "B F"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "N {self.num_classes}"], dict[str, Array]]:
        """Classifies.

        Args:
            images: Normalised images, see the classifier; N / B crops of an image in a row, if it
                classifies each by itself.
            metadata: Of each image, see `encode`; None: all values are missing.
            train: See the classifier and `Fusion`.

        Returns:
            Logits, float32, and the classifier's attention maps.

        Raises:
            InputError: The classifier has no such layer.
        """
        if metadata is None:
            metadata = jnp.full((images.shape[0], len(self.options["sizes"])), jnp.nan)
        fused = False

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            nonlocal fused
            layer = context.module
            if not isinstance(layer, nn.Dense) or layer.name != "logits":
                return call(*args, **kwargs)
            fused = True
            return call(self.fusion(args[0], metadata, train), **kwargs)

        with nn.intercept_methods(intercept):
            logits, maps = self.classifier(images, train=train)
        if not fused:
            given = f"{type(self.classifier).__name__}, which has none"
            raise invalid("metadata.fields", "a model with a dense layer 'logits'", given)
        return logits, maps
