"""What all backbones share: named endpoints, truncation at any of them, and plugged-in attention.

A backbone's forward pass is plain code that names its endpoints as it goes::

    x = endpoint("conv1", ConvBN(64, (7, 7), 2, name="conv1")(x, train=train))

It can be truncated at an endpoint, or at a module inside one, such as
``block8_9/branch0/conv1/bn``: nothing after or beside that module is computed or has parameters. A
module, such as attention, can be plugged in after any endpoint.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxattn.convert.keras_order import Layer, Network
from jaxattn.errors import InputError, invalid, unknown
from jaxattn.ops import pool
from jaxattn.ops.cpu.no_fuse import no_fuse
from jaxattn.registry import Registry

#: What endpoints are called for ``jax.checkpoint``.
ENDPOINT = "endpoint"


class Backbone(nn.Module):
    """A network with named endpoints; a subclass defines ``forward``.

    Attributes:
        num_classes: Number of logits; None to end before the classifier.
        final_endpoint: Endpoint to end at, or the path of a module inside one; None for the last.
        plugins: Modules to apply after endpoints, by the endpoint's name: ``(x, *, train) ->
            (x, maps)``. The network goes on with their x.
        skip: Endpoints without parameters to leave out, such as a pool that attention replaces.
        dtype: Type of the activations; parameters and batch statistics are float32.
    """

    num_classes: int | None = None
    final_endpoint: str | None = None
    plugins: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    skip: tuple[str, ...] = ()
    dtype: Any = jnp.float32

    def forward(self, x: Array, train: bool, endpoint: "Endpoints") -> None:
        """The forward pass, a compact method; passes every endpoint through ``endpoint``."""
        raise NotImplementedError

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Runs the network up to its final endpoint.

        Args:
            images: Normalised images.
            train: Whether batch norm uses, and updates, the statistics of the batch.

        Returns:
            The final endpoint, and every endpoint by its name. The maps of a module plugged in at
            ``block17_20`` are endpoint ``block17_20/maps``.

        Raises:
            InputError: ``final_endpoint``, a plugin or ``skip`` names no endpoint; a plugin is
                where there are no positions; or the images are too small.
        """
        x = images.astype(self.dtype)
        endpoint = Endpoints(self, x, train)
        is_inside = "/" in (self.final_endpoint or "")
        truncation: contextlib.AbstractContextManager = contextlib.nullcontext()
        if is_inside:
            truncation = nn.intercept_methods(endpoint.intercept)
        with contextlib.suppress(_EndReached), truncation:
            self.forward(x, train, endpoint)
        endpoint.check()
        return endpoint.x, endpoint.found


class _EndReached(Exception):  # noqa: N818 - no error
    """The final endpoint is reached; ends the forward pass."""


