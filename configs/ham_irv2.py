"""Inception-ResNet-v2 with Soft-Attention on HAM10000 (Datta et al. 2021, table 1, IRv2+SA).

    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    python -m jaxattn.train --config=configs/ham_irv2.py --config.dataset.data_dir=data/ham10000

The model, optimizer, class weights, batches, epochs and early stopping are those of the released
notebook. What differs, and why: the best checkpoint and the end are chosen on a validation part
(the notebook chooses on the test images); lesions are kept together (``:datta`` splits as the paper
does); augmentation is drawn anew for each image instead of once for a folder of 51,699 copies.

Arguments, joined by commas: ``datta`` (the paper's 85/15 split), ``baseline`` (without attention),
``paper`` (the attention layer as the paper describes it: 3x3xd over all channels, at the
Inception-ResNet-C block's output, with a learnable scale; pixels / 255).

An epoch is 919 batches of 16; 150 at most. The notebook's took 149 s on an unnamed Colab GPU.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, base


def get_config(given: str = "") -> ConfigDict:
    variant, datta = arguments(given, ("", "baseline", "paper"), ("", "datta"))
    config = base()
    config.dataset.name = "prepared"
    config.dataset.image_size = 299
    config.split.strategy = datta or "lesion"
    config.plan.strategy = "equal"
    config.plan.per_class = 8000
    config.augment.brightness = 0.0  # rotation, shifts, zoom and flips are the default: the paper's
    config.model.name = {"baseline": "irv2", "paper": "irv2_sa_paper"}.get(variant, "irv2_sa")
    if variant == "paper":
        config.normalisation = "unit"
    config.dtype = "bfloat16"
    config.loss.class_weights.mel = 5.0
    config.optimizer.name = "keras_adam"
    config.optimizer.learning_rate = 0.01
    config.optimizer.eps = 0.1
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = 0.0
    config.batch_size = 16
    config.steps_per_epoch = 919
    config.epochs = 150
    config.best = "accuracy"
    config.early_stopping.metric = "loss"
    config.early_stopping.patience = 30
    config.early_stopping.min_delta = 0.001
    return config
