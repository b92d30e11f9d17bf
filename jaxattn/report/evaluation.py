"""Checks what an evaluation wrote, which may come from elsewhere: its numbers are numbers."""

from pathlib import Path

import numpy as np

from jaxattn.data import leaks
from jaxattn.errors import invalid
from jaxattn.metrics import MEASURES
from jaxattn.reading import Node, read_npz

#: Entries that hold numbers, at whatever depth, or None where a number is undefined.
NUMBERS = (
    "step",
    "images",
    "lesions",
    "logit_adjustment",
    "measured_leak",
    "metrics",
    "target",
    "jaccard",
)
#: Entries that hold text, or a list of it, inside those too.
TEXTS = ("class", "classes", "absent_classes", "split", "checkpoint", "dataset", "leak", "device")


def check(node: Node) -> None:
    """Checks the content of ``evaluation/PART.json``, with today's names.

    Raises:
        InputError: An entry that the report shows is missing or of another type.
    """
    for name, entry in node.entries().items():
        if name in (*NUMBERS, *TEXTS):
            _check_leaves(entry, name)
    if "versions" in node:
        for version in node["versions"].entries().values():
            version.text()
    _check_metrics(node["metrics"])
    if node.object().get("target"):
        for measure in ("auc", "average_precision", "at_threshold", "at_sensitivity"):
            _require(node["target"], measure)
        node["target"]["class"].text()
    if node.object().get("leak"):
        node["leak"].text(leaks.LEAKS)
        for measure in ("lesion", "image"):
            node["measured_leak"][measure].number(0, 1)


def _check_leaves(node: Node, name: str) -> None:
    if isinstance(node.value, dict):
        for inner, entry in node.entries().items():
            _check_leaves(entry, inner)
    elif isinstance(node.value, list):
        for item in node.items():
            _check_leaves(item, name)
    elif node.value is not None:
        node.text() if name in TEXTS else node.number()


def _require(node: Node, name: str) -> Node:
    if name not in node:
        raise node[name].error("a number")
    return node[name]


def _check_metrics(metrics: Node) -> None:
    classes = metrics["per_class"].entries()
    if not classes:
        raise metrics["per_class"].error("a class")
    metrics["n"].whole(1)
    for name in ("accuracy", "balanced_accuracy"):
        _require(metrics, name)
    for row in (*classes.values(), metrics["macro"], metrics["weighted"]):
        for measure in MEASURES:
            _require(row, measure)
    for row in classes.values():
        row["support"].whole()
    confusion = metrics["confusion"]
    if confusion["classes"].value != list(classes):
        raise confusion["classes"].error(f"the classes {', '.join(classes)}")
    rows = [[count.whole() for count in row.items()] for row in confusion["counts"].items()]
    if {len(rows), *map(len, rows)} != {len(classes)}:
        raise confusion["counts"].error(f"{len(classes)} rows of {len(classes)} counts")


def read_cases(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of ``evaluation/PART_cases.npz``; None if there is no such file.

    Raises:
        InputError: It is damaged, or an array is missing or of another type or shape.
    """
    if not path.is_file():
        return None
    cases = read_npz(path, "an NPZ file")
    absent = sorted(_CASES - set(cases))
    if absent:
        raise invalid(
            str(path), f"arrays {', '.join(sorted(_CASES))}", f"none of {', '.join(absent)}"
        )
    n, size = len(np.atleast_1d(cases["image_id"])), cases["image"].shape[1:3]
    known: dict[str, tuple[str, tuple[int, ...]]] = {
        "image_id": ("U", (n,)),
        "image": ("u", (n, *size, 3)),
        "label": ("iu", (n,)),
        "prediction": ("iu", (n,)),
        "probability": ("f", (n,)),
        "probabilities": ("f", (n, *cases.get("probabilities", np.empty(0)).shape[1:2])),
        "mask": ("ub", (n, *size)),
    }
    known |= {name: ("U", (n,)) for name in cases if name.startswith("metadata/")}
    pictures = ("picture/", "picture_mask/")  # encoded files, read by Pillow
    known |= {
        name: ("u", (array.size,)) for name, array in cases.items() if name.startswith(pictures)
    }
    for name, array in cases.items():
        kinds, shape = known.get(name, ("f", (n, *array.shape[1:4])))
        if array.dtype.kind not in kinds or array.shape != shape or 0 in shape:
            given = f"{array.dtype} of shape {array.shape}"
            raise invalid(f"{path}, {name}", f"the array of {n} cases", given)
        if name not in known and (array.ndim != 4 or not name.startswith("map/")):
            raise invalid(f"{path}, {name}", "maps of shape (n, K, h, w)", array.shape)
        if "f" in kinds and not np.isfinite(array).all():
            raise invalid(f"{path}, {name}", "finite numbers", "NaN or infinity")
    return cases


_CASES = {"image_id", "image", "label", "prediction", "probability"}
