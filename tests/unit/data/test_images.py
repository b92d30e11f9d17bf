"""Encoding and decoding of images and masks, against PIL and against masks drawn by hand."""

import contextlib
import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jaxattn.data import images
from jaxattn.data.sources import attributes
from jaxattn.errors import InputError


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def disc(fake):
    return fake.disc(3)


def palette(disc):
    """A palette file in which index 0 is white: half of the released masks' flavours."""
    image = Image.fromarray(np.where(disc, 0, 1).astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


FLAVOURS = {
    "one bit": Image.fromarray,
    "grey": lambda disc: Image.fromarray(np.where(disc, 255, 0).astype(np.uint8)),
    "palette, index 0 is white": palette,
    "colour": lambda disc: Image.fromarray(np.where(disc, 255, 0).astype(np.uint8)).convert("RGB"),
    "with alpha": lambda disc: Image.fromarray(np.where(disc, 255, 0).astype(np.uint8)).convert(
        "RGBA"
    ),
    "16 bits": lambda disc: Image.fromarray(np.where(disc, 65535, 0).astype(np.uint16)),
    "soft edge": lambda disc: Image.fromarray(np.where(disc, 140, 110).astype(np.uint8)),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_masks_of_every_flavour_become_0_and_255(tmp_path, disc, flavour):
    path = tmp_path / "mask.png"
    FLAVOURS[flavour](disc).save(path)
    data = images.encode_mask(path, tmp_path / "image.jpg", (60, 45), (60, 45))
    with Image.open(io.BytesIO(data)) as stored:
        assert (stored.format, stored.mode) == ("PNG", "L")
    np.testing.assert_array_equal(decoded(data), np.where(disc, 255, 0))
    np.testing.assert_array_equal(images.decode_mask(data, None), disc.astype(np.uint8))


def test_masks_of_another_size_and_the_same_aspect_are_resized(tmp_path, disc):
    path = tmp_path / "mask.png"
    Image.fromarray(disc).resize((30, 23)).save(path)  # 22.5 rounded
    data = images.encode_mask(path, tmp_path / "image.jpg", (60, 45), (60, 45))
    assert decoded(data).shape == (45, 60)
    assert np.mean((decoded(data) > 0) != disc) < 0.05


def test_masks_of_another_aspect_are_refused_by_both_names(tmp_path, disc):
    path = tmp_path / "mask.png"
    Image.fromarray(disc.T).save(path)
    with pytest.raises(
        InputError, match=r"mask\.png: expected .* image .*i\.jpg \(60x45\), got 45x60"
    ):
        images.encode_mask(path, tmp_path / "i.jpg", (60, 45), (60, 45))


def test_masks_of_0_and_1_are_refused_rather_than_read_as_empty(tmp_path, disc):
    path = tmp_path / "mask.png"
    Image.fromarray(disc.astype(np.uint8)).save(path)
    with pytest.raises(
        InputError,
        match=r"mask\.png: expected black and white, got a brightest pixel of 1 out of 255",
    ):
        images.encode_mask(path, tmp_path / "i.jpg", (60, 45), (60, 45))


@pytest.mark.parametrize("content", [b"", b"text", "half"])
def test_damaged_files_are_named(tmp_path, fake, disc, content):
    image, mask = tmp_path / "i.jpg", tmp_path / "m.png"
    Image.fromarray(disc).save(mask)
    whole = {image: fake.jpeg(0), mask: mask.read_bytes()}
    for path, data in whole.items():
        path.write_bytes(data[: len(data) // 2] if content == "half" else content)
    with pytest.raises(
        InputError, match=r"i\.jpg: expected a complete image, got .* cannot be decoded"
    ):
        images.encode_image(image, None)
    with pytest.raises(
        InputError, match=r"i\.jpg: expected a complete image, got .* cannot be decoded"
    ):
        images.encode_image(image, 10)
    with pytest.raises(
        InputError, match=r"m\.png: expected a complete image, got .* cannot be decoded"
    ):
        images.encode_mask(mask, image, (60, 45), (60, 45))


@pytest.mark.parametrize("read", [images.read_mask, attributes.read_superpixels])
def test_a_png_that_declares_two_gigabytes_takes_no_more_than_it_holds(tmp_path, disc, read):
    path = tmp_path / "m.png"
    Image.fromarray(disc).save(path)
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT") - 4
    data[place : place + 4] = b"\x7f\xff\xff\xff"  # the chunk's length
    path.write_bytes(data)
    tracemalloc.start()
    with contextlib.suppress(InputError):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_what_is_no_jpeg_is_stored_without_loss(tmp_path, fake, kind):
    pixels = decoded(fake.jpeg(4))
    path = tmp_path / f"i.{kind.lower()}"
    Image.fromarray(pixels).save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    data, given, stored, seen = images.encode_image(path, None)
    assert (given, stored, Image.open(io.BytesIO(data)).format) == ((60, 45), (60, 45), "PNG")
    assert (data == path.read_bytes()) == (kind == "PNG")  # an ordinary PNG is kept as it is
    np.testing.assert_array_equal(seen, pixels)
    np.testing.assert_array_equal(images.decode_image(data, None), pixels)
    assert images.encode_image(path, 15).size == (20, 15)


def test_other_formats_are_refused(tmp_path, disc):
    path = tmp_path / "i.jpg"
    Image.fromarray(disc).save(path, "GIF")
    with pytest.raises(InputError, match="expected a complete image"):
        images.encode_image(path, None)


def test_the_size_of_the_originals(tmp_path, fake):
    path = tmp_path / "i.jpg"
    path.write_bytes(fake.jpeg(1, 600, 450))
    assert images.encode_image(path, None)[:3] == (path.read_bytes(), (600, 450), (600, 450))
    for size in (450, 1000):  # never enlarged, and not encoded a second time
        assert images.encode_image(path, size)[0] == path.read_bytes()
    data, given, stored, _ = images.encode_image(path, 90)
    assert (given, stored) == ((600, 450), (120, 90))
    with Image.open(path) as image:
        reference = np.asarray(image.resize((120, 90), Image.Resampling.LANCZOS), np.float32)
    assert decoded(data).shape == (90, 120, 3)
    assert np.abs(decoded(data) - reference).mean() < 2


def test_shrinking_does_not_alias(tmp_path):
    # A checkerboard of single pixels is grey from afar; nearest or plain bilinear would alternate.
    board = np.indices((480, 640)).sum(0) % 2 * 255
    path = tmp_path / "i.jpg"
    Image.fromarray(board.astype(np.uint8)).convert("RGB").save(path, quality=100, subsampling=0)
    small = decoded(images.encode_image(path, 50)[0]).astype(float)
    assert np.abs(small - 127.5).max() < 8


def test_decoding_squashes_to_height_and_width(fake):
    data = fake.jpeg(2, 600, 450)
    native = images.decode_image(data, None)
    np.testing.assert_array_equal(native, decoded(data))
    small = images.decode_image(data, (40, 100))
    assert (small.shape, small.dtype) == ((40, 100, 3), np.uint8)
    reference = Image.fromarray(native).resize((100, 40), Image.Resampling.BILINEAR)
    assert np.abs(small.astype(float) - np.asarray(reference)).mean() < 2


def test_grey_images_decode_to_three_channels(fake):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(fake.jpeg(2))).convert("L").save(buffer, "JPEG")
    grey = decoded(buffer.getvalue())
    np.testing.assert_array_equal(
        images.decode_image(buffer.getvalue(), None), np.stack([grey] * 3, -1)
    )


def test_decoded_masks_stay_binary(tmp_path, fake):
    disc = fake.disc(5, 600, 450)
    path = tmp_path / "mask.png"
    Image.fromarray(disc).save(path)
    data = images.encode_mask(path, path, (600, 450), (120, 90))
    mask = images.decode_mask(data, (20, 50))
    assert (mask.shape, mask.dtype) == ((20, 50), np.uint8)
    assert set(np.unique(mask)) == {0, 1}
    assert mask.mean() == pytest.approx(disc.mean(), abs=0.02)


@pytest.mark.parametrize("size", [(256, 256), (60, 90)])
def test_the_middle_is_cut_out_of_image_and_mask_alike(size):
    """Yan et al. 2019: a square of 0.8 of the shorter side, also where JPEG shrinks beforehand."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    smooth = coarse.resize((600, 450), Image.Resampling.BICUBIC)
    jpeg, png = io.BytesIO(), io.BytesIO()
    smooth.save(jpeg, "JPEG", quality=98)
    mask = smooth.convert("L").point(lambda value: 255 * (value > 128))
    mask.save(png, "PNG")
    box = (120, 45, 480, 405)  # 360 by 360 of 600 by 450
    ours = images.decode_image(jpeg.getvalue(), size, 0.8)
    wanted = np.asarray(smooth.crop(box).resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - wanted).mean() < 2
    wanted = np.asarray(mask.crop(box).resize(size[::-1], Image.Resampling.NEAREST)) > 127
    np.testing.assert_array_equal(images.decode_mask(png.getvalue(), size, 0.8), wanted)


def test_resizing_by_nearest_neighbour_is_keras_own_and_bilinear_is_of_four_pixels():
    """Half-pixel centres; the four pixels around each, however far the image shrinks."""
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    nearest = images.resize_image(pixels, (10, 16), resize="nearest")
    rows, columns = ((np.arange(n) + 0.5) * m // n for n, m in ((10, 45), (16, 60)))
    np.testing.assert_array_equal(nearest, pixels[np.ix_(rows.astype(int), columns.astype(int))])
    bilinear = images.resize_image(pixels, (10, 13), resize="bilinear").astype(float)
    y, x = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in ((10, 45), (13, 60)))
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, across = (y - top)[:, None, None], (x - left)[None, :, None]
    corner = pixels.astype(float)
    wanted = (
        (1 - down) * (1 - across) * corner[np.ix_(top, left)]
        + (1 - down) * across * corner[np.ix_(top, left + 1)]
        + down * (1 - across) * corner[np.ix_(top + 1, left)]
        + down * across * corner[np.ix_(top + 1, left + 1)]
    )
    np.testing.assert_allclose(bilinear, wanted, atol=1.0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for resize in images.RESIZE:
        decoded = images.decode_image(buffer.getvalue(), (10, 13), 0.8, resize=resize)
        again = images.resize_image(pixels, (10, 13), 0.8, resize)
        np.testing.assert_array_equal(decoded, again)
