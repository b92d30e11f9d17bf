import importlib.util
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxattn import experiment, optimizers
from jaxattn.config import arguments, base, completed, differences, flatten
from jaxattn.data import classes
from jaxattn.data.sources import isic
from jaxattn.errors import InputError
from jaxattn.models import registry

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))

NETWORKS = [
    network + attention
    for network in ("irv2", "densenet201", "resnet50", "resnet34", "vgg16")
    for attention in ("", "_sa")
]
#: Every argument of every config that takes some.
ARGUMENTS = {
    "ham_irv2": ["datta", "baseline", "paper", "baseline,datta", "paper,datta"],
    "datta2021": [
        *NETWORKS,
        *(f"{network},paper" for network in NETWORKS),
        *("test=0.15", "test=0.2", "test=0.3", "leaky", "irv2,paper,test=0.2,leaky"),
    ],
    "datta2021_isic": [
        *map(",".join, itertools.product(("5x5", "12x12", "paper", "baseline"), ("nevus", "rest"))),
        "5x5,leaky",
    ],
    "yan2019": [
        *("attnmel", "mel", "vgg16_gap", "vgg16", "attnmel_lesion", "attnmel_dermo"),
        *("attnmel_bkg", "isic2016,attnmel", "ham10000,attnmel_lesion", "keratosis,mel"),
        *("small,mel", "small,attnmel_lesion"),
    ],
    "koefler2023": ["cnn", "cnn_sa", "cnn,leaky", "cnn_sa,leaky"],
}
CASES = [(path.stem, "") for path in CONFIGS] + [
    (name, given) for name, several in ARGUMENTS.items() for given in several
]


def get_config(name, *given):
    (path,) = [path for path in CONFIGS if path.stem == name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*given), module


def build(config):
    """The experiment, on embedded data of the config's size instead of a prepared folder."""
    # The embedded data have HAM10000's classes.
    ours = {"nevus": "nv", "melanoma": "mel", "benign": "nv", "malignant": "mel"}
    ours["seborrheic_keratosis"] = "bkl"
    config.dataset.classes = tuple(
        f"{name}={'+'.join(ours.get(member, member) for member in (members or name).split('+'))}"
        for name, _, members in (entry.partition("=") for entry in config.dataset.classes)
    )
    config.dataset.name = "synthetic"
    config.dataset.num_images = 420
    config.split.strategy = "lesion"
    return train.setup(config)


def parameters(built):
    """Trainable and other numbers of the model, as Keras counts them."""
    state = built.like
    return [
        sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    ]


@pytest.mark.parametrize(("name", "given"), CASES)
def test_every_config_builds_and_has_only_known_fields(name, given):
    config, module = get_config(name, *filter(None, [given]))
    known = set(flatten(base().to_dict()))
    extra = {field for field in flatten(config.to_dict()) if field not in known}
    named = ("model.", "loss.class_weights.", "loss.maps.weights.", "plan.factors.")
    assert all(field.startswith(named) for field in extra)
    assert f"--config=configs/{name}.py" in module.__doc__
    explained = [argument.removesuffix("_sa") for argument in given.split(",")]
    assert all(argument in module.__doc__ for argument in explained)
    published = registry.find(config.model.name)
    if name not in ("ham_small", "quickstart", "gessert2019_small") and "small" not in explained:
        sizes = (224, 299) if name == "datta2021_isic" else (published.image_size,)
        cut = config.crops.strategy != "none"
        seen = config.crops.size if cut else config.dataset.image_size
        assert seen in sizes
    if not {"paper", "isic2016"} & set(explained):
        assert config.normalisation == published.normalisation
    build(config)


@pytest.mark.parametrize("name", ["ham_small", "quickstart"])
def test_small_configs_have_small_models(name):
    trainable, _ = parameters(build(get_config(name)[0]))
    assert 500_000 < trainable < 2_000_000


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("", (47_480_887, 54_400)),
        ("datta", (47_480_887, 54_400)),
        ("baseline", (47_496_231, 54_400)),
    ],
)
def test_ham_irv2_is_the_published_model(given, counts):
    """Parameters and hyper-parameters that the released notebooks print."""
    config, _ = get_config("ham_irv2", given)
    assert config.split.strategy == ("datta" if given == "datta" else "lesion")
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
    assert (config.sampler.name, config.plan.per_class) == ("equal", 8000)
    built = build(config)
    assert tuple(parameters(built)) == counts
    assert built.loss.weights.tolist() == [1, 1, 1, 1, 5, 1, 1]  # mel


