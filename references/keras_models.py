"""The published models in Keras 3.

Written from the papers and the released notebooks, layer for layer, including the quirks behind the
published numbers. They run on any Keras backend. The Soft-Attention layer's unusual convolution
gives the authors' result on JAX and on GPUs, but not on TensorFlow for CPUs, whose kernels read the
wrong channels.

Layers that correspond to endpoints of our models share their names; layers of
``keras.applications`` keep their own. Keras numbers automatic names from the first model of the
session on: call ``keras.utils.clear_session`` first where names matter.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
from keras import layers

from jaxattn.errors import unknown

Tensor = Any


@keras.saving.register_keras_serializable("jaxattn")
class SoftAttention(layers.Layer):
    """The Soft-Attention layer as Datta et al. released it.

    Its convolution treats features (B, H, W, C) as a volume with one channel and slides a kernel of
    C × 3 × 3 over it with strides 1, 1 and C: the kernel's long axis lies along the height.

    Attributes:
        heads: Number of maps.
        aggregate: Whether to sum the maps; otherwise each map weights its own copy of the features.
    """

    def __init__(self, heads: int, aggregate: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads, self.aggregate = heads, aggregate

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Makes ``kernel (C, 3, 3, 1, heads)`` and ``bias (heads,)``."""
        self.kernel = self.add_weight(
            shape=(shape[-1], 3, 3, 1, self.heads), initializer="he_uniform", name="kernel"
        )
        self.bias = self.add_weight(shape=(self.heads,), initializer="zeros", name="bias")

    def logits(self, x: Tensor) -> Tensor:
        """The convolution and bias, before the ReLU: (B, H, W, heads)."""
        strides = (1, 1, x.shape[-1])
        logits = keras.ops.conv(
            x[..., None], self.kernel, strides, "same", data_format="channels_last"
        )
        return logits[:, :, :, 0] + self.bias

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns attended features, and the maps (B, heads, H, W)."""
        _, height, width, _ = x.shape
        flat = keras.ops.reshape(keras.ops.relu(self.logits(x)), (-1, height * width, self.heads))
        maps = keras.ops.reshape(
            keras.ops.softmax(flat, axis=1), (-1, height, width, 1, self.heads)
        )
        if self.aggregate:
            attended = x * keras.ops.sum(maps, axis=-1)
        else:
            weighed = [x * maps[..., head] for head in range(self.heads)]
            attended = keras.ops.concatenate(weighed, axis=-1)
        return attended, keras.ops.transpose(maps[..., 0, :], (0, 3, 1, 2))

    def get_config(self) -> dict[str, Any]:
        """The arguments of ``__init__``."""
        return {**super().get_config(), "heads": self.heads, "aggregate": self.aggregate}


class PaperSoftAttention(layers.Layer):
    """Equation 1 of Datta et al. with Keras' 2-D convolution: γ · x · Σ_k softmax(W_k * x).

    Attributes:
        heads: Number of maps.
    """

    def __init__(self, heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Makes ``kernel (3, 3, C, heads)`` and the scalar ``gamma``."""
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], self.heads), name="kernel")
        self.gamma = self.add_weight(shape=(), name="gamma")

    def call(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns attended features, and the maps (B, heads, H, W)."""
        _, height, width, _ = x.shape
        logits = keras.ops.conv(x, self.kernel, 1, "same", data_format="channels_last")
        flat = keras.ops.reshape(logits, (-1, height * width, self.heads))
        maps = keras.ops.reshape(keras.ops.softmax(flat, axis=1), (-1, height, width, self.heads))
        attended = self.gamma * x * keras.ops.sum(maps, axis=-1, keepdims=True)
        return attended, keras.ops.transpose(maps, (0, 3, 1, 2))


def attention_layer(variant: str, shape: Sequence[int], heads: int, dtype: str) -> layers.Layer:
    """A built Soft-Attention layer, ``released`` or ``paper``; its weights are always float32."""
    kind = {"released": SoftAttention, "paper": PaperSoftAttention}[variant]
    layer = kind(heads, dtype="mixed_bfloat16" if dtype == "bfloat16" else dtype)
    layer.build(tuple(shape))
    return layer


def _attend(x: Tensor, dropout: float, aggregate: bool = True) -> Tensor:
    """Datta et al., Fig. 4: features and attended features, pooled; ReLU; dropout."""
    attended, _ = SoftAttention(16, aggregate, name="soft_attention")(x)
    pooled = [layers.MaxPooling2D(2, padding="same")(each) for each in (x, attended)]
    x = layers.ReLU(name="attention")(layers.Concatenate()(pooled))
    return layers.Dropout(dropout)(x)


def _irv2(size: int, dropout: float, attention: bool) -> tuple[Tensor, Tensor]:
    """Ends at a batch norm inside block8_9."""
    network = keras.applications.InceptionResNetV2(weights=None, input_shape=(size, size, 3))
    x = network.layers[-28].output
    x = _attend(x, dropout) if attention else layers.Dropout(dropout)(layers.ReLU()(x))
    return network.input, layers.Flatten()(x)


def _densenet201(size: int, dropout: float, attention: bool) -> tuple[Tensor, Tensor]:
    """Ends at the bottleneck inside block 29."""
    network = keras.applications.DenseNet201(weights=None, input_shape=(size, size, 3))
    x = network.layers[-28].output
    return network.input, layers.Flatten()(_attend(x, dropout) if attention else x)


def _resnet50(size: int, dropout: float, attention: bool) -> tuple[Tensor, Tensor]:
    """The whole network without its last two layers, the classifier."""
    network = keras.applications.ResNet50(weights=None, input_shape=(size, size, 3))
    x = network.layers[-3].output
    x = _attend(x, dropout) if attention else x
    return network.input, layers.GlobalAveragePooling2D(name="global_pool")(x)


def _conv(
    x: Tensor, features: int, kernel: Any, name: str = "", initializer: str = "glorot_uniform"
) -> Tensor:
    """Convolution with bias, ReLU, then batch norm; the name is the batch norm's."""
    x = layers.Conv2D(
        features, kernel, padding="same", activation="relu", kernel_initializer=initializer
    )(x)
    return layers.BatchNormalization(name=name or None)(x)


def _resnet34(size: int, dropout: float, attention: bool) -> tuple[Tensor, Tensor]:
    """Datta et al.'s own: from block 3 on, shortcuts are 3×3 convolutions; max pools halve."""
    images = layers.Input((size, size, 3))
    x = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(images)
    x = layers.BatchNormalization(name="conv1")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool1")(x)
    for block, (features, units) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for unit in range(1, units + 1):
            branch = _conv(_conv(x, features, 3), features, 3)
            shortcut = x if block == 2 else _conv(x, features, 3)
            x = layers.Add()([branch, shortcut])
            x = layers.ReLU(name=f"conv{block}_block{unit}")(x)
        if block == 3 and attention:
            x = _attend(x, dropout)
        elif block in (2, 4):  # The baseline has no pool where attention would be.
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)
    return images, layers.GlobalAveragePooling2D(name="global_pool")(x)


