"""Evaluates a run: ``python -m jaxattn.evaluate --run=runs/ham_irv2``."""

from jaxattn import signals

if __name__ == "__main__":
    signals.install()  # before the imports below, which take seconds

import contextlib
import datetime
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from jaxattn import checkpoints, cli, files, metrics, reference_results, run_dir, runtime, steps
from jaxattn import config as configs
from jaxattn.data import duplicates, leaks, load, metadata, preprocess, splits
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import Dataset, height_width
from jaxattn.data.loaders import Loader
from jaxattn.data.splits import Split
from jaxattn.errors import invalid, unknown
from jaxattn.evaluation import (
    calibration,
    gallery,
    map_agreement,
    operating_points,
    predictions,
    subgroups,
    uncertainty,
)
from jaxattn.evaluation.predictions import Predictions
from jaxattn.models import registry as models
from jaxattn.runtime import devices, lock
from jaxattn.saliency import ClassActivation
from jaxattn.state import Variables

FOLDER = "evaluation"
#: Metrics of the validation part, which ``best`` and ``early_stopping.metric`` can name.
METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_auc")
#: Further ones with ``config.target_class``.
TARGET_METRICS = ("auc", "average_precision")

Maps = dict[str, Float[np.ndarray, "n K h w"]]


class Opened(NamedTuple):
    """A run, ready to be evaluated: see `open_run`.

    Attributes:
        folder: The run's folder.
        config: Its config, resolved.
        dataset: What it is evaluated on.
        split: Rows of each part.
        loader: Batches of pixels on the devices.
        step: Of the checkpoint.
        variables: Params and batch_stats, on the devices.
        predict_step: The jitted prediction step, with saliency maps.
        target: Index of ``config.target_class``, or None.
    """

    folder: Path
    config: ConfigDict
    dataset: Dataset
    split: Split
    loader: Loader
    step: int
    variables: Variables
    predict_step: Callable[..., Any]
    target: int | None

    def predict(self, rows: Int[np.ndarray, " n"]) -> tuple[Predictions, Maps]:
        """Predictions and maps of some rows; none without rows."""
        classes = len(self.dataset.class_names)
        probabilities: np.ndarray = np.zeros((0, classes), np.float32)
        maps: Maps = {}
        if len(rows):
            batch_size = self.config.evaluation.batch_size
            probabilities, maps = predict(
                self.predict_step, self.variables, self.loader, rows, batch_size
            )
        decided = decide(self.config, self.dataset, self.split, probabilities)
        return predictions.of_dataset(self.dataset, rows, probabilities, decided), maps


