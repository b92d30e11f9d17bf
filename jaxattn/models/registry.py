"""Models by name: the one place that says which classifiers there are.

To add a model, write it as a Linen class with the attributes ``num_classes`` and ``dtype``, called
as ``module(images, train=...)`` and returning ``(logits, maps)``, and give it an entry in
``MODELS``. Its remaining attributes become its options.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxattn.errors import InputError, suggestion
from jaxattn.models import densenet
from jaxattn.models.attention_cnn import AttentionCNN
from jaxattn.models.backbones import BACKBONES
from jaxattn.models.classifier import Classifier
from jaxattn.models.datta2021 import TappedClassifier
from jaxattn.models.datta_resnet34 import DattaResNet34
from jaxattn.models.datta_vgg16 import DattaVGG16
from jaxattn.models.densenet import DenseNet
from jaxattn.models.gessert2019 import PatchClassifier
from jaxattn.models.inception_resnet_v2 import InceptionResNetV2
from jaxattn.models.koefler2023 import POOL5, KoeflerCNN
from jaxattn.models.resnet import ResNet
from jaxattn.models.vgg_bn import VGGBN
from jaxattn.models.yan2019 import GatedClassifier


@dataclasses.dataclass(frozen=True)
class Model:
    """A named classifier.

    Attributes:
        module: Linen class with attributes ``num_classes`` and ``dtype``.
        image_size: Height and width of the images it was published with, in pixels.
        fixed: Attributes that the name settles; the others are options.
        normalisation: How it was published to have its images, one of
            ``jaxattn.data.augment.NORMALISATIONS``.
        num_classes: How many classes it was published with.
    """

    module: type[nn.Module]
    image_size: int
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    normalisation: str = "minus_one_one"
    num_classes: int = 7

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the attributes that ``build`` takes besides ``num_classes`` and ``dtype``."""
        settled = {"num_classes", "dtype", "parent", "name", *self.fixed}
        return tuple(f.name for f in dataclasses.fields(self.module) if f.name not in settled)


def _datta2021() -> dict[str, Model]:
    """Datta et al.'s networks as released, without attention and with it, and as in the paper."""
    densenet201 = functools.partial(DenseNet, blocks=densenet.BLOCKS["densenet201"])
    irv2 = {"backbone": InceptionResNetV2, "endpoint": "block8_9/branch0/conv1/bn"}
    dense = {"backbone": densenet201, "endpoint": "conv5_block29/conv1"}
    res = {"backbone": ResNet, "endpoint": "conv5_block3", "flatten": False}
    tapped = {
        "irv2": (299, irv2 | {"semantics": None}),
        "irv2_sa": (299, irv2 | {"semantics": "released"}),
        "irv2_sa_paper": (299, irv2 | {"semantics": "paper", "endpoint": "block8_10"}),
        "densenet201": (224, dense | {"semantics": None, "dropout_rate": 0.0}),
        "densenet201_sa": (224, dense | {"semantics": "released"}),
        "densenet201_sa_paper": (224, dense | {"semantics": "paper", "endpoint": "conv5_block32"}),
        "resnet50": (224, res | {"semantics": None, "dropout_rate": 0.0}),
        "resnet50_sa": (224, res | {"semantics": "released"}),
        "resnet50_sa_paper": (224, res | {"semantics": "paper"}),
    }
    isic = {
        "5x5": {"endpoint": "block8_9/branch0/conv1/conv", "aggregate": False},
        "12x12": {"endpoint": "block17_18/branch1/conv2", "units": 6, "flatten": False},
    }
    models = {name: Model(TappedClassifier, *entry) for name, entry in tapped.items()}
    for name, attributes in isic.items():
        fixed = irv2 | {"semantics": "released"} | attributes
        models[f"isic_irv2_sa_{name}"] = Model(TappedClassifier, 224, fixed, num_classes=2)
    by_hand: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "resnet34": ({"backbone": DattaResNet34}, {"attention_at": "conv3_block4"}),
        "vgg16": (
            {"backbone": DattaVGG16},
            {"attention_at": "block4_conv3", "skip": ("block4_pool",)},
        ),
    }
    for name, (fixed, attended) in by_hand.items():
        models[name] = Model(Classifier, 224, fixed)
        for suffix, semantics in (("sa", "released"), ("sa_paper", "paper")):
            models[f"{name}_{suffix}"] = Model(
                Classifier, 224, fixed | attended | {"join": True, "semantics": semantics}
            )
    return {
        name: dataclasses.replace(model, normalisation="unit") if name.endswith("_paper") else model
        for name, model in models.items()
    }


