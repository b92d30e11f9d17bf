"""The values that each config field may have, as data: checked in one place, before anything runs.

Names of what can be registered elsewhere (data sets, models, losses, samplers, metrics) are looked
up where they are used.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jaxattn.errors import InputError, invalid, unknown
from jaxattn.reading import shown


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field may be.

    Attributes:
        expected: It, as a noun phrase.
        holds: Whether a value is that.
        known: The known names, if these are all that it may be.
    """

    expected: str
    holds: Callable[[Any], bool]
    known: Collection[str] = ()

    def check(self, field: str, value: Any) -> None:
        """Raises InputError unless the rule holds for the value of a field."""
        if not self.holds(value):
            raise self._error(field, value)

    def _error(self, field: str, value: Any) -> InputError:
        if self.known and isinstance(value, str):
            return unknown(field, value, self.known)
        return invalid(field, self.expected, shown(value))


def number(
    low: float | int, high: float | int = math.inf, *, above: bool = False, below: bool = False
) -> Rule:
    """A finite number from ``low``, or ``above`` it, to ``high``, or ``below`` it."""
    interval = (
        f"{'(' if above else '['}{low:g}, {high:g}{')' if below or high == math.inf else ']'}"
    )

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            return False
        return bool(
            math.isfinite(value)
            and (low < value if above else low <= value)
            and (value < high if below else value <= high)
        )

    return Rule(f"a number in {interval}", holds)


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    """A whole number from ``low`` to ``high``."""

    def holds(value: Any) -> bool:
        return _is_whole(value) and low <= value <= high

    return Rule(f"a whole number in [{low}, {high}]", holds)


def choice(*known: Any) -> Rule:
    """One of some values."""
    names = tuple(each for each in known if isinstance(each, str))
    expected = f"one of {', '.join(map(str, known))}"
    return Rule(expected, lambda value: type(value) in (str, int) and value in known, names)


def some(*known: str) -> Rule:
    """A tuple of some names, each once."""

    def holds(value: Any) -> bool:
        return _are_names(value) and set(value) <= set(known) and len(set(value)) == len(value)

    return Rule(f"a tuple of some of {', '.join(known)}", holds)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    """Whether a value is a length of 0 or more, or a pair of positive ones."""
    if _is_whole(value):
        return 0 <= value <= _LARGEST
    pair = isinstance(value, tuple | list) and len(value) == 2
    return pair and all(_is_whole(each) and 0 < each <= _LARGEST for each in value)


def _is_shift(value: Any) -> bool:
    several = value if isinstance(value, tuple | list) else (value,)
    return len(several) in (1, 2) and all(_SHARE.holds(each) for each in several)


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(each, str) for each in value)


_LARGEST = 2**14
_SHARE = number(0, 1)
_PART = number(0, 1, below=True)
_AMOUNT = number(0)
_SEED = whole(0, 2**32 - 1)
_FLAG = Rule("True or False", lambda value: isinstance(value, bool))
_TEXT = Rule("text", lambda value: isinstance(value, str))
_NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")
_NAMES = Rule("a tuple of names", _are_names)
_SIZE = Rule("one or two lengths in pixels", _is_size)
_SHIFT = Rule("a number in [0, 1] or a pair of them", _is_shift)
#: Of options of what a name chose: those check themselves, but nothing computes with NaN.
_FINITE = Rule(
    "a finite number", lambda value: not isinstance(value, float) or math.isfinite(value)
)

#: Rules of fields by name, below a prefix.
OPEN: Mapping[str, Rule] = {
    "model.": _FINITE,
    "dataset.options.": _FINITE,
    "sampler.options.": _FINITE,
    "loss.options.": _FINITE,
    "sampler.factors.": _AMOUNT,
    "loss.class_weights.": _AMOUNT,
    "loss.maps.weights.": _AMOUNT,
    "optimizer.rates.": _AMOUNT,
}


