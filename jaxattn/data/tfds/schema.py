"""What describes the records of a prepared folder, read as data: no name in it is imported.

TFDS itself imports the Python class that ``features.json`` names for each feature, so that a folder
from elsewhere could run code. Here the names are only compared with those that are known.
"""

import dataclasses
import itertools
import re
from pathlib import Path

from jaxattn.data.sources.source_index import IMAGES
from jaxattn.errors import invalid
from jaxattn.reading import Node, read_json, reading

INFO = "dataset_info.json"
FEATURES = "features.json"
LABELS = "label.labels.txt"
SPLIT = "train"
#: Features that TFDS has, by the class that describes them, and what each is called in the file.
CONNECTORS = {
    f"tensorflow_datasets.core.features.{module}": kind
    for module, kind in {
        "features_dict.FeaturesDict": "featuresDict",
        "image_feature.Image": "image",
        "text_feature.Text": "text",
        "scalar.Scalar": "tensor",
        "tensor_feature.Tensor": "tensor",
        "class_label_feature.ClassLabel": "classLabel",
    }.items()
}
#: The kind of each feature that a record must have.
REQUIRED = {
    "image": "image",
    "mask": "image",
    "has_mask": "tensor",
    "label": "classLabel",
    "image_id": "text",
    "lesion_id": "text",
    "dx_type": "text",
    "age": "tensor",
    "sex": "text",
    "localization": "text",
}


@dataclasses.dataclass(frozen=True)
class Schema:
    """A prepared data set.

    Attributes:
        name: Of the data set.
        class_names: In the order of the labels.
        shards: The files of records, and how many each holds.
    """

    name: str
    class_names: tuple[str, ...]
    shards: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return sum(count for _, count in self.shards)


def read(folder: Path) -> Schema:
    """Reads the description of a prepared folder; opens no record.

    Raises:
        InputError: The folder holds none, or one that this library did not write.
    """
    if not (folder / INFO).is_file():
        given = "none"
        if any(path.suffix.lower() in IMAGES for path in itertools.islice(folder.rglob("*"), 999)):
            prepared = "python -m jaxattn.prepare --source=DIR --out=DIR prepares them"
            given = f"images; {prepared}, python -m jaxattn.predict classifies them as they are"
        raise invalid(str(folder), f"a folder of python -m jaxattn.prepare, with {INFO}", given)
    info = read_json(folder / INFO)
    name = info["name"].text()
    if not re.fullmatch(r"\w[\w-]*", name):
        raise info["name"].error("a name of letters, digits and underscores")
    info["fileFormat"].text(("array_record",))
    count = _check_features(read_json(folder / FEATURES))
    return Schema(name, _class_names(folder / LABELS, count), _shards(folder, name, info))


def _check_features(node: Node) -> int:
    """Checks the features of a record; returns the number of classes."""
    features = _described(node, "featuresDict")["features"].entries()
    for name, feature in features.items():
        _described(feature, REQUIRED.get(name, ""))
    missing = [name for name in REQUIRED if name not in features]
    if missing:
        raise invalid(str(node.path), f"the features {', '.join(missing)}", "none of them")
    return _integer(features["label"]["classLabel"]["numClasses"], 1)


def _described(node: Node, kind: str) -> Node:
    """What a feature says of itself: its connector must be known, and of this kind if one is."""
    own = CONNECTORS[node["pythonClassName"].text(CONNECTORS)]
    if own != (kind or own):
        raise node["pythonClassName"].error(f"a feature of kind {kind}")
    node[own].object()
    return node[own]


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    with reading(path, "the names of the classes, one a line"):
        lines = path.read_text(encoding="utf-8").split("\n")
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != len(names):
        raise invalid(str(path), "each class once", ", ".join(names))
    if len(names) != count:
        raise invalid(str(path), f"{count} classes, as in {FEATURES}", len(names))
    return names


def _shards(folder: Path, name: str, info: Node) -> tuple[tuple[Path, int], ...]:
    splits = info["splits"].items()
    if len(splits) != 1:
        raise info["splits"].error(f"the split {SPLIT}, and no other")
    (split,) = splits
    split["name"].text((SPLIT,))
    lengths = [_integer(length) for length in split["shardLengths"].items()]
    files = [
        split["filepathTemplate"]
        .text()
        .replace("{DATASET}", name)
        .replace("{SPLIT}", SPLIT)
        .replace("{FILEFORMAT}", "array_record")
        .replace("{SHARD_INDEX}", f"{i:05d}")
        .replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{len(lengths):05d}")
        for i in range(len(lengths))
    ]
    if len(set(files)) != len(files) or not all(re.fullmatch(r"\w[\w.-]*", file) for file in files):
        raise split["filepathTemplate"].error("a name for each file in the folder")
    return tuple((folder / file, count) for file, count in zip(files, lengths, strict=True))


def _integer(node: Node, low: int = 0) -> int:
    """A 64-bit integer, which protocol buffers write to JSON as text."""
    text = node.text()
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < low:
        raise node.error(f"a whole number, at least {low}, in quotes")
    return int(text)
