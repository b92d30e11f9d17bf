"""Which class of another data set is which class of a model: data, not code.

A mapping is a name in ``class_mappings.json``, a JSON file like its entries, or a CSV with the
columns ``data`` and ``model``. ``data`` gives the evaluated class of each class of the data set,
null (in a CSV nothing) for those that are left out; ``model``, in JSON, merges the model's classes,
whose probabilities then add up.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from jaxattn.data import derived
from jaxattn.data.dataset import Dataset
from jaxattn.data.tables import read_table
from jaxattn.errors import invalid, unknown
from jaxattn.reading import Node, read_json

FILE = "class_mappings.json"
FIELD = "--classes"


@dataclasses.dataclass(frozen=True)
class ClassMapping:
    """How the classes of a data set and of a model meet.

    Attributes:
        name: What it is called.
        data: The evaluated class of each class of the data set, None for those left out.
        model: The evaluated class of each class of the model, in its order.
    """

    name: str
    data: Mapping[str, str | None]
    model: Mapping[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The evaluated classes."""
        return tuple(dict.fromkeys(self.model.values()))

    def select(self, dataset: Dataset) -> Dataset:
        """The data set in the evaluated classes; images of other classes are left out."""
        names = self.class_names
        new = [self.data[name] for name in dataset.class_names]
        labels = np.array([-1 if name is None else names.index(name) for name in new], np.int32)
        rows = np.flatnonzero(labels[dataset.labels] >= 0)
        taken = derived.take(dataset, rows, label=labels[dataset.labels[rows]])
        return dataclasses.replace(taken, class_names=names)

    def left_out(self, dataset: Dataset) -> dict[str, int]:
        """The images of each class that is left out."""
        counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
        given = zip(dataset.class_names, counts.tolist(), strict=True)
        return {name: count for name, count in given if self.data[name] is None}

    def merge(self, of_model: Shaped[np.ndarray, "*n C"]) -> Shaped[np.ndarray, "*n K"]:
        """Sums over the model's classes of each evaluated class."""
        merged = np.zeros((*of_model.shape[:-1], len(self.class_names)), of_model.dtype)
        for i, name in enumerate(self.model.values()):
            merged[..., self.class_names.index(name)] += of_model[..., i]
        return merged

    def labels(self, of_model: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The evaluated classes of classes of the model."""
        return np.array([self.class_names.index(name) for name in self.model.values()])[of_model]


def read(given: str, dataset: Dataset, model_classes: Sequence[str]) -> ClassMapping:
    """Reads a mapping and checks it.

    Args:
        given: A name, a file, or '' where both have the same classes.
        dataset: The data set to evaluate on.
        model_classes: The model's classes, in its order.

    Raises:
        InputError: There is no such mapping; it leaves a class of the data set or of the model
            open, or names one that does not exist.
    """
    data, merged = _read(given, dataset) if given else ({n: n for n in dataset.class_names}, {})
    model = {name: merged.get(name, "") for name in model_classes} if merged else None
    for name, target in (model or {}).items():
        if not target:
            raise invalid(f"{FIELD}={given}, model", f"the class of {name}", "nothing")
    mapping = ClassMapping(given, data, model or {name: name for name in model_classes})
    for name in dataset.class_names:
        if name not in data:
            expected = f"the class of {dataset.name}'s {name}, or null to leave it out"
            raise invalid(f"{FIELD}={given}, data", expected, "nothing")
        of_data = data[name]
        if of_data is not None and of_data not in mapping.class_names:
            raise unknown(f"{FIELD}={given or '(none)'}, {name}", of_data, mapping.class_names)
    return mapping


def _read(given: str, dataset: Dataset) -> tuple[dict[str, str | None], dict[str, str]]:
    path = Path(given).expanduser()
    if path.suffix.lower() == ".csv" and path.is_file():
        rows = read_table(path, ("data", "model"))
        return {row.text("data"): row["model"] or None for row in rows}, {}
    if path.is_file():
        return _entry(read_json(path))
    with resources.as_file(resources.files("jaxattn.data") / FILE) as shipped:
        known = read_json(shipped)
    if given not in known:
        names = [*known.object(), "a JSON or CSV file"]
        raise unknown(FIELD, given, names)
    return _entry(known[given])


def _entry(node: Node) -> tuple[dict[str, str | None], dict[str, str]]:
    data = {
        name: None if each.value is None else each.text()
        for name, each in node["data"].entries().items()
    }
    entries = node["model"].entries() if "model" in node else {}
    return data, {name: each.text() for name, each in entries.items()}
