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


def test_pipelines_are_judged_if_they_ran():
    def rate(images, pipeline, speedup):
        facts = {"measured": "rate", "images": images, "pipeline": pipeline}
        return facts | {"grain_speedup": speedup}

    rows = [rate("a", "Grain", 1.0), rate("a", "tf.data", 1.0), rate("b", "tf.data", 0.9)]
    rows += [rate("a", "tf.data, aliased", 0.99)]
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


def test_runs_are_judged_by_standard_errors_and_patches_by_plain_ones():
    row = {"row": "bfloat16 - float32", "metric": "accuracy", "difference": -0.1}
    rows = [row | {"closeness": -1.9}, row | {"closeness": -2.1}, {"row": "net, float32"}]
    found = goals.judge({"benchmark": "runs", "rows": rows})
    assert [(each.case, each.value, each.reached) for each in found] == [
        ("accuracy", -0.1, True),
        ("accuracy", -0.1, False),
    ]
    rows = [{"way": "attention", "of_plain": 0.97}, {"way": "plain", "of_plain": 1.0}]
    result = {"benchmark": "patch_throughput", "backbone": "net", "dtype": "float32", "rows": rows}
    assert verdicts(result) == [("0.97× plain", True)]
