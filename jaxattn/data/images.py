"""Image and mask files: checked and encoded in preparation, decoded in training."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxattn.errors import InputError, invalid

#: How pixels are resized, see `decode_image`.
RESIZE = ("antialias", "nearest", "bilinear")

#: Everything that PIL raises for a damaged file (its PNG reader uses SyntaxError and struct's).
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

#: Bytes from which on a file is read only as far as needed.
_LARGE_FILE = 1 << 28

#: What `decode_image` reads. Not all that PIL can: EPS, for one, would start Ghostscript.
FORMATS = (
    *("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF", "PPM"),
    *("DIB", "ICO", "PCX", "PSD", "QOI", "SGI", "TGA"),
)


#: What `encode_image` reads.
SOURCE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


class Encoded(NamedTuple):
    """An image as it is stored.

    Attributes:
        data: JPEG or PNG bytes. Kept bytes keep their EXIF, which `decode_image` heeds.
        given: ``(width, height)`` of the file as the image is seen: turned as EXIF says.
        size: ``(width, height)`` of ``data``, likewise.
        pixels: What ``data`` decodes to, RGB, uint8 ``(H, W, 3)``.
    """

    data: bytes
    given: tuple[int, int]
    size: tuple[int, int]
    pixels: UInt8[np.ndarray, "H W 3"]


def encode_image(path: Path, size: int | None) -> Encoded:
    """Reads an image file, decodes it completely, and shrinks it if asked to.

    The bytes of a JPEG, or of a PNG in 8-bit RGB, are kept where nothing is shrunk. What is shrunk
    is a JPEG of quality 95; other files become a PNG of the pixels of `decode_image`.

    Args:
        path: The file, of one of ``SOURCE_FORMATS``.
        size: Length of the shorter side to shrink to, in pixels; None, or a length that the image
            does not exceed, keeps its size. The aspect ratio is kept.

    Raises:
        InputError: The file cannot be decoded completely, or is of another format.
    """
    try:
        data = path.read_bytes()
        with opened(data, SOURCE_FORMATS) as image:
            given = upright_size(image)
            wanted = _shrunk(given, size)
            plain = image.format == "PNG" and image.mode == "RGB" and _orientation(image) == 1
            if wanted != given:
                data = _small_jpeg(image, wanted)
                return Encoded(data, given, wanted, decode_image(data, None))
            pixels = _upright_rgb(image)
            if not plain and image.format not in ("JPEG", "MPO"):
                data = _png(pixels)
            return Encoded(data, given, wanted, np.asarray(pixels))
    except DECODE_ERRORS as error:
        raise undecodable(path, "image", error) from error


def undecodable(path: Path, kind: str, error: Exception) -> InputError:
    """The error for a file that is damaged or of another kind."""
    return invalid(str(path), f"a complete {kind}", f"a file that cannot be decoded ({error})")


def encode_mask(
    path: Path, image_path: Path, image_size: tuple[int, int], size: tuple[int, int]
) -> bytes:
    """Reads a binary mask in any flavour and writes it as a one-channel PNG of 0 and 255.

    The threshold is on luminance, because some masks are palette files in which index 0 is white.

    Args:
        path: The mask's file.
        image_path: The image's file, for errors.
        image_size: ``(width, height)`` of the image's file; the mask must have its aspect ratio.
        size: ``(width, height)`` to write.

    Returns:
        PNG bytes.

    Raises:
        InputError: The mask cannot be decoded completely, has another aspect ratio than its image,
            or is not black and white.
    """
    binary = read_mask(path)
    check_aspect(binary, path, image_path, image_size)
    return encode_values(np.where(binary, np.uint8(255), np.uint8(0)), size)


def read_mask(path: Path) -> Bool[np.ndarray, "H W"]:
    """Reads a binary mask in any flavour, see `encode_mask`."""
    try:
        with opened(path.read_bytes(), SOURCE_FORMATS) as image:
            file = ImageOps.exif_transpose(image)
            # 16-bit files keep their range: converting to 8 bits would clip, not scale.
            deep = file.mode.startswith("I")
            luminance = np.asarray(file if deep else file.convert("L"))
    except DECODE_ERRORS as error:
        raise undecodable(path, "image", error) from error
    white = 65535 if deep else 255
    binary = luminance > white // 2
    if luminance.any() and not binary.any():
        given = f"a brightest pixel of {luminance.max()} out of {white}"
        raise invalid(str(path), "black and white", given)
    return binary


def check_aspect(
    mask: Shaped[np.ndarray, "H W"], path: Path, image_path: Path, image_size: tuple[int, int]
) -> None:
    """Raises InputError if a mask has another aspect ratio than its image."""
    (height, width), (image_width, image_height) = mask.shape, image_size
    # Rounding to whole pixels changes the difference by at most a quarter of the perimeter.
    if abs(width * image_height - height * image_width) > (image_width + image_height) / 2:
        expected = f"the aspect ratio of its image {image_path} ({image_width}x{image_height})"
        raise invalid(str(path), expected, f"{width}x{height}")


def encode_values(values: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> bytes:
    """Writes small integers as a one-channel PNG of ``size = (width, height)``."""
    return _png(Image.fromarray(resize_values(values, size)))


def resize_values(
    values: UInt8[np.ndarray, "H W"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """Resizes small integers to ``size = (width, height)``, by nearest neighbour."""
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def blank_mask() -> bytes:
    """The PNG of one black pixel, stored for images without a mask."""
    return _png(Image.new("L", (1, 1)))


def decode_image(
    source: bytes | Path,
    size: tuple[int, int] | None,
    centre: float = 0.0,
    prepared_size: int | None = None,
    resize: str = "antialias",
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image to RGB, the one way for training, evaluation and prediction.

    Turned as EXIF says; transparency lies over white; 16 bits are scaled to 8; of several frames or
    pages it is the first. Colour profiles are ignored.

    Args:
        source: A file of ``FORMATS``, or its content.
        size: Height and width to resize to, whatever the aspect ratio; None for the image's own.
        centre: With a size: the square to cut out of the middle first, its side a share of the
            image's shorter side; 0 for the whole image.
        prepared_size: The ``size`` given to `encode_image`, if the image is a data set's original:
            the pixels are those of what it wrote.
        resize: One of ``RESIZE``: ``antialias``, a bilinear filter as wide as the image shrinks;
            ``nearest``, Keras' default (Datta et al. 2021); ``bilinear``, of the four nearest
            pixels, OpenCV's default (Köfler 2023).
    """
    with opened(source, FORMATS) as image:
        given = upright_size(image)
        wanted = _shrunk(given, prepared_size)
        if wanted != given:
            return decode_image(_small_jpeg(image, wanted), size, centre, resize=resize)
        if size is None:
            return np.asarray(_upright_rgb(image))
        if resize == "antialias":
            return np.asarray(_resized(image, size[::-1], Image.Resampling.BILINEAR, 1, centre))
        return resize_image(np.asarray(_upright_rgb(image)), size, centre, resize)