@functools.cache
def rules() -> Mapping[str, Rule]:
    """The rule of every field of `jaxattn.config.base`, by its dotted name."""
    from jaxattn import losses, optimizers
    from jaxattn.data import crops, images, loaders, metadata, splits

    return {
        "seed": _SEED,
        "dataset.name": _NAME,
        "dataset.data_dir": _TEXT,
        "dataset.image_size": _SIZE,
        "dataset.centre_crop": _SHARE,
        "dataset.classes": _NAMES,
        "dataset.num_images": whole(1),
        "dataset.seed": _SEED,
        "dataset.imbalanced": _FLAG,
        "dataset.resize": choice(*images.RESIZE),
        "split.strategy": choice(*splits.STRATEGIES),
        "split.fold": whole(0),
        "split.folds": whole(2),
        "split.leak": _TEXT,
        "split.seed": _SEED,
        "split.test": number(0, 1, above=True, below=True),
        "split.validation": _PART,
        "split.file": _TEXT,
        "split.duplicates": _NAME,
        "sampler.name": _NAME,
        "sampler.per_class": whole(0),
        "sampler.drop_last": _FLAG,
        "augment.rotation": number(0, 360),
        "augment.shift": _SHIFT,
        "augment.shear": number(0, 90, below=True),
        "augment.zoom": _PART,
        "augment.horizontal_flip": _FLAG,
        "augment.vertical_flip": _FLAG,
        "augment.quarter_turns": _FLAG,
        "augment.brightness": _SHARE,
        "augment.contrast": _SHARE,
        "augment.saturation": _SHARE,
        "augment.hue": number(0, 0.5),
        "augment.gamma": _PART,
        "augment.mixup": number(0, 100),
        "augment.cutmix": number(0, 100),
        "crops.strategy": choice(*crops.STRATEGIES),
        "crops.size": _SIZE,
        "crops.count": choice(*crops.COUNTS),
        "crops.dropout": _SHARE,
        "crops.vote": _FLAG,
        "crops.least_area": number(0.001, 1),
        "crops.centre": number(0.1, 1),
        "normalisation": _TEXT,
        "model.name": _NAME,
        "metadata.fields": some(*metadata.FIELDS),
        "metadata.hide": _PART,
        "metadata.units": whole(1, _LARGEST),
        "metadata.joint_units": whole(1, _LARGEST),
        "metadata.dropout_rate": _PART,
        "init_from": _TEXT,
        "freeze": _TEXT,
        "dtype": choice("float32", "bfloat16"),
        "loss.name": _NAME,
        "loss.class_weight_exponent": number(0, 10),
        "loss.label_smoothing": _PART,
        "loss.reduction": choice(*losses.REDUCTIONS),
        "loss.focal_gamma": _AMOUNT,
        "loss.diagnosis_guided": _NAMES,
        "loss.maps.target": choice(*losses.TARGETS),
        "optimizer.name": choice(*optimizers.OPTIMIZERS),
        "optimizer.learning_rate": _AMOUNT,
        "optimizer.schedule": choice(*optimizers.SCHEDULES),
        "optimizer.step_epochs": whole(1),
        "optimizer.step_start": whole(0),
        "optimizer.step_factor": number(0, 1, above=True),
        "optimizer.warmup": _PART,
        "optimizer.weight_decay": _AMOUNT,
        "optimizer.decay": choice(*optimizers.DECAYS),
        "optimizer.b1": _PART,
        "optimizer.b2": _PART,
        "optimizer.eps": number(0, above=True),
        "optimizer.momentum": _PART,
        "optimizer.clip_norm": _AMOUNT,
        "optimizer.layer_decay": number(0, 1, above=True),
        "ema_decay": _PART,
        "batch_size": whole(1),
        "epochs": whole(1),
        "steps_per_epoch": whole(0),
        "passes_per_epoch": whole(1),
        "validate_every": whole(1),
        "target_class": _TEXT,
        "best": _NAME,
        "early_stopping.metric": _NAME,
        "early_stopping.patience": whole(0),
        "early_stopping.min_delta": _AMOUNT,
        "evaluation.batch_size": whole(1),
        "evaluation.tta": choice(1, 8),
        "evaluation.logit_adjustment": number(0, 10),
        "evaluation.threshold": _SHARE,
        "evaluation.sensitivity": number(0, 1, above=True),
        "evaluation.specificity": number(0, 1, above=True),
        "evaluation.resamples": whole(0, 10**6),
        "evaluation.cam": _TEXT,
        "evaluation.grad_cam": _TEXT,
        "evaluation.overlay.alpha": _SHARE,
        "evaluation.overlay.bilinear": _FLAG,
        "evaluation.overlay.colormap": _NAME,
        "loader.name": choice(*loaders.LOADERS),
        "loader.workers": whole(0, 1024),
        "skip_nonfinite": whole(0),
        "smoke": _FLAG,
        "cpu_devices": whole(1, 1024),
        "log_every_steps": whole(1),
        "checkpoint_every_steps": whole(0),
        "accumulate_steps": whole(1),
        "batch_norm_groups": whole(1),
        "remat": choice("none", "blocks"),
        "profile": whole(0),
    }


def check(values: Mapping[str, Any]) -> None:
    """Raises InputError for the first field whose value is not what it may be.

    Args:
        values: Of fields by their dotted names; those that do not exist are passed over.
    """
    known = rules()
    for field, value in values.items():
        open_ = next((rule for prefix, rule in OPEN.items() if field.startswith(prefix)), None)
        rule = known.get(field, open_)
        if rule:
            rule.check(field, value)


def check_sections(given: Mapping[str, Any], base: Mapping[str, Any], prefix: str = "") -> None:
    """Raises InputError where a value stands for a section of fields, or a section for a value."""
    for name, value in given.items():
        wanted, place = base.get(name), f"{prefix}{name}"
        if isinstance(wanted, Mapping):
            if not isinstance(value, Mapping):
                raise invalid(place, "a section of fields", shown(value))
            check_sections(value, wanted, f"{place}.")
        elif name in base and isinstance(value, Mapping):
            raise invalid(place, "a value", "a section of fields")
