import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.errors import InputError
from jaxattn.models.attention.soft import SoftAttention, SoftAttentionBlock


def features(shape=(2, 5, 4, 6)):
    return jax.random.normal(jax.random.key(1), shape)


def init(module, x, **kwargs):
    return jax.jit(lambda x: module.init(jax.random.key(0), x, **kwargs))(x)


# 9 C m + m, as printed for the published models with 192, 2048, 128 and 512 channels.
@pytest.mark.parametrize(
    ("channels", "printed"), [(192, 27_664), (2048, 294_928), (128, 18_448), (512, 73_744)]
)
def test_released_layer_has_the_printed_parameter_count(channels, printed):
    x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
    params = jax.eval_shape(lambda x: SoftAttention().init(jax.random.key(0), x), x)["params"]
    assert {k: v.shape for k, v in params.items()} == {
        "kernel": (channels, 3, 3, 1, 16),
        "bias": (16,),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == printed


def test_released_layer_starts_as_kerass_he_uniform():
    params = init(SoftAttention(), features((1, 2, 2, 64)))["params"]
    limit = np.sqrt(6 / (9 * 64))
    assert 0.99 * limit < np.abs(params["kernel"]).max() <= limit
    np.testing.assert_allclose(np.var(params["kernel"]), limit**2 / 3, rtol=0.05)
    assert not np.any(params["bias"])


def test_gamma_starts_at_a_hundredth_and_scales():
    module, x = SoftAttention(3, "paper"), features()
    variables = init(module, x)
    assert variables["params"]["gamma"] == np.float32(0.01)
    out, maps = module.apply(variables, x)
    np.testing.assert_allclose(out, 0.01 * x * maps.sum(1)[..., None], rtol=1e-5)
    variables["params"]["gamma"] = jnp.float32(2)
    np.testing.assert_allclose(module.apply(variables, x)[0], 200 * out, rtol=1e-5)


def test_heads_can_be_kept_apart_as_released_only():
    x = features()
    together, apart = SoftAttention(3), SoftAttention(3, aggregate=False)
    variables = init(together, x)
    out, maps = together.apply(variables, x)
    separate, _ = apart.apply(variables, x)
    assert maps.shape == (2, 3, 5, 4)
    assert separate.shape == (2, 5, 4, 18)
    np.testing.assert_allclose(separate.reshape(2, 5, 4, 3, 6).sum(3), out, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="aggregate: expected True with variant='paper'"):
        SoftAttention(3, "paper", aggregate=False).apply(variables, x)


def test_unknown_variant_are_named():
    with pytest.raises(InputError, match="variant: expected one of paper, released .*got 'papers'"):
        SoftAttention(variant="papers").init(jax.random.key(0), features())


def test_block_is_pooled_features_beside_pooled_attended_ones():
    block, x = SoftAttentionBlock(heads=3), features((2, 5, 4, 6))
    variables = init(block, x, train=False)
    out, maps = block.apply(variables, x, train=False)
    attended = np.asarray(x) * np.asarray(maps).sum(1)[..., None]
    padded = [np.pad(each, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=-np.inf)
              for each in (np.asarray(x), attended)]  # fmt: skip
    pooled = [each.reshape(2, 3, 2, 2, 2, 6).max((2, 4)) for each in padded]
    wanted = np.maximum(np.concatenate(pooled, -1), 0)
    np.testing.assert_allclose(out, wanted, rtol=1e-5)

    dropped, _ = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * wanted[kept], rtol=1e-5)
    assert 0.3 < kept[wanted > 0].mean() < 0.7