def read_image(
    source: bytes | Path,
    size: tuple[int, int] | None,
    centre: float = 0.0,
    prepared_size: int | None = None,
    resize: str = "antialias",
) -> UInt8[np.ndarray, "H W 3"]:
    """`decode_image` of any file at all, or its content.

    Raises:
        InputError: It cannot be read or decoded completely, or has more than
            ``PIL.Image.MAX_IMAGE_PIXELS`` pixels; says why.
    """
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, Path):
            length = source.stat().st_size
            if not source.is_file():
                raise invalid(name, "an image", "a folder" if source.is_dir() else "no file")
            # Reading all at once is faster, unless it is a film by mistake.
            source = source if length > _LARGE_FILE else source.read_bytes()
        if not source:
            raise invalid(name, "an image", "an empty file")
        return decode_image(source, size, centre, prepared_size, resize)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise invalid(name, "an image", "an unknown format") from error
    except FileNotFoundError as error:
        raise invalid(name, "an image", "no such file") from error
    except Exception as error:  # what PIL raises for a damaged file has no common base
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        given = f"a file that cannot be decoded ({reason.splitlines()[0]})"
        raise invalid(name, "an image", given) from error


def opened(source: bytes | Path, formats: tuple[str, ...]) -> Image.Image:
    """Opens an image; only a JPEG is not decoded yet, as it can be decoded smaller.

    Of a file's content PIL allocates no more than there is; of a file, what it declares.

    Raises:
        DecompressionBombError: It has more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    image = Image.open(file, formats=formats)
    most = Image.MAX_IMAGE_PIXELS
    if most and image.width * image.height > most:  # up to twice as many, PIL only warns
        raise Image.DecompressionBombError(f"{image.width}x{image.height}, over {most} pixels")
    if image.format not in ("JPEG", "MPO"):
        image.load()
    return image


def _orientation(image: Image.Image) -> int:
    """How EXIF says to turn an image, 1 to 8; 1: not at all."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, which says nothing about the pixels
        return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """``(width, height)`` as the image is seen."""
    return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size


