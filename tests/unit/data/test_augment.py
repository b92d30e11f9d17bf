import colorsys
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.applications.imagenet_utils import preprocess_input
from keras.src.legacy.preprocessing.image import apply_affine_transform
from ml_collections import ConfigDict

from jaxattn.config import base
from jaxattn.data.augment import (
    GREY,
    NORMALISATIONS,
    Augmentation,
    augment,
    bilinear,
    draw,
    move_pixels,
    turn_hue,
)
from jaxattn.errors import InputError

EVERYTHING = Augmentation(180.0, 0.1, 5.0, 0.1, True, True, True, 0.2, 0.2, 0.2, 0.1, 0.2)


def images(count=4, height=12, width=12, seed=0):
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
    ranges = Augmentation(180.0, 0.2, 10.0, 0.2, True, True)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras calls SciPy by its old name
def test_moves_are_those_of_keras():
    """The whole move, edges included, against Keras' own with the same numbers."""
    given = images(8, 16, 16)
    ranges = Augmentation(180.0, (0.1, 0.3), 20.0, 0.3, True, True, True)
    key = jax.random.key(5)
    pixels, _ = augment(key, given, None, ranges)
    moves = draw(jax.random.split(key)[0], 8, 16, 16, ranges)
    moves = jax.tree.map(lambda array: np.asarray(array, np.float64), moves)
    assert set(moves.turns) == {0, 1, 2, 3}
    for i in range(8):
        # Keras reads both pairs as (across, down), whatever its names say.
        theirs = apply_affine_transform(
            np.asarray(given[i], np.float64) / 255,
            theta=np.rad2deg(moves.angle[i]),
            tx=moves.shift[i, 1],
            ty=moves.shift[i, 0],
            shear=np.rad2deg(moves.shear[i]),
            zx=moves.zoom[i, 1],
            zy=moves.zoom[i, 0],
            row_axis=0,
            col_axis=1,
            channel_axis=2,
        )
        theirs = np.rot90(theirs, int(moves.turns[i]))
        theirs = np.flip(theirs, np.flatnonzero(moves.flip[i]))
        np.testing.assert_allclose(pixels[i], theirs, atol=1e-4)


def test_ranges_are_reached_and_kept():
    ranges = Augmentation(rotation=30.0, shift=(0.1, 0.2), shear=4.0, zoom=0.2, quarter_turns=True)
    moves = draw(jax.random.key(0), 3000, 50, 100, ranges)
    for values, limit in (
        (np.rad2deg(moves.angle), 30),
        (np.rad2deg(moves.shear), 4),
        (moves.zoom[:, 0] - 1, 0.2),
        (moves.zoom[:, 1] - 1, 0.2),
        (moves.shift[:, 0], 5),
        (moves.shift[:, 1], 20),
    ):
        assert 0.99 * limit < values.max() <= 1.0001 * limit
        assert -1.0001 * limit <= values.min() < -0.99 * limit
        assert abs(values.mean()) < 0.05 * limit
    assert not moves.flip.any()
    assert (np.bincount(moves.turns) > 675).all()


def test_shifts_alone_are_of_whole_pixels():
    moves = draw(jax.random.key(0), 900, 50, 100, Augmentation(shift=(0.04, 0.01)))
    assert list(np.unique(moves.shift[:, 0])) == [-2, -1, 0, 1, 2]
    steps, counts = np.unique(moves.shift[:, 1], return_counts=True)
    assert list(steps) == [-1, 0, 1]
    assert counts.min() > 250


def by_hand(image, down, across, turns, flip):
    """The same move, pixel by pixel of NumPy."""
    height, width = image.shape[:2]
    rows = np.clip(np.arange(height) + int(down), 0, height - 1)
    columns = np.clip(np.arange(width) + int(across), 0, width - 1)
    image = np.rot90(image[rows][:, columns], int(turns))
    return np.flip(image, [axis for axis in (0, 1) if flip[axis]])


@pytest.mark.parametrize(
    "ranges",
    [
        Augmentation(horizontal_flip=True),
        Augmentation(vertical_flip=True),
        Augmentation(quarter_turns=True),
        Augmentation(shift=(0.25, 0.0)),
        Augmentation(shift=1.0),
        Augmentation(
            shift=(0.1, 0.3), horizontal_flip=True, vertical_flip=True, quarter_turns=True
        ),
    ],
)
def test_flips_turns_and_shifts_alone_keep_values(ranges):
    """Every value is one of the image's own: the bytes, the masks' too, are those of NumPy."""
    given = images(40)
    masks = given[..., 0]
    key = jax.random.key(3)
    pixels, moved = augment(key, given, masks, ranges)
    moves = draw(jax.random.split(key)[0], 40, 12, 12, ranges)
    wanted = np.stack(
        [
            by_hand(np.asarray(image), *shift, turns, flip)
            for image, shift, turns, flip in zip(
                given, moves.shift, moves.turns, moves.flip, strict=True
            )
        ]
    )
    np.testing.assert_allclose(pixels, wanted.astype(np.float32) / 255, rtol=1e-6)
    np.testing.assert_array_equal(moved, wanted[..., 0])
    assert not np.array_equal(wanted, given)