class Endpoints:
    """Collects the endpoints of one forward pass, applies plugins and ends it.

    Attributes:
        x: The newest endpoint.
        found: Every endpoint so far, by its name.
    """

    def __init__(self, backbone: Backbone, x: Array, train: bool):
        """Begins with the images as the newest endpoint."""
        self.x = x
        self.found: dict[str, Array] = {}
        self._backbone, self._train, self._size = backbone, train, x.shape[1:3]
        self._final = backbone.final_endpoint
        self._inner: list[str] = []  # modules inside the final endpoint
        self._done = self._final is None

    def __call__(self, name: str, x: Array) -> Array:
        """Records an endpoint; returns what the network goes on with."""
        if name in self._backbone.skip:
            return self.x
        x = checkpoint_name(no_fuse(x), ENDPOINT)
        if 0 in x.shape:
            size = "{} x {}".format(*self._size)
            raise invalid("images", f"larger ones ({name!r} is empty)", size)
        if name in self._backbone.plugins:
            if x.ndim != 4:
                raise invalid("attention_at", "an endpoint with positions", repr(name))
            x, maps = self._backbone.plugins[name](x, train=self._train)
            if maps is not None:
                self.found[f"{name}/maps"] = maps
        self._record(name, x)
        return x

    def _record(self, name: str, x: Array) -> None:
        self.x = self.found[name] = x
        if name == self._final:
            self._done = True
            raise _EndReached

    def intercept(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Flax's method interceptor: ends at a module inside an endpoint."""
        path = context.module.path[len(self._backbone.path) :]
        final = (self._final or "").split("/")
        if context.method_name != "__call__" or path[:1] != (final[0],):
            return call(*args, **kwargs)
        self._inner.append("/".join(path))
        if _beside(path, final):
            return args[0]
        output = call(*args, **kwargs)
        if list(path) == final:
            self._record("/".join(path), no_fuse(output))
        if list(path) == final[: len(path)]:  # it has no such module inside
            raise self._no_end()
        return output

    def _no_end(self) -> InputError:
        names = {name for name in self.found if not name.endswith("/maps")}
        return unknown("final_endpoint", self._final, names | set(self._inner))

    def check(self) -> None:
        """Raises InputError if the final endpoint, a plugin or a skipped one does not exist."""
        backbone = self._backbone
        names = {name for name in self.found if not name.endswith("/maps")} | set(backbone.skip)
        if not self._done:
            raise self._no_end()
        for name in backbone.plugins:
            if name not in self.found:
                raise unknown("attention_at", name, names)
        if backbone.skip and self._final is None:
            known = endpoint_names(backbone.clone(skip=(), plugins={}, parent=None), *self._size)
            for name in backbone.skip:
                if name not in known:
                    raise unknown("skip", name, known)


def _beside(path: tuple[str, ...], final: list[str]) -> bool:
    """Whether a module is in a branch parallel to the final one, not before it.

    Branches of a block are called ``branch0``, ``branch1``, …; a residual block has one called
    ``shortcut`` beside its convolutions.
    """
    for own, wanted in zip(path, final, strict=False):
        if own != wanted:
            beside_shortcut = own == "shortcut" and wanted.startswith("conv")
            return wanted.startswith("branch") or wanted == "shortcut" or beside_shortcut
    return False


def endpoint_names(backbone: Backbone, height: int = 224, width: int = 224) -> list[str]:
    """The endpoints of a backbone in order; computes nothing."""

    def run(images: Array) -> dict[str, Array]:
        return backbone.init_with_output(jax.random.key(0), images, train=False)[0][1]

    names: list[str] = []

    def trace(images: Array) -> int:
        names.extend(run(images))
        return 0

    jax.eval_shape(trace, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
    return names


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered backbone.

    Attributes:
        make: Makes it, from the attributes of `Backbone`.
        image_size: Height and width of its images, pixels.
        normalisation: Of its images, one of ``jaxattn.data.augment.NORMALISATIONS``.
        source: Where its definition and weights come from.
        licence: Of that source.
        keras_layers: Its layers as Keras builds them, to convert Keras weights: takes the backbone,
            returns ``(network, input layer) -> output layer`` by endpoint; None if Keras has none.
        torch_names: What PyTorch calls its layers, to convert PyTorch weights: takes the backbone,
            returns ``path -> name``; None if PyTorch has none.
        torch_aliases: What another package of PyTorch weights calls them, likewise.
    """

    make: Callable[..., Backbone]
    image_size: int = 224
    normalisation: str = "imagenet"
    source: str = ""
    licence: str = ""
    keras_layers: Callable[[Any], dict[str, Callable[[Network, Layer], Layer]]] | None = None
    torch_names: Callable[[Any], Callable[[str], str]] | None = None
    torch_aliases: Callable[[Any], Callable[[str], str]] | None = None


#: Backbones by name; each is a classifier of that name too, see ``jaxattn.models.registry``.
BACKBONES: Registry[Entry] = Registry("model.backbone")


def max_pool(x: Float[Array, "B H W C"], size: int, stride: int, padding: str = "SAME") -> Array:
    """The largest of each ``size`` × ``size`` window."""
    return pool.max_pool(x, (size, size), (stride, stride), padding)


def flatten(x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
    """All features of an image in one row, in Keras' order."""
    return x.reshape(x.shape[0], -1)


def global_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B C"]:
    """The mean over positions, float32."""
    return x.astype(jnp.float32).mean(axis=(1, 2))


def dense(x: Float[Array, "B F"], name: str, features: int, dtype: Any = jnp.float32) -> Array:
    """A dense layer with Keras' initial weights."""
    return nn.Dense(features, kernel_init=nn.initializers.glorot_uniform(), dtype=dtype, name=name)(
        x
    )


def classify(x: Float[Array, "B H W C"], num_classes: int | None, endpoint: Endpoints) -> None:
    """``global_pool`` and ``logits``, the end of most backbones; nothing without classes."""
    if num_classes is not None:
        x = endpoint("global_pool", global_pool(x))
        endpoint("logits", dense(x, "logits", num_classes))
