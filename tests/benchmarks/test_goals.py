import pytest

from benchmarks import goals


def attention(platform, tensorflow=9.0, **changes):
    speedup = {"definition": 30.0, "keras_jax": 30.0, "keras_tensorflow": tensorflow}
    row = {"pass": "both", "variant": "released", "shape": [28, 28, 512, 16], "batch": 256}
    row |= {"dtype": "float32", "of_limit": 0.81, "speedup": speedup, **changes}
    return verdicts({"benchmark": "attention_kernel", "platform": platform, "rows": [row]})


def step(platform, batch=8, dtype="float32", **speedup):
    row = {"model": "resnet50_sa", "batch": batch, "dtype": dtype, "speedup": speedup}
    return verdicts({"benchmark": "train_step", "platform": platform, "rows": [row]})


def verdicts(result):
    return [(verdict.goal, verdict.reached) for verdict in goals.judge(result)]


def test_attention_is_judged_by_the_faster_keras():
    assert attention("cpu") == [("10× Keras", False)]
    assert attention("cpu", tensorflow=10.0) == [("10× Keras", True)]
    assert attention("cpu", variant="paper") == []
    assert attention("cpu", **{"pass": "forward"}) == []
    found = attention("gpu", tensorflow=60.0)
    assert found == [("50× Keras", False), ("80% of the limit", True)]
    assert attention("gpu", variant="paper") == [("80% of the limit", True)]
    assert attention("gpu", variant="paper", batch=64) == []


def test_goals_of_steps_depend_on_the_device_and_the_type():
    assert step("cpu", keras_tensorflow=1.2, keras_jax=0.5, torch=0.5, without=0.96) == [
        ("1× Keras, TensorFlow", True),
        ("0.97× without attention", False),
    ]
    assert step("cpu", batch=16, keras_tensorflow=0.9) == []
    assert step("cpu", dtype="bfloat16", keras_tensorflow=0.9) == []
    found = step("gpu", dtype="bfloat16", torch=1.3, keras_tensorflow=2.9, keras_jax=3.1)
    assert found == [
        ("1.25× PyTorch", True),
        ("3× Keras, TensorFlow", False),
        ("3× Keras, JAX", True),
    ]
    assert step("gpu", torch=1.3) == []


def test_pipelines_are_compared_on_the_same_images():
    def rate(images, pipeline, speed):
        facts = {"measured": "rate", "images": images, "pipeline": pipeline}
        return facts | {"images_per_second": speed}

    rows = [rate("a", "Grain", 10.0), rate("a", "tf.data", 10.0), rate("b", "tf.data", 1.0)]
    rows += [rate("b", "Grain", 0.9), rate("a", "tf.data, aliased", 11.0)]
    rows += [{"measured": "rate", "images": "b", "pipeline": "tf.data, aliased", "skipped": "x"}]
    rows += [
        {"measured": "waiting", "images": "b", "pipeline": name, "share": share}
        for name, share in (("in place", 1.0), ("in_memory", 0.98), ("grain", 0.5))
    ]
    found = goals.judge({"benchmark": "input_pipeline", "rows": rows})
    assert [(each.goal, each.case, each.reached) for each in found] == [
        ("Grain at 1× tf.data", "a", True),
        ("Grain at 1× tf.data", "b", False),
        ("Grain at 1× tf.data, aliased", "a", False),
        ("in-memory data at 0.99× the step in place", "b", False),
    ]


def runs(**by_name):
    rows = [
        {"row": f"net, {name}", "values": {"accuracy": value}}
        for name, values in by_name.items()
        for value in values
    ]
    rows.append({"row": "majority vote", "values": {"accuracy": 0.1}})
    return {"benchmark": "runs", "rows": rows}


def test_types_are_compared_by_the_scatter_of_their_seeds():
    result = runs(float32=(0.80, 0.82, 0.84), bfloat16=(0.80, 0.83, 0.83))
    # Variances .0004 and .0003, of three each.
    assert goals.difference(result, "accuracy") == pytest.approx((0.0, (0.0007 / 3) ** 0.5))
    assert [each.reached for each in goals.judge(result)] == [True]
    worse = runs(float32=(0.80, 0.81, 0.82), bfloat16=(0.70, 0.71, 0.72))
    assert [each.reached for each in goals.judge(worse)] == [False]
    assert goals.judge(runs(float32=(0.8, 0.9))) == []
    assert goals.judge(runs(float32=(0.8,), bfloat16=(0.9,))) == []
