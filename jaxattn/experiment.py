"""From a config to everything that training and evaluation share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from jaxattn import checkpoints, losses, metrics, optimizers, state, steps
from jaxattn.data import augment, leaks, load, samplers, splits
from jaxattn.data.crops import Crops
from jaxattn.data.dataset import Dataset, height_width
from jaxattn.data.loaders import Loader
from jaxattn.data.samplers import Sampler
from jaxattn.errors import InputError, suggestion
from jaxattn.models import registry
from jaxattn.runtime import devices
from jaxattn.saliency import ClassActivation

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

#: What is measured on the validation part, see `jaxattn.train.validate`.
METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_auc")
#: What is measured of ``config.positive`` beside that, where it is given.
POSITIVE_METRICS = ("auc", "average_precision")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config says, built.

    Attributes:
        config: The config.
        dataset: Decodes images of ``config.dataset.image_size``.
        split: Rows of each part.
        plan: Batches of the training part.
        loader: Batches of the data set.
        model: The classifier.
        loss: Mean loss of a batch.
        map_loss: Loss of attention maps and masks, where there is one.
        ranges: Augmentation of the training images.
        crops: What the model sees of an image.
        normalise: Maps pixels in [0, 1] to the network's input range.
        optimizer: Its schedule ends with the last step.
        mesh: The devices.
    """

    config: ConfigDict
    dataset: Dataset
    split: splits.Split
    plan: Sampler
    loader: Loader
    model: nn.Module
    loss: losses.CrossEntropy
    map_loss: losses.MapDice | None
    ranges: augment.Augmentation
    crops: Crops
    normalise: Callable[[jax.Array], jax.Array]
    optimizer: optax.GradientTransformation
    mesh: Mesh

    @property
    def leak(self) -> str:
        """The published protocol that the split leaks by, see `leaks`; '' for none."""
        return self.config.split.get("leak", "")

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return _steps_per_epoch(self.config, self.plan)

    @property
    def positive(self) -> int | None:
        """The class of ``config.positive``."""
        name = self.config.positive
        return self.dataset.class_names.index(name) if name else None

    @property
    def total_steps(self) -> int:
        """Steps in the whole run, unless it stops early."""
        return self.config.epochs * self.steps_per_epoch

    def _create(self) -> state.TrainState:
        shape = height_width(self.config.dataset.image_size)
        return state.create(
            jax.random.key(self.config.seed),
            self.model,
            self.optimizer,
            self.crops.input_shape(*shape),
            averaged=self.config.average_decay > 0,
        )

    def initial_state(self) -> state.TrainState:
        """The state before the first step, on every device."""
        return jax.jit(self._create, out_shardings=devices.replicated(self.mesh))()

    def abstract_state(self) -> Any:
        """Shapes, dtypes and shardings of the state, to restore a checkpoint with."""
        return checkpoints.abstract(jax.eval_shape(self._create), devices.replicated(self.mesh))

    def train_step(self):
        """The jitted training step, see `steps.make_train_step`."""
        return steps.make_train_step(
            self.model,
            self.optimizer,
            self.loss,
            self.ranges,
            self.mesh,
            normalise=self.normalise,
            seed=self.config.seed,
            crops=self.crops,
            map_loss=self.map_loss,
            average_decay=self.config.average_decay,
        )

    def decide(self, probabilities: Float[np.ndarray, "n classes"]) -> Int[np.ndarray, " n"]:
        """The predicted classes, see `metrics.decide`."""
        labels = self.dataset.labels[self.split["train"]]
        shares = np.bincount(labels, minlength=probabilities.shape[1]) / len(labels)
        # Runs of the time before there was this field have none.
        exponent = self.config.evaluation.get("prior_exponent", 0.0)
        return metrics.decide(probabilities, shares, exponent)

    def predict_step(self, views: int = 1, saliency: bool = False):
        """The jitted prediction step, see `steps.make_predict_step`.

        Args:
            views: See there.
            saliency: Whether the maps of ``config.evaluation.cam`` and ``grad_cam`` are computed:
                those of the positive class, or without one of the predicted class.
        """
        layers = {"cam": self.config.evaluation.cam, "grad_cam": self.config.evaluation.grad_cam}
        return steps.make_predict_step(
            self.model,
            self.mesh,
            normalise=self.normalise,
            views=views,
            crops=self.crops,
            saliency={
                name: ClassActivation(layer, self.positive, rectify=name == "grad_cam")
                for name, layer in layers.items()
                if layer and saliency
            },
        )

    def predict(
        self, step: Any, variables: state.Variables, rows: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n classes"], dict[str, Float[np.ndarray, "n K h w"]]]:
        """Probabilities and attention maps of some rows, on every host.

        Args:
            step: What `predict_step` returned.
            variables: Params and batch_stats.
            rows: Rows of the data set, at least one.
        """
        size = self.config.evaluation.batch_size
        outputs = [
            multihost_utils.process_allgather(step(variables, self.loader.data, batch), tiled=True)
            for batch in self.loader.evaluation(rows, size)
        ]
        probabilities, maps = jax.tree.map(
            lambda *parts: np.concatenate(parts)[: len(rows)], *outputs
        )
        return probabilities, maps


def build(config: ConfigDict) -> Experiment:
    """Builds all that a config describes; nothing is computed and no image is read yet.

    Raises:
        InputError: A field of the config or the data set is wrong.
    """
    _check(config)
    mesh = devices.mesh()
    leak = config.split.get("leak", "")
    dataset = leaks.copies(load.load(config.dataset), leak)
    split = splits.make(dataset, **config.split)
    if leak:
        logging.warning("%s", leaks.warning(leak, leaks.measure(dataset, split)))
    labels = dataset.labels[split["train"]]
    balance = config.plan.to_dict()
    balance["factors"] = samplers.by_class(balance["factors"], dataset.class_names)
    plan = Sampler(split["train"], labels, config.batch_size, config.seed, **balance)
    options = config.model.to_dict()
    weights = losses.class_weights(
        labels,
        dataset.class_names,
        exponent=config.loss.class_weight_exponent,
        factors=config.loss.class_weights.to_dict(),
    )
    if config.positive and config.positive not in dataset.class_names:
        raise InputError(
            f"positive: {config.positive!r} given{suggestion(config.positive, dataset.class_names)}"
        )
    guided = config.loss.diagnosis_guided
    of_maps = config.loss.maps.to_dict()
    map_loss = losses.MapDice(**of_maps) if of_maps["weights"] else None
    steps_per_epoch = _steps_per_epoch(config, plan)
    return Experiment(
        config=config,
        dataset=dataset,
        split=split,
        plan=plan,
        loader=Loader(
            dataset,
            config.dataset.image_size,
            config.loader,
            mesh,
            masks=map_loss.mask if map_loss else "",
        ),
        model=registry.build(
            options.pop("name"), len(dataset.class_names), dtype=DTYPES[config.dtype], **options
        ),
        loss=losses.CrossEntropy(
            weights,
            config.loss.label_smoothing,
            config.loss.reduction,
            config.loss.focal_gamma,
            losses.diagnosis_factors(
                dataset.labels, dataset.table["dx_type"], dataset.class_names, guided
            )
            if guided
            else None,
        ),
        map_loss=map_loss,
        ranges=augment.Augmentation(**config.augment),
        crops=Crops(**config.crops),
        normalise=augment.normalisation(config.normalisation),
        optimizer=optimizers.build(
            config.optimizer, config.epochs * steps_per_epoch, steps_per_epoch
        ),
        mesh=mesh,
    )


def _steps_per_epoch(config: ConfigDict, plan: Sampler) -> int:
    return config.steps_per_epoch or config.passes_per_epoch * plan.steps_per_pass


def _check(config: ConfigDict) -> None:
    """Raises InputError for fields that no part of the library checks by itself."""
    measured = METRICS + (POSITIVE_METRICS if config.positive else ())
    for field, value, known in (
        ("dtype", config.dtype, DTYPES),
        ("best", config.best, measured),
        ("early_stopping.metric", config.early_stopping.metric, measured),
    ):
        if value not in known:
            raise InputError(f"{field}: {value!r} given{suggestion(value, known)}")
    if config.loss.maps.weights and config.crops.strategy == "ordered":
        raise InputError(
            "loss.maps.weights: given with crops.strategy='ordered', one image at a time wanted"
        )
    for field in ("epochs", "log_every_steps", "passes_per_epoch"):
        if config[field] < 1:
            raise InputError(f"{field}: {config[field]} given, 1 or more wanted")
    devices.check_batch_size("batch_size", config.batch_size)
    devices.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    if config.evaluation.views not in (1, 8):
        raise InputError(f"evaluation.views: {config.evaluation.views} given, 1 or 8 wanted")


def restore(experiment: Experiment, folder: Path, name: str) -> tuple[state.Variables, int]:
    """The variables to evaluate with and the step of a run's ``best`` or ``latest`` checkpoint.

    Raises:
        InputError: There is no checkpoint.
    """
    with checkpoints.Checkpoints(folder) as saved:
        step = saved.choose(name)
        restored, _ = saved.restore(step, experiment.abstract_state())
    return restored.evaluated, step
