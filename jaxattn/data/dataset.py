"""The form that every data set takes for the rest of the library."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from jaxattn.errors import invalid

#: The columns of every data set's table, and their types.
COLUMNS: Mapping[str, Any] = {
    "image_id": np.str_,
    "lesion_id": np.str_,
    "label": np.int32,  # index into class_names
    "dx_type": np.str_,  # how confirmed: consensus, follow_up, confocal, histo; '' unknown
    "age": np.float32,  # years; NaN where unknown
    "sex": np.str_,  # female, male, '' unknown
    "localization": np.str_,  # part of the body; '' unknown
    "has_mask": np.bool_,
}


#: The masks that an image may have, and the field of an `Example` that holds each. The table's
#: column ``has_FIELD`` says which images have one; without such a column, none has.
MASKS: Mapping[str, str] = {"lesion": "mask", "attributes": "attributes"}


class Example(TypedDict):
    """One decoded image and its masks.

    ``image`` is uint8 ``(H, W, 3)``, RGB; ``mask`` uint8 ``(H, W)``, 1 where the lesion is;
    ``attributes`` uint8 ``(H, W)``, one bit for each dermoscopic attribute.
    """

    image: np.ndarray
    mask: NotRequired[np.ndarray]
    attributes: NotRequired[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Random access to decoded images, and all metadata without touching an image.

    Attributes:
        name: Name of the data set.
        class_names: One name per class; a label is an index into it.
        table: The columns of ``COLUMNS``, each of shape ``(N,)``; row i describes record i.
        records: ``records[i]`` decodes record i, an `Example`. Must be picklable, for loader
            processes. (Annotated loosely: checking the type of an item would decode an image.)
    """

    name: str
    class_names: tuple[str, ...]
    table: Mapping[str, np.ndarray]
    records: Sequence[Any]

    def __len__(self) -> int:
        return len(self.table["label"])

    def decoding(self, fields: Collection[str]) -> "Dataset":
        """The same data set, whose records decode no masks but those of these fields.

        Records that get masks for nothing, and have no method ``decoding``, stay as they are.
        """
        if not hasattr(self.records, "decoding"):
            return self
        return dataclasses.replace(self, records=self.records.decoding(fields))

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int32 ``(N,)``."""
        return self.table["label"]


def height_width(size: Any, field: str = "dataset.image_size") -> tuple[int, int]:
    """Height and width in pixels, given as one length or as a pair.

    Raises:
        InputError: It is neither, or a length is not positive.
    """
    lengths = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(lengths, tuple | list)
        or len(lengths) != 2
        or not all(isinstance(length, int) and length > 0 for length in lengths)
    ):
        raise invalid(field, "one or two lengths in pixels", size)
    return lengths[0], lengths[1]
