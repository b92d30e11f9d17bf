"""Inception-ResNet-v2 (Szegedy et al. 2016, arXiv:1602.07261), and Datta et al.'s use of it.

The network is the one of ``keras.applications``, layer for layer: batch norm without scale
(epsilon 1e-3, momentum 0.99), residual scales 0.17, 0.1 and 0.2, and a last block8 of scale 1
without activation.

Endpoints, in order, with their shapes for images of 299 × 299:

========================  =============  ========================================
``conv_1a``               149 149 32     stem; SAME padding only in ``conv_2b``
``conv_2a``, ``conv_2b``  147 147 32/64
``pool_3a``               73 73 64
``conv_3b``, ``conv_4a``  73/71 80/192
``pool_5a``               35 35 192
``mixed_5b``              35 35 320      Inception-A
``block35_1`` … ``_10``   35 35 320      Inception-ResNet-A
``mixed_6a``              17 17 1088     Reduction-A
``block17_1`` … ``_20``   17 17 1088     Inception-ResNet-B
``mixed_7a``              8 8 2080       Reduction-B
``block8_1`` … ``_10``    8 8 2080       Inception-ResNet-C
``conv_7b``               8 8 1536
``global_pool``           1536           only with classes
``logits``                classes        only with classes
========================  =============  ========================================

Parameters lie under the same names: ``block8_9/branch0/conv1/conv/kernel``. The network can also
stop at any convolution inside an endpoint, at ``block8_9/branch0/conv1``; or before its ReLU, at
``block8_9/branch0/conv1/bn``; or before its batch norm, at ``block8_9/branch0/conv1/conv``. Then
nothing beside or after it is computed or has parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxattn.errors import InputError, suggestion
from jaxattn.models.layers import Conv
from jaxattn.models.soft_attention import SoftAttentionBlock


class _Conv(NamedTuple):
    """A convolution with batch norm and ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class _Pool(NamedTuple):
    """A 3×3 pooling; averages leave the padding out."""

    pool: Callable[..., Array]
    stride: int
    padding: str


class _Block(NamedTuple):
    """Branches side by side, concatenated; with a scale, they are added to the input."""

    branches: tuple[tuple[_Conv | _Pool, ...], ...]
    scale: float | None = None
    activate: bool = True


_3x3 = (3, 3)
_AVERAGE = _Pool(functools.partial(nn.avg_pool, count_include_pad=False), 1, "SAME")
_HALVE = _Pool(nn.max_pool, 2, "VALID")

_STEM: Mapping[str, _Conv | _Pool] = {
    "conv_1a": _Conv(32, _3x3, 2, "VALID"),
    "conv_2a": _Conv(32, _3x3, 1, "VALID"),
    "conv_2b": _Conv(64, _3x3),
    "pool_3a": _HALVE,
    "conv_3b": _Conv(80, padding="VALID"),
    "conv_4a": _Conv(192, _3x3, 1, "VALID"),
    "pool_5a": _HALVE,
}
_MIXED_5B = _Block(
    (
        (_Conv(96),),
        (_Conv(48), _Conv(64, (5, 5))),
        (_Conv(64), _Conv(96, _3x3), _Conv(96, _3x3)),
        (_AVERAGE, _Conv(64)),
    )
)
_BLOCK35 = _Block(
    (
        (_Conv(32),),
        (_Conv(32), _Conv(32, _3x3)),
        (_Conv(32), _Conv(48, _3x3), _Conv(64, _3x3)),
    ),
    scale=0.17,
)
_MIXED_6A = _Block(
    (
        (_Conv(384, _3x3, 2, "VALID"),),
        (_Conv(256), _Conv(256, _3x3), _Conv(384, _3x3, 2, "VALID")),
        (_HALVE,),
    )
)
_BLOCK17 = _Block(((_Conv(192),), (_Conv(128), _Conv(160, (1, 7)), _Conv(192, (7, 1)))), scale=0.1)
_MIXED_7A = _Block(
    (
        (_Conv(256), _Conv(384, _3x3, 2, "VALID")),
        (_Conv(256), _Conv(288, _3x3, 2, "VALID")),
        (_Conv(256), _Conv(288, _3x3), _Conv(320, _3x3, 2, "VALID")),
        (_HALVE,),
    )
)
_BLOCK8 = _Block(((_Conv(192),), (_Conv(192), _Conv(224, (1, 3)), _Conv(256, (3, 1)))), scale=0.2)