def test_all_eight_symmetries_are_drawn_alike_often():
    ranges = Augmentation(horizontal_flip=True, vertical_flip=True, quarter_turns=True)
    square = jnp.array([[0, 1], [2, 3]], jnp.uint8)
    given = jnp.broadcast_to(square[None], (1600, 2, 2))
    moved = move_pixels(given, draw(jax.random.key(0), 1600, 2, 2, ranges), ranges)
    kinds, counts = np.unique(np.asarray(moved).reshape(1600, 4), axis=0, return_counts=True)
    assert len(kinds) == 8
    assert counts.min() > 150


def test_quarter_turns_want_squares():
    with pytest.raises(InputError, match=r"quarter_turns: expected square images, got 4x6"):
        augment(jax.random.key(0), images(1, 4, 6), None, Augmentation(quarter_turns=True))


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "gamma"])
def test_colour_keeps_what_it_should(field):
    """Brightness and gamma keep ratios, contrast the mean grey, saturation each pixel's grey."""
    given = images(40) // 2 + 60  # far from 0 and 255, so that nothing is cut off
    pixels, _ = augment(jax.random.key(2), given, None, Augmentation(**{field: 0.2}))
    before, after = np.asarray(given, np.float32) / 255, np.asarray(pixels)
    grey = lambda x: x @ np.array(GREY)  # noqa: E731
    if field in ("brightness", "gamma"):
        ratio = after / before if field == "brightness" else np.log(after) / np.log(before)
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


@pytest.mark.parametrize("turns", [0.0, 0.08, -0.3, 0.5])
def test_hue_is_pythons(turns):
    given = np.asarray(images(2, 6, 6), np.float32) / 255
    given[0, 0] = [[0, 0, 0], [1, 1, 1], [0.4, 0.4, 0.4], [1, 0, 0], [0.7, 0.7, 0.2], [0, 0.3, 0.3]]
    ours = turn_hue(jnp.asarray(given), jnp.array([0.0, turns])[::-1, None, None])
    for image, out, turn in zip(given, ours, (turns, 0.0), strict=True):
        for pixel, new in zip(image.reshape(-1, 3), np.asarray(out).reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel.tolist())
            wanted = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            np.testing.assert_allclose(new, wanted, atol=2e-6)


def test_one_hue_is_drawn_for_each_image():
    """Of a share of the circle that is reached and kept; red becomes the hue that was drawn."""
    given = jnp.zeros((600, 2, 2, 3), jnp.uint8).at[..., 0].set(255)
    pixels, _ = augment(jax.random.key(0), given, None, Augmentation(hue=0.1))
    pixels = np.asarray(pixels, np.float64)
    assert np.ptp(pixels, axis=(1, 2)).max() == 0
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels[:, 0, 0]])
    hues = (hues + 0.5) % 1 - 0.5
    assert -0.1001 <= hues.min() < -0.099
    assert 0.099 < hues.max() <= 0.1001


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
    np.testing.assert_allclose(NORMALISATIONS["minus_one_one"](ends), [-1, 0, 1])
    np.testing.assert_allclose(NORMALISATIONS["unit"](ends), [0, 0.5, 1])
    np.testing.assert_allclose(NORMALISATIONS["bgr_255"](ends), [255, 127.5, 0])
    with pytest.raises(InputError, match="did you mean 'unit'"):
        NORMALISATIONS["units"]


@pytest.mark.parametrize(
    ("name", "mode"), [("minus_one_one", "tf"), ("caffe", "caffe"), ("imagenet", "torch")]
)
def test_normalisations_are_those_of_keras(name, mode):
    given = images()
    theirs = preprocess_input(np.asarray(given, np.float32), mode=mode)
    ours = NORMALISATIONS[name](given.astype(jnp.float32) / 255)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_yan_normalisation_centres_the_mean_colour():
    """Yan et al. 2019, section 3.1: a pixel one deviation above the mean is 1 in each channel."""
    pixel = jnp.array([0.6820 + 0.0840, 0.5312 + 0.1140, 0.4736 + 0.1282])
    np.testing.assert_allclose(NORMALISATIONS["isic2017"](pixel), [1, 1, 1], rtol=1e-4)
    pixel = jnp.array([0.7012 - 0.0942, 0.5517 - 0.1331, 0.4875 - 0.1521])
    np.testing.assert_allclose(NORMALISATIONS["isic2016"](pixel), [-1, -1, -1], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shift": 2.0}, r"augment.shift: expected a number in \[0, 1\], got 2.0"),
        ({"shift": (0.1, -0.1)}, r"augment.shift: expected a number in \[0, 1\], got -0.1"),
        ({"shift": (0.1,)}, r"augment.shift: expected one number or a pair, got \(0.1,\)"),
        ({"zoom": 1.0}, r"augment.zoom: expected less than 1, got 1.0"),
        ({"hue": 0.6}, r"augment.hue: expected a number in \[0, 0.5\], got 0.6"),
        ({"gamma": 1.0}, r"augment.gamma: expected less than 1, got 1.0"),
        ({"shear": 90.0}, r"augment.shear: expected less than 90 degrees, got 90.0"),
    ],
)
def test_wrong_range_is_one_clear_error(fields, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**fields)


def test_a_pair_of_shifts_from_config_and_json():
    config = base()
    config.augment.shift = (0.1, 0.2)
    again = ConfigDict(json.loads(config.to_json()))
    assert Augmentation(**again.augment).shifts == (0.1, 0.2)
