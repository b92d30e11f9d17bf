"""Every field a config has, its default and its meaning.

A file in ``configs/`` starts from `base` and changes what its experiment changes; the command line
changes single fields: ``--config.optimizer.learning_rate=.001``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from jaxattn.errors import InputError, suggestion

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
            centre_crop=0.0,  # prepared: square cut out first, a share of the shorter side; 0: none
            classes=(),  # in the model's order: "nv", or "name=a+b" for a merge; () for all
            num_images=4000,  # synthetic: how many to generate
            seed=0,  # synthetic
            imbalanced=False,  # synthetic: HAM10000's class frequencies
        )
    )
    config.split = ConfigDict(
        dict(
            strategy="lesion",  # lesion, datta, official, folds, file: jaxattn.data.splits
            fold=0,  # folds: which one
            folds=3,  # how many; python -m jaxattn.cross_validate runs all of them
            leak="",  # a published protocol that tests on what it trained with: jaxattn.data.leaks
            seed=0,
            test=0.15,
            validation=0.1,
            file="",
        )
    )
    config.plan = ConfigDict(
        dict(
            # none, oversample, undersample, equal, balanced_batches: see jaxattn.data.samplers
            strategy="none",
            per_class=0,  # equal: images of each class in one pass; 0: the mean count
            factors=ConfigDict(),  # by class name: what its count is multiplied by
            drop_last=False,  # whether a pass leaves out what does not fill its last batch
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
            strategy="none",  # none, downsampling, single, random, multi, ordered
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
    config.init_from = ""  # weights to start from: what a tools/convert_*.py wrote, or a run
    config.dtype = "float32"  # float32, bfloat16: of the activations
    config.loss = ConfigDict(
        dict(
            class_weight_exponent=0.0,  # weights (N / N_i)^exponent, of mean 1
            class_weights=ConfigDict(),  # further factors by class name
            label_smoothing=0.0,
            reduction="mean",  # mean (Keras), weighted_mean (PyTorch)
            focal_gamma=0.0,  # of the focal loss; 0: cross-entropy
            diagnosis_guided=(),  # classes whose images weigh more the harder the diagnosis was
            maps=ConfigDict(  # of attention maps against masks, see jaxattn.losses.MapDice
                dict(
                    target="lesion",  # lesion, dermo, background
                    weights=ConfigDict(),  # by the map's name
                )
            ),
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",  # adamw, keras_adam, sgd
            learning_rate=0.001,
            schedule="cosine",  # constant, cosine, step
            step_epochs=10,  # step: epochs after which the rate falls, again and again
            step_start=0,  # step: epochs before it falls for the first time; 0: step_epochs
            step_factor=0.1,  # step: what it is multiplied by
            warmup=0.1,  # share of all steps in which the rate rises
            weight_decay=0.05,  # adamw, sgd
            decay="kernels",  # kernels, all: what weight decay acts on
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            momentum=0.9,  # sgd
        )
    )
    config.average_decay = 0.0  # of the moving average of the variables; 0: none is kept
    config.batch_size = 64  # over all devices
    config.epochs = 20
    config.steps_per_epoch = 0  # 0: as many as passes_per_epoch passes of the plan have
    config.passes_per_epoch = 1
    config.positive = ""  # class to be told from all others: auc, average_precision and so on
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
            prior_exponent=0.0,  # decisions by p / share^exponent in training, see metrics.decide
            threshold=0.5,  # of the positive class' probability
            sensitivity=0.9,  # of the positive class, to be reached by another threshold
            cam="",  # layer whose class activation map is drawn and measured, see jaxattn.saliency
            grad_cam="",  # likewise by Grad-CAM
            overlay=ConfigDict(dict(alpha=0.5, bilinear=False)),  # see overlays.overlay
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


def arguments(given: str, *choices: Sequence[str]) -> tuple[str, ...]:
    """Reads what stands behind the colon of ``--config=configs/x.py:a,b``.

    Args:
        given: Arguments, joined by commas.
        *choices: Of each, one argument may be given; the first of them is its default. A choice
            that may be left out has the default ``""``.

    Returns:
        The one chosen of each.

    Raises:
        InputError: An argument is unknown, or two of one choice are given.
    """
    chosen: dict[int, str] = {}
    for argument in filter(None, given.split(",")):
        places = [i for i, choice in enumerate(choices) if argument in choice]
        if not places:
            known = [name for choice in choices for name in choice if name]
            raise InputError(
                f"config argument {argument!r} is unknown{suggestion(argument, known)}"
            )
        before = chosen.setdefault(places[0], argument)
        if before != argument:
            raise InputError(f"config arguments {before!r} and {argument!r} given, one wanted")
    return tuple(chosen.get(i, choice[0]) for i, choice in enumerate(choices))


def completed(given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict:
    """What is given, read from JSON, and the default of every field that is not."""
    defaults = base().to_dict() if defaults is None else defaults
    return {
        **defaults,
        **{
            name: completed(value, defaults.get(name) or {})
            if isinstance(value, dict)
            else _immutable(value)
            for name, value in given.items()
        },
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields by their dotted name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = _immutable(value)
    return flat


def _immutable(value: Any) -> Any:
    """A tuple for a list, which is what JSON makes of it."""
    return tuple(value) if isinstance(value, list) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields that make ``new`` another computation than ``old``, as ``name: old -> new``."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}"
        for name in sorted(before | after)
        if not name.startswith(FREE) and before.get(name) != after.get(name)
    ]
