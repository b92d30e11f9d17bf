"""Evaluates a run: ``python -m jaxattn.evaluate --run=runs/ham_irv2``."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from jaxattn import checkpoints, cli, metrics, overlays, reference_results, run_dir, runtime, steps
from jaxattn.data import leaks, load, preprocess, splits
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import Dataset
from jaxattn.data.loaders import Loader
from jaxattn.data.splits import Split
from jaxattn.errors import invalid, unknown
from jaxattn.models import registry as models
from jaxattn.runtime import devices
from jaxattn.saliency import ClassActivation
from jaxattn.state import Variables

FOLDER = "evaluation"
DTYPES = ("float32", "bfloat16")
#: Metrics of the validation part, which ``best`` and ``early_stopping.metric`` can name.
METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_auc")
#: Further ones with ``config.target_class``.
TARGET_METRICS = ("auc", "average_precision")

Maps = dict[str, Float[np.ndarray, "n K h w"]]


def evaluate(
    folder: Path, part: str = "test", checkpoint: str = "best", data_dir: str = ""
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run and writes the result into its folder.

    Args:
        folder: The run's folder.
        part: ``test``, ``validation`` or ``train``.
        checkpoint: ``best`` (by validation) or ``latest``.
        data_dir: Where the data set lies, if it has moved since training.

    Returns:
        The content of ``evaluation/{part}.json``: metrics, and what they were computed with.
        ``target`` holds the metrics of ``config.target_class`` (see `metrics.detection`) and
        ``jaccard`` the agreement of maps and masks (see `map_jaccard`); both may be empty.
        ``{part}_predictions.csv`` has the probabilities of each image, ``{part}_cases.npz`` the
        images and maps that the report shows.

    Raises:
        InputError: There is no trained run, its data set differs, or the part is empty.
    """
    if part not in splits.PARTS:
        raise unknown("split", part, splits.PARTS)
    config = run_dir.read_config(folder)
    config.dataset.data_dir = data_dir or config.dataset.data_dir
    check(config)
    dataset, split = load.load_split(config)
    run_dir.record_split(folder, split, dataset, config.split.leak)
    rows = split[part]
    if not len(rows):
        raise invalid(f"{folder / run_dir.SPLIT}, {part} part", "images", "none")
    mesh = devices.mesh()
    loader = Loader(dataset, config.dataset.image_size, config.loader, mesh)
    model = models.create(
        num_classes=len(dataset.class_names),
        dtype=jnp.dtype(config.dtype),
        **config.model.to_dict(),
    )
    target = target_class(config, dataset)
    variables, step = checkpoints.read_variables(folder / run_dir.CHECKPOINTS, checkpoint)
    predict_step = make_predict_step(config, model, mesh, config.evaluation.tta, True, target)
    probabilities, maps = predict(
        predict_step,
        devices.put_replicated(mesh, variables),
        loader,
        rows,
        config.evaluation.batch_size,
    )
    labels = dataset.labels[rows]
    predictions = decide(config, dataset, split, probabilities)
    values = metrics.classification(labels, probabilities, dataset.class_names, predictions)
    result = {
        "split": part,
        "checkpoint": checkpoint,
        "step": step,
        "dataset": dataset.name,
        "images": len(rows),
        "lesions": len(np.unique(dataset.table["lesion_id"][rows])),
        "leak": config.split.leak,
        "logit_adjustment": config.evaluation.logit_adjustment,
        "measured_leak": leaks.measure(dataset, split),
        "metrics": values,
        "target": _target(config, labels, probabilities, target),
        "jaccard": map_jaccard(dataset, Crops(**config.crops), rows, maps),
        "device": run_dir.device(),
        "versions": run_dir.versions(),
    }
    if jax.process_index() == 0:
        path = folder / FOLDER / part
        path.parent.mkdir(exist_ok=True)
        _write_predictions(
            path.with_name(f"{part}_predictions.csv"), dataset, rows, probabilities, predictions
        )
        chosen = overlays.select_cases(labels, probabilities, predictions)
        _write_cases(
            path.with_name(f"{part}_cases.npz"),
            dataset,
            Crops(**config.crops),
            rows[chosen],
            probabilities[chosen],
            predictions[chosen],
            {name: each[chosen] for name, each in maps.items()},
        )
        run_dir.write_json(path.with_suffix(".json"), result)
        print(metrics.table(values, reference_results.for_run(config, dataset.name)))
    return result


