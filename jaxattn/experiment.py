"""From a config to everything that training and evaluation share."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from jaxattn import checkpoints, losses, optimizers, sharding, state, steps
from jaxattn.data import augment, datasets, splits
from jaxattn.data.dataset import Dataset
from jaxattn.data.loaders import Loader
from jaxattn.data.plans import Plan
from jaxattn.errors import InputError, suggestion
from jaxattn.models import registry

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config says, built.

    Attributes:
        config: The config.
        dataset: Decodes images of ``config.dataset.image_size``.
        split: Rows of each part.
        plan: Batches of the training part.
        model: The classifier.
        optimizer: Its schedule ends with the last step.
        mesh: The devices.
    """

    config: ConfigDict
    dataset: Dataset
    split: splits.Split
    plan: Plan
    model: nn.Module
    optimizer: optax.GradientTransformation
    mesh: Mesh

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return self.config.steps_per_epoch or self.plan.steps_per_pass

    @property
    def total_steps(self) -> int:
        """Steps in the whole run, unless it stops early."""
        return self.config.epochs * self.steps_per_epoch

    @functools.cached_property
    def loader(self) -> Loader:
        """Batches; made, and images put on the device, when first needed."""
        return Loader(self.dataset, self.config.dataset.image_size, self.config.loader, self.mesh)

    def _create(self) -> state.TrainState:
        size = self.config.dataset.image_size
        return state.create(
            jax.random.key(self.config.seed),
            self.model,
            self.optimizer,
            (size, size, 3),
            averaged=self.config.average_decay > 0,
        )

    def initial_state(self) -> state.TrainState:
        """The state before the first step, on every device."""
        return jax.jit(self._create, out_shardings=sharding.replicated(self.mesh))()

    def abstract_state(self) -> Any:
        """Shapes, dtypes and shardings of the state, to restore a checkpoint with."""
        return checkpoints.abstract(jax.eval_shape(self._create), sharding.replicated(self.mesh))

    def train_step(self):
        """The jitted training step, see `steps.make_train_step`."""
        config = self.config
        weights = losses.class_weights(
            self.plan.labels,
            self.dataset.class_names,
            exponent=config.loss.class_weight_exponent,
            factors=config.loss.class_weights,
        )
        return steps.make_train_step(
            self.model,
            self.optimizer,
            losses.CrossEntropy(weights, config.loss.label_smoothing, config.loss.reduction),
            augment.Augmentation(**config.augment),
            self.mesh,
            normalisation=config.normalisation,
            seed=config.seed,
            average_decay=config.average_decay,
        )

    def predict_step(self, views: int = 1):
        """The jitted prediction step, see `steps.make_predict_step`."""
        return steps.make_predict_step(
            self.model, self.mesh, normalisation=self.config.normalisation, views=views
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
    if config.dtype not in DTYPES:
        raise InputError(f"dtype: {config.dtype!r} given{suggestion(config.dtype, DTYPES)}")
    for field in ("epochs", "log_every_steps"):
        if config[field] < 1:
            raise InputError(f"{field}: {config[field]} given, 1 or more wanted")
    sharding.check_batch_size("batch_size", config.batch_size)
    sharding.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    if config.evaluation.views not in (1, 8):
        raise InputError(f"evaluation.views: {config.evaluation.views} given, 1 or 8 wanted")
    dataset = datasets.load(config.dataset)
    split = splits.make(dataset, **config.split)
    rows = split["train"]
    plan = Plan(rows, dataset.labels[rows], config.batch_size, config.seed, **config.plan)
    options = dict(config.model)
    model = registry.build(
        options.pop("name"), len(dataset.class_names), dtype=DTYPES[config.dtype], **options
    )
    steps_per_epoch = config.steps_per_epoch or plan.steps_per_pass
    optimizer = optimizers.build(config.optimizer, config.epochs * steps_per_epoch)
    return Experiment(config, dataset, split, plan, model, optimizer, sharding.mesh())


def restore(experiment: Experiment, folder: Path, name: str) -> tuple[state.Variables, int]:
    """The variables to evaluate with and the step of a run's ``best`` or ``latest`` checkpoint.

    Raises:
        InputError: There is no checkpoint.
    """
    with checkpoints.Checkpoints(folder) as saved:
        step = saved.choose(name)
        restored, _ = saved.restore(step, experiment.abstract_state())
    return restored.evaluated, step
