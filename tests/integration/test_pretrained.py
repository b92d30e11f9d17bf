import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxattn import checkpoints, pretrained, run_dir, train
from jaxattn.checkpoints import Checkpoints
from jaxattn.errors import InputError
from jaxattn.models import registry
from jaxattn.models.backbones import Entry
from jaxattn.models.backbones.densenet import DenseNet
from jaxattn.models.classifier import Classifier
from jaxattn.models.datta2021 import TappedClassifier
from jaxattn.state import TrainState


def flat(variables):
    return traverse_util.flatten_dict(jax.tree.map(np.asarray, variables), sep="/")


def same(one, other):
    one, other = flat(one), flat(other)
    return one.keys() == other.keys() and all(
        np.array_equal(one[path], other[path]) for path in one
    )


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    return {
        "params": {"logits": {"kernel": rng.standard_normal((4, 3), np.float32)}},
        "batch_stats": {"bn": {"mean": rng.standard_normal(4).astype(np.float32)}},
    }


def test_a_folder_gives_back_what_was_saved(tmp_path, variables):
    notes = {"model": {"name": "tiny"}, "sha256": "0"}
    pretrained.save(tmp_path / "a/b", variables, notes)
    read, read_notes = pretrained.load(tmp_path / "a/b")
    assert same(read, variables)
    assert read_notes == notes


def test_no_folder_is_overwritten(tmp_path, variables):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(InputError, match="--out: expected a new folder, got .*out, which exists"):
        pretrained.save(tmp_path / "out", variables, {})


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match=r"with weights\.json, or a run, .*json, got neither"):
        pretrained.load(tmp_path)


@pytest.fixture
def run(tiny_config, tmp_path, request):
    """A run of one epoch, and its best variables."""
    tiny_config.epochs = 1
    tiny_config.ema_decay = request.param
    train.train(tiny_config, tmp_path / "run")
    best, _ = checkpoints.read_variables(tmp_path / "run" / run_dir.CHECKPOINTS)
    return tmp_path / "run", best


def test_a_damaged_folder(tmp_path, variables):
    pretrained.save(tmp_path / "w", variables, {"model": {"name": "tiny"}})
    for file in (tmp_path / "w" / pretrained.VARIABLES).iterdir():
        if file.is_file():
            file.unlink()
    with pytest.raises(
        InputError, match=r"w/variables: expected the arrays that were converted, got _CHECKPOINT"
    ):
        pretrained.load(tmp_path / "w")


@pytest.mark.parametrize("run", [0.9], indirect=True)
def test_a_run_goes_on_from_another_ones_best(tiny_config, run, tmp_path, capsys):
    folder, best = run
    tiny_config.init_from = str(folder)
    tiny_config.seed = 5
    assert not train.train(tiny_config, tmp_path / "next", lambda step: True)
    with Checkpoints(tmp_path / "next" / run_dir.CHECKPOINTS) as saved:
        state, _ = saved.restore(0, train.setup(tiny_config).like)
    assert same(state.variables, best)
    assert same(state.ema, best)
    assert f"{folder}: {len(flat(best))} arrays taken" in capsys.readouterr().out
    origin = json.loads((tmp_path / "next" / run_dir.ORIGIN).read_text())
    assert origin["model"] == {"name": "tiny", "width": 8}
    assert origin["step"] == 6
    # Resuming needs the other run no more.
    folder.rename(tmp_path / "gone")
    assert train.train(tiny_config, tmp_path / "next")


@pytest.mark.parametrize("run", [0.0], indirect=True)
def test_weights_that_do_not_fit_leave_no_run(tiny_config, run, tmp_path):
    tiny_config.init_from = str(run[0])
    tiny_config.model.width = 12
    with pytest.raises(
        InputError, match=r"weights that fit 'tiny', got those of 'tiny' in .*kernel"
    ):
        train.train(tiny_config, tmp_path / "next")
    assert not (tmp_path / "next").exists()


@pytest.fixture
def state(monkeypatch):
    """States of small networks that share a backbone."""
    backbone = Entry(functools.partial(DenseNet, blocks=(1, 1, 1, 1)))
    whole = registry.Model(Classifier, 32, {"backbone": backbone})
    tap = {"backbone": backbone, "endpoint": "conv4_block1/conv1", "heads": 2}
    monkeypatch.setitem(registry.MODELS, "whole", whole)
    monkeypatch.setitem(registry.MODELS, "cut", registry.Model(TappedClassifier, 32, tap))

    def make(name, classes=7, seed=0):
        init = functools.partial(registry.create(name, classes).init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
        rng = np.random.default_rng(seed)
        variables = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), shapes)
        ema = jax.tree.map(jnp.copy, variables)
        return TrainState(step=0, opt_state=(), ema=ema, **variables)

    return make


def test_the_head_is_new_for_other_classes(state, tmp_path):
    source, target = state("cut", classes=3, seed=1), state("cut")
    pretrained.save(tmp_path / "w", source.variables, {"model": {"name": "cut"}})
    started, notes = pretrained.start_from(target, tmp_path / "w", {"name": "cut"})
    assert notes["new"] == ["params/logits/bias", "params/logits/kernel"]
    assert notes["unused"] == []
    got, before, given = (flat(s.variables) for s in (started, target, source))
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, (before if "logits" in path else given)[path])
    assert same(started.ema, started.variables)


def test_a_pretrained_backbone(state, tmp_path):
    """As a network trained on ImageNet comes into one with attention inside it."""
    source, target = state("whole", classes=10, seed=1), state("cut")
    pretrained.save(tmp_path / "w", source.variables, {"model": {"name": "whole"}})
    started, notes = pretrained.start_from(target, tmp_path / "w", {"name": "cut"})
    got, before, given = (flat(s.variables) for s in (started, target, source))
    for path, leaf in got.items():
        taken = path.split("/")[1] == "backbone"
        np.testing.assert_array_equal(leaf, (given if taken else before)[path])
    assert {path.split("/")[1] for path in notes["new"]} == {"attention", "logits"}
    assert set(notes["unused"]) == given.keys() - got.keys()
    assert notes["taken"] == len(got) - len(notes["new"])


def test_every_difference_is_named_at_once(state, tmp_path):
    """Of one model all weights are wanted, though of another its backbone would do."""
    target = state("cut")
    given = jax.tree.map(np.asarray, target.variables)
    del given["params"]["attention"]["soft_attention"]["bias"]
    given["params"]["extra"] = np.zeros(3, np.float32)
    given["batch_stats"]["backbone"]["conv1"]["bn"]["mean"] = np.zeros(65, np.float32)
    pretrained.save(tmp_path / "w", given, {"model": {"name": "cut"}})
    with pytest.raises(InputError) as error:
        pretrained.start_from(target, tmp_path / "w", {"name": "cut"})
    assert str(error.value) == (
        f"init_from: expected weights that fit 'cut', got those of 'cut' in {tmp_path / 'w'}: "
        "batch_stats/backbone/conv1/bn/mean: expected 64, got 65; "
        "params/attention/soft_attention/bias: expected 2, got none; "
        "params/extra: expected none, got 3"
    )


def test_a_backbone_of_another_kind(state, tmp_path):
    target = state("cut")
    given = {"params": {"backbone": {"conv9": {"kernel": np.zeros((1, 1), np.float32)}}}}
    pretrained.save(tmp_path / "w", given, {"model": {"name": "other"}})
    with pytest.raises(
        InputError, match="fit 'cut', got those of 'other' .*conv1/bn/mean: expected 64, got none; "
    ):
        pretrained.start_from(target, tmp_path / "w", {"name": "cut"})
