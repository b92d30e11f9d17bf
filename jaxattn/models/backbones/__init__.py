"""Backbones, one file for each architecture; importing the package registers them.

To add one, write a `Backbone` and register an `Entry`::

    BACKBONES["mine"] = Entry(Mine, image_size=224, normalisation="imagenet", source="...")
"""

from jaxattn.models.backbones import (
    datta_resnet34,
    datta_vgg16,
    densenet,
    efficientnet_lite,
    inception_resnet_v2,
    inception_v3,
    resnet,
    vgg,
)
from jaxattn.models.backbones.base import BACKBONES, Backbone, Endpoints, Entry

__all__ = [
    "BACKBONES",
    "Backbone",
    "Endpoints",
    "Entry",
    "datta_resnet34",
    "datta_vgg16",
    "densenet",
    "efficientnet_lite",
    "inception_resnet_v2",
    "inception_v3",
    "resnet",
    "vgg",
]
