"""Every config field has a rule, and what breaks it is named before anything runs."""

import json
import math

import pytest
from ml_collections import ConfigDict

from jaxattn import config_rules
from jaxattn.config import base, flatten, read, resolved
from jaxattn.errors import InputError

DEFAULTS = flatten(base().to_dict())


def test_every_field_has_a_rule_that_its_default_obeys():
    assert set(config_rules.rules()) == set(DEFAULTS)
    config_rules.check(DEFAULTS)


@pytest.mark.parametrize("field", DEFAULTS)
def test_no_field_takes_what_is_of_another_type_or_no_number(field):
    wrong = [None, object(), {"a": 1}, math.nan, math.inf, -math.inf, b"x", [None], (1, 2, 3)]
    if isinstance(DEFAULTS[field], str):
        wrong += [3, True, 0.5]
    else:
        wrong += ["x", "", -1, -1.5, 1e300]
    if isinstance(DEFAULTS[field], bool):
        wrong += [0, 1]
    if isinstance(DEFAULTS[field], int):
        wrong += [0.5, 10**30]
    accepted = []
    for value in wrong:
        try:
            config_rules.check({field: value})
        except InputError as error:
            message = str(error)
        else:
            accepted.append(value)
            continue
        assert message.startswith(f"{field}: expected ")
        assert "\n" not in message
    unbounded = {"learning_rate", "weight_decay", "focal_gamma", "eps", "min_delta", "clip_norm"}
    assert accepted == ([1e300] if field.rpartition(".")[2] in unbounded else [])


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("optimizer.learning_rate", -1.0, r"a number in \[0, inf\), got -1.0"),
        ("augment.rotation", -5.0, r"a number in \[0, 360\], got -5.0"),
        ("optimizer.momentum", 1.0, r"a number in \[0, 1\), got 1.0"),
        ("optimizer.eps", 0.0, r"a number in \(0, inf\), got 0.0"),
        ("split.test", 1.0, r"a number in \(0, 1\), got 1.0"),
        ("dataset.image_size", (64, 64, 64), r"one or two lengths in pixels, got \(64, 64, 64\)"),
        ("augment.shift", (0.1, -0.1), r"a number in \[0, 1\] or a pair of them, got"),
        ("optimizer.name", "adamww", r"one of .* \(did you mean 'adamw'\?\), got 'adamww'"),
        ("evaluation.tta", 4, r"one of 1, 8, got 4"),
        ("dataset.classes", ("nv", 3), r"a tuple of names, got \('nv', 3\)"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value, expected):
    config = base()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=f"^{field}: expected {expected}"):
        resolved(config)


@pytest.mark.parametrize(
    ("section", "value"), [("sampler.factors", -1.0), ("loss.class_weights", math.nan)]
)
def test_values_by_name_have_a_rule_too(section, value):
    config = base()
    config.update_from_flattened_dict({section: ConfigDict({"mel": value})})
    with pytest.raises(InputError, match=rf"^{section}\.mel: expected a number in \[0, inf\)"):
        resolved(config)


def test_no_option_of_a_model_is_nan():
    config = base()
    config.model.dropout_rate = math.nan
    with pytest.raises(
        InputError, match=r"^model\.dropout_rate: expected a finite number, got nan"
    ):
        resolved(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": 3}, "optimizer: expected a section of fields, got 3"),
        ({"plan": [1]}, r"plan: expected a section of fields, got \[1\]"),
        ({"model": "irv2"}, "model: expected a section of fields, got 'irv2'"),
        ({"loss": {"maps": None}}, r"loss\.maps: expected a section of fields, got nothing"),
        ({"epochs": {"a": 1}}, "epochs: expected a value, got a section"),
        ({"epochs": "20"}, "epochs: expected a whole number"),
        ({"seed": 1e400}, "seed: expected a whole number"),
        ({"dataset": {"classes": "nv"}}, r"dataset\.classes: expected a tuple of names, got 'nv'"),
    ],
)
def test_a_saved_config_of_another_type_is_refused(content, message):
    with pytest.raises(InputError, match=f"^{message}"):
        read(json.dumps(content))
