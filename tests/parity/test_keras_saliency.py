"""Grad-CAM of a converted model against Keras' derivatives: the network cut at the layer."""

import jax
import numpy as np
import pytest

from jaxattn.saliency import ClassActivation

keras = pytest.importorskip("keras")
if keras.backend.backend() != "jax":
    pytest.skip(f"Keras runs on {keras.backend.backend()}, not on JAX", allow_module_level=True)
parity = pytest.importorskip("references.keras_parity")

from references import keras_weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def drawn():
    """Köfler's network with attention, in Keras and here, and three images."""
    pair = parity.make_pair("koefler_cnn_sa", 75)
    images = pair.images(3, seed=0)
    keras_weights.draw(pair.keras, images, 0, away_from_kinks=False)
    variables = pair.converted({v.path: v.value for v in pair.keras.variables})
    return pair, images, jax.tree.map(jax.numpy.asarray, variables)


@pytest.mark.parametrize(("layer", "target"), [("conv5", None), ("conv3", 4)])
def test_grad_cam_is_that_of_keras(drawn, layer, target):
    """Selvaraju et al., equations 1 and 2; the predicted classes, and a chosen one."""
    pair, images, variables = drawn
    cut = pair.keras.get_layer(layer).output
    features = keras.Model(pair.keras.input, cut)(images, training=False)
    rest = keras.Model(cut, pair.keras.output)
    logits = np.asarray(rest(features, training=False))
    chosen = logits.argmax(1) if target is None else np.full(3, target)

    def score(features):
        return rest(features, training=False)[np.arange(3), chosen].sum()

    weights = np.asarray(jax.grad(score)(features)).mean((1, 2))
    wanted = np.maximum((np.asarray(features) * weights[:, None, None]).sum(-1), 0)
    got = ClassActivation(f"backbone/{layer}", target)(
        pair.module, variables, jax.numpy.asarray(images)
    )
    assert (wanted > 0).any((1, 2)).all()
    np.testing.assert_allclose(got[:, 0], wanted, rtol=1e-4, atol=1e-5 * wanted.max())