def _vgg16(size: int, dropout: float, attention: bool) -> tuple[Tensor, Tensor]:
    """Datta et al.'s own: batch norm, 1×1 convolutions at block ends, a last pool of 4×4."""
    images = x = layers.Input((size, size, 3))
    blocks = ((64, (3, 1)), (128, (3, 1)), (256, (3, 3, 1)), (512, (3, 3, 1)), (512, (3, 3, 1)))
    for block, (features, kernels) in enumerate(blocks, 1):
        for i, kernel in enumerate(kernels, 1):
            x = _conv(x, features, kernel, f"block{block}_conv{i}", "he_normal")
        if block == 4 and attention:
            x = _attend(x, dropout)
        else:
            pool = 4 if block == 5 else 2
            x = layers.MaxPooling2D(pool, padding="same", name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = layers.Dense(4096, "relu", kernel_initializer="he_normal", name=name)(x)
    return images, x


def _isic_5x5(size: int, dropout: float) -> tuple[Tensor, Tensor]:
    """Ends at a convolution: without the classifier, the same index is one layer earlier."""
    network = keras.applications.InceptionResNetV2(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )
    x = _attend(network.layers[-28].output, dropout, aggregate=False)
    return network.input, layers.Flatten()(x)


def _isic_12x12(size: int, dropout: float) -> tuple[Tensor, Tensor]:
    """Ends inside block17_18, followed by six residual units, each with a 1×1 convolution."""
    network = keras.applications.InceptionResNetV2(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )
    x = _attend(network.layers[-228].output, dropout)
    for unit in range(1, 7):
        left = _conv(x, 192, 1)
        right = x
        for kernel in (1, (3, 1)):
            right = layers.Conv2D(192, kernel, padding="same", activation="relu")(right)
        right = _conv(right, 192, (1, 3))
        x = layers.Add()([x, _conv(layers.Concatenate()([left, right]), x.shape[-1], 1)])
        x = layers.Conv2D(1024, 1, activation="relu", name=f"unit{unit}")(x)
    return network.input, layers.GlobalAveragePooling2D(name="global_pool")(x)


def _koefler(size: int, dropout: float, attention: bool) -> tuple[Tensor, Tensor]:
    """Köfler's CNN: six convolutions, attention after the fifth, two large dense layers."""
    images = layers.Input((size, size, 3))
    x = layers.Conv2D(64, 7, strides=2, activation="relu")(images)
    x = layers.BatchNormalization(name="conv1")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1")(x)
    x = layers.Conv2D(128, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.BatchNormalization(name="conv2")(x)
    x = layers.MaxPooling2D(3, strides=1, name="pool2")(x)
    x = layers.MaxPooling2D(3, strides=1, name="pool3")(_conv(x, 256, 3, "conv3"))
    x = _conv(_conv(x, 512, 3, "conv4"), 512, 3, "conv5")
    if attention:
        attended, _ = SoftAttention(12, name="soft_attention")(x)
        # The notebook's 1×1 pool has no effect.
        x = layers.Concatenate()([x, layers.MaxPooling2D(1, strides=1)(attended)])
    x = layers.MaxPooling2D(3, strides=1, name="pool5")(x)
    x = layers.ReLU(name="attention")(x) if attention else x
    x = layers.MaxPooling2D(3, strides=1, name="pool6")(_conv(x, 512, 3, "conv6"))
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = layers.Dropout(dropout)(layers.Dense(4096, "relu", name=name)(x))
    return images, x


class Published(NamedTuple):
    """A model: the size of its images, and ``(size, dropout) -> (images, last features)``."""

    size: int
    features: Callable[[int, float], tuple[Tensor, Tensor]]


def _both(name: str, size: int, features: Callable[..., tuple[Tensor, Tensor]]) -> dict:
    """A model without and with attention."""
    return {
        name: Published(size, functools.partial(features, attention=False)),
        f"{name}_sa": Published(size, functools.partial(features, attention=True)),
    }


#: The published models; ours have the same names.
PUBLISHED: dict[str, Published] = {
    **_both("irv2", 299, _irv2),
    **_both("densenet201", 224, _densenet201),
    **_both("resnet50", 224, _resnet50),
    **_both("resnet34", 224, _resnet34),
    **_both("vgg16", 224, _vgg16),
    "isic_irv2_sa_5x5": Published(224, _isic_5x5),
    "isic_irv2_sa_12x12": Published(224, _isic_12x12),
    "koefler_cnn": Published(100, functools.partial(_koefler, attention=False)),
    "koefler_cnn_sa": Published(100, functools.partial(_koefler, attention=True)),
}

#: Networks of ``keras.applications``, and the size of their images.
APPLICATIONS: dict[str, tuple[str, int]] = {
    "keras_inception_resnet_v2": ("InceptionResNetV2", 299),
    "keras_inception_v3": ("InceptionV3", 299),
    "keras_densenet121": ("DenseNet121", 224),
    "keras_densenet169": ("DenseNet169", 224),
    "keras_densenet201": ("DenseNet201", 224),
    "keras_resnet50": ("ResNet50", 224),
    "keras_resnet101": ("ResNet101", 224),
    "keras_resnet152": ("ResNet152", 224),
    "keras_vgg16": ("VGG16", 224),
    "keras_vgg19": ("VGG19", 224),
}


def names() -> tuple[str, ...]:
    """The names that ``build`` accepts."""
    return (*PUBLISHED, *APPLICATIONS)


def image_size(name: str) -> int:
    """The published height and width of a model's images, in pixels.

    Raises:
        InputError: Unknown name.
    """
    if name not in names():
        raise unknown("model", name, names())
    return PUBLISHED[name].size if name in PUBLISHED else APPLICATIONS[name][1]


def build(
    name: str,
    classes: int = 7,
    weights: str | Path | None = None,
    *,
    size: int | None = None,
    dropout: float = 0.5,
    softmax: bool = False,
) -> keras.Model:
    """Makes a model by name.

    Args:
        name: One of ``names()``.
        classes: Number of classes.
        weights: A Keras weights file of this model; None for random weights.
        size: Height and width of the images in pixels; None for the published size.
        dropout: Dropout rate of the published models.
        softmax: Whether to return probabilities, as published, instead of logits.

    Returns:
        A model from normalised images (B, size, size, 3) to logits (B, classes).

    Raises:
        InputError: Unknown name.
    """
    size = size or image_size(name)
    activation = "softmax" if softmax else None
    if name in APPLICATIONS:
        model = getattr(keras.applications, APPLICATIONS[name][0])(
            weights=None,
            input_shape=(size, size, 3),
            classes=classes,
            classifier_activation=activation,
        )
    else:
        images, features = PUBLISHED[name].features(size, dropout)
        logits = layers.Dense(classes, activation=activation, name="logits")(features)
        model = keras.Model(images, logits, name=name)
    if weights is not None:
        model.load_weights(weights)
    return model