def _koefler2023() -> dict[str, Model]:
    """Köfler's two networks."""
    cnn = {"backbone": KoeflerCNN}
    attention = {
        "attention_at": "conv5",
        "semantics": "released",
        "heads": 12,
        "join": True,
        "pool": POOL5,
        "dropout_rate": 0.0,
        "skip": ("pool5",),
    }
    entry = functools.partial(Model, Classifier, 100, normalisation="bgr_255")
    return {
        "koefler_cnn": entry(cnn),
        "koefler_cnn_sa": entry(cnn | attention),
        "koefler_cnn_sa_paper": entry(cnn | attention | {"semantics": "paper"}),
    }


def _backbones() -> dict[str, Model]:
    """Every backbone as a classifier; attention after any endpoint is an option."""
    return {
        name: Model(Classifier, size, {"backbone": make}, normalisation, 1000)
        for name, (make, size, normalisation) in BACKBONES.items()
    }


def _yan2019() -> dict[str, Model]:
    """AttnMel-CNN and its three baselines; softmax in the place of sigmoid is an option."""
    gated: dict[str, dict[str, Any]] = {
        "vgg16_bn_gap": {"local": (), "gated": False},
        "melcnn": {"gated": False},
        "attnmelcnn": {"gated": True},
    }
    entry = functools.partial(Model, image_size=224, normalisation="isic2017", num_classes=2)
    fixed = {"backbone": VGGBN}
    models = {name: entry(GatedClassifier, fixed=fixed | more) for name, more in gated.items()}
    return {"vgg16_bn": entry(Classifier, fixed=fixed)} | models


#: Every classifier, by the name that a config gives it.
MODELS: dict[str, Model] = {
    "attention_cnn": Model(AttentionCNN, 64),
    **_datta2021(),
    **_koefler2023(),
    **_backbones(),
    **_yan2019(),
    "gessert2019": Model(PatchClassifier, 224, normalisation="unit"),
}


def names() -> tuple[str, ...]:
    """Returns the names that ``build`` knows, sorted."""
    return tuple(sorted(MODELS))


def find(name: str) -> Model:
    """Returns the entry of ``name``.

    Raises:
        InputError: There is no model of that name.
    """
    if name not in MODELS:
        raise InputError(f"model is {name!r}, which is no known model{suggestion(name, MODELS)}")
    return MODELS[name]


def create(name: str, num_classes: int, *, dtype: Any = jnp.float32, **options: Any) -> nn.Module:
    """Makes a classifier by name.

    Args:
        name: One of ``names()``.
        num_classes: Number of logits.
        dtype: Type of the activations; parameters and batch statistics are always float32.
        **options: Attributes of the model's class, such as ``semantics='paper'``.

    Returns:
        A module called with float images ``(B, H, W, 3)`` and the keyword ``train``. It returns
        float32 logits ``(B, num_classes)`` and a dict of attention maps ``(B, K, h, w)``.

    Raises:
        InputError: No such model, or it has no such option.
    """
    model = find(name)
    for option in options:
        if option not in model.options:
            raise InputError(
                f"option {option!r} is none of model {name!r}{suggestion(option, model.options)}"
            )
    return model.module(num_classes=num_classes, dtype=dtype, **model.fixed, **options)