def _upright_rgb(image: Image.Image) -> Image.Image:
    """An image as it is seen: turned as EXIF says, 8 bits, transparency over white."""
    if _orientation(image) in range(2, 9):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, of unknown range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)  # PIL would clip to 255, not scale
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels, of unknown range")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Converting an RGB image copies it.
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_image(
    image: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    centre: float = 0.0,
    resize: str = "antialias",
) -> UInt8[np.ndarray, "H W 3"]:
    """Resizes an RGB image like `decode_image`."""
    box = _middle((0, 0, image.shape[1], image.shape[0]), centre)
    source, filters = Image.fromarray(image), Image.Resampling
    if resize == "bilinear":
        extent = Image.Transform.EXTENT
        return np.asarray(source.transform(size[::-1], extent, box, filters.BILINEAR))
    chosen = filters.NEAREST if resize == "nearest" else filters.BILINEAR
    return np.asarray(source.resize(size[::-1], chosen, box))


def decode_mask(
    data: bytes, size: tuple[int, int] | None, centre: float = 0.0
) -> UInt8[np.ndarray, "H W"]:
    """Decodes a mask to {0, 1}, like `decode_image` but by nearest neighbour."""
    return (decode_values(data, size, centre) > 127).astype(np.uint8)


def decode_values(
    data: bytes, size: tuple[int, int] | None, centre: float = 0.0
) -> UInt8[np.ndarray, "H W"]:
    """Decodes what `encode_values` wrote, like `decode_image` but by nearest neighbour."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if size is None:
            return np.asarray(image)
        box = _middle((0, 0, *image.size), centre)
        return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST, box))


def _small_jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    small = _resized(image, size, Image.Resampling.LANCZOS, spare=2)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _resized(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    spare: int,
    centre: float = 0.0,
) -> Image.Image:
    """Decodes at 1/2, 1/4 or 1/8, but at least ``spare`` times the size, and resizes the rest."""
    drafted = None
    if _orientation(image) == 1:  # others are decoded whole: the box below would turn with them
        left, top, right, bottom = _middle((0, 0, *image.size), centre)
        # The image to decode is larger than the part of it that is kept.
        width = math.ceil(spare * size[0] * image.width / (right - left))
        height = math.ceil(spare * size[1] * image.height / (bottom - top))
        drafted = image.draft("RGB", (width, height))
    upright = _upright_rgb(image)
    # Decoding at 1/4 rounds 450 rows up to 113: only the first 112.5 of them are the image.
    box = _middle(drafted[1] if drafted else (0, 0, *upright.size), centre)
    return upright.resize(size, resample, box)


def _middle(box: tuple[Any, ...], centre: float) -> tuple[Any, Any, Any, Any]:
    """The square in the middle of a box, its side ``centre`` of the shorter side; 0: the box."""
    left, top, right, bottom = box
    if centre:
        width, height = right - left, bottom - top
        side = centre * min(width, height)
        left, top = left + (width - side) / 2, top + (height - side) / 2
        right, bottom = left + side, top + side
    return left, top, right, bottom


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _shrunk(given: tuple[int, int], size: int | None) -> tuple[int, int]:
    if size is None or min(given) <= size:
        return given
    scale = size / min(given)
    return round(given[0] * scale), round(given[1] * scale)
