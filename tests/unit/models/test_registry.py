import jax.numpy as jnp
import pytest

from jaxattn.errors import InputError
from jaxattn.models import registry


def test_unknown_models_and_options_are_named():
    with pytest.raises(InputError, match=r"model.name: .*did you mean 'irv2_sa'.*got 'irv2_as'"):
        registry.create("irv2_as", 7)
    with pytest.raises(InputError, match=r"model.head: .*did you mean 'heads'.*got 'head'"):
        registry.create("irv2_sa", 7, head=4)
    with pytest.raises(InputError, match="model.variant: expected one of"):
        registry.create("irv2", 7, variant="paper")


def test_options_and_classes_reach_the_model():
    model = registry.create("irv2_sa", 5, dtype=jnp.bfloat16, heads=4)
    assert (model.num_classes, model.heads, model.dtype) == (5, 4, jnp.bfloat16)
    options = {"heads", "aggregate", "dropout_rate", "units", "flatten"}
    assert set(registry.find("irv2_sa").options) == options


def test_attention_is_an_option_of_the_networks_without_it():
    options = set(registry.find("keras_resnet50").options)
    assert options == {
        *("attention", "attention_at", "attention_options", "skip"),
    }
    assert "attention_at" not in registry.find("vgg16_sa").options


def test_both_papers_are_complete():
    """Every row of table 1 of Datta et al. and both of Köfler, with and without attention."""
    for network in ("irv2", "densenet201", "resnet50", "resnet34", "vgg16", "koefler_cnn"):
        assert {network, f"{network}_sa"} <= set(registry.names())
