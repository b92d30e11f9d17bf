"""Evaluates a run: ``python -m jaxattn.evaluate --workdir=runs/ham_irv2``."""

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxattn import experiment, metrics, overlays, reference_results, report, run_dir
from jaxattn.data import leaks, splits
from jaxattn.data.dataset import Dataset
from jaxattn.errors import InputError, run_main, suggestion
from jaxattn.runtime import compilation, devices

FOLDER = "evaluation"


def evaluate(
    folder: Path, part: str = "test", checkpoint: str = "best", data_dir: str = ""
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run and writes the result into its folder.

    Args:
        folder: The run's folder.
        part: ``test``, ``validation`` or ``train``.
        checkpoint: ``best`` (by validation) or ``latest``.
        data_dir: Where the data set lies now, if not where the run was trained.

    Returns:
        What stands in ``evaluation/{part}.json``: the metrics and what they were computed with.
        ``{part}_predictions.csv`` has the probabilities of each image, ``{part}_cases.npz`` the
        images and attention maps that the report shows. ``positive`` is about the class of
        ``config.positive`` (see `metrics.detection`), ``jaccard`` says how far each map is the
        lesion (see `map_jaccard`); both are empty where there is nothing to measure.

    Raises:
        InputError: There is no trained run, its data set is another one, or the part is empty.
    """
    if part not in splits.PARTS:
        raise InputError(f"split: {part!r} given{suggestion(part, splits.PARTS)}")
    config = run_dir.read_config(folder)
    if data_dir:
        config.dataset.data_dir = data_dir
    built = experiment.build(config)
    run_dir.record_split(folder, built.split, built.dataset, built.leak)
    rows = built.split[part]
    if not len(rows):
        raise InputError(f"{folder / run_dir.SPLIT}: the {part} part is empty, images wanted")
    variables, step = experiment.restore(built, folder / run_dir.CHECKPOINTS, checkpoint)
    predict_step = built.predict_step(config.evaluation.views, saliency=True)
    probabilities, maps = built.predict(predict_step, variables, rows)
    labels = built.dataset.labels[rows]
    predictions = built.decide(probabilities)
    values = metrics.classification(labels, probabilities, built.dataset.class_names, predictions)
    result = {
        "split": part,
        "checkpoint": checkpoint,
        "step": step,
        "dataset": built.dataset.name,
        "images": len(rows),
        "lesions": len(np.unique(built.dataset.table["lesion_id"][rows])),
        "leak": built.leak,
        "prior_exponent": config.evaluation.get("prior_exponent", 0.0),
        "measured_leak": leaks.measure(built.dataset, built.split),
        "metrics": values,
        "positive": _positive(built, labels, probabilities),
        "jaccard": map_jaccard(built, rows, maps),
        "device": run_dir.device(),
        "versions": run_dir.versions(),
    }
    chosen = overlays.select_cases(labels, probabilities, predictions)
    chosen_maps = {name: values[chosen] for name, values in maps.items()}
    if jax.process_index() == 0:
        path = folder / FOLDER / part
        path.parent.mkdir(exist_ok=True)
        _write_predictions(
            f"{path}_predictions.csv", built.dataset, rows, probabilities, predictions
        )
        _write_cases(
            f"{path}_cases.npz",
            built,
            rows[chosen],
            probabilities[chosen],
            predictions[chosen],
            chosen_maps,
        )
        run_dir.write_json(path.with_suffix(".json"), result)
        print(metrics.table(values, reference_results.DATTA2021.get(config.model.name)))
    return result


def _positive(
    built: experiment.Experiment, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, Any]:
    if built.positive is None:
        return {}
    evaluation = built.config.evaluation
    return {"class": built.config.positive} | metrics.detection(
        labels == built.positive,
        probabilities[:, built.positive],
        evaluation.threshold,
        evaluation.sensitivity,
    )


def map_jaccard(
    built: experiment.Experiment, rows: np.ndarray, maps: dict[str, np.ndarray]
) -> dict[str, Any]:
    """How far attention maps and lesion masks agree (Yan et al. 2019, section 3.3, table 3).

    Each map, its heads summed, is upsampled bilinearly, rescaled to [0, 1] image by image, cut at
    one half and compared with the mask; images without a mask are left out.

    Args:
        built: The experiment.
        rows: Rows of the data set.
        maps: Maps of these rows, each ``(n, K, h, w)``.

    Returns:
        ``images``: with a mask; ``mean``: the mean Jaccard index of each map. {} without maps or
        masks.
    """
    there = np.flatnonzero(built.dataset.table["has_mask"][rows])
    if not maps or not len(there):
        return {}
    values: dict[str, list[float]] = {name: [] for name in maps}
    for i in there:
        mask = built.dataset.records[rows[i]]["mask"]
        mask = mask[built.crops.field(*mask.shape)]
        height, width = mask.shape
        for name, stack in maps.items():
            single = overlays.heatmap(stack[i], height, width, bilinear=True)
            values[name].append(metrics.jaccard(single, mask))
    means = {name: float(np.mean(each)) for name, each in values.items()}
    return {"images": len(there), "mean": means}


def _write_predictions(
    path: str,
    dataset: Dataset,
    rows: np.ndarray,
    probabilities: np.ndarray,
    predictions: np.ndarray,
) -> None:
    names = dataset.class_names
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ["image_id", "lesion_id", "label", "prediction"]
        writer.writerow([*columns, *(f"p_{name}" for name in names)])
        for row, p, predicted in zip(rows, probabilities, predictions, strict=True):
            ids = (dataset.table[column][row] for column in ("image_id", "lesion_id"))
            label, prediction = names[dataset.labels[row]], names[predicted]
            writer.writerow([*ids, label, prediction, *(f"{value:.6g}" for value in p)])


def _write_cases(
    path: str,
    built: experiment.Experiment,
    rows: np.ndarray,
    probabilities: np.ndarray,
    predictions: np.ndarray,
    maps: dict[str, np.ndarray],
) -> None:
    dataset = built.dataset
    examples = [dataset.records[row] for row in rows]
    images = np.stack([example["image"] for example in examples])
    masks = [example.get("mask", np.zeros(images.shape[1:3], np.uint8)) for example in examples]
    seen = (slice(None), *built.crops.field(*images.shape[1:3]))
    arrays: dict[str, Any] = {
        "image_id": dataset.table["image_id"][rows],
        "image": images[seen],
        "mask": np.stack(masks)[seen],
        "label": dataset.labels[rows],
        "prediction": predictions,
        "probability": np.take_along_axis(probabilities, predictions[:, None], axis=1)[:, 0],
        **{f"map/{name}": values for name, values in maps.items()},
    }
    np.savez_compressed(path, **arrays)


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    folder = Path(given.workdir)
    devices.split_cpu(run_dir.read_config(folder).cpu_devices)
    compilation.use_cache()
    evaluate(folder, given.split, given.checkpoint, given.data_dir)
    if given.split == "test":  # what the report is about
        print(f"report: {report.write(folder)}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
    flags.DEFINE_enum("split", "test", splits.PARTS, "The part to evaluate on.")
    flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "The checkpoint to evaluate.")
    flags.DEFINE_string("data_dir", "", "Where the prepared data set lies now.")
    run_main(main)
