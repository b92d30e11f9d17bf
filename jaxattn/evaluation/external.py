"""Evaluates a run on a data set that it was not made for.

``python -m jaxattn.evaluate --run=DIR --data_dir=PREPARED --classes=MAPPING``: see
`jaxattn.data.class_mapping` for mappings. Images that the run knows are counted, and everything is
measured with and without them.
"""

import dataclasses
import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool
from ml_collections import ConfigDict

from jaxattn import checkpoints, evaluate, metrics, reference_results, run_dir
from jaxattn.data import class_mapping, duplicates, hashes, metadata, splits
from jaxattn.data.class_mapping import ClassMapping
from jaxattn.data.dataset import Dataset
from jaxattn.data.loaders import Loader
from jaxattn.data.tables import read_table
from jaxattn.errors import InputError, invalid
from jaxattn.evaluation import gallery, predictions
from jaxattn.evaluation.predictions import Predictions
from jaxattn.models import registry as models
from jaxattn.runtime import devices

#: Ids that mean the same in every data set: those of the ISIC archive and its contributors. Other
#: ids are compared only between data sets of one name.
_GLOBAL = re.compile(r"(ISIC|HAM|BCN|MSK\d*|IL|IP)_\w+")
_KINDS = ("id", "lesion", "same_pixels", "near_duplicate")


class Known(NamedTuple):
    """Images that a run knows.

    Attributes:
        name: Of its data set.
        image_ids: ``(N,)``.
        lesion_ids: ``(N,)``.
        trained: Which of them are in its training or validation part, ``(N,)``.
        hashes: ``pixel_hash`` and ``perceptual_hash`` of each, '' where unknown; {} if there are
            none.
    """

    name: str
    image_ids: np.ndarray
    lesion_ids: np.ndarray
    trained: np.ndarray
    hashes: dict[str, np.ndarray]


