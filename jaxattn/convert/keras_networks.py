"""The networks as Keras' code builds them, derived from what our own models are made of.

Each backbone is described as ours are, by named stages, so that attention can follow any of them
and the network can be cut inside one. Within a stage, layers are made, named and merged as in
``keras.applications``, or as the authors did who built a network by hand with Keras.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from jaxattn.convert.keras_order import Layer, Network
from jaxattn.errors import InputError
from jaxattn.models import inception, inception_resnet_v2, inception_v3
from jaxattn.models.classifier import Classifier
from jaxattn.models.datta2021 import TappedClassifier
from jaxattn.models.datta_resnet34 import DattaResNet34
from jaxattn.models.datta_vgg16 import DattaVGG16
from jaxattn.models.densenet import DenseNet
from jaxattn.models.inception import ConvSpec, PoolSpec, Spec
from jaxattn.models.inception_resnet_v2 import InceptionResNetV2
from jaxattn.models.inception_v3 import InceptionV3
from jaxattn.models.koefler2023 import KoeflerCNN
from jaxattn.models.resnet import ResNet
from jaxattn.models.vgg import VGG

#: Applies the layers of a stage and returns the last one.
_Stage = Callable[[Network, Layer], Layer]


def output(module: nn.Module) -> Layer:
    """The output layer of a model as Keras has it; all its layers can be reached from there.

    Args:
        module: A classifier of ours that was built, or could have been, with Keras.

    Raises:
        InputError: It is not one of these.
    """
    net = Network()
    if isinstance(module, Classifier) and type(module.backbone()) in _STAGES:
        attend = functools.partial(_attention, net, join=module.join)
        plugins = {module.attention_at: attend} if module.attention_at else {}
        return _backbone(net, module.backbone(num_classes=1), plugins, module.skip)
    if isinstance(module, TappedClassifier) and type(module.backbone()) in _STAGES:
        _backbone(net, module.backbone(), {})
        x = net.places[module.endpoint]
        x = x if module.semantics is None else _attention(net, x)
        for i in range(1, module.units + 1):
            x = _isic_unit(net, x, f"unit{i}")
        return net("dense", net("flatten", x), path="logits")
    raise InputError(f"a {type(module).__name__} given, which has no counterpart in Keras")


def _backbone(
    net: Network,
    model: Any,
    plugins: Mapping[str, Callable[[Layer], Layer]],
    skip: tuple[str, ...] = (),
) -> Layer:
    """All stages of a backbone, and what is plugged in."""
    x = net.image
    for name, stage in _STAGES[type(model)](model).items():
        if name not in skip:
            net.prefix = "backbone/"
            x = net.places[name] = stage(net, x)
            net.prefix = ""
            x = plugins.get(name, lambda x: x)(x)
    return x


def _attention(net: Network, x: Layer, join: bool = True) -> Layer:
    """The layer alone; or features and attended features side by side, each pooled before."""
    if not join:
        return net("soft_attention", x, path="attention")
    attended = net("soft_attention", x, path="attention/soft_attention")
    x = net("concatenate", net("pooling", x), net("pooling", attended))
    return net("dropout", net("activation", x))


def _layers(*kinds: str) -> _Stage:
    """Layers without weights."""

    def stage(net: Network, x: Layer) -> Layer:
        return functools.reduce(lambda x, kind: net(kind, x), kinds, x)

    return stage


def _layer(kind: str, path: str, name: str | None = None) -> _Stage:
    """One layer with weights."""
    return lambda net, x: net(kind, x, path=path, name=name)


def _conv_bn(
    net: Network, x: Layer, path: str, conv: str | None = None, bn: str | None = None
) -> Layer:
    """A convolution and batch norm, with the names that they may have."""
    x = net("conv2d", x, path=f"{path}/conv", name=conv)
    return net("batch_normalization", x, path=f"{path}/bn", name=bn)


def _conv_bn_relu(net: Network, x: Layer, path: str, *names: str) -> Layer:
    return net("activation", _conv_bn(net, x, path, *names), path=path)


def _classifier(model: Any) -> dict[str, _Stage]:
    """The end of the networks of keras.applications."""
    if model.num_classes is None:
        return {}
    return {
        "global_pool": _layers("pooling"),
        "logits": _layer("dense", "logits", "predictions"),
    }


def _inception_stage(net: Network, x: Layer, path: str, spec: Spec) -> Layer:
    if isinstance(spec, PoolSpec):
        return net("pooling", x, path=path)
    if isinstance(spec, ConvSpec):
        names = (path, f"{path}_bn") if path == "conv_7b" else ()
        return _conv_bn_relu(net, x, path, *names)
    branches = []
    for b, branch in enumerate(spec.branches):
        y = x
        for name, unit in zip(inception.unit_names(branch), branch, strict=True):
            y = _inception_stage(net, y, f"{path}/branch{b}/{name}", unit)
        branches.append(y)
    mixed = net("concatenate", *branches, path=path)
    if spec.scale is None:
        return mixed
    residual = net("conv2d", mixed, path=f"{path}/conv", name=f"{path}_conv")
    x = net("custom_scale_layer", x, residual)
    return net("activation", x) if spec.activate else x


def _inception(specs: Mapping[str, Spec]) -> dict[str, _Stage]:
    return {
        path: functools.partial(_inception_stage, path=path, spec=spec)
        for path, spec in specs.items()
    }


def _resnet_stem() -> dict[str, _Stage]:
    def conv1(net: Network, x: Layer) -> Layer:
        return _conv_bn_relu(net, net("zero_padding2d", x), "conv1", "conv1_conv", "conv1_bn")

    return {"conv1": conv1, "pool1": _layers("zero_padding2d", "pooling")}


def _resnet(model: ResNet) -> dict[str, _Stage]:
    stages = _resnet_stem()
    for i, count in enumerate(model.blocks, 2):
        for j in range(1, count + 1):
            name = f"conv{i}_block{j}"
            stages[name] = functools.partial(_bottleneck, block=name, project=j == 1)
    return stages | _classifier(model)


def _bottleneck(net: Network, x: Layer, block: str, project: bool) -> Layer:
    shortcut = x
    if project:
        names = (f"{block}_0_conv", f"{block}_0_bn")
        shortcut = _conv_bn(net, x, f"{block}/shortcut", *names)
    for k in (1, 2, 3):
        names = (f"{block}_{k}_conv", f"{block}_{k}_bn")
        x = _conv_bn(net, x if k == 1 else net("activation", x), f"{block}/conv{k}", *names)
    return net("activation", net("add", shortcut, x))


def _densenet(model: DenseNet) -> dict[str, _Stage]:
    stages = _resnet_stem()
    for i, count in enumerate(model.blocks, 2):
        for name in (f"conv{i}_block{j}" for j in range(1, count + 1)):
            stages[name] = functools.partial(_dense_layer, block=name)
        if i <= len(model.blocks):
            stages[f"pool{i}"] = functools.partial(_transition, block=f"pool{i}")
    stages["bn"] = _layer("batch_normalization", "bn", "bn")
    stages["relu"] = _layers("activation")
    return stages | _classifier(model)


def _dense_layer(net: Network, x: Layer, block: str) -> Layer:
    y = net("batch_normalization", x, path=f"{block}/bn", name=f"{block}_0_bn")
    y = net("activation", y, path=f"{block}/relu")
    y = _conv_bn_relu(net, y, f"{block}/conv1", f"{block}_1_conv", f"{block}_1_bn")
    y = net("conv2d", y, path=f"{block}/conv2", name=f"{block}_2_conv")
    return net("concatenate", x, y)


def _transition(net: Network, x: Layer, block: str) -> Layer:
    x = net("batch_normalization", x, path=f"{block}/bn", name=f"{block}_bn")
    x = net("activation", x, path=f"{block}/relu")
    x = net("conv2d", x, path=f"{block}/conv", name=f"{block}_conv")
    return net("pooling", x)


def _vgg(model: VGG) -> dict[str, _Stage]:
    stages: dict[str, _Stage] = {}
    for i, count in enumerate(model.blocks, 1):
        for name in (f"block{i}_conv{j}" for j in range(1, count + 1)):
            stages[name] = _layer("conv2d", name, name)
        stages[f"block{i}_pool"] = _layers("pooling")
    stages["flatten"] = _layers("flatten")
    for name in ("fc1", "fc2"):
        stages[name] = _layer("dense", name, name)
    return stages | {"logits": _layer("dense", "logits", "predictions")}


def _by_hand(model: DattaVGG16 | KoeflerCNN) -> dict[str, _Stage]:
    """Convolutions with batch norm one after the other, pools, and dense layers."""

    def stage(name: str) -> _Stage:
        if "pool" in name or name == "flatten":
            return _layers("pooling")
        if "conv" in name:
            return lambda net, x: _conv_bn(net, x, name)
        return _layer("dense", name)

    return {name: stage(name) for name in model.stages()}


def _datta_resnet34(model: DattaResNet34) -> dict[str, _Stage]:
    def unit(net: Network, x: Layer, path: str, project: bool) -> Layer:
        y = _conv_bn(net, _conv_bn(net, x, f"{path}/conv1"), f"{path}/conv2")
        shortcut = _conv_bn(net, x, f"{path}/shortcut") if project else x
        return net("activation", net("add", y, shortcut))

    stages: dict[str, _Stage] = {}
    for name in model.stages():
        if "block" in name:
            project = not name.startswith("conv2")
            stages[name] = functools.partial(unit, path=name, project=project)
        elif "conv" in name:
            stages[name] = functools.partial(_conv_bn, path=name)
        else:
            stages[name] = _layer("dense", name) if name == "logits" else _layers("pooling")
    return stages


def _isic_unit(net: Network, x: Layer, path: str) -> Layer:
    left = _conv_bn(net, x, f"{path}/branch0_conv1")
    right = net("conv2d", x, path=f"{path}/branch1_conv1")
    right = net("conv2d", right, path=f"{path}/branch1_conv2")
    right = _conv_bn(net, right, f"{path}/branch1_conv3")
    mixed = _conv_bn(net, net("concatenate", left, right), f"{path}/projection")
    return net("conv2d", net("add", mixed, x), path=f"{path}/conv")


_STAGES: Mapping[type, Callable[[Any], dict[str, _Stage]]] = {
    InceptionResNetV2: lambda model: (
        _inception(inception_resnet_v2.specs(model.repeats)) | _classifier(model)
    ),
    InceptionV3: lambda model: _inception(inception_v3.SPECS) | _classifier(model),
    DenseNet: _densenet,
    ResNet: _resnet,
    VGG: _vgg,
    DattaResNet34: _datta_resnet34,
    DattaVGG16: _by_hand,
    KoeflerCNN: _by_hand,
}
