"""The Inception networks' building blocks (Szegedy et al. 2015 and 2016), described by tuples.

``ConvSpec``, ``PoolSpec`` and ``BlockSpec`` describe the endpoints of a network; ``run`` computes
them. Convolutions have no bias. Batch norm has no scale and average pools leave the padding out, as
in keras.applications; ``as_torch`` makes torchvision's variant of a spec.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.convert import keras_order
from jaxattn.convert.keras_order import Layer, Network
from jaxattn.models.backbones.base import Endpoints
from jaxattn.models.layers import Conv, ConvBN
from jaxattn.ops.pool import max_pool


class ConvSpec(NamedTuple):
    """A convolution with batch norm and ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    use_scale: bool = False
    momentum: float = 0.99


class PoolSpec(NamedTuple):
    """A 3×3 pooling."""

    pool: Callable[..., Array]
    stride: int
    padding: str


class BlockSpec(NamedTuple):
    """Branches side by side, concatenated; with a scale, they are added to the input.

    A branch may itself end in branches, as those of Inception-v3 do.
    """

    branches: "tuple[tuple[ConvSpec | PoolSpec | BlockSpec, ...], ...]"
    scale: float | None = None
    activate: bool = True


Spec = ConvSpec | PoolSpec | BlockSpec

SQUARE = (3, 3)
AVERAGE = PoolSpec(functools.partial(nn.avg_pool, count_include_pad=False), 1, "SAME")
COUNTED = PoolSpec(nn.avg_pool, 1, "SAME")
HALVE = PoolSpec(max_pool, 2, "VALID")

#: The endpoints with which Inception-v3 and Inception-ResNet-v2 begin.
STEM: Mapping[str, Spec] = {
    "conv_1a": ConvSpec(32, SQUARE, 2, "VALID"),
    "conv_2a": ConvSpec(32, SQUARE, 1, "VALID"),
    "conv_2b": ConvSpec(64, SQUARE),
    "pool_3a": HALVE,
    "conv_3b": ConvSpec(80, padding="VALID"),
    "conv_4a": ConvSpec(192, SQUARE, 1, "VALID"),
    "pool_5a": HALVE,
}


def as_torch(spec: Spec) -> Spec:
    """Torchvision's variant: batch norm has a scale, average pools count the padding."""
    if isinstance(spec, ConvSpec):
        return spec._replace(use_scale=True, momentum=0.9)
    if isinstance(spec, BlockSpec):
        branches = tuple(tuple(map(as_torch, branch)) for branch in spec.branches)
        return spec._replace(branches=branches)
    return COUNTED if spec == AVERAGE else spec


def unit_names(branch: Sequence[Spec]) -> list[str]:
    """Names of a branch's units: ``conv1``, ``conv2``, …, and ``pool`` or ``split``."""
    convs = (f"conv{i}" for i in range(1, len(branch) + 1))
    others = {PoolSpec: "pool", BlockSpec: "split"}
    return [others.get(type(unit)) or next(convs) for unit in branch]


def module(spec: ConvSpec | BlockSpec, dtype: Any, name: str) -> nn.Module:
    """The module that a spec describes, called ``(x, train=)``."""
    if isinstance(spec, BlockSpec):
        return Block(spec, dtype, name=name)
    return ConvBN(**spec._asdict(), epsilon=1e-3, dtype=dtype, name=name)


class Branch(nn.Module):
    """Convolutions, pools and splits, one after the other."""

    spec: tuple[Spec, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the last activations."""
        for name, unit in zip(unit_names(self.spec), self.spec, strict=True):
            if isinstance(unit, PoolSpec):
                x = Pool(unit, name=name)(x)
            else:
                x = module(unit, self.dtype, name)(x, train=train)
        return x


class Pool(nn.Module):
    """A pooling with a name, so that a network can be truncated after it."""

    spec: PoolSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Pools as the spec says."""
        return pool(x, self.spec)


class Block(nn.Module):
    """Branches, concatenated; with a scale, projected to the input's channels and added to it."""

    spec: BlockSpec
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the block's output."""
        outputs = [
            Branch(branch, self.dtype, name=f"branch{b}")(x, train=train)
            for b, branch in enumerate(self.spec.branches)
        ]
        mixed = jnp.concatenate(outputs, axis=-1)
        if self.spec.scale is None:
            return mixed
        residual = Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="conv")(mixed)
        x = x + self.spec.scale * residual
        return nn.relu(x) if self.spec.activate else x


def pool(x: Float[Array, "B H W C"], spec: PoolSpec) -> Float[Array, "B h w C"]:
    """Pools as ``spec`` says."""
    return spec.pool(x, SQUARE, strides=(spec.stride, spec.stride), padding=spec.padding)


def run(specs: Mapping[str, Spec], x: Array, train: bool, endpoint: Endpoints, dtype: Any) -> Array:
    """Passes images through the endpoints that specs describe, in order."""
    for name, spec in specs.items():
        if isinstance(spec, PoolSpec):
            x = endpoint(name, pool(x, spec))
        else:
            x = endpoint(name, module(spec, dtype, name)(x, train=train))
    return x


def keras_layers(specs: Mapping[str, Spec]) -> dict[str, keras_order.Stage]:
    """The endpoints' layers in Keras."""
    return {
        path: functools.partial(_keras_stage, path=path, spec=spec) for path, spec in specs.items()
    }


def _keras_stage(net: Network, x: Layer, path: str, spec: Spec) -> Layer:
    if isinstance(spec, PoolSpec):
        return net("pooling", x, path=path)
    if isinstance(spec, ConvSpec):
        names = (path, f"{path}_bn") if path == "conv_7b" else ()
        return keras_order.conv_bn_relu(net, x, path, *names)
    branches = []
    for b, branch in enumerate(spec.branches):
        y = x
        for name, unit in zip(unit_names(branch), branch, strict=True):
            y = _keras_stage(net, y, f"{path}/branch{b}/{name}", unit)
        branches.append(y)
    mixed = net("concatenate", *branches, path=path)
    if spec.scale is None:
        return mixed
    residual = net("conv2d", mixed, path=f"{path}/conv", name=f"{path}_conv")
    x = net("custom_scale_layer", x, residual)
    return net("activation", x) if spec.activate else x