def test_datta2021_and_ham_irv2_agree():
    """The one is a row of the other, but for the split."""
    row, _ = get_config("datta2021", "irv2_sa")
    headline, _ = get_config("ham_irv2", "datta")
    assert row.to_dict() == headline.to_dict()


@pytest.mark.parametrize(
    ("given", "batch_size", "epochs", "patience", "steps"),
    [
        ("irv2", 16, 150, 30, 919),
        ("densenet201_sa", 10, 150, 35, 919),
        ("resnet50", 10, 300, 40, 919),
        ("resnet34_sa", 10, 300, 65, 919),
        ("vgg16_sa", 16, 300, 65, 919),
        ("vgg16", 10, 300, 65, 919),
        ("irv2_sa,test=0.2", 10, 150, 30, 892),
        ("irv2_sa,test=0.3", 10, 150, 30, 836),
    ],
)
def test_datta2021_trains_as_each_notebook(given, batch_size, epochs, patience, steps):
    config, _ = get_config("datta2021", given)
    found = (config.batch_size, config.epochs, config.early_stopping.patience)
    assert (*found, config.steps_per_epoch) == (batch_size, epochs, patience, steps)
    assert (config.split.strategy, config.best) == ("datta", "accuracy")


def test_datta2021_as_the_paper_has_it():
    for name, model in (("irv2_sa", "irv2_sa_paper"), ("irv2", "irv2")):
        config, _ = get_config("datta2021", f"{name},paper")
        assert (config.model.name, config.normalisation) == (model, "unit")
        assert build(config).loss.weights.tolist() == [1] * 7


def test_leaky_protocols_are_asked_for():
    for name, leak in (
        ("datta2021", "select_on_test"),
        ("datta2021_isic", "select_on_test"),
        ("gessert2019", "gessert"),
        ("koefler2023", "koefler"),
    ):
        assert get_config(name)[0].split.leak == ""
        assert get_config(name, "leaky")[0].split.leak == leak


@pytest.mark.parametrize(
    ("task", "members"),
    [
        ("nevus", [("nevus",), ("seborrheic_keratosis",)]),
        ("rest", [("nevus", "melanoma"), ("seborrheic_keratosis",)]),
    ],
)
def test_datta2021_isic_chooses_among_the_classes_of_isic_2017(task, members):
    config, _ = get_config("datta2021_isic", task)
    parsed = classes.parse(config.dataset.classes, isic.YEARS[2017].class_names)
    assert list(parsed.values()) == members
    assert config.split.strategy == "official"
    assert (config.augment.shift, config.plan.per_class) == ((0.1, 0.2), 5000)
    assert (config.batch_size, config.steps_per_epoch, config.epochs) == (10, 162, 50)


def test_koefler2023_weighs_the_classes_as_published():
    """The class weights that its notebook prints: balanced, in its order of the classes."""
    config, _ = get_config("koefler2023", "leaky")
    assert (config.loss.class_weight_exponent, config.batch_size) == (1.0, 32)
    assert (config.optimizer.learning_rate, config.optimizer.eps) == (1e-4, 1e-3)
    images = np.array([6705, 6678, 6594, 3084, 1962, 852, 690])
    weights = experiment.losses.class_weights(
        np.repeat(np.arange(7), images), config.dataset.classes, exponent=1.0
    )
    np.testing.assert_allclose(weights, [0.57, 0.57, 0.58, 1.23, 1.93, 4.45, 5.5], atol=0.005)


@pytest.mark.parametrize(
    ("given", "strategy", "attention", "batch_size"),
    [
        ("downsampling", "downsampling", (), 45),
        ("single,inception_v3", "single", (), 45),
        ("multi,crops16", "multi", (), 45),
        ("gru,se_resnext50", "ordered", (), 5),
        ("initial,crops4", "ordered", ("initial",), 5),
        ("dual", "ordered", ("initial", "end"), 5),
    ],
)
def test_gessert2019_sees_what_each_row_says(given, strategy, attention, batch_size):
    config, _ = get_config("gessert2019", given)
    assert config.crops.strategy == strategy
    built = build(config)
    assert (built.model.attention, config.batch_size) == (attention, batch_size)
    assert built.model.head == ("gru" if "gru" in given else "end_pool")
    count = {"crops16": 16, "crops4": 4}.get(given.split(",")[-1], 9)
    assert built.crops.count == count
    shape = (count, 224, 224, 3) if strategy == "ordered" else (224, 224, 3)
    assert built.crops.input_shape(450, 600) == shape


