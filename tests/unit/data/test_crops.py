import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.data.crops import CELL, COUNTS, STRATEGIES, Crops, corners
from jaxattn.errors import InputError

IMAGE, CROP = (450, 600), (224, 224)

#: By hand: centres from 112 to 338 down and from 112 to 488 across, cut down to whole pixels, less
#: 112. Thirds of the ways are 187.33 and 262.67, 237.33 and 362.67.
BY_HAND = {
    4: [(0, 0), (0, 376), (226, 0), (226, 376)],
    5: [(0, 0), (0, 376), (226, 0), (226, 376), (113, 188)],
    9: [(y, x) for y in (0, 113, 226) for x in (0, 188, 376)],
    16: [(y, x) for y in (0, 75, 150, 226) for x in (0, 125, 250, 376)],
}


@pytest.mark.parametrize("count", BY_HAND)
def test_positions_by_hand(count):
    assert [tuple(each) for each in corners(count, IMAGE, CROP)] == BY_HAND[count]


@pytest.mark.parametrize("image", [IMAGE, (256, 256), (451, 599)])
@pytest.mark.parametrize("count", COUNTS)
def test_crops_lie_in_the_image_and_cover_it(count, image):
    """9 and 16 crops of half the height and three eighths of the width leave no pixel out."""
    crop = (-(-image[0] * 224 // 450), -(-image[1] * 224 // 600))
    shown = np.zeros(image, int)
    for y, x in corners(count, image, crop):
        assert y >= 0
        assert x >= 0
        assert shown[y : y + crop[0], x : x + crop[1]].shape == crop
        shown[y : y + crop[0], x : x + crop[1]] += 1
    assert shown.all() == (count in (9, 16))


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape, np.float32))


def test_ordered_crops_are_those_places_in_training_and_evaluation():
    images = pixels(2, 45, 60, 3)
    crops = Crops("ordered", size=(22, 24), count=9, dropout=0.0)
    cut = crops.evaluation(images)
    assert cut.shape == (2, *crops.input_shape(45, 60))
    for n, (y, x) in enumerate(corners(9, (45, 60), (22, 24))):
        np.testing.assert_array_equal(cut[:, n], images[:, y : y + 22, x : x + 24])
    np.testing.assert_array_equal(crops.training(jax.random.key(0), images)[0], cut)


def test_patch_dropout_blackens_whole_crops_at_its_rate():
    images = pixels(600, 4, 4, 3) + 0.1
    crops = Crops("ordered", size=2, count=4, dropout=0.3)
    cut, _ = crops.training(jax.random.key(0), images)
    whole = crops.evaluation(images)
    black = (cut == 0).all((2, 3, 4))
    np.testing.assert_array_equal(cut, jnp.where(black[..., None, None, None], 0, whole))
    # 2,400 draws at .3: within four standard deviations of 720.
    assert abs(int(black.sum()) - 720) < 4 * (2400 * 0.3 * 0.7) ** 0.5
    assert 0.05 < np.corrcoef(black.T)[0, 1] + 0.15 < 0.25  # crops of an image independently


def test_multi_trains_on_any_crop_and_evaluates_ordered_ones():
    rows, columns = np.mgrid[:6, :8]
    image = jnp.asarray(np.stack([rows, columns, 0 * rows], -1), jnp.float32)
    crops = Crops("multi", size=(4, 5), count=4)
    cut, _ = crops.training(jax.random.key(1), jnp.broadcast_to(image, (400, 6, 8, 3)))
    assert cut.shape == (400, 4, 5, 3)
    places = {tuple(place) for place in np.asarray(cut[:, 0, 0, :2]).astype(int).tolist()}
    assert places == {(y, x) for y in range(3) for x in range(4)}
    for one in np.asarray(cut[:20]):
        y, x, _ = one[0, 0].astype(int)
        np.testing.assert_array_equal(one, image[y : y + 4, x : x + 5])
    folded = crops.evaluation(image[None])
    ordered = Crops("ordered", size=(4, 5), count=4).evaluation(image[None])
    np.testing.assert_array_equal(folded, ordered[0])


def test_averaging_and_voting():
    probabilities = jnp.array(
        [[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.0, 1.0, 0.0], [0.4, 0.3, 0.3]] + [[0.0, 0.0, 1.0]] * 4
    )
    average = Crops("multi", count=4).combine(probabilities)
    np.testing.assert_allclose(average, [[0.35, 0.525, 0.125], [0, 0, 1]], atol=1e-6)
    votes = Crops("multi", count=4, vote=True).combine(probabilities)
    np.testing.assert_allclose(votes, [[0.75, 0.25, 0], [0, 0, 1]])
    np.testing.assert_array_equal(Crops("ordered", count=4).combine(probabilities), probabilities)


