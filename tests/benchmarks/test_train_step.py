"""What the benchmark of training steps counts, compares and keeps."""

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


def goals(row, platform):
    found = train_step.goals({"platform": platform, "rows": [row]})
    return [(goal.what, goal.reached) for goal in found]


def test_goals_are_those_of_the_device_and_the_type():
    cpu = row(keras_tensorflow=1.2, keras_jax=0.5, torch=0.5, without=0.96)
    assert goals(cpu, "cpu") == [
        ("1× Keras, TensorFlow", True),
        ("0.97× without attention", False),
    ]
    assert goals(row(batch=16, keras_tensorflow=0.9), "cpu") == []
    assert goals(row(dtype="bfloat16", keras_tensorflow=0.9), "cpu") == []
    gpu = row(dtype="bfloat16", torch=1.3, keras_tensorflow=2.9, keras_jax=3.1)
    assert goals(gpu, "gpu") == [
        ("1.25× PyTorch", True),
        ("3× Keras, TensorFlow", False),
        ("3× Keras, JAX", True),
    ]
    assert goals(row(torch=1.3), "gpu") == []


def test_rows_are_by_type_batch_and_model():
    rows = [row("vgg16"), row("irv2"), row("irv2", batch=2), row("vgg16", dtype="bfloat16")]
    assert train_step.ordered(rows) == [rows[3], rows[2], rows[1], rows[0]]


@pytest.mark.parametrize("name", train_step.MODELS)
def test_every_model_has_its_published_config(name):
    from benchmarks.peers.jaxattn_step import config_of

    config = config_of(name, 4, "float32", 64)
    assert config.model.name == name
    assert config.batch_size == 4
    assert config.optimizer.name == "keras_adam"
