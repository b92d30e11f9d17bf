"""Backbones by name, with all layers as published: the one place that says which there are."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxattn.errors import InputError, suggestion
from jaxattn.models import densenet, resnet, resnet_torch, vgg
from jaxattn.models.backbone import Backbone
from jaxattn.models.densenet import DenseNet
from jaxattn.models.inception_resnet_v2 import InceptionResNetV2
from jaxattn.models.inception_v3 import InceptionV3
from jaxattn.models.resnet import ResNet
from jaxattn.models.vgg import VGG
from jaxattn.models.vgg_bn import VGGBN


class Published(NamedTuple):
    """A backbone as it was published.

    Attributes:
        make: Makes it, from the attributes of ``Backbone``.
        image_size: Height and width of its images, pixels.
        normalisation: Of its images, one of ``jaxattn.data.augment.NORMALISATIONS``.
    """

    make: Callable[..., Backbone]
    image_size: int
    normalisation: str


def _keras() -> dict[str, Published]:
    """Those of ``keras.applications``."""
    found = {
        "inception_resnet_v2": Published(InceptionResNetV2, 299, "minus_one_one"),
        "inception_v3": Published(InceptionV3, 299, "minus_one_one"),
    }
    for module, cls, normalisation in (
        (densenet, DenseNet, "imagenet"),
        (resnet, ResNet, "caffe"),
        (vgg, VGG, "caffe"),
    ):
        for name, blocks in module.BLOCKS.items():
            found[name] = Published(functools.partial(cls, blocks=blocks), 224, normalisation)
    return {f"keras_{name}": entry for name, entry in found.items()}


def _torch() -> dict[str, Published]:
    """Those of torchvision, and SE-ResNeXt of timm and, with ``_cadene``, of pretrainedmodels."""
    densenet121 = functools.partial(DenseNet, torch=True)
    cadene = functools.partial(resnet_torch.se_resnext50, ceil_pool=True)
    found: dict[str, Callable[..., Backbone]] = {
        "densenet121": densenet121,
        "resnet34": resnet_torch.resnet34,
        "resnet50": resnet_torch.resnet50,
        "se_resnext50": resnet_torch.se_resnext50,
        "se_resnext50_cadene": cadene,
        "vgg16_bn": VGGBN,
    }
    entries = {name: Published(make, 224, "imagenet") for name, make in found.items()}
    # torchvision's weights are TensorFlow's: they want its range, whatever torchvision's is.
    entries["inception_v3"] = Published(
        functools.partial(InceptionV3, torch=True), 299, "minus_one_one"
    )
    return {f"torch_{name}": entry for name, entry in entries.items()}


#: All of them, and ``densenet_small``, of eight layers, for machines without a GPU.
BACKBONES: Mapping[str, Published] = {
    **_keras(),
    **_torch(),
    "densenet_small": Published(
        functools.partial(DenseNet, blocks=(2, 2, 2, 2), torch=True), 112, "imagenet"
    ),
}


def find(name: str) -> Published:
    """The entry of a name.

    Raises:
        InputError: There is no backbone of that name.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} is unknown{suggestion(name, BACKBONES)}")
    return BACKBONES[name]
