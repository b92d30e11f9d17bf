"""Files of every kind, read as one sees them: against the pixels that were written into them."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxattn.data import images
from jaxattn.errors import InputError

SIZE = (48, 64)  # height and width

#: How the pixels must be stored for EXIF's orientation to turn them upright.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.fixture
def upright():
    """A smooth picture without symmetry, uint8 ``(*SIZE, 3)``."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(upright, orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    pixels = np.ascontiguousarray(STORED[orientation](upright))
    return encoded(Image.fromarray(pixels), kind, exif=exif, **options)


def difference(found, wanted):
    assert found.shape == wanted.shape
    return np.abs(found.astype(int) - wanted).mean()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(upright, orientation, kind):
    data = turned(upright, orientation, kind)
    assert difference(images.decode_image(data, None), upright) < 2
    for size, centre in (((20, 30), 0.0), ((24, 24), 0.5)):
        wanted = images.resize_image(upright, size, centre)
        assert difference(images.decode_image(data, size, centre), wanted) < 4


@pytest.mark.parametrize("size", [None, 24])
@pytest.mark.parametrize("orientation", STORED)
def test_preparation_keeps_the_image_as_it_is_seen(tmp_path, upright, orientation, size):
    """What evaluation decodes is what prediction reads from the original, to the bit."""
    path = tmp_path / "i.jpg"
    path.write_bytes(turned(upright, orientation))
    data, given, stored, pixels = images.encode_image(path, size)
    np.testing.assert_array_equal(pixels, images.decode_image(data, None))
    assert (given, stored) == ((64, 48), (32, 24) if size else (64, 48))
    for wanted, centre in ((None, 0.0), ((20, 30), 0.0), ((16, 16), 0.5)):
        evaluated = images.decode_image(data, wanted, centre)
        np.testing.assert_array_equal(images.read_image(path, wanted, centre, size), evaluated)
        reference = images.resize_image(upright, wanted or stored[::-1], centre)
        assert difference(evaluated, reference) < 5


def test_an_ordinary_jpeg_is_decoded_as_pillow_does(fake):
    """With nothing to turn or convert: Pillow's scaled decoding and bilinear filter, exactly."""
    data = fake.jpeg(3, 600, 450)
    with Image.open(io.BytesIO(data)) as image:
        _, box = image.draft("RGB", (100, 80))
        wanted = np.asarray(image.resize((100, 80), Image.Resampling.BILINEAR, box))
    np.testing.assert_array_equal(images.decode_image(data, (80, 100)), wanted)


def test_damaged_exif_does_not_cost_the_image(upright):
    data = encoded(Image.fromarray(upright), "JPEG", exif=b"Exif\0\0no TIFF header", quality=98)
    assert difference(images.decode_image(data, None), upright) < 3


def with_alpha(upright, mode):
    """Opaque on the left, transparent over anything on the right."""
    image = Image.fromarray(upright).convert(mode[:-1])
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (32, 0, 64, 48))
    image.putalpha(alpha)
    return image


def over_white(upright):
    wanted = upright.copy()
    wanted[:, 32:] = 255
    return wanted


def grey(upright):
    return np.asarray(Image.fromarray(upright).convert("L"))


KINDS = {
    "palette": (lambda x: encoded(Image.fromarray(x).quantize(256), "PNG"), lambda x: x),
    "one bit": (lambda x: encoded(Image.fromarray(grey(x) > 128), "PNG"), lambda x: None),
    "grey": (lambda x: encoded(Image.fromarray(grey(x)), "PNG"), grey),
    "RGBA": (lambda x: encoded(with_alpha(x, "RGBA"), "PNG"), over_white),
    "LA": (lambda x: encoded(with_alpha(x, "LA"), "PNG"), lambda x: grey(over_white(x))),
    "palette with alpha": (
        lambda x: encoded(with_alpha(x, "RGBA").quantize(256), "PNG"),
        over_white,
    ),
    "16 bits, PNG": (
        lambda x: encoded(Image.fromarray(grey(x).astype(np.uint16) * 257), "PNG"),
        grey,
    ),
    "16 bits, TIFF": (
        lambda x: encoded(Image.fromarray(grey(x).astype(np.uint16) * 257), "TIFF"),
        grey,
    ),
    "CMYK, TIFF": (lambda x: encoded(Image.fromarray(x).convert("CMYK"), "TIFF"), lambda x: x),
    "CMYK, JPEG": (
        lambda x: encoded(Image.fromarray(x).convert("CMYK"), "JPEG", quality=98),
        lambda x: x,
    ),
    "WebP": (lambda x: encoded(Image.fromarray(x), "WEBP", lossless=True), lambda x: x),
    "BMP": (lambda x: encoded(Image.fromarray(x), "BMP"), lambda x: x),
    "animated": (
        lambda x: encoded(
            Image.fromarray(x),
            "GIF",
            save_all=True,
            append_images=[Image.fromarray(255 - x)],
        ),
        lambda x: x,
    ),
    "pages": (
        lambda x: encoded(
            Image.fromarray(x), "TIFF", save_all=True, append_images=[Image.new("1", (9, 9))]
        ),
        lambda x: x,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image(upright, kind):
    write, expect = KINDS[kind]
    found = images.decode_image(write(upright), None)
    wanted = expect(upright)
    if wanted is None:
        wanted = np.where(grey(upright) > 128, 255, 0)
    wanted = np.broadcast_to(wanted[..., None] if wanted.ndim == 2 else wanted, found.shape)
    assert found.dtype == np.uint8
    assert difference(found, wanted) < 6  # a palette of 256 colours is coarse
    small = images.resize_image(found, (20, 30))
    # A JPEG may be decoded at half its size.
    assert difference(images.decode_image(write(upright), (20, 30)), small) < (
        3 if kind == "CMYK, JPEG" else 1e-9
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "given"),
    [
        (b"", "an empty file"),
        (b"ISIC_0000000 is not here", "an unknown format"),
        ("truncated", "cannot be decoded"),
        ("EPS", "an unknown format"),
        ("float", "floating-point pixels"),
        ("large", "cannot be decoded .100x100, over 5000 pixels"),
        ("folder", "a folder"),
        ("missing", "no such file"),
    ],
)
def test_what_cannot_be_read_is_one_error(tmp_path, fake, monkeypatch, content, given):
    path = tmp_path / "i.jpg"
    if content == "truncated":
        path.write_bytes(fake.jpeg(0)[:-200])
    elif content == "EPS":
        Image.new("RGB", (4, 4)).save(path, "EPS")
    elif content == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path, "TIFF")
    elif content == "large":
        Image.new("RGB", (100, 100)).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    elif content == "folder":
        path.mkdir()
    elif content != "missing":
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"i\.jpg: expected an image, got .*{given}"):
        images.read_image(path, (8, 8))


def test_twenty_megapixels(tmp_path):
    path = tmp_path / "i.jpg"
    Image.linear_gradient("L").resize((5472, 3648)).save(path, quality=80)
    found = images.read_image(path, (64, 64))
    wanted = np.asarray(Image.linear_gradient("L").resize((64, 64)))
    assert difference(found, np.stack([wanted] * 3, -1)) < 2
