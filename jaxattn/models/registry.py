"""Classifiers by name.

To add one, write a Linen class with the attributes ``num_classes`` and ``dtype``, called as
``module(images, train=...)`` and returning ``(logits, maps)``, and register it::

    MODELS["mine"] = Model(Mine, image_size=224, normalisation="imagenet")

Its other attributes become its options. Every backbone of ``BACKBONES`` is a classifier of that
name too, with attention after any endpoint as an option.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxattn.errors import unknown
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.classifier import Classifier
from jaxattn.models.metadata import WithMetadata
from jaxattn.registry import Registry


@dataclasses.dataclass(frozen=True)
class Model:
    """A named classifier.

    Attributes:
        module: Linen class with attributes ``num_classes`` and ``dtype``.
        image_size: Height and width of the images it was published with, in pixels.
        fixed: Attributes that the name settles; the others are options.
        normalisation: How its images are normalised, one of
            ``jaxattn.data.augment.NORMALISATIONS``.
        num_classes: How many classes it was published with.
    """

    module: type[nn.Module]
    image_size: int
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    normalisation: str = "minus_one_one"
    num_classes: int = 7

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the attributes that `create` takes besides ``num_classes`` and ``dtype``."""
        settled = {"num_classes", "dtype", "parent", "name", *self.fixed}
        return tuple(f.name for f in dataclasses.fields(self.module) if f.name not in settled)


class _Models(Registry[Model]):
    """The registered classifiers, and every backbone as one."""

    def __missing__(self, name: str) -> Model:
        if name in BACKBONES:
            entry = BACKBONES[name]
            return Model(
                Classifier, entry.image_size, {"backbone": entry}, entry.normalisation, 1000
            )
        raise unknown(self.field, name, names())


#: Classifiers by name; the published systems register their own, each in its file.
MODELS: Registry[Model] = _Models("model.name")


def names() -> tuple[str, ...]:
    """The names that `create` knows, sorted."""
    _register_published()
    return tuple(sorted({*MODELS, *BACKBONES}))


def find(name: str) -> Model:
    """The entry of a name.

    Raises:
        InputError: There is no model of that name.
    """
    _register_published()
    return MODELS[name]


def create(
    name: str,
    num_classes: int,
    *,
    dtype: Any = jnp.float32,
    metadata: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Makes a classifier by name.

    Args:
        name: One of ``names()``.
        num_classes: Number of logits.
        dtype: Type of the activations; parameters and batch statistics are always float32.
        metadata: Attributes of `jaxattn.models.metadata.Fusion`, such as ``{"sizes": (0, 2, 13)}``
            for an age, two sexes and 13 sites; None for a model that sees the image alone.
        **options: Attributes of the model's class, such as ``attention="soft"``.

    Returns:
        A module called with float images ``(B, H, W, 3)`` and the keyword ``train``. It returns
        float32 logits ``(B, num_classes)`` and a dict of attention maps ``(B, K, h, w)``. With
        ``metadata`` it is a `WithMetadata`, which takes them after the images.

    Raises:
        InputError: There is no such model, or it has no such option.
    """
    model = find(name)
    for option in options:
        if option not in model.options:
            raise unknown(f"model.{option}", option, model.options)
    classifier = model.module(num_classes=num_classes, dtype=dtype, **model.fixed, **options)
    return WithMetadata(classifier, dict(metadata)) if metadata else classifier


def of_config(
    config: ConfigDict, num_classes: int, sizes: tuple[int, ...] | None = None
) -> nn.Module:
    """The classifier of a config, see `create`.

    Args:
        config: The config, resolved.
        num_classes: Number of logits.
        sizes: The number of words of each of ``config.metadata.fields``, 0 for a number; None
            without fields.
    """
    metadata = None
    if sizes:
        options = {name: value for name, value in config.metadata.items() if name != "fields"}
        metadata = {"sizes": sizes, **options}
    return create(
        num_classes=num_classes,
        dtype=jnp.dtype(config.dtype),
        metadata=metadata,
        **config.model.to_dict(),
    )


def layers(model: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """The model's layers that have parameters, in the order of the forward pass; computes nothing.

    Args:
        model: A classifier.
        input_shape: Of one input, see `jaxattn.state.create`.

    Returns:
        Names below ``params``; those of the backbone's endpoints for the backbone:
        ``backbone/block1_1``, …, ``logits``.
    """
    names: list[str] = []

    def trace(images: jax.Array) -> int:
        params = model.init(jax.random.key(0), images, train=False)["params"]
        for name, inner in params.items():  # in the order in which they were made
            inside = inner if name == "backbone" else ()
            names.extend([f"{name}/{each}" for each in inside] or [name])
        return 0

    jax.eval_shape(trace, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    # A backbone's own layer ``logits`` comes before a layer beside the backbone that it follows.
    return sorted(names, key=lambda name: name.rpartition("/")[2] == "logits")


def _register_published() -> None:
    """Imports the published systems, which register themselves (and import this module)."""
    for system in ("attention_cnn", "datta2021", "koefler2023", "gessert2019", "yan2019"):
        importlib.import_module(f"jaxattn.models.{system}")
