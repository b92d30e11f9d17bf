import numpy as np
import pytest

from jaxattn.convert.keras_order import Network, order

keras = pytest.importorskip("keras")


def test_parallel_branches_interleave():
    net = Network()
    long = net("a", net("b", net.image))
    merged = net("add", net("c", net.image), long)
    # b is as far from the output as nothing else; then c, which the walk reaches before a.
    kinds = [layer.kind for layer in order(net("end", merged))]
    assert kinds == ["input_layer", "b", "c", "a", "add", "end"]


def test_what_the_output_does_not_need_is_left_out():
    net = Network()
    kept = net("a", net.image, path="here")
    net("b", kept)
    assert order(net.places["here"]) == [net.image, kept]


def test_names_are_those_of_a_fresh_session():
    net = Network()
    net.prefix = "backbone/"
    made = [net("conv2d", net.image, path=str(i), name=n) for i, n in enumerate((None, "x", None))]
    assert [(layer.name, layer.named) for layer in made] == [
        ("conv2d", False),
        ("x", True),
        ("conv2d_1", False),
    ]
    assert made[2].path == "backbone/2"


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_are_ordered_as_in_keras(seed):
    rng = np.random.default_rng(seed)
    net = Network()
    ours, theirs = [net.image], [keras.Input((2,), name="input_layer")]
    for i in range(30):
        sources = rng.choice(len(ours), rng.integers(1, min(3, len(ours)) + 1), replace=False)
        one = len(sources) == 1
        kind, options = ("Activation", {"activation": "relu"}) if one else ("Add", {})
        layer = getattr(keras.layers, kind)(name=f"n{i}", **options)
        inputs = [theirs[s] for s in sources]
        theirs.append(layer(inputs[0] if one else inputs))
        ours.append(net("any", *(ours[s] for s in sources), name=f"n{i}"))
    names = [layer.name for layer in keras.Model(theirs[0], theirs[-1]).layers]
    assert [layer.name for layer in order(ours[-1])] == names
