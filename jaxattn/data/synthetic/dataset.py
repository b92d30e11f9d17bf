"""The default data set: synthetic dermoscopic images, rendered on access, a function of the seed.

A stand-in for HAM10000 (Tschandl et al., 2018): the same seven classes, several images per lesion,
lesion masks, metadata, and on request the same class imbalance.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from jaxattn.data.dataset import COLUMNS, Dataset, Example, height_width
from jaxattn.data.synthetic import rendering
from jaxattn.errors import invalid

CLASS_NAMES = tuple(rendering.APPEARANCES)

#: Images per class in HAM10000 (Tschandl et al., 2018, Table 1).
HAM10000_COUNTS: Mapping[str, int] = {
    "akiec": 327,
    "bcc": 514,
    "bkl": 1099,
    "df": 115,
    "mel": 1113,
    "nv": 6705,
    "vasc": 142,
}

# Images per lesion, repeated within each class: 1.75 on average, 4 lesions.
_IMAGES_PER_LESION = (1, 2, 1, 3)
_LESION_CYCLE = np.repeat(np.arange(len(_IMAGES_PER_LESION)), _IMAGES_PER_LESION)
# Each class gets this many images before HAM10000's proportions apply, so that a rare class has
# enough lesions to be split into training, validation and test.
_SURE_IMAGES = len(_LESION_CYCLE)

_MALIGNANT = ("akiec", "bcc", "mel")
_DX_TYPES = ("histo", "follow_up", "consensus", "confocal")
_LOCALIZATIONS = (
    "abdomen", "back", "chest", "face", "foot", "hand", "lower extremity", "neck", "scalp",
    "trunk", "upper extremity", "",
)  # fmt: skip

# Part of the seed of each random stream.
_LESION_STREAM, _VIEW_STREAM, _METADATA_STREAM = range(3)


def load(
    num_images: int = 4200,
    image_size: int | tuple[int, int] = 64,
    seed: int = 0,
    imbalanced: bool = False,
) -> Dataset:
    """The synthetic data set; images are rendered on access.

    Image i is a function of ``seed``, i and ``imbalanced`` alone: a larger data set begins with the
    smaller one, and another size shows the same pictures. NumPy's cosine may differ in the last bit
    between processors; then a rare pixel differs by one grey level.

    Args:
        num_images: Number of images, at least one per class (7).
        image_size: Height and width in pixels, each at least 32. A rectangle shows the middle of
            the square image.
        seed: At least 0; another seed gives other lesions.
        imbalanced: Whether classes have HAM10000's proportions (with at least 7 images of 4
            lesions each, if ``num_images`` allows) instead of equal shares.

    Raises:
        InputError: An argument is out of range.
    """
    shape = height_width(image_size)
    for name, value, least in (
        ("num_images", num_images, len(CLASS_NAMES)),
        ("image_size", min(shape), 32),
        ("seed", seed, 0),
    ):
        if value < least:
            raise invalid(f"dataset.{name}", f"at least {least}", value)
    weights = np.array([HAM10000_COUNTS[name] if imbalanced else 1 for name in CLASS_NAMES])
    labels = _labels(num_images, weights)
    lesions = _lesions(labels)
    return Dataset(
        name="synthetic",
        class_names=CLASS_NAMES,
        table=_table(labels, lesions, seed),
        records=Renderings(labels, lesions, shape, seed),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Renderings(Sequence[Example]):
    """Renders image i on access.

    Attributes:
        labels: Class of each image, int32 ``(N,)``.
        lesions: Number of each image's lesion, int64 ``(N,)``.
        shape: Height and width in pixels.
        seed: Seed of the data set.
    """

    labels: Int[np.ndarray, " N"]
    lesions: Int[np.ndarray, " N"]
    shape: tuple[int, int]
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index):
        i = range(len(self))[operator.index(index)]
        image, mask = rendering.render(
            rendering.APPEARANCES[CLASS_NAMES[self.labels[i]]],
            lesion=np.random.default_rng((self.seed, _LESION_STREAM, self.lesions[i])),
            view=np.random.default_rng((self.seed, _VIEW_STREAM, i)),
            image_size=max(self.shape),
        )
        top, left = ((max(self.shape) - side) // 2 for side in self.shape)
        part = slice(top, top + self.shape[0]), slice(left, left + self.shape[1])
        return Example(image=image[part], mask=mask[part])


def _labels(num_images: int, weights: Int[np.ndarray, " C"]) -> Int[np.ndarray, " N"]:
    """Class of each image: first the sure images in turn, then by the Sainte-Laguë method.

    The method gives each next image to the class with the largest quotient
    ``weight / (2 * images so far + 1)``; counts of any prefix are as near to the proportions as
    whole numbers can be.
    """
    places, classes = np.meshgrid(np.arange(num_images), np.arange(len(weights)), indexing="ij")
    order = np.where(
        places < _SURE_IMAGES, places - _SURE_IMAGES, (2 * places + 1) / weights[classes]
    )
    first = np.lexsort((classes.ravel(), order.ravel()))[:num_images]
    return classes.ravel()[first].astype(np.int32)


def _lesions(labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Number of each image's lesion, unique over all classes, stable as images are added."""
    lesions = np.empty(len(labels), np.int64)
    for label in range(len(CLASS_NAMES)):
        (images,) = np.nonzero(labels == label)
        cycle, place = np.divmod(np.arange(len(images)), _SURE_IMAGES)
        nth = cycle * len(_IMAGES_PER_LESION) + _LESION_CYCLE[place]
        lesions[images] = nth * len(CLASS_NAMES) + label
    return lesions


def _table(
    labels: Int[np.ndarray, " N"], lesions: Int[np.ndarray, " N"], seed: int
) -> dict[str, np.ndarray]:
    """The table; patient data are drawn once per lesion."""
    # One row of draws per lesion, so that further lesions do not change the first ones.
    rng = np.random.default_rng((seed, _METADATA_STREAM))
    draws = rng.random((lesions.max() + 1, 5))[lesions].T
    malignant = np.isin(labels, [CLASS_NAMES.index(name) for name in _MALIGNANT])
    # Sum of two uniform draws: most patients are about 50 years old. HAM10000 rounds to 5 years.
    age = np.rint((5 + 40 * (draws[0] + draws[1])) / 5) * 5
    age[draws[1] < 0.01] = np.nan
    columns = {
        "image_id": np.char.mod("SYN_%07d", np.arange(len(labels))),
        "lesion_id": np.char.mod("SYL_%07d", lesions),
        "label": labels,
        "dx_type": np.where(malignant, "histo", _choose(_DX_TYPES, draws[2])),
        "age": age,
        "sex": np.where(draws[3] < 0.01, "", _choose(("female", "male"), draws[3])),
        "localization": _choose(_LOCALIZATIONS, draws[4]),
        "has_mask": np.ones(len(labels)),
    }
    return {name: values.astype(COLUMNS[name]) for name, values in columns.items()}


def _choose(options: Sequence[str], uniform: np.ndarray) -> np.ndarray:
    """One of the options for each uniform draw from [0, 1)."""
    return np.array(options)[(uniform * len(options)).astype(int)]
