"""The interface of a data set to the rest of the library."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from jaxattn.errors import invalid

#: The columns of every data set's table and their types.
COLUMNS: Mapping[str, Any] = {
    "image_id": np.str_,
    "lesion_id": np.str_,
    "label": np.int32,  # index into class_names
    # How the diagnosis was confirmed: consensus, follow_up, confocal, histo; '' unknown.
    "dx_type": np.str_,
    "age": np.float32,  # years; NaN where unknown
    "sex": np.str_,  # female, male, '' unknown
    "localization": np.str_,  # part of the body; '' unknown
    "has_mask": np.bool_,
}

#: Kinds of masks, and the field of an `Example` that holds each. The table's boolean column
#: ``has_FIELD`` says which images have one; without that column none has.
MASKS: Mapping[str, str] = {"lesion": "mask", "attributes": "attributes"}


class Example(TypedDict):
    """One decoded image and its masks.

    Attributes:
        image: RGB, uint8 ``(H, W, 3)``.
        mask: uint8 ``(H, W)``, 1 inside the lesion.
        attributes: uint8 ``(H, W)``, one bit per dermoscopic attribute, see
            `jaxattn.data.sources.attributes`.
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
        records: ``records[i]`` decodes record i, an `Example`. Picklable, for loader processes.
            (Annotated loosely: checking the type of an item would decode an image.)
        prepared_size: Length in pixels to which preparation shrank the shorter side; None: not at
            all.
        fingerprint: Checksums of the whole data set as prepared, see `jaxattn.data.fingerprint`;
            {} where there are none.
    """

    name: str
    class_names: tuple[str, ...]
    table: Mapping[str, np.ndarray]
    records: Sequence[Any]
    prepared_size: int | None = None
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table["label"])

    def decoding(self, fields: Collection[str]) -> "Dataset":
        """The same data set, decoding only these fields of masks.

        Records without a method ``decoding`` stay as they are: their masks cost nothing.
        """
        if not hasattr(self.records, "decoding"):
            return self
        return dataclasses.replace(self, records=self.records.decoding(fields))

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int32 ``(N,)``."""
        return self.table["label"]


def height_width(size: Any, field: str = "dataset.image_size") -> tuple[int, int]:
    """Height and width in pixels, given as one number or as a pair.

    Raises:
        InputError: It is neither, or a number is not positive.
    """
    lengths = (size, size) if isinstance(size, int) else size
    if (
        not isinstance(lengths, tuple | list)
        or len(lengths) != 2
        or not all(isinstance(length, int) and length > 0 for length in lengths)
    ):
        raise invalid(field, "one or two lengths in pixels", size)
    return lengths[0], lengths[1]