def _stages(repeats: tuple[int, int, int]) -> dict[str, _Conv | _Pool | _Block]:
    """The endpoints up to ``conv_7b``, in order, and what each is."""
    return {
        **_STEM,
        "mixed_5b": _MIXED_5B,
        **{f"block35_{i}": _BLOCK35 for i in range(1, repeats[0] + 1)},
        "mixed_6a": _MIXED_6A,
        **{f"block17_{i}": _BLOCK17 for i in range(1, repeats[1] + 1)},
        "mixed_7a": _MIXED_7A,
        **{f"block8_{i}": _BLOCK8 for i in range(1, repeats[2])},
        f"block8_{repeats[2]}": _BLOCK8._replace(scale=1.0, activate=False),
        "conv_7b": _Conv(1536),
    }


def _unit_names(branch: tuple[_Conv | _Pool, ...]) -> list[str]:
    """``conv1``, ``conv2``, … and ``pool``: a pool stands first in its branch."""
    convs = (f"conv{i}" for i in range(1, len(branch) + 1))
    return ["pool" if isinstance(unit, _Pool) else next(convs) for unit in branch]


def _stops(name: str, stage: _Conv | _Pool | _Block) -> Iterator[str]:
    """Every place at or inside a stage where the network can stop."""
    yield name
    if isinstance(stage, _Conv):
        yield from (f"{name}/conv", f"{name}/bn")
    elif isinstance(stage, _Block):
        for b, branch in enumerate(stage.branches):
            for unit_name, unit in zip(_unit_names(branch), branch, strict=True):
                yield from _stops(f"{name}/branch{b}/{unit_name}", unit)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm without scale, ReLU."""

    spec: _Conv
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the activations, or what precedes them if ``stop`` is conv or bn."""
        features, kernel, stride, padding = self.spec
        x = Conv(
            features,
            kernel,
            strides=(stride, stride),
            padding=padding,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)
        if stop == ("conv",):
            return x
        x = nn.BatchNorm(
            use_running_average=not train,
            use_scale=False,
            epsilon=1e-3,
            momentum=0.99,
            dtype=self.dtype,
            name="bn",
        )(x)
        return x if stop == ("bn",) else nn.relu(x)


class Branch(nn.Module):
    """Convolutions and pools, one after the other."""

    spec: tuple[_Conv | _Pool, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, stop: tuple[str, ...] = ()
    ) -> Float[Array, "B h w D"]:
        """Returns the last activations, or those at ``stop``."""
        for name, unit in zip(_unit_names(self.spec), self.spec, strict=True):
            inner = stop[1:] if stop[:1] == (name,) else ()
            if isinstance(unit, _Pool):
                x = _pool(x, unit)
            else:
                x = ConvBN(unit, self.dtype, name=name)(x, train=train, stop=inner)
            if stop[:1] == (name,):
                break
        return x


class Block(nn.Module):
    """Branches, concatenated; with a scale, projected to the input's channels and added to it."""

    spec: _Block
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


def _pool(x: Float[Array, "B H W C"], spec: _Pool) -> Float[Array, "B h w C"]:
    return spec.pool(x, _3x3, strides=(spec.stride, spec.stride), padding=spec.padding)


