"""Models by name: the one place that says which classifiers there are.

To add a model, write it as a Linen class with the attributes ``num_classes`` and ``dtype``, called
as ``module(images, train=...)`` and returning ``(logits, maps)``, and give it an entry in
``MODELS``. Its remaining attributes become its options.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxattn.errors import InputError, suggestion
from jaxattn.models.attention_cnn import AttentionCNN
from jaxattn.models.inception_resnet_v2 import SoftAttentionIRv2


@dataclasses.dataclass(frozen=True)
class Model:
    """A named classifier.

    Attributes:
        module: Linen class with attributes ``num_classes`` and ``dtype``.
        image_size: Height and width of the images it was published with, in pixels.
        fixed: Attributes that the name settles; the others are options.
    """

    module: type[nn.Module]
    image_size: int
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the attributes that ``build`` takes besides ``num_classes`` and ``dtype``."""
        settled = {"num_classes", "dtype", "parent", "name", *self.fixed}
        return tuple(f.name for f in dataclasses.fields(self.module) if f.name not in settled)


#: Every classifier, by the name that a config gives it.
MODELS: Mapping[str, Model] = {
    "attention_cnn": Model(AttentionCNN, 64),
    "irv2": Model(SoftAttentionIRv2, 299, {"semantics": None, "heads": 0}),
    "irv2_sa": Model(SoftAttentionIRv2, 299, {"semantics": "released"}),
    "irv2_sa_paper": Model(SoftAttentionIRv2, 299, {"semantics": "paper"}),
}


def names() -> tuple[str, ...]:
    """Returns the names that ``build`` knows, sorted."""
    return tuple(sorted(MODELS))


def find(name: str) -> Model:
    """Returns the entry of ``name``.

    Raises:
        InputError: There is no model of that name.
    """
    if name not in MODELS:
        raise InputError(f"model is {name!r}, which is no known model{suggestion(name, MODELS)}")
    return MODELS[name]


def build(name: str, num_classes: int, *, dtype: Any = jnp.float32, **options: Any) -> nn.Module:
    """Makes a classifier by name.

    Args:
        name: One of ``names()``.
        num_classes: Number of logits.
        dtype: Type of the activations; parameters and batch statistics are always float32.
        **options: Attributes of the model's class, such as ``semantics='paper'``.

    Returns:
        A module called with float images ``(B, H, W, 3)`` and the keyword ``train``. It returns
        float32 logits ``(B, num_classes)`` and a dict of attention maps ``(B, K, h, w)``.

    Raises:
        InputError: No such model, or it has no such option.
    """
    model = find(name)
    for option in options:
        if option not in model.options:
            raise InputError(
                f"option {option!r} is none of model {name!r}{suggestion(option, model.options)}"
            )
    return model.module(num_classes=num_classes, dtype=dtype, **model.fixed, **options)