def evaluate(
    folder: Path,
    part: str = "test",
    checkpoint: str = "best",
    data_dir: str = "",
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run and writes the result into its folder, or another one.

    The validation part is predicted too: thresholds and the temperature are chosen on it.

    Args:
        folder: The run's folder.
        part: ``test``, ``validation`` or ``train``.
        checkpoint: ``best`` (by validation) or ``latest``.
        data_dir: Where the data set lies, if it has moved since training.
        out: Where to write the results, if not into the run's folder, which then is only read.
        settings: Fields of ``config.evaluation``, dotted, that differ from those of training.

    Returns:
        The content of ``evaluation/{part}.json``: metrics with intervals, and what they were
        computed with; see `measure`. ``{part}_predictions.csv`` and ``validation_predictions.csv``
        have the probabilities of each image, ``{part}_cases.npz`` the images and maps that the
        report shows, ``temperature.json`` beside them the temperature.

    Raises:
        InputError: There is no trained run, its data set differs, the part is empty, or the result
            cannot be written.
    """
    with held(out or folder):
        return _evaluate(folder, part, checkpoint, data_dir, out, settings or {})


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the folder of results, so that it is known before all the work to be writable."""
    if jax.process_index() != 0:
        yield
        return
    results = folder / FOLDER
    try:
        results.mkdir(parents=True, exist_ok=True)
        with (results / lock.NAME).open("a"):
            pass
    except OSError as error:
        given = f"{results}: {error.strerror}"
        raise invalid("--out", "a folder for the results that can be written", given) from error
    with lock.hold(results):
        files.clean(results)
        yield


def _evaluate(
    folder: Path,
    part: str,
    checkpoint: str,
    data_dir: str,
    out: Path | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    run = open_run(folder, part, checkpoint, data_dir, settings, writes=out is None)
    rows = run.split[part]
    found, maps = run.predict(rows)
    chosen_on = found if part == "validation" else run.predict(_validation_rows(run))[0]
    result = {
        "split": part,
        "checkpoint": checkpoint,
        "step": run.step,
        **describe(run, rows),
        **measure(run.config, found, chosen_on),
        **maps_measured(run, rows, maps),
    }
    if jax.process_index() == 0:
        write(run, part, rows, found, chosen_on, maps, result, out)
        reference = reference_results.for_run(run.config, run.dataset.name)
        print(metrics.table(result["metrics"], reference, result["intervals"]))
    return result


def open_run(
    folder: Path,
    part: str,
    checkpoint: str = "best",
    data_dir: str = "",
    settings: Mapping[str, Any] | None = None,
    writes: bool = False,
) -> Opened:
    """Reads a run, its data set and the variables of a checkpoint; see `evaluate`.

    Args:
        folder: See there.
        part: See there.
        checkpoint: See there.
        data_dir: See there.
        settings: See there.
        writes: Whether to write what an older version has not recorded.
    """
    if part not in splits.PARTS:
        raise unknown("split", part, splits.PARTS)
    config = run_dir.read_config(folder)
    config.evaluation.update_from_flattened_dict(dict(settings or {}))
    config.dataset.data_dir = data_dir or config.dataset.data_dir
    configs.check_fields(config)
    devices.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    variables, step = checkpoints.read_variables(folder / run_dir.CHECKPOINTS, checkpoint)
    dataset, split = load.load_split(config)
    vocabulary = metadata.learn(config.metadata.fields, dataset.table, split["train"])
    run_dir.record_split(folder, split, dataset, config.split.leak, writes, vocabulary)
    if not len(split[part]):
        raise invalid(f"{folder / run_dir.SPLIT}, {part} part", "images", "none")
    mesh = devices.mesh()
    sizes = vocabulary.sizes if vocabulary else None
    model = models.of_config(config, len(dataset.class_names), sizes)
    target = target_class(config, dataset)
    check_layers(config, model, variables)
    return Opened(
        folder=folder,
        config=config,
        dataset=dataset,
        split=split,
        loader=Loader(
            dataset, config.dataset.image_size, config.loader, mesh, vocabulary=vocabulary
        ),
        step=step,
        variables=devices.put_replicated(mesh, variables),
        predict_step=make_predict_step(config, model, mesh, config.evaluation.tta, True, target),
        target=target,
    )


def describe(run: Opened, rows: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """What was evaluated: data, images and lesions of each part, leaks, software, when."""
    config, dataset, split = run.config, run.dataset, run.split
    lesions = dataset.table["lesion_id"]
    return {
        "dataset": dataset.name,
        "images": len(rows),
        "lesions": len(np.unique(lesions[rows])),
        "parts": {
            name: {"images": len(part), "lesions": len(np.unique(lesions[part]))}
            for name, part in split.items()
        },
        "leak": config.split.leak,
        "logit_adjustment": config.evaluation.logit_adjustment,
        "settings": config.evaluation.to_dict(),
        "measured_leak": leaks.measure(dataset, split),
        "duplicates": duplicates.count(dataset, split) if not config.split.leak else {},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        "device": run_dir.device(),
        "versions": run_dir.versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": run_dir.commit(),
    }


def measure(config: ConfigDict, found: Predictions, chosen_on: Predictions) -> dict[str, Any]:
    """Everything that is computed from predictions alone.

    Args:
        config: Of the run.
        found: Predictions of the part that is evaluated.
        chosen_on: Predictions of the validation part, possibly none.

    Returns:
        ``metrics`` (`jaxattn.metrics.classification`), ``intervals`` of them
        (`jaxattn.evaluation.uncertainty.intervals`), ``target`` (`jaxattn.metrics.detection` of
        ``config.target_class``, {} without), ``operating_points`` chosen on validation
        (`jaxattn.evaluation.operating_points.measure`), ``temperature`` fitted there and what it
        does to the calibration, and ``subgroups`` (`jaxattn.evaluation.subgroups.measure`).
    """
    options = config.evaluation
    at = {"sensitivity": options.sensitivity, "specificity": options.specificity}
    values = metrics.classification(
        found.labels, found.probabilities, found.class_names, found.predictions, **at
    )
    points, temperature = {}, {}
    if len(chosen_on):
        points = operating_points.measure(chosen_on, found, **at, resamples=options.resamples)
        temperature = _temperature(found, chosen_on)
    return {
        "metrics": values,
        "intervals": uncertainty.intervals(found, options.resamples, **at),
        "target": _target(config, found),
        "operating_points": points,
        "temperature": temperature,
        "subgroups": subgroups.measure(found, min(options.resamples, subgroups.RESAMPLES)),
    }


def write(
    run: Opened,
    part: str,
    rows: Int[np.ndarray, " n"],
    found: Predictions,
    chosen_on: Predictions,
    maps: Maps,
    result: Mapping[str, Any],
    out: Path | None = None,
) -> None:
    """Writes the files of an evaluation, see `evaluate`; the JSON last."""
    out = out or run.folder
    folder = out / FOLDER
    predictions.write(folder / f"{part}_predictions.csv", found)
    if len(chosen_on):
        predictions.write(folder / "validation_predictions.csv", chosen_on)
        kept = {"step": run.step, "tta": run.config.evaluation.tta} | result["temperature"]
        run_dir.write_json(out / calibration.TEMPERATURE, kept)
    gallery.write(folder / f"{part}_cases.npz", run.config, run.dataset, rows, found, maps)
    run_dir.write_json(folder / f"{part}.json", result)


def check_layers(config: ConfigDict, model: nn.Module, variables: Any = None) -> None:
    """Raises InputError if ``evaluation.cam`` or ``evaluation.grad_cam`` names no layer.

    Args:
        config: The config, resolved.
        model: Its model.
        variables: Its variables, if there are any yet.
    """
    explained = _explained(config, None)
    if not explained:
        return
    shape = Crops(**config.crops).input_shape(*height_width(config.dataset.image_size))
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    if variables is None:
        init = functools.partial(model.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
    for explain in explained.values():
        explain.check(model, variables, images)


def _explained(config: ConfigDict, target: int | None) -> dict[str, ClassActivation]:
    """The class activation maps that a config asks for."""
    layers = {"cam": config.evaluation.cam, "grad_cam": config.evaluation.grad_cam}
    return {
        name: ClassActivation(layer, target, rectify=name == "grad_cam")
        for name, layer in layers.items()
        if layer
    }


def check_criteria(config: ConfigDict, dataset: Dataset, split: Split) -> None:
    """Raises InputError if a metric that is to choose is undefined on the validation part."""
    labels = dataset.labels[split["validation"]]
    if not len(labels):
        return
    target = target_class(config, dataset)
    one_class = len(np.unique(labels)) == 1
    undefined = {"macro_auc"} if one_class else set()
    if target is not None and (one_class or target not in labels):
        undefined |= set(TARGET_METRICS)
    for field in ("best", "early_stopping.metric"):
        metric = configs.flatten(config.to_dict())[field]
        if metric in undefined:
            counts = np.bincount(labels, minlength=len(dataset.class_names)).tolist()
            listed = ", ".join(
                f"{name} {count}" for name, count in zip(dataset.class_names, counts, strict=True)
            )
            raise invalid(
                field,
                f"a metric that is defined on the validation part ({listed})",
                f"{metric!r}, which needs images with and without the class",
            )


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
    """The jitted prediction step of a config, see `make_predict` and `steps.make_predict_step`."""
    return steps.make_predict_step(make_predict(config, model, tta, saliency, target), mesh)


def make_predict(
    config: ConfigDict,
    model: nn.Module,
    tta: int = 1,
    saliency: bool = False,
    target: int | None = None,
) -> steps.Predict:
    """The prediction of a config, ``(variables, images, *metadata) -> (probabilities, maps)``.

    Args:
        config: The config, resolved.
        model: Its model.
        tta: 1 or 8, see `steps.make_predict`.
        saliency: Whether to add the maps of ``evaluation.cam`` and ``evaluation.grad_cam``.
        target: The class they explain; None for the predicted class.
    """
    crops = Crops(**config.crops)
    return steps.make_predict(
        model,
        preprocess.make_evaluation_preprocess(crops, config.normalisation),
        crops=crops,
        tta=tta,
        saliency=_explained(config, target) if saliency else {},
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
    outputs = []
    for batch in loader.evaluation(rows, batch_size):
        signals.check()
        found = step(variables, loader.data, batch)
        outputs.append(multihost_utils.process_allgather(found, tiled=True))
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
    decided = decide(config, dataset, split, probabilities)
    values = metrics.classification(labels, probabilities, dataset.class_names, decided)
    measured = {
        "loss": values["calibration"]["nll"],
        "accuracy": values["accuracy"],
        "balanced_accuracy": values["balanced_accuracy"],
        "macro_auc": values["macro"]["auc"],
    }
    target = target_class(config, dataset)
    if target is not None:
        found = metrics.detection(labels == target, probabilities[:, target])
        measured |= {name: found[name] for name in TARGET_METRICS}
    return {name: float("nan") if value is None else value for name, value in measured.items()}


def _validation_rows(run: Opened) -> Int[np.ndarray, " n"]:
    """Rows to choose thresholds on; none where the validation part is the test part."""
    chosen_on_test = run.config.split.leak in leaks.SELECT_ON_TEST
    return run.split["validation"][: 0 if chosen_on_test else None]


def _target(config: ConfigDict, found: Predictions) -> dict[str, Any]:
    name, options = config.target_class, config.evaluation
    if not name:
        return {}
    target = found.class_names.index(name)
    positive, scores = found.labels == target, found.probabilities[:, target]
    return {"class": name} | metrics.detection(
        positive, scores, options.threshold, options.sensitivity
    )


def _temperature(found: Predictions, chosen_on: Predictions) -> dict[str, Any]:
    """The temperature, where it was fitted, and the calibration with it."""
    temperature = calibration.fit_temperature(chosen_on.labels, chosen_on.probabilities)
    assert temperature is not None
    scaled = calibration.scale(found.probabilities, temperature)
    return {
        "temperature": temperature,
        "fitted_on": "validation",
        "images": len(chosen_on),
        "calibration": calibration.measure(found.labels, scaled),
    }


def maps_measured(run: Opened, rows: Int[np.ndarray, " n"], maps: Maps) -> dict[str, Any]:
    """``map_agreement``, see `jaxattn.evaluation.map_agreement.measure`, and Jaccard indices."""
    crops = Crops(**run.config.crops)
    resamples = run.config.evaluation.resamples
    found = map_agreement.measure(run.dataset, crops, rows, maps, resamples)
    means = {name: row["jaccard"] for name, row in found.get("maps", {}).items()}
    jaccard = {"images": found["images"], "mean": means} if found else {}
    return {"map_agreement": found, "jaccard": jaccard}


def write_report(folder: Path, out: Path | None = None) -> None:
    """Writes the report of an evaluated run, on the first host, and prints where it is."""
    if jax.process_index() == 0:
        from jaxattn import report  # plotting imports slowly

        print(f"report: {report.write(folder, out)}")


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_run_flag()
    cli.define_out_flag()
    cli.define_evaluation_flags()
    cli.define_deterministic_flag()
    flags.DEFINE_enum("split", "test", splits.PARTS, "The part to evaluate.")
    flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "The checkpoint to evaluate.")
    flags.DEFINE_string(
        "data_dir", "", "Folder of the prepared data set, if it has moved, or of another one."
    )
    flags.DEFINE_string(
        "classes", "", "Which class of another data set is which of the model's: a name or a file."
    )
    flags.DEFINE_string("name", "", "What the result on another data set is called.")
    flags.DEFINE_string(
        "training_data_dir", "", "Where the run's own data set lies, beside another one."
    )


def main(argv: list[str]) -> None:
    """The command line."""
    del argv
    from ml_collections import config_flags

    given = flags.FLAGS
    folder = Path(given.run).expanduser()
    signals.describe("nothing of the run has changed")
    runtime.setup(run_dir.read_config(folder).cpu_devices, given.deterministic)
    out = Path(given.out) if given.out else None
    settings = config_flags.get_override_values(given["evaluation"])
    from jaxattn.evaluation import external

    if given.classes or external.is_other(folder, given.data_dir):
        external.evaluate_on(
            folder,
            given.data_dir,
            given.classes,
            given.checkpoint,
            name=given.name,
            out=out,
            settings=settings,
            training_data_dir=given.training_data_dir,
        )
        return
    evaluate(folder, given.split, given.checkpoint, given.data_dir, out, settings)
    if given.split == "test":  # the part that the report shows
        write_report(folder, out)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
