"""What all backbones share: named endpoints, a place to stop, and modules plugged in on the way.

A backbone is a sequence of named stages. Its parameters lie under the names of its stages. It can
stop at any stage, or at a place inside one, such as ``block8_9/branch0/conv1/bn``; nothing beside
or after that place is then computed or has parameters. A module can be plugged in after any stage,
so that attention, or anything else, may follow it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import InputError, suggestion
from jaxattn.ops import pool
from jaxattn.ops.cpu.no_fuse import no_fuse


class Stage(NamedTuple):
    """One endpoint of a backbone.

    Attributes:
        apply: Called ``(x, train, stop)`` inside the backbone's compact method; makes its
            submodules under the stage's name and returns the stage's output, or what there is at
            ``stop``, the path of one of ``inside``, split at the slashes.
        inside: Places in the stage at which the network can stop, as ``branch0/conv1/bn``.
    """

    apply: Callable[[Array, bool, tuple[str, ...]], Array]
    inside: tuple[str, ...] = ()


class Backbone(nn.Module):
    """A sequence of stages; a subclass says which.

    Attributes:
        num_classes: Number of logits; without, the network ends before its classifier.
        final_endpoint: Where to stop: a stage, or a place inside one. By default, at the end.
        plugins: Modules to apply after stages, by the stage's name. Each is called with the
            stage's output and ``train=``, and returns ``(features, maps)``; the network goes on
            with these features.
        skip: Stages to leave out, such as a pool whose place a plugin takes.
        dtype: Type of the activations; parameters and batch statistics are float32.
    """

    num_classes: int | None = None
    final_endpoint: str | None = None
    plugins: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    skip: tuple[str, ...] = ()
    dtype: Any = jnp.float32

    def stages(self) -> dict[str, Stage]:
        """The stages in order, the classifier's among them only if there are classes."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Runs the network up to its final endpoint.

        Args:
            images: Normalised images.
            train: Whether batch norm uses, and updates, the statistics of the batch.

        Returns:
            The final endpoint, and every endpoint on the way by its name. The maps of a module
            plugged in at ``block17_20`` are endpoint ``block17_20/maps``.

        Raises:
            InputError: ``final_endpoint``, or the name of a plugin or of a stage to skip, is no
                endpoint; a plugin is where there are no positions; or the images are too small.
        """
        stages = self._checked_stages()
        final, *inside = self._final_endpoint(stages).split("/")
        endpoints: dict[str, Array] = {}
        x = images.astype(self.dtype)
        for name, stage in stages.items():
            stop = tuple(inside) if name == final else ()
            x = no_fuse(stage.apply(x, train, stop))
            if 0 in x.shape:
                height, width = images.shape[1:3]
                raise InputError(
                    f"images of {height} x {width} given, larger ones wanted: nothing "
                    f"is left of them at {name!r}"
                )
            if name in self.plugins and not stop:
                if x.ndim != 4:
                    raise InputError(f"plugin {name!r} is where there are no positions any more")
                x, endpoints[f"{name}/maps"] = self.plugins[name](x, train=train)
            endpoints["/".join((name, *stop))] = x
            if name == final:
                break
        return x, endpoints

    def _checked_stages(self) -> dict[str, Stage]:
        """The stages without those to skip; checks their names and the plugins'."""
        stages = self.stages()
        for name in self.skip:
            if name not in stages:
                raise InputError(f"skip {name!r} is no endpoint{suggestion(name, stages)}")
        stages = {name: stage for name, stage in stages.items() if name not in self.skip}
        for name in self.plugins:
            if name not in stages:
                raise InputError(f"plugin {name!r} is at no endpoint{suggestion(name, stages)}")
        return stages

    def _final_endpoint(self, stages: Mapping[str, Stage]) -> str:
        """The checked ``final_endpoint``."""
        places = {
            "/".join((name, *place))
            for name, stage in stages.items()
            for place in ((), *((inner,) for inner in stage.inside))
        }
        final = self.final_endpoint or list(stages)[-1]
        if final not in places:
            raise InputError(f"final_endpoint {final!r} is unknown{suggestion(final, places)}")
        return final


def of_module(make: Callable[[], Any], inside: tuple[str, ...] = ()) -> Stage:
    """A module called ``(x, train=, stop=)`` as a stage; ``make`` makes it, with its name."""

    def apply(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
        return make()(x, train=train, stop=stop)

    return Stage(apply, inside)


def global_pool(x: Float[Array, "B H W C"], train: bool, stop: tuple[str, ...]) -> Array:
    """The mean over positions, float32: a stage's ``apply``."""
    return x.astype(jnp.float32).mean(axis=(1, 2))


def flatten(x: Float[Array, "B H W C"], train: bool, stop: tuple[str, ...]) -> Array:
    """All features of an image in one row, as Keras orders them: a stage's ``apply``."""
    return x.reshape(x.shape[0], -1)


def max_pool(size: int, stride: int, padding: str = "SAME") -> Stage:
    """The largest of each ``size`` × ``size`` window, as a stage."""

    def apply(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
        return pool.max_pool(x, (size, size), (stride, stride), padding)

    return Stage(apply)


def dense(name: str, features: int, dtype: Any = jnp.float32, activate: bool = False) -> Stage:
    """A dense layer, with a ReLU or without, as a stage."""

    def apply(x: Array, train: bool, stop: tuple[str, ...]) -> Array:
        kernel_init = nn.initializers.glorot_uniform()
        x = nn.Dense(features, kernel_init=kernel_init, dtype=dtype, name=name)(x)
        return nn.relu(x) if activate else x

    return Stage(apply)


def classifier(num_classes: int | None) -> dict[str, Stage]:
    """``global_pool`` and ``logits``, the end of most backbones; nothing without classes."""
    if num_classes is None:
        return {}
    return {"global_pool": Stage(global_pool), "logits": dense("logits", num_classes)}
