"""Trained runs, loaded to classify images: one, or several as an ensemble."""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from jaxattn import checkpoints, config_rules, evaluate, metrics, run_dir, saliency
from jaxattn.data import images as decoding
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import height_width
from jaxattn.data.loaders import MAX_THREADS
from jaxattn.data.metadata import Record, Vocabulary, as_table
from jaxattn.errors import InputError, invalid
from jaxattn.evaluation import calibration
from jaxattn.models import registry as models
from jaxattn.runtime import devices
from jaxattn.state import Variables

#: A file, its content, or RGB pixels: uint8 ``(H, W, 3)``.
Source = str | Path | bytes | np.ndarray
Maps = dict[str, Float[np.ndarray, "n K h w"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained classifier.

    Attributes:
        folder: The run's folder.
        config: Its config.
        class_names: Classes in the order of the probabilities.
        metadata: ``step`` of the checkpoint, ``model`` and its options, ``image_size``,
            ``training_images`` by class, ``prepared_size`` (see `Dataset`).
        model: Called ``(images, *, train)``; takes what `preprocess.make_evaluation_preprocess`
            returns.
        variables: Params and batch_stats.
        vocabulary: Of the metadata that the model sees beside the image; None if it sees none.
    """

    folder: Path
    config: ConfigDict
    class_names: tuple[str, ...]
    metadata: Mapping[str, Any]
    model: nn.Module
    variables: Variables
    _step: Callable[..., Any]
    vocabulary: Vocabulary | None = None

    def predict(
        self, images: Iterable[Source], metadata: Sequence[Record] | None = None
    ) -> tuple[Float[np.ndarray, "n classes"], Maps]:
        """Classifies images as evaluation does: same decoding, crops and test-time augmentation.

        Args:
            images: Files, see `images.decode_image`, or RGB images of any size.
            metadata: Of each image ``{"age": 55, "sex": "female", "localization": "back"}``, or
                some of it, for a model that sees metadata. What is not given, and words that its
                training part did not have, count as missing; so does everything with None.

        Returns:
            The probabilities of each class, float32, and the attention maps by name, float32.

        Raises:
            InputError: An image cannot be read or is not RGB, none is given, or the metadata are
                wrong, or of another number of images, or the model sees none.
        """
        images = list(images)
        if metadata is not None and len(metadata) != len(images):
            raise invalid("metadata", f"those of {len(images)} images", len(metadata))
        found = list(stream([self], images, metadata=metadata))
        for each in found:
            if each.error:
                raise InputError(each.error)
        if not found:
            raise invalid("images", "at least one image", "none")
        maps = [each.maps[0] for each in found]
        return (
            np.stack([each.probabilities for each in found]),
            {name: np.stack([each[name] for each in maps]) for name in maps[0]},
        )

    def decide(self, probabilities: Float[np.ndarray, "n classes"]) -> Int[np.ndarray, " n"]:
        """The predicted classes, by the rule of evaluation (``evaluation.logit_adjustment``)."""
        return adjusted([self], probabilities).argmax(axis=1)

    @property
    def geometry(self) -> tuple[tuple[int, int], float, int | None, str]:
        """What `images.decode_image` is told: size, centre, prepared_size and resize."""
        options = self.config.dataset
        size = height_width(options.image_size)
        return size, options.centre_crop, self.metadata["prepared_size"], options.resize

    def read(self, image: Source) -> UInt8[np.ndarray, "H W 3"]:
        """The pixels that evaluation would send to the device.

        Raises:
            InputError: The image cannot be read or is not RGB.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise invalid("image", "uint8 (H, W, 3)", f"{image.dtype} {image.shape}")
            size, centre, _, resize = self.geometry
            return decoding.resize_image(image, size, centre, resize)
        source = image if isinstance(image, bytes) else Path(image).expanduser()
        return decoding.read_image(source, *self.geometry)

    def seen(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The part of `read`'s pixels that the model sees and its maps cover."""
        return pixels[Crops(**self.config.crops).field(*pixels.shape[:2])]


def load_run(
    folder: str | Path,
    checkpoint: str = "best",
    *,
    tta: int = 0,
    explain: bool = False,
    calibrated: bool = False,
) -> Run:
    """Loads a run to classify images with.

    Args:
        folder: The run's folder.
        checkpoint: ``best``, by validation, or ``latest``.
        tta: Test-time augmentation, 1 or 8; 0 for the run's own.
        explain: Whether to add the class activation maps of ``evaluation.cam`` and
            ``evaluation.grad_cam`` to the maps; where the config names neither, ``grad_cam`` of the
            last layer.
        calibrated: Whether to scale probabilities by the temperature that evaluation fitted on the
            validation part.

    Raises:
        InputError: There is no trained run in the folder, or no temperature of the checkpoint.
    """
    folder = Path(folder).expanduser()
    config = run_dir.read_config(folder)
    config.evaluation.tta = tta or config.evaluation.tta
    config_rules.check({"evaluation.tta": config.evaluation.tta})
    classes = run_dir.read_classes(folder)
    class_names = tuple(classes["training_images"])
    vocabulary = run_dir.read_vocabulary(folder)
    sizes = vocabulary.sizes if vocabulary else None
    model = models.of_config(config, len(class_names), sizes)
    variables, step = checkpoints.read_variables(folder / run_dir.CHECKPOINTS, checkpoint)
    if explain and not (config.evaluation.cam or config.evaluation.grad_cam):
        shape = Crops(**config.crops).input_shape(*height_width(config.dataset.image_size))
        config.evaluation.grad_cam = saliency.last_layer(model, variables, shape)
    mesh = devices.mesh()
    predict_step = evaluate.make_predict_step(config, model, mesh, config.evaluation.tta, explain)
    if calibrated:
        temperature = calibration.read_temperature(folder, step, config.evaluation.tta)
        predict_step = calibrated_step(predict_step, temperature)
    return Run(
        folder=folder,
        config=config,
        class_names=class_names,
        metadata={
            "step": step,
            "model": config.model.to_dict(),
            "image_size": config.dataset.image_size,
            "training_images": classes["training_images"],
            "prepared_size": classes["prepared_size"],
        },
        model=model,
        variables=devices.put_replicated(mesh, variables),
        _step=predict_step,
        vocabulary=vocabulary,
    )


def calibrated_step(step: Callable[..., Any], temperature: float) -> Callable[..., Any]:
    """A prediction step whose probabilities `jaxattn.evaluation.calibration.scale` has scaled."""

    def scaled(*given: Any) -> tuple[jax.Array, Any]:
        probabilities, maps = step(*given)
        logits = jnp.log(jnp.maximum(probabilities, calibration.FLOOR)) / temperature
        return jax.nn.softmax(logits), maps

    return scaled


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What runs say of an image.

    Attributes:
        source: The image, as it was given.
        error: Why it could not be read; then there is nothing else.
        probabilities: Of each class: the mean over the runs, float32 ``(classes,)``.
        maps: Of each run, by name, float32 ``(K, h, w)``.
        pixels: For each run, `Run.read`'s.
        metadata: The image's metadata, as they were given.
    """

    source: Source
    error: str = ""
    probabilities: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    maps: Sequence[Mapping[str, np.ndarray]] = ()
    pixels: Sequence[np.ndarray] = ()
    metadata: Record = dataclasses.field(default_factory=dict)


def stream(
    runs: Sequence[Run],
    images: Iterable[Source],
    *,
    metadata: Iterable[Record] | None = None,
    batch_size: int = 0,
    maps: bool = True,
) -> Iterator[Prediction]:
    """Classifies images, in order; threads decode the next ones while the device computes.

    Memory does not depend on the number of images. An image that cannot be read has an error, and
    the others go on.

    Args:
        runs: One, or the members of an ensemble.
        images: Read as they are needed.
        metadata: Of each image, see `Run.predict`, for those of the runs that see metadata.
        batch_size: Images at once; 0 for the first run's ``evaluation.batch_size``. Fewer images
            than that are one batch of the next power of two.
        maps: Whether to fetch the maps.

    Raises:
        InputError: The runs are no ensemble, or there are metadata that no run sees.
    """
    check_ensemble(runs)
    if metadata is not None and not any(run.vocabulary for run in runs):
        expected = "a run that sees them (metadata.fields)"
        raise invalid("metadata", expected, f"{runs[0].folder}, which sees images alone")
    records = itertools.repeat({}) if metadata is None else metadata
    granularity = jax.device_count()
    size = batch_size or runs[0].config.evaluation.batch_size
    size = -(-size // granularity) * granularity
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        given = zip(images, records, strict=False)  # repeat() has no end
        decoded = _ahead(pool, functools.partial(_decode, runs), given, size + 2 * threads)
        started: tuple[list[Prediction], Any] | None = None
        padded = 0
        for batch in _batches(decoded, size):
            count = sum(not each.error for each in batch)
            # A last batch of another size would compile the step a second time.
            padded = padded or min(
                size, granularity * 2 ** (-(-count // granularity) - 1).bit_length()
            )
            outputs = _start(runs, batch, padded, maps) if count else None
            if started:
                yield from _finish(*started)
            started = batch, outputs
        if started:
            yield from _finish(*started)


def check_ensemble(runs: Sequence[Run]) -> None:
    """Raises InputError unless the runs have the same classes and decide alike."""
    first = runs[0]
    for run in runs[1:]:
        for what, wanted, given in (
            ("classes", first.class_names, run.class_names),
            (
                "evaluation.logit_adjustment",
                first.config.evaluation.logit_adjustment,
                run.config.evaluation.logit_adjustment,
            ),
        ):
            if wanted != given:
                raise invalid(f"{run.folder}, {what}", f"those of {first.folder}, {wanted}", given)


def adjusted(
    runs: Sequence[Run], probabilities: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, "n classes"]:
    """Probabilities whose largest is the predicted class, see `metrics.adjust`.

    The class shares of an ensemble are the mean over its runs.
    """
    shares = []
    for run in runs:
        counts = np.array(list(run.metadata["training_images"].values()))
        shares.append(counts / counts.sum())
    exponent = runs[0].config.evaluation.logit_adjustment
    return metrics.adjust(probabilities, np.mean(shares, axis=0), exponent)


def _decode(runs: Sequence[Run], given: tuple[Source, Record]) -> Prediction:
    """An image as pixels for each run; decoded once if all want the same."""
    image, metadata = given
    found: dict[Any, np.ndarray] = {}
    try:
        for run in runs:
            if run.geometry not in found:
                found[run.geometry] = run.read(image)
    except InputError as error:
        return Prediction(image, str(error))
    return Prediction(image, pixels=[found[run.geometry] for run in runs], metadata=metadata)


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[tuple[Source, Record]], Prediction],
    images: Iterable[tuple[Source, Record]],
    count: int,
) -> Iterator[Prediction]:
    """``map``, with ``count`` results under way."""
    waiting: collections.deque[Future[Prediction]] = collections.deque()
    try:
        for image in images:
            waiting.append(pool.submit(function, image))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _batches(decoded: Iterable[Prediction], size: int) -> Iterator[list[Prediction]]:
    """Batches of ``size`` readable images, with the unreadable ones in between."""
    batch: list[Prediction] = []
    count = 0
    for each in decoded:
        batch.append(each)
        count += not each.error
        if count == size:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _start(runs: Sequence[Run], batch: Sequence[Prediction], padded: int, maps: bool) -> list[Any]:
    """Starts a batch on the device; its outputs, of ``padded`` images, by run."""
    outputs = []
    readable = [each for each in batch if not each.error]
    readable += readable[-1:] * (padded - len(readable))
    table = as_table([each.metadata for each in readable])
    for i, run in enumerate(runs):
        arrays = {"image": np.stack([each.pixels[i] for each in readable])}
        if run.vocabulary:
            arrays["metadata"] = run.vocabulary.encode(table, padded)
        found = run._step(run.variables, {}, arrays)
        outputs.append(found if maps else (found[0], {}))
    return outputs


def _finish(batch: Sequence[Prediction], outputs: Any) -> Iterator[Prediction]:
    """Waits for a batch."""
    fetched = jax.device_get(outputs)
    place = 0
    for each in batch:
        if each.error:
            yield each
            continue
        yield dataclasses.replace(
            each,
            probabilities=np.mean([p[place] for p, _ in fetched], axis=0),
            maps=[{name: of[place] for name, of in maps.items()} for _, maps in fetched],
        )
        place += 1
