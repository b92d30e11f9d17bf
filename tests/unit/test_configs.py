import importlib.util
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxattn import losses, optimizers, train
from jaxattn.config import arguments, base, check_fields, differences, find_file, read, resolved
from jaxattn.data import classes
from jaxattn.data.crops import Crops
from jaxattn.data.sources import isic
from jaxattn.data.synthetic.dataset import HAM10000_COUNTS
from jaxattn.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))

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
    """The training setup, on embedded data of the config's size instead of a prepared folder."""
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


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(("name", "given"), CASES)
def test_every_config_builds_and_explains_its_arguments(name, given):
    config, module = get_config(name, *filter(None, [given]))
    assert f"--config=configs/{name}.py" in module.__doc__
    explained = [argument.removesuffix("_sa") for argument in given.split(",")]
    assert all(argument in module.__doc__ for argument in explained)
    build(config)


@pytest.mark.parametrize(
    ("name", "given", "size", "normalisation"),
    [
        ("ham_irv2", "", 299, "minus_one_one"),
        ("ham_irv2", "paper", 299, "unit"),
        ("datta2021", "densenet201_sa", 224, "minus_one_one"),
        ("datta2021", "irv2,paper", 299, "unit"),
        ("datta2021_isic", "paper", 224, "unit"),
        ("koefler2023", "", 100, "bgr_255"),
        ("gessert2019", "downsampling", 224, "unit"),
        ("gessert2019", "dual", (450, 600), "unit"),
        ("yan2019", "", 256, "isic2017"),
        ("yan2019", "isic2016", 256, "isic2016"),
    ],
)
def test_images_are_read_as_published(name, given, size, normalisation):
    """What the papers and released code feed their networks."""
    config = resolved(get_config(name, *filter(None, [given]))[0])
    assert (config.dataset.image_size, config.normalisation) == (size, normalisation)
    if config.crops.strategy != "none":
        assert config.crops.size == 224


def test_a_config_that_says_nothing_gets_what_its_model_needs():
    """keras.applications' ResNet-50 wants BGR minus means at 224 pixels, not pixels in [-1, 1]."""
    config = base()
    config.model.name = "keras_resnet50"
    assert (resolved(config).dataset.image_size, resolved(config).normalisation) == (224, "caffe")
    config.normalisation, config.dataset.image_size = "unit", 96
    assert (resolved(config).dataset.image_size, resolved(config).normalisation) == (96, "unit")


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("name", ["ham_small", "quickstart"])
def test_small_configs_have_small_models(name):
    trainable, _ = parameters(build(get_config(name)[0]))
    assert 500_000 < trainable < 2_000_000


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("", (47_480_887, 54_400)),
        ("datta", (47_480_887, 54_400)),
        ("baseline", (47_496_231, 54_400)),
    ],
)
def test_ham_irv2_is_the_published_model(given, counts):
    """The parameters that the released notebooks print."""
    config, _ = get_config("ham_irv2", given)
    assert config.split.strategy == ("datta" if given == "datta" else "lesion")
    assert tuple(parameters(build(config))) == counts


def test_datta2021_weighs_melanoma_five_times_unless_as_in_the_paper():
    """The notebooks' class_weight; the step's loss of one melanoma is five times a nevus's."""
    for given, factor in (("irv2_sa", 5), ("irv2_sa,paper", 1)):
        config, _ = get_config("datta2021", given)
        assert config.loss.class_weights.get("mel", 1) == factor


def test_leaky_protocols_are_opt_in():
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


