"""Affine maps by matrix products against the gathers that other devices use, and against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax import export

from jaxattn.data import augment
from jaxattn.data.augment import Augmentation
from jaxattn.ops.tpu import warp

RANGES = (
    Augmentation(180.0, 0.1, 0.0, 0.1),
    Augmentation(20.0, (0.3, 0.0), 10.0, 0.4, True, True, True),
    Augmentation(0.0, 0.1, 0.0, 0.2),
)


def places(ranges, height, width, count=6):
    moves = augment.draw(jax.random.key(3), count, height, width, ranges)
    return augment._coordinates(augment.affine(moves), height, width)


def drawn(height, width, count=6):
    shape = (count, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("size", [(70, 45), (48, 48), (12, 12)])
def test_interpolation_is_scipys(ranges, size):
    """Of noise, the worst case, by one level of 255: weights are rounded to bfloat16."""
    if ranges.quarter_turns and size[0] != size[1]:
        size = size[0], size[0]
    images, (rows, columns) = drawn(*size), places(ranges, *size)
    got = jax.jit(lambda *a: warp.warp(*a, ranges.stretch))(images, rows, columns)
    for image, result, y, x in zip(images, got, rows, columns, strict=True):
        for channel in range(3):
            plane = image[..., channel].astype(np.float64)
            wanted = scipy.ndimage.map_coordinates(plane, [y, x], order=1)
            np.testing.assert_allclose(result[..., channel], wanted, atol=1.0)


@pytest.mark.parametrize("ranges", RANGES)
def test_masks_are_the_same_bytes(ranges):
    masks = drawn(48, 48)[..., 0]
    rows, columns = places(ranges, 48, 48)
    got = augment._nearest_on_tpu(jnp.asarray(masks), rows, columns, ranges.stretch)
    np.testing.assert_array_equal(got, augment.nearest(jnp.asarray(masks), rows, columns))


@pytest.mark.parametrize("ranges", RANGES)
def test_no_two_pixels_of_a_tile_are_further_apart(ranges):
    """Of 3,000 draws; the widest reaches the bound, or nearly, so that no window is too large."""
    moves = augment.draw(jax.random.key(0), 3000, 48, 48, ranges)
    linear = augment.affine(moves)[:, :, :2]
    widest = float(jnp.abs(linear).sum(-1).max())
    assert 0.85 * ranges.stretch < widest <= 1.0001 * ranges.stretch


@pytest.mark.parametrize(("platform", "gathers"), [("cpu", True), ("cuda", True), ("tpu", False)])
def test_a_tpu_gathers_no_pixels(platform, gathers):
    """What is lowered for each platform, without a device."""
    run = jax.jit(lambda key, x, m: augment.augment(key, x, m, RANGES[0]))
    shapes = (
        jax.eval_shape(lambda: jax.random.key(0)),
        *(jnp.zeros(s, jnp.uint8) for s in ((2, 48, 48, 3), (2, 48, 48))),
    )
    text = export.export(run, platforms=[platform])(*shapes).mlir_module()
    assert ("stablehlo.gather" in text) == gathers
