"""Attention by name, to plug in after any endpoint of any backbone.

To add one, write a Linen module called ``(x, *, train)`` that returns the features to go on with
and its maps, float32 ``(B, K, h, w)``, or None if it has no maps over positions::

    @ATTENTION.register("mine")
    class Mine(nn.Module):
        dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, x, *, train):
            ...
            return x, maps

``--config.model.attention=mine --config.model.attention_at=block17_20`` uses it; its attributes are
``--config.model.attention_options``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxattn.errors import unknown
from jaxattn.registry import Registry

#: What makes each attention module from its attributes, ``dtype`` and ``name`` among them.
ATTENTION: Registry[Callable[..., nn.Module]] = Registry("model.attention")


def create(name: str, dtype: Any, **options: Any) -> nn.Module:
    """Makes the attention module of a name; its parameters are called ``attention``.

    Raises:
        InputError: There is no such attention, or it has no such option.
    """
    make = ATTENTION[name]
    known = option_names(make)
    for option in options:
        if option not in known:
            raise unknown("model.attention_options", option, known)
    if "dtype" in known:
        options = {"dtype": dtype, **options}
    return make(name="attention", **options)


def option_names(make: Callable[..., nn.Module]) -> tuple[str, ...]:
    """The attributes of a module class that its maker, a `functools.partial`, leaves open."""
    settled = {"parent", "name", *getattr(make, "keywords", {})}
    fields = dataclasses.fields(getattr(make, "func", make))  # type: ignore[arg-type]
    return tuple(field.name for field in fields if field.name not in settled)