def test_koefler2023_weighs_the_classes_as_published():
    """The class weights that its notebook prints: balanced, in its order of the classes."""
    config, _ = get_config("koefler2023", "leaky")
    images = np.array([6705, 6678, 6594, 3084, 1962, 852, 690])
    weights = losses.class_weights(
        np.repeat(np.arange(7), images),
        config.dataset.classes,
        exponent=config.loss.class_weight_exponent,
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
    relu_last = given.split(",")[0] in ("downsampling", "single", "multi")
    if config.model.backbone == "torch_densenet121":
        assert built.model.endpoint == (None if relu_last else "bn")
    count = {"crops16": 16, "crops4": 4}.get(given.split(",")[-1], 9)
    shape = (count, 224, 224, 3) if strategy == "ordered" else (224, 224, 3)
    assert Crops(**built.config.crops).input_shape(450, 600) == shape


def test_gessert2019_halves_the_rate_at_the_start_of_epochs_20_30_40_and_50():
    config, _ = get_config("gessert2019", "initial,crops5,inception_v3")
    rate = optimizers.schedule(config.optimizer, 50 * 1000, 1000)
    halvings = {0: 0, 18_999: 0, 19_000: 1, 28_999: 1, 29_000: 2, 39_000: 3, 49_000: 4, 49_999: 4}
    for step, times in halvings.items():
        assert float(rate(step)) == pytest.approx(1.25e-5 * 5 / 3 / 2**times)


def test_gessert2019_single_crop_is_evaluated_as_in_the_paper_or_as_released():
    for given, side in (("single", (382, 510)), ("single,released", (336, 336))):
        config, _ = get_config("gessert2019", given)
        config.crops.size = 224
        rows, columns = Crops(**config.crops).field(450, 600)
        assert (rows.stop - rows.start, columns.stop - columns.start) == side


@pytest.mark.parametrize(
    ("given", "classes_"),
    [
        ("diagnosis", {"bkl", "df", "nv", "vasc"}),
        ("diagnosis_nevi", {"nv"}),
        ("diagnosis_executed", set(HAM10000_COUNTS)),
    ],
)
def test_gessert2019_diagnosis_guided_weighting_has_three_forms(given, classes_):
    assert set(get_config("gessert2019", given)[0].loss.diagnosis_guided) == classes_


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ham_irv2", "papper", "did you mean 'paper'.*got 'papper'"),
        ("datta2021", "irv2_as", "did you mean 'irv2_sa'.*got 'irv2_as'"),
        ("datta2021", "test=0.25", "did you mean 'test=0.2'.*got 'test=0.25'"),
        ("koefler2023", "cnn,cnn_sa", "arguments: expected one of a group, got 'cnn' and 'cnn_sa'"),
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
    new = read(json.dumps(old))
    assert new.seed == 3
    assert new.loss.class_weights.to_dict() == {"mel": 5.0}
    assert new.loss.focal_gamma == 0
    assert new.crops.to_dict() == base().crops.to_dict()


def test_old_names_of_fields_and_values_are_read():
    """What a run of the first version saved, and what each of its fields is called today."""
    old = {
        "plan": {"strategy": "equal", "per_class": 7, "factors": {"mel": 2.0}},
        "average_decay": 0.9,
        "positive": "mel",
        "evaluation": {"views": 8, "prior_exponent": 0.5},
        "loader": {"name": "resident"},
        "loss": {"maps": {"target": "dermo", "weights": {"attention_pool3": 0.1}}},
        "model": {
            "name": "keras_resnet50",
            "attention_at": "conv4_block6",
            "semantics": "paper",
            "join": False,
            "heads": 4,
        },
    }
    new = read(json.dumps(old))
    check_fields(new)
    assert new.sampler.to_dict() == {
        **base().sampler.to_dict(),
        "name": "equal",
        "per_class": 7,
    } | {"factors": {"mel": 2.0}}
    assert (new.ema_decay, new.target_class, new.loader.name) == (0.9, "mel", "in_memory")
    assert (new.evaluation.tta, new.evaluation.logit_adjustment) == (8, 0.5)
    assert new.loss.maps.target == "attributes"
    assert new.model.to_dict() == {
        "name": "keras_resnet50",
        "attention": "soft_paper",
        "attention_at": "conv4_block6",
        "attention_options": {"heads": 4},
    }


def test_unknown_fields_are_named():
    config = base()
    config.optimizer.learning_rte = 0.1
    with pytest.raises(InputError, match=r"did you mean 'optimizer.learning_rate'.*learning_rte'"):
        check_fields(config)
    fine = base()
    fine.model.any_option = 1
    fine.loss.class_weights.mel = 2.0
    check_fields(fine)


def test_configs_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("ham_irv2").name == "ham_irv2.py"
    assert find_file("configs/ham_irv2.py").is_file()  # not in this folder: the package's
    own = tmp_path / "mine.py"
    own.write_text("")
    assert find_file("mine.py").samefile(own)
    for wrong in ("ham_irv3", "elsewhere/ham_irv2.py"):
        with pytest.raises(InputError, match="--config: expected one of .*ham_irv2"):
            find_file(wrong)
