import contextlib

import numpy as np
import pytest

from benchmarks import ours, tables, train_step


@pytest.mark.parametrize("name", tables.MODELS)
def test_every_model_has_its_published_config(name):
    config = ours.published(name, 4, "float32", 64)
    assert config.model.name == name
    assert config.batch_size == 4
    assert config.optimizer.name == "keras_adam"


def test_steps_of_pytorch():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_step

    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    labels = np.array([0, 2], np.int32)
    given = {"normalised": images, "labels": labels, "classes": 3, "dtype": "float32"}
    ready = torch_step.prepare(model="resnet34", training=True, **given)
    # Keras prints 30,783,495 trained parameters with 7 classes.
    assert ready.facts["parameters"] == 30_783_495 - 4 * (512 + 1)
    assert ready.time(calls=1) > 0
    assert ready.memory() > 1e6


def test_without_is_ours_before(monkeypatch):
    """A model with attention is timed with the same model without, but not with a larger one."""
    timed, ended = [], []

    class Peers(contextlib.ExitStack):
        def __init__(self, names, module):
            super().__init__()
            self.names, self.ready = list(names), {}

    def measured(case, own, others, plain, *_):
        assert (own.names, others.names) == (["ours"], ["torch"])
        assert plain not in ended
        own.ready["ours"] = case.model
        own.callback(ended.append, case.model)
        timed.append((case.model, plain))
        return {}

    monkeypatch.setattr(train_step, "Peers", Peers)
    monkeypatch.setattr(train_step, "measured", measured)
    monkeypatch.setattr(
        train_step.measure, "limits", lambda _: {"flops_per_second": {"float32": 1}}
    )
    monkeypatch.setattr(train_step.measure, "write", lambda *_, **__: {})
    monkeypatch.setattr(train_step.tables, "train_step", lambda _: "a\nb\nc")
    models = ("vgg16", "vgg16_sa", "resnet34", "resnet34_sa", "irv2_sa")
    train_step.run(models=models, batches=(1,), peers=("torch",))
    assert ended == [*models]
    assert timed == [
        ("vgg16", None),
        ("vgg16_sa", "vgg16"),
        ("resnet34", None),
        ("resnet34_sa", None),
        ("irv2_sa", None),
    ]
