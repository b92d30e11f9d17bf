import re

import jax.numpy as jnp
import pytest

from jaxattn import models
from jaxattn.errors import InputError


def test_unknown_models_and_options_are_named():
    with pytest.raises(InputError, match=re.escape("'irv2_as', which is no known model; did")):
        models.build("irv2_as", 7)
    with pytest.raises(InputError, match=r"option 'head' is none of .*did you mean 'heads'"):
        models.build("irv2_sa", 7, head=4)
    with pytest.raises(InputError, match="option 'semantics' is none of model 'irv2'"):
        models.build("irv2", 7, semantics="paper")


def test_options_and_classes_reach_the_model():
    model = models.build("irv2_sa", 5, dtype=jnp.bfloat16, heads=4)
    assert (model.num_classes, model.heads, model.dtype) == (5, 4, jnp.bfloat16)
    options = {"heads", "aggregate", "dropout_rate", "units", "flatten"}
    assert set(models.find("irv2_sa").options) == options


def test_attention_is_an_option_of_the_networks_without_it():
    options = set(models.find("keras_resnet50").options)
    assert options == {
        *("attention_at", "semantics", "heads", "join", "pool", "dropout_rate", "skip"),
    }
    assert "attention_at" not in models.find("vgg16_sa").options


def test_both_papers_are_complete():
    """Every row of table 1 of Datta et al. and both of Köfler, with and without attention."""
    for network in ("irv2", "densenet201", "resnet50", "resnet34", "vgg16", "koefler_cnn"):
        assert {network, f"{network}_sa"} <= set(models.names())