def evaluate_on(
    folder: Path,
    data_dir: str,
    classes: str = "",
    checkpoint: str = "best",
    *,
    name: str = "",
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    training_data_dir: str = "",
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on all images of another prepared data set.

    Args:
        folder: The run's folder.
        data_dir: The prepared data set.
        classes: Which of its classes is which of the model's, see `class_mapping.read`.
        checkpoint: ``best`` or ``latest``.
        name: What the result is called; by default as the data set.
        out: Where to write ``evaluation/``, if not into the run's folder, which then is only read.
        settings: Fields of ``config.evaluation``, dotted, that differ from those of training.
        training_data_dir: Where the run's own data set lies, if it has moved since training.

    Returns:
        The content of ``NAME.json``: as of `evaluate.evaluate`, and ``classes`` (the mapping),
        ``left_out`` (images by class), ``unknown_metadata`` (values that the run does not know and
        that count as missing, by field), ``known``, how many images the run knows and by what (see
        `find_known`), and ``without_trained`` and ``without_own``: what is measured without the
        images that training or validation knew, and without all of the run's data set; None where
        that leaves out no image. ``NAME_predictions.csv`` has the probabilities, with the columns
        ``trained`` and ``own``; ``NAME_cases.npz`` what a report shows.

    Raises:
        InputError: There is no trained run or data set, or the mapping leaves a class open.
    """
    config = run_dir.read_config(folder)
    config.evaluation.update_from_flattened_dict(dict(settings or {}))
    own_data_dir = training_data_dir or config.dataset.data_dir
    devices.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    given = _load(config, data_dir)
    facts = run_dir.read_classes(folder)
    mapping = class_mapping.read(classes, given, tuple(facts["training_images"]))
    dataset = mapping.select(given)
    name = _name(name or dataset.name)
    known = read_known(folder, config, facts, own_data_dir)
    matches = find_known(dataset, known)
    place = (out or folder) / evaluate.FOLDER
    with evaluate.held(out or folder):
        run = _open(folder, config, dataset, mapping, checkpoint, facts)
        rows = np.arange(len(dataset))
        found, maps = _predict(run, mapping, facts, rows)
        chosen_on = _validation(folder, mapping)
        marks = {which: kinds["any"] for which, kinds in matches.items()}
        result = {
            "external": True,
            "split": name,
            "checkpoint": checkpoint,
            **_describe(run, mapping, given, matches),
            **evaluate.measure(run.config, found, chosen_on),
            **evaluate.maps_measured(run, rows, maps),
            **{
                f"without_{which}": _without(run.config, found, chosen_on, known)
                for which, known in marks.items()
            },
        }
        if jax.process_index() == 0:
            predictions.write(place / f"{name}_predictions.csv", _marked(found, marks))
            gallery.write(place / f"{name}_cases.npz", run.config, dataset, rows, found, maps)
            run_dir.write_json(place / f"{name}.json", result)
            reference = reference_results.for_run(config, dataset.name)
            print(metrics.table(result["metrics"], reference, result["intervals"]))
            print("\n".join([*describe(result), f"written to {place / name}.json"]))
    return result


def is_other(folder: Path, data_dir: str) -> bool:
    """Whether a data set lacks images of a run's split, but has no class that its model lacks."""
    from jaxattn.data.tfds import reader

    split = folder / run_dir.SPLIT
    if not data_dir or not split.is_file():
        return False
    given = reader.load(Path(data_dir).expanduser())
    images = {row["image_id"].partition("+")[0] for row in read_table(split, ("image_id",))}
    known = set(run_dir.read_classes(folder)["training_images"])
    return not images <= set(given.table["image_id"].tolist()) and known >= set(given.class_names)


def read_known(folder: Path, config: ConfigDict, facts: dict[str, Any], data_dir: str) -> Known:
    """The images of a run's split, and of its data set as far as that is still there.

    Says in one line if the hashes of their pixels are not known.
    """
    rows = read_table(folder / run_dir.SPLIT, ("image_id", "lesion_id", "split"))
    part = {row["image_id"].partition("+")[0]: row["split"] for row in rows}
    lesion = {row["image_id"].partition("+")[0]: row["lesion_id"] for row in rows}
    found: dict[str, np.ndarray] = {}
    why = ""
    if config.dataset.name == "prepared":
        try:
            dataset = _load(config, data_dir)
        except InputError as error:
            why = str(error)
        else:
            run_dir.check_data(folder, dataset)
            ids = dataset.table["image_id"].tolist()
            lesion |= dict(zip(ids, dataset.table["lesion_id"].tolist(), strict=True))
            why = f"{data_dir} has no hashes (python -m jaxattn.prepare --verify adds them)"
            for column in (
                ("pixel_hash", "perceptual_hash") if duplicates.has_hashes(dataset) else ()
            ):
                of_image = dict(zip(ids, dataset.table[column].tolist(), strict=True))
                found[column] = np.array([of_image.get(name, "") for name in lesion])
    if why and not found:
        logging.warning("known images are looked for by their ids alone: %s", why)
    trained = np.array([part.get(name) in ("train", "validation") for name in lesion], bool)
    names, lesions = (np.array(list(each)) for each in (lesion, lesion.values()))
    return Known(str(facts["dataset"]), names, lesions, trained, found)


def find_known(dataset: Dataset, known: Known) -> dict[str, dict[str, Bool[np.ndarray, "..."]]]:
    """Which images of a data set a run knows.

    Args:
        dataset: The data set.
        known: See `read_known`.

    Returns:
        For ``trained``, its training and validation part, and ``own``, its whole data set: which
        images are known by ``id`` (``_downsampled`` or not), by ``lesion``, by ``same_pixels``, as
        a ``near_duplicate``, and by ``any`` of these; boolean ``(N,)``. Without hashes the kinds
        that need them are missing.
    """
    same_name = dataset.name == known.name
    ids, own_ids = (_comparable(each, same_name) for each in (
        dataset.table["image_id"], known.image_ids))  # fmt: skip
    lesions, own_lesions = (_comparable(each, same_name) for each in (
        dataset.table["lesion_id"], known.lesion_ids))  # fmt: skip
    pairs = {}
    if known.hashes and duplicates.has_hashes(dataset):
        for kind, column, match in (
            ("same_pixels", "pixel_hash", hashes.same),
            ("near_duplicate", "perceptual_hash", hashes.near),
        ):
            pairs[kind] = match(dataset.table[column], known.hashes[column])
    found = {}
    for which, rows in (("trained", known.trained), ("own", np.ones(len(known.trained), bool))):
        kinds = {
            "id": (ids != "") & np.isin(ids, own_ids[rows]),
            "lesion": (lesions != "") & np.isin(lesions, own_lesions[rows]),
        }
        for kind, (first, second) in pairs.items():
            kinds[kind] = np.zeros(len(dataset), bool)
            kinds[kind][first[rows[second]]] = True
        found[which] = kinds | {"any": np.logical_or.reduce(list(kinds.values()))}
    return found


def describe(result: dict[str, Any]) -> list[str]:
    """Lines on the images that the run knows, and the main numbers without them.

    Before them, on words of metadata that the run does not know, and on images that are left out.
    """
    lines = metadata.describe(result.get("unknown_metadata", {}))
    left = ", ".join(f"{name} {count}" for name, count in result["left_out"].items())
    if left:
        lines.append(f"left out: {left}")
    words = {"trained": "training or validation knew", "own": "are in the run's data set"}
    for which, said in words.items():
        counts = result["known"][which]
        kinds = ", ".join(f"{k.replace('_', ' ')} {counts[k]}" for k in _KINDS if k in counts)
        line = f"{counts['any']} of {result['images']} images {said} (by {kinds})"
        without = result[f"without_{which}"]
        if without and without["metrics"]:
            values = without["metrics"]
            numbers = (
                metrics.number(values["balanced_accuracy"]),
                metrics.number(values["accuracy"]),
            )
            line += f"; without them balanced accuracy {numbers[0]}, accuracy {numbers[1]}"
        lines.append(line)
    return lines


def _comparable(ids: np.ndarray, same_name: bool) -> np.ndarray:
    """Ids that may be compared with those of another data set, '' for others."""
    plain = [str(name).removesuffix("_downsampled") for name in ids]
    return np.array([name if same_name or _GLOBAL.fullmatch(name) else "" for name in plain])


def _load(config: ConfigDict, data_dir: str) -> Dataset:
    from jaxattn.data.tfds import reader

    if not data_dir:
        raise invalid("--data_dir", "a folder that python -m jaxattn.prepare wrote", "nothing")
    folder = Path(data_dir).expanduser()
    return reader.load(folder, config.dataset.image_size, config.dataset.centre_crop)


def _name(given: str) -> str:
    """A name for files that is none of the run's own evaluations."""
    name = re.sub(r"[^\w.-]", "_", given)
    return f"{name}_data" if name in (*splits.PARTS, "temperature") else name


def _open(
    folder: Path,
    config: ConfigDict,
    dataset: Dataset,
    mapping: ClassMapping,
    checkpoint: str,
    facts: dict[str, Any],
) -> evaluate.Opened:
    if not len(dataset):
        raise invalid("--classes", f"a mapping that keeps images of {dataset.name}", mapping.name)
    model_classes = tuple(facts["training_images"])
    mesh = devices.mesh()
    vocabulary = run_dir.read_vocabulary(folder)
    sizes = vocabulary.sizes if vocabulary else None
    model = models.of_config(config, len(model_classes), sizes)
    target = model_classes.index(config.target_class) if config.target_class else None
    variables, step = checkpoints.read_variables(folder / run_dir.CHECKPOINTS, checkpoint)
    own = config.copy_and_resolve_references()
    own.dataset.update(classes=(), name="external")
    if own.target_class not in mapping.class_names:
        own.target_class = ""
    every = np.arange(len(dataset))
    return evaluate.Opened(
        folder=folder,
        config=own,
        dataset=dataset,
        split={"train": every[:0], "validation": every[:0], "test": every},
        loader=Loader(
            dataset, config.dataset.image_size, config.loader, mesh, vocabulary=vocabulary
        ),
        step=step,
        variables=devices.put_replicated(mesh, variables),
        predict_step=evaluate.make_predict_step(
            config, model, mesh, config.evaluation.tta, True, target
        ),
        target=target,
    )


def _predict(
    run: evaluate.Opened, mapping: ClassMapping, facts: dict[str, Any], rows: np.ndarray
) -> tuple[Predictions, evaluate.Maps]:
    """Predictions in the evaluated classes, decided as the run decides."""
    options = run.config.evaluation
    probabilities, maps = evaluate.predict(
        run.predict_step, run.variables, run.loader, rows, options.batch_size
    )
    counts = mapping.merge(np.array(list(facts["training_images"].values()), float))
    merged = mapping.merge(probabilities)
    decided = metrics.decide(merged, counts / counts.sum(), options.logit_adjustment)
    return predictions.of_dataset(run.dataset, rows, merged, decided), maps


def _validation(folder: Path, mapping: ClassMapping) -> Predictions:
    """The run's predictions of its validation part, in the evaluated classes; none without."""
    path = folder / evaluate.FOLDER / "validation_predictions.csv"
    if not path.is_file():
        return _no_predictions(mapping)
    found = predictions.read(path, tuple(mapping.model))
    return Predictions(
        class_names=mapping.class_names,
        image_ids=found.image_ids,
        lesion_ids=found.lesion_ids,
        labels=mapping.labels(found.labels),
        predictions=mapping.labels(found.predictions),
        probabilities=mapping.merge(found.probabilities),
        metadata=found.metadata,
    )


def _no_predictions(mapping: ClassMapping) -> Predictions:
    names, none = np.zeros(0, np.str_), np.zeros(0, np.int64)
    empty = np.zeros((0, len(mapping.class_names)))
    return Predictions(mapping.class_names, names, names, none, none, empty)


def _describe(
    run: evaluate.Opened,
    mapping: ClassMapping,
    given: Dataset,
    matches: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """What was evaluated, and what the run knows of it."""
    vocabulary = run_dir.read_vocabulary(run.folder)
    return {
        "step": run.step,
        "dataset": given.name,
        "fingerprint": dict(given.fingerprint),
        "images": len(run.dataset),
        "lesions": len(np.unique(run.dataset.table["lesion_id"])),
        "classes": {"name": mapping.name, "data": dict(mapping.data), "model": dict(mapping.model)},
        "left_out": mapping.left_out(given),
        "unknown_metadata": vocabulary.unknown(run.dataset.table) if vocabulary else {},
        "known": {
            which: {kind: int(rows.sum()) for kind, rows in kinds.items()}
            for which, kinds in matches.items()
        },
        "leak": "",
        "logit_adjustment": run.config.evaluation.logit_adjustment,
        "settings": run.config.evaluation.to_dict(),
        "device": run_dir.device(),
        "versions": run_dir.versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _without(
    config: ConfigDict, found: Predictions, chosen_on: Predictions, known: np.ndarray
) -> dict[str, Any] | None:
    """What is measured without known images; None if there are none."""
    if not known.any():
        return None
    kept = found.take(~known)
    if not len(kept):
        return {"images": 0, "metrics": None}
    return {"images": len(kept), **evaluate.measure(config, kept, chosen_on)}


def _marked(found: Predictions, marks: Mapping[str, np.ndarray]) -> Predictions:
    """The predictions with a column for each kind of known images, 0 or 1."""
    columns = {which: known.astype(int).astype(str) for which, known in marks.items()}
    return dataclasses.replace(found, metadata={**found.metadata, **columns})