def check(config: ConfigDict) -> None:
    """Raises InputError for wrong fields of evaluation that nothing else checks."""
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    check_tta(config)
    devices.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)


def check_tta(config: ConfigDict) -> None:
    """Raises InputError for a wrong ``evaluation.tta``."""
    if config.evaluation.tta not in (1, 8):
        raise invalid("evaluation.tta", "1 or 8", config.evaluation.tta)


def target_class(config: ConfigDict, dataset: Dataset) -> int | None:
    """The index of ``config.target_class``, None if it names none.

    Raises:
        InputError: There is no such class.
    """
    if config.target_class and config.target_class not in dataset.class_names:
        raise unknown("target_class", config.target_class, dataset.class_names)
    return dataset.class_names.index(config.target_class) if config.target_class else None


def make_predict_step(
    config: ConfigDict,
    model: nn.Module,
    mesh: Mesh,
    tta: int = 1,
    saliency: bool = False,
    target: int | None = None,
) -> Callable[..., Any]:
    """The jitted prediction step of a config, see `steps.make_predict_step`.

    Args:
        config: The config, resolved.
        model: Its model.
        mesh: The devices.
        tta: 1 or 8, see there.
        saliency: Whether to add the maps of ``evaluation.cam`` and ``evaluation.grad_cam``.
        target: The class they explain; None for the predicted class.
    """
    crops = Crops(**config.crops)
    layers = {"cam": config.evaluation.cam, "grad_cam": config.evaluation.grad_cam}
    return steps.make_predict_step(
        model,
        preprocess.make_evaluation_preprocess(crops, config.normalisation),
        mesh,
        crops=crops,
        tta=tta,
        saliency={
            name: ClassActivation(layer, target, rectify=name == "grad_cam")
            for name, layer in layers.items()
            if layer and saliency
        },
    )


def predict(
    step: Callable[..., Any],
    variables: Variables,
    loader: Loader,
    rows: Int[np.ndarray, " n"],
    batch_size: int,
) -> tuple[Float[np.ndarray, "n classes"], Maps]:
    """Probabilities and maps of some rows, on every host.

    Args:
        step: A prediction step.
        variables: Params and batch_stats, on the devices.
        loader: Of the data set.
        rows: At least one row of the data set.
        batch_size: Over all devices.
    """
    outputs = [
        multihost_utils.process_allgather(step(variables, loader.data, batch), tiled=True)
        for batch in loader.evaluation(rows, batch_size)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *outputs)


def decide(
    config: ConfigDict,
    dataset: Dataset,
    split: Split,
    probabilities: Float[np.ndarray, "n classes"],
) -> Int[np.ndarray, " n"]:
    """The predicted classes, adjusted by the class shares in training, see `metrics.decide`."""
    counts = np.bincount(dataset.labels[split["train"]], minlength=probabilities.shape[1])
    return metrics.decide(probabilities, counts / counts.sum(), config.evaluation.logit_adjustment)


def validate(
    config: ConfigDict,
    dataset: Dataset,
    split: Split,
    loader: Loader,
    predict_step: Callable[..., Any],
    variables: Variables,
) -> dict[str, float]:
    """``METRICS`` of the validation part, and with a target class ``TARGET_METRICS``; {} if empty.

    A metric is NaN where the part has images of one class only.
    """
    rows = split["validation"]
    if not len(rows):
        return {}
    probabilities, _ = predict(predict_step, variables, loader, rows, config.evaluation.batch_size)
    labels = dataset.labels[rows]
    predictions = decide(config, dataset, split, probabilities)
    values = metrics.classification(labels, probabilities, dataset.class_names, predictions)
    likelihood = np.clip(probabilities[np.arange(len(rows)), labels], 1e-12, None)
    measured = {
        "loss": float(-np.log(likelihood).mean()),
        "accuracy": values["accuracy"],
        "balanced_accuracy": values["balanced_accuracy"],
        "macro_auc": values["macro"]["auc"],
    }
    target = target_class(config, dataset)
    if target is not None:
        found = metrics.detection(labels == target, probabilities[:, target])
        measured |= {name: found[name] for name in TARGET_METRICS}
    return {name: float("nan") if value is None else value for name, value in measured.items()}


