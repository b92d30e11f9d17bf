"""The Inception networks' building blocks (Szegedy et al. 2015 and 2016), described by tuples.

``ConvSpec``, ``PoolSpec`` and ``BlockSpec`` say what a network is made of; ``stage`` makes a
backbone's stage of one. Convolutions have no bias; batch norm has no scale and averages leave the
padding out, as in ``keras.applications``, or both are as torchvision has them: ``as_torch``.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.models.backbone import Stage, of_module
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
    """The same as torchvision has it: batch norm has a scale, averages count the padding."""
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


def stops(stage: Spec, name: str = "") -> Iterator[str]:
    """Every place inside a stage where the network can stop, below ``name``."""
    if isinstance(stage, ConvSpec):
        yield from (f"{name}conv", f"{name}bn")
    elif isinstance(stage, BlockSpec):
        for b, branch in enumerate(stage.branches):
            for unit_name, unit in zip(unit_names(branch), branch, strict=True):
                yield f"{name}branch{b}/{unit_name}"
                yield from stops(unit, f"{name}branch{b}/{unit_name}/")


def module(spec: ConvSpec | BlockSpec, dtype: Any, name: str) -> Any:
    """The module that a spec describes, called ``(x, train=, stop=)``."""
    if isinstance(spec, BlockSpec):
        return Block(spec, dtype, name=name)
    return ConvBN(**spec._asdict(), epsilon=1e-3, dtype=dtype, name=name)


class Branch(nn.Module):
    """Convolutions and pools, one after the other."""

    spec: tuple[Spec, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the last activations, or those at ``stop``."""
        for name, unit in zip(unit_names(self.spec), self.spec, strict=True):
            inner = stop[1:] if stop[:1] == (name,) else ()
            if isinstance(unit, PoolSpec):
                x = pool(x, unit)
            else:
                x = module(unit, self.dtype, name)(x, train=train, stop=inner)
            if stop[:1] == (name,):
                break
        return x


class Block(nn.Module):
    """Branches, concatenated; with a scale, projected to the input's channels and added to it."""

    spec: BlockSpec
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the block's output, or that of one branch up to ``stop``."""
        outputs = []
        for b, branch in enumerate(self.spec.branches):
            name = f"branch{b}"
            if stop and stop[0] != name:
                continue
            output = Branch(branch, self.dtype, name=name)(x, train=train, stop=stop[1:])
            outputs.append(output)
        if stop:
            return outputs[0]
        mixed = jnp.concatenate(outputs, axis=-1)
        if self.spec.scale is None:
            return mixed
        residual = Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="conv")(mixed)
        x = x + self.spec.scale * residual
        return nn.relu(x) if self.spec.activate else x


def pool(x: Float[Array, "B H W C"], spec: PoolSpec) -> Float[Array, "B h w C"]:
    """Pools as ``spec`` says."""
    return spec.pool(x, SQUARE, strides=(spec.stride, spec.stride), padding=spec.padding)


def stage(name: str, spec: Spec, dtype: Any) -> Stage:
    """What a spec describes, as a stage of a backbone."""
    if isinstance(spec, PoolSpec):
        return Stage(lambda x, train, stop: pool(x, spec))
    return of_module(functools.partial(module, spec, dtype, name), tuple(stops(spec)))
