"""A small attention CNN on HAM10000 at 64x64: a real result without a GPU.

    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    python -m jaxattn.train --config=configs/ham_small.py --config.dataset.data_dir=data/ham10000

One million parameters, Soft-Attention as the paper has it, less than 25 minutes on two CPU cores;
docs/results.md has what it reaches on the lesion split. ``--config.seed`` chooses the random
numbers of the training, ``--config.split.seed`` those of the split.
"""

from ml_collections import ConfigDict

from jaxattn.config import base


def get_config() -> ConfigDict:
    config = base()
    config.dataset.name = "prepared"
    config.split.validation = 0.05
    # Nothing is resampled: rotated or zoomed pixels are blurred, which the test images are not.
    config.augment.rotation = 0.0
    config.augment.zoom = 0.0
    config.augment.quarter_turns = True
    config.augment.shift = 0.06
    config.augment.brightness = 0.1
    config.augment.contrast = 0.1
    config.augment.saturation = 0.1
    config.loss.class_weight_exponent = 0.5
    config.loss.label_smoothing = 0.05
    config.optimizer.learning_rate = 0.002
    config.ema_decay = 0.998
    config.epochs = 36
    config.cpu_devices = 2
    config.best = "loss"  # far steadier than a balanced accuracy over a dozen images of a class
    config.evaluation.tta = 8
    config.evaluation.logit_adjustment = 0.5  # the other half of what the loss weights have done
    return config