class InceptionResNetV2(nn.Module):
    """The backbone, with or without its classifier.

    Attributes:
        num_classes: Number of logits (published: 1000); without, the network ends at ``conv_7b``.
        final_endpoint: Where to stop; see this module's docstring. By default, at the end.
        plugins: Modules to apply at endpoints, by the endpoint's name. Each is called with the
            endpoint's features and ``train=``, and returns ``(features, maps)``; the network goes
            on with these features. An attention module can so be put after any stage.
        repeats: How many block35, block17 and block8 there are; the last block8 is the linear one.
        dtype: Type of the activations; parameters and batch statistics are float32.
    """

    num_classes: int | None = None
    final_endpoint: str | None = None
    plugins: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    repeats: tuple[int, int, int] = (10, 20, 10)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Runs the network up to its final endpoint.

        Args:
            images: Images from -1 to 1, of at least 75 × 75 pixels.
            train: Whether batch norm uses, and updates, the statistics of the batch.

        Returns:
            The final endpoint, and every endpoint on the way by its name. The maps of a module
            plugged in at ``block17_20`` are endpoint ``block17_20/maps``.

        Raises:
            InputError: ``final_endpoint`` or a plugin's name is no endpoint.
        """
        stages = _stages(self.repeats)
        final, *inside = self._final_endpoint(stages).split("/")
        endpoints: dict[str, Array] = {}
        x = images.astype(self.dtype)
        for name, spec in stages.items():
            stop = tuple(inside) if name == final else ()
            if isinstance(spec, _Pool):
                x = _pool(x, spec)
            else:
                module: Any = ConvBN if isinstance(spec, _Conv) else Block
                x = module(spec, self.dtype, name=name)(x, train=train, stop=stop)
            if name in self.plugins and not stop:
                x, endpoints[f"{name}/maps"] = self.plugins[name](x, train=train)
            endpoints["/".join((name, *stop))] = x
            if name == final:
                return x, endpoints
        endpoints["global_pool"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
        if self.num_classes is not None and final == "logits":
            endpoints["logits"] = x = nn.Dense(
                self.num_classes, kernel_init=nn.initializers.glorot_uniform(), name="logits"
            )(x)
        return x, endpoints

    def _final_endpoint(self, stages: Mapping[str, _Conv | _Pool | _Block]) -> str:
        """The checked ``final_endpoint``; checks the plugins' names too."""
        for name in self.plugins:
            if name not in stages:
                raise InputError(f"plugin {name!r} is at no endpoint{suggestion(name, stages)}")
        final = self.final_endpoint or ("conv_7b" if self.num_classes is None else "logits")
        known = {stop for name, stage in stages.items() for stop in _stops(name, stage)}
        known |= {"global_pool"} if self.num_classes is None else {"global_pool", "logits"}
        if final not in known:
            raise InputError(f"final_endpoint {final!r} is unknown{suggestion(final, known)}")
        return final


class SoftAttentionIRv2(nn.Module):
    """Datta et al.'s Inception-ResNet-v2 with Soft-Attention, and their baseline without it.

    As released, both end inside block8_9, at the batch norm (before its ReLU) of the 1×1
    convolution of 192 channels that is its first branch; the branch beside it, block8_10 and
    conv_7b are no part of the model. As in the paper, attention follows the last
    Inception-ResNet-C block, of 2080 channels.

    With attention: ``SoftAttentionBlock``, then one dense layer. The baseline: ReLU, dropout and
    the dense layer, without pooling.

    Attributes:
        num_classes: Number of logits.
        semantics: ``'released'``, ``'paper'``, or None for the baseline.
        heads: Number of attention maps.
        dropout_rate: Share of the activations dropped before the dense layer.
        repeats: See ``InceptionResNetV2``.
        dtype: Type of the activations; parameters, batch statistics and logits are float32.
    """

    num_classes: int
    semantics: str | None = "released"
    heads: int = 16
    dropout_rate: float = 0.5
    repeats: tuple[int, int, int] = (10, 20, 10)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> tuple[Float[Array, "B classes"], dict[str, Float[Array, "B K h w"]]]:
        """Classifies.

        Args:
            images: Images from -1 to 1; published at 299 × 299 pixels.
            train: Whether batch norm uses the batch, and activations are dropped (random stream
                ``dropout``).

        Returns:
            Logits, float32; and ``{'soft_attention': maps}``, float32, each of sum 1 over
            positions, or for the baseline an empty dict.
        """
        last = self.repeats[2]
        tap = (
            f"block8_{last}" if self.semantics == "paper" else f"block8_{last - 1}/branch0/conv1/bn"
        )
        backbone = InceptionResNetV2(
            final_endpoint=tap, repeats=self.repeats, dtype=self.dtype, name="backbone"
        )
        x, _ = backbone(images, train=train)
        maps = {}
        if self.semantics is None:
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        else:
            x, maps["soft_attention"] = SoftAttentionBlock(
                self.heads,
                self.semantics,
                dropout_rate=self.dropout_rate,
                dtype=self.dtype,
                name="attention",
            )(x, train=train)
        x = x.astype(jnp.float32).reshape(x.shape[0], -1)
        kernel_init = nn.initializers.glorot_uniform()
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="logits")(x), maps
