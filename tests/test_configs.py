import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxattn import experiment
from jaxattn.config import base, differences, flatten
from jaxattn.errors import InputError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def get_config(name, *arguments):
    (path,) = [path for path in CONFIGS if path.stem == name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments), module


def build(config):
    """The experiment, on embedded data of the config's size instead of a prepared folder."""
    config.dataset.name = "synthetic"
    config.dataset.num_images = 140
    config.split.strategy = "lesion"
    return experiment.build(config)


def parameters(built):
    """Trainable and other numbers of the model, as Keras counts them."""
    state = built.abstract_state()
    return [
        sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    ]


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_every_config_builds_and_has_only_known_fields(name):
    config, module = get_config(name)
    known = set(flatten(base().to_dict()))
    extra = {field for field in flatten(config.to_dict()) if field not in known}
    assert all(field.startswith(("model.", "loss.class_weights.")) for field in extra)
    assert f"--config=configs/{name}.py" in module.__doc__
    built = build(config)
    assert sum(parameters(built)) > 0


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ("", (47_480_887, 54_400)),
        ("datta", (47_480_887, 54_400)),
        ("baseline", (47_496_231, 54_400)),
    ],
)
def test_ham_irv2_is_the_published_model(arguments, counts):
    """Parameters and hyper-parameters that the released notebooks print."""
    config, _ = get_config("ham_irv2", arguments)
    assert config.split.strategy == ("datta" if arguments == "datta" else "lesion")
    assert (config.dataset.image_size, config.batch_size, config.steps_per_epoch) == (299, 16, 919)
    assert (config.epochs, config.early_stopping.patience) == (150, 30)
    assert (config.early_stopping.metric, config.early_stopping.min_delta) == ("loss", 0.001)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.eps, optimizer.schedule) == (0.01, 0.1, "constant")
    augment = config.augment
    assert (augment.rotation, augment.shift, augment.zoom) == (180, 0.1, 0.1)
    assert augment.horizontal_flip
    assert augment.vertical_flip
    assert (augment.brightness, augment.contrast, augment.saturation) == (0, 0, 0)
    assert (config.plan.strategy, config.plan.per_class) == ("equal", 8000)
    built = build(config)
    assert tuple(parameters(built)) == counts
    assert built.loss.weights.tolist() == [1, 1, 1, 1, 5, 1, 1]  # mel


def test_ham_irv2_with_an_unknown_argument():
    with pytest.raises(InputError, match="ham_irv2.py:papper given"):
        get_config("ham_irv2", "papper")


def test_differences_name_what_changes_the_computation():
    old, new = base(), base()
    new.optimizer.learning_rate = 0.5
    new.model.update(width=7)
    new.loader.name = "grain"
    new.dataset.data_dir = "elsewhere"
    found = differences(old.to_dict(), new.to_dict())
    assert found == ["model.width: null -> 7", "optimizer.learning_rate: 0.001 -> 0.5"]
    assert differences(old.to_dict(), base().to_dict()) == []