def _target(
    config: ConfigDict, labels: np.ndarray, probabilities: np.ndarray, target: int | None
) -> dict[str, Any]:
    if target is None:
        return {}
    threshold, sensitivity = config.evaluation.threshold, config.evaluation.sensitivity
    found = metrics.detection(labels == target, probabilities[:, target], threshold, sensitivity)
    return {"class": config.target_class} | found


def map_jaccard(
    dataset: Dataset, crops: Crops, rows: Int[np.ndarray, " n"], maps: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Agreement of attention maps and lesion masks (Yan et al. 2019, section 3.3, table 3).

    Each map, its heads summed, is upsampled bilinearly, rescaled to [0, 1] per image, thresholded
    at one half and compared with the mask. Images without a mask are left out.

    Args:
        dataset: The data set.
        crops: What the model saw of each image.
        rows: Rows of the data set.
        maps: Maps of these rows by name, each ``(n, K, h, w)``.

    Returns:
        ``images``: how many have a mask; ``mean``: the mean Jaccard index of each map. {} without
        maps or masks.
    """
    masked = np.flatnonzero(dataset.table["has_mask"][rows])
    if not maps or not len(masked):
        return {}
    values: dict[str, list[float]] = {name: [] for name in maps}
    for i in masked:
        mask = dataset.records[rows[i]]["mask"]
        mask = mask[crops.field(*mask.shape)]
        for name, stack in maps.items():
            height, width = mask.shape
            single = overlays.heatmap(stack[i], height, width, bilinear=True)
            values[name].append(metrics.jaccard(single, mask))
    means = {name: float(np.mean(each)) for name, each in values.items()}
    return {"images": len(masked), "mean": means}


def _write_predictions(
    path: Path,
    dataset: Dataset,
    rows: np.ndarray,
    probabilities: np.ndarray,
    predictions: np.ndarray,
) -> None:
    names = dataset.class_names
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ["image_id", "lesion_id", "label", "prediction"]
        writer.writerow([*columns, *(f"p_{name}" for name in names)])
        for row, p, predicted in zip(rows, probabilities, predictions, strict=True):
            ids = (dataset.table[column][row] for column in ("image_id", "lesion_id"))
            label, prediction = names[dataset.labels[row]], names[predicted]
            writer.writerow([*ids, label, prediction, *(f"{value:.6g}" for value in p)])


def _write_cases(
    path: Path,
    dataset: Dataset,
    crops: Crops,
    rows: np.ndarray,
    probabilities: np.ndarray,
    predictions: np.ndarray,
    maps: Mapping[str, np.ndarray],
) -> None:
    examples = [dataset.records[row] for row in rows]
    images = np.stack([example["image"] for example in examples])
    masks = [example.get("mask", np.zeros(images.shape[1:3], np.uint8)) for example in examples]
    seen = (slice(None), *crops.field(*images.shape[1:3]))
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


def write_report(folder: Path) -> None:
    """Writes the report of an evaluated run, on the first host, and prints where it is."""
    if jax.process_index() == 0:
        from jaxattn import report  # plotting imports slowly

        print(f"report: {report.write(folder)}")


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_run_flag()
    flags.DEFINE_enum("split", "test", splits.PARTS, "The part to evaluate.")
    flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "The checkpoint to evaluate.")
    flags.DEFINE_string("data_dir", "", "Folder of the prepared data set, if it has moved.")


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    given = flags.FLAGS
    folder = Path(given.run).expanduser()
    runtime.setup(run_dir.read_config(folder).cpu_devices)
    evaluate(folder, given.split, given.checkpoint, given.data_dir)
    if given.split == "test":  # the part that the report shows
        write_report(folder)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
