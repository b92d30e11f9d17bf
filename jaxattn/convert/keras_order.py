"""The order in which Keras lists, and so stores, a network's layers.

Neither of Keras' weight formats says which weight belongs where: legacy HDF5 files are matched
layer by layer along ``model.layers``, and Keras 3's name a layer by its class and its place among
the layers of that class in ``model.layers`` (``conv2d_17``, whatever the layer's own name). For a
functional model that is not the order in which its layers were made: layers stand by their depth,
the longest way to the output, deepest first, and among layers of one depth in the order of a
depth-first walk from the output. Parallel branches therefore interleave.

So a `Network` is built here as Keras' own code builds it, weightless layers included, for they
count in the depth; `order` then gives the place of every layer.
"""

import collections
import dataclasses
import functools
import graphlib
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a network.

    Attributes:
        kind: Class of the layer in Keras' snake case, as ``batch_normalization``.
        name: Name in Keras; where the author gave none, the one that Keras makes up in a fresh
            session.
        named: Whether the author gave the name.
        path: Where its parameters lie in our variables, if it has any.
        inputs: Layers that it is applied to, in the order of the call.
    """

    kind: str
    name: str
    named: bool = False
    path: str = ""
    inputs: tuple["Layer", ...] = ()


class Network:
    """Layers in the order in which Keras' code makes them.

    Attributes:
        image: The input layer.
        places: The layer applied last at each path, so that a network can be cut there.
        prefix: What the paths of layers made from now on begin with in our variables.
    """

    def __init__(self) -> None:
        self._made: collections.Counter[str] = collections.Counter()
        self.image = Layer("input_layer", "input_layer")
        self.places: dict[str, Layer] = {}
        self.prefix = ""

    def __call__(self, kind: str, *inputs: Layer, path: str = "", name: str | None = None) -> Layer:
        """Applies a new layer.

        Args:
            kind: Class of the layer in snake case.
            *inputs: Layers to apply it to.
            path: Where its parameters lie in our variables, below the prefix; several layers of
                which one at most has parameters may share a path.
            name: The name that the network's author gave it.

        Returns:
            The layer.
        """
        made_up = f"{kind}_{self._made[kind]}" if self._made[kind] else kind
        if name is None:
            self._made[kind] += 1
        layer = Layer(kind, name or made_up, name is not None, self.prefix + path, inputs)
        self.places[path] = layer
        return layer


def order(output: Layer) -> list[Layer]:
    """The layers that an output depends on, in the order of Keras' ``model.layers``."""
    found: dict[Layer, int] = {}
    waiting = [output]
    while waiting:
        layer = waiting.pop()
        if layer not in found:
            found[layer] = len(found)
            waiting.extend(reversed(layer.inputs))
    depth = dict.fromkeys(found, 0)
    needed = graphlib.TopologicalSorter({layer: layer.inputs for layer in found})
    for layer in reversed(list(needed.static_order())):
        for source in layer.inputs:
            depth[source] = max(depth[source], depth[layer] + 1)
    return sorted(found, key=lambda layer: (-depth[layer], found[layer]))


#: Applies the layers of one endpoint and returns the last one.
Stage = Callable[[Network, Layer], Layer]


def layers(*kinds: str) -> Stage:
    """Layers without weights."""

    def stage(net: Network, x: Layer) -> Layer:
        return functools.reduce(lambda x, kind: net(kind, x), kinds, x)

    return stage


def layer(kind: str, path: str, name: str | None = None) -> Stage:
    """One layer with weights."""
    return lambda net, x: net(kind, x, path=path, name=name)


def conv_bn(
    net: Network, x: Layer, path: str, conv: str | None = None, bn: str | None = None
) -> Layer:
    """A convolution and batch norm, with the names they may have."""
    x = net("conv2d", x, path=f"{path}/conv", name=conv)
    return net("batch_normalization", x, path=f"{path}/bn", name=bn)


def conv_bn_relu(net: Network, x: Layer, path: str, *names: str) -> Layer:
    """A convolution, batch norm and a ReLU."""
    return net("activation", conv_bn(net, x, path, *names), path=path)


def classifier(num_classes: int | None) -> dict[str, Stage]:
    """The end of the networks of keras.applications; nothing without classes."""
    if num_classes is None:
        return {}
    return {"global_pool": layers("pooling"), "logits": layer("dense", "logits", "predictions")}
