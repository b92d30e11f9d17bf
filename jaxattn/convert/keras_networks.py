"""Whole classifiers as Keras' code builds them, derived from our own models.

Each backbone describes its layers in Keras by endpoint (``Entry.keras_layers``), so that attention
can follow any endpoint and the network can be cut inside one.
"""

from collections.abc import Callable, Mapping

from flax import linen as nn

from jaxattn.convert import keras_order
from jaxattn.convert.keras_order import Layer, Network
from jaxattn.errors import invalid
from jaxattn.models.backbones import Backbone, Entry
from jaxattn.models.classifier import Classifier
from jaxattn.models.datta2021 import TappedClassifier

#: Attention that is in Keras, and whether it concatenates features and attended features.
_ATTENTION = {"soft": False, "soft_paper": False, "soft_block": True, "soft_paper_block": True}


def output(module: nn.Module) -> Layer:
    """The output layer of a model in Keras; all its layers can be reached from there.

    Args:
        module: A classifier of ours that was built, or could have been, with Keras.

    Raises:
        InputError: It has no counterpart in Keras.
    """
    net = Network()
    if isinstance(module, Classifier) and module.backbone.keras_layers:
        if not module.attention:
            return _backbone(net, module.backbone, module.backbone.make(num_classes=1), {})
        if module.attention in _ATTENTION:
            concat = _ATTENTION[module.attention]
            plugins = {module.attention_at: lambda x: _attention(net, x, concat)}
            model = module.backbone.make(num_classes=1)
            return _backbone(net, module.backbone, model, plugins, module.skip)
    if isinstance(module, TappedClassifier) and module.backbone.keras_layers:
        _backbone(net, module.backbone, module.backbone.make(), {})
        x = net.places[module.endpoint]
        x = x if module.variant is None else _attention(net, x)
        for i in range(1, module.units + 1):
            x = _isic_unit(net, x, f"unit{i}")
        return net("dense", net("flatten", x), path="logits")
    raise invalid("model", "one that has a counterpart in Keras", f"a {type(module).__name__}")


def _backbone(
    net: Network,
    entry: Entry,
    model: Backbone,
    plugins: Mapping[str, Callable[[Layer], Layer]],
    skip: tuple[str, ...] = (),
) -> Layer:
    """All endpoints of a backbone, and what is plugged in."""
    assert entry.keras_layers
    x = net.image
    for name, stage in entry.keras_layers(model).items():
        if name not in skip:
            net.prefix = "backbone/"
            x = net.places[name] = stage(net, x)
            net.prefix = ""
            x = plugins.get(name, lambda x: x)(x)
    return x


def _attention(net: Network, x: Layer, concat: bool = True) -> Layer:
    """The layer alone; or features and attended features concatenated, each pooled before."""
    if not concat:
        return net("soft_attention", x, path="attention")
    attended = net("soft_attention", x, path="attention/soft_attention")
    x = net("concatenate", net("pooling", x), net("pooling", attended))
    return net("dropout", net("activation", x))


def _isic_unit(net: Network, x: Layer, path: str) -> Layer:
    left = keras_order.conv_bn(net, x, f"{path}/branch0_conv1")
    right = net("conv2d", x, path=f"{path}/branch1_conv1")
    right = net("conv2d", right, path=f"{path}/branch1_conv2")
    right = keras_order.conv_bn(net, right, f"{path}/branch1_conv3")
    mixed = keras_order.conv_bn(net, net("concatenate", left, right), f"{path}/projection")
    return net("conv2d", net("add", mixed, x), path=f"{path}/conv")
