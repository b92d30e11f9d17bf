"""What the benchmark of training steps counts, compares and keeps."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import train_step
from benchmarks.peers.jaxattn_step import forward_flops
from jaxattn.ops.conv import conv_general_dilated


def row(model="resnet50_sa", batch=8, dtype="float32", **speedup):
    facts = {"ours": {"parameters": 10, "kernels": 8}}
    facts |= {
        name: {"parameters": 10, "kernels": 8, "loss": 2.0, "our_loss": 2.0}
        for name in train_step.PEERS
    }
    return {"model": model, "batch": batch, "dtype": dtype, "speedup": speedup, "facts": facts}


def test_operations_of_convolutions_and_products_counted_by_hand():
    images, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))
    conv = lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME")  # noqa: E731
    strided = lambda x, k: conv_general_dilated(x, k, (2, 2), "VALID")  # noqa: E731
    assert forward_flops(conv, images, kernel) == 2 * (2 * 8 * 8 * 4) * (3 * 3 * 3)
    assert forward_flops(strided, images, kernel) == 2 * (2 * 3 * 3 * 4) * (3 * 3 * 3)
    assert forward_flops(jax.jit(jnp.matmul), jnp.zeros((5, 6)), jnp.zeros((6, 7))) == 2 * 5 * 6 * 7
    assert forward_flops(jnp.add, images, images) == 0

    def repeated(x):
        return lax.scan(lambda x, _: (x @ x, None), x, length=10)[0]

    assert forward_flops(repeated, jnp.zeros((3, 3))) == 10 * 2 * 27


def test_a_peer_that_computes_something_else_is_seen():
    same = row()
    assert not any(train_step.differs(name, same) for name in train_step.PEERS)
    other = row()
    other["facts"]["keras_jax"]["our_loss"] = 2.01
    other["facts"]["keras_tensorflow"]["our_loss"] = float("nan")
    other["facts"]["torch"]["kernels"] = 9
    assert all(train_step.differs(name, other) for name in train_step.PEERS)


def test_only_the_same_network_is_without_attention():
    def of(model, flops):
        case = train_step.Case(model, 8, "float32", 224)
        return case, train_step.Running({"ours": object()}, {"ours": {"model_flops": flops}}, {})

    plain = of("vgg16", 100)
    assert train_step.plain_of(*of("vgg16_sa", 105), *plain) is plain[1].ways["ours"]
    assert train_step.plain_of(*of("vgg16_sa", 60), *plain) is None  # a smaller network
    assert train_step.plain_of(*of("resnet50_sa", 105), *plain) is None
    assert train_step.plain_of(*plain, *plain) is None


def test_goals_are_those_of_the_device_and_the_type():
    cpu = row(keras_tensorflow=1.2, keras_jax=0.5, torch=0.5, without=0.96)
    assert train_step.goals(cpu, "cpu") == [
        ("1× Keras, TensorFlow", True),
        ("0.97× without attention", False),
    ]
    assert train_step.goals(row(batch=16, keras_tensorflow=0.9), "cpu") == []
    assert train_step.goals(row(dtype="bfloat16", keras_tensorflow=0.9), "cpu") == []
    gpu = row(dtype="bfloat16", torch=1.3, keras_tensorflow=2.9, keras_jax=3.1)
    assert train_step.goals(gpu, "gpu") == [
        ("1.25× PyTorch", True),
        ("3× Keras, TensorFlow", False),
        ("3× Keras, JAX", True),
    ]
    assert train_step.goals(row(torch=1.3), "gpu") == []


def test_earlier_rows_stay_but_for_those_measured_again():
    before = [row("vgg16", keras_jax=1.0), row("irv2", keras_jax=1.0)]
    latest = [row("irv2", keras_jax=2.0), row("irv2", dtype="bfloat16", keras_jax=3.0)]
    merged = train_step.merged(before, latest)
    assert [(each["model"], each["speedup"]["keras_jax"]) for each in merged] == [
        ("irv2", 3.0),
        ("irv2", 2.0),
        ("vgg16", 1.0),
    ]


def test_rows_of_another_machine_do_not_stay(tmp_path, monkeypatch):
    path = tmp_path / "train_step_cpu.json"
    machine = {"processor": "some", "load_before": 1.0}
    result = {"machine": machine, "rows": [row()], "peak": {"float32": 1.0}}
    path.write_text(json.dumps(result))
    monkeypatch.setattr(train_step.measure, "machine", lambda: machine | {"load_before": 2.0})
    assert train_step.earlier(path)["rows"] == [row()]
    monkeypatch.setattr(train_step.measure, "machine", lambda: machine | {"processor": "other"})
    assert train_step.earlier(path)["rows"] == []
    assert train_step.earlier(tmp_path / "none.json")["rows"] == []


@pytest.mark.parametrize("name", train_step.MODELS)
def test_every_model_has_its_published_config(name):
    from benchmarks.peers.jaxattn_step import config_of

    config = config_of(name, 4, "float32", 64)
    assert config.model.name == name
    assert config.batch_size == 4
    assert config.optimizer.name == "keras_adam"
