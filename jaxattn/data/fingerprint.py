"""What a data set is, as two checksums: its labels, and its pixels.

``python -m jaxattn.prepare`` writes them beside the records; a run records those it was trained on,
and refuses other data under the same image ids when it goes on or is evaluated.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxattn.errors import invalid
from jaxattn.reading import read_json

FILE = "fingerprint.json"
#: What each checksum stands for, in words.
KINDS = {"labels": "labels or lesions", "pixels": "pixels", "metadata": "ages, sexes or sites"}


def of(class_names: Sequence[str], table: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The checksums of a data set, whatever the order of its rows.

    Args:
        class_names: Names of the classes.
        table: Its columns, see `jaxattn.data.dataset.COLUMNS`.

    Returns:
        SHA-256 of ``labels``, which are image ids, lesion ids and classes; and of ``pixels``, which
        are image ids and hashes of pixels, unless there are none.
    """
    ids, lesions = table["image_id"].tolist(), table["lesion_id"].tolist()
    classes = [class_names[label] for label in table["label"]]
    found = {"labels": _digest(zip(ids, lesions, classes, strict=True))}
    if "pixel_hash" in table:
        found["pixels"] = _digest(zip(ids, table["pixel_hash"].tolist(), strict=True))
    return found


def of_fields(fields: Sequence[str], table: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The checksum of ``metadata``: image ids and some fields; {} without fields.

    It is recorded by runs that see these fields, not by preparation: for others they may change.
    """
    columns = [map(str, table[name].tolist()) for name in ("image_id", *fields)]
    return {"metadata": _digest(zip(*columns, strict=True))} if fields else {}


def check(place: str, expected: Mapping[str, str], given: Mapping[str, str], data: str) -> None:
    """Raises InputError if a checksum that both know differs.

    Args:
        place: Where the expected one comes from.
        expected: Checksums.
        given: Those of the data set.
        data: What the data set is called.
    """
    for kind, words in KINDS.items():
        if kind in expected and kind in given and expected[kind] != given[kind]:
            raise invalid(place, f"the {words} that it recorded", f"other {words} from {data}")


def write(folder: Path, found: Mapping[str, str]) -> None:
    """Writes the checksums into a prepared folder."""
    (folder / FILE).write_text(json.dumps(dict(found), indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, str]:
    """The checksums that preparation wrote into a folder, {} if an older version prepared it.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    found = read_json(path)
    return {kind: found[kind].text() for kind in KINDS if kind in found}


def _digest(rows) -> str:
    lines = sorted("\t".join(row) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
