"""CNN and CNN-SA of Köfler 2023, on HAM10000 at 100x100.

    python tools/prepare_ham10000.py --source=HAM10000 --out=data/ham10000
    python -m jaxattn.train --config=configs/koefler2023.py --config.dataset.data_dir=data/ham10000

Arguments, joined by commas: ``cnn`` or ``cnn_sa``, the default, which has Soft-Attention; and
``leaky``, the published protocol, which copies every image that is not a nevus five times (turned
and flipped), only then splits, and chooses the best epoch on the test part. Its accuracy of .906
(.880 without attention) is therefore no estimate for new images.

Without ``leaky``, lesions are kept together and a validation part chooses; turns and flips are
drawn for each image in each step, and the class weights, balanced in both, make up for the copies
that are not there. Model, optimizer, batches and epochs are the published ones; so is the epoch of
557 batches.

Images are resized as OpenCV does by default, bilinear without antialiasing. Activations are
bfloat16; ``--config.dtype=float32`` is as published.

100 epochs; one took 60 s on an unnamed Kaggle GPU.
"""

from ml_collections import ConfigDict

from jaxattn.config import arguments, base


def get_config(given: str = "") -> ConfigDict:
    name, leaky = arguments(given, ("cnn_sa", "cnn"), ("", "leaky"))
    config = base()
    config.dataset.name = "prepared"
    config.dataset.classes = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
    config.split.leak = "koefler" if leaky else ""
    config.split.test = 0.33
    config.augment.rotation = 0.0
    config.augment.shift = 0.0
    config.augment.shear = 0.2  # degrees, as Keras has it
    config.augment.zoom = 0.2
    config.augment.quarter_turns = not leaky
    config.augment.vertical_flip = not leaky
    config.model.name = f"koefler_{name}"
    config.dataset.resize = "bilinear"
    config.dtype = "bfloat16"
    config.loss.class_weight_exponent = 1.0
    config.optimizer.name = "keras_adam"
    config.optimizer.learning_rate = 0.0001
    config.optimizer.eps = 0.001
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = 0.0
    config.batch_size = 32
    config.epochs = 100
    config.steps_per_epoch = 557
    config.best = "accuracy"
    return config
