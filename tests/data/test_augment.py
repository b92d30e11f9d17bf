import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxattn.data.augment import (
    GREY,
    Augmentation,
    augment,
    bilinear,
    draw_affine,
    normalisation,
)
from jaxattn.errors import InputError

EVERYTHING = Augmentation(180.0, 0.1, 0.1, True, True, 0.2, 0.2, 0.2)


def images(count=4, height=11, width=14, seed=0):
    shape = (count, height, width, 3)
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def test_nothing_to_draw_leaves_the_image():
    given = images()
    pixels, _ = augment(jax.random.key(0), given, None, Augmentation())
    np.testing.assert_allclose(pixels, np.asarray(given, np.float32) / 255, rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_image_and_mask_move_alike(seed):
    """A mask that is the image's own bright half still is after every move.

    Images are read between pixels and masks at the nearest one, so the two may differ where the
    image is between dark and bright, and nowhere else.
    """
    rows, columns = np.mgrid[:40, :30]
    blob = ((rows - 12) ** 2 + (columns - 18) ** 2 < 70).astype(np.uint8)
    image = jnp.asarray(np.repeat(blob[..., None] * 255, 3, -1))[None].repeat(3, 0)
    masks = jnp.asarray(blob)[None].repeat(3, 0)
    ranges = Augmentation(180.0, 0.2, 0.2, True, True)
    pixels, masks = augment(jax.random.key(seed), image, masks, ranges)
    value = np.asarray(pixels[..., 0])
    assert (np.asarray(masks)[value > 0.999] == 1).all()
    assert (np.asarray(masks)[value < 0.001] == 0).all()
    assert ((value > 0.001) & (value < 0.999)).mean() < 0.2


def test_bilinear_is_scipys():
    array = np.random.default_rng(0).random((2, 9, 7, 3), np.float32)
    rng = np.random.default_rng(1)
    rows, columns = rng.uniform(0, 8, (2, 5, 4)), rng.uniform(0, 6, (2, 5, 4))
    rows[0, 0, 0], columns[0, 0, 0] = 8, 6  # the last corner
    ours = bilinear(*(jnp.asarray(a, jnp.float32) for a in (array, rows, columns)))
    for i in range(2):
        for c in range(3):
            theirs = scipy.ndimage.map_coordinates(array[i, ..., c], [rows[i], columns[i]], order=1)
            np.testing.assert_allclose(ours[i, ..., c], theirs, atol=1e-5)


def test_affine_is_scipys_affine_transform():
    """The whole move, edges included, against scipy with the same matrix."""
    given = images(6, 16, 21)
    ranges = Augmentation(180.0, 0.3, 0.3, True, True)
    key = jax.random.key(5)
    pixels, _ = augment(key, given, None, ranges)
    maps = np.asarray(draw_affine(jax.random.split(key)[0], 6, 16, 21, ranges))
    centre = np.array([7.5, 10.0])
    for i, (linear, shift) in enumerate(zip(maps[..., :2], maps[..., 2], strict=True)):
        offset = centre + shift - linear @ centre
        for c in range(3):
            theirs = scipy.ndimage.affine_transform(
                np.asarray(given[i, ..., c], np.float32) / 255,
                linear,
                offset,
                order=1,
                mode="nearest",
            )
            np.testing.assert_allclose(pixels[i, ..., c], theirs, atol=2e-4)


def test_ranges_are_reached_and_kept():
    ranges = Augmentation(rotation=30.0, shift=0.1, zoom=0.2, horizontal_flip=True)
    maps = np.asarray(draw_affine(jax.random.key(0), 2000, 50, 100, ranges))
    flipped = np.linalg.det(maps[:, :, :2]) < 0
    assert 0.45 < flipped.mean() < 0.55
    upright = maps[~flipped]
    angle = np.rad2deg(np.arctan2(upright[:, 1, 0], upright[:, 0, 0]))
    assert 29 < angle.max() <= 30.001
    assert -30.001 <= angle.min() < -29
    assert 4.9 < maps[:, 0, 2].max() <= 5.001
    assert 9.8 < maps[:, 1, 2].max() <= 10.001
    factor = 1 / np.linalg.norm(maps[:, :, 0], axis=1)
    assert 0.8 <= factor.min() + 1e-5 < 0.805
    assert 1.195 < factor.max() - 1e-5 <= 1.2


def test_flips_alone_are_exact():
    given = images(40)
    pixels, _ = augment(jax.random.key(1), given, None, Augmentation(vertical_flip=True))
    same = [np.allclose(p, g / 255.0, atol=1e-6) for p, g in zip(pixels, given, strict=True)]
    flipped = [
        np.allclose(p, g[::-1] / 255.0, atol=1e-6) for p, g in zip(pixels, given, strict=True)
    ]
    assert all(a != b for a, b in zip(same, flipped, strict=True))
    assert 8 < sum(flipped) < 32


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation"])
def test_colour_keeps_what_it_should(field):
    """Brightness keeps ratios, contrast the mean grey, saturation each pixel's grey."""
    given = images(40) // 2 + 60  # far from 0 and 255, so that nothing is cut off
    pixels, _ = augment(jax.random.key(2), given, None, Augmentation(**{field: 0.2}))
    before, after = np.asarray(given, np.float32) / 255, np.asarray(pixels)
    grey = lambda x: x @ np.array(GREY)  # noqa: E731
    if field == "brightness":
        ratio = after / before
        assert np.ptp(ratio, axis=(1, 2, 3)).max() < 1e-3
        assert ratio.min() < 0.95
        assert ratio.max() > 1.05
    elif field == "contrast":
        np.testing.assert_allclose(grey(after).mean((1, 2)), grey(before).mean((1, 2)), atol=1e-3)
        spread = after.std((1, 2, 3)) / before.std((1, 2, 3))
        assert spread.min() < 0.95
        assert spread.max() > 1.05
    else:
        np.testing.assert_allclose(grey(after), grey(before), atol=1e-3)
        assert not np.allclose(after, before, atol=0.02)


def test_a_pure_function_of_the_key_under_jit():
    masks = (images()[..., 0] > 99).astype(jnp.uint8)
    run = jax.jit(lambda key: augment(key, images(), masks, EVERYTHING))
    one, again, other = run(jax.random.key(7)), run(jax.random.key(7)), run(jax.random.key(8))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, again))
    assert not np.allclose(one[0], other[0])
    assert one[0].min() >= 0
    assert one[0].max() <= 1


def test_normalise_ends_of_the_range():
    ends = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(normalisation("minus_one_one")(ends), [-1, 0, 1])
    np.testing.assert_allclose(normalisation("unit")(ends), [0, 0.5, 1])
    with pytest.raises(InputError, match="did you mean 'unit'"):
        normalisation("units")


def test_wrong_range_is_one_clear_error():
    with pytest.raises(InputError, match=r"augment.shift: 2.0 given, 0 to 1 wanted"):
        Augmentation(shift=2.0)
    with pytest.raises(InputError, match=r"augment.zoom: 1.0 given"):
        Augmentation(zoom=1.0)
