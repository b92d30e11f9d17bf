"""Frozen layers: training leaves their parameters and batch statistics as they are."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
from flax import traverse_util

from jaxattn.errors import unknown

#: The attribute, or argument, of batch norms.
_RUNNING = "use_running_average"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The first layers of a network, which are not trained (Yosinski et al. 2014).

    Their parameters have no gradient, update, weight decay or moments. Their batch norms compute
    with the running statistics, which do not change. Nothing is computed backwards below the first
    layer that is trained.

    Attributes:
        layers: Their names, see `jaxattn.models.registry.layers`.
    """

    layers: tuple[str, ...] = ()

    @classmethod
    def up_to(cls, name: str, layers: Callable[[], Sequence[str]]) -> "Frozen":
        """All layers up to one; none for "".

        Args:
            name: Of a layer; ``backbone/`` before the name of an endpoint may be left out.
            layers: Returns all layers in the order of the forward pass; called if there is a name.

        Raises:
            InputError: There is no such layer, or nothing is left to train.
        """
        if not name:
            return cls()
        *known, _ = names = layers()
        for each in (name, f"backbone/{name}"):
            if each in known:
                return cls(tuple(names[: names.index(each) + 1]))
        raise unknown("freeze", name, [each.removeprefix("backbone/") for each in known])

    def holds(self, path: Sequence[str]) -> bool:
        """Whether a module or parameter is of a frozen layer."""
        return any("/".join(path[:depth]) in self.layers for depth in (1, 2))

    def trained(self, tree: Any) -> Any:
        """The part of params or batch_stats that training changes."""
        if not self.layers:
            return tree
        leaves = traverse_util.flatten_dict(tree).items()
        return traverse_util.unflatten_dict({at: leaf for at, leaf in leaves if not self.holds(at)})

    def joined(self, trained: Any, tree: Any) -> Any:
        """The tree of which `trained` is a part, with the frozen leaves of another tree."""
        if not self.layers:
            return trained
        flat = traverse_util.flatten_dict
        return traverse_util.unflatten_dict({**flat(tree), **flat(trained)})

    def running(self) -> contextlib.AbstractContextManager:
        """Within it, frozen batch norms compute with, and keep, their running statistics."""

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if hasattr(module, _RUNNING) and self.holds(module.path):
                if _RUNNING in kwargs:
                    kwargs = {**kwargs, _RUNNING: True}
                else:  # a module of this forward pass alone, which Flax protects
                    object.__setattr__(module, _RUNNING, True)
            return call(*args, **kwargs)

        return nn.intercept_methods(intercept) if self.layers else contextlib.nullcontext()
