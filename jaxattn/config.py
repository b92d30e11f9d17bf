"""Every field a config has, its default and its meaning.

A file in ``configs/`` starts from `base` and changes what its experiment changes; the command line
changes single fields: ``--config.optimizer.learning_rate=.001``.
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

#: Fields that do not change what a run computes, so that a run may be resumed with others.
FREE = ("loader", "log_every_steps", "checkpoint_every_steps", "dataset.data_dir")


def base() -> ConfigDict:
    """The default of every field: a small attention CNN on the embedded data."""
    config = ConfigDict()
    config.seed = 0  # of the parameters, the plan, augmentation and dropout
    config.dataset = ConfigDict(
        dict(
            name="synthetic",  # synthetic, or prepared: a folder that a tools/prepare_*.py wrote
            data_dir="",  # prepared: that folder
            # Height and width that images are read in, pixels; or a pair: (height, width).
            image_size=FieldReference(64, field_type=object),
            classes=(),  # in the model's order: "nv", or "name=a+b" for a merge; () for all
            num_images=4000,  # synthetic: how many to generate
            seed=0,  # synthetic
            imbalanced=False,  # synthetic: HAM10000's class frequencies
        )
    )
    config.split = ConfigDict(
        dict(
            strategy="lesion",  # lesion, datta, folds, file: see jaxattn.data.splits
            fold=0,  # folds: which one
            folds=3,  # how many; python -m jaxattn.folds runs all of them
            leak="",  # a published protocol that tests on what it trained with: jaxattn.data.leaks
            seed=0,
            test=0.15,
            validation=0.1,
            file="",
        )
    )
    config.plan = ConfigDict(
        dict(
            strategy="none",  # none, oversample, undersample, equal: see jaxattn.data.plans
            per_class=0,  # equal: images of each class in one pass; 0: the mean count
        )
    )
    config.augment = ConfigDict(  # see jaxattn.data.augment.Augmentation
        dict(
            rotation=180.0,
            shift=FieldReference(0.1, field_type=object),  # or a pair: (down, across)
            shear=0.0,
            zoom=0.1,
            horizontal_flip=True,
            vertical_flip=True,
            quarter_turns=False,
            brightness=0.0,
            contrast=0.0,
            saturation=0.0,
        )
    )
    config.crops = ConfigDict(  # see jaxattn.data.crops.Crops
        dict(
            strategy="none",  # none, downsampling, single, multi, ordered
            size=FieldReference(224, field_type=object),  # of the network's input; or a pair
            count=9,
            dropout=0.1,
            vote=False,
            least_area=0.08,
            centre=0.85,
        )
    )
    config.normalisation = "minus_one_one"  # see jaxattn.data.augment.NORMALISATIONS
    config.model = ConfigDict(dict(name="attention_cnn"))  # and the options of that model
    config.init_from = ""  # start from what tools/convert_keras.py wrote, or a run: its folder
    config.dtype = "float32"  # float32, bfloat16: of the activations
    config.loss = ConfigDict(
        dict(
            class_weight_exponent=0.0,  # weights (N / N_i)^exponent, of mean 1
            class_weights=ConfigDict(),  # further factors by class name
            label_smoothing=0.0,
            reduction="mean",  # mean (Keras), weighted_mean (PyTorch)
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",  # adamw, keras_adam, sgd
            learning_rate=0.001,
            schedule="cosine",  # constant, cosine
            warmup=0.1,  # share of all steps in which the rate rises
            weight_decay=0.05,  # adamw, sgd
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            momentum=0.9,  # sgd
        )
    )
    config.average_decay = 0.0  # of the moving average of the variables; 0: none is kept
    config.batch_size = 64  # over all devices
    config.epochs = 20
    config.steps_per_epoch = 0  # 0: as many as one pass of the plan has
    config.best = "balanced_accuracy"  # validation metric that chooses the best checkpoint
    config.early_stopping = ConfigDict(
        dict(
            metric="loss",  # validation metric
            patience=0,  # epochs without an improvement after which to stop; 0: never
            min_delta=0.0,  # the least improvement that counts
        )
    )
    config.evaluation = ConfigDict(
        dict(
            batch_size=64,
            views=1,  # 1, or 8: mean over flips and quarter turns
        )
    )
    config.loader = ConfigDict(
        dict(
            name="auto",  # resident (images on the device), grain (streamed), auto
            workers=0,  # grain: processes; 0: threads
        )
    )
    config.cpu_devices = 1  # without an accelerator: devices to make of the cores, see sharding
    config.log_every_steps = 20
    config.checkpoint_every_steps = 1000  # and at each epoch's end
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields by their dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields that make ``new`` another computation than ``old``, as ``name: old -> new``."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}"
        for name in sorted(before | after)
        if not name.startswith(FREE) and before.get(name) != after.get(name)
    ]