@pytest.mark.parametrize(
    ("given", "plan", "exponent", "reduction", "guided"),
    [
        ("", "none", 1.0, "weighted_mean", ()),
        ("none", "none", 0.0, "mean", ()),
        ("oversampling", "oversample", 0.0, "mean", ()),
        ("balanced", "balanced_batches", 0.0, "mean", ()),
        ("k1.25", "none", 1.25, "weighted_mean", ()),
        ("diagnosis", "none", 1.0, "mean", ("bkl", "df", "nv", "vasc")),
        ("diagnosis_nevi", "none", 1.0, "mean", ("nv",)),
    ],
)
def test_gessert2019_balances_as_each_row_says(given, plan, exponent, reduction, guided):
    config, _ = get_config("gessert2019", given)
    loss = config.loss
    assert (config.sampler.name, loss.class_weight_exponent) == (plan, exponent)
    assert (loss.reduction, loss.diagnosis_guided) == (reduction, guided)


def test_gessert2019_trains_as_published():
    config, _ = get_config("gessert2019", "initial,crops5,inception_v3")
    rate = optimizers.schedule(config.optimizer, 50 * 1000, 1000)
    halvings = {0: 0, 19_999: 0, 20_000: 1, 29_999: 1, 30_000: 2, 40_000: 3, 49_999: 3}
    for step, times in halvings.items():
        assert float(rate(step)) == pytest.approx(1.25e-5 * 5 / 3 / 2**times)
    assert (config.epochs, config.batch_size, config.crops.dropout) == (50, 5, 0.1)
    dense, _ = get_config("gessert2019", "initial,densenet121")
    assert (dense.optimizer.learning_rate, dense.crops.dropout) == (1.25e-5, 0.2)
    assert (config.augment.brightness, config.augment.saturation) == (32 / 255, 0.5)
    assert (config.best, config.optimizer.weight_decay) == ("balanced_accuracy", 0)
    spc, _ = get_config("gessert2019", "spc,initial")
    assert (spc.split.strategy, spc.split.validation) == ("official", 0)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ham_irv2", "papper", "argument 'papper' is unknown; did you mean 'paper'"),
        ("datta2021", "irv2_as", "argument 'irv2_as' is unknown; did you mean 'irv2_sa'"),
        ("datta2021", "test=0.25", "argument 'test=0.25' is unknown; did you mean 'test=0.2'"),
        ("koefler2023", "cnn,cnn_sa", "arguments 'cnn' and 'cnn_sa' given, one wanted"),
    ],
)
def test_wrong_arguments_are_named(name, given, message):
    with pytest.raises(InputError, match=message):
        get_config(name, given)


def test_arguments_in_any_order_and_their_defaults():
    choices = ("a", "b"), ("", "quick"), ("x=1", "x=2")
    assert arguments("", *choices) == ("a", "", "x=1")
    assert arguments("x=2,quick,b", *choices) == ("b", "quick", "x=2")


def test_differences_name_what_changes_the_computation():
    old, new = base(), base()
    new.optimizer.learning_rate = 0.5
    new.model.update(width=7)
    new.loader.name = "grain"
    new.dataset.data_dir = "elsewhere"
    found = differences(old.to_dict(), new.to_dict())
    assert found == ["model.width: null -> 7", "optimizer.learning_rate: 0.001 -> 0.5"]
    assert differences(old.to_dict(), base().to_dict()) == []


def test_old_configs_get_the_defaults_of_new_fields():
    old = {"seed": 3, "loss": {"class_weights": {"mel": 5.0}}, "model": {"name": "irv2"}}
    new = completed(old)
    assert new["seed"] == 3
    assert new["loss"]["class_weights"] == {"mel": 5.0}
    assert new["loss"]["focal_gamma"] == 0
    assert new["crops"] == base().crops.to_dict()