def test_downsampling_and_the_centre_are_pillows():
    """Antialiased bilinear, as Pillow's, of the whole image and of its middle 85 per cent."""
    from PIL import Image

    bytes_ = np.random.default_rng(0).integers(0, 256, (45, 60), np.uint8)
    images = jnp.broadcast_to(jnp.asarray(bytes_, jnp.float32)[None, ..., None], (1, 45, 60, 3))
    middle = (4, 3, 4 + 51, 3 + 38)  # left, top, right, below: of 60 and 45, 51 and 38
    for strategy, box in (("downsampling", (0, 0, 60, 45)), ("single", middle)):
        ours = Crops(strategy, size=20).evaluation(images)[0, ..., 0]
        pillow = Image.fromarray(bytes_.astype(np.float32)).crop(box).resize((20, 20), 2)
        np.testing.assert_allclose(ours, np.asarray(pillow), atol=0.01)


def test_single_reads_parts_of_the_published_sizes():
    """Of an image whose pixels say where they lie, a part's ends say what was drawn."""
    rows, columns = np.mgrid[:90, :120].astype(np.float32) + 0.5
    image = jnp.asarray(np.stack([rows, columns, 0 * rows], -1))
    crops = Crops("single", size=8, least_area=0.2)
    cut, _ = crops.training(jax.random.key(0), jnp.broadcast_to(image, (300, 90, 120, 3)))
    cut = np.asarray(cut)
    height = (cut[:, 5, 4, 0] - cut[:, 2, 4, 0]) / 3 * 8
    width = (cut[:, 4, 5, 1] - cut[:, 4, 2, 1]) / 3 * 8
    area, ratio = height * width / (90 * 120), width / height
    assert area.min() > 0.19
    assert area.max() > 0.8
    assert ratio.min() > 0.72
    assert ratio.max() < 1.39
    assert ratio.std() > 0.1
    top = cut[:, 3:5, 4, 0].mean(1) - height / 2
    assert top.min() > -0.1
    assert (top + height).max() < 90.1


def test_weights_of_crops_lie_where_the_crops_are():
    """Of two by two crops that overlap, each quarter is of one and the middle of all."""
    crops = Crops("ordered", size=5 * CELL, count=4)
    weights = jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1)
    placed = crops.on_image(weights, 8 * CELL, 8 * CELL)
    assert placed.shape == (1, 1, 8, 8)
    corners_of = [float(placed[0, 0, y, x]) for y in (0, 7) for x in (0, 7)]
    assert corners_of == [1, 2, 3, 4]
    assert float(placed[0, 0, 4, 4]) == 2.5
    assert float(placed[0, 0, 0, 4]) == 1.5
    apart = Crops("ordered", size=2 * CELL, count=4).on_image(weights, 8 * CELL, 8 * CELL)
    assert float(apart[0, 0, 4, 4]) == 0


def test_maps_of_separate_crops_keep_their_inner_places():
    crops = Crops("multi", size=4 * CELL, count=4)
    maps = jnp.arange(2 * 4 * 3 * 2 * 2, dtype=jnp.float32).reshape(8, 3, 2, 2)
    placed = crops.on_image(maps, 8 * CELL, 8 * CELL)
    blocks = jnp.repeat(jnp.repeat(maps.reshape(2, 2, 2, 3, 2, 2), 2, 4), 2, 5)
    wanted = blocks.transpose(0, 3, 1, 4, 2, 5).reshape(2, 3, 8, 8)
    np.testing.assert_array_equal(placed, wanted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shapes_are_as_announced(strategy):
    images = pixels(3, 16, 20, 3)
    crops = Crops(strategy, size=(8, 10), count=9)
    shape = crops.input_shape(16, 20)
    assert crops.training(jax.random.key(0), images)[0].shape == (3, *shape)
    count = 27 if strategy == "multi" else 3
    assert crops.evaluation(images).shape == (count, *shape)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_are_cut_like_their_images(strategy):
    """A mask that is a channel of its image still is after the cut."""
    images = pixels(4, 24, 20, 3)
    crops = Crops(strategy, size=(8, 10), count=4, dropout=0.5)
    cut, masks = crops.training(jax.random.key(1), images, images[..., 1])
    np.testing.assert_allclose(masks, cut[..., 1], atol=1e-6)
    np.testing.assert_allclose(crops.training(jax.random.key(1), images)[0], cut, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "order"}, "did you mean 'ordered'"),
        ({"count": 7}, "crops.count: expected one of .*, got 7"),
        ({"dropout": 1.5}, "crops.dropout: expected a number in .*, got 1.5"),
        ({"size": (0, 5)}, "crops.size: expected one or two lengths"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Crops(**arguments)


def test_crops_larger_than_the_image():
    with pytest.raises(InputError, match="crops.size: expected at most 64x64, got 224x224"):
        Crops("ordered").input_shape(64, 64)
